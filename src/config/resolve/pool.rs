//! `[pool.NAME]`: backends, how they are reached and how they are watched.
//!
//! The ring is bounded: a pool whose weights ask for more points than it may have is refused
//! here, where there is somebody to read why, and not when a proxy can't get the memory.

use std::net::{Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use super::limits::{count_or_zero, duration_or_zero, keepalive, number, time_out};
use super::names::{self, Seen};
use super::route::is_host_name;
use super::tls::{self, Files};
use crate::config::problems::Problems;
use crate::config::raw::{Cursor, Located};
use crate::config::value::quoted;
use crate::pool::{
    BackendAddress, BackendSettings, Balance, CheckKind, HealthSettings, PoolSettings,
};

/// Points on the ring for each unit of weight.
const POINTS_PER_WEIGHT: u64 = 1024;

/// The most points of one ring.
const MOST_POINTS: u64 = 1_048_576;

const BACKENDS: &str =
    "write at least one, such as backends = [{ id = \"a\", address = \"10.0.0.1:9001\" }]";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Http,
    WebSocket,
    Tcp,
    Off,
}

const KINDS: [(&str, Kind); 4] =
    [("http", Kind::Http), ("tcp", Kind::Tcp), ("websocket", Kind::WebSocket), ("off", Kind::Off)];

const BALANCERS: [Balance; 4] =
    [Balance::ConsistentHash, Balance::LeastConnections, Balance::RoundRobin, Balance::RandomTwo];

/// A backend can't be asked for more than one handshake in a microsecond.
const MOST_HANDSHAKES: u32 = 1_000_000;

/// More than so many times the average is no bound.
const LARGEST_BOUND: f64 = 1000.0;

/// Resolves the pool of this name.
pub(super) fn resolve(
    name: &Located<&str>,
    mut table: Cursor<'_>,
    files: Files<'_>,
    problems: &mut Problems,
) -> PoolSettings {
    table.set_place(format!("pool {}", quoted(name.value)));
    if !names::is_name(name.value) {
        table.note(
            problems,
            name.span.clone(),
            "name",
            &format!("is not allowed; {}", names::NAME_FORM),
        );
    }
    let balancers = BALANCERS.map(|balance| (balance.as_str(), balance));
    let default = Balance::ConsistentHash;
    let balance = super::choice(&mut table, "balance", &balancers, default, problems);
    let settings = PoolSettings {
        name: name.value.to_owned(),
        balance,
        bounded_load: bounded_load(&mut table, balance, problems),
        slow_start: duration_or_zero(&mut table, "slow_start", Duration::ZERO, problems),
        handshake_rate: number(
            &mut table,
            "handshake_rate",
            0,
            0..=MOST_HANDSHAKES,
            "0 is no limit",
            problems,
        ),
        max_connections: count_or_zero(&mut table, "max_connections", problems),
        connect_timeout: time_out(&mut table, "connect_timeout", Duration::from_secs(2), problems),
        handshake_timeout: time_out(
            &mut table,
            "handshake_timeout",
            Duration::from_secs(10),
            problems,
        ),
        drain_timeout: duration_or_zero(
            &mut table,
            "drain_timeout",
            Duration::from_secs(60),
            problems,
        ),
        keepalive: keepalive(&mut table, Duration::from_secs(30), problems),
        tls: tls::with_backends(&mut table, files, problems),
        backends: backends(&mut table, problems),
        health: health(&mut table, problems),
    };
    table.finish(problems);
    settings
}

/// 0 is off; from there to 1 the bounds together would be less than there is.
fn bounded_load(table: &mut Cursor<'_>, balance: Balance, problems: &mut Problems) -> f64 {
    let Some(factor) = table.take::<f64>("bounded_load", problems) else { return 0.0 };
    let is_factor = factor.value > 1.0 && factor.value <= LARGEST_BOUND;
    if factor.value != 0.0 && !is_factor {
        let what = "must be above 1 and at most 1000, such as 1.25: how many times its share a \
                    backend may have and still get new keys; 0 turns it off";
        table.note(problems, factor.span, "bounded_load", what);
    } else if factor.value != 0.0 && balance != Balance::ConsistentHash {
        let what = format!(
            "is for balance = \"consistent_hash\" only: {} does not overload a backend by its \
             keys; leave it out",
            balance.as_str()
        );
        table.note(problems, factor.span, "bounded_load", &what);
    }
    factor.value
}

fn backends(table: &mut Cursor<'_>, problems: &mut Problems) -> Vec<BackendSettings> {
    let given = table.span_of("backends");
    let before = problems.len();
    let cursors = table.tables("backends", "pool.backends", BACKENDS, problems);
    let Some(span) = given else {
        // Whoever asks for discovery is told that alone.
        if !table.has("discover") {
            table.note(problems, table.span(), "backends", &format!("is missing; {BACKENDS}"));
        }
        return Vec::new();
    };
    if cursors.is_empty() && problems.len() == before {
        table.note(problems, span.clone(), "backends", &format!("is empty; {BACKENDS}"));
    }
    let mut seen = Seen::new();
    let backends: Vec<_> = cursors
        .into_iter()
        .enumerate()
        .filter_map(|(index, cursor)| backend(table, cursor, index, &mut seen, problems))
        .collect();
    ring_size(table, span, &backends, problems);
    backends
}

fn ring_size(
    table: &Cursor<'_>,
    span: std::ops::Range<usize>,
    backends: &[BackendSettings],
    problems: &mut Problems,
) {
    let weight: u64 = backends.iter().map(|backend| u64::from(backend.weight.get())).sum();
    let points = weight.saturating_mul(POINTS_PER_WEIGHT);
    if points > MOST_POINTS {
        let what = format!(
            "have weights that add up to {weight}: {points} points on the ring, of which it can hold \
             {MOST_POINTS} (a total weight of {}); divide all weights by the same number, or divide the pool",
            MOST_POINTS / POINTS_PER_WEIGHT
        );
        table.note(problems, span, "backends", &what);
    }
}

fn backend(
    pool: &Cursor<'_>,
    mut table: Cursor<'_>,
    index: usize,
    seen: &mut Seen<String>,
    problems: &mut Problems,
) -> Option<BackendSettings> {
    let place = names::place("backend", table.peek("id"), index);
    table.set_place(format!("{}, {place}", pool.place()));
    let id = backend_id(&mut table, seen, problems);
    let address = backend_address(&mut table, problems);
    let remedy = "to stop sending to a backend, drain it";
    let weight = weight(&mut table, remedy, problems);
    table.finish(problems);
    Some(BackendSettings { id: id?, address: address?, weight })
}

/// Share of what comes. Absent means 1.
fn weight(table: &mut Cursor<'_>, remedy: &str, problems: &mut Problems) -> NonZeroU32 {
    let weight = number(table, "weight", 1, 1..=u32::MAX, remedy, problems);
    NonZeroU32::new(weight).unwrap_or(NonZeroU32::MIN)
}

fn backend_id(
    table: &mut Cursor<'_>,
    seen: &mut Seen<String>,
    problems: &mut Problems,
) -> Option<String> {
    let remedy = "write a name that stays with this backend when its address changes";
    let id = table.require::<String>("id", remedy, problems)?;
    if !names::is_backend_id(&id.value) {
        let what =
            format!("can't be {}; use 1 to 64 letters, digits, -, _, . and :", quoted(&id.value));
        table.note(problems, id.span, "id", &what);
        return None;
    }
    if let Some(first) = seen.again(id.value.clone(), id.span.clone()) {
        let line = problems.line_of(first.start);
        let what = format!("is taken by the backend on line {line}; ids are unique within a pool");
        table.note(problems, id.span, "id", &what);
    }
    Some(id.value)
}

fn backend_address(table: &mut Cursor<'_>, problems: &mut Problems) -> Option<BackendAddress> {
    let remedy = "write where it listens, such as address = \"10.0.0.1:9001\"";
    let text = table.require::<String>("address", remedy, problems)?;
    match address(&text.value) {
        Ok(address) => Some(address),
        Err(what) => {
            let what = format!("{}: {what}", quoted(&text.value));
            table.note(problems, text.span, "address", &what);
            None
        }
    }
}

fn address(text: &str) -> Result<BackendAddress, &'static str> {
    const FORM: &str = "write an IP address or host name and a port, such as \"10.0.0.1:9001\", \
                        \"[2001:db8::1]:9001\" or \"rooms.internal:9001\"";
    if let Ok(address) = text.parse::<SocketAddr>() {
        let port_fits = address.port() != 0;
        return if port_fits {
            Ok(BackendAddress::Ip(address))
        } else {
            Err("a port is from 1 to 65535")
        };
    }
    if text.contains("://") || text.contains('/') {
        return Err("leave out scheme and path; write host and port alone");
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err("an IPv6 address stands in brackets before its port, as in \"[::1]:9001\"");
    }
    let (host, port) = text.rsplit_once(':').ok_or("has no port; add one, such as :9001")?;
    let port = match port.parse::<u16>() {
        Ok(port) if port != 0 && !text.ends_with(&format!("+{port}")) => port,
        _ => return Err("a port is from 1 to 65535"),
    };
    // Four numbers that are no IPv4 address are a slip, not a host name.
    let numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if numeric || !is_host_name(host) {
        return Err(FORM);
    }
    Ok(BackendAddress::Name(host.to_ascii_lowercase(), port))
}

fn health(table: &mut Cursor<'_>, problems: &mut Problems) -> HealthSettings {
    let mut health = table.table("health", "pool.health", "health.", problems);
    let settings = HealthSettings {
        kind: check_kind(&mut health, problems),
        interval: time_out(&mut health, "interval", Duration::from_secs(2), problems),
        timeout: time_out(&mut health, "timeout", Duration::from_secs(1), problems),
        rise: at_least_once(&mut health, "rise", 2, problems),
        fall: at_least_once(&mut health, "fall", 3, problems),
        passive_fall: number(
            &mut health,
            "passive_fall",
            5,
            0..=u32::MAX,
            "0 turns it off",
            problems,
        ),
        lost_after: duration_or_zero(&mut health, "lost_after", Duration::from_secs(30), problems),
        panic_threshold: panic_threshold(&mut health, problems),
    };
    health.finish(problems);
    settings
}

fn panic_threshold(health: &mut Cursor<'_>, problems: &mut Problems) -> f64 {
    let Some(share) = health.take::<f64>("panic_threshold", problems) else { return 0.0 };
    if !(0.0..=1.0).contains(&share.value) {
        let what = "must be a share from 0 to 1, such as 0.5; 0 turns it off";
        health.note(problems, share.span, "panic_threshold", what);
    }
    share.value
}

fn at_least_once(
    health: &mut Cursor<'_>,
    key: &'static str,
    default: u32,
    problems: &mut Problems,
) -> u32 {
    let remedy = "kind = \"off\" turns the checks off";
    number(health, key, default, 1..=u32::MAX, remedy, problems)
}

fn check_kind(health: &mut Cursor<'_>, problems: &mut Problems) -> CheckKind {
    // A kind that is wrong has been told about; its path is no second mistake.
    let kind_given = health.peek("kind").map(str::to_owned);
    let kind = super::choice(health, "kind", &KINDS, Kind::Tcp, problems);
    let path = health.take::<String>("path", problems);
    match (kind, path) {
        (Kind::Http | Kind::WebSocket, path) => {
            let Some(path) = path else { return asking(kind, "/health".to_owned()) };
            if !path.value.starts_with('/') || !path.value.bytes().all(is_path_byte) {
                let what =
                    "must begin with a slash and have no spaces, # or other than ASCII characters";
                health.note(problems, path.span, "path", what);
            }
            asking(kind, path.value)
        }
        (other, path) => {
            let meant = kind_given.is_none_or(|kind| matches!(kind.as_str(), "tcp" | "off"));
            if let Some(path) = path.filter(|_| meant) {
                let what = "is for checks that ask for one; write kind = \"http\" or \"websocket\" beside it, or leave it out";
                health.note(problems, path.span, "path", what);
            }
            if other == Kind::Off { CheckKind::Off } else { CheckKind::Tcp }
        }
    }
}

fn asking(kind: Kind, path: String) -> CheckKind {
    if kind == Kind::WebSocket { CheckKind::WebSocket { path } } else { CheckKind::Http { path } }
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'#'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_ip_or_a_name_with_a_port() {
        let ip = |text: &str| Ok(BackendAddress::Ip(text.parse().unwrap()));
        assert_eq!(address("10.0.0.1:9001"), ip("10.0.0.1:9001"));
        assert_eq!(address("[2001:db8::1]:9001"), ip("[2001:db8::1]:9001"));
        assert_eq!(
            address("Rooms.internal:1"),
            Ok(BackendAddress::Name("rooms.internal".to_owned(), 1))
        );
        for wrong in [
            "",
            ":",
            ":9001",
            "a",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:-1",
            "a:b",
            "10.0.0.1",
            "10.0.0.1:0",
            "::1",
            "::1:9001",
            "10.0.0.256:1",
            "http://a:1",
            "a:1/x",
            "a b:1",
            "a..b:1",
            "unix:/x",
        ] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
