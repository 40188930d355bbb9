//! The session of a request, where its route learns sessions.
//!
//! A request of a session that was learnt goes to the backend that issued its id, before any key is
//! asked: also when that one is out of service, never to another, and without being sent twice. If
//! the backend is lost, so is the session, and its client is told so at once in Engine.IO's own
//! words, upon which it begins anew. A session that nobody has learnt is no session: its requests go
//! by their key.
//!
//! Where proxies share a registry, what one has learnt is written down there before the client has
//! the id, as far as that takes no longer than it may, and others look there for an id that they do
//! not know. Of a WebSocket the first message is not held up for it: it is on its way when the id
//! has been written, or a moment before.

use std::cell::OnceCell;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::Method;

use super::body::Hold;
use super::opened::{BodyStart, LONGEST_LIFE, Opened, Request};
use super::respond::Refused;
use super::{Context, engine_io, signalr};
use crate::pool::sessions::Visit;
use crate::pool::{Backend, Pool};
use crate::registry::Registry;
use crate::route::{Learn, RouteSettings};
use crate::ws::first_message::FirstMessage;

/// What a request has to do with a session.
#[derive(Debug)]
pub(super) enum Session {
    /// Nothing, or with one that nobody here has learnt.
    None,
    /// It begins one.
    Opens,
    /// It is of this one.
    Of(Visit),
}

impl Session {
    /// Finds the session of a request, here or at another proxy.
    ///
    /// # Errors
    ///
    /// [`Refused::SessionLost`].
    pub(super) async fn of(
        context: &Context,
        route: &RouteSettings,
        pool: &Pool,
        asked: RequestLine<'_>,
    ) -> Result<Self, Refused> {
        let id = match request_of(route, asked.method, asked.path, asked.query) {
            None => return Ok(Self::None),
            Some(Request::Opens) => return Ok(Self::Opens),
            Some(Request::Of(id)) => id,
        };
        let visit = match pool.sessions().visit(id) {
            None => find_elsewhere(&*context.shared.registry, pool, id, asked.client).await,
            here => here,
        };
        match visit {
            Some(visit) if visit.backend().is_lost() => Err(Refused::SessionLost(route.learn)),
            Some(visit) => Ok(Self::Of(visit)),
            None => Ok(Self::None),
        }
    }

    /// Whether it says which backend it is.
    pub(super) fn is_learnt(&self) -> bool {
        matches!(self, Self::Of(_))
    }
}

/// What of a request tells its session.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestLine<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// For whom a session is remembered that another proxy has learnt.
    pub(super) client: IpAddr,
}

fn request_of<'a>(
    route: &RouteSettings,
    method: &Method,
    path: &str,
    query: Option<&'a str>,
) -> Option<Request<'a>> {
    match route.learn {
        Learn::Off => None,
        Learn::SocketIo => engine_io::request_of(query),
        Learn::SignalR => signalr::request_of(method, path, query),
    }
}

/// Looks for a session that another proxy has learnt, and learns it.
async fn find_elsewhere(
    registry: &dyn Registry,
    pool: &Pool,
    id: &str,
    client: IpAddr,
) -> Option<Visit> {
    // A registry that is away or does not answer knows of none.
    let (backend, left) = registry.others()?.session(pool.name(), id).await.ok()??;
    let backend = pool.backend(&backend)?;
    // Whoever uses it has it written anew each third of its life: this much is left of it at least.
    let life = (left + left / 2).min(LONGEST_LIFE);
    Some(pool.sessions().learn(id, backend, client, life))
}

/// The session of a request, for who asks about one.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// It is of none, or begins one.
    None,
    /// Nobody here has learnt it.
    Unknown,
    /// It is at this backend, which may be lost.
    At(Arc<Backend>),
}

impl Known {
    /// Looks for the session of a request as [`Session::of`] does, and leaves it as it is.
    pub(crate) fn of(
        route: &RouteSettings,
        pool: &Pool,
        method: &Method,
        path: &str,
        query: Option<&str>,
    ) -> Self {
        match request_of(route, method, path, query) {
            None | Some(Request::Opens) => Self::None,
            Some(Request::Of(id)) => pool.sessions().find(id).map_or(Self::Unknown, Self::At),
        }
    }
}

/// Who would be remembered for a session that is being opened.
pub(super) struct Opening {
    pub(super) context: Rc<Context>,
    pub(super) pool: Arc<Pool>,
    pub(super) backend: Arc<Backend>,
    pub(super) client: IpAddr,
    pub(super) learn: Learn,
}

impl Opening {
    fn learn(&self, opened: &Opened) -> Visit {
        self.pool.sessions().learn(&opened.id, &self.backend, self.client, opened.life)
    }

    /// Writes the session down for other proxies; `None`: there are none.
    fn write_down(&self, opened: Opened) -> Option<impl Future<Output = ()> + 'static> {
        let registry = Arc::clone(&self.context.shared.registry);
        registry.others()?;
        let (pool, backend) = (Arc::clone(&self.pool), Arc::clone(&self.backend));
        Some(async move {
            let Some(others) = registry.others() else { return };
            let Opened { id, life } = opened;
            // Where it can't be, the session is known here.
            let _ = others.keep_session(pool.name(), &id, backend.id(), life).await;
        })
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Opening").field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// What an answer holds of a session until it is over.
#[derive(Debug)]
pub(super) enum Held {
    /// The session of its request.
    Visit { _until_over: Visit },
    /// Perhaps a session that it opens.
    Opening(Opening, BodyStart),
}

impl Held {
    /// For an answer to a request of a session.
    pub(super) fn visit(visit: Visit) -> Self {
        Self::Visit { _until_over: visit }
    }

    /// For an answer to a request that may open a session.
    pub(super) fn opening(opening: Opening) -> Self {
        let find = match opening.learn {
            Learn::SignalR => signalr::opened,
            Learn::Off | Learn::SocketIo => engine_io::opened,
        };
        Self::Opening(opening, BodyStart::new(find))
    }

    /// Looks at a piece of the body before it goes out: its client's next request finds what is
    /// learnt here. What the piece is to wait for, if it is, so that it is found everywhere.
    pub(super) fn look_at(&mut self, piece: &[u8]) -> Option<Hold> {
        let Self::Opening(opening, start) = self else { return None };
        let opened = start.feed(piece)?;
        let visit = opening.learn(&opened);
        let written = opening.write_down(opened);
        *self = Self::visit(visit);
        written.map(|written| Box::pin(written) as Hold)
    }
}

/// Holds the session of a WebSocket, which lives as long as this does: the one that its handshake
/// was of, or one that its first message opens.
#[derive(Debug, Default)]
pub(super) struct OfWebSocket(Rc<OnceCell<Visit>>);

impl From<Visit> for OfWebSocket {
    fn from(visit: Visit) -> Self {
        Self(Rc::new(visit.into()))
    }
}

impl OfWebSocket {
    /// What is to be told of the first message.
    pub(super) fn listen(&self, opening: Opening) -> FirstMessage {
        let held = Self(Rc::clone(&self.0));
        FirstMessage::new(move |text| {
            if let Some(opened) = engine_io::opened(text) {
                held.0.get_or_init(|| opening.learn(&opened));
                if let Some(written) = opening.write_down(opened) {
                    opening.context.tasks.spawn(written);
                }
            }
        })
    }
}
