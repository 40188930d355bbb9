//! The inboxes of the workers, and what may be put in: all that other threads want of a worker.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{Query, Row};
use crate::http::Accepted;
use crate::listen::Listener;
use crate::publish::Publication;
use crate::shutdown::StopPlan;
use crate::ws::close::CloseCode;
use crate::ws::connection::{Serial, Undeliverable};
use crate::ws::mass_close;
use crate::ws::rooms::{Room, TooManyRooms};

/// Messages that may wait for a worker.
const INBOX: usize = 4096;

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
