//! HTTP: one client connection, from its first head to its last answer.
//!
//! A connection comes from a listener, goes through the [`gate`] and is served by hyper. Each
//! request is matched to its [`Route`] and key (`request.rs`); then it is either forwarded
//! (`forward.rs`) or, if it asks for a WebSocket, opened as a tunnel (`tunnel.rs`), with which HTTP is
//! over for this connection (`connection.rs`).
//!
//! All of that happens on one worker's thread, in one task per connection, over what the worker
//! has for all of them: its [`Context`]. What workers share is in [`Shared`]; the routes and pools
//! that a request sees are one [`Snapshot`], looked up once per request, so that nobody sees new
//! routes with an old ring.

pub mod body;
mod connection;
pub mod engine_io;
mod forward;
pub mod framing;
pub mod gate;
mod head;
pub mod headers;
pub mod opened;
mod relayed;
mod request;
mod respond;
mod session;
pub mod signalr;
mod snapshot;
mod trace;
mod tunnel;
mod upstream;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::warn;

pub use self::connection::awaits_proxy_header;
pub(crate) use self::session::Known as KnownSession;
pub use self::snapshot::{Route, Snapshot};
use self::upstream::Upstreams;
use crate::listen::tls::Handshakes;
use crate::listen::{Admission, Listener, Load};
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::{Held, Metrics};
use crate::observe::rate::{Allowed, allowed};
use crate::registry::Registry;
use crate::shutdown::Tasks;
use crate::ws::connection::Serial;
use crate::ws::table::Table;

/// What all workers of one proxy share.
#[derive(Debug)]
pub struct Shared {
    /// Names the proxy in the fleet; new at each start, has no dot.
    pub proxy_id: Arc<str>,
    /// The routes and pools in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// All counters.
    pub metrics: Arc<Metrics>,
    /// Where requests and connections are written down.
    pub access_log: AccessLog,
    /// Where its connections are made known.
    pub registry: Arc<dyn Registry>,
}

impl Shared {
    /// Puts together what workers share.
    pub fn new(
        proxy_id: Arc<str>,
        snapshot: Snapshot,
        metrics: Arc<Metrics>,
        access_log: AccessLog,
        registry: Arc<dyn Registry>,
    ) -> Self {
        let snapshot = ArcSwap::from_pointee(snapshot);
        Self { proxy_id, snapshot, metrics, access_log, registry }
    }

    /// The fleet-wide id of a connection of this proxy.
    pub fn connection_id(&self, serial: Serial) -> String {
        format!("{}.{serial}", self.proxy_id)
    }
}

/// A client connection that was accepted; counts as long as this lives.
#[derive(Debug)]
pub struct Accepted {
    /// The other end, or whom its PROXY header names; an IPv4 address within IPv6 is IPv4 here.
    pub peer: SocketAddr,
    /// Where it came in.
    pub listener: Arc<Listener>,
    /// Its worker has it.
    pub load: Load,
    /// The listener has admitted it.
    pub admission: Admission,
    /// It is shown as open.
    pub gauge: Held,
}

/// What one worker has for all its connections.
pub struct Context {
    /// What it shares with the other workers.
    pub shared: Arc<Shared>,
    /// Its WebSocket connections.
    pub table: Rc<Table>,
    /// Its tasks.
    pub tasks: Tasks,
    /// Its idle connections to backends.
    pub upstreams: Rc<Upstreams>,
    /// Its TLS handshakes with clients.
    pub handshakes: Rc<Handshakes>,
}

impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Context").field("tasks", &self.tasks).finish_non_exhaustive()
    }
}

impl Context {
    /// The context of a worker that has no connection yet.
    pub fn new(shared: Arc<Shared>, table: Rc<Table>, tasks: Tasks) -> Self {
        let handshakes = Rc::new(Handshakes::new(tasks.clone()));
        Self { shared, table, tasks, upstreams: Rc::default(), handshakes }
    }
}

/// Says that a listener can't accept, at most once a second.
pub fn complain_of_accept(listener: &str, error: &io::Error) {
    if let Some(Allowed { suppressed }) = allowed!(1) {
        warn!(
            listener,
            %error,
            suppressed,
            "can't accept connections; is the limit of open files too low?"
        );
    }
}
