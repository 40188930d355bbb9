//! What goes over a `/rooms` WebSocket: one JSON object per text message.
//!
//! A client asks: `{"say": TEXT}`, to every room it is in; `{"join": ROOM}`; `{"leave": ROOM}`.
//!
//! It is told, in the order in which things happen:
//!
//! - `{"welcome": {"backend": ID, "connection": ID or "", "room": ROOM, "members": [NAME, ..]}}`,
//!   first of all and once: the room of the URL, and who is there, itself included, in the order
//!   in which they came. At most 100 names; more members there may be. A client that gets another
//!   welcome was moved to another backend without losing its connection. Where messages are
//!   published, `members` is a number: see [`Members`].
//! - `{"room": ROOM, "from": NAME, "said": TEXT, "backend": ID}`, the speaker too;
//! - `{"room": ROOM, "joined": NAME, "backend": ID}`: to the others, and to who asked with `join`;
//! - `{"room": ROOM, "left": NAME, "backend": ID}`: to those who stay, and to who asked with
//!   `leave`;
//! - `{"error": SENTENCE}`: what it asked for last was not done, and why. It stays connected.
//!
//! `backend` is the one that the message comes from, which serves who said, joined or left. Where
//! messages are published, those of others may come before the welcome.
//!
//! Names need not differ from each other. Nothing here does I/O.

use std::ops::Deref;

use axum::extract::ws::{Message, Utf8Bytes};
use serde::{Deserialize, Serialize};

/// The largest message that is read at all; past it the connection breaks off.
pub(crate) const MESSAGE_BYTES: usize = 256 << 10;
/// The largest text that can be said. A queue has at most 1,024 of them.
const TEXT_BYTES: usize = 16 << 10;

/// The name of a room or a member: 1 to 64 characters, none of them a control character, without
/// space around it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Label(String);

/// A room or a name that is none.
#[derive(Debug, thiserror::Error)]
#[error("a room or a name has 1 to 64 characters, and no control characters")]
pub(crate) struct BadLabel;

impl Label {
    pub(crate) fn parse(text: &str) -> Result<Self, BadLabel> {
        let text = text.trim();
        let characters = text.chars().take(65).count();
        if !(1..=64).contains(&characters) || text.chars().any(char::is_control) {
            return Err(BadLabel);
        }
        Ok(Self(text.to_owned()))
    }
}

impl Deref for Label {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// What a client asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Asked {
    Say(String),
    Join(Label),
    Leave(Label),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Raw {
    Say(String),
    Join(String),
    Leave(String),
}

impl Asked {
    /// Reads a message; an error is a sentence for the client.
    pub(crate) fn parse(message: &Message) -> Result<Self, String> {
        let Message::Text(text) = message else {
            return Err("this server takes JSON in text messages".into());
        };
        let room = |room: &str| Label::parse(room).map_err(|bad| bad.to_string());
        match serde_json::from_str(text) {
            Ok(Raw::Say(text)) if text.len() > TEXT_BYTES => {
                Err(format!("a text has at most {TEXT_BYTES} bytes, this one has {}", text.len()))
            }
            Ok(Raw::Say(text)) => Ok(Self::Say(text)),
            Ok(Raw::Join(name)) => room(&name).map(Self::Join),
            Ok(Raw::Leave(name)) => room(&name).map(Self::Leave),
            Err(_) => Err("expected {\"say\": TEXT}, {\"join\": ROOM} or {\"leave\": ROOM}".into()),
        }
    }
}

/// What a client is told.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Told<'a> {
    Welcome { welcome: Welcome<'a> },
    Said { room: &'a str, from: &'a str, said: &'a str, backend: &'a str },
    Joined { room: &'a str, joined: &'a str, backend: &'a str },
    Left { room: &'a str, left: &'a str, backend: &'a str },
    Error { error: &'a str },
}

/// What a client is told first.
#[derive(Debug, Serialize)]
pub(crate) struct Welcome<'a> {
    pub(crate) backend: &'a str,
    /// Empty where no proxy gave one.
    pub(crate) connection: &'a str,
    pub(crate) room: &'a str,
    pub(crate) members: Members<'a>,
}

/// Who is in a room.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Members<'a> {
    /// Their names; not all of them, in a large room.
    Names(Vec<&'a str>),
    /// How many, on all instances; null where nobody can tell.
    ///
    /// The newcomer, and who was there. With Redis that is what all proxies together have written
    /// down there, or what this instance knows of its own members where that is more: who came to
    /// another instance within the last moments may be missing, and who left may still count. With
    /// the API of one proxy it is that one's connections, at most 1,000. This instance adds those of
    /// its members that came without a proxy.
    Count(Option<u64>),
}

impl Told<'_> {
    /// Writes it as the text of a message, which all queues that it goes to then share.
    pub(crate) fn to_text(&self) -> Utf8Bytes {
        serde_json::to_string(self).expect("structs of strings can always be written").into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Asked, String> {
        Asked::parse(&Message::text(text))
    }

    #[test]
    fn each_request_is_one_key() {
        let lobby = || Label::parse("lobby").unwrap();
        assert_eq!(parse(r#"{"say": " hi "}"#), Ok(Asked::Say(" hi ".into())));
        assert_eq!(parse(r#"{"join": "lobby"}"#), Ok(Asked::Join(lobby())));
        assert_eq!(parse(r#" {"leave": " lobby "} "#), Ok(Asked::Leave(lobby())));
    }

    #[test]
    fn what_is_no_request_is_answered_with_a_sentence() {
        let deep = "[".repeat(100_000);
        let bad = ["", "hi", "{}", "[]", "null", "{\"say\": 1}", "{\"sing\": \"la\"}", &deep];
        for text in bad {
            assert!(parse(text).is_err(), "{text:.20}");
        }
        assert!(parse(r#"{"say": "a", "join": "b"}"#).is_err());
        assert!(parse(r#"{"join": ""}"#).unwrap_err().contains("1 to 64"));
        assert!(Asked::parse(&Message::binary(&b"{}"[..])).is_err());
        assert!(parse(&format!(r#"{{"say": "{}"}}"#, "x".repeat(TEXT_BYTES))).is_ok());
        assert!(parse(&format!(r#"{{"say": "{}"}}"#, "x".repeat(TEXT_BYTES + 1))).is_err());
    }

    #[test]
    fn labels_are_counted_in_characters() {
        assert!(Label::parse(&"ä".repeat(64)).is_ok());
        assert_eq!(&*Label::parse(" a b ").unwrap(), "a b");
        for bad in ["", " ", "a\nb", &"x".repeat(65)] {
            assert!(Label::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn members_are_told_in_these_words() {
        let welcome = |members| Welcome { backend: "a", connection: "", room: "r", members };
        let backend = "a";
        let told = [
            Told::Welcome { welcome: welcome(Members::Names(vec!["ann", "bob"])) },
            Told::Welcome { welcome: welcome(Members::Count(Some(7))) },
            Told::Welcome { welcome: welcome(Members::Count(None)) },
            Told::Said { room: "r", from: "ann", said: "\"hi\"", backend },
            Told::Joined { room: "r", joined: "bob", backend },
            Told::Left { room: "r", left: "bob", backend },
            Told::Error { error: "no" },
        ];
        let expected = [
            r#"{"welcome":{"backend":"a","connection":"","room":"r","members":["ann","bob"]}}"#,
            r#"{"welcome":{"backend":"a","connection":"","room":"r","members":7}}"#,
            r#"{"welcome":{"backend":"a","connection":"","room":"r","members":null}}"#,
            r#"{"room":"r","from":"ann","said":"\"hi\"","backend":"a"}"#,
            r#"{"room":"r","joined":"bob","backend":"a"}"#,
            r#"{"room":"r","left":"bob","backend":"a"}"#,
            r#"{"error":"no"}"#,
        ];
        for (told, expected) in told.iter().zip(expected) {
            assert_eq!(told.to_text().as_str(), expected);
        }
    }
}
