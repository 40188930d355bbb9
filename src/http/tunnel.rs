//! A WebSocket handshake: with the client, with a backend, and then the relay.
//!
//! The client's handshake is checked, the backend's is made with the client's own key, and its
//! 101 is believed only if it answers to that key (RFC 6455 sections 4.2 and 4.1). Any other
//! answer reaches the client as it is. After both have said 101 the HTTP machinery is dropped: the
//! two sockets, and what was read ahead from either, go to a [`Driver`] in a task of its own, so
//! that nothing of the handshake is kept as long as the connection lives.
//!
//! Whose turn it is to choose a backend, [`pool`](crate::pool) says: a key is placed from before
//! its handshake goes out to the end of the relay.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{CONNECTION, HeaderValue, ORIGIN, UPGRADE};
use http::{HeaderMap, Response, StatusCode, Version};
use hyper::body::Incoming;
use tracing::warn;

use super::body::{Reply, RequestBody};
use super::forward::Answered;
use super::head::RequestHead;
use super::relayed::{Guards, Relayed};
use super::respond::Refused;
use super::session::{self, OfWebSocket, Session};
use super::snapshot::Live;
use super::trace::Trace;
use super::upstream::{self, Fresh, Shaken};
use super::{Accepted, Context, Route, elsewhere, headers};
use crate::listen::Stream;
use crate::observe::access_log::RequestRecord;
use crate::observe::rate::{Allowed, allowed};
use crate::pool::backend::{ConnectionGauge, Slot};
use crate::pool::sessions::Visit;
use crate::pool::{Backend, Choice, Moved, Placement, Pool, Stay};
use crate::route::Learn;
use crate::route::key::Key;
use crate::ws::connection::Facts;
use crate::ws::driver::{Driver, Nonce};
use crate::ws::frame::ReservedBits;
use crate::ws::handshake;
use crate::ws::rooms::Room;
use crate::ws::table::Entry;

/// How often a handshake begins anew because its key went elsewhere meanwhile.
const MOVES: usize = 3;

/// How long a handshake waits for its turn where a backend is sent only so many a second.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a client's handshake brings along.
pub(super) struct Handshake {
    /// Its head, cleaned, not yet made a handshake.
    pub(super) head: RequestHead,
    /// Its key.
    pub(super) key: Option<Key>,
    /// Its session.
    pub(super) session: Session,
    /// The address of its client.
    pub(super) client: std::net::IpAddr,
    /// The socket's guards.
    pub(super) accepted: Rc<Accepted>,
}

/// Makes the handshake with a backend. The tunnel is to begin once the client has the answer, which
/// is a 101 then; without a tunnel it is the backend's refusal.
///
/// # Errors
///
/// The route is full or wants another origin; no backend is in service, can be reached, answers
/// in time or with a valid answer.
pub(super) async fn open(
    context: &Rc<Context>,
    route: &Arc<Route>,
    handshake: Handshake,
    trace: &mut Trace<'_>,
) -> Result<(Option<Tunnel>, Response<Reply>), Refused> {
    let began = Instant::now();
    check_origin(route, handshake.head.headers())?;
    let live = Live::of(route).ok_or(Refused::RouteFull)?;
    let opens_session = matches!(handshake.session, Session::Opens);
    let lives = elsewhere::lives_at(context, &route.pool, handshake.key.as_ref()).await;
    let target = Target::new(&route.pool, handshake.key.as_ref(), handshake.session, lives)?;
    let entry = context.table.enter(Facts {
        names: Arc::clone(&route.names),
        key: handshake.key.as_ref().map(|key| target.key().unwrap_or_else(|| key.as_str().into())),
        client: handshake.client.into(),
        since: SystemTime::now().into(),
    });
    let rooms = &route.settings.rooms;
    entry.join(rooms.iter().filter_map(|template| template.room(handshake.key.as_ref())));
    stand(context, &entry).await;
    let id = context.shared.connection_id(entry.connection().serial);
    let head = handshake.head.into_handshake(&id, handshake.key.as_ref());
    let mut opening = Opening { context, route, target, slot: None, head };
    let answered = opening.shake_hands().await;
    trace.note_backend(opening.target.backend());
    let (mut upstream, answer) = match answered? {
        Answer::Refusal(response) => return Ok((None, response)),
        Answer::Switched(upstream, answer) => (upstream, answer),
    };
    if join_rooms(&mut upstream, &entry) {
        stand(context, &entry).await;
    }
    entry.opened(upstream.backend.shared_id());
    route.handshakes.shook_hands(began.elapsed());
    let tunnel = Tunnel {
        context: Rc::clone(context),
        upstream,
        entry,
        live,
        route: Arc::clone(route),
        place: opening.target.into_place(),
        accepted: handshake.accepted,
        opens_session,
        record: trace.take_record(),
    };
    Ok((Some(tunnel), answer))
}

/// Waits until what is sent to the connection by its key or rooms arrives here, as long as that may
/// take: its backend may publish as soon as it has seen the handshake.
async fn stand(context: &Context, entry: &Entry) {
    let standing = context.shared.registry.stand(&mut entry.groups());
    if let Some(standing) = standing {
        standing.await;
    }
}

/// Has a connection join the rooms that its backend names, as far as those are any. Tells whether it
/// names some.
fn join_rooms(upstream: &mut Upstream, entry: &Entry) -> bool {
    let (rooms, mut wrong) = std::mem::take(&mut upstream.rooms);
    let some = !rooms.is_empty();
    wrong += entry.join(rooms);
    if wrong > 0
        && let Some(Allowed { suppressed }) = allowed!()
    {
        let names = &entry.connection().facts.names;
        let backend = upstream.backend.id();
        warn!(pool = %names.pool, backend, wrong, suppressed, "a backend names rooms that can't be joined");
    }
    some
}

/// A browser tells from which site a script connects; others say nothing (RFC 6455 section 10.2).
fn check_origin(route: &Route, headers: &HeaderMap) -> Result<(), Refused> {
    let allowed = &route.settings.allowed_origins;
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let fits = |one: &String| one.as_bytes().eq_ignore_ascii_case(origin.as_bytes());
    if allowed.is_empty() || allowed.iter().any(fits) { Ok(()) } else { Err(Refused::Origin) }
}

/// What a WebSocket keeps where it is.
#[derive(Default)]
struct Place {
    /// The place of its key.
    key: Option<Placement>,
    /// Its session.
    session: Option<OfWebSocket>,
}

/// Where a connection goes: with a key, to a place that it holds.
enum Target {
    Placed(Placement),
    Anywhere(Choice),
    /// Where its session is, with the place of its key if that is there too. A key that lives
    /// elsewhere is no reason to leave the session.
    Session(Visit, Option<Box<Placement>>),
}

impl Target {
    /// `lives` is where other proxies have live connections of the key, as far as was asked.
    fn new(
        pool: &Arc<Pool>,
        key: Option<&Key>,
        session: Session,
        lives: Option<Arc<Backend>>,
    ) -> Result<Self, Refused> {
        if let Session::Of(visit) = session
            && !is_left_behind(pool, key, &visit)
        {
            let place = key.and_then(|key| pool.place(key.as_str(), lives).ok());
            let place = place.filter(|place| Arc::ptr_eq(place.backend(), visit.backend()));
            return Ok(Self::Session(visit, place.map(Box::new)));
        }
        Ok(match key {
            Some(key) if pool.places_keys() => Self::Placed(pool.place(key.as_str(), lives)?),
            _ => Self::Anywhere(pool.any_for_connection()?),
        })
    }

    fn key(&self) -> Option<Arc<str>> {
        match self {
            Self::Session(_, place) => Some(Arc::clone(place.as_ref()?.key())),
            Self::Placed(placement) => Some(Arc::clone(placement.key())),
            Self::Anywhere(_) => None,
        }
    }

    fn backend(&self) -> &Arc<Backend> {
        match self {
            Self::Placed(placement) => placement.backend(),
            Self::Anywhere(choice) => choice.backend(),
            Self::Session(visit, _) => visit.backend(),
        }
    }

    /// The backend's place for this connection; `None` if it is full.
    fn slot(&mut self) -> Option<Slot> {
        match self {
            Self::Placed(placement) => placement.slot(),
            Self::Anywhere(choice) => choice.slot(),
            // Its session is there, full or not. A place that was taken with the choice of its key
            // is this connection's, and no second one.
            Self::Session(visit, place) => {
                let taken = place.as_mut().and_then(|place| place.slot());
                taken.or_else(|| visit.backend().slot(0))
            }
        }
    }

    /// What is held for as long as the connection lives.
    fn into_place(self) -> Place {
        match self {
            Self::Placed(placement) => Place { key: Some(placement), session: None },
            Self::Anywhere(_) => Place::default(),
            Self::Session(visit, place) => {
                Place { key: place.map(|place| *place), session: Some(visit.into()) }
            }
        }
    }

    fn next(&mut self) -> Result<(), Stay> {
        match self {
            Self::Placed(placement) => placement.go_on(),
            Self::Anywhere(choice) => choice.go_on(),
            Self::Session(..) => Err(Stay::Live),
        }
    }

    /// What is said where its backend was lost and there is no other for it.
    fn is_nowhere(&self, learn: Learn) -> Refused {
        match self {
            Self::Session(..) => Refused::SessionLost(learn),
            Self::Placed(_) | Self::Anywhere(_) => Refused::NoBackend,
        }
    }

    fn establish(&mut self) -> Result<(), Moved> {
        match self {
            Self::Placed(placement) => placement.establish(),
            Self::Anywhere(choice) if choice.backend().is_lost() => {
                choice.go_on().map_err(|_| Moved::Nowhere)?;
                Err(Moved::Elsewhere)
            }
            Self::Anywhere(_) => Ok(()),
            Self::Session(visit, _) if visit.backend().is_lost() => Err(Moved::Nowhere),
            Self::Session(visit, place) => {
                // Where the key has moved meanwhile the session has not, but for a drain, in which
                // the key was closed, and whoever else was there with it.
                if place.as_mut().is_some_and(|place| place.establish().is_err()) {
                    if visit.backend().is_draining() {
                        return Err(Moved::Nowhere);
                    }
                    *place = None;
                }
                Ok(())
            }
        }
    }
}

/// Whether a session is at a backend that is drained, while its key lives elsewhere by now: the turn
/// of that has come, and the session goes with it.
fn is_left_behind(pool: &Pool, key: Option<&Key>, visit: &Visit) -> bool {
    let placed = || pool.find(key?.as_str());
    visit.backend().is_draining()
        && placed().is_some_and(|placed| !Arc::ptr_eq(&placed.backend, visit.backend()))
}

/// A backend's side of a WebSocket that is open.
struct Upstream {
    backend: Arc<Backend>,
    stream: Stream,
    read_ahead: Vec<u8>,
    reserved: ReservedBits,
    counted: ConnectionGauge,
    subprotocol: Option<HeaderValue>,
    /// The rooms that it wants the connection to be in, and how many more it names that are none.
    rooms: (Vec<Room>, usize),
}

/// What a backend says to a handshake.
enum Answer {
    /// Anything but a 101.
    Refusal(Response<Reply>),
    /// A valid 101, and what the client is to be told.
    Switched(Upstream, Response<Reply>),
}

struct Opening<'a> {
    context: &'a Rc<Context>,
    route: &'a Arc<Route>,
    target: Target,
    /// The place at the backend that is asked.
    slot: Option<Slot>,
    head: RequestHead,
}

impl Opening<'_> {
    /// Finds a backend that answers, and holds the place of the key there.
    async fn shake_hands(&mut self) -> Result<Answer, Refused> {
        for _ in 0..MOVES {
            // Where its key was closed for a drain: not before that has ended there.
            if let Some(key) = self.target.key() {
                self.route.pool.vacated(&key).await;
            }
            let fresh = self.connect().await?;
            let answer = self.ask(fresh).await?;
            if let Answer::Refusal(_) = answer {
                return Ok(answer);
            }
            match self.target.establish() {
                Ok(()) => return Ok(answer),
                Err(Moved::Elsewhere) => {}
                Err(Moved::Nowhere) => {
                    return Err(self.target.is_nowhere(self.route.settings.learn));
                }
            }
        }
        Err(Refused::NoBackend)
    }

    async fn connect(&mut self) -> Result<Fresh, Refused> {
        loop {
            self.slot = Some(self.target.slot().ok_or(Refused::BackendFull)?);
            let backend = Arc::clone(self.target.backend());
            self.wait_for_turn(&backend).await?;
            match upstream::connect(&self.route.pool, &backend).await {
                Ok(fresh) => return Ok(fresh),
                Err(error) => {
                    self.context.note_connect_failure(&self.route.pool, &backend, &error);
                    self.look_elsewhere(&backend).await;
                    self.target.next().map_err(|stay| match stay {
                        Stay::Live | Stay::NoneLeft => Refused::Unreachable,
                    })?;
                }
            }
        }
    }

    /// Before a key goes on to another backend: whether it has to stay, for what other proxies have
    /// there.
    async fn look_elsewhere(&mut self, failed: &Arc<Backend>) {
        if let Target::Placed(placement) = &mut self.target {
            let (pool, key) = (&self.route.pool, placement.key());
            if let Some(lives) = elsewhere::still_lives_at(self.context, pool, key, failed).await {
                placement.lives_at(lives);
            }
        }
    }

    /// Waits until the backend may be sent another handshake. Cancel safe; the turn is lost then.
    async fn wait_for_turn(&self, backend: &Backend) -> Result<(), Refused> {
        let rate = self.route.pool.settings().handshake_rate;
        if rate == 0 {
            return Ok(());
        }
        let turn = backend.next_handshake(Duration::from_secs(1) / rate, PATIENCE);
        tokio::time::sleep_until(turn.ok_or(Refused::HandshakeRate)?.into()).await;
        Ok(())
    }

    /// Sends the handshake and waits for the answer. All but an answer counts as a failure of the
    /// backend.
    async fn ask(&mut self, fresh: Fresh) -> Result<Answer, Refused> {
        let backend = Arc::clone(self.target.backend());
        let limit = self.route.pool.settings().handshake_timeout;
        let request = self.head.request(RequestBody::Empty);
        let in_flight = backend.handshake();
        let handshake = fresh.shake_hands(request, &self.context.tasks);
        let outcome = match tokio::time::timeout(limit, handshake).await {
            Err(_) => Err(Refused::TimedOut),
            Ok(None) => Err(Refused::BrokeOff),
            Ok(Some(Shaken::Switched(response, stream, read_ahead))) => {
                self.switch(response, stream, read_ahead, &backend)
            }
            Ok(Some(Shaken::Refused(response))) => {
                Ok(Answer::Refusal(Answered { response, in_flight }.passed_on()))
            }
        };
        match &outcome {
            Ok(_) => self.route.pool.traffic_passed(&backend),
            Err(refused) => self.route.pool.traffic_failed(&backend, refused, Instant::now()),
        }
        outcome
    }

    fn switch(
        &mut self,
        response: Response<Incoming>,
        stream: Stream,
        read_ahead: Vec<u8>,
        backend: &Arc<Backend>,
    ) -> Result<Answer, Refused> {
        if response.version() != Version::HTTP_11 {
            return Err(Refused::BadAnswer("it is not HTTP/1.1".to_owned()));
        }
        let negotiated = handshake::check_response(response.headers(), self.head.headers())
            .map_err(|error| Refused::BadAnswer(error.to_string()))?;
        // It was taken before connecting.
        let slot = self.slot.take().ok_or(Refused::BackendFull)?;
        let upstream = Upstream {
            backend: Arc::clone(backend),
            stream,
            read_ahead,
            reserved: negotiated.reserved,
            counted: slot.connection(),
            subprotocol: negotiated.subprotocol,
            rooms: headers::rooms_to_join(response.headers()),
        };
        Ok(Answer::Switched(upstream, switching(response.into_parts().0.headers)))
    }
}

/// The 101 for the client: the backend's, with the hop between us and the client said anew.
fn switching(of_backend: HeaderMap) -> Response<Reply> {
    let mut response = Response::new(Reply::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    *answer = of_backend;
    headers::remove_hop_by_hop(answer);
    headers::strip_steadfast(answer);
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    response
}

/// The tunnel that a client connection has come to, if it has. Boxed: few of those that wait for
/// a request ever have one.
#[derive(Default)]
pub(super) struct Opened(Cell<Option<Box<Tunnel>>>);

impl Opened {
    pub(super) fn set(&self, tunnel: Option<Tunnel>) {
        self.0.set(tunnel.map(Box::new));
    }

    pub(super) fn take(&self) -> Option<Box<Tunnel>> {
        self.0.take()
    }
}

/// A WebSocket that is open on the backend's side and not yet on the client's.
pub(super) struct Tunnel {
    context: Rc<Context>,
    upstream: Upstream,
    entry: Entry,
    live: Live,
    route: Arc<Route>,
    place: Place,
    accepted: Rc<Accepted>,
    /// Its first message may open a session.
    opens_session: bool,
    /// For the access log, if that is on.
    record: Option<Box<RequestRecord>>,
}

impl Tunnel {
    /// Its client was gone before it had its 101.
    pub(super) fn give_up(self) {
        self.context.shared.metrics.refuse(&self.route.names.route, "client_gone");
    }

    /// Has the relay begin, in a task of its own. `client` has its 101, and what it has sent behind
    /// its handshake is `read_from_client`.
    pub(super) fn begin(self, client: Stream, read_from_client: Vec<u8>) {
        let Self { context, upstream, entry, live, route, place, .. } = self;
        let Place { key, mut session } = place;
        let Upstream { backend, stream, read_ahead, reserved, counted, subprotocol, .. } = upstream;
        let subprotocol = subprotocol.as_ref().and_then(|name| name.to_str().ok());
        let asked = self.record.and_then(|record| record.into_rest(subprotocol));
        let first_message = self.opens_session.then(|| {
            let (pool, client) = (Arc::clone(&route.pool), entry.connection().facts.client.ip());
            let (context, learn) = (Rc::clone(&context), route.settings.learn);
            let session = session.insert(OfWebSocket::default());
            session.listen(session::Opening { context, pool, backend, client, learn })
        });
        let guards = Guards { live, counted, session, accepted: self.accepted, asked };
        let tasks = context.tasks.clone();
        let relayed = Relayed::begin(context, entry, guards, |entry| {
            let limits = route.relay_limits(reserved, u16::from_ne_bytes(crate::random::bytes()));
            let (client, backend) = ((client, read_from_client), (stream, read_ahead));
            Driver::new(entry, limits, client, backend, Arc::clone(&route.counts), nonce())
                .telling(first_message)
                .holding(key)
        });
        tasks.spawn(relayed);
    }
}

fn nonce() -> Nonce {
    Nonce { ping: crate::random::bytes(), mask: crate::random::bytes() }
}
