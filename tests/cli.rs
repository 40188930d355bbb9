//! The command line for operating: what each subcommand prints and does, and how it fails.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::net::TcpStream;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use support::http::{read_head, request};
use support::named::{self, Named};
use support::scripted::{Handed, Refusing, Scripted};
use support::ws::{self, TEXT, Ws, read_frame};
use support::{Process, Proxy, config, eventually, send};

/// `steadfast`, with nothing in its environment that could name a proxy, in a folder without a
/// config.
fn steadfast(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    for variable in ["STEADFAST_ADMIN", "STEADFAST_CONFIG", "STEADFAST_TOKEN"] {
        command.env_remove(variable);
    }
    command.current_dir(support::root().join("tests"));
    command.args(arguments);
    command
}

/// How a command ended, and what it said.
#[derive(Debug)]
struct Ended {
    exit: i32,
    out: String,
    err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            exit: output.status.code().unwrap(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }
}

impl Ended {
    /// What it has printed, done and without complaint.
    #[track_caller]
    fn done(self) -> String {
        assert_eq!((self.exit, self.err.as_str()), (0, ""), "{self:?}");
        self.out
    }

    #[track_caller]
    fn json(self) -> Value {
        let out = self.done();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// Expects this exit code, nothing on standard output, and all of these words as a complaint.
    #[track_caller]
    fn fails(self, exit: i32, words: &[&str]) {
        assert_eq!((self.exit, self.out.as_str()), (exit, ""), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in {}", self.err);
        }
    }
}

fn run(arguments: &[&str]) -> Ended {
    steadfast(arguments).output().unwrap().into()
}

/// Asks a proxy by `--admin`.
fn at(proxy: &Proxy, arguments: &[&str]) -> Ended {
    run(&[arguments, &["--admin", &proxy.admin.to_string()]].concat())
}

/// A table's row that begins with this cell, as its cells.
#[track_caller]
fn row(text: &str, first: &str) -> Vec<String> {
    let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut rows = text.lines().map(cells);
    let found = rows.find(|row| row.first().is_some_and(|cell| cell == first));
    found.unwrap_or_else(|| panic!("no row {first} in\n{text}"))
}

/// A proxy in front of a backend that is scripted, and its first WebSocket.
struct Opened {
    proxy: Proxy,
    handed: Handed,
    _backend: Scripted,
}

impl Opened {
    fn new(server: &str) -> Self {
        let (backend, handed) = Scripted::opening();
        let proxy = Proxy::start(&config(&[("a", backend.address)], &[("server", server)]));
        Self { proxy, handed, _backend: backend }
    }

    /// Both ends of a new WebSocket, and its id.
    fn open(&self, room: &str) -> (Ws, TcpStream, String) {
        let client = ws::open(self.proxy.address, &format!("/?room={room}"));
        let (backend, head) = self.handed.next();
        let id = head.lines().find_map(|line| line.strip_prefix("steadfast-connection: "));
        (client, backend, id.unwrap().to_owned())
    }
}

#[test]
fn status_shows_pools_listeners_routes_and_the_last_reload() {
    let backends = ["a", "b"].map(Named::start);
    let proxy = Proxy::start(&config(&named::addresses(&backends), &[]));
    let client = ws::open(proxy.address, "/?room=red");
    let home = client.read().text();
    let text = at(&proxy, &["status"]).done();
    let version = format!("version {}", env!("CARGO_PKG_VERSION"));
    for part in ["edge-", &version, "  ready  ", "  1 connection\n", "none since the start"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let address = proxy.address.to_string();
    assert_eq!(row(&text, "main"), ["main", &address, "no", "1"]);
    let route = row(&text, "all");
    assert_eq!(route[..3], ["all", "pool", "1"]);
    let of_home = text.lines().find(|line| line.starts_with(&format!("pool  {home}"))).unwrap();
    let of_home: Vec<&str> = of_home.split_whitespace().collect();
    assert_eq!(of_home[3..6], ["in_service", "1", "1"], "{text}");
    proxy.save("broken");
    eventually("the reload", || (proxy.reloads("failure") > 0.0).then_some(()));
    assert!(at(&proxy, &["status"]).done().contains("ago: FAILED: "));
    let told = at(&proxy, &["status", "--json"]).json();
    assert_eq!(told["status"]["connections"], 1);
    assert_eq!(told["pools"][0]["backends"].as_array().unwrap().len(), 2);
    assert!(told["status"]["last_reload"]["error"].is_string());
    assert_eq!(told["rates"]["all"]["opened"], 0.0, "{told}");
}

#[test]
fn watched_it_is_told_every_second_until_it_is_interrupted() {
    let opened = Opened::new("");
    let (client, backend, _) = opened.open("red");
    for format in [&[][..], &["--json"]] {
        let arguments = [&["status", "--watch"], format].concat();
        let mut command = steadfast(&arguments);
        command.env("STEADFAST_ADMIN", opened.proxy.admin.to_string());
        let mut watching = Process::start("status", &mut command);
        let rounds = |watching: &Process| {
            let marks = if format.is_empty() { "ROUTE " } else { "\"rates\":" };
            watching.output().matches(marks).count()
        };
        eventually("a first round", || (rounds(&watching) >= 1).then_some(()));
        // What happens between two looks is a rate.
        eventually("a rate", || {
            client.send(TEXT, "hello");
            assert_eq!(read_frame(&backend).unwrap().payload, b"hello");
            let output = watching.output();
            if format.is_empty() {
                let mut routes = output.lines().filter(|line| line.starts_with("all "));
                return routes
                    .any(|line| {
                        let messages = line.split_whitespace().nth(7).unwrap();
                        messages != "-" && messages != "0"
                    })
                    .then_some(());
            }
            let mut looks = output.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            assert_eq!(looks.next().unwrap()["rates"], Value::Null);
            let rate = |look: Value| look["rates"]["all"]["bytes_from_client"].as_f64();
            looks.any(|look| rate(look).unwrap() > 0.0).then_some(())
        });
        assert!(rounds(&watching) >= 2);
        watching.signal("INT");
        assert_eq!(watching.wait_for_exit().code(), Some(0), "{}", watching.output());
    }
}

#[test]
fn connections_are_listed_page_by_page_up_to_the_limit() {
    let opened = Opened::new("workers = 2");
    let all: Vec<_> = (0..12).map(|number| opened.open(&format!("r%20{}", number % 2))).collect();
    let listed = |arguments: &[&str]| {
        let told = at(&opened.proxy, &[&["connections", "--json"], arguments].concat()).json();
        let ids = told["connections"].as_array().unwrap().iter();
        let ids: Vec<String> = ids.map(|one| one["id"].as_str().unwrap().to_owned()).collect();
        (ids, told["next"].clone())
    };
    let (ids, next) = listed(&[]);
    assert_eq!((ids.len(), next), (12, Value::Null));
    assert!(all.iter().all(|(_, _, id)| ids.contains(id)));
    let (some, next) = listed(&["--limit", "5"]);
    assert!(next.is_string());
    assert_eq!(some, ids[..5]);
    assert_eq!(listed(&["--key", "r 1"]).0.len(), 6);
    assert_eq!(listed(&["--key", "r 1", "--pool", "pool", "--backend", "a"]).0.len(), 6);
    assert_eq!(listed(&["--key", "r 1", "--pool", "other"]).0.len(), 0);
    let text = at(&opened.proxy, &["connections", "--key", "r 0"]).done();
    assert_eq!(text.lines().count(), 7, "{text}");
    let first = row(&text, &ids.iter().find(|id| text.contains(*id)).unwrap().clone());
    assert_eq!(first[1..6], ["r", "0", "pool/a", "all", "127.0.0.1"]);
    let cut = at(&opened.proxy, &["connections", "--limit", "3"]);
    assert_eq!((cut.exit, cut.out.lines().count()), (0, 4), "{cut:?}");
    assert!(cut.err.contains("more than 3: see --limit"), "{cut:?}");
    let none = at(&opened.proxy, &["connections", "--key", "nobody"]).done();
    assert_eq!(none, "no connections\n");
}

#[test]
fn a_key_can_do_nothing_to_the_terminal() {
    let opened = Opened::new("");
    let _open = opened.open("%1b%5b2J");
    let text = at(&opened.proxy, &["connections"]).done();
    assert!(text.contains("\u{fffd}[2J") && !text.contains('\x1b'), "{text:?}");
}

#[test]
fn both_peers_get_the_close_that_was_asked_for() {
    let opened = Opened::new("");
    let (client, backend, id) = opened.open("red");
    let stays = opened.open("red");
    let reason = "signed out: ä/&=?";
    let close = ["close", "--connection", &id, "--code", "4001", "--reason", reason];
    assert_eq!(at(&opened.proxy, &close).done(), format!("{id}: told to close with 4001\n"));
    assert_eq!(client.read().close(), (4001, reason.to_owned()));
    assert_eq!(read_frame(&backend).unwrap().close(), (4001, reason.to_owned()));
    client.send_close(4001, "");
    drop(backend);
    client.expect_end();
    let labels = [("by", "proxy"), ("reason", "closed_by_api"), ("code", "4xxx")];
    opened.proxy.wait_for_metric("steadfast_closes_total", &labels, 1.0);
    // The other lives.
    stays.0.send(TEXT, "x");
    assert_eq!(read_frame(&stays.1).unwrap().payload, b"x");
    // Gone is gone; and the ids that there are look like this.
    let proxy_id = id.split_once('.').unwrap().0;
    let words = [&id[..], "ids begin with", proxy_id, "steadfast connections"];
    at(&opened.proxy, &close).fails(1, &words);
    // Without a code it is the usual one, without a reason none.
    let told = at(&opened.proxy, &["close", "--connection", &stays.2, "--json"]).json();
    assert_eq!(told, json!({ "connection": stays.2, "code": 1000, "reason": "" }));
    assert_eq!(stays.0.read().close(), (1000, String::new()));
    assert_eq!(read_frame(&stays.1).unwrap().close(), (1000, String::new()));
}

#[test]
fn the_api_closes_with_what_a_close_may_say_and_nothing_else() {
    let opened = Opened::new("admin_token = \"hush\"");
    let (client, backend, id) = opened.open("red");
    let delete = |token: &str, query: &str| {
        let bearer = format!("Bearer {token}");
        let path = format!("/v1/connections/{id}{query}");
        request(opened.proxy.admin, "DELETE", &path, &[("Authorization", &bearer)], b"").status
    };
    assert_eq!(delete("wrong", ""), 401);
    let longest = "x".repeat(123);
    for query in ["?code=1005", "?code=1015", "?code=2000", "?code=5000", "?code=x", "?why=1"] {
        assert_eq!(delete("hush", query), 400, "{query}");
    }
    assert_eq!(delete("hush", &format!("?reason={longest}x")), 400);
    client.send(TEXT, "open");
    assert_eq!(read_frame(&backend).unwrap().payload, b"open");
    assert_eq!(delete("hush", &format!("?code=1012&reason={longest}")), 204);
    assert_eq!(client.read().close(), (1012, longest.clone()));
    assert_eq!(read_frame(&backend).unwrap().close(), (1012, longest));
    // It is still there until its peers have answered; the first word counts.
    assert_eq!(delete("hush", "?code=4000"), 204);
    client.send_close(1012, "");
    drop(backend);
    client.expect_end();
    eventually("it is gone", || (delete("hush", "") == 404).then_some(()));
}

#[test]
fn a_drain_is_waited_for_until_nothing_is_left_at_other_proxies() {
    let status = |proxy: &str| (200, json!({ "proxy": proxy, "registry": "up" }));
    let other = Script::start(move |line, number| match line {
        "GET /v1/status" => status("edge-2"),
        _ if number < 4 => (200, of_pool(&[backend("a", 3, &drain("api", 1))])),
        _ => (200, of_pool(&[backend("a", 0, &drain("api", 0))])),
    });
    let peer = json!({ "proxy": "edge-2", "admin": other.api.address.to_string() });
    let script = Script::start(move |line, _| match line {
        "GET /v1/status" => status("edge-1"),
        "GET /v1/connections?limit=1" => {
            (200, json!({ "connections": [], "next": null, "elsewhere": [peer] }))
        }
        "GET /v1/pools" => (200, of_pool(&[backend("a", 0, &drain("api", 0))])),
        _ => (200, backend("a", 0, &drain("api", 0))),
    });
    let text = script.run(&["drain", "rooms/a", "--wait"]).done();
    let wanted = "rooms/a: draining: nothing is there by this proxy; 3 connections by others\n\
                  rooms/a: drained: nothing is there\n";
    assert_eq!(text, wanted);
}

/// An admin API that answers as it is told to, and notes what it was asked.
struct Script {
    api: Scripted,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Script {
    /// `answer` gets the request line and how many there were before.
    fn start(answer: impl Fn(&str, usize) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (count, noted) = (AtomicUsize::new(0), Arc::clone(&asked));
        let api = Scripted::start(move |stream| {
            let head = read_head(&stream);
            let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
            let (status, body) = answer(&line, count.fetch_add(1, Ordering::SeqCst));
            noted.lock().unwrap().push(line);
            let (body, length) = (body.to_string(), body.to_string().len());
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n");
            send(&stream, (head + &body).as_bytes());
        });
        Self { api, asked }
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        run(&[arguments, &["--admin", &self.api.address.to_string()]].concat())
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn backend(id: &str, connections: usize, drain: &Value) -> Value {
    json!({
        "id": id, "address": "127.0.0.1:1", "weight": 1, "connections": connections, "keys": 0,
        "state": if drain.is_null() { "in_service" } else { "draining" },
        "in_flight": 0, "ring_share": 0.5, "drain": drain,
    })
}

fn of_pool(backends: &[Value]) -> Value {
    json!({ "pools": [{ "name": "rooms", "balance": "x", "panicking": false, "backends": backends }] })
}

fn drain(by: &str, left: usize) -> Value {
    json!({ "by": [by], "since": 1, "total": 3, "left": left, "until": 2 })
}

#[test]
fn drain_and_undrain_ask_for_what_they_say() {
    let script = Script::start(|line, _| {
        let drained = if line.ends_with("/drain") { drain("api", 3) } else { Value::Null };
        (200, backend("a.b:1", 7, &drained))
    });
    let text = script.run(&["drain", "rooms/a.b:1"]).done();
    assert_eq!(text, "rooms/a.b:1: nothing new goes there; 7 connections there now\n");
    let text = script.run(&["undrain", "rooms/a.b:1"]).done();
    assert_eq!(text, "rooms/a.b:1: no longer drained; it is in_service\n");
    assert_eq!(script.run(&["drain", "rooms/a", "--json"]).json()["drain"]["left"], 3);
    assert_eq!(script.run(&["undrain", "rooms/a", "--json"]).json()["drain"], Value::Null);
    let asked = script.asked();
    assert_eq!(asked[0], "POST /v1/pools/rooms/backends/a%2Eb%3A1/drain");
    assert_eq!(asked[1], "POST /v1/pools/rooms/backends/a%2Eb%3A1/undrain");
}

#[test]
fn what_is_drained_for_another_cause_stays_so_and_fails() {
    let script = Script::start(|_, _| (200, backend("a", 0, &drain("backend", 0))));
    let ended = script.run(&["undrain", "rooms/a"]);
    assert_eq!(ended.exit, 1, "{ended:?}");
    assert_eq!(ended.out, "rooms/a: still drained, for another cause: backend\n");
}

#[test]
fn a_drain_is_waited_for_until_nothing_is_left() {
    let script = Script::start(|line, number| {
        if line == "GET /v1/status" {
            return (200, json!({ "proxy": "edge-1", "registry": "own" }));
        }
        let now = match number {
            // What is there is not counted yet.
            0 => return (200, backend("a", 0, &drain("api", 0))),
            1 => backend("a", 2, &drain("api", 2)),
            2 => backend("a", 1, &drain("api", 0)),
            3 => {
                let mut last = backend("a", 0, &drain("api", 0));
                last["in_flight"] = json!(1);
                last
            }
            _ => backend("a", 0, &drain("api", 0)),
        };
        assert_eq!(line, "GET /v1/pools");
        (200, of_pool(&[backend("b", 9, &Value::Null), now]))
    });
    let text = script.run(&["drain", "rooms/a", "--wait"]).done();
    let wanted = "rooms/a: draining: 2 of 3 left, 0s; 2 connections there\n\
                  rooms/a: draining: 1 connection there\n\
                  rooms/a: draining: 0 connections and 1 request there\n\
                  rooms/a: drained: nothing is there\n";
    assert_eq!(text, wanted);
    // One that leaves the list had left the config: nothing of it is left either.
    let leaves = Script::start(|_, number| match number {
        0 => (200, backend("a", 2, &drain("removed", 2))),
        _ => (200, of_pool(&[])),
    });
    assert_eq!(leaves.run(&["drain", "rooms/a", "--wait", "--json"]).json()["id"], "a");
    // One that somebody takes back is not drained.
    let back = Script::start(|_, number| match number {
        0 => (200, backend("a", 2, &drain("api", 2))),
        _ => (200, of_pool(&[backend("a", 2, &Value::Null)])),
    });
    let ended = back.run(&["drain", "rooms/a", "--wait"]);
    assert_eq!(ended.exit, 1);
    assert!(ended.err.contains("took it back"), "{ended:?}");
}

#[test]
fn a_backend_that_is_not_there_is_answered_with_those_that_are() {
    let script = Script::start(|line, _| match line {
        "GET /v1/pools" => {
            (200, of_pool(&[backend("a", 0, &Value::Null), backend("b", 0, &Value::Null)]))
        }
        _ => (404, json!({ "status": 404, "title": "Not Found", "detail": "there is no .." })),
    });
    for command in ["drain", "undrain"] {
        script.run(&[command, "rooms/c"]).fails(1, &["rooms/c", "there are rooms/a, rooms/b"]);
    }
}

#[test]
fn a_reload_tells_what_has_changed_or_what_is_wrong() {
    let backends = ["a", "b"].map(Named::start);
    let old = config(&named::addresses(&backends[..1]), &[("server", "workers = 2")]);
    let mut proxy = Proxy::start(&old);
    assert_eq!(at(&proxy, &["reload"]).done(), "reloaded: nothing has changed\n");
    let new = config(&named::addresses(&backends), &[("server", "workers = 1")]);
    // The file may be seen to have changed before the command is run: a fresh error is not.
    proxy.save(&new);
    let text = at(&proxy, &["reload"]).done();
    assert!(text.starts_with("reloaded"), "{text}");
    assert!(text.contains("\nserver.workers changed; that takes effect when"), "{text}");
    let told = at(&proxy, &["reload", "--json"]).json();
    assert_eq!(told, json!({ "changes": [], "needs_restart": ["server.workers"] }));
    let broken = new.replace("path = \"/*\"", "path = \"*\"\nnone = 1");
    proxy.save(&broken);
    let ended = at(&proxy, &["reload"]);
    let file = proxy.config_file().display().to_string();
    let errors = ended.err.lines().filter(|line| line.starts_with(&file)).count();
    assert_eq!(errors, 2, "each on its line: {ended:?}");
    ended.fails(1, &["what is in force stays"]);
    let refused = at(&proxy, &["reload", "--json"]);
    assert_eq!(refused.exit, 1);
    let refused: Value = serde_json::from_str(&refused.out).unwrap();
    assert_eq!(refused["errors"].as_array().unwrap().len(), 2);
    assert!(!proxy.process.has_exited());
}

#[test]
fn check_against_a_proxy_tells_what_a_reload_would_do() {
    let backends = ["a", "b"].map(Named::start);
    let old = config(&named::addresses(&backends), &[]);
    let proxy = Proxy::start(&old);
    let open: Vec<_> = (0..20)
        .map(|number| {
            let client = ws::open(proxy.address, &format!("/?room={number}"));
            let backend = client.read().text();
            (client, backend)
        })
        .collect();
    let of_b = open.iter().filter(|(_, backend)| backend == "b").count();
    assert!(of_b > 0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.toml");
    let file = file.to_str().unwrap();
    let against =
        ["check", "--config", file, "--against", &proxy.admin.to_string()].map(str::to_owned);
    let against: Vec<&str> = against.iter().map(String::as_str).collect();
    std::fs::write(file, &old).unwrap();
    assert!(run(&against).done().contains("would change nothing\n"));
    let new = config(&named::addresses(&backends[..1]), &[("route", "max_message = 4")]);
    let new = format!("{new}[[listener]]\nname = \"more\"\nbind = \"127.0.0.1:1\"\n");
    std::fs::write(file, &new).unwrap();
    let text = run(&against).done();
    for line in [
        &format!("{file}: valid: 2 listeners, 1 route, 1 pool, 1 backend")[..],
        &format!("a reload at http://{} would change:", proxy.admin),
        "  listener 127.0.0.1:1: added",
        "  route all: max_message changed",
        "  backend pool/b: removed; ",
        &format!("live connections touched: {of_b} drained"),
    ] {
        assert!(text.lines().any(|found| found.starts_with(line)), "no {line:?} in\n{text}");
    }
    let told = run(&[&against[..], &["--json"]].concat()).json();
    assert_eq!((&told["valid"], &told["errors"]), (&json!(true), &json!([])));
    let changes = told["plan"]["changes"].as_array().unwrap();
    let removed = changes.iter().find(|one| one["change"] == "removed").unwrap();
    assert_eq!((&removed["connections"], &removed["fate"]), (&json!(of_b), &json!("drained")));
    // It was a question: nothing has changed.
    assert_eq!(proxy.json("/v1/pools")["pools"][0]["backends"].as_array().unwrap().len(), 2);
    // What is wrong here is not even asked about.
    std::fs::write(file, new.replace("max_message", "max_massage")).unwrap();
    run(&against).fails(1, &["max_massage", "1 problem"]);
    let told = run(&[&against[..], &["--json"]].concat());
    assert_eq!(told.exit, 1);
    let told: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((&told["valid"], &told["plan"]), (&json!(false), &Value::Null));
    std::fs::write(file, &new).unwrap();
    assert_eq!(run(&["check", "--config", file, "--json"]).json()["plan"], Value::Null);
}

#[test]
fn what_only_the_proxy_finds_wrong_fails_too() {
    let backend = Named::start("a");
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.toml");
    let token = [("server", "admin_token = \"${CLI_TEST_TOKEN}\"")];
    std::fs::write(&file, config(&[("a", backend.address)], &token)).unwrap();
    let admin = proxy.admin.to_string();
    let mut command = steadfast(&["check", "--against", &admin, "--config"]);
    let ended: Ended = command.arg(&file).env("CLI_TEST_TOKEN", "hush").output().unwrap().into();
    assert!(ended.out.contains(": valid: "), "{ended:?}");
    assert_eq!(ended.exit, 1, "{ended:?}");
    assert!(ended.err.contains("CLI_TEST_TOKEN"), "{ended:?}");
}

#[test]
fn the_proxy_is_found_by_option_environment_or_config() {
    let backend = Named::start("a");
    let proxy =
        Proxy::start(&config(&[("a", backend.address)], &[("server", "admin_token = \"hush\"")]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    // A config that is broken elsewhere still tells where its proxy is.
    let server = format!("[server]\nadmin = \"{}\"\nadmin_token = \"hush\"\n", proxy.admin);
    std::fs::write(&file, format!("{server}[[route]]\npath = 7\n")).unwrap();
    let found = |command: &mut Command| Ended::from(command.output().unwrap());
    let list = ["connections"];
    let by_folder = found(steadfast(&list).current_dir(folder.path()));
    assert_eq!(by_folder.done(), "no connections\n");
    let by_variable = found(steadfast(&list).env("STEADFAST_CONFIG", &file));
    assert_eq!(by_variable.done(), "no connections\n");
    // Empty is as good as unset.
    let mut empty = steadfast(&list);
    empty.envs([("STEADFAST_CONFIG", ""), ("STEADFAST_ADMIN", ""), ("STEADFAST_TOKEN", "")]);
    assert_eq!(found(empty.current_dir(folder.path())).done(), "no connections\n");
    // The config's token goes to the config's address alone.
    let admin = proxy.admin.to_string();
    let mut elsewhere = steadfast(&["connections", "--admin", &admin]);
    found(elsewhere.current_dir(folder.path())).fails(1, &["STEADFAST_TOKEN", "--token-file"]);
    let mut named = steadfast(&list);
    named.env("STEADFAST_ADMIN", &admin).env("STEADFAST_TOKEN", "wrong");
    found(&mut named).fails(1, &["refuses the token from $STEADFAST_TOKEN", "--token-file"]);
    let token = folder.path().join("token");
    std::fs::write(&token, "hush\n").unwrap();
    let token = token.to_str().unwrap();
    let by_file = run(&["connections", "--admin", &admin, "--token-file", token]);
    assert_eq!(by_file.done(), "no connections\n");
    run(&["connections", "--admin", &admin, "--token-file", "no/such"]).fails(1, &["no/such"]);
    // `run` and `check` take an empty variable for none too.
    let mut check = steadfast(&["check"]);
    let ended = found(check.env("STEADFAST_CONFIG", "").current_dir(folder.path()));
    ended.fails(1, &["config.toml:5"]);
}

#[test]
fn who_can_not_be_asked_is_named_with_what_to_do() {
    let nobody = Refusing::new();
    let admin = nobody.address.to_string();
    let hint = ["is the proxy running", "[server] of its config", &admin];
    for command in [
        &["status"][..],
        &["status", "--watch"],
        &["connections"],
        &["close", "--connection", "x"],
        &["drain", "a/b"],
        &["undrain", "a/b"],
        &["reload"],
        &["route", "/"],
    ] {
        run(&[command, &["--admin", &admin]].concat()).fails(1, &hint);
    }
    let ended: Ended =
        steadfast(&["reload"]).env("STEADFAST_ADMIN", &admin).output().unwrap().into();
    ended.fails(1, &["(from $STEADFAST_ADMIN)"]);
    run(&["reload"]).fails(1, &["--admin URL", "$STEADFAST_ADMIN", "config.toml can't be read"]);
    // A listener is no admin API, nor is what speaks no HTTP.
    let backend = Named::start("a");
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[]));
    let listener = proxy.address.to_string();
    for command in [&["status"][..], &["reload"], &["drain", "a/b"]] {
        let ended = run(&[command, &["--admin", &listener]].concat());
        ended.fails(1, &["or no admin API?", &listener]);
    }
    let mute = Scripted::answering("SSH-2.0-x\r\n");
    let mute = mute.address.to_string();
    run(&["status", "--admin", &mute]).fails(1, &["not of a listener", &mute]);
    let not_found = Scripted::answering("HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n");
    let not_found = not_found.address.to_string();
    run(&["reload", "--admin", &not_found]).fails(1, &["404", "not as an admin API does"]);
    // A config that leaves the port to chance does not tell where the proxy is.
    let mut by_config = steadfast(&["status"]);
    let ended: Ended =
        by_config.env("STEADFAST_CONFIG", proxy.config_file()).output().unwrap().into();
    ended.fails(1, &["leaves the port", "admin API"]);
}

#[test]
fn bad_usage_is_two() {
    let long = "x".repeat(124);
    for arguments in [
        &["close"][..],
        &["close", "--connection", "x", "--code", "1005"],
        &["close", "--connection", "x", "--code", "70000"],
        &["close", "--connection", "x", "--reason", &long],
        &["drain"],
        &["drain", "rooms"],
        &["undrain", "/a"],
        &["undrain", "rooms/a", "--wait"],
        &["connections", "--limit", "0"],
        &["connections", "--rooms", "x"],
        &["status", "--admin", "https://127.0.0.1:1"],
        &["check", "--token-file", "x"],
        &["completions"],
        &["completions", "cmd"],
        &["nothing"],
    ] {
        let ended = run(arguments);
        assert_eq!((ended.exit, ended.out.as_str()), (2, ""), "{arguments:?}: {ended:?}");
        assert!(!ended.err.is_empty());
    }
    run(&["close", "--connection", "x", "--code", "1005"]).fails(2, &["3000 to 4999"]);
}

#[test]
fn a_shell_completes_every_subcommand() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).done();
        for command in [
            "run",
            "check",
            "demo",
            "route",
            "status",
            "connections",
            "close",
            "drain",
            "undrain",
            "reload",
            "completions",
        ] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    let script = run(&["completions", "bash"]).done();
    assert!(script.contains("--watch") && script.contains("_steadfast"), "{script}");
}

#[test]
fn every_help_has_an_example() {
    for command in ["status", "connections", "close", "drain", "undrain", "reload", "completions"] {
        let help = run(&[command, "--help"]).done();
        assert!(help.contains("Example"), "{help}");
        assert!(help.contains(&format!("\n  steadfast {command}")), "{help}");
    }
}

#[test]
fn the_guide_has_every_subcommand() {
    let operate = std::fs::read_to_string(support::root().join("docs/operate.md")).unwrap();
    let section = operate.split_once("\n## The command line\n").unwrap().1;
    let help = run(&["--help"]).done();
    let commands = help.split_once("Commands:\n").unwrap().1.split_once("\n\n").unwrap().0;
    for line in commands.lines() {
        let command = line.split_whitespace().next().unwrap();
        let shown = section.contains(&format!("| `steadfast {command}"))
            || section.contains(&format!(", `steadfast {command} "));
        assert!(shown || command == "help", "{command}");
    }
}

#[test]
fn a_backend_of_a_running_proxy_is_drained_and_comes_back() {
    let backends = ["a", "b"].map(Named::start);
    let spread = [("pool", "drain_timeout = \"1s\"")];
    let proxy = Proxy::start(&config(&named::addresses(&backends), &spread));
    let clients: Vec<_> = (0..20)
        .map(|number| {
            let client = ws::open(proxy.address, &format!("/?room={number}"));
            (client.read().text(), client)
        })
        .collect();
    let (at_a, at_b): (Vec<_>, Vec<_>) = clients.into_iter().partition(|(id, _)| id == "a");
    assert!(!at_a.is_empty() && !at_b.is_empty());
    let drained = at_a.len();
    let leaving = at_a.into_iter().map(|(_, client)| {
        std::thread::spawn(move || {
            let (code, _) = client.read().close();
            client.send_close(code, "");
            client.expect_end();
            code
        })
    });
    let leaving: Vec<_> = leaving.collect();
    let text = at(&proxy, &["drain", "pool/a", "--wait"]).done();
    assert!(text.ends_with("pool/a: drained: nothing is there\n"), "{text}");
    assert!(leaving.into_iter().all(|client| client.join().unwrap() == 1012), "{drained}");
    let status = at(&proxy, &["status"]).done();
    let of_a = status.lines().find(|line| line.starts_with("pool  a")).unwrap();
    assert!(of_a.contains("draining") && of_a.ends_with("done"), "{status}");
    let undrained = at(&proxy, &["undrain", "pool/a"]).done();
    assert_eq!(undrained, "pool/a: no longer drained; it is in_service\n");
    at(&proxy, &["drain", "pool/c"]).fails(1, &["there are pool/a, pool/b"]);
    for (_, client) in &at_b {
        client.send(TEXT, "still here");
        client.expect_text("still here");
    }
}
