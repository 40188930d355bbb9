//! The connections of one worker, by serial, and the clock that they live by.
//!
//! The table is the truth about who is connected here. It belongs to its worker's thread; what
//! others want to know of it, they ask the worker for. Beside the serials it knows the keys and the
//! rooms of its connections, so that whoever sends to those looks at nobody else.

use std::borrow::Borrow;
use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::iter;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::clock::{Schedule, Tick, Ticks};
use super::connection::{Connection, Facts, Serial};
use super::keys::Keys;
use super::rooms::{Room, Rooms, TooManyRooms};
use crate::registry::{Change, Group, Record, Registry};

/// The farthest that a connection is scheduled ahead: what dead connections leave in the schedule
/// is gone after that.
const FARTHEST: Ticks = Ticks::from_secs(60);
/// One read of a relay, in bytes.
pub const READ_BYTES: usize = 64 * 1024;

/// A connection as its serial orders it, which it has itself: a key beside it would be half of the
/// table.
#[derive(Debug)]
struct BySerial(Rc<Connection>);

impl Borrow<Serial> for BySerial {
    fn borrow(&self) -> &Serial {
        &self.0.serial
    }
}

impl Ord for BySerial {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.serial.cmp(&other.0.serial)
    }
}

impl PartialOrd for BySerial {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for BySerial {
    fn eq(&self, other: &Self) -> bool {
        self.0.serial == other.0.serial
    }
}

impl Eq for BySerial {}

/// The connections of one worker.
#[derive(Debug)]
pub struct Table {
    worker: u16,
    next: Cell<u64>,
    connections: RefCell<BTreeSet<BySerial>>,
    keys: RefCell<Keys>,
    rooms: RefCell<Rooms>,
    registry: Arc<dyn Registry>,
    schedule: RefCell<Schedule>,
    started: Instant,
    started_at: SystemTime,
    now: Cell<Tick>,
    /// Where all relays of the worker read, one at a time. Room for what a tracker asks to see
    /// again stands in front.
    scratch: RefCell<Box<[u8]>>,
}

impl Table {
    /// An empty table of the `worker`-th worker of a proxy that makes its connections known there.
    pub fn new(worker: u16, registry: Arc<dyn Registry>) -> Self {
        let scratch = vec![0; READ_BYTES + super::frame::CARRY_BYTES].into_boxed_slice();
        Self {
            worker,
            next: Cell::new(0),
            connections: RefCell::default(),
            keys: RefCell::new(Keys::new(worker)),
            rooms: RefCell::new(Rooms::new(Arc::clone(&registry))),
            registry,
            schedule: RefCell::default(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            now: Cell::default(),
            scratch: RefCell::new(scratch),
        }
    }

    /// Enters a connection whose handshake has come. It stands here as long as the guard lives.
    pub fn enter(self: &Rc<Self>, facts: Facts) -> Entry {
        let count = self.next.get();
        self.next.set(count + 1);
        let serial = Serial::new(self.worker, count);
        let connection = Rc::new(Connection::new(serial, facts, self.now()));
        self.keys.borrow_mut().add(&connection.facts, serial);
        if let Some(group) = connection.facts.group() {
            self.registry.enter(group);
        }
        self.connections.borrow_mut().insert(BySerial(Rc::clone(&connection)));
        Entry { table: Rc::clone(self), connection }
    }

    /// The connection of a serial; `None` if it is gone.
    pub fn get(&self, serial: Serial) -> Option<Rc<Connection>> {
        self.connections.borrow().get(&serial).map(|BySerial(connection)| Rc::clone(connection))
    }

    /// The connections behind a serial in ascending order, those for which `wanted` holds, at
    /// most `limit`.
    pub fn after(
        &self,
        serial: Option<Serial>,
        limit: usize,
        wanted: impl Fn(&Connection) -> bool,
    ) -> Vec<Rc<Connection>> {
        let from = serial.map_or(Bound::Unbounded, Bound::Excluded);
        let connections = self.connections.borrow();
        let found =
            connections.range::<Serial, _>((from, Bound::Unbounded)).map(|BySerial(one)| one);
        found.filter(|connection| wanted(connection)).take(limit).cloned().collect()
    }

    /// Looks at the connections behind a serial in ascending order, at most `limit` of them, and
    /// tells the last serial that was looked at; `None` if there is none behind.
    pub fn look(
        &self,
        serial: Option<Serial>,
        limit: usize,
        mut look: impl FnMut(&Connection),
    ) -> Option<Serial> {
        let from = serial.map_or(Bound::Unbounded, Bound::Excluded);
        let connections = self.connections.borrow();
        let looked_at = connections.range::<Serial, _>((from, Bound::Unbounded)).take(limit);
        looked_at.inspect(|BySerial(one)| look(one)).last().map(|BySerial(one)| one.serial)
    }

    /// The connections of a key of a pool, as [`Table::after`] gives them.
    pub fn of_key_after(
        &self,
        pool: &str,
        key: &str,
        serial: Option<Serial>,
        limit: usize,
    ) -> Vec<Rc<Connection>> {
        let (keys, connections) = (self.keys.borrow(), self.connections.borrow());
        let found = keys.after(pool, key, serial).filter_map(|serial| connections.get(&serial));
        let found = found.map(|BySerial(one)| one);
        let of_key = |one: &&Rc<Connection>| {
            one.facts.key.as_deref() == Some(key) && *one.facts.names.pool == *pool
        };
        found.filter(of_key).take(limit).cloned().collect()
    }

    /// The members of a room, as [`Table::after`] gives them.
    pub fn members_after(
        &self,
        room: &Room,
        serial: Option<Serial>,
        limit: usize,
    ) -> Vec<Rc<Connection>> {
        let (rooms, connections) = (self.rooms.borrow(), self.connections.borrow());
        let found = rooms.after(room, serial).filter_map(|serial| connections.get(&serial));
        found.take(limit).map(|BySerial(one)| Rc::clone(one)).collect()
    }

    /// Makes a connection of this table a member of a room. One that is already stays it.
    ///
    /// # Errors
    ///
    /// It is in too many rooms.
    pub fn join(&self, connection: &Connection, room: Room) -> Result<(), TooManyRooms> {
        let name = room.shared();
        if self.rooms.borrow_mut().join(connection.serial, room)? {
            self.make_known(connection, Change::Joined(name));
        }
        Ok(())
    }

    /// Takes a connection out of a room, if it is in there.
    pub fn leave(&self, connection: &Connection, room: &Room) {
        if self.rooms.borrow_mut().leave(connection.serial, room) {
            self.make_known(connection, Change::Left(room.shared()));
        }
    }

    /// Tells the registry of a connection that is open, as it is now.
    fn make_known(&self, connection: &Connection, change: Change) {
        if let Some(shadow) = self.registry.shadow()
            && let Some(record) = self.record(connection)
        {
            shadow.put(connection.serial.to_string().into(), record, change);
        }
    }

    /// What others are told of a connection; `None` if it is not open yet.
    pub fn record(&self, connection: &Connection) -> Option<Record> {
        let facts = &connection.facts;
        Some(Record {
            backend: connection.backend()?,
            pool: Arc::clone(&facts.names.pool),
            route: Arc::clone(&facts.names.route),
            key: facts.key.clone(),
            client: facts.client.ip(),
            opened_at: facts.since.millis(),
            rooms: self.rooms_of(connection).iter().map(Room::shared).collect(),
        })
    }

    /// Whether a connection is in a room.
    pub fn is_member(&self, connection: &Connection, room: &Room) -> bool {
        self.rooms.borrow().has(connection.serial, room)
    }

    /// The rooms that a connection is in, by name.
    pub fn rooms_of(&self, connection: &Connection) -> Vec<Room> {
        self.rooms.borrow().of(connection.serial)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty()
    }

    /// The present moment, as of the last [`Table::tick`].
    pub fn now(&self) -> Tick {
        self.now.get()
    }

    /// The time of day of a moment.
    pub fn time_of(&self, tick: Tick) -> SystemTime {
        self.started_at + tick.since_start()
    }

    /// Reads the clock, and wakes the connections that are to look at it. Called every
    /// [`TICK_MILLIS`](super::clock::TICK_MILLIS).
    pub fn tick(&self, now: Instant) {
        self.now.set(Tick::at(now.saturating_duration_since(self.started)));
        loop {
            let Some(due) = self.schedule.borrow_mut().take_due(self.now()) else { return };
            for serial in due {
                if let Some(connection) = self.get(Serial::from_u64(serial)) {
                    connection.look_at_clock();
                }
            }
        }
    }

    /// Has a connection look at the clock at `tick`, or earlier.
    pub(super) fn look_at(&self, tick: Tick, serial: Serial) {
        let tick = tick
            .min(self.now() + FARTHEST)
            .max(self.now() + Ticks::from(Duration::from_millis(super::clock::TICK_MILLIS.into())));
        self.schedule.borrow_mut().add(tick, serial.as_u64());
    }

    /// The buffer that all relays read into; borrowed for one read and its writes.
    pub(super) fn scratch(&self) -> &RefCell<Box<[u8]>> {
        &self.scratch
    }
}

/// Keeps a connection in its table; its drop takes it out.
#[derive(Debug)]
pub struct Entry {
    table: Rc<Table>,
    connection: Rc<Connection>,
}

impl Entry {
    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Notes the backend that has answered 101: from now on the connection is open for others.
    pub fn opened(&self, backend: Arc<str>) {
        let was_open = self.connection.backend().is_some();
        self.connection.set_backend(backend);
        let change = if was_open { Change::Moved } else { Change::Opened };
        self.table.make_known(&self.connection, change);
    }

    /// What it can be reached by beside its id.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        // Its rooms are listed only for who asks: where no registry is shared, nobody does.
        let rooms = iter::once_with(|| self.table.rooms_of(&self.connection)).flatten();
        let key = self.connection.facts.group().into_iter();
        key.chain(rooms.map(|room| room.group()))
    }

    /// Has the connection join rooms. Tells how many it could not, because it is in too many.
    pub fn join(&self, rooms: impl IntoIterator<Item = Room>) -> usize {
        let joined = rooms.into_iter().map(|room| self.table.join(&self.connection, room));
        joined.filter(Result::is_err).count()
    }

    /// The table.
    pub fn table(&self) -> &Rc<Table> {
        &self.table
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Self { table, connection } = self;
        if let Some(shadow) = table.registry.shadow()
            && let Some(record) = table.record(connection)
        {
            shadow.remove(connection.serial.to_string().into(), record);
        }
        if let Some(group) = connection.facts.group() {
            table.registry.leave(&group);
        }
        table.rooms.borrow_mut().leave_all(connection.serial);
        table.keys.borrow_mut().remove(&connection.facts, connection.serial);
        table.connections.borrow_mut().remove(&connection.serial);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Mutex;

    use super::super::connection::Names;
    use super::*;
    use crate::registry::Shadow;
    use crate::registry::memory::Memory;

    fn enter(table: &Rc<Table>, pool: &str, key: Option<&str>) -> Entry {
        table.enter(Facts {
            names: Arc::new(Names { route: "r".into(), pool: pool.into() }),
            key: key.map(Arc::from),
            client: IpAddr::from([127, 0, 0, 1]).into(),
            since: SystemTime::now().into(),
        })
    }

    fn of_key(table: &Table, pool: &str, key: &str, after: Option<Serial>) -> Vec<Serial> {
        let found = table.of_key_after(pool, key, after, 10);
        found.iter().map(|connection| connection.serial).collect()
    }

    #[test]
    fn connections_are_found_by_key_within_their_pool() {
        let table = Rc::new(Table::new(0, Arc::<Memory>::default()));
        let entries =
            [("p", Some("k")), ("q", Some("k")), ("p", Some("l")), ("p", None), ("p", Some("k"))]
                .map(|(pool, key)| enter(&table, pool, key));
        let serial = |index: usize| entries[index].connection().serial;
        assert_eq!(of_key(&table, "p", "k", None), [serial(0), serial(4)]);
        assert_eq!(of_key(&table, "p", "k", Some(serial(0))), [serial(4)]);
        assert_eq!(of_key(&table, "q", "k", None), [serial(1)]);
        assert!(of_key(&table, "q", "l", None).is_empty());
        drop(entries);
        assert!(of_key(&table, "p", "k", None).is_empty());
    }

    /// Hears what is told of connections.
    #[derive(Debug, Default)]
    struct Ear(Mutex<Vec<String>>);

    impl Registry for Ear {
        fn enter(&self, _group: Group) {}

        fn leave(&self, _group: &Group) {}

        fn rooms(&self) -> (usize, usize) {
            (0, 0)
        }

        fn shadow(&self) -> Option<&dyn Shadow> {
            Some(self)
        }
    }

    impl Shadow for Ear {
        fn put(&self, id: Box<str>, record: Record, change: Change) {
            self.0.lock().unwrap().push(format!("{id} {change:?} {:?}", record.rooms));
        }

        fn remove(&self, id: Box<str>, record: Record) {
            self.0.lock().unwrap().push(format!("{id} ended {:?}", record.rooms));
        }
    }

    #[test]
    fn each_change_of_an_open_connection_is_told_once() {
        let ear = Arc::<Ear>::default();
        let table = Rc::new(Table::new(0, Arc::<Ear>::clone(&ear)));
        let (one, never_open) = (enter(&table, "p", None), enter(&table, "p", None));
        let room = |name| Room::new(name).unwrap();
        assert_eq!(one.join([room("a")]), 0);
        assert!(ear.0.lock().unwrap().is_empty(), "it is not open yet");
        one.opened("b1".into());
        for name in ["b", "a", "b"] {
            table.join(one.connection(), room(name)).unwrap();
        }
        for name in ["a", "a", "c"] {
            table.leave(one.connection(), &room(name));
        }
        one.opened("b2".into());
        let id = one.connection().serial.to_string();
        drop((one, never_open));
        let told = [
            "Opened [\"a\"]",
            "Joined(\"b\") [\"a\", \"b\"]",
            "Left(\"a\") [\"b\"]",
            "Moved [\"b\"]",
            "ended [\"b\"]",
        ];
        assert_eq!(*ear.0.lock().unwrap(), told.map(|told| format!("{id} {told}")));
    }

    #[test]
    fn who_is_gone_is_in_no_room() {
        let registry = Arc::<Memory>::default();
        let table = Rc::new(Table::new(0, Arc::<Memory>::clone(&registry)));
        let (stays, goes) = (enter(&table, "p", None), enter(&table, "p", None));
        let room = Room::new("a").unwrap();
        for entry in [&stays, &goes] {
            table.join(entry.connection(), room.clone()).unwrap();
        }
        assert_eq!(table.members_after(&room, None, 10).len(), 2);
        drop(goes);
        let members = table.members_after(&room, None, 10);
        assert_eq!(members[0].serial, stays.connection().serial);
        assert_eq!((members.len(), registry.rooms()), (1, (1, 1)));
    }
}
