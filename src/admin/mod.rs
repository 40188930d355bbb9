//! The admin API: what an operator, a balancer in front and Prometheus ask of a proxy.
//!
//! It runs on the control runtime and reads what workers have only by asking them, so that a slow
//! reader of it never holds up a relay. Whoever can reach the address may ask: away from loopback
//! the config demands a token. A page in somebody's browser can reach a loopback address too, so
//! requests that come from a page, or by a name that could have been pointed here, are refused.

mod api;
mod guard;
mod problem;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tracing::error;

use crate::config::Secret;
use crate::fleet::Fleet;

/// The admin address can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on the admin address {address}")]
pub struct AdminError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// The admin API of a proxy, bound and not yet served.
#[derive(Debug)]
pub(crate) struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    router: axum::Router,
}

impl Admin {
    /// Binds the admin address. With a token, all but `/healthz` and `/readyz` ask for it.
    ///
    /// # Errors
    ///
    /// The address is taken, or not this machine's.
    pub(crate) async fn bind(
        address: SocketAddr,
        token: Option<Secret>,
        fleet: Arc<Fleet>,
    ) -> Result<Self, AdminError> {
        let bound = TcpListener::bind(address).await;
        let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (bound, listener) = bound.map_err(|source| AdminError { address, source })?;
        let guard = guard::Guard::new(token, fleet.name.clone(), bound);
        let router = api::router(fleet, Arc::new(guard));
        Ok(Self { listener, address: bound, router })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves; answers under way are finished.
    pub(crate) async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) {
        let served = axum::serve(self.listener, self.router).with_graceful_shutdown(stop).await;
        if let Err(error) = served {
            error!(%error, "the admin API has ended");
        }
    }
}
