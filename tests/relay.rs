//! The relay between a client and its backend, in bytes.

#![expect(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;
use support::scripted::Scripted;
use support::ws::{
    self, BINARY, CLOSE, Frame, PING, PONG, TEXT, Ws, close_payload, masked, read_frame, unmasked,
};
use support::{Proxy, config, read_to_end, send};

#[test]
fn frames_pass_both_ways_untouched() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let client = ws::open(proxy.address, "/?room=r");
    let (stream, _) = handed.next();
    client.send(TEXT, "hello");
    assert_eq!(read_frame(&stream).unwrap(), Frame::new(TEXT, "hello"));
    send(&stream, &unmasked(BINARY, vec![7; 70_000]));
    assert_eq!(client.read(), Frame::new(BINARY, vec![7; 70_000]));
}

#[test]
fn a_backend_that_vanishes_closes_its_client_with_1014() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[]));
    let client = ws::open(proxy.address, "/?room=r");
    let (stream, _) = handed.next();
    send(&stream, &unmasked(TEXT, "last words"));
    drop(stream);
    client.expect_text("last words");
    client.answer_close(1014);
    let labels = [("reason", "backend_lost"), ("by", "backend"), ("code", "1014")];
    proxy.wait_for_metric("steadfast_closes_total", &labels, 1.0);
}

#[test]
fn a_close_passes_as_it_came() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let client = ws::open(proxy.address, "/?room=r");
    let (stream, _) = handed.next();
    send(&client.stream, &masked(CLOSE, close_payload(4001, "bye")));
    assert_eq!(read_frame(&stream).unwrap().close(), (4001, "bye".to_owned()));
    send(&stream, &unmasked(CLOSE, close_payload(4001, "bye")));
    drop(stream);
    client.expect_close(4001);
    client.expect_end();
}

/// A backend's end and a client's, open through a proxy with `more` config.
fn pair(more: &[(&str, &str)]) -> (Proxy, Ws, TcpStream) {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::start(&config(&[("a", backend.address)], more));
    let client = ws::open(proxy.address, "/?room=r");
    let (stream, _) = handed.next();
    (proxy, client, stream)
}

#[test]
fn each_violation_of_the_client_closes_both_sides_with_1002() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let long_control = [&[0x89, 0xfe, 0, 126][..], &[0; 130]].concat();
    let overflow = [&[0x82, 0xff][..], &[0xff; 8], &[0; 4]].concat();
    let inside = [masked_fragment(TEXT, "a"), masked(TEXT, "b")].concat();
    let violations: Vec<(&str, Vec<u8>)> = vec![
        ("unmasked", unmasked(TEXT, "x")),
        ("reserved bit", Frame { rsv: 4, ..Frame::new(TEXT, "x") }.encode(Some([1; 4]))),
        ("reserved opcode", masked(3, "x")),
        ("reserved control opcode", masked(11, "x")),
        ("long control", long_control),
        ("fragmented ping", Frame { fin: false, ..Frame::new(PING, "x") }.encode(Some([1; 4]))),
        ("continuation of nothing", masked(0, "x")),
        ("message inside another", inside),
        ("length over 2^63", overflow),
        ("length not minimal", vec![0x82, 0xfe, 0, 5, 0, 0, 0, 0, 1, 2, 3, 4, 5]),
        ("garbage", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ];
    let count = violations.len();
    for (name, bytes) in violations {
        let client = ws::open(proxy.address, "/?room=r");
        let (stream, _) = handed.next();
        client.send(TEXT, "fine");
        send(&client.stream, &bytes);
        assert_eq!(read_frame(&stream).unwrap(), Frame::new(TEXT, "fine"), "{name}");
        let told = std::iter::repeat_with(|| read_frame(&stream).unwrap());
        let told = told.into_iter().find(|frame| frame.opcode == CLOSE).unwrap();
        assert_eq!(told.close().0, 1002, "{name}");
        assert_eq!(client.read().close().0, 1002, "{name}");
        client.expect_end();
        send(&stream, &unmasked(CLOSE, close_payload(1002, "")));
    }
    let labels = [("reason", "client_violation"), ("by", "proxy"), ("code", "1002")];
    proxy.wait_for_metric("steadfast_closes_total", &labels, count as f64);
}

fn masked_fragment(opcode: u8, payload: &str) -> Vec<u8> {
    Frame { fin: false, ..Frame::new(opcode, payload) }.encode(Some([9, 8, 7, 6]))
}

#[test]
fn a_violation_of_the_backend_closes_both_sides_with_1002() {
    let (proxy, client, stream) = pair(&[]);
    send(&stream, &masked(TEXT, "masked by a backend"));
    client.answer_close(1002);
    assert_eq!(read_frame(&stream).unwrap().close().0, 1002);
    drop(stream);
    proxy.wait_for_metric("steadfast_closes_total", &[("reason", "backend_violation")], 1.0);
}

#[test]
fn a_giant_frame_is_refused_by_its_header() {
    let (proxy, client, stream) = pair(&[("route", "max_message = \"1KiB\"")]);
    send(&client.stream, &[&[0x82, 0xff][..], &(1u64 << 62).to_be_bytes(), &[0; 4]].concat());
    assert_eq!(read_frame(&stream).unwrap().close().0, 1009);
    client.expect_close(1009);
    client.expect_end();
    drop(stream);
    proxy.wait_for_metric("steadfast_closes_total", &[("reason", "message_too_big")], 1.0);
}

#[test]
fn fragments_count_together_and_the_largest_message_passes() {
    let (_proxy, client, stream) = pair(&[("route", "max_message = 1024")]);
    client.send(BINARY, vec![1; 1024]);
    assert_eq!(read_frame(&stream).unwrap().payload.len(), 1024);
    send(&stream, &Frame { fin: false, ..Frame::new(BINARY, vec![2; 1000]) }.encode(None));
    assert_eq!(client.read().payload.len(), 1000);
    send(&stream, &unmasked(0, vec![2; 25]));
    client.answer_close(1009);
}

#[test]
fn a_clients_end_of_stream_goes_on_and_the_backend_may_go_on_speaking() {
    let (proxy, client, stream) = pair(&[]);
    client.send(TEXT, "last");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_frame(&stream).unwrap(), Frame::new(TEXT, "last"));
    assert!(read_to_end(&stream).is_empty());
    for number in 0..10 {
        send(&stream, &unmasked(TEXT, number.to_string()));
        client.expect_text(&number.to_string());
    }
    drop(stream);
    client.expect_end();
    proxy.wait_for_metric("steadfast_closes_total", &[("reason", "client_ended")], 1.0);
}

#[test]
fn a_half_frame_before_a_clients_end_goes_on_too() {
    let (_proxy, client, stream) = pair(&[]);
    send(&client.stream, &masked(TEXT, "whole"));
    send(&client.stream, &[0x81, 0xfe, 1]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_frame(&stream).unwrap().text(), "whole");
    assert_eq!(read_to_end(&stream), [0x81, 0xfe, 1]);
}

#[test]
fn a_reset_of_the_client_resets_the_backend() {
    let (proxy, client, stream) = pair(&[]);
    SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let mut buffer = [0; 16];
    let error = (&stream).read(&mut buffer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    proxy.wait_for_metric("steadfast_closes_total", &[("reason", "client_reset")], 1.0);
}

#[test]
fn a_reset_of_the_backend_is_told_as_1014_after_what_it_said() {
    let (_proxy, client, stream) = pair(&[]);
    send(&stream, &unmasked(TEXT, "said"));
    client.expect_text("said");
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    client.answer_close(1014);
}

#[test]
fn a_backend_that_vanishes_within_a_frame_cuts_its_client() {
    let (proxy, client, stream) = pair(&[]);
    let frame = unmasked(BINARY, vec![5; 1000]);
    send(&stream, &frame[..500]);
    drop(stream);
    assert_eq!(read_to_end(&client.stream), frame[..500]);
    proxy.wait_for_metric("steadfast_cut_total", &[], 1.0);
}

#[test]
fn who_does_not_answer_a_close_is_cut_after_five_seconds() {
    let (proxy, client, _stream) = pair(&[]);
    let began = Instant::now();
    client.send_close(1000, "");
    client.expect_end();
    let took = began.elapsed().as_secs_f64();
    assert!((4.5..9.0).contains(&took), "{took} s");
    proxy.wait_for_metric("steadfast_connections", &[], 0.0);
}

#[test]
fn a_close_waits_for_the_end_of_the_frame_under_way() {
    let (mut proxy, client, stream) = pair(&[]);
    let frame = unmasked(BINARY, vec![5; 1000]);
    send(&stream, &frame[..500]);
    let mut half = [0; 500];
    (&client.stream).read_exact(&mut half).unwrap();
    proxy.process.signal("INT");
    // The backend is between frames: it is told at once. The client is told when its frame ends.
    assert_eq!(read_frame(&stream).unwrap().close().0, 1001);
    send(&stream, &frame[500..]);
    let mut rest = vec![0; frame.len() - 500];
    (&client.stream).read_exact(&mut rest).unwrap();
    client.answer_close(1001);
    send(&stream, &unmasked(CLOSE, close_payload(1001, "")));
    drop(stream);
    assert!(proxy.process.wait_for_exit().success());
}

#[test]
fn an_idle_connection_is_closed_with_1001() {
    let (proxy, client, stream) =
        pair(&[("route", "idle_timeout = \"500ms\"\nping_interval = \"0s\"")]);
    let began = Instant::now();
    client.send(TEXT, "still here");
    read_frame(&stream).unwrap();
    client.answer_close(1001);
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    assert_eq!(read_frame(&stream).unwrap().close().0, 1001);
    drop(stream);
    proxy.wait_for_metric("steadfast_closes_total", &[("reason", "idle_timeout")], 1.0);
}

#[test]
fn a_silent_client_is_pinged_and_the_backend_sees_nothing_of_it() {
    let (_proxy, client, stream) = pair(&[("route", "ping_interval = \"500ms\"")]);
    for _ in 0..3 {
        let ping = client.read();
        assert_eq!((ping.opcode, ping.payload.len()), (PING, 8));
        client.send(PONG, ping.payload);
    }
    client.send(PONG, "my own");
    assert_eq!(read_frame(&stream).unwrap(), Frame::new(PONG, "my own"));
}

#[test]
fn a_client_that_answers_no_ping_is_dead() {
    let (proxy, client, stream) = pair(&[("route", "ping_interval = \"300ms\"")]);
    assert_eq!(client.read().opcode, PING);
    client.expect_close(1001);
    assert_eq!(read_frame(&stream).unwrap().close().0, 1001);
    drop((client, stream));
    proxy.wait_for_metric("steadfast_closes_total", &[("reason", "ping_timeout")], 1.0);
}

#[test]
fn a_flooded_client_that_does_not_read_costs_no_memory_and_stops_its_backend() {
    let (proxy, client, stream) = pair(&[]);
    let before = resident(&proxy);
    let sent = flood(&stream, &unmasked(BINARY, vec![1; 60_000]));
    assert!(sent < 64 << 20, "{sent} bytes were taken for a client that reads nothing");
    assert!(resident(&proxy) < before + (8 << 20), "{} over {before}", resident(&proxy));
    assert!(proxy.metric("steadfast_relay_stalls_total", &[("direction", "from_backend")]) > 0.0);
    // It goes on where it stopped, with not a byte lost.
    drain_frames(&client.stream, sent);
}

#[test]
fn a_flooded_backend_that_does_not_read_costs_no_memory_and_stops_its_client() {
    let (proxy, client, stream) = pair(&[]);
    let before = resident(&proxy);
    let sent = flood(&client.stream, &masked(BINARY, vec![1; 60_000]));
    assert!(sent < 64 << 20, "{sent} bytes were taken for a backend that reads nothing");
    assert!(resident(&proxy) < before + (8 << 20), "{} over {before}", resident(&proxy));
    drain_frames(&stream, sent);
}

/// Writes frames until nobody takes any more for a while; tells how many bytes were taken.
fn flood(stream: &TcpStream, frame: &[u8]) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (mut sent, mut last) = (0, Instant::now());
    while last.elapsed() < Duration::from_secs(1) && sent < 64 << 20 {
        match (&mut &*stream).write(&frame[sent % frame.len()..]) {
            Ok(count) => (sent, last) = (sent + count, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    sent
}

/// Reads all whole frames of a flood of `sent` bytes.
fn drain_frames(stream: &TcpStream, sent: usize) {
    for _ in 0..sent / 60_010 {
        assert_eq!(read_frame(stream).unwrap().payload.len(), 60_000);
    }
}

/// Bytes of memory that the proxy has.
fn resident(proxy: &Proxy) -> usize {
    let path = format!("/proc/{}/status", proxy.process.pid());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kilobytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

#[test]
fn a_thousand_idle_connections_hold_no_buffers() {
    let (backend, handed) = Scripted::opening();
    let proxy = Proxy::before(&[("a", backend.address)]);
    let open = |count: usize| -> Vec<(Ws, TcpStream)> {
        let opened = (0..count).map(|number| {
            let client = ws::open(proxy.address, &format!("/?room={number}"));
            let (stream, _) = handed.next();
            client.send(BINARY, vec![0; 100_000]);
            read_frame(&stream).unwrap();
            (client, stream)
        });
        opened.collect()
    };
    let _warm = open(200);
    let before = resident(&proxy);
    let _more = open(1000);
    let each = resident(&proxy).saturating_sub(before) / 1000;
    assert!(each < 8 * 1024, "{each} bytes for each");
}
