//! Connections to backends: opened, used for one message at a time, kept for a while.
//!
//! Plain requests share them; a handshake has one of its own, which then becomes the upstream of
//! a WebSocket. Idle ones are kept for a time that is shorter than the keep-alive of common
//! servers, so that a request seldom meets one that is just being closed.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tracing::{debug, warn};

use super::Context;
use super::body::RequestBody;
use crate::listen::Stream;
use crate::observe::rate::{Allowed, allowed};
use crate::pool::{Backend, Pool, dial};
use crate::shutdown::Tasks;

/// How long an idle connection is kept. Node closes its own after 5 s.
const KEPT: Duration = Duration::from_secs(4);
/// Idle connections of one worker to one backend; more are closed after their answer.
const KEPT_PER_BACKEND: usize = 64;
/// The most header lines of an answer.
const ANSWER_HEADERS: usize = 256;
/// The largest head of an answer, and what hyper may read ahead of a body.
const BUFFER_BYTES: usize = 64 * 1024;

/// A connection to a backend on which one message can be sent after the other.
pub(super) type Sender = SendRequest<RequestBody>;

/// The idle connections of one worker.
#[derive(Debug, Default)]
pub struct Upstreams {
    idle: RefCell<Vec<Idle>>,
}

/// The idle connections to one backend, the freshest last.
#[derive(Debug)]
struct Idle {
    /// The pool that they were opened by. One that a reload has changed is another: its backend may
    /// have another address by now, or other TLS. Weak: nobody needs the ring of a config of long ago.
    pool: Weak<Pool>,
    backend: Arc<Backend>,
    senders: Vec<(Sender, Instant)>,
}

impl Idle {
    fn is_of(&self, pool: *const Pool, backend: &Arc<Backend>) -> bool {
        std::ptr::eq(self.pool.as_ptr(), pool) && Arc::ptr_eq(&self.backend, backend)
    }
}

impl Upstreams {
    /// Takes an idle connection to a backend that its pool, as it is now, has opened, if there is one
    /// that is still open.
    pub(super) fn take(&self, pool: &Arc<Pool>, backend: &Arc<Backend>) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        let of_backend = idle.iter_mut().find(|idle| idle.is_of(Arc::as_ptr(pool), backend))?;
        while let Some((sender, since)) = of_backend.senders.pop() {
            if since.elapsed() < KEPT && sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection that is idle now.
    fn keep(&self, pool: Weak<Pool>, backend: Arc<Backend>, sender: Sender) {
        let mut idle = self.idle.borrow_mut();
        let kept = (sender, Instant::now());
        match idle.iter_mut().find(|idle| idle.is_of(pool.as_ptr(), &backend)) {
            Some(of_backend) if of_backend.senders.len() < KEPT_PER_BACKEND => {
                of_backend.senders.push(kept);
            }
            Some(_) => {}
            None => idle.push(Idle { pool, backend, senders: vec![kept] }),
        }
    }

    /// Closes what has been idle for too long.
    pub fn expire(&self) {
        self.idle.borrow_mut().retain_mut(|idle| {
            idle.senders.retain(|(sender, since)| since.elapsed() < KEPT && !sender.is_closed());
            !idle.senders.is_empty()
        });
    }

    /// Closes all that is idle.
    pub fn close(&self) {
        self.idle.borrow_mut().clear();
    }
}

/// Keeps a connection that `pool` has opened for the next request, once this one's answer is over.
pub(super) fn keep_when_idle(
    upstreams: &Rc<Upstreams>,
    tasks: &Tasks,
    pool: &Arc<Pool>,
    backend: &Arc<Backend>,
    mut sender: Sender,
) {
    let upstreams = Rc::clone(upstreams);
    let (pool, backend) = (Arc::downgrade(pool), Arc::clone(backend));
    let stopping = tasks.clone();
    tasks.spawn(async move {
        // An error: the backend closed it, or its answer was not read to the end.
        if sender.ready().await.is_ok() && !stopping.is_stopping() {
            upstreams.keep(pool, backend, sender);
        }
    });
}

/// Opens a connection to a backend. Failures are reported to the pool, unless they are our own.
///
/// # Errors
///
/// The backend can't be reached within the pool's `connect_timeout`, or this machine has no port
/// or descriptor left.
pub(super) async fn connect(pool: &Arc<Pool>, backend: &Arc<Backend>) -> io::Result<Fresh> {
    let settings = pool.settings();
    let address = backend.address();
    let (tls, timeout) = (settings.tls.as_ref(), settings.connect_timeout);
    let connected = dial::open(&address, tls, timeout, settings.keepalive).await;
    let stream = connected.inspect_err(|error| {
        if !dial::is_own_failure(error) {
            pool.traffic_failed(backend, error, Instant::now());
        }
    })?;
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .max_headers(ANSWER_HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    Ok(Fresh { sender, connection, backend: backend.shared_id() })
}

/// A connection to a backend on which nothing was sent yet. Nothing goes on there unless it is
/// driven.
pub(super) struct Fresh {
    sender: Sender,
    connection: Connection<TokioIo<Stream>, RequestBody>,
    backend: Arc<str>,
}

/// What a backend has said to a handshake.
pub(super) enum Shaken {
    /// 101: HTTP is over. The stream, and what was read from it behind the answer.
    Switched(Response<Incoming>, Stream, Vec<u8>),
    /// Anything else.
    Refused(Response<Incoming>),
}

impl Fresh {
    /// Has a task drive the connection from now on. It is closed once its sender is dropped.
    pub(super) fn driven(self, tasks: &Tasks) -> Sender {
        let Self { sender, connection, backend } = self;
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                debug!(%backend, %error, "a connection to a backend ended");
            }
        });
        sender
    }

    /// Sends a handshake and waits for the answer; `None` if the backend broke off, or what it
    /// said is no answer. Cancel safe: the connection is closed then.
    ///
    /// No task of its own drives the connection meanwhile, because after a 101 there is nothing left
    /// to drive.
    pub(super) async fn shake_hands(
        self,
        request: Request<RequestBody>,
        tasks: &Tasks,
    ) -> Option<Shaken> {
        let Self { mut sender, mut connection, backend } = self;
        let mut answer = pin!(sender.send_request(request));
        let (answer, over) = poll_fn(|context| {
            // What goes wrong here is told by the answer as well.
            let over = connection.poll_without_shutdown(context).is_ready();
            match answer.as_mut().poll(context) {
                Poll::Ready(answer) => Poll::Ready((answer.ok(), over)),
                Poll::Pending if over => Poll::Ready((None, over)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        let response = answer?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            if !over {
                Self { sender, connection, backend }.driven(tasks);
            }
            return Some(Shaken::Refused(response));
        }
        if !over {
            poll_fn(|context| connection.poll_without_shutdown(context)).await.ok()?;
        }
        let parts = connection.into_parts();
        Some(Shaken::Switched(response, parts.io.into_inner(), parts.read_buf.into()))
    }
}

impl Context {
    /// Notes a connect that failed: of the backend, or of our own.
    pub(super) fn note_connect_failure(&self, pool: &Pool, backend: &Backend, error: &io::Error) {
        if dial::is_own_failure(error) {
            self.shared.metrics.own_failures.inc();
            if let Some(Allowed { suppressed }) = allowed!() {
                warn!(
                    pool = pool.name(),
                    backend = backend.id(),
                    %error,
                    suppressed,
                    "can't connect: out of ports or descriptors"
                );
            }
        } else {
            debug!(pool = pool.name(), backend = backend.id(), %error, "can't connect");
        }
    }
}
