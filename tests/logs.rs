//! What the proxy writes, and that it never waits for it: not for standard error, not for a disk.
//! And that no secret is in any of it.

#![expect(clippy::unwrap_used, reason = "a test that can't go on should stop")]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use support::http::{self, read_answer};
use support::scripted::Scripted;
use support::ws::{self, TEXT};
use support::{Backend, Process, Proxy, addresses, config, connect, eventually, read_to_end, send};

/// Requests that the proxy answers itself, on one connection; nobody may wait for a log meanwhile.
#[track_caller]
fn ask(address: SocketAddr, path: &str, times: usize) {
    let stream = connect(address);
    let head = format!("GET {path} HTTP/1.1\r\nHost: nowhere.example\r\n\r\n");
    // Several at a time, as many as surely go into the sockets' buffers.
    let at_a_time = (8 * 1024 / head.len()).max(1);
    for _ in 0..times.div_ceil(at_a_time) {
        send(&stream, head.repeat(at_a_time).as_bytes());
        (0..at_a_time).for_each(|_| assert_eq!(read_answer(&stream, false).status, 404));
    }
}

/// A WebSocket that must go on whatever becomes of logs.
fn echoes(client: &ws::Ws) {
    client.send(TEXT, "hello");
    client.expect_text("hello");
}

/// Of a host of its own, so that requests can miss it.
const HOST: (&str, &str) = ("route", "host = \"test\"");

/// A proxy whose standard error is read only as far as the test says.
struct Unread {
    child: Child,
    stderr: BufReader<ChildStderr>,
    address: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Unread {
    fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
        command.arg("run").arg("--config").arg(path).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains(" ready ") {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
        }
        let address = |event: &str| {
            let line = said.lines().find(|line| line.contains(event)).unwrap();
            let (_, address) = line.split_once("address=").unwrap();
            address.trim().parse().unwrap()
        };
        let (address, admin) = (address(" listening "), address(" admin API "));
        Self { child, stderr, address, admin, _folder: folder }
    }

    fn metric(&self, name: &str) -> f64 {
        let page = http::get(self.admin, "/metrics").text();
        let line = page.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_standard_error_that_nobody_reads_holds_up_nobody() {
    let backends = Backend::fleet(&["a"]);
    let server = ("server", "access_log = \"stderr\"\nshutdown_grace = \"1s\"");
    let mut proxy = Unread::start(&config(&addresses(&backends), &[HOST, server]));
    let client = ws::open(proxy.address, "/echo?room=r");
    let path = format!("/{}", "x".repeat(16_000));
    eventually("lines are dropped", || {
        ask(proxy.address, &path, 50);
        echoes(&client);
        (proxy.metric("steadfast_access_log_dropped_lines_total") > 100.0).then_some(())
    });
    // The end of all is no reason to wait either.
    let until = Instant::now() + Duration::from_secs(15);
    proxy.terminate();
    client.answer_close(1001);
    let status = eventually("the end", || proxy.child.try_wait().unwrap());
    assert!(status.success() && Instant::now() < until, "{status}");
}

#[test]
fn what_was_dropped_is_told_when_standard_error_is_read_again() {
    let backends = Backend::fleet(&["a"]);
    let mut proxy = Unread::start(&config(&addresses(&backends), &[HOST]));
    eventually("events are dropped", || {
        ask(proxy.address, "/", 1000);
        (proxy.metric("steadfast_log_dropped_lines_total") > 100.0).then_some(())
    });
    let dropped = proxy.metric("steadfast_log_dropped_lines_total");
    let mut line = String::new();
    while !line.contains("standard error is too slow: lines were dropped") {
        line.clear();
        assert!(proxy.stderr.read_line(&mut line).unwrap() > 0);
    }
    let (_, told) = line.trim().rsplit_once("lines=").unwrap();
    assert_eq!(told.parse::<f64>().unwrap(), dropped, "{line}");
    // And the last lines are all there.
    proxy.terminate();
    let mut rest = String::new();
    proxy.stderr.read_to_string(&mut rest).unwrap();
    assert!(rest.trim_end().ends_with("stopped"), "{rest}");
}

#[test]
fn a_fifo_that_nobody_reads_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("access.fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let backends = Backend::fleet(&["a"]);
    let server = format!("access_log = {fifo:?}\nshutdown_grace = \"1s\"");
    let proxy = Proxy::start(&config(&addresses(&backends), &[HOST, ("server", &server)]));
    let client = ws::open(proxy.address, "/echo?room=r");
    let path = format!("/{}", "x".repeat(16_000));
    eventually("lines are dropped", || {
        ask(proxy.address, &path, 50);
        echoes(&client);
        (proxy.metric("steadfast_access_log_dropped_lines_total", &[]) > 100.0).then_some(())
    });
    // Its reader comes at last: what was not dropped is whole.
    let mut reader = Process::start("cat", Command::new("cat").arg(&fifo));
    eventually("it is told", || {
        let events = proxy.process.output();
        events.contains("the access log is too slow: lines were dropped").then_some(())
    });
    let read = eventually("lines", || Some(reader.output()).filter(|read| !read.is_empty()));
    reader.kill();
    let lines: Vec<serde_json::Value> =
        read.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["refused"] == "no_route" && line["path"] == *path));
    // Unread again, it does not keep the process from ending.
    ask(proxy.address, &path, 500);
    let mut process = proxy.process;
    process.signal("TERM");
    client.answer_close(1001);
    assert!(process.wait_for_exit_within(Duration::from_secs(15)).success());
}

#[test]
fn events_and_an_access_log_on_standard_error_take_turns_by_the_line() {
    let backends = Backend::fleet(&["a"]);
    let json = config(&addresses(&backends), &[HOST, ("server", "access_log = \"stderr\"")])
        .replace("log = { level = \"debug\" }", "log = { level = \"debug\", format = \"json\" }");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, json).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    command.arg("run").arg("--config").arg(path);
    let mut process = Process::start("proxy", &mut command);
    let address: SocketAddr = process.wait_for("listening", |line| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        (event["message"] == "listening")
            .then(|| event["address"].as_str().unwrap().parse().unwrap())
    });
    let path = format!("/{}", "x".repeat(9_000));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| ask(address, &path, 100));
        }
    });
    process.signal("TERM");
    assert!(process.wait_for_exit().success());
    let output = process.output();
    let lines: Vec<serde_json::Value> =
        output.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(lines.iter().filter(|line| line["kind"] == "request").count(), 400);
    let refused = lines.iter().filter(|line| line["reason"] == "no_route");
    assert_eq!(refused.count(), 400);
}

#[test]
fn what_traffic_can_multiply_is_told_now_and_then_with_how_often_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let nobody = "127.0.0.1:9".parse().unwrap();
    std::fs::write(&path, config(&[("a", nobody)], &[("server", "workers = 2")])).unwrap();
    // So few descriptors that its clients take them all.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64 && exec \"$0\" run --config \"$1\""]);
    command.arg(env!("CARGO_BIN_EXE_steadfast")).arg(&path);
    let mut process = Process::start("proxy", &mut command);
    process.wait_for("ready", |line| line.contains(" ready ").then_some(()));
    let address = |event: &str| {
        let output = process.output();
        let line = output.lines().find(|line| line.contains(event)).unwrap().to_owned();
        line.split_once("address=").unwrap().1.parse::<SocketAddr>().unwrap()
    };
    let (listener, admin) = (address(" listening "), address(" admin API "));
    let clients: Vec<_> = (0..80).map(|_| connect(listener)).collect();
    let told = || {
        let output = process.output();
        let lines = output.lines().filter(|line| line.contains("can't accept connections"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let began = Instant::now();
    let lines = eventually("it is told again", || Some(told()).filter(|lines| lines.len() > 2));
    let seconds = began.elapsed().as_secs() + 2;
    assert!(lines.len() as u64 <= seconds, "{lines:#?}");
    let suppressed = |line: &String| {
        let (_, count) = line.split_once("suppressed=")?;
        count.split(' ').next()?.parse::<f64>().ok()
    };
    assert!(suppressed(&lines[0]).is_none(), "{lines:#?}");
    let all: f64 = lines.iter().filter_map(suppressed).sum();
    assert!(all >= 5.0, "{lines:#?}");
    // The counter knew each.
    drop(clients);
    let refused = eventually("the admin API answers", || {
        let page = http::get(admin, "/metrics").text();
        let line = page.lines().find(|line| line.contains("reason=\"accept_failed\""))?.to_owned();
        line.rsplit(' ').next()?.parse::<f64>().ok()
    });
    assert!(refused >= all + lines.len() as f64, "{refused} {lines:#?}");
}

const SECRET: &str = "hunter2-0123456789abcdef";

/// Requests that bring secrets where clients put them, all with a path of their own.
fn bring_secrets(address: SocketAddr) {
    let headers = [
        ("Cookie", format!("sid={SECRET}; other={SECRET}")),
        ("Authorization", format!("Bearer {SECRET}")),
        ("Proxy-Authorization", format!("Basic {SECRET}")),
        ("X-Api-Key", SECRET.to_owned()),
        ("Referer", format!("https://page.example/?token={SECRET}")),
        ("Sec-WebSocket-Protocol", format!("chat, {SECRET}{SECRET}")),
    ];
    let headers: Vec<(&str, &str)> =
        headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let query = format!("token={SECRET}&access_token={SECRET}");
    for path in ["/echo", "/health", "/refused", "/broken", "/nothing"] {
        let target = format!("{path}?{query}");
        http::request(address, "GET", &target, &headers, b"");
        http::request(address, "POST", &target, &headers, SECRET.as_bytes());
        drop(ws::ask(address, &target, &headers));
        // By user name and password, in the form that proxies are asked in.
        let stream = connect(address);
        let head = format!(
            "GET http://user:{SECRET}@test{target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
        );
        send(&stream, head.as_bytes());
        read_to_end(&stream);
    }
    let head = format!("GET /?{query} HTTP/1.1\r\nConnection: close\r\n");
    let broken = [
        format!("{head}Host: test\r\nAuthorization: {SECRET}\r\n bad\r\n\r\n"),
        format!("{head}Host: user:{SECRET}@test\r\n\r\n"),
        format!("{head}Host: test\r\nContent-Length: {SECRET}\r\n\r\n"),
        format!("{head}Host: test\r\nContent-Length: 9\r\n\r\n{SECRET}"),
        format!("{head}Host: {SECRET} {SECRET}\r\n\r\n"),
        format!("GET /?{query} HTTP/9.9\r\nHost: test\r\nCookie: {SECRET}\r\n\r\n"),
        format!("{SECRET} {SECRET}\r\n\r\n"),
        format!(
            "GET /?{query} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: close, \
             Upgrade\r\nSec-WebSocket-Key: {SECRET}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ),
        format!(
            "GET /?{query}&room=%ff HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
             Cookie: sid={SECRET}\r\n\r\n"
        ),
    ];
    for head in broken {
        let stream = connect(address);
        send(&stream, head.as_bytes());
        read_to_end(&stream);
    }
}

/// A backend that answers each request in its own way, and repeats what it should not.
fn talkative() -> Scripted {
    Scripted::start(|stream| {
        let head = http::read_head(&stream);
        let path = head.split(['?', ' ']).nth(1).unwrap_or_default().to_owned();
        if let Some(length) = http::header(&head, "content-length") {
            http::read_text(&stream, length.parse().unwrap());
        }
        let is_handshake = head.to_ascii_lowercase().contains("upgrade: websocket");
        let protocol = format!("{SECRET}{SECRET}");
        let answer = match path.as_str() {
            "/echo" if is_handshake => support::scripted::switching(&format!(
                "Sec-WebSocket-Protocol: {protocol}\r\nSet-Cookie: sid={SECRET}\r\n"
            )),
            "/nothing" => return,
            "/broken" if is_handshake => format!(
                "HTTP/1.1 101 {SECRET}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {SECRET}\r\n\r\n"
            ),
            "/broken" => format!("{SECRET}\r\nSet-Cookie: {SECRET}\r\n\r\n"),
            "/refused" => format!(
                "HTTP/1.1 401 {SECRET}\r\nSet-Cookie: {SECRET}\r\nConnection: close\r\n\
                 Content-Length: 24\r\n\r\n{SECRET}"
            ),
            _ => format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 24\r\n\r\n{SECRET}"
            ),
        };
        send(&stream, answer.as_bytes());
        if path == "/echo" && is_handshake {
            let close = ws::close_payload(4000, SECRET);
            send(&stream, &ws::unmasked(ws::CLOSE, close));
            read_to_end(&stream);
        }
    })
}

#[test]
fn no_secret_is_in_any_output() {
    let backend = talkative();
    let server = ("server", "access_log = \"access.log\"");
    for key in ["", "cookie:sid", "header:authorization"] {
        let config = config(&[("a", backend.address)], &[server])
            .replace("level = \"debug\"", "level = \"trace\"")
            .replace("key = \"query:room\"", &format!("key = [\"query:room\", \"{key}\"]"))
            .replace(", \"\"]", "]");
        let mut proxy = Proxy::start(&config);
        bring_secrets(proxy.address);
        proxy.wait_for_metric("steadfast_client_connections", &[], 0.0);
        let metrics = http::get(proxy.admin, "/metrics").text();
        proxy.process.signal("TERM");
        assert!(proxy.process.wait_for_exit().success());
        let log = std::fs::read_to_string(proxy.folder().join("access.log")).unwrap();
        let events = proxy.process.output();
        assert!(log.lines().count() >= 20 && events.contains("DEBUG"), "{log}{events}");
        assert!(log.contains("\"kind\":\"connection\"") && log.contains("\"websocket\":true"));
        for (what, text) in [("events", &events), ("access log", &log), ("metrics", &metrics)] {
            let found = text.lines().find(|line| line.contains("hunter2"));
            assert!(found.is_none(), "{key}: {what}: {found:?}");
        }
    }
}
