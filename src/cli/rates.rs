//! How much a proxy does in a second: the difference of two of its pages for Prometheus.
//!
//! Pure. A page is read as far as it tells what each route has done so far; the rest is passed
//! over.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// What a route has done since the proxy started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Counts<N> {
    /// WebSockets opened.
    pub(super) opened: N,
    /// WebSockets that have ended.
    pub(super) closed: N,
    /// Requests answered, handshakes included.
    pub(super) requests: N,
    /// Requests refused.
    pub(super) refused: N,
    pub(super) messages_from_client: N,
    pub(super) bytes_from_client: N,
    pub(super) messages_from_backend: N,
    pub(super) bytes_from_backend: N,
}

/// By the name of the route; what found none has an empty one.
pub(super) type Routes<N> = BTreeMap<String, Counts<N>>;

/// What a page in the OpenMetrics text format tells.
pub(super) fn totals(page: &str) -> Routes<u64> {
    let mut routes = Routes::<u64>::new();
    for line in page.lines() {
        let Some(Sample { name, labels, value }) = sample(line) else { continue };
        let Some(route) = labels.iter().find(|(label, _)| *label == "route") else { continue };
        let from_client = labels.contains(&("direction", "from_client".to_owned()));
        let counts = routes.entry(route.1.clone()).or_default();
        let count = match (name, from_client) {
            ("steadfast_connections_opened_total", _) => &mut counts.opened,
            ("steadfast_closes_total", _) => &mut counts.closed,
            ("steadfast_requests_total", _) => &mut counts.requests,
            ("steadfast_refused_total", _) => &mut counts.refused,
            ("steadfast_messages_total", true) => &mut counts.messages_from_client,
            ("steadfast_messages_total", false) => &mut counts.messages_from_backend,
            ("steadfast_message_bytes_total", true) => &mut counts.bytes_from_client,
            ("steadfast_message_bytes_total", false) => &mut counts.bytes_from_backend,
            _ => continue,
        };
        *count = count.saturating_add(value);
    }
    routes
}

/// A line of a page.
struct Sample<'p> {
    name: &'p str,
    labels: Vec<(&'p str, String)>,
    value: u64,
}

/// Reads a sample that has labels and is a whole number.
fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, rest) = line.split_once('{')?;
    let mut labels = Vec::new();
    let mut rest = rest;
    while !rest.starts_with('}') {
        let (label, value) = rest.split_once("=\"")?;
        let (text, after) = unquoted(value)?;
        labels.push((label.trim_start_matches(','), text));
        rest = after;
    }
    Some(Sample { name, labels, value: rest.strip_prefix("} ")?.parse().ok()? })
}

/// A label's value up to its closing quote, and what follows.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            (_, other) => value.push(other),
        }
    }
}

/// How much was done in each second between two looks. What is less than before belongs to a route
/// that was gone meanwhile: its rate is 0.
pub(super) fn rates(before: &Routes<u64>, now: &Routes<u64>, elapsed: Duration) -> Routes<f64> {
    let per_second = |before: u64, now: u64| {
        #[expect(clippy::cast_precision_loss, reason = "a rate is no exact figure")]
        let done = now.saturating_sub(before) as f64;
        done / elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    };
    let of_route = |(name, now): (&String, &Counts<u64>)| {
        let before = before.get(name).copied().unwrap_or_default();
        let rate = |of: fn(&Counts<u64>) -> u64| per_second(of(&before), of(now));
        let counts = Counts {
            opened: rate(|counts| counts.opened),
            closed: rate(|counts| counts.closed),
            requests: rate(|counts| counts.requests),
            refused: rate(|counts| counts.refused),
            messages_from_client: rate(|counts| counts.messages_from_client),
            bytes_from_client: rate(|counts| counts.bytes_from_client),
            messages_from_backend: rate(|counts| counts.messages_from_backend),
            bytes_from_backend: rate(|counts| counts.bytes_from_backend),
        };
        (name.clone(), counts)
    };
    now.iter().map(of_route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# TYPE steadfast_messages counter
steadfast_connections_opened_total{route="a",pool="p",backend="x"} 2
steadfast_connections_opened_total{route="a",pool="p",backend="y"} 3
steadfast_messages_total{route="a",direction="from_client"} 40
steadfast_messages_total{route="a",direction="from_backend"} 7
steadfast_message_bytes_total{route="a",direction="from_backend"} 700
steadfast_refused_total{route="",reason="no_route"} 1
steadfast_requests_total{route="a \"b\"\\",code="200"} 9
steadfast_handshake_duration_seconds_bucket{route="a",le="0.1"} 5
steadfast_workers 2
steadfast_messages_total{route="a
# EOF
"#;

    #[test]
    fn a_page_is_added_up_by_route() {
        let routes = totals(PAGE);
        let a = routes["a"];
        assert_eq!((a.opened, a.messages_from_client, a.messages_from_backend), (5, 40, 7));
        assert_eq!((a.bytes_from_client, a.bytes_from_backend), (0, 700));
        assert_eq!(routes[""].refused, 1);
        assert_eq!(routes[r#"a "b"\"#].requests, 9);
        assert_eq!(routes.len(), 3);
    }

    #[test]
    fn a_rate_is_what_was_done_over_how_long_it_took() {
        let (before, mut now) = (totals(PAGE), totals(PAGE));
        let a = now.get_mut("a").unwrap();
        (a.opened, a.messages_from_client, a.closed) = (6, 30, 4);
        let rates = rates(&before, &now, Duration::from_secs(2));
        let a = rates["a"];
        assert_eq!((a.opened, a.closed), (0.5, 2.0));
        assert_eq!(a.messages_from_client, 0.0, "never negative");
    }
}
