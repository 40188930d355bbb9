//! What Prometheus reads: valid to its own parser, everything there, and no larger for what clients
//! and backends choose.

#![expect(clippy::unwrap_used, reason = "a test that can't go on should stop")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};

use serde::Deserialize;
use support::http::{self, read_answer};
use support::scripted::{Refusing, Scripted, switching};
use support::ws::{self, CLOSE, TEXT, unmasked};
use support::{Backend, Proxy, addresses, config, connect, eventually, python, run_peer, send};

#[derive(Debug, Deserialize)]
struct Family {
    #[serde(rename = "type")]
    kind: String,
    help: String,
    samples: usize,
    labels: Vec<String>,
}

/// The page as Prometheus' own parser reads it.
fn families(proxy: &Proxy) -> BTreeMap<String, Family> {
    let url = format!("http://{}/metrics", proxy.admin);
    let found = run_peer(&python(), &["metrics.py", &url]);
    serde_json::from_str(&found).unwrap()
}

const LABELS: [&str; 9] =
    ["route", "pool", "backend", "listener", "reason", "direction", "code", "outcome", "by"];

#[test]
fn the_page_is_valid_and_has_everything_under_allowed_labels() {
    let backends = Backend::fleet(&["a"]);
    let refusing = Refusing::new();
    let mut all = addresses(&backends);
    all.push(("b", refusing.address));
    let proxy = Proxy::start(&config(&all, &[("health", "kind = \"tcp\"\ninterval = \"50ms\"")]));
    families(&proxy);
    eventually("b is out", || (proxy.state("b") == "out_of_service").then_some(()));
    let client = ws::open(proxy.address, "/echo?room=r");
    client.send(TEXT, "hello");
    client.expect_text("hello");
    client.send_close(4000, "");
    client.expect_close(4000);
    http::get(proxy.address, "/health");
    http::request(proxy.address, "GET", "/echo?room=r", &[("Upgrade", "websocket")], b"");
    proxy.save(&config(&all, &[]));
    eventually("a reload", || (proxy.reloads("success") > 0.0).then_some(()));
    let families = families(&proxy);
    for (name, family) in &families {
        assert!(name.starts_with("steadfast_"), "{name}");
        assert!(!family.help.is_empty() && family.kind != "unknown", "{name}: {family:?}");
        for label in &family.labels {
            let of_format = (label == "le" && family.kind == "histogram")
                || (label == "version" && family.kind == "info");
            assert!(LABELS.contains(&label.as_str()) || of_format, "{name}: {label}");
        }
    }
    for name in [
        "connections",
        "connections_opened",
        "handshake_duration_seconds",
        "refused",
        "messages",
        "message_bytes",
        "closes",
        "relay_stalls",
        "injected_messages",
        "backend_state_changes",
        "backend_in_service",
        "backend_in_flight",
        "backend_ring_share",
        "config_reloads",
        "worker_connections_most",
        "worker_busy_seconds",
        "worker_busy_ratio_most",
        "log_dropped_lines",
        "access_log_dropped_lines",
        "build",
    ] {
        let family = &families[&format!("steadfast_{name}")];
        assert!(family.samples > 0, "{name}");
    }
    let closes = &families["steadfast_closes"].labels;
    assert_eq!(closes, &["by", "code", "reason", "route"]);
    assert_eq!(families["steadfast_connections"].labels, ["backend", "pool", "route"]);
}

#[test]
fn workers_that_work_are_busy() {
    let backends = Backend::fleet(&["a"]);
    let proxy = Proxy::before(&addresses(&backends));
    let client = ws::open(proxy.address, "/echo?room=r");
    let busy = || proxy.metric("steadfast_worker_busy_seconds_total", &[]);
    let before = busy();
    eventually("busy", || {
        client.send(TEXT, "x".repeat(100_000));
        client.read();
        (busy() > before + 0.01).then_some(())
    });
    eventually("a share of it", || {
        client.send(TEXT, "x".repeat(100_000));
        client.read();
        let share = proxy.metric("steadfast_worker_busy_ratio_most", &[]);
        (share > 0.0 && share <= 1.0).then_some(())
    });
}

/// The lines of the page that are samples, without their values.
fn samples(proxy: &Proxy) -> Vec<String> {
    let page = http::get(proxy.admin, "/metrics").text();
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let mut samples: Vec<String> =
        samples.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect();
    samples.sort();
    samples
}

#[test]
fn ten_thousand_keys_paths_and_hosts_do_not_grow_the_page() {
    let backend = Scripted::start(|stream| {
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        let mut websocket = false;
        while reader.read_line(&mut line).is_ok_and(|count| count > 0) {
            websocket |= line.eq_ignore_ascii_case("upgrade: websocket\r\n");
            if std::mem::take(&mut line) != "\r\n" {
                continue;
            }
            if !websocket {
                send(&stream, b"HTTP/1.1 204 No Content\r\n\r\n");
                continue;
            }
            send(&stream, switching("").as_bytes());
            let close = ws::read_frame(&mut reader).unwrap();
            return send(&stream, &unmasked(CLOSE, close.payload));
        }
    });
    let proxy = Proxy::before(&[("a", backend.address)]);
    let request = |stream: &std::net::TcpStream, number: usize| {
        let head = format!(
            "GET /p{number}/x?room=k{number}&q={number} HTTP/1.1\r\nHost: h{number}.example\r\n\
             User-Agent: u{number}\r\nX-Request-Id: i{number}\r\n\r\n"
        );
        send(stream, head.as_bytes());
    };
    let close = |code: u16| {
        let client = ws::open(proxy.address, &format!("/w{code}?room=w{code}"));
        client.send_close(code, "");
        client.expect_close(code);
        client.expect_end();
    };
    let stream = connect(proxy.address);
    request(&stream, 0);
    assert_eq!(read_answer(&stream, false).status, 204);
    [3000, 4000].into_iter().for_each(close);
    proxy.wait_for_metric("steadfast_closes_total", &[], 2.0);
    let before = samples(&proxy);
    for batch in 0..100 {
        (1..=100).for_each(|number| request(&stream, batch * 100 + number));
        (1..=100).for_each(|_| assert_eq!(read_answer(&stream, false).status, 204));
    }
    (0..50).for_each(|number| close(3001 + number * 17));
    (0..50).for_each(|number| close(4001 + number * 17));
    proxy.wait_for_metric("steadfast_closes_total", &[], 102.0);
    assert_eq!(samples(&proxy), before);
    assert_eq!(proxy.metric("steadfast_requests_total", &[("code", "204")]), 10_001.0);
}
