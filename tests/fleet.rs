//! A fleet as its users have it: proxies that share a Redis, backends that talk, and whoever publishes
//! past them.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "in tests a panic is the report")]

mod support;

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::http::{header, read_head, request};
use support::redis::{Answer, Client, Redis, cluster};
use support::scripted::{Handed, Scripted, switching};
use support::ws::{self, BINARY, Frame, Ws};
use support::{Process, Proxy, config, eventually, python, root, run_peer, send};

/// A proxy of the fleet of that Redis.
fn proxy(redis: &Redis, backends: &[(&str, SocketAddr)], more: &[(&str, &str)]) -> Proxy {
    proxy_at(std::slice::from_ref(redis), backends, more)
}

/// A proxy of the fleet of a Redis, or of the masters of a Cluster.
fn proxy_at(masters: &[Redis], backends: &[(&str, SocketAddr)], more: &[(&str, &str)]) -> Proxy {
    let more = [&[("server", "workers = 2")], more].concat();
    let config = config(backends, &more);
    let registry = match masters {
        [redis] => format!("url = \"{}\"", redis.url()),
        members => {
            let urls: Vec<String> =
                members.iter().map(|member| format!("\"{}\"", member.url())).collect();
            format!("cluster = [{}]", urls.join(", "))
        }
    };
    let proxy = Proxy::start(&format!("{config}\n[registry]\n{registry}\njoin_wait = \"5s\"\n"));
    proxy.wait_for_metric("steadfast_registry_up", &[], 1.0);
    proxy
}

/// Waits until so many proxies have subscribed the channel.
#[track_caller]
fn subscribed(client: &mut Client, channel: &str, proxies: i64) {
    eventually(channel, || (client.subscribers(channel) == proxies).then_some(()));
}

/// The same in a Cluster, where any of the masters may have the channel.
#[track_caller]
fn subscribed_in(masters: &[Redis], channel: &str, proxies: i64) {
    let subscribers =
        |master: &Redis| match master.client().ask(&["PUBSUB", "SHARDNUMSUB", channel]) {
            Answer::List(list) => list[1].number(),
            other => panic!("{other:?}"),
        };
    eventually(channel, || (masters.iter().map(subscribers).sum::<i64>() == proxies).then_some(()));
}

/// A peer's script in Node, with its arguments.
fn node(script: &str, arguments: &[String]) -> Process {
    let folder = root().join("tests/peers");
    assert!(folder.join("node_modules").exists(), "run scripts/test once: it installs ws");
    let mut command = Command::new("node");
    Process::start(script, command.current_dir(folder).arg(script).args(arguments))
}

const CLIENTS: usize = 300;
const ROOMS: usize = 20;
/// Rounds of messages of each publisher, one to each room, and how long each waits between two.
const ROUNDS: usize = 60;
const PAUSE_MS: u64 = 80;

/// Publishes with `redis-cli`, as a shell would; gives what it answers.
fn publish_by_command_line(masters: &[Redis]) -> String {
    let mut command = Command::new("redis-cli");
    let publish = if masters.len() == 1 { "PUBLISH" } else { "SPUBLISH" };
    // With -c it goes where the channel is.
    command
        .args(["-c", "-p", &masters[0].port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for n in 0..ROUNDS {
        for room in 0..ROOMS {
            let text = json!({ "by": "redis-cli", "n": n }).to_string();
            let message = json!({ "text": text });
            writeln!(input, "{publish} steadfast:to:room:room-{room} '{message}'").unwrap();
        }
        // The pace of the talk: the backends speak in between.
        std::thread::sleep(Duration::from_millis(PAUSE_MS));
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let output = String::from_utf8(output.stdout).unwrap();
    // It tells of each other member that it goes to.
    let answers = output.lines().filter(|line| !line.starts_with("->"));
    answers.map(|line| format!("{line}\n")).collect()
}

#[test]
fn each_member_has_each_message_once_and_in_order_while_backends_talk() {
    let redis = Redis::start();
    let end = "{\"text\": \"end\"}";
    each_has_each_message(
        std::slice::from_ref(&redis),
        |channel| subscribed(&mut redis.client(), channel, 2),
        || assert_eq!(redis.client().publish("steadfast:to:all", end), 2),
    );
}

#[test]
fn in_a_cluster_each_member_has_each_message_once_and_in_order_while_backends_talk() {
    let masters = cluster(3);
    let command = ["SPUBLISH", "steadfast:to:all", "{\"text\": \"end\"}"];
    each_has_each_message(
        &masters,
        |channel| subscribed_in(&masters, channel, 2),
        || {
            let mut answers = masters.iter().map(|master| master.client().ask(&command));
            assert!(answers.any(|answer| matches!(answer, Answer::Number(2))));
        },
    );
}

/// Two such crowds at a time would measure the machine.
static ALONE: Mutex<()> = Mutex::new(());

/// `subscribed` waits until both proxies have a channel, and `end` tells all clients that nothing more
/// comes.
fn each_has_each_message(masters: &[Redis], subscribed: impl Fn(&str), end: impl FnOnce()) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let backends: Vec<(Process, SocketAddr)> = (0..3)
        .map(|_| {
            let mut process = node("fleet_backend.mjs", &[]);
            let port: u16 = process.wait_for("listening", |line| {
                line.split_once("listening on ")?.1.trim().parse().ok()
            });
            (process, SocketAddr::from(([127, 0, 0, 1], port)))
        })
        .collect();
    let names = ["a", "b", "c"].into_iter().zip(&backends);
    let addresses: Vec<_> = names.map(|(id, (_, address))| (id, *address)).collect();
    let proxies = [(); 2].map(|()| proxy_at(masters, &addresses, &[]));

    let publishers = "node,python,redis-cli";
    let mut arguments = [CLIENTS.to_string(), ROOMS.to_string(), publishers.to_owned()].to_vec();
    arguments.push(ROUNDS.to_string());
    arguments.extend(proxies.iter().map(|proxy| format!("ws://{}/", proxy.address)));
    let mut clients = node("fleet_clients.mjs", &arguments);
    clients.wait_for("all are open", |line| (line == "open").then_some(()));
    for proxy in &proxies {
        let pools = proxy.json("/v1/pools");
        for backend in pools["pools"][0]["backends"].as_array().unwrap() {
            assert!(backend["connections"].as_u64().unwrap() > 0, "{backend}");
        }
    }
    (0..ROOMS).for_each(|room| subscribed(&format!("steadfast:to:room:room-{room}")));

    let began = Instant::now();
    let urls: Vec<String> = masters.iter().map(Redis::url).collect();
    let (url, pause) = (urls.join(","), PAUSE_MS.to_string());
    let (rooms, rounds) = (ROOMS.to_string(), ROUNDS.to_string());
    let by =
        |program: &Path, script: &str| run_peer(program, &[script, &url, &rooms, &rounds, &pause]);
    std::thread::scope(|scope| {
        let node = scope.spawn(|| by(Path::new("node"), "publisher.mjs"));
        let python = scope.spawn(|| by(&python(), "publisher.py"));
        let command_line = publish_by_command_line(masters);
        assert_eq!(node.join().unwrap().trim(), "[2]", "both proxies have each");
        assert_eq!(python.join().unwrap().trim(), "[2]", "both proxies have each");
        let all = "2\n".repeat(ROUNDS * ROOMS);
        assert!(command_line == all, "both proxies have each: {command_line}");
    });
    let published = began.elapsed();
    clients.wait_for("all have all", |line| (line == "complete").then_some(()));
    let complete = began.elapsed();
    end();
    let heard: Value = clients.wait_for("the end", |line| {
        line.starts_with('{').then(|| serde_json::from_str(line).unwrap())
    });
    eprintln!("published for {published:?}, complete after {complete:?}: {heard}");
    assert!(clients.wait_for_exit().success());
    assert_eq!(heard["published"], CLIENTS * ROUNDS * 3);
    // The backends were not silent meanwhile.
    assert!(heard["from_backends"].as_u64().unwrap() > 3000, "{heard}");
    assert!(heard["between"].as_u64().unwrap() > 300, "{heard}");
    for proxy in &proxies {
        assert_eq!(proxy.metric("steadfast_undeliverable_messages_total", &[]), 0.0);
        assert_eq!(proxy.metric("steadfast_registry_dropped_messages_total", &[]), 0.0);
        assert_eq!(proxy.metric("steadfast_registry_outages_total", &[]), 0.0);
    }
}

/// Whoever has seen that somebody is in a room may publish to it at once.
#[test]
fn a_member_misses_nothing_from_the_moment_others_know_of_it() {
    const ROOMS: usize = 300;
    let redis = Redis::start();
    let backend = Scripted::start(|stream| {
        let head = read_head(&stream);
        let (_, room) = head.split_once("room=").unwrap();
        let room = room.split(' ').next().unwrap();
        send(&stream, switching(&format!("Steadfast-Join: joined-{room}\r\n")).as_bytes());
        // Until the client has gone.
        support::read_to_end(&stream);
    });
    let proxy = proxy(&redis, &[("a", backend.address)], &[]);
    let mut publisher = redis.client();
    let mut publish = |channel: String| publisher.publish(&channel, "{\"text\": \"at once\"}");
    for number in 0..ROOMS {
        // By its backend: from the 101 on.
        let client = ws::open(proxy.address, &format!("/?room={number}"));
        assert_eq!(publish(format!("steadfast:to:room:joined-{number}")), 1, "{number}");
        client.expect_text("at once");
        // By the API: from its answer on.
        let listed = proxy.json(&format!("/v1/connections?key={number}"));
        let id = listed["connections"][0]["id"].as_str().unwrap();
        let member = format!("/v1/rooms/put-{number}/members/{id}");
        assert_eq!(request(proxy.admin, "PUT", &member, &[], b"").status, 204);
        assert_eq!(publish(format!("steadfast:to:room:put-{number}")), 1, "{number}");
        client.expect_text("at once");
    }
}

/// Two proxies before one scripted backend.
struct World {
    redis: Redis,
    proxies: [Proxy; 2],
    handed: Handed,
    _backend: Scripted,
}

/// A client, the backend's end of its connection, and its id.
struct Member {
    client: Ws,
    backend: TcpStream,
    id: String,
}

impl World {
    fn new() -> Self {
        let redis = Redis::start();
        let (backend, handed) = Scripted::opening();
        let rooms = [("route", "rooms = [\"lobby\", \"of {key}\"]")];
        let proxies = [(); 2].map(|()| proxy(&redis, &[("a", backend.address)], &rooms));
        Self { redis, proxies, handed, _backend: backend }
    }

    fn open(&self, proxy: usize, key: &str) -> Member {
        let client = ws::open(self.proxies[proxy].address, &format!("/?room={key}"));
        let (backend, head) = self.handed.next();
        let id = header(&head, "steadfast-connection").unwrap().to_owned();
        Member { client, backend, id }
    }
}

/// What stands before the dot.
fn proxy_of(id: &str) -> &str {
    id.split('.').next().unwrap()
}

#[test]
fn a_member_that_does_not_read_is_closed_and_the_others_are_not() {
    const MESSAGE: &str = "{\"binary\": \"";
    let world = World::new();
    let slow = world.open(0, "slow");
    let quick = [world.open(0, "x"), world.open(1, "y")];
    let payload = vec![7; 180_000];
    // 180,000 bytes, all of them 7, in base64.
    let message = format!("{MESSAGE}{}\"}}", "BwcH".repeat(60_000));
    let mut publisher = world.redis.client();
    let memory = world.proxies[0].memory_kib("VmRSS");
    let mut sent = 0;
    eventually("its queue is full", || {
        assert_eq!(publisher.publish("steadfast:to:room:lobby", &message), 2);
        sent += 1;
        for one in &quick {
            assert_eq!(one.client.read(), Frame::new(BINARY, payload.clone()));
        }
        let labels = [("reason", "queue_full")];
        let full = world.proxies[0].metric("steadfast_undeliverable_messages_total", &labels);
        (full == 1.0).then_some(())
    });
    // Nothing is kept for whoever is closed: what comes now is for the others alone.
    for _ in 0..50 {
        assert_eq!(publisher.publish("steadfast:to:room:lobby", &message), 2);
        for one in &quick {
            assert_eq!(one.client.read(), Frame::new(BINARY, payload.clone()));
        }
    }
    let grown = world.proxies[0].memory_kib("VmRSS").saturating_sub(memory);
    assert!(grown < 8 * 1024, "{grown} KiB more");
    let got = slow.client.read_to_slow_close(&Frame::new(BINARY, payload.clone()));
    assert!(got < sent, "{got} of {sent}");
    let slow = [("reason", "slow_client")];
    world.proxies[0].wait_for_metric("steadfast_closes_total", &slow, 1.0);
    assert_eq!(world.proxies[1].metric("steadfast_closes_total", &slow), 0.0);
}

#[test]
fn whatever_may_be_said_is_done_on_every_proxy() {
    let world = World::new();
    let (one, two) = (world.open(0, "k"), world.open(1, "k"));
    let other = world.open(1, "other");
    let mut publisher = world.redis.client();
    let mut publish = |channel: &str, message: &Value, proxies: i64| {
        let channel = format!("steadfast:to:{channel}");
        subscribed(&mut world.redis.client(), &channel, proxies);
        assert_eq!(publisher.publish(&channel, &message.to_string()), proxies, "{channel}");
    };
    // To all but some, by each way to say it.
    publish("room:lobby", &json!({ "text": "lobby", "except": [two.id] }), 2);
    publish("key:pool/k", &json!({ "text": "key", "except": [one.id, "x.1"] }), 2);
    publish("all", &json!({ "binary": "AP8=", "except": [other.id] }), 2);
    let unordered = |member: &Member, wanted: &[&[u8]]| {
        let mut got: Vec<_> = wanted.iter().map(|_| member.client.read().payload).collect();
        got.sort();
        assert_eq!(got, wanted);
    };
    unordered(&one, &[b"\x00\xff", b"lobby"]);
    unordered(&two, &[b"\x00\xff", b"key"]);
    unordered(&other, &[b"lobby"]);

    // Into a room that nobody was in, on both proxies, and out of it.
    publish("key:pool/k", &json!({ "join": ["new", "newer"] }), 2);
    publish("room:new", &json!({ "text": "joined" }), 2);
    one.client.expect_text("joined");
    two.client.expect_text("joined");
    let to_two = format!("proxy:{}", proxy_of(&two.id));
    publish(&to_two, &json!({ "leave": ["new"], "connection": two.id }), 1);
    let rooms = || world.proxies[1].json(&format!("/v1/connections/{}", two.id))["rooms"].clone();
    eventually("it has left", || (rooms() == json!(["lobby", "newer", "of k"])).then_some(()));
    // Its proxy is subscribed for a while yet, and has nobody to tell.
    publish("room:new", &json!({ "text": "left" }), 2);
    one.client.expect_text("left");
    publish(&to_two, &json!({ "text": "you", "connection": two.id }), 1);
    two.client.expect_text("you");

    // {"text": "é", "except": [..]} and {"binary": bytes} in MessagePack.
    let pack = |start: &[u8], id: &str| {
        let length = u8::try_from(id.len()).unwrap();
        [start, b"\xa6except\x91\xd9", &[length], id.as_bytes()].concat()
    };
    let mut raw = world.redis.client();
    let packed = pack("\u{e9}".as_bytes(), &other.id);
    let packed = [b"\x82\xa4text\xa2".as_slice(), &packed].concat();
    assert_eq!(raw.publish_bytes("steadfast:to:room:lobby", &packed), 2);
    one.client.expect_text("é");
    two.client.expect_text("é");
    assert_eq!(raw.publish_bytes("steadfast:to:all", b"\x81\xa6binary\xc4\x02\x00\xff"), 2);
    for member in [&one, &two, &other] {
        assert_eq!(member.client.read(), Frame::new(BINARY, b"\x00\xff"));
    }

    // A Close, behind what was said before.
    publish("room:of k", &json!({ "text": "last" }), 2);
    publish("room:of k", &json!({ "close": { "code": 4001, "reason": "over" } }), 2);
    for member in [&one, &two] {
        member.client.expect_text("last");
        assert_eq!(member.client.read().close(), (4001, "over".to_owned()));
    }
    publish("all", &json!({ "close": { "code": 1001 } }), 2);
    other.client.expect_close(1001);
}

#[test]
fn what_is_no_message_is_counted_on_every_proxy_and_changes_nothing() {
    let world = World::new();
    let members = [world.open(0, "k"), world.open(1, "k")];
    let mut publisher = world.redis.client();
    let own = format!("steadfast:to:proxy:{}", proxy_of(&members[0].id));
    subscribed(&mut publisher, "steadfast:to:room:lobby", 2);
    let count = |proxy: usize, reason: &str| {
        let labels = [("reason", reason)];
        world.proxies[proxy].metric("steadfast_undeliverable_messages_total", &labels)
    };
    let malformed: [&[u8]; 14] = [
        b"",
        b"hello",
        b"{",
        b"{}",
        b"[]",
        b"\"text\"",
        b"\xff\xfe",
        b"\x81\xa4text",
        br#"{"text": 1}"#,
        br#"{"text": "x", "binary": "AA=="}"#,
        br#"{"text": "x", "to": "y"}"#,
        br#"{"binary": "no base64"}"#,
        br#"{"close": {"code": 1005}}"#,
        br#"{"join": [""]}"#,
    ];
    for message in malformed {
        assert_eq!(publisher.publish_bytes("steadfast:to:room:lobby", message), 2);
    }
    // One that names nobody, and one that names whom its channel does not have.
    assert_eq!(publisher.publish(&own, r#"{"text": "x"}"#), 1);
    let named = json!({ "text": "x", "connection": members[0].id }).to_string();
    assert_eq!(publisher.publish("steadfast:to:room:lobby", &named), 2);
    // One that was there, or might have been.
    let gone = json!({ "text": "x", "connection": format!("{}z", members[0].id) }).to_string();
    assert_eq!(publisher.publish(&own, &gone), 1);
    assert_eq!(publisher.publish("steadfast:to:room:lobby", r#"{"text": "still here"}"#), 2);
    for member in &members {
        member.client.expect_text("still here");
    }
    let all = malformed.len() as f64 + 1.0;
    eventually("all are counted", || {
        (count(0, "malformed") == all + 1.0 && count(1, "malformed") == all).then_some(())
    });
    assert_eq!((count(0, "gone"), count(1, "gone")), (1.0, 0.0));
    let said = world.proxies[1].process.output();
    let dropped = said.lines().find(|line| line.contains("a published message is dropped"));
    assert!(dropped.unwrap().contains("\"steadfast:to:room:lobby\""), "{said}");
    // Clients can still be told, each by its own backend.
    for member in &members {
        send(&member.backend, &ws::unmasked(ws::TEXT, "own"));
        member.client.expect_text("own");
    }
}
