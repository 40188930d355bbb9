//! The relay over two real streams: reads, asks the [core](super::relay), writes.
//!
//! A hand-written future rather than an async block: its size is what an idle connection costs,
//! and it owns no timer, channel or buffer of its own. Bytes are read into the worker's scratch
//! buffer and written on at once; only what the other side does not take yet is kept, and then
//! that direction is not read until it is written. So a slow peer costs at most one read, and the
//! back-pressure reaches whoever sends.
//!
//! What is asked of a connection from elsewhere (a message, a Close, a look at the clock) waits in
//! its [`Connection`](super::connection::Connection), which wakes this future.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::clock::{Tick, Ticks};
use super::close::CloseReason;
use super::first_message::FirstMessage;
use super::frame::Passed;
use super::relay::{Direction, Ending, Relay, RelayLimits, Step};
use super::table::{Entry, READ_BYTES};
use crate::listen::Stream;

/// How often a backend is looked at that is not being read: every second.
const LOOK_TICKS: Ticks = Ticks::from_secs(1);
/// So many reads of one direction, then others get their turn.
const READS_PER_TURN: usize = 8;
/// So many waiting messages of others go to a client in one system call, or [`READ_BYTES`] of them.
const TOGETHER: usize = 16;

/// What relays count, shared by those of one route on all workers.
#[derive(Debug, Default)]
pub struct RelayCounts {
    /// Data messages, by [`Direction`].
    pub messages: [prometheus_client::metrics::counter::Counter; 2],
    /// Payload bytes of data messages, by [`Direction`].
    pub bytes: [prometheus_client::metrics::counter::Counter; 2],
    /// Writes that a peer did not take at once, by [`Direction`].
    pub stalls: [prometheus_client::metrics::counter::Counter; 2],
    /// Messages of others that were written to clients.
    pub injected: prometheus_client::metrics::counter::Counter,
}

/// Random bytes for one connection, fresh from the operating system.
#[derive(Clone, Copy, Debug)]
pub struct Nonce {
    /// The payload of our pings, which tells their pongs from others.
    pub ping: [u8; 8],
    /// The mask of our frames to the backend (RFC 6455 section 10.3).
    pub mask: [u8; 4],
}

/// How a relay ended.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub reason: CloseReason,
    /// Whether something was left unsaid.
    pub cut: bool,
    /// The connection's place in the table, still held.
    pub entry: Entry,
}

/// A stream, and what is kept for it.
#[derive(Debug)]
struct End {
    stream: Stream,
    /// `None` on an idle connection.
    kept: Option<Box<Kept>>,
    /// The stream holds bytes of its own that its socket did not take yet: TLS, at most
    /// [`BUFFER_BYTES`](crate::tls::BUFFER_BYTES).
    unflushed: bool,
    shut_down: bool,
    broken: bool,
}

/// What waits to be written to a stream, and what was read from it and waits for more. Never both
/// empty.
#[derive(Debug, Default)]
struct Kept {
    /// Bytes that the stream did not take yet, from `written` on. Empty, or at most one read and
    /// the frames that were put in between.
    unwritten: Vec<u8>,
    written: usize,
    /// Bytes read that can't be judged yet: at most [`CARRY_BYTES`](super::frame::CARRY_BYTES),
    /// and before the first turn what HTTP had read ahead.
    carry: Vec<u8>,
}

impl End {
    fn new(stream: Stream, read_ahead: Vec<u8>) -> Self {
        let mut end = Self {
            stream,
            kept: None,
            unflushed: true, // the 101 may still be there
            shut_down: false,
            broken: false,
        };
        end.keep_carry(read_ahead);
        end
    }

    /// Bytes read that wait for more.
    fn carry(&self) -> &[u8] {
        self.kept.as_ref().map_or(&[], |kept| &kept.carry)
    }

    fn keep_carry(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.kept.get_or_insert_default().carry = bytes;
        }
    }

    fn take_carry(&mut self) -> Vec<u8> {
        let Some(kept) = &mut self.kept else { return Vec::new() };
        let carry = std::mem::take(&mut kept.carry);
        self.kept.take_if(|kept| kept.unwritten.is_empty());
        carry
    }

    fn has_unwritten(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| !kept.unwritten.is_empty())
    }

    fn keep_unwritten(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.kept.get_or_insert_default().unwritten.extend_from_slice(bytes);
        }
    }

    fn forget_unwritten(&mut self) {
        if let Some(kept) = &mut self.kept {
            (kept.unwritten, kept.written) = (Vec::new(), 0);
            self.kept.take_if(|kept| kept.carry.is_empty());
        }
    }

    /// Writes what waits. `Pending`: some of it still does, and the task is woken for the rest.
    fn poll_unwritten(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(kept) = &mut self.kept
            && !kept.unwritten.is_empty()
        {
            while kept.written < kept.unwritten.len() {
                let rest = &kept.unwritten[kept.written..];
                kept.written += ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            }
            self.forget_unwritten();
            self.unflushed = true;
        }
        self.poll_flush(context)
    }

    /// Has the stream pass on what it holds. `Pending`: as with what waits.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Also when nothing was written: TLS has answers of its own, as to a change of keys.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.unflushed = flushed.is_pending();
        flushed
    }

    /// Writes `pieces` one behind the other, or keeps what the stream does not take. Tells whether it
    /// took all.
    fn write(
        &mut self,
        context: &mut Context<'_>,
        mut pieces: &mut [IoSlice<'_>],
    ) -> io::Result<bool> {
        let mut wrote = false;
        while self.is_settled() && !pieces.is_empty() {
            let stream = Pin::new(&mut self.stream);
            let polled = match pieces {
                [piece] => stream.poll_write(context, piece),
                _ => stream.poll_write_vectored(context, pieces),
            };
            match polled {
                Poll::Ready(Ok(count)) => IoSlice::advance_slices(&mut pieces, count),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
            wrote = true;
        }
        pieces.iter().for_each(|piece| self.keep_unwritten(piece));
        if wrote && let Poll::Ready(Err(error)) = self.poll_flush(context) {
            return Err(error);
        }
        Ok(self.is_settled())
    }

    fn is_settled(&self) -> bool {
        self.broken || !(self.unflushed || self.has_unwritten())
    }
}

/// The relay of one connection; resolves when it is over.
///
/// It holds a `P` for as long as there is a backend's side, whatever that is worth to others: given
/// up before the client hears that its backend is gone, so that who comes back at once finds it free.
#[derive(Debug)]
pub struct Driver<P> {
    core: Relay,
    client: End,
    backend: End,
    entry: Option<Entry>,
    place: Option<P>,
    counts: Arc<RelayCounts>,
    /// Wants to know how the backend begins; `None` for most, and soon for all.
    first_message: Option<Box<FirstMessage>>,
    /// When this connection stands in the schedule.
    scheduled: Option<Tick>,
    /// For frames to the backend, of which there is one in a connection's life.
    mask: [u8; 4],
    started: bool,
    /// The backend has ended, while its client's slowness kept us from reading that.
    backend_hung_up: bool,
}

impl<P> Driver<P> {
    /// A relay between two streams on which both sides have said 101.
    ///
    /// What was already read from either, oldest first, is relayed first. `nonce` is what
    /// no client can guess.
    pub fn new(
        entry: Entry,
        limits: RelayLimits,
        client: (Stream, Vec<u8>),
        backend: (Stream, Vec<u8>),
        counts: Arc<RelayCounts>,
        nonce: Nonce,
    ) -> Self {
        let core = Relay::new(limits, nonce.ping, entry.table().now());
        Self {
            core,
            client: End::new(client.0, client.1),
            backend: End::new(backend.0, backend.1),
            entry: Some(entry),
            place: None,
            counts,
            first_message: None,
            scheduled: None,
            mask: nonce.mask,
            started: false,
            backend_hung_up: false,
        }
    }

    /// Has the backend's first message read as it passes.
    #[must_use]
    pub fn telling(mut self, first: Option<FirstMessage>) -> Self {
        self.first_message = first.map(Box::new);
        self
    }

    /// Holds `place` until the backend's side is over.
    #[must_use]
    pub fn holding(mut self, place: Option<P>) -> Self {
        self.place = place;
        self
    }

    fn tell_first_message(&mut self, bytes: &[u8]) {
        if let Some(first) = &mut self.first_message
            && !first.feed(bytes)
        {
            self.first_message = None;
        }
    }

    fn turn(&mut self, context: &mut Context<'_>, entry: &Entry) -> Option<Ending> {
        let now = entry.table().now();
        self.listen_to_others(entry, now);
        if !std::mem::replace(&mut self.started, true) {
            for direction in Direction::ALL {
                self.flush(direction, context);
            }
            self.relay_read_ahead(context, entry, now);
        }
        for direction in Direction::ALL {
            self.relay(direction, context, entry, now);
        }
        // What was sent before a close goes before it.
        self.deliver_messages(context, entry);
        self.listen_to_close(entry, now);
        if self.backend_is_over() {
            // However long the client takes to hear all that the backend has said.
            self.place = None;
        }
        // One direction may have brought the other something to say.
        for direction in Direction::ALL {
            self.speak(direction, context, entry);
            self.end_sink(direction, context);
        }
        self.count(entry, now);
        let cut = entry.connection().asked_to_cut().then_some(Ending::Cut);
        let ending = cut.or_else(|| self.core.ending(self.all_written(), now));
        if ending.is_none() {
            self.schedule(entry, now);
        }
        ending
    }

    fn listen_to_others(&mut self, entry: &Entry, now: Tick) {
        let connection = entry.connection();
        self.listen_to_close(entry, now);
        if connection.take_look_at_clock() {
            self.scheduled = None;
            self.core.tick(now);
            self.backend_hung_up |= self.is_stalled() && self.backend.stream.peer_has_ended();
        }
    }

    fn listen_to_close(&mut self, entry: &Entry, now: Tick) {
        let connection = entry.connection();
        match connection.asked_to_close() {
            Some(CloseReason::BackendLost) => self.core.backend_lost(now),
            Some(CloseReason::ClosedByApi(_))
                if connection.has_messages() && self.core.close_may_wait(now) => {}
            Some(reason) => self.core.close(reason, now),
            None => {}
        }
    }

    /// The client takes nothing for now, so the backend is not read. What its TLS holds counts.
    fn is_stalled(&self) -> bool {
        !self.client.is_settled()
    }

    /// Whether the backend's side of this connection is over.
    fn backend_is_over(&self) -> bool {
        self.backend_hung_up || self.core.backend_is_over()
    }

    /// The first frame often comes in the packet of the 101: what HTTP read ahead goes first.
    fn relay_read_ahead(&mut self, context: &mut Context<'_>, entry: &Entry, now: Tick) {
        for direction in Direction::ALL {
            let ahead = self.source(direction).take_carry();
            self.forward(direction, context, &ahead, entry, now);
        }
    }

    /// Moves bytes in one direction until its source has no more or its sink takes no more.
    fn relay(&mut self, direction: Direction, context: &mut Context<'_>, entry: &Entry, now: Tick) {
        let scratch = &mut **entry.table().scratch().borrow_mut();
        for _ in 0..READS_PER_TURN {
            if !self.flush(direction, context) || !self.core.reads(direction) {
                return;
            }
            let source = self.source(direction);
            let kept = source.carry().len();
            scratch[..kept].copy_from_slice(source.carry());
            let mut buffer = ReadBuf::new(&mut scratch[kept..kept + READ_BYTES]);
            match Pin::new(&mut source.stream).poll_read(context, &mut buffer) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let length = kept + buffer.filled().len();
                    source.take_carry();
                    self.forward(direction, context, &scratch[..length], entry, now);
                }
                Poll::Ready(Ok(())) => return self.source_ended(direction, context, now),
                Poll::Ready(Err(_)) if direction == Direction::FromClient => {
                    return self.core.client_reset();
                }
                Poll::Ready(Err(_)) => return self.source_ended(direction, context, now),
            }
        }
        context.waker().wake_by_ref();
    }

    fn source_ended(&mut self, direction: Direction, context: &mut Context<'_>, now: Tick) {
        let rest = self.source(direction).take_carry();
        if self.core.passes_rest(direction) && !rest.is_empty() {
            self.write(direction, context, &rest);
        }
        self.core.ended(direction, now);
    }

    /// Takes bytes of a direction apart as the core says.
    fn forward(
        &mut self,
        direction: Direction,
        context: &mut Context<'_>,
        mut bytes: &[u8],
        entry: &Entry,
        now: Tick,
    ) {
        while !bytes.is_empty() {
            self.speak(direction, context, entry);
            let messages_wait = entry.connection().has_messages();
            match self.core.step(direction, bytes, messages_wait, now) {
                Step::Pass(length) => {
                    if direction == Direction::FromBackend {
                        self.tell_first_message(&bytes[..length]);
                    }
                    self.write(direction, context, &bytes[..length]);
                    bytes = &bytes[length..];
                }
                Step::Swallow(length) => bytes = &bytes[length..],
                Step::Keep => {
                    self.source(direction).keep_carry(bytes.to_vec());
                    return;
                }
            }
        }
    }

    /// Writes what the proxy has to say in a direction, if this is a place for it.
    fn speak(&mut self, direction: Direction, context: &mut Context<'_>, entry: &Entry) {
        loop {
            let say = |text: &str| self.core.insert(direction, self.mask, text);
            let own = entry.connection().with_close_text(say);
            let Some(frame) = own else { break };
            self.write(direction, context, frame.as_ref());
        }
        if direction == Direction::FromBackend {
            self.deliver_messages(context, entry);
        }
    }

    /// Writes waiting messages of others, as many as the client takes at once. Those that have come
    /// together go together: most of what a short message costs is the system call that sends it.
    fn deliver_messages(&mut self, context: &mut Context<'_>, entry: &Entry) {
        while self.client.is_settled()
            && self.core.takes_message()
            && entry.connection().has_messages()
        {
            let mut frames = [const { Bytes::new() }; TOGETHER];
            let count = entry.connection().next_messages(&mut frames, READ_BYTES);
            let mut pieces = frames.each_ref().map(|frame| IoSlice::new(frame));
            self.write_all(Direction::FromBackend, context, &mut pieces[..count]);
            self.counts.injected.inc_by(count as u64);
        }
    }

    fn write(&mut self, direction: Direction, context: &mut Context<'_>, bytes: &[u8]) {
        self.write_all(direction, context, &mut [IoSlice::new(bytes)]);
    }

    fn write_all(
        &mut self,
        direction: Direction,
        context: &mut Context<'_>,
        pieces: &mut [IoSlice<'_>],
    ) {
        let sink = self.sink(direction);
        if sink.broken {
            return;
        }
        match sink.write(context, pieces) {
            Ok(true) => {}
            Ok(false) => {
                self.counts.stalls[direction as usize].inc();
            }
            Err(_) => self.sink_broke(direction),
        }
    }

    /// Whether nothing waits for the sink of a direction any more.
    fn flush(&mut self, direction: Direction, context: &mut Context<'_>) -> bool {
        match self.sink(direction).poll_unwritten(context) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => {
                self.sink_broke(direction);
                true
            }
        }
    }

    fn sink_broke(&mut self, direction: Direction) {
        let sink = self.sink(direction);
        sink.broken = true;
        sink.forget_unwritten();
        match direction {
            Direction::FromClient => self.core.backend_takes_nothing(),
            Direction::FromBackend => self.core.client_reset(),
        }
    }

    fn end_sink(&mut self, direction: Direction, context: &mut Context<'_>) {
        if !self.flush(direction, context) || !self.core.ends_sink(direction) {
            return;
        }
        let sink = self.sink(direction);
        if !sink.shut_down && !sink.broken {
            // On a plain socket this never waits; TLS has something to write. An error means that
            // the peer is gone already.
            sink.shut_down = Pin::new(&mut sink.stream).poll_shutdown(context).is_ready();
            sink.unflushed = !sink.shut_down;
        }
    }

    fn all_written(&self) -> bool {
        self.client.is_settled() && self.backend.is_settled()
    }

    /// Adds what went by since the last turn: a few atomic additions per turn, none per message.
    fn count(&mut self, entry: &Entry, now: Tick) {
        for direction in Direction::ALL {
            let passed = self.core.take_passed(direction);
            if passed != Passed::default() {
                let index = direction as usize;
                self.counts.messages[index].inc_by(passed.messages.into());
                self.counts.bytes[index].inc_by(passed.bytes);
                entry.connection().add_passed(direction, passed, now);
            }
        }
    }

    fn schedule(&mut self, entry: &Entry, now: Tick) {
        // Whoever is not read may end without our noticing.
        let look = (self.is_stalled() && !self.backend_hung_up).then(|| now + LOOK_TICKS);
        let tick = self.core.next_tick(now);
        let Some(next) = look.into_iter().chain(tick).min() else { return };
        if self.scheduled.is_none_or(|scheduled| next < scheduled) {
            entry.table().look_at(next, entry.connection().serial);
            self.scheduled = Some(next);
        }
    }

    fn source(&mut self, direction: Direction) -> &mut End {
        match direction {
            Direction::FromClient => &mut self.client,
            Direction::FromBackend => &mut self.backend,
        }
    }

    fn sink(&mut self, direction: Direction) -> &mut End {
        match direction {
            Direction::FromClient => &mut self.backend,
            Direction::FromBackend => &mut self.client,
        }
    }
}

impl<P: Unpin> Future for Driver<P> {
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended> {
        let driver = self.get_mut();
        let entry = driver.entry.take().expect("polled after its end");
        entry.connection().set_waker(context.waker());
        let Some(ending) = driver.turn(context, &entry) else {
            driver.entry = Some(entry);
            return Poll::Pending;
        };
        if ending == Ending::Reset {
            driver.backend.stream.reset_on_drop();
        }
        let reason = driver.core.reason();
        Poll::Ready(Ended { reason, cut: ending == Ending::Cut, entry })
    }
}
