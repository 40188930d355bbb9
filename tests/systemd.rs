//! A service manager is told what the proxy does, when it does it, and that it is alive.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use support::manager::Manager;
use support::{Backend, Proxy, config, within};

fn monotonic_micros() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

#[test]
fn start_reloads_and_stop_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let manager = Manager::at_path(&folder.path().join("notify"));
    let backend = Backend::start("a");
    let config = config(&[("a", backend.address)], &[("server", "shutdown_grace = \"7s\"")]);
    let mut proxy = Proxy::start_with(&config, &[("NOTIFY_SOCKET", &manager.name)]);
    let told = manager.expect("READY=1");
    assert_eq!(told.value("STATUS"), "Serving");

    let before = monotonic_micros();
    proxy.process.signal("HUP");
    let told = manager.expect("RELOADING=1");
    let at: i64 = told.value("MONOTONIC_USEC").parse().unwrap();
    assert!((before..=monotonic_micros()).contains(&at), "{before} {told}");
    let told = manager.expect("READY=1");
    assert_eq!(told.value("STATUS"), "Serving; reloaded with 0 changes");

    proxy.save(&config.replace("pool = \"pool\"", "pool = \"none\"\nx = 1"));
    manager.expect("RELOADING=1");
    let told = manager.expect("READY=1");
    let status = told.value("STATUS");
    assert!(status.starts_with("Serving by the config before; reload failed: "), "{status}");

    // By the admin API: the same.
    proxy.save(&config.replace("name = \"all\"", "name = \"other\""));
    manager.expect("RELOADING=1");
    let told = manager.expect("READY=1");
    assert!(told.value("STATUS").starts_with("Serving; reloaded with "), "{told}");
    assert_eq!(proxy.post("/v1/reload", "").0, 200);
    manager.expect("RELOADING=1");
    manager.expect("READY=1");

    proxy.process.signal("TERM");
    let told = manager.expect("STOPPING=1");
    assert!(told.value("STATUS").starts_with("Stopping, within "), "{told}");
    let micros: u64 = told.value("EXTEND_TIMEOUT_USEC").parse().unwrap();
    assert!(micros > 7_000_000, "{told}");
    assert!(proxy.process.wait_for_exit().success());
    // No watchdog was asked for, and the end of the process says itself.
    assert!(manager.hears_nothing(Duration::from_millis(50)));
}

#[test]
fn ready_is_told_when_connections_are_accepted_and_not_before() {
    let manager = Manager::at_abstract_name("steadfast-ready");
    let backend = Backend::start("a");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    let config = config(&[("a", backend.address)], &[]);
    let config = config.replacen("bind = \"127.0.0.1:0\"", &format!("bind = \"{address}\""), 1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, config).unwrap();
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
        command.arg("run").arg("--config").arg(&path).env("NOTIFY_SOCKET", &manager.name);
        support::Process::start("proxy", &mut command)
    };
    // The address is taken: it never serves.
    let mut failing = start();
    assert!(!failing.wait_for_exit().success());
    assert!(manager.hears_nothing(Duration::from_millis(50)));
    drop(free);
    let _proxy = start();
    manager.expect("READY=1");
    TcpStream::connect(address).unwrap();
}

#[test]
fn signs_of_life_come_twice_in_the_time_of_the_watchdog_until_the_end() {
    let manager = Manager::at_abstract_name("steadfast-watchdog");
    let backend = Backend::start("a");
    let times = "workers = 2\nshutdown_delay = \"1500ms\"";
    let config = config(&[("a", backend.address)], &[("server", times)]);
    let environment = [("NOTIFY_SOCKET", manager.name.as_str()), ("WATCHDOG_USEC", "500000")];
    let mut proxy = Proxy::start_with(&config, &environment);
    manager.expect("READY=1");
    let started = Instant::now();
    for _ in 0..5 {
        let told = manager.hear();
        assert!(told.says("WATCHDOG=1"), "{told}");
    }
    assert!(started.elapsed() >= Duration::from_millis(750), "{:?}", started.elapsed());
    proxy.process.signal("TERM");
    manager.expect("STOPPING=1");
    for _ in 0..3 {
        let told = manager.hear();
        assert!(told.says("WATCHDOG=1"), "{told}");
    }
    assert!(proxy.process.wait_for_exit().success());
}

#[test]
fn a_manager_that_does_not_listen_holds_up_no_stop() {
    let manager = Manager::at_abstract_name("steadfast-deaf");
    let backend = Backend::start("a");
    let times = "shutdown_delay = \"30s\"";
    let config = config(&[("a", backend.address)], &[("server", times)]);
    let mut proxy = Proxy::start_with(&config, &[("NOTIFY_SOCKET", manager.name.as_str())]);
    manager.expect("READY=1");
    manager.fill();
    // Well within the time that the manager is given.
    let soon = Duration::from_secs(1);
    proxy.process.signal("TERM");
    within(soon, "not ready", || {
        (support::http::get(proxy.admin, "/readyz").status == 503).then_some(())
    });
    proxy.process.signal("TERM");
    assert_eq!(proxy.process.wait_for_exit_within(soon).code(), Some(1));
}

#[test]
fn a_manager_that_is_gone_keeps_nobody_from_serving() {
    let backend = Backend::start("a");
    let config = config(&[("a", backend.address)], &[]);
    for nowhere in ["/nowhere/notify", "@steadfast-nobody", "vsock:2:1"] {
        let mut proxy = Proxy::start_with(&config, &[("NOTIFY_SOCKET", nowhere)]);
        proxy.process.wait_for("a warning", |line| {
            (line.contains("service manager") && line.contains("WARN")).then_some(())
        });
        assert_eq!(support::http::get(proxy.address, "/health").status, 200, "{nowhere}");
    }
}
