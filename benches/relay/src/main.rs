//! What it costs to relay a message, to route a request and to find its backend.
//!
//! `cargo run --release -p steadfast-relay-bench` prints times. With `count` it counts
//! instructions instead and holds them against `benches/limits.toml`: times say what a user gains,
//! counts hold still on a busy machine, so these can fail a build.
//!
//! To count, this program runs itself under callgrind, each scenario with few and with many
//! repetitions. The difference is what the repetitions cost, without the program's start and the
//! scenario's preparation, and so without whatever the environment changes about those. No
//! benchmark framework: the one for callgrind needs a runner installed beside it, in its version.
//!
//! It takes in the files of the proxy that it measures, rather than the library: these are
//! optimised within seconds as a part of the tests' build, while the library takes minutes.
//! Dependencies are as the tests have them, less optimised than deployed.
//!
//! The core's scenarios do as the driver does, but have no sockets; `driver_round_trip` is the
//! driver over real ones. What the kernel spends is in no count.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for developers")]

// A program uses a part of what a library offers.
#[allow(dead_code, unreachable_pub)]
#[path = "../../../src/fields.rs"]
mod fields;
#[allow(missing_docs, unreachable_pub)]
#[path = "../../../tests/support/limits.rs"]
mod limits;
#[allow(dead_code, unreachable_pub)]
#[path = "../../../src/pool/ring.rs"]
mod ring;
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../../../src/route/mod.rs"]
mod route;
#[allow(dead_code, unreachable_pub)]
#[path = "../../../src/listen/stream.rs"]
mod stream;
#[allow(dead_code, unreachable_pub)]
#[path = "../../../src/ws/mod.rs"]
mod ws;

mod registry;

/// Where the driver looks for it.
mod listen {
    pub(crate) use crate::stream::Stream;
}

use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::process::{Command, ExitCode};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use crate::limits::Limits;
use crate::registry::memory::Memory;
use crate::ring::Ring;
use crate::route::key::{KeySource, RequestFacts, find_key};
use crate::route::{HostPattern, Learn, OnRemoved, PathPattern, RouteSettings, Router};
use crate::stream::Stream;
use crate::ws::RelayPolicy;
use crate::ws::clock::{Tick, Ticks};
use crate::ws::connection::{Connection, Facts, Names};
use crate::ws::driver::{Driver, Nonce, RelayCounts};
use crate::ws::frame::ReservedBits;
use crate::ws::relay::Direction::{self, FromBackend, FromClient};
use crate::ws::relay::{Relay, RelayLimits, Step};
use crate::ws::table::{READ_BYTES, Table};
use http::HeaderMap;
use tokio::net::{TcpListener, TcpStream};

/// Does something so many times.
type Scenario = fn(usize);

const SCENARIOS: [(&str, Scenario); 12] = [
    ("text_from_client", text_from_client),
    ("text_from_backend", text_from_backend),
    ("hundred_in_one_read", hundred_in_one_read),
    ("fragments_of_7_bytes", fragments_of_7_bytes),
    ("reads_of_7_bytes", reads_of_7_bytes),
    ("large_in_four_reads", large_in_four_reads),
    ("injected_between_two", injected_between_two),
    ("ping_and_pong", ping_and_pong),
    ("ping_of_our_own", ping_of_our_own),
    ("route_and_key", route_and_key),
    ("ring_owner", ring_owner),
    ("driver_round_trip", driver_round_trip),
];

/// Repetitions under callgrind, few and many.
const FEW: usize = 200;
const MANY: usize = 1200;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => print_times(),
        ["count"] => return hold_counts(),
        ["run", name, times] => scenario(name)(times.parse().unwrap()),
        _ => {
            println!("usage: relay-bench [count | run SCENARIO TIMES]");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn scenario(name: &str) -> Scenario {
    SCENARIOS.iter().find(|(known, _)| *known == name).expect("a scenario of that name").1
}

fn print_times() {
    for (name, scenario) in SCENARIOS {
        let mut times = 1;
        while taken(scenario, times) < Duration::from_millis(20) {
            times *= 2;
        }
        let difference = best(scenario, 2 * times).saturating_sub(best(scenario, times));
        println!("{name:<28} {:>11.1} ns", difference.as_secs_f64() * 1e9 / times as f64);
    }
}

/// The best of some runs: what disturbs a run makes it slower, never faster.
fn best(scenario: Scenario, times: usize) -> Duration {
    (0..10).map(|_| taken(scenario, times)).min().unwrap_or_default()
}

fn taken(scenario: Scenario, times: usize) -> Duration {
    let began = Instant::now();
    scenario(times);
    began.elapsed()
}

fn hold_counts() -> ExitCode {
    let mut limits = Limits::read();
    for (name, _) in SCENARIOS {
        let difference = instructions(name, MANY).saturating_sub(instructions(name, FEW));
        let repetitions = (MANY - FEW) as u64;
        let each = (difference + repetitions / 2) / repetitions;
        println!("{}", limits.hold(name, each, "instructions"));
    }
    match limits.settle() {
        Ok(()) => ExitCode::SUCCESS,
        Err(exceeded) => {
            println!("\n{exceeded}");
            ExitCode::FAILURE
        }
    }
}

/// What a whole run of this program executes.
fn instructions(name: &str, times: usize) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(std::env::current_exe().unwrap()).args(["run", name, &times.to_string()]);
    let ran = valgrind.output().expect("valgrind is installed");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{name}: {said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    collected.expect("callgrind tells its sum").1.trim().parse().unwrap()
}

/// The payload of a small message.
const PAYLOAD: [u8; 64] = [b'x'; 64];
const TEXT: u8 = 0x81;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
const PING_SECONDS: u32 = 30;
const OUR_PING: [u8; 8] = *b"steadily";

const LIMITS: RelayLimits = RelayLimits {
    idle: Ticks::from_secs(0),
    ping: Ticks::from_secs(PING_SECONDS),
    age: Ticks::from_secs(0),
    max_message_bytes: 16 * 1024 * 1024,
    reserved: ReservedBits::None,
};

fn relay() -> Relay {
    Relay::new(LIMITS, OUR_PING, Tick::default())
}

/// A frame of at most 125 bytes, as the source of a direction writes it. The mask is zero.
fn frame(direction: Direction, first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    let head: &[u8] = match direction {
        FromClient => &[first, 0x80 | length, 0, 0, 0, 0],
        FromBackend => &[first, length],
    };
    [head, payload].concat()
}

/// One read, as the driver takes it apart; somebody's message waits if `message` does.
fn carry(relay: &mut Relay, direction: Direction, bytes: &[u8], mut message: bool, now: Tick) {
    let mut bytes = black_box(bytes);
    while !bytes.is_empty() {
        while let Some(frame) = relay.insert(direction, [0; 4], "") {
            black_box(frame.as_ref());
        }
        if message && relay.takes_message() {
            black_box(&bytes);
            message = false;
        }
        match relay.step(direction, bytes, message, now) {
            Step::Pass(length) => {
                black_box(&bytes[..length]);
                bytes = &bytes[length..];
            }
            Step::Swallow(length) => bytes = &bytes[length..],
            Step::Keep => unreachable!("every read here ends where it can be judged"),
        }
    }
}

fn text_from_client(times: usize) {
    carry_often(FromClient, &[&frame(FromClient, TEXT, &PAYLOAD)], times);
}

fn text_from_backend(times: usize) {
    carry_often(FromBackend, &[&frame(FromBackend, TEXT, &PAYLOAD)], times);
}

fn hundred_in_one_read(times: usize) {
    let read = frame(FromClient, TEXT, &PAYLOAD).repeat(100);
    carry_often(FromClient, &[&read], times);
}

/// A message of 64 bytes in ten frames, all in one read.
fn fragments_of_7_bytes(times: usize) {
    let pieces: Vec<&[u8]> = PAYLOAD.chunks(7).collect();
    let fragments = pieces.iter().enumerate().map(|(number, piece)| {
        let fin = if number + 1 == pieces.len() { 0x80 } else { 0 };
        frame(FromClient, fin | u8::from(number == 0), piece)
    });
    carry_often(FromClient, &[&fragments.collect::<Vec<_>>().concat()], times);
}

/// A message of 64 bytes in one frame, in ten reads.
fn reads_of_7_bytes(times: usize) {
    let frame = frame(FromClient, TEXT, &PAYLOAD);
    carry_often(FromClient, &frame.chunks(7).collect::<Vec<_>>(), times);
}

fn large_in_four_reads(times: usize) {
    let length = 4 * READ_BYTES - 10;
    let mut message = vec![0x82, 127];
    message.extend((length as u64).to_be_bytes());
    message.resize(4 * READ_BYTES, b'x');
    carry_often(FromBackend, &message.chunks(READ_BYTES).collect::<Vec<_>>(), times);
}

fn carry_often(direction: Direction, reads: &[&[u8]], times: usize) {
    let mut relay = relay();
    let now = Tick::default();
    for _ in 0..times {
        for read in reads {
            carry(&mut relay, direction, read, false, now);
        }
    }
    let messages = usize::try_from(relay.take_passed(direction).messages).unwrap();
    assert_eq!(messages % times, 0, "whole messages");
}

/// The first message's end comes in the same read as the second message.
fn injected_between_two(times: usize) {
    let two = frame(FromBackend, TEXT, &PAYLOAD).repeat(2);
    let (begin, rest) = two.split_at(10);
    let mut relay = relay();
    let now = Tick::default();
    for _ in 0..times {
        carry(&mut relay, FromBackend, begin, false, now);
        carry(&mut relay, FromBackend, rest, true, now);
    }
}

/// A ping of the backend and its client's pong.
fn ping_and_pong(times: usize) {
    let ping = frame(FromBackend, PING, b"are you there");
    let pong = frame(FromClient, PONG, b"are you there");
    let mut relay = relay();
    let now = Tick::default();
    for _ in 0..times {
        carry(&mut relay, FromBackend, &ping, false, now);
        carry(&mut relay, FromClient, &pong, false, now);
    }
}

/// A silent client is pinged and answers.
fn ping_of_our_own(times: usize) {
    let pong = frame(FromClient, PONG, &OUR_PING);
    let mut relay = relay();
    let mut now = Tick::default();
    for _ in 0..times {
        now = now + Ticks::from_secs(PING_SECONDS);
        relay.tick(now);
        let ping = relay.insert(FromBackend, [0; 4], "").expect("the client was silent");
        black_box(ping.as_ref());
        carry(&mut relay, FromClient, &pong, false, now);
        black_box(relay.next_tick(now));
    }
}

/// A browser's request, routed by host and path among twenty routes; the key is in its query.
fn route_and_key(times: usize) {
    let routes: Vec<_> = (0..20).map(route).collect();
    let router = Router::new(&routes);
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
        ("accept-language", "en-GB,en;q=0.5"),
        ("sec-websocket-version", "13"),
        ("cookie", "theme=dark; session=0123456789abcdef"),
    ] {
        headers.insert(name, value.parse().unwrap());
    }
    for _ in 0..times {
        let path = black_box("/rooms/7/live");
        let found = router.find(None, black_box(Some("chat.example.com:443")), path).unwrap();
        let request = RequestFacts {
            path,
            query: black_box(Some("token=abcdefgh&room=blue%20whale&v=2")),
            headers: &headers,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let key = find_key(&routes[found].key, &request).unwrap().unwrap();
        assert_eq!(black_box(key).key.as_str(), "blue whale");
    }
}

fn route(number: usize) -> RouteSettings {
    RouteSettings {
        name: format!("route-{number}"),
        listener: None,
        host: HostPattern::Exact("chat.example.com".to_owned()),
        path: PathPattern::Prefix(format!("/rooms/{number}/")),
        pool: "pool".to_owned(),
        key: vec![KeySource::Cookie("room".to_owned()), KeySource::Query("room".to_owned())],
        sticky_cookie: None,
        on_removed: OnRemoved::Drain,
        learn: Learn::Off,
        allowed_origins: Vec::new(),
        rooms: Vec::new(),
        max_connections: 0,
        body_timeout: Duration::ZERO,
        response_timeout: Duration::ZERO,
        relay: RelayPolicy {
            idle_timeout: Duration::ZERO,
            ping_interval: Duration::ZERO,
            max_age: Duration::ZERO,
            max_message: 0,
        },
    }
}

/// The home of a key among ten backends.
fn ring_owner(times: usize) {
    let ids: Vec<String> = (0..10).map(|number| format!("backend-{number}")).collect();
    let ring = Ring::new(ids.iter().map(|id| (id.as_str(), NonZeroU32::MIN)));
    for number in 0..times {
        let key = [b'r', b'0' + u8::try_from(number % 50).unwrap(), b'm'];
        black_box(ring.owner(black_box(&key)));
    }
}

/// A message through the driver to a backend, and its echo: with the runtime's own instructions,
/// and those of the two ends, which read and write blocking.
fn driver_round_trip(times: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, near_client) = pair().await;
        let (backend, near_backend) = pair().await;
        let table = Rc::new(Table::new(0, Arc::<Memory>::default()));
        let entry = table.enter(Facts {
            names: Arc::new(Names { route: "route".into(), pool: "pool".into() }),
            key: None,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST).into(),
            since: SystemTime::UNIX_EPOCH.into(),
        });
        let connection = table.get(entry.connection().serial).unwrap();
        let mut driver = Driver::<()>::new(
            entry,
            LIMITS,
            (Stream::Tcp(near_client), Vec::new()),
            (Stream::Tcp(near_backend), Vec::new()),
            Arc::new(RelayCounts::default()),
            Nonce { ping: OUR_PING, mask: [0; 4] },
        );
        let mut ends = Ends::new(client, backend, connection);
        poll_fn(|context| {
            let polled = Pin::new(&mut driver).poll(context);
            assert!(polled.is_pending(), "nobody ends it");
            ends.go_on();
            if ends.echoes < times { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    });
}

/// A connection over loopback: its far end, blocking, and its near one.
async fn pair() -> (std::net::TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    far.set_nodelay(true).unwrap();
    let near = listener.accept().await.unwrap().0;
    near.set_nodelay(true).unwrap();
    (far, near)
}

/// A client that sends a message when it has the last one back, and a backend that echoes.
struct Ends {
    client: std::net::TcpStream,
    backend: std::net::TcpStream,
    connection: Rc<Connection>,
    message: Vec<u8>,
    echo: Vec<u8>,
    sent: u64,
    echoed: u64,
    echoes: usize,
}

impl Ends {
    fn new(
        client: std::net::TcpStream,
        backend: std::net::TcpStream,
        connection: Rc<Connection>,
    ) -> Self {
        let (message, echo) =
            (frame(FromClient, TEXT, &PAYLOAD), frame(FromBackend, TEXT, &PAYLOAD));
        let (sent, echoed, echoes) = (0, 0, 0);
        let mut ends = Self { client, backend, connection, message, echo, sent, echoed, echoes };
        ends.send();
        ends
    }

    fn send(&mut self) {
        self.client.write_all(&self.message).unwrap();
        self.sent += 1;
    }

    /// Takes up what the driver has written, if it has.
    fn go_on(&mut self) {
        let mut buffer = [0; 128];
        let passed = |direction| self.connection.counts(direction).0;
        if passed(FromBackend) == self.sent {
            self.client.read_exact(&mut buffer[..self.echo.len()]).unwrap();
            self.echoes += 1;
            self.send();
        } else if passed(FromClient) > self.echoed {
            self.echoed += 1;
            self.backend.read_exact(&mut buffer[..self.message.len()]).unwrap();
            self.backend.write_all(&self.echo).unwrap();
        }
    }
}
