//! The relay between a client and its backend, in bytes.

mod support;

use support::scripted::Scripted;
use support::ws::{self, BINARY, CLOSE, Frame, TEXT, close_payload, masked, read_frame, unmasked};
use support::{Proxy, config, send};

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
