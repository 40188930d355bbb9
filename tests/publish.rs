//! The guide's word on sending to clients: its examples, as they stand, with a real Redis, and the
//! users that it makes there.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::http::{get, header, request};
use support::redis::{Answer, Client, Redis};
use support::scripted::{Refusing, Scripted};
use support::ws::{self, BINARY, Frame, TEXT, Ws};
use support::{Proxy, binary, config, eventually, python, root};

/// What a client that has the key `red` and is in the room `lobby` hears of each block, in the order of
/// the guide; of one block in any order.
fn heard() -> Vec<(&'static str, Vec<Frame>)> {
    let text = |text: &str| Frame::new(TEXT, text);
    vec![
        ("sh", vec![text("hello from a shell"), text("hello red"), text("hello you")]),
        ("js", vec![text("{\"said\":\"hello from Node\"}")]),
        ("python", vec![text("hello from Python")]),
        ("rust", vec![text("hello from Rust")]),
        ("sh", vec![text("hello lobby"), text("{\"say\": \"hello\"}")]),
        // The other is for everybody else.
        ("sh", vec![text("hello you")]),
        // In, listed, and out.
        ("sh", vec![]),
        (
            "sh",
            vec![
                text("hello lobby"),
                text("hello red"),
                Frame::new(BINARY, [1, 2]),
                text("the end"),
            ],
        ),
    ]
}

/// The fenced blocks of a guide that can be run, each with its language.
fn blocks(guide: &str) -> Vec<(&str, &str)> {
    let mut blocks = Vec::new();
    let mut rest = guide;
    while let Some((_, block)) = rest.split_once("\n```") {
        let (language, block) = block.split_once('\n').unwrap();
        let (body, behind) = block.split_once("```").unwrap();
        if !["toml", "text"].contains(&language) {
            blocks.push((language, body));
        }
        rest = behind;
    }
    blocks
}

/// Where everything is that the guide's examples use.
struct World<'a> {
    redis: &'a Redis,
    /// With a login, where one is needed.
    url: String,
    proxy: &'a Proxy,
    id: &'a str,
}

impl World<'_> {
    /// The command that runs a block, which it reads from its standard input.
    fn command(&self, language: &str, block: &str) -> (Command, String) {
        let there = block
            .replace("redis://127.0.0.1:6379", &self.url)
            .replace("127.0.0.1:9900", &self.proxy.admin.to_string());
        match language {
            "sh" => {
                let mut shell = Command::new("sh");
                shell.current_dir(self.proxy.folder()).env("ID", self.id);
                shell.env("STEADFAST_ADMIN", self.proxy.admin.to_string());
                let functions = format!(
                    "set -e\ncurl() {{ command curl -sS --fail \"$@\"; echo; }}\n\
                     alias redis-cli='redis-cli -p {}'\n\
                     steadfast() {{ '{}' \"$@\"; }}\n",
                    self.redis.port,
                    env!("CARGO_BIN_EXE_steadfast"),
                );
                (shell, functions + &there)
            }
            "js" => {
                let mut node = Command::new("node");
                node.args(["--input-type=module", "-"])
                    .current_dir(root().join("backend-demo/node"));
                (node, there)
            }
            "python" => {
                let mut python = Command::new(python());
                python.arg("-");
                (python, there)
            }
            "rust" => {
                let example =
                    std::fs::read_to_string(root().join("backend-demo/examples/publish.rs"));
                let (_, body) = example.as_deref().unwrap().split_once("\nfn main").unwrap();
                assert_eq!(
                    block,
                    format!("fn main{body}"),
                    "what is built is what the guide shows"
                );
                let mut program = Command::new(binary("examples/publish"));
                program.env("REDIS_URL", &self.url);
                (program, String::new())
            }
            other => panic!("nothing runs {other}"),
        }
    }

    /// Runs a block, as a user would who has copied it.
    #[track_caller]
    fn run(&self, language: &str, block: &str) {
        let (mut command, input) = self.command(language, block);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        // One that takes nothing ends before.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{block}\n{said}{errors}");
        assert!(!said.contains("nobody is there") && !said.contains("ERR"), "{block}\n{said}");
    }
}

/// All that comes until this mark is published, which is behind all that was published before.
fn until_mark(client: &Ws, publisher: &mut Client) -> Vec<Frame> {
    assert_eq!(publisher.publish("steadfast:to:all", r#"{"text": "mark"}"#), 1);
    std::iter::from_fn(|| Some(client.read()).filter(|frame| frame.payload != b"mark")).collect()
}

#[test]
fn the_examples_of_the_guide_are_heard() {
    let redis = Redis::start();
    let (backend, handed) = Scripted::opening();
    let more = [("route", "rooms = [\"lobby\"]")];
    let config = config(&[("a", backend.address)], &more)
        .replace("pool.pool", "pool.rooms")
        .replace("\"pool\"", "\"rooms\"");
    let registry = format!("\n[registry]\nurl = \"{}\"\njoin_wait = \"5s\"\n", redis.url());
    let proxy = Proxy::start(&(config + &registry));
    proxy.wait_for_metric("steadfast_registry_up", &[], 1.0);
    let client = ws::open(proxy.address, "/?room=red");
    let (_stream, head) = handed.next();
    let id = header(&head, "steadfast-connection").unwrap().to_owned();
    let mut publisher = redis.client();
    for channel in ["steadfast:to:room:lobby", "steadfast:to:key:rooms/red"] {
        eventually(channel, || (publisher.subscribers(channel) == 1).then_some(()));
    }
    let world = World { redis: &redis, url: redis.url(), proxy: &proxy, id: &id };

    let guide = std::fs::read_to_string(root().join("docs/publish.md")).unwrap();
    let blocks = blocks(&guide);
    let wanted = heard();
    let languages = |of: &[&str]| of.join(" ");
    assert_eq!(
        languages(&blocks.iter().map(|(language, _)| *language).collect::<Vec<_>>()),
        languages(&wanted.iter().map(|(language, _)| *language).collect::<Vec<_>>()),
        "each block of the guide has what is heard of it"
    );
    for ((language, block), (_, mut wanted)) in blocks.into_iter().zip(wanted) {
        world.run(language, block);
        let mut got = until_mark(&client, &mut publisher);
        got.sort_by(|one, other| one.payload.cmp(&other.payload));
        wanted.sort_by(|one, other| one.payload.cmp(&other.payload));
        assert_eq!(got, wanted, "{block}");
    }
    assert_eq!(get(world.proxy.admin, &format!("/v1/connections/{}", world.id)).status, 200);
}

/// The rules of the users that the guide on security makes, each with its name.
fn users() -> Vec<(String, Vec<String>)> {
    let guide = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let lines = guide.lines().filter_map(|line| line.strip_prefix("ACL SETUSER "));
    let users = lines.map(|line| {
        let mut words = line.split(' ').map(str::to_owned);
        (words.next().unwrap(), words.collect())
    });
    users.collect()
}

/// A client that has logged in as a user of the guide.
fn login(redis: &Redis, user: &str, password: &str) -> Client {
    let mut client = redis.client();
    assert_eq!(client.ask(&["AUTH", user, password]), Answer::text("OK"));
    client
}

/// What an application has no right to, beside the channel of one proxy.
const NOT_FOR_THE_APPLICATION: &[&[&str]] = &[
    &["PUBLISH", "steadfast:to:all", "{}"],
    &["PUBLISH", "steadfast:placed:pool", "{}"],
    &["PUBLISH", "steadfast:drain:pool", "{}"],
    &["SUBSCRIBE", "steadfast:to:all"],
    &["SUBSCRIBE", "steadfast:to:room:lobby"],
    &["PSUBSCRIBE", "*"],
    &["SMEMBERS", "steadfast:proxies"],
    &["HGETALL", "steadfast:drain:pool"],
    &["HSET", "steadfast:drain:pool", "a", "1"],
    &["SET", "x", "1"],
    &["GET", "x"],
    &["KEYS", "*"],
    &["SCAN", "0"],
    &["CONFIG", "GET", "*"],
    &["CLIENT", "LIST"],
    &["CLIENT", "KILL", "TYPE", "pubsub"],
    &["CLIENT", "PAUSE", "1000"],
    &["PUBSUB", "CHANNELS"],
    &["INFO"],
    &["FLUSHALL"],
    &["ACL", "LIST"],
    &["EVAL", "return 1", "0"],
    &["MONITOR"],
];

/// What no proxy needs.
const NOT_FOR_A_PROXY: &[&[&str]] = &[
    &["FLUSHALL"],
    &["KEYS", "*"],
    &["GET", "x"],
    &["CONFIG", "GET", "*"],
    &["CLIENT", "KILL", "TYPE", "normal"],
    &["PUBLISH", "other", "x"],
    &["EVAL", "return 1", "0"],
    &["ACL", "LIST"],
    &["SHUTDOWN"],
];

/// Each of these commands is refused to this user.
#[track_caller]
fn is_refused(user: &mut Client, commands: &[&[&str]]) {
    for command in commands {
        match user.ask(command) {
            Answer::Error(error) => assert!(error.starts_with("NOPERM"), "{command:?}: {error}"),
            other => panic!("{command:?}: {other:?}"),
        }
    }
}

#[test]
fn the_users_of_the_guide_may_do_what_they_need_and_nothing_else() {
    let users = users();
    let names: Vec<&str> = users.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["proxy", "app"]);
    // On its command line, so that they are there when it comes back. The test's own user stays.
    let mut arguments = Vec::new();
    for (name, rules) in &users {
        arguments.extend(["--user", name]);
        arguments.extend(rules.iter().map(String::as_str));
    }
    let mut redis = Redis::start_with(&arguments);
    let (backend, handed) = Scripted::opening();
    let nobody = Refusing::new();
    let backends = [("a", backend.address), ("b", nobody.address)];
    let more = [("route", "rooms = [\"lobby\"]"), ("server", "workers = 1")];
    let proxies = [(); 2].map(|()| {
        let url = redis.url().replace("//", "//proxy:PROXYSECRET@");
        let registry = format!("\n[registry]\nurl = \"{url}\"\njoin_wait = \"5s\"\n");
        let proxy = Proxy::start(&(config(&backends, &more) + &registry));
        proxy.wait_for_metric("steadfast_registry_up", &[], 1.0);
        proxy
    });
    let clients = proxies.each_ref().map(|proxy| {
        let client = ws::open(proxy.address, "/?room=k");
        let (stream, head) = handed.next();
        (client, stream, header(&head, "steadfast-connection").unwrap().to_owned())
    });

    // The application speaks to rooms and keys, and can do nothing else.
    let mut app = login(&redis, "app", "APPSECRET");
    for channel in ["steadfast:to:room:lobby", "steadfast:to:key:pool/k"] {
        eventually(channel, || (redis.client().subscribers(channel) == 2).then_some(()));
        assert_eq!(app.publish(channel, r#"{"text": "app"}"#), 2);
        clients.iter().for_each(|(client, ..)| client.expect_text("app"));
    }
    // With the libraries of the guide too, whatever else those say to Redis.
    let guide = std::fs::read_to_string(root().join("docs/publish.md")).unwrap();
    let url = redis.url().replace("//", "//app:APPSECRET@");
    let world = World { redis: &redis, url, proxy: &proxies[0], id: &clients[0].2 };
    for (language, block) in blocks(&guide).into_iter().filter(|(language, _)| *language != "sh") {
        world.run(language, block);
        let heard = clients.each_ref().map(|(client, ..)| client.read().text());
        assert!(heard.iter().all(|text| text.contains("hello from")), "{block}\n{heard:?}");
    }
    let own = format!("steadfast:to:proxy:{}", clients[0].2.split('.').next().unwrap());
    is_refused(&mut app, &[&["PUBLISH", &own, "{}"]]);
    is_refused(&mut app, NOT_FOR_THE_APPLICATION);
    is_refused(&mut login(&redis, "proxy", "PROXYSECRET"), NOT_FOR_A_PROXY);

    // The proxies do all that they do, also anew when all was forgotten.
    does_all(&redis, &proxies, &clients[0].2);
    redis.kill();
    proxies.iter().for_each(|one| one.wait_for_metric("steadfast_registry_up", &[], 0.0));
    redis.restart();
    proxies.iter().for_each(|one| one.wait_for_metric("steadfast_registry_up", &[], 1.0));
    does_all(&redis, &proxies, &clients[0].2);
    for (client, ..) in &clients {
        client.expect_text("to all");
        client.expect_text("to all");
    }
    for proxy in &proxies {
        let said = proxy.process.output();
        assert!(!said.contains("NOPERM") && !said.contains("No permissions"), "{said}");
        assert!(!said.contains("PROXYSECRET"), "{said}");
        proxy.process.signal("TERM");
    }
    let mut store = redis.client();
    eventually("they have signed off", || {
        (store.ask(&["DBSIZE"]) == Answer::Number(0)).then_some(())
    });
}

/// What proxies do in the registry: they know of each other, and of each other's connections, send to
/// them, and drain for each other.
fn does_all(redis: &Redis, proxies: &[Proxy; 2], id: &str) {
    let mut store = redis.client();
    eventually("both are known", || {
        (store.ask(&["SCARD", "steadfast:proxies"]) == Answer::Number(2)).then_some(())
    });
    let (one, two) = (&proxies[0], &proxies[1]);
    let path = format!("/v1/connections/{id}");
    eventually("the other tells of it", || (get(two.admin, &path).status == 200).then_some(()));
    let all =
        || two.json("/v1/connections?pool=pool&key=k")["connections"].as_array().unwrap().len();
    eventually("the key is whole", || (all() == 2).then_some(()));
    let text = [("Content-Type", "text/plain")];
    eventually("both are reached", || {
        let sent = request(two.admin, "POST", "/v1/rooms/nobody/messages", &text, b"x").text();
        (sent == "{\"proxies\":0}").then_some(())
    });
    let answer = request(two.admin, "POST", "/v1/broadcast", &text, b"to all");
    assert_eq!((answer.status, answer.text().as_str()), (202, "{\"proxies\":2}"));
    for order in ["drain", "undrain"] {
        let path = format!("/v1/pools/pool/backends/b/{order}");
        assert_eq!(request(two.admin, "POST", &path, &[], b"").status, 200, "{order}");
        let drained = || {
            let pools: Value = one.json("/v1/pools");
            !pools["pools"][0]["backends"][1]["drain"].is_null()
        };
        eventually(order, || (drained() == (order == "drain")).then_some(()));
    }
}
