//! The session of a request, where its route learns sessions.
//!
//! A request of a session that was learnt goes to the backend that issued its id, before any key is
//! asked: also when that one is out of service, never to another, and without being sent twice. If
//! the backend is lost, so is the session, and its client is told so at once in Engine.IO's own
//! words, upon which it begins anew. A session that nobody here has learnt is no session: its
//! requests go by their key.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::engine_io::{self, BodyStart, Request};
use super::respond::Refused;
use crate::pool::sessions::Visit;
use crate::pool::{Backend, Pool};
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
    /// Finds the session of a request by its query.
    ///
    /// # Errors
    ///
    /// [`Refused::SessionLost`].
    pub(super) fn of(
        route: &RouteSettings,
        pool: &Pool,
        query: Option<&str>,
    ) -> Result<Self, Refused> {
        let visit = match request_of(route, query) {
            None => return Ok(Self::None),
            Some(Request::Opens) => return Ok(Self::Opens),
            Some(Request::Of(id)) => pool.sessions().visit(id),
        };
        match visit {
            Some(visit) if visit.backend().is_lost() => Err(Refused::SessionLost),
            Some(visit) => Ok(Self::Of(visit)),
            None => Ok(Self::None),
        }
    }

    /// Whether it says which backend it is.
    pub(super) fn is_learnt(&self) -> bool {
        matches!(self, Self::Of(_))
    }
}

fn request_of<'a>(route: &RouteSettings, query: Option<&'a str>) -> Option<Request<'a>> {
    match route.learn {
        Learn::Off => None,
        Learn::SocketIo => Request::of(query),
    }
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
    pub(crate) fn of(route: &RouteSettings, pool: &Pool, query: Option<&str>) -> Self {
        match request_of(route, query) {
            None | Some(Request::Opens) => Self::None,
            Some(Request::Of(id)) => pool.sessions().find(id).map_or(Self::Unknown, Self::At),
        }
    }
}

/// Who would be remembered for a session that is being opened.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) pool: Arc<Pool>,
    pub(super) backend: Arc<Backend>,
    pub(super) client: IpAddr,
}

impl Opening {
    fn learn(&self, opened: &engine_io::Opened) -> Visit {
        self.pool.sessions().learn(&opened.id, &self.backend, self.client, opened.life)
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
        Self::Opening(opening, BodyStart::default())
    }

    /// Looks at a piece of the body before it goes out: its client's next request finds what is
    /// learnt here.
    pub(super) fn look_at(&mut self, piece: &[u8]) {
        let Self::Opening(opening, start) = self else { return };
        if let Some(opened) = start.feed(piece) {
            *self = Self::visit(opening.learn(&opened));
        }
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
            }
        })
    }
}
