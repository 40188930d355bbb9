//! From a request to its route and key.

use std::time::Duration;

use crate::ws::RelayPolicy;

pub mod key;

pub use key::KeySource;

/// Which hosts a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// Every host, also none.
    Any,
    /// This host name, in lower case, without a port.
    Exact(String),
    /// Every host that ends in this suffix; it begins with a dot: `*.example.com` is `.example.com`.
    Suffix(String),
}

/// Which paths a route is for. Paths are compared as sent, undecoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// This path only.
    Exact(String),
    /// Every path that begins with this: `/ws/*` is `/ws/`.
    Prefix(String),
}

/// What the config says of one route.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteSettings {
    /// Its name; a route without one goes by its path.
    pub name: String,
    /// The one listener that it is for, by name; `None`: all.
    pub listener: Option<String>,
    /// The hosts that it is for.
    pub host: HostPattern,
    /// The paths that it is for.
    pub path: PathPattern,
    /// The name of its pool.
    pub pool: String,
    /// Where the key is looked for, in this order; empty: connections have no key.
    pub key: Vec<KeySource>,
    /// Origins that may open a WebSocket; empty: any. Compared without regard to case.
    pub allowed_origins: Vec<String>,
    /// The most live WebSocket connections; 0: no limit.
    pub max_connections: usize,
    /// Between two reads of a request body.
    pub body_timeout: Duration,
    /// From the end of the request until the response head.
    pub response_timeout: Duration,
    /// How its WebSocket connections are relayed.
    pub relay: RelayPolicy,
}
