//! The connections of a worker by their key.
//!
//! All that a connection adds is 8 bytes in the leaf of a tree: some of the hash of its pool and key,
//! then its number among those of its worker. Its key is kept where it is anyway. So different keys can
//! share a place here, and who looks compares them: with a million connections 15 do. Hashes are
//! seeded, so nobody can choose keys that do.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};

use super::connection::{Facts, Serial};

/// Which connections may have a key.
#[derive(Debug)]
pub(super) struct Keys {
    /// Whose connections they are.
    worker: u16,
    hasher: RandomState,
    /// Serials with the hash of a key where the worker stands.
    all: BTreeSet<Serial>,
}

impl Keys {
    /// None, of a worker.
    pub(super) fn new(worker: u16) -> Self {
        Self { worker, hasher: RandomState::new(), all: BTreeSet::new() }
    }

    /// Enters a connection; one without a key has no place here.
    pub(super) fn add(&mut self, facts: &Facts, serial: Serial) {
        self.all.extend(self.place(facts, serial));
    }

    /// Takes out what was entered with the same arguments.
    pub(super) fn remove(&mut self, facts: &Facts, serial: Serial) {
        if let Some(place) = self.place(facts, serial) {
            self.all.remove(&place);
        }
    }

    /// Those behind a serial that may have a key of a pool, in ascending order.
    pub(super) fn after(
        &self,
        pool: &str,
        key: &str,
        serial: Option<Serial>,
    ) -> impl Iterator<Item = Serial> {
        let (worker, hash) = (self.worker, self.hash(pool, key));
        let first = Serial::new(hash, serial.map_or(0, Serial::count));
        let found = self.all.range(first..=Serial::new(hash, Serial::MAX_COUNT));
        let found = found.map(move |place| Serial::new(worker, place.count()));
        found.filter(move |found| Some(*found) != serial)
    }

    fn place(&self, facts: &Facts, serial: Serial) -> Option<Serial> {
        let key = facts.key.as_ref()?;
        Some(Serial::new(self.hash(&facts.names.pool, key), serial.count()))
    }

    fn hash(&self, pool: &str, key: &str) -> u16 {
        // Any 16 bits of it are as good as others.
        let [first, second, ..] = self.hasher.hash_one((pool, key)).to_le_bytes();
        u16::from_le_bytes([first, second])
    }
}
