//! WebSocket handshakes: what a client may ask, what a backend may answer, and when the bytes
//! behind them pass.

#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use support::http::{self, Answer, header, headers, read_head};
use support::named::rooms_of;
use support::scripted::{Refusing, Scripted, switching};
use support::ws::{self, ACCEPT, BINARY, Frame, KEY, TEXT, handshake_head, masked, unmasked};
use support::{Proxy, config, connect, eventually, read_to_end, send};

/// Failures of backends that put none of them out of service.
const PATIENT: (&str, &str) = ("health", "kind = \"off\"\npassive_fall = 0");

/// Sends a head, with what is to come right behind it, and reads the answer.
#[track_caller]
fn ask_raw(address: SocketAddr, head: &str, behind: &[u8]) -> (TcpStream, Answer) {
    let stream = connect(address);
    send(&stream, &[head.as_bytes(), behind].concat());
    let answer = http::read_answer(&stream, false);
    (stream, answer)
}

/// A room whose home on the ring of `ids` is the backend with this id.
fn room_at(id: &str, ids: &[&str]) -> String {
    rooms_of(ids, id).next().unwrap()
}

/// Checks that a peer sends nothing for a while.
#[track_caller]
fn expect_silence(mut stream: &TcpStream) {
    let before = stream.read_timeout().unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let read = stream.read(&mut [0]);
    assert!(read.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{read:?}");
    stream.set_read_timeout(before).unwrap();
}

fn keys_of(proxy: &Proxy, backend: &str) -> u64 {
    let pools = proxy.json("/v1/pools");
    let backends = pools["pools"][0]["backends"].as_array().unwrap();
    backends.iter().find(|one| one["id"] == backend).unwrap()["keys"].as_u64().unwrap()
}

#[test]
fn what_is_no_proper_handshake_is_400_and_reaches_no_backend() {
    let (backend, _handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let key_line = format!("Sec-WebSocket-Key: {KEY}\r\n");
    let twice = key_line.repeat(2);
    let cases = [
        ("GET ", "POST "),
        ("GET ", "get "),
        ("HTTP/1.1", "HTTP/1.0"),
        ("Host: test\r\n", ""),
        ("Host: test\r\n", "Host: test\r\nHost: test\r\n"),
        ("Connection: Upgrade\r\n", ""),
        ("Connection: Upgrade", "Connection: keep-alive"),
        ("Connection: Upgrade", "Connection: Upgraded"),
        ("Upgrade: websocket\r\n", ""),
        ("Upgrade: websocket", "Upgrade: websockets"),
        (&key_line, ""),
        (&key_line, &twice),
        (&key_line, "Sec-WebSocket-Key: \r\n"),
        (&key_line, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\r\n"),
        (&key_line, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTE=\r\n"),
        (&key_line, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ?==\r\n"),
        ("Sec-WebSocket-Version: 13\r\n", ""),
        ("Version: 13\r\n", "Version: \r\n"),
        ("Version: 13\r\n", "Version: 13\r\nSec-WebSocket-Version: 13\r\n"),
        ("Host: test\r\n", "Host: test\r\nContent-Length: 1\r\n"),
        ("Host: test\r\n", "Host: test\r\nTransfer-Encoding: chunked\r\n"),
        ("Host: test\r\n", "Host: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n"),
    ];
    let proper = handshake_head("/?room=r", &[]);
    for (from, to) in cases {
        let head = proper.replace(from, to);
        assert_ne!(head, proper, "{from:?}");
        let stream = connect(proxy.address);
        send(&stream, head.as_bytes());
        // Not even a 100 comes before it.
        let answer = read_head(&stream);
        assert_eq!(http::status(&answer), 400, "{to:?} for {from:?}: {answer}");
    }
    assert_eq!(backend.accepted(), 0);
    assert_eq!(ask_raw(proxy.address, &proper, b"").1.status, 101);
}

#[test]
fn another_version_is_426_and_told_the_right_one() {
    let (backend, _handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    for version in ["8", "12", "14", "013", "13, 8", "thirteen"] {
        let line = format!("Version: {version}");
        let head = handshake_head("/?room=r", &[]).replace("Version: 13", &line);
        let (_, answer) = ask_raw(proxy.address, &head, b"");
        assert_eq!(answer.status, 426, "{version}");
        assert_eq!(headers(&answer.head, "sec-websocket-version"), ["13"], "{}", answer.head);
    }
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn tokens_may_be_in_any_case_and_over_several_lines() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let head = handshake_head("/?room=r", &[])
        .replace("Connection: Upgrade", "cONNECTION: keep-alive, x-mine\r\nConnection: ,UPGRADE ,")
        .replace("Upgrade: websocket", "UPGRADE: h2c\r\nupgrade: foo/1 ,WebSocket")
        .replace("Host: test", "Host: test\r\nX-Mine: 1\r\nContent-Length: 0");
    let (_stream, answer) = ask_raw(proxy.address, &head, b"");
    assert_eq!(answer.status, 101, "{}", answer.head);
    assert_eq!(header(&answer.head, "sec-websocket-accept"), Some(ACCEPT));
    let (_, head) = handed.next();
    assert_eq!(headers(&head, "connection"), ["Upgrade"], "{head}");
    assert_eq!(headers(&head, "upgrade"), ["websocket"], "{head}");
    assert_eq!(header(&head, "x-mine"), None, "{head}");
}

#[test]
fn an_upgrade_to_something_else_is_forwarded_as_a_plain_request() {
    let (backend, accepted) = Scripted::accepting();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let client = connect(proxy.address);
    send(
        &client,
        b"GET /x HTTP/1.1\r\nHost: test\r\nConnection: Upgrade, HTTP2-Settings\r\n\
          Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    );
    let (stream, head) = accepted.next_request();
    for name in ["upgrade", "connection", "http2-settings"] {
        assert_eq!(header(&head, name), None, "{head}");
    }
    send(&stream, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain");
    let answer = http::read_answer(&client, false);
    assert_eq!((answer.status, answer.text().as_str()), (200, "plain"));
}

/// What a backend may not answer with, as the lines of its 101.
const BAD_ANSWERS: &[&[&str]] = &[
    &["Connection: Upgrade", "Upgrade: websocket"],
    &["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Accept: "],
    &[
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOO=",
    ],
    &["Connection: Upgrade", "Upgrade: websocket", "ACCEPT", "ACCEPT"],
    &["Connection: Upgrade", "ACCEPT"],
    &["Connection: Upgrade", "Upgrade: h2c", "ACCEPT"],
    &["Upgrade: websocket", "ACCEPT"],
    &["Connection: close", "Upgrade: websocket", "ACCEPT"],
    &["Connection: Upgrade", "Upgrade: websocket", "ACCEPT", "Sec-WebSocket-Protocol: other"],
    &["Connection: Upgrade", "Upgrade: websocket", "ACCEPT", "Sec-WebSocket-Protocol: Chat"],
    &["Connection: Upgrade", "Upgrade: websocket", "ACCEPT", "Sec-WebSocket-Protocol: chat, mqtt"],
    &[
        "Connection: Upgrade",
        "Upgrade: websocket",
        "ACCEPT",
        "Sec-WebSocket-Protocol: chat",
        "Sec-WebSocket-Protocol: chat",
    ],
    &["Connection: Upgrade", "Upgrade: websocket", "ACCEPT", "Sec-WebSocket-Extensions: x-other"],
    &[
        "Connection: Upgrade",
        "Upgrade: websocket",
        "ACCEPT",
        "Sec-WebSocket-Extensions: permessage-deflate, permessage-deflate",
    ],
];

#[test]
fn a_101_that_is_not_valid_is_502_and_opens_no_tunnel() {
    let (backend, accepted) = Scripted::accepting();
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[PATIENT]));
    let offers = [
        ("Sec-WebSocket-Protocol", "mqtt, chat"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
    ];
    let head = handshake_head("/?room=r", &offers);
    for lines in BAD_ANSWERS {
        let client = connect(proxy.address);
        send(&client, &[head.as_bytes(), &masked(TEXT, "secret")].concat());
        let (stream, _) = accepted.next_request();
        let accept = format!("Sec-WebSocket-Accept: {ACCEPT}");
        let lines = lines.join("\r\n").replace("ACCEPT", &accept);
        send(&stream, format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n\r\n").as_bytes());
        assert_eq!(http::read_answer(&client, false).status, 502, "{lines}");
        assert_eq!(read_to_end(&stream), b"", "{lines}");
    }
    // The same with what was offered is fine.
    let client = connect(proxy.address);
    send(&client, &[head.as_bytes(), &masked(TEXT, "secret")].concat());
    let (stream, _) = accepted.next_request();
    let chosen = "Sec-WebSocket-Protocol: chat\r\n\
                  Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=10\r\n";
    send(&stream, switching(chosen).as_bytes());
    let answer = http::read_answer(&client, false);
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("sec-websocket-protocol"), Some("chat"));
    let extensions = Some("permessage-deflate; client_max_window_bits=10");
    assert_eq!(answer.header("sec-websocket-extensions"), extensions);
    assert_eq!(ws::read_frame(&stream).unwrap().text(), "secret");
}

#[test]
fn a_101_with_a_length_is_passed_on_without_it() {
    let (backend, _handed) = Scripted::opening_with("Content-Length: 0\r\n");
    let proxy = Proxy::before(&[("a", backend.address)]);
    let client = ws::open(proxy.address, "/?room=r");
    assert_eq!(client.answer.header("content-length"), None, "{}", client.answer.head);
}

#[test]
fn a_refusal_reaches_the_client_as_it_is_and_opens_no_tunnel() {
    let (backend, accepted) = Scripted::accepting();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let refusals = [
        ("200 OK", "X-Note: fine", "no upgrade here"),
        ("302 Found", "Location: /elsewhere", ""),
        ("401 Unauthorized", "WWW-Authenticate: Bearer realm=\"x\"", "who are you?"),
        ("403 Forbidden", "X-Note: no", "{\"error\":\"banned\"}"),
        ("503 Service Unavailable", "Retry-After: 17", "later"),
    ];
    for (status, line, body) in refusals {
        let client = connect(proxy.address);
        let asked = handshake_head("/?room=r", &[]);
        send(&client, &[asked.as_bytes(), &masked(TEXT, "secret")].concat());
        let (stream, _) = accepted.next_request();
        let length = body.len();
        let steadfast = "Steadfast-Join: lobby\r\nSteadfast-Rehome: no";
        let head =
            format!("HTTP/1.1 {status}\r\n{line}\r\n{steadfast}\r\nContent-Length: {length}");
        send(&stream, format!("{head}\r\n\r\n{body}").as_bytes());
        let answer = http::read_answer(&client, false);
        assert!(answer.head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{}", answer.head);
        let (name, value) = line.split_once(": ").unwrap();
        assert_eq!(answer.header(name), Some(value), "{}", answer.head);
        assert!(!answer.head.to_lowercase().contains("steadfast"), "{}", answer.head);
        assert_eq!(answer.text(), body);
        assert_eq!(read_to_end(&stream), b"", "{status}");
    }
    eventually("the places are free", || (keys_of(&proxy, "a") == 0).then_some(()));
    assert_eq!(proxy.state("a"), "in_service");
}

#[test]
fn a_client_may_ask_again_on_the_same_connection_after_a_refusal() {
    let (backend, accepted) = Scripted::accepting();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let client = connect(proxy.address);
    send(&client, handshake_head("/?room=r", &[]).as_bytes());
    let (stream, _) = accepted.next_request();
    send(&stream, b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno");
    assert_eq!(http::read_answer(&client, false).status, 401);
    send(&client, handshake_head("/?room=r", &[("Authorization", "Bearer x")]).as_bytes());
    let (stream, head) = accepted.next_request();
    assert_eq!(header(&head, "authorization"), Some("Bearer x"));
    send(&stream, switching("").as_bytes());
    assert_eq!(http::read_answer(&client, false).status, 101);
}

#[test]
fn bytes_behind_the_handshake_wait_for_the_101() {
    let (backend, accepted) = Scripted::accepting();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let client = connect(proxy.address);
    let head = handshake_head("/?room=r", &[]);
    send(&client, &[head.as_bytes(), &masked(TEXT, "one")].concat());
    let (stream, _) = accepted.next_request();
    // A frame whose bytes look like a request, and one cut in two by the 101.
    send(&client, &Frame::new(TEXT, "GET / HTTP/1.1\r\n\r\n").encode(Some([0; 4])));
    let third = masked(TEXT, "three");
    send(&client, &third[..4]);
    expect_silence(&stream);
    send(&stream, switching("").as_bytes());
    assert_eq!(http::read_answer(&client, false).status, 101);
    send(&client, &third[4..]);
    send(&client, &masked(TEXT, "four"));
    for expected in ["one", "GET / HTTP/1.1\r\n\r\n", "three", "four"] {
        assert_eq!(ws::read_frame(&stream).unwrap().text(), expected);
    }
}

#[test]
fn a_pile_behind_the_handshake_is_bounded_and_arrives_whole() {
    const FRAMES: usize = 24 * 16;
    let (backend, accepted) = Scripted::accepting();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let frame = |number: usize| vec![u8::try_from(number % 251).unwrap(); 65536];
    let mut client = connect(proxy.address);
    send(&client, handshake_head("/?room=r", &[]).as_bytes());
    let (stream, _) = accepted.next_request();
    let before = proxy.memory_kib("VmRSS");
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let writer = client.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for number in 0..FRAMES {
            send(&writer, &masked(BINARY, frame(number)));
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut last = (0, 0);
    eventually("the proxy stops reading", || {
        let now = sent.load(Ordering::SeqCst);
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        (last.1 >= 30).then_some(())
    });
    assert!(last.0 < FRAMES, "all was taken");
    let grown = proxy.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 1024, "the proxy has grown by {grown} KiB");
    send(&stream, switching("").as_bytes());
    for number in 0..FRAMES {
        assert_eq!(ws::read_frame(&stream).unwrap(), Frame::new(BINARY, frame(number)));
    }
    writing.join().unwrap();
    assert_eq!(http::read_answer(&client, false).status, 101);
    client.write_all(&masked(TEXT, "behind it")).unwrap();
    assert_eq!(ws::read_frame(&stream).unwrap().text(), "behind it");
}

#[test]
fn what_a_backend_says_right_behind_its_101_arrives_first() {
    let (backend, accepted) = Scripted::accepting();
    let proxy = Proxy::before(&[("a", backend.address)]);
    for length in [5, 200, 65_536, 200_000] {
        let client = connect(proxy.address);
        send(&client, handshake_head("/?room=r", &[]).as_bytes());
        let (stream, _) = accepted.next_request();
        let early = [switching("").into_bytes(), unmasked(BINARY, vec![1; length])].concat();
        send(&stream, &early);
        send(&stream, &unmasked(TEXT, "later"));
        assert_eq!(http::read_answer(&client, false).status, 101);
        assert_eq!(ws::read_frame(&client).unwrap(), Frame::new(BINARY, vec![1; length]));
        assert_eq!(ws::read_frame(&client).unwrap().text(), "later");
    }
}

#[test]
fn a_backend_that_does_not_answer_is_504_and_no_other_is_tried() {
    let (silent, accepted) = Scripted::accepting();
    let (other, _handed) = Scripted::opening();
    let backends = [("a", silent.address), ("b", other.address)];
    let more = [("pool", "handshake_timeout = \"300ms\""), PATIENT];
    let proxy = Proxy::start(&config(&backends, &more));
    let path = format!("/?room={}", room_at("a", &["a", "b"]));
    let client = connect(proxy.address);
    send(&client, handshake_head(&path, &[]).as_bytes());
    let (stream, _) = accepted.next_request();
    assert_eq!(http::read_answer(&client, false).status, 504);
    assert_eq!(read_to_end(&stream), b"");
    assert_eq!(other.accepted(), 0);
    eventually("the place is free", || (keys_of(&proxy, "a") == 0).then_some(()));
}

#[test]
fn a_backend_that_breaks_off_is_502_and_no_other_is_tried() {
    let (breaking, accepted) = Scripted::accepting();
    let (other, _handed) = Scripted::opening();
    let backends = [("a", breaking.address), ("b", other.address)];
    let proxy = Proxy::start(&config(&backends, &[PATIENT]));
    let path = format!("/?room={}", room_at("a", &["a", "b"]));
    for said in
        ["", "HTTP/1.1 101 Swi", "HTTP/1.1 101 OK\r\nUpgrade: websocket\r\n", "garbage\r\n\r\n"]
    {
        let client = connect(proxy.address);
        send(&client, handshake_head(&path, &[]).as_bytes());
        let (stream, _) = accepted.next_request();
        send(&stream, said.as_bytes());
        drop(stream);
        assert_eq!(http::read_answer(&client, false).status, 502, "{said:?}");
    }
    assert_eq!(other.accepted(), 0);
}

#[test]
fn a_new_key_goes_on_to_the_next_backend_where_its_own_refuses() {
    let refusing = Refusing::new();
    let (other, handed) = Scripted::opening();
    let backends = [("a", refusing.address), ("b", other.address)];
    let proxy = Proxy::start(&config(&backends, &[PATIENT]));
    let path = format!("/?room={}", room_at("a", &["a", "b"]));
    let _client = ws::open(proxy.address, &path);
    let _stream = handed.next();
    assert_eq!((keys_of(&proxy, "a"), keys_of(&proxy, "b")), (0, 1));
}

#[test]
fn a_key_with_live_connections_stays_where_they_are() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (other, _handed) = Scripted::opening();
    let backends = [("a", listener.local_addr().unwrap()), ("b", other.address)];
    let proxy = Proxy::start(&config(&backends, &[PATIENT]));
    let path = format!("/?room={}", room_at("a", &["a", "b"]));
    let client = connect(proxy.address);
    send(&client, handshake_head(&path, &[]).as_bytes());
    let (stream, _) = listener.accept().unwrap();
    read_head(&stream);
    send(&stream, switching("").as_bytes());
    assert_eq!(http::read_answer(&client, false).status, 101);
    drop(listener);
    for _ in 0..2 {
        assert_eq!(ws::ask(proxy.address, &path, &[]).answer.status, 502);
    }
    assert_eq!(other.accepted(), 0);
    // The live one is as it was; once it is gone, the key is free to go on.
    send(&client, &masked(TEXT, "still here"));
    assert_eq!(ws::read_frame(&stream).unwrap().text(), "still here");
    drop((client, stream));
    eventually("the key is free", || {
        (ws::ask(proxy.address, &path, &[]).answer.status == 101).then_some(())
    });
}

#[test]
fn without_a_backend_in_service_it_is_503_with_retry_after() {
    let refusing = Refusing::new();
    let health = ("health", "kind = \"off\"\npassive_fall = 1");
    let proxy = Proxy::start(&config(&[("a", refusing.address)], &[health]));
    assert_eq!(ws::ask(proxy.address, "/?room=r", &[]).answer.status, 502);
    let answer = ws::ask(proxy.address, "/?room=r", &[]).answer;
    assert_eq!(answer.status, 503);
    let wait: u32 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(wait >= 1, "{wait}");
    assert_eq!(http::get(proxy.address, "/").status, 503);
}

#[test]
fn only_allowed_origins_may_connect() {
    let (backend, _handed) = Scripted::opening();
    let route =
        ("route", "allowed_origins = [\"https://chat.example.com\", \"http://localhost:3000\"]");
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[route]));
    let ask = |origin| ws::ask(proxy.address, "/?room=r", &[("Origin", origin)]).answer.status;
    for origin in [
        "https://evil.example.com",
        "http://chat.example.com",
        "https://chat.example.com:8443",
        "https://chat.example.com.evil.com",
        "null",
        "",
    ] {
        assert_eq!(ask(origin), 403, "{origin}");
    }
    assert_eq!(backend.accepted(), 0);
    for origin in ["https://chat.example.com", "HTTPS://Chat.Example.com", "http://localhost:3000"]
    {
        assert_eq!(ask(origin), 101, "{origin}");
    }
    ws::open(proxy.address, "/?room=r");
}

#[test]
fn a_route_takes_as_many_connections_as_it_may() {
    let (backend, handed) = Scripted::opening();
    let route = ("route", "max_connections = 2");
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[route]));
    let first = ws::open(proxy.address, "/?room=r");
    let _second = ws::open(proxy.address, "/?room=s");
    let refused = ws::ask(proxy.address, "/?room=t", &[]).answer;
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some(), "{}", refused.head);
    assert_eq!(backend.accepted(), 2);
    drop((first, handed.next()));
    eventually("there is room again", || {
        (ws::ask(proxy.address, "/?room=t", &[]).answer.status == 101).then_some(())
    });
}

#[test]
fn what_only_the_proxy_may_say_is_taken_from_both_sides() {
    let (backend, handed) = Scripted::opening_with(
        "Steadfast-Join: lobby\r\nSteadfast-Rehome: no\r\nsteadfast-anything: 1\r\nX-Own: 1\r\n",
    );
    let proxy = Proxy::before(&[("a", backend.address)]);
    let forged = [
        ("Steadfast-Key", "somebody-else"),
        ("steadfast-connection", "forged"),
        ("STEADFAST-Rehomed", "from=x"),
        ("Steadfast-Anything", "1"),
    ];
    let client = ws::ask(proxy.address, "/?room=a%20b%2F%C3%A9", &forged);
    assert_eq!(client.answer.status, 101);
    assert!(!client.answer.head.to_lowercase().contains("steadfast"), "{}", client.answer.head);
    assert_eq!(client.answer.header("x-own"), Some("1"));
    let (_stream, head) = handed.next();
    assert_eq!(headers(&head, "steadfast-key"), ["a%20b%2F%C3%A9"], "{head}");
    let [id] = headers(&head, "steadfast-connection")[..] else { panic!("{head}") };
    assert_eq!(head.to_lowercase().matches("\r\nsteadfast-").count(), 2, "{head}");
    let connections = proxy.json("/v1/connections");
    assert_eq!(connections["connections"][0]["id"], id);
    assert_eq!(id.matches('.').count(), 1, "{id}");
}

#[test]
fn a_connection_without_a_key_has_none_for_the_backend() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let _client = ws::ask(proxy.address, "/?other=1&room=", &[("Steadfast-Key", "forged")]);
    let (_stream, head) = handed.next();
    assert_eq!(header(&head, "steadfast-key"), None, "{head}");
    assert!(header(&head, "steadfast-connection").is_some(), "{head}");
    assert_eq!(keys_of(&proxy, "a"), 0);
}

#[test]
fn a_client_that_goes_away_during_its_handshake_frees_all_it_held() {
    let (backend, accepted) = Scripted::accepting();
    let route = ("route", "max_connections = 1");
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[route]));
    let client = connect(proxy.address);
    send(&client, handshake_head("/?room=r", &[]).as_bytes());
    let (stream, _) = accepted.next_request();
    assert_eq!(keys_of(&proxy, "a"), 1);
    assert_eq!(ws::ask(proxy.address, "/?room=s", &[]).answer.status, 503);
    drop(client);
    assert_eq!(read_to_end(&stream), b"");
    eventually("the place is free", || (keys_of(&proxy, "a") == 0).then_some(()));
    proxy.wait_for_metric("steadfast_client_connections", &[], 0.0);
    let client = connect(proxy.address);
    send(&client, handshake_head("/?room=s", &[]).as_bytes());
    let (stream, _) = accepted.next_request();
    send(&stream, switching("").as_bytes());
    assert_eq!(http::read_answer(&client, false).status, 101);
}

#[test]
fn a_handshake_that_expects_a_100_gets_its_101_and_asks_nothing_of_the_backend() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let client = connect(proxy.address);
    send(&client, handshake_head("/?room=r", &[("Expect", "100-continue")]).as_bytes());
    assert_eq!(http::status(&read_head(&client)), 101);
    let (_stream, head) = handed.next();
    assert_eq!(header(&head, "expect"), None, "{head}");
}

#[test]
fn a_key_that_can_not_be_one_is_400() {
    let (backend, _handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let long = format!("/?room={}", "x".repeat(513));
    for path in ["/?room=%FF", "/?room=%C3", &long] {
        assert_eq!(ws::ask(proxy.address, path, &[]).answer.status, 400, "{path}");
    }
    assert_eq!(backend.accepted(), 0);
    ws::open(proxy.address, &long[..long.len() - 1]);
}

#[test]
fn whoever_comes_while_a_handshake_is_under_way_follows_it() {
    let (first, accepted) = Scripted::accepting();
    let (other, _handed) = Scripted::opening();
    let backends = [("a", first.address), ("b", other.address)];
    let proxy = Proxy::start(&config(&backends, &[PATIENT]));
    let path = format!("/?room={}", room_at("a", &["a", "b"]));
    let (sender, statuses) = channel();
    for _ in 0..3 {
        let (address, path, sender) = (proxy.address, path.clone(), sender.clone());
        std::thread::spawn(move || {
            let client = ws::ask(address, &path, &[]);
            sender.send(client.answer.status).unwrap();
            client.try_read()
        });
    }
    let streams: Vec<_> = (0..3).map(|_| accepted.next_request()).collect();
    for (stream, _) in &streams {
        send(stream, switching("").as_bytes());
        assert_eq!(statuses.recv_timeout(support::DEADLINE).unwrap(), 101);
    }
    assert_eq!(other.accepted(), 0);
}
