//! Rooms: names under which connections are reached together.
//!
//! A room is there as long as it has a member, and nobody makes one or takes one away. Each worker
//! knows the members among its own connections, [`Rooms`]; which rooms the whole proxy has, and how
//! many memberships, the workers tell the [`Directory`] when that changes.
//!
//! Connections in no room cost nothing here. One that is in rooms costs its list of them, and a place
//! in the members of each.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::gauge::Gauge;

use super::connection::Serial;

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

/// The rooms of all workers of a proxy. Its lock is taken when a worker gets its first member of a
/// room, and when the last one leaves.
#[derive(Debug, Default)]
pub struct Directory {
    /// By name: how many workers have members.
    workers: Mutex<HashMap<Room, usize>>,
    /// Rooms with a member.
    pub rooms: Gauge,
    /// Members of all rooms together.
    pub memberships: Gauge,
}

impl Directory {
    fn open(&self, room: &Room) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let workers = workers.entry(room.clone()).or_default();
        *workers += 1;
        if *workers == 1 {
            self.rooms.inc();
        }
    }

    fn close(&self, room: &Room) {
        let mut all = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(workers) = all.get_mut(room) else { return };
        *workers -= 1;
        if *workers == 0 {
            all.remove(room);
            self.rooms.dec();
        }
    }
}

/// Who of a worker's connections is in which rooms.
#[derive(Debug, Default)]
pub struct Rooms {
    /// Each with one member at least.
    members: HashMap<Room, BTreeSet<Serial>>,
    /// The rooms of those that are in any, by name; at most [`MAX_ROOMS`] each.
    of: HashMap<Serial, Vec<Room>>,
    directory: Arc<Directory>,
}

impl Rooms {
    /// None, of a proxy with this directory.
    pub fn new(directory: Arc<Directory>) -> Self {
        Self { members: HashMap::new(), of: HashMap::new(), directory }
    }

    /// Makes a connection a member. One that is already stays it.
    ///
    /// # Errors
    ///
    /// It is in too many rooms.
    pub fn join(&mut self, serial: Serial, room: Room) -> Result<(), TooManyRooms> {
        let own = self.of.entry(serial).or_default();
        let Err(place) = own.binary_search(&room) else { return Ok(()) };
        if own.len() == MAX_ROOMS {
            return Err(TooManyRooms);
        }
        // Who joins shares the name that the first has brought.
        let room = self.members.get_key_value(&room).map_or(room, |(known, _)| known.clone());
        // Most are in one or two, and a vector begins with room for four.
        own.reserve_exact(1);
        own.insert(place, room.clone());
        let Self { members, directory, .. } = self;
        let members = members.entry(room).or_insert_with_key(|room| {
            directory.open(room);
            BTreeSet::new()
        });
        members.insert(serial);
        directory.memberships.inc();
        Ok(())
    }

    /// Takes a connection out of a room, if it is in there.
    pub fn leave(&mut self, serial: Serial, room: &Room) {
        let Some(own) = self.of.get_mut(&serial) else { return };
        let Ok(place) = own.binary_search(room) else { return };
        own.remove(place);
        if own.is_empty() {
            self.of.remove(&serial);
        }
        self.take_out(serial, room);
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
        self.directory.memberships.dec();
        if members.is_empty() {
            self.members.remove(room);
            self.directory.close(room);
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
        let mut rooms = Rooms::default();
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
        let directory = Arc::<Directory>::default();
        let mut workers = [(); 2].map(|()| Rooms::new(Arc::clone(&directory)));
        for worker in &mut workers {
            worker.join(serial(1), room("a")).unwrap();
            worker.join(serial(2), room("a")).unwrap();
        }
        workers[0].join(serial(1), room("b")).unwrap();
        assert_eq!((directory.rooms.get(), directory.memberships.get()), (2, 5));
        workers[0].leave_all(serial(1));
        workers[0].leave_all(serial(2));
        assert_eq!((directory.rooms.get(), directory.memberships.get()), (1, 2));
        workers[1].leave(serial(1), &room("a"));
        workers[1].leave_all(serial(2));
        assert_eq!((directory.rooms.get(), directory.memberships.get()), (0, 0));
        assert!(workers.iter().all(|rooms| rooms.members.is_empty() && rooms.of.is_empty()));
    }

    #[test]
    fn a_connection_is_in_so_many_rooms_and_no_more() {
        let mut rooms = Rooms::default();
        for number in 0..MAX_ROOMS {
            rooms.join(serial(1), room(&number.to_string())).unwrap();
        }
        assert_eq!(rooms.join(serial(1), room("one more")), Err(TooManyRooms));
        rooms.join(serial(1), room("7")).expect("it is there already");
        rooms.leave(serial(1), &room("7"));
        rooms.join(serial(1), room("one more")).unwrap();
    }
}
