//! PROXY protocol: who is believed, what is read, what is refused.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::http::{self, Answer, read_answer};
use support::scripted::{Handed, Scripted};
use support::ws::handshake_head;
use support::{Proxy, config, connect, eventually, read_to_end, send};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn proxy(listener: &str) -> (Proxy, Scripted, Handed) {
    let (backend, handed) = Scripted::opening();
    let more = [("listener", listener), ("route", ""), ("server", "access_log = \"access.log\"")];
    let config = config(&[("a", backend.address)], &more);
    let config = config.replace("\"query:room\"", "\"client_ip\"");
    (Proxy::start(&config), backend, handed)
}

fn accepting() -> (Proxy, Scripted, Handed) {
    proxy("proxy_protocol = \"accept\"\ntrusted = [\"127.0.0.1\"]")
}

fn version_2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[0x20 | command, family], &length, block].concat()
}

/// 192.0.2.7:4242 to 198.51.100.1:443, with an extension.
fn version_2_ipv4() -> Vec<u8> {
    let block = [192, 0, 2, 7, 198, 51, 100, 1, 16, 146, 1, 187, 3, 0, 1, 0];
    version_2(1, 0x11, &block)
}

/// `[2001:db8::7]:4242`.
fn version_2_ipv6() -> Vec<u8> {
    let mut block = [0; 36];
    block[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
    (block[15], block[32], block[33]) = (7, 16, 146);
    version_2(1, 0x21, &block)
}

/// Opens a WebSocket behind a header, and tells what the backend was told.
#[track_caller]
fn opened(proxy: &Proxy, handed: &Handed, header: &[u8], lines: &[(&str, &str)]) -> Seen {
    let stream = connect(proxy.address);
    send(&stream, &[header, handshake_head("/", lines).as_bytes()].concat());
    let answer = read_answer(&stream, false);
    assert_eq!(answer.status, 101, "{:?}: {}", header.escape_ascii().to_string(), answer.text());
    let (backend, head) = handed.next();
    Seen { _client: stream, _backend: backend, head }
}

struct Seen {
    _client: TcpStream,
    _backend: TcpStream,
    head: String,
}

impl Seen {
    #[track_caller]
    fn is_from(&self, forwarded_for: &str, key: &str) {
        assert_eq!(http::header(&self.head, "x-forwarded-for"), Some(forwarded_for));
        let told = http::header(&self.head, "steadfast-key").unwrap().replace("%3A", ":");
        assert_eq!(told, key);
    }
}

#[track_caller]
fn answer(proxy: &Proxy, bytes: &[u8]) -> Answer {
    let stream = connect(proxy.address);
    send(&stream, bytes);
    read_answer(&stream, false)
}

/// Waits until so many connections were refused for their header.
#[track_caller]
fn expect_refused(proxy: &Proxy, count: f64) {
    proxy.wait_for_metric("steadfast_refused_total", &[("reason", "proxy_header")], count);
}

#[test]
fn the_address_in_the_header_is_the_clients() {
    let (proxy, _backend, handed) = accepting();
    let mapped = "PROXY TCP6 ::ffff:192.0.2.7 ::1 4242 443\r\n";
    for (header, client) in [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4242 443\r\n".to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:DB8:0::7 2001:db8::1 4242 443\r\n".to_vec(), "2001:db8::7"),
        (mapped.as_bytes().to_vec(), "192.0.2.7"),
        (version_2_ipv4(), "192.0.2.7"),
        (version_2_ipv6(), "2001:db8::7"),
        // The peer speaks for itself.
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (version_2(0, 0, &[]), "127.0.0.1"),
    ] {
        opened(&proxy, &handed, &header, &[]).is_from(client, client);
    }
    let log = proxy.folder().join("access.log");
    eventually("the access log has the client", || {
        let log = std::fs::read_to_string(&log).ok()?;
        (log.contains(r#""client":"192.0.2.7""#) && log.contains(r#""client":"2001:db8::7""#))
            .then_some(())
    });
}

#[test]
fn a_header_may_come_byte_by_byte_and_cut_anywhere() {
    let (proxy, _backend, handed) = accepting();
    let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 4242 443\r\n".to_vec();
    let request = handshake_head("/", &[]);
    for header in [line, version_2_ipv4()] {
        let bytes = [&header[..], request.as_bytes()].concat();
        for cut in 1..=header.len() {
            let mut stream = connect(proxy.address);
            // Each a segment of its own, since TCP_NODELAY is set.
            stream.write_all(&bytes[..cut]).unwrap();
            stream.write_all(&bytes[cut..]).unwrap();
            assert_eq!(read_answer(&stream, false).status, 101, "cut at {cut}");
            let (_backend, head) = handed.next();
            assert_eq!(http::header(&head, "x-forwarded-for"), Some("192.0.2.7"), "{cut}");
        }
        let mut stream = connect(proxy.address);
        for byte in bytes.chunks(1) {
            stream.write_all(byte).unwrap();
        }
        assert_eq!(read_answer(&stream, false).status, 101);
        assert_eq!(http::header(&handed.next().1, "x-forwarded-for"), Some("192.0.2.7"));
    }
    expect_refused(&proxy, 0.0);
}

#[test]
fn who_is_named_by_a_header_must_be_trusted_to_name_others() {
    let listener = "proxy_protocol = \"accept\"\ntrusted = [\"127.0.0.1\", \"2001:db8::/32\"]";
    let (proxy, _backend, handed) = proxy(listener);
    let lines = [("X-Forwarded-For", "203.0.113.9")];
    let stranger = b"PROXY TCP4 192.0.2.7 198.51.100.1 4242 443\r\n";
    opened(&proxy, &handed, stranger, &lines).is_from("192.0.2.7", "192.0.2.7");
    opened(&proxy, &handed, &version_2_ipv6(), &lines)
        .is_from("203.0.113.9, 2001:db8::7", "203.0.113.9");
}

#[test]
fn what_is_no_header_ends_the_connection_and_is_counted() {
    let (proxy, backend, _handed) = accepting();
    let endless = format!("PROXY TCP4 {}", "1".repeat(200));
    let mut oversize = version_2(1, 0x11, &[0; 12]);
    (oversize[14], oversize[15]) = (0xff, 0xff);
    let all = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        endless.into_bytes(),
        oversize,
        b"PROXY TCP4 not.an.address 198.51.100.1 1 2\r\n".to_vec(),
        version_2(2, 0x11, &[0; 12]),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00".to_vec(),
    ];
    for (count, bytes) in (1..).zip(&all) {
        let stream = connect(proxy.address);
        send(&stream, bytes);
        assert!(read_to_end(&stream).is_empty(), "nothing is said to it");
        expect_refused(&proxy, f64::from(count));
    }
    // One that ends within its header.
    let stream = connect(proxy.address);
    send(&stream, b"PROXY TCP4 192");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_to_end(&stream).is_empty());
    expect_refused(&proxy, 7.0);
    // A balancer that only looks whether the port is open is no error.
    let stream = connect(proxy.address);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_to_end(&stream).is_empty());
    expect_refused(&proxy, 7.0);
    assert_eq!(backend.accepted(), 0);
    proxy.wait_for_metric("steadfast_client_connections", &[], 0.0);
}

#[test]
fn a_slow_header_is_cut_off_in_time() {
    let listener =
        "proxy_protocol = \"accept\"\ntrusted = [\"127.0.0.1\"]\ntimeouts.header = \"300ms\"";
    let (proxy, ..) = proxy(listener);
    for begun in [&b"PROXY TCP4 "[..], &SIGNATURE[..7], b""] {
        let began = Instant::now();
        let stream = connect(proxy.address);
        send(&stream, begun);
        assert!(read_to_end(&stream).is_empty());
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    }
    expect_refused(&proxy, 3.0);
}

#[test]
fn strangers_are_served_without_a_header_and_refused_with_one() {
    let (proxy, _backend, handed) =
        proxy("proxy_protocol = \"accept\"\ntrusted = [\"10.0.0.0/8\"]");
    let seen = opened(&proxy, &handed, b"", &[("X-Forwarded-For", "203.0.113.9")]);
    seen.is_from("127.0.0.1", "127.0.0.1");
    let request = handshake_head("/", &[]);
    for header in [b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(), version_2_ipv4()] {
        let answer = answer(&proxy, &[&header[..], request.as_bytes()].concat());
        assert_eq!(answer.status, 400);
    }
    expect_refused(&proxy, 0.0);
}

#[test]
fn where_it_is_off_a_header_is_no_http() {
    let (proxy, _backend, handed) = proxy("trusted = [\"127.0.0.1\"]");
    assert_eq!(answer(&proxy, b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n\r\n").status, 400);
    opened(&proxy, &handed, b"", &[]).is_from("127.0.0.1", "127.0.0.1");
}

#[test]
fn connections_per_ip_counts_who_is_named() {
    let listener =
        "proxy_protocol = \"accept\"\ntrusted = [\"127.0.0.1\"]\nlimits.connections_per_ip = 2";
    let (proxy, _backend, handed) = proxy(listener);
    let header = |last: u8| format!("PROXY TCP4 192.0.2.{last} 198.51.100.1 1 2\r\n").into_bytes();
    // More of one balancer than one address may have.
    let mut open: Vec<Seen> =
        [1, 1, 2, 2].map(|last| opened(&proxy, &handed, &header(last), &[])).into();
    let stream = connect(proxy.address);
    send(&stream, &[&header(1)[..], handshake_head("/", &[]).as_bytes()].concat());
    assert!(read_to_end(&stream).is_empty());
    proxy.wait_for_metric("steadfast_refused_total", &[("reason", "connections_per_ip")], 1.0);
    open.remove(0);
    proxy.wait_for_metric("steadfast_client_connections", &[], 3.0);
    opened(&proxy, &handed, &header(1), &[]);
}

#[test]
fn a_stop_does_not_wait_for_headers() {
    let listener =
        "proxy_protocol = \"accept\"\ntrusted = [\"127.0.0.1\"]\ntimeouts.header = \"1h\"";
    let (mut proxy, ..) = proxy(listener);
    let stream = connect(proxy.address);
    send(&stream, b"PROXY ");
    proxy.wait_for_metric("steadfast_client_connections", &[], 1.0);
    proxy.process.signal("TERM");
    assert!(read_to_end(&stream).is_empty());
    assert!(proxy.process.wait_for_exit_within(Duration::from_secs(10)).success());
}
