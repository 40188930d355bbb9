//! Node's `ws` on both sides of the proxy: what a team with a Node server sees.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use serde_json::{Value, json};
use support::ws::{self, PING, TEXT};
use support::{NodeServer, Proxy, addresses, config, eventually, http, node_client};

/// A server, the proxy before it, and the URL of a path.
struct Setup {
    server: NodeServer,
    proxy: Proxy,
}

impl Setup {
    fn start(environment: &[(&str, &str)]) -> Self {
        Self::start_with(environment, &[])
    }

    fn start_with(environment: &[(&str, &str)], more: &[(&str, &str)]) -> Self {
        let server = NodeServer::start(environment);
        let proxy = Proxy::start(&config(&[("node", server.address)], more));
        Self { server, proxy }
    }

    fn url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.proxy.address)
    }

    /// Waits until the server has told how the connection to this path ended.
    #[track_caller]
    fn end_of(&self, path: &str) -> (u64, String) {
        eventually("the server tells how it ended", || {
            let ends = http::get(self.server.address, "/closes").body;
            let ends: Vec<Value> = serde_json::from_slice(&ends).unwrap();
            let end = ends.iter().find(|end| end["url"] == path)?;
            Some((end["code"].as_u64()?, end["reason"].as_str()?.to_owned()))
        })
    }

    /// The headers of a handshake as the server got them.
    #[track_caller]
    fn headers(&self, path: &str, sent: &[(&str, &str)]) -> Value {
        let client = ws::ask(self.proxy.address, path, sent);
        assert_eq!(client.answer.status, 101, "{}", client.answer.head);
        serde_json::from_str(&client.read().text()).unwrap()
    }
}

#[test]
fn messages_of_every_size_come_back() {
    let setup = Setup::start(&[]);
    node_client("echo", &setup.url("/echo?room=r"), &[]);
}

#[test]
fn pings_of_the_client_are_answered() {
    let setup = Setup::start(&[]);
    node_client("ping", &setup.url("/echo?room=r"), &[]);
}

#[test]
fn pings_of_the_server_are_answered() {
    let setup = Setup::start(&[]);
    // The server says so when it has its pong.
    let first = node_client("many", &setup.url("/ping"), &["1", "r"]);
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(first, json!({ "r0": "pong: are you there" }));
    // The same in bytes: the ping is the server's, not the proxy's.
    let client = ws::open(setup.proxy.address, "/ping?room=r");
    assert_eq!(client.read(), ws::Frame::new(PING, "are you there"));
}

#[test]
fn a_close_of_the_client_reaches_the_server_as_it_is() {
    let setup = Setup::start(&[]);
    for (code, reason) in [(1000, ""), (1000, "done"), (1001, ""), (3000, "é"), (4999, "own")] {
        let path = format!("/close-echo?room=r&code={code}&n={}", reason.len());
        node_client("close", &setup.url(&path), &[&code.to_string(), reason]);
        assert_eq!(setup.end_of(&path), (code, reason.to_owned()));
    }
    // Without a code: to this library that is 1005.
    node_client("close", &setup.url("/close-echo?room=r"), &["0"]);
    assert_eq!(setup.end_of("/close-echo?room=r"), (1005, String::new()));
}

#[test]
fn a_close_of_the_server_reaches_the_client_as_it_is() {
    let setup = Setup::start(&[]);
    for (code, reason) in [(1000, ""), (1001, "away"), (1011, ""), (3000, ""), (4999, "own")] {
        let path = format!("/close/{code}?room=r&reason={reason}");
        node_client("expect-close", &setup.url(&path), &[&code.to_string(), reason]);
        // Its answer went back as well.
        assert_eq!(setup.end_of(&path).0, code);
    }
    node_client("expect-close", &setup.url("/close/0?room=r"), &["1005", ""]);
    assert_eq!(setup.end_of("/close/0?room=r"), (1005, String::new()));
}

#[test]
fn the_server_chooses_the_subprotocol() {
    let setup = Setup::start(&[("SUBPROTOCOLS", "chat,json")]);
    let url = setup.url("/echo?room=r");
    node_client("subprotocol", &url, &["json,chat", "json"]);
    node_client("subprotocol", &url, &["other,chat", "chat"]);
    node_client("subprotocol", &url, &["other", "-"]);
}

#[test]
fn compression_is_between_client_and_server() {
    let setup = Setup::start(&[("DEFLATE", "1")]);
    let url = setup.url("/echo?room=r");
    node_client("deflate", &url, &[]);
    // A client that does not offer it gets none.
    node_client("echo", &url, &[]);
}

#[test]
fn nobody_else_agrees_to_compression() {
    let setup = Setup::start(&[]);
    let offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")];
    let client = ws::ask(setup.proxy.address, "/echo?room=r", &offer);
    assert_eq!(client.answer.status, 101);
    assert_eq!(client.answer.header("sec-websocket-extensions"), None);
    client.send(TEXT, "plain");
    client.expect_text("plain");
}

#[test]
fn refusals_reach_the_client_with_their_bodies() {
    let setup = Setup::start(&[]);
    for status in [401, 403, 426, 503] {
        let url = setup.url(&format!("/refuse/{status}?room=r"));
        let body = format!("refused with {status}\n");
        node_client("refused", &url, &[&status.to_string(), &body]);
    }
}

#[test]
fn a_426_says_to_which_protocol() {
    let setup = Setup::start(&[]);
    let answer = ws::ask(setup.proxy.address, "/refuse/426?room=r", &[]).answer;
    assert_eq!(answer.status, 426);
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(answer.header("connection").map(str::to_ascii_lowercase), Some("upgrade".into()));
    // Other statuses say nothing of this hop.
    let answer = ws::ask(setup.proxy.address, "/refuse/403?room=r", &[]).answer;
    assert_eq!(answer.header("upgrade"), None);
}

#[test]
fn a_message_in_the_packet_of_the_101_is_not_lost() {
    let setup = Setup::start(&[]);
    for room in 0..200 {
        let client = ws::open(setup.proxy.address, &format!("/first?room={room}"));
        client.expect_text("first");
        client.send(TEXT, "second");
        client.expect_text("second");
    }
    let first = node_client("many", &setup.url("/first"), &["200", "r"]);
    let first: serde_json::Map<String, Value> = serde_json::from_str(&first).unwrap();
    assert_eq!(first.len(), 200);
    assert!(first.values().all(|message| message == "first"), "{first:?}");
}

#[test]
fn the_server_sees_who_asks_and_for_what() {
    let setup = Setup::start(&[]);
    let headers = setup.headers("/headers?room=caf%C3%A9+%2F1", &[("User-Agent", "test/1")]);
    assert_eq!(headers["host"], "test");
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-forwarded-host"], "test");
    assert_eq!(headers["x-forwarded-port"], setup.proxy.address.port().to_string());
    assert_eq!(headers["connection"], "Upgrade");
    assert_eq!(headers["upgrade"], "websocket");
    assert_eq!(headers["user-agent"], "test/1");
    assert_eq!(headers["steadfast-key"], "caf%C3%A9%20%2F1");
    let id = headers["steadfast-connection"].as_str().unwrap();
    assert_eq!(id.matches('.').count(), 1, "{id}");
    let minted = headers["x-request-id"].as_str().unwrap();
    assert!(minted.len() >= 16, "{minted}");
    let others = setup.headers("/headers?room=r", &[]);
    assert_ne!(others["steadfast-connection"], id);
    assert_ne!(others["x-request-id"], minted);
}

#[test]
fn without_a_key_the_server_is_told_none() {
    let setup = Setup::start(&[]);
    let headers = setup.headers("/headers", &[("Steadfast-Key", "mine")]);
    assert_eq!(headers["steadfast-key"], Value::Null);
}

#[test]
fn an_untrusted_client_cannot_speak_for_the_proxy() {
    let setup = Setup::start(&[]);
    let spoofed = [
        ("Steadfast-Connection", "mine"),
        ("Steadfast-Key", "mine"),
        ("Steadfast-Rehomed", "from=mine; reason=lost; count=1"),
        ("Steadfast-Anything", "mine"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-For", "192.0.2.2"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil"),
        ("X-Forwarded-Port", "1"),
        ("Forwarded", "for=192.0.2.1"),
    ];
    let headers = setup.headers("/headers?room=r", &spoofed);
    let said = headers.to_string();
    assert!(!said.contains("mine") && !said.contains("evil"), "{said}");
    assert_eq!(headers["steadfast-key"], "r");
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-forwarded-port"], setup.proxy.address.port().to_string());
    assert_eq!(headers["forwarded"], Value::Null);
}

#[test]
fn a_trusted_peer_is_believed_and_appended_to() {
    let trusted = [("listener", "trusted = [\"127.0.0.0/8\"]")];
    let setup = Setup::start_with(&[], &trusted);
    let said = [
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "chat.example.com"),
        ("X-Forwarded-Port", "443"),
        ("Steadfast-Key", "mine"),
    ];
    let headers = setup.headers("/headers?room=r", &said);
    assert_eq!(headers["x-forwarded-for"], "192.0.2.1, 127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "https");
    assert_eq!(headers["x-forwarded-host"], "chat.example.com");
    assert_eq!(headers["x-forwarded-port"], "443");
    assert_eq!(headers["steadfast-key"], "r");
}

#[test]
fn a_request_id_of_the_client_is_kept() {
    let setup = Setup::start(&[]);
    let headers = setup.headers("/headers?room=r", &[("X-Request-Id", "trace-1")]);
    assert_eq!(headers["x-request-id"], "trace-1");
}

#[test]
fn what_is_for_one_hop_goes_no_further() {
    let setup = Setup::start(&[]);
    let sent = [
        ("Connection", "X-Mine, keep-alive"),
        ("X-Mine", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "gzip"),
        ("Proxy", "http://192.0.2.1"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic eA=="),
        ("X-Other", "1"),
    ];
    let headers = setup.headers("/headers?room=r", &sent);
    for (name, _) in &sent[1..7] {
        assert_eq!(headers[name.to_ascii_lowercase()], Value::Null, "{name}");
    }
    assert_eq!(headers["connection"], "Upgrade");
    assert_eq!(headers["x-other"], "1");
}

#[test]
fn a_flood_arrives_whole() {
    const BYTES: usize = 64 << 20;
    let setup = Setup::start(&[]);
    let client = ws::open(setup.proxy.address, &format!("/flood?room=r&bytes={BYTES}"));
    let mut received = 0;
    while received < BYTES {
        received += client.read().payload.len();
    }
    assert_eq!(received, BYTES);
    client.answer_close(1000);
}

#[test]
fn a_stopping_server_tells_its_clients() {
    let mut setup = Setup::start(&[]);
    let client = ws::open(setup.proxy.address, "/echo?room=r");
    setup.server.process.signal("TERM");
    client.answer_close(1001);
    assert!(setup.server.process.wait_for_exit().success());
}

#[test]
fn each_room_is_on_one_backend_whoever_asks() {
    const ROOMS: &str = "40";
    let backends = support::Backend::fleet(&["a", "b", "c"]);
    let proxies = [Proxy::before(&addresses(&backends)), Proxy::before(&addresses(&backends))];
    let ask = |proxy: &Proxy, client: fn(&str, &str, &[&str]) -> String| {
        let url = format!("ws://{}/rooms", proxy.address);
        let first = client("many", &url, &[ROOMS, "room"]);
        let first: std::collections::BTreeMap<String, String> =
            serde_json::from_str(&first).unwrap();
        let backend_of = |message: &str| {
            let message: Value = serde_json::from_str(message).unwrap();
            message["welcome"]["backend"].as_str().unwrap().to_owned()
        };
        let rooms = first.iter().map(|(room, message)| (room.clone(), backend_of(message)));
        rooms.collect::<std::collections::BTreeMap<_, _>>()
    };
    let [of_node, of_python, of_other_proxy] = std::thread::scope(|scope| {
        [
            scope.spawn(|| ask(&proxies[0], node_client)),
            scope.spawn(|| ask(&proxies[0], support::python_client)),
            scope.spawn(|| ask(&proxies[1], node_client)),
        ]
        .map(|asking| asking.join().unwrap())
    });
    assert_eq!(of_node.len(), 40);
    assert_eq!(of_node, of_python);
    assert_eq!(of_node, of_other_proxy);
    let used: std::collections::BTreeSet<&String> = of_node.values().collect();
    assert_eq!(used.len(), 3, "{of_node:?}");
}
