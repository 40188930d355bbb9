//! A key with live connections stays whole: all of it on one backend, whatever happens.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::http::get;
use support::named::{Named, addresses, join, rooms_of};
use support::ws::{self, CLOSE, TEXT, Ws};
use support::{Proxy, SetWhenDropped, config, eventually};

const CHECKED: [(&str, &str); 6] = [
    ("health", "kind = \"http\""),
    ("health", "path = \"/health\""),
    ("health", "interval = \"50ms\""),
    ("health", "fall = 2"),
    ("health", "rise = 2"),
    ("health", "lost_after = \"0s\""),
];

#[track_caller]
fn asked(proxy: &Proxy, room: &str) -> String {
    let answer = get(proxy.address, &format!("/?room={room}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

#[track_caller]
fn still_echoes(client: &Ws) {
    client.send(TEXT, "still there?");
    client.expect_text("still there?");
}

#[test]
fn a_live_key_stays_whole_while_its_home_is_out_and_when_it_is_back() {
    let backends = ["a", "b", "c"].map(Named::start);
    let proxy = Proxy::start(&config(&addresses(&backends), &CHECKED));
    let mut rooms = rooms_of(&["a", "b", "c"], "a");
    let (old, new) = (rooms.next().unwrap(), rooms.next().unwrap());
    let (oldest, at) = join(&proxy, &old);
    assert_eq!(at, "a");

    backends[0].set_healthy(false);
    proxy.wait_for_state("a", "out_of_service");
    // What lives there stays, and whoever comes meets it: the backend lives, it only looks ill.
    assert_eq!(join(&proxy, &old).1, "a");
    assert_eq!(asked(&proxy, &old), "a");
    still_echoes(&oldest);
    // A new key goes elsewhere, and stays together there.
    let (first, away) = join(&proxy, &new);
    assert_ne!(away, "a");
    let (second, at) = join(&proxy, &new);
    assert_eq!(at, away);
    assert_eq!(asked(&proxy, &new), away);

    backends[0].set_healthy(true);
    proxy.wait_for_state("a", "in_service");
    assert_eq!(join(&proxy, &new).1, away);
    assert_eq!(asked(&proxy, &new), away);
    first.leave();
    assert_eq!(join(&proxy, &new).1, away, "one of the key is still there");
    assert_eq!(asked(&proxy, &new), away);
    still_echoes(&second);
    // With the last one gone it is free to go home.
    second.leave();
    eventually("the key goes home", || (asked(&proxy, &new) == "a").then_some(()));
    assert_eq!(join(&proxy, &new).1, "a");
    still_echoes(&oldest);
}

#[test]
fn a_placed_key_whose_backend_refuses_gets_502_and_no_second_place() {
    let backends = ["a", "b"].map(Named::start);
    let passive = [
        ("health", "kind = \"off\""),
        ("health", "passive_fall = 3"),
        ("health", "lost_after = \"0s\""),
    ];
    let proxy = Proxy::start(&config(&addresses(&backends), &passive));
    let mut rooms = rooms_of(&["a", "b"], "a");
    let (live, free) = (rooms.next().unwrap(), rooms.next().unwrap());
    let (member, at) = join(&proxy, &live);
    assert_eq!(at, "a");
    backends[0].shut_door();
    // In service, then out of it: the key is where it is. Idle connections are of no help.
    for round in 0..6 {
        let refused = ws::ask(proxy.address, &format!("/?room={live}"), &[]);
        assert_eq!(refused.answer.status, 502, "round {round}");
        assert_eq!(get(proxy.address, &format!("/?room={live}")).status, 502, "round {round}");
    }
    assert_eq!(proxy.state("a"), "out_of_service");
    assert_eq!(backends[1].handshakes(), 0);
    // Who has no place there goes to the next.
    let (elsewhere, at) = join(&proxy, &free);
    assert_eq!(at, "b");
    assert_eq!(asked(&proxy, &free), "b");
    still_echoes(&member);
    // The door opens again, still out of service: the live key follows its connections at once.
    backends[0].open_door();
    let (second, at) = join(&proxy, &live);
    assert_eq!(at, "a");
    still_echoes(&second);
    drop(elsewhere);
}

#[test]
fn a_key_without_connections_tries_the_next_on_the_ring() {
    let backends = ["a", "b", "c"].map(Named::start);
    let proxy = Proxy::start(&config(
        &addresses(&backends),
        &[("health", "kind = \"off\"\npassive_fall = 0")],
    ));
    let room = rooms_of(&["a", "b", "c"], "a").next().unwrap();
    backends[0].shut_door();
    let (member, next) = join(&proxy, &room);
    assert_ne!(next, "a");
    // Its place is there now, though its home is in service by all that is known.
    backends[0].open_door();
    assert_eq!(join(&proxy, &room).1, next);
    assert_eq!(asked(&proxy, &room), next);
    member.leave();
    eventually("the key goes home", || (asked(&proxy, &room) == "a").then_some(()));
    // All doors shut: one answer, without going in circles.
    backends.iter().for_each(Named::shut_door);
    assert_eq!(ws::ask(proxy.address, "/?room=other", &[]).answer.status, 502);
    assert_eq!(get(proxy.address, "/?room=other").status, 502);
    proxy.wait_for_metric("steadfast_placed_keys", &[], 0.0);
}

/// Has `count` threads join each room at once; tells the backends that each room was opened on,
/// with the connections, and how many were refused.
fn join_at_once(
    proxy: &Proxy,
    rooms: &[String],
    count: usize,
) -> (HashMap<String, HashSet<String>>, Vec<Ws>, usize) {
    let mut at: HashMap<String, HashSet<String>> = HashMap::new();
    let (mut open, mut refused) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        let joining: Vec<_> = rooms
            .iter()
            .flat_map(|room| std::iter::repeat_n(room, count))
            .map(|room| {
                scope.spawn(move || {
                    let client = ws::ask(proxy.address, &format!("/?room={room}"), &[]);
                    let greeting = (client.answer.status == 101).then(|| client.read().text());
                    (room, client, greeting)
                })
            })
            .collect();
        for thread in joining {
            let (room, client, greeting) = thread.join().unwrap();
            match greeting {
                Some(backend) => {
                    at.entry(room.clone()).or_default().insert(backend);
                    open.push(client);
                }
                None => {
                    assert!([502, 503].contains(&client.answer.status), "{}", client.answer.head);
                    refused += 1;
                }
            }
        }
    });
    (at, open, refused)
}

#[test]
fn handshakes_at_once_end_on_one_backend_when_their_home_refuses() {
    let backends = ["a", "b", "c"].map(Named::start);
    let more = [("server", "workers = 2"), ("health", "kind = \"off\"\npassive_fall = 0")];
    let proxy = Proxy::start(&config(&addresses(&backends), &more));
    let rooms: Vec<String> = rooms_of(&["a", "b", "c"], "a").take(4).collect();
    backends[0].shut_door();
    // Slow to answer, so that many are under way while others come and choose.
    backends[1].set_delay(Duration::from_millis(200));
    backends[2].set_delay(Duration::from_millis(100));
    let (at, open, refused) = join_at_once(&proxy, &rooms, 15);
    assert_eq!((open.len(), refused), (60, 0));
    for (room, backends) in &at {
        assert_eq!(backends.len(), 1, "{room} is on {backends:?}");
        assert!(!backends.contains("a"));
    }
}

#[test]
fn handshakes_at_once_end_on_one_backend_while_their_home_comes_and_goes() {
    let backends = ["a", "b", "c"].map(Named::start);
    let more = [
        ("server", "workers = 2"),
        ("health", "kind = \"tcp\"\ninterval = \"30ms\"\nfall = 1\nrise = 1\nlost_after = \"0s\""),
    ];
    let proxy = Proxy::start(&config(&addresses(&backends), &more));
    backends.iter().for_each(|backend| backend.set_delay(Duration::from_millis(30)));
    let rooms: Vec<String> = rooms_of(&["a", "b", "c"], "a").take(24).collect();
    let over = AtomicBool::new(false);
    let mut homes = HashSet::new();
    std::thread::scope(|scope| {
        let _over = SetWhenDropped(&over);
        scope.spawn(|| {
            let mut open = true;
            while !over.load(Ordering::SeqCst) {
                if open {
                    backends[0].shut_door();
                } else {
                    backends[0].open_door();
                }
                open = !open;
                std::thread::sleep(Duration::from_millis(15));
            }
        });
        let mut live = Vec::new();
        for rooms in rooms.chunks(4) {
            let (at, open, _) = join_at_once(&proxy, rooms, 8);
            let (again, more, _) = join_at_once(&proxy, rooms, 2);
            live.extend(open);
            live.extend(more);
            for (room, first) in at {
                let all: HashSet<_> = first.union(again.get(&room).unwrap_or(&first)).collect();
                assert_eq!(all.len(), 1, "{room} is on {all:?}");
                homes.extend(first);
            }
        }
        assert!(live.len() > 100, "only {} were opened", live.len());
    });
    assert!(homes.len() > 1, "nothing ever went elsewhere: {homes:?}");
}

#[test]
fn a_key_goes_on_at_once_though_a_client_has_not_answered_its_close() {
    let mut backends = support::Backend::fleet(&["a", "b"]);
    let proxy = Proxy::before(&support::addresses(&backends));
    let client = ws::open(proxy.address, "/rooms?room=k");
    let home = served_by(&client);
    backends.iter_mut().find(|backend| backend.id == home).unwrap().process.kill();
    // It reads the Close and does not answer.
    while client.read().opcode != CLOSE {}
    let other = ws::open(proxy.address, "/rooms?room=k");
    assert_ne!(served_by(&other), home);
    drop(client);
}

#[test]
fn a_client_that_does_not_read_keeps_no_key_on_a_backend_that_is_gone() {
    let mut backends = support::Backend::fleet(&["a", "b"]);
    let proxy = Proxy::before(&support::addresses(&backends));
    let home = served_by(&ws::open(proxy.address, "/rooms?room=k"));
    let deaf = ws::open(proxy.address, "/echo?room=k");
    deaf.stream.set_nonblocking(true).unwrap();
    let message = ws::masked(ws::BINARY, vec![1; 60_000]);
    let mut sent = 0;
    // The echoes fill all buffers on the way to it, then the backend takes no more.
    let stalls = || proxy.metric("steadfast_relay_stalls_total", &[("direction", "from_backend")]);
    eventually("the echoes stall", || {
        while let Ok(count) = (&deaf.stream).write(&message[sent % message.len()..]) {
            sent += count;
        }
        (stalls() > 0.0).then_some(())
    });
    backends.iter_mut().find(|backend| backend.id == home).unwrap().process.kill();
    let other = eventually("the key is free", || {
        let asked = ws::ask(proxy.address, "/rooms?room=k", &[]);
        (asked.answer.status == 101).then_some(asked)
    });
    assert_ne!(served_by(&other), home);
}

/// The backend that welcomes a member of a room.
fn served_by(client: &Ws) -> String {
    let welcome: serde_json::Value = serde_json::from_str(&client.read().text()).unwrap();
    welcome["welcome"]["backend"].as_str().unwrap().to_owned()
}
