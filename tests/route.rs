//! `steadfast route`: what it tells is what connections do.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::collections::HashSet;
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::http::get;
use support::named::{self, Named};
use support::ws::{self, Ws};
use support::{Backend, Proxy, addresses, config, eventually};

/// Runs `steadfast route`, with nothing in its environment that could name a proxy.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    for variable in ["STEADFAST_ADMIN", "STEADFAST_CONFIG", "STEADFAST_TOKEN"] {
        command.env_remove(variable);
    }
    command.arg("route").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it tells as JSON, with its exit code.
#[track_caller]
fn told(arguments: &[&str]) -> (Value, i32) {
    let output = run(&[arguments, &["--json"]].concat());
    let told = serde_json::from_slice(&output.stdout);
    let told = told.unwrap_or_else(|_| panic!("{arguments:?}: {}", text(&output.stderr)));
    (told, output.status.code().unwrap())
}

/// A config in a file of its own.
struct File(tempfile::TempDir);

impl File {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        Self(folder)
    }

    #[track_caller]
    fn told(&self, arguments: &[&str]) -> (Value, i32) {
        let path = self.0.path().join("config.toml");
        told(&[&["--config", path.to_str().unwrap()], arguments].concat())
    }

    /// Of a request that goes somewhere.
    #[track_caller]
    fn goes(&self, arguments: &[&str]) -> Value {
        let (told, exit) = self.told(arguments);
        assert_eq!(exit, 0, "{told}");
        told
    }
}

#[track_caller]
fn by_proxy(proxy: &Proxy, arguments: &[&str]) -> (Value, i32) {
    told(&[&["--admin", &format!("http://{}", proxy.admin)], arguments].concat())
}

/// The backend that welcomes a member of a room.
#[track_caller]
fn welcomed_by(proxy: &Proxy, room: &str) -> (Ws, String) {
    let member = ws::open(proxy.address, &format!("/rooms?room={room}&name=n"));
    let welcome: Value = serde_json::from_str(&member.read().text()).unwrap();
    let backend = welcome["welcome"]["backend"].as_str().unwrap().to_owned();
    (member, backend)
}

#[test]
fn two_hundred_keys_go_where_it_tells() {
    let backends = Backend::fleet(&["a", "b", "c"]);
    let config = config(&addresses(&backends), &[]);
    let proxy = Proxy::start(&config);
    let file = File::new(&config);
    let mut seen = HashSet::new();
    for number in 0..200 {
        let room = format!("room-{number}");
        let url = format!("ws://{}/rooms?room={room}&name=n", proxy.address);
        let foretold = file.goes(&[&url]);
        let (asked, exit) = by_proxy(&proxy, &[&url]);
        assert_eq!(exit, 0);
        let (_member, backend) = welcomed_by(&proxy, &room);
        assert_eq!(foretold["backend"], *backend, "{foretold}");
        for field in ["backend", "fallback", "route", "key", "key_source", "pool", "position"] {
            assert_eq!(foretold[field], asked[field], "{field}: {foretold} {asked}");
        }
        assert_eq!(
            (&foretold["key"], &foretold["key_source"]),
            (&json!(room), &json!("query:room"))
        );
        assert_eq!(foretold["position"].as_str().unwrap().len(), 16);
        let mut order: Vec<&str> = vec![&backend];
        order.extend(
            foretold["fallback"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()),
        );
        order.sort_unstable();
        assert_eq!(order, ["a", "b", "c"], "each once: {foretold}");
        seen.insert(backend);
    }
    assert_eq!(seen.len(), 3, "every backend has its keys");
}

#[test]
fn the_object_has_these_fields_and_no_other() {
    let file = File::new(&config(&[("a", "127.0.0.1:9".parse().unwrap())], &[]));
    let told = file.goes(&["/x?room=red"]);
    let fields: Vec<&str> = told.as_object().unwrap().keys().map(String::as_str).collect();
    let mut wanted = [
        "listener",
        "route",
        "key",
        "key_source",
        "pool",
        "position",
        "backend",
        "fallback",
        "why",
    ];
    wanted.sort_unstable();
    let mut fields = fields;
    fields.sort_unstable();
    assert_eq!(fields, wanted);
    assert_eq!(told["listener"], "main");
    assert!(told["why"].as_array().unwrap().len() >= 3, "{told}");
}

#[test]
fn a_failed_backend_is_passed_over_in_the_order_of_the_fallback() {
    let backends = ["a", "b", "c"].map(Named::start);
    let proxy = Proxy::start(&config(&named::addresses(&backends), &[]));
    let of = |id: &Value| backends.iter().find(|one| *id == *one.id).unwrap();
    let (told, _) = by_proxy(&proxy, &["/?room=red"]);
    let order: Vec<Value> =
        [vec![told["backend"].clone()], told["fallback"].as_array().unwrap().clone()].concat();
    for (at, id) in order.iter().enumerate() {
        let client = ws::open(proxy.address, "/?room=red");
        assert_eq!(client.read().text(), *id, "{order:?}, the {at}-th");
        client.send_close(1000, "");
        client.expect_close(1000);
        drop(client);
        proxy.wait_for_metric("steadfast_placed_keys", &[], 0.0);
        of(id).shut_door();
    }
}

#[test]
fn a_key_with_connections_is_told_where_it_lives() {
    let backends = ["a", "b"].map(Named::start);
    let health = [("health", "kind = \"off\"\npassive_fall = 1")];
    let proxy = Proxy::start(&config(&named::addresses(&backends), &health));
    let (told, _) = by_proxy(&proxy, &["/?room=red"]);
    let (home, other) = (told["backend"].as_str().unwrap(), told["fallback"][0].as_str().unwrap());
    let at_home = backends.iter().find(|one| one.id == home).unwrap();
    at_home.shut_door();
    let client = ws::open(proxy.address, "/?room=red");
    assert_eq!(client.read().text(), other);
    let (told, exit) = by_proxy(&proxy, &["/?room=red"]);
    assert_eq!((&told["backend"], exit), (&json!(other), 0));
    assert_eq!(told["fallback"], json!([]), "never a second place: {told}");
    let why = told["why"].to_string();
    assert!(why.contains(&format!("1 connection of this key has {other}")), "{why}");
    assert!(why.contains(&format!("its home would be {home} (out of service)")), "{why}");
    // Health alone decides of a key that lives nowhere; this home is the same.
    let elsewhere = (0..).map(|number| format!("/?room={number}"));
    let file = File::new(&config(&named::addresses(&backends), &[]));
    let path = elsewhere.into_iter().find(|path| file.goes(&[path])["backend"] == home).unwrap();
    let (told, _) = by_proxy(&proxy, &[&path]);
    assert_eq!(told["backend"], *other);
    assert!(
        told["why"].to_string().contains(&format!("its home {home} (out of service)")),
        "{told}"
    );
    client.send_close(1000, "");
    client.expect_close(1000);
    drop(client);
    proxy.wait_for_metric("steadfast_placed_keys", &[], 0.0);
}

const PLACES: &str = r#"
[[listener]]
name = "public"
bind = "127.0.0.1:8080"
trusted = ["127.0.0.1"]
[[listener]]
bind = "127.0.0.1:8081"
[[route]]
name = "chat"
listener = "public"
host = "chat.example.com"
path = "/ws/*"
pool = "p"
key = "path:2"
[[route]]
name = "site"
host = "*.example.com"
path = "/*"
pool = "p"
key = ["header:X-Room", "cookie:sid"]
[[route]]
name = "address"
path = "/ip"
pool = "p"
key = "client_ip"
[[route]]
name = "plain"
path = "/plain/*"
pool = "p"
[pool.p]
backends = [{ id = "a", address = "127.0.0.1:9" }, { id = "b", address = "127.0.0.1:10" }]
"#;

#[test]
fn hosts_headers_cookies_and_listeners_decide_as_for_requests() {
    let file = File::new(PLACES);
    let host = "Host: www.example.com";
    for (arguments, listener, route, key, source) in [
        (&["ws://chat.example.com:8080/ws/red"][..], "public", "chat", "red", "path:2"),
        (&["ws://chat.example.com/ws/a%20b#x"], "public", "chat", "a b", "path:2"),
        (
            &["ws://chat.example.com:8081/ws/red", "-H", "X-Room: r"],
            "127.0.0.1:8081",
            "site",
            "r",
            "header:x-room",
        ),
        (&["/x", "-H", host, "-H", "Cookie: a=1; sid=7"], "public", "site", "7", "cookie:sid"),
        (
            &["https://u:p@www.EXAMPLE.com/x", "-H", "x-room: q", "-H", "cookie: sid=7"],
            "public",
            "site",
            "q",
            "header:x-room",
        ),
        (&["http://127.0.0.1:8080/ip"], "public", "address", "127.0.0.1", "client_ip"),
        (
            &["http://127.0.0.1:8080/ip", "-H", "X-Forwarded-For: 192.0.2.7"],
            "public",
            "address",
            "192.0.2.7",
            "client_ip",
        ),
        (
            &["http://127.0.0.1:8081/ip", "-H", "X-Forwarded-For: 192.0.2.7", "--client", "::1"],
            "127.0.0.1:8081",
            "address",
            "::1",
            "client_ip",
        ),
    ] {
        let told = file.goes(arguments);
        assert_eq!(told["listener"], listener, "{told}");
        assert_eq!(told["route"], route, "{told}");
        assert_eq!(told["key"], key, "{told}");
        assert_eq!(told["key_source"], source, "{told}");
    }
}

#[test]
fn without_a_key_any_backend_will_do() {
    let file = File::new(PLACES);
    for arguments in [&["/plain/x"][..], &["/x", "-H", "Host: a.example.com"]] {
        let told = file.goes(arguments);
        assert_eq!(told["backend"], "any", "{told}");
        assert_eq!(told["fallback"], json!([]));
        for field in ["key", "key_source", "position"] {
            assert_eq!(told[field], Value::Null, "{field}: {told}");
        }
    }
}

#[test]
fn where_a_key_does_not_place_any_backend_will_do() {
    let backends = "backends = [{ id = \"a\", address = \"127.0.0.1:1\" }]";
    let file = File::new(&format!(
        "[[listener]]\nbind = \"127.0.0.1:0\"\n\n[[route]]\npath = \"/*\"\npool = \"p\"\n\
         key = \"query:room\"\n\n[pool.p]\nbalance = \"round_robin\"\n{backends}\n"
    ));
    let told = file.goes(&["/?room=red"]);
    assert_eq!((&told["key"], &told["backend"]), (&json!("red"), &json!("any")), "{told}");
    assert_eq!(told["position"], Value::Null);
    assert!(told["why"].to_string().contains("round_robin"), "{told}");
}

#[test]
fn what_would_be_refused_fails_and_says_why() {
    let file = File::new(PLACES);
    let long = format!("ws://chat.example.com/ws/{}", "x".repeat(513));
    for (url, route, why) in [
        ("/nowhere", Value::Null, "without a host: a 404"),
        ("http://other.example/x", Value::Null, "other.example"),
        (&long, json!("chat"), "a 400"),
    ] {
        let (told, exit) = file.told(&[url]);
        assert_eq!((exit, &told["backend"]), (1, &Value::Null), "{told}");
        assert_eq!(told["route"], route);
        assert!(told["why"].to_string().contains(why), "{told}");
    }
    let backend = Named::start("a");
    let health = [("health", "kind = \"off\"\npassive_fall = 1")];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &health));
    backend.shut_door();
    assert_eq!(get(proxy.address, "/").status, 502);
    for path in ["/", "/?room=red"] {
        let (told, exit) = by_proxy(&proxy, &[path]);
        assert_eq!((exit, &told["backend"]), (1, &Value::Null), "{told}");
        assert!(told["why"].to_string().contains("a 503"), "{told}");
    }
}

#[test]
fn a_person_reads_it_line_by_line() {
    let file = File::new(PLACES);
    let path = file.0.path().join("config.toml");
    let output = run(&["ws://chat.example.com:8080/ws/red", "--config", path.to_str().unwrap()]);
    assert!(output.status.success());
    let text = text(&output.stdout);
    for line in ["listener  public", "route     chat", "key       red (path:2)", "pool      p"] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    assert!(text.lines().any(|line| line.starts_with("why ")), "{text}");
}

#[test]
fn the_guide_shows_what_it_prints() {
    let page = |name: &str| std::fs::read_to_string(support::root().join(name)).unwrap();
    let block = |page: &str, begins: &str| {
        let block = page.split_once(begins).unwrap().1;
        block.split("```").next().unwrap().to_owned()
    };
    let file = File::new(&block(&page("README.md"), "```toml,check\n"));
    let path = file.0.path().join("config.toml");
    let url = "ws://127.0.0.1:8080/rooms?room=red";
    let shown = block(&page("docs/operate.md"), &format!("$ steadfast route '{url}'\n"));
    let output = run(&[url, "--config", path.to_str().unwrap()]);
    assert_eq!(text(&output.stdout), shown);
}

#[test]
fn bad_usage_is_two_and_a_failure_one() {
    let file = File::new(PLACES);
    let path = file.0.path().join("config.toml");
    let path = path.to_str().unwrap();
    for (arguments, exit) in [
        (&[][..], 2),
        (&["ftp://host/", "--config", path], 2),
        (&["no/path", "--config", path], 2),
        (&["/", "-H", "no header", "--config", path], 2),
        (&["/", "--client", "nobody", "--config", path], 2),
        (&["/", "--config", path, "--admin", "http://127.0.0.1:1"], 2),
        (&["/", "--config", "no/such/file"], 1),
        (&["/", "--admin", "http://127.0.0.1:1"], 1),
        (&["/", "--admin", "https://127.0.0.1:1"], 2),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_environment_names_the_proxy_and_its_token() {
    let backend = Named::start("a");
    let token = [("server", "admin_token = \"hush\"")];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &token));
    let admin = proxy.admin.to_string();
    let ask = |token: Option<&str>, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
        command.env("STEADFAST_ADMIN", &admin).env_remove("STEADFAST_TOKEN");
        command.envs(token.map(|token| ("STEADFAST_TOKEN", token)));
        command.args(["route", "/?room=red", "--json"]).args(arguments).output().unwrap()
    };
    let refused = ask(None, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("token"), "{}", text(&refused.stderr));
    assert!(ask(Some("hush"), &[]).status.success());
    let file = proxy.folder().join("token");
    std::fs::write(&file, "hush\n").unwrap();
    assert!(ask(Some("wrong"), &["--token-file", file.to_str().unwrap()]).status.success());
    // A config that is named comes before a proxy that the environment names.
    let path = proxy.folder().join("config.toml");
    assert!(ask(None, &["--config", path.to_str().unwrap()]).status.success());
}

#[test]
fn the_api_refuses_what_it_does_not_understand() {
    let backend = Named::start("a");
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[]));
    for query in ["", "?url=", "?url=x", "?url=/&what=1", "?url=/&header=x", "?url=/&client=x"] {
        let answer = get(proxy.admin, &format!("/v1/route{query}"));
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
    }
    let told = proxy.json("/v1/route?url=%2F%3Froom%3Dred&header=X-A:%20b&header=X-A:c");
    assert_eq!(told["backend"], "a");
    // A question is no request.
    eventually("nothing is placed", || {
        (proxy.metric("steadfast_placed_keys", &[]) == 0.0).then_some(())
    });
    assert_eq!(proxy.metric("steadfast_requests_total", &[]), 0.0);
}
