//! Rooms: names under which connections are reached together.
//!
//! A room is there as long as it has a member, and nobody makes one or takes one away. Each worker
//! knows the members among its own connections, [`Rooms`]; of every membership it tells the
//! [`Registry`], which knows the rooms of the whole proxy.
//!
//! Connections in no room cost nothing here. One that is in rooms costs its list of them, and a place
//! in the members of each.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use super::connection::Serial;
use crate::registry::{Group, Registry};

/// The longest name of a room, in bytes.
pub const MAX_ROOM_BYTES: usize = 1024;
/// The most rooms that one connection is in: what a backend or a message names beyond them is a
/// fault, and must not become the proxy's memory.
pub const MAX_ROOMS: usize = 128;

/// The name of a room: 1 to 1024 bytes of UTF-8 text, compared byte by byte. Cloning shares it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Room(Arc<str>);

/// What is no name of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name of a room has 1 to {MAX_ROOM_BYTES} bytes, not {bytes}")]
pub struct NotARoom {
    /// How many it has.
    pub bytes: usize,
}

impl Room {
    /// Takes a text as a name.
    ///
    /// # Errors
    ///
    /// It is empty or too long.
    pub fn new(name: &str) -> Result<Self, NotARoom> {
        match name.len() {
            1..=MAX_ROOM_BYTES => Ok(Self(name.into())),
            bytes => Err(NotARoom { bytes }),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// Its members, as the registry knows them.
    pub fn group(&self) -> Group {
        Group::Room(self.shared())
    }
}

impl fmt::Display for Room {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A connection is in as many rooms as it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection is in {MAX_ROOMS} rooms, and one can't be in more")]
pub struct TooManyRooms;

/// Who of a worker's connections is in which rooms.
#[derive(Debug)]
pub struct Rooms {
    /// Each with one member at least.
    members: HashMap<Room, BTreeSet<Serial>>,
    /// The rooms of those that are in any, by name; at most [`MAX_ROOMS`] each.
    of: HashMap<Serial, Vec<Room>>,
    registry: Arc<dyn Registry>,
}

impl Rooms {
    /// None, of a proxy with this registry.
    pub fn new(registry: Arc<dyn Registry>) -> Self {
        Self { members: HashMap::new(), of: HashMap::new(), registry }
    }

    /// Makes a connection a member. One that is already stays it. Tells whether it was none.
    ///
    /// # Errors
    ///
    /// It is in too many rooms.
    pub fn join(&mut self, serial: Serial, room: Room) -> Result<bool, TooManyRooms> {
        let own = self.of.entry(serial).or_default();
        let Err(place) = own.binary_search(&room) else { return Ok(false) };
        if own.len() == MAX_ROOMS {
            return Err(TooManyRooms);
        }
        // Who joins shares the name that the first has brought.
        let room = self.members.get_key_value(&room).map_or(room, |(known, _)| known.clone());
        // Most are in one or two, and a vector begins with room for four.
        own.reserve_exact(1);
        own.insert(place, room.clone());
        self.registry.enter(room.group());
        self.members.entry(room).or_default().insert(serial);
        Ok(true)
    }

    /// Takes a connection out of a room. Tells whether it was in there.
    pub fn leave(&mut self, serial: Serial, room: &Room) -> bool {
        let Some(own) = self.of.get_mut(&serial) else { return false };
        let Ok(place) = own.binary_search(room) else { return false };
        own.remove(place);
        if own.is_empty() {
            self.of.remove(&serial);
        }
        self.take_out(serial, room);
        true
    }

    /// Takes a connection out of all its rooms.
    pub fn leave_all(&mut self, serial: Serial) {
        for room in self.of.remove(&serial).into_iter().flatten() {
            self.take_out(serial, &room);
        }
    }

    fn take_out(&mut self, serial: Serial, room: &Room) {
        let Some(members) = self.members.get_mut(room) else { return };
        members.remove(&serial);
        self.registry.leave(&room.group());
        if members.is_empty() {
            self.members.remove(room);
        }
    }

    /// The members behind a serial, in ascending order.
    pub fn after(&self, room: &Room, serial: Option<Serial>) -> impl Iterator<Item = Serial> {
        let from = serial.map_or(Bound::Unbounded, Bound::Excluded);
        let members = self.members.get(room).into_iter();
        members.flat_map(move |members| members.range((from, Bound::Unbounded)).copied())
    }

    /// Whether a connection is in a room.
    pub fn has(&self, serial: Serial, room: &Room) -> bool {
        self.of.get(&serial).is_some_and(|own| own.binary_search(room).is_ok())
    }

    /// The rooms that a connection is in, by name.
    pub fn of(&self, serial: Serial) -> Vec<Room> {
        self.of.get(&serial).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::memory::Memory;

    fn none() -> Rooms {
        Rooms::new(Arc::<Memory>::default())
    }

    fn room(name: &str) -> Room {
        Room::new(name).unwrap()
    }

    fn serial(count: u64) -> Serial {
        Serial::new(0, count)
    }

    fn members(rooms: &Rooms, name: &str) -> Vec<Serial> {
        rooms.after(&room(name), None).collect()
    }

    #[test]
    fn names_have_bounds() {
        assert!(Room::new("").is_err());
        assert!(Room::new(&"é".repeat(512)).is_ok());
        assert_eq!(Room::new(&"x".repeat(1025)), Err(NotARoom { bytes: 1025 }));
    }

    #[test]
    fn who_joined_is_found_until_it_leaves() {
        let mut rooms = none();
        for count in [3, 1, 2] {
            rooms.join(serial(count), room("a")).unwrap();
        }
        rooms.join(serial(1), room("b")).unwrap();
        rooms.join(serial(1), room("a")).unwrap();
        assert_eq!(members(&rooms, "a"), [1, 2, 3].map(serial));
        let behind: Vec<_> = rooms.after(&room("a"), Some(serial(1))).collect();
        assert_eq!(behind, [2, 3].map(serial));
        assert_eq!(rooms.of(serial(1)), [room("a"), room("b")]);
        rooms.leave(serial(2), &room("a"));
        rooms.leave(serial(2), &room("never"));
        assert!(!rooms.has(serial(2), &room("a")) && rooms.has(serial(3), &room("a")));
        rooms.leave_all(serial(1));
        rooms.leave_all(serial(7));
        assert_eq!(members(&rooms, "a"), [serial(3)]);
        assert!(members(&rooms, "b").is_empty());
    }

    #[test]
    fn nothing_is_left_of_rooms_that_are_over() {
        let registry = Arc::<Memory>::default();
        let mut workers = [(); 2].map(|()| Rooms::new(Arc::<Memory>::clone(&registry)));
        for worker in &mut workers {
            worker.join(serial(1), room("a")).unwrap();
            worker.join(serial(2), room("a")).unwrap();
        }
        workers[0].join(serial(1), room("b")).unwrap();
        assert_eq!(registry.rooms(), (2, 5));
        workers[0].leave_all(serial(1));
        workers[0].leave_all(serial(2));
        assert_eq!(registry.rooms(), (1, 2));
        workers[1].leave(serial(1), &room("a"));
        workers[1].leave_all(serial(2));
        assert_eq!(registry.rooms(), (0, 0));
        assert!(workers.iter().all(|rooms| rooms.members.is_empty() && rooms.of.is_empty()));
    }

    #[test]
    fn a_connection_is_in_so_many_rooms_and_no_more() {
        let mut rooms = none();
        for number in 0..MAX_ROOMS {
            rooms.join(serial(1), room(&number.to_string())).unwrap();
        }
        assert_eq!(rooms.join(serial(1), room("one more")), Err(TooManyRooms));
        rooms.join(serial(1), room("7")).expect("it is there already");
        rooms.leave(serial(1), &room("7"));
        rooms.join(serial(1), room("one more")).unwrap();
    }
}
