//! The admin API: what an operator, a balancer in front and Prometheus ask of a proxy.
//!
//! It runs on the control runtime and reads what workers have only by asking them, so that a slow
//! reader of it never holds up a relay. Whoever can reach the address may ask: away from loopback
//! the config demands a token. A page in somebody's browser can reach a loopback address too, so
//! requests that come from a page, or by a name that could have been pointed here, are refused.

mod api;
mod connections;
mod guard;
mod messages;
mod path;
mod problem;
mod route;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::fleet::Fleet;

/// Connections that are served at a time; more wait to be accepted.
const CONNECTIONS: usize = 64;
/// How long a request head may take.
const HEAD: Duration = Duration::from_secs(10);
/// How long nothing is accepted when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    /// Binds the admin address. Where the proxy has a token, all but `/healthz` and `/readyz` ask for
    /// it.
    ///
    /// # Errors
    ///
    /// The address is taken, or not this machine's.
    pub(crate) async fn bind(address: SocketAddr, fleet: Arc<Fleet>) -> Result<Self, AdminError> {
        let bound = TcpListener::bind(address).await;
        let bound = bound.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (bound, listener) = bound.map_err(|source| AdminError { address, source })?;
        let guard = guard::Guard::new(Arc::clone(&fleet.admin_token), fleet.name.clone(), bound);
        let router = api::router(fleet, Arc::new(guard));
        Ok(Self { listener, address: bound, router })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves; answers under way are finished.
    pub(crate) async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) {
        let stopping = watch::Sender::new(false);
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = async {
                // Never closed.
                let place = Arc::clone(&places).acquire_owned().await;
                (place, self.listener.accept().await)
            };
            tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next() => {}
                (place, accepted) = accepted => match accepted {
                    Ok((stream, _)) => {
                        let served = serve(stream, self.router.clone(), stopping.subscribe());
                        connections.spawn(async move {
                            let _place = place;
                            served.await;
                        });
                    }
                    Err(error) => {
                        warn!(%error, "the admin API can't accept connections");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // Who connects now is refused, and does not wait for those who are served.
        drop(self.listener);
        stopping.send_replace(true);
        while connections.join_next().await.is_some() {}
    }
}

/// Serves one connection; when told to stop, an answer under way is finished.
async fn serve(stream: TcpStream, router: axum::Router, mut stopping: watch::Receiver<bool>) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let told = async {
        // A sender that is gone means the same.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = told => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "a connection to the admin API ended early");
    }
}
