//! How a proxy ends, how it does not start, and what its exit code says of that.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::http::{get, read_answer, read_head};
use support::scripted::{Scripted, switching};
use support::ws::{self, TEXT, Ws};
use support::{Backend, Proxy, addresses, config, connect, eventually, send, within};

fn refuses(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err()
}

fn starting(delay: &str, grace: &str, backends: &[(&str, SocketAddr)]) -> Proxy {
    let times = format!("shutdown_delay = \"{delay}\"\nshutdown_grace = \"{grace}\"\nworkers = 2");
    Proxy::start(&config(backends, &[("server", &times)]))
}

/// Reads its Close and answers it; tells when it came.
fn ended(client: &Ws) -> Instant {
    let close = client.read();
    let told = Instant::now();
    assert_eq!(close.close(), (1001, "proxy shuts down".to_owned()));
    client.send_close(1001, "");
    client.expect_end();
    told
}

#[test]
fn clients_are_told_evenly_over_three_quarters_of_the_grace() {
    let backends = Backend::fleet(&["a", "b"]);
    let mut proxy = starting("1500ms", "4s", &addresses(&backends));
    let clients: Vec<Ws> =
        (0..500).map(|number| ws::open(proxy.address, &format!("/echo?room={number}"))).collect();
    assert_eq!(get(proxy.admin, "/readyz").status, 200);
    let signalled = Instant::now();
    proxy.process.signal("TERM");
    let readers: Vec<_> =
        clients.into_iter().map(|client| std::thread::spawn(move || ended(&client))).collect();
    within(Duration::from_millis(400), "not ready", || {
        (get(proxy.admin, "/readyz").status == 503).then_some(())
    });
    assert_eq!(get(proxy.admin, "/healthz").status, 200);
    // Balancers in front have not noticed yet.
    let late = ws::open(proxy.address, "/echo?room=late");
    assert_eq!(get(proxy.address, "/health?room=late").status, 200);
    late.send(TEXT, "served");
    late.expect_text("served");
    assert!(signalled.elapsed() < Duration::from_millis(1500), "the machine is too slow for this");
    let late = std::thread::spawn(move || ended(&late));
    eventually("it accepts no more", || refuses(proxy.address).then_some(()));
    assert!(signalled.elapsed() >= Duration::from_millis(1500));
    assert_eq!(get(proxy.admin, "/healthz").status, 200, "alive to its end");

    let mut told: Vec<Instant> = readers.into_iter().map(|one| one.join().unwrap()).collect();
    told.push(late.join().unwrap());
    let exit = proxy.process.wait_for_exit();
    let over = Instant::now();
    assert_eq!(exit.code(), Some(0));
    told.sort();
    let after = |index: usize| told[index].duration_since(told[0]).as_secs_f64();
    let seconds: Vec<f64> = (0..told.len()).map(after).collect();
    // 3 s: a tenth in a tenth, half in half; more than chance may take.
    let in_first_tenth = seconds.iter().filter(|after| **after < 0.3).count();
    assert_eq!(seconds.len(), 501);
    assert!(in_first_tenth < 125, "{in_first_tenth} of 501 in the first tenth");
    for quarter in [0.0, 0.75, 1.5, 2.25] {
        let is_in = |after: &&f64| (quarter..quarter + 0.75).contains(*after);
        let told = seconds.iter().filter(is_in).count();
        assert!(told <= 250, "{told} of 501 in the quarter from {quarter} s on");
    }
    assert!((1.0..2.0).contains(&seconds[250]), "half were told after {}", seconds[250]);
    assert!((2.5..3.6).contains(&seconds[500]), "all were told after {}", seconds[500]);
    let pause = seconds.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    assert!(pause < 0.8, "nobody was told for {pause} s");
    // Over when all are gone, not when the time is.
    assert!(over.duration_since(told[500]) < Duration::from_millis(800));
    assert!(over.duration_since(signalled) < Duration::from_millis(5500));
    let output = proxy.process.output();
    assert!(output.contains(" stopped") && !output.contains("was cut"), "{output}");
}

/// A backend that opens WebSockets, and answers nothing else: no Close and no request.
fn unanswering() -> Scripted {
    Scripted::start(|stream| {
        if read_head(&stream).contains("websocket") {
            send(&stream, switching("").as_bytes());
        }
        support::read_to_end(&stream);
    })
}

#[test]
fn who_does_not_answer_is_cut_at_the_end_and_counted() {
    let backend = unanswering();
    let mut proxy = starting("0s", "2s", &[("a", backend.address)]);
    let clients: Vec<Ws> =
        (0..20).map(|number| ws::open(proxy.address, &format!("/?room={number}"))).collect();
    // A request that never gets its answer is one more.
    let request = connect(proxy.address);
    send(&request, b"GET /?room=0 HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually("the backend has the request", || (backend.accepted() == 21).then_some(()));
    let signalled = Instant::now();
    proxy.process.signal("TERM");
    let exit = proxy.process.wait_for_exit();
    let took = signalled.elapsed().as_secs_f64();
    assert_eq!(exit.code(), Some(0));
    assert!((1.9..3.0).contains(&took), "over after {took} s");
    for client in &clients {
        client.expect_close(1001);
        client.expect_end();
    }
    assert_eq!(support::read_to_end(&request), b"");
    let output = proxy.process.output();
    let line = output.lines().find(|line| line.contains("was cut")).expect("said");
    assert!(line.contains("WARN") && line.contains("connections=21"), "{line}");
}

/// A backend that begins an answer, and ends it when it is told to.
fn pausing() -> (Scripted, Sender<()>) {
    let (sender, receiver) = channel::<()>();
    let receiver = Arc::new(Mutex::new(receiver));
    let backend = Scripted::start(move |stream| {
        let head = read_head(&stream);
        if head.starts_with("GET /begun") {
            send(&stream, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegun");
        }
        let _ = receiver.lock().unwrap().recv();
        if !head.starts_with("GET /begun") {
            send(&stream, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegun");
        }
        send(&stream, b"ended");
        // Until the proxy has closed it.
        let _ = (&stream).read(&mut [0]);
    });
    (backend, sender)
}

#[test]
fn requests_under_way_are_finished() {
    let (backend, go_on) = pausing();
    let mut proxy = starting("0s", "15s", &[("a", backend.address)]);
    let requests: Vec<TcpStream> = ["/begun", "/waiting"]
        .iter()
        .map(|path| {
            let stream = connect(proxy.address);
            send(&stream, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
            stream
        })
        .collect();
    eventually("both are under way", || (backend.accepted() == 2).then_some(()));
    let begun = read_head(&requests[0]);
    assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
    proxy.process.signal("TERM");
    eventually("it accepts no more", || refuses(proxy.address).then_some(()));
    assert!(!proxy.process.has_exited());
    go_on.send(()).unwrap();
    go_on.send(()).unwrap();
    assert_eq!(support::read_to_end(&requests[0]), b"begunended");
    let answer = read_answer(&requests[1], false);
    assert_eq!((answer.status, answer.text()), (200, "begunended".to_owned()));
    assert_eq!(answer.header("connection"), Some("close"), "{}", answer.head);
    assert_eq!(support::read_to_end(&requests[1]), b"");
    assert_eq!(proxy.process.wait_for_exit().code(), Some(0));
}

#[test]
fn idle_connections_end_at_once() {
    let backends = Backend::fleet(&["a"]);
    let mut proxy = starting("0s", "20s", &addresses(&backends));
    let kept = connect(proxy.address);
    send(&kept, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(read_answer(&kept, false).text(), "a");
    proxy.wait_for_metric("steadfast_client_connections", &[], 1.0);
    let signalled = Instant::now();
    proxy.process.signal("TERM");
    assert_eq!(support::read_to_end(&kept), b"");
    assert_eq!(proxy.process.wait_for_exit().code(), Some(0));
    assert!(signalled.elapsed() < Duration::from_secs(3), "{:?}", signalled.elapsed());
}

#[test]
fn who_has_not_said_a_word_holds_nobody_up() {
    let backends = Backend::fleet(&["a"]);
    let mut proxy = starting("0s", "4s", &addresses(&backends));
    // Connected and silent, in the middle of a head; and the same at the admin address.
    let silent = [proxy.address, proxy.address, proxy.admin, proxy.admin].map(connect);
    send(&silent[1], b"GET / HT");
    send(&silent[3], b"GET /metrics HT");
    proxy.wait_for_metric("steadfast_client_connections", &[], 2.0);
    let signalled = Instant::now();
    proxy.process.signal("TERM");
    assert_eq!(proxy.process.wait_for_exit().code(), Some(0));
    assert!(signalled.elapsed() < Duration::from_millis(5500), "{:?}", signalled.elapsed());
}

#[test]
fn an_interrupt_tells_all_at_once_and_is_over_within_five_seconds() {
    let backends = Backend::fleet(&["a"]);
    let mut proxy = starting("20s", "60s", &addresses(&backends));
    let clients: Vec<Ws> =
        (0..100).map(|number| ws::open(proxy.address, &format!("/echo?room={number}"))).collect();
    let deaf = ws::open(proxy.address, "/echo");
    let signalled = Instant::now();
    proxy.process.signal("INT");
    let readers: Vec<_> =
        clients.into_iter().map(|client| std::thread::spawn(move || ended(&client))).collect();
    for reader in readers {
        let told = reader.join().unwrap().duration_since(signalled);
        assert!(told < Duration::from_secs(2), "{told:?}");
    }
    deaf.expect_close(1001);
    assert_eq!(proxy.process.wait_for_exit().code(), Some(0));
    assert!(signalled.elapsed() < Duration::from_millis(5500), "{:?}", signalled.elapsed());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let backends = Backend::fleet(&["a"]);
    // In the delay, in the time of the closes, and whatever the two signals are.
    for (delay, first, second) in
        [("30s", "TERM", "TERM"), ("0s", "TERM", "INT"), ("0s", "INT", "TERM")]
    {
        let mut proxy = starting(delay, "60s", &addresses(&backends));
        let client = ws::open(proxy.address, "/echo");
        proxy.process.signal(first);
        proxy.process.wait_for("stopping", |line| line.contains(" stopping ").then_some(()));
        if delay == "0s" {
            // Told, and not answering.
            client.expect_close(1001);
        }
        let signalled = Instant::now();
        proxy.process.signal(second);
        assert_eq!(proxy.process.wait_for_exit().code(), Some(1), "{first} {second}");
        assert!(signalled.elapsed() < Duration::from_secs(2), "{:?}", signalled.elapsed());
        client.expect_end();
        assert!(proxy.process.output().contains("a second signal"));
    }
}

/// Runs the command to its end in a folder.
fn steadfast(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    command.current_dir(folder).env_remove("STEADFAST_CONFIG").envs(environment.iter().copied());
    command.args(arguments).output().unwrap()
}

#[track_caller]
fn expect(output: &Output, code: i32, words: &[&str]) {
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}{complained}");
    let said = if code == 0 { said } else { complained };
    words.iter().for_each(|word| assert!(said.contains(word), "no {word:?} in:\n{said}"));
}

const NOWHERE: [(&str, SocketAddr); 1] =
    [("a", SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9))];

#[test]
fn a_taken_address_is_named_and_nothing_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let valid = config(&NOWHERE, &[]);
    for (what, from, words) in [
        ("listener", "bind = \"127.0.0.1:0\"", ["listener main", &address]),
        ("admin", "admin = \"127.0.0.1:0\"", ["admin address", &address]),
    ] {
        let to = from.replace("127.0.0.1:0", &address);
        std::fs::write(folder.path().join("config.toml"), valid.replace(from, &to)).unwrap();
        let output = steadfast(folder.path(), &["run"], &[]);
        expect(&output, 1, &[words[0], words[1], "in use", "steadfast: "]);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(!log.contains(" ready ") && !log.contains(" listening "), "{what}: {log}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn check_and_run_say_what_is_wrong_with_a_config() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("good.toml");
    std::fs::write(&path, config(&NOWHERE, &[])).unwrap();
    let bad = config(&NOWHERE, &[("route", "idle_timout = \"1s\"")]);
    std::fs::write(folder.path().join("bad.toml"), &bad).unwrap();
    let line = 1 + bad.lines().position(|line| line.contains("idle_timout")).unwrap();
    let place = format!("bad.toml:{line}:1: ");
    let folder = folder.path();

    let good = steadfast(folder, &["check", "--config", "good.toml"], &[]);
    expect(&good, 0, &["good.toml: valid", "1 listener, 1 route, 1 pool, 1 backend"]);
    for command in ["check", "run"] {
        let output = steadfast(folder, &[command, "--config", "bad.toml"], &[]);
        expect(&output, 1, &[&place, "idle_timeout"]);
        assert!(output.stdout.is_empty());
        let output = steadfast(folder, &[command, "--config", "missing.toml"], &[]);
        expect(&output, 1, &["missing.toml", "no such file"]);
        // Neither argument nor variable, and no file of the usual name.
        expect(&steadfast(folder, &[command], &[]), 1, &["config.toml"]);
    }
}

#[test]
fn the_config_comes_from_the_argument_the_variable_or_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    for (file, listeners) in [("config.toml", 1), ("variable.toml", 2), ("argument.toml", 3)] {
        let more = "[[listener]]\nbind = \"127.0.0.1:0\"\n".repeat(listeners - 1);
        let text = config(&NOWHERE, &[]).replace("[[route]]", &format!("{more}[[route]]"));
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let folder = folder.path();
    let variable = [("STEADFAST_CONFIG", "variable.toml")];
    expect(&steadfast(folder, &["check"], &[]), 0, &["config.toml: valid: 1 listener,"]);
    expect(&steadfast(folder, &["check"], &variable), 0, &["variable.toml: valid: 2 listeners,"]);
    let argument = ["check", "--config", "argument.toml"];
    expect(&steadfast(folder, &argument, &variable), 0, &["argument.toml: valid: 3 listeners,"]);
}

#[test]
fn bad_usage_is_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in
        [&["serve"][..], &["run", "--colour"], &["check", "--config"], &[], &["run", "x"]]
    {
        let output = steadfast(folder.path(), arguments, &[]);
        expect(&output, 2, &["--help"]);
        assert!(output.stdout.is_empty());
    }
    expect(&steadfast(folder.path(), &["--version"], &[]), 0, &[env!("CARGO_PKG_VERSION")]);
    expect(&steadfast(folder.path(), &["--help"], &[]), 0, &["run", "check", "demo"]);
}
