//! A small backend to try a proxy with: an echo server, a room server and a chat page.
//!
//! A request goes through `paths` to one of them: `echo` answers what one client says,
//! `rooms` passes it to everybody in a room. `page` is what a browser shows of it. Each
//! WebSocket is one task, and `socket` is what those tasks share: how to read, how to end.
//!
//! Rooms live in the memory of this process, as they do in many a real room server. That works as
//! long as everybody who asks for a room is sent to the same process, which is what a proxy that
//! goes by a key is for; with one that doesn't, two people in one room can't hear each other. Or
//! they are told what a room hears by the proxies that they came through: [`Publish`] says where
//! a message has to be sent for that, and `publish` sends it there.
//!
//! Several [`Demo`]s fit in one process: nothing here is global, each has its own id, rooms and
//! end. What a slow or hostile client can make a demo keep is bounded, and the bound stands where
//! the thing is kept. Absent on purpose: TLS, pings, history of a room, anything on a disk.

mod echo;
mod page;
mod paths;
mod publish;
mod rooms;
mod socket;
mod stop;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::publish::Courier;
use crate::rooms::Rooms;
use crate::stop::StopSignal;

pub use crate::publish::{Publish, REDIS_PREFIX};

/// What a demo backend is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one, and [`Demo::address`] tells which.
    pub listen: SocketAddr,
    /// The name it gives itself: 1 to 64 of `A-Z a-z 0-9 . : _ -`. `None`: its port.
    pub id: Option<String>,
    /// Where it sends what is said in its rooms.
    pub publish: Publish,
}

/// A demo backend that has its listening socket. Clients can connect, and wait for [`serve`].
///
/// [`serve`]: Demo::serve
#[derive(Debug)]
pub struct Demo {
    listener: TcpListener,
    address: SocketAddr,
    backend: Arc<Backend>,
    courier: Option<Courier>,
}

impl Demo {
    /// Takes the address. What it publishes to, it looks for only when it serves.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an id that no config could name, and for a URL that leads nowhere;
    /// otherwise what the system says to `bind`, such as `AddrInUse`.
    pub async fn bind(options: Options) -> io::Result<Self> {
        if options.id.as_deref().is_some_and(|id| !is_backend_id(id)) {
            return Err(invalid(format!("a backend id is {BACKEND_IDS}")));
        }
        let (publisher, courier) = publish::open(options.publish).map_err(invalid)?.unzip();
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let id = options.id.unwrap_or_else(|| address.port().to_string());
        let rooms = Rooms::new(id.clone(), publisher);
        let backend = Backend { rooms, id, stop_signal: StopSignal::default() };
        Ok(Self { listener, address, backend: Arc::new(backend), courier })
    }

    /// Tells where it listens, with the port that it got.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells its id.
    pub fn id(&self) -> &str {
        &self.backend.id
    }

    /// Serves until `stop` is ready, then stops, within four seconds.
    ///
    /// Stopping: every request is answered 503, each WebSocket gets a Close 1001 and has two
    /// seconds to answer it. When the last one is gone (so at once, where there is none) no more
    /// is accepted, and requests under way and messages to be published have one more second.
    /// Needs a tokio runtime with time and I/O. Dropping the future instead leaves open connections
    /// running, which can't publish any more.
    ///
    /// # Errors
    ///
    /// None today: failures to accept are waited out.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let (all_closed, closed) = oneshot::channel::<()>();
        let backend = Arc::clone(&self.backend);
        let stopped = async move {
            stop.await;
            let left = backend.stop_signal.give();
            if timeout(stop::WEBSOCKETS_WITHIN, left).await.is_err() {
                tracing::warn!(backend = backend.id, "stopped while WebSockets were open");
            }
            drop(all_closed);
        };
        // Small messages go out one by one: an echo must not wait for the client's acknowledgement.
        let listener = self.listener.tap_io(|stream| _ = stream.set_nodelay(true));
        let backend = Arc::clone(&self.backend);
        let served = axum::serve(listener, paths::router(self.backend))
            .with_graceful_shutdown(stopped)
            .into_future();
        let serving = async {
            let result = served.await;
            backend.rooms.flush().await;
            result
        };
        let publishing = async {
            if let Some(courier) = self.courier {
                courier.run().await;
            }
            std::future::pending::<io::Result<()>>().await
        };
        tokio::select! {
            result = serving => result,
            // A client may keep half a request to itself for as long as it likes.
            () = async { _ = closed.await; sleep(stop::REQUESTS_WITHIN).await } => Ok(()),
            never = publishing => never,
        }
    }
}

fn invalid(rule: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, rule.into())
}

/// What all requests of one demo share.
#[derive(Debug)]
struct Backend {
    id: String,
    rooms: Rooms,
    stop_signal: StopSignal,
}

/// What a backend may call itself.
pub const BACKEND_IDS: &str = "1 to 64 of A-Z a-z 0-9 . : _ -";

/// Whether a backend may call itself so, which is as a config may name it.
pub fn is_backend_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".:_-".contains(&byte);
    (1..=64).contains(&id.len()) && id.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_that_a_config_may_name() {
        for good in ["a", "9001", "room-1.eu:9001", &"x".repeat(64)] {
            assert!(is_backend_id(good), "{good}");
        }
        for bad in ["", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(!is_backend_id(bad), "{bad}");
        }
    }
}
