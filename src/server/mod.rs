//! Builds a proxy out of its config, owns every part of it, and stops it in order.
//!
//! The one place that knows all modules. A [`Server`] is one proxy: listeners that are bound,
//! workers that serve them, watchers of its backends, an admin API. Nothing of it is a process
//! global, so that several can run in one process. It is built on a runtime of its owner's, the
//! control runtime, on which everything runs that must not wait for a worker.
//!
//! It begins in `start.rs`, is given another config in `reload.rs` and ends in `stop.rs`. One thread and
//! what lives on it is `worker.rs`; who is told of what happens to pools, `observer.rs`; what the metrics
//! page reads of all that, `owners.rs`.

mod busy;
mod drain;
mod expiry;
mod inbox;
mod observer;
mod owners;
pub mod plan;
mod registry;
pub mod reload;
mod start;
mod stop;
mod worker;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::drain::{Closing, Conductor};
use self::registry::Link;
pub use self::start::StartError;
use self::worker::WorkerHandle;
use crate::config::Config;
use crate::fleet::{Fleet, Order};
use crate::listen::Listener;
use crate::pool::{self, Pool};
use crate::publish::Audience;

pub use crate::fleet::{DeliverError, PublishError};

/// One running proxy.
pub struct Server {
    /// The config in force.
    config: Config,
    fleet: Arc<Fleet>,
    /// Where the admin API is, and what stops it.
    admin: Option<(SocketAddr, watch::Sender<bool>)>,
    workers: Vec<WorkerHandle>,
    /// What runs on the control runtime.
    watchers: JoinSet<()>,
    /// The pools whose backends are watched, and what stops that.
    watched: Vec<(Arc<Pool>, watch::Sender<bool>)>,
    /// What stops the rest of the watchers.
    watching_itself: watch::Sender<bool>,
    /// Told of every change of a backend.
    observer: pool::Observer,
    conductor: Arc<Conductor>,
    /// The closes of the connections of routes that left the config, by the route's name.
    routes_gone: HashMap<Arc<str>, Closing>,
    /// Keeps it in the registry that it shares with others.
    registry: Option<Link>,
    /// Listeners that left the config or have others in their place, by the name of `diff`; as
    /// long as something, such as a connection, is of them.
    listeners_gone: Vec<(String, Weak<Listener>)>,
}

impl Server {
    /// Has a log file opened anew under its name: log rotation has renamed it.
    pub fn reopen_logs(&self) {
        self.fleet.shared.access_log.reopen();
    }

    /// Has others' orders carried out by who gets them from the other end.
    pub(crate) fn obey(&self, operator: mpsc::Sender<Order>) {
        self.fleet.obey(operator);
    }

    /// What those see of it who are not on its workers' threads.
    pub(crate) fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// The config in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where clients connect, in the order of the config, with the ports that were taken.
    pub fn listeners(&self) -> Vec<SocketAddr> {
        self.fleet.listeners.load().iter().map(|listener| listener.address).collect()
    }

    /// Where the admin API is, if there is one.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(address, _)| *address)
    }

    /// The pools in force.
    pub fn pools(&self) -> Vec<Arc<Pool>> {
        self.fleet.shared.snapshot.load().pools().to_vec()
    }

    /// Names the proxy in the fleet.
    pub fn proxy_id(&self) -> &str {
        &self.fleet.shared.proxy_id
    }

    /// Sends a message to one client of this proxy: `frame` is one whole, unmasked data frame. It
    /// goes out between two messages of the backend.
    ///
    /// # Errors
    ///
    /// See [`DeliverError`].
    pub async fn deliver(&self, connection_id: &str, frame: Bytes) -> Result<(), DeliverError> {
        self.fleet.deliver(connection_id, frame).await
    }

    /// Publishes a message as others write it: see [`envelope`](crate::publish::envelope). Without an
    /// audience it is for the one connection that it names itself. Tells whether anybody is there.
    ///
    /// # Errors
    ///
    /// See [`PublishError`].
    pub async fn publish(
        &self,
        audience: Option<Audience>,
        message: &[u8],
    ) -> Result<bool, PublishError> {
        self.fleet.publish_message(audience, message).await
    }
}

/// Resolves when told so. A sender that is gone tells the same.
async fn told(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "proxy {}", self.proxy_id())
    }
}
