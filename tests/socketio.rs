//! Sessions of Engine.IO and Socket.IO: without a key and without a cookie they stay where they began.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::http::{Answer, request};
use support::named::{self, Named};
use support::{ChatServer, Process, Proxy, RedisServer, config, eventually, root, within, ws};

const POLLING: &str = "/socket.io/?EIO=4&transport=polling";
const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";
const LOST: &str = r#"{"code":1,"message":"Session ID unknown"}"#;

/// Learns sessions, and has no key.
fn learning(backends: &[(&str, SocketAddr)], more: &[(&str, &str)]) -> Proxy {
    let config = config(backends, &[&[("route", "learn = \"socketio\"")], more].concat());
    Proxy::start(&config.replace("key = \"query:room\"\n", ""))
}

fn get(proxy: &Proxy, path: &str) -> Answer {
    request(proxy.address, "GET", path, &[], b"")
}

/// Opens a session by polling, and gives its id.
#[track_caller]
fn open_session(proxy: &Proxy) -> String {
    let answer = get(proxy, POLLING);
    assert_eq!(answer.status, 200, "{}", answer.text());
    id_in(&answer.text())
}

#[track_caller]
fn id_in(packet: &str) -> String {
    let open: Value = serde_json::from_str(packet.strip_prefix('0').unwrap()).unwrap();
    open["sid"].as_str().unwrap().to_owned()
}

/// The backend that a session of [`Named`] began on.
fn home(session: &str) -> &str {
    session.split('-').next().unwrap()
}

fn of(path: &str, session: &str) -> String {
    format!("{path}&sid={session}")
}

fn fleet() -> Vec<Named> {
    ["a", "b", "c"].into_iter().map(Named::start).collect()
}

#[test]
fn a_session_stays_where_it_began_by_its_id_alone() {
    let backends = fleet();
    let proxy = learning(&named::addresses(&backends), &[]);
    let sessions: Vec<String> = (0..30).map(|_| open_session(&proxy)).collect();
    let homes: HashSet<&str> = sessions.iter().map(|session| home(session)).collect();
    assert_eq!(homes.len(), 3, "they spread");
    for _ in 0..3 {
        for session in &sessions {
            let path = of(POLLING, session);
            assert_eq!(get(&proxy, &path).text(), home(session));
            let post = request(proxy.address, "POST", &path, &[], b"40");
            assert_eq!(post.text(), home(session));
        }
    }
    for session in &sessions {
        let upgraded = ws::open(proxy.address, &of(WEBSOCKET, session));
        assert_eq!(upgraded.read().text(), home(session));
    }
}

#[test]
fn a_session_that_began_as_a_websocket_is_learnt_from_its_first_message() {
    let backends = fleet();
    let proxy = learning(&named::addresses(&backends), &[]);
    for _ in 0..10 {
        let client = ws::open(proxy.address, WEBSOCKET);
        let session = id_in(&client.read().text());
        // Who has heard it has heard it after the proxy, and other workers know it as well.
        for _ in 0..5 {
            assert_eq!(get(&proxy, &of(POLLING, &session)).text(), home(&session));
        }
    }
}

#[test]
fn learnt_sessions_are_counted_and_explained() {
    let backends = fleet();
    let proxy = learning(&named::addresses(&backends), &[]);
    let sessions: Vec<String> = (0..5).map(|_| open_session(&proxy)).collect();
    proxy.wait_for_metric("steadfast_sessions", &[("pool", "pool")], 5.0);
    let explained = |session: &str| {
        let url = of(POLLING, session).replace('&', "%26");
        proxy.json(&format!("/v1/route?url={url}"))
    };
    for session in &sessions {
        let told = explained(session);
        assert_eq!(told["backend"], home(session));
        assert_eq!(told["fallback"], serde_json::json!([]));
        assert!(told["why"].to_string().contains("began its session"), "{told}");
    }
    let told = explained("unknown");
    assert_eq!(told["backend"], "any");
    assert!(told["why"].to_string().contains("no session of its sid is known"), "{told}");
}

#[test]
fn a_session_nobody_learnt_goes_anywhere() {
    let backends = fleet();
    let proxy = learning(&named::addresses(&backends), &[]);
    let answers = (0..30).map(|_| get(&proxy, &of(POLLING, "unknown")).text());
    assert_eq!(answers.collect::<HashSet<_>>().len(), 3);
    // Without `learn` a session is nothing.
    let proxy = Proxy::before(&named::addresses(&backends));
    let session = id_in(&get(&proxy, POLLING).text());
    let answers = (0..30).map(|_| get(&proxy, &of(POLLING, &session)).text());
    assert_eq!(answers.collect::<HashSet<_>>().len(), 3);
}

#[test]
fn a_learnt_session_comes_before_the_key_and_the_cookie() {
    let backends = fleet();
    let more = [("route", "learn = \"socketio\""), ("route", "sticky_cookie = {}")];
    let proxy = Proxy::start(&config(&named::addresses(&backends), &more));
    let session = open_session(&proxy);
    for room in 0..20 {
        let path = format!("{}&room={room}", of(POLLING, &session));
        assert_eq!(get(&proxy, &path).text(), home(&session));
        let path = format!("{}&room={room}", of(WEBSOCKET, &session));
        assert_eq!(ws::open(proxy.address, &path).read().text(), home(&session));
    }
    let answer = get(&proxy, &of(POLLING, &session));
    assert!(!answer.head.contains("steadfast="), "no cookie is needed: {}", answer.head);
}

#[test]
fn a_session_follows_its_backend_out_of_service_and_ends_with_its_loss() {
    let backends = fleet();
    let health = "kind = \"http\"\ninterval = \"50ms\"\nfall = 2\nrise = 1\nlost_after = \"1s\"";
    let proxy = learning(&named::addresses(&backends), &[("health", health)]);
    let session = loop {
        let session = open_session(&proxy);
        if home(&session) == "a" {
            break session;
        }
    };
    backends[0].set_healthy(false);
    eventually("a is out", || (proxy.state("a") == "out_of_service").then_some(()));
    assert_ne!(home(&open_session(&proxy)), "a", "new sessions go elsewhere");
    assert_eq!(get(&proxy, &of(POLLING, &session)).text(), "a");
    assert_eq!(ws::open(proxy.address, &of(WEBSOCKET, &session)).read().text(), "a");
    // Lost, it is answered at once, in the words that make a client begin anew.
    eventually("a is lost", || (proxy.state("a") == "lost").then_some(()));
    let polled = get(&proxy, &of(POLLING, &session));
    let upgrading = ws::ask(proxy.address, &of(WEBSOCKET, &session), &[]).answer;
    for answer in [polled, upgrading] {
        assert_eq!((answer.status, answer.text().as_str()), (400, LOST));
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    assert!(proxy.metric("steadfast_refused_total", &[("reason", "session_lost")]) >= 2.0);
}

#[test]
fn a_session_whose_backend_refuses_connections_goes_nowhere_else() {
    let backends = fleet();
    let proxy = learning(&named::addresses(&backends), &[]);
    let session = open_session(&proxy);
    let backend = backends.iter().find(|backend| backend.id == home(&session)).unwrap();
    backend.shut_door();
    assert_eq!(get(&proxy, &of(POLLING, &session)).status, 502);
    assert_eq!(ws::ask(proxy.address, &of(WEBSOCKET, &session), &[]).answer.status, 502);
    // Who begins one is sent on.
    for _ in 0..6 {
        assert_ne!(home(&open_session(&proxy)), backend.id);
    }
    backend.open_door();
    assert_eq!(get(&proxy, &of(POLLING, &session)).text(), backend.id);
}

#[test]
fn a_websocket_of_a_session_takes_one_place_at_its_backend() {
    let backend = Named::start("a");
    let more = [("route", "learn = \"socketio\""), ("pool", "max_connections = 2")];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &more));
    let keyed = format!("{POLLING}&room=red");
    let session = id_in(&get(&proxy, &keyed).text());
    backend.set_delay(Duration::from_secs(1));
    let path = format!("{}&room=red", of(WEBSOCKET, &session));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| ws::ask(proxy.address, &path, &[]).answer.status);
        eventually("the first is under way", || (backend.handshakes() == 1).then_some(()));
        assert_eq!(ws::ask(proxy.address, "/?room=blue", &[]).answer.status, 101);
        assert_eq!(first.join().unwrap(), 101);
    });
}

/// Three instances of the chat with one Redis, behind a proxy.
struct Chat {
    redis: RedisServer,
    servers: Vec<ChatServer>,
    proxy: Proxy,
}

impl Chat {
    fn start() -> Self {
        let redis = RedisServer::start();
        let names = ["a", "b", "c"];
        let servers: Vec<_> = names.iter().map(|name| ChatServer::start(name, 0, &redis)).collect();
        let addresses: Vec<_> =
            names.into_iter().zip(&servers).map(|(name, server)| (name, server.address)).collect();
        let health = "kind = \"http\"\ninterval = \"200ms\"";
        let proxy = learning(&addresses, &[("health", health)]);
        Self { redis, servers, proxy }
    }

    /// Clients of its own library in rooms; see the script for what they do and check.
    fn clients(&self, clients: usize, rooms: usize) -> Process {
        let mut command = Command::new("node");
        command.current_dir(root().join("tests/peers")).arg("socketio_client.mjs");
        command.arg(format!("http://{}", self.proxy.address));
        command.args([clients.to_string(), rooms.to_string()]);
        let mut process = Process::start_listening("socketio_client.mjs", &mut command);
        hear(&mut process, "ready");
        process
    }

    #[track_caller]
    fn expect_no_errors(&self) {
        for server in &self.servers {
            assert_eq!(server.errors(), serde_json::json!({}));
        }
    }
}

fn hear(clients: &mut Process, line: &str) {
    clients.wait_for(line, |said| (said == line).then_some(()));
}

fn say(clients: &mut Process, text: &str) {
    clients.say(&format!("say {text}"));
    hear(clients, &format!("said {text}"));
}

/// Of each client its instance, and how often it has lost its connection.
fn places(clients: &mut Process, tag: &str) -> Vec<(String, u64)> {
    clients.say(&format!("where {tag}"));
    let prefix = format!("where {tag} ");
    let line = clients.wait_for("where", |line| line.strip_prefix(&prefix).map(str::to_owned));
    let all: Vec<Value> = serde_json::from_str(&line).unwrap();
    let one =
        |one: &Value| (one["instance"].as_str().unwrap().to_owned(), one["lost"].as_u64().unwrap());
    all.iter().map(one).collect()
}

#[test]
fn rooms_across_instances_hear_every_message_once_by_every_transport() {
    let chat = Chat::start();
    let mut clients = chat.clients(30, 4);
    let instances: HashSet<String> =
        places(&mut clients, "1").into_iter().map(|(instance, _)| instance).collect();
    assert_eq!(instances.len(), 3, "the clients are spread");
    for number in 0..10 {
        say(&mut clients, &format!("message-{number}"));
    }
    assert!(places(&mut clients, "2").iter().all(|(_, lost)| *lost == 0));
    chat.expect_no_errors();
}

#[test]
fn an_instance_that_dies_costs_its_clients_a_moment_and_the_others_nothing() {
    let mut chat = Chat::start();
    let mut clients = chat.clients(12, 4);
    say(&mut clients, "before");
    let before = places(&mut clients, "1");
    let gone = before[0].0.as_str();
    let theirs = before.iter().filter(|(instance, _)| instance == gone).count();
    let server = ["a", "b", "c"].iter().position(|name| *name == gone).unwrap();
    let port = chat.servers[server].address.port();
    chat.servers[server].process.kill();
    clients.say(&format!("back {theirs}"));
    within(Duration::from_secs(2), "its clients are back", || {
        clients.output().contains(&format!("back {theirs}\n")).then_some(())
    });
    say(&mut clients, "while it is away");
    chat.servers[server] = ChatServer::start(gone, port, &chat.redis);
    eventually("it is in service", || (chat.proxy.state(gone) == "in_service").then_some(()));
    say(&mut clients, "after");
    let after = places(&mut clients, "2");
    for ((instance, _), (now, lost)) in before.iter().zip(&after) {
        if instance == gone {
            assert_eq!((now != gone, *lost), (true, 1));
        } else {
            assert_eq!((now, *lost), (instance, 0), "they notice nothing");
        }
    }
    chat.expect_no_errors();
}

#[test]
fn polling_clients_that_send_nothing_but_their_session_id_are_understood() {
    let chat = Chat::start();
    let sessions: Vec<String> = (0..60).map(|_| open_session(&chat.proxy)).collect();
    for session in &sessions {
        let path = of(POLLING, session);
        let posted = request(chat.proxy.address, "POST", &path, &[], b"40");
        assert_eq!((posted.status, posted.text().as_str()), (200, "ok"));
    }
    for session in &sessions {
        let polled = get(&chat.proxy, &of(POLLING, session));
        assert_eq!(polled.status, 200);
        assert!(polled.text().starts_with("40{\"sid\":"), "{}", polled.text());
    }
    let served = chat.servers.iter().map(|server| {
        let stats = support::http::get(server.address, "/stats").body;
        serde_json::from_slice::<Value>(&stats).unwrap()["clients"].as_u64().unwrap()
    });
    let served: Vec<u64> = served.collect();
    assert!(served.iter().all(|clients| *clients > 0), "{served:?}");
    chat.expect_no_errors();
}

#[test]
fn with_a_key_each_request_of_a_session_may_take_either_of_two_proxies() {
    let chat = Chat::start();
    let addresses: Vec<_> =
        ["a", "b", "c"].into_iter().zip(&chat.servers).map(|(id, one)| (id, one.address)).collect();
    let config = config(&addresses, &[("route", "learn = \"socketio\"")]);
    let (one, two) = (Proxy::start(&config), Proxy::start(&config));
    for number in 0..20 {
        let keyed = format!("{POLLING}&room={number}");
        let session = id_in(&get(&one, &keyed).text());
        let path = of(&keyed, &session);
        assert_eq!(request(two.address, "POST", &path, &[], b"40").text(), "ok");
        let polled = get(if number % 2 == 0 { &one } else { &two }, &path);
        assert!(polled.text().starts_with("40{\"sid\":"), "{}", polled.text());
        let upgrade = format!("{WEBSOCKET}&room={number}&sid={session}");
        let upgraded = ws::open(two.address, &upgrade);
        upgraded.send(ws::TEXT, "2probe");
        upgraded.expect_text("3probe");
    }
    chat.expect_no_errors();
}

#[test]
fn without_a_key_each_request_of_a_session_may_take_either_of_two_proxies_of_a_registry() {
    let chat = Chat::start();
    let addresses: Vec<_> =
        ["a", "b", "c"].into_iter().zip(&chat.servers).map(|(id, one)| (id, one.address)).collect();
    let config = config(&addresses, &[("route", "learn = \"socketio\"")]);
    let registry = format!("\n[registry]\nurl = \"{}\"\n", chat.redis.url());
    let config = config.replace("key = \"query:room\"\n", "") + &registry;
    let (one, two) = (Proxy::start(&config), Proxy::start(&config));
    for number in 0..20 {
        let (first, second) = if number % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let session = open_session(first);
        let path = of(POLLING, &session);
        assert_eq!(request(second.address, "POST", &path, &[], b"40").text(), "ok");
        let polled = get(first, &path);
        assert!(polled.text().starts_with("40{\"sid\":"), "{}", polled.text());
        let upgraded = ws::open(second.address, &of(WEBSOCKET, &session));
        upgraded.send(ws::TEXT, "2probe");
        upgraded.expect_text("3probe");
    }
    chat.expect_no_errors();
}

/// How long Redis keeps a session yet, in milliseconds; negative: it does not.
fn kept(redis: &RedisServer, session: &str) -> i64 {
    let (port, key) = (redis.port.to_string(), format!("steadfast:session:pool/{session}"));
    let answer = Command::new("redis-cli").args(["-p", &port, "PTTL", &key]).output().unwrap();
    String::from_utf8(answer.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn a_session_is_in_the_registry_when_its_client_has_the_id_and_while_it_is_used() {
    let redis = RedisServer::start();
    let backends = fleet();
    let registry = format!("\n[registry]\nurl = \"{}\"\njoin_wait = \"10s\"\n", redis.url());
    let config = config(&named::addresses(&backends), &[("route", "learn = \"socketio\"")]);
    let config = config.replace("key = \"query:room\"\n", "") + &registry;
    let proxy = Proxy::start(&config);
    let session = open_session(&proxy);
    assert!((30_000..=45_000).contains(&kept(&redis, &session)), "{}", kept(&redis, &session));
    // Of a WebSocket it is there soon after.
    let client = ws::open(proxy.address, WEBSOCKET);
    let of_socket = id_in(&client.read().text());
    eventually("it is written", || (kept(&redis, &of_socket) > 0).then_some(()));
    // With the registry away a session is what one proxy knows.
    redis.process.signal("STOP");
    let begun = std::time::Instant::now();
    let answer = get(&proxy, &of(POLLING, "unknown"));
    assert_eq!(answer.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(get(&proxy, &of(POLLING, &session)).text(), home(&session));
}
