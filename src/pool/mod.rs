//! Pools of backends.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// What the config says of one pool (`consistent_hash` is the only way to balance).
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSettings {
    /// Its name, the NAME of `[pool.NAME]`.
    pub name: String,
    /// Until a TCP connection to a backend stands.
    pub connect_timeout: Duration,
    /// Until a backend has answered a WebSocket handshake.
    pub handshake_timeout: Duration,
    /// TCP keep-alive to backends, and `TCP_USER_TIMEOUT`.
    pub keepalive: Duration,
    /// Its backends; ids are unique, there is at least one.
    pub backends: Vec<BackendSettings>,
    /// How they are watched.
    pub health: HealthSettings,
}

/// What the config says of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    /// Its id, which stays when its address changes; 1 to 64 of `[A-Za-z0-9_.:-]`.
    pub id: String,
    /// Where it is: an IP address or a host name, with a port.
    pub address: BackendAddress,
    /// Its share of the ring.
    pub weight: NonZeroU32,
}

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendAddress {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A host name, looked up at each connect, and a port.
    Name(String, u16),
}

/// What the config says of a pool's health checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    /// What a check does.
    pub kind: CheckKind,
    /// From the beginning of one check to that of the next.
    pub interval: Duration,
    /// Until a check has failed.
    pub timeout: Duration,
    /// Successes in a row that bring a backend into service.
    pub rise: u32,
    /// Failures in a row that take it out.
    pub fall: u32,
    /// Connect or handshake failures in a row, seen by traffic, that take it out; 0: off.
    pub passive_fall: u32,
    /// Out of service for so long while another is in service: lost; zero: never.
    pub lost_after: Duration,
}

/// What a health check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// GET this path; 2xx is healthy.
    Http {
        /// The path, with its query.
        path: String,
    },
    /// Connect.
    Tcp,
    /// Nothing: traffic alone decides.
    Off,
}
