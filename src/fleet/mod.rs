//! A proxy as those see it who are not on its workers' threads: what can be asked of it.
//!
//! Connections belong to their workers, and what others want of one they ask its worker for: a
//! [`Message`] in the worker's inbox, a bounded queue, and an answer within [`ASK`]. Who asks, as
//! the admin API does, names neither a worker nor a thread: that is what a [`Fleet`] is for.

mod reach;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::reach::{ReachError, Reached, Whose};
use crate::config::Secret;
use crate::http::{Accepted, Shared};
use crate::listen::Listener;
use crate::pool::Pool;
use crate::publish::envelope::{self, Envelope, EnvelopeError};
use crate::publish::{Audience, Publication};
use crate::server::plan::Planned;
use crate::server::reload::ReloadError;
use crate::shutdown::StopPlan;
use crate::ws::close::CloseCode;
use crate::ws::connection::{Connection, Serial, Undeliverable};
use crate::ws::mass_close;
use crate::ws::rooms::{NotARoom, Room, TooManyRooms};
use crate::ws::table::Table;

/// Messages that may wait for a worker.
const INBOX: usize = 4096;
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

/// What is asked of whoever owns the proxy and knows its config file.
#[derive(Debug)]
pub(crate) enum Order {
    /// Read the config file and put it in force.
    Reload {
        /// Gets what has changed, or what was wrong.
        reply: oneshot::Sender<Result<Planned, ReloadError>>,
    },
    /// Tell what a reload of this text would change.
    Plan {
        /// The text of a config file.
        text: String,
        /// Gets what would change, or what is wrong.
        reply: oneshot::Sender<Result<Planned, ReloadError>>,
    },
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    /// It runs without a config file.
    #[error("this proxy has no config file to reload")]
    NoFile,
    /// It is stopping, or has too many orders.
    #[error("the proxy takes no orders now; is it stopping?")]
    Busy,
    /// It was carried out, and failed.
    #[error(transparent)]
    Failed(#[from] ReloadError),
}

/// Why a message did not reach the queue of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliverError {
    /// The id is not one of this proxy's.
    #[error("no connection of this proxy has this id")]
    Unknown,
    /// The connection has ended.
    #[error("the connection is gone")]
    Gone,
    /// Its queue does not take it.
    #[error("the connection takes no message: {}", .0.label())]
    Refused(Undeliverable),
    /// Its worker has too much to do, or has ended.
    #[error("the worker of the connection does not answer")]
    Busy,
}

/// Why a message was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It is no message.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// It has no audience and names no connection.
    #[error("it must name the connection that it is for")]
    Nobody,
    /// It has an audience, and names a connection.
    #[error("it has an audience, and names one connection beside it")]
    OneOfMany,
    /// The connection that it names is not one of this proxy's.
    #[error("no connection of this proxy has this id")]
    Unknown,
    /// A room can't have this name.
    #[error(transparent)]
    Room(#[from] NotARoom),
    /// A worker has too much to do, or has ended.
    #[error("a worker does not answer")]
    Busy,
}

impl PublishError {
    /// Its word in metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Envelope(EnvelopeError::TooLong { .. } | EnvelopeError::TooLarge { .. }) => {
                "too_large"
            }
            Self::Envelope(_) | Self::Nobody | Self::OneOfMany | Self::Room(_) => "malformed",
            Self::Unknown => "gone",
            Self::Busy => "busy",
        }
    }
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

    /// Names who carries out [`Order`]s; once.
    pub(crate) fn obey(&self, operator: mpsc::Sender<Order>) {
        let _ = self.operator.set(operator);
    }

    /// Has the config file reloaded.
    pub(crate) async fn reload(&self) -> Result<Planned, OrderError> {
        self.order(|reply| Order::Reload { reply }).await
    }

    /// Asks what the reload of a text would change.
    pub(crate) async fn plan(&self, text: String) -> Result<Planned, OrderError> {
        self.order(|reply| Order::Plan { text, reply }).await
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<Planned, ReloadError>>) -> Order,
    ) -> Result<Planned, OrderError> {
        let operator = self.operator.get().ok_or(OrderError::NoFile)?;
        let (reply, answer) = oneshot::channel();
        operator.try_send(order(reply)).map_err(|_| OrderError::Busy)?;
        Ok(answer.await.map_err(|_| OrderError::Busy)??)
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
        let peers = self.shared.registry.fleet()?.peers();
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

    /// Sends a message to one client, as [`Server::deliver`](crate::server::Server::deliver) says.
    pub(crate) async fn deliver(
        &self,
        connection_id: &str,
        frame: Bytes,
    ) -> Result<(), DeliverError> {
        let serial = self.serial(connection_id).ok_or(DeliverError::Unknown)?;
        let inbox = self.inboxes.get(serial.worker()).ok_or(DeliverError::Unknown)?;
        let (reply, answer) = oneshot::channel();
        let message = Message::Deliver { serial, frame, reply };
        inbox.try_send(message).map_err(|_| DeliverError::Busy)?;
        match tokio::time::timeout(ASK, answer).await {
            Ok(Ok(Some(delivered))) => delivered.map_err(DeliverError::Refused),
            Ok(Ok(None)) => Err(DeliverError::Gone),
            Ok(Err(_)) | Err(_) => Err(DeliverError::Busy),
        }
    }

    /// Has one connection closed with this code and text, as
    /// [`Connection::close_by_api`] says; `None` if its worker does not answer, `Some(false)` if
    /// there is no such connection, or it is not open yet.
    pub(crate) async fn close(
        &self,
        serial: Serial,
        code: CloseCode,
        text: Box<str>,
    ) -> Option<bool> {
        let message = |reply| Message::Close { serial, code, text, reply };
        self.ask(serial.worker(), message).await
    }

    /// Sends a message to its audience, on all workers or on none. Tells whether anybody is there;
    /// `None` if a worker does not answer.
    pub(crate) async fn publish(&self, publication: Publication) -> Option<bool> {
        let all = async {
            let mut somebody = false;
            for answer in self.hand_out(publication).await? {
                somebody |= answer.await.ok()?;
            }
            Some(somebody)
        };
        tokio::time::timeout(ASK, all).await.ok()?
    }

    /// Puts a message into the inboxes of all workers, or of none: `None`, if one has ended. What is
    /// handed out one after the other, is sent in this order.
    async fn hand_out(&self, publication: Publication) -> Option<Vec<oneshot::Receiver<bool>>> {
        let publication = Arc::new(publication);
        let mut places = Vec::with_capacity(self.inboxes.len());
        for inbox in &self.inboxes {
            places.push(inbox.reserve().await.ok()?);
        }
        let answers = places.into_iter().map(|place| {
            let (reply, answer) = oneshot::channel();
            place.send(Message::Publish { publication: Arc::clone(&publication), reply });
            answer
        });
        Some(answers.collect())
    }

    /// Publishes a message, as [`Server::publish`](crate::server::Server::publish) says.
    pub(crate) async fn publish_message(
        &self,
        audience: Option<Audience>,
        message: &[u8],
    ) -> Result<bool, PublishError> {
        let publication = self.publication(audience, message)?;
        self.publish(publication).await.ok_or(PublishError::Busy)
    }

    /// Has a message sent that came from elsewhere, without waiting for it.
    pub(crate) async fn pass_on(
        &self,
        audience: Option<Audience>,
        message: &[u8],
    ) -> Result<(), PublishError> {
        let handed_out = self.hand_out(self.publication(audience, message)?);
        let handed_out = tokio::time::timeout(ASK, handed_out).await;
        handed_out.ok().flatten().map(drop).ok_or(PublishError::Busy)
    }

    fn publication(
        &self,
        audience: Option<Audience>,
        message: &[u8],
    ) -> Result<Publication, PublishError> {
        let Envelope { action, except, connection } = envelope::read(message, self.max_message)?;
        let audience = match (audience, connection) {
            (Some(audience), None) => audience,
            (None, Some(id)) => Audience::One(self.serial(&id).ok_or(PublishError::Unknown)?),
            (Some(_), Some(_)) => return Err(PublishError::OneOfMany),
            (None, None) => return Err(PublishError::Nobody),
        };
        let except = except.iter().filter_map(|id| self.serial(id)).collect();
        Ok(Publication::new(audience, action, except))
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

/// What other threads ask of a worker.
#[derive(Debug)]
pub(crate) enum Message {
    /// Serve a connection that another worker has accepted.
    Serve(Passed),
    /// Send a message to a client.
    Deliver {
        /// Whom to.
        serial: Serial,
        /// One whole, unmasked data frame.
        frame: Bytes,
        /// Gets what became of it; `None`: there is no such connection.
        reply: oneshot::Sender<Option<Result<(), Undeliverable>>>,
    },
    /// Send a message to those of its audience that are here.
    Publish {
        /// The message, and whom to.
        publication: Arc<Publication>,
        /// Gets whether anybody is.
        reply: oneshot::Sender<bool>,
    },
    /// Make a connection a member of a room.
    Join {
        /// Which.
        serial: Serial,
        /// Of what.
        room: Room,
        /// Gets what became of it; `None`: there is no such connection.
        reply: oneshot::Sender<Option<Result<(), TooManyRooms>>>,
    },
    /// Take a connection out of a room.
    Leave {
        /// Which.
        serial: Serial,
        /// Of what.
        room: Room,
        /// Gets whether there is such a connection.
        reply: oneshot::Sender<bool>,
    },
    /// Close a connection as the operator wants it.
    Close {
        /// Which.
        serial: Serial,
        /// The code of its Close.
        code: CloseCode,
        /// What its Close says.
        text: Box<str>,
        /// Gets whether there is such a connection.
        reply: oneshot::Sender<bool>,
    },
    /// A backend is lost: its connections end.
    BackendLost {
        /// The name of its pool.
        pool: Arc<str>,
        /// Its id.
        backend: Arc<str>,
    },
    /// A key was let go at a backend: its connections there end.
    KeyGaveWay {
        /// The name of its pool.
        pool: Arc<str>,
        /// The key.
        key: Arc<str>,
        /// The id of the backend, the very one.
        backend: Arc<str>,
    },
    /// Take the next step of a mass close.
    MassClose(mass_close::Number, mass_close::Order),
    /// Tell of the connections that a query asks for.
    List {
        /// Which.
        query: Query,
        /// Gets them, in the order of their serials.
        reply: oneshot::Sender<Vec<Row>>,
    },
    /// Show that it still does what it is asked.
    Ping {
        /// Gets the answer.
        reply: oneshot::Sender<()>,
    },
    /// Accept from other listeners.
    Doors {
        /// From these too.
        opened: Vec<Door>,
        /// From these no more.
        closed: Vec<Arc<Listener>>,
        /// Told when that is so.
        done: oneshot::Sender<()>,
    },
    /// Come to an end as planned; the delay of the plan is over.
    Stop(StopPlan),
}

/// A listener, and a handle of its socket for one worker.
#[derive(Debug)]
pub(crate) struct Door {
    /// What is accepted from.
    pub(crate) listener: Arc<Listener>,
    /// Does not block; on no runtime.
    pub(crate) socket: std::net::TcpListener,
}

/// A connection that was accepted, and not yet read from, on its way between two threads.
#[derive(Debug)]
pub(crate) struct Passed {
    /// Its socket, on no runtime.
    pub(crate) stream: std::net::TcpStream,
    /// What counts for it.
    pub(crate) accepted: Accepted,
}

/// Which connections to tell of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    /// Of this pool only.
    pub(crate) pool: Option<String>,
    /// Of this key only.
    pub(crate) key: Option<String>,
    /// At this backend only.
    pub(crate) backend: Option<String>,
    /// The members of this room only.
    pub(crate) room: Option<Room>,
    /// This one only.
    pub(crate) serial: Option<Serial>,
    /// Only those behind it.
    pub(crate) after: Option<Serial>,
    /// At most so many.
    pub(crate) limit: usize,
}

impl Query {
    /// Whether it asks for a connection; one without a backend is not open yet.
    pub(crate) fn wants(&self, connection: &Connection, table: &Table) -> bool {
        let Some(backend) = connection.backend() else { return false };
        let facts = &connection.facts;
        let is = |wanted: &Option<String>, value: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == value)
        };
        is(&self.pool, Some(&facts.names.pool))
            && is(&self.key, facts.key.as_deref())
            && is(&self.backend, Some(&backend))
            && self.room.as_ref().is_none_or(|room| table.is_member(connection, room))
    }
}

/// What is told of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Its number.
    pub(crate) serial: Serial,
    /// Its route's name.
    pub(crate) route: Arc<str>,
    /// Its pool's name.
    pub(crate) pool: Arc<str>,
    /// Its backend's id.
    pub(crate) backend: Arc<str>,
    /// Its key.
    pub(crate) key: Option<Arc<str>>,
    /// The rooms that it is in.
    pub(crate) rooms: Vec<Room>,
    /// Its client's address.
    pub(crate) client: IpAddr,
    /// When its handshake came.
    pub(crate) since: SystemTime,
    /// Messages and payload bytes, by [`Direction`](crate::ws::relay::Direction).
    pub(crate) counts: [(u64, u64); 2],
    /// When a frame last went either way.
    pub(crate) last_activity: SystemTime,
}

/// Asks each worker for an answer, and waits for it as long as it takes: who asks has the time-out
/// that fits. `false`: one has ended.
pub(crate) async fn all_answer(inboxes: &[mpsc::Sender<Message>]) -> bool {
    let mut answers = Vec::with_capacity(inboxes.len());
    for inbox in inboxes {
        let (reply, answer) = oneshot::channel();
        if inbox.send(Message::Ping { reply }).await.is_err() {
            return false;
        }
        answers.push(answer);
    }
    for answer in answers {
        if answer.await.is_err() {
            return false;
        }
    }
    true
}

/// The inboxes of all workers, made before the first of them starts.
pub(crate) fn inboxes(
    workers: usize,
) -> (Vec<mpsc::Sender<Message>>, Vec<mpsc::Receiver<Message>>) {
    (0..workers).map(|_| mpsc::channel(INBOX)).unzip()
}
