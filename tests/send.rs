//! Messages to clients over the admin API: to one, to a key, to a room, to all; and who is in which
//! room.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use steadfast::publish::Audience;
use steadfast::server::PublishError;
use steadfast::ws::handshake::accept_for;
use steadfast::ws::rooms::Room;
use support::http::{Answer, header, read_head, request};
use support::in_process::{InProcess, runtime};
use support::scripted::{Handed, Scripted, switching};
use support::ws::{self, BINARY, CLOSE, Frame, TEXT, Ws, close_payload, unmasked};
use support::{Process, Proxy, binary, config, eventually, node_client, send};

/// A proxy in front of one scripted backend.
struct World {
    proxy: Proxy,
    handed: Handed,
    _backend: Scripted,
}

/// An open WebSocket: the client's end, the backend's, and its id.
struct Open {
    client: Ws,
    backend: TcpStream,
    id: String,
}

impl World {
    /// `route` is put into the route, `lines` into the 101 of the backend.
    fn new(route: &str, lines: &'static str) -> Self {
        let (backend, handed) = Scripted::opening_with(lines);
        let more = [("server", "workers = 2"), ("route", route)];
        let proxy = Proxy::start(&config(&[("a", backend.address)], &more));
        Self { proxy, handed, _backend: backend }
    }

    fn open(&self, key: &str) -> Open {
        let client = ws::open(self.proxy.address, &format!("/?room={key}"));
        let (backend, head) = self.handed.next();
        let id = header(&head, "steadfast-connection").unwrap().to_owned();
        Open { client, backend, id }
    }

    fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Answer {
        request(self.proxy.admin, "POST", path, &[("Content-Type", content_type)], body)
    }

    /// Sends a text, and tells how many proxies it has reached.
    #[track_caller]
    fn say(&self, path: &str, text: &str) -> u64 {
        let answer = self.post(path, "text/plain", text.as_bytes());
        assert_eq!(answer.status, 202, "{path}: {}", answer.text());
        let told: Value = serde_json::from_slice(&answer.body).unwrap();
        told["proxies"].as_u64().unwrap()
    }

    fn ask(&self, method: &str, path: &str) -> u16 {
        request(self.proxy.admin, method, path, &[], b"").status
    }

    /// The rooms of a connection.
    #[track_caller]
    fn rooms(&self, id: &str) -> Value {
        self.proxy.json(&format!("/v1/connections/{id}"))["rooms"].clone()
    }
}

/// Sends a last message to all, and expects that nothing has come to these before it.
#[track_caller]
fn nothing_came(world: &World, to: &[&Open]) {
    assert_eq!(world.say("/v1/broadcast", "last"), 1);
    to.iter().for_each(|one| one.client.expect_text("last"));
}

#[track_caller]
fn expect_problem(answer: &Answer, status: u16, part: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert!(answer.text().contains(part), "{}", answer.text());
}

#[test]
fn a_message_reaches_one_connection_as_text_or_binary() {
    let world = World::new("", "");
    let (one, other) = (world.open("k"), world.open("k"));
    let path = format!("/v1/connections/{}/messages", one.id);
    for (content_type, opcode) in [
        ("text/plain", TEXT),
        ("text/html; charset=utf-8", TEXT),
        ("application/json", TEXT),
        ("application/octet-stream", BINARY),
    ] {
        let answer = world.post(&path, content_type, "{\"a\": \"é\"}".as_bytes());
        assert_eq!((answer.status, answer.text().as_str()), (202, "{\"proxies\":1}"));
        assert_eq!(one.client.read(), Frame::new(opcode, "{\"a\": \"é\"}"), "{content_type}");
    }
    for length in [0, 125, 126, 65_536, 1024 * 1024] {
        let answer = world.post(&path, "image/png", &vec![7; length]);
        assert_eq!(answer.status, 202, "{length}: {}", answer.text());
        assert_eq!(one.client.read(), Frame::new(BINARY, vec![7; length]));
    }
    expect_problem(&world.post(&path, "text/plain", b"\xff"), 400, "UTF-8");
    expect_problem(&world.post(&path, "image/png", &vec![7; 1024 * 1024 + 1]), 413, "1048576");
    nothing_came(&world, &[&one, &other]);
    assert_eq!(world.proxy.metric("steadfast_injected_messages_total", &[]), 11.0);
}

#[test]
fn who_is_not_there_is_told_apart() {
    let world = World::new("", "");
    let one = world.open("k");
    let path = |id: &str| format!("/v1/connections/{id}/messages");
    for unknown in ["x", "other-1.000000000000000000"] {
        expect_problem(&world.post(&path(unknown), "text/plain", b"x"), 404, "no connection");
    }
    one.client.send_close(1000, "");
    send(&one.backend, &unmasked(CLOSE, close_payload(1000, "")));
    one.client.expect_close(1000);
    drop(one.backend);
    one.client.expect_end();
    eventually("it is gone", || {
        let answer = world.post(&path(&one.id), "text/plain", b"x");
        (answer.status == 410).then(|| expect_problem(&answer, 410, "gone"))
    });
    for nobody in ["/v1/broadcast", "/v1/rooms/r/messages", "/v1/keys/pool/k/messages"] {
        assert_eq!(world.say(nobody, "x"), 0, "{nobody}");
    }
    let (long, admin) = ("x".repeat(1025), world.proxy.admin);
    for (path, status, part) in [
        ("/v1/keys/nowhere/k/messages".to_owned(), 404, "pool"),
        (format!("/v1/keys/pool/{long}/messages"), 400, "1025 bytes"),
        (format!("/v1/rooms/{long}/messages"), 400, "1025"),
        ("/v1/broadcast?only=x".to_owned(), 400, "only"),
    ] {
        expect_problem(&request(admin, "POST", &path, &[], b"x"), status, part);
    }
}

#[test]
fn a_token_is_asked_for() {
    let backend = Scripted::answering("");
    let more = [("server", "admin_token = \"hush\"")];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &more));
    let ask = |headers: &[(&str, &str)]| {
        let sent = request(proxy.admin, "POST", "/v1/broadcast", headers, b"x").status;
        let path = "/v1/rooms/r/members/x";
        (sent, request(proxy.admin, "PUT", path, headers, b"").status)
    };
    assert_eq!(ask(&[]), (401, 401));
    assert_eq!(ask(&[("Authorization", "Bearer hush")]), (202, 404));
}

#[test]
fn a_key_is_reached_on_all_workers_and_nobody_else_is() {
    let world = World::new("", "");
    let red: Vec<Open> = (0..6).map(|_| world.open("a/b%20c")).collect();
    let blue = world.open("blue");
    assert_eq!(world.say("/v1/keys/pool/a%2Fb%20c/messages", "hello"), 1);
    red.iter().for_each(|one| one.client.expect_text("hello"));
    let path = format!("/v1/keys/pool/a%2Fb%20c/messages?except={}&except=x.1", red[2].id);
    assert_eq!(world.say(&path, "not to the third"), 1);
    for (index, one) in red.iter().enumerate().filter(|(index, _)| *index != 2) {
        assert_eq!(one.client.read().text(), "not to the third", "{index}");
    }
    nothing_came(&world, &[&red[2], &blue, &red[0]]);
}

#[test]
fn rooms_come_from_the_route_the_backend_and_the_api() {
    let world = World::new(
        "rooms = [\"lobby\", \"doc {key}\"]",
        "Steadfast-Join: team%20a, lobby,%ff\r\nSteadfast-Join: b%2Cc\r\n",
    );
    let (one, other) = (world.open("7"), world.open("8"));
    assert!(one.client.answer.header("steadfast-join").is_none());
    assert_eq!(world.rooms(&one.id), json!(["b,c", "doc 7", "lobby", "team a"]));
    for (room, to) in [("lobby", 2), ("team%20a", 2), ("b%2Cc", 2), ("doc%207", 1)] {
        assert_eq!(world.say(&format!("/v1/rooms/{room}/messages"), room), 1);
        one.client.expect_text(room);
        if to == 2 {
            other.client.expect_text(room);
        }
    }
    let member = |room: &str, id: &str| format!("/v1/rooms/{room}/members/{id}");
    assert_eq!(world.ask("PUT", &member("new", &other.id)), 204);
    assert_eq!(world.ask("PUT", &member("new", &other.id)), 204);
    assert_eq!(world.say("/v1/rooms/new/messages", "hello"), 1);
    other.client.expect_text("hello");
    let listed = world.proxy.json("/v1/connections?room=new");
    assert_eq!(listed["connections"].as_array().unwrap().len(), 1);
    assert_eq!(listed["connections"][0]["id"], other.id);
    assert_eq!(world.ask("DELETE", &member("new", &other.id)), 204);
    assert_eq!(world.ask("DELETE", &member("new", &other.id)), 204);
    assert_eq!(world.ask("DELETE", &member("lobby", &one.id)), 204);
    assert_eq!(world.say("/v1/rooms/new/messages", "nobody"), 0);
    assert_eq!(world.say(&format!("/v1/rooms/lobby/messages?except={}", one.id), "rest"), 1);
    other.client.expect_text("rest");
    for id in ["x", "other.000000000000000000"] {
        assert_eq!(world.ask("PUT", &member("r", id)), 404);
        assert_eq!(world.ask("DELETE", &member("r", id)), 404);
    }
    nothing_came(&world, &[&one, &other]);

    // lobby, doc 7, doc 8, team a and b,c.
    world.proxy.wait_for_metric("steadfast_rooms", &[], 5.0);
    world.proxy.wait_for_metric("steadfast_room_memberships", &[], 7.0);
    drop((one, other));
    world.proxy.wait_for_metric("steadfast_rooms", &[], 0.0);
    world.proxy.wait_for_metric("steadfast_room_memberships", &[], 0.0);
    let warned = world.proxy.process.output();
    assert!(warned.contains("a backend names rooms that can't be joined"), "{warned}");
}

#[test]
fn a_connection_without_a_key_is_in_the_rooms_that_need_none() {
    let world = World::new("rooms = [\"lobby\", \"{key}\"]", "");
    let client = ws::open(world.proxy.address, "/");
    let (_backend, head) = world.handed.next();
    let id = header(&head, "steadfast-connection").unwrap();
    assert_eq!(world.rooms(id), json!(["lobby"]));
    world.say("/v1/rooms/lobby/messages", "hello");
    client.expect_text("hello");
}

#[test]
fn a_connection_is_in_a_bounded_number_of_rooms() {
    let world = World::new("", "");
    let one = world.open("k");
    for number in 0..128 {
        assert_eq!(world.ask("PUT", &format!("/v1/rooms/{number}/members/{}", one.id)), 204);
    }
    let path = format!("/v1/rooms/one-more/members/{}", one.id);
    expect_problem(&request(world.proxy.admin, "PUT", &path, &[], b""), 409, "128 rooms");
    assert_eq!(world.ask("DELETE", &format!("/v1/rooms/7/members/{}", one.id)), 204);
    assert_eq!(world.ask("PUT", &path), 204);
}

#[test]
fn messages_of_one_publisher_arrive_in_order_and_a_close_behind_them() {
    let world = World::new("rooms = [\"r\"]", "");
    let members: Vec<Open> = (0..8).map(|number| world.open(&number.to_string())).collect();
    let one = &members[3];
    // The beginning of a message of the backend holds up what is sent.
    send(&one.backend, &Frame { fin: false, ..Frame::new(TEXT, "half, ") }.encode(None));
    assert!(!one.client.read().fin);
    for number in 0..100 {
        assert_eq!(world.say("/v1/rooms/r/messages", &number.to_string()), 1);
    }
    let others = || members.iter().filter(|other| other.id != one.id);
    for other in others() {
        (0..100).for_each(|number| other.client.expect_text(&number.to_string()));
    }
    let path = format!("/v1/connections/{}?code=4001&reason=bye", one.id);
    assert_eq!(world.ask("DELETE", &path), 204);
    let messages = format!("/v1/connections/{}/messages", one.id);
    expect_problem(&world.post(&messages, "text/plain", b"late"), 410, "closing");
    send(&one.backend, &unmasked(0, "whole"));
    assert_eq!(one.client.read().payload, b"whole");
    (0..100).for_each(|number| one.client.expect_text(&number.to_string()));
    assert_eq!(one.client.read().close(), (4001, "bye".to_owned()));
    let undeliverable = |reason| {
        world.proxy.metric("steadfast_undeliverable_messages_total", &[("reason", reason)])
    };
    assert_eq!((undeliverable("closing"), undeliverable("queue_full")), (1.0, 0.0));
}

#[test]
fn a_close_does_not_wait_for_ever_for_what_was_sent_before() {
    let world = World::new("", "");
    let one = world.open("k");
    send(&one.backend, &Frame { fin: false, ..Frame::new(TEXT, "never ends") }.encode(None));
    assert!(!one.client.read().fin);
    world.say(&format!("/v1/connections/{}/messages", one.id), "never sent");
    assert_eq!(world.ask("DELETE", &format!("/v1/connections/{}?code=4001", one.id)), 204);
    let asked = Instant::now();
    one.client.expect_close(4001);
    let waited = asked.elapsed();
    assert!((4..15).contains(&waited.as_secs()), "{waited:?}");
}

#[test]
fn what_a_backend_sends_before_its_101_waits_for_it() {
    let (backend, accepted) = Scripted::accepting();
    let more = [("server", "workers = 2"), ("route", "rooms = [\"lobby\"]")];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &more));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| ws::open(proxy.address, "/?room=k"));
        let (stream, head) = accepted.next_request();
        let id = header(&head, "steadfast-connection").unwrap();
        for path in [
            &format!("/v1/connections/{id}/messages"),
            "/v1/keys/pool/k/messages",
            "/v1/rooms/lobby/messages",
            "/v1/broadcast",
        ] {
            let text = [("Content-Type", "text/plain")];
            let answer = request(proxy.admin, "POST", path, &text, path.as_bytes());
            assert_eq!((answer.status, answer.text().as_str()), (202, "{\"proxies\":1}"));
        }
        let path = format!("/v1/rooms/early/members/{id}");
        assert_eq!(request(proxy.admin, "PUT", &path, &[], b"").status, 204);
        // Whatever the proxy has on its way, it has not said 101 yet: the backend has not.
        send(&stream, switching("Steadfast-Join: late\r\n").as_bytes());
        let client = client.join().unwrap();
        client.expect_text(&format!("/v1/connections/{id}/messages"));
        let mut rest: Vec<String> = (0..3).map(|_| client.read().text()).collect();
        rest.sort();
        let wanted = ["/v1/broadcast", "/v1/keys/pool/k/messages", "/v1/rooms/lobby/messages"];
        assert_eq!(rest, wanted);
        let told = proxy.json(&format!("/v1/connections/{id}"));
        assert_eq!(told["rooms"], json!(["early", "late", "lobby"]));
    });
}

#[test]
fn a_close_that_comes_before_the_101_waits_for_it() {
    let (backend, accepted) = Scripted::accepting();
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[]));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| ws::open(proxy.address, "/?room=k"));
        let (stream, head) = accepted.next_request();
        let id = header(&head, "steadfast-connection").unwrap();
        let path = format!("/v1/connections/{id}");
        let text = [("Content-Type", "text/plain")];
        let sent = request(proxy.admin, "POST", &format!("{path}/messages"), &text, b"bye");
        assert_eq!(sent.status, 202);
        let close = format!("{path}?code=4001&reason=not%20here");
        assert_eq!(request(proxy.admin, "DELETE", &close, &[], b"").status, 204);
        send(&stream, switching("").as_bytes());
        let client = client.join().unwrap();
        client.expect_text("bye");
        assert_eq!(client.read().close(), (4001, "not here".to_owned()));
        assert_eq!(ws::read_frame(&stream).unwrap().close(), (4001, "not here".to_owned()));
    });
}

#[test]
fn a_room_is_reached_between_the_messages_of_its_members_backends() {
    let world = World::new("rooms = [\"r\"]", "");
    let members: Vec<Open> = (0..4).map(|_| world.open("k")).collect();
    for member in &members {
        send(&member.backend, &Frame { fin: false, ..Frame::new(BINARY, "one") }.encode(None));
        assert!(!member.client.read().fin);
    }
    world.say("/v1/rooms/r/messages", "in between");
    for member in &members {
        let rest = [unmasked(0, "two"), unmasked(BINARY, "next")].concat();
        send(&member.backend, &rest);
        assert_eq!(member.client.read(), Frame::new(0, "two"));
        member.client.expect_text("in between");
        assert_eq!(member.client.read(), Frame::new(BINARY, "next"));
    }
}

#[test]
fn a_strict_client_takes_what_comes_between_fragmented_messages() {
    const COUNT: usize = 200;
    let backend = Scripted::start(|stream| {
        let head = read_head(&stream);
        let accept = accept_for(header(&head, "sec-websocket-key").unwrap().as_bytes());
        let answer = switching("").replace(ws::ACCEPT, &accept);
        send(&stream, answer.as_bytes());
        for number in 0_usize.. {
            if (&stream).write_all(&ws::fragmented(number)).is_err() {
                return;
            }
        }
    });
    let more = [("route", "rooms = [\"r\"]")];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &more));
    let url = format!("ws://{}/?room=k", proxy.address);
    let say = |number: usize| {
        let (text, body) = ([("Content-Type", "text/plain")], format!("injected {number}"));
        let path = "/v1/rooms/r/messages";
        let answer = request(proxy.admin, "POST", path, &text, body.as_bytes());
        assert_eq!(answer.status, 202);
        answer.text() == "{\"proxies\":1}"
    };
    std::thread::scope(|scope| {
        let client = scope.spawn(|| node_client("between", &url, &[&COUNT.to_string()]));
        eventually("it is a member", || say(0).then_some(()));
        (1..COUNT).for_each(|number| assert!(say(number)));
        let told: Value = serde_json::from_str(&client.join().unwrap()).unwrap();
        assert!(told["binaries"].as_u64().unwrap() > 10, "{told}");
    });
}

#[test]
fn a_member_that_does_not_read_is_closed_and_the_others_are_not() {
    let world = World::new("rooms = [\"r\"]", "");
    let (slow, quick) = (world.open("a"), world.open("b"));
    let message = vec![7; 200_000];
    let mut sent = 0;
    eventually("its queue is full", || {
        assert_eq!(world.post("/v1/rooms/r/messages", "image/png", &message).status, 202);
        sent += 1;
        assert_eq!(quick.client.read(), Frame::new(BINARY, message.clone()));
        let labels = [("reason", "queue_full")];
        let full = world.proxy.metric("steadfast_undeliverable_messages_total", &labels);
        (full == 1.0).then_some(())
    });
    world.say("/v1/rooms/r/messages", "still here");
    quick.client.expect_text("still here");
    let got = slow.client.read_to_slow_close(&Frame::new(BINARY, message.clone()));
    assert!(got < sent, "{got} of {sent}");
    world.proxy.wait_for_metric("steadfast_closes_total", &[("reason", "slow_client")], 1.0);
}

fn load(
    name: &str,
    arguments: &[&str],
    find: impl Fn(&str) -> Option<String>,
) -> (Process, String) {
    let mut process = Process::start_listening(name, Command::new(binary("load")).args(arguments));
    let found = process.wait_for("its line", find);
    (process, found)
}

#[test]
fn a_crowd_is_reached_while_others_go_on() {
    const CROWD: usize = 2000;
    const ROUNDS: usize = 5;
    steadfast::descriptors::raise_limit();
    let (_echo, address) = load("echo", &["echo", "--listen", "127.0.0.1:0"], |line| {
        line.parse::<SocketAddr>().is_ok().then(|| line.to_owned())
    });
    let more = [("server", "workers = 1"), ("route", "rooms = [\"crowd\"]")];
    let proxy = Proxy::start(&config(&[("a", address.parse().unwrap())], &more));
    let (to, count) = (proxy.address.to_string(), CROWD.to_string());
    let idle = ["idle", "--to", &to, "--connections", &count];
    let (_crowd, _) =
        load("the crowd", &idle, |line| line.contains("connections").then(String::new));
    let client = ws::open(proxy.address, "/?room=other");
    let path = "/v1/connections?key=other";
    let id = proxy.json(path)["connections"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/rooms/crowd/messages?except={id}");
    let echo = || {
        let asked = Instant::now();
        client.send(TEXT, "echo");
        client.expect_text("echo");
        asked.elapsed()
    };
    let before = (0..20).map(|_| echo()).max().unwrap();
    let text = [("Content-Type", "text/plain")];
    let began = Instant::now();
    for _ in 0..ROUNDS {
        assert_eq!(request(proxy.admin, "POST", &path, &text, b"to the crowd").status, 202);
    }
    let mut slowest = Duration::ZERO;
    let wanted = (CROWD * ROUNDS) as f64;
    eventually("all have it", || {
        slowest = slowest.max((0..5).map(|_| echo()).max().unwrap());
        (proxy.metric("steadfast_injected_messages_total", &[]) == wanted).then_some(())
    });
    println!(
        "{CROWD} members, {ROUNDS} messages: {:?}; slowest echo {slowest:?}, alone {before:?}",
        began.elapsed()
    );
    // Ten thousand writes in one go would be a quarter of a second, a busy machine aside.
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert_eq!(proxy.metric("steadfast_undeliverable_messages_total", &[]), 0.0);
}

#[test]
fn a_program_publishes_as_others_will() {
    let (backend, handed) = Scripted::opening();
    let more = [("server", "workers = 2"), ("route", "rooms = [\"r\"]")];
    let proxy = InProcess::start(&config(&[("a", backend.address)], &more));
    let server = proxy.server();
    let open = || {
        let client = ws::open(server.listeners()[0], "/?room=k");
        let (backend, head) = handed.next();
        let id = header(&head, "steadfast-connection").unwrap().to_owned();
        Open { client, backend, id }
    };
    let (one, other) = (open(), open());
    let publish = |audience: Option<Audience>, message: &[u8]| {
        runtime().block_on(server.publish(audience, message))
    };
    let room = |name: &str| Some(Audience::Room(Room::new(name).unwrap()));
    let key = || Some(Audience::Key { pool: "pool".to_owned(), key: "k".to_owned() });
    assert!(publish(room("r"), br#"{"text": "hello"}"#).unwrap());
    one.client.expect_text("hello");
    other.client.expect_text("hello");
    let except = json!({"binary": "AAE=", "except": [one.id]}).to_string();
    assert!(publish(key(), except.as_bytes()).unwrap());
    assert_eq!(other.client.read(), Frame::new(BINARY, [0, 1]));
    let join = json!({"join": ["s"], "connection": one.id}).to_string();
    assert!(publish(None, join.as_bytes()).unwrap());
    // {"text": "to s"} in MessagePack.
    assert!(publish(room("s"), b"\x81\xa4text\xa4to s").unwrap());
    one.client.expect_text("to s");
    assert!(publish(Some(Audience::All), br#"{"leave": ["s"]}"#).unwrap());
    eventually("it has left", || {
        (!publish(room("s"), br#"{"text": "nobody"}"#).unwrap()).then_some(())
    });
    let wrong = |audience: Option<Audience>, message: &str| {
        publish(audience, message.as_bytes()).unwrap_err().to_string()
    };
    assert!(wrong(room("r"), "{}").contains("0 of text"));
    assert!(wrong(None, r#"{"text": "x"}"#).contains("connection"));
    assert!(
        wrong(room("r"), &json!({"text": "x", "connection": one.id}).to_string())
            .contains("one connection")
    );
    let gone = publish(None, br#"{"text": "x", "connection": "other.1"}"#);
    assert!(matches!(gone, Err(PublishError::Unknown)));
    assert!(publish(room("r"), br#"{"close": {"code": 4002, "reason": "over"}}"#).unwrap());
    for end in [&one, &other] {
        assert_eq!(end.client.read().close(), (4002, "over".to_owned()));
    }
}

/// Runs the command line against a proxy; its exit code, and what it says on either stream.
fn cli(proxy: &Proxy, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    let output = command.args(arguments).args(["--admin", &proxy.admin.to_string()]);
    let output = output.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_line_sends_and_lists_rooms() {
    let world = World::new("rooms = [\"lobby\"]", "");
    let (one, other) = (world.open("a/b"), world.open("k"));
    let sent = (0, "sent\n".to_owned(), String::new());
    assert_eq!(cli(&world.proxy, &["send", "--connection", &one.id, "to one"]), sent);
    one.client.expect_text("to one");
    assert_eq!(cli(&world.proxy, &["send", "--key", "pool/a/b", "to a key"]), sent);
    one.client.expect_text("to a key");
    assert_eq!(cli(&world.proxy, &["send", "--pool", "pool", "--key", "a/b", "again"]), sent);
    one.client.expect_text("again");
    let file = world.proxy.folder().join("message");
    std::fs::write(&file, b"\x00\xff").unwrap();
    let file = file.to_str().unwrap();
    let room = ["send", "--room", "lobby", "--binary-file", file, "--except", &one.id];
    assert_eq!(cli(&world.proxy, &room), sent);
    assert_eq!(other.client.read(), Frame::new(BINARY, b"\x00\xff"));
    let told = cli(&world.proxy, &["send", "--all", "to all", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&told.1).unwrap(), json!({"proxies": 1}));
    one.client.expect_text("to all");
    other.client.expect_text("to all");
    let nobody = cli(&world.proxy, &["send", "--room", "empty", "x"]);
    assert_eq!(nobody, (0, "nobody is there\n".to_owned(), String::new()));
    let (code, _, said) = cli(&world.proxy, &["send", "--connection", "x.1", "x"]);
    assert!(code == 1 && said.contains("steadfast connections"), "{said}");
    let (code, _, said) = cli(&world.proxy, &["send", "--key", "no-pool", "x"]);
    assert!(code == 2 && said.contains("POOL/KEY"), "{said}");
    for wrong in [
        &["send", "x"][..],
        &["send", "--all"],
        &["send", "--all", "--room", "r", "x"],
        &["send", "--all", "x", "--binary-file", "f"],
        &["send", "--room", "r", "--pool", "p", "x"],
    ] {
        assert_eq!(cli(&world.proxy, wrong).0, 2, "{wrong:?}");
    }
    world.ask("PUT", &format!("/v1/rooms/red/members/{}", other.id));
    let (_, listed, _) = cli(&world.proxy, &["connections", "--room", "red", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["connections"].as_array().unwrap().len(), 1);
    assert_eq!(listed["connections"][0]["rooms"], json!(["lobby", "red"]));
}
