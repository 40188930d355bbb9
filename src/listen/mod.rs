//! Sockets on which clients connect.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use crate::tls::KeyPair;

mod accept;
pub mod certificates;
mod introduce;
mod limits;
pub mod proxy_protocol;
mod stream;
pub mod tls;

pub use accept::{ListenError, Listener, Load, Loads, canonical};
pub use introduce::{IntroductionError, introduced};
pub use limits::{Admission, Limits, OverLimit};
pub use stream::Stream;

/// What the config says of one listener.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerSettings {
    /// The name that routes ask for; unique where given.
    pub name: Option<String>,
    /// The address to listen on; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Whether peers say in front of everything else for whom they speak.
    pub proxy_protocol: ProxyProtocol,
    /// The certificates that TLS is spoken with, the default first; none: plain TCP.
    pub certificates: Vec<KeyPair>,
    /// Until a client has made its TLS handshake.
    pub tls_timeout: Duration,
    /// Peers whose PROXY header and `X-Forwarded-*` headers are believed.
    pub trusted: Vec<IpNet>,
    /// Time for the first head from accept or the TLS handshake, and for later ones from their
    /// first byte.
    pub header_timeout: Duration,
    /// From an answer to the first byte of the next head.
    pub idle_timeout: Duration,
    /// The longest request head, in bytes.
    pub head_bytes: usize,
    /// The most header lines in a head.
    pub headers: usize,
    /// The most open client connections; 0: no limit.
    pub connections: usize,
    /// The most open client connections of one address; 0: no limit.
    pub connections_per_ip: usize,
    /// TCP keep-alive, and how long sent bytes may stay unacknowledged (`TCP_USER_TIMEOUT`).
    pub keepalive: Duration,
}

impl ListenerSettings {
    /// The certificate that expires first, and in how many days; `None`: no TLS.
    pub fn first_to_expire(&self, now: SystemTime) -> Option<(&KeyPair, f64)> {
        let with_days = self.certificates.iter().map(|pair| (pair, pair.days_left(now)));
        with_days.min_by(|one, other| one.1.total_cmp(&other.1))
    }
}

/// Whether connections begin with a PROXY protocol header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// None does.
    Off,
    /// Those of trusted peers must, others must not.
    Accept,
}
