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
mod tests {
    use std::time::Duration;

    use super::Direction::{FromBackend, FromClient};
    use super::*;

    const TEXT_OF_CLIENT: &[u8] = &[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];
    const TEXT_OF_BACKEND: &[u8] = &[0x81, 2, b'h', b'o'];
    const CLOSE_OF_CLIENT: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 3, 232];
    const CLOSE_OF_BACKEND: &[u8] = &[0x88, 2, 3, 233];
    const NOTHING: &[u8] = &[];
    const PING_PAYLOAD: [u8; 8] = *b"steadily";

    fn seconds(seconds: u64) -> Tick {
        Tick::at(Duration::from_secs(seconds))
    }

    fn relay() -> Relay {
        relay_with(0, 0)
    }

    fn relay_with(idle: u32, ping: u32) -> Relay {
        let limits = RelayLimits {
            idle: Ticks::from_secs(idle),
            ping: Ticks::from_secs(ping),
            age: Ticks::default(),
            max_message_bytes: 1000,
            reserved: ReservedBits::None,
        };
        Relay::new(limits, PING_PAYLOAD, seconds(0))
    }

    #[test]
    fn who_is_too_old_is_told_as_1012() {
        let limits = RelayLimits {
            idle: Ticks::from_secs(90),
            ping: Ticks::default(),
            age: Ticks::from_secs(100),
            max_message_bytes: 1000,
            reserved: ReservedBits::None,
        };
        let mut relay = Relay::new(limits, PING_PAYLOAD, seconds(0));
        assert_eq!(relay.next_tick(seconds(0)), Some(seconds(90)));
        carry(&mut relay, FromClient, TEXT_OF_CLIENT, seconds(80));
        assert_eq!(relay.next_tick(seconds(80)), Some(seconds(100)));
        relay.tick(seconds(99));
        assert!(!relay.has_reason());
        relay.tick(seconds(100));
        assert_eq!(relay.reason(), CloseReason::MaxAge);
        assert_eq!(code(&said(&mut relay, FromBackend)), 1012);
    }

    /// Shows bytes to the core as a driver does, and returns what its sink gets.
    fn carry(relay: &mut Relay, direction: Direction, mut bytes: &[u8], now: Tick) -> Vec<u8> {
        let mut written = said(relay, direction);
        while !bytes.is_empty() {
            match relay.step(direction, bytes, false, now) {
                Step::Pass(length) => {
                    written.extend(&bytes[..length]);
                    bytes = &bytes[length..];
                }
                Step::Swallow(length) => bytes = &bytes[length..],
                Step::Keep => break,
            }
            written.extend(said(relay, direction));
        }
        written
    }

    fn said(relay: &mut Relay, direction: Direction) -> Vec<u8> {
        relay.insert(direction, [0; 4], "").map_or_else(Vec::new, |frame| frame.as_ref().to_vec())
    }

    /// The code in a Close frame of ours.
    fn code(frame: &[u8]) -> u16 {
        assert_eq!(frame[0], 0x88, "a Close: {frame:02x?}");
        let payload = if frame[1] & 0x80 == 0 { 2 } else { 6 };
        u16::from_be_bytes([frame[payload], frame[payload + 1]])
    }

    #[test]
    fn bytes_pass_untouched_and_are_counted() {
        let mut relay = relay();
        assert_eq!(carry(&mut relay, FromClient, TEXT_OF_CLIENT, seconds(0)), TEXT_OF_CLIENT);
        assert_eq!(carry(&mut relay, FromBackend, TEXT_OF_BACKEND, seconds(0)), TEXT_OF_BACKEND);
        for direction in Direction::ALL {
            assert_eq!(relay.take_passed(direction), Passed { messages: 1, bytes: 2 });
            assert_eq!(relay.take_passed(direction), Passed::default(), "told once");
        }
    }

    #[test]
    fn a_close_passes_each_way_and_the_streams_end() {
        let mut relay = relay();
        assert_eq!(carry(&mut relay, FromClient, CLOSE_OF_CLIENT, seconds(0)), CLOSE_OF_CLIENT);
        assert_eq!(carry(&mut relay, FromBackend, CLOSE_OF_BACKEND, seconds(1)), CLOSE_OF_BACKEND);
        assert!(relay.ends_sink(FromBackend), "the client has heard all");
        assert!(!relay.ends_sink(FromClient), "the backend ends first");
        assert_eq!(relay.ending(true, seconds(1)), None);
        relay.ended(FromBackend, seconds(1));
        assert_eq!(relay.ending(false, seconds(1)), None);
        assert_eq!(relay.ending(true, seconds(1)), Some(Ending::Drop));
        assert_eq!(relay.reason(), CloseReason::ClientClosed(Some(1000)));
    }

    #[test]
    fn nothing_follows_a_close() {
        let mut relay = relay();
        let bytes = [CLOSE_OF_BACKEND, TEXT_OF_BACKEND].concat();
        assert_eq!(carry(&mut relay, FromBackend, &bytes, seconds(0)), CLOSE_OF_BACKEND);
        relay.close(CloseReason::Shutdown, seconds(0));
        assert_eq!(said(&mut relay, FromBackend), NOTHING);
        assert_eq!(code(&said(&mut relay, FromClient)), 1001);
        assert_eq!(
            relay.reason(),
            CloseReason::BackendClosed(Some(1001)),
            "the first cause counts"
        );
    }

    #[test]
    fn an_unanswered_close_is_cut_after_five_seconds() {
        let mut relay = relay();
        carry(&mut relay, FromClient, CLOSE_OF_CLIENT, seconds(10));
        assert_eq!(relay.ending(true, seconds(14)), None);
        assert_eq!(relay.next_tick(seconds(10)), Some(seconds(15)));
        assert_eq!(relay.ending(true, seconds(15)), Some(Ending::Cut));
    }

    #[test]
    fn our_close_waits_for_the_end_of_the_frame_on_each_side() {
        let mut relay = relay();
        let (begin, end) = TEXT_OF_CLIENT.split_at(7);
        carry(&mut relay, FromClient, begin, seconds(0));
        relay.close(CloseReason::Shutdown, seconds(0));
        assert_eq!(code(&said(&mut relay, FromBackend)), 1001);
        assert_eq!(said(&mut relay, FromClient), NOTHING, "not inside a frame");
        let written = carry(&mut relay, FromClient, &[end, TEXT_OF_CLIENT].concat(), seconds(0));
        assert_eq!(written[..1], *end);
        assert_eq!(code(&written[1..]), 1001);
    }

    #[test]
    fn answers_to_our_close_are_swallowed_and_end_the_streams() {
        let mut relay = relay();
        relay.close(CloseReason::Shutdown, seconds(0));
        said(&mut relay, FromClient);
        said(&mut relay, FromBackend);
        assert!(!relay.ends_sink(FromBackend));
        assert_eq!(carry(&mut relay, FromClient, CLOSE_OF_CLIENT, seconds(0)), NOTHING);
        assert!(relay.ends_sink(FromBackend), "the client has answered: its stream may end");
        assert!(!relay.ends_sink(FromClient));
        assert_eq!(carry(&mut relay, FromBackend, CLOSE_OF_BACKEND, seconds(0)), NOTHING);
        assert_eq!(relay.ending(true, seconds(0)), None, "the backend ends first");
        assert_eq!(relay.ending(true, seconds(5)), Some(Ending::Drop), "all was said");
        assert_eq!(relay.reason(), CloseReason::Shutdown);
    }

    #[test]
    fn a_backend_that_vanishes_between_frames_is_told_as_1014() {
        let mut relay = relay();
        carry(&mut relay, FromBackend, TEXT_OF_BACKEND, seconds(0));
        relay.ended(FromBackend, seconds(0));
        assert!(!relay.ends_sink(FromBackend), "the Close goes first");
        assert_eq!(code(&said(&mut relay, FromBackend)), 1014);
        assert_eq!(said(&mut relay, FromClient), NOTHING, "there is nobody");
        assert_eq!(carry(&mut relay, FromClient, CLOSE_OF_CLIENT, seconds(0)), NOTHING);
        assert!(relay.ends_sink(FromBackend));
        assert_eq!(relay.ending(true, seconds(0)), Some(Ending::Drop));
        assert_eq!(relay.reason(), CloseReason::BackendLost);
    }

    #[test]
    fn a_backend_that_vanishes_within_a_frame_cuts_its_client() {
        let mut relay = relay();
        carry(&mut relay, FromBackend, &TEXT_OF_BACKEND[..3], seconds(0));
        relay.ended(FromBackend, seconds(0));
        assert_eq!(said(&mut relay, FromBackend), NOTHING, "no Close inside a frame");
        assert_eq!(relay.ending(false, seconds(0)), None, "what it said is delivered");
        assert_eq!(relay.ending(true, seconds(0)), Some(Ending::Cut));
        assert_eq!(relay.reason(), CloseReason::BackendLost);
    }

    #[test]
    fn a_backend_that_ends_after_its_client_is_not_lost() {
        let mut relay = relay();
        relay.ended(FromClient, seconds(0));
        assert!(relay.ends_sink(FromClient), "passed on at once");
        assert_eq!(relay.next_tick(seconds(0)), None, "the backend may go on speaking");
        assert_eq!(carry(&mut relay, FromBackend, TEXT_OF_BACKEND, seconds(99)), TEXT_OF_BACKEND);
        relay.ended(FromBackend, seconds(99));
        assert_eq!(said(&mut relay, FromBackend), NOTHING);
        assert!(relay.ends_sink(FromBackend));
        assert_eq!(relay.ending(true, seconds(99)), Some(Ending::Drop));
        assert_eq!(relay.reason(), CloseReason::ClientEnded);
    }

    #[test]
    fn a_violation_is_told_to_both_sides_and_goes_no_further() {
        let mut relay = relay();
        let bytes = [TEXT_OF_CLIENT, &[0x83, 0x80, 0, 0, 0, 0], TEXT_OF_CLIENT].concat();
        let written = carry(&mut relay, FromClient, &bytes, seconds(0));
        assert_eq!(written[..TEXT_OF_CLIENT.len()], *TEXT_OF_CLIENT);
        assert_eq!(code(&written[TEXT_OF_CLIENT.len()..]), 1002);
        assert_eq!(code(&said(&mut relay, FromBackend)), 1002);
        assert!(relay.ends_sink(FromBackend), "its answer could not be found");
        assert_eq!(relay.reason().label(), "client_violation");
    }

    #[test]
    fn a_message_over_the_limit_is_told_as_1009() {
        let mut relay = relay();
        assert_eq!(code(&carry(&mut relay, FromBackend, &[0x82, 126, 4, 0], seconds(0))), 1009);
        assert_eq!(code(&said(&mut relay, FromClient)), 1009);
        assert_eq!(relay.reason().label(), "message_too_big");
    }

    #[test]
    fn a_reset_of_the_client_resets_the_backend_unless_all_was_said() {
        let mut first = relay();
        first.client_reset();
        assert!(!first.ends_sink(FromClient), "no end of stream before the reset");
        assert_eq!(first.ending(false, seconds(0)), Some(Ending::Reset));
        let mut second = relay();
        carry(&mut second, FromClient, CLOSE_OF_CLIENT, seconds(0));
        carry(&mut second, FromBackend, CLOSE_OF_BACKEND, seconds(0));
        second.client_reset();
        assert_eq!(second.ending(false, seconds(0)), Some(Ending::Drop));
    }

    #[test]
    fn a_silent_client_is_pinged_and_its_pong_swallowed() {
        let mut relay = relay_with(0, 10);
        assert_eq!(relay.next_tick(seconds(0)), Some(seconds(10)));
        relay.tick(seconds(10));
        let ping = said(&mut relay, FromBackend);
        assert_eq!(ping, [&[0x89, 8], &PING_PAYLOAD[..]].concat());
        assert_eq!(relay.next_tick(seconds(10)), Some(seconds(30)));
        let pong = [&[0x8a, 0x88, 0, 0, 0, 0], &PING_PAYLOAD[..]].concat();
        assert_eq!(carry(&mut relay, FromClient, &pong, seconds(11)), NOTHING);
        let other = [&[0x8a, 0x88, 0, 0, 0, 0], &b"likewise"[..]].concat();
        assert_eq!(carry(&mut relay, FromClient, &other, seconds(11)), other);
        relay.tick(seconds(30));
        assert!(!relay.has_reason(), "it lives");
    }

    #[test]
    fn a_client_silent_for_three_intervals_is_dead() {
        let mut relay = relay_with(0, 10);
        relay.tick(seconds(10));
        said(&mut relay, FromBackend);
        relay.tick(seconds(29));
        assert!(!relay.has_reason());
        relay.tick(seconds(30));
        assert_eq!(relay.reason(), CloseReason::PingTimeout);
        assert_eq!(code(&said(&mut relay, FromBackend)), 1001);
    }

    #[test]
    fn no_ping_of_ours_while_the_backend_waits_for_a_pong() {
        let mut relay = relay_with(0, 10);
        carry(&mut relay, FromBackend, &[0x89, 0], seconds(0));
        relay.tick(seconds(10));
        assert_eq!(said(&mut relay, FromBackend), NOTHING);
        let pong = [0x8a, 0x80, 0, 0, 0, 0];
        assert_eq!(carry(&mut relay, FromClient, &pong, seconds(12)), pong);
        relay.tick(seconds(22));
        assert_ne!(said(&mut relay, FromBackend), NOTHING);
    }

    #[test]
    fn a_ping_waits_for_the_end_of_the_frame() {
        let mut relay = relay_with(0, 10);
        carry(&mut relay, FromBackend, &TEXT_OF_BACKEND[..3], seconds(0));
        relay.tick(seconds(10));
        assert_eq!(said(&mut relay, FromBackend), NOTHING);
        let bytes = [&TEXT_OF_BACKEND[3..], TEXT_OF_BACKEND].concat();
        let written = carry(&mut relay, FromBackend, &bytes, seconds(10));
        assert_eq!(written[..3], [TEXT_OF_BACKEND[3], 0x89, 8], "between the two frames");
    }

    #[test]
    fn idle_counts_frames_of_both_but_no_pong_to_our_ping() {
        let mut relay = relay_with(15, 10);
        relay.tick(seconds(10));
        said(&mut relay, FromBackend);
        let pong = [&[0x8a, 0x88, 0, 0, 0, 0], &PING_PAYLOAD[..]].concat();
        carry(&mut relay, FromClient, &pong, seconds(11));
        relay.tick(seconds(14));
        assert!(!relay.has_reason());
        relay.tick(seconds(15));
        assert_eq!(relay.reason(), CloseReason::IdleTimeout);
    }

    #[test]
    fn messages_of_others_go_between_messages_only() {
        let mut relay = relay();
        assert!(relay.takes_message());
        let fragment = [0x01, 1, b'a'];
        carry(&mut relay, FromBackend, &fragment, seconds(0));
        assert!(!relay.takes_message(), "inside a fragmented message");
        let rest = [0x80, 1, b'b', 0x81, 1, b'c'];
        assert_eq!(relay.step(FromBackend, &rest, true, seconds(0)), Step::Pass(3));
        assert!(relay.takes_message());
        relay.close(CloseReason::Shutdown, seconds(0));
        assert!(!relay.takes_message());
    }
}
