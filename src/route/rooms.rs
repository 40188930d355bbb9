//! The rooms that every connection of a route joins: names, some with the key in them.

use std::fmt;

use super::key::{Key, MAX_KEY_BYTES};
use crate::ws::rooms::{MAX_ROOM_BYTES, Room};

/// Stands for the key.
const KEY: &str = "{key}";
/// The longest template: with the longest key in it, a name is as long as one may be.
const MAX_TEMPLATE_BYTES: usize = MAX_ROOM_BYTES - MAX_KEY_BYTES;

/// The name of a room, or of one for each key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoomTemplate {
    /// This room.
    Fixed(Room),
    /// A room for each key: what stands before the key, and behind it.
    OfKey(String, String),
}

impl RoomTemplate {
    /// Reads one as the config has it. The error says what to write instead.
    ///
    /// # Errors
    ///
    /// It is empty or too long, or has braces that are not one `{key}`.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > MAX_TEMPLATE_BYTES {
            return Err(format!("has {} bytes; at most {MAX_TEMPLATE_BYTES} fit", text.len()));
        }
        let braces = |part: &str| part.contains(['{', '}']);
        match text.split_once(KEY) {
            Some((before, behind)) if braces(before) || braces(behind) => {
                Err(format!("has more in braces than one {KEY}, which stands for the key"))
            }
            Some((before, behind)) => Ok(Self::OfKey(before.to_owned(), behind.to_owned())),
            None if braces(text) => Err(format!("only {KEY} can stand in braces, for the key")),
            None => {
                Room::new(text).map(Self::Fixed).map_err(|_| "is empty; write a name".to_owned())
            }
        }
    }

    /// Whether it needs a key.
    pub fn needs_key(&self) -> bool {
        matches!(self, Self::OfKey(..))
    }

    /// The room of a connection; `None` where it needs the key that the connection has not.
    pub fn room(&self, key: Option<&Key>) -> Option<Room> {
        match self {
            Self::Fixed(room) => Some(room.clone()),
            // By the bounds of templates and keys it is never too long.
            Self::OfKey(before, behind) => {
                Room::new(&format!("{before}{}{behind}", key?.as_str())).ok()
            }
        }
    }
}

/// Writes it as the config has it.
impl fmt::Display for RoomTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(room) => room.fmt(formatter),
            Self::OfKey(before, behind) => write!(formatter, "{before}{KEY}{behind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(template: &str, key: Option<&str>) -> Option<String> {
        let key = key.map(|key| Key::new(key).unwrap());
        let room = RoomTemplate::new(template).unwrap().room(key.as_ref());
        room.map(|room| room.to_string())
    }

    #[test]
    fn the_key_stands_where_the_template_says() {
        assert_eq!(room("lobby", None).as_deref(), Some("lobby"));
        assert_eq!(room("{key}", Some("{key}")).as_deref(), Some("{key}"));
        assert_eq!(room("doc {key}!", Some("7")).as_deref(), Some("doc 7!"));
        assert_eq!(room("doc {key}!", None), None);
    }

    #[test]
    fn the_longest_fits() {
        let template = format!("{}{KEY}", "x".repeat(MAX_TEMPLATE_BYTES - KEY.len()));
        assert!(room(&template, Some(&"k".repeat(MAX_KEY_BYTES))).is_some());
        assert!(RoomTemplate::new(&"x".repeat(MAX_TEMPLATE_BYTES + 1)).is_err());
    }

    #[test]
    fn braces_are_for_the_key_alone() {
        for wrong in ["", "{", "}", "{room}", "{key", "{key}{key}", "{{key}}", "a{key}}"] {
            assert!(RoomTemplate::new(wrong).is_err(), "{wrong}");
        }
    }
}
