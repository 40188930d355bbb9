//! Where each key is: the table that keeps all connections of a key on one backend.
//!
//! A key is in it as long as a connection of it is live or its handshake is under way. The first
//! handshake chooses the backend, those that come meanwhile are given the same, and if it can't
//! be connected to, the first to notice moves the entry on and takes the others along: each
//! learns it at its next step. Once a connection is live the entry stays where it is, until its
//! backend is lost or the last connection is gone.
//!
//! Who is counted holds a [`Ticket`] with the generation of the entry that counts it. An entry
//! whose backend was lost is not corrected but replaced by one of a new generation: its old
//! connections, which end in their own time, have no part in the new one. The same happens
//! when all candidates were tried in vain, so that whoever comes next starts afresh instead of
//! following to the last that failed.
//!
//! A key whose turn has come in the drain of its backend is [let go](Table::let_go): its entry is
//! put aside, where it stands until the last that it counts has ended, and whoever comes for the
//! key chooses anew. Nobody may connect there before that end; to wait is the caller's part.
//!
//! Decides, and does nothing else: which backend is next is asked of a function, the lock is
//! around the whole table (`placement.rs`). An entry takes 48 bytes, and its key once.

use std::collections::HashMap;
use std::sync::Arc;

use super::backend::{Backend, KeyGauge};

/// Chooses a backend for a key from those in service, without those tried in vain.
pub(super) type Choose<'a> = &'a dyn Fn(&[Arc<Backend>]) -> Option<Arc<Backend>>;

/// Why a placement can't go on to another backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stay {
    /// The key has live connections on the backend that failed: there it stays.
    #[error("the key has live connections on this backend")]
    Live,
    /// Every backend in service was tried, or none is.
    #[error("no other backend is left to try")]
    NoneLeft,
}

/// Why a placement can't become live where its handshake was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Moved {
    /// The key is on another backend by now, which the placement names: begin again there.
    #[error("the key went to another backend meanwhile")]
    Elsewhere,
    /// The backend was lost meanwhile, and none is in service.
    #[error("the backend was lost meanwhile, and no other is in service")]
    Nowhere,
}

/// The keys of a pool that are placed.
///
/// The map's hash has a random seed, since clients choose the keys.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<Arc<str>, Entry>,
    /// Entries that were let go, by key; there is more than one of a key only if it was let go
    /// again before it had ended where it was first.
    leaving: HashMap<Arc<str>, Vec<Entry>>,
    /// The generation given last; 0 is never given.
    generation: u64,
}

#[derive(Debug)]
struct Entry {
    at: KeyGauge,
    generation: u64,
    /// Never both 0 with `under_way`.
    live: u32,
    under_way: u32,
    /// Backends that could not be connected to while nothing was live; most entries have none.
    #[expect(clippy::box_collection, reason = "a third smaller where there is none")]
    tried: Option<Box<Vec<Arc<Backend>>>>,
}

impl Entry {
    fn is_at(&self, backend: &Arc<Backend>) -> bool {
        Arc::ptr_eq(self.at.backend(), backend)
    }

    fn is_lost(&self) -> bool {
        self.at.backend().is_lost()
    }

    /// Takes one off the count, and tells whether it was the last.
    fn take_off(&mut self, phase: Phase) -> bool {
        match phase {
            Phase::UnderWay => self.under_way -= 1,
            Phase::Live => self.live -= 1,
        }
        self.live == 0 && self.under_way == 0
    }
}

/// One that is counted on an entry, and what it was told.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) key: Arc<str>,
    pub(super) backend: Arc<Backend>,
    /// Of the entry that counts it; 0: none does.
    generation: u64,
}

/// As what a ticket is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    UnderWay,
    Live,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct PlacedKey {
    /// The key.
    pub key: Arc<str>,
    /// Where it is.
    pub backend: Arc<Backend>,
    /// Connections that have their 101.
    pub live: u32,
    /// Connections whose handshake is under way.
    pub under_way: u32,
}

impl Table {
    /// Counts one more as under way: where the key is, or where `choose` says if it is nowhere.
    ///
    /// `None`: it is nowhere, and `choose` knows no backend.
    pub(super) fn place(&mut self, key: &str, choose: Choose<'_>) -> Option<Ticket> {
        if let Some((key, entry)) = self.entries.get_key_value(key)
            && !entry.is_lost()
        {
            let (key, backend) = (Arc::clone(key), Arc::clone(entry.at.backend()));
            let entry = self.entries.get_mut(&key)?;
            entry.under_way += 1;
            return Some(Ticket { key, backend, generation: entry.generation });
        }
        let backend = choose(&[])?;
        Some(self.enter(key.into(), backend, Phase::UnderWay))
    }

    /// Makes an entry of a new generation; one that was there counts no longer.
    fn enter(&mut self, key: Arc<str>, backend: Arc<Backend>, phase: Phase) -> Ticket {
        self.generation += 1;
        let generation = self.generation;
        let (live, under_way) = if phase == Phase::Live { (1, 0) } else { (0, 1) };
        let entry = Entry { at: backend.key(), generation, live, under_way, tried: None };
        self.entries.insert(Arc::clone(&key), entry);
        Ticket { key, backend, generation }
    }

    /// Takes a ticket that is under way from a backend that can't be connected to, onward.
    ///
    /// Its new backend may be one that it has been to before, if others went there meanwhile.
    pub(super) fn go_on(&mut self, ticket: &mut Ticket, choose: Choose<'_>) -> Result<(), Stay> {
        let entry = self.entries.get_mut(&ticket.key);
        let entry = entry.filter(|one| one.generation == ticket.generation && !one.is_lost());
        let Some(entry) = entry else {
            *ticket = self.place_anew(ticket, choose).ok_or(Stay::NoneLeft)?;
            return Ok(());
        };
        if !entry.is_at(&ticket.backend) {
            ticket.backend = Arc::clone(entry.at.backend());
            return Ok(());
        }
        if entry.live > 0 {
            return Err(Stay::Live);
        }
        let tried = entry.tried.get_or_insert_default();
        tried.push(Arc::clone(&ticket.backend));
        let Some(backend) = choose(tried) else {
            self.entries.remove(&ticket.key);
            ticket.generation = 0;
            return Err(Stay::NoneLeft);
        };
        entry.at = backend.key();
        ticket.backend = backend;
        Ok(())
    }

    /// Counts a ticket that was under way as live, if the key is where its handshake was answered.
    ///
    /// Otherwise it is under way where the key is now.
    pub(super) fn establish(
        &mut self,
        ticket: &mut Ticket,
        choose: Choose<'_>,
    ) -> Result<(), Moved> {
        let Some(entry) = self.entries.get_mut(&ticket.key) else {
            if ticket.backend.is_lost() || ticket.backend.is_draining() {
                return self.begin_again(ticket, choose);
            }
            // Nobody else has placed the key since: who has a 101 in hand decides.
            self.take_off_leaving(ticket, Phase::UnderWay);
            let (key, backend) = (Arc::clone(&ticket.key), Arc::clone(&ticket.backend));
            *ticket = self.enter(key, backend, Phase::Live);
            return Ok(());
        };
        let counted = entry.generation == ticket.generation;
        if entry.is_lost() || (!counted && !entry.is_at(&ticket.backend)) {
            return self.begin_again(ticket, choose);
        }
        if !entry.is_at(&ticket.backend) {
            ticket.backend = Arc::clone(entry.at.backend());
            return Err(Moved::Elsewhere);
        }
        entry.under_way -= u32::from(counted);
        entry.live += 1;
        entry.tried = None;
        let generation = entry.generation;
        self.take_off_leaving(ticket, Phase::UnderWay);
        ticket.generation = generation;
        Ok(())
    }

    fn begin_again(&mut self, ticket: &mut Ticket, choose: Choose<'_>) -> Result<(), Moved> {
        *ticket = self.place_anew(ticket, choose).ok_or(Moved::Nowhere)?;
        Err(Moved::Elsewhere)
    }

    fn place_anew(&mut self, ticket: &mut Ticket, choose: Choose<'_>) -> Option<Ticket> {
        if self.take_off_leaving(ticket, Phase::UnderWay) {
            ticket.generation = 0;
        }
        self.place(&ticket.key, choose)
    }

    /// Takes a ticket off the count; the last one takes the entry with it.
    pub(super) fn leave(&mut self, ticket: &Ticket, phase: Phase) {
        let entry = self.entries.get_mut(&ticket.key);
        let Some(entry) = entry.filter(|entry| entry.generation == ticket.generation) else {
            self.take_off_leaving(ticket, phase);
            return;
        };
        if entry.take_off(phase) {
            self.entries.remove(&ticket.key);
            self.shrink();
        }
    }

    /// Puts the entries of keys aside that are at `backend`: nothing is placed there any more.
    pub(super) fn let_go(&mut self, keys: &[Arc<str>], backend: &Arc<Backend>) {
        for key in keys {
            if self.entries.get(key).is_some_and(|entry| entry.is_at(backend))
                && let Some((key, entry)) = self.entries.remove_entry(key)
            {
                self.leaving.entry(key).or_default().push(entry);
            }
        }
        self.shrink();
    }

    /// Takes a ticket off an entry that was let go; tells whether one counted it.
    fn take_off_leaving(&mut self, ticket: &Ticket, phase: Phase) -> bool {
        let Some(entries) = self.leaving.get_mut(&ticket.key) else { return false };
        let counts = |entry: &Entry| entry.generation == ticket.generation;
        let Some(index) = entries.iter().position(counts) else { return false };
        if entries[index].take_off(phase) {
            entries.swap_remove(index);
        }
        if entries.is_empty() {
            self.leaving.remove(&ticket.key);
            if self.leaving.is_empty() {
                self.leaving = HashMap::new();
            }
        }
        true
    }

    /// How many keys were let go and have not ended yet.
    pub(super) fn leaving(&self) -> usize {
        self.leaving.len()
    }

    /// Whether a key was let go, and something of it may still live where it was.
    pub(super) fn is_leaving(&self, key: &str) -> bool {
        self.leaving.get(key).is_some_and(|all| !all.iter().all(Entry::is_lost))
    }

    /// The keys that are placed at a backend.
    pub(super) fn keys_at(&self, backend: &Arc<Backend>) -> Vec<Arc<str>> {
        let there = self.entries.iter().filter(|(_, entry)| entry.is_at(backend));
        there.map(|(key, _)| Arc::clone(key)).collect()
    }

    /// Gives memory back after a rush, but not at every swing.
    fn shrink(&mut self) {
        let (used, room) = (self.entries.len(), self.entries.capacity());
        if room > 1024 && used < room / 8 {
            self.entries.shrink_to(used * 2);
        }
    }

    /// Finds where a key is, unless that backend is lost.
    pub(super) fn find(&self, key: &str) -> Option<PlacedKey> {
        let (key, entry) = self.entries.get_key_value(key)?;
        (!entry.is_lost()).then(|| line(key, entry))
    }

    /// All lines, in no order.
    pub(super) fn list(&self) -> Vec<PlacedKey> {
        self.entries.iter().map(|(key, entry)| line(key, entry)).collect()
    }
}

fn line(key: &Arc<str>, entry: &Entry) -> PlacedKey {
    PlacedKey {
        key: Arc::clone(key),
        backend: Arc::clone(entry.at.backend()),
        live: entry.live,
        under_way: entry.under_way,
    }
}

#[cfg(test)]
mod tests;
