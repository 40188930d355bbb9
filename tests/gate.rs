//! What a client may send and how long it may take: heads that are late, too large or malformed,
//! connections that idle, and too many of them.

#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use support::http::{self, header, read_head, status};
use support::scripted::Scripted;
use support::{Proxy, config, connect, eventually, read_to_end, send};

const ANSWER: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// A backend that answers everything, and a proxy before it.
fn proxy(listener: &str) -> (Scripted, Proxy) {
    let backend = Scripted::answering(ANSWER);
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[("listener", listener)]));
    (backend, proxy)
}

fn is_served(stream: &TcpStream) -> bool {
    send(stream, REQUEST);
    http::read_answer(stream, false).status == 200
}

/// What the proxy says to these bytes, up to the end of the connection.
#[track_caller]
fn said_to(address: SocketAddr, bytes: &[u8]) -> String {
    let stream = connect(address);
    send(&stream, bytes);
    String::from_utf8(read_to_end(&stream)).unwrap()
}

/// Waits for the end of a connection; tells what came before it and how long it took.
#[track_caller]
fn end_of(stream: &TcpStream) -> (String, Duration) {
    let began = Instant::now();
    let said = String::from_utf8(read_to_end(stream)).unwrap();
    (said, began.elapsed())
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_slow_head_is_408_where_a_byte_came_and_silence_where_none_did() {
    let (backend, proxy) = proxy("timeouts = { header = \"400ms\", idle = \"30s\" }");
    for begun in [&b""[..], b"G", b"\r\n", b"GET / HTTP/1.1\r\nHost: test\r\n"] {
        let stream = connect(proxy.address);
        send(&stream, begun);
        let (said, took) = end_of(&stream);
        assert!(took >= millis(300) && took < millis(3000), "{begun:?}: {took:?}");
        if begun.is_empty() {
            assert_eq!(said, "");
        } else {
            assert!(said.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{begun:?}: {said}");
            assert_eq!(header(&said, "connection"), Some("close"));
        }
    }
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn a_drip_of_bytes_does_not_prolong_the_time_for_a_head() {
    let (_backend, proxy) = proxy("timeouts = { header = \"500ms\", idle = \"30s\" }");
    let stream = connect(proxy.address);
    let mut writer = stream.try_clone().unwrap();
    let dripping = std::thread::spawn(move || {
        // One byte now and then, for far longer than the limit, until it is cut off.
        let drip = std::iter::repeat_with(|| writer.write_all(b"x"));
        let mut drip = drip.inspect(|_| std::thread::sleep(millis(50)));
        drip.by_ref().take(400).take_while(Result::is_ok).count()
    });
    let (said, took) = end_of(&stream);
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    assert!(took < millis(3500), "{took:?}");
    assert!(dripping.join().unwrap() < 400);
}

#[test]
fn a_connection_idles_for_the_idle_time_and_ends_in_silence() {
    let (_backend, proxy) = proxy("timeouts = { header = \"30s\", idle = \"400ms\" }");
    let stream = connect(proxy.address);
    assert!(is_served(&stream));
    let (said, took) = end_of(&stream);
    assert_eq!(said, "");
    assert!(took >= millis(300) && took < millis(3000), "{took:?}");
}

#[test]
fn the_time_for_a_second_head_begins_with_its_first_byte() {
    let (_backend, proxy) = proxy("timeouts = { header = \"400ms\", idle = \"30s\" }");
    let stream = connect(proxy.address);
    assert!(is_served(&stream));
    // Far longer than a head may take, and no head has begun.
    std::thread::sleep(millis(900));
    assert!(is_served(&stream));
    send(&stream, b"GET / HT");
    let (said, took) = end_of(&stream);
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    assert!(took >= millis(300) && took < millis(3000), "{took:?}");
}

#[test]
fn half_a_second_head_in_the_segment_of_the_first_gets_its_408() {
    let (_backend, proxy) = proxy("timeouts = { header = \"400ms\", idle = \"30s\" }");
    let stream = connect(proxy.address);
    send(&stream, &[REQUEST, b"GET /second HTTP/1.1\r\nHo"].concat());
    assert_eq!(http::read_answer(&stream, false).status, 200);
    let (said, took) = end_of(&stream);
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    assert!(took < millis(3000), "{took:?}");
}

#[test]
fn a_slow_answer_is_no_slow_head() {
    let (backend, accepted) = Scripted::accepting();
    let listener = ("listener", "timeouts = { header = \"200ms\", idle = \"200ms\" }");
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[listener]));
    let client = connect(proxy.address);
    send(&client, REQUEST);
    let (stream, _) = accepted.next_request();
    // Longer than a head may take, and than a connection may idle.
    std::thread::sleep(millis(600));
    send(&stream, ANSWER.as_bytes());
    assert_eq!(http::read_answer(&client, false).status, 200);
}

#[test]
fn a_head_with_too_many_bytes_is_431() {
    let (backend, proxy) = proxy("limits = { head = \"4KiB\" }");
    let head = |bytes: usize| {
        let rest = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nX-Pad: \r\n\r\n".len();
        let pad = "x".repeat(bytes - rest);
        format!("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nX-Pad: {pad}\r\n\r\n")
    };
    assert!(said_to(proxy.address, head(4096).as_bytes()).starts_with("HTTP/1.1 200 "));
    assert_eq!(backend.accepted(), 1);
    for bytes in [4097, 8192, 100_000] {
        let said = said_to(proxy.address, head(bytes).as_bytes());
        assert!(said.starts_with("HTTP/1.1 431 "), "{bytes}: {said}");
    }
    // Also one that never ends.
    let said = said_to(proxy.address, &vec![b'x'; 5000]);
    assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
    assert_eq!(backend.accepted(), 1);
    let refused = [("reason", "head_too_large")];
    assert_eq!(proxy.metric("steadfast_refused_total", &refused), 4.0);
}

#[test]
fn a_head_with_too_many_lines_is_431() {
    let (backend, proxy) = proxy("limits = { headers = 10 }");
    let head = |lines: usize| {
        let more = "X-More: 1\r\n".repeat(lines - 2);
        format!("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{more}\r\n")
    };
    assert!(said_to(proxy.address, head(10).as_bytes()).starts_with("HTTP/1.1 200 "));
    assert!(said_to(proxy.address, head(11).as_bytes()).starts_with("HTTP/1.1 431 "));
    assert_eq!(backend.accepted(), 1);
}

#[test]
fn a_refusal_arrives_although_the_client_still_sends() {
    let (backend, proxy) = proxy("limits = { head = \"4KiB\" }");
    for _ in 0..10 {
        let stream = connect(proxy.address);
        for _ in 0..20 {
            send(&stream, &[b'x'; 8192]);
        }
        let (said, _) = end_of(&stream);
        assert!(said.starts_with("HTTP/1.1 431 ") && said.ends_with("too large"), "{said}");
    }
    // The same for a body that nobody reads.
    for _ in 0..10 {
        let stream = connect(proxy.address);
        send(&stream, b"POST /?room=%FF HTTP/1.1\r\nHost: test\r\nContent-Length: 200000\r\n\r\n");
        send(&stream, &[b'x'; 100_000]);
        send(&stream, &[b'x'; 100_000]);
        assert_eq!(http::read_answer(&stream, false).status, 400);
    }
    assert_eq!(backend.accepted(), 0);
}

/// Requests that two readers could understand in two ways, or that are none at all.
const MALFORMED: &[&str] = &[
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET / HTTP/1.1\nHost: a\n\n",
    "GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\rX: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
    "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: 1\0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX\0: 1\r\n\r\n",
    "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: \x07\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "GET /\r\n\r\n",
    "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
    "G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/11\r\nHost: a\r\n\r\n",
    "GET / http/1.1\r\nHost: a\r\n\r\n",
    "\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "\x16\x03\x01\x02\0\x01\0\x01\u{7c}\x03\x03",
    "\0\0\0\0\0\0\0\0",
    "SSH-2.0-OpenSSH_9.6\r\n\r\n",
];

#[test]
fn what_is_malformed_is_400_and_reaches_no_backend() {
    let (backend, proxy) = proxy("");
    for request in MALFORMED {
        let said = said_to(proxy.address, request.as_bytes());
        assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{request:?}: {said}");
        assert_eq!(said.matches("HTTP/1.1").count(), 1, "{request:?}: {said}");
    }
    assert_eq!(backend.accepted(), 0);
    assert!(is_served(&connect(proxy.address)));
}

#[test]
fn what_is_not_spoken_here_is_told_so() {
    let (backend, proxy) = proxy("");
    let cases = [
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ];
    for (request, expected) in cases {
        let said = said_to(proxy.address, request.as_bytes());
        assert_eq!(status(&said), expected, "{request:?}: {said}");
    }
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn a_smuggled_request_behind_a_malformed_one_is_never_read() {
    let (backend, proxy) = proxy("");
    let smuggling = [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    for bytes in smuggling {
        let said = said_to(proxy.address, bytes.as_bytes());
        assert_eq!((status(&said), said.matches("HTTP/1.1").count()), (400, 1), "{said}");
    }
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn a_malformed_chunk_ends_the_request_and_the_connection() {
    let (backend, accepted) = Scripted::accepting();
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[]));
    for chunk in ["x\r\n", "5\r\nabcdefg\r\n", "5\nabcde\n", "-1\r\n", "fffffffffffffffff\r\n"] {
        let client = connect(proxy.address);
        send(
            &client,
            b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        );
        let (stream, _) = accepted.next_request();
        assert_eq!(http::read_chunk(&stream), b"ok");
        send(&client, &[chunk.as_bytes(), REQUEST].concat());
        let said = read_to_end(&stream);
        assert!(
            !said.ends_with(b"0\r\n\r\n") && !said.windows(3).any(|bytes| bytes == b"GET"),
            "{said:?}"
        );
        let (said, _) = end_of(&client);
        assert_eq!(
            (status(&said), said.matches("HTTP/1.1").count()),
            (400, 1),
            "{chunk:?}: {said}"
        );
    }
}

#[test]
fn a_listener_takes_as_many_connections_as_it_may() {
    let (_backend, proxy) = proxy("limits = { connections = 3 }");
    let mut held: Vec<TcpStream> = (0..3).map(|_| connect(proxy.address)).collect();
    assert!(held.iter().all(is_served));
    // Whoever comes now is closed, without a word.
    let (said, took) = end_of(&connect(proxy.address));
    assert_eq!(said, "");
    assert!(took < millis(5000), "{took:?}");
    assert!(held.iter().all(is_served));
    held.pop();
    eventually("there is room again", || {
        let mut stream = connect(proxy.address);
        stream.write_all(REQUEST).ok()?;
        read_to_head(&mut stream)
    });
    let labels = [("reason", "listener_connections")];
    assert!(proxy.metric("steadfast_refused_total", &labels) >= 1.0);
}

/// `None` if the connection ends first.
fn read_to_head(stream: &mut TcpStream) -> Option<()> {
    use std::io::Read;
    let mut byte = [0];
    matches!(stream.read(&mut byte), Ok(1)).then_some(())
}

#[test]
fn one_address_has_as_many_connections_as_it_may() {
    let (_backend, proxy) = proxy("limits = { connections_per_ip = 2 }");
    let _held: Vec<TcpStream> = (0..2).map(|_| connect(proxy.address)).collect();
    let (said, _) = end_of(&connect(proxy.address));
    assert_eq!(said, "");
    proxy.wait_for_metric("steadfast_refused_total", &[("reason", "connections_per_ip")], 1.0);
    // Another address is served as ever.
    let other = from_address([127, 0, 0, 2], proxy.address);
    assert!(is_served(&other));
}

/// A connection from another address of the loopback network.
fn from_address(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
    stream
}

#[test]
fn two_hundred_slow_clients_hinder_nobody() {
    let (_backend, proxy) = proxy("timeouts = { header = \"3s\" }");
    let slow: Vec<TcpStream> = (0..200)
        .map(|_| {
            let stream = connect(proxy.address);
            send(&stream, b"GET / HTTP/1.1\r\nHost: t");
            stream
        })
        .collect();
    let before = proxy.memory_kib("VmRSS");
    for _ in 0..20 {
        let began = Instant::now();
        assert!(is_served(&connect(proxy.address)));
        assert!(began.elapsed() < millis(2000), "{:?}", began.elapsed());
    }
    for stream in &slow {
        assert_eq!(status(&read_head(stream)), 408);
    }
    drop(slow);
    proxy.wait_for_metric("steadfast_client_connections", &[], 0.0);
    let grown = proxy.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 16 * 1024, "the proxy has grown by {grown} KiB");
}

#[test]
fn requests_of_any_method_and_version_that_is_spoken_pass() {
    let (_backend, proxy) = proxy("");
    for line in ["OPTIONS * HTTP/1.1", "PATCH / HTTP/1.1", "PURGE /x HTTP/1.1", "GET / HTTP/1.0"] {
        let said = said_to(
            proxy.address,
            format!("{line}\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes(),
        );
        let expected = if line.starts_with("OPTIONS *") { 404 } else { 200 };
        assert_eq!(status(&said), expected, "{line}: {said}");
    }
}
