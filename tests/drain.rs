//! Draining a backend: what goes there, what is closed and when, and where it comes back.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::http::{Answer, get, read_head, request};
use support::named::{self, Named};
use support::scripted::{Scripted, switching};
use support::ws::{self, CLOSE, TEXT, Ws, read_frame, unmasked};
use support::{Proxy, config, eventually, send, within};

/// What backends of rooms see together: where the members of each room are.
#[derive(Default)]
struct Rooms {
    members: Mutex<HashMap<String, BTreeMap<&'static str, usize>>>,
    /// Rooms that were on two backends at once, with who had members there.
    torn: Mutex<Vec<(String, Vec<&'static str>)>>,
    /// Which rooms each backend has had since the start.
    seen: Mutex<HashMap<&'static str, HashSet<String>>>,
}

impl Rooms {
    fn enter(&self, room: &str, backend: &'static str) {
        self.seen.lock().unwrap().entry(backend).or_default().insert(room.to_owned());
        let mut all = self.members.lock().unwrap();
        let at = all.entry(room.to_owned()).or_default();
        *at.entry(backend).or_insert(0) += 1;
        if at.len() > 1 {
            let at = at.keys().copied().collect();
            self.torn.lock().unwrap().push((room.to_owned(), at));
        }
    }

    fn leave(&self, room: &str, backend: &'static str) {
        let mut all = self.members.lock().unwrap();
        let at = all.get_mut(room).unwrap();
        *at.get_mut(backend).unwrap() -= 1;
        at.retain(|_, members| *members > 0);
    }

    fn at(&self, backend: &str) -> BTreeSet<String> {
        let all = self.members.lock().unwrap();
        let there = all.iter().filter(|(_, at)| at.contains_key(backend));
        there.map(|(room, _)| room.clone()).collect()
    }

    fn had(&self, backend: &str, room: &str) -> bool {
        let seen = self.seen.lock().unwrap();
        seen.get(backend).is_some_and(|rooms| rooms.contains(room))
    }
}

/// A backend whose connections are members of rooms, and which greets each with its id. Its health
/// answers may say that it goes.
fn room_server(id: &'static str, rooms: &Arc<Rooms>, going: &Arc<AtomicBool>) -> Scripted {
    let (rooms, going) = (Arc::clone(rooms), Arc::clone(going));
    Scripted::start(move |stream| {
        let head = read_head(&stream);
        let target = head.split(' ').nth(1).unwrap();
        if target == "/health" {
            let says = if going.load(Ordering::SeqCst) { "Steadfast-Drain: yes\r\n" } else { "" };
            send(
                &stream,
                format!("HTTP/1.1 503 Busy\r\n{says}Content-Length: 0\r\n\r\n").as_bytes(),
            );
            return;
        }
        let room = target.split_once("room=").map_or("", |(_, room)| room);
        rooms.enter(room, id);
        serve(&stream, id);
        rooms.leave(room, id);
        // Only now: whoever sees the end finds the room left.
        drop(stream);
    })
}

fn serve(stream: &TcpStream, id: &str) {
    send(stream, &[switching("").as_bytes(), &unmasked(TEXT, id)].concat());
    while let Ok(frame) = read_frame(stream) {
        if frame.opcode == CLOSE {
            return;
        }
    }
}

/// A Close that a client was sent.
struct Closed {
    room: String,
    backend: String,
    code: u16,
    at: Instant,
}

/// Clients that come back at once when they are closed, as long as the proxy is there.
struct Crowd {
    closes: Arc<Mutex<Vec<Closed>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn new(proxy: &Proxy, clients: usize, rooms: usize) -> Self {
        let closes = Arc::<Mutex<Vec<Closed>>>::default();
        let come = |number: usize| {
            let (closes, address) = (Arc::clone(&closes), proxy.address);
            let room = format!("room-{}", number % rooms);
            let first = ws::open(address, &format!("/?room={room}"));
            std::thread::spawn(move || stay(first, address, &room, &closes))
        };
        let clients = (0..clients).map(come).collect();
        Self { closes, clients }
    }

    fn closed(&self) -> usize {
        self.closes.lock().unwrap().len()
    }

    /// Waits for the clients to end, once the proxy is gone.
    fn end(self) -> Vec<Closed> {
        self.clients.into_iter().for_each(|client| client.join().unwrap());
        std::mem::take(&mut *self.closes.lock().unwrap())
    }
}

fn stay(mut ws: Ws, address: SocketAddr, room: &str, closes: &Mutex<Vec<Closed>>) {
    // An idle client waits for as long as the test takes.
    ws.stream.set_read_timeout(None).unwrap();
    while let Ok(greeting) = ws.try_read() {
        let backend = greeting.text();
        let Ok(frame) = ws.try_read() else { return };
        let (code, at) = (frame.close().0, Instant::now());
        closes.lock().unwrap().push(Closed { room: room.to_owned(), backend, code, at });
        ws.send_close(code, "");
        ws = ws::open(address, &format!("/?room={room}"));
        ws.stream.set_read_timeout(None).unwrap();
    }
}

fn post(proxy: &Proxy, path: &str) -> Answer {
    request(proxy.admin, "POST", path, &[], b"")
}

#[track_caller]
fn ask_for(proxy: &Proxy, what: &str, backend: &str) -> Value {
    let answer = post(proxy, &format!("/v1/pools/pool/backends/{backend}/{what}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

fn view(proxy: &Proxy, backend: &str) -> Value {
    let pools = proxy.json("/v1/pools");
    let backends = pools["pools"][0]["backends"].as_array().unwrap();
    backends.iter().find(|one| one["id"] == backend).unwrap().clone()
}

/// Waits until a backend's turns are over and nothing is there.
#[track_caller]
fn wait_until_drained(proxy: &Proxy, backend: &str) {
    eventually("the backend is drained", || {
        let view = view(proxy, backend);
        (view["drain"]["left"] == 0 && view["connections"] == 0).then_some(())
    });
}

struct Fleet {
    rooms: Arc<Rooms>,
    going: Arc<AtomicBool>,
    servers: Vec<(&'static str, Scripted)>,
}

impl Fleet {
    /// Of which the first may say that it goes.
    fn new() -> Self {
        let (rooms, going) = (Arc::default(), Arc::default());
        let never = Arc::<AtomicBool>::default();
        let servers = ["a", "b", "c"].map(|id| {
            let going = if id == "a" { &going } else { &never };
            (id, room_server(id, &rooms, going))
        });
        Self { rooms, going, servers: servers.into() }
    }

    fn proxy(&self, more: &[(&str, &str)]) -> Proxy {
        let backends: Vec<_> = self.servers.iter().map(|(id, one)| (*id, one.address)).collect();
        Proxy::start(&config(&backends, more))
    }

    #[track_caller]
    fn expect_whole_rooms(&self) {
        let torn = self.rooms.torn.lock().unwrap();
        assert!(torn.is_empty(), "on two backends at once: {torn:?}");
    }
}

const CLIENTS: usize = 500;
const ROOMS: usize = 100;
const SPAN: Duration = Duration::from_secs(4);

#[test]
fn rooms_are_closed_one_by_one_and_come_back_whole_elsewhere() {
    let fleet = Fleet::new();
    let more = [("pool", "drain_timeout = \"4s\""), ("server", "workers = 2")];
    let mut proxy = fleet.proxy(&more);
    let crowd = Crowd::new(&proxy, CLIENTS, ROOMS);
    let drained = fleet.rooms.at("a");
    assert!(drained.len() > ROOMS / 6, "{drained:?}");
    let began = Instant::now();
    let answer = ask_for(&proxy, "drain", "a");
    assert_eq!((&answer["state"], &answer["drain"]["by"][0]), (&"draining".into(), &"api".into()));
    // The first answer does not look like that of a drain that is over.
    assert_eq!(answer["drain"]["total"], drained.len());
    assert!(answer["drain"]["left"].as_u64() >= Some(drained.len() as u64 - 1), "{answer}");
    // New rooms go to the others, and those whose turn has not come are joined where they are.
    for number in 0..30 {
        let new = ws::open(proxy.address, &format!("/?room=new-{number}"));
        assert_ne!(new.read().text(), "a");
        new.send_close(1000, "");
    }
    wait_until_drained(&proxy, "a");
    assert!(began.elapsed() >= SPAN / 10 * 9);
    proxy.wait_for_metric("steadfast_connections", &[], CLIENTS as f64);
    assert_eq!(fleet.rooms.at("a"), BTreeSet::new());
    assert_eq!(proxy.metric("steadfast_backend_draining", &[("backend", "a")]), 1.0);
    let drains = [("pool", "pool"), ("reason", "api")];
    assert_eq!(proxy.metric("steadfast_drains_total", &drains), 1.0);
    let members = drained.len() * CLIENTS / ROOMS;
    let by = [("by", "proxy"), ("reason", "drained"), ("code", "1012")];
    proxy.wait_for_metric("steadfast_closes_total", &by, members as f64);
    for line in ["drain begins", "drain done"] {
        proxy.process.wait_for(line, |said| said.contains(line).then_some(()));
    }
    fleet.expect_whole_rooms();
    let answer = ask_for(&proxy, "undrain", "a");
    assert_eq!((&answer["state"], &answer["drain"]), (&"in_service".into(), &Value::Null));
    proxy.process.kill();

    let closes = crowd.end();
    assert_eq!(closes.len(), members);
    let rooms: BTreeSet<_> = closes.iter().map(|closed| closed.room.clone()).collect();
    assert_eq!(rooms, drained);
    assert!(closes.iter().all(|closed| closed.backend == "a" && closed.code == 1012));
    let mut tenths = [0; 12];
    let mut first_of = HashMap::new();
    for closed in &closes {
        let after = closed.at - began;
        let tenth = usize::try_from(after.as_millis() / (SPAN.as_millis() / 10)).unwrap();
        tenths[tenth.min(11)] += 1;
        let first: &mut Instant = first_of.entry(&closed.room).or_insert(closed.at);
        let apart = closed.at.max(*first) - closed.at.min(*first);
        assert!(apart < SPAN / 4, "{} was closed in pieces", closed.room);
    }
    assert!(tenths.iter().all(|closes| *closes <= members / 4), "{tenths:?}");
}

#[test]
fn a_drain_can_be_undone_in_the_middle() {
    let fleet = Fleet::new();
    let mut proxy = fleet.proxy(&[("pool", "drain_timeout = \"12s\"")]);
    let crowd = Crowd::new(&proxy, 90, 90);
    let before = fleet.rooms.at("a");
    ask_for(&proxy, "drain", "a");
    eventually("some are closed", || (crowd.closed() >= 5).then_some(()));
    let answer = ask_for(&proxy, "undrain", "a");
    assert_eq!(answer["drain"], Value::Null);
    proxy.process.wait_for("drain ends", |line| line.contains("drain ends").then_some(()));
    proxy.wait_for_metric("steadfast_connections", &[], 90.0);
    // One that was on its way may still have been closed; a third of the others would be by now.
    let settled = crowd.closed();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(crowd.closed() <= settled, "it goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    let stayed = fleet.rooms.at("a");
    // What was closed stays where it is; who was on his way when it was undone may be back.
    let moved = before.len() - stayed.len();
    assert!(moved <= settled && moved + 2 >= settled, "{moved} of {settled}");
    assert!(stayed.is_subset(&before) && !stayed.is_empty());
    // New rooms go there again.
    let home = (0..).map(|number| format!("new-{number}")).find(|room| {
        let new = ws::open(proxy.address, &format!("/?room={room}"));
        new.read().text() == "a"
    });
    assert!(home.is_some());
    fleet.expect_whole_rooms();
    proxy.process.kill();
    crowd.end();
}

#[test]
fn a_backend_says_by_its_health_answers_that_it_goes() {
    let fleet = Fleet::new();
    let health = "kind = \"http\"\ninterval = \"50ms\"\nlost_after = \"0s\"\npanic_threshold = 1.0";
    let proxy = fleet.proxy(&[("pool", "drain_timeout = \"500ms\""), ("health", health)]);
    let rooms = (0..20).map(|number| ws::open(proxy.address, &format!("/?room={number}")));
    let clients: Vec<(Ws, String)> = rooms
        .map(|ws| {
            let id = ws.read().text();
            (ws, id)
        })
        .collect();
    fleet.going.store(true, Ordering::SeqCst);
    for (client, backend) in &clients {
        if backend == "a" {
            client.answer_close(1012);
        }
    }
    let drain = view(&proxy, "a");
    assert_eq!(
        (&drain["state"], &drain["drain"]["by"][0]),
        (&"draining".into(), &"backend".into())
    );
    // Not even in a panic, in which all of them are.
    assert_eq!(proxy.metric("steadfast_pool_panicking", &[]), 1.0);
    for number in 20..50 {
        assert_ne!(ws::open(proxy.address, &format!("/?room={number}")).read().text(), "a");
    }
    ask_for(&proxy, "drain", "a");
    fleet.going.store(false, Ordering::SeqCst);
    eventually("one cause is left", || {
        (view(&proxy, "a")["drain"]["by"] == serde_json::json!(["api"])).then_some(())
    });
    ask_for(&proxy, "undrain", "a");
    assert_eq!(proxy.state("a"), "out_of_service");
}

#[test]
fn a_backend_that_refuses_while_its_connections_live_is_drained() {
    let backends: Vec<Named> = ["a", "b"].into_iter().map(Named::start).collect();
    let health = "kind = \"tcp\"\ninterval = \"50ms\"\nlost_after = \"200ms\"";
    let more = [("pool", "drain_timeout = \"3s\""), ("health", health)];
    let proxy = Proxy::start(&config(&named::addresses(&backends), &more));
    let clients: Vec<Ws> =
        (0..20).map(|number| ws::open(proxy.address, &format!("/?room={number}"))).collect();
    let at_a: Vec<Ws> = clients.into_iter().filter(|ws| ws.read().text() == "a").collect();
    backends[0].shut_door();
    eventually("it is drained", || (proxy.state("a") == "draining").then_some(()));
    assert_eq!(view(&proxy, "a")["drain"]["by"], serde_json::json!(["refusing"]));
    // It takes longer than until it would be lost, were they not alive.
    at_a.iter().for_each(|client| client.answer_close(1012));
    // With nothing there it is like any other that is out.
    eventually("it is lost", || (proxy.state("a") == "lost").then_some(()));
    assert_eq!(view(&proxy, "a")["drain"], Value::Null);
    backends[0].open_door();
    eventually("it is back", || (proxy.state("a") == "in_service").then_some(()));
}

#[test]
fn until_its_turn_everything_of_a_room_follows_it() {
    let fleet: Vec<Named> = ["a", "b", "c"].into_iter().map(Named::start).collect();
    let proxy = Proxy::start(&config(&named::addresses(&fleet), &[]));
    let first = ws::open(proxy.address, "/?room=1");
    let home = first.read().text();
    let began = ask_for(&proxy, "drain", &home)["drain"].clone();
    let time = |field: &str| began[field].as_u64().unwrap();
    assert!(time("until").abs_diff(time("since") + 60_000) < 5000, "{began}");
    // The only room there, which is first in line and is closed at once.
    first.answer_close(1012);
    let again = ws::open(proxy.address, "/?room=1");
    let next = again.read().text();
    assert_ne!(next, home);
    assert_eq!(get(proxy.address, "/?room=1").text(), next, "a request goes along");
    ask_for(&proxy, "undrain", &home);
    assert_eq!(get(proxy.address, "/?room=1").text(), next, "where it is it stays");

    // Of many rooms one is closed at once, and the others in the course of a minute.
    let rooms: Vec<String> = (0..60).map(|number| format!("/?room=many-{number}")).collect();
    let clients: Vec<Ws> = rooms.iter().map(|path| ws::open(proxy.address, path)).collect();
    let homes: Vec<String> = clients.iter().map(|client| client.read().text()).collect();
    ask_for(&proxy, "drain", "a");
    let stays = |path: &str| {
        ws::open(proxy.address, path).read().text() == "a" && get(proxy.address, path).text() == "a"
    };
    let there = rooms.iter().zip(&homes).filter(|(_, home)| *home == "a");
    let staying = there.clone().filter(|(path, _)| stays(path)).count();
    assert!(staying + 3 >= there.count() && staying > 3, "{staying} of {homes:?}");
}

#[test]
fn a_handshake_that_is_answered_after_its_turn_begins_again_elsewhere() {
    let backends: Vec<Named> = ["a", "b"].into_iter().map(Named::start).collect();
    let more = [("pool", "drain_timeout = \"0s\""), ("server", "workers = 2")];
    let proxy = Proxy::start(&config(&named::addresses(&backends), &more));
    let first = ws::open(proxy.address, "/?room=1");
    let home = first.read().text();
    let slow = backends.iter().find(|backend| backend.id == home).unwrap();
    slow.set_delay(Duration::from_millis(700));
    let address = proxy.address;
    let late = std::thread::spawn(move || ws::open(address, "/?room=1").read().text());
    eventually("the second asks as well", || (slow.handshakes() == 2).then_some(()));
    ask_for(&proxy, "drain", &home);
    first.answer_close(1012);
    // Who comes now waits for that handshake, which is about to be answered there.
    let next = ws::open(proxy.address, "/?room=1").read().text();
    assert_ne!(next, home);
    assert_eq!(late.join().unwrap(), next);
    assert_eq!(slow.handshakes(), 2);
    wait_until_drained(&proxy, &home);
}

#[test]
fn connections_without_a_place_are_closed_one_by_one() {
    for (balance, key) in [("round_robin", "room=same"), ("consistent_hash", "none=at-all")] {
        let fleet = Fleet::new();
        let balance = format!("balance = \"{balance}\"\ndrain_timeout = \"1s\"");
        let proxy = fleet.proxy(&[("pool", &balance)]);
        let open = |_| ws::open(proxy.address, &format!("/?{key}"));
        let clients: Vec<Ws> = (0..60).map(open).collect();
        let homes: Vec<String> = clients.iter().map(|client| client.read().text()).collect();
        let there = homes.iter().filter(|home| *home == "a").count();
        assert!(there > 5, "{homes:?}");
        let began = Instant::now();
        ask_for(&proxy, "drain", "a");
        let threads = clients.into_iter().zip(homes).filter(|(_, home)| home == "a");
        let closing = |(client, _): (Ws, String)| {
            std::thread::spawn(move || {
                client.expect_close(1012);
                let after = began.elapsed();
                client.send_close(1012, "");
                client.expect_end();
                after
            })
        };
        let threads: Vec<_> = threads.map(closing).collect();
        let times = threads.into_iter().map(|thread| thread.join().unwrap());
        let early = times.filter(|after| *after < Duration::from_millis(500)).count();
        assert!(early < there * 3 / 4, "{early} of {there} in the first half");
        for _ in 0..20 {
            assert_ne!(ws::open(proxy.address, &format!("/?{key}")).read().text(), "a");
        }
        wait_until_drained(&proxy, "a");
    }
}

#[test]
fn without_a_time_all_goes_at_once() {
    let fleet = Fleet::new();
    let proxy = fleet.proxy(&[("pool", "drain_timeout = \"0s\"")]);
    let clients: Vec<Ws> =
        (0..30).map(|number| ws::open(proxy.address, &format!("/?room={number}"))).collect();
    ask_for(&proxy, "drain", "b");
    for client in clients.iter().filter(|client| client.read().text() == "b") {
        client.answer_close(1012);
    }
    within(Duration::from_secs(5), "it is over", || {
        (view(&proxy, "b")["connections"] == 0).then_some(())
    });
    fleet.expect_whole_rooms();
}

#[test]
fn learnt_sessions_stay_until_their_turn_and_then_begin_anew() {
    let backends: Vec<Named> = ["a", "b", "c"].into_iter().map(Named::start).collect();
    let more = [("route", "learn = \"socketio\""), ("pool", "drain_timeout = \"3s\"")];
    let config = config(&named::addresses(&backends), &more);
    let proxy = Proxy::start(&config.replace("key = \"query:room\"\n", ""));
    let polling = "/socket.io/?EIO=4&transport=polling";
    let open = || {
        let packet = get(proxy.address, polling).text();
        let packet: Value = serde_json::from_str(packet.strip_prefix('0').unwrap()).unwrap();
        packet["sid"].as_str().unwrap().to_owned()
    };
    let at = |session: &str| get(proxy.address, &format!("{polling}&sid={session}")).text();
    let sessions: Vec<String> = (0..60).map(|_| open()).collect();
    let of_a: Vec<&String> = sessions.iter().filter(|session| session.starts_with("a-")).collect();
    assert!(of_a.len() > 5);
    assert_eq!(ask_for(&proxy, "drain", "a")["drain"]["total"], of_a.len());
    let staying = of_a.iter().filter(|session| at(session) == "a").count();
    assert!(staying > of_a.len() / 2, "{staying} of {}", of_a.len());
    for _ in 0..20 {
        assert!(!open().starts_with("a-"), "new ones begin elsewhere");
    }
    eventually("all are forgotten", || of_a.iter().all(|session| at(session) != "a").then_some(()));
    let others = sessions.iter().filter(|session| !session.starts_with("a-"));
    others.for_each(|session| assert_eq!(at(session), &session[..1]));
}

#[test]
fn what_is_not_there_can_not_be_drained() {
    let fleet = Fleet::new();
    let proxy = fleet.proxy(&[]);
    for path in ["/v1/pools/pool/backends/z/drain", "/v1/pools/none/backends/a/undrain"] {
        let answer = post(&proxy, path);
        assert_eq!(answer.status, 404, "{}", answer.text());
    }
    let answer = get(proxy.admin, "/v1/pools/pool/backends/a/drain");
    assert_eq!(answer.status, 405);
    let again = [ask_for(&proxy, "drain", "a"), ask_for(&proxy, "drain", "a")];
    assert_eq!(again[0]["drain"]["since"], again[1]["drain"]["since"]);
    assert!(!fleet.rooms.had("a", "any"));
}
