//! What a config file is told that is wrong, and the example file that is told nothing.
//!
//! `tests/config/NAME.toml` is a file with something wrong, `NAME.expected` beside it the whole
//! of what `check` prints about it. With UPDATE_EXPECT=1 in the environment the expectations
//! are written anew; read the difference before it is committed: each message must say what to do.

#![expect(clippy::unwrap_used, reason = "a test that can't go on should stop")]

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use steadfast::config::{Config, Environment, Problems, load, parse};

fn check(source: &str, name: &str) -> Result<Config, Problems> {
    let environment = Environment {
        variable: &|name| (name == "PORT").then(|| "8080".to_owned()),
        file: &|path| match path.to_str() {
            Some("folder/token") => Ok("hush-hush\n".to_owned()),
            Some("folder/empty") => Ok("\n".to_owned()),
            _ => Err(io::ErrorKind::NotFound.into()),
        },
        host_name: "edge1.example.com",
        cores: NonZeroUsize::new(4).unwrap(),
        now: std::time::SystemTime::now(),
        authorities: &Vec::new,
    };
    parse(source, name, Path::new("folder"), &environment)
}

fn broken_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    files
}

#[test]
fn each_broken_file_is_told_what_is_expected() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let files = broken_files();
    assert!(files.len() >= 25);
    let mut differing = Vec::new();
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let source = fs::read_to_string(file).unwrap();
        let told = check(&source, name)
            .map_or_else(|problems| problems.to_string(), |_| panic!("{name} was accepted"));
        let expected = file.with_extension("expected");
        if update {
            fs::write(&expected, &told).unwrap();
        } else if fs::read_to_string(&expected).ok().as_ref() != Some(&told) {
            differing.push(format!("{name} is told:\n{told}"));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn no_expectation_shows_a_secret() {
    for file in broken_files() {
        let told = fs::read_to_string(file.with_extension("expected")).unwrap();
        assert!(!told.contains("hush"), "{}", file.display());
    }
}

/// The options of the example: every line that gives a key a value.
fn example() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.toml")).unwrap()
}

fn is_option(line: &str) -> bool {
    line.starts_with(|first: char| first.is_ascii_lowercase()) && line.contains(" = ")
}

fn is_default(line: &str) -> bool {
    is_option(line) && !line.contains("# no default")
}

fn without(source: &str, dropped: impl Fn(&str) -> bool) -> String {
    source
        .lines()
        .filter(|line| !dropped(line))
        .fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn the_example_is_accepted_and_states_the_defaults() {
    let example = example();
    let stated = check(&example, "config.example.toml").unwrap();
    let minimal = without(&example, is_default);
    assert_eq!(check(&minimal, "minimal").unwrap(), stated);
    for option in example.lines().filter(|line| is_default(line)) {
        let rest = without(&example, |line| line == option);
        assert_eq!(check(&rest, "one less").unwrap(), stated, "{option}");
    }
}

#[test]
fn every_option_that_is_off_in_the_example_is_accepted_when_given() {
    let folder = std::env::temp_dir().join(format!("steadfast-example-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("token"), "hush-hush\n").unwrap();
    let site = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    fs::write(folder.join("site.pem"), site.cert.pem()).unwrap();
    fs::write(folder.join("site.key"), site.signing_key.serialize_pem()).unwrap();
    let example = example();
    let plain = without(&example, |_| false);
    let mut tried = 0;
    for option in example.lines().filter(|line| line.strip_prefix('#').is_some_and(is_option)) {
        let given = given(&plain, option);
        let file = folder.join("config.toml");
        fs::write(&file, given).unwrap();
        let config = load(&file).unwrap_or_else(|problems| panic!("{option}\n{problems}"));
        assert_ne!(config, load_text(&folder, &plain), "{option} changes nothing");
        tried += 1;
    }
    assert_eq!(tried, 20);
    fs::remove_dir_all(folder).unwrap();
}

/// The example with one of the options that are off; one of an absent table comes with its header, and
/// with the one that can't be left out in it.
fn given(example: &str, option: &str) -> String {
    let given = |text: &str, line: &str| {
        text.replacen(&format!("\n{line}"), &format!("\n{}", &line[1..]), 1)
    };
    let mut whole = given(example, option);
    let is_absent = |line: &&str| line.starts_with("#[");
    let header = example.lines().take_while(|line| *line != option).filter(is_absent).last();
    let Some(header) = header else { return whole };
    whole = given(&whole, header);
    if !option.starts_with("#url") && !option.starts_with("#cluster") {
        whole = given(&whole, "#url");
    }
    whole
}

#[test]
fn an_absent_table_of_the_example_states_the_defaults_too() {
    let example = example();
    let whole = example.lines().filter(|line| !line.starts_with("#cluster"));
    let (before, table) = example.split_once("#[registry]").unwrap();
    let bare = format!("{before}[registry]\nurl = \"redis://127.0.0.1:6379\"\n");
    let bare = check(&bare, "bare").unwrap();
    assert!(bare.registry.is_some());
    let rest: Vec<_> = whole.skip_while(|line| !line.starts_with("#[registry]")).skip(1).collect();
    assert!(table.lines().count() > rest.len());
    let stated = rest.iter().fold(format!("{before}[registry]\n"), |text, line| {
        text + line.strip_prefix('#').unwrap() + "\n"
    });
    assert_eq!(check(&stated, "stated").unwrap(), bare);
}

fn load_text(folder: &Path, text: &str) -> Config {
    let file = folder.join("plain.toml");
    fs::write(&file, text).unwrap();
    load(&file).unwrap()
}

/// The options of a config, as they are written.
const OPTIONS: &[&str] = &[
    "name",
    "workers",
    "admin",
    "admin_token",
    "shutdown_delay",
    "shutdown_grace",
    "log.level",
    "log.format",
    "access_log",
    "bind",
    "proxy_protocol",
    "trusted",
    "timeouts.header",
    "timeouts.tls",
    "timeouts.idle",
    "tls.certificates",
    "limits.head",
    "limits.headers",
    "limits.connections",
    "limits.connections_per_ip",
    "keepalive",
    "listener",
    "host",
    "path",
    "pool",
    "key",
    "sticky_cookie.name",
    "sticky_cookie.domain",
    "sticky_cookie.path",
    "sticky_cookie.same_site",
    "sticky_cookie.secure",
    "sticky_cookie.http_only",
    "sticky_cookie.max_age",
    "learn",
    "on_backend_loss",
    "allowed_origins",
    "rooms",
    "idle_timeout",
    "ping_interval",
    "max_message",
    "max_connections",
    "timeouts.body",
    "timeouts.response",
    "balance",
    "bounded_load",
    "slow_start",
    "handshake_rate",
    "connect_timeout",
    "drain_timeout",
    "tls",
    "handshake_timeout",
    "backends",
    "kind",
    "interval",
    "timeout",
    "rise",
    "fall",
    "passive_fall",
    "lost_after",
    "panic_threshold",
    "url",
    "cluster",
    "prefix",
    "required",
    "join_wait",
];

#[test]
fn the_example_shows_every_option() {
    let example = example();
    let shown = |option: &str| {
        let given = |line: &str| line.trim_start_matches('#').starts_with(&format!("{option} = "));
        example.lines().any(given)
    };
    for option in OPTIONS {
        assert!(shown(option), "{option}");
    }
}

#[test]
fn a_file_that_is_not_there_is_a_problem_without_a_line() {
    let problems = load(Path::new("no/such/config.toml")).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(problems.to_string().starts_with("no/such/config.toml: there is no such file"));
}

#[test]
fn a_file_of_more_than_four_megabytes_is_refused() {
    let problems = load(Path::new("/dev/zero")).unwrap_err();
    assert!(problems.to_string().contains("is longer than 4MiB"), "{problems}");
    let problems = check(&"#\n".repeat(3 << 20), "long.toml").unwrap_err();
    assert!(problems.to_string().contains("is longer than 4MiB"), "{problems}");
}

#[test]
fn bytes_that_are_no_text_are_pointed_to() {
    let file = std::env::temp_dir().join(format!("steadfast-latin1-{}.toml", std::process::id()));
    fs::write(&file, b"[server]\nname = \"k\xe4se\"\n").unwrap();
    let problems = load(&file).unwrap_err().to_string();
    fs::remove_file(&file).unwrap();
    assert!(problems.contains(":2:10: is no UTF-8 text"), "{problems}");
}
