//! The registry of a proxy that is alone: its own tables, and a count of its rooms.
//!
//! Who is reached by a key, a room or an id, the tables of the workers know; only how many rooms there
//! are on all of them together is counted here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Group, Registry};

/// No other proxy is asked or told.
#[derive(Debug, Default)]
pub struct Memory {
    rooms: Mutex<Rooms>,
}

/// How many members each room has.
#[derive(Debug, Default)]
pub struct Rooms {
    members: HashMap<Arc<str>, usize>,
    memberships: usize,
}

impl Rooms {
    /// Counts a member more.
    pub fn enter(&mut self, room: Arc<str>) {
        *self.members.entry(room).or_default() += 1;
        self.memberships += 1;
    }

    /// Counts a member less.
    pub fn leave(&mut self, room: &str) {
        let Some(members) = self.members.get_mut(room) else { return };
        *members -= 1;
        self.memberships -= 1;
        if *members == 0 {
            self.members.remove(room);
        }
    }

    /// Rooms with a member, and members of all of them.
    pub fn counts(&self) -> (usize, usize) {
        (self.members.len(), self.memberships)
    }
}

impl Registry for Memory {
    fn enter(&self, group: Group) {
        if let Group::Room(room) = group {
            self.rooms.lock().unwrap_or_else(PoisonError::into_inner).enter(room);
        }
    }

    fn leave(&self, group: &Group) {
        if let Group::Room(room) = group {
            self.rooms.lock().unwrap_or_else(PoisonError::into_inner).leave(room);
        }
    }

    fn rooms(&self) -> (usize, usize) {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner).counts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_are_there_as_long_as_somebody_is() {
        let memory = Memory::default();
        let room = |name: &str| Group::Room(name.into());
        let key = Group::Key { pool: "p".into(), key: "a".into() };
        for group in [room("a"), room("a"), room("b"), key.clone()] {
            memory.enter(group);
        }
        assert_eq!(memory.rooms(), (2, 3));
        for group in [room("b"), room("a"), key, room("never")] {
            memory.leave(&group);
        }
        assert_eq!(memory.rooms(), (1, 1));
    }
}
