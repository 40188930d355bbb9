//! Which backends are in service, and what their clients notice of it.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;
use support::http::{get, read_head};
use support::named::{self, Named};
use support::scripted::{Scripted, switching};
use support::ws::{self, CLOSE, TEXT, Ws, close_payload, unmasked};
use support::{Backend, Proxy, SetWhenDropped, addresses, config, eventually, send, within};

const FAST: [(&str, &str); 4] = [
    ("health", "kind = \"http\""),
    ("health", "interval = \"100ms\""),
    ("health", "timeout = \"200ms\""),
    ("health", "fall = 3"),
];

fn checked(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [&FAST[..], &[("health", "path = \"/health\"")], more].concat()
}

/// How often a backend came to a state, and for what reason.
fn changes(proxy: &Proxy, backend: &str, state: &str, reason: &str) -> f64 {
    let labels = [("backend", backend), ("outcome", state), ("reason", reason)];
    proxy.metric("steadfast_backend_state_changes_total", &labels)
}

fn lines(proxy: &Proxy, words: &[&str]) -> usize {
    let output = proxy.process.output();
    output.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// One address that is free, and refuses.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[track_caller]
fn echoes(client: &Ws, text: &str) {
    client.send(TEXT, text);
    client.expect_text(text);
}

#[test]
fn http_checks_put_out_after_fall_and_bring_back_after_rise() {
    let backends = ["a", "b"].map(Named::start);
    let proxy =
        Proxy::start(&config(&named::addresses(&backends), &checked(&[("health", "rise = 4")])));
    let a = &backends[0];
    eventually("a check", || (a.checks() > 0).then_some(()));
    assert_eq!(proxy.state("a"), "in_service");

    a.set_healthy(false);
    let before = a.checks();
    proxy.wait_for_state("a", "out_of_service");
    assert!(a.checks() >= before + 3, "{} checks were enough", a.checks() - before);
    proxy.wait_for_metric("steadfast_backend_in_service", &[("backend", "a")], 0.0);
    // More of the same changes nothing, and says nothing.
    let failed = a.checks();
    eventually("more checks", || (a.checks() > failed + 3).then_some(()));

    a.set_healthy(true);
    let before = a.checks();
    proxy.wait_for_state("a", "in_service");
    assert!(a.checks() >= before + 4, "{} checks were enough", a.checks() - before);

    assert_eq!(changes(&proxy, "a", "out_of_service", "checks_failed"), 1.0);
    assert_eq!(changes(&proxy, "a", "in_service", "checks_passed"), 1.0);
    assert_eq!(
        lines(&proxy, &["WARN", "backend out_of_service", "status 503", "backend=\"a\""]),
        1
    );
    assert_eq!(lines(&proxy, &["INFO", "backend in service", "backend=\"a\""]), 1);
    assert_eq!(lines(&proxy, &["backend=\"b\"", "to=\""]), 0, "b had nothing");
}

#[test]
fn tcp_checks_ask_only_whether_a_connection_can_be_opened() {
    let backends = ["a", "b"].map(Named::start);
    let more = [(
        "health",
        "kind = \"tcp\"\ninterval = \"50ms\"\nfall = 2\nrise = 2\nlost_after = \"1s\"",
    )];
    let proxy = Proxy::start(&config(&named::addresses(&backends), &more));
    backends[0].set_healthy(false);
    let client = (0..)
        .map(|number| ws::open(proxy.address, &format!("/?room={number}")))
        .find(|client| client.read().text() == "a")
        .unwrap();
    assert_eq!(proxy.state("a"), "in_service");
    // It refuses: it goes, but is not gone.
    backends[0].shut_door();
    proxy.wait_for_state("a", "draining");
    client.answer_close(1012);
    backends[0].open_door();
    proxy.wait_for_state("a", "in_service");
    assert_eq!(changes(&proxy, "a", "lost", "unreachable"), 0.0);
}

/// Clients of rooms, with the backend of each.
fn crowd(proxy: &Proxy, count: usize) -> Vec<(String, String, Ws)> {
    let rooms = (0..count).map(|number| format!("room-{number}"));
    rooms
        .map(|room| {
            let backend = get(proxy.address, &format!("/health?room={room}")).text();
            let client = ws::open(proxy.address, &format!("/echo?room={room}"));
            (room, backend, client)
        })
        .collect()
}

#[test]
fn a_killed_backend_costs_its_own_clients_a_clean_close_and_others_nothing() {
    let mut backends = Backend::fleet(&["a", "b", "c"]);
    let proxy = Proxy::start(&config(&addresses(&backends), &checked(&[("health", "rise = 2")])));
    let (hit, others): (Vec<_>, Vec<_>) =
        crowd(&proxy, 30).into_iter().partition(|(_, backend, _)| backend == "b");
    assert!(hit.len() > 3 && others.len() > 10, "{} {}", hit.len(), others.len());

    let over = AtomicBool::new(false);
    let echoed: Vec<AtomicUsize> = others.iter().map(|_| AtomicUsize::new(0)).collect();
    let ten_more = || {
        let before: Vec<usize> = echoed.iter().map(|count| count.load(Ordering::SeqCst)).collect();
        eventually("all others echo", || {
            let mut counts = echoed.iter().zip(&before);
            counts.all(|(count, before)| count.load(Ordering::SeqCst) > before + 10).then_some(())
        });
    };
    let mut moved = HashMap::new();
    std::thread::scope(|scope| {
        let _over = SetWhenDropped(&over);
        for ((_, _, client), count) in others.iter().zip(&echoed) {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let number = count.fetch_add(1, Ordering::SeqCst);
                    echoes(client, &format!("message {number}"));
                }
            });
        }
        ten_more();
        backends[1].process.kill();
        let killed = Instant::now();
        for (_, _, client) in &hit {
            client.answer_close(1014);
        }
        let left = Duration::from_secs(2).saturating_sub(killed.elapsed());
        within(left, "b is out of service", || {
            (proxy.state("b") == "out_of_service").then_some(())
        });
        ten_more();
        // Its clients come back, and find a place.
        for (room, _, _) in &hit {
            let backend = get(proxy.address, &format!("/health?room={room}")).text();
            assert_ne!(backend, "b");
            let client = ws::open(proxy.address, &format!("/echo?room={room}"));
            echoes(&client, "back");
            moved.insert(room.clone(), (backend, client));
        }
        // And it comes back where it was; what moved stays whole where it is.
        let address = backends[1].address;
        backends[1] = Backend::start_at("b", address);
        proxy.wait_for_state("b", "in_service");
        for (room, (backend, client)) in &moved {
            assert_eq!(get(proxy.address, &format!("/health?room={room}")).text(), *backend);
            echoes(client, "whole");
        }
        ten_more();
    });
    let (room, _) = moved.iter().next().unwrap();
    let (_, client) = &moved[room];
    client.send_close(1000, "");
    client.expect_close(1000);
    eventually("its key goes home", || {
        (get(proxy.address, &format!("/health?room={room}")).text() == "b").then_some(())
    });
    let labels = [("reason", "backend_lost"), ("code", "1014")];
    assert_eq!(proxy.metric("steadfast_closes_total", &labels), hit.len() as f64);
}

#[test]
fn a_stopped_backend_is_out_of_service_but_its_connections_live() {
    let backends = Backend::fleet(&["a", "b"]);
    let proxy = Proxy::start(&config(
        &addresses(&backends),
        &checked(&[("health", "rise = 1"), ("health", "lost_after = \"0s\"")]),
    ));
    let crowd = crowd(&proxy, 10);
    let (room, _, client) = crowd.iter().find(|(_, backend, _)| backend == "a").unwrap();
    backends[0].process.signal("STOP");
    proxy.wait_for_state("a", "out_of_service");
    client.send(TEXT, "said meanwhile");
    // It goes on being slow for longer than what would make a silent one lost.
    let so_far = lines(&proxy, &["health check failed", "no answer within"]);
    eventually("more slow checks", || {
        let now = lines(&proxy, &["health check failed", "no answer within"]);
        (now > so_far + 5).then_some(())
    });
    assert_eq!(proxy.state("a"), "out_of_service");
    backends[0].process.signal("CONT");
    client.expect_text("said meanwhile");
    proxy.wait_for_state("a", "in_service");
    echoes(client, "as ever");
    assert_eq!(get(proxy.address, &format!("/health?room={room}")).text(), "a");
    let lost = [("backend", "a"), ("outcome", "lost")];
    assert_eq!(proxy.metric("steadfast_backend_state_changes_total", &lost), 0.0);
    assert_eq!(proxy.metric("steadfast_closes_total", &[]), 0.0);
}

#[test]
fn out_for_lost_after_while_another_serves_ends_its_connections() {
    let backends = ["a", "b"].map(Named::start);
    let more = checked(&[("health", "rise = 1"), ("health", "lost_after = \"1s\"")]);
    let proxy = Proxy::start(&config(&named::addresses(&backends), &more));
    let clients: Vec<(String, Ws, String)> = (0..10)
        .map(|number| {
            let room = format!("/?room={number}");
            let client = ws::open(proxy.address, &room);
            let at = client.read().text();
            (room, client, at)
        })
        .collect();
    backends[0].set_healthy(false);
    for (room, client, at) in &clients {
        if at == "a" {
            client.answer_close(1014);
            // At once it has another place.
            assert_eq!(ws::open(proxy.address, room).read().text(), "b");
        }
    }
    assert_eq!(proxy.state("a"), "lost");
    assert_eq!(changes(&proxy, "a", "lost", "out_too_long"), 1.0);
    for (_, client, _) in clients.iter().filter(|(_, _, at)| at == "b") {
        echoes(client, "untouched");
    }
    backends[0].set_healthy(true);
    proxy.wait_for_state("a", "in_service");
}

#[test]
fn a_stopped_backend_is_lost_in_the_end_while_another_serves() {
    let backends = Backend::fleet(&["a", "b"]);
    let more = checked(&[("health", "rise = 1"), ("health", "lost_after = \"1s\"")]);
    let proxy = Proxy::start(&config(&addresses(&backends), &more));
    let crowd = crowd(&proxy, 10);
    let (at_a, at_b): (Vec<_>, Vec<_>) = crowd.iter().partition(|(_, backend, _)| backend == "a");
    assert!(!at_a.is_empty() && !at_b.is_empty());
    backends[0].process.signal("STOP");
    for (room, _, client) in &at_a {
        client.expect_close(1014);
        client.send_close(1014, "");
        // It comes back at once, and is not sent where nobody answers.
        echoes(&ws::open(proxy.address, &format!("/echo?room={room}")), "back");
    }
    at_b.iter().for_each(|(_, _, client)| echoes(client, "untouched"));
    assert_eq!(changes(&proxy, "a", "lost", "out_too_long"), 1.0);
}

/// A backend that opens WebSockets until it is frozen; from then on it does not even accept.
struct Freezing {
    address: SocketAddr,
    frozen: Arc<AtomicBool>,
}

impl Freezing {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let frozen = Arc::new(AtomicBool::new(false));
        let is_frozen = Arc::clone(&frozen);
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if is_frozen.load(Ordering::SeqCst) {
                    break;
                }
                // A check has no head.
                if stream.peek(&mut [0]).is_ok_and(|count| count > 0) {
                    read_head(&stream);
                    send(&stream, switching("").as_bytes());
                    held.push(stream);
                }
            }
            // Linux drops what comes to a full queue, as a host that is gone would.
            SockRef::from(&listener).listen(0).unwrap();
            while Arc::strong_count(&is_frozen) > 1 {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { address, frozen }
    }

    /// The connections that fill its queue.
    fn freeze(&self) -> Vec<TcpStream> {
        self.frozen.store(true, Ordering::SeqCst);
        let connect = || TcpStream::connect_timeout(&self.address, Duration::from_millis(300)).ok();
        let waiting: Vec<_> = std::iter::from_fn(connect).take(10_000).collect();
        assert!(waiting.len() < 10_000, "its queue has no end");
        waiting
    }
}

#[test]
fn a_backend_to_which_no_check_can_even_connect_is_lost() {
    let (freezing, other) = (Freezing::start(), Named::start("b"));
    let more = [(
        "health",
        "kind = \"tcp\"\ninterval = \"100ms\"\ntimeout = \"200ms\"\nfall = 3\nlost_after = \"0s\"",
    )];
    let backends = [("a", freezing.address), ("b", other.address)];
    let proxy = Proxy::start(&config(&backends, &more));
    let opened = (0..20).map(|number| ws::open(proxy.address, &format!("/?room={number}")));
    let opened: Vec<Ws> = opened.collect();
    let at_a = proxy.metric("steadfast_backend_connections", &[("backend", "a")]);
    assert!((1.0..20.0).contains(&at_a), "{at_a}");
    let _queue = freezing.freeze();
    proxy.wait_for_state("a", "lost");
    assert_eq!(changes(&proxy, "a", "lost", "unreachable"), 1.0);
    let labels = [("reason", "backend_lost"), ("code", "1014")];
    // Its own clients are told; those of the other are greeted and echo as ever.
    let told = opened.iter().filter(|client| {
        let first = client.read();
        if first.opcode == TEXT {
            echoes(client, "untouched");
            return false;
        }
        assert_eq!(first.close().0, 1014);
        true
    });
    assert_eq!(told.count() as f64, at_a);
    drop(opened);
    proxy.wait_for_metric("steadfast_closes_total", &labels, at_a);
}

#[test]
fn after_an_outage_of_all_the_first_to_return_does_not_make_the_others_lost_at_once() {
    let backends = ["a", "b"].map(Named::start);
    let more = checked(&[("health", "rise = 1"), ("health", "lost_after = \"3s\"")]);
    let proxy = Proxy::start(&config(&named::addresses(&backends), &more));
    let client = (0..)
        .map(|number| ws::open(proxy.address, &format!("/?room={number}")))
        .find(|client| client.read().text() == "b")
        .unwrap();
    let out = Instant::now();
    backends.iter().for_each(|backend| backend.set_healthy(false));
    proxy.wait_for_state("a", "out_of_service");
    proxy.wait_for_state("b", "out_of_service");
    assert_eq!(ws::ask(proxy.address, "/?room=new", &[]).answer.status, 503);
    // Much longer than lost_after, but nobody else served.
    eventually("a long outage", || (out.elapsed() > Duration::from_secs(5)).then_some(()));
    echoes(&client, "alive");
    backends[0].set_healthy(true);
    proxy.wait_for_state("a", "in_service");
    let back = Instant::now();
    // The time is looked at once a second.
    client.answer_close(1014);
    assert!(back.elapsed() > Duration::from_millis(1800), "lost {:?} later", back.elapsed());
    assert_eq!(proxy.state("b"), "lost");
}

/// Breaks off, refuses or opens, as the path of the handshake says.
fn by_path() -> Scripted {
    Scripted::start(|mut stream| {
        let head = read_head(&stream);
        let path = head.split(' ').nth(1).unwrap_or_default();
        match path.split('?').next().unwrap_or_default() {
            "/break" => {}
            "/open" => {
                send(&stream, switching("").as_bytes());
                // Nothing is said; the client ends it.
                let _ = ws::read_frame(&stream);
            }
            "/close-1000" | "/close-1001" => {
                let code = if path.starts_with("/close-1000") { 1000 } else { 1001 };
                send(&stream, switching("").as_bytes());
                send(&stream, &unmasked(CLOSE, close_payload(code, "")));
                let _ = ws::read_frame(&stream);
            }
            "/vanish" => send(&stream, switching("").as_bytes()),
            status => {
                let status = status.trim_start_matches('/');
                use std::io::Write;
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} Said\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
            }
        }
    })
}

#[test]
fn failures_of_traffic_in_a_row_put_out_and_it_is_tried_again_after_ten_seconds() {
    let backend = by_path();
    let more = [("health", "kind = \"off\""), ("health", "passive_fall = 3")];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &more));
    let status = |path| ws::ask(proxy.address, path, &[]).answer.status;
    // Not in a row: an answer between them, of whatever status.
    for answered in ["/open", "/403", "/500"] {
        assert_eq!([status("/break"), status("/break")], [502, 502]);
        status(answered);
        assert_eq!(proxy.state("a"), "in_service");
    }
    assert_eq!([status("/break"), status("/break"), status("/break")], [502, 502, 502]);
    assert_eq!(proxy.state("a"), "out_of_service");
    let out = Instant::now();
    assert_eq!(status("/open"), 503);
    proxy.wait_for_state("a", "in_service");
    let after = out.elapsed().as_secs_f64();
    assert!((9.0..14.0).contains(&after), "tried again after {after} s");
    // On trial one failure is enough.
    assert_eq!(status("/break"), 502);
    assert_eq!(proxy.state("a"), "out_of_service");
    assert_eq!(changes(&proxy, "a", "out_of_service", "traffic_failed"), 2.0);
    assert_eq!(changes(&proxy, "a", "in_service", "tried_again"), 1.0);
}

#[test]
fn a_backend_that_refuses_connections_is_put_out_by_traffic_before_any_check() {
    let backends = ["a", "b"].map(Named::start);
    let more =
        [("health", "kind = \"http\"\npath = \"/health\"\ninterval = \"1h\"\npassive_fall = 2")];
    let proxy = Proxy::start(&config(&named::addresses(&backends), &more));
    eventually("the first check", || (backends[0].checks() > 0).then_some(()));
    backends[0].shut_door();
    // Whoever meets it goes on to the next.
    for number in 0..20 {
        assert_eq!(ws::open(proxy.address, &format!("/?room={number}")).read().text(), "b");
    }
    assert_eq!(proxy.state("a"), "out_of_service");
    assert_eq!(changes(&proxy, "a", "out_of_service", "traffic_failed"), 1.0);
}

#[test]
fn an_end_of_a_connection_and_an_answer_of_any_status_are_no_failure() {
    let backend = by_path();
    // One failure would put it out.
    let more = [("health", "kind = \"off\""), ("health", "passive_fall = 1")];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &more));
    for status in [400, 401, 403, 404, 429, 500, 502, 503, 302, 200] {
        let asked = ws::ask(proxy.address, &format!("/{status}"), &[]);
        assert_eq!(asked.answer.status, status, "as the backend said");
        assert_eq!(get(proxy.address, &format!("/{status}")).status, status);
    }
    for code in [1000, 1001] {
        let client = ws::open(proxy.address, "/open");
        client.send_close(code, "");
        client.expect_end();
        let client = ws::open(proxy.address, &format!("/close-{code}"));
        client.answer_close(code);
    }
    // A client that resets, one that just ends, and a backend that vanishes after its answer.
    let client = ws::open(proxy.address, "/open");
    SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    drop(ws::open(proxy.address, "/open"));
    ws::open(proxy.address, "/vanish").answer_close(1014);
    proxy.wait_for_metric("steadfast_connections", &[], 0.0);
    assert_eq!(proxy.metric("steadfast_closes_total", &[]), 7.0);
    assert_eq!(proxy.state("a"), "in_service");
    assert_eq!(proxy.metric("steadfast_backend_state_changes_total", &[]), 0.0);
}

#[test]
fn a_proxy_starts_while_all_backends_are_down_and_serves_when_they_come() {
    let (a, b) = (free_address(), free_address());
    let proxy = Proxy::start(&config(&[("a", a), ("b", b)], &checked(&[("health", "rise = 1")])));
    assert_eq!(get(proxy.admin, "/readyz").status, 200);
    proxy.wait_for_state("a", "out_of_service");
    proxy.wait_for_state("b", "out_of_service");
    for room in ["", "?room=x"] {
        let asked = ws::ask(proxy.address, &format!("/echo{room}"), &[]);
        assert_eq!((asked.answer.status, asked.answer.header("retry-after")), (503, Some("1")));
        let answer = get(proxy.address, &format!("/health{room}"));
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    }
    assert_eq!(proxy.metric("steadfast_refused_total", &[("reason", "no_backend")]), 4.0);
    let _backend = Backend::start_at("b", b);
    proxy.wait_for_state("b", "in_service");
    for number in 0..10 {
        assert_eq!(get(proxy.address, &format!("/health?room={number}")).text(), "b");
        echoes(&ws::open(proxy.address, &format!("/echo?room={number}")), "served");
    }
}
