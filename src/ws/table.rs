//! The connections of one worker, by serial, and the clock that they live by.
//!
//! The table is the truth about who is connected here. It belongs to its worker's thread; what
//! others want to know of it, they ask the worker for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use super::clock::{Schedule, Tick, Ticks};
use super::connection::{Connection, Facts, Serial};

/// The farthest that a connection is scheduled ahead: what dead connections leave in the schedule
/// is gone after that.
const FARTHEST: Ticks = Ticks::from_secs(60);
/// One read of a relay, in bytes.
pub const READ_BYTES: usize = 64 * 1024;

/// The connections of one worker.
#[derive(Debug)]
pub struct Table {
    worker: u16,
    next: Cell<u64>,
    connections: RefCell<BTreeMap<Serial, Rc<Connection>>>,
    schedule: RefCell<Schedule>,
    started: Instant,
    started_at: SystemTime,
    now: Cell<Tick>,
    /// Where all relays of the worker read, one at a time. Room for what a tracker asks to see
    /// again stands in front.
    scratch: RefCell<Box<[u8]>>,
}

impl Table {
    /// An empty table of the `worker`-th worker.
    pub fn new(worker: u16) -> Self {
        let scratch = vec![0; READ_BYTES + super::frame::CARRY_BYTES].into_boxed_slice();
        Self {
            worker,
            next: Cell::new(0),
            connections: RefCell::default(),
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
        self.connections.borrow_mut().insert(serial, Rc::clone(&connection));
        Entry { table: Rc::clone(self), connection }
    }

    /// The connection of a serial; `None` if it is gone.
    pub fn get(&self, serial: Serial) -> Option<Rc<Connection>> {
        self.connections.borrow().get(&serial).cloned()
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
        let found = connections.range((from, Bound::Unbounded)).map(|(_, connection)| connection);
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
        let looked_at = connections.range((from, Bound::Unbounded)).take(limit);
        looked_at.inspect(|(_, connection)| look(connection)).last().map(|(serial, _)| *serial)
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

    /// The table.
    pub fn table(&self) -> &Rc<Table> {
        &self.table
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.table.connections.borrow_mut().remove(&self.connection.serial);
    }
}
