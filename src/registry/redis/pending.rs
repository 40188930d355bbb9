//! What is to be written of a proxy's connections and rooms: changes in, batches out.
//!
//! Many changes of one connection are one write, and one that opened and closed between two batches
//! is none. Rooms are counted here, out of every change, whatever becomes of the writes: so their
//! numbers are right even where the changes themselves are forgotten.
//!
//! That happens in any doubt about what the registry has: nothing is kept then but those numbers, and
//! the whole table is [rewritten](Pending::begin), page by page, with the changes that come meanwhile
//! behind each page. Whoever writes is alone, and writes what he has taken before he takes more.
//!
//! One promise stands in all of this: what the registry may have of a room is named there in the record
//! of a connection, or is a number here. So nothing of it is left when a rewrite is over.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use super::super::{Change, Record};

/// Connections, and rooms, of which something may be kept to be written. With more of them all are
/// forgotten, and the table is rewritten.
const LIMIT: usize = 65_536;

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Pending {
    phase: Phase,
    /// By the part of their ids behind the dot; at most [`LIMIT`].
    connections: HashMap<Box<str>, Entry>,
    /// Rooms with members, and those that the registry may have nevertheless. In order, so that they can
    /// be walked in parts.
    rooms: BTreeMap<Arc<str>, Room>,
    /// Rooms to be written; at most [`LIMIT`].
    changed: HashSet<Arc<str>>,
}

/// What is known of what the registry has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Nothing: it is to be rewritten.
    #[default]
    Doubtful,
    /// It is being rewritten. Rooms with members are written at the end, when all records are.
    Rewriting,
    /// It has everything but what is pending.
    Following,
}

#[derive(Debug)]
enum Entry {
    /// Opened since the last batch: it isn't in the registry.
    Fresh(Record),
    /// It may be there already.
    Known(Record),
    /// It has ended.
    Gone(Gone),
}

#[derive(Debug, Default)]
struct Room {
    members: usize,
    /// The registry may have it.
    written: bool,
}

/// What is left of a connection that has ended: its pool and its key, if it had one.
pub(super) type Gone = Option<(Arc<str>, Arc<str>)>;

/// Rooms, and how many members they have.
pub(super) type Numbers = Vec<(Arc<str>, usize)>;

/// What is written together, with the numbers as they are when it is taken.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Batch {
    /// Connections that live.
    pub(super) live: Vec<(Box<str>, Record)>,
    /// Connections that have ended.
    pub(super) gone: Vec<(Box<str>, Gone)>,
    /// Rooms.
    pub(super) rooms: Numbers,
}

/// The pool and the key of a connection.
pub(super) fn gone(record: Record) -> Gone {
    record.key.map(|key| (record.pool, key))
}

impl Pending {
    /// Notes a change of a connection, which is as `record` says now.
    pub(super) fn put(&mut self, id: Box<str>, record: Record, change: &Change) {
        match change {
            Change::Opened => record.rooms.iter().for_each(|room| self.enter(room)),
            Change::Joined(room) => self.enter(room),
            Change::Left(room) => self.leave(room),
            Change::Moved => {}
        }
        if self.phase == Phase::Doubtful {
            return self.keep_bounds();
        }
        let fresh =
            *change == Change::Opened || matches!(self.connections.get(&id), Some(Entry::Fresh(_)));
        let entry = if fresh { Entry::Fresh(record) } else { Entry::Known(record) };
        self.connections.insert(id, entry);
        self.keep_bounds();
    }

    /// Notes the end of a connection, of which `record` was put last.
    pub(super) fn remove(&mut self, id: Box<str>, record: Record) {
        record.rooms.iter().for_each(|room| self.leave(room));
        if self.phase == Phase::Doubtful {
            return self.keep_bounds();
        }
        let was = self.connections.remove(&id);
        // A page that is on its way to the registry may have it.
        let never_written = self.phase == Phase::Following && matches!(was, Some(Entry::Fresh(_)));
        if !never_written {
            self.connections.insert(id, Entry::Gone(gone(record)));
        }
        self.keep_bounds();
    }

    fn enter(&mut self, name: &Arc<str>) {
        self.rooms.entry(Arc::clone(name)).or_default().members += 1;
        if self.phase == Phase::Following {
            self.changed.insert(Arc::clone(name));
        }
    }

    fn leave(&mut self, name: &Arc<str>) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        room.members -= 1;
        let is_empty = room.members == 0;
        if is_empty && !room.written {
            self.rooms.remove(name);
            self.changed.remove(name);
        } else if is_empty || self.phase == Phase::Following {
            self.changed.insert(Arc::clone(name));
        }
    }

    fn keep_bounds(&mut self) {
        if self.connections.len() > LIMIT || self.changed.len() > LIMIT {
            self.doubt();
        }
    }

    /// Forgets what was to be written: it is uncertain what the registry has.
    pub(super) fn doubt(&mut self) {
        self.phase = Phase::Doubtful;
        self.connections = HashMap::new();
        let is_empty = |name: &Arc<str>| self.rooms.get(name).is_some_and(|room| room.members == 0);
        self.changed.retain(is_empty);
        if self.changed.len() > LIMIT {
            // Records name them, if no batch broke off just as one member was exchanged for another.
            for name in std::mem::take(&mut self.changed) {
                self.rooms.remove(&name);
            }
        }
    }

    /// Notes changes from now on: what the registry has is about to be read, then the table, and
    /// written as it was read, in this order.
    pub(super) fn begin(&mut self) {
        self.doubt();
        self.phase = Phase::Rewriting;
    }

    /// Notes that the registry may have this room.
    pub(super) fn suspect(&mut self, name: &str) {
        let name = match self.rooms.get_key_value(name) {
            Some((name, _)) => Arc::clone(name),
            None => name.into(),
        };
        let room = self.rooms.entry(Arc::clone(&name)).or_default();
        room.written = true;
        if room.members == 0 {
            self.changed.insert(name);
        }
        self.keep_bounds();
    }

    /// Takes what is to be written now. Where that fails its rooms are to be [suspected](Self::suspect)
    /// again, and all is in [doubt](Self::doubt).
    pub(super) fn take(&mut self) -> Batch {
        let mut batch = Batch::default();
        for (id, entry) in std::mem::take(&mut self.connections) {
            match entry {
                Entry::Fresh(record) | Entry::Known(record) => batch.live.push((id, record)),
                Entry::Gone(gone) => batch.gone.push((id, gone)),
            }
        }
        for name in std::mem::take(&mut self.changed) {
            let Some(room) = self.rooms.get_mut(&name) else { continue };
            let members = room.members;
            if members == 0 {
                self.rooms.remove(&name);
            } else if self.phase == Phase::Following {
                room.written = true;
            } else {
                continue;
            }
            batch.rooms.push((name, members));
        }
        batch
    }

    /// Takes what came behind the last page: all records are written, and only rooms are left.
    /// `None`: there is a doubt again.
    pub(super) fn settle(&mut self) -> Option<Batch> {
        if self.phase != Phase::Rewriting {
            return None;
        }
        let batch = self.take();
        self.phase = Phase::Following;
        Some(batch)
    }

    /// Some rooms behind a name with their numbers, at most `limit`, and the last name that was looked
    /// at. Those that are to be written anyway are left out: their records may not be there yet.
    pub(super) fn rooms_after(
        &mut self,
        after: Option<&str>,
        limit: usize,
    ) -> (Numbers, Option<Arc<str>>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut found, mut last) = (Vec::new(), None);
        for (name, room) in self.rooms.range_mut::<str, _>((from, Bound::Unbounded)).take(limit) {
            last = Some(Arc::clone(name));
            if !self.changed.contains(name) {
                room.written = true;
                found.push((Arc::clone(name), room.members));
            }
        }
        (found, last)
    }

    /// Whether what the registry has is uncertain, and nothing is done about it yet.
    pub(super) fn is_doubtful(&self) -> bool {
        self.phase == Phase::Doubtful
    }

    /// How many connections are to be written.
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether nothing is to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.changed.is_empty()
    }
}

impl Batch {
    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const ROOMS: [&str; 3] = ["a", "b", "c"];
    const CONNECTIONS: usize = 6;

    fn record(rooms: &BTreeSet<usize>) -> Record {
        Record {
            backend: "b".into(),
            pool: "p".into(),
            route: "r".into(),
            key: Some("k".into()),
            client: [127, 0, 0, 1].into(),
            opened_at: 1,
            rooms: rooms.iter().map(|room| ROOMS[*room].into()).collect(),
        }
    }

    fn id(number: usize) -> Box<str> {
        format!("{number:02x}").into()
    }

    /// What has been taken, in the order of its steps.
    enum Write {
        Record(Box<str>, Option<Record>),
        Key(Box<str>, bool),
        Room(Arc<str>, usize),
    }

    fn writes(batch: Batch) -> Vec<Write> {
        let (mut first, mut then, mut last) = (Vec::new(), Vec::new(), Vec::new());
        for (id, record) in batch.live {
            last.push(Write::Key(id.clone(), true));
            then.push(Write::Record(id, Some(record)));
        }
        for (id, gone) in batch.gone {
            assert_eq!(gone, Some(("p".into(), "k".into())));
            first.push(Write::Key(id.clone(), false));
            then.push(Write::Record(id, None));
        }
        for (room, members) in batch.rooms {
            let to = if members == 0 { &mut first } else { &mut last };
            to.push(Write::Room(room, members));
        }
        first.into_iter().chain(then).chain(last).collect()
    }

    /// The registry.
    #[derive(Debug, Default, PartialEq)]
    struct There {
        records: BTreeMap<Box<str>, Record>,
        key: BTreeSet<Box<str>>,
        rooms: BTreeMap<Arc<str>, usize>,
    }

    impl There {
        fn apply(&mut self, write: Write) {
            match write {
                Write::Record(id, Some(record)) => drop(self.records.insert(id, record)),
                Write::Record(id, None) => drop(self.records.remove(&id)),
                Write::Key(id, true) => drop(self.key.insert(id)),
                Write::Key(id, false) => drop(self.key.remove(&id)),
                Write::Room(room, 0) => drop(self.rooms.remove(&room)),
                Write::Room(room, members) => drop(self.rooms.insert(room, members)),
            }
        }

        /// Who finds the records of a proxy finds all that it has, with what it knows itself.
        fn check(&self, pending: &Pending) {
            let named = |room: &Arc<str>| self.records.values().any(|one| one.rooms.contains(room));
            let known = |room: &Arc<str>| named(room) || pending.rooms.contains_key(room);
            let ids = self.key.iter().all(|id| self.records.contains_key(id));
            assert!(ids && self.rooms.keys().all(known), "{self:?}\n{pending:?}");
        }
    }

    /// A proxy with its registry; a rewrite goes on step by step.
    #[derive(Default)]
    struct World {
        pending: Pending,
        live: BTreeMap<usize, BTreeSet<usize>>,
        opened: usize,
        there: There,
        /// What goes on, if anything does.
        rewrite: Option<Rewrite>,
        /// What was read, and is to be written.
        read: Batch,
    }

    enum Rewrite {
        Pages { there: BTreeSet<Box<str>>, next: usize },
        Ended { there: BTreeSet<Box<str>> },
        Rooms { after: Option<Arc<str>> },
    }

    /// What happens.
    #[derive(Clone, Copy, Debug)]
    enum Act {
        Open(u8),
        Close(usize),
        Join(usize, usize),
        Leave(usize, usize),
        /// A step of the writer, of which so many writes succeed.
        Write(usize),
        Flush,
    }

    impl World {
        fn act(&mut self, act: Act) {
            match act {
                Act::Open(rooms) => {
                    let rooms = (0..3).filter(|room| rooms >> room & 1 == 1).collect();
                    self.pending.put(id(self.opened), record(&rooms), &Change::Opened);
                    self.live.insert(self.opened, rooms);
                    self.opened += 1;
                }
                Act::Close(which) => {
                    let Some(number) = self.which(which) else { return };
                    let rooms = self.live.remove(&number).unwrap();
                    self.pending.remove(id(number), record(&rooms));
                }
                Act::Join(which, room) => self.change(which, room, true),
                Act::Leave(which, room) => self.change(which, room, false),
                Act::Write(succeed) => self.write(succeed),
                Act::Flush => {
                    self.there = There::default();
                    self.doubt();
                }
            }
        }

        fn doubt(&mut self) {
            self.pending.doubt();
            (self.read, self.rewrite) = (Batch::default(), None);
        }

        fn which(&self, which: usize) -> Option<usize> {
            self.live.keys().nth(which % self.live.len().max(1)).copied()
        }

        fn change(&mut self, which: usize, room: usize, join: bool) {
            let Some(number) = self.which(which) else { return };
            let rooms = self.live.get_mut(&number).unwrap();
            let name: Arc<str> = ROOMS[room].into();
            let changed = if join { rooms.insert(room) } else { rooms.remove(&room) };
            if changed {
                let change = if join { Change::Joined(name) } else { Change::Left(name) };
                self.pending.put(id(number), record(rooms), &change);
            }
        }

        /// Writes what was read last, then what came behind it, and reads on.
        fn write(&mut self, succeed: usize) {
            let (mut left, read) = (succeed, std::mem::take(&mut self.read));
            if !self.carry_out(read, &mut left) {
                return;
            }
            let batch = self.pending.take();
            if self.carry_out(batch, &mut left) {
                (self.read, self.rewrite) = self.go_on();
            }
        }

        fn go_on(&mut self) -> (Batch, Option<Rewrite>) {
            if self.pending.is_doubtful() {
                self.pending.begin();
                for record in self.there.records.values() {
                    record.rooms.iter().for_each(|room| self.pending.suspect(room));
                }
                let there = self.there.records.keys().cloned().collect();
                return (Batch::default(), Some(Rewrite::Pages { there, next: 0 }));
            }
            match self.rewrite.take() {
                None => (Batch::default(), None),
                Some(Rewrite::Pages { mut there, next }) => {
                    let (mut live, mut last) = (Vec::new(), None);
                    for (number, rooms) in self.live.range(next..).take(2) {
                        there.remove(&id(*number));
                        live.push((id(*number), record(rooms)));
                        last = Some(number + 1);
                    }
                    let next = match last {
                        Some(next) => Rewrite::Pages { there, next },
                        None => Rewrite::Ended { there },
                    };
                    (Batch { live, ..Batch::default() }, Some(next))
                }
                Some(Rewrite::Ended { there }) if !there.is_empty() => {
                    let gone = |id| (id, Some(("p".into(), "k".into())));
                    let gone = there.into_iter().map(gone).collect();
                    let next = Rewrite::Ended { there: BTreeSet::new() };
                    (Batch { gone, ..Batch::default() }, Some(next))
                }
                Some(Rewrite::Ended { .. }) => {
                    let last = self.pending.settle().unwrap();
                    (last, Some(Rewrite::Rooms { after: None }))
                }
                Some(Rewrite::Rooms { after }) => {
                    let (rooms, last) = self.pending.rooms_after(after.as_deref(), 2);
                    let next = last.map(|last| Rewrite::Rooms { after: Some(last) });
                    (Batch { rooms, ..Batch::default() }, next)
                }
            }
        }

        /// Writes one after the other, until one fails.
        fn carry_out(&mut self, batch: Batch, left: &mut usize) -> bool {
            let rooms = batch.rooms.clone();
            for write in writes(batch) {
                if *left == 0 {
                    rooms.iter().for_each(|(room, _)| self.pending.suspect(room));
                    self.doubt();
                    self.there.check(&self.pending);
                    return false;
                }
                *left -= 1;
                self.there.apply(write);
            }
            self.there.check(&self.pending);
            true
        }

        /// Writes until nothing is left to write.
        fn settle(&mut self) {
            let has_more = |world: &Self| {
                let pending = &world.pending;
                pending.is_doubtful() || world.rewrite.is_some() || !pending.is_empty()
            };
            while has_more(self) || !self.read.is_empty() {
                self.write(usize::MAX);
            }
        }

        fn truth(&self) -> There {
            let mut truth = There::default();
            for (number, rooms) in &self.live {
                truth.records.insert(id(*number), record(rooms));
                truth.key.insert(id(*number));
                for room in rooms {
                    *truth.rooms.entry(ROOMS[*room].into()).or_default() += 1;
                }
            }
            truth
        }
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => (0..8_u8).prop_map(Act::Open),
            2 => (0..CONNECTIONS).prop_map(Act::Close),
            3 => (0..CONNECTIONS, 0..3_usize).prop_map(|(which, room)| Act::Join(which, room)),
            3 => (0..CONNECTIONS, 0..3_usize).prop_map(|(which, room)| Act::Leave(which, room)),
            5 => Just(Act::Write(usize::MAX)),
            1 => (0..12_usize).prop_map(Act::Write),
            1 => Just(Act::Flush),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_fails_the_registry_has_what_lives_at_the_end(
            acts in proptest::collection::vec(act(), 0..80),
        ) {
            let mut world = World::default();
            for act in acts {
                world.act(act);
            }
            world.settle();
            prop_assert_eq!(&world.there, &world.truth());
        }
    }

    fn following() -> Pending {
        let mut pending = Pending::default();
        pending.begin();
        assert!(pending.settle().unwrap().is_empty());
        pending
    }

    #[test]
    fn who_opens_and_closes_between_two_batches_is_not_written() {
        let mut pending = following();
        let rooms = BTreeSet::from([0]);
        pending.put(id(1), record(&rooms), &Change::Opened);
        pending.put(id(1), record(&BTreeSet::from([0, 1])), &Change::Joined("b".into()));
        pending.remove(id(1), record(&BTreeSet::from([0, 1])));
        assert!(pending.is_empty() && pending.rooms.is_empty());
    }

    #[test]
    fn a_change_of_many_is_one_write_with_the_last_numbers() {
        let mut pending = following();
        pending.put(id(1), record(&BTreeSet::new()), &Change::Opened);
        assert_eq!(pending.take().live.len(), 1);
        for room in [0, 1, 2] {
            let rooms = (0..=room).collect();
            pending.put(id(1), record(&rooms), &Change::Joined(ROOMS[room].into()));
        }
        pending.put(id(1), record(&BTreeSet::from([0, 1])), &Change::Left("c".into()));
        pending.put(id(1), record(&BTreeSet::from([0, 1])), &Change::Moved);
        let mut batch = pending.take();
        batch.rooms.sort();
        assert_eq!(batch.live, [(id(1), record(&BTreeSet::from([0, 1])))]);
        assert_eq!(batch.rooms, [("a".into(), 1), ("b".into(), 1)]);
        assert!(pending.is_empty());
    }

    #[test]
    fn too_much_is_forgotten_but_for_the_numbers() {
        let mut pending = following();
        let rooms = BTreeSet::from([0]);
        for number in 0..=LIMIT {
            assert!(!pending.is_doubtful(), "{number}");
            pending.put(format!("{number:x}").into(), record(&rooms), &Change::Opened);
        }
        assert!(pending.is_doubtful() && pending.is_empty());
        pending.remove("0".into(), record(&rooms));
        assert!(pending.is_empty(), "no connection is kept in doubt");
        pending.begin();
        pending.settle().unwrap();
        assert_eq!(pending.rooms_after(None, 9).0, [("a".into(), LIMIT)]);
    }
}
