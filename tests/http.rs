//! Plain HTTP: what passes, how it is framed, where it goes, and what becomes of it when one side
//! is slow or goes away.

#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use steadfast::pool::ring::Ring;

use support::http::{
    self, Answer, chunk, header, headers, read_answer, read_chunk, read_head, read_text,
    read_trailers, status,
};
use support::scripted::{Accepted, Refusing, Scripted};
use support::ws;
use support::{Proxy, config, connect, eventually, read_to_end, send};

/// One worker, so that there is one set of kept connections.
const ALONE: (&str, &str) = ("server", "workers = 1");
/// Failures of backends that put none of them out of service.
const PATIENT: (&str, &str) = ("health", "kind = \"off\"\npassive_fall = 0");
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A backend whose connections a test serves itself, and a proxy before it.
fn scene(more: &[(&str, &str)]) -> (Scripted, Accepted, Proxy) {
    let (backend, accepted) = Scripted::accepting();
    let proxy = Proxy::start(&config(&[("a", backend.address)], more));
    (backend, accepted, proxy)
}

/// A connection on which these bytes were sent.
#[track_caller]
fn asking(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let stream = connect(address);
    send(&stream, bytes);
    stream
}

#[expect(clippy::needless_pass_by_value, reason = "it is a script, which owns its connection")]
/// Serves requests until the connection ends: each is answered with its first line and its body.
fn echo(stream: TcpStream) {
    while stream.peek(&mut [0]).is_ok_and(|count| count > 0) {
        let head = read_head(&stream);
        let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        let body = read_text(&stream, length);
        let line = head.lines().next().unwrap();
        let said = if head.starts_with("HEAD") { String::new() } else { format!("{line}|{body}") };
        let length = line.len() + 1 + body.len();
        send(
            &stream,
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{said}").as_bytes(),
        );
    }
}

/// Checks that a peer sends nothing for a while.
#[track_caller]
fn expect_silence(mut stream: &TcpStream, millis: u64) {
    let before = stream.read_timeout().unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(millis))).unwrap();
    let read = stream.read(&mut [0]);
    assert!(read.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{read:?}");
    stream.set_read_timeout(before).unwrap();
}

fn in_flight(proxy: &Proxy) -> u64 {
    let pools = proxy.json("/v1/pools");
    let backends = pools["pools"][0]["backends"].as_array().unwrap();
    backends.iter().map(|one| one["in_flight"].as_u64().unwrap()).sum()
}

#[test]
fn bodies_pass_both_ways_as_they_come() {
    let (_backend, accepted, proxy) = scene(&[]);
    let client = asking(
        proxy.address,
        b"POST /talk HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    let (stream, head) = accepted.next_request();
    assert_eq!(headers(&head, "transfer-encoding"), ["chunked"], "{head}");
    send(&client, &chunk("one"));
    assert_eq!(read_chunk(&stream), b"one");
    send(&stream, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(status(&read_head(&client)), 200);
    for (asked, answered) in [("two", "zwei"), ("three", "drei"), ("four", "vier")] {
        send(&client, &chunk(asked));
        assert_eq!(read_chunk(&stream), asked.as_bytes());
        send(&stream, &chunk(answered));
        assert_eq!(read_chunk(&client), answered.as_bytes());
    }
    send(&client, b"0\r\n\r\n");
    assert_eq!(read_chunk(&stream), b"");
    assert_eq!(read_trailers(&stream), Vec::<String>::new());
    send(&stream, b"0\r\n\r\n");
    assert_eq!(read_chunk(&client), b"");
    assert_eq!(read_trailers(&client), Vec::<String>::new());
    // Both connections are as good as new.
    send(&client, b"GET /next HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(read_head(&stream).starts_with("GET /next "));
    send(&stream, OK);
    assert_eq!(read_answer(&client, false).status, 200);
}

#[test]
fn announced_trailers_pass_both_ways() {
    let (_backend, accepted, proxy) = scene(&[]);
    let client = asking(
        proxy.address,
        b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\
          TE: trailers\r\nConnection: TE\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n",
    );
    let (stream, head) = accepted.next_request();
    assert_eq!(header(&head, "trailer"), Some("X-Sum"), "{head}");
    assert_eq!(header(&head, "te"), Some("trailers"), "{head}");
    assert_eq!((read_chunk(&stream), read_chunk(&stream)), (b"abc".to_vec(), vec![]));
    let trailers = read_trailers(&stream);
    assert_eq!(trailers.join("").to_lowercase(), "x-sum: 6");
    send(
        &stream,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\n\r\n\
          2\r\nok\r\n0\r\nX-Back: yes\r\n\r\n",
    );
    let head = read_head(&client);
    assert_eq!(header(&head, "trailer"), Some("X-Back"), "{head}");
    assert_eq!((read_chunk(&client), read_chunk(&client)), (b"ok".to_vec(), vec![]));
    assert_eq!(read_trailers(&client).join("").to_lowercase(), "x-back: yes");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Scripted::start(echo);
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[]));
    let mut segment = String::new();
    for number in 0..10 {
        segment += &format!(
            "POST /{number} HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\n<{number}>\
             GET /{number} HTTP/1.1\r\nHost: test\r\n\r\n\
             HEAD /{number} HTTP/1.1\r\nHost: test\r\n\r\n"
        );
    }
    let client = asking(proxy.address, segment.as_bytes());
    for number in 0..10 {
        let posted = read_answer(&client, false).text();
        assert_eq!(posted, format!("POST /{number} HTTP/1.1|<{number}>"));
        assert_eq!(read_answer(&client, false).text(), format!("GET /{number} HTTP/1.1|"));
        let of_head = read_answer(&client, true);
        assert_eq!((of_head.status, of_head.header("content-length")), (200, Some("17")));
    }
}

#[test]
fn connections_to_a_backend_are_used_again() {
    let backend = Scripted::start(echo);
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[ALONE]));
    for number in 0..10 {
        let answer = http::request(proxy.address, "POST", "/x", &[], b"body");
        assert_eq!(answer.text(), "POST /x HTTP/1.1|body", "{number}");
    }
    assert_eq!(backend.accepted(), 1);
}

#[test]
fn a_kept_connection_that_its_backend_has_closed_is_replaced() {
    let (backend, accepted, proxy) = scene(&[ALONE]);
    for number in 1..=30 {
        let method = if number % 2 == 0 { "POST" } else { "GET" };
        let client = asking(
            proxy.address,
            format!("{method} /{number} HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody")
                .as_bytes(),
        );
        let (stream, head) = accepted.next_request();
        assert!(head.starts_with(&format!("{method} /{number} ")), "{head}");
        assert_eq!(read_text(&stream, 4), "body");
        send(&stream, OK);
        assert_eq!(read_answer(&client, false).status, 200, "{number}");
        // Without a word that it would.
        drop(stream);
        assert_eq!(backend.accepted(), number);
    }
}

#[test]
fn a_request_that_a_backend_has_seen_is_not_repeated() {
    let (backend, accepted, proxy) = scene(&[ALONE]);
    let client = asking(proxy.address, b"GET /first HTTP/1.1\r\nHost: test\r\n\r\n");
    let (stream, _) = accepted.next_request();
    send(&stream, OK);
    assert_eq!(read_answer(&client, false).status, 200);
    send(&client, b"GET /second HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(read_head(&stream).starts_with("GET /second "));
    drop(stream);
    assert_eq!(read_answer(&client, false).status, 502);
    assert_eq!(backend.accepted(), 1);
    // Nor on a fresh connection.
    send(&client, b"GET /third HTTP/1.1\r\nHost: test\r\n\r\n");
    drop(accepted.next_request());
    assert_eq!(read_answer(&client, false).status, 502);
    assert_eq!(backend.accepted(), 2);
}

#[test]
fn an_idle_connection_to_a_backend_is_closed_before_the_backend_would() {
    let (_backend, accepted, proxy) = scene(&[]);
    let client = asking(proxy.address, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let (stream, _) = accepted.next_request();
    send(&stream, OK);
    assert_eq!(read_answer(&client, false).status, 200);
    let idle = Instant::now();
    assert_eq!(read_to_end(&stream), b"");
    let idle = idle.elapsed();
    assert!(idle > Duration::from_millis(3500) && idle < Duration::from_secs(8), "{idle:?}");
}

const EXPECTING: &[u8] =
    b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";

#[test]
fn a_client_is_told_to_go_on_once_the_backend_says_so() {
    let (_backend, accepted, proxy) = scene(&[]);
    let client = asking(proxy.address, EXPECTING);
    let (stream, head) = accepted.next_request();
    assert_eq!(header(&head, "expect"), Some("100-continue"), "{head}");
    expect_silence(&client, 300);
    send(&stream, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(status(&read_head(&client)), 100);
    send(&client, b"body");
    assert_eq!(read_text(&stream, 4), "body");
    send(&stream, OK);
    assert_eq!(status(&read_head(&client)), 200);
}

#[test]
fn a_client_that_is_refused_without_a_100_sends_no_body() {
    let (_backend, accepted, proxy) = scene(&[]);
    let client = asking(proxy.address, EXPECTING);
    let (stream, _) = accepted.next_request();
    send(&stream, b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nb");
    let head = read_head(&client);
    assert_eq!(status(&head), 413, "no 100 before it: {head}");
    // The rest of a slow answer comes whole, and nobody asks for the body meanwhile.
    expect_silence(&stream, 1300);
    send(&stream, b"ig");
    assert_eq!(read_text(&client, 3), "big");
    // Whether the body comes after all can't be known: neither connection is of use any more.
    assert_eq!(header(&head, "connection"), Some("close"), "{head}");
    assert_eq!(read_to_end(&stream), b"", "the body was asked for");
    assert_eq!(read_to_end(&client), b"");
}

#[test]
fn a_backend_that_says_nothing_gets_the_body_after_a_second() {
    let (_backend, accepted, proxy) = scene(&[]);
    let client = asking(proxy.address, EXPECTING);
    let began = Instant::now();
    let (stream, _) = accepted.next_request();
    assert_eq!(status(&read_head(&client)), 100);
    assert!(began.elapsed() >= Duration::from_millis(800), "{:?}", began.elapsed());
    send(&client, b"body");
    assert_eq!(read_text(&stream, 4), "body");
    send(&stream, OK);
    assert_eq!(read_answer(&client, false).status, 200);
}

#[test]
fn answers_without_a_body_keep_their_headers_and_the_connection() {
    let (_backend, accepted, proxy) = scene(&[ALONE]);
    let client = connect(proxy.address);
    let mut stream = None;
    let cases = [
        ("HEAD", "200 OK", "Content-Length: 1234", Some("1234")),
        ("GET", "204 No Content", "X-Note: 1", None),
        // Its length is that of a body that is not there: it may go.
        ("GET", "304 Not Modified", "Content-Length: 1234", None),
        ("HEAD", "404 Not Found", "Content-Length: 9", Some("9")),
        ("GET", "200 OK", "Content-Length: 0", Some("0")),
    ];
    for (method, status, line, length) in cases {
        send(&client, format!("{method} / HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
        let stream = stream.get_or_insert_with(|| accepted.next());
        read_head(stream);
        send(stream, format!("HTTP/1.1 {status}\r\n{line}\r\nETag: \"x\"\r\n\r\n").as_bytes());
        let head = read_head(&client);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
        assert_eq!(header(&head, "content-length"), length, "{method} {status}: {head}");
        assert_eq!(header(&head, "transfer-encoding"), None, "{method} {status}: {head}");
        assert_eq!(header(&head, "etag"), Some("\"x\""), "{head}");
    }
}

#[test]
fn a_client_of_http_1_0_gets_what_it_understands() {
    let (_backend, accepted, proxy) = scene(&[]);
    let client = asking(proxy.address, b"GET /old HTTP/1.0\r\n\r\n");
    let (stream, head) = accepted.next_request();
    assert!(head.starts_with("GET /old HTTP/1.1\r\n"), "{head}");
    assert_eq!(headers(&head, "host").len(), 1, "{head}");
    send(&stream, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for part in ["one", "two"] {
        send(&stream, &chunk(part));
    }
    send(&stream, b"0\r\n\r\n");
    let answer = String::from_utf8(read_to_end(&client)).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
    assert_eq!(header(head, "transfer-encoding"), None, "{head}");
    assert_eq!(body, "onetwo");
}

#[test]
fn a_client_of_http_1_0_may_ask_to_be_kept() {
    let backend = Scripted::start(echo);
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[]));
    let client = connect(proxy.address);
    for _ in 0..3 {
        send(&client, b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let answer = read_answer(&client, false);
        assert_eq!(answer.text(), "GET /old HTTP/1.1|");
        assert_eq!(answer.header("connection"), Some("keep-alive"), "{}", answer.head);
    }
}

#[test]
fn the_host_of_an_absolute_target_wins() {
    let (_backend, accepted, proxy) = scene(&[("route", "host = \"example.com\"")]);
    let client = asking(
        proxy.address,
        b"GET http://example.com:81/p%20q?x=1 HTTP/1.1\r\nHost: other\r\n\r\n",
    );
    let (stream, head) = accepted.next_request();
    assert!(head.starts_with("GET /p%20q?x=1 HTTP/1.1\r\n"), "{head}");
    assert_eq!(headers(&head, "host"), ["example.com:81"], "{head}");
    assert_eq!(headers(&head, "x-forwarded-host"), ["example.com:81"], "{head}");
    send(&stream, OK);
    assert_eq!(read_answer(&client, false).status, 200);
    let other = asking(proxy.address, b"GET http://other/ HTTP/1.1\r\nHost: example.com\r\n\r\n");
    assert_eq!(read_answer(&other, false).status, 404);
    let client =
        asking(proxy.address, b"GET http://example.com HTTP/1.1\r\nHost: example.com\r\n\r\n");
    send(&stream, OK);
    drop(client);
}

#[test]
fn server_sent_events_arrive_byte_by_byte() {
    let (_backend, accepted, proxy) = scene(&[]);
    let client = asking(
        proxy.address,
        b"GET /events HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n",
    );
    let (stream, _) = accepted.next_request();
    // Without a length: it lasts as long as the connection.
    send(&stream, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
    let head = read_head(&client);
    assert_eq!(header(&head, "content-type"), Some("text/event-stream"), "{head}");
    for byte in "data: hi\n\n".chars() {
        send(&stream, byte.to_string().as_bytes());
        assert_eq!(read_chunk(&client), byte.to_string().as_bytes());
    }
    drop(stream);
    assert_eq!(read_chunk(&client), b"");
}

#[test]
fn a_long_poll_waits_and_is_counted_as_in_flight() {
    let (_backend, accepted, proxy) = scene(&[]);
    let client = asking(proxy.address, b"GET /poll HTTP/1.1\r\nHost: test\r\n\r\n");
    let (stream, _) = accepted.next_request();
    assert_eq!(in_flight(&proxy), 1);
    expect_silence(&client, 200);
    send(&stream, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
    assert_eq!(status(&read_head(&client)), 200);
    assert_eq!(in_flight(&proxy), 1);
    send(&stream, b"k");
    assert_eq!(read_text(&client, 2), "ok");
    eventually("nothing is in flight", || (in_flight(&proxy) == 0).then_some(()));
}

#[test]
fn a_client_that_goes_away_ends_its_request_at_the_backend() {
    let (_backend, accepted, proxy) = scene(&[]);
    // While it waits for the answer.
    let client = asking(proxy.address, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let (stream, _) = accepted.next_request();
    drop(client);
    assert_eq!(read_to_end(&stream), b"");
    // While it gets one.
    let client = asking(proxy.address, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let (stream, _) = accepted.next_request();
    send(&stream, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    read_head(&client);
    drop(client);
    assert_eq!(read_to_end(&stream), b"");
    // While it sends its body: the backend must not take that for all of it.
    let client = asking(
        proxy.address,
        b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    );
    let (stream, _) = accepted.next_request();
    drop(client);
    assert_eq!(read_to_end(&stream), b"2\r\nok\r\n");
    eventually("nothing is in flight", || (in_flight(&proxy) == 0).then_some(()));
    proxy.wait_for_metric("steadfast_client_connections", &[], 0.0);
}

#[test]
fn a_backend_that_does_not_answer_is_504() {
    let (_backend, accepted, proxy) = scene(&[("route", "timeouts = { response = \"300ms\" }")]);
    let client = asking(proxy.address, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let (stream, _) = accepted.next_request();
    assert_eq!(read_answer(&client, false).status, 504);
    assert_eq!(read_to_end(&stream), b"");
    // The time counts from the end of the request.
    let client = connect(proxy.address);
    send(&client, b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n");
    let (stream, _) = accepted.next_request();
    for byte in [b"1", b"2", b"3", b"4", b"5"] {
        std::thread::sleep(Duration::from_millis(100));
        send(&client, byte);
    }
    assert_eq!(read_text(&stream, 5), "12345");
    send(&stream, OK);
    assert_eq!(read_answer(&client, false).status, 200);
    eventually("nothing is in flight", || (in_flight(&proxy) == 0).then_some(()));
}

#[test]
fn a_client_that_pauses_in_its_body_is_408() {
    let (_backend, accepted, proxy) = scene(&[("route", "timeouts = { body = \"300ms\" }")]);
    let client =
        asking(proxy.address, b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nab");
    let (stream, _) = accepted.next_request();
    let answer = read_answer(&client, false);
    assert_eq!(answer.status, 408);
    assert_eq!(read_to_end(&stream), b"ab");
    assert_eq!(read_to_end(&client), b"");
}

#[test]
fn large_bodies_pass_both_ways_in_little_memory() {
    const SIZE: usize = 64 << 20;
    let backend = Scripted::start(|mut stream| {
        read_head(&stream);
        let mut taken = Read::by_ref(&mut stream).take(SIZE as u64);
        assert_eq!(std::io::copy(&mut taken, &mut std::io::sink()).unwrap(), SIZE as u64);
        send(&stream, format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes());
        for _ in 0..SIZE / 65536 {
            send(&stream, &[7; 65536]);
        }
    });
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[]));
    let before = proxy.memory_kib("VmHWM");
    let client = asking(
        proxy.address,
        format!("PUT / HTTP/1.1\r\nHost: test\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes(),
    );
    for _ in 0..SIZE / 65536 {
        send(&client, &[7; 65536]);
    }
    let answer = read_answer(&client, false);
    assert_eq!((answer.status, answer.body.len()), (200, SIZE));
    assert!(answer.body.iter().all(|&byte| byte == 7));
    let grown = proxy.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 4096, "the proxy has grown by {grown} KiB");
}

/// Writes without end until the other side stops taking it; tells when that is.
fn write_until_stalled(stream: &TcpStream) -> usize {
    let mut writer = stream.try_clone().unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    std::thread::spawn(move || {
        while writer.write_all(&[7; 65536]).is_ok() {
            count.fetch_add(65536, Ordering::SeqCst);
        }
    });
    let mut last = (0, 0);
    eventually("the writer is stopped", || {
        let now = written.load(Ordering::SeqCst);
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        (last.1 >= 30).then_some(now)
    })
}

#[test]
fn who_does_not_read_stops_the_other_from_writing() {
    let (_backend, accepted, proxy) = scene(&[]);
    let before = proxy.memory_kib("VmHWM");
    // A backend that does not read a body.
    let client = asking(
        proxy.address,
        b"PUT / HTTP/1.1\r\nHost: test\r\nContent-Length: 10000000000\r\n\r\n",
    );
    let (_stream, _) = accepted.next_request();
    write_until_stalled(&client);
    // A client that does not read an answer.
    let _client = asking(proxy.address, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let (stream, _) = accepted.next_request();
    send(&stream, b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n");
    write_until_stalled(&stream);
    let grown = proxy.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 4096, "the proxy has grown by {grown} KiB");
}

#[test]
fn headers_of_one_hop_go_no_further() {
    let (_backend, accepted, proxy) = scene(&[]);
    let client = asking(
        proxy.address,
        b"GET / HTTP/1.1\r\nHost: test\r\nConnection: keep-alive, X-Hop, Host, X-Forwarded-For\r\n\
          X-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy: http://evil\r\n\
          Proxy-Authorization: Basic eA==\r\nTE: gzip\r\nAccept: a\r\nAccept: b\r\nCookie: c=1\r\n\r\n",
    );
    let (stream, head) = accepted.next_request();
    for name in [
        "connection",
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "proxy",
        "proxy-authorization",
        "te",
        "transfer-encoding",
        "steadfast-connection",
    ] {
        assert_eq!(header(&head, name), None, "{head}");
    }
    assert_eq!(headers(&head, "host"), ["test"], "{head}");
    assert_eq!(headers(&head, "accept"), ["a", "b"], "{head}");
    assert_eq!(headers(&head, "x-forwarded-for"), ["127.0.0.1"], "{head}");
    send(
        &stream,
        b"HTTP/1.1 200 Fine\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
          Upgrade: h2c\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nSteadfast-Join: lobby\r\n\
          Proxy-Authenticate: Basic\r\nContent-Length: 2\r\n\r\nok",
    );
    let answer = read_answer(&client, false);
    for name in ["x-hop", "keep-alive", "upgrade", "steadfast-join", "connection"] {
        assert_eq!(answer.header(name), None, "{}", answer.head);
    }
    assert_eq!(headers(&answer.head, "set-cookie"), ["a=1", "b=2"], "{}", answer.head);
    assert_eq!(answer.header("proxy-authenticate"), Some("Basic"));
}

#[test]
fn an_untrusted_client_can_not_say_where_it_comes_from() {
    let (_backend, accepted, proxy) = scene(&[]);
    let _client = asking(
        proxy.address,
        b"GET / HTTP/1.1\r\nHost: example.com:81\r\nX-Forwarded-For: 192.0.2.1\r\n\
          x-forwarded-proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\n\
          Forwarded: for=192.0.2.1\r\nSteadfast-Key: forged\r\n\r\n",
    );
    let (_stream, head) = accepted.next_request();
    let port = proxy.address.port().to_string();
    assert_eq!(headers(&head, "x-forwarded-for"), ["127.0.0.1"], "{head}");
    assert_eq!(headers(&head, "x-forwarded-proto"), ["http"], "{head}");
    assert_eq!(headers(&head, "x-forwarded-host"), ["example.com:81"], "{head}");
    assert_eq!(headers(&head, "x-forwarded-port"), [port.as_str()], "{head}");
    assert_eq!(header(&head, "forwarded"), None, "{head}");
    assert!(!head.to_lowercase().contains("steadfast"), "{head}");
}

#[test]
fn a_trusted_peer_is_believed_and_appended_to() {
    let (_backend, accepted, proxy) = scene(&[("listener", "trusted = [\"127.0.0.0/8\"]")]);
    let _client = asking(
        proxy.address,
        b"GET / HTTP/1.1\r\nHost: inner\r\nX-Forwarded-For: 198.51.100.9\r\nX-Forwarded-For: 192.0.2.1\r\n\
          X-Forwarded-Proto: https\r\nX-Forwarded-Host: example.com\r\nForwarded: for=192.0.2.1\r\n\r\n",
    );
    let (_stream, head) = accepted.next_request();
    assert_eq!(headers(&head, "x-forwarded-for"), ["198.51.100.9, 192.0.2.1, 127.0.0.1"], "{head}");
    assert_eq!(headers(&head, "x-forwarded-proto"), ["https"], "{head}");
    assert_eq!(headers(&head, "x-forwarded-host"), ["example.com"], "{head}");
    assert_eq!(headers(&head, "x-forwarded-port").len(), 1, "{head}");
    assert_eq!(headers(&head, "host"), ["inner"], "{head}");
}

#[test]
fn every_request_has_an_id() {
    let (_backend, accepted, proxy) = scene(&[]);
    let id_of = |line: &str| {
        let head = format!("GET / HTTP/1.1\r\nHost: test\r\n{line}\r\n");
        let _client = asking(proxy.address, head.as_bytes());
        let (_stream, head) = accepted.next_request();
        let [id] = headers(&head, "x-request-id")[..] else { panic!("{head}") };
        id.to_owned()
    };
    assert_eq!(id_of("X-Request-Id: mine-1\r\n"), "mine-1");
    let (one, other) = (id_of(""), id_of(""));
    assert!(one.len() >= 16 && one != other, "{one} {other}");
    for strange in
        ["X-Request-Id: a b\r\n", "X-Request-Id: \r\n", "X-Request-Id: a\r\nX-Request-Id: b\r\n"]
    {
        assert_eq!(id_of(strange).len(), one.len());
    }
}

/// The key that a backend is told for a handshake.
#[track_caller]
fn key_of(
    proxy: &Proxy,
    accepted: &Accepted,
    path: &str,
    lines: &[(&str, &str)],
) -> Option<String> {
    let _client = asking(proxy.address, ws::handshake_head(path, lines).as_bytes());
    let (_stream, head) = accepted.next_request();
    header(&head, "steadfast-key").map(str::to_owned)
}

#[test]
fn a_key_is_decoded_once_and_told_encoded() {
    let backends = Scripted::accepting();
    let (backend, accepted) = (&backends.0, &backends.1);
    let text = config(&[("a", backend.address)], &[PATIENT]).replace(
        "key = \"query:room\"",
        "key = [\"query:room\", \"header:X-Room\", \"cookie:room\", \"path:2\"]",
    );
    let proxy = Proxy::start(&text);
    let key = |path: &str, lines: &[(&str, &str)]| key_of(&proxy, accepted, path, lines);
    for (value, told) in [
        ("a", "a"),
        ("a+b", "a%20b"),
        ("a%20b", "a%20b"),
        ("a%2Bb", "a%2Bb"),
        ("%2541", "%2541"),
        ("%41", "A"),
        ("a%", "a%25"),
        ("a%zz", "a%25zz"),
        ("%C3%A9", "%C3%A9"),
        ("a%2Fb%00", "a%2Fb%00"),
        ("a=b", "a%3Db"),
        ("one&room=two", "one"),
    ] {
        assert_eq!(key(&format!("/?x=1&room={value}"), &[]).as_deref(), Some(told), "{value}");
    }
    assert_eq!(key("/?r%6Fom=a", &[]).as_deref(), Some("a"));
    assert_eq!(key("/?room=", &[("x-room", "h")]).as_deref(), Some("h"));
    assert_eq!(key("/", &[("X-Room", "a%20+b")]).as_deref(), Some("a%2520%2Bb"));
    assert_eq!(key("/", &[("Cookie", "x=1; room=\"c\"; room=d")]).as_deref(), Some("c"));
    assert_eq!(key("/a/b%2Fc+d/e", &[]).as_deref(), Some("b%2Fc%2Bd"));
    assert_eq!(key("/a", &[]), None);
}

#[test]
fn plain_requests_of_a_key_go_to_its_home() {
    let ids = ["a", "b", "c"];
    let backends: Vec<Scripted> = ids
        .into_iter()
        .map(|id| {
            Scripted::start(move |stream| {
                read_head(&stream);
                send(&stream, format!("HTTP/1.1 200 OK\r\nX-Id: {id}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").as_bytes());
            })
        })
        .collect();
    let addresses: Vec<_> = ids.iter().zip(&backends).map(|(id, one)| (*id, one.address)).collect();
    let proxy = Proxy::start(&config(&addresses, &[]));
    let ring = Ring::new(ids.iter().map(|id| (*id, NonZeroU32::MIN)));
    let mut seen = [false; 3];
    for number in 0..40 {
        let home = ring.owner(format!("room {number}").as_bytes()).unwrap();
        let answer = http::get(proxy.address, &format!("/?room=room+{number}"));
        assert_eq!(answer.header("x-id"), Some(ids[home]), "{number}");
        seen[home] = true;
    }
    assert_eq!(seen, [true; 3]);
    // Without a key they are spread.
    let mut spread: Vec<String> =
        (0..30).map(|_| http::get(proxy.address, "/").header("x-id").unwrap().to_owned()).collect();
    spread.sort();
    spread.dedup();
    assert_eq!(spread, ids);
}

#[test]
fn a_client_address_as_the_key_is_the_one_that_trusted_proxies_name() {
    let (backend, accepted) = Scripted::accepting();
    let trusted = ("listener", "trusted = [\"127.0.0.1/32\", \"10.0.0.0/8\"]");
    let text = config(&[("a", backend.address)], &[trusted, PATIENT])
        .replace("\"query:room\"", "\"client_ip\"");
    let proxy = Proxy::start(&text);
    for (line, expected) in [
        ("192.0.2.7", "192.0.2.7"),
        ("1.1.1.1, 192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:DB8:0:0:0:0:0:1", "2001%3Adb8%3A%3A1"),
        ("nonsense", "127.0.0.1"),
    ] {
        let key = key_of(&proxy, &accepted, "/", &[("X-Forwarded-For", line)]);
        assert_eq!(key.as_deref(), Some(expected), "{line}");
    }
}

#[test]
fn a_key_that_can_not_be_one_is_400() {
    let (backend, _accepted, proxy) = scene(&[]);
    let long = format!("/?room={}", "x".repeat(513));
    for path in ["/?room=%FF", "/?room=%ED%A0%80", &long] {
        assert_eq!(http::get(proxy.address, path).status, 400, "{path}");
    }
    assert_eq!(backend.accepted(), 0);
    let labels = [("reason", "bad_key"), ("route", "all")];
    assert_eq!(proxy.metric("steadfast_refused_total", &labels), 3.0);
}

#[test]
fn the_most_specific_route_wins() {
    let names = ["exact", "wild", "deep", "rest", "inner", "whole"];
    let backends: Vec<Scripted> = names
        .into_iter()
        .map(|name| {
            Scripted::start(move |stream| {
                read_head(&stream);
                send(&stream, format!("HTTP/1.1 200 OK\r\nX-Pool: {name}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").as_bytes());
            })
        })
        .collect();
    let mut text = "[server]\nname = \"edge\"\nadmin = \"127.0.0.1:0\"\n\
        [[listener]]\nname = \"outer\"\nbind = \"127.0.0.1:0\"\n\
        [[listener]]\nname = \"inner\"\nbind = \"127.0.0.1:0\"\n"
        .to_owned();
    for (name, backend) in names.iter().zip(&backends) {
        text += &format!(
            "[pool.{name}]\nbackends = [{{ id = \"{name}\", address = \"{}\" }}]\n\
             [pool.{name}.health]\nkind = \"off\"\n",
            backend.address
        );
    }
    for (name, host, path, listener) in [
        ("exact", "host = \"chat.example.com\"", "/ws/*", ""),
        ("wild", "host = \"*.example.com\"", "/*", ""),
        ("deep", "", "/api/v1/*", ""),
        ("rest", "", "/api/*", ""),
        ("inner", "", "/api/*", "listener = \"inner\""),
        ("whole", "", "/whole", ""),
    ] {
        text += &format!(
            "[[route]]\nname = \"{name}\"\n{host}\npath = \"{path}\"\npool = \"{name}\"\n{listener}\n"
        );
    }
    let proxy = Proxy::start(&text);
    let ask = |listener: usize, host: &str, path: &str| -> Answer {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        read_answer(&asking(proxy.listeners[listener], head.as_bytes()), false)
    };
    for (listener, host, path, expected) in [
        (0, "chat.example.com", "/ws/1", Some("exact")),
        (0, "CHAT.example.com:8443", "/ws/", Some("exact")),
        (0, "chat.example.com", "/ws", Some("wild")),
        (0, "a.b.example.com", "/ws/1", Some("wild")),
        (0, "example.com", "/ws/1", None),
        (0, "example.com", "/api/v1/x", Some("deep")),
        (1, "example.com", "/api/v1/x", Some("deep")),
        (0, "example.com", "/api/v2", Some("rest")),
        (1, "example.com", "/api/v2", Some("inner")),
        (0, "x", "/api", None),
        (0, "x", "/whole?query=1", Some("whole")),
        (0, "x", "/whole/", None),
        (0, "x", "/%77hole", None),
        (0, "x", "/x/../whole", None),
        (0, "x", "/", None),
    ] {
        let answer = ask(listener, host, path);
        let found = answer.header("x-pool");
        assert_eq!(found, expected, "{listener} {host} {path}");
        assert_eq!(answer.status, if expected.is_some() { 200 } else { 404 }, "{host} {path}");
    }
}

#[test]
fn a_backend_that_refuses_is_passed_over() {
    let refusing = Refusing::new();
    let backend = Scripted::start(echo);
    let backends = [("a", refusing.address), ("b", backend.address)];
    let proxy = Proxy::start(&config(&backends, &[PATIENT]));
    for number in 0..20 {
        let path = format!("/?room={number}");
        let answer = http::request(proxy.address, "POST", &path, &[], b"body");
        assert_eq!(answer.text(), format!("POST {path} HTTP/1.1|body"));
    }
}

#[test]
fn what_is_no_answer_is_502() {
    let (_backend, accepted, proxy) = scene(&[]);
    for said in [
        "",
        "garbage\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        let client = asking(proxy.address, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        let (stream, _) = accepted.next_request();
        send(&stream, said.as_bytes());
        drop(stream);
        assert_eq!(read_answer(&client, false).status, 502, "{said:?}");
    }
}

#[test]
fn an_answer_that_breaks_off_does_not_look_whole() {
    let (_backend, accepted, proxy) = scene(&[]);
    for (framing, body) in
        [("Content-Length: 10", "12345"), ("Transfer-Encoding: chunked", "5\r\n12345\r\n")]
    {
        let client = asking(proxy.address, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        let (stream, _) = accepted.next_request();
        send(&stream, format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{body}").as_bytes());
        assert_eq!(status(&read_head(&client)), 200);
        drop(stream);
        let rest = read_to_end(&client);
        assert!(body.as_bytes().starts_with(&rest), "{:?}", String::from_utf8_lossy(&rest));
    }
}

#[test]
fn an_answer_that_comes_before_the_end_of_the_request_reaches_the_client() {
    let (_backend, accepted, proxy) = scene(&[]);
    let head = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10000000\r\n\r\n";
    let answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig";
    for ends in [false, true] {
        let client = asking(proxy.address, head);
        send(&client, &[7; 65536]);
        let (stream, _) = accepted.next_request();
        send(&stream, answer);
        if ends {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let answer = read_answer(&client, false);
        assert_eq!((answer.status, answer.text().as_str()), (413, "big"));
    }
}

#[test]
fn interim_answers_do_not_end_a_request() {
    let (_backend, accepted, proxy) = scene(&[]);
    let client = asking(proxy.address, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let (stream, _) = accepted.next_request();
    send(&stream, b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
    send(&stream, OK);
    assert_eq!(read_answer(&client, false).text(), "ok");
}
