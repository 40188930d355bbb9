//! Reload: what changes takes effect, what does not is not touched, and nobody is disconnected.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rcgen::{PKCS_ECDSA_P256_SHA256 as ECDSA_KEY, date_time_ymd};
use serde_json::json;
use support::http::{self, get};
use support::named::{self, Named};
use support::tls::{Authority, Issued, any_client, shake_hands, tls};
use support::ws::{self, BINARY, TEXT, Ws, handshake_head};
use support::{Backend, Proxy, config, eventually, within};

/// Within this a change must be in force.
const SOON: Duration = Duration::from_secs(2);

/// Waits for the next reload that goes this way, by the count before it.
#[track_caller]
fn wait_for_reload(proxy: &Proxy, outcome: &str, before: f64) {
    within(support::DEADLINE, outcome, || (proxy.reloads(outcome) > before).then_some(()));
}

/// Saves a config and waits until it is in force.
#[track_caller]
fn reload(proxy: &Proxy, config: &str) {
    let before = proxy.reloads("success");
    proxy.save(config);
    wait_for_reload(proxy, "success", before);
}

/// The changes that the last reload told.
fn last_reload(proxy: &Proxy) -> serde_json::Value {
    proxy.json("/v1/status")["last_reload"].clone()
}

#[test]
fn a_route_a_pool_and_a_limit_change_under_a_live_connection() {
    let backends = [Named::start("a"), Named::start("b")];
    let of = |ids: &[usize], more: &[(&str, &str)]| {
        let list: Vec<_> = ids.iter().map(|id| (backends[*id].id, backends[*id].address)).collect();
        config(&list, more)
    };
    let mut proxy = Proxy::start(&of(&[0], &[]));
    let old = ws::open(proxy.address, "/?room=old");
    old.expect_text("a");
    // Another backend, and a smaller message for those who come from now on.
    reload(&proxy, &of(&[1], &[("route", "max_message = 4\non_removed = \"keep\"")]));
    let new = ws::open(proxy.address, "/?room=new");
    new.expect_text("b");
    new.send(TEXT, "12345");
    new.expect_close(1009);
    // A route of another name: the old one's connections live, as it says.
    let renamed = of(&[1], &[]).replace("name = \"all\"", "name = \"other\"");
    reload(&proxy, &renamed);
    assert_eq!(proxy.json("/v1/status")["routes"][0]["name"], "other");
    let third = ws::open(proxy.address, "/?room=third");
    third.expect_text("b");
    // No route for the path any more.
    reload(&proxy, &renamed.replace("path = \"/*\"", "path = \"/only\""));
    assert_eq!(get(proxy.address, "/else").status, 404);
    third.send(TEXT, "still here");
    third.expect_text("still here");
    assert!(!proxy.process.has_exited());
}

#[test]
fn what_does_not_change_is_not_touched() {
    let backends = [Named::start("a"), Named::start("b")];
    let more = [("health", "kind = \"http\"\npath = \"/health\"\ninterval = \"100ms\"\nfall = 2")];
    let config = config(&named::addresses(&backends), &more);
    let other = "[[route]]\nname = \"more\"\npath = \"/more\"\npool = \"more\"\n\
                 [pool.more]\nbackends = [{ id = \"x\", address = \"127.0.0.1:9\" }]\n\
                 health.kind = \"off\"\n";
    let proxy = Proxy::start(&config);
    let client = ws::open(proxy.address, "/?room=r");
    let home = client.read().text();
    backends[1].set_healthy(false);
    eventually("b is out of service", || (proxy.state("b") == "out_of_service").then_some(()));
    let checks = backends[0].checks();
    for config in
        [format!("{config}{other}"), format!("{config}{}", other.replace("\"x\"", "\"y\""))]
    {
        reload(&proxy, &config);
        let pool = proxy.json("/v1/pools")["pools"][0].clone();
        assert_eq!(proxy.state("b"), "out_of_service", "its verdict lives on");
        assert_eq!(proxy.json("/v1/status")["routes"][0]["connections"], 1, "{pool}");
        let keys: u64 = pool["backends"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["keys"].as_u64().unwrap())
            .sum();
        assert_eq!(keys, 1, "{pool}");
    }
    eventually("it is checked as before", || (backends[0].checks() > checks + 3).then_some(()));
    let again = ws::open(proxy.address, "/?room=r");
    again.expect_text(&home);
    // Its own pool changes: what is known of those who stay lives on too.
    reload(&proxy, &config.replace("fall = 2", "fall = 3"));
    assert_eq!(proxy.state("b"), "out_of_service");
    backends[1].set_healthy(true);
    eventually("b is back", || (proxy.state("b") == "in_service").then_some(()));
    client.send(TEXT, "x");
    client.expect_text("x");
}

#[test]
fn a_file_that_means_the_same_changes_nothing() {
    let backend = Backend::start("a");
    let config = config(&[("a", backend.address)], &[]);
    let proxy = Proxy::start(&config);
    reload(&proxy, &config.replace(" = ", "   =   ").replace("[[route]]", "# a word\n[[route]]"));
    eventually("it is told", || proxy.process.output().contains("changes=0").then_some(()));
    // The very same bytes are not even read as a change; being asked to is another matter.
    let (status, answer) = proxy.post("/v1/reload", "");
    assert_eq!((status, answer), (200, json!({ "changes": [], "needs_restart": [] })));
}

#[test]
fn a_broken_file_leaves_no_trace_but_its_error() {
    let backend = Backend::start("a");
    let authority = Authority::new();
    let good = config(&[("a", backend.address)], &[("server", "workers = 2")]);
    let proxy = Proxy::start(&good);
    let client = ws::open(proxy.address, "/echo?room=r");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let free = free_address();
    let expired = authority.issue_with("old", &["a.example"], &ECDSA_KEY, |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let listener =
        |bind: SocketAddr, more: &str| format!("[[listener]]\nbind = \"{bind}\"\n{more}\n");
    let certificate = |pair: &Issued| format!("tls.certificates = [{}]", pair.in_config());
    let missing =
        Issued { key: authority.folder().join("none.key"), ..authority.issue("site", &["a"]) };
    // Each would first open the free address, and also change the route.
    let changed = good.replace("name = \"all\"", "name = \"changed\"") + &listener(free, "");
    for (broken, error) in [
        (
            changed.replace("path = \"/*\"", "path = \"/*\"\nmax_mesage = 4"),
            "max_mesage is no known key",
        ),
        (changed.clone() + &listener(taken, ""), "can't listen on"),
        (changed.clone() + &listener(free_address(), &certificate(&expired)), "expired"),
        (changed.clone() + &listener(free_address(), &certificate(&missing)), "none.key"),
        (changed.replace("workers = 2", "access_log = \"/nowhere/at/all\""), "access log"),
        (String::from("[[route]"), "config.toml:1:"),
        (String::new(), "there is no listener"),
    ] {
        let before = proxy.reloads("failure");
        proxy.save(&broken);
        wait_for_reload(&proxy, "failure", before);
        let told = last_reload(&proxy)["error"].as_str().unwrap().to_owned();
        assert!(told.contains(error), "{error}: {told}");
        assert_eq!(proxy.metric("steadfast_config_last_reload_successful", &[]), 0.0);
        let status = proxy.json("/v1/status");
        assert_eq!(status["routes"][0]["name"], "all", "{error}");
        assert_eq!(status["listeners"].as_array().unwrap().len(), 1, "{error}");
        assert!(TcpStream::connect(free).is_err(), "{error}: it listens where it must not");
        let (code, answer) = proxy.post("/v1/reload", "");
        assert_eq!(code, 422);
        assert!(answer["errors"][0].as_str().unwrap().contains(error), "{answer}");
        client.send(TEXT, error);
        client.expect_text(error);
    }
    assert!(proxy.process.output().contains("config not reloaded"));
    // The same, mended.
    reload(&proxy, &changed);
    assert_eq!(proxy.json("/v1/status")["routes"][0]["name"], "changed");
    assert_eq!(proxy.metric("steadfast_config_last_reload_successful", &[]), 1.0);
    assert_eq!(get(free, "/health").status, 200);
    assert_eq!(last_reload(&proxy)["error"], json!(null));
}

/// An address that nobody listens on, most likely for a while.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn listeners_come_go_and_change() {
    let backend = Backend::start("a");
    let one = config(&[("a", backend.address)], &[]);
    let proxy = Proxy::start(&one);
    let (second, third) = (free_address(), free_address());
    let listener =
        |bind: SocketAddr, more: &str| format!("[[listener]]\nbind = \"{bind}\"\n{more}\n");
    reload(&proxy, &(one.clone() + &listener(second, "limits.headers = 7")));
    let kept = ws::open(second, "/echo?room=r");
    // Too many headers for it; not for the first.
    let many: Vec<(&str, &str)> = ["a", "b", "c", "d", "e", "f"].map(|name| (name, "1")).to_vec();
    assert_eq!(http::request(second, "GET", "/health", &many, b"").status, 431);
    assert_eq!(http::request(proxy.address, "GET", "/health", &many, b"").status, 200);
    // Other settings on the same socket; and another one.
    reload(
        &proxy,
        &(one.clone() + &listener(second, "limits.headers = 30") + &listener(third, "")),
    );
    assert_eq!(http::request(second, "GET", "/health", &many, b"").status, 200);
    assert_eq!(get(third, "/health").status, 200);
    reload(&proxy, &(one.clone() + &listener(third, "limits.connections = 1")));
    eventually("the second is closed", || TcpStream::connect(second).is_err().then_some(()));
    kept.send(TEXT, "still here");
    kept.expect_text("still here");
    assert_eq!(get(third, "/health").status, 200);
    let status = proxy.json("/v1/status");
    assert_eq!(status["listeners"].as_array().unwrap().len(), 2, "{status}");
    // It may come back.
    reload(&proxy, &(one + &listener(second, "")));
    assert_eq!(get(second, "/health").status, 200);
}

#[test]
fn a_limit_of_connections_counts_those_from_before() {
    let backend = Backend::start("a");
    let of = |limit: &str| config(&[("a", backend.address)], &[("listener", limit)]);
    let proxy = Proxy::start(&of("limits.connections = 9"));
    let clients: Vec<Ws> = (0..2).map(|_| ws::open(proxy.address, "/echo?room=r")).collect();
    reload(&proxy, &of("limits.connections = 2"));
    let mut refused = support::connect(proxy.address);
    assert_eq!(refused.read(&mut [0; 1]).unwrap_or(0), 0, "it is closed at once");
    drop(clients);
    eventually("there is room again", || {
        let mut stream = support::connect(proxy.address);
        let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.starts_with("HTTP/1.1 200").then_some(())
    });
}

#[test]
fn a_renewed_certificate_is_shown_to_new_clients_only() {
    let authority = Authority::new();
    let backend = Backend::start("a");
    let first = authority.issue("site", &["a.example"]);
    let tls_of = |pair: &Issued| format!("tls.certificates = [{}]", pair.in_config());
    let text = config(&[("a", backend.address)], &[("listener", &tls_of(&first))]);
    let proxy = Proxy::start(&text);
    let mut live = tls(&any_client(), proxy.address, "a.example");
    assert_eq!(shake_hands(&mut live), first.der);
    live.write_all(handshake_head("/echo?room=r", &[]).as_bytes()).unwrap();
    // The same files, with another pair in them: first the one, then the other.
    let before = proxy.reloads("success");
    let second = authority.issue("site", &["a.example"]);
    wait_for_reload(&proxy, "success", before);
    assert_eq!(shake_hands(&mut tls(&any_client(), proxy.address, "a.example")), second.der);
    // The key of another: the one before stays.
    let failures = proxy.reloads("failure");
    let other = authority.issue("other", &["a.example"]);
    fs::copy(&other.key, &second.key).unwrap();
    wait_for_reload(&proxy, "failure", failures);
    assert!(
        last_reload(&proxy)["error"]
            .as_str()
            .unwrap()
            .contains("is not the key of that certificate")
    );
    assert_eq!(shake_hands(&mut tls(&any_client(), proxy.address, "a.example")), second.der);
    // Who was connected has noticed nothing.
    live.write_all(&ws::masked(TEXT, "x")).unwrap();
    let mut read = Vec::new();
    while !read.ends_with(&ws::unmasked(TEXT, "x")) {
        let mut byte = [0];
        live.read_exact(&mut byte).unwrap();
        read.push(byte[0]);
    }
}

#[test]
fn logs_the_admin_api_and_its_token_move() {
    let backend = Backend::start("a");
    let folder = tempfile::tempdir().unwrap();
    let log = |name: &str| folder.path().join(name);
    let of = |server: &str| config(&[("a", backend.address)], &[("server", server)]);
    let text = of(&format!("access_log = {:?}", log("first")));
    let mut proxy = Proxy::start(&text.replace("level = \"debug\"", "level = \"info\""));
    let lines = |path: &Path| fs::read_to_string(path).unwrap_or_default().lines().count();
    get(proxy.address, "/health");
    eventually("one line", || (lines(&log("first")) == 1).then_some(()));
    assert!(!proxy.process.output().contains("DEBUG"));
    reload(&proxy, &of(&format!("access_log = {:?}", log("second"))));
    get(proxy.address, "/health");
    eventually("in the second", || (lines(&log("second")) == 1).then_some(()));
    assert_eq!(lines(&log("first")), 1);
    ws::open(proxy.address, "/echo?room=r").send_close(1000, "");
    eventually("the level changed", || proxy.process.output().contains("DEBUG").then_some(()));
    // Renamed, as log rotation does it: by itself, or at once when told.
    fs::rename(log("second"), log("second.1")).unwrap();
    proxy.process.signal("HUP");
    eventually("it is opened anew", || {
        get(proxy.address, "/health");
        (lines(&log("second")) > 0).then_some(())
    });
    // A token, then another address, which the old one must not survive.
    proxy.save(&of("admin_token = \"hush\""));
    eventually("it asks", || (get(proxy.admin, "/v1/pools").status == 401).then_some(()));
    let admin = free_address();
    proxy.save(&of("").replace("admin = \"127.0.0.1:0\"", &format!("admin = \"{admin}\"")));
    eventually("it has moved", || TcpStream::connect(admin).is_ok().then_some(()));
    eventually("the old address is closed", || {
        TcpStream::connect(proxy.admin).is_err().then_some(())
    });
    proxy.admin = admin;
    assert_eq!(proxy.json("/v1/status")["name"], "edge");
}

#[test]
fn what_takes_a_restart_is_told_by_key() {
    let backend = Backend::start("a");
    let of = |workers: &str, more: &str| {
        config(&[("a", backend.address)], &[("server", workers), ("route", more)])
    };
    let proxy = Proxy::start(&of("workers = 1", ""));
    fs::write(
        proxy.config_file(),
        of("workers = 2", "max_connections = 7").replace("\"edge\"", "\"other\""),
    )
    .unwrap();
    eventually("it is told", || {
        let (_, answer) = proxy.post("/v1/reload", "");
        (answer["needs_restart"] == json!(["server.name", "server.workers"])).then_some(())
    });
    let status = proxy.json("/v1/status");
    assert_eq!((&status["workers"], &status["name"]), (&json!(1), &json!("edge")));
    eventually("it is logged", || {
        let output = proxy.process.output();
        (output.contains("key=\"server.workers\"") && output.contains("only when the process"))
            .then_some(())
    });
}

#[test]
fn a_plan_tells_whom_a_reload_would_touch() {
    let backends = [Named::start("a"), Named::start("b")];
    let both = config(&named::addresses(&backends), &[("route", "on_removed = \"close\"")]);
    let proxy = Proxy::start(&both);
    let clients: Vec<Ws> =
        (0..20).map(|number| ws::open(proxy.address, &format!("/?room={number}"))).collect();
    let at_b = clients.iter().filter(|client| client.read().text() == "b").count();
    let only_a = config(&[("a", backends[0].address)], &[("route", "on_removed = \"close\"")]);
    let (status, plan) = proxy.post("/v1/plan", &only_a);
    assert_eq!(status, 200, "{plan}");
    let change = json!({
        "part": "backend", "name": "pool/b", "change": "removed",
        "connections": at_b, "fate": "drained",
    });
    assert_eq!(plan, json!({ "changes": [change], "needs_restart": [] }));
    let (_, plan) = proxy.post("/v1/plan", &both.replace("name = \"all\"", "name = \"new\""));
    let removed = json!({
        "part": "route", "name": "all", "change": "removed", "connections": 20, "fate": "closed",
    });
    assert_eq!(plan["changes"][0], removed);
    assert_eq!(plan["changes"][1]["change"], "added");
    // Whose route and whose backend go: once, where the end is that comes first.
    let neither = only_a.replace("name = \"all\"", "name = \"new\"");
    let counts = |plan: &serde_json::Value| {
        let changes = plan["changes"].as_array().unwrap().clone();
        let touched = changes.into_iter().filter(|change| !change["fate"].is_null());
        let touched =
            touched.map(|mut change| (change["name"].take(), change["connections"].take()));
        touched.collect::<Vec<_>>()
    };
    let (_, plan) = proxy.post("/v1/plan", &neither);
    assert_eq!(counts(&plan), [(json!("all"), json!(20)), (json!("pool/b"), json!(0))], "{plan}");
    reload(&proxy, &both.replace("on_removed = \"close\"", "on_removed = \"keep\""));
    let (_, plan) = proxy.post("/v1/plan", &neither);
    let kept = [(json!("all"), json!(20 - at_b)), (json!("pool/b"), json!(at_b))];
    assert_eq!(counts(&plan), kept, "{plan}");
    let (status, answer) = proxy.post("/v1/plan", "[[listener]]\nbind = 7\n");
    assert_eq!(status, 422);
    assert!(answer["errors"][1].as_str().unwrap().starts_with("the plan:2:8: "), "{answer}");
    // Nothing of all that has happened.
    assert_eq!(proxy.json("/v1/status")["routes"][0]["name"], "all");
    assert_eq!(proxy.json("/v1/status")["connections"], 20);
    assert_eq!(get(proxy.admin, "/v1/reload").status, 405);
}

/// Clients of keys of their own, and the backend that each has.
fn clients_of(proxy: &Proxy, count: usize) -> Vec<(Ws, String)> {
    let clients = (0..count).map(|number| ws::open(proxy.address, &format!("/?room={number}")));
    clients
        .map(|client| {
            let backend = client.read().text();
            (client, backend)
        })
        .collect()
}

#[track_caller]
fn expect_echo(client: &Ws) {
    client.send(TEXT, "still here");
    client.expect_text("still here");
}

#[test]
fn a_backend_that_leaves_the_config_is_drained() {
    let backends = [Named::start("a"), Named::start("b")];
    let pool = [("pool", "drain_timeout = \"1s\"")];
    let proxy = Proxy::start(&config(&named::addresses(&backends), &pool));
    let clients = clients_of(&proxy, 30);
    reload(&proxy, &config(&[("a", backends[0].address)], &pool));
    let began = Instant::now();
    assert_eq!(proxy.state("b"), "draining");
    for (number, (client, backend)) in clients.iter().enumerate() {
        if backend == "b" {
            client.answer_close(1012);
            // It comes back at once, and elsewhere.
            ws::open(proxy.address, &format!("/?room={number}")).expect_text("a");
        }
    }
    assert!(began.elapsed() > Duration::from_millis(700), "{:?}", began.elapsed());
    let at_a = clients.iter().filter(|(_, backend)| backend == "a");
    at_a.for_each(|(client, _)| expect_echo(client));
    eventually("b is gone", || {
        let pools = proxy.json("/v1/pools");
        (pools["pools"][0]["backends"].as_array().unwrap().len() == 1).then_some(())
    });
}

#[test]
fn a_backend_that_returns_to_the_config_keeps_what_it_still_has() {
    let backends = [Named::start("a"), Named::start("b")];
    // So long that one has its turn, and the next is far.
    let pool = [("pool", "drain_timeout = \"600s\"")];
    let both = config(&named::addresses(&backends), &pool);
    let proxy = Proxy::start(&both);
    let clients = clients_of(&proxy, 30);
    let at_b: Vec<&Ws> =
        clients.iter().filter(|(_, backend)| backend == "b").map(|(client, _)| client).collect();
    reload(&proxy, &config(&[("a", backends[0].address)], &pool));
    // With what is at b, but for one that may have gone by now.
    let placed = proxy.metric("steadfast_placed_keys", &[]);
    assert!((29.0..=30.0).contains(&placed), "{placed}");
    let closed = || proxy.metric("steadfast_closes_total", &[("reason", "drained")]);
    eventually("the first is closed", || (closed() >= 1.0).then_some(()));
    reload(&proxy, &both);
    assert_eq!(proxy.state("b"), "in_service");
    at_b.iter().for_each(|client| client.send(TEXT, "still here"));
    let mut kept = 0;
    for client in &at_b {
        let frame = client.read();
        kept += usize::from(frame.payload == b"still here");
    }
    assert!(kept + 3 >= at_b.len() && kept > 0, "{kept} of {}", at_b.len());
    // The very backend: its keys count on.
    let pools = proxy.json("/v1/pools");
    let b = pools["pools"][0]["backends"].as_array().unwrap().iter().find(|one| one["id"] == "b");
    assert_eq!(b.unwrap()["keys"], kept, "{pools}");
}

#[test]
fn a_backend_that_moves_is_drained_where_it_was() {
    let (old, new) = (Named::start("old"), Named::start("new"));
    let at = |address| config(&[("a", address)], &[("pool", "drain_timeout = \"1s\"")]);
    let proxy = Proxy::start(&at(old.address));
    let clients = clients_of(&proxy, 10);
    let (_, plan) = proxy.post("/v1/plan", &at(new.address));
    assert_eq!(
        (&plan["changes"][0]["connections"], &plan["changes"][0]["fate"]),
        (&json!(10), &json!("drained"))
    );
    reload(&proxy, &at(new.address));
    ws::open(proxy.address, "/?room=another").expect_text("new");
    let page = get(proxy.admin, "/metrics").text();
    let of_a = page.lines().filter(|line| line.starts_with("steadfast_backend_connections{"));
    assert_eq!(of_a.count(), 1, "two addresses of one id are one series");
    for (number, (client, backend)) in clients.iter().enumerate() {
        assert_eq!(backend, "old");
        client.answer_close(1012);
        // Its key has left the old address with all it had, and is whole at the new one.
        ws::open(proxy.address, &format!("/?room={number}")).expect_text("new");
    }
    eventually("the old one is gone", || {
        let pools = proxy.json("/v1/pools");
        (pools["pools"][0]["backends"].as_array().unwrap().len() == 1).then_some(())
    });
    assert_eq!(proxy.state("a"), "in_service");
}

#[test]
fn a_drain_that_was_asked_for_survives_a_reload() {
    let backends = [Named::start("a"), Named::start("b")];
    let both = |more| config(&named::addresses(&backends), &[("route", more)]);
    let proxy = Proxy::start(&both(""));
    assert_eq!(proxy.post("/v1/pools/pool/backends/b/drain", "").0, 200);
    reload(&proxy, &both("max_connections = 100"));
    assert_eq!(proxy.state("b"), "draining");
    assert!(clients_of(&proxy, 20).iter().all(|(_, backend)| backend == "a"));
    assert_eq!(proxy.post("/v1/pools/pool/backends/b/undrain", "").0, 200);
    assert_eq!(proxy.state("b"), "in_service");
}

#[test]
fn the_connections_of_a_route_that_leaves_are_kept_drained_or_closed() {
    let backend = Named::start("a");
    for (on_removed, spread) in [("keep", None), ("drain", Some(700)), ("close", Some(0))] {
        let route = format!("on_removed = \"{on_removed}\"");
        let more = [("route", &*route), ("pool", "drain_timeout = \"1s\"")];
        let before = config(&[("a", backend.address)], &more);
        let proxy = Proxy::start(&before);
        let clients = clients_of(&proxy, 20);
        let began = Instant::now();
        reload(&proxy, &before.replace("name = \"all\"", "name = \"other\""));
        for (client, _) in &clients {
            match spread {
                None => expect_echo(client),
                Some(_) => client.answer_close(1012),
            }
        }
        let took = began.elapsed().as_millis();
        assert!(spread.is_none_or(|least| took >= least), "{on_removed}: {took} ms");
        let reason = [("reason", "route_removed")];
        let closed = if spread.is_some() { 20.0 } else { 0.0 };
        proxy.wait_for_metric("steadfast_closes_total", &reason, closed);
    }
}

#[test]
fn a_pool_that_leaves_is_drained_and_may_return() {
    let backends = [Named::start("a"), Named::start("b")];
    let other = "\n[pool.other]\nhealth.kind = \"off\"\n";
    let other = format!(
        "{other}backends = [{{ id = \"b\", address = {:?} }}]\n",
        backends[1].address.to_string()
    );
    let pool = [("pool", "drain_timeout = \"600s\""), ("route", "on_removed = \"keep\"")];
    let both = config(&[("a", backends[0].address)], &pool) + &other;
    let proxy = Proxy::start(&both);
    let clients = clients_of(&proxy, 10);
    let (_, rest) = both.split_once("[pool.pool]").unwrap();
    let without = both.replace(rest, "").replace("[pool.pool]", &other);
    let without = without.replace("pool = \"pool\"", "pool = \"other\"");
    reload(&proxy, &without);
    ws::open(proxy.address, "/?room=new").expect_text("b");
    // It is shown as long as it has something, behind those of the config.
    let pools = proxy.json("/v1/pools");
    let gone = &pools["pools"][1];
    assert_eq!(
        (&gone["name"], &gone["backends"][0]["state"]),
        (&json!("pool"), &json!("draining"))
    );
    assert_eq!(gone["backends"][0]["drain"]["by"], json!(["removed"]));
    let closed = || proxy.metric("steadfast_closes_total", &[("reason", "drained")]);
    eventually("the first is closed", || (closed() >= 1.0).then_some(()));
    reload(&proxy, &both);
    assert_eq!(proxy.state("a"), "in_service");
    let kept = clients.iter().filter(|(client, _)| {
        client.send(TEXT, "still here");
        client.read().payload == b"still here"
    });
    let kept = kept.count();
    assert!(kept >= 7, "{kept}");
    let pools = proxy.json("/v1/pools");
    assert_eq!(pools["pools"][0]["backends"][0]["keys"], kept, "{pools}");
}

#[test]
fn a_new_address_holds_for_requests_too_that_would_find_a_kept_connection() {
    let backends = Backend::fleet(&["old", "new"]);
    let of = |backend: &Backend| config(&[("a", backend.address)], &[]);
    let proxy = Proxy::start(&of(&backends[0]));
    // Again and again, so that every worker has a connection that it keeps.
    let answers = || (0..20).map(|_| get(proxy.address, "/health").text()).collect::<Vec<_>>();
    assert!(answers().iter().all(|answer| answer.contains("old")));
    reload(&proxy, &of(&backends[1]));
    let answers = answers();
    assert!(answers.iter().all(|answer| answer.contains("new")), "{answers:?}");
}

/// When the kernel's keep-alive would first look after the proxy's socket to a client.
fn keep_alive_of(client: &TcpStream) -> Option<u64> {
    let of = |address: SocketAddr| {
        let SocketAddr::V4(address) = address else { panic!("{address}") };
        format!("{:08X}:{:04X}", address.ip().to_bits().swap_bytes(), address.port())
    };
    let ends =
        format!("{} {} 01", of(client.peer_addr().unwrap()), of(client.local_addr().unwrap()));
    let all = fs::read_to_string("/proc/net/tcp").unwrap();
    let line = all.lines().find(|line| line.contains(&ends))?;
    // In hundredths of a second; 02 is the timer of keep-alive, any other stands before it.
    let timer = line.split_whitespace().nth(5)?.strip_prefix("02:")?;
    u64::from_str_radix(timer, 16).ok().map(|hundredths| hundredths / 100)
}

#[test]
fn another_keep_alive_holds_for_those_who_come_then() {
    let backend = Named::start("a");
    let of = |keepalive| config(&[("a", backend.address)], &[("listener", keepalive)]);
    let proxy = Proxy::start(&of("keepalive = \"60s\""));
    let told = |client: &Ws| eventually("its timer is set", || keep_alive_of(&client.stream));
    let before = ws::open(proxy.address, "/?room=r");
    assert!(told(&before) <= 60);
    reload(&proxy, &of("keepalive = \"600s\""));
    let after = ws::open(proxy.address, "/?room=r");
    assert!((500..=600).contains(&told(&after)), "{} s", told(&after));
    assert!(told(&before) <= 60);
}

#[test]
fn a_route_that_returns_counts_what_it_still_has() {
    let backend = Named::start("a");
    let route = [("route", "on_removed = \"keep\"\nmax_connections = 1")];
    let with = config(&[("a", backend.address)], &route);
    let proxy = Proxy::start(&with);
    let client = ws::open(proxy.address, "/?room=r");
    client.expect_text("a");
    let counts = || {
        let status = proxy.json("/v1/status");
        (status["connections"].clone(), status["routes"][0]["connections"].clone())
    };
    reload(&proxy, &with.replace("name = \"all\"", "name = \"other\""));
    assert_eq!(counts(), (json!(1), json!(0)));
    reload(&proxy, &with);
    assert_eq!(counts(), (json!(1), json!(1)));
    assert_eq!(ws::ask(proxy.address, "/?room=r", &[]).answer.status, 503, "the route is full");
    drop(client);
    eventually("it has ended", || (counts() == (json!(0), json!(0))).then_some(()));
}

/// Saves a config and has it put in force now.
#[track_caller]
fn reload_now(proxy: &Proxy, config: &str) {
    proxy.save(config);
    let (status, answer) = proxy.post("/v1/reload", "");
    assert_eq!(status, 200, "{answer}");
}

fn page(proxy: &Proxy) -> String {
    get(proxy.admin, "/metrics").text()
}

#[test]
fn names_that_left_do_not_grow_the_metrics() {
    let backend = Named::start("a");
    let stays = config(&[("a", backend.address)], &[]);
    // A route, a pool and a backend of new names each time.
    let renamed = |number: usize| {
        let (id, address) = (format!("build-{number}"), backend.address);
        format!(
            "{stays}\n[[route]]\nname = \"{id}\"\npath = \"/other/*\"\npool = \"{id}\"\n\
             [pool.{id}]\nhealth.kind = \"off\"\n\
             backends = [{{ id = \"{id}\", address = \"{address}\" }}]\n"
        )
    };
    let proxy = Proxy::start(&renamed(0));
    // Of the route that stays, and of one that has gone.
    let visit = |path: &str| {
        let client = ws::open(proxy.address, path);
        client.expect_text("a");
        expect_echo(&client);
        client.send_close(1000, "");
        client.expect_close(1000);
    };
    visit("/?room=r");
    visit("/other/");
    let all = [("route", "all")];
    let ended = || proxy.metric("steadfast_closes_total", &[]);
    eventually("both have ended", || (ended() == 2.0).then_some(()));
    let counted = [
        ("steadfast_messages_total", 3.0),
        ("steadfast_connections_opened_total", 1.0),
        ("steadfast_closes_total", 1.0),
        ("steadfast_requests_total", 1.0),
        ("steadfast_handshake_duration_seconds_count", 1.0),
    ];
    let before = page(&proxy).len();
    for number in 1..=300 {
        reload_now(&proxy, &renamed(number));
        if number % 20 == 0 {
            visit("/other/");
        }
    }
    let text = page(&proxy);
    assert!(text.len() < before + 2000, "{before} bytes became {}: {text}", text.len());
    assert!(text.contains("route=\"build-300\"") && !text.contains("\"build-200\""), "{text}");
    for (name, count) in counted {
        assert_eq!(proxy.metric(name, &all), count, "{name}");
    }
}

#[test]
fn a_name_counts_while_it_has_a_connection_and_anew_when_it_returns() {
    let backend = Named::start("a");
    let with = config(&[("a", backend.address)], &[("route", "on_removed = \"keep\"")]);
    let without = with.replace("name = \"all\"", "name = \"other\"");
    let proxy = Proxy::start(&with);
    let all = [("route", "all")];
    // Counted once it is written, of which the client may know sooner.
    let wait_for_messages = |count| proxy.wait_for_metric("steadfast_messages_total", &all, count);
    let client = ws::open(proxy.address, "/?room=r");
    client.expect_text("a");
    for (number, config) in [&without, &with, &without].into_iter().enumerate() {
        reload_now(&proxy, config);
        expect_echo(&client);
        assert_eq!(proxy.metric("steadfast_connections", &all), 1.0);
        // The greeting, and to and fro each time.
        wait_for_messages(3.0 + 2.0 * number as f64);
    }
    drop(client);
    proxy.wait_for_metric("steadfast_connections", &all, 0.0);
    eventually("it has ended", || (proxy.json("/v1/status")["connections"] == 0).then_some(()));
    assert!(page(&proxy).contains("route=\"all\""));
    reload_now(&proxy, &without.replace("keep", "close"));
    assert!(!page(&proxy).contains("route=\"all\""), "{}", page(&proxy));
    reload_now(&proxy, &with);
    let client = ws::open(proxy.address, "/?room=r");
    client.expect_text("a");
    expect_echo(&client);
    wait_for_messages(3.0);
    assert_eq!(proxy.metric("steadfast_connections_opened_total", &all), 1.0);
    assert_eq!(proxy.metric("steadfast_requests_total", &[("code", "101"), all[0]]), 1.0);
}

#[test]
fn a_listener_that_returns_counts_who_is_still_connected() {
    let backend = Named::start("a");
    let without = config(&[("a", backend.address)], &[]);
    let second = free_address();
    let with = format!(
        "{without}\n[[listener]]\nname = \"second\"\nbind = \"{second}\"\n\
         limits.connections_per_ip = 1\n"
    );
    let proxy = Proxy::start(&with);
    let of_second = [("listener", "second")];
    let client = ws::open(second, "/?room=r");
    client.expect_text("a");
    reload_now(&proxy, &without);
    expect_echo(&client);
    // It is shown as long as somebody is connected.
    assert_eq!(proxy.metric("steadfast_client_connections", &of_second), 1.0);
    reload_now(&proxy, &with);
    let mut refused = support::connect(second);
    assert_eq!(refused.read(&mut [0; 1]).unwrap_or(0), 0, "it is closed at once");
    drop(client);
    eventually("there is room again", || {
        let answer = std::panic::catch_unwind(|| get(second, "/health").status);
        answer.is_ok_and(|status| status == 200).then_some(())
    });
    reload_now(&proxy, &without);
    eventually("nobody is connected", || {
        // With another reload, that changes something.
        let level = |one: &str| without.replace("level = \"debug\"", &format!("level = \"{one}\""));
        reload_now(&proxy, &level("info"));
        reload_now(&proxy, &level("debug"));
        (!page(&proxy).contains("listener=\"second\"")).then_some(())
    });
}

#[test]
fn a_file_that_never_ends_does_not_keep_the_process_from_being_stopped() {
    let backend = Named::start("a");
    let of = |server| config(&[("a", backend.address)], &[("server", server)]);
    let mut proxy = Proxy::start(&of(""));
    let pipe = proxy.folder().join("token");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let plan = of("admin_token = \"file:token\"");
    let asking = support::connect(proxy.admin);
    let length = plan.len();
    let head = format!(
        "POST /v1/plan HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n{plan}"
    );
    support::send(&asking, head.as_bytes());
    // Opened once the proxy opens it too; it waits for what never comes.
    let _writer = fs::File::create(&pipe).unwrap();
    proxy.process.signal("TERM");
    assert!(proxy.process.wait_for_exit_within(Duration::from_secs(5)).success());
}

/// What one client does all the time: says something and wants it back.
struct Talker {
    stop: Arc<AtomicBool>,
    said: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Talker {
    /// `count` connections, each of which counts its messages; a lost one, or a Close, is a panic.
    fn start(address: SocketAddr, count: usize) -> Self {
        const PER_THREAD: usize = 50;
        let (stop, said) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<Ws> =
            (0..count).map(|number| ws::open(address, &format!("/echo?room={number}"))).collect();
        let mut clients = clients.into_iter();
        let mut threads = Vec::new();
        while clients.len() > 0 {
            let some: Vec<Ws> = clients.by_ref().take(PER_THREAD).collect();
            let (stop, said) = (Arc::clone(&stop), Arc::clone(&said));
            threads.push(std::thread::spawn(move || {
                for number in 0_u64.. {
                    some.iter().for_each(|client| client.send(BINARY, number.to_be_bytes()));
                    for client in &some {
                        assert_eq!(client.read().payload, number.to_be_bytes());
                    }
                    said.fetch_add(some.len(), Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }));
        }
        Self { stop, said, threads }
    }

    /// One that connects anew every 50 ms, and is always served.
    fn newcomer(address: SocketAddr) -> Self {
        let (stop, said) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&said));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                let client = ws::open(address, "/echo?room=new");
                client.send(TEXT, "x");
                client.expect_text("x");
                client.send_close(1000, "");
                client.answer_close(1000);
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50).saturating_sub(began.elapsed()));
            }
        });
        Self { stop, said, threads: vec![thread] }
    }

    fn said(&self) -> usize {
        self.said.load(Ordering::Relaxed)
    }

    #[track_caller]
    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.said.load(Ordering::Relaxed)
    }
}

/// How a config is saved.
#[derive(Clone, Copy, Debug)]
enum Way {
    Renamed,
    /// As a mounted `ConfigMap` changes: by the swap of a link to a folder.
    Swapped,
    /// Truncated, and written only a while later.
    Truncated,
    Touched,
}

/// A folder with the config, as each of the ways finds it.
struct Saved {
    folder: tempfile::TempDir,
    versions: usize,
}

impl Saved {
    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("config.toml")
    }

    fn save(&mut self, text: &str, way: Way) {
        self.versions += 1;
        let of = |name: &str| self.folder.path().join(name);
        match way {
            Way::Renamed => {
                fs::write(of("new"), text).unwrap();
                fs::rename(of("new"), self.path()).unwrap();
            }
            Way::Swapped => {
                let version = format!("..{}", self.versions);
                fs::create_dir(of(&version)).unwrap();
                fs::write(of(&version).join("config.toml"), text).unwrap();
                symlink(&version, of("..new")).unwrap();
                fs::rename(of("..new"), of("..data")).unwrap();
                symlink("..data/config.toml", of("link")).unwrap();
                fs::rename(of("link"), self.path()).unwrap();
            }
            Way::Truncated => {
                let _ = fs::remove_file(of("plain"));
                let mut file = fs::File::create(of("plain")).unwrap();
                fs::rename(of("plain"), self.path()).unwrap();
                // The watch shall see the file while it is empty.
                std::thread::sleep(Duration::from_millis(30));
                file.write_all(text.as_bytes()).unwrap();
            }
            Way::Touched => {
                let text = fs::read(self.path()).unwrap();
                fs::write(self.path(), text).unwrap();
            }
        }
    }
}

/// A config that differs from that of the turn before, in one thing or in several.
fn config_of(turn: usize, backends: &[(&str, SocketAddr)], listen: SocketAddr) -> String {
    let more = [
        ("server", "workers = 2"),
        ("route", &format!("max_message = {}", 1_000_000 + turn / 2 % 7)),
        ("listener", &format!("limits.headers = {}", 50 + turn / 3 % 5)),
        ("pool", &format!("connect_timeout = \"{}s\"", 2 + turn / 5 % 3)),
    ];
    let level = ["info", "warn", "debug"][turn % 3];
    let extra = if turn % 8 >= 4 {
        "[[route]]\nname = \"extra\"\npath = \"/extra/*\"\npool = \"extra\"\n\
         [pool.extra]\nbackends = [{ id = \"x\", address = \"127.0.0.1:9\" }]\nhealth.kind = \"off\"\n"
    } else {
        ""
    };
    let text = config(backends, &more)
        .replace("level = \"debug\"", &format!("level = \"{level}\""))
        .replace("bind = \"127.0.0.1:0\"", &format!("bind = \"{listen}\""));
    format!("{text}{extra}# turn {turn}\n")
}

/// The whole of it is `scripts/soak`: 136 reloads under 500 connections.
#[test]
fn reloads_under_load_are_noticed_by_nobody() {
    let number = |name: &str, short: usize| {
        std::env::var(name).ok().map_or(short, |text| text.parse().unwrap())
    };
    let reloads = number("STEADFAST_SOAK_RELOADS", 24);
    let connections = number("STEADFAST_SOAK_CONNECTIONS", 100);
    let authority = Authority::new();
    let pair = authority.issue("site", &["a.example"]);
    let backends = Backend::fleet(&["a", "b", "c"]);
    let listen = free_address();
    let tls_at = free_address();
    let text = |turn: usize| {
        config_of(turn, &support::addresses(&backends), listen)
            + &format!(
                "[[listener]]\nbind = \"{tls_at}\"\ntls.certificates = [{}]\n",
                pair.in_config()
            )
    };
    let mut saved = Saved { folder: tempfile::tempdir().unwrap(), versions: 0 };
    saved.save(&text(0), Way::Renamed);
    let mut proxy = Proxy::start_at(&saved.path());
    let pid = proxy.process.pid();
    let talking = Talker::start(listen, connections);
    let coming = Talker::newcomer(listen);
    let mut memory = Vec::new();
    for turn in 1..=reloads {
        let said = talking.said();
        let successes = proxy.reloads("success");
        let failures = proxy.reloads("failure");
        let began = Instant::now();
        let way = [Way::Renamed, Way::Swapped, Way::Truncated][turn % 3];
        match turn % 8 {
            // A broken file, mended by the next turn.
            3 => {
                saved.save("[[listener]\n", way);
                wait_for_reload(&proxy, "failure", failures);
            }
            // Nothing at all: the same bytes.
            5 => saved.save("", Way::Touched),
            // A certificate.
            6 => {
                let renewed = authority.issue("site", &["a.example"]);
                wait_for_reload(&proxy, "success", successes);
                assert_eq!(shake_hands(&mut tls(&any_client(), tls_at, "a.example")), renewed.der);
            }
            _ => {
                saved.save(&text(turn), way);
                wait_for_reload(&proxy, "success", successes);
                let status = proxy.json("/v1/status");
                let routes = status["routes"].as_array().unwrap().len();
                assert_eq!(routes, if turn % 8 >= 4 { 2 } else { 1 }, "turn {turn}, {way:?}");
            }
        }
        assert!(began.elapsed() < SOON, "turn {turn}, {way:?}: {:?}", began.elapsed());
        eventually("they go on talking", || (talking.said() > said).then_some(()));
        memory.push(proxy.memory_kib("VmRSS"));
    }
    assert_eq!((proxy.process.pid(), proxy.process.has_exited()), (pid, false));
    assert!(coming.finish() > 0);
    assert!(talking.finish() > reloads * connections);
    let closed = proxy.metric("steadfast_closes_total", &[("by", "proxy")]);
    assert_eq!(closed, 0.0, "closed by the proxy");
    // Flat: what the second half of the reloads has added is less than 10 KiB for each.
    let half = memory.len() / 2;
    let (before, after) = (memory[half..].first().unwrap(), memory.last().unwrap());
    let more = after.saturating_sub(*before);
    assert!(more < 10 * (memory.len() - half) + 1024, "{more} KiB more: {memory:?}");
}

#[test]
fn a_demo_has_no_file_to_reload() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    command.args(["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let mut demo = support::Process::start("demo", &mut command);
    let admin: SocketAddr = demo.wait_for("admin", |line| {
        line.split_once("admin   http://")?.1.split('/').next()?.parse().ok()
    });
    let answer = http::request(admin, "POST", "/v1/reload", &[], b"");
    assert_eq!(answer.status, 409, "{}", answer.text());
}
