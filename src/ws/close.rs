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
    /// The proxy shuts down.
    Shutdown,
    /// Its backend is drained.
    Drained,
    /// Its route left the config.
    RouteRemoved,
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
            Self::Shutdown => "shutdown",
            Self::Drained => "drained",
            Self::RouteRemoved => "route_removed",
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
            Self::Drained | Self::RouteRemoved => Some(1012),
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
            | Self::BackendClosed(_) => "",
            Self::BackendLost => "backend lost",
            Self::ClientViolation(FrameError::MessageTooBig)
            | Self::BackendViolation(FrameError::MessageTooBig) => "message too big",
            Self::ClientViolation(_) => "protocol violation by the client",
            Self::BackendViolation(_) => "protocol violation by the backend",
            Self::IdleTimeout => "idle",
            Self::PingTimeout => "no answer to ping",
            Self::Shutdown => "proxy shuts down",
            Self::Drained => "backend drained",
            Self::RouteRemoved => "route removed",
            Self::SlowClient => "client reads too slowly",
            Self::Internal => "internal error",
        }
    }

    /// The proxy's own Close frame for this reason: unmasked to the client, masked with `mask`
    /// to the backend.
    pub fn frame(self, mask: Option<[u8; 4]>) -> ControlBytes {
        let mut payload = [0; 125];
        let Some(code) = self.code() else { return ControlBytes::new(CLOSE, &[], mask) };
        let text = self.text().as_bytes();
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
