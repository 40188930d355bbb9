//! From the file to [`Config`], the only way across.
//!
//! One file per table of the config; each takes its keys with a [`Cursor`], checks what can be
//! checked within the table, and gives what was resolved with the places of whatever others are
//! compared with. Here the tables are put together: names and addresses given twice, routes that
//! name what doesn't exist, and routes that match the same requests with equal right.
//!
//! Everything is checked even after a problem: what is wrong gets its default, or is left out,
//! and the caller throws the result away. So a mistake must not be the cause of a second message
//! about something that is right: what is known by name counts as known even if it is broken.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use toml::de::DeTable;

use self::names::{Seen, suggestion};
use super::problems::Problems;
use super::raw::{Cursor, Located};
use super::value::quoted;
use super::{Config, Environment, ServerSettings};
use crate::route::HostPattern;

mod limits;
mod listener;
mod names;
mod pool;
mod registry;
mod route;
mod secret;
mod server;
mod sticky;
mod tls;

/// Resolves a whole file. What it gives is a config to be used only if nothing was noted.
pub(super) fn resolve(
    file: &DeTable<'_>,
    folder: &Path,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Config {
    let mut root = Cursor::root(file, environment);
    let server = root.table("server", "server", "", problems);
    let (server, admin) = server::resolve(server, folder, environment, problems);
    let files = tls::Files { folder, environment };
    let listeners = listeners(&mut root, files, problems);
    let routes = routes(&mut root, problems);
    let (pools, pool_names, without_ring) = pools(&mut root, files, problems);
    let registry = registry::resolve(&mut root, folder, environment, problems);
    root.finish(problems);

    addresses_once(admin.as_ref(), &listeners, problems);
    listener_names_once(&listeners, problems);
    routes_name_what_exists(&routes, &listeners, &pool_names, problems);
    cookies_need_a_ring(&routes, &without_ring, problems);
    no_route_ties_with_another(&routes, problems);
    Config {
        server,
        listeners: listeners.into_iter().filter_map(|listener| listener.settings).collect(),
        routes: routes.into_iter().filter_map(|route| route.settings).collect(),
        pools,
        registry,
    }
}

/// Resolves `[server]` alone; what is wrong in it gets its default, and nobody is told.
pub(super) fn server_of(
    file: &DeTable<'_>,
    folder: &Path,
    environment: &Environment<'_>,
) -> ServerSettings {
    let mut problems = Problems::new("", "");
    let mut root = Cursor::root(file, environment);
    let server = root.table("server", "server", "", &mut problems);
    server::resolve(server, folder, environment, &mut problems).0
}

fn listeners(
    root: &mut Cursor<'_>,
    files: tls::Files<'_>,
    problems: &mut Problems,
) -> Vec<listener::Resolved> {
    let before = problems.len();
    let tables = root.tables("listener", "listener", "write [[listener]]", problems);
    if tables.is_empty() && problems.len() == before {
        problems.whole("there is no listener; add [[listener]] with bind = \"0.0.0.0:8080\"");
    }
    let numbered = tables.into_iter().enumerate();
    numbered.map(|(index, table)| listener::resolve(table, index, files, problems)).collect()
}

fn routes(root: &mut Cursor<'_>, problems: &mut Problems) -> Vec<route::Resolved> {
    let before = problems.len();
    let tables = root.tables("route", "route", "write [[route]]", problems);
    if tables.is_empty() && problems.len() == before {
        problems.whole("there is no route; add [[route]] with path = \"/*\" and pool = \"NAME\"");
    }
    let numbered = tables.into_iter().enumerate();
    numbered.map(|(index, table)| route::resolve(table, index, problems)).collect()
}

fn pools<'t>(
    root: &mut Cursor<'t>,
    files: tls::Files<'_>,
    problems: &mut Problems,
) -> (Vec<crate::pool::PoolSettings>, Vec<&'t str>, Vec<&'t str>) {
    let mut table = root.table("pool", "pools", "pool.", problems);
    let named = table.named_tables("pool", "write [pool.NAME]", problems);
    let names = named.iter().map(|(name, _)| name.value).collect();
    let without_ring = named.iter().filter(|(_, table)| {
        table.peek("balance").is_some_and(|balance| WITHOUT_RING.contains(&balance))
    });
    let without_ring = without_ring.map(|(name, _)| name.value).collect();
    let pools = named.into_iter().map(|(name, table)| pool::resolve(&name, table, files, problems));
    (pools.collect(), names, without_ring)
}

/// The ways to balance that do not place keys.
const WITHOUT_RING: [&str; 3] = ["least_connections", "round_robin", "random_two"];

/// A cookie is a key, and where keys are not placed it has no effect.
fn cookies_need_a_ring(routes: &[route::Resolved], without_ring: &[&str], problems: &mut Problems) {
    for route in routes {
        let (Some(cookie), Some(pool)) = (&route.sticky_cookie, &route.pool) else { continue };
        if without_ring.contains(&pool.value.as_str()) {
            let message = format!(
                "{}: sticky_cookie has no effect in the pool {}, which places no keys; write balance = \
                 \"consistent_hash\" there, or leave the cookie out",
                route.place,
                quoted(&pool.value)
            );
            problems.at(cookie.clone(), message);
        }
    }
}

fn addresses_once(
    admin: Option<&Located<SocketAddr>>,
    listeners: &[listener::Resolved],
    problems: &mut Problems,
) {
    let mut seen = Seen::new();
    if let Some(admin) = admin.filter(|admin| admin.value.port() != 0) {
        seen.again(admin.value, admin.span.clone());
    }
    for listener in listeners {
        let Some(bind) = listener.bind.as_ref().filter(|bind| bind.value.port() != 0) else {
            continue;
        };
        if let Some(first) = seen.again(bind.value, bind.span.clone()) {
            let line = problems.line_of(first.start);
            let message = format!(
                "{}: bind is {}, which line {line} takes already; use another port",
                listener.place, bind.value
            );
            problems.at(bind.span.clone(), message);
        }
    }
}

fn listener_names_once(listeners: &[listener::Resolved], problems: &mut Problems) {
    let mut seen = Seen::new();
    for name in listeners.iter().filter_map(|listener| listener.name.as_ref()) {
        if let Some(first) = seen.again(name.value.as_str(), name.span.clone()) {
            let line = problems.line_of(first.start);
            let message = format!(
                "listener {}: name is taken by the listener on line {line}; use another",
                quoted(&name.value)
            );
            problems.at(name.span.clone(), message);
        }
    }
}

fn routes_name_what_exists(
    routes: &[route::Resolved],
    listeners: &[listener::Resolved],
    pools: &[&str],
    problems: &mut Problems,
) {
    let pools: BTreeSet<&str> = pools.iter().copied().collect();
    let listener_names: BTreeSet<&str> = listeners
        .iter()
        .filter_map(|listener| listener.name.as_ref())
        .map(|name| name.value.as_str())
        .collect();
    for route in routes {
        let named = [("listener", &route.listener, &listener_names), ("pool", &route.pool, &pools)];
        for (key, name, known) in named {
            let Some(name) = name else { continue };
            if !known.contains(name.value.as_str()) {
                // Not looked for in vain: each costs a comparison with every name.
                let looked_at = if problems.are_all_shown() { 1000 } else { 0 };
                let remedy = suggestion(&name.value, known.iter().copied().take(looked_at));
                let what = format!("no {key} is named {}; {remedy}", quoted(&name.value));
                problems.at(name.span.clone(), format!("{}: {key}: {what}", route.place));
            }
        }
    }
}

/// Two routes tie where host, path and listener are the same: then none is the more specific.
/// Where they only go by the same name, logs and metrics could not tell them apart.
fn no_route_ties_with_another(routes: &[route::Resolved], problems: &mut Problems) {
    let mut matches = Seen::new();
    let mut names = Seen::new();
    for route in routes {
        if let Some(request) = &route.matches
            && let Some(first) = matches.again(&request.value, request.span.clone())
        {
            let message = tie(route, &request.value.0, problems.line_of(first.start));
            problems.at(request.span.clone(), message);
            continue;
        }
        let Some(name) = &route.name else { continue };
        if let Some(first) = names.again(name.value.as_str(), name.span.clone()) {
            let line = problems.line_of(first.start);
            problems.at(name.span.clone(), same_name(route, &name.value, line));
        }
    }
}

fn tie(route: &route::Resolved, host: &HostPattern, line: usize) -> String {
    let host = match host {
        HostPattern::Any => "any host".to_owned(),
        HostPattern::Exact(name) => format!("host {}", quoted(name)),
        HostPattern::Suffix(suffix) => format!("host {}", quoted(&format!("*{suffix}"))),
    };
    format!(
        "{}: path matches the same requests as that on line {line} (the same path, {host}, the same \
         listeners), so neither goes first; make one more specific, or leave it out",
        route.place
    )
}

fn same_name(route: &route::Resolved, name: &str, line: usize) -> String {
    if name.starts_with('/') {
        let place = &route.place;
        return format!(
            "{place}: path is its name, since it has none, and so it is on line {line}; give it a name"
        );
    }
    format!("{}: name is taken by the route on line {line}; use another", route.place)
}

/// Reads an address to listen on.
fn socket_address(
    table: &Cursor<'_>,
    key: &str,
    text: &Located<String>,
    example: &str,
    problems: &mut Problems,
) -> Option<Located<SocketAddr>> {
    if let Ok(value) = text.value.parse() {
        return Some(Located { value, span: text.span.clone() });
    }
    let what = format!(
        "is no IP address with a port: {}; write one such as {example:?}",
        quoted(&text.value)
    );
    table.note(problems, text.span.clone(), key, &what);
    None
}

/// Takes one of several words.
fn choice<T: Copy>(
    table: &mut Cursor<'_>,
    key: &'static str,
    known: &[(&str, T)],
    default: T,
    problems: &mut Problems,
) -> T {
    let Some(text) = table.take::<String>(key, problems) else { return default };
    if let Some((_, value)) = known.iter().find(|(word, _)| *word == text.value) {
        return *value;
    }
    let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
    table.note_choice(problems, key, &text, &words);
    default
}
