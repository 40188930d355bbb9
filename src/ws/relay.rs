//! The relay's core: what becomes of the bytes of a WebSocket between its client and its backend.
//!
//! It is told what happened (bytes came, a stream ended, time passed, the proxy wants to close)
//! and answers what to do with it; a [driver](super::driver) does the reading and writing. It is
//! plain data: no socket, clock or callback, so that it can be driven by anything and every case
//! can be tested without a network.
//!
//! Each direction has a [`FrameTracker`] and passes bytes on untouched. What the core adds or
//! takes away are whole frames between two others: our Close, our ping and its pong, and the
//! messages that others send to the client ([`Relay::takes_message`]).
//!
//! How a connection ends (RFC 6455 sections 5.5.1 and 7.1):
//! - A peer's Close, end of stream or reset is passed on as it came.
//! - A backend that ends without a Close has vanished: its client gets a Close 1014 from us, or
//!   is cut if it was left in the middle of a frame.
//! - What the proxy decides is said to both sides with one code, each at its next frame boundary,
//!   and their answers are swallowed.
//! - Once a Close has passed either way, all must be over within [`CLOSE_TICKS`].
//!
//! The first cause counts: it becomes the connection's one [`CloseReason`].

use super::clock::{Tick, Ticks};
use super::close::{CloseReason, ControlBytes, code_of};
use super::frame::{
    CONTROL_PAYLOAD_BYTES, ControlFrame, ControlKind, FrameError, FrameTracker, Passed,
    ReservedBits, Scan, Sender, StopAt,
};

/// Who does not answer a Close within this time is cut: 5 s.
pub const CLOSE_TICKS: Ticks = Ticks::from_secs(5);

/// One of the two ways that bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the backend.
    FromClient,
    /// From the backend to the client.
    FromBackend,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::FromClient, Self::FromBackend];

    /// As it stands in a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::FromClient => "from_client",
            Self::FromBackend => "from_backend",
        }
    }
}

/// What to do with the bytes that were shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the first so many on.
    Pass(usize),
    /// Forget the first so many.
    Swallow(usize),
    /// Keep them all, and show them again in front of the next ones.
    Keep,
}

/// How a relay is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Drop both sockets.
    Drop,
    /// The client's connection was reset: reset the backend's too.
    Reset,
    /// Time is over, or a side was left within a frame: drop both sockets, whatever is unsaid.
    Cut,
}

/// The limits that a connection is relayed with.
#[derive(Clone, Copy, Debug)]
pub struct RelayLimits {
    /// No frame from either peer for so long: closed. Zero: never.
    pub idle: Ticks,
    /// A client silent for so long is pinged, for three times as long it is dead. Zero: never.
    pub ping: Ticks,
    /// A connection this old is closed. Zero: never.
    pub age: Ticks,
    /// The largest message, as on the wire.
    pub max_message_bytes: u64,
    /// The reserved bits that the negotiated extensions use.
    pub reserved: ReservedBits,
}

/// One direction.
#[derive(Debug)]
struct Flow {
    tracker: FrameTracker,
    /// Its source sent a Close. What follows is no part of the WebSocket.
    peer_closed: bool,
    /// Its source has ended.
    ended: bool,
    /// Its source broke the protocol: its frames can't be found any more.
    unsynced: bool,
    /// A Close, the peer's or ours, has gone to its sink: nothing may follow.
    said_close: bool,
    /// Its sink takes nothing any more.
    sink_broken: bool,
}

impl Flow {
    fn new(sender: Sender, limits: &RelayLimits) -> Self {
        Self {
            tracker: FrameTracker::new(sender, limits.reserved, limits.max_message_bytes),
            peer_closed: false,
            ended: false,
            unsynced: false,
            said_close: false,
            sink_broken: false,
        }
    }

    /// Nothing more will come that could be a part of the WebSocket.
    fn is_over(&self) -> bool {
        self.peer_closed || self.ended || self.unsynced
    }

    /// A frame may be put in front of what the source sends next. A violation is found at a
    /// header, so it leaves the sink at a boundary.
    fn takes_control(&self) -> bool {
        !self.said_close && !self.sink_broken && self.tracker.between_frames()
    }
}

/// Our own ping of a silent client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ping {
    /// None is needed.
    None,
    /// One goes at the next frame boundary.
    Due,
    /// One has gone; its pong is ours.
    Sent,
}

/// The core of one connection's relay.
#[derive(Debug)]
pub struct Relay {
    from_client: Flow,
    from_backend: Flow,
    /// [`RelayLimits::idle`].
    idle: Ticks,
    /// [`RelayLimits::ping`].
    ping_interval: Ticks,
    /// When it is too old; [`Tick::NEVER`], which is shorter than an option, where it never is.
    expires: Tick,
    /// The first cause of the end.
    reason: Option<CloseReason>,
    /// The proxy closes: it says so to both sides.
    closing: bool,
    /// The client was left within a frame that nobody will finish.
    cut: bool,
    reset: bool,
    /// When all must be over.
    deadline: Option<Tick>,
    last_frame: Tick,
    last_from_client: Tick,
    ping: Ping,
    /// The payload of our pings: only a pong that repeats it is ours.
    ping_payload: [u8; 8],
    /// RFC 6455 section 5.5.3 lets a client answer the latest ping alone: while the backend waits
    /// for its pong, ours would take it away.
    backend_waits_for_pong: bool,
}

impl Relay {
    /// A relay between two sides that have just said 101.
    ///
    /// `ping_payload` tells our pings from others': bytes that no client can guess.
    pub fn new(limits: RelayLimits, ping_payload: [u8; 8], now: Tick) -> Self {
        Self {
            from_client: Flow::new(Sender::Client, &limits),
            from_backend: Flow::new(Sender::Backend, &limits),
            idle: limits.idle,
            ping_interval: limits.ping,
            expires: if limits.age.is_zero() { Tick::NEVER } else { now + limits.age },
            reason: None,
            closing: false,
            cut: false,
            reset: false,
            deadline: None,
            last_frame: now,
            last_from_client: now,
            ping: Ping::None,
            ping_payload,
            backend_waits_for_pong: false,
        }
    }

    /// Says what to do with the bytes of a direction: with the first of them, then call again.
    /// Before each call the driver asks [`Relay::insert`] and [`Relay::takes_message`].
    ///
    /// `messages_wait` says whether somebody else's message waits for a place.
    pub fn step(
        &mut self,
        direction: Direction,
        bytes: &[u8],
        messages_wait: bool,
        now: Tick,
    ) -> Step {
        if direction == Direction::FromClient {
            self.last_from_client = now;
            if self.ping == Ping::Due {
                self.ping = Ping::None;
            }
        }
        let stop = self.stop(direction, messages_wait);
        let flow = self.flow(direction);
        if flow.unsynced || flow.peer_closed {
            return Step::Swallow(bytes.len());
        }
        let passes = !flow.said_close && !flow.sink_broken;
        match flow.tracker.scan(bytes, stop) {
            Ok(Scan::NeedMore) => Step::Keep,
            Ok(Scan::Data(length)) => {
                self.last_frame = now;
                if passes { Step::Pass(length) } else { Step::Swallow(length) }
            }
            Ok(Scan::Control(frame)) => self.control(direction, frame, bytes, passes, now),
            Err(error) => {
                self.violation(direction, error, now);
                Step::Swallow(bytes.len())
            }
        }
    }

    fn control(
        &mut self,
        direction: Direction,
        frame: ControlFrame,
        bytes: &[u8],
        passes: bool,
        now: Tick,
    ) -> Step {
        let length = frame.frame_bytes();
        let mut buffer = [0; CONTROL_PAYLOAD_BYTES];
        let payload = frame.payload(bytes, &mut buffer);
        match (frame.kind, direction) {
            (ControlKind::Pong, Direction::FromClient)
                if self.ping == Ping::Sent && payload == self.ping_payload =>
            {
                self.ping = Ping::None;
                return Step::Swallow(length);
            }
            (ControlKind::Pong, Direction::FromClient) => self.backend_waits_for_pong = false,
            (ControlKind::Ping, Direction::FromBackend) => self.backend_waits_for_pong = true,
            (ControlKind::Close, _) => self.peer_close(direction, code_of(payload), passes, now),
            (ControlKind::Ping | ControlKind::Pong, _) => {}
        }
        self.last_frame = now;
        if passes { Step::Pass(length) } else { Step::Swallow(length) }
    }

    fn peer_close(&mut self, direction: Direction, code: Option<u16>, passes: bool, now: Tick) {
        let flow = self.flow(direction);
        flow.peer_closed = true;
        flow.said_close |= passes;
        self.reason.get_or_insert(match direction {
            Direction::FromClient => CloseReason::ClientClosed(code),
            Direction::FromBackend => CloseReason::BackendClosed(code),
        });
        // The answer to a Close opens the last wait anew: for the ends of the streams.
        if !self.closing {
            self.deadline = Some(now + CLOSE_TICKS);
        }
    }

    fn violation(&mut self, direction: Direction, error: FrameError, now: Tick) {
        self.flow(direction).unsynced = true;
        self.close(
            match direction {
                Direction::FromClient => CloseReason::ClientViolation(error),
                Direction::FromBackend => CloseReason::BackendViolation(error),
            },
            now,
        );
    }

    /// The proxy closes the connection: both sides are told at their next frame boundary. Without
    /// effect where it is closing already.
    pub fn close(&mut self, reason: CloseReason, now: Tick) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.reason.get_or_insert(reason);
        self.deadline = Some(now + CLOSE_TICKS);
    }

    /// Whether a close that somebody asked for may wait for the messages that he sent before: for
    /// [`CLOSE_TICKS`], from when this is first asked.
    pub fn close_may_wait(&mut self, now: Tick) -> bool {
        !self.closing && now < *self.deadline.get_or_insert(now + CLOSE_TICKS)
    }

    /// The backend is known to be gone, whatever its socket says.
    pub fn backend_lost(&mut self, now: Tick) {
        if !self.from_backend.ended {
            self.ended(Direction::FromBackend, now);
        }
    }

    /// The source of a direction has ended its stream, or a backend has reset it.
    pub fn ended(&mut self, direction: Direction, now: Tick) {
        self.flow(direction).ended = true;
        match direction {
            Direction::FromClient => {
                self.reason.get_or_insert(CloseReason::ClientEnded);
            }
            Direction::FromBackend => self.backend_ended(now),
        }
    }

    fn backend_ended(&mut self, now: Tick) {
        let expected = self.closing || self.from_client.is_over() || self.from_backend.peer_closed;
        if !expected {
            self.from_client.sink_broken = true;
            self.close(CloseReason::BackendLost, now);
        }
        let within_frame = !self.from_backend.tracker.between_frames();
        self.cut |= within_frame && !self.from_backend.said_close;
        self.deadline.get_or_insert(now + CLOSE_TICKS);
    }

    /// The client's connection was reset, or takes nothing any more.
    pub fn client_reset(&mut self) {
        self.reason.get_or_insert(CloseReason::ClientReset);
        self.from_client.ended = true;
        self.reset = true;
    }

    /// The backend takes nothing any more; what it still says is to be read.
    pub fn backend_takes_nothing(&mut self) {
        self.from_client.sink_broken = true;
    }

    /// A frame of the proxy's own that is to be written in a direction now.
    ///
    /// `mask` is for a frame to the backend: any four bytes that a client can't guess.
    /// `close_text` is what a Close of the operator's says.
    pub fn insert(
        &mut self,
        direction: Direction,
        mask: [u8; 4],
        close_text: &str,
    ) -> Option<ControlBytes> {
        let closing = self.closing;
        let flow = self.flow(direction);
        if !flow.takes_control() {
            return None;
        }
        if closing {
            flow.said_close = true;
            let mask = (direction == Direction::FromClient).then_some(mask);
            return Some(self.reason.unwrap_or(CloseReason::Internal).frame(close_text, mask));
        }
        if direction == Direction::FromBackend && self.ping == Ping::Due {
            self.ping = Ping::Sent;
            return Some(ControlBytes::ping(self.ping_payload));
        }
        None
    }

    /// Whether somebody else's message may go to the client now.
    pub fn takes_message(&self) -> bool {
        self.from_backend.takes_control()
            && self.from_backend.tracker.between_messages()
            && !self.closing
            && !self.from_backend.ended
    }

    fn stop(&self, direction: Direction, messages_wait: bool) -> StopAt {
        let to_client = direction == Direction::FromBackend;
        if self.closing || (to_client && self.ping == Ping::Due) {
            StopAt::FrameBoundary
        } else if to_client && messages_wait {
            StopAt::MessageBoundary
        } else {
            StopAt::Nowhere
        }
    }

    /// Whether the sink of a direction is to get its end of stream, after all that was written.
    ///
    /// A client gets it as soon as both Closes are said. A backend is left to end first, as
    /// servers do (RFC 6455 section 7.1.1): whoever ends first keeps the port for a minute, and
    /// ours towards one backend are few.
    pub fn ends_sink(&self, direction: Direction) -> bool {
        match direction {
            // A reset goes on as a reset.
            _ if self.reset => false,
            Direction::FromClient => self.from_client.ended && !self.is_unsaid(&self.from_client),
            Direction::FromBackend => {
                let ended = self.from_backend.ended && !self.is_unsaid(&self.from_backend);
                ended || (self.from_backend.said_close && self.from_client.is_over())
            }
        }
    }

    /// Whether our Close is still to go out in a flow.
    fn is_unsaid(&self, flow: &Flow) -> bool {
        self.closing && flow.takes_control()
    }

    /// Whether bytes that were kept may still go on, though no more will come.
    pub fn passes_rest(&self, direction: Direction) -> bool {
        direction == Direction::FromClient
            && !self.closing
            && !self.from_client.said_close
            && !self.from_client.sink_broken
    }

    /// Whether there is anything to read in a direction.
    pub fn reads(&self, direction: Direction) -> bool {
        match direction {
            Direction::FromClient => !self.from_client.ended,
            Direction::FromBackend => !self.from_backend.ended,
        }
    }

    /// Looks at the clock: pings, time-outs.
    pub fn tick(&mut self, now: Tick) {
        if self.is_ending() {
            return;
        }
        if !self.idle.is_zero() && now - self.last_frame >= self.idle {
            return self.close(CloseReason::IdleTimeout, now);
        }
        if now >= self.expires {
            return self.close(CloseReason::MaxAge, now);
        }
        if self.ping_interval.is_zero() || self.from_client.ended {
            return;
        }
        let silence = now - self.last_from_client;
        if silence >= self.ping_interval.times(3) {
            self.close(CloseReason::PingTimeout, now);
        } else if silence >= self.ping_interval
            && self.ping == Ping::None
            && !self.backend_waits_for_pong
        {
            self.ping = Ping::Due;
        } else if silence < self.ping_interval && self.ping == Ping::Sent {
            // It lives. A pong that still comes is as good as none.
            self.ping = Ping::None;
        }
    }

    /// When [`Relay::tick`] has something to do at the earliest, if nothing else happens.
    pub fn next_tick(&self, now: Tick) -> Option<Tick> {
        if self.is_ending() {
            return self.deadline;
        }
        let idle = (!self.idle.is_zero()).then(|| self.last_frame + self.idle);
        let ping = (!self.ping_interval.is_zero() && !self.from_client.ended).then(|| {
            let ping = self.ping_interval;
            let silence = now - self.last_from_client;
            self.last_from_client + if silence < ping { ping } else { ping.times(3) }
        });
        let expires = (self.expires < Tick::NEVER).then_some(self.expires);
        [idle, ping, expires].into_iter().flatten().min()
    }

    fn is_ending(&self) -> bool {
        self.deadline.is_some()
    }

    /// How the relay is over, if it is. `all_written` says whether all that was passed on and
    /// inserted has been taken by the sockets, ends of stream included.
    pub fn ending(&self, all_written: bool, now: Tick) -> Option<Ending> {
        if self.reset {
            // Where the Closes had passed both ways, a reset is only a hasty end.
            let farewell = self.from_client.said_close && self.from_backend.said_close;
            return Some(if farewell { Ending::Drop } else { Ending::Reset });
        }
        let client_heard = self.from_client.peer_closed && self.from_backend.said_close;
        let backend_heard = self.from_backend.peer_closed && self.from_client.said_close;
        let client_over = self.from_client.ended || client_heard;
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let backend_over = self.from_backend.ended || backend_heard;
            return Some(if client_over && backend_over { Ending::Drop } else { Ending::Cut });
        }
        if self.cut && all_written {
            return Some(Ending::Cut);
        }
        (all_written && client_over && self.from_backend.ended).then_some(Ending::Drop)
    }

    /// The one reason of the end; for a relay that is over.
    pub fn reason(&self) -> CloseReason {
        self.reason.unwrap_or(CloseReason::Internal)
    }

    /// Whether the backend's side is over: nothing of it is left that a key could live on.
    pub fn backend_is_over(&self) -> bool {
        self.from_backend.ended
    }

    /// Whether it was told to close, or a peer began to.
    pub fn has_reason(&self) -> bool {
        self.reason.is_some()
    }

    /// Data messages that a direction's source has finished, and their payload bytes, since this
    /// was last asked.
    pub fn take_passed(&mut self, direction: Direction) -> Passed {
        self.flow(direction).tracker.take_passed()
    }

    fn flow(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::FromClient => &mut self.from_client,
            Direction::FromBackend => &mut self.from_backend,
        }
    }
}

#[cfg(test)]
mod tests;
