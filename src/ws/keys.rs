//! The connections of a worker by their key.
//!
//! All that a connection adds is the hash of its pool and key beside its serial: 16 bytes in the
//! leaf of a tree. Its key is kept where it is anyway. So different keys can share a place here, and
//! who looks compares them; hashes are seeded, so nobody can choose keys that do.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};

use super::connection::{Facts, Serial};

/// Which connections may have a key.
#[derive(Debug, Default)]
pub(super) struct Keys {
    hasher: RandomState,
    all: BTreeSet<(u64, Serial)>,
}

impl Keys {
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
        let hash = self.hash(pool, key);
        let first = serial.unwrap_or(Serial::from_u64(0));
        let found = self.all.range((hash, first)..=(hash, Serial::from_u64(u64::MAX)));
        found.map(|(_, found)| *found).filter(move |found| Some(*found) != serial)
    }

    fn place(&self, facts: &Facts, serial: Serial) -> Option<(u64, Serial)> {
        let key = facts.key.as_ref()?;
        Some((self.hash(&facts.names.pool, key), serial))
    }

    fn hash(&self, pool: &str, key: &str) -> u64 {
        self.hasher.hash_one((pool, key))
    }
}
