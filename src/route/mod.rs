//! From a request to its route and its key: which part of the config a request is for.
//!
//! [`Router`] is built once from all routes and then only read. It is three tables, for exact
//! hosts, for wildcard hosts, and for routes of any host; each holds, per host, the paths in the
//! same manner. A look-up tries the most specific place first and goes on until one has a route,
//! so a host whose own routes have no matching path falls back to the wildcard, and then to the
//! routes of any host. It costs a hash look-up per label of the host and per distinct length of a
//! prefix, and never depends on how many routes there are.
//!
//! [`key`] finds the key. Both are pure: the shell passes what it read from the request.
//!
//! What this does not do: it does not decode or normalise paths (`/a/../b` is compared as sent),
//! does not bring IPv6 literals into one form, and does not refuse ties. The config does, with
//! [`RouteSettings::ties_with`]; of two routes that tie, the first wins here.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use crate::ws::RelayPolicy;

pub mod key;
pub mod rooms;
pub mod sticky;

pub use key::{Key, KeyError, KeyFound, KeySource, RequestFacts, find_key};
pub use rooms::RoomTemplate;
pub use sticky::{SameSite, Secure, StickyCookie};

/// Which hosts a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// Every host, also none.
    Any,
    /// This host name, in lower case, without a port.
    Exact(String),
    /// Every host that ends in this suffix; it begins with a dot: `*.example.com` is `.example.com`.
    Suffix(String),
}

/// Which paths a route is for. Paths are compared as sent, undecoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// This path only.
    Exact(String),
    /// Every path that begins with this: `/ws/*` is `/ws/`.
    Prefix(String),
}

/// Whose session ids are read from answers, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    /// None.
    Off,
    /// Those of Engine.IO, the transport of Socket.IO.
    SocketIo,
    /// Those of SignalR for ASP.NET Core.
    SignalR,
}

/// What becomes of the live connections of a route that leaves the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRemoved {
    /// They live until they end by themselves.
    Keep,
    /// They are closed one key at a time, over the pool's `drain_timeout`.
    Drain,
    /// They are closed at once.
    Close,
}

/// What the config says of one route.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteSettings {
    /// Its name; a route without one goes by its path.
    pub name: String,
    /// The one listener that it is for, by name; `None`: all.
    pub listener: Option<String>,
    /// The hosts that it is for.
    pub host: HostPattern,
    /// The paths that it is for.
    pub path: PathPattern,
    /// The name of its pool.
    pub pool: String,
    /// Where the key is looked for, in this order; empty: connections have no key. The sticky
    /// cookie is the last.
    pub key: Vec<KeySource>,
    /// What who has no key is given; `None`: nothing.
    pub sticky_cookie: Option<StickyCookie>,
    /// Whose sessions are kept where they began.
    pub learn: Learn,
    /// Origins that may open a WebSocket; empty: any. Compared without regard to case.
    pub allowed_origins: Vec<String>,
    /// The rooms that its connections join.
    pub rooms: Vec<RoomTemplate>,
    /// What becomes of its connections when it is gone from the config.
    pub on_removed: OnRemoved,
    /// The most live WebSocket connections; 0: no limit.
    pub max_connections: usize,
    /// Between two reads of a request body.
    pub body_timeout: Duration,
    /// From the end of the request until the response head.
    pub response_timeout: Duration,
    /// How its WebSocket connections are relayed.
    pub relay: RelayPolicy,
}

impl RouteSettings {
    /// Tells whether `other` matches the same requests with equal right, so that neither would
    /// be the more specific one.
    pub fn ties_with(&self, other: &Self) -> bool {
        self.host == other.host && self.path == other.path && self.listener == other.listener
    }
}

/// All routes, in the order in which a request looks for its own.
#[derive(Clone, Debug, Default)]
pub struct Router {
    exact_hosts: HashMap<String, Paths>,
    /// By suffix, which begins with a dot.
    wildcards: HashMap<String, Paths>,
    /// The longest suffix in `wildcards`: a longer tail of a host need not be looked up, so a
    /// host made of dots costs no more than this squared.
    longest_wildcard: usize,
    any_host: Paths,
}

impl Router {
    /// Builds the tables; what [`find`](Self::find) answers is a position in `routes`.
    pub fn new<'a>(routes: impl IntoIterator<Item = &'a RouteSettings>) -> Self {
        let mut router = Self::default();
        for (index, route) in routes.into_iter().enumerate() {
            router.paths_of(&route.host).add(route, index);
        }
        router
    }

    fn paths_of(&mut self, host: &HostPattern) -> &mut Paths {
        match host {
            HostPattern::Any => &mut self.any_host,
            HostPattern::Exact(host) => {
                self.exact_hosts.entry(host.to_ascii_lowercase()).or_default()
            }
            HostPattern::Suffix(suffix) => {
                self.longest_wildcard = self.longest_wildcard.max(suffix.len());
                self.wildcards.entry(suffix.to_ascii_lowercase()).or_default()
            }
        }
    }

    /// Finds the most specific route that matches: by host, then path, then listener.
    ///
    /// `listener` is the name of the listener that the request came in by; `None` is one without
    /// a name, which only routes for all listeners match. `host` is a `Host` header or an
    /// authority as sent ([`host_name`] is applied here); `None` or empty matches only routes of
    /// any host. `path` is the undecoded path, without a query.
    ///
    /// The answer is the position of the route in what [`new`](Self::new) was given; `None` is
    /// the 404.
    pub fn find(&self, listener: Option<&str>, host: Option<&str>, path: &str) -> Option<usize> {
        let host = host_name(host.unwrap_or_default());
        self.exact_hosts
            .get(&*host)
            .and_then(|paths| paths.find(listener, path))
            .or_else(|| self.find_by_wildcard(&host, listener, path))
            .or_else(|| self.any_host.find(listener, path))
    }

    fn find_by_wildcard(&self, host: &str, listener: Option<&str>, path: &str) -> Option<usize> {
        if self.wildcards.is_empty() {
            return None;
        }
        host.match_indices('.')
            // The first dot gives the longest suffix. The star stands for at least one byte.
            .filter(|&(dot, _)| dot > 0 && host.len() - dot <= self.longest_wildcard)
            .filter_map(|(dot, _)| self.wildcards.get(&host[dot..]))
            .find_map(|paths| paths.find(listener, path))
    }
}

/// Brings a `Host` header or an authority into the form in which hosts are compared.
///
/// Lower case, without the port and without one trailing dot; an IPv6 literal keeps its brackets
/// (`[::1]`). Borrows where nothing has to change. What is no host at all comes back as it is,
/// and matches nothing.
pub fn host_name(host: &str) -> Cow<'_, str> {
    let host = host.trim_matches([' ', '\t']);
    let end = match host.strip_prefix('[').and_then(|literal| literal.find(']')) {
        Some(bracket) => bracket + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let name = &host[..end];
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Owned(name.to_ascii_lowercase());
    }
    Cow::Borrowed(name)
}

/// The routes of one host pattern, by path.
#[derive(Clone, Debug, Default)]
struct Paths {
    exact: HashMap<String, Listeners>,
    prefixes: HashMap<String, Listeners>,
    /// The lengths that prefixes have, each once, longest first.
    prefix_lengths: Vec<usize>,
}

impl Paths {
    fn add(&mut self, route: &RouteSettings, index: usize) {
        let listeners = match &route.path {
            PathPattern::Exact(path) => self.exact.entry(path.clone()).or_default(),
            PathPattern::Prefix(prefix) => {
                if !self.prefix_lengths.contains(&prefix.len()) {
                    self.prefix_lengths.push(prefix.len());
                    self.prefix_lengths.sort_unstable_by_key(|&length| Reverse(length));
                }
                self.prefixes.entry(prefix.clone()).or_default()
            }
        };
        listeners.add(route.listener.as_deref(), index);
    }

    fn find(&self, listener: Option<&str>, path: &str) -> Option<usize> {
        self.exact.get(path).and_then(|listeners| listeners.find(listener)).or_else(|| {
            self.prefix_lengths
                .iter()
                // `get` is `None` past the end, and inside of a character, where no prefix ends.
                .filter_map(|&length| self.prefixes.get(path.get(..length)?))
                .find_map(|listeners| listeners.find(listener))
        })
    }
}

/// The routes of one host and path pattern, by listener.
#[derive(Clone, Debug, Default)]
struct Listeners {
    named: HashMap<String, usize>,
    all: Option<usize>,
}

impl Listeners {
    fn add(&mut self, listener: Option<&str>, index: usize) {
        match listener {
            Some(name) => {
                self.named.entry(name.to_owned()).or_insert(index);
            }
            None => {
                self.all.get_or_insert(index);
            }
        }
    }

    fn find(&self, listener: Option<&str>) -> Option<usize> {
        listener.and_then(|name| self.named.get(name).copied()).or(self.all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(listener: Option<&str>, host: &str, path: &str) -> RouteSettings {
        let host = match host.strip_prefix('*') {
            _ if host.is_empty() => HostPattern::Any,
            Some(suffix) => HostPattern::Suffix(suffix.to_owned()),
            None => HostPattern::Exact(host.to_owned()),
        };
        let path = match path.strip_suffix('*') {
            Some(prefix) => PathPattern::Prefix(prefix.to_owned()),
            None => PathPattern::Exact(path.to_owned()),
        };
        RouteSettings {
            name: "r".to_owned(),
            listener: listener.map(str::to_owned),
            host,
            path,
            pool: "p".to_owned(),
            key: Vec::new(),
            sticky_cookie: None,
            learn: Learn::Off,
            allowed_origins: Vec::new(),
            rooms: Vec::new(),
            on_removed: OnRemoved::Drain,
            max_connections: 0,
            body_timeout: Duration::ZERO,
            response_timeout: Duration::ZERO,
            relay: RelayPolicy {
                idle_timeout: Duration::ZERO,
                ping_interval: Duration::ZERO,
                max_age: Duration::ZERO,
                max_message: 0,
            },
        }
    }

    fn found(routes: &[RouteSettings], host: &str, path: &str) -> Option<usize> {
        Router::new(routes).find(None, Some(host), path)
    }

    #[test]
    fn exact_host_goes_before_wildcard_and_longer_wildcard_before_shorter() {
        let routes = [
            route(None, "", "/*"),
            route(None, "*.example.com", "/*"),
            route(None, "*.eu.example.com", "/*"),
            route(None, "a.eu.example.com", "/*"),
        ];
        assert_eq!(found(&routes, "a.eu.example.com", "/"), Some(3));
        assert_eq!(found(&routes, "b.eu.example.com", "/"), Some(2));
        assert_eq!(found(&routes, "x.y.eu.example.com", "/"), Some(2));
        assert_eq!(found(&routes, "b.example.com", "/"), Some(1));
        assert_eq!(found(&routes, "example.com", "/"), Some(0));
        assert_eq!(found(&routes, ".example.com", "/"), Some(0));
        assert_eq!(found(&routes, "", "/"), Some(0));
    }

    #[test]
    fn host_without_a_matching_path_falls_back_to_less_specific_hosts() {
        let routes = [
            route(None, "a.example.com", "/only"),
            route(None, "*.example.com", "/ws/*"),
            route(None, "", "/*"),
        ];
        assert_eq!(found(&routes, "a.example.com", "/only"), Some(0));
        assert_eq!(found(&routes, "a.example.com", "/ws/1"), Some(1));
        assert_eq!(found(&routes, "a.example.com", "/else"), Some(2));
    }

    #[test]
    fn exact_path_goes_before_prefix_and_longer_prefix_before_shorter() {
        let routes = [route(None, "", "/*"), route(None, "", "/ws/*"), route(None, "", "/ws/chat")];
        assert_eq!(found(&routes, "h", "/ws/chat"), Some(2));
        assert_eq!(found(&routes, "h", "/ws/chat/1"), Some(1));
        assert_eq!(found(&routes, "h", "/ws/"), Some(1));
        assert_eq!(found(&routes, "h", "/ws"), Some(0));
        assert_eq!(found(&routes[1..], "h", "/ws"), None);
        assert_eq!(found(&routes[1..], "h", "/w%73/"), None);
    }

    #[test]
    fn named_listener_goes_before_all_listeners_but_after_the_path() {
        let routes = [
            route(None, "", "/ws/*"),
            route(Some("public"), "", "/ws/*"),
            route(Some("inner"), "", "/ws/a"),
        ];
        let router = Router::new(&routes);
        assert_eq!(router.find(Some("public"), None, "/ws/a"), Some(1));
        assert_eq!(router.find(Some("inner"), None, "/ws/a"), Some(2));
        assert_eq!(router.find(Some("inner"), None, "/ws/b"), Some(0));
        assert_eq!(router.find(None, None, "/ws/a"), Some(0));
    }

    #[test]
    fn prefix_length_inside_a_character_is_no_match() {
        let routes = [route(None, "", "/ab*")];
        assert_eq!(found(&routes, "h", "/aé"), None);
        assert_eq!(found(&routes, "h", "/"), None);
    }

    #[test]
    fn host_is_compared_without_case_port_and_trailing_dot() {
        for (sent, compared) in [
            ("Chat.Example.COM:8443", "chat.example.com"),
            ("chat.example.com.", "chat.example.com"),
            ("chat.example.com.:80", "chat.example.com"),
            ("chat.example.com..", "chat.example.com."),
            ("[::1]:8080", "[::1]"),
            ("[2001:DB8::1]", "[2001:db8::1]"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1", "["),
            ("", ""),
        ] {
            assert_eq!(host_name(sent), compared);
        }
    }

    #[test]
    fn only_equal_patterns_tie() {
        let one = route(Some("public"), "a.com", "/ws/*");
        assert!(one.ties_with(&one.clone()));
        assert!(!one.ties_with(&route(None, "a.com", "/ws/*")));
        assert!(!one.ties_with(&route(Some("public"), "*.a.com", "/ws/*")));
        assert!(!one.ties_with(&route(Some("public"), "a.com", "/ws/")));
    }

    /// How specific a route is for a request: the definition, applied to one route at a time.
    fn score(
        route: &RouteSettings,
        listener: Option<&str>,
        host: &str,
        path: &str,
    ) -> Option<(usize, usize, bool)> {
        let by_host = match &route.host {
            HostPattern::Any => 0,
            HostPattern::Exact(exact) => (exact == host).then_some(usize::MAX)?,
            HostPattern::Suffix(suffix) => {
                (host.len() > suffix.len() && host.ends_with(suffix)).then_some(suffix.len())?
            }
        };
        let by_path = match &route.path {
            PathPattern::Exact(exact) => (exact == path).then_some(usize::MAX)?,
            PathPattern::Prefix(prefix) => path.starts_with(prefix).then_some(prefix.len())?,
        };
        let by_listener = match &route.listener {
            Some(name) => (Some(name.as_str()) == listener).then_some(true)?,
            None => false,
        };
        Some((by_host, by_path, by_listener))
    }

    fn listener() -> impl Strategy<Value = Option<&'static str>> {
        prop::sample::select(vec![None, Some("x"), Some("y")])
    }

    proptest! {
        #[test]
        fn finds_what_scoring_every_route_finds(
            specs in prop::collection::vec(
                (listener(), r"(\*(\.[ab]){1,3})|([ab](\.[ab]){0,3})|", r"/([ab]/?){0,3}\*?"),
                0..12,
            ),
            from in listener(),
            host in r"([ab](\.[ab]){0,4})|",
            path in "/([ab]/?){0,4}",
        ) {
            let mut routes: Vec<RouteSettings> = Vec::new();
            for (listener, host, path) in specs {
                let route = route(listener, &host, &path);
                if !routes.iter().any(|other| other.ties_with(&route)) {
                    routes.push(route);
                }
            }
            let expected = (0..routes.len())
                .filter_map(|index| Some((score(&routes[index], from, &host, &path)?, index)))
                .max()
                .map(|(_, index)| index);
            prop_assert_eq!(Router::new(&routes).find(from, Some(&host), &path), expected);
        }

        #[test]
        fn no_host_or_path_panics(host in ".{0,40}", path in ".{0,40}") {
            let routes = [route(None, "*.a", "/é*"), route(None, "[::1]", "/*")];
            Router::new(&routes).find(None, Some(&host), &path);
        }
    }
}
