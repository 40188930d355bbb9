//! Messages of others, put into live connections through the library.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use steadfast::server::{DeliverError, Server};
use steadfast::ws::connection::Undeliverable;
use support::http::get;
use support::in_process::{InProcess, runtime};
use support::scripted::{Handed, Scripted};
use support::ws::{self, BINARY, CLOSE, Frame, PING, TEXT, Ws, close_payload, unmasked};
use support::{SetWhenDropped, eventually, send};

/// A proxy in this process before one scripted backend.
struct Injected {
    proxy: InProcess,
    handed: Mutex<Handed>,
    _backend: Scripted,
}

impl Injected {
    fn start() -> Self {
        let (backend, handed) = Scripted::opening();
        let source = support::config(&[("a", backend.address)], &[("server", "workers = 2")]);
        let proxy = InProcess::start(&source);
        Self { proxy, handed: Mutex::new(handed), _backend: backend }
    }

    fn server(&self) -> &Server {
        self.proxy.server()
    }

    /// A client, the backend's end of it, and its id.
    fn open(&self) -> (Ws, TcpStream, String) {
        let client = ws::open(self.server().listeners()[0], "/?room=r");
        let (stream, head) = self.handed.lock().unwrap().next();
        let id = head.lines().find_map(|line| line.strip_prefix("steadfast-connection: "));
        (client, stream, id.unwrap().to_owned())
    }

    fn deliver(&self, id: &str, frame: Vec<u8>) -> Result<(), DeliverError> {
        runtime().block_on(self.server().deliver(id, Bytes::from(frame)))
    }

    /// The sum of all samples of a metric with these labels.
    fn metric(&self, name: &str, labels: &str) -> f64 {
        let page = get(self.server().admin().unwrap(), "/metrics").text();
        let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(labels));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

const MESSAGES: usize = 1000;

/// Says message after message, each in fragments, until it is over, then Close; counts in `said`.
fn speak(mut stream: TcpStream, over: &AtomicBool, said: &AtomicUsize) {
    for number in 0_usize.. {
        if over.load(Ordering::SeqCst) {
            break;
        }
        if stream.write_all(&ws::fragmented(number)).is_err() {
            return;
        }
        said.store(number + 1, Ordering::SeqCst);
    }
    let _ = stream.write_all(&unmasked(CLOSE, close_payload(1000, "")));
}

/// What a client has heard: messages of the backend, each of which must be whole, and between them
/// those that were injected.
#[derive(Default)]
struct Heard {
    injected: usize,
    /// Messages of the backend that have ended.
    whole: usize,
    /// What the open message of the backend is made of, and how many fragments have come.
    open: Option<(u8, usize)>,
    /// Injected messages that came after one of the backend.
    between: usize,
}

impl Heard {
    /// Takes a frame; `false` if it is the Close.
    #[track_caller]
    fn takes(&mut self, frame: &Frame) -> bool {
        match frame.opcode {
            PING => assert!(self.open.is_some(), "a ping stands where it stood"),
            BINARY => {
                assert_eq!(self.open, None, "a message within another");
                self.open = Some((u8::try_from(self.whole % 251).unwrap(), 1));
                assert_eq!(frame.payload.len(), 700 + self.whole % 3000);
            }
            0 => {
                let (fill, fragments) = self.open.expect("the continuation of a message");
                assert!(frame.payload.iter().all(|byte| *byte == fill));
                self.open = (!frame.fin).then_some((fill, fragments + 1));
                assert_eq!(frame.fin, fragments == 2);
                self.whole += usize::from(frame.fin);
            }
            TEXT => {
                assert_eq!(self.open, None, "inside a message of the backend");
                assert_eq!(frame.text(), format!("injected {}", self.injected));
                self.injected += 1;
                self.between += usize::from(self.whole > 0);
            }
            CLOSE => return false,
            other => panic!("opcode {other}"),
        }
        true
    }
}

#[test]
fn messages_go_in_between_messages_of_a_backend_at_full_speed() {
    let proxy = Injected::start();
    let (client, stream, id) = proxy.open();
    let over = AtomicBool::new(false);
    let received = AtomicUsize::new(0);
    let said = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let _over = SetWhenDropped(&over);
        scope.spawn(|| speak(stream, &over, &said));
        scope.spawn(|| {
            // Not before the backend speaks: what comes in between is what is tested.
            eventually("the backend speaks", || (said.load(Ordering::SeqCst) > 0).then_some(()));
            for number in 0..MESSAGES {
                // Far from the bound of the queue.
                eventually("the client reads on", || {
                    (received.load(Ordering::SeqCst) + 50 > number).then_some(())
                });
                proxy.deliver(&id, unmasked(TEXT, format!("injected {number}"))).unwrap();
            }
        });
        let mut heard = Heard::default();
        while heard.takes(&client.read()) {
            received.store(heard.injected, Ordering::SeqCst);
            if heard.injected == MESSAGES && heard.whole > 100 {
                over.store(true, Ordering::SeqCst);
            }
        }
        let Heard { injected, whole, between, .. } = heard;
        assert_eq!(injected, MESSAGES);
        assert_eq!(whole, said.load(Ordering::SeqCst), "nothing of the backend is lost");
        assert!(between > MESSAGES / 2, "{whole} {between}: they did not come in between");
    });
    assert_eq!(proxy.metric("steadfast_injected_messages_total", ""), 1000.0);
}

#[test]
fn a_message_waits_for_the_end_of_one_that_is_half_said() {
    let proxy = Injected::start();
    let (client, stream, id) = proxy.open();
    let whole = unmasked(TEXT, "said slowly");
    send(&stream, &whole[..5]);
    // The half is under way: the client has it.
    let mut half = [0; 5];
    std::io::Read::read_exact(&mut &client.stream, &mut half).unwrap();
    assert_eq!(half, whole[..5]);
    proxy.deliver(&id, unmasked(TEXT, "injected")).unwrap();
    client.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(client.stream.peek(&mut [0]).is_err(), "nothing comes into the middle");
    client.stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
    send(&stream, &whole[5..]);
    let mut rest = vec![0; whole.len() - 5];
    std::io::Read::read_exact(&mut &client.stream, &mut rest).unwrap();
    assert_eq!(rest, whole[5..]);
    client.expect_text("injected");
    // Between two fragments there is no place either, but control frames pass.
    send(&stream, &Frame { fin: false, ..Frame::new(TEXT, "one") }.encode(None));
    assert!(!client.read().fin);
    proxy.deliver(&id, unmasked(TEXT, "behind")).unwrap();
    send(&stream, &unmasked(PING, "p"));
    assert_eq!(client.read().opcode, PING);
    send(&stream, &unmasked(0, "two"));
    assert_eq!(client.read().payload, b"two");
    client.expect_text("behind");
}

#[test]
fn what_has_waited_goes_out_whole_and_in_order() {
    let proxy = Injected::start();
    let (client, stream, id) = proxy.open();
    let large = vec![7; 8_000_000];
    let messages: Vec<Vec<u8>> = (0..300_usize)
        .map(|number| vec![u8::try_from(number % 251).unwrap(); number * 4])
        .collect();
    std::thread::scope(|scope| {
        // More than sockets hold: as long as nobody reads, there is no end of it.
        scope.spawn(|| send(&stream, &unmasked(BINARY, large.clone())));
        let mut head = [0; 10];
        std::io::Read::read_exact(&mut &client.stream, &mut head).unwrap();
        for message in &messages {
            proxy.deliver(&id, unmasked(BINARY, message.clone())).unwrap();
        }
        let mut payload = vec![0; large.len()];
        std::io::Read::read_exact(&mut &client.stream, &mut payload).unwrap();
        assert!(payload == large);
    });
    for message in messages {
        assert_eq!(client.read(), Frame::new(BINARY, message));
    }
    eventually("they are counted", || {
        (proxy.metric("steadfast_injected_messages_total", "") == 300.0).then_some(())
    });
}

#[test]
fn an_id_that_is_not_ours_or_is_gone_is_told_apart() {
    let proxy = Injected::start();
    let (client, stream, id) = proxy.open();
    proxy.deliver(&id, unmasked(TEXT, "hello")).unwrap();
    client.expect_text("hello");
    let (own, serial) = id.split_once('.').unwrap();
    // Well formed, of a worker that there is not: 64 shards, and serials that begin with it.
    let no_worker = format!("{own}.0000ff000000000000");
    for unknown in ["", "x", ".", own, &format!("other.{serial}"), &format!("{id}0"), &no_worker] {
        let delivered = proxy.deliver(unknown, unmasked(TEXT, "x"));
        assert_eq!(delivered, Err(DeliverError::Unknown), "{unknown}");
    }
    client.send_close(1000, "");
    send(&stream, &unmasked(CLOSE, close_payload(1000, "")));
    drop(stream);
    client.expect_close(1000);
    client.expect_end();
    eventually("it is gone", || {
        (proxy.deliver(&id, unmasked(TEXT, "x")) == Err(DeliverError::Gone)).then_some(())
    });
}

#[test]
fn a_client_that_does_not_read_is_closed_with_1013_when_its_queue_is_full() {
    let proxy = Injected::start();
    let (client, _stream, id) = proxy.open();
    let (other, _other_stream, other_id) = proxy.open();
    // Nobody reads: what the sockets take, then the queue, then no more.
    let message = unmasked(BINARY, vec![7; 60_000]);
    let refused = (0..1000).find_map(|_| proxy.deliver(&id, message.clone()).err());
    assert_eq!(refused, Some(DeliverError::Refused(Undeliverable::QueueFull)));
    let delivered = proxy.deliver(&id, message.clone());
    assert!(
        [Err(DeliverError::Refused(Undeliverable::Closing)), Err(DeliverError::Gone)]
            .contains(&delivered),
        "{delivered:?}"
    );
    // One that reads is not held up by it.
    proxy.deliver(&other_id, unmasked(TEXT, "still served")).unwrap();
    other.expect_text("still served");
    // It reads at last: whole messages, then the Close.
    let close = loop {
        let frame = client.read();
        if frame.opcode == CLOSE {
            break frame;
        }
        assert_eq!(frame, Frame::new(BINARY, vec![7; 60_000]));
    };
    assert_eq!(close.close().0, 1013);
    client.send_close(1013, "");
    client.expect_end();
    eventually("it is counted", || {
        let closed = proxy.metric("steadfast_closes_total", "reason=\"slow_client\"");
        (closed == 1.0).then_some(())
    });
    let full = proxy.metric("steadfast_undeliverable_messages_total", "reason=\"queue_full\"");
    assert_eq!(full, 1.0);
}

#[test]
fn an_empty_queue_takes_one_message_of_any_size() {
    let proxy = Injected::start();
    let (client, _stream, id) = proxy.open();
    let large = vec![7; 2_000_000];
    proxy.deliver(&id, unmasked(BINARY, large.clone())).unwrap();
    assert_eq!(client.read(), Frame::new(BINARY, large));
}
