//! The description of the admin API against the API: whatever a program sends that goes by it, or does
//! not, is answered as it says. By Schemathesis, which makes requests out of the description alone.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::net::SocketAddr;
use std::process::Command;

use support::http::{header, request};
use support::redis::Redis;
use support::scripted::{Refusing, Scripted};
use support::{Proxy, config, eventually, python, ws};

const TOKEN: &str = "hush";

/// Every check there is, for one who knows nothing of what is there, but two: that whatever the
/// description allows is taken, since it can't say how many bytes a text may have; and that what it does
/// not allow is refused, where it is a message, which may be anything.
const OF_STRANGERS: &str = r#"
    [checks]
    positive_data_acceptance.enabled = false

    [[operations]]
    include-path-regex = "/(messages|broadcast)$"
    checks.negative_data_rejection.enabled = false
"#;

/// For one who knows what is there, and needs no token: what he asks for is done.
const OF_FRIENDS: &str = r#"
    [checks]
    positive_data_acceptance.enabled = false
    negative_data_rejection.enabled = false
    ignored_auth.enabled = false
    missing_required_header.enabled = false

    [parameters]
    "path.pool" = "pool"
    "path.key" = "k"
    "path.room" = "r"

    [[operations]]
    include-path-regex = "/backends/"
    parameters = { "path.id" = "b" }

    [[operations]]
    include-path-regex = "/(messages|members/.id.)$"
    parameters = { "path.id" = "OWN" }

    [[operations]]
    include-path-regex = "/connections/.id.$"
    parameters = { "path.id" = "OTHER" }
"#;

fn proxy(redis: &Redis, backends: [(&str, SocketAddr); 2], server: &str) -> Proxy {
    let config = config(&backends, &[("server", server)]);
    let proxy = Proxy::start(&format!("{config}\n[registry]\nurl = \"{}\"\n", redis.url()));
    let token = [("Authorization", &*format!("Bearer {TOKEN}"))];
    eventually("the registry is up", || {
        let status = request(proxy.admin, "GET", "/v1/status", &token, b"").text();
        status.contains("\"registry\":\"up\"").then_some(())
    });
    proxy
}

/// Some hundred requests, the same ones each time; each answer must pass the checks.
#[track_caller]
fn holds(proxy: &Proxy, settings: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, settings).unwrap();
    let program = python().with_file_name("schemathesis");
    assert!(program.exists(), "run scripts/test once: it installs {}", program.display());
    let mut command = Command::new(program);
    command.arg("--config-file").arg(&file).arg("run");
    command.arg(format!("http://{}/openapi.json", proxy.admin));
    command.args(["--header", &format!("Authorization: Bearer {TOKEN}")]);
    command.args(["--phases", "coverage,fuzzing", "--max-examples", "8", "--no-shrink"]);
    command.args(["--generation-deterministic", "--continue-on-failure", "--warnings", "off"]);
    command.arg("--no-color").current_dir(folder.path());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let made = said.lines().find(|line| line.contains(" generated, ")).unwrap_or_default().trim();
    let count = made.split(' ').next().and_then(|count| count.parse::<usize>().ok());
    assert!(count.is_some_and(|count| count > 100), "{said}");
}

#[test]
fn whatever_is_asked_is_answered_as_the_description_says() {
    let redis = Redis::start();
    let (backend, handed) = Scripted::opening();
    let nobody = Refusing::new();
    let backends = [("a", backend.address), ("b", nobody.address)];
    let with_token = format!("admin_token = \"{TOKEN}\"");
    let [strict, one, other] = [&*with_token, "", ""].map(|server| proxy(&redis, backends, server));
    let [own, others] = [&one, &other].map(|proxy| {
        let client = ws::open(proxy.address, "/?room=k");
        let (stream, head) = handed.next();
        (client, header(&head, "steadfast-connection").unwrap().to_owned(), stream)
    });
    let of_friends = OF_FRIENDS.replace("OWN", &own.1).replace("OTHER", &others.1);
    std::thread::scope(|scope| {
        let strangers = scope.spawn(|| holds(&strict, OF_STRANGERS));
        holds(&one, &of_friends);
        strangers.join().unwrap();
    });
    // It was done: a message has come, and the other proxy has closed what it was told to.
    assert_ne!(own.0.read().opcode, ws::CLOSE);
    let mut frames = std::iter::from_fn(|| others.0.try_read().ok());
    assert!(frames.any(|frame| frame.opcode == ws::CLOSE && frame.close().0 == 1000));
}
