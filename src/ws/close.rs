//! Why a connection ended, and the Close frame that says so (RFC 6455 sections 5.5.1 and 7.4).
//!
//! Each connection ends with exactly one [`CloseReason`]. The log field, the metric labels and
//! the close code that a peer sees are all read from it, so that they can't differ. A Close of a
//! peer goes on as it came; the codes here are those that the proxy itself says.

use std::fmt;

use super::frame::FrameError;

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndedBy {
    /// The client.
    Client,
    /// The backend.
    Backend,
    /// The proxy.
    Proxy,
}

impl EndedBy {
    /// As it stands in a metric label and a log field.
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
            Self::Proxy => "proxy",
        }
    }
}

/// The longest text in a Close frame: its payload has at most 125 bytes, two of them the code.
pub const CLOSE_TEXT_BYTES: usize = 123;

/// Which codes a [`CloseCode`] may be, for a person.
pub const CLOSE_CODES: &str = "the code must be from 1000 to 1003, 1007 to 1014 or 3000 to 4999";

/// A code that somebody who is not a peer may have said in a Close: one that the protocol lets an
/// endpoint send (RFC 6455 section 7.4 and the IANA registry), save 1004 to 1006 and 1015, which
/// are never sent, and those that nobody has given a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(u16);

impl CloseCode {
    /// The end of what the connection was for.
    pub const NORMAL: Self = Self(1000);

    /// `None` where no endpoint may send this code.
    pub fn new(code: u16) -> Option<Self> {
        matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999).then_some(Self(code))
    }

    /// The code as it stands in a Close.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The client sent the first Close; its code, if it had one.
    ClientClosed(Option<u16>),
    /// The client ended its stream without a Close.
    ClientEnded,
    /// The client's connection was reset, or broke.
    ClientReset,
    /// The backend sent the first Close; its code, if it had one.
    BackendClosed(Option<u16>),
    /// The backend went without a Close, or was found lost.
    BackendLost,
    /// The client broke the protocol.
    ClientViolation(FrameError),
    /// The backend broke the protocol.
    BackendViolation(FrameError),
    /// No frame from either peer for the route's `idle_timeout`.
    IdleTimeout,
    /// The client was silent for three times the route's `ping_interval`.
    PingTimeout,
    /// It is as old as its route's `max_age` lets it become.
    MaxAge,
    /// The proxy shuts down.
    Shutdown,
    /// Its backend is drained.
    Drained,
    /// Another proxy has its key at a backend that comes first.
    PlacedElsewhere,
    /// Its route left the config.
    RouteRemoved,
    /// The operator closed it by the admin API, with this code; its text is the connection's.
    ClosedByApi(CloseCode),
    /// The client reads too slowly for what is sent to it.
    SlowClient,
    /// A fault of the proxy.
    Internal,
}

impl CloseReason {
    /// As it stands in a metric label and a log field.
    pub fn label(self) -> &'static str {
        match self {
            Self::ClientClosed(_) => "client_closed",
            Self::ClientEnded => "client_ended",
            Self::ClientReset => "client_reset",
            Self::BackendClosed(_) => "backend_closed",
            Self::BackendLost => "backend_lost",
            Self::ClientViolation(FrameError::MessageTooBig)
            | Self::BackendViolation(FrameError::MessageTooBig) => "message_too_big",
            Self::ClientViolation(_) => "client_violation",
            Self::BackendViolation(_) => "backend_violation",
            Self::IdleTimeout => "idle_timeout",
            Self::PingTimeout => "ping_timeout",
            Self::MaxAge => "max_age",
            Self::Shutdown => "shutdown",
            Self::Drained => "drained",
            Self::PlacedElsewhere => "placed_elsewhere",
            Self::RouteRemoved => "route_removed",
            Self::ClosedByApi(_) => "closed_by_api",
            Self::SlowClient => "slow_client",
            Self::Internal => "internal",
        }
    }

    /// Who ended it.
    pub fn by(self) -> EndedBy {
        match self {
            Self::ClientClosed(_) | Self::ClientEnded | Self::ClientReset => EndedBy::Client,
            Self::BackendClosed(_) | Self::BackendLost => EndedBy::Backend,
            _ => EndedBy::Proxy,
        }
    }

    /// The code that the proxy says in its Close, or that the peer who ended it had said.
    /// `None` where nobody said one.
    pub fn code(self) -> Option<u16> {
        match self {
            Self::ClientClosed(code) | Self::BackendClosed(code) => code,
            Self::ClientEnded | Self::ClientReset => None,
            Self::BackendLost => Some(1014),
            Self::ClientViolation(FrameError::MessageTooBig)
            | Self::BackendViolation(FrameError::MessageTooBig) => Some(1009),
            Self::ClientViolation(_) | Self::BackendViolation(_) => Some(1002),
            Self::IdleTimeout | Self::PingTimeout | Self::Shutdown => Some(1001),
            Self::Drained | Self::PlacedElsewhere | Self::RouteRemoved | Self::MaxAge => Some(1012),
            Self::ClosedByApi(code) => Some(code.get()),
            Self::SlowClient => Some(1013),
            Self::Internal => Some(1011),
        }
    }

    /// The reason text of the proxy's own Close, for a person who debugs a client.
    fn text(self) -> &'static str {
        match self {
            Self::ClientClosed(_)
            | Self::ClientEnded
            | Self::ClientReset
            | Self::BackendClosed(_)
            | Self::ClosedByApi(_) => "",
            Self::BackendLost => "backend lost",
            Self::ClientViolation(FrameError::MessageTooBig)
            | Self::BackendViolation(FrameError::MessageTooBig) => "message too big",
            Self::ClientViolation(_) => "protocol violation by the client",
            Self::BackendViolation(_) => "protocol violation by the backend",
            Self::IdleTimeout => "idle",
            Self::PingTimeout => "no answer to ping",
            Self::MaxAge => "connection is too old",
            Self::Shutdown => "proxy shuts down",
            Self::Drained => "backend drained",
            Self::PlacedElsewhere => "key lives elsewhere",
            Self::RouteRemoved => "route removed",
            Self::SlowClient => "client reads too slowly",
            Self::Internal => "internal error",
        }
    }

    /// The proxy's own Close frame for this reason: unmasked to the client, masked with `mask`
    /// to the backend. `asked` is what the operator wants said, where the reason is the operator's.
    pub fn frame(self, asked: &str, mask: Option<[u8; 4]>) -> ControlBytes {
        let mut payload = [0; 125];
        let Some(code) = self.code() else { return ControlBytes::new(CLOSE, &[], mask) };
        let text = if let Self::ClosedByApi(_) = self { asked } else { self.text() };
        let text = text.as_bytes();
        debug_assert!(text.len() <= CLOSE_TEXT_BYTES);
        let text = &text[..text.len().min(CLOSE_TEXT_BYTES)];
        payload[..2].copy_from_slice(&code.to_be_bytes());
        payload[2..2 + text.len()].copy_from_slice(text);
        ControlBytes::new(CLOSE, &payload[..2 + text.len()], mask)
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientViolation(error) | Self::BackendViolation(error) => {
                write!(formatter, "{}: {error}", self.label())
            }
            _ => formatter.write_str(self.label()),
        }
    }
}

/// The code in the payload of a Close frame; `None` if it has none (RFC 6455 section 5.5.1).
pub fn code_of(payload: &[u8]) -> Option<u16> {
    payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code))
}

const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;

/// A control frame of the proxy's own, ready for the wire.
#[derive(Clone, Copy, Debug)]
pub struct ControlBytes {
    bytes: [u8; 131],
    length: u8,
}

impl ControlBytes {
    /// A ping with a payload of 8 bytes, to a client.
    pub fn ping(payload: [u8; 8]) -> Self {
        Self::new(PING, &payload, None)
    }

    /// `payload` has at most 125 bytes.
    fn new(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Self {
        let mut frame = Self { bytes: [0; 131], length: 0 };
        // At most 125, by the type of every caller's payload.
        let payload_bytes = u8::try_from(payload.len()).unwrap_or(125);
        frame.push(&[first, payload_bytes | if mask.is_some() { 0x80 } else { 0 }]);
        if let Some(mask) = mask {
            frame.push(&mask);
        }
        let from = usize::from(frame.length);
        frame.push(payload);
        let mask = mask.unwrap_or_default();
        for (byte, mask) in frame.bytes[from..].iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        frame
    }

    fn push(&mut self, bytes: &[u8]) {
        let from = usize::from(self.length);
        self.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        // 131 at most.
        self.length += u8::try_from(bytes.len()).unwrap_or(0);
    }
}

impl AsRef<[u8]> for ControlBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_that_an_endpoint_may_send_are_taken() {
        for code in [1000, 1003, 1007, 1014, 3000, 4999] {
            assert_eq!(CloseCode::new(code).map(CloseCode::get), Some(code));
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert_eq!(CloseCode::new(code), None, "{code}");
        }
    }

    #[test]
    fn the_operators_text_stands_in_the_operators_close_alone() {
        let asked = "é".repeat(61) + "!";
        let code = CloseCode::new(4321).unwrap();
        let frame = CloseReason::ClosedByApi(code).frame(&asked, None);
        let wanted = [&[0x88, 125, 0x10, 0xe1], asked.as_bytes()].concat();
        assert_eq!(frame.as_ref(), wanted);
        let frame = CloseReason::Shutdown.frame(&asked, None);
        assert_eq!(frame.as_ref()[4..], *b"proxy shuts down");
    }
}
