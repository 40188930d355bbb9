//! Explains where a request would go, and why: the routing of real requests, with words.
//!
//! [`explain`] takes a [`Question`], the listeners and a [`Snapshot`], and walks the way of a
//! request: its listener, its route, its key, the backend of that, and whom it would go on to if
//! that one could not be connected to. Each step is decided by the very function that decides it
//! for requests; this file only writes down what they answer, so that it can't tell another story.
//!
//! What it is told of health and placements is what the snapshot's pools know: those of a running
//! proxy know all, those that were built of a config alone take every backend as in service.
//!
//! It opens nothing, counts nothing and places nothing. What only a request itself finds out is
//! not foreseen: an origin that is refused, a route that is full, a backend that does not answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::http::headers::client_address;
use crate::http::{KnownSession, Route, Snapshot};
use crate::listen::ListenerSettings;
use crate::observe::metrics::{Metrics, Nothing};
use crate::pool::{Backend, Pool, ring};
use crate::route::key::{KeyFound, RequestFacts, find_key};
use crate::route::{HostPattern, Learn, PathPattern};

/// What stands for a backend where any will do.
pub const ANY: &str = "any";

/// Why a text is nothing that can be asked about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// It is no URL and no path.
    #[error("this is no URL; write one such as ws://host:8080/ws?room=red, or a path")]
    Url,
    /// Its scheme is not one that a proxy is asked by.
    #[error("the scheme {scheme} is not ws, wss, http or https")]
    Scheme {
        /// What stands before the colon.
        scheme: String,
    },
    /// It is no header line.
    #[error("this is no header; write 'name: value'")]
    Header,
}

/// Where a request is sent: a URL, or a path alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host and port as written; `None` for a path.
    authority: Option<String>,
    /// The URL's port, or its scheme's; `None` for a path.
    port: Option<u16>,
    path_and_query: PathAndQuery,
}

impl std::str::FromStr for Target {
    type Err = QuestionError;

    fn from_str(text: &str) -> Result<Self, QuestionError> {
        let uri: Uri = text.parse().map_err(|_| QuestionError::Url)?;
        let root = || PathAndQuery::from_static("/");
        let path_and_query = uri.path_and_query().cloned().unwrap_or_else(root);
        let Some(scheme) = uri.scheme_str() else {
            let is_path = text.starts_with('/');
            let target = Self { authority: None, port: None, path_and_query };
            return is_path.then_some(target).ok_or(QuestionError::Url);
        };
        let port = match scheme {
            "ws" | "http" => 80,
            "wss" | "https" => 443,
            _ => return Err(QuestionError::Scheme { scheme: scheme.to_owned() }),
        };
        let authority = uri.authority().ok_or(QuestionError::Url)?.as_str();
        // A name and a password are for nobody here; requests don't carry them on.
        let authority = authority.rsplit('@').next().unwrap_or_default().to_owned();
        let port = Some(uri.port_u16().unwrap_or(port));
        Ok(Self { authority: Some(authority), port, path_and_query })
    }
}

/// One header line, `name: value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderLine(pub HeaderName, pub HeaderValue);

impl std::str::FromStr for HeaderLine {
    type Err = QuestionError;

    fn from_str(line: &str) -> Result<Self, QuestionError> {
        let (name, value) = line.split_once(':').ok_or(QuestionError::Header)?;
        let name = name.trim().parse().map_err(|_| QuestionError::Header)?;
        let value = HeaderValue::from_bytes(value.trim().as_bytes());
        Ok(Self(name, value.map_err(|_| QuestionError::Header)?))
    }
}

/// A request that is asked about.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where it is sent.
    pub target: Target,
    /// Its headers; a `Host` among them comes before that of the target.
    pub headers: HeaderMap,
    /// The other end of its connection, whose `X-Forwarded-For` a listener may believe.
    pub peer: IpAddr,
}

impl Question {
    /// A request with these header lines, in their order.
    pub fn new(target: Target, lines: impl IntoIterator<Item = HeaderLine>, peer: IpAddr) -> Self {
        let mut headers = HeaderMap::new();
        for HeaderLine(name, value) in lines {
            headers.append(name, value);
        }
        Self { target, headers, peer }
    }

    fn host(&self) -> Option<&str> {
        let given = self.headers.get(HOST).and_then(|host| host.to_str().ok());
        given.or(self.target.authority.as_deref())
    }
}

/// A listener as questions need it.
#[derive(Clone, Copy, Debug)]
pub struct Door<'a> {
    /// What the config says of it.
    pub settings: &'a ListenerSettings,
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is called: its name, or its address.
    pub label: &'a str,
}

/// Where a request would go, and why. What was not found is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The listener that it would come in by: its name, or its address.
    pub listener: Option<String>,
    /// The name of its route.
    pub route: Option<String>,
    /// Its key.
    pub key: Option<String>,
    /// Where the key was found, as the config has it.
    pub key_source: Option<String>,
    /// The name of the route's pool.
    pub pool: Option<String>,
    /// Where on the ring the key stands, in 16 hexadecimal digits.
    pub position: Option<String>,
    /// The id of the backend that it would go to, or [`ANY`]; `None`: it would be refused.
    pub backend: Option<String>,
    /// Whom it would go on to if that one could not be connected to, in this order.
    pub fallback: Vec<String>,
    /// What was decided, and why, in short sentences.
    pub why: Vec<String>,
}

impl Explanation {
    fn note_key(&mut self, found: &KeyFound<'_>) {
        let key = found.key.as_str();
        self.key = Some(key.to_owned());
        self.key_source = Some(found.source.to_string());
        self.why.push(format!("{} gives the key {key:?}", found.source));
    }
}

/// The routes and pools of a config that nothing runs of: every backend is taken as in service, and
/// no key is placed.
pub fn snapshot_of(config: &Config) -> Snapshot {
    let pools = config.pools.iter().map(|pool| Pool::new(pool.clone(), Arc::new(|_| {})));
    Snapshot::new(&config.routes, pools.collect(), &Metrics::new(Box::new(Nothing)), None)
}

/// Explains where a request would go.
///
/// The URL's port chooses the listeners where some have it, otherwise all are asked, in the order
/// of the config; the first with a route for the request counts.
pub fn explain(question: &Question, doors: &[Door<'_>], snapshot: &Snapshot) -> Explanation {
    explain_with(question, doors, snapshot, &|_| None)
}

/// What this proxy can't tell by itself, and a request would have asked others.
#[derive(Clone, Debug)]
pub enum Unknown {
    /// A session that nobody has learnt here, by its id.
    Session(Arc<Pool>, String),
    /// A key that would not go to its home, and is nowhere as far as is known here.
    Key(Arc<Pool>, String),
}

/// The backend of something that is not known here, if others know.
pub type Elsewhere<'a> = &'a dyn Fn(Unknown) -> Option<Arc<Backend>>;

/// Explains where a request would go, with what other proxies know of its session and its key.
pub fn explain_with(
    question: &Question,
    doors: &[Door<'_>],
    snapshot: &Snapshot,
    elsewhere: Elsewhere<'_>,
) -> Explanation {
    let mut told = Explanation::default();
    let doors = doors_of(question, doors, &mut told.why);
    let path = question.target.path_and_query.path();
    let found = doors.iter().find_map(|door| {
        let route = snapshot.route(door.settings.name.as_deref(), question.host(), path)?;
        Some((door, route))
    });
    let Some((door, route)) = found else {
        // A listener is told all the same where the port left no doubt.
        told.listener = doors.first().filter(|_| doors.len() == 1).map(|one| one.label.to_owned());
        let host = question.host().map(|host| format!("at the host {host:?}"));
        let host = host.as_deref().unwrap_or("without a host");
        told.why.push(format!("no route is for {path:?} {host}: a 404"));
        return told;
    };
    told.listener = Some(door.label.to_owned());
    told.route = Some(route.names.route.to_string());
    told.pool = Some(route.names.pool.to_string());
    told.why.push(why_route(route));
    let client = client_address(question.peer, &door.settings.trusted, &question.headers);
    let facts = RequestFacts {
        path,
        query: question.target.path_and_query.query(),
        headers: &question.headers,
        client,
    };
    let found = match find_key(&route.settings.key, &facts) {
        Ok(found) => found,
        Err(error) => {
            told.why.push(format!("its key can't be one, {error}: a 400"));
            return told;
        }
    };
    // What is asked about is a GET, which opens no session of SignalR.
    let (settings, pool) = (&route.settings, &route.pool);
    let line = (&http::Method::GET, facts.path, facts.query);
    let of_session_elsewhere =
        |id: &str| elsewhere(Unknown::Session(Arc::clone(pool), id.to_owned()));
    match KnownSession::of(settings, pool, line, of_session_elsewhere) {
        KnownSession::At(backend) => {
            of_session(&backend, settings.learn, found.as_ref(), &mut told);
            return told;
        }
        KnownSession::Unknown => {
            let id = if settings.learn == Learn::SignalR { "id" } else { "sid" };
            told.why.push(format!("no session of its {id} is known here: it goes by its key"));
        }
        KnownSession::None => {}
    }
    match found {
        Some(found) => of_key(&found, route, elsewhere, &mut told),
        None => without_key(route, &mut told),
    }
    told
}

/// Tells of a request that goes where its session is: there or nowhere.
fn of_session(backend: &Backend, learn: Learn, key: Option<&KeyFound<'_>>, told: &mut Explanation) {
    if let Some(found) = key {
        told.note_key(found);
    }
    if backend.is_lost() {
        let status = if learn == Learn::SignalR { 404 } else { 400 };
        let backend = backend.id();
        return told.why.push(format!("{backend} began its session, and is lost: a {status}"));
    }
    let whatever = if key.is_some() { ", whatever its key" } else { "" };
    told.why.push(format!("{} began its session: it goes there{whatever}", described(backend)));
    told.backend = Some(backend.id().to_owned());
}

/// The listeners that a request may come in by: those of its port, if there are any.
fn doors_of<'d>(question: &Question, doors: &[Door<'d>], why: &mut Vec<String>) -> Vec<Door<'d>> {
    let Some(port) = question.target.port else {
        why.push("a path has no port: any listener may take it".to_owned());
        return doors.to_vec();
    };
    let mut of_port: Vec<_> =
        doors.iter().filter(|one| one.address.port() == port).copied().collect();
    if of_port.is_empty() {
        why.push(format!("no listener has the port {port}: any may take it"));
        return doors.to_vec();
    }
    why.push(format!("the listener has the port {port}"));
    let authority = question.target.authority.as_deref().unwrap_or_default();
    let asked = authority.parse::<SocketAddr>().map(|address| address.ip());
    // The very address comes before one that stands for all; the sort keeps the config's order.
    of_port.sort_by_key(|one| Ok(one.address.ip()) != asked);
    of_port
}

fn why_route(route: &Route) -> String {
    let host = match &route.settings.host {
        HostPattern::Any => "any host".to_owned(),
        HostPattern::Exact(host) => format!("the host {host}"),
        HostPattern::Suffix(suffix) => format!("hosts *{suffix}"),
    };
    let path = match &route.settings.path {
        PathPattern::Exact(path) => format!("the path {path}"),
        PathPattern::Prefix(prefix) => format!("paths {prefix}*"),
    };
    let listener = match &route.settings.listener {
        None => String::new(),
        Some(name) => format!(" on the listener {name}"),
    };
    format!("the most specific route is for {host} and {path}{listener}")
}

fn of_key(found: &KeyFound<'_>, route: &Route, elsewhere: Elsewhere<'_>, told: &mut Explanation) {
    told.note_key(found);
    let key = found.key.as_str();
    let pool = &route.pool;
    if !pool.places_keys() {
        let balance = pool.settings().balance.as_str();
        let what = format!("the pool balances by {balance}: there a key names and does not place");
        return anywhere(pool, what, told);
    }
    told.position = Some(format!("{:016x}", ring::position(key.as_bytes())));
    // Before the choice: a placement that ends in between is told as one that was.
    let placed = pool.find(key);
    let unknown = || Unknown::Key(Arc::clone(pool), key.to_owned());
    let lives = pool.is_in_doubt(key).then(|| elsewhere(unknown())).flatten();
    let elsewhere = pool.find_elsewhere(key).or_else(|| lives.clone());
    let Ok(mut choice) = pool.lookup(key, lives) else {
        return told.why.push(refused(pool));
    };
    let backend = choice.backend().id().to_owned();
    match placed.filter(|placed| placed.backend.id() == backend) {
        Some(placed) => {
            let count = placed.live + placed.under_way;
            let (connections, have) =
                if count == 1 { ("connection", "has") } else { ("connections", "have") };
            told.why.push(format!(
                "{count} {connections} of this key {have} {backend}: the key stays there"
            ));
            told.why.extend(pool.home(key).and_then(|home| away(home, &backend)));
        }
        None if elsewhere.is_some_and(|elsewhere| elsewhere.id() == backend) => {
            told.why.push(format!("another proxy has this key at {backend}: it goes there"));
            told.why.extend(pool.home(key).and_then(|home| away(home, &backend)));
        }
        None => told.why.push(why_chosen(pool, key, &backend)),
    }
    told.backend = Some(backend);
    while choice.go_on().is_ok() {
        told.fallback.push(choice.backend().id().to_owned());
    }
}

/// What is said of a key that lives elsewhere than where the ring names.
fn away(home: &Backend, backend: &str) -> Option<String> {
    (home.id() != backend).then(|| format!("its home would be {}", described(home)))
}

fn why_chosen(pool: &Pool, key: &str, backend: &str) -> String {
    match pool.home(key).filter(|home| home.id() != backend) {
        None => format!("{backend} is its home: it has the next point of the ring"),
        Some(home) => {
            format!("its home {}: {backend} is the next that may be chosen", described(home))
        }
    }
}

fn described(backend: &Backend) -> String {
    format!("{} ({})", backend.id(), backend.condition().replace('_', " "))
}

fn without_key(route: &Route, told: &mut Explanation) {
    let sources: Vec<String> = route.settings.key.iter().map(ToString::to_string).collect();
    told.why.push(match &*sources {
        [] => "the route has no key".to_owned(),
        [source] => format!("there is no {source}, so there is no key"),
        _ => format!("none of {} is there, so there is no key", sources.join(", ")),
    });
    if let Some(cookie) = &route.settings.sticky_cookie {
        told.why.push(format!("the answer brings a random key as the cookie {}", cookie.name));
    }
    let what = "what has no key goes to any backend in service, by weight in turn";
    anywhere(&route.pool, what.to_owned(), told);
}

/// Tells of a request that any backend may get. Not by a choice: that would take the turn of a
/// real one.
fn anywhere(pool: &Pool, why: String, told: &mut Explanation) {
    if !pool.serves() {
        return told.why.push(refused(pool));
    }
    told.why.push(why);
    told.backend = Some(ANY.to_owned());
}

fn refused(pool: &Pool) -> String {
    format!("no backend of the pool {} is in service: a 503", pool.name())
}
