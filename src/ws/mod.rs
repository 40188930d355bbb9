//! WebSocket: handshake, frames, relay.

use std::time::Duration;

pub mod clock;
pub mod close;
pub mod connection;
pub mod driver;
pub mod first_message;
pub mod frame;
pub mod handshake;
mod keys;
pub mod mass_close;
pub mod message;
pub mod pace;
pub mod relay;
pub mod rooms;
pub mod table;

/// How the connections of a route are relayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayPolicy {
    /// Without a frame from either peer for so long, the connection is closed; zero: never.
    pub idle_timeout: Duration,
    /// A client silent for so long is pinged, silent for two more it is dead; zero: never.
    pub ping_interval: Duration,
    /// A connection this old, up to a tenth more or less, is closed; zero: never.
    pub max_age: Duration,
    /// The largest message, in payload bytes on the wire.
    pub max_message: u64,
}
