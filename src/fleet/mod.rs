//! A proxy as those see it who are not on its workers' threads: what can be asked of it.
//!
//! Connections belong to their workers, and what others want of one they ask its worker for: a
//! [`Message`] in the worker's inbox (`inbox.rs`), a bounded queue, and an answer within [`ASK`]. Who
//! asks, as the admin API does, names neither a worker nor a thread: that is what a [`Fleet`] is for.
//!
//! `deliver.rs` sends to this proxy's own clients, `reach.rs` to those of all proxies. Whoever owns the
//! proxy and knows its config file is given [`Order`]s (`order.rs`).

mod deliver;
mod inbox;
mod order;
mod query;
mod reach;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{mpsc, oneshot};

pub use self::deliver::{DeliverError, PublishError};
pub(crate) use self::inbox::{Door, Message, Passed, all_answer, inboxes};
pub(crate) use self::order::{Order, OrderError};
pub(crate) use self::query::{Query, Row};
pub(crate) use self::reach::{ReachError, Reached, Whose};
use crate::config::Secret;
use crate::http::Shared;
use crate::listen::Listener;
use crate::pool::Pool;
use crate::ws::close::CloseCode;
use crate::ws::connection::Serial;
use crate::ws::rooms::{Room, TooManyRooms};

/// How long a question to a worker may take.
const ASK: Duration = Duration::from_secs(5);

/// What the admin API sees of a proxy.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// What its workers share.
    pub(crate) shared: Arc<Shared>,
    /// When it started.
    pub(crate) started: SystemTime,
    /// The name of its server, as the config or the host gives it.
    pub(crate) name: String,
    /// Where clients connect, in the order of the config in force.
    pub(crate) listeners: ArcSwap<Vec<Arc<Listener>>>,
    /// How the last reload went.
    pub(crate) last_reload: Mutex<Option<LastReload>>,
    /// The bearer token that the admin API asks for.
    pub(crate) admin_token: Arc<ArcSwapOption<Secret>>,
    /// Where the admin API is.
    admin_address: Mutex<Option<SocketAddr>>,
    max_message: usize,
    inboxes: Vec<mpsc::Sender<Message>>,
    ready: AtomicBool,
    /// Who reloads the proxy, if anybody does.
    operator: OnceLock<mpsc::Sender<Order>>,
}

/// How a reload went.
#[derive(Clone, Debug)]
pub(crate) struct LastReload {
    /// When.
    pub(crate) at: SystemTime,
    /// What was wrong; `None`: it took effect.
    pub(crate) error: Option<String>,
}

impl Fleet {
    /// A proxy that is not ready yet.
    pub(crate) fn new(
        shared: Arc<Shared>,
        name: String,
        listeners: Vec<Arc<Listener>>,
        inboxes: Vec<mpsc::Sender<Message>>,
        max_message: usize,
    ) -> Self {
        Self {
            shared,
            started: SystemTime::now(),
            name,
            listeners: ArcSwap::from_pointee(listeners),
            last_reload: Mutex::default(),
            admin_token: Arc::default(),
            admin_address: Mutex::default(),
            max_message,
            inboxes,
            ready: AtomicBool::new(false),
            operator: OnceLock::new(),
        }
    }

    /// Has the admin API ask for a token, or for none.
    pub(crate) fn set_admin_token(&self, token: Option<Secret>) {
        self.admin_token.store(token.map(Arc::new));
    }

    /// Has every worker accept from these listeners too, of which `opened` has a handle for each,
    /// and from those no more. Returns when they do; a worker that is stuck is not waited for.
    pub(crate) async fn exchange_doors(
        &self,
        mut opened: Vec<(Arc<Listener>, std::vec::IntoIter<std::net::TcpListener>)>,
        closed: &[Arc<Listener>],
    ) {
        let mut answers = Vec::new();
        let until = tokio::time::Instant::now() + ASK;
        for inbox in &self.inboxes {
            let doors = opened.iter_mut().filter_map(|(listener, handles)| {
                Some(Door { listener: Arc::clone(listener), socket: handles.next()? })
            });
            let (done, answer) = oneshot::channel();
            let message = Message::Doors { opened: doors.collect(), closed: closed.to_vec(), done };
            // A worker that has ended accepts nothing; one that is stuck must not hold up others.
            if let Ok(Ok(())) = tokio::time::timeout_at(until, inbox.send(message)).await {
                answers.push(answer);
            }
        }
        let all = async {
            for answer in answers {
                let _ = answer.await;
            }
        };
        let _ = tokio::time::timeout_at(until, all).await;
    }

    /// Whether every worker still does what it is asked; as [`all_answer`] says.
    pub(crate) async fn all_answer(&self) -> bool {
        all_answer(&self.inboxes).await
    }

    /// Says whether the proxy serves and is not about to stop.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Whether the proxy serves and is not about to stop.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.shared.registry.is_missed()
    }

    /// How many workers there are.
    pub(crate) fn workers(&self) -> usize {
        self.inboxes.len()
    }

    /// The other proxies whose ring of a pool is another than here, by id; `None`: there is no registry
    /// to know of others.
    pub(crate) fn rings_differ(&self, pool: &Pool) -> Option<Vec<String>> {
        let ring = pool.fingerprint();
        let peers = self.shared.registry.others()?.peers();
        let differing = peers.into_iter().filter(|peer| peer.has_other_ring(pool.name(), &ring));
        Some(differing.map(|peer| peer.proxy).collect())
    }

    /// The serial in a connection id; `None` if it is not one of this proxy's.
    pub(crate) fn serial(&self, connection_id: &str) -> Option<Serial> {
        let (proxy, serial) = connection_id.split_once('.')?;
        let serial: Serial = serial.parse().ok()?;
        let is_ours = *proxy == *self.shared.proxy_id && serial.worker() < self.inboxes.len();
        is_ours.then_some(serial)
    }

    /// Has one connection closed with this code and text, as
    /// [`Connection::close_by_api`](crate::ws::connection::Connection::close_by_api) says; `None` if its
    /// worker does not answer, `Some(false)` if there is no such connection.
    pub(crate) async fn close(
        &self,
        serial: Serial,
        code: CloseCode,
        text: Box<str>,
    ) -> Option<bool> {
        let message = |reply| Message::Close { serial, code, text, reply };
        self.ask(serial.worker(), message).await
    }

    /// Makes a connection a member of a room. `None` if its worker does not answer, `Some(None)` if
    /// it is gone.
    pub(crate) async fn join(
        &self,
        serial: Serial,
        room: Room,
    ) -> Option<Option<Result<(), TooManyRooms>>> {
        self.ask(serial.worker(), |reply| Message::Join { serial, room, reply }).await
    }

    /// Takes a connection out of a room, if it is in there. `None` if its worker does not answer,
    /// `Some(false)` if it is gone.
    pub(crate) async fn leave(&self, serial: Serial, room: Room) -> Option<bool> {
        self.ask(serial.worker(), |reply| Message::Leave { serial, room, reply }).await
    }

    /// The connections of one worker that a query asks for; `None` if it does not answer.
    pub(crate) async fn list(&self, worker: usize, query: Query) -> Option<Vec<Row>> {
        self.ask(worker, |reply| Message::List { query, reply }).await
    }

    /// Asks a worker for an answer.
    async fn ask<T>(
        &self,
        worker: usize,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.inboxes.get(worker)?.send(message(reply)).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(ASK, asked).await.ok()?
    }
}
