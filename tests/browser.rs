//! The chat page in a real browser, in front of real backends, one of which is killed.

mod support;

use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value, json};
use support::tls::Authority;
use support::{Backend, Process, Proxy, addresses, chromium, config, root};

/// For the whole story; each wait in it has a deadline of its own.
const STORY: Duration = Duration::from_secs(240);

#[test]
fn visitors_of_the_chat_page() {
    let backends = Backend::fleet(&["b0", "b1", "b2"]);
    let health = [("health", "kind = \"http\"\ninterval = \"500ms\"")];
    let proxy = Proxy::start(&config(&addresses(&backends), &health));
    let pids = backends.iter().map(|one| (one.id.clone(), json!({ "pid": one.process.pid() })));
    let pids = Value::Object(pids.collect::<Map<_, _>>());
    let url = format!("http://{}/", proxy.address);
    let environment = [("PROXY_URL", url), ("BACKENDS", pids.to_string())];
    story(&environment, ["tests 10", "pass 10", "skipped 0"]);
}

#[test]
fn visitors_of_the_chat_page_over_tls() {
    let authority = Authority::new();
    let site = authority.issue("site", &["127.0.0.1"]);
    let backend = Backend::start("b0");
    let listener = format!("tls.certificates = [{}]", site.in_config());
    let proxy = Proxy::start(&config(&[("b0", backend.address)], &[("listener", &listener)]));
    let url = format!("https://{}/", proxy.address);
    let flags = "--ignore-certificate-errors".to_owned();
    // What needs a second backend is skipped.
    story(&[("PROXY_URL", url), ("BROWSER_FLAGS", flags)], ["tests 10", "pass 8", "skipped 2"]);
}

fn story(environment: &[(&str, String)], counts: [&str; 3]) {
    let folder = root().join("tests/browser");
    assert!(folder.join("node_modules").exists(), "run scripts/test once: it installs Playwright");
    // Not by `node --test`, which would have a child that outlives it when it is killed.
    let mut story = Process::start(
        "browser",
        Command::new("node")
            .current_dir(folder)
            .arg("demo.test.mjs")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env("CHROMIUM", chromium()),
    );
    let exit = story.wait_for_exit_within(STORY);
    let output = story.output();
    assert!(exit.success(), "{output}");
    for count in counts {
        let said = |line: &str| line.trim_start_matches(['#', 'ℹ', ' ']) == count;
        assert!(output.lines().any(said), "not {count}:\n{output}");
    }
}
