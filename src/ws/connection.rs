//! One client WebSocket as others see it: who it is, what it did, and how to reach it.
//!
//! A [`Connection`] stands in its worker's [`Table`](super::table::Table) from before its
//! handshake goes to the backend until its relay has ended. All of it belongs to one thread:
//! other threads reach it by a message to its worker, which ends in [`Connection::deliver`] or
//! [`Connection::close`] and wakes the relay.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::clock::Tick;
use super::close::{CloseCode, CloseReason};
use super::frame::Passed;
use super::relay::Direction;
use crate::registry::Group;

/// How many bytes of others' messages may wait for a client. An empty queue takes one message of
/// any size.
pub const MAILBOX_BYTES: usize = 256 * 1024;

/// The number of a connection within its proxy; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(u64);

impl Serial {
    const WORKER_SHIFT: u32 = 48;
    const SHARDS: u64 = 64;
    /// The largest count.
    pub const MAX_COUNT: u64 = (1 << Self::WORKER_SHIFT) - 1;

    /// The `count`-th connection of a worker.
    pub fn new(worker: u16, count: u64) -> Self {
        Self((u64::from(worker) << Self::WORKER_SHIFT) | count)
    }

    /// The first of a worker; `None` where there can't be so many.
    pub fn first_of(worker: usize) -> Option<Self> {
        u16::try_from(worker).ok().map(|worker| Self::new(worker, 0))
    }

    /// The worker that has it.
    pub fn worker(self) -> usize {
        usize::from((self.0 >> Self::WORKER_SHIFT) as u16)
    }

    /// Which of its worker's connections it is.
    pub fn count(self) -> u64 {
        self.0 & Self::MAX_COUNT
    }

    /// As a plain number, for a schedule or a cursor.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// From such a number.
    pub fn from_u64(number: u64) -> Self {
        Self(number)
    }
}

/// The part of a connection id behind its dot: two digits of the shard, then the serial.
impl fmt::Display for Serial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:02x}{:016x}", self.0 % Self::SHARDS, self.0)
    }
}

/// What is no part of a connection id behind its dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the number of a connection")]
pub struct NotASerial;

/// Reads what is displayed, and nothing else.
impl FromStr for Serial {
    type Err = NotASerial;

    fn from_str(text: &str) -> Result<Self, NotASerial> {
        let digits = text.get(2..).ok_or(NotASerial)?;
        let serial = Self(u64::from_str_radix(digits, 16).map_err(|_| NotASerial)?);
        if serial.to_string() == text { Ok(serial) } else { Err(NotASerial) }
    }
}

/// The names that all connections of a route share.
#[derive(Debug)]
pub struct Names {
    /// The route's.
    pub route: Arc<str>,
    /// Its pool's.
    pub pool: Arc<str>,
}

/// What does not change while a connection lives.
#[derive(Debug)]
pub struct Facts {
    /// Where it belongs.
    pub names: Arc<Names>,
    /// Its key; `None` where the request had none.
    pub key: Option<Arc<str>>,
    /// The address of its client.
    pub client: Client,
    /// When its handshake came.
    pub since: Since,
}

impl Facts {
    /// The connections of its key, if it has one.
    pub fn group(&self) -> Option<Group> {
        let key = Arc::clone(self.key.as_ref()?);
        Some(Group::Key { pool: Arc::clone(&self.names.pool), key })
    }
}

/// The address of a client in 16 bytes: an IPv4 address as one within IPv6, which no client has
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client(Ipv6Addr);

impl Client {
    /// The address.
    pub fn ip(self) -> IpAddr {
        IpAddr::V6(self.0).to_canonical()
    }
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self(address.to_ipv6_mapped()),
            IpAddr::V6(address) => Self(address),
        }
    }
}

/// A time of day to the millisecond, in 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Since(u64);

impl Since {
    /// As Unix milliseconds.
    pub fn millis(self) -> u64 {
        self.0
    }

    /// The time.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0)
    }
}

impl From<SystemTime> for Since {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undeliverable {
    /// The client reads too slowly: its queue is full, and the connection is being closed.
    QueueFull,
    /// The connection is closing.
    Closing,
    /// It would have joined more rooms than it can be in.
    TooManyRooms,
}

impl Undeliverable {
    /// As it stands in a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Closing => "closing",
            Self::TooManyRooms => "too_many_rooms",
        }
    }
}

/// Messages that wait for a place between two messages of the backend; once the connection is
/// asked to close, what its Close is to say behind them.
#[derive(Debug, Default)]
struct Mailbox {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// At most [`CLOSE_TEXT_BYTES`](super::close::CLOSE_TEXT_BYTES).
    close_text: Box<str>,
}

/// One client WebSocket.
///
/// Its cells are no `RefCell`s, of which each takes 8 bytes to know what is borrowed: nothing here is
/// held for longer than a look, and an idle connection is mostly this and its relay.
pub struct Connection {
    /// Its number.
    pub serial: Serial,
    /// What does not change.
    pub facts: Facts,
    /// The id of its backend; `None` until one has answered 101.
    backend: Cell<Option<Arc<str>>>,
    /// `None` where no message waits, as with most connections at most times.
    mailbox: Cell<Option<Box<Mailbox>>>,
    close: Cell<Option<CloseReason>>,
    cut: Cell<bool>,
    look_at_clock: Cell<bool>,
    waker: Cell<Option<Waker>>,
    /// Messages and payload bytes from the client, then from the backend.
    counts: Cell<[(u64, u64); 2]>,
    last_activity: Cell<Tick>,
}

impl Connection {
    /// A connection whose handshake has just come.
    pub fn new(serial: Serial, facts: Facts, now: Tick) -> Self {
        Self {
            serial,
            facts,
            backend: Cell::default(),
            mailbox: Cell::default(),
            close: Cell::new(None),
            cut: Cell::new(false),
            look_at_clock: Cell::new(false),
            waker: Cell::new(None),
            counts: Cell::default(),
            last_activity: Cell::new(now),
        }
    }

    /// Notes the backend that answered 101.
    pub fn set_backend(&self, id: Arc<str>) {
        self.backend.set(Some(id));
    }

    /// Whether its backend has this very id, not just the same.
    pub fn is_at(&self, id: &Arc<str>) -> bool {
        look(&self.backend, |own| own.as_ref().is_some_and(|own| Arc::ptr_eq(own, id)))
    }

    /// The id of its backend, once one has answered 101.
    pub fn backend(&self) -> Option<Arc<str>> {
        look(&self.backend, |own| own.clone())
    }

    /// Puts a message for the client into the queue: `frame` is one whole, unmasked data frame.
    /// It goes out between two messages of the backend, in the order of these calls.
    ///
    /// # Errors
    ///
    /// The connection is closing, or its queue is full: then it closes with 1013.
    pub fn deliver(&self, frame: Bytes) -> Result<(), Undeliverable> {
        if self.close.get().is_some() {
            return Err(Undeliverable::Closing);
        }
        let mut mailbox = self.mailbox.take().unwrap_or_default();
        if !mailbox.frames.is_empty() && mailbox.bytes + frame.len() > MAILBOX_BYTES {
            self.close(CloseReason::SlowClient);
            return Err(Undeliverable::QueueFull);
        }
        mailbox.bytes += frame.len();
        mailbox.frames.push_back(frame);
        self.mailbox.set(Some(mailbox));
        self.wake();
        Ok(())
    }

    /// Asks the relay to close; the first reason counts.
    pub fn close(&self, reason: CloseReason) {
        if self.close.get().is_none() {
            self.close.set(Some(reason));
        }
        self.wake();
    }

    /// Asks the relay to close as the operator wants it, with this code and a text of at most
    /// [`CLOSE_TEXT_BYTES`](super::close::CLOSE_TEXT_BYTES). What was delivered before goes out
    /// before it. Who is closing already keeps to its reason.
    pub fn close_by_api(&self, code: CloseCode, text: Box<str>) {
        if self.close.get().is_none() && !text.is_empty() {
            look(&self.mailbox, |mailbox| mailbox.get_or_insert_default().close_text = text);
        }
        self.close(CloseReason::ClosedByApi(code));
    }

    /// Asks the relay to end at once, whatever is unsaid: the time to close is over.
    pub fn cut(&self, reason: CloseReason) {
        self.cut.set(true);
        self.close(reason);
    }

    /// Asks the relay to look at the clock.
    pub fn look_at_clock(&self) {
        self.look_at_clock.set(true);
        self.wake();
    }

    fn wake(&self) {
        look(&self.waker, |waker| {
            if let Some(waker) = waker {
                waker.wake_by_ref();
            }
        });
    }

    /// For the relay: who is to be woken when something was asked of it.
    pub(super) fn set_waker(&self, waker: &Waker) {
        look(&self.waker, |known| match known {
            // Nothing to do where it is the same, as it nearly always is.
            Some(known) => known.clone_from(waker),
            None => *known = Some(waker.clone()),
        });
    }

    /// For the relay: moves the next messages that wait into `together`, in their order; as many as it
    /// has places, and not more than `limit` bytes unless the first alone is longer. Tells how many.
    pub(crate) fn next_messages(&self, together: &mut [Bytes], limit: usize) -> usize {
        look(&self.mailbox, |slot| {
            let Some(mailbox) = slot else { return 0 };
            let (mut taken, mut bytes) = (0, 0);
            for place in together {
                let fits = |frame: &mut Bytes| taken == 0 || bytes + frame.len() <= limit;
                let Some(frame) = mailbox.frames.pop_front_if(fits) else { break };
                (taken, bytes) = (taken + 1, bytes + frame.len());
                *place = frame;
            }
            mailbox.bytes -= bytes;
            if mailbox.frames.is_empty() && mailbox.close_text.is_empty() {
                *slot = None;
            }
            taken
        })
    }

    /// For the relay: whether a message waits.
    pub(crate) fn has_messages(&self) -> bool {
        look(&self.mailbox, |slot| slot.as_ref().is_some_and(|mailbox| !mailbox.frames.is_empty()))
    }

    /// For the relay: the reason to close, if it was asked to.
    pub(crate) fn asked_to_close(&self) -> Option<CloseReason> {
        self.close.get()
    }

    /// For the relay: lets `say` say what the operator's Close is to say; empty where there is none.
    pub(super) fn with_close_text<T>(&self, say: impl FnOnce(&str) -> T) -> T {
        look(&self.mailbox, |slot| say(slot.as_ref().map_or("", |mailbox| &mailbox.close_text)))
    }

    /// For the relay: whether it is to end at once.
    pub(super) fn asked_to_cut(&self) -> bool {
        self.cut.get()
    }

    /// For the relay: whether it is to look at the clock; once.
    pub(super) fn take_look_at_clock(&self) -> bool {
        self.look_at_clock.replace(false)
    }

    /// For the relay: what has passed in a direction since it last said so.
    pub(super) fn add_passed(&self, direction: Direction, passed: Passed, now: Tick) {
        let mut counts = self.counts.get();
        let (messages, bytes) = &mut counts[direction as usize];
        *messages += u64::from(passed.messages);
        *bytes += passed.bytes;
        self.counts.set(counts);
        self.last_activity.set(now);
    }

    /// Messages and payload bytes that a direction has carried.
    pub fn counts(&self, direction: Direction) -> (u64, u64) {
        self.counts.get()[direction as usize]
    }

    /// When a frame last went either way, by its worker's clock.
    pub fn last_activity(&self) -> Tick {
        self.last_activity.get()
    }
}

/// Looks at what is in a cell, which is empty meanwhile.
#[inline]
fn look<T, R>(cell: &Cell<Option<T>>, look: impl FnOnce(&mut Option<T>) -> R) -> R {
    let mut content = cell.take();
    let seen = look(&mut content);
    // The cell is empty, which the compiler can't see: to have it drop what was there would be 360
    // instructions of the 9,300 that a message and its echo take.
    std::mem::forget(cell.replace(content));
    seen
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Connection");
        shown.field("serial", &self.serial).field("facts", &self.facts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        let facts = Facts {
            names: Arc::new(Names { route: "r".into(), pool: "p".into() }),
            key: None,
            client: IpAddr::from([127, 0, 0, 1]).into(),
            since: SystemTime::now().into(),
        };
        Connection::new(Serial::new(0, 0), facts, Tick::default())
    }

    #[test]
    fn messages_are_taken_together_within_their_limits() {
        const LIMIT: usize = 100;
        let connection = connection();
        let lengths = [10, 90, 1, 150, 50, 20, 20, 20];
        for length in lengths {
            connection.deliver(vec![0; length].into()).unwrap();
        }
        let mut together = [const { Bytes::new() }; 3];
        let mut taken = Vec::new();
        while connection.has_messages() {
            let count = connection.next_messages(&mut together, LIMIT);
            taken.push(together[..count].iter().map(Bytes::len).collect::<Vec<_>>());
        }
        assert_eq!(taken, [vec![10, 90], vec![1], vec![150], vec![50, 20, 20], vec![20]]);
        assert_eq!(connection.next_messages(&mut together, LIMIT), 0);
        // None of their bytes counts any more.
        connection.deliver(vec![0; MAILBOX_BYTES].into()).unwrap();
        assert_eq!(connection.next_messages(&mut together, LIMIT), 1);
    }

    /// With the two counts of its `Rc`, which stand before it.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn it_fits_into_a_block_of_160_bytes() {
        let size = size_of::<Connection>() + 16;
        assert!(size <= 160, "{size} bytes");
    }
}
