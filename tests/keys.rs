//! Which backend a key goes to: the same for every proxy, for HTTP and for WebSockets.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::{HashMap, HashSet};

use support::http::get;
use support::scripted::Scripted;
use support::ws::{self, Ws};
use support::{Backend, Proxy, addresses, config, eventually};

/// The backend that answers a plain request of a room.
#[track_caller]
fn by_http(proxy: &Proxy, room: &str) -> String {
    let answer = get(proxy.address, &format!("/health?room={room}"));
    assert_eq!(answer.status, 200, "{room}: {}", answer.text());
    answer.text()
}

/// A member of a room, and the backend that welcomed it.
#[track_caller]
fn by_websocket(proxy: &Proxy, room: &str) -> (Ws, String) {
    let member = ws::open(proxy.address, &format!("/rooms?room={room}&name=n"));
    let welcome: serde_json::Value = serde_json::from_str(&member.read().text()).unwrap();
    assert_eq!(welcome["welcome"]["room"], room, "{welcome}");
    let backend = welcome["welcome"]["backend"].as_str().unwrap().to_owned();
    (member, backend)
}

fn rooms(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("room-{number}"))
}

#[test]
fn two_proxies_and_both_protocols_agree_on_every_key() {
    let backends = Backend::fleet(&["a", "b", "c"]);
    let config = config(&addresses(&backends), &[]);
    let (one, two) = (Proxy::start(&config), Proxy::start(&config));
    let mut seen = HashSet::new();
    for room in rooms(300) {
        let backend = by_http(&one, &room);
        let (_member, welcomed_by) = by_websocket(&two, &room);
        assert_eq!(welcomed_by, backend, "{room}");
        // Also beside a live connection, and the other way round.
        assert_eq!(by_http(&two, &room), backend, "{room}");
        assert_eq!(by_websocket(&one, &room).1, backend, "{room}");
        seen.insert(backend);
    }
    assert_eq!(seen.len(), 3, "every backend has its keys");
}

#[test]
fn members_of_a_room_meet_whichever_proxy_they_came_through() {
    let backends = Backend::fleet(&["a", "b", "c"]);
    let config = config(&addresses(&backends), &[]);
    let (one, two) = (Proxy::start(&config), Proxy::start(&config));
    for room in rooms(10) {
        let (speaker, _) = by_websocket(&one, &room);
        let (hearer, _) = by_websocket(&two, &room);
        speaker.send(ws::TEXT, r#"{"say": "hello"}"#);
        eventually("the word is heard", || {
            hearer.read().text().contains(r#""said":"hello""#).then_some(())
        });
    }
}

#[test]
fn only_the_keys_of_a_removed_backend_move() {
    let backends = Backend::fleet(&["a", "b", "c"]);
    let mut listed = addresses(&backends);
    let all = Proxy::before(&listed);
    listed.retain(|(id, _)| *id != "b");
    // The order in the config is of no matter.
    listed.reverse();
    let fewer = Proxy::before(&listed);
    let mut moved = 0;
    for room in rooms(300) {
        let (before, after) = (by_http(&all, &room), by_http(&fewer, &room));
        if before == "b" {
            moved += 1;
            assert_ne!(after, "b");
        } else {
            assert_eq!(after, before, "{room} had no reason to move");
        }
    }
    // A third, give or take much.
    assert!((60..=140).contains(&moved), "{moved} of 300 moved");
}

#[test]
fn without_a_key_a_connection_goes_anywhere_and_has_none() {
    let (one, opened_by_one) = Scripted::opening();
    let (two, opened_by_two) = Scripted::opening();
    let proxy = Proxy::before(&[("one", one.address), ("two", two.address)]);
    // What a client says of itself is not believed.
    let headers = [("Steadfast-Key", "forged"), ("Steadfast-Connection", "forged.1")];
    let clients: Vec<Ws> = ["/", "/?room=", "/?other=x"]
        .iter()
        .cycle()
        .take(40)
        .map(|path| {
            let client = ws::ask(proxy.address, path, &headers);
            assert_eq!(client.answer.status, 101);
            client
        })
        .collect();
    assert!(one.accepted() > 5 && two.accepted() > 5, "{} {}", one.accepted(), two.accepted());
    assert_eq!(one.accepted() + two.accepted(), 40);
    let heads = (0..one.accepted()).map(|_| opened_by_one.next().1);
    let heads: Vec<String> =
        heads.chain((0..two.accepted()).map(|_| opened_by_two.next().1)).collect();
    for head in &heads {
        let head = head.to_ascii_lowercase();
        assert!(!head.contains("steadfast-key"), "{head}");
        assert!(head.contains("\r\nsteadfast-connection: edge-"), "{head}");
        assert!(!head.contains("forged"), "{head}");
    }
    let pools = proxy.json("/v1/pools");
    for backend in pools["pools"][0]["backends"].as_array().unwrap() {
        assert_eq!(backend["keys"], 0, "nothing is placed: {backend}");
    }
    assert_eq!(
        proxy.json("/v1/connections?limit=1")["connections"][0]["key"],
        serde_json::Value::Null
    );
    drop(clients);
}

#[test]
fn weights_are_shares_of_the_keys_and_of_what_has_none() {
    let backends = Backend::fleet(&["light", "heavy"]);
    let config = config(&addresses(&backends), &[]);
    let config = config.replace("id = \"heavy\",", "id = \"heavy\", weight = 3,");
    let proxy = Proxy::start(&config);
    for with_key in [true, false] {
        let mut counts: HashMap<String, u32> = HashMap::new();
        for room in rooms(400) {
            let backend = if with_key { by_http(&proxy, &room) } else { by_http(&proxy, "") };
            *counts.entry(backend).or_default() += 1;
        }
        // Three of four, and more than chance may take.
        assert!((260..=340).contains(&counts["heavy"]), "key: {with_key}: {counts:?}");
    }
    let share = proxy.metric("steadfast_backend_ring_share", &[("backend", "heavy")]);
    assert!((share - 0.75).abs() < 0.05, "{share}");
}

/// A proxy with a route for each kind of source, and what its backend is told.
struct Sources {
    proxy: Proxy,
    _backend: Scripted,
    opened: support::scripted::Handed,
}

impl Sources {
    fn start() -> Self {
        let (backend, opened) = Scripted::opening();
        let routes = [
            ("/query/*", r#""query:k""#),
            ("/header/*", r#""header:X-Room""#),
            ("/cookie/*", r#""cookie:sid""#),
            ("/path/*", r#""path:2""#),
            ("/ip/*", r#""client_ip""#),
            ("/list/*", r#"["query:k", "cookie:sid", "client_ip"]"#),
        ];
        let routes = routes.iter().map(|(path, key)| {
            format!("[[route]]\npath = \"{path}\"\npool = \"p\"\nkey = {key}\n")
        });
        let config = format!(
            "[server]\nname = \"edge\"\n[[listener]]\nbind = \"127.0.0.1:0\"\ntrusted = [\"127.0.0.0/8\"]\n{}\
             [pool.p]\nbackends = [{{ id = \"a\", address = \"{}\" }}]\nhealth = {{ kind = \"off\" }}\n",
            routes.collect::<String>(),
            backend.address
        );
        Self { proxy: Proxy::start(&config), _backend: backend, opened }
    }

    /// The key that the backend is told, encoded.
    #[track_caller]
    fn key_of(&self, path: &str, headers: &[(&str, &str)]) -> Option<String> {
        let client = ws::ask(self.proxy.address, path, headers);
        assert_eq!(client.answer.status, 101, "{path}: {}", client.answer.text());
        let (_, head) = self.opened.next();
        let line =
            head.lines().find(|line| line.to_ascii_lowercase().starts_with("steadfast-key:"))?;
        Some(line.split_once(": ").unwrap().1.to_owned())
    }
}

#[test]
fn each_source_gives_its_key() {
    let sources = Sources::start();
    for (path, headers, key) in [
        ("/query/?k=a%20b+c%2Bd", vec![], Some("a%20b%20c%2Bd")),
        ("/query/?k=%C3%BC&k=second", vec![], Some("%C3%BC")),
        ("/query/?other=1", vec![], None),
        ("/query/?k=", vec![("Cookie", "sid=7")], None),
        ("/header/", vec![("X-Room", "a b"), ("X-Room", "second")], Some("a%20b")),
        ("/header/", vec![], None),
        ("/cookie/", vec![("Cookie", "x=1; sid=abc-_.~; y=2")], Some("abc-_.~")),
        ("/cookie/", vec![("Cookie", "xsid=1")], None),
        ("/path/room%2F7/more", vec![], Some("room%2F7")),
        ("/path/", vec![], None),
        ("/ip/", vec![], Some("127.0.0.1")),
        ("/ip/", vec![("X-Forwarded-For", "203.0.113.9")], Some("203.0.113.9")),
        ("/ip/", vec![("X-Forwarded-For", "::ffff:203.0.113.9")], Some("203.0.113.9")),
        ("/ip/", vec![("X-Forwarded-For", "2001:DB8:0:0::1")], Some("2001%3Adb8%3A%3A1")),
        ("/list/?k=first", vec![("Cookie", "sid=second")], Some("first")),
        ("/list/?k=", vec![("Cookie", "sid=second")], Some("second")),
        ("/list/", vec![], Some("127.0.0.1")),
    ] {
        assert_eq!(sources.key_of(path, &headers).as_deref(), key, "{path} {headers:?}");
    }
}

#[test]
fn what_can_be_no_key_is_refused() {
    let sources = Sources::start();
    let longest = "x".repeat(512);
    assert_eq!(sources.key_of(&format!("/query/?k={longest}"), &[]), Some(longest.clone()));
    for path in [format!("/query/?k={longest}x"), "/query/?k=%FF".to_owned()] {
        assert_eq!(ws::ask(sources.proxy.address, &path, &[]).answer.status, 400, "{path}");
        assert_eq!(get(sources.proxy.address, &path).status, 400, "{path}");
    }
}
