//! What the config says of a pool, its backends and their health checks.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use super::tls;

/// What the config says of one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSettings {
    /// Its name, the NAME of `[pool.NAME]`.
    pub name: String,
    /// How a backend is chosen.
    pub balance: Balance,
    /// How far over its share of the connections a backend may go and still get new keys, as a
    /// factor above 1; 0: as far as they come. Only with [`Balance::ConsistentHash`].
    pub bounded_load: f64,
    /// How long a backend takes from coming into service to its whole weight; zero: no time.
    pub slow_start: Duration,
    /// The most handshakes a second that one backend is sent; 0: no limit.
    pub handshake_rate: u32,
    /// The most connections of one backend; 0: no limit.
    pub max_connections: usize,
    /// Until a connection to a backend stands, the TLS handshake included.
    pub connect_timeout: Duration,
    /// Until a backend has answered a WebSocket handshake.
    pub handshake_timeout: Duration,
    /// Over how long the drain of a backend spreads its closes; zero: all at once.
    pub drain_timeout: Duration,
    /// TCP keep-alive to backends, and `TCP_USER_TIMEOUT`.
    pub keepalive: Duration,
    /// How TLS is made with them; `None`: plain TCP.
    pub tls: Option<tls::BackendTls>,
    /// Its backends; ids are unique, there is at least one.
    pub backends: Vec<BackendSettings>,
    /// How they are watched.
    pub health: HealthSettings,
}

/// How a pool finds the backend for what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// By the key, on the ring; keys have places.
    ConsistentHash,
    /// The one that has the least for its weight.
    LeastConnections,
    /// In turn, by weight.
    RoundRobin,
    /// The better of two, by chance and weight.
    RandomTwo,
}

impl Balance {
    /// Its word in the config and in the HTTP API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConsistentHash => "consistent_hash",
            Self::LeastConnections => "least_connections",
            Self::RoundRobin => "round_robin",
            Self::RandomTwo => "random_two",
        }
    }
}

/// What the config says of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    /// Its id, which stays when its address changes; 1 to 64 of `[A-Za-z0-9_.:-]`.
    pub id: String,
    /// Where it is: an IP address or a host name, with a port.
    pub address: BackendAddress,
    /// Its share of what comes.
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

impl fmt::Display for BackendAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(formatter),
            Self::Name(name, port) => write!(formatter, "{name}:{port}"),
        }
    }
}

/// What the config says of a pool's health checks.
#[derive(Clone, Debug, PartialEq)]
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
    /// With less than this share of its backends in service, a pool goes by whether they are lost
    /// alone; 0: never.
    pub panic_threshold: f64,
}

/// What a health check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// GET this path; 2xx is healthy.
    Http {
        /// The path, with its query.
        path: String,
    },
    /// Open a WebSocket at this path, ping it and close it.
    WebSocket {
        /// The path, with its query.
        path: String,
    },
    /// Connect.
    Tcp,
    /// Nothing: traffic alone decides.
    Off,
}

impl CheckKind {
    /// Whether a backend answers in words, which may say that it goes.
    pub(super) fn has_answers(&self) -> bool {
        matches!(self, Self::Http { .. } | Self::WebSocket { .. })
    }
}
