//! Proxies that share a registry drain a backend as one.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::process::Command;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use steadfast::pool::turns::turn_of;
use support::http::get;
use support::named::{Named, addresses, join, rooms_of};
use support::ws::{self, CLOSE, Ws};
use support::{Proxy, RedisServer, config, eventually};

const SPAN: Duration = Duration::from_secs(4);
const SPAN_OF_POOL: (&str, &str) = ("pool", "drain_timeout = \"4s\"");

fn shared(backends: &[Named], redis: &RedisServer, more: &[(&str, &str)]) -> String {
    let more = [&[SPAN_OF_POOL], more].concat();
    config(&addresses(backends), &more) + &format!("\n[registry]\nurl = \"{}\"\n", redis.url())
}

/// Rooms whose home is `a`, one of `a` and `b`.
fn rooms_of_a() -> impl Iterator<Item = String> {
    rooms_of(&["a", "b"], "a")
}

/// Waits for the Close of a drain, and answers it; when that was.
fn closed(client: &Ws) -> Instant {
    let code = loop {
        let frame = client.read();
        if frame.opcode == CLOSE {
            break frame.close().0;
        }
    };
    let at = Instant::now();
    assert_eq!(code, 1012);
    client.send_close(1012, "");
    at
}

fn view(proxy: &Proxy) -> Value {
    let pools = proxy.json("/v1/pools");
    let backends = pools["pools"][0]["backends"].as_array().unwrap();
    backends.iter().find(|one| one["id"] == "a").unwrap().clone()
}

#[track_caller]
fn drain(proxy: &Proxy) -> Value {
    let (status, answer) = proxy.post("/v1/pools/pool/backends/a/drain", "");
    assert_eq!(status, 200, "{answer}");
    answer
}

#[test]
fn a_key_is_closed_by_all_proxies_at_once_and_its_clients_are_closed_once() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let settings = shared(&backends, &redis, &[]);
    let proxies = [(); 2].map(|()| Proxy::start(&settings));
    // Some rooms are at one proxy alone, so that their lines differ.
    let rooms: Vec<String> = rooms_of_a().take(24).collect();
    let mut members = Vec::new();
    for (number, room) in rooms.iter().enumerate() {
        for (at, proxy) in proxies.iter().enumerate().filter(|(at, _)| number % 4 > 0 || *at == 0) {
            let (client, greeting) = join(proxy, room);
            assert_eq!(greeting, "a");
            members.push((room.clone(), client, proxies[1 - at].address));
        }
    }
    let began = Instant::now();
    drain(&proxies[0]);
    let leave = |(room, client, other): (String, Ws, _)| {
        spawn(move || {
            let at = closed(&client);
            // At once, through the other proxy.
            let again = ws::open(other, &format!("/?room={room}")).read().text();
            (room, at, again)
        })
    };
    let leaving: Vec<_> = members.into_iter().map(leave).collect();
    let left: Vec<_> = leaving.into_iter().map(|member| member.join().unwrap()).collect();
    let twice: Vec<_> = left.iter().filter(|(.., again)| again == "a").collect();
    assert!(twice.is_empty(), "they would be closed once more: {twice:?}");
    for room in &rooms {
        let times = left.iter().filter(|(of, ..)| of == room).map(|(_, at, _)| *at);
        let (first, last) = (times.clone().min().unwrap(), times.max().unwrap());
        assert!(last - first < SPAN / 8, "{room}: {:?}", last - first);
    }
    let late = left.iter().filter(|(_, at, _)| *at - began > SPAN / 2).count();
    assert!((left.len() / 5..left.len() / 5 * 4).contains(&late), "{late} in the second half");
}

#[test]
fn until_its_turn_a_key_is_followed_to_a_backend_that_is_drained() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let settings = shared(&backends, &redis, &[]);
    let proxies = [(); 2].map(|()| Proxy::start(&settings));
    let by_turn = |late: bool| {
        let room = rooms_of_a().find(|room| (turn_of(room, SPAN) > SPAN * 3 / 4) == late);
        room.unwrap()
    };
    let (late, elsewhere) = (by_turn(true), by_turn(false));
    let (first, at) = join(&proxies[0], &late);
    assert_eq!(at, "a");
    eventually("it is written down", || {
        (redis.ask(&["SCARD", &format!("steadfast:key:pool/{late}")]) == "1").then_some(())
    });
    drain(&proxies[0]);
    eventually("the other knows", || (view(&proxies[1])["state"] == "draining").then_some(()));
    let (second, at) = join(&proxies[1], &late);
    assert_eq!(at, "a");
    assert_eq!(join(&proxies[1], &elsewhere).1, "b", "one that lives nowhere does not go there");
    let [first, second] = [first, second].map(|client| spawn(move || closed(&client)));
    let [first, second] = [first, second].map(|closed| closed.join().unwrap());
    let apart = first.max(second) - first.min(second);
    assert!(apart < Duration::from_secs(2), "{apart:?}");
    assert_eq!(join(&proxies[1], &late).1, "b");
}

#[test]
fn who_hears_late_joins_the_drain_where_it_is() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let settings = shared(&backends, &redis, &[]);
    let proxy = Proxy::start(&settings);
    let members: Vec<Ws> = rooms_of_a().take(20).map(|room| join(&proxy, &room).0).collect();
    proxy.wait_for_metric("steadfast_registry_up", &[], 1.0);
    // It began an hour ago, and all turns were missed.
    let ago = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - Duration::from_secs(3600);
    let since = u64::try_from(ago.as_millis()).unwrap();
    let wish = json!({ "since": since, "by": "another" }).to_string();
    redis.ask(&["HSET", "steadfast:drain:pool", "a", &wish]);
    let began = Instant::now();
    redis.ask(&["PUBLISH", "steadfast:drain:pool", ""]);
    let leaving = members.into_iter().map(|client| spawn(move || closed(&client)));
    let leaving: Vec<_> = leaving.collect();
    let times: Vec<_> = leaving.into_iter().map(|member| member.join().unwrap() - began).collect();
    let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    assert!(*last < SPAN / 2, "it did not begin anew: {times:?}");
    assert!(*last - *first > SPAN / 8, "nor all at once: {times:?}");
    for proxy in [proxy, Proxy::start(&settings)] {
        assert_eq!(view(&proxy)["drain"]["since"], since);
    }
}

#[test]
fn since_when_it_is_drained_all_proxies_agree() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let settings = shared(&backends, &redis, &[]);
    let proxies = [(); 2].map(|()| Proxy::start(&settings));
    drain(&proxies[0]);
    let written: Value =
        serde_json::from_str(&redis.ask(&["HGET", "steadfast:drain:pool", "a"])).unwrap();
    let late = Proxy::start(&settings);
    for proxy in [&proxies[0], &proxies[1], &late] {
        eventually("it says what is written", || {
            (view(proxy)["drain"]["since"] == written["since"]).then_some(())
        });
    }
}

const POLLING: &str = "/socket.io/?EIO=4&transport=polling";

fn open_session(proxy: &Proxy) -> String {
    let packet = get(proxy.address, POLLING).text();
    let packet: Value = serde_json::from_str(packet.strip_prefix('0').unwrap()).unwrap();
    packet["sid"].as_str().unwrap().to_owned()
}

#[test]
fn a_learnt_session_ends_for_all_proxies_when_its_turn_comes() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let settings = shared(&backends, &redis, &[("route", "learn = \"socketio\"")]);
    let settings = settings.replace("key = \"query:room\"\n", "");
    let proxies = [(); 2].map(|()| Proxy::start(&settings));
    let sessions: Vec<String> = (0..40).map(|_| open_session(&proxies[0])).collect();
    let of_a: Vec<&String> = sessions.iter().filter(|session| session.starts_with("a-")).collect();
    let at = |proxy: &Proxy, id: &str| get(proxy.address, &format!("{POLLING}&sid={id}")).text();
    // Half of them are known to both.
    for session in &of_a[..of_a.len() / 2] {
        assert_eq!(at(&proxies[1], session), "a");
    }
    let kept = || {
        let of_a = of_a
            .iter()
            .filter(|id| redis.ask(&["EXISTS", &format!("steadfast:session:pool/{id}")]) == "1");
        of_a.count()
    };
    eventually("all are written", || (kept() == of_a.len()).then_some(()));
    drain(&proxies[0]);
    let staying = of_a.iter().filter(|session| at(&proxies[1], session) == "a").count();
    assert!(staying > of_a.len() / 2, "their turn has not come: {staying} of {}", of_a.len());
    eventually("all are over", || {
        let is_over = |id: &&String| proxies.iter().all(|proxy| at(proxy, id) == "b");
        of_a.iter().all(is_over).then_some(())
    });
    eventually("they are gone from the registry", || (kept() == 0).then_some(()));
    // Whoever still asks does not bring one back.
    for _ in 0..5 {
        assert!(of_a.iter().all(|id| proxies.iter().all(|proxy| at(proxy, id) == "b")));
        assert_eq!(kept(), 0);
        sleep(Duration::from_millis(100));
    }
    // Those of the other backend are as they were.
    let others = sessions.iter().filter(|session| session.starts_with("b-"));
    others.for_each(|id| assert_eq!(at(&proxies[1], id), "b"));
}

#[test]
fn a_session_that_another_proxy_has_learnt_is_explained() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let settings = shared(&backends, &redis, &[("route", "learn = \"socketio\"")]);
    let settings = settings.replace("key = \"query:room\"\n", "");
    let proxies = [(); 2].map(|()| Proxy::start(&settings));
    let session = open_session(&proxies[0]);
    let explained = |proxy: &Proxy, id: &str| {
        let asked = format!("/socket.io/%3FEIO=4%26transport=polling%26sid={id}");
        proxy.json(&format!("/v1/route?url={asked}"))
    };
    for proxy in &proxies {
        eventually("it is told where it is", || {
            (explained(proxy, &session)["backend"] == session[..1]).then_some(())
        });
    }
    assert_eq!(explained(&proxies[1], "unknown")["backend"], "any");
    // It was a look, not a request.
    assert_eq!(proxies[1].metric("steadfast_sessions", &[("pool", "pool")]), 0.0);
}

#[test]
fn a_drain_is_waited_for_at_all_proxies() {
    let redis = RedisServer::start();
    let backends = ["a", "b"].map(Named::start);
    let settings = shared(&backends, &redis, &[]);
    let proxies = [(); 2].map(|()| Proxy::start(&settings));
    let members: Vec<Ws> = rooms_of_a().take(10).map(|room| join(&proxies[1], &room).0).collect();
    eventually("they know each other", || {
        let page = proxies[0].json("/v1/connections");
        (!page["elsewhere"].as_array().unwrap().is_empty()).then_some(())
    });
    let leaving: Vec<_> =
        members.into_iter().map(|client| spawn(move || closed(&client))).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    command.args(["drain", "pool/a", "--wait", "--admin", &proxies[0].admin.to_string()]);
    let ended = command.output().unwrap();
    let left = view(&proxies[1]);
    let said = String::from_utf8(ended.stdout).unwrap();
    assert_eq!((&left["connections"], &left["drain"]["left"]), (&json!(0), &json!(0)), "{said}");
    assert!(ended.status.success(), "{said}");
    assert!(said.contains("nothing is there by this proxy; "), "{said}");
    assert!(said.contains(" connections by others\n"), "{said}");
    assert!(said.ends_with("pool/a: drained: nothing is there\n"), "{said}");
    leaving.into_iter().for_each(|member| assert!(!member.join().unwrap().elapsed().is_zero()));
}
