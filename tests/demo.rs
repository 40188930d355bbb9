//! `steadfast demo`: what somebody sees who has just built it.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::redis::Redis;
use support::{Process, eventually, http, ws};

/// Tried ports behind one that is taken.
const PORTS: u16 = 100;

/// A running demo and the addresses that it has printed, a page and an admin API per proxy.
struct Demo {
    process: Process,
    pages: Vec<SocketAddr>,
    admins: Vec<SocketAddr>,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
        let mut process = Process::start("demo", command.arg("demo").args(arguments));
        process.wait_for("the end of the welcome", |line| line.contains("Ctrl-C").then_some(()));
        let output = process.output();
        let (pages, admins) = (printed(&output, "open"), printed(&output, "admin"));
        Self { process, pages, admins }
    }

    /// On free ports.
    fn anywhere(arguments: &[&str]) -> Self {
        let free = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        Self::start(&[&free, arguments].concat())
    }
}

/// The addresses in lines such as `open http://ADDRESS/..`.
fn printed(output: &str, what: &str) -> Vec<SocketAddr> {
    let urls = output.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix(what)?.trim_start().strip_prefix("http://")?;
        rest.split(['/', ' ']).next()?.parse().ok()
    });
    urls.collect()
}

/// Where a room's WebSocket is, as its welcome says, and the WebSocket.
#[track_caller]
fn join(page: SocketAddr, room: &str) -> (String, ws::Ws) {
    let member = ws::open(page, &format!("/rooms?room={room}&name=n"));
    // Where proxies deliver what is said, others may be heard before.
    let welcome = loop {
        let told: Value = serde_json::from_str(&member.read().text()).unwrap();
        if !told["welcome"].is_null() {
            break told;
        }
    };
    assert_eq!(welcome["welcome"]["room"], room);
    (welcome["welcome"]["backend"].as_str().unwrap().to_owned(), member)
}

/// Where a plain request with that room goes.
#[track_caller]
fn health(page: SocketAddr, room: &str) -> String {
    let answer = http::get(page, &format!("/health?room={room}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text().trim().to_owned()
}

#[test]
fn serves_the_page_that_it_says_to_open() {
    let demo = Demo::anywhere(&[]);
    assert_eq!((demo.pages.len(), demo.admins.len()), (1, 1), "{}", demo.process.output());
    let page = http::get(demo.pages[0], "/");
    assert_eq!(page.status, 200);
    for id in ["messageInput", "sendButton", "messages"] {
        assert!(page.text().contains(&format!("id=\"{id}\"")), "no {id} in {}", page.text());
    }
    let pools: Value =
        serde_json::from_slice(&http::get(demo.admins[0], "/v1/pools").body).unwrap();
    assert_eq!(pools["pools"][0]["backends"].as_array().unwrap().len(), 3);
    assert_eq!(http::get(demo.admins[0], "/metrics").status, 200);
}

#[test]
fn rooms_are_where_it_says() {
    let demo = Demo::anywhere(&["--backends", "2"]);
    let output = demo.process.output();
    let mut told = 0;
    for line in output.lines().map(str::trim_start) {
        let Some((id, rooms)) = line.split_once("   ") else { continue };
        if !["b0", "b1"].contains(&id) || rooms == "(none of these)" {
            continue;
        }
        for room in rooms.split(", ") {
            assert_eq!(join(demo.pages[0], room).0, id, "{room} in:\n{output}");
            told += 1;
        }
    }
    assert_eq!(told, 5, "{output}");
}

#[test]
fn a_room_is_on_one_backend_for_sockets_and_requests() {
    let demo = Demo::anywhere(&[]);
    let mut used = std::collections::BTreeSet::new();
    for number in 0..30 {
        let room = format!("room-{number}");
        let (backend, _first) = join(demo.pages[0], &room);
        let (again, _second) = join(demo.pages[0], &room);
        assert_eq!(again, backend, "{room}");
        assert_eq!(health(demo.pages[0], &room), backend, "{room}");
        used.insert(backend);
    }
    assert_eq!(used.len(), 3, "{used:?}");
}

#[test]
fn members_of_a_room_hear_each_other() {
    let demo = Demo::anywhere(&[]);
    let (_, speaker) = join(demo.pages[0], "r");
    let (_, listener) = join(demo.pages[0], "r");
    speaker.send(ws::TEXT, r#"{"say": "hello"}"#);
    let heard: Value = serde_json::from_str(&listener.read().text()).unwrap();
    assert_eq!(heard["said"], "hello", "{heard}");
}

#[test]
fn ctrl_c_ends_it_in_time() {
    let mut demo = Demo::anywhere(&[]);
    let (_, member) = join(demo.pages[0], "r");
    let began = Instant::now();
    demo.process.signal("INT");
    member.answer_close(1001);
    let exit = demo.process.wait_for_exit();
    assert_eq!(exit.code(), Some(0), "{}", demo.process.output());
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
}

#[test]
fn two_proxies_agree() {
    let demo = Demo::anywhere(&["--proxies", "2"]);
    let &[one, two] = &demo.pages[..] else { panic!("{}", demo.process.output()) };
    assert_eq!(demo.admins.len(), 2);
    assert_ne!(one, two);
    for number in 0..10 {
        let room = format!("room-{number}");
        let (backend, _first) = join(one, &room);
        let (other, _second) = join(two, &room);
        assert_eq!(backend, other, "{room}");
    }
}

#[test]
fn a_room_is_one_on_two_proxies_that_share_a_redis() {
    let redis = Redis::start();
    let demo = Demo::anywhere(&["--proxies", "2", "--redis", &redis.url()]);
    let is_up = |admin: &SocketAddr| {
        let status: Value = serde_json::from_slice(&http::get(*admin, "/v1/status").body).unwrap();
        status["registry"] == "up"
    };
    eventually("both proxies have the registry", || demo.admins.iter().all(is_up).then_some(()));
    let members: Vec<ws::Ws> = (0..4).map(|number| join(demo.pages[number % 2], "red").1).collect();
    for (number, speaker) in members.iter().enumerate() {
        for turn in 0..10 {
            speaker.send(ws::TEXT, format!(r#"{{"say": "{number}/{turn}"}}"#));
        }
    }
    for member in &members {
        let mut next = [0; 4];
        while next != [10; 4] {
            let told: Value = serde_json::from_str(&member.read().text()).unwrap();
            let Some(said) = told["said"].as_str() else { continue };
            let (number, turn) = said.split_once('/').unwrap();
            let number: usize = number.parse().unwrap();
            assert_eq!(turn.parse(), Ok(next[number]), "once each, in order: {told}");
            next[number] += 1;
        }
    }
    // Either proxy tells of all four.
    for admin in &demo.admins {
        let all: Value =
            serde_json::from_slice(&http::get(*admin, "/v1/connections?key=red").body).unwrap();
        assert_eq!(all["connections"].as_array().unwrap().len(), 4, "{all}");
    }
}

#[test]
fn a_redis_that_its_backends_can_not_use_is_bad_usage() {
    for url in ["http://x", "redis+sentinel://127.0.0.1:26379/name", "redis"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
        let ended = command.args(["demo", "--redis", url]).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!((ended.status.code(), ended.stdout.len()), (Some(2), 0), "{url}: {said}");
        assert!(said.contains("--redis: ") && said.contains("redis://HOST:PORT"), "{said}");
    }
}

#[test]
fn a_taken_port_gives_way_to_the_next_free_one() {
    let (page, admin) = (taken_port(), taken_port());
    let (asked_page, asked_admin) = (page.local_addr().unwrap(), admin.local_addr().unwrap());
    let demo =
        Demo::start(&["--listen", &asked_page.to_string(), "--admin", &asked_admin.to_string()]);
    for (asked, got) in [(asked_page, demo.pages[0]), (asked_admin, demo.admins[0])] {
        let next = asked.port() + 1..=asked.port() + PORTS;
        assert!(next.contains(&got.port()), "{got} for {asked}");
    }
    assert_eq!(http::get(demo.pages[0], "/").status, 200);
    assert_eq!(http::get(demo.admins[0], "/healthz").status, 200);
}

#[test]
fn page_and_admin_may_be_asked_for_at_one_port() {
    let taken = taken_port();
    let asked = taken.local_addr().unwrap().to_string();
    let demo = Demo::start(&["--listen", &asked, "--admin", &asked, "--proxies", "2"]);
    let all = [&demo.pages[..], &demo.admins[..]].concat();
    let different: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(different.len(), 4, "{}", demo.process.output());
}

/// A port that is not at the very end of their range.
fn taken_port() -> TcpListener {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        if listener.local_addr().unwrap().port() < u16::MAX - PORTS {
            return listener;
        }
    }
}
