//! Who gets what: balancers, weights, limits of a backend, slow starts, and panic.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use support::http::{get, header};
use support::named::{Named, addresses, join};
use support::scripted::{Accepted, Scripted};
use support::ws::{self, Ws};
use support::{Backend, Proxy, config, eventually};

/// A config whose backends have these weights.
fn weighted(backends: &[(&str, SocketAddr)], weights: &[u32], more: &[(&str, &str)]) -> String {
    let mut whole = config(backends, more);
    for ((id, address), weight) in backends.iter().zip(weights) {
        let plain = format!("id = \"{id}\", address = \"{address}\"");
        whole = whole.replacen(&plain, &format!("{plain}, weight = {weight}"), 1);
    }
    whole
}

#[track_caller]
fn join_many(proxy: &Proxy, count: usize, prefix: &str) -> (Vec<Ws>, HashMap<String, usize>) {
    let mut loads = HashMap::new();
    let mut open = Vec::new();
    for number in 0..count {
        let (client, backend) = join(proxy, &format!("{prefix}-{number}"));
        *loads.entry(backend).or_insert(0) += 1;
        open.push(client);
    }
    (open, loads)
}

#[track_caller]
fn refused(proxy: &Proxy, room: &str, reason: &str) {
    let before = proxy.metric("steadfast_refused_total", &[("reason", reason)]);
    let answer = ws::ask(proxy.address, &format!("/?room={room}"), &[]).answer;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(proxy.metric("steadfast_refused_total", &[("reason", reason)]), before + 1.0);
}

#[test]
fn each_balancer_spreads_connections_by_weight() {
    let backends = ["a", "b"].map(Named::start);
    for (balance, slack) in [("least_connections", 0), ("round_robin", 0), ("random_two", 6)] {
        let balance = format!("balance = \"{balance}\"");
        let more = [("pool", balance.as_str())];
        let proxy = Proxy::start(&weighted(&addresses(&backends), &[1, 3], &more));
        let (_open, loads) = join_many(&proxy, 40, "room");
        assert!(loads["a"].abs_diff(10) <= slack, "{balance}: {loads:?}");
    }
}

#[test]
fn least_connections_fills_up_who_has_least() {
    let backends = ["a", "b"].map(Named::start);
    let more = [("pool", "balance = \"least_connections\"")];
    let proxy = Proxy::start(&config(&addresses(&backends), &more));
    let mut of_a = Vec::new();
    let mut of_b = Vec::new();
    for number in 0..12 {
        let (client, backend) = join(&proxy, &number.to_string());
        if backend == "a" { of_a.push(client) } else { of_b.push(client) }
    }
    assert_eq!((of_a.len(), of_b.len()), (6, 6));
    of_b.iter().for_each(Ws::leave);
    proxy.wait_for_metric("steadfast_backend_connections", &[], 6.0);
    let (_more, loads) = join_many(&proxy, 6, "more");
    assert_eq!(loads, HashMap::from([("b".to_owned(), 6)]));
}

#[test]
fn plain_requests_are_balanced_too() {
    let backends = ["a", "b"].map(Named::start);
    for balance in ["least_connections", "round_robin"] {
        let balance = format!("balance = \"{balance}\"");
        let proxy = Proxy::start(&config(&addresses(&backends), &[("pool", &balance)]));
        let mut loads = HashMap::new();
        for _ in 0..20 {
            *loads.entry(get(proxy.address, "/?room=one").text()).or_insert(0) += 1;
        }
        assert_eq!(loads["a"], 10, "{balance}: {loads:?}");
    }
}

#[test]
fn where_keys_are_names_they_are_sent_and_listed_but_stick_to_nothing() {
    let (one, first) = Scripted::opening();
    let (two, second) = Scripted::opening();
    let more = [("pool", "balance = \"round_robin\"")];
    let backends = [("a", one.address), ("b", two.address)];
    let proxy = Proxy::start(&config(&backends, &more));
    let _clients = [(); 2].map(|()| ws::open(proxy.address, "/?room=b%20c"));
    let handed = [first.next(), second.next()];
    for (_, head) in &handed {
        assert_eq!(header(head, "steadfast-key"), Some("b%20c"));
    }
    let listed = eventually("both are listed", || {
        let listed = proxy.json("/v1/connections?key=b%20c");
        (listed["connections"].as_array()?.len() == 2).then_some(listed)
    });
    let mut at: Vec<_> = (0..2).map(|n| listed["connections"][n]["backend"].clone()).collect();
    at.sort_by_key(ToString::to_string);
    assert_eq!(at, ["a", "b"]);
    assert_eq!(proxy.metric("steadfast_placed_keys", &[]), 0.0);
    let pools = proxy.json("/v1/pools");
    assert_eq!(pools["pools"][0]["balance"], "round_robin");
    assert_eq!(pools["pools"][0]["backends"][0]["keys"], 0);
}

#[test]
fn a_dead_backend_is_passed_over_in_every_balancer() {
    for balance in ["consistent_hash", "least_connections", "round_robin", "random_two"] {
        let backends = ["a", "b", "c"].map(Named::start);
        backends[0].shut_door();
        let balance = format!("balance = \"{balance}\"");
        let more = [("pool", balance.as_str()), ("health", "kind = \"off\"\npassive_fall = 0")];
        let proxy = Proxy::start(&config(&addresses(&backends), &more));
        let (_open, loads) = join_many(&proxy, 12, "room");
        assert!(!loads.contains_key("a"), "{balance}: {loads:?}");
        for number in 0..6 {
            assert_ne!(get(proxy.address, &format!("/?room=page-{number}")).text(), "a");
        }
        // Each of the three once, and no further.
        backends.iter().for_each(Named::shut_door);
        let proxy = Proxy::start(&config(&addresses(&backends), &more));
        let failures = || proxy.process.output().matches("can't connect").count();
        assert_eq!(ws::ask(proxy.address, "/?room=none", &[]).answer.status, 502, "{balance}");
        eventually("all were tried", || (failures() >= 3).then_some(()));
        assert_eq!(failures(), 3, "{balance}");
    }
}

#[test]
fn a_full_backend_is_passed_over_but_not_by_those_who_live_there() {
    let backends = ["a", "b"].map(Named::start);
    let more = [("pool", "max_connections = 2")];
    let proxy = Proxy::start(&config(&addresses(&backends), &more));
    let (first, home) = join(&proxy, "lobby");
    let (second, at) = join(&proxy, "lobby");
    assert_eq!(at, home);
    refused(&proxy, "lobby", "backend_connections");
    // Plain requests of it are not counted, and meet it where it is.
    assert_eq!(get(proxy.address, "/?room=lobby").text(), home);
    // All others go to the other one, wherever they are at home; then there is no room at all.
    let (others, loads) = join_many(&proxy, 2, "other");
    assert!(!loads.contains_key(&home) && others.len() == 2, "{loads:?}");
    refused(&proxy, "third", "backend_connections");
    assert_eq!(get(proxy.address, "/?room=third").status, 200);
    second.leave();
    proxy.wait_for_metric("steadfast_backend_connections", &[], 3.0);
    assert_eq!(join(&proxy, "lobby").1, home);
    drop(first);
}

#[test]
fn a_limit_holds_for_a_crowd_at_once_and_in_every_balancer() {
    for balance in ["consistent_hash", "least_connections", "round_robin", "random_two"] {
        let backends = ["a", "b"].map(Named::start);
        backends.iter().for_each(|backend| backend.set_delay(Duration::from_millis(50)));
        let balance = format!("balance = \"{balance}\"\nmax_connections = 5");
        let more = [("pool", balance.as_str()), ("server", "workers = 2")];
        let proxy = Proxy::start(&config(&addresses(&backends), &more));
        let statuses: Vec<_> = std::thread::scope(|scope| {
            let proxy = &proxy;
            let asking: Vec<_> = (0..24)
                .map(|n| scope.spawn(move || ws::ask(proxy.address, &format!("/?room={n}"), &[])))
                .collect();
            asking.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let open = statuses.iter().filter(|client| client.answer.status == 101).count();
        let full = statuses.iter().filter(|client| client.answer.status == 503).count();
        assert_eq!((open, full), (10, 14), "{balance}");
        assert!(backends.iter().all(|backend| backend.handshakes() == 5), "{balance}");
    }
}

#[test]
fn handshakes_are_spaced_and_the_impatient_refused() {
    let backend = Named::start("a");
    let more = [("pool", "handshake_rate = 10"), ("server", "workers = 2")];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &more));
    let began = Instant::now();
    let clients: Vec<_> = std::thread::scope(|scope| {
        let proxy = &proxy;
        let asking: Vec<_> = (0..30)
            .map(|n| scope.spawn(move || ws::ask(proxy.address, &format!("/?room={n}"), &[])))
            .collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let took = began.elapsed();
    let open = clients.iter().filter(|client| client.answer.status == 101).count();
    let refused = clients.iter().filter(|client| client.answer.status == 503).count();
    assert_eq!(open + refused, 30);
    // One at once, and ten in the second that may be waited. A slow machine lets more in, later.
    assert!(open >= 11 && took >= Duration::from_millis(100) * (u32::try_from(open).unwrap() - 1));
    let reason = [("reason", "handshake_rate")];
    let counted = proxy.metric("steadfast_refused_total", &reason);
    assert_eq!(counted, f64::from(u32::try_from(refused).unwrap()));
    assert_eq!(backend.handshakes(), open);
    assert_eq!(get(proxy.address, "/?room=1").status, 200, "plain requests are not counted");
}

#[test]
fn with_bounded_load_no_backend_is_far_above_the_others() {
    let backends = ["a", "b", "c"].map(Named::start);
    let more = [("pool", "bounded_load = 1.1")];
    let proxy = Proxy::start(&config(&addresses(&backends), &more));
    let (_open, loads) = join_many(&proxy, 90, "room");
    // ceil(1.1 * 90 / 3)
    assert!(loads.values().all(|load| *load <= 33), "{loads:?}");
    // What lives somewhere stays, however much of it there is.
    let (_first, at) = join(&proxy, "crowd");
    for _ in 0..40 {
        let (client, again) = join(&proxy, "crowd");
        assert_eq!(again, at);
        client.leave();
    }
}

const CHECKED: [(&str, &str); 2] = [
    ("health", "kind = \"http\"\npath = \"/health\"\ninterval = \"50ms\"\nfall = 2\nrise = 1"),
    ("health", "lost_after = \"0s\""),
];

#[test]
fn a_backend_that_comes_back_starts_slowly() {
    for balance in ["consistent_hash", "least_connections", "round_robin", "random_two"] {
        let backends = ["a", "b"].map(Named::start);
        let balance = format!("balance = \"{balance}\"\nslow_start = \"1h\"");
        let more = [&CHECKED[..], &[("pool", balance.as_str())]].concat();
        let proxy = Proxy::start(&config(&addresses(&backends), &more));
        // At the start of the proxy all are warm.
        let (before, loads) = join_many(&proxy, 40, "before");
        assert!(loads["a"] >= 10, "{balance}: {loads:?}");
        before.iter().for_each(Ws::leave);
        proxy.wait_for_metric("steadfast_backend_connections", &[], 0.0);
        backends[0].set_healthy(false);
        proxy.wait_for_state("a", "out_of_service");
        backends[0].set_healthy(true);
        proxy.wait_for_state("a", "in_service");
        // A tenth of its weight: about an eleventh of all, or on the ring a twentieth.
        let (_open, loads) = join_many(&proxy, 60, "after");
        let of_a = loads.get("a").copied().unwrap_or(0);
        assert!(of_a <= 15, "{balance}: {loads:?}");
    }
}

#[test]
fn a_slow_start_ends() {
    let backends = ["a", "b"].map(Named::start);
    let more =
        [&CHECKED[..], &[("pool", "balance = \"round_robin\"\nslow_start = \"400ms\"")]].concat();
    let proxy = Proxy::start(&config(&addresses(&backends), &more));
    backends[0].set_healthy(false);
    proxy.wait_for_state("a", "out_of_service");
    backends[0].set_healthy(true);
    proxy.wait_for_state("a", "in_service");
    eventually("an even share", || {
        let asked = (0..10).map(|_| get(proxy.address, "/").text());
        (asked.filter(|backend| backend == "a").count() == 5).then_some(())
    });
}

#[test]
fn websocket_checks_want_a_pong_and_a_close() {
    let good = Backend::start("good");
    // Accepts, and never says a word.
    let (mute, heads): (Scripted, Accepted) = Scripted::accepting();
    let backends = [("good", good.address), ("mute", mute.address)];
    let more = [
        ("health", "kind = \"websocket\"\npath = \"/echo\"\ninterval = \"50ms\""),
        ("health", "timeout = \"300ms\"\nfall = 2"),
    ];
    let proxy = Proxy::start(&config(&backends, &more));
    let (_held, head) = heads.next_request();
    assert!(head.starts_with("GET /echo HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    proxy.wait_for_state("mute", "out_of_service");
    assert_eq!(proxy.state("good"), "in_service");
    let line = proxy.process.output();
    assert!(line.contains("no answer within 300ms"), "{line}");
    let failed = [("backend", "good")];
    assert_eq!(proxy.metric("steadfast_backend_state_changes_total", &failed), 0.0);
}

#[test]
fn websocket_checks_believe_no_101_that_does_not_answer_to_their_key() {
    let (deaf, _opened) = Scripted::opening();
    let plain = Named::start("plain");
    let backends = [("deaf", deaf.address), ("plain", plain.address)];
    let more = [("health", "kind = \"websocket\"\ninterval = \"50ms\"\ntimeout = \"300ms\"")];
    let proxy = Proxy::start(&config(&backends, &more));
    proxy.wait_for_state("deaf", "out_of_service");
    proxy.wait_for_state("plain", "out_of_service");
    assert!(proxy.process.output().contains("does not answer to the key"));
}

#[test]
fn in_a_panic_health_is_not_believed_but_loss_is() {
    let backends = ["a", "b", "c"].map(Named::start);
    let more = [&CHECKED[..], &[("health", "panic_threshold = 0.5")]].concat();
    let proxy = Proxy::start(&config(&addresses(&backends), &more));
    let panicking = || proxy.json("/v1/pools")["pools"][0]["panicking"].as_bool().unwrap();
    let spread = || {
        let asked = (0..40).map(|n| get(proxy.address, &format!("/?room=page-{n}")).text());
        asked.collect::<std::collections::BTreeSet<_>>().len()
    };
    backends[0].set_healthy(false);
    proxy.wait_for_state("a", "out_of_service");
    assert_eq!((panicking(), spread()), (false, 2));
    backends[1].set_healthy(false);
    proxy.wait_for_state("b", "out_of_service");
    assert_eq!((panicking(), spread()), (true, 3));
    proxy.wait_for_metric("steadfast_pool_panicking", &[("pool", "pool")], 1.0);
    let lines = |text: &str| proxy.process.output().matches(text).count();
    let (begins, ends) = ("too few backends in service", "enough backends in service");
    eventually("a line tells that it begins", || (lines(begins) == 1).then_some(()));
    backends[2].set_healthy(false);
    proxy.wait_for_state("c", "out_of_service");
    assert_eq!(spread(), 3, "all look ill, and all are served");
    for url in ["/", "/?room=page-1"] {
        let told = proxy.json(&format!("/v1/route?url={url}"));
        assert!(told["backend"].is_string(), "it is told so: {told}");
    }
    backends.iter().for_each(|backend| backend.set_healthy(true));
    for backend in ["a", "b", "c"] {
        proxy.wait_for_state(backend, "in_service");
    }
    assert!(!panicking());
    proxy.wait_for_metric("steadfast_pool_panicking", &[("pool", "pool")], 0.0);
    eventually("a line tells that it ends", || (lines(ends) == 1).then_some(()));
    assert_eq!(lines(begins), 1, "it has begun once");
}
