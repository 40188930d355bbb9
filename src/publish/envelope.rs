//! A message to clients as others write it: a JSON object, or the same in MessagePack.
//!
//! It has just one of `text`, `binary`, `close`, `join` and `leave`, and may have `except` and
//! `connection`. Which of the two formats it is, its first byte tells: a map of MessagePack never
//! begins like an object of JSON. Binary is base64, or the bytes themselves where the format has
//! them.
//!
//! Whatever the bytes are, they are a message or an error that says what is wrong; what is read of
//! them is bounded. A key that nobody knows is an error too: its writer wants something that would
//! not be done.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Action;
use crate::ws::close::{CLOSE_CODES, CLOSE_TEXT_BYTES, CloseCode};
use crate::ws::message::Payload;
use crate::ws::rooms::{MAX_ROOMS, NotARoom, Room};

/// The longest message of which at most `most` bytes go to a client: as escapes they may take six times
/// as many, and there may be lists around them.
const fn longest(most: usize) -> usize {
    6 * most + 64 * 1024
}
/// The most connections that a message may leave out.
pub const MAX_EXCEPT: usize = 1000;

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What is to be done.
    pub action: Action,
    /// The ids of connections to which it is not to be done.
    pub except: Vec<String>,
    /// The id of the one connection that it is for, where its channel is a proxy's.
    pub connection: Option<String>,
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It is too long to be looked at.
    #[error("it has {bytes} bytes; at most {most} are read")]
    TooLong {
        /// How many it has.
        bytes: usize,
        /// How many are read.
        most: usize,
    },
    /// It begins with something else.
    #[error("it is neither a JSON object nor a map of MessagePack")]
    NoObject,
    /// It can't be read as JSON.
    #[error("as JSON: {0}")]
    Json(serde_json::Error),
    /// It can't be read as MessagePack.
    #[error("as MessagePack: {0}")]
    MessagePack(rmp_serde::decode::Error),
    /// Something follows it.
    #[error("{bytes} bytes follow the map")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// It says nothing, or several things at once.
    #[error("it has {count} of text, binary, close, join and leave; one must be there")]
    NotOne {
        /// How many.
        count: usize,
    },
    /// Its payload is too long.
    #[error("the message has {bytes} bytes; at most {most} are sent")]
    TooLarge {
        /// How many it has.
        bytes: usize,
        /// How many are sent.
        most: usize,
    },
    /// No endpoint may send this code.
    #[error("close: {CLOSE_CODES}, not {code}")]
    Code {
        /// The code.
        code: u16,
    },
    /// The reason does not fit into a Close.
    #[error("close: the reason has {bytes} bytes; at most {CLOSE_TEXT_BYTES} fit")]
    Reason {
        /// How many it has.
        bytes: usize,
    },
    /// A room can't have this name.
    #[error(transparent)]
    Room(#[from] NotARoom),
    /// It names more rooms than a connection can be in.
    #[error("it names {count} rooms; a connection is in {MAX_ROOMS} at most")]
    TooManyRooms {
        /// How many.
        count: usize,
    },
    /// It leaves out too many.
    #[error("except has {count} ids; at most {MAX_EXCEPT} are taken")]
    TooManyExcept {
        /// How many.
        count: usize,
    },
}

/// A message to be written.
#[derive(Clone, Copy, Debug)]
pub enum Said<'a> {
    /// A data message.
    Message(Payload<'a>),
    /// A Close with this code and text.
    Close(CloseCode, &'a str),
    /// Into this room.
    Join(&'a Room),
    /// Out of this room.
    Leave(&'a Room),
}

#[derive(Default, Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binary: Option<AsBytes<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close: Option<WrittenClose<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    join: Option<[&'a str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leave: Option<[&'a str; 1]>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    except: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<&'a str>,
}

#[derive(Serialize)]
struct WrittenClose<'a> {
    code: u16,
    reason: &'a str,
}

struct AsBytes<'a>(&'a [u8]);

impl Serialize for AsBytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Writes a message in MessagePack: to all of an audience but `except`, or to one `connection`.
pub fn write(said: Said<'_>, except: &[String], connection: Option<&str>) -> Bytes {
    let mut written = Written { except, connection, ..Written::default() };
    match said {
        Said::Message(Payload::Text(text)) => written.text = Some(text),
        Said::Message(Payload::Binary(bytes)) => written.binary = Some(AsBytes(bytes)),
        Said::Close(code, reason) => {
            written.close = Some(WrittenClose { code: code.get(), reason });
        }
        Said::Join(room) => written.join = Some([room.as_str()]),
        Said::Leave(room) => written.leave = Some([room.as_str()]),
    }
    // Into memory, of plain fields: that has no way to fail.
    rmp_serde::to_vec_named(&written).unwrap_or_default().into()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    text: Option<String>,
    binary: Option<Binary>,
    close: Option<CloseFields>,
    join: Option<Vec<String>>,
    leave: Option<Vec<String>>,
    #[serde(default)]
    except: Vec<String>,
    connection: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseFields {
    code: u16,
    #[serde(default)]
    reason: String,
}

/// Bytes, or text that is base64.
#[derive(Debug)]
struct Binary(Vec<u8>);

impl<'de> Deserialize<'de> for Binary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Binary;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("bytes, or base64 in a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Binary, E> {
                STANDARD.decode(text).map(Binary).map_err(|error| E::custom(error.to_string()))
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Binary, E> {
                Ok(Binary(bytes.to_vec()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Reads a message of which at most `most` bytes go to a client.
///
/// # Errors
///
/// Everything that is wrong with it: see [`EnvelopeError`].
pub fn read(bytes: &[u8], most: usize) -> Result<Envelope, EnvelopeError> {
    if bytes.len() > longest(most) {
        return Err(EnvelopeError::TooLong { bytes: bytes.len(), most: longest(most) });
    }
    let fields = match bytes.first() {
        Some(b'{' | b' ' | b'\t' | b'\n' | b'\r')
            if bytes.trim_ascii_start().first() == Some(&b'{') =>
        {
            serde_json::from_slice(bytes).map_err(EnvelopeError::Json)?
        }
        // fixmap, map 16, map 32.
        Some(0x80..=0x8f | 0xde | 0xdf) => message_pack(bytes)?,
        _ => return Err(EnvelopeError::NoObject),
    };
    resolve(fields, most)
}

fn message_pack(mut bytes: &[u8]) -> Result<Fields, EnvelopeError> {
    let mut deserializer = rmp_serde::Deserializer::new(&mut bytes);
    let fields = Fields::deserialize(&mut deserializer).map_err(EnvelopeError::MessagePack)?;
    if bytes.is_empty() { Ok(fields) } else { Err(EnvelopeError::Trailing { bytes: bytes.len() }) }
}

fn resolve(fields: Fields, most: usize) -> Result<Envelope, EnvelopeError> {
    let Fields { text, binary, close, join, leave, except, connection } = fields;
    let given =
        [text.is_some(), binary.is_some(), close.is_some(), join.is_some(), leave.is_some()];
    let count = given.into_iter().filter(|given| *given).count();
    if count != 1 {
        return Err(EnvelopeError::NotOne { count });
    }
    if except.len() > MAX_EXCEPT {
        return Err(EnvelopeError::TooManyExcept { count: except.len() });
    }
    let actions = [
        text.map(|text| send(Payload::Text(&text), most)),
        binary.map(|Binary(bytes)| send(Payload::Binary(&bytes), most)),
        close.map(|CloseFields { code, reason }| farewell(code, reason)),
        join.map(|names| Ok(Action::Join(rooms(&names)?))),
        leave.map(|names| Ok(Action::Leave(rooms(&names)?))),
    ];
    let action = actions.into_iter().flatten().next();
    let action = action.unwrap_or(Err(EnvelopeError::NotOne { count }))?;
    Ok(Envelope { action, except, connection })
}

fn send(payload: Payload<'_>, most: usize) -> Result<Action, EnvelopeError> {
    let bytes = payload.len();
    if bytes > most {
        return Err(EnvelopeError::TooLarge { bytes, most });
    }
    Ok(Action::Send(payload.frame()))
}

fn farewell(code: u16, reason: String) -> Result<Action, EnvelopeError> {
    if reason.len() > CLOSE_TEXT_BYTES {
        return Err(EnvelopeError::Reason { bytes: reason.len() });
    }
    let code = CloseCode::new(code).ok_or(EnvelopeError::Code { code })?;
    Ok(Action::Close { code, text: reason.into_boxed_str() })
}

fn rooms(names: &[String]) -> Result<Vec<Room>, EnvelopeError> {
    if names.len() > MAX_ROOMS {
        return Err(EnvelopeError::TooManyRooms { count: names.len() });
    }
    Ok(names.iter().map(|name| Room::new(name)).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::MAX_MESSAGE_BYTES;
    use super::*;

    fn read(bytes: &[u8]) -> Result<Envelope, EnvelopeError> {
        super::read(bytes, MAX_MESSAGE_BYTES)
    }

    fn of_json(value: &Value) -> Result<Envelope, String> {
        read(value.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    fn of_message_pack(value: &Value) -> Result<Envelope, String> {
        read(&rmp_serde::to_vec_named(value).unwrap()).map_err(|error| error.to_string())
    }

    fn room(name: &str) -> Room {
        Room::new(name).unwrap()
    }

    #[test]
    fn each_of_the_five_is_read_in_both_formats() {
        let close = |code, text: &str| Action::Close {
            code: CloseCode::new(code).unwrap(),
            text: text.into(),
        };
        for (message, action) in [
            (json!({"text": "hé"}), Action::Send(Payload::Text("hé").frame())),
            (json!({"text": ""}), Action::Send(Payload::Text("").frame())),
            (json!({"binary": "AAH/"}), Action::Send(Payload::Binary(&[0, 1, 255]).frame())),
            (json!({"close": {"code": 4000}}), close(4000, "")),
            (json!({"close": {"code": 1000, "reason": "bye"}}), close(1000, "bye")),
            (json!({"join": ["a", "b"]}), Action::Join(vec![room("a"), room("b")])),
            (json!({"leave": ["a"]}), Action::Leave(vec![room("a")])),
        ] {
            let wanted = Envelope { action, except: Vec::new(), connection: None };
            assert_eq!(of_json(&message).as_ref(), Ok(&wanted), "{message}");
            assert_eq!(of_message_pack(&message).as_ref(), Ok(&wanted), "{message}");
        }
        let message = json!({"text": "x", "except": ["p.1", "p.2"], "connection": "p.3"});
        let envelope = of_json(&message).unwrap();
        assert_eq!(envelope.except, ["p.1", "p.2"]);
        assert_eq!(envelope.connection.as_deref(), Some("p.3"));
    }

    #[test]
    fn message_pack_carries_bytes_as_they_are() {
        // {"binary": bin 8 of 3 bytes}
        let message = b"\x81\xa6binary\xc4\x03\x00\x01\xff";
        let action = Action::Send(Payload::Binary(&[0, 1, 255]).frame());
        assert_eq!(read(message).unwrap().action, action);
        assert!(matches!(
            read(b"\x81\xa6binary\xc4\x03\x00\x01\xff\x00"),
            Err(EnvelopeError::Trailing { bytes: 1 })
        ));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let many = |count: usize| vec!["x"; count];
        for (message, part) in [
            (json!({}), "0 of text"),
            (json!({"text": "a", "binary": ""}), "2 of text"),
            (json!({"txt": "a"}), "txt"),
            (json!({"text": 7}), "string"),
            (json!({"binary": "?"}), "Invalid"),
            (json!({"binary": [1, 2]}), "base64"),
            (json!({"close": {}}), "code"),
            (json!({"close": {"code": 1005}}), "not 1005"),
            (json!({"close": {"code": 70_000}}), "70000"),
            (json!({"close": {"code": 1000, "reason": "x".repeat(124)}}), "124 bytes"),
            (json!({"join": [""]}), "not 0"),
            (json!({"join": "a"}), "sequence"),
            (json!({"leave": many(MAX_ROOMS + 1)}), "129 rooms"),
            (json!({"text": "a", "except": many(MAX_EXCEPT + 1)}), "1001 ids"),
            (json!({"text": "x".repeat(MAX_MESSAGE_BYTES + 1)}), "1048577 bytes"),
            (json!(["text"]), "neither"),
        ] {
            let told = of_json(&message).unwrap_err();
            assert!(told.contains(part), "{told}");
        }
        assert!(read(b"").is_err() && read(b" ").is_err());
        assert!(
            read(&vec![b' '; longest(MAX_MESSAGE_BYTES) + 1])
                .unwrap_err()
                .to_string()
                .contains("read")
        );
        let escaped = format!(r#"{{"text": "{}"}}"#, r"\u0001".repeat(MAX_MESSAGE_BYTES));
        assert!(read(escaped.as_bytes()).is_ok());
        let largest = json!({"text": "x".repeat(MAX_MESSAGE_BYTES)});
        assert!(of_json(&largest).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            // Each format by its first bytes.
            let _ = read(&[b"{\"text\":", &bytes[..]].concat());
            let _ = read(&[b"\x81\xa4text", &bytes[..]].concat());
        }

        #[test]
        fn what_we_write_is_read(which in 0_u8..5, text in ".{1,40}", bytes in prop::collection::vec(any::<u8>(), 0..50),
                                 except in prop::collection::vec("[a-z.]{1,9}", 0..4), connection in prop::option::of("[a-z.]{1,9}")) {
            let room = room(&text);
            let (said, action) = match which {
                0 => (Said::Message(Payload::Text(&text)), Action::Send(Payload::Text(&text).frame())),
                1 => (Said::Message(Payload::Binary(&bytes)), Action::Send(Payload::Binary(&bytes).frame())),
                2 => {
                    let reason = text.get(..30).unwrap_or_default();
                    let close = Action::Close { code: CloseCode::NORMAL, text: reason.into() };
                    (Said::Close(CloseCode::NORMAL, reason), close)
                }
                3 => (Said::Join(&room), Action::Join(vec![room.clone()])),
                _ => (Said::Leave(&room), Action::Leave(vec![room.clone()])),
            };
            let written = write(said, &except, connection.as_deref());
            prop_assert_eq!(read(&written).unwrap(), Envelope { action, except, connection });
        }

        #[test]
        fn what_is_written_is_read(text in ".{0,50}", bytes in prop::collection::vec(any::<u8>(), 0..50),
                except in prop::collection::vec("[a-z.]{1,9}", 0..3)) {
            for (message, payload) in [
                (json!({"text": text, "except": except}), Payload::Text(&text)),
                (json!({"binary": STANDARD.encode(&bytes), "except": except}), Payload::Binary(&bytes)),
            ] {
                let wanted = Envelope {
                    action: Action::Send(payload.frame()),
                    except: except.clone(),
                    connection: None,
                };
                prop_assert_eq!(of_json(&message), Ok(wanted.clone()));
                prop_assert_eq!(of_message_pack(&message), Ok(wanted));
            }
        }
    }
}
