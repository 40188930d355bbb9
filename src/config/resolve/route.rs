//! `[[route]]`: which requests, which pool, where their key is, how they are relayed.
//!
//! Patterns are compared with what clients send, byte for byte, so a pattern that no request can
//! match (a path with a query, a host with a port) is taken for a mistake, not for a route that
//! is never used.

use std::net::Ipv6Addr;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use super::limits::{count_or_zero, duration_or_zero, size, time_out};
use super::{names, sticky};
use crate::config::problems::Problems;
use crate::config::raw::{Cursor, Located};
use crate::config::unsupported::NOT_SUPPORTED;
use crate::config::value::quoted;
use crate::route::{
    HostPattern, KeySource, Learn, OnRemoved, PathPattern, RoomTemplate, RouteSettings,
};
use crate::ws::RelayPolicy;
use crate::ws::rooms::MAX_ROOMS;

/// Payload of one message: RFC 6455 section 5.2 allows for 63 bits.
const MESSAGE: RangeInclusive<u64> = 1..=(1 << 63) - 1;

/// One route, and where the parts of it stand that others are compared with.
pub(super) struct Resolved {
    pub(super) place: String,
    /// Its name, or its path where it has none.
    pub(super) name: Option<Located<String>>,
    pub(super) listener: Option<Located<String>>,
    pub(super) pool: Option<Located<String>>,
    /// Where its sticky cookie stands, if it has one.
    pub(super) sticky_cookie: Option<Range<usize>>,
    /// What it matches, at the place of its path: host, path, listener.
    pub(super) matches: Option<Located<(HostPattern, PathPattern, Option<String>)>>,
    /// `None` where something that it can't be without is missing or wrong.
    pub(super) settings: Option<RouteSettings>,
}

/// Resolves the route that is the `index`-th in the file.
pub(super) fn resolve(mut table: Cursor<'_>, index: usize, problems: &mut Problems) -> Resolved {
    table.set_place(names::place("route", table.peek("name").or(table.peek("path")), index));
    let has_name = table.has("name");
    let name = names::name(&mut table, problems);
    let has_listener = table.has("listener");
    let listener = table.take::<String>("listener", problems);
    let host = host(&mut table, problems);
    let remedy = "write path = \"/*\" for all paths";
    let path = table.require::<String>("path", remedy, problems);
    let pattern = path.as_ref().and_then(|path| path_pattern(&table, path, problems));
    let pool = table.require::<String>("pool", "write the name of one", problems);
    let requests = host.clone().zip(pattern.clone()).zip(path.as_ref());
    let matches =
        requests.filter(|_| has_listener == listener.is_some()).map(|((host, pattern), path)| {
            let listener = listener.as_ref().map(|name| name.value.clone());
            Located { value: (host, pattern, listener), span: path.span.clone() }
        });
    let name = if has_name { name } else { path };
    let has_key = table.has("key") || table.has("sticky_cookie");
    let mut key = keys(&mut table, problems);
    let cookie_span = table.span_of("sticky_cookie");
    let sticky_cookie = sticky::cookie(&mut table, problems);
    if let Some(cookie) = &sticky_cookie {
        if key.contains(&KeySource::ClientIp) {
            let span = cookie_span.clone().unwrap_or_else(|| table.span());
            let what = "is never needed beside the key client_ip, which every request has; leave one of them out";
            table.note(problems, span, "sticky_cookie", what);
        }
        key.push(KeySource::Cookie(cookie.name.clone()));
    }
    let known = [("off", Learn::Off), ("socketio", Learn::SocketIo), ("signalr", Learn::SignalR)];
    let learn = super::choice(&mut table, "learn", &known, Learn::Off, problems);
    let allowed_origins = origins(&mut table, problems);
    let rooms = rooms(&mut table, has_key, problems);
    super::choice(&mut table, "on_backend_loss", &[("close", ())], (), problems);
    let known =
        [("keep", OnRemoved::Keep), ("drain", OnRemoved::Drain), ("close", OnRemoved::Close)];
    let on_removed = super::choice(&mut table, "on_removed", &known, OnRemoved::Drain, problems);
    let max_connections = count_or_zero(&mut table, "max_connections", problems);
    let (body_timeout, response_timeout) = timeouts(&mut table, problems);
    let relay = relay(&mut table, problems);
    let place = table.place().to_owned();
    table.finish(problems);
    let settings = (|| {
        Some(RouteSettings {
            name: name.as_ref()?.value.clone(),
            listener: listener.as_ref().map(|listener| listener.value.clone()),
            host: host?,
            path: pattern?,
            pool: pool.as_ref()?.value.clone(),
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
        })
    })();
    let sticky_cookie = cookie_span;
    Resolved { place, name, listener, pool, sticky_cookie, matches, settings }
}

/// `None` where it was found wrong.
fn host(table: &mut Cursor<'_>, problems: &mut Problems) -> Option<HostPattern> {
    let had = table.has("host");
    let Some(text) = table.take::<String>("host", problems) else {
        return (!had).then_some(HostPattern::Any);
    };
    match host_pattern(&text.value.to_ascii_lowercase()) {
        Ok(pattern) => Some(pattern),
        Err(what) => {
            table.note(problems, text.span, "host", &format!("{}: {what}", quoted(&text.value)));
            None
        }
    }
}

fn host_pattern(host: &str) -> Result<HostPattern, &'static str> {
    if host.is_empty() || host == "*" {
        return Err("leave it out for any host");
    }
    if is_bracketed_ipv6(host) {
        return Ok(HostPattern::Exact(host.to_owned()));
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    if name.contains('*') {
        return Err("a * can stand only for the beginning, as in \"*.example.com\"");
    }
    if name.contains("://") || name.contains('/') {
        return Err("write the host alone, without scheme and path");
    }
    if name.contains(':') {
        return Err("leave out the port; listener = \"NAME\" makes a route for one address only");
    }
    if !name.is_ascii() {
        return Err("write it as browsers send it, which begins with xn--");
    }
    if !is_host_name(name) {
        return Err("is no host name; use letters, digits, - and _, with single dots between");
    }
    Ok(if name == host {
        HostPattern::Exact(name.to_owned())
    } else {
        HostPattern::Suffix(format!(".{name}"))
    })
}

fn is_bracketed_ipv6(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
}

/// Tells whether a text is a host name of letters, digits, dashes, underscores and dots.
pub(super) fn is_host_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    text.len() <= 253
        && text.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(fits))
}

fn path_pattern(
    table: &Cursor<'_>,
    path: &Located<String>,
    problems: &mut Problems,
) -> Option<PathPattern> {
    let text = path.value.as_str();
    let prefix = text.strip_suffix('*');
    let what = if !text.starts_with('/') {
        "must begin with a slash"
    } else if prefix.unwrap_or(text).contains('*') {
        "can have one * only, at its end"
    } else if text.contains(['?', '#']) {
        "is compared without query and fragment; leave them out"
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        "is compared as clients send it; write other characters percent-encoded, a space as %20"
    } else {
        return Some(match prefix {
            Some(prefix) => PathPattern::Prefix(prefix.to_owned()),
            None => PathPattern::Exact(text.to_owned()),
        });
    };
    table.note(problems, path.span.clone(), "path", what);
    None
}

fn keys(table: &mut Cursor<'_>, problems: &mut Problems) -> Vec<KeySource> {
    let mut sources = Vec::new();
    for text in table.one_or_list::<String>("key", problems) {
        match key_source(&text.value) {
            Ok(source) => sources.push(source),
            Err(what) => {
                let what = format!("{}: {what}", quoted(&text.value));
                table.note(problems, text.span, "key", &what);
            }
        }
    }
    sources
}

const SOURCES: &str =
    "write \"query:NAME\", \"header:NAME\", \"cookie:NAME\", \"path:N\" or \"client_ip\"";

fn key_source(text: &str) -> Result<KeySource, String> {
    if text == "client_ip" {
        return Ok(KeySource::ClientIp);
    }
    let (kind, name) = text.split_once(':').unwrap_or((text, ""));
    let source = match kind {
        "jwt" => return Err(format!("jwt is {NOT_SUPPORTED}; {SOURCES}")),
        "query" if !name.is_empty() => KeySource::Query(name.to_owned()),
        "cookie" if is_token(name) => KeySource::Cookie(name.to_owned()),
        "cookie" => return Err("needs the name of a cookie, as in \"cookie:sid\"".to_owned()),
        "header" => header(name)?,
        "path" => match name.parse() {
            Ok(number @ 1..=1000) => KeySource::Path(number),
            _ => return Err("needs the number of a segment, from 1, as in \"path:2\"".to_owned()),
        },
        "query" => return Err("needs the name of a parameter, as in \"query:room\"".to_owned()),
        _ => return Err(format!("is no source of a key; {SOURCES}")),
    };
    Ok(source)
}

fn header(name: &str) -> Result<KeySource, String> {
    let name = http::HeaderName::from_bytes(name.as_bytes());
    name.map(KeySource::Header)
        .map_err(|_| "needs the name of a header, as in \"header:x-room\"".to_owned())
}

/// Names of cookies are tokens (RFC 6265 section 4.1.1, RFC 9110 section 5.6.2).
pub(super) fn is_token(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(fits)
}

fn origins(table: &mut Cursor<'_>, problems: &mut Problems) -> Vec<String> {
    let mut origins = Vec::new();
    for text in table.list::<String>("allowed_origins", problems) {
        if is_origin(&text.value) {
            origins.push(text.value);
            continue;
        }
        let remedy = if text.value == "*" {
            "leave the list out for any origin"
        } else {
            "write scheme and host, and nothing behind them: \"https://chat.example.com\""
        };
        let what = format!("has {}, which no browser sends; {remedy}", quoted(&text.value));
        table.note(problems, text.span, "allowed_origins", &what);
    }
    origins
}

/// RFC 6454 section 6.2: scheme, host, and a port where it is not the scheme's own.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return text == "null" };
    let visible = |byte: u8| byte.is_ascii_graphic() && !b"/?#@*".contains(&byte);
    let scheme_fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    !scheme.is_empty()
        && scheme.bytes().all(scheme_fits)
        && !host.is_empty()
        && host.bytes().all(visible)
}

/// The rooms that every connection joins. `has_key` says whether those of the route can have a key.
fn rooms(table: &mut Cursor<'_>, has_key: bool, problems: &mut Problems) -> Vec<RoomTemplate> {
    let span = table.span_of("rooms");
    let mut rooms = Vec::new();
    for text in table.list::<String>("rooms", problems) {
        let what = match RoomTemplate::new(&text.value) {
            Ok(room) if room.needs_key() && !has_key => {
                "needs a key, and the route has none; say where it is with key".to_owned()
            }
            Ok(room) if rooms.contains(&room) => "stands there twice; keep one".to_owned(),
            Ok(room) => {
                rooms.push(room);
                continue;
            }
            Err(what) => what,
        };
        table.note(problems, text.span, "rooms", &format!("{}: {what}", quoted(&text.value)));
    }
    if rooms.len() > MAX_ROOMS {
        let what = format!("has {} rooms; a connection is in {MAX_ROOMS} at most", rooms.len());
        table.note(problems, span.unwrap_or_else(|| table.span()), "rooms", &what);
    }
    rooms
}

fn timeouts(table: &mut Cursor<'_>, problems: &mut Problems) -> (Duration, Duration) {
    let mut timeouts = table.table("timeouts", "route.timeouts", "timeouts.", problems);
    let body = time_out(&mut timeouts, "body", Duration::from_secs(30), problems);
    let response = time_out(&mut timeouts, "response", Duration::from_secs(60), problems);
    timeouts.finish(problems);
    (body, response)
}

fn relay(table: &mut Cursor<'_>, problems: &mut Problems) -> RelayPolicy {
    RelayPolicy {
        idle_timeout: duration_or_zero(table, "idle_timeout", Duration::ZERO, problems),
        ping_interval: duration_or_zero(table, "ping_interval", Duration::from_secs(45), problems),
        max_age: duration_or_zero(table, "max_age", Duration::ZERO, problems),
        max_message: size(table, "max_message", 16 << 20, &MESSAGE, problems),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_exact_or_a_suffix() {
        assert_eq!(
            host_pattern("chat.example.com"),
            Ok(HostPattern::Exact("chat.example.com".to_owned()))
        );
        assert_eq!(
            host_pattern("*.example.com"),
            Ok(HostPattern::Suffix(".example.com".to_owned()))
        );
        assert_eq!(host_pattern("[::1]"), Ok(HostPattern::Exact("[::1]".to_owned())));
        for wrong in [
            "", "*", "*.", "a.*.com", "*a.com", "**.a", "a:80", "http://a", "a/b", "a..b", "a.",
            "ä.de",
        ] {
            assert!(host_pattern(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_comes_from_one_of_five_sources() {
        assert_eq!(key_source("query:room id"), Ok(KeySource::Query("room id".to_owned())));
        assert_eq!(key_source("cookie:sid"), Ok(KeySource::Cookie("sid".to_owned())));
        assert_eq!(key_source("path:2"), Ok(KeySource::Path(2)));
        assert_eq!(key_source("client_ip"), Ok(KeySource::ClientIp));
        let header = http::HeaderName::from_static("x-room");
        assert_eq!(key_source("header:X-Room"), Ok(KeySource::Header(header)));
        for wrong in [
            "",
            "query",
            "query:",
            "cookie:",
            "cookie:a b",
            "header:",
            "header:a b",
            "path:0",
            "path:",
            "path:-1",
            "path:x",
            "client_ip:",
            "jwt:sub",
            "room",
        ] {
            assert!(key_source(wrong).is_err(), "{wrong}");
        }
        assert!(key_source("jwt:sub").unwrap_err().contains(NOT_SUPPORTED));
    }

    #[test]
    fn origins_are_what_browsers_send() {
        for good in
            ["https://a.example", "http://localhost:3000", "null", "app://x", "http://[::1]:80"]
        {
            assert!(is_origin(good), "{good}");
        }
        for wrong in ["", "*", "a.example", "https://", "https://a/", "https://*.a", "https://a b"]
        {
            assert!(!is_origin(wrong), "{wrong}");
        }
    }
}
