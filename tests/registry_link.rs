//! Messages by way of a real Redis: they reach whom they are for on every proxy, just once, and again
//! when it comes back after whatever became of it.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use steadfast::observe::labels::ReasonLabel;
use steadfast::registry::redis::{Identity, Place, Redis as Registered, Settings};
use steadfast::registry::{Boxed, Event, Group, Page, Registry as _, State, Truth};
use support::http::{get, header, read_head};
use support::in_process::runtime;
use support::redis::{Answer, Client, Redis, Sentinels, cluster, cluster_replica, free_port};
use support::scripted::{Scripted, switching};
use support::tls::Authority;
use support::ws::{self, Ws};
use support::{Proxy, config, eventually, within};

fn proxy(backend: SocketAddr, registry: &str) -> Proxy {
    let more = [("server", "workers = 2"), ("route", "rooms = [\"lobby\", \"of {key}\"]")];
    let config = config(&[("a", backend)], &more);
    let proxy = Proxy::start(&format!("{config}\n[registry]\n{registry}\n"));
    proxy.wait_for_metric("steadfast_registry_up", &[], 1.0);
    proxy
}

fn url(redis: &Redis) -> String {
    format!("url = \"{}\"", redis.url())
}

fn text(text: &str) -> String {
    format!("{{\"text\": \"{text}\"}}")
}

/// The key's channel.
fn of_key(key: &str) -> String {
    format!("steadfast:to:key:pool/{key}")
}

/// Publishes until so many have it; who has it gets it once.
fn publish(redis: &Redis, channel: &str, message: &str, proxies: i64) {
    let mut client = redis.client();
    eventually("all have subscribed", || (client.subscribers(channel) == proxies).then_some(()));
    assert_eq!(client.publish(channel, &text(message)), proxies);
}

#[test]
fn a_message_reaches_its_audience_on_all_proxies_just_once() {
    let redis = Redis::start();
    let (backend, handed) = Scripted::opening();
    let proxies = [(); 2].map(|()| proxy(backend.address, &url(&redis)));
    let clients = [("x", 0), ("x", 1), ("y", 1)].map(|(key, index): (&str, usize)| {
        let client = ws::open(proxies[index].address, &format!("/?room={key}"));
        let (stream, head) = handed.next();
        let id = header(&head, "steadfast-connection").unwrap().to_owned();
        (client, stream, id)
    });
    let of = |index: usize| -> &Ws { &clients[index].0 };
    publish(&redis, &of_key("x"), "key", 2);
    publish(&redis, "steadfast:to:room:of y", "room", 1);
    publish(&redis, "steadfast:to:room:lobby", "lobby", 2);
    publish(&redis, "steadfast:to:all", "all", 2);
    let id = &clients[2].2;
    let channel = format!("steadfast:to:proxy:{}", id.split('.').next().unwrap());
    let message = format!("{{\"text\": \"one\", \"connection\": \"{id}\"}}");
    assert_eq!(redis.client().publish(&channel, &message), 1);
    // The order is that of each channel only, so what came is compared as a set.
    let received = |index: usize, count: usize| {
        let mut texts: Vec<String> = (0..count).map(|_| of(index).read().text()).collect();
        texts.sort();
        texts
    };
    assert_eq!(received(0, 3), ["all", "key", "lobby"]);
    assert_eq!(received(1, 3), ["all", "key", "lobby"]);
    assert_eq!(received(2, 4), ["all", "lobby", "one", "room"]);
    // Nothing came twice: what is next is what is sent next.
    publish(&redis, "steadfast:to:all", "end", 2);
    (0..3).for_each(|index| of(index).expect_text("end"));
}

#[test]
fn what_a_backend_publishes_from_within_the_handshake_misses_nobody() {
    const CONNECTIONS: usize = 1000;
    let redis = Redis::start();
    let client = Mutex::new(redis.client());
    let backend = Scripted::start(move |mut stream| {
        let head = read_head(&stream);
        let path = head.split(' ').nth(1).unwrap();
        let key = path.split('=').nth(1).unwrap();
        {
            let mut client = client.lock().unwrap();
            assert!(client.publish(&of_key(key), &text("key")) >= 1, "{key}");
            assert!(client.publish(&format!("steadfast:to:room:of {key}"), &text("room")) >= 1);
        }
        stream.write_all(switching("").as_bytes()).unwrap();
        // Until the client has gone.
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    });
    let proxy = proxy(backend.address, &format!("{}\njoin_wait = \"2s\"", url(&redis)));
    for round in 0..CONNECTIONS {
        let client = ws::open(proxy.address, &format!("/?room=k{round}"));
        let mut texts = [client.read().text(), client.read().text()];
        texts.sort();
        assert_eq!(texts, ["key", "room"], "{round}");
    }
    assert!(proxy.metric("steadfast_registry_waits_total", &[("outcome", "stood")]) > 0.0);
}

/// How long it takes from now until what is published reaches the client.
fn until_delivered(client: &Ws, mut publish: impl FnMut(&str)) -> Duration {
    let began = Instant::now();
    client.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    within(Duration::from_secs(20), "a message arrives", || {
        publish(&text("again"));
        client.try_read().is_ok().then_some(())
    });
    client.stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
    began.elapsed()
}

/// The client's connection and the relay behind it work.
fn relays(client: &Ws, backend: &std::net::TcpStream) {
    client.send(ws::TEXT, "up");
    assert_eq!(ws::read_frame(backend).unwrap().payload, b"up");
}

#[test]
fn after_a_kill_and_after_a_stop_delivery_is_back_within_two_seconds() {
    let mut redis = Redis::start();
    let (backend, handed) = Scripted::opening();
    let proxy = proxy(backend.address, &format!("{}\nrequired = true", url(&redis)));
    let client = ws::open(proxy.address, "/?room=x");
    let (stream, _) = handed.next();
    let away = || proxy.wait_for_metric("steadfast_registry_up", &[], 0.0);
    let back = |redis: &Redis| {
        let mut publisher = redis.client();
        let took = until_delivered(&client, |message| {
            publisher.publish(&of_key("x"), message);
        });
        assert!(took < Duration::from_secs(2), "{took:?}");
    };
    back(&redis);

    redis.kill();
    away();
    relays(&client, &stream);
    // New clients are served, and not kept waiting.
    let other = ws::open(proxy.address, "/?room=y");
    drop((other, handed.next()));
    assert_eq!(get(proxy.admin, "/readyz").status, 200);
    within(Duration::from_secs(8), "it is not ready without the registry", || {
        (get(proxy.admin, "/readyz").status == 503).then_some(())
    });
    redis.restart();
    back(&redis);
    proxy.wait_for_metric("steadfast_registry_up", &[], 1.0);
    assert_eq!(get(proxy.admin, "/readyz").status, 200);

    redis.signal("STOP");
    away();
    relays(&client, &stream);
    redis.signal("CONT");
    back(&redis);
    assert!(proxy.metric("steadfast_registry_outages_total", &[]) >= 2.0);
    assert!(proxy.metric("steadfast_registry_waits_total", &[("outcome", "away")]) >= 1.0);
}

#[test]
fn a_subscription_is_given_up_some_time_after_the_last_member() {
    let redis = Redis::start();
    let (backend, handed) = Scripted::opening();
    let proxy = proxy(backend.address, &url(&redis));
    let mut publisher = redis.client();
    let client = ws::open(proxy.address, "/?room=x");
    let backend = handed.next();
    let channel = of_key("x");
    eventually("it stands", || (publisher.subscribers(&channel) == 1).then_some(()));
    drop((client, backend));
    proxy.wait_for_metric("steadfast_rooms", &[], 0.0);
    let left = Instant::now();
    within(Duration::from_secs(15), "it is given up", || {
        (publisher.subscribers(&channel) == 0).then_some(())
    });
    assert!(left.elapsed() > Duration::from_secs(8), "{:?}", left.elapsed());
    proxy.wait_for_metric("steadfast_registry_subscriptions", &[], 0.0);
}

#[test]
fn a_message_that_is_too_large_is_dropped_and_counted() {
    let redis = Redis::start();
    let (backend, handed) = Scripted::opening();
    let proxy = proxy(backend.address, &format!("{}\nmax_message = \"1KiB\"", url(&redis)));
    let client = ws::open(proxy.address, "/?room=x");
    let _backend = handed.next();
    publish(&redis, &of_key("x"), &"x".repeat(1100), 1);
    publish(&redis, &of_key("x"), "small", 1);
    client.expect_text("small");
    let refused = [("reason", "too_large")];
    proxy.wait_for_metric("steadfast_undeliverable_messages_total", &refused, 1.0);
}

#[test]
fn a_fail_over_by_sentinels_is_followed() {
    follow_a_fail_over(|master, _| master.kill());
}

#[test]
fn a_planned_fail_over_is_followed_though_the_old_master_goes_on() {
    follow_a_fail_over(|_, sentinel| {
        let asked = sentinel.ask(&["SENTINEL", "FAILOVER", "fleet"]);
        assert_eq!(asked, Answer::text("OK"));
    });
}

fn follow_a_fail_over(fail_over: impl FnOnce(&mut Redis, &mut Client)) {
    let mut master = Redis::start();
    let to_master = ["--replicaof", &format!("127.0.0.1 {}", master.port)];
    let replica = Redis::start_with(&to_master);
    let mut asked = master.client();
    eventually("the replica is in step", || match asked.ask(&["INFO", "replication"]) {
        Answer::Text(info) => info.contains("state=online").then_some(()),
        _ => None,
    });
    let sentinels = Sentinels::watching(master.port, 1);
    let mut sentinel = sentinels.client();
    eventually("the Sentinel knows the replica, and that it is well", || {
        let Answer::List(list) = sentinel.ask(&["SENTINEL", "REPLICAS", "fleet"]) else {
            return None;
        };
        let Answer::List(fields) = list.first()? else { return None };
        let pair = fields.chunks(2).find(|pair| pair[0] == Answer::text("master-link-status"))?;
        (pair[1] == Answer::text("ok")).then_some(())
    });
    let (backend, handed) = Scripted::opening();
    let proxy = proxy(backend.address, &format!("url = \"{}\"", sentinels.url()));
    let client = ws::open(proxy.address, "/?room=x");
    let _backend = handed.next();
    publish(&master, &of_key("x"), "first", 1);
    client.expect_text("first");

    fail_over(&mut master, &mut sentinel);
    eventually("the replica is the master", || match replica.client().ask(&["ROLE"]) {
        Answer::List(role) => (role[0] == Answer::text("master")).then_some(()),
        _ => None,
    });
    let mut publisher = replica.client();
    let took = until_delivered(&client, |message| {
        publisher.publish(&of_key("x"), message);
    });
    // The Sentinel tells of the new master when the fail-over is over, a moment later.
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn in_a_cluster_messages_go_by_shards() {
    let masters = cluster(3);
    let members: Vec<String> =
        masters.iter().map(|master| format!("\"{}\"", master.url())).collect();
    let registry = format!("cluster = [{}]\njoin_wait = \"2s\"", members.join(", "));
    let (backend, handed) = Scripted::opening();
    let proxies = [(); 2].map(|()| proxy(backend.address, &registry));
    // So many that every shard has some.
    for round in 0..12 {
        let key = format!("k{round}");
        let clients = [0, 1].map(|index: usize| {
            let client = ws::open(proxies[index].address, &format!("/?room={key}"));
            (client, handed.next())
        });
        let channel = of_key(&key);
        let message = text(&key);
        // Only the member that has the slot takes it.
        let reached = masters.iter().find_map(|master| {
            match master.client().ask(&["SPUBLISH", &channel, &message]) {
                Answer::Number(reached) => Some(reached),
                _ => None,
            }
        });
        assert_eq!(reached, Some(2), "{key}");
        clients.iter().for_each(|(client, _)| client.expect_text(&key));
    }
}

#[test]
fn a_replica_that_takes_over_in_a_cluster_is_followed() {
    let mut masters = cluster(3);
    let replica = cluster_replica(&masters, 1);
    let members: Vec<String> =
        masters.iter().map(|master| format!("\"{}\"", master.url())).collect();
    let (backend, handed) = Scripted::opening();
    let proxy = proxy(backend.address, &format!("cluster = [{}]", members.join(", ")));
    // One key for each master, by asking them.
    let clients: Vec<_> = (0..3)
        .map(|index: usize| {
            let has = |key: &String| {
                let asked = masters[index].client().ask(&["SPUBLISH", &of_key(key), "{}"]);
                matches!(asked, Answer::Number(_))
            };
            let key = (0..100).map(|number| format!("k{number}")).find(has).unwrap();
            let client = ws::open(proxy.address, &format!("/?room={key}"));
            (client, handed.next(), key)
        })
        .collect();
    masters[1].kill();
    eventually("the replica has the slots", || match replica.client().ask(&["ROLE"]) {
        Answer::List(role) => (role[0] == Answer::text("master")).then_some(()),
        _ => None,
    });
    for (index, (client, _, key)) in clients.iter().enumerate() {
        let redis = if index == 1 { &replica } else { &masters[index] };
        let mut publisher = redis.client();
        let took = until_delivered(client, |message| {
            // Not all members may know yet whose slots these are.
            publisher.ask(&["SPUBLISH", &of_key(key), message]);
        });
        assert!(took < Duration::from_secs(8), "{index}: {took:?}");
    }
    proxy.wait_for_metric("steadfast_registry_up", &[], 1.0);
}

#[test]
fn a_server_with_a_login_is_reached_by_tls() {
    let authority = Authority::new();
    let issued = authority.issue("redis", &["localhost"]);
    let port = free_port().to_string();
    let (cert, key, ca) = (issued.cert.to_str(), issued.key.to_str(), authority.file());
    let redis = Redis::start_with(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        cert.unwrap(),
        "--tls-key-file",
        key.unwrap(),
        "--tls-ca-cert-file",
        ca.to_str().unwrap(),
        "--tls-auth-clients",
        "no",
        "--requirepass",
        "hu/sh@",
    ]);
    let (backend, handed) = Scripted::opening();
    let config = config(&[("a", backend.address)], &[]);
    let url = format!("rediss://:hu%2Fsh%40@localhost:{port}/0");
    let environment = [("SSL_CERT_FILE", ca.to_str().unwrap())];
    let proxy =
        Proxy::start_with(&format!("{config}\n[registry]\nurl = \"{url}\"\n"), &environment);
    proxy.wait_for_metric("steadfast_registry_up", &[], 1.0);
    let client = ws::open(proxy.address, "/?room=x");
    let _backend = handed.next();
    let mut publisher = redis.client();
    assert_eq!(publisher.ask(&["AUTH", "hu/sh@"]), Answer::text("OK"));
    until_delivered(&client, |message| {
        publisher.publish(&of_key("x"), message);
    });
    assert!(!proxy.process.output().contains("hu"), "the password is in the log");
}

#[test]
fn sentinels_that_want_a_login_get_the_one_of_the_master() {
    let master = Redis::start_with(&["--requirepass", "hush"]);
    let login = "requirepass hush\nsentinel auth-pass fleet hush\n";
    let sentinels = Sentinels::watching_with(master.port, 1, login);
    let (backend, handed) = Scripted::opening();
    let port = sentinels.ports()[0];
    // One of them is not there.
    let url = format!("redis+sentinel://:hush@127.0.0.1:1,127.0.0.1:{port}/fleet");
    let proxy = proxy(backend.address, &format!("url = \"{url}\""));
    let client = ws::open(proxy.address, "/?room=x");
    let _backend = handed.next();
    let mut publisher = master.client();
    assert_eq!(publisher.ask(&["AUTH", "hush"]), Answer::text("OK"));
    until_delivered(&client, |message| {
        publisher.publish(&of_key("x"), message);
    });
}

/// A proxy without connections.
struct Nobody;

impl Truth for Nobody {
    fn page(&self, _cursor: Option<u64>) -> Boxed<'_, Option<Page>> {
        Box::pin(async { Some(Page::default()) })
    }

    fn connections(&self) -> usize {
        0
    }

    fn rings(&self) -> Vec<(String, String)> {
        vec![("pool".to_owned(), "0".to_owned())]
    }

    fn placed(&self, _pool: &str) -> Vec<(Arc<str>, Arc<str>)> {
        Vec::new()
    }

    fn admin(&self) -> Option<String> {
        None
    }
}

/// A registry without a proxy, and what comes out of it.
struct Alone {
    registry: Arc<Registered>,
    events: tokio::sync::mpsc::Receiver<Event>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    control: Option<std::thread::JoinHandle<()>>,
}

impl Alone {
    fn new(redis: &Redis, rooms: usize) -> Self {
        let settings = Settings {
            place: Place::at(&redis.url()).unwrap(),
            prefix: "alone".to_owned(),
            required: false,
            join_wait: Duration::from_millis(50),
            max_message: 1 << 20,
        };
        let identity = Identity { proxy: "p".into(), name: "p".to_owned() };
        let registry = Arc::new(Registered::new(settings, identity));
        for number in 0..rooms {
            registry.enter(Group::Room(number.to_string().into()));
        }
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (sender, events) = tokio::sync::mpsc::channel(16);
        let running = Arc::clone(&registry);
        let control = std::thread::spawn(move || {
            let stopped = async { drop(stopped.await) };
            runtime().block_on(running.run(Arc::new(Nobody), sender, stopped));
        });
        let alone = Self { registry, events, stop: Some(stop), control: Some(control) };
        alone.wait_for(State::Up);
        alone
    }

    fn wait_for(&self, wanted: State) {
        eventually("its state", || (self.registry.state() == wanted).then_some(()));
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.control.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

#[test]
fn who_falls_behind_loses_nothing_that_has_come_and_is_told() {
    const MESSAGES: usize = 20_000;
    let redis = Redis::start();
    let mut alone = Alone::new(&redis, 1);
    let channel = "alone:to:room:0";
    let mut publisher = redis.client();
    let mut reached = 0;
    for number in 0..MESSAGES {
        reached += usize::try_from(publisher.publish(channel, &number.to_string())).unwrap();
    }
    // Nobody took any, so they did not all find room.
    let counts = alone.registry.counts().clone();
    eventually("it is counted", || (counts.outages.get() >= 1).then_some(()));
    let mut came: Vec<usize> = Vec::new();
    eventually("all that had room have come", || {
        while let Ok(Event::Message { message, .. }) = alone.events.try_recv() {
            came.push(std::str::from_utf8(&message).unwrap().parse().unwrap());
        }
        let dropped = counts.messages.get() - came.len() as u64;
        let behind = ReasonLabel { reason: "behind" };
        (counts.dropped.of(behind).get() == dropped).then_some(())
    });
    assert!(came.len() >= 16_384 && came.len() < reached.max(MESSAGES), "{}", came.len());
    assert!(came.is_sorted(), "the order is that of the publisher");
    alone.wait_for(State::Up);
    eventually("it stands again", || (publisher.subscribers(channel) == 1).then_some(()));
    assert_eq!(publisher.publish(channel, "last"), 1);
    let last = eventually("what is next arrives", || alone.events.try_recv().ok());
    assert!(matches!(last, Event::Message { message, .. } if message == "last"));
}

#[test]
fn many_groups_are_subscribed_again_within_two_seconds() {
    const GROUPS: usize = 20_000;
    let mut redis = Redis::start();
    let alone = Alone::new(&redis, GROUPS);
    let all = |redis: &Redis| {
        for room in [0, GROUPS / 2, GROUPS - 1] {
            assert_eq!(redis.client().subscribers(&format!("alone:to:room:{room}")), 1, "{room}");
        }
        for channel in ["alone:to:all", "alone:to:proxy:p", "alone:placed:pool", "alone:drain:pool"]
        {
            assert_eq!(redis.client().subscribers(channel), 1, "{channel}");
        }
    };
    all(&redis);
    redis.kill();
    alone.wait_for(State::Away);
    redis.restart();
    let began = Instant::now();
    alone.wait_for(State::Up);
    let took = began.elapsed();
    all(&redis);
    assert!(took < Duration::from_secs(2), "{took:?}");
    // What it costs when nothing happens.
    let commands = |client: &mut Client| match client.ask(&["INFO", "stats"]) {
        Answer::Text(info) => {
            let line = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
            line.unwrap().parse::<u64>().unwrap()
        }
        other => panic!("{other:?}"),
    };
    let mut client = redis.client();
    let (before, since) = (commands(&mut client), Instant::now());
    within(Duration::from_secs(10), "some seconds pass", || {
        (since.elapsed() > Duration::from_secs(4)).then_some(())
    });
    let asked = commands(&mut client) - before;
    assert!(asked <= 4 * 4, "{asked} commands in 4 s");
}
