//! What the demo says of arguments that are wrong, and where it says it.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backend-demo"));
    command.args(["--listen", "127.0.0.1:0"]).args(arguments).env("RUST_BACKTRACE", "1");
    command
}

#[test]
fn a_wrong_option_is_named_with_what_to_write() {
    for (arguments, words) in [
        (&["--id", "a b"][..], ["--id", "1 to 64 of"]),
        (&["--id", ""], ["--id", "1 to 64 of"]),
        (&["--redis", "http://127.0.0.1:1"], ["--redis", "redis://HOST:PORT"]),
        (&["--redis", "redis+sentinel://127.0.0.1:1/x"], ["--redis", "Sentinels"]),
        (&["--redis", "127.0.0.1:6379"], ["--redis", "rediss://HOST:PORT"]),
        (&["--proxy-admin", "foo"], ["--proxy-admin", "http://127.0.0.1:9900"]),
        (&["--proxy-admin", "https://127.0.0.1:9900"], ["--proxy-admin", "http://"]),
    ] {
        let ended = demo(arguments).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{arguments:?}: {said}");
        assert!(!said.contains("listening") && !said.contains("backtrace"), "{said}");
    }
    let ended = demo(&["--redis", "redis+sentinel://me:secret@h/x"]).output().unwrap();
    assert!(!String::from_utf8(ended.stderr).unwrap().contains("secret"));
}

#[test]
fn an_address_that_is_taken_is_told_without_a_backtrace() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_backend-demo"));
    let ended = command.args(["--listen", &address]).env("RUST_BACKTRACE", "1").output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&format!("can't listen on {address}: ")), "{said}");
}

#[test]
fn a_log_that_no_terminal_shows_has_no_colours() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut process =
        demo(&["--redis", &format!("redis://{nobody}")]).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let logged = lines.map(Result::unwrap).find(|line| line.contains("can't publish"));
    process.kill().unwrap();
    process.wait().unwrap();
    let logged = logged.unwrap();
    assert!(!logged.contains('\x1b'), "{logged:?}");
}
