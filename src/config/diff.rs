//! What differs between two configs, part by part: what a reload has to do, and what it tells.
//!
//! Pure. Parts are known again by what they go by: a listener by its address, a route and a pool
//! by name, a backend by the id within its pool. Two files that mean the same have no difference,
//! however they are written: order counts only where it means something, as with key sources and
//! certificates.
//!
//! Each settings type is taken apart whole, so that a setting that is added can't be forgotten here.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

use super::{Config, ServerSettings};
use crate::listen::ListenerSettings;
use crate::pool::{BackendSettings, HealthSettings, PoolSettings};
use crate::route::RouteSettings;
use crate::ws::RelayPolicy;

/// The keys that can't change while a process runs.
pub const FIXED: [&str; 4] = ["server.name", "server.workers", "server.log.format", "registry"];

/// A kind of part of a config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// `[server]`; there is one, without a name.
    Server,
    /// A listener, named by its address.
    Listener,
    /// A route, by its name.
    Route,
    /// A pool, by its name.
    Pool,
    /// A backend, as `POOL/ID`.
    Backend,
}

/// What became of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "change", content = "keys")]
pub enum Act {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// These keys of it have other values.
    Changed(Vec<&'static str>),
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Of what.
    pub part: Part,
    /// Which; empty for the server.
    pub name: String,
    /// What became of it.
    #[serde(flatten)]
    pub act: Act,
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Server => "server",
            Part::Listener => "listener ",
            Part::Route => "route ",
            Part::Pool => "pool ",
            Part::Backend => "backend ",
        };
        write!(formatter, "{part}{}: ", self.name)?;
        match &self.act {
            Act::Added => formatter.write_str("added"),
            Act::Removed => formatter.write_str("removed"),
            Act::Changed(keys) => write!(formatter, "{} changed", keys.join(", ")),
        }
    }
}

/// All that differs, in the order of [`Part`], then as in the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// What can take effect while the proxy runs.
    pub changes: Vec<Change>,
    /// The keys that can't: they take effect when the process starts anew.
    pub fixed: Vec<&'static str>,
}

impl Diff {
    /// Whether there is nothing to do and nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.fixed.is_empty()
    }

    /// Those of the changes that are of a kind.
    pub fn of(&self, part: Part) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(move |change| change.part == part)
    }
}

/// Finds what differs.
pub fn diff(old: &Config, new: &Config) -> Diff {
    let Config { server, listeners, routes, pools, registry } = new;
    let mut diff = Diff::default();
    let (keys, fixed) = server_keys(&old.server, server);
    diff.fixed = fixed;
    if old.registry != *registry {
        let [.., of_registry] = FIXED;
        diff.fixed.push(of_registry);
    }
    if !keys.is_empty() {
        let act = Act::Changed(keys);
        diff.changes.push(Change { part: Part::Server, name: String::new(), act });
    }
    let listeners = (listener_names(&old.listeners), listener_names(listeners));
    compare(Part::Listener, &listeners.0, &listeners.1, listener_keys, &mut diff.changes);
    let by_name = |route: &'_ RouteSettings| route.name.clone();
    let routes = (named(&old.routes, by_name), named(routes, by_name));
    compare(Part::Route, &routes.0, &routes.1, route_keys, &mut diff.changes);
    let by_name = |pool: &'_ PoolSettings| pool.name.clone();
    let pools = (named(&old.pools, by_name), named(pools, by_name));
    compare(Part::Pool, &pools.0, &pools.1, pool_keys, &mut diff.changes);
    let backends = (backends(&old.pools), backends(&new.pools));
    compare(Part::Backend, &backends.0, &backends.1, backend_keys, &mut diff.changes);
    diff
}

type Named<'c, T> = Vec<(String, &'c T)>;

fn named<T>(all: &[T], name: impl Fn(&T) -> String) -> Named<'_, T> {
    all.iter().map(|one| (name(one), one)).collect()
}

fn backends(pools: &[PoolSettings]) -> Named<'_, BackendSettings> {
    let named = pools.iter().flat_map(|pool| {
        pool.backends.iter().map(move |one| (format!("{}/{}", pool.name, one.id), one))
    });
    named.collect()
}

/// By address. Those that take any free port are told apart by their order.
pub(crate) fn listener_names(all: &[ListenerSettings]) -> Named<'_, ListenerSettings> {
    let mut seen: HashMap<SocketAddr, usize> = HashMap::new();
    let named = all.iter().map(|one| {
        let count = seen.entry(one.bind).or_default();
        *count += 1;
        let name =
            if *count == 1 { one.bind.to_string() } else { format!("{} #{count}", one.bind) };
        (name, one)
    });
    named.collect()
}

fn compare<T>(
    part: Part,
    old: &Named<'_, T>,
    new: &Named<'_, T>,
    keys: fn(&T, &T) -> Vec<&'static str>,
    changes: &mut Vec<Change>,
) {
    let before: HashMap<&str, &T> = old.iter().map(|(name, one)| (&**name, *one)).collect();
    let after: HashMap<&str, &T> = new.iter().map(|(name, one)| (&**name, *one)).collect();
    let gone = old.iter().filter(|(name, _)| !after.contains_key(&**name));
    changes.extend(gone.map(|(name, _)| Change { part, name: name.clone(), act: Act::Removed }));
    for (name, one) in new {
        let act = match before.get(&**name) {
            None => Act::Added,
            Some(before) => match keys(before, one) {
                keys if keys.is_empty() => continue,
                keys => Act::Changed(keys),
            },
        };
        changes.push(Change { part, name: name.clone(), act });
    }
}

/// Gathers the keys whose values differ.
#[derive(Default)]
struct Keys(Vec<&'static str>);

impl Keys {
    fn of<T: PartialEq + ?Sized>(mut self, key: &'static str, old: &T, new: &T) -> Self {
        if old != new {
            self.0.push(key);
        }
        self
    }
}

/// The keys that can be changed, then those that can't.
fn server_keys(
    old: &ServerSettings,
    new: &ServerSettings,
) -> (Vec<&'static str>, Vec<&'static str>) {
    let ServerSettings {
        name,
        workers,
        admin,
        admin_token,
        shutdown_delay,
        shutdown_grace,
        log_level,
        log_format,
        access_log,
    } = new;
    let keys = Keys::default()
        .of("admin", &old.admin, admin)
        .of("admin_token", &old.admin_token, admin_token)
        .of("shutdown_delay", &old.shutdown_delay, shutdown_delay)
        .of("shutdown_grace", &old.shutdown_grace, shutdown_grace)
        .of("log.level", &old.log_level, log_level)
        .of("access_log", &old.access_log, access_log);
    let [of_name, of_workers, of_log_format, _] = FIXED;
    let fixed = Keys::default()
        .of(of_name, &old.name, name)
        .of(of_workers, &old.workers, workers)
        .of(of_log_format, &old.log_format, log_format);
    (keys.0, fixed.0)
}

fn listener_keys(old: &ListenerSettings, new: &ListenerSettings) -> Vec<&'static str> {
    let ListenerSettings {
        name,
        bind: _, // by which it is known again
        proxy_protocol,
        certificates,
        tls_timeout,
        trusted,
        header_timeout,
        idle_timeout,
        head_bytes,
        headers,
        connections,
        connections_per_ip,
        keepalive,
    } = new;
    let keys = Keys::default()
        .of("name", &old.name, name)
        .of("proxy_protocol", &old.proxy_protocol, proxy_protocol)
        .of("tls.certificates", &old.certificates, certificates)
        .of("timeouts.tls", &old.tls_timeout, tls_timeout)
        .of("trusted", &old.trusted, trusted)
        .of("timeouts.header", &old.header_timeout, header_timeout)
        .of("timeouts.idle", &old.idle_timeout, idle_timeout)
        .of("limits.head", &old.head_bytes, head_bytes)
        .of("limits.headers", &old.headers, headers)
        .of("limits.connections", &old.connections, connections)
        .of("limits.connections_per_ip", &old.connections_per_ip, connections_per_ip)
        .of("keepalive", &old.keepalive, keepalive);
    keys.0
}

fn route_keys(old: &RouteSettings, new: &RouteSettings) -> Vec<&'static str> {
    let RouteSettings {
        name: _, // by which it is known again
        listener,
        host,
        path,
        pool,
        key,
        sticky_cookie,
        learn,
        allowed_origins,
        rooms,
        on_removed,
        max_connections,
        body_timeout,
        response_timeout,
        relay,
    } = new;
    let RelayPolicy { idle_timeout, ping_interval, max_age, max_message } = relay;
    let keys = Keys::default()
        .of("listener", &old.listener, listener)
        .of("host", &old.host, host)
        .of("path", &old.path, path)
        .of("pool", &old.pool, pool)
        .of("key", &old.key, key)
        .of("sticky_cookie", &old.sticky_cookie, sticky_cookie)
        .of("learn", &old.learn, learn)
        .of("allowed_origins", &old.allowed_origins, allowed_origins)
        .of("rooms", &old.rooms, rooms)
        .of("on_removed", &old.on_removed, on_removed)
        .of("max_connections", &old.max_connections, max_connections)
        .of("timeouts.body", &old.body_timeout, body_timeout)
        .of("timeouts.response", &old.response_timeout, response_timeout)
        .of("idle_timeout", &old.relay.idle_timeout, idle_timeout)
        .of("ping_interval", &old.relay.ping_interval, ping_interval)
        .of("max_age", &old.relay.max_age, max_age)
        .of("max_message", &old.relay.max_message, max_message);
    keys.0
}

fn pool_keys(old: &PoolSettings, new: &PoolSettings) -> Vec<&'static str> {
    let PoolSettings {
        name: _, // by which it is known again
        balance,
        bounded_load,
        slow_start,
        handshake_rate,
        max_connections,
        connect_timeout,
        handshake_timeout,
        drain_timeout,
        keepalive,
        tls,
        backends: _, // parts of their own
        health,
    } = new;
    let HealthSettings {
        kind,
        interval,
        timeout,
        rise,
        fall,
        passive_fall,
        lost_after,
        panic_threshold,
    } = health;
    let keys = Keys::default()
        .of("balance", &old.balance, balance)
        .of("bounded_load", &old.bounded_load, bounded_load)
        .of("slow_start", &old.slow_start, slow_start)
        .of("handshake_rate", &old.handshake_rate, handshake_rate)
        .of("max_connections", &old.max_connections, max_connections)
        .of("connect_timeout", &old.connect_timeout, connect_timeout)
        .of("handshake_timeout", &old.handshake_timeout, handshake_timeout)
        .of("drain_timeout", &old.drain_timeout, drain_timeout)
        .of("keepalive", &old.keepalive, keepalive)
        .of("tls", &old.tls, tls)
        .of("health.kind", &old.health.kind, kind)
        .of("health.interval", &old.health.interval, interval)
        .of("health.timeout", &old.health.timeout, timeout)
        .of("health.rise", &old.health.rise, rise)
        .of("health.fall", &old.health.fall, fall)
        .of("health.passive_fall", &old.health.passive_fall, passive_fall)
        .of("health.lost_after", &old.health.lost_after, lost_after)
        .of("health.panic_threshold", &old.health.panic_threshold, panic_threshold);
    keys.0
}

fn backend_keys(old: &BackendSettings, new: &BackendSettings) -> Vec<&'static str> {
    let BackendSettings { id: _, address, weight } = new;
    Keys::default().of("address", &old.address, address).of("weight", &old.weight, weight).0
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::num::NonZeroUsize;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Environment, parse};

    const BASE: &str = r#"
        [server]
        name = "edge1"
        workers = 2
        [[listener]]
        bind = "127.0.0.1:8080"
        [[route]]
        name = "chat"
        path = "/ws/*"
        pool = "rooms"
        key = ["query:room", "cookie:sid"]
        [[route]]
        path = "/*"
        pool = "web"
        [pool.rooms]
        backends = [{ id = "a", address = "127.0.0.1:9001" }, { id = "b", address = "127.0.0.1:9002" }]
        [pool.web]
        backends = [{ id = "a", address = "127.0.0.1:9003" }]
    "#;

    fn config(source: &str) -> Config {
        let environment = Environment {
            variable: &|_| None,
            file: &|_| Err(io::ErrorKind::NotFound.into()),
            host_name: "host",
            cores: NonZeroUsize::MIN,
            now: std::time::UNIX_EPOCH,
            authorities: &Vec::new,
        };
        parse(source, "config.toml", Path::new(""), &environment)
            .unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// What differs from the base once `from` is written as `to` in it.
    fn told(from: &str, to: &str) -> Vec<String> {
        assert!(BASE.contains(from), "{from}");
        let diff = diff(&config(BASE), &config(&BASE.replacen(from, to, 1)));
        let changes = diff.changes.iter().map(ToString::to_string);
        changes.chain(diff.fixed.iter().map(|key| format!("{key} is fixed"))).collect()
    }

    #[test]
    fn each_change_is_told_once_with_its_keys() {
        for (from, to, expected) in [
            ("workers = 2", "workers = 3", &["server.workers is fixed"][..]),
            ("edge1", "edge2", &["server.name is fixed"]),
            (
                "workers = 2",
                "workers = 2\nlog.level = \"debug\"\nshutdown_grace = \"3s\"",
                &["server: shutdown_grace, log.level changed"],
            ),
            (
                "127.0.0.1:8080\"",
                "127.0.0.1:8081\"",
                &["listener 127.0.0.1:8080: removed", "listener 127.0.0.1:8081: added"],
            ),
            (
                "127.0.0.1:8080\"",
                "127.0.0.1:8080\"\nlimits.headers = 50\ntimeouts.idle = \"5s\"",
                &["listener 127.0.0.1:8080: timeouts.idle, limits.headers changed"],
            ),
            ("\"chat\"", "\"talk\"", &["route chat: removed", "route talk: added"]),
            (
                "\"chat\"",
                "\"chat\"\nmax_message = \"1MiB\"\ntimeouts.body = \"1s\"",
                &["route chat: timeouts.body, max_message changed"],
            ),
            (
                "\"query:room\", \"cookie:sid\"",
                "\"cookie:sid\", \"query:room\"",
                &["route chat: key changed"],
            ),
            ("\"chat\"", "\"chat\"\nrooms = [\"lobby\"]", &["route chat: rooms changed"]),
            (", { id = \"b\", address = \"127.0.0.1:9002\" }", "", &["backend rooms/b: removed"]),
            (
                "127.0.0.1:9001\"",
                "127.0.0.1:9009\", weight = 2",
                &["backend rooms/a: address, weight changed"],
            ),
            (
                "[pool.web]",
                "[pool.web]\nhealth.fall = 9\nconnect_timeout = \"9s\"",
                &["pool web: connect_timeout, health.fall changed"],
            ),
            ("pool = \"web\"", "pool = \"rooms\"", &["route /*: pool changed"]),
        ] {
            assert_eq!(told(from, to), expected, "{to}");
        }
    }

    #[test]
    fn what_means_the_same_is_no_change() {
        for (from, to) in [
            ("workers = 2", "workers   =   2   # as before"),
            ("bind = \"127.0.0.1:8080\"", "bind = '127.0.0.1:8080'\nlimits.headers = 100"),
            (
                "{ id = \"a\", address = \"127.0.0.1:9001\" }, { id = \"b\", address = \"127.0.0.1:9002\" }",
                "{ address = \"127.0.0.1:9002\", id = \"b\" }, { id = \"a\", weight = 1, address = \"127.0.0.1:9001\" }",
            ),
        ] {
            assert_eq!(told(from, to), [""; 0], "{to}");
        }
    }

    #[test]
    fn listeners_on_free_ports_are_told_apart_by_their_order() {
        let two = BASE.replacen(
            "127.0.0.1:8080\"",
            "127.0.0.1:0\"\n[[listener]]\nbind = \"127.0.0.1:0\"",
            1,
        );
        let one = BASE.replacen("127.0.0.1:8080\"", "127.0.0.1:0\"", 1);
        let changes = diff(&config(&two), &config(&one)).changes;
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(changes, ["listener 127.0.0.1:0 #2: removed"]);
    }

    #[test]
    fn the_whole_pool_goes_with_its_backends() {
        let without = BASE.replacen("pool = \"web\"", "pool = \"rooms\"", 1);
        let (without, _) = without.split_once("[pool.web]").unwrap();
        let changes = diff(&config(BASE), &config(without)).changes;
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(
            changes,
            ["route /*: pool changed", "pool web: removed", "backend web/a: removed"]
        );
    }

    /// A config of some routes and backends, by bits.
    fn of_bits(bits: u16) -> Config {
        use std::fmt::Write as _;
        let mut source =
            "[server]\nname = \"e\"\nworkers = 1\n[[listener]]\nbind = \"127.0.0.1:1\"\n"
                .to_owned();
        source += "[[route]]\npath = \"/*\"\npool = \"p\"\n";
        for route in (0..4).filter(|route| bits >> route & 1 == 1) {
            let size = 1 + (bits >> 8 & 3);
            let _ = write!(
                source,
                "[[route]]\npath = \"/{route}\"\npool = \"p\"\nmax_message = {size}\n"
            );
        }
        source += "[pool.p]\nbackends = [{ id = \"z\", address = \"127.0.0.1:9\" }";
        for backend in (0..4).filter(|backend| bits >> (4 + backend) & 1 == 1) {
            let _ = write!(
                source,
                ", {{ id = \"{backend}\", address = \"127.0.0.1:{}\" }}",
                10 + (bits >> 10 & 1)
            );
        }
        config(&(source + "]\n"))
    }

    proptest! {
        #[test]
        fn a_diff_backwards_undoes_it(one in any::<u16>(), two in any::<u16>()) {
            let (one, two) = (of_bits(one), of_bits(two));
            let (there, back) = (diff(&one, &two).changes, diff(&two, &one).changes);
            prop_assert_eq!(there.len(), back.len());
            for change in &there {
                let act = match &change.act {
                    Act::Added => Act::Removed,
                    Act::Removed => Act::Added,
                    Act::Changed(keys) => Act::Changed(keys.clone()),
                };
                let undone = Change { act, ..change.clone() };
                prop_assert!(back.contains(&undone));
            }
            prop_assert_eq!(there.is_empty(), one == two);
            prop_assert!(diff(&one, &one).is_empty());
        }
    }
}
