//! HTTP: one client connection, from its first head to its last answer.
//!
//! A connection comes from a listener, goes through the [`gate`] and is served by hyper. Each
//! request is matched to its [`Route`] and key; then it is either forwarded (`forward.rs`) or, if it
//! asks for a WebSocket, opened as a tunnel (`tunnel.rs`), with which HTTP is over for this connection.
//!
//! All of that happens on one worker's thread, in one task per connection, over what the worker
//! has for all of them: its [`Context`]. What workers share is in [`Shared`]; the routes and pools
//! that a request sees are one [`Snapshot`], looked up once per request, so that nobody sees new
//! routes with an old ring.

pub mod body;
pub mod engine_io;
mod forward;
pub mod framing;
pub mod gate;
mod head;
pub mod headers;
pub mod opened;
mod relayed;
mod respond;
mod session;
pub mod signalr;
mod tunnel;
mod upstream;

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use http::header::{HOST, HeaderValue, SET_COOKIE};
use http::uri::Authority;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tracing::{debug, warn};

use self::body::Reply;
use self::forward::Plain;
use self::gate::{Gate, GateLimits, Turn};
use self::head::RequestHead;
use self::headers::ClientFacts;
use self::respond::Refused;
pub(crate) use self::session::{Known as KnownSession, find_elsewhere as find_session_elsewhere};
use self::session::{RequestLine, Session};
use self::tunnel::{Handshake, Opened};
use self::upstream::Upstreams;
use crate::listen::tls::{Handshakes, ServerTls};
use crate::listen::{
    self, Admission, IntroductionError, Listener, ListenerSettings, Load, ProxyProtocol, Stream,
};
use crate::observe::access_log::{AccessLog, Asked, RequestRecord};
use crate::observe::labels::RequestLabels;
use crate::observe::metrics::{HandshakeCounts, Held, Metrics};
use crate::observe::rate::{Allowed, allowed};
use crate::pool::{Backend, Pool, dial};
use crate::registry::Registry;
use crate::route::key::{KeyFound, KeySource, RequestFacts, find_key};
use crate::route::{RouteSettings, Router, sticky};
use crate::shutdown::Tasks;
use crate::ws::clock::Ticks;
use crate::ws::connection::{Names, Serial};
use crate::ws::driver::RelayCounts;
use crate::ws::frame::ReservedBits;
use crate::ws::handshake;
use crate::ws::pace;
use crate::ws::relay::RelayLimits;
use crate::ws::table::Table;

/// The most header lines that hyper takes unless it is told otherwise.
const HEADERS: usize = 100;
/// The longest name that DNS has, with a port.
const LONGEST_HOST: usize = 253 + 6;

/// A route with what it needs while it runs.
#[derive(Debug)]
pub struct Route {
    /// What the config says of it.
    pub settings: RouteSettings,
    /// Its name, and its pool's.
    pub names: Arc<Names>,
    /// Where its requests go.
    pub pool: Arc<Pool>,
    /// What its relays count.
    pub counts: Arc<RelayCounts>,
    handshakes: HandshakeCounts,
    /// Shared by all that have had its name: a reload changes no count.
    live: Arc<AtomicUsize>,
}

impl Route {
    /// Its live WebSockets, handshakes under way included.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// `random` decides on the age that the connection may reach.
    fn relay_limits(&self, reserved: ReservedBits, random: u16) -> RelayLimits {
        let policy = &self.settings.relay;
        RelayLimits {
            idle: Ticks::of_limit(policy.idle_timeout),
            ping: Ticks::of_limit(policy.ping_interval),
            age: Ticks::of_limit(pace::age(policy.max_age, random)),
            max_message_bytes: policy.max_message,
            reserved,
        }
    }
}

/// A WebSocket of a route, from before its handshake; counts towards `max_connections`. It does not
/// hold the route: that would keep the ring of a config of long ago.
#[derive(Debug)]
struct Live(Arc<AtomicUsize>);

impl Live {
    /// `None` if the route is full.
    fn of(route: &Arc<Route>) -> Option<Self> {
        let limit = route.settings.max_connections;
        // In one step: who is refused never stands in the way of another for a moment.
        let more = |live| (limit == 0 || live < limit).then_some(live + 1);
        let taken = route.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Self(Arc::clone(&route.live)))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The routes and pools of one config, seen together.
#[derive(Debug)]
pub struct Snapshot {
    router: Router,
    routes: Vec<Arc<Route>>,
    pools: Vec<Arc<Pool>>,
    /// Those that left the config with connections: they are drained, and are the same if they
    /// return.
    gone: Vec<Arc<Pool>>,
    /// Of routes that left the config with connections: they count on if the route returns.
    departed: Vec<(Arc<str>, Arc<AtomicUsize>)>,
}

impl Snapshot {
    /// Puts routes to their pools. A route whose pool is missing is left out; a valid config has
    /// none.
    ///
    /// A route that is as it was `before`, in a pool that is, stays the very same.
    pub fn new(
        settings: &[RouteSettings],
        pools: Vec<Arc<Pool>>,
        metrics: &Metrics,
        before: Option<&Self>,
    ) -> Self {
        let with_pool = settings.iter().filter_map(|settings| {
            let pool = pools.iter().find(|pool| pool.name() == settings.pool)?;
            let known = before.into_iter().flat_map(|before| &before.routes);
            let known = known.into_iter().find(|known| known.settings.name == settings.name);
            let departed = before.into_iter().flat_map(|before| &before.departed);
            let departed = departed.into_iter().find(|(name, _)| **name == *settings.name);
            if let Some(known) = known
                && known.settings == *settings
                && Arc::ptr_eq(&known.pool, pool)
            {
                return Some(Arc::clone(known));
            }
            Some(Arc::new(Route {
                names: Arc::new(Names {
                    route: settings.name.as_str().into(),
                    pool: settings.pool.as_str().into(),
                }),
                pool: Arc::clone(pool),
                counts: metrics.relay_counts(&settings.name),
                handshakes: metrics.handshake_counts(&settings.name),
                live: known
                    .map(|known| &known.live)
                    .or(departed.map(|(_, live)| live))
                    .map(Arc::clone)
                    .unwrap_or_default(),
                settings: settings.clone(),
            }))
        });
        let routes: Vec<Arc<Route>> = with_pool.collect();
        let router = Router::new(routes.iter().map(|route| &route.settings));
        let departed = before.map_or_else(Vec::new, |before| before.departed_but(&routes));
        let is_gone = |one: &&Arc<Pool>| !pools.iter().any(|pool| pool.name() == one.name());
        let gone = before.into_iter().flat_map(Self::pools_with_gone).filter(is_gone);
        let gone = gone.cloned().collect();
        Self { router, routes, pools, gone, departed }
    }

    /// The counts of routes that are here, or have been, and are none of `routes`, as far as there
    /// is anything to count.
    fn departed_but(&self, routes: &[Arc<Route>]) -> Vec<(Arc<str>, Arc<AtomicUsize>)> {
        let here = self.routes.iter().map(|route| (&route.names.route, &route.live));
        let all = here.chain(self.departed.iter().map(|(name, live)| (name, live)));
        all.filter(|(name, live)| {
            live.load(Ordering::Relaxed) > 0
                && !routes.iter().any(|route| route.names.route == **name)
        })
        .map(|(name, live)| (Arc::clone(name), Arc::clone(live)))
        .collect()
    }

    /// All live WebSockets, also those of routes that left the config.
    pub fn live(&self) -> usize {
        let departed = self.departed.iter().map(|(_, live)| live.load(Ordering::Relaxed));
        self.routes.iter().map(|route| route.live()).chain(departed).sum()
    }

    /// The route of a request; `None` if no route is for it.
    pub fn route(
        &self,
        listener: Option<&str>,
        host: Option<&str>,
        path: &str,
    ) -> Option<&Arc<Route>> {
        self.routes.get(self.router.find(listener, host, path)?)
    }

    /// All routes.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The names of all routes, then of those that left the config and still have connections.
    pub fn route_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let departed = self.departed.iter().filter(|(_, live)| live.load(Ordering::Relaxed) > 0);
        let departed = departed.map(|(name, _)| name);
        self.routes.iter().map(|route| &route.names.route).chain(departed)
    }

    /// All pools.
    pub fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    /// All pools, then those that left the config and still have connections.
    pub fn pools_with_gone(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.iter().chain(self.gone.iter().filter(|pool| pool.has_connections()))
    }
}

/// What all workers of one proxy share.
#[derive(Debug)]
pub struct Shared {
    /// Names the proxy in the fleet; new at each start, has no dot.
    pub proxy_id: Arc<str>,
    /// The routes and pools in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// All counters.
    pub metrics: Arc<Metrics>,
    /// Where requests and connections are written down.
    pub access_log: AccessLog,
    /// Where its connections are made known.
    pub registry: Arc<dyn Registry>,
}

impl Shared {
    /// Puts together what workers share.
    pub fn new(
        proxy_id: Arc<str>,
        snapshot: Snapshot,
        metrics: Arc<Metrics>,
        access_log: AccessLog,
        registry: Arc<dyn Registry>,
    ) -> Self {
        let snapshot = ArcSwap::from_pointee(snapshot);
        Self { proxy_id, snapshot, metrics, access_log, registry }
    }

    /// The fleet-wide id of a connection of this proxy.
    pub fn connection_id(&self, serial: Serial) -> String {
        format!("{}.{serial}", self.proxy_id)
    }
}

/// Says that a listener can't accept, at most once a second.
pub fn complain_of_accept(listener: &str, error: &io::Error) {
    if let Some(Allowed { suppressed }) = allowed!(1) {
        warn!(
            listener,
            %error,
            suppressed,
            "can't accept connections; is the limit of open files too low?"
        );
    }
}

/// A client connection that was accepted; counts as long as this lives.
#[derive(Debug)]
pub struct Accepted {
    /// The other end, or whom its PROXY header names; an IPv4 address within IPv6 is IPv4 here.
    pub peer: SocketAddr,
    /// Where it came in.
    pub listener: Arc<Listener>,
    /// Its worker has it.
    pub load: Load,
    /// The listener has admitted it.
    pub admission: Admission,
    /// It is shown as open.
    pub gauge: Held,
}

/// What one worker has for all its connections.
pub struct Context {
    /// What it shares with the other workers.
    pub shared: Arc<Shared>,
    /// Its WebSocket connections.
    pub table: Rc<Table>,
    /// Its tasks.
    pub tasks: Tasks,
    /// Its idle connections to backends.
    pub upstreams: Rc<Upstreams>,
    /// Its TLS handshakes with clients.
    pub handshakes: Rc<Handshakes>,
}

impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Context").field("tasks", &self.tasks).finish_non_exhaustive()
    }
}

impl Context {
    /// The context of a worker that has no connection yet.
    pub fn new(shared: Arc<Shared>, table: Rc<Table>, tasks: Tasks) -> Self {
        let handshakes = Rc::new(Handshakes::new(tasks.clone()));
        Self { shared, table, tasks, upstreams: Rc::default(), handshakes }
    }

    /// Serves a client connection in a task of its own, to its end.
    pub fn serve(self: &Rc<Self>, stream: TcpStream, accepted: Accepted) {
        let context = Rc::clone(self);
        if awaits_proxy_header(&accepted.listener.settings, accepted.peer.ip()) {
            return self.tasks.spawn(context.introduced(stream, accepted));
        }
        self.tasks.spawn(context.secured(stream, accepted));
    }

    /// Serves a connection behind the TLS handshake, where the listener has one.
    async fn secured(self: Rc<Self>, stream: TcpStream, accepted: Accepted) {
        let secured = match &accepted.listener.tls {
            None => Some(Stream::Tcp(stream)),
            // Boxed: the buffers of a handshake are none of a connection's.
            Some(tls) => Box::pin(self.secure(tls, stream, &accepted)).await,
        };
        if let Some(stream) = secured {
            self.connection(stream, Rc::new(accepted)).await;
        }
    }

    /// Makes the TLS handshake; `None` if that failed.
    async fn secure(
        &self,
        tls: &ServerTls,
        stream: TcpStream,
        accepted: &Accepted,
    ) -> Option<Stream> {
        let limit = accepted.listener.settings.tls_timeout;
        let secured = tokio::select! {
            secured = self.handshakes.accept(tls, stream, limit) => secured,
            () = self.tasks.stopping() => return None,
        };
        secured
            .inspect_err(|refused| {
                if let Some(reason) = refused.label() {
                    self.shared.metrics.refuse("", reason);
                }
                let cause = std::error::Error::source(refused).map(ToString::to_string);
                debug!(peer = %accepted.peer, cause, "{refused}");
            })
            .ok()
    }

    /// Serves a connection whose peer says first for whom it speaks. From then on that is its peer.
    async fn introduced(self: Rc<Self>, mut stream: TcpStream, mut accepted: Accepted) {
        let listener = Arc::clone(&accepted.listener);
        let limit = listener.settings.header_timeout;
        let introduced = tokio::select! {
            introduced = listen::introduced(&mut stream, limit) => introduced,
            () = self.tasks.stopping() => return,
        };
        let metrics = &self.shared.metrics;
        match introduced {
            Ok(client) => accepted.peer = client.unwrap_or(accepted.peer),
            Err(IntroductionError::Nothing) => return,
            Err(error) => {
                metrics.refuse("", "proxy_header");
                return debug!(peer = %accepted.peer, %error, "no PROXY header");
            }
        }
        if let Err(over) = listener.limits.name(&mut accepted.admission, accepted.peer.ip()) {
            return metrics.refuse("", over.label());
        }
        self.secured(stream, accepted).await;
    }

    async fn connection(self: Rc<Self>, stream: Stream, accepted: Rc<Accepted>) {
        let turn = Turn::default();
        let settings = &accepted.listener.settings;
        let limits = GateLimits::from(settings);
        let metrics = Arc::clone(&self.shared.metrics);
        let gate = Gate::new(stream, limits, turn.clone(), metrics);
        let mut http = hyper::server::conn::http1::Builder::new();
        // The gate is the limit; hyper's own must not be lower. It takes 8 KiB at the least.
        http.max_buf_size((settings.head_bytes * 2).max(16 * 1024));
        if settings.headers > HEADERS {
            // With a number of its own hyper fills its tables of headers before each head.
            http.max_headers(settings.headers);
        }
        let stopping = self.tasks.stopping();
        let opened = Opened::default();
        let service =
            service_fn(|request| Box::pin(self.answer(&accepted, &turn, &opened, request)));
        let mut connection = http.serve_connection(TokioIo::new(gate), service);
        let ended = tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => Some(ended),
            () = stopping => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                Pin::new(&mut connection).graceful_shutdown();
                poll_fn(|context| connection.poll_without_shutdown(context)).await
            }
        };
        let tunnel = opened.take();
        if let Err(error) = ended {
            if let Some(tunnel) = tunnel {
                tunnel.give_up();
            }
            return debug!(peer = %accepted.peer, %error, "a client connection ended early");
        }
        let (mut gate, read_ahead) = {
            let parts = connection.into_parts();
            (parts.io.into_inner(), parts.read_buf)
        };
        match tunnel {
            Some(tunnel) => {
                let (stream, behind) = gate.into_parts();
                // hyper took from the gate what came first.
                tunnel.begin(stream, [&read_ahead[..], &behind].concat());
            }
            // An error: the client is gone already.
            None => drop(gate.shutdown().await),
        }
    }

    async fn answer(
        self: &Rc<Self>,
        accepted: &Rc<Accepted>,
        turn: &Turn,
        opened: &Opened,
        request: Request<Incoming>,
    ) -> Result<Response<Reply>, Infallible> {
        let answer = turn.answer();
        let mut trace = Trace::new(&self.shared, accepted, &request);
        let answered = self.respond(accepted, opened, request, &mut trace).await;
        let refused = answered.as_ref().err().map(Refused::label);
        let response = answered.unwrap_or_else(|refused| {
            let (route, reason) = (trace.route(), refused.label());
            trace.metrics.refuse(route, reason);
            debug!(peer = %accepted.peer, route = %route, reason, "refused: {refused}");
            refused.response()
        });
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            turn.switch();
        }
        let record = trace.answer(response.status(), refused);
        Ok(response.map(|body| body.ending(answer, record)))
    }

    async fn respond(
        self: &Rc<Self>,
        accepted: &Rc<Accepted>,
        opened: &Opened,
        request: Request<Incoming>,
        trace: &mut Trace<'_>,
    ) -> Result<Response<Reply>, Refused> {
        let (parts, body) = request.into_parts();
        let host = host_of(&parts)?;
        let settings = &accepted.listener.settings;
        let route = {
            let snapshot = self.shared.snapshot.load();
            let host = host.as_ref().and_then(|host| host.to_str().ok());
            let found = snapshot.route(settings.name.as_deref(), host, parts.uri.path());
            Arc::clone(found.ok_or(Refused::NoRoute)?)
        };
        trace.route = Some(Arc::clone(&route));
        let peer = accepted.peer.ip();
        let client = headers::client_address(peer, &settings.trusted, &parts.headers);
        let facts = RequestFacts {
            path: parts.uri.path(),
            query: parts.uri.query(),
            headers: &parts.headers,
            client,
        };
        let found = find_key(&route.settings.key, &facts)?;
        trace.note_key(found.as_ref());
        let key = found.map(|found| found.key);
        let asked = RequestLine {
            method: &parts.method,
            path: parts.uri.path(),
            query: parts.uri.query(),
            client,
        };
        let session = Session::of(self, &route.settings, &route.pool, asked).await?;
        let cookie = route.settings.sticky_cookie.as_ref();
        let cookie = cookie.filter(|_| key.is_none() && !session.is_learnt());
        let minted = cookie.map(|_| sticky::mint(crate::random::bytes()));
        let is_handshake = handshake::is_handshake(&parts.headers);
        if is_handshake {
            handshake::check_request(&parts.method, parts.version, &parts.headers)?;
        }
        let facts = ClientFacts {
            peer,
            trusted: headers::is_trusted(peer, &settings.trusted),
            https: accepted.listener.tls.is_some(),
            local_port: accepted.listener.address.port(),
        };
        let head = RequestHead::new(parts, host, &facts);
        trace.note_head(client, &head);
        let set = cookie.zip(minted.as_ref());
        let set = set.and_then(|(cookie, key)| cookie.set(key, head.came_by_tls()));
        let key = key.or(minted);
        let answered = if is_handshake {
            let accepted = Rc::clone(accepted);
            let handshake = Handshake { head, key, session, client, accepted };
            let (tunnel, response) = tunnel::open(self, &route, handshake, trace).await?;
            opened.set(tunnel);
            Ok(response)
        } else {
            let request = Plain { head, body, key, session, client };
            forward::forward(self, &route, request, trace).await
        };
        let mut response = answered?;
        if let Some(cookie) = set {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        Ok(response)
    }

    /// A connect that failed: of the backend, or of our own.
    fn note_connect_failure(&self, pool: &Pool, backend: &Backend, error: &io::Error) {
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

/// Whether a connection of `peer` begins with a PROXY header.
pub fn awaits_proxy_header(settings: &ListenerSettings, peer: IpAddr) -> bool {
    settings.proxy_protocol == ProxyProtocol::Accept && headers::is_trusted(peer, &settings.trusted)
}

/// What is known of a request so far, for its metrics and its line in the access log. One that is
/// dropped before its answer is one whose client went away.
#[derive(Debug)]
struct Trace<'a> {
    metrics: &'a Metrics,
    /// Its route; `None` where none has matched.
    route: Option<Arc<Route>>,
    record: Option<Box<RequestRecord>>,
    answered: bool,
}

impl<'a> Trace<'a> {
    fn new(shared: &'a Shared, accepted: &Accepted, request: &Request<Incoming>) -> Self {
        let log = &shared.access_log;
        let record = log.is_on().then(|| {
            let (peer, listener) = (accepted.peer.ip(), &accepted.listener.label);
            let mut record = RequestRecord::new(log, peer, listener, request.method());
            record.asked = asked(request);
            record.websocket = handshake::is_handshake(request.headers());
            Box::new(record)
        });
        Self { metrics: &shared.metrics, route: None, record, answered: false }
    }

    /// The name of its route; empty where none has matched.
    fn route(&self) -> &str {
        self.route.as_ref().map_or("", |route| &route.names.route)
    }

    fn note_head(&mut self, client: IpAddr, head: &RequestHead) {
        if let Some(record) = &mut self.record {
            record.client = client;
            record.asked.request_id = head.request_id();
        }
    }

    /// Notes the key, unless it came from where credentials come from.
    fn note_key(&mut self, found: Option<&KeyFound<'_>>) {
        let (Some(record), Some(found)) = (&mut self.record, found) else { return };
        let may_be_secret = matches!(found.source, KeySource::Cookie(_) | KeySource::Header(_));
        record.key = (!may_be_secret).then(|| found.key.as_str().into());
    }

    fn note_backend(&mut self, backend: &Backend) {
        if let Some(record) = &mut self.record {
            record.backend = Some(backend.id().to_owned());
        }
    }

    /// The record of a request that is to become a WebSocket, for whoever knows when it has. Until
    /// then it is one whose client went away.
    fn take_record(&mut self) -> Option<Box<RequestRecord>> {
        let mut record = self.record.take()?;
        self.name_route(&mut record);
        record.refused = Some("client_gone");
        Some(record)
    }

    fn name_route(&self, record: &mut RequestRecord) {
        if let Some(route) = &self.route {
            record.route = Arc::clone(&route.names.route);
        }
    }

    /// Notes the answer, and gives the record to whoever knows when that is over.
    fn answer(
        &mut self,
        status: StatusCode,
        refused: Option<&'static str>,
    ) -> Option<Box<RequestRecord>> {
        self.answered = true;
        let code = status.as_u16();
        match &self.route {
            Some(route) if status == StatusCode::SWITCHING_PROTOCOLS => {
                route.handshakes.switched.inc();
            }
            _ => {
                let labels = RequestLabels { route: self.route().to_owned(), code };
                self.metrics.requests.of(labels).inc();
            }
        }
        let mut record = self.record.take()?;
        self.name_route(&mut record);
        record.status = Some(code);
        record.refused = refused;
        Some(record)
    }
}

impl Drop for Trace<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.metrics.refuse(self.route(), "client_gone");
            // It is written down with this.
            drop(self.take_record());
        }
    }
}

/// What the access log may tell of what a request asks for.
fn asked(request: &Request<Incoming>) -> Asked {
    let (uri, headers) = (request.uri(), request.headers());
    let named = || headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(Authority::as_str).or_else(named);
    // What stands before an `@` is no part of a host, and may be a password.
    let host = host.and_then(|host| host.rsplit('@').next()).filter(|host| is_host(host));
    let request_id = headers::request_id(headers).and_then(|id| id.to_str().ok());
    Asked {
        host: host.map(str::to_owned),
        path: uri.path().to_owned(),
        request_id: request_id.map(str::to_owned),
        trace_id: headers::trace_id(headers).map(str::to_owned),
    }
}

/// Whether a host is a name or an address, with or without a port; not whether it exists.
fn is_host(host: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    host.len() <= LONGEST_HOST && host.bytes().all(fits)
}

/// The host of a request (RFC 9112 section 3.2): an absolute-form target has its own. HTTP/1.0
/// may go without.
fn host_of(parts: &http::request::Parts) -> Result<Option<HeaderValue>, Refused> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() || (host.is_none() && parts.version == Version::HTTP_11) {
        return Err(Refused::Host);
    }
    match parts.uri.authority() {
        Some(authority) => {
            let name = authority.as_str().rsplit('@').next().unwrap_or_default();
            HeaderValue::from_str(name).map(Some).map_err(|_| Refused::Host)
        }
        None => Ok(host.cloned()),
    }
}
