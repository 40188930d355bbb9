//! Connections of SignalR: without a key they stay where they were negotiated, at any of several proxies.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;
use support::http::{Answer, request};
use support::{Process, Proxy, RedisServer, config, eventually, root, ws};

const NEGOTIATE: &str = "/hub/negotiate?negotiateVersion=1";
const END: &str = "\u{1e}";
const GREETING: &str = "{\"protocol\":\"json\",\"version\":1}\u{1e}";

/// A running `tests/peers/signalr_server.mjs`.
struct Hub {
    process: Process,
    address: SocketAddr,
}

impl Hub {
    fn start(instance: &str) -> Self {
        let mut command = peer("signalr_server.mjs");
        command.env("PORT", "0").env("INSTANCE", instance);
        let mut process = Process::start(instance, &mut command);
        let port: u16 = process
            .wait_for("listening", |line| line.split_once("listening on ")?.1.trim().parse().ok());
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// Requests of connections that it does not know.
    fn unknown(&self) -> u64 {
        let stats = support::http::get(self.address, "/stats").body;
        serde_json::from_slice::<Value>(&stats).unwrap()["unknown"].as_u64().unwrap()
    }
}

fn peer(script: &str) -> Command {
    let folder = root().join("tests/peers");
    let installed = folder.join("node_modules/@microsoft/signalr").exists();
    assert!(installed, "run scripts/test once: it installs @microsoft/signalr");
    let mut command = Command::new("node");
    command.current_dir(folder).arg(script);
    command
}

fn hubs() -> Vec<(&'static str, Hub)> {
    ["a", "b", "c"].map(|id| (id, Hub::start(id))).into()
}

fn learning(hubs: &[(&str, Hub)]) -> String {
    let addresses: Vec<_> = hubs.iter().map(|(id, hub)| (*id, hub.address)).collect();
    let health = "kind = \"http\"\npath = \"/\"\ninterval = \"100ms\"\nlost_after = \"300ms\"";
    let more = [("route", "learn = \"signalr\""), ("health", health)];
    config(&addresses, &more).replace("key = \"query:room\"\n", "")
}

fn send(proxy: &Proxy, method: &str, path: &str, body: &str) -> Answer {
    request(proxy.address, method, path, &[], body.as_bytes())
}

/// Negotiates a connection, and gives the path of its requests.
#[track_caller]
fn negotiate(proxy: &Proxy) -> String {
    let answer = send(proxy, "POST", NEGOTIATE, "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    format!("/hub?id={}", answer["connectionToken"].as_str().unwrap())
}

/// Asks the hub of a connection where it is.
fn invocation() -> String {
    format!("{{\"type\":1,\"invocationId\":\"0\",\"target\":\"where\",\"arguments\":[]}}{END}")
}

#[test]
fn clients_of_its_own_library_stay_where_they_were_negotiated() {
    let hubs = hubs();
    let proxy = Proxy::start(&learning(&hubs));
    for transport in ["polling", "websocket", "skip"] {
        let mut command = peer("signalr_client.mjs");
        command.arg(format!("http://{}", proxy.address)).args([transport, "40"]);
        let mut clients = Process::start("signalr_client.mjs", &mut command);
        let line =
            clients.wait_for("places", |line| line.starts_with('[').then(|| line.to_owned()));
        let places: Vec<Vec<String>> = serde_json::from_str(&line).unwrap();
        let homes: HashSet<&String> = places.iter().map(|answers| &answers[0]).collect();
        assert_eq!(homes.len(), 3, "{transport}: they are spread");
        assert!(places.iter().all(|answers| answers.iter().all(|one| *one == answers[0])));
    }
    for (id, hub) in &hubs {
        assert_eq!(hub.unknown(), 0, "{id}");
    }
}

#[test]
fn a_connection_of_a_lost_hub_is_unknown_in_its_own_words() {
    let mut hubs = hubs();
    let proxy = Proxy::start(&learning(&hubs));
    let connections: Vec<String> = (0..9).map(|_| negotiate(&proxy)).collect();
    hubs[0].1.process.kill();
    eventually("it is lost", || (proxy.state("a") == "lost").then_some(()));
    let answers: Vec<Answer> =
        connections.iter().map(|path| send(&proxy, "POST", path, GREETING)).collect();
    let (lost, live): (Vec<_>, Vec<_>) = answers.iter().partition(|one| one.status != 200);
    assert!(!lost.is_empty() && !live.is_empty());
    for answer in lost {
        assert_eq!((answer.status, answer.text().as_str()), (404, "No Connection with that ID"));
    }
}

#[test]
fn each_request_of_a_connection_may_take_either_of_two_proxies() {
    let hubs = hubs();
    let redis = RedisServer::start();
    let config = learning(&hubs) + &format!("\n[registry]\nurl = \"{}\"\n", redis.url());
    let (one, two) = (Proxy::start(&config), Proxy::start(&config));
    for number in 0..12 {
        let (first, second) = if number % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let path = negotiate(first);
        assert_eq!(send(second, "GET", &path, "").status, 200);
        assert_eq!(send(second, "POST", &path, GREETING).status, 200);
        assert_eq!(send(first, "GET", &path, "").text(), format!("{{}}{END}"));
        // And its WebSocket.
        let path = negotiate(first);
        let socket = ws::open(second.address, &path);
        socket.send(ws::TEXT, GREETING);
        socket.expect_text(&format!("{{}}{END}"));
        socket.send(ws::TEXT, invocation());
        assert!(socket.read().text().contains("\"result\""));
    }
    for (id, hub) in &hubs {
        assert_eq!(hub.unknown(), 0, "{id}");
    }
}
