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

    /// How many live connections of keys that are placed at a backend there are.
    pub(super) fn live_at(&self, backend: &Arc<Backend>) -> usize {
        let there = self.entries.values().filter(|entry| entry.is_at(backend));
        there.map(|entry| usize::try_from(entry.live).unwrap_or(usize::MAX)).sum()
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
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::DrainCause;
    use super::super::tests::{backend, bring_back, lose, put_out};
    use super::*;

    /// A table, and backends that are chosen in the order of this list.
    struct World {
        table: Table,
        backends: Vec<Arc<Backend>>,
    }

    impl World {
        fn new(ids: &str) -> Self {
            let backends = ids.chars().map(|id| backend(&id.to_string())).collect();
            Self { table: Table::default(), backends }
        }

        fn place(&mut self) -> Option<Ticket> {
            let backends = &self.backends;
            self.table.place("k", &|tried| choose(backends, tried))
        }

        fn go_on(&mut self, ticket: &mut Ticket) -> Result<(), Stay> {
            let backends = &self.backends;
            self.table.go_on(ticket, &|tried| choose(backends, tried))
        }

        fn establish(&mut self, ticket: &mut Ticket) -> Result<(), Moved> {
            let backends = &self.backends;
            self.table.establish(ticket, &|tried| choose(backends, tried))
        }

        fn named(&self, id: &str) -> Arc<Backend> {
            Arc::clone(self.backends.iter().find(|backend| backend.id() == id).unwrap())
        }

        fn drain(&self, id: &str) {
            self.named(id).drains().add(DrainCause::Api, Duration::ZERO);
        }

        fn undrain(&self, id: &str) {
            self.named(id).drains().remove(DrainCause::Api);
        }

        fn lose(&self, id: &str) {
            lose(&self.named(id));
        }

        fn let_go(&mut self, id: &str) {
            let backend = self.named(id);
            self.table.let_go(&["k".into()], &backend);
        }

        fn live(&mut self) -> Ticket {
            let mut ticket = self.place().unwrap();
            self.establish(&mut ticket).unwrap();
            ticket
        }

        /// Where the key is, with how many live and under way.
        fn at(&self) -> Option<(String, u32, u32)> {
            let line = self.table.list().pop()?;
            Some((line.backend.id().to_owned(), line.live, line.under_way))
        }

        fn keys(&self) -> Vec<usize> {
            self.backends.iter().map(|backend| backend.keys()).collect()
        }
    }

    fn choose(backends: &[Arc<Backend>], tried: &[Arc<Backend>]) -> Option<Arc<Backend>> {
        let untried = |one: &&Arc<Backend>| !tried.iter().any(|other| Arc::ptr_eq(one, other));
        let serves = |one: &&Arc<Backend>| one.in_service() && !one.is_draining();
        backends.iter().filter(serves).find(untried).cloned()
    }

    fn at(id: &str, live: u32, under_way: u32) -> Option<(String, u32, u32)> {
        Some((id.to_owned(), live, under_way))
    }

    #[test]
    fn a_key_is_there_as_long_as_somebody_is() {
        let mut world = World::new("ab");
        let mut one = world.place().unwrap();
        assert_eq!(world.at(), at("a", 0, 1));
        assert_eq!(world.keys(), [1, 0]);
        world.establish(&mut one).unwrap();
        assert_eq!(world.at(), at("a", 1, 0));
        let two = world.place().unwrap();
        assert_eq!(world.at(), at("a", 1, 1));
        world.table.leave(&one, Phase::Live);
        world.table.leave(&two, Phase::UnderWay);
        assert_eq!(world.at(), None);
        assert_eq!(world.keys(), [0, 0]);
    }

    #[test]
    fn a_live_key_is_followed_to_a_backend_out_of_service() {
        let mut world = World::new("ab");
        let _live = world.live();
        put_out(&world.backends[0]);
        assert_eq!(world.place().unwrap().backend.id(), "a");
        assert_eq!(world.at(), at("a", 1, 1));
    }

    #[test]
    fn so_is_a_handshake_under_way() {
        let mut world = World::new("ab");
        let _first = world.place().unwrap();
        put_out(&world.backends[0]);
        assert_eq!(world.place().unwrap().backend.id(), "a");
    }

    #[test]
    fn a_new_key_goes_to_one_in_service() {
        let mut world = World::new("ab");
        put_out(&world.backends[0]);
        assert_eq!(world.place().unwrap().backend.id(), "b");
        put_out(&world.backends[1]);
        world.table = Table::default();
        assert!(world.place().is_none());
        assert_eq!(world.at(), None);
    }

    #[test]
    fn who_cannot_connect_takes_the_others_along() {
        let mut world = World::new("abc");
        let mut first = world.place().unwrap();
        let mut second = world.place().unwrap();
        world.go_on(&mut first).unwrap();
        assert_eq!(first.backend.id(), "b");
        assert_eq!(world.keys(), [0, 1, 0]);
        let third = world.place().unwrap();
        assert_eq!(third.backend.id(), "b", "who comes now does not try the first again");
        world.go_on(&mut second).unwrap();
        assert_eq!(second.backend.id(), "b", "the second follows, and goes no further");
        world.go_on(&mut second).unwrap();
        assert_eq!(world.at(), at("c", 0, 3));
    }

    #[test]
    fn live_connections_hold_the_key() {
        let mut world = World::new("ab");
        let _live = world.live();
        let mut other = world.place().unwrap();
        assert_eq!(world.go_on(&mut other), Err(Stay::Live));
        assert_eq!(world.at(), at("a", 1, 1));
    }

    #[test]
    fn a_101_from_where_the_key_was_does_not_count() {
        let mut world = World::new("ab");
        let mut slow = world.place().unwrap();
        let mut quick = world.place().unwrap();
        world.go_on(&mut quick).unwrap();
        assert_eq!(world.establish(&mut slow), Err(Moved::Elsewhere));
        assert_eq!(slow.backend.id(), "b");
        world.establish(&mut slow).unwrap();
        world.establish(&mut quick).unwrap();
        assert_eq!(world.at(), at("b", 2, 0));
    }

    #[test]
    fn when_all_were_tried_the_next_starts_afresh() {
        let mut world = World::new("ab");
        let mut one = world.place().unwrap();
        let mut two = world.place().unwrap();
        world.go_on(&mut one).unwrap();
        assert_eq!(world.go_on(&mut one), Err(Stay::NoneLeft));
        assert_eq!(world.at(), None);
        assert_eq!(world.place().unwrap().backend.id(), "a");
        assert_eq!(world.at(), at("a", 0, 1));
        // The one that is left behind is counted nowhere; if its handshake is answered where
        // the key is now, it joins.
        world.table.leave(&one, Phase::UnderWay);
        assert_eq!(world.at(), at("a", 0, 1));
        world.establish(&mut two).unwrap();
        assert_eq!(world.at(), at("a", 1, 1));
    }

    #[test]
    fn a_101_decides_where_nobody_else_has() {
        let mut world = World::new("ab");
        let mut one = world.place().unwrap();
        let mut two = world.place().unwrap();
        world.go_on(&mut one).unwrap();
        world.go_on(&mut two).unwrap();
        assert_eq!(world.go_on(&mut one), Err(Stay::NoneLeft));
        world.establish(&mut two).unwrap();
        assert_eq!(world.at(), at("b", 1, 0));
        world.table.leave(&two, Phase::Live);
        assert_eq!(world.keys(), [0, 0]);
    }

    #[test]
    fn a_lost_backend_loses_its_keys() {
        let mut world = World::new("ab");
        let old = world.live();
        lose(&world.backends[0]);
        assert!(world.table.find("k").is_none());
        let new = world.place().unwrap();
        assert_eq!(new.backend.id(), "b");
        assert_eq!(world.keys(), [0, 1]);
        world.table.leave(&old, Phase::Live);
        assert_eq!(world.at(), at("b", 0, 1), "the old one had no part in the new entry");
        world.table.leave(&new, Phase::UnderWay);
        assert_eq!(world.at(), None);
    }

    #[test]
    fn nobody_becomes_live_on_a_lost_backend() {
        let mut world = World::new("ab");
        let mut one = world.place().unwrap();
        let mut two = world.place().unwrap();
        lose(&world.backends[0]);
        assert_eq!(world.establish(&mut one), Err(Moved::Elsewhere));
        assert_eq!(one.backend.id(), "b");
        world.go_on(&mut two).unwrap();
        assert_eq!(world.at(), at("b", 0, 2));
        lose(&world.backends[1]);
        assert_eq!(world.establish(&mut one), Err(Moved::Nowhere));
        assert_eq!(world.go_on(&mut two), Err(Stay::NoneLeft));
        world.table.leave(&one, Phase::UnderWay);
        world.table.leave(&two, Phase::UnderWay);
        assert_eq!(world.at(), None);
    }

    #[test]
    fn a_placement_of_a_backend_that_came_back_in_between_is_followed() {
        let mut world = World::new("ab");
        let mut one = world.place().unwrap();
        lose(&world.backends[0]);
        let two = world.place().unwrap();
        bring_back(&world.backends[0]);
        assert_eq!(world.establish(&mut one), Err(Moved::Elsewhere));
        assert_eq!(one.backend.id(), two.backend.id());
        assert_eq!(world.at(), at("b", 0, 2));
    }

    #[test]
    fn a_key_that_was_let_go_is_chosen_anew_and_its_old_ones_end_in_their_own_time() {
        let mut world = World::new("ab");
        let old = world.live();
        let mut under_way = world.place().unwrap();
        world.drain("a");
        assert_eq!(world.place().map(|ticket| ticket.backend.id().to_owned()), Some("a".into()));
        world.let_go("b");
        assert_eq!(world.at(), at("a", 1, 2), "that is not where it is");
        world.let_go("a");
        assert!(world.table.is_leaving("k") && !world.table.is_leaving("another"));
        assert_eq!((world.at(), world.keys()), (None, vec![1, 0]));
        let _new = world.live();
        assert_eq!(world.establish(&mut under_way), Err(Moved::Elsewhere));
        assert_eq!(world.at(), at("b", 1, 1));
        world.table.leave(&old, Phase::Live);
        assert!(world.table.is_leaving("k"), "one is still under way there");
        world.lose("a");
        assert!(!world.table.is_leaving("k"), "nobody can be there");
    }

    #[test]
    fn a_handshake_ends_where_its_backend_is_drained_and_nobody_holds_the_key_there() {
        let mut world = World::new("ab");
        let mut one = world.place().unwrap();
        let mut two = world.place().unwrap();
        world.go_on(&mut two).unwrap();
        assert_eq!(world.go_on(&mut two), Err(Stay::NoneLeft));
        world.drain("a");
        assert_eq!(world.establish(&mut one), Err(Moved::Elsewhere));
        assert_eq!(world.at(), at("b", 0, 1));
        let mut world = World::new("a");
        let mut alone = world.place().unwrap();
        world.drain("a");
        world.let_go("a");
        assert_eq!(world.establish(&mut alone), Err(Moved::Nowhere));
        world.table.leave(&alone, Phase::UnderWay);
        assert_eq!((world.table.leaving(), world.keys()), (0, vec![0]));
    }

    #[test]
    fn a_key_may_be_let_go_again_before_it_has_ended_where_it_was() {
        let mut world = World::new("abc");
        let first = world.live();
        world.drain("a");
        world.let_go("a");
        let second = world.live();
        world.drain("b");
        world.let_go("b");
        assert_eq!(world.live().backend.id(), "c");
        world.table.leave(&second, Phase::Live);
        assert!(world.table.is_leaving("k"));
        world.table.leave(&first, Phase::Live);
        assert!(!world.table.is_leaving("k"));
        assert_eq!(world.keys(), [0, 0, 1]);
    }

    #[test]
    fn who_was_let_go_and_finds_the_drain_undone_stays() {
        let mut world = World::new("ab");
        let mut one = world.place().unwrap();
        let mut two = world.place().unwrap();
        world.drain("a");
        world.let_go("a");
        world.undrain("a");
        world.establish(&mut one).unwrap();
        world.establish(&mut two).unwrap();
        assert_eq!((world.at(), world.table.leaving()), (at("a", 2, 0), 0));
    }

    #[test]
    fn memory_is_given_back_after_a_rush() {
        let mut table = Table::default();
        let backend = backend("a");
        let place = |number: u32| table.place(&number.to_string(), &|_| Some(backend.clone()));
        let tickets: Vec<_> = (0..10_000).filter_map(place).collect();
        tickets.iter().for_each(|ticket| table.leave(ticket, Phase::UnderWay));
        assert!(table.entries.capacity() < 2048, "{}", table.entries.capacity());
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<(Arc<str>, Entry)>() <= 48);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Place,
        GoOn(prop::sample::Index),
        Establish(prop::sample::Index),
        Leave(prop::sample::Index),
        Lose(usize),
        PutOut(usize),
        BringBack(usize),
        Drain(usize),
        Undrain(usize),
        LetGo(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Place),
            3 => any::<prop::sample::Index>().prop_map(Step::GoOn),
            4 => any::<prop::sample::Index>().prop_map(Step::Establish),
            2 => any::<prop::sample::Index>().prop_map(Step::Leave),
            1 => (0..3_usize).prop_map(Step::Lose),
            1 => (0..3_usize).prop_map(Step::PutOut),
            2 => (0..3_usize).prop_map(Step::BringBack),
            1 => (0..3_usize).prop_map(Step::Drain),
            2 => (0..3_usize).prop_map(Step::Undrain),
            1 => (0..3_usize).prop_map(Step::LetGo),
        ];
        prop::collection::vec(step, 0..120)
    }

    fn id_of(index: usize) -> String {
        ["a", "b", "c"][index].to_owned()
    }

    /// Takes one step; a connection whose backend is lost is over, as its relay would be told.
    fn take(world: &mut World, tickets: &mut Vec<(Ticket, Phase)>, step: Step) {
        match step {
            Step::Place => tickets.extend(world.place().map(|ticket| (ticket, Phase::UnderWay))),
            Step::GoOn(at) if !tickets.is_empty() => {
                let (ticket, phase) = at.get_mut(tickets);
                if *phase == Phase::UnderWay {
                    let _ = world.go_on(ticket);
                }
            }
            Step::Establish(at) if !tickets.is_empty() => {
                let (ticket, phase) = at.get_mut(tickets);
                if *phase == Phase::UnderWay && world.establish(ticket).is_ok() {
                    *phase = Phase::Live;
                }
            }
            Step::Leave(at) if !tickets.is_empty() => {
                let (ticket, phase) = tickets.swap_remove(at.index(tickets.len()));
                world.table.leave(&ticket, phase);
            }
            Step::Lose(index) => {
                lose(&world.backends[index]);
                let (gone, rest): (Vec<_>, Vec<_>) = std::mem::take(tickets)
                    .into_iter()
                    .partition(|(one, phase)| *phase == Phase::Live && one.backend.is_lost());
                *tickets = rest;
                gone.iter().for_each(|(ticket, phase)| world.table.leave(ticket, *phase));
            }
            Step::PutOut(index) => put_out(&world.backends[index]),
            Step::BringBack(index) => bring_back(&world.backends[index]),
            Step::Drain(index) => world.drain(&id_of(index)),
            Step::Undrain(index) => world.undrain(&id_of(index)),
            Step::LetGo(index) => {
                world.drain(&id_of(index));
                world.let_go(&id_of(index));
                // Its connections are closed, and others come only when they have ended.
                let (gone, rest): (Vec<_>, Vec<_>) =
                    std::mem::take(tickets).into_iter().partition(|(one, phase)| {
                        *phase == Phase::Live && one.backend.id() == id_of(index)
                    });
                *tickets = rest;
                gone.iter().for_each(|(ticket, phase)| world.table.leave(ticket, *phase));
            }
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn live_connections_of_a_key_are_on_one_backend(steps in steps()) {
            let mut world = World::new("abc");
            let mut tickets = Vec::new();
            for step in steps {
                take(&mut world, &mut tickets, step);
                let live: Vec<_> =
                    tickets.iter().filter(|(_, phase)| *phase == Phase::Live).collect();
                for (ticket, _) in &live {
                    prop_assert!(Arc::ptr_eq(&ticket.backend, &live[0].0.backend));
                }
                let counted = world.at().map_or(0, |(_, live, _)| live as usize);
                prop_assert_eq!(counted, live.len());
                let placed = usize::from(world.at().is_some());
                let leaving: usize = world.table.leaving.values().map(Vec::len).sum();
                prop_assert_eq!(world.keys().iter().sum::<usize>(), placed + leaving);
            }
            tickets.iter().for_each(|(ticket, phase)| world.table.leave(ticket, *phase));
            prop_assert_eq!(world.at(), None);
            prop_assert_eq!(world.table.leaving(), 0);
            prop_assert_eq!(world.keys(), [0, 0, 0]);
        }
    }
}
