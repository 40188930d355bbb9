//! The admin API of one proxy speaks for the fleet: it lists a key's connections wherever they are, does
//! to them what it is asked, and says so when it can't.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::http::{Answer, header, request};
use support::redis::Redis;
use support::scripted::{Handed, Refusing, Scripted};
use support::ws::{self, Ws};
use support::{Proxy, config, eventually};

/// Two proxies before a backend that opens, and one that nobody reaches.
struct World {
    redis: Redis,
    proxies: [Proxy; 2],
    handed: Handed,
    _backend: Scripted,
    _nobody: Refusing,
}

struct Open {
    client: Ws,
    _backend: TcpStream,
    id: String,
}

impl World {
    fn new() -> Self {
        let redis = Redis::start();
        let (backend, handed) = Scripted::opening();
        let nobody = Refusing::new();
        let backends = [("a", backend.address), ("b", nobody.address)];
        let more = [("server", "workers = 2"), ("route", "rooms = [\"lobby\"]")];
        let registry = format!("[registry]\nurl = \"{}\"\njoin_wait = \"5s\"\n", redis.url());
        let config = format!("{}\n{registry}", config(&backends, &more));
        let proxies = [(); 2].map(|()| Proxy::start(&config));
        for (one, other) in [(0, 1), (1, 0)] {
            let (one, other): (&Proxy, &Proxy) = (&proxies[one], &proxies[other]);
            one.wait_for_metric("steadfast_registry_up", &[], 1.0);
            let admin = other.admin.to_string();
            eventually("each knows of the other", || {
                let elsewhere = one.json("/v1/connections")["elsewhere"].clone();
                (elsewhere[0]["admin"] == admin.as_str()).then_some(())
            });
        }
        Self { redis, proxies, handed, _backend: backend, _nobody: nobody }
    }

    fn open(&self, proxy: usize, key: &str) -> Open {
        let client = ws::open(self.proxies[proxy].address, &format!("/?room={key}"));
        let (backend, head) = self.handed.next();
        let id = header(&head, "steadfast-connection").unwrap().to_owned();
        Open { client, _backend: backend, id }
    }

    fn ask(&self, proxy: usize, method: &str, path: &str) -> Answer {
        let text = [("Content-Type", "text/plain")];
        let body: &[u8] = if method == "POST" { path.as_bytes() } else { b"" };
        request(self.proxies[proxy].admin, method, path, &text, body)
    }

    /// Waits until a proxy tells of a connection.
    #[track_caller]
    fn knows(&self, proxy: usize, id: &str) {
        let path = format!("/v1/connections/{id}");
        eventually("it is known", || (self.ask(proxy, "GET", &path).status == 200).then_some(()));
    }

    /// The ids of a list, read in pages of at most `limit`.
    #[track_caller]
    fn pages(&self, proxy: usize, query: &str, limit: usize) -> Vec<String> {
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/connections?{query}&limit={limit}{cursor}");
            let page = self.proxies[proxy].json(&path);
            assert_eq!((&page["elsewhere"], &page["partial"]), (&Value::Null, &Value::Null));
            let rows = page["connections"].as_array().unwrap();
            assert!(rows.len() <= limit, "{path}: {page}");
            ids.extend(rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { return ids };
            cursor = format!("&cursor={next}");
            assert!(ids.len() <= 100, "{path} never ends");
        }
    }
}

fn status_of(answer: &Answer) -> (u16, String) {
    (answer.status, answer.text())
}

#[test]
fn a_key_is_listed_over_all_proxies_page_by_page() {
    let world = World::new();
    let open: Vec<Open> =
        [0, 1, 1, 0, 1, 0, 0].into_iter().map(|proxy| world.open(proxy, "k")).collect();
    let stranger = world.open(1, "other");
    for one in open.iter().chain([&stranger]) {
        world.knows(0, &one.id);
        world.knows(1, &one.id);
    }
    let ids = |of: &[Open]| of.iter().map(|one| one.id.clone()).collect::<BTreeSet<_>>();
    let all = ids(&open);
    for proxy in 0..2 {
        for query in ["pool=pool&key=k", "key=k", "key=k&room=lobby", "key=k&backend=a"] {
            for limit in 1..=8 {
                let listed = world.pages(proxy, query, limit);
                assert_eq!(listed.len(), all.len(), "{query} by {limit}: {listed:?}");
                assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), all, "{query} by {limit}");
            }
        }
        for nobody in ["key=none", "key=k&backend=b", "key=k&room=none", "key=k&pool=none"] {
            assert_eq!(world.pages(proxy, nobody, 2), [""; 0], "{nobody}");
        }
    }

    // What another proxy has is told in the same words, but for what only that one knows.
    let path = format!("/v1/connections/{}", open[1].id);
    let (own, mut told) = (world.proxies[1].json(&path), world.proxies[0].json(&path));
    assert!(told["last_activity"].is_null(), "{told}");
    for field in ["last_activity", "messages_from_client", "bytes_from_client"] {
        told[field] = own[field].clone();
    }
    for field in ["messages_from_backend", "bytes_from_backend"] {
        told[field] = own[field].clone();
    }
    assert_eq!(own, told);
    assert_eq!(own["proxy"], open[1].id.split('.').next().unwrap());

    // Other lists are the proxy's own, and say where to go on.
    let own = world.proxies[0].json("/v1/connections?room=lobby");
    assert_eq!(own["connections"].as_array().unwrap().len(), 4);
    let proxy = stranger.id.split('.').next().unwrap();
    let admin = world.proxies[1].admin.to_string();
    assert_eq!(own["elsewhere"], json!([{ "proxy": proxy, "admin": admin }]));
}

#[test]
fn what_is_asked_of_another_proxys_connection_is_done() {
    let mut world = World::new();
    let (one, other) = (world.open(0, "k"), world.open(1, "k"));
    world.knows(0, &other.id);
    let id = &other.id;
    let messages = format!("/v1/connections/{id}/messages");
    let sent = world.ask(0, "POST", &messages);
    assert_eq!(status_of(&sent), (202, "{\"proxies\":1}".to_owned()));
    other.client.expect_text(&messages);
    for path in ["/v1/keys/pool/k/messages", "/v1/rooms/lobby/messages", "/v1/broadcast"] {
        let sent = world.ask(0, "POST", path);
        assert_eq!(status_of(&sent), (202, "{\"proxies\":2}".to_owned()), "{path}");
        one.client.expect_text(path);
        other.client.expect_text(path);
    }
    let except = format!("/v1/broadcast?except={}&except={id}", one.id);
    assert_eq!(world.ask(0, "POST", &except).status, 202);

    let member = format!("/v1/rooms/red/members/{id}");
    let rooms = |proxy: usize| world.proxies[proxy].json(&format!("/v1/connections/{id}"));
    for (method, wanted) in [("PUT", json!(["lobby", "red"])), ("DELETE", json!(["lobby"]))] {
        assert_eq!(status_of(&world.ask(0, method, &member)), (202, String::new()));
        for proxy in 0..2 {
            eventually(method, || (rooms(proxy)["rooms"] == wanted).then_some(()));
        }
    }
    let close = format!("/v1/connections/{id}?code=4001&reason=over");
    assert_eq!(status_of(&world.ask(0, "DELETE", &close)), (202, String::new()));
    // Nothing came of what was not for it.
    assert_eq!(other.client.read().close(), (4001, "over".to_owned()));
    other.client.send_close(4001, "");
    other.client.expect_end();
    let path = format!("/v1/connections/{id}");
    eventually("it is gone", || (world.ask(0, "GET", &path).status == 404).then_some(()));

    // One of a proxy that is gone, though it had no time to sign off.
    let lost = world.open(1, "k");
    world.knows(0, &lost.id);
    world.proxies[1].process.kill();
    let path = format!("/v1/connections/{}", lost.id);
    let messages = format!("{path}/messages");
    eventually("nobody hears of it", || {
        (world.ask(0, "POST", &messages).status == 410).then_some(())
    });
    assert_eq!(world.ask(0, "DELETE", &path).status, 404);
    for method in ["PUT", "DELETE"] {
        let member = format!("/v1/rooms/red/members/{}", lost.id);
        assert_eq!(world.ask(0, method, &member).status, 404, "{method}");
    }
    assert_eq!(world.ask(0, "POST", "/v1/broadcast").text(), "{\"proxies\":1}");
    one.client.expect_text("/v1/broadcast");
}

/// What a proxy says of what it can't do while the registry is away, each within a time that somebody
/// waits for.
fn says_what_it_can(world: &World, one: &Open, other: &Open) {
    let path = format!("/v1/connections/{}", other.id);
    let ask = |method: &str, path: &str| {
        let asked = Instant::now();
        let answer = world.ask(0, method, path);
        assert!(asked.elapsed() < Duration::from_secs(4), "{path}: {:?}", asked.elapsed());
        answer
    };
    // Also in the moment before it has noticed.
    assert_eq!(ask("GET", &path).status, 503);
    world.proxies[0].wait_for_metric("steadfast_registry_up", &[], 0.0);
    let member = format!("/v1/rooms/red/members/{}", other.id);
    for (method, path) in [
        ("GET", &path),
        ("DELETE", &path),
        ("POST", &format!("{path}/messages")),
        ("PUT", &member),
        ("DELETE", &member),
    ] {
        let answer = ask(method, path);
        assert_eq!(answer.status, 503, "{method} {path}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    let partial = (202, "{\"proxies\":1,\"partial\":true}".to_owned());
    for path in ["/v1/keys/pool/k/messages", "/v1/rooms/lobby/messages", "/v1/broadcast"] {
        assert_eq!(status_of(&ask("POST", path)), partial, "{path}");
        one.client.expect_text(path);
    }
    let nobody = "{\"proxies\":0,\"partial\":true}";
    assert_eq!(ask("POST", "/v1/rooms/none/messages").text(), nobody);
    let listed = world.proxies[0].json("/v1/connections?key=k");
    assert_eq!(listed["partial"], true);
    assert_eq!(listed["connections"].as_array().unwrap().len(), 1);
    assert_eq!(listed["connections"][0]["id"], one.id.as_str());
    assert_eq!(world.proxies[0].json("/v1/status")["registry"], "away");
    // What is this proxy's own is done as ever.
    let own = format!("/v1/connections/{}", one.id);
    assert_eq!(ask("GET", &own).status, 200);
    assert_eq!(ask("POST", &format!("{own}/messages")).status, 202);
    one.client.expect_text(&format!("{own}/messages"));
    // In the room, which others reach later.
    assert_eq!(ask("PUT", &format!("/v1/rooms/red/members/{}", one.id)).status, 202);
    let (own_room, first) = ("/v1/rooms/red/messages", "{\"proxies\":1,\"partial\":true}");
    assert_eq!(ask("POST", own_room).text(), first);
    one.client.expect_text(own_room);
    assert_eq!(ask("POST", "/v1/pools/pool/backends/b/drain").status, 202);
}

/// All that it could not do it does again; what it owed the others they have.
fn is_whole_again(world: &World, one: &Open, other: &Open) {
    for (proxy, id) in [(0, &other.id), (1, &one.id)] {
        world.proxies[proxy].wait_for_metric("steadfast_registry_up", &[], 1.0);
        world.knows(proxy, id);
    }
    eventually("the other drains too", || {
        let pools = world.proxies[1].json("/v1/pools");
        (!pools["pools"][0]["backends"][1]["drain"].is_null()).then_some(())
    });
    let undrain = "/v1/pools/pool/backends/b/undrain";
    assert_eq!(world.ask(1, "POST", undrain).status, 200);
    eventually("the one takes it back too", || {
        let pools = world.proxies[0].json("/v1/pools");
        pools["pools"][0]["backends"][1]["drain"].is_null().then_some(())
    });
    for (path, who) in [
        ("/v1/broadcast", "all"),
        ("/v1/keys/pool/k/messages", "the key"),
        ("/v1/rooms/lobby/messages", "the room"),
    ] {
        // Not one has heard what was said to the other meanwhile.
        let sent = world.ask(0, "POST", path);
        assert_eq!(status_of(&sent), (202, "{\"proxies\":2}".to_owned()), "{who}");
        one.client.expect_text(path);
        other.client.expect_text(path);
    }
    assert_eq!(world.ask(0, "PUT", &format!("/v1/rooms/red/members/{}", one.id)).status, 204);
    eventually("the room is known", || {
        let one = world.proxies[1].json(&format!("/v1/connections/{}", one.id));
        (one["rooms"] == json!(["lobby", "red"])).then_some(())
    });
}

#[test]
fn who_joins_a_room_is_told_whether_others_reach_it_there() {
    let redis = Redis::start();
    let (backend, handed) = Scripted::opening();
    let registry = format!("\n[registry]\nurl = \"{}\"\njoin_wait = \"10ms\"\n", redis.url());
    let proxy = Proxy::start(&(config(&[("a", backend.address)], &[]) + &registry));
    proxy.wait_for_metric("steadfast_registry_up", &[], 1.0);
    let _client = ws::open(proxy.address, "/?room=k");
    let id = header(&handed.next().1, "steadfast-connection").unwrap().to_owned();
    let join = |room: &str| {
        let path = format!("/v1/rooms/{room}/members/{id}");
        request(proxy.admin, "PUT", &path, &[], b"").status
    };
    // Before it is known to be away: nothing confirms a subscription in time.
    redis.signal("STOP");
    assert_eq!(join("red"), 202);
    proxy.wait_for_metric("steadfast_registry_up", &[], 0.0);
    assert_eq!(join("blue"), 202);
    redis.signal("CONT");
    proxy.wait_for_metric("steadfast_registry_up", &[], 1.0);
    for room in ["red", "blue"] {
        eventually("it stands", || (join(room) == 204).then_some(()));
    }
}

#[test]
fn while_redis_is_away_the_api_says_what_it_can_not_do() {
    let mut world = World::new();
    let (one, other) = (world.open(0, "k"), world.open(1, "k"));
    world.knows(0, &other.id);
    world.knows(1, &one.id);
    world.redis.signal("STOP");
    says_what_it_can(&world, &one, &other);
    world.redis.signal("CONT");
    is_whole_again(&world, &one, &other);
    world.redis.kill();
    says_what_it_can(&world, &one, &other);
    world.redis.restart();
    is_whole_again(&world, &one, &other);
}
