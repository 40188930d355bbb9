//! Who owns what, as the registry in Redis has it: always what the proxies have, whatever happens to
//! them or to Redis.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "in tests a panic is the report")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Commands, Connection};
use serde_json::{Value, json};
use steadfast::registry::redis::{Identity, Place, Redis, Settings};
use steadfast::registry::{Boxed, Page, Record, Registry, Truth};
use support::http::request;
use support::in_process::runtime;
use support::named::Named;
use support::redis as server;
use support::ws::{self, Ws};
use support::{Proxy, config, eventually, within};
use tokio::task::JoinHandle;

/// Proxies that share a Redis, in front of one backend.
struct World {
    redis: server::Redis,
    proxies: Vec<Proxy>,
    backend: Named,
}

/// What belongs to connections.
#[derive(Debug, Default, PartialEq)]
struct Owned {
    records: BTreeMap<String, Value>,
    keys: BTreeMap<String, BTreeSet<String>>,
    rooms: BTreeMap<String, BTreeMap<String, u64>>,
}

impl World {
    fn new(proxies: usize) -> Self {
        let mut world =
            Self { redis: server::Redis::start(), proxies: Vec::new(), backend: Named::start("a") };
        for _ in 0..proxies {
            world.proxies.push(world.proxy());
        }
        world
    }

    fn proxy(&self) -> Proxy {
        let more = [
            ("server", "workers = 2\nshutdown_grace = \"2s\""),
            ("route", "rooms = [\"lobby\", \"of-{key}\"]"),
        ];
        let config = config(&[("a", self.backend.address)], &more);
        Proxy::start(&format!("{config}\n[registry]\nurl = \"{}\"\n", self.redis.url()))
    }

    fn store(&self) -> Connection {
        redis::Client::open(self.redis.url()).unwrap().get_connection().unwrap()
    }

    /// Waits until Redis has what these proxies have, and nothing else.
    #[track_caller]
    fn is_whole(&self, limit: Duration, proxies: &[&Proxy]) {
        let began = Instant::now();
        let (mut found, mut wanted) = (Owned::default(), Owned::default());
        while began.elapsed() < limit {
            if let Some(there) = self.there() {
                (found, wanted) = (there, had(proxies));
                if found == wanted {
                    eprintln!("whole after {:?} ({limit:?})", began.elapsed());
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let (found_ids, wanted_ids) = (ids(&found), ids(&wanted));
        let lacks: Vec<_> = wanted_ids.difference(&found_ids).take(5).collect();
        let stale: Vec<_> = found_ids.difference(&wanted_ids).take(5).collect();
        let is_other = |(id, it): &(&String, &Value)| wanted.records.get(*id) != Some(*it);
        let other: Vec<_> = found.records.iter().filter(is_other).take(3).collect();
        panic!(
            "not within {limit:?}: {} of {} records; lacks {lacks:?}, has {stale:?}, other {other:?}; \
             keys are right: {}; rooms {:?}, not {:?}",
            found_ids.len(),
            wanted_ids.len(),
            found.keys == wanted.keys,
            found.rooms,
            wanted.rooms,
        );
    }

    /// What Redis has; `None`: it is away.
    fn there(&self) -> Option<Owned> {
        let client = redis::Client::open(self.redis.url()).unwrap();
        let mut store = client.get_connection().ok()?;
        let mut owned = Owned::default();
        for name in store.keys::<_, Vec<String>>("steadfast:*").ok()? {
            let rest = name.strip_prefix("steadfast:").unwrap();
            if rest.starts_with("owns:") {
                for (id, json) in store.hgetall::<_, BTreeMap<String, String>>(&name).ok()? {
                    let (proxy, behind) = id.split_once('.').unwrap();
                    assert_eq!(rest, format!("owns:{proxy}:{}", &behind[..2]));
                    owned.records.insert(id, serde_json::from_str(&json).unwrap());
                }
            } else if let Some(key) = rest.strip_prefix("key:") {
                owned.keys.insert(key.to_owned(), store.smembers(&name).ok()?);
            } else if let Some(room) = rest.strip_prefix("room:") {
                owned.rooms.insert(room.to_owned(), store.hgetall(&name).ok()?);
            }
        }
        Some(owned)
    }
}

fn ids(owned: &Owned) -> BTreeSet<&String> {
    owned.records.keys().collect()
}

/// What proxies have, by their own word.
fn had(proxies: &[&Proxy]) -> Owned {
    let mut owned = Owned::default();
    for proxy in proxies {
        let mut cursor = String::new();
        loop {
            let page = proxy.json(&format!("/v1/connections?limit=1000{cursor}"));
            for row in page["connections"].as_array().unwrap() {
                add(&mut owned, row);
            }
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
    }
    owned
}

fn add(owned: &mut Owned, row: &Value) {
    let id = row["id"].as_str().unwrap();
    let (proxy, _) = id.split_once('.').unwrap();
    let mut record = json!({ "opened_at": row["since"] });
    for field in ["backend", "pool", "route", "client", "rooms", "key"] {
        if !row[field].is_null() {
            record[field] = row[field].clone();
        }
    }
    if let Some(key) = row["key"].as_str() {
        let key = format!("{}/{key}", row["pool"].as_str().unwrap());
        owned.keys.entry(key).or_default().insert(id.to_owned());
    }
    for room in row["rooms"].as_array().unwrap() {
        let room = owned.rooms.entry(room.as_str().unwrap().to_owned()).or_default();
        *room.entry(proxy.to_owned()).or_default() += 1;
    }
    owned.records.insert(id.to_owned(), record);
}

/// Opens so many, spread over some keys.
fn open(address: SocketAddr, count: usize) -> Vec<Ws> {
    (0..count).map(|number| ws::open(address, &format!("/?room=k{}", number % 7))).collect()
}

fn id_of(proxy: &Proxy) -> String {
    let output = proxy.process.output();
    let line = output.lines().find(|line| line.contains(" ready ")).unwrap();
    let id = line.split_whitespace().find_map(|word| word.strip_prefix("proxy=")).unwrap();
    id.trim_matches('"').to_owned()
}

/// Connects, joins, leaves and disconnects for a while; what is left open is returned.
fn churn(proxy: &Proxy, seed: usize) -> Vec<Ws> {
    let mut open = Vec::new();
    for round in 0..250 {
        open.push(ws::open(proxy.address, &format!("/?room=k{}", (seed + round) % 5)));
        if round % 10 == 0 {
            let all = proxy.json("/v1/connections?limit=5");
            for row in all["connections"].as_array().unwrap() {
                let id = row["id"].as_str().unwrap();
                let method = if (round / 10) % 3 == 2 { "DELETE" } else { "PUT" };
                let path = format!("/v1/rooms/extra-{}/members/{id}", round % 3);
                request(proxy.admin, method, &path, &[], b"");
            }
        }
        if open.len() > 40 {
            drop(open.swap_remove((round * 7 + seed) % 40));
        }
    }
    open
}

#[test]
fn redis_has_exactly_what_lives() {
    let mut world = World::new(2);
    let open: Vec<Ws> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|seed| {
                let proxy = &world.proxies[seed % 2];
                scope.spawn(move || churn(proxy, seed))
            })
            .collect();
        runs.into_iter().flat_map(|run| run.join().unwrap()).collect()
    });
    let both = [&world.proxies[0], &world.proxies[1]];
    world.is_whole(Duration::from_secs(5), &both);
    assert_eq!(world.there().unwrap().records.len(), open.len());

    // It is flushed while connections come and go.
    let _: () = redis::cmd("FLUSHALL").query(&mut world.store()).unwrap();
    let more: Vec<Ws> = churn(both[0], 3);
    drop(open);
    world.is_whole(Duration::from_secs(6), &both);
    let _: () = redis::cmd("FLUSHALL").query(&mut world.store()).unwrap();
    world.is_whole(Duration::from_secs(6), &both);
    assert!(!world.there().unwrap().records.is_empty());

    // It goes, and comes back with nothing.
    world.redis.kill();
    drop(more);
    let open = open_on_all(&world);
    world.redis.restart();
    let both = [&world.proxies[0], &world.proxies[1]];
    world.is_whole(Duration::from_secs(5), &both);
    assert!(!world.there().unwrap().records.is_empty());

    // Each leaves without a trace.
    world.proxies[0].process.signal("TERM");
    assert!(world.proxies[0].process.wait_for_exit().success());
    world.is_whole(Duration::from_secs(1), &[&world.proxies[1]]);
    world.proxies[1].process.signal("TERM");
    assert!(world.proxies[1].process.wait_for_exit().success());
    assert_eq!(world.store().keys::<_, Vec<String>>("*").unwrap(), Vec::<String>::new());
    drop(open);
}

fn open_on_all(world: &World) -> Vec<Ws> {
    world.proxies.iter().flat_map(|proxy| open(proxy.address, 150)).collect()
}

#[test]
fn what_a_killed_proxy_owned_is_removed_by_one_other() {
    let mut world = World::new(3);
    let open = open_on_all(&world);
    let [killed, left @ ..] = &world.proxies[..] else { panic!() };
    world.is_whole(Duration::from_secs(5), &[killed, &left[0], &left[1]]);
    let dead = id_of(killed);
    let mut store = world.store();
    let field = format!("a@b@{dead}");
    let _: () = store.hset("steadfast:placed:pool", &field, "a").unwrap();
    let _: () = store.hset("steadfast:placed:pool", format!("{dead}@another"), "a").unwrap();
    world.proxies[0].process.kill();
    let left = [&world.proxies[1], &world.proxies[2]];
    world.is_whole(Duration::from_secs(30), &left);
    eventually("nothing else of it is left", || {
        let known: bool = store.sismember("steadfast:proxies", &dead).unwrap();
        let locked: bool = store.exists(format!("steadfast:sweep:{dead}")).unwrap();
        (!known && !locked).then_some(())
    });
    let placed: Vec<String> = store.hkeys("steadfast:placed:pool").unwrap();
    assert_eq!(placed, [format!("{dead}@another")], "{field} is gone");
    let swept = left.map(|proxy| proxy.metric("steadfast_registry_swept_total", &[]));
    assert_eq!(swept.iter().sum::<f64>(), 1.0, "{swept:?}");
    world.is_whole(Duration::from_secs(1), &left);
    drop(open);
}

#[test]
fn a_proxy_that_was_paused_has_everything_again() {
    let world = World::new(2);
    let (paused, other) = (&world.proxies[0], &world.proxies[1]);
    let (mut open, _others) = (open(paused.address, 300), open(other.address, 20));
    world.is_whole(Duration::from_secs(5), &[paused, other]);
    paused.process.signal("STOP");
    let stopped = Instant::now();
    // Half of its clients go, so that it finds more to do than to write all again.
    open.truncate(150);
    let swept = || other.metric("steadfast_registry_swept_total", &[]) > 0.0;
    within(Duration::from_secs(30), "it is taken for dead", || swept().then_some(()));
    within(Duration::from_secs(20), "20 seconds", || {
        (stopped.elapsed() > Duration::from_secs(20)).then_some(())
    });
    paused.process.signal("CONT");
    let woken = Instant::now();
    eventually("its clients are gone", || {
        (paused.metric("steadfast_connections", &[]) == 150.0).then_some(())
    });
    world.is_whole(Duration::from_secs(10).saturating_sub(woken.elapsed()), &[paused, other]);
    let mut store = world.store();
    let proxies: BTreeSet<String> = store.smembers("steadfast:proxies").unwrap();
    assert_eq!(proxies, BTreeSet::from([id_of(paused), id_of(other)]));
}

#[test]
fn idle_connections_cost_redis_next_to_nothing() {
    const TIME: Duration = Duration::from_secs(15);
    let world = World::new(2);
    let _open = open_on_all(&world);
    world.is_whole(Duration::from_secs(5), &[&world.proxies[0], &world.proxies[1]]);
    let mut store = world.store();
    let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query(&mut store).unwrap();
    // So long is counted what they cost.
    std::thread::sleep(TIME);
    let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut store).unwrap();
    let calls = stats.lines().filter_map(|line| {
        let (_, calls) = line.split_once("calls=")?;
        calls.split(',').next()?.parse::<f64>().ok()
    });
    let each = calls.sum::<f64>() / 2.0 / TIME.as_secs_f64();
    eprintln!("{each:.2} commands a second of each proxy\n{stats}");
    assert!(each <= 4.0, "{each}: {stats}");
}

/// A proxy with so many connections that never change.
struct Still(u64);

impl Truth for Still {
    fn page(&self, cursor: Option<u64>) -> Boxed<'_, Option<Page>> {
        let from = cursor.unwrap_or(0);
        let to = self.0.min(from + 500);
        let connections = (from..to).map(|number| {
            let record = Record {
                backend: "a".into(),
                pool: "pool".into(),
                route: "route".into(),
                key: Some(format!("key {number}").into()),
                client: [127, 0, 0, 1].into(),
                opened_at: 1_700_000_000_000,
                rooms: Vec::new(),
            };
            (format!("{:02x}{number:016x}", number % 64).into(), record)
        });
        let page = Page { connections: connections.collect(), next: (to < self.0).then_some(to) };
        Box::pin(std::future::ready(Some(page)))
    }

    fn connections(&self) -> usize {
        usize::try_from(self.0).unwrap()
    }

    fn rings(&self) -> Vec<(String, String)> {
        vec![("pool".to_owned(), "f00d".to_owned())]
    }

    fn placed(&self, _pool: &str) -> Vec<(Arc<str>, Arc<str>)> {
        Vec::new()
    }

    fn admin(&self) -> Option<String> {
        Some("127.0.0.1:1".to_owned())
    }
}

/// In the registry at this URL, under a name.
fn join(url: &str, name: &str) -> Arc<Redis> {
    join_at(Place::at(url).unwrap(), name)
}

fn join_at(place: Place, name: &str) -> Arc<Redis> {
    let settings = Settings {
        place,
        prefix: "steadfast".to_owned(),
        required: false,
        join_wait: Duration::from_millis(50),
        max_message: 1024,
    };
    let identity = Identity { proxy: name.into(), name: name.to_owned() };
    Arc::new(Redis::new(settings, identity))
}

fn run(redis: &Arc<Redis>, connections: u64) -> JoinHandle<()> {
    let (redis, (events, received)) = (Arc::clone(redis), tokio::sync::mpsc::channel(9));
    tokio::spawn(async move {
        let _received = received;
        redis.run(Arc::new(Still(connections)), events, std::future::pending()).await;
    })
}

#[test]
fn ten_thousand_connections_are_back_5_seconds_after_redis() {
    const MANY: u64 = 10_000;
    let mut place = server::Redis::start();
    runtime().block_on(async {
        let proxy = join(&place.url(), "one");
        let running = run(&proxy, MANY);
        let written = |place: &server::Redis| {
            let client = redis::Client::open(place.url()).unwrap();
            let Ok(mut store) = client.get_connection() else { return 0 };
            let shards = (0..64).map(|shard| format!("steadfast:owns:one:{shard:02x}"));
            shards.map(|name| store.hlen::<_, u64>(name).unwrap()).sum()
        };
        for _ in 0..2 {
            let began = Instant::now();
            while written(&place) < MANY {
                assert!(began.elapsed() < Duration::from_secs(5), "{}", written(&place));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            eprintln!("{MANY} connections after {:?}", began.elapsed());
            place.restart();
        }
        running.abort();
    });
}

#[test]
fn who_comes_back_is_no_longer_swept() {
    let place = server::Redis::start();
    let mut store = redis::Client::open(place.url()).unwrap().get_connection().unwrap();
    let mut left = redis::pipe();
    left.sadd("steadfast:proxies", "ghost");
    for number in 0..20_000 {
        let shard = number % 64;
        left.hset(
            format!("steadfast:owns:ghost:{shard:02x}"),
            format!("ghost.{shard:02x}{number:016x}"),
            "{}",
        );
    }
    let _: () = left.query(&mut store).unwrap();
    runtime().block_on(async {
        let proxy = join(&place.url(), "one");
        let running = run(&proxy, 0);
        let has = |store: &mut Connection, name| store.exists::<_, bool>(name).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while !has(&mut store, "steadfast:sweep:ghost") {
            assert!(Instant::now() < until, "nobody sweeps");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let _: () = store.hset("steadfast:proxy:ghost", "name", "ghost").unwrap();
        while has(&mut store, "steadfast:sweep:ghost") {
            assert!(Instant::now() < until, "it goes on");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(has(&mut store, "steadfast:owns:ghost:3f"), "all is gone");
        assert!(store.sismember::<_, _, bool>("steadfast:proxies", "ghost").unwrap());
        assert_eq!(proxy.counts().swept.get(), 0);
        running.abort();
    });
}

#[test]
fn in_a_cluster_each_is_found_until_its_proxy_leaves() {
    const SOME: u64 = 300;
    let servers = server::cluster(3);
    let urls: Vec<String> = servers.iter().map(server::Redis::url).collect();
    let place = Place::cluster(urls.iter().map(String::as_str)).unwrap();
    runtime().block_on(async {
        let (proxy, other) = (join_at(place.clone(), "one"), join_at(place, "two"));
        let running = [run(&proxy, SOME), run(&other, 0)];
        let others = other.others().unwrap();
        let found = async |wanted: u64| {
            let until = Instant::now() + Duration::from_secs(20);
            loop {
                let mut found = 0;
                for number in 0..SOME {
                    let id = format!("one.{:02x}{number:016x}", number % 64);
                    let owned = others.owner(&id).await.unwrap_or_default();
                    let key = format!("key {number}");
                    let of_key = others.of_key("pool", &key, None, 9).await.unwrap_or_default();
                    let is_there = owned.is_some_and(|owned| of_key == [owned]);
                    found += u64::from(is_there);
                }
                if found == wanted {
                    return;
                }
                assert!(Instant::now() < until, "{found}, not {wanted}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        found(SOME).await;
        running[0].abort();
        proxy.sign_off().await;
        found(0).await;
        running[1].abort();
    });
}

#[test]
fn others_are_found_in_redis() {
    let world = World::new(1);
    let proxy = &world.proxies[0];
    let _open = open(proxy.address, 70);
    world.is_whole(Duration::from_secs(5), &[proxy]);
    let all = world.there().unwrap();
    let wanted: Vec<&String> = all.keys["pool/k3"].iter().collect();
    runtime().block_on(async {
        let (one, two) = (join(&world.redis.url(), "one"), join(&world.redis.url(), "two"));
        let running = [run(&one, 0), run(&two, 0)];
        let others = one.others().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while others.peers().len() < 2 {
            assert!(Instant::now() < until, "{:?}", others.peers());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let peers = others.peers();
        let two = peers.iter().find(|peer| peer.proxy == "two").unwrap();
        assert_eq!(two.admin.as_deref(), Some("127.0.0.1:1"));
        assert_eq!(two.rings, [("pool".to_owned(), "f00d".to_owned())]);
        assert!(peers.iter().any(|peer| peer.proxy == id_of(proxy)));

        let found = others.owner(wanted[0]).await.unwrap().unwrap();
        assert_eq!((&found.id, &*found.record.pool), (wanted[0], "pool"));
        assert_eq!(found.record.key.as_deref(), Some("k3"));
        for nobody in ["", "edge", ".", "edge-1.00", "é.é", &format!("{}0", wanted[0])] {
            assert_eq!(others.owner(nobody).await.unwrap(), None, "{nobody}");
        }
        // What has no record is nobody's.
        let mut store = world.store();
        let _: () = store.sadd("steadfast:key:pool/k3", format!("{}0", wanted[1])).unwrap();
        let mut ids = Vec::new();
        loop {
            let after = ids.last().map(String::as_str);
            let page = others.of_key("pool", "k3", after, 3).await.unwrap();
            ids.extend(page.iter().map(|owned| owned.id.clone()));
            if page.len() < 3 {
                break;
            }
        }
        assert_eq!(ids.iter().collect::<Vec<_>>(), wanted);
        assert!(others.of_key("pool", "never", None, 9).await.unwrap().is_empty());
        running.iter().for_each(JoinHandle::abort);
    });
}
