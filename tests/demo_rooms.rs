//! The demo's rooms on several backends, whose messages a real proxy delivers; and Redis with TLS.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::net::TcpListener;
use std::process::Command;

use serde_json::{Value, json};
use support::tls::Authority;
use support::ws::{self, TEXT, Ws};
use support::{Backend, Process, Proxy, addresses, config};

const TOKEN: &str = "hush";

/// Two backends that a proxy goes to in turn, and which publish through its API.
struct World {
    proxy: Proxy,
    backends: Vec<Backend>,
}

/// Somebody in a room, and all that it was told since its welcome.
struct Member {
    client: Ws,
    welcome: Value,
    told: Vec<Value>,
}

impl World {
    fn new() -> Self {
        let more = [
            ("server", format!("admin_token = \"{TOKEN}\"")),
            ("pool", "balance = \"round_robin\"".to_owned()),
        ];
        let more: Vec<(&str, &str)> =
            more.iter().map(|(section, line)| (*section, line.as_str())).collect();
        // The backends must know where the proxy is, and it where they are: it comes first, in
        // front of one that nobody asks, and has its config changed.
        let nobody = [("nobody", "127.0.0.1:1".parse().unwrap())];
        let proxy = Proxy::start(&config(&nobody, &more));
        let admin = format!("http://{}", proxy.admin);
        let start = |id| {
            let token = [("STEADFAST_TOKEN", TOKEN)];
            Backend::publishing(id, &["--proxy-admin", &admin], &token)
        };
        let backends = vec![start("a"), start("b")];
        proxy.save(&config(&addresses(&backends), &more));
        let listed = |line: &str| line.contains("config reloaded").then_some(());
        let mut world = Self { proxy, backends };
        world.proxy.process.wait_for("a reload", listed);
        world
    }

    fn enter(&self, room: &str, name: &str) -> Member {
        let client = ws::open(self.proxy.address, &format!("/rooms?room={room}&name={name}"));
        // What others do in the room may be told before.
        let mut told = read(&client);
        while told["welcome"].is_null() {
            told = read(&client);
        }
        Member { client, welcome: told["welcome"].clone(), told: Vec::new() }
    }
}

impl Member {
    fn ask(&self, request: &Value) {
        self.client.send(TEXT, request.to_string());
    }

    fn backend(&self) -> &str {
        self.welcome["backend"].as_str().unwrap()
    }

    #[track_caller]
    fn hear(&mut self) -> Value {
        self.told.push(read(&self.client));
        self.told[self.told.len() - 1].clone()
    }

    #[track_caller]
    fn hear_until(&mut self, said: &str) {
        while self.hear()["said"] != said {}
    }
}

#[track_caller]
fn read(client: &Ws) -> Value {
    serde_json::from_str(&client.read().text()).unwrap()
}

fn said(room: &str, from: &str, said: &str, by: &str) -> Value {
    json!({"room": room, "from": from, "said": said, "backend": by})
}

#[test]
fn members_on_two_backends_hear_each_message_once() {
    let world = World::new();
    let names = ["0", "1", "2", "3"];
    let mut members: Vec<Member> =
        names.iter().map(|name| world.enter("tea%20%C3%A4", name)).collect();
    let room = "tea ä";
    for (count, member) in (1..).zip(&members) {
        assert_eq!(
            (&member.welcome["members"], &member.welcome["room"]),
            (&json!(count), &json!(room))
        );
    }
    assert_ne!(members[0].backend(), members[1].backend());

    let mut wanted = Vec::new();
    for round in 0..5 {
        for (name, member) in names.iter().zip(&mut members) {
            let text = format!("{round} {name}");
            member.ask(&json!({ "say": text }));
            wanted.push(said(room, name, &text, member.backend()));
            // The next one speaks when this was heard, so that there is one order.
            member.hear_until(&text);
        }
    }
    members[0].ask(&json!({"say": "end"}));
    for member in &mut members {
        member.hear_until("end");
        member.told.retain(|told| told["said"].is_string() && told["said"] != "end");
        assert_eq!(member.told, wanted);
    }
}

#[test]
fn rooms_are_joined_and_left_through_the_proxy() {
    let world = World::new();
    let (mut ann, mut bob) = (world.enter("r", "ann"), world.enter("s", "bob"));
    assert_ne!(ann.backend(), bob.backend());
    ann.ask(&json!({"join": "s"}));
    let joined = json!({"room": "s", "joined": "ann", "backend": ann.backend()});
    // That bob has come may be told to her too: she is in his room before it is told.
    while ann.hear() != joined {}
    assert_eq!(bob.hear(), joined);
    bob.ask(&json!({"say": "hi"}));
    let hi = said("s", "bob", "hi", bob.backend());
    assert_eq!((ann.hear(), bob.hear()), (hi.clone(), hi));
    ann.ask(&json!({"leave": "s"}));
    assert_eq!((&ann.hear()["left"], &bob.hear()["left"]), (&json!("ann"), &json!("ann")));
    bob.ask(&json!({"say": "gone?"}));
    assert_eq!(bob.hear()["said"], "gone?");
    ann.ask(&json!({"say": "only here"}));
    assert_eq!(ann.hear(), said("r", "ann", "only here", ann.backend()));
    assert_eq!(world.backends.len(), 2);
}

#[test]
fn a_proxy_that_has_gone_is_told_of_by_a_backend_that_has_not() {
    let world = World::new();
    let ann = world.enter("r", "ann");
    // Not through the proxy, so it outlives it.
    let backend = world.backends.iter().find(|one| one.id == ann.backend()).unwrap();
    let direct = ws::open(backend.address, "/rooms?room=r&name=eve");
    assert_eq!(read(&direct)["welcome"]["members"], 2);
    drop(world.proxy);
    direct.send(TEXT, json!({"say": "hello?"}).to_string());
    let mut told = read(&direct);
    while told["error"].is_null() {
        told = read(&direct);
    }
    assert!(told["error"].as_str().unwrap().starts_with("the proxy's admin API "), "{told}");
}

#[test]
fn a_redis_with_tls_is_reached_by_who_trusts_its_authority() {
    let authority = Authority::new();
    let site = authority.issue("redis", &["127.0.0.1"]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", "0", "--tls-port", &port.to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--tls-auth-clients", "no"]);
    command.arg("--tls-cert-file").arg(&site.cert).arg("--tls-key-file").arg(&site.key);
    command.arg("--tls-ca-cert-file").arg(authority.file());
    let mut redis = Process::start("redis-server", &mut command);
    redis.wait_for("ready", |line| line.contains("Ready to accept connections").then_some(()));

    let url = format!("rediss://127.0.0.1:{port}");
    let other = Authority::new();
    for (trusted, members) in [(&authority, json!(1)), (&other, Value::Null)] {
        let trusted = trusted.file();
        let environment = [("SSL_CERT_FILE", trusted.to_str().unwrap())];
        let backend = Backend::publishing("a", &["--redis", &url], &environment);
        let client = ws::open(backend.address, "/rooms");
        assert_eq!(read(&client)["welcome"]["members"], members);
    }
}
