//! Proxies that share a registry have a key on one backend, together, and drain together.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::http::{self, get};
use support::named::{Named, addresses, join, rooms_of};
use support::ws::{self, CLOSE, Ws, close_payload, handshake_head};
use support::{Proxy, RedisServer, SetWhenDropped, config, connect, eventually, within};

/// So long a key may be on two backends.
const TOLERANCE: Duration = Duration::from_secs(2);

const CHECKED: [(&str, &str); 5] = [
    ("health", "kind = \"http\""),
    ("health", "path = \"/health\""),
    ("health", "interval = \"50ms\""),
    ("health", "fall = 2"),
    ("health", "rise = 2"),
];
const UNCHECKED: [(&str, &str); 1] = [("health", "kind = \"off\"")];

fn shared(backends: &[Named], redis: &RedisServer, more: &[(&str, &str)]) -> String {
    let registry = format!("\n[registry]\nurl = \"{}\"\n", redis.url());
    config(&addresses(backends), more) + &registry
}

/// The fields of placements, each with its backend behind it.
fn placed(redis: &RedisServer) -> Vec<String> {
    let answer = redis.ask(&["HGETALL", "steadfast:placed:pool"]);
    answer.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect()
}

#[test]
fn a_key_away_from_home_is_followed_by_the_other_proxy_and_forgotten_when_it_is_gone() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    backends[0].set_healthy(false);
    // This one sees that the home is out of service, and the other does not.
    let sees = Proxy::start(&shared(&backends, &redis, &CHECKED));
    let sees_not = Proxy::start(&shared(&backends, &redis, &UNCHECKED));
    sees.wait_for_state("a", "out_of_service");
    let room = rooms_of(&["a", "b"], "a").next().unwrap();
    let (first, at) = join(&sees, &room);
    assert_eq!(at, "b");
    let field = format!("{room}@");
    within(TOLERANCE, "it is told", || {
        placed(&redis).iter().any(|line| line.starts_with(&field)).then_some(())
    });
    let path = format!("/?room={room}");
    within(TOLERANCE, "the other follows", || {
        (get(sees_not.address, &path).text() == "b").then_some(())
    });
    let explained = sees_not.json(&format!("/v1/route?url=/%3Froom={room}"));
    assert_eq!(explained["backend"], "b");
    assert!(
        explained["why"].to_string().contains("another proxy has this key at b"),
        "{explained}"
    );
    let (second, at) = join(&sees_not, &room);
    assert_eq!(at, "b");
    within(TOLERANCE, "both say so", || (placed(&redis).len() == 4).then_some(()));
    // A new proxy knows of it before it is ready.
    let late = Proxy::start(&shared(&backends, &redis, &UNCHECKED));
    assert_eq!(get(late.address, &path).text(), "b");
    backends[0].set_healthy(true);
    sees.wait_for_state("a", "in_service");
    assert_eq!(join(&sees, &room).1, "b");
    first.leave();
    assert_eq!(join(&sees, &room).1, "b", "one of the other proxy is there");
    second.leave();
    within(TOLERANCE, "nobody says anything", || placed(&redis).is_empty().then_some(()));
    within(TOLERANCE, "it goes home", || (get(sees.address, &path).text() == "a").then_some(()));
}

#[test]
fn a_redis_that_takes_no_writes_still_tells_where_a_key_is() {
    let redis = RedisServer::start();
    // No text, so none of ours: it hides nothing.
    let odd = "return redis.call('HSET', KEYS[1], '\\255@x', 'a')";
    assert_eq!(redis.ask(&["EVAL", odd, "1", "steadfast:placed:pool"]), "1");
    let backends = ["a", "b"].map(Named::start);
    backends[0].set_healthy(false);
    let sees = Proxy::start(&shared(&backends, &redis, &CHECKED));
    let sees_not = Proxy::start(&shared(&backends, &redis, &UNCHECKED));
    sees.wait_for_state("a", "out_of_service");
    for proxy in [&sees, &sees_not] {
        proxy.wait_for_metric("steadfast_registry_up", &[], 1.0);
    }
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let room = rooms_of(&["a", "b"], "a").next().unwrap();
    let (_first, at) = join(&sees, &room);
    assert_eq!(at, "b");
    let path = format!("/?room={room}");
    within(TOLERANCE, "the other follows", || {
        (get(sees_not.address, &path).text() == "b").then_some(())
    });
    let refused = "the registry refused: OOM command not allowed";
    within(TOLERANCE, "it is said in the words of Redis", || {
        sees.process.output().contains(refused).then_some(())
    });
}

#[test]
fn of_two_places_the_first_on_the_ring_wins_once_proxies_hear_of_each_other() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    backends[0].set_healthy(false);
    redis.process.signal("STOP");
    let away = Proxy::start(&shared(&backends, &redis, &CHECKED));
    let at_home = Proxy::start(&shared(&backends, &redis, &UNCHECKED));
    away.wait_for_state("a", "out_of_service");
    let room = rooms_of(&["a", "b"], "a").next().unwrap();
    let ((loser, of_loser), (winner, of_winner)) = (join(&away, &room), join(&at_home, &room));
    assert_eq!((of_loser.as_str(), of_winner.as_str()), ("b", "a"), "neither knows of the other");
    // The winner can't be reached by the one that should give way.
    redis.process.signal("CONT");
    away.wait_for_metric("steadfast_placement_conflicts_total", &[("pool", "pool")], 1.0);
    assert_eq!(join(&away, &room).1, "b");
    assert_eq!(join(&at_home, &room).1, "a");
    // Until it can, though nobody comes for the key.
    backends[0].set_healthy(true);
    away.wait_for_state("a", "in_service");
    let in_service = Instant::now();
    let (code, text) = loop {
        let frame = loser.read();
        if frame.opcode == CLOSE {
            break frame.close();
        }
    };
    assert_eq!((code, text.as_str()), (1012, "key lives elsewhere"));
    assert!(in_service.elapsed() < TOLERANCE);
    loser.send_close(1012, "");
    within(TOLERANCE, "all are together", || (join(&away, &room).1 == "a").then_some(()));
    let closes = [("reason", "placed_elsewhere")];
    assert!(away.metric("steadfast_closes_total", &closes) >= 1.0);
    drop(winner);
}

/// A client of a room at its home, by way of a proxy, once the registry has it.
fn at_home(proxy: &Proxy, redis: &RedisServer, room: &str) -> Ws {
    let (client, at) = join(proxy, room);
    assert_eq!(at, "a");
    written_down(redis, room, 1);
    client
}

/// Waits until the registry has so many connections of a room.
fn written_down(redis: &RedisServer, room: &str, count: usize) {
    let of_key = format!("steadfast:key:pool/{room}");
    eventually("they are written down", || {
        (redis.ask(&["SCARD", &of_key]) == count.to_string()).then_some(())
    });
}

#[test]
fn a_key_that_lives_at_its_home_is_followed_though_that_is_out_of_service() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let settings = shared(&backends, &redis, &CHECKED);
    let proxies = [(); 2].map(|()| Proxy::start(&settings));
    proxies.iter().for_each(|proxy| proxy.wait_for_state("a", "in_service"));
    let mut rooms = rooms_of(&["a", "b"], "a");
    let [room, other] = [(); 2].map(|()| rooms.next().unwrap());
    let first = at_home(&proxies[0], &redis, &room);
    backends[0].set_healthy(false);
    proxies.iter().for_each(|proxy| proxy.wait_for_state("a", "out_of_service"));
    let path = format!("/?room={room}");
    assert_eq!(get(proxies[1].address, &path).text(), "a", "a request follows");
    let explained = proxies[1].json(&format!("/v1/route?url=/%3Froom={room}"));
    assert_eq!(explained["backend"], "a", "{explained}");
    let (second, at) = join(&proxies[1], &room);
    assert_eq!(at, "a");
    assert_eq!(join(&proxies[1], &other).1, "b", "one that lives nowhere does not go there");
    written_down(&redis, &room, 2);
    first.leave();
    assert_eq!(join(&proxies[0], &room).1, "a", "the other proxy has it there");
    second.leave();
    within(TOLERANCE, "it lives nowhere", || {
        (get(proxies[0].address, &path).text() == "b").then_some(())
    });
}

#[test]
fn a_key_that_lives_at_its_home_does_not_go_on_where_that_is_full() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let full = [&UNCHECKED[..], &[("pool", "max_connections = 1")]].concat();
    let settings = shared(&backends, &redis, &full);
    let proxies = [(); 2].map(|()| Proxy::start(&settings));
    let mut rooms = rooms_of(&["a", "b"], "a");
    let [room, other] = [(); 2].map(|()| rooms.next().unwrap());
    let first = at_home(&proxies[0], &redis, &room);
    let _fills = at_home(&proxies[1], &redis, &other);
    let path = format!("/?room={room}");
    assert_eq!(ws::ask(proxies[1].address, &path, &[]).answer.status, 503);
    assert!(placed(&redis).is_empty());
    first.leave();
    let second = within(TOLERANCE, "it is free to go on", || {
        let asked = ws::ask(proxies[1].address, &path, &[]);
        (asked.answer.status == 101).then_some(asked)
    });
    second.expect_text("b");
}

#[test]
fn a_key_that_lives_at_its_home_does_not_go_on_where_that_can_not_be_connected_to() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let reaches = Proxy::start(&shared(&backends, &redis, &UNCHECKED));
    // Nothing listens where this one looks for it.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (a, nowhere) = (backends[0].address.to_string(), nobody.to_string());
    let never_out = [&UNCHECKED[..], &[("health", "passive_fall = 0")]].concat();
    let reaches_not = Proxy::start(&shared(&backends, &redis, &never_out).replace(&a, &nowhere));
    let room = rooms_of(&["a", "b"], "a").next().unwrap();
    let first = at_home(&reaches, &redis, &room);
    let path = format!("/?room={room}");
    assert_eq!(ws::ask(reaches_not.address, &path, &[]).answer.status, 502);
    assert_eq!(get(reaches_not.address, &path).status, 502);
    assert!(backends[1].rooms().is_empty());
    first.leave();
    within(TOLERANCE, "it is free to go on", || {
        (get(reaches_not.address, &path).text() == "b").then_some(())
    });
    assert_eq!(join(&reaches_not, &room).1, "b");
}

/// A client of a storm: joins, stays a while, goes. Refusals and losses are part of it.
fn come_and_go(proxy: &Proxy, room: &str, stay: Duration) -> Option<()> {
    let mut stream = connect(proxy.address);
    stream.write_all(handshake_head(&format!("/?room={room}"), &[]).as_bytes()).ok()?;
    let head = http::read_head(&stream);
    if http::status(&head) != 101 {
        return None;
    }
    sleep(stay);
    stream.write_all(&ws::masked(CLOSE, close_payload(1000, ""))).ok()?;
    // Whatever comes before its answer.
    while ws::read_frame(&stream).ok()?.opcode != CLOSE {}
    Some(())
}

#[test]
fn one_key_is_never_on_two_backends_while_one_dies_and_returns() {
    let redis = RedisServer::start();
    let backends = ["a", "b", "c"].map(Named::start);
    let lost_after = [("health", "lost_after = \"200ms\"")];
    let settings = shared(&backends, &redis, &[&CHECKED[..], &lost_after].concat());
    let proxies = [(); 2].map(|()| Proxy::start(&settings));
    let rooms: Vec<String> = rooms_of(&["a", "b", "c"], "a").take(8).collect();
    let (over, joined) = (AtomicBool::new(false), AtomicUsize::new(0));
    let worst = std::thread::scope(|scope| {
        let stop = SetWhenDropped(&over);
        for number in 0..8_usize {
            let (proxy, rooms, over, joined) = (&proxies[number % 2], &rooms, &over, &joined);
            scope.spawn(move || {
                for turn in 0.. {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let room = &rooms[(number * 3 + turn) % rooms.len()];
                    let stay =
                        Duration::from_millis(20 + (turn as u64 * 37 + number as u64 * 91) % 400);
                    if come_and_go(proxy, room, stay).is_some() {
                        joined.fetch_add(1, Ordering::SeqCst);
                    } else {
                        sleep(Duration::from_millis(20));
                    }
                }
            });
        }
        let watch = scope.spawn(|| longest_on_two(&backends, &over));
        for _ in 0..3 {
            let before = joined.load(Ordering::SeqCst);
            backends[0].die();
            proxies.iter().for_each(|proxy| proxy.wait_for_state("a", "lost"));
            eventually("its keys live elsewhere", || {
                (joined.load(Ordering::SeqCst) > before + 40).then_some(())
            });
            backends[0].open_door();
            proxies.iter().for_each(|proxy| proxy.wait_for_state("a", "in_service"));
            let before = joined.load(Ordering::SeqCst);
            eventually("joins go on", || {
                (joined.load(Ordering::SeqCst) > before + 60).then_some(())
            });
        }
        drop(stop);
        watch.join().unwrap()
    });
    assert!(worst <= TOLERANCE, "a key was on two backends for {worst:?}");
    eventually("nothing is left behind", || placed(&redis).is_empty().then_some(()));
}

/// The longest time that a room was on more than one backend without a break.
fn longest_on_two(backends: &[Named], over: &AtomicBool) -> Duration {
    let mut since: HashMap<String, Instant> = HashMap::new();
    let mut worst = Duration::ZERO;
    while !over.load(Ordering::SeqCst) {
        let mut at: HashMap<String, Vec<&str>> = HashMap::new();
        for backend in backends {
            for room in backend.rooms() {
                let all = at.entry(room).or_default();
                if !all.contains(&backend.id) {
                    all.push(backend.id);
                }
            }
        }
        let now = Instant::now();
        since.retain(|room, _| at.get(room).is_some_and(|all| all.len() > 1));
        for (room, _) in at.iter().filter(|(_, all)| all.len() > 1) {
            let begun = *since.entry(room.clone()).or_insert(now);
            worst = worst.max(now - begun);
        }
        sleep(Duration::from_millis(10));
    }
    worst
}

fn drained_by_api(proxy: &Proxy, backend: &str) -> bool {
    let pools = proxy.json("/v1/pools");
    let backends = pools["pools"][0]["backends"].as_array().unwrap();
    let backend = backends.iter().find(|one| one["id"] == backend).unwrap();
    backend["drain"]["by"].to_string().contains("api")
}

#[test]
fn a_drain_by_one_proxy_holds_for_all_and_those_that_start_later() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let soon = [UNCHECKED[0], ("pool", "drain_timeout = \"2s\"")];
    let settings = shared(&backends, &redis, &soon);
    let proxies = [(); 2].map(|()| Proxy::start(&settings));
    let room = rooms_of(&["a", "b"], "a").next().unwrap();
    let members = [0, 1].map(|index| join(&proxies[index], &room));
    assert!(members.iter().all(|(_, at)| at == "a"));
    let drain = "/v1/pools/pool/backends/a/drain";
    assert_eq!(proxies[0].post(drain, "").0, 200);
    within(TOLERANCE, "the other drains too", || drained_by_api(&proxies[1], "a").then_some(()));
    let late = Proxy::start(&settings);
    assert!(drained_by_api(&late, "a"), "from its beginning");
    // The key goes whole, at both proxies.
    for (member, _) in &members {
        let code = loop {
            let frame = member.read();
            if frame.opcode == CLOSE {
                break frame.close().0;
            }
        };
        assert_eq!(code, 1012);
        member.send_close(1012, "");
    }
    for proxy in [&proxies[0], &proxies[1], &late] {
        assert_eq!(join(proxy, &room).1, "b");
    }
    // A reload changes nothing about it.
    proxies[1].save(&settings.replace("name = \"all\"", "name = \"everything\""));
    eventually("it is reloaded", || (proxies[1].reloads("success") >= 1.0).then_some(()));
    assert!(drained_by_api(&proxies[1], "a"));
    assert_eq!(proxies[1].post("/v1/pools/pool/backends/a/undrain", "").0, 200);
    for proxy in [&proxies[0], &proxies[1], &late] {
        eventually("it is undone", || (!drained_by_api(proxy, "a")).then_some(()));
    }
    assert_eq!(redis.ask(&["EXISTS", "steadfast:drain:pool"]), "0");
}

#[test]
fn a_drain_without_the_registry_holds_here_and_is_made_up_for() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let settings = shared(&backends, &redis, &UNCHECKED);
    let proxies = [(); 2].map(|()| Proxy::start(&settings));
    redis.process.signal("STOP");
    let (status, backend) = proxies[0].post("/v1/pools/pool/backends/a/drain", "");
    assert_eq!(status, 202);
    assert_eq!(backend["drain"]["by"], serde_json::json!(["api"]));
    assert!(drained_by_api(&proxies[0], "a") && !drained_by_api(&proxies[1], "a"));
    redis.process.signal("CONT");
    eventually("the other hears of it", || drained_by_api(&proxies[1], "a").then_some(()));
    assert!(drained_by_api(&proxies[0], "a"));
}

/// Whether the hash of drains has the backend.
fn asked_for(redis: &RedisServer, backend: &str) -> bool {
    redis.ask(&["HEXISTS", "steadfast:drain:pool", backend]) == "1"
}

fn rewrites(proxy: &Proxy) -> f64 {
    proxy.metric("steadfast_registry_rewrites_total", &[])
}

#[test]
fn a_redis_that_loses_its_data_undoes_no_drain() {
    let mut redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let settings = shared(&backends, &redis, &UNCHECKED);
    let mut proxies: Vec<Proxy> = (0..2).map(|_| Proxy::start(&settings)).collect();
    let all_drain = |proxies: &[Proxy]| proxies.iter().all(|proxy| drained_by_api(proxy, "a"));
    assert_eq!(proxies[0].post("/v1/pools/pool/backends/a/drain", "").0, 200);
    within(TOLERANCE, "the other drains too", || all_drain(&proxies).then_some(()));
    let stands_again = |redis: &RedisServer, proxies: &[Proxy]| {
        // Renewals find it out.
        within(Duration::from_secs(8), "the drain is in Redis again", || {
            assert!(all_drain(proxies), "it holds all the time");
            asked_for(redis, "a").then_some(())
        });
        assert!(all_drain(proxies));
    };
    redis.ask(&["FLUSHALL"]);
    stands_again(&redis, &proxies);
    redis.process.kill();
    for proxy in &proxies {
        proxy.wait_for_metric("steadfast_registry_up", &[], 0.0);
    }
    redis.restart();
    stands_again(&redis, &proxies);
    // Who is new while it is lost knows nothing, and hears of it from the others.
    redis.ask(&["FLUSHALL"]);
    proxies.push(Proxy::start(&settings));
    stands_again(&redis, &proxies[..2]);
    eventually("the new one hears of it", || all_drain(&proxies).then_some(()));
    // Undone it stays, also where that is forgotten again.
    assert_eq!(proxies[2].post("/v1/pools/pool/backends/a/undrain", "").0, 200);
    let none_drains = || !proxies.iter().any(|proxy| drained_by_api(proxy, "a"));
    within(TOLERANCE, "it is undone", || none_drains().then_some(()));
    assert!(!asked_for(&redis, "a"));
    let before: Vec<f64> = proxies.iter().map(rewrites).collect();
    redis.ask(&["FLUSHALL"]);
    within(Duration::from_secs(10), "all have found it out", || {
        assert!(none_drains());
        proxies.iter().zip(&before).all(|(proxy, before)| rewrites(proxy) > *before).then_some(())
    });
    assert!(none_drains() && !asked_for(&redis, "a"));
}

#[test]
fn a_proxy_that_was_paused_does_not_bring_back_what_was_undone() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let settings = shared(&backends, &redis, &UNCHECKED);
    let [paused, other] = [(); 2].map(|()| Proxy::start(&settings));
    assert_eq!(other.post("/v1/pools/pool/backends/a/drain", "").0, 200);
    within(TOLERANCE, "both drain", || drained_by_api(&paused, "a").then_some(()));
    let proxy = format!("steadfast:proxy:{}", paused.json("/v1/status")["proxy"].as_str().unwrap());
    let before = rewrites(&paused);
    paused.process.signal("STOP");
    within(Duration::from_secs(20), "it is taken for dead", || {
        (redis.ask(&["EXISTS", &proxy]) == "0").then_some(())
    });
    assert_eq!(other.post("/v1/pools/pool/backends/a/undrain", "").0, 200);
    paused.process.signal("CONT");
    within(Duration::from_secs(10), "it has written all anew", || {
        (rewrites(&paused) > before).then_some(())
    });
    eventually("it hears of it", || (!drained_by_api(&paused, "a")).then_some(()));
    assert!(!drained_by_api(&other, "a") && !asked_for(&redis, "a"));
}

#[test]
fn proxies_with_other_backends_name_each_other() {
    let redis = RedisServer::start();
    let backends = ["a", "b", "c"].map(Named::start);
    let both = shared(&backends[..2], &redis, &UNCHECKED);
    let (one, two) = (Proxy::start(&both), Proxy::start(&both));
    let pool = |proxy: &Proxy| proxy.json("/v1/pools")["pools"][0].clone();
    let id = |proxy: &Proxy| proxy.json("/v1/status")["proxy"].clone();
    assert_eq!(pool(&one)["ring"], pool(&two)["ring"]);
    assert_eq!(pool(&one)["rings_differ"], serde_json::json!([]));
    two.save(&shared(&backends, &redis, &UNCHECKED));
    let differ = |proxy: &Proxy, other: &Proxy| {
        let others = serde_json::json!([id(other)]);
        eventually("it is named", || (pool(proxy)["rings_differ"] == others).then_some(()));
        proxy.wait_for_metric("steadfast_ring_disagreements", &[("pool", "pool")], 1.0);
    };
    differ(&one, &two);
    differ(&two, &one);
    assert_ne!(pool(&one)["ring"], pool(&two)["ring"]);
    one.save(&shared(&backends, &redis, &UNCHECKED));
    one.wait_for_metric("steadfast_ring_disagreements", &[("pool", "pool")], 0.0);
}

#[test]
fn what_redis_has_forgotten_is_written_again() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    backends[0].set_healthy(false);
    let proxy = Proxy::start(&shared(&backends, &redis, &CHECKED));
    proxy.wait_for_state("a", "out_of_service");
    let room = rooms_of(&["a", "b"], "a").next().unwrap();
    let (_member, at) = join(&proxy, &room);
    assert_eq!(at, "b");
    eventually("it is told", || (placed(&redis).len() == 2).then_some(()));
    redis.ask(&["FLUSHALL"]);
    assert!(placed(&redis).is_empty());
    eventually("it is told again", || (placed(&redis).len() == 2).then_some(()));
}
