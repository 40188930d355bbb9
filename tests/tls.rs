//! TLS with clients and with backends: who is shown which certificate, who is refused, and that
//! the relay is the same over it.

#![expect(clippy::unwrap_used, reason = "a test that can't go on should stop")]

mod support;

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, date_time_ymd};
use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use support::http::{self, header, request};
use support::scripted::Scripted;
use support::tls::{Authority, ECDSA, Issued, RSA, Tls, any_client, client, shake_hands, tls};
use support::ws::{self, BINARY, Frame, TEXT, handshake_head, masked, read_frame, unmasked};
use support::{
    Backend, NodeServer, Proxy, PythonServer, config, connect, eventually, python, read_to_end,
    run_peer_with, send,
};

const REFUSED: &str = "steadfast_refused_total";

fn certificates(list: &[&Issued]) -> String {
    let list: Vec<String> = list.iter().map(|one| one.in_config()).collect();
    format!("tls.certificates = [{}]", list.join(", "))
}

/// A proxy with these certificates in front of a backend.
fn proxy(backend: std::net::SocketAddr, list: &[&Issued], more: &str) -> Proxy {
    let listener = format!("{}\n{more}", certificates(list));
    Proxy::start(&config(&[("a", backend)], &[("listener", &listener)]))
}

/// Opens a WebSocket over TLS.
#[track_caller]
fn open(stream: &mut Tls, path: &str) {
    stream.write_all(handshake_head(path, &[]).as_bytes()).unwrap();
    let head = read_head(stream);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
}

/// A WebSocket that is open over TLS, and its backend's end of it.
struct Opened {
    proxy: Proxy,
    client: Tls,
    backend: std::net::TcpStream,
    /// The backend accepts as long as this is there; the proxy has its files from there.
    _kept: (Scripted, Authority),
}

fn opened() -> Opened {
    let authority = Authority::new();
    let (scripted, handed) = Scripted::opening();
    let proxy = proxy(scripted.address, &[&authority.issue("site", &["a.example"])], "");
    let mut client = tls(&any_client(), proxy.address, "a.example");
    open(&mut client, "/?room=r");
    let (backend, _) = handed.next();
    Opened { proxy, client, backend, _kept: (scripted, authority) }
}

fn read_head(stream: &mut Tls) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn clients_of_other_makers() {
    let authority = Authority::new();
    let server = NodeServer::start(&[("DEFLATE", "1")]);
    let proxy = proxy(server.address, &[&authority.issue("site", &["127.0.0.1"])], "");
    let url = format!("wss://{}/echo?room=r", proxy.address);
    let ca = authority.file();
    let ca = ca.to_str().unwrap();
    for command in [&["echo"][..], &["ping"], &["deflate"], &["close", "4999", "own"]] {
        let arguments = |script| [&[script, command[0], &url], &command[1..]].concat();
        let node = arguments("ws_client.mjs");
        run_peer_with(Path::new("node"), &node, &[("NODE_EXTRA_CA_CERTS", ca)]);
        run_peer_with(&python(), &arguments("ws_client.py"), &[("SSL_CERT_FILE", ca)]);
    }
}

#[test]
fn a_client_gets_the_certificate_of_the_name_it_asks_for() {
    let authority = Authority::new();
    let first = authority.issue("first", &["first.example"]);
    let second = authority.issue("second", &["second.example", "*.second.example"]);
    let backend = Backend::start("a");
    let proxy = proxy(backend.address, &[&first, &second], "");
    for (name, expected) in [
        ("first.example", &first),
        ("second.example", &second),
        ("any.second.example", &second),
        ("unknown.example", &first),
        ("127.0.0.1", &first), // no SNI for an address
    ] {
        let mut stream = tls(&any_client(), proxy.address, name);
        assert_eq!(shake_hands(&mut stream), expected.der, "{name}");
    }
}

#[test]
fn versions_and_kinds_of_keys() {
    let authority = Authority::new();
    let ecdsa = authority.issue("ecdsa", &["a.example"]);
    let rsa = authority.issue_with("rsa", &["a.example"], &PKCS_RSA_SHA256, |_| {});
    let backend = Backend::start("a");
    let proxy = proxy(backend.address, &[&ecdsa, &rsa], "");
    for version in [&TLS12, &TLS13] {
        for (schemes, expected) in [(&[RSA][..], &rsa), (&[ECDSA], &ecdsa), (&[RSA, ECDSA], &ecdsa)]
        {
            let config = client(&[version], schemes);
            let mut stream = tls(&config, proxy.address, "a.example");
            assert_eq!(shake_hands(&mut stream), expected.der, "{version:?} {schemes:?}");
            assert_eq!(stream.conn.protocol_version(), Some(version.version));
            open(&mut stream, "/echo?room=r");
            stream.write_all(&masked(TEXT, "hello")).unwrap();
            assert_eq!(read_frame(&mut stream).unwrap().text(), "hello");
        }
    }
}

/// The first message of a client that speaks TLS 1.1 at most, with ciphers of its time.
fn hello_of_tls_1_1() -> Vec<u8> {
    let mut hello = vec![3, 2];
    hello.extend([7; 32]); // random
    hello.extend([0, 0, 4, 0xc0, 0x13, 0, 0x2f, 1, 0]); // no session, two suites, no compression
    let length = u8::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

#[test]
fn tls_1_1_and_plain_http_are_refused() {
    let authority = Authority::new();
    let backend = Backend::start("a");
    let proxy = proxy(backend.address, &[&authority.issue("site", &["a.example"])], "");
    let old = connect(proxy.address);
    send(&old, &hello_of_tls_1_1());
    let alert = read_to_end(&old);
    // A fatal alert: protocol_version, or handshake_failure for want of what TLS 1.2 must bring.
    assert!((alert[0], alert[5]) == (21, 2) && [70, 40].contains(&alert[6]), "{alert:?}");
    let plain = connect(proxy.address);
    send(&plain, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let alert = read_to_end(&plain);
    assert!(!alert.starts_with(b"HTTP"), "{alert:?}");
    proxy.wait_for_metric(REFUSED, &[("reason", "tls_handshake")], 2.0);
    proxy.wait_for_metric("steadfast_client_connections", &[], 0.0);
}

#[test]
fn who_leaves_before_a_word_is_not_counted_as_refused() {
    let authority = Authority::new();
    let backend = Backend::start("a");
    let proxy = proxy(backend.address, &[&authority.issue("site", &["a.example"])], "");
    drop(connect(proxy.address));
    proxy.wait_for_metric("steadfast_client_connections_accepted_total", &[], 1.0);
    proxy.wait_for_metric("steadfast_client_connections", &[], 0.0);
    assert_eq!(proxy.metric(REFUSED, &[]), 0.0);
}

#[test]
fn a_handshake_that_takes_too_long_is_cut() {
    let authority = Authority::new();
    let backend = Backend::start("a");
    let site = authority.issue("site", &["a.example"]);
    let proxy = proxy(backend.address, &[&site], "timeouts.tls = \"300ms\"");
    let silent = connect(proxy.address);
    let slow = connect(proxy.address);
    send(&slow, &hello_of_tls_1_1()[..20]);
    assert!(read_to_end(&silent).is_empty());
    assert!(read_to_end(&slow).is_empty());
    proxy.wait_for_metric(REFUSED, &[("reason", "tls_timeout")], 2.0);
    // Who is through has all the time of the config.
    let mut stream = tls(&any_client(), proxy.address, "a.example");
    open(&mut stream, "/echo?room=r");
}

#[test]
fn a_client_that_comes_back_resumes() {
    let authority = Authority::new();
    let backend = Backend::start("a");
    let proxy = proxy(backend.address, &[&authority.issue("site", &["a.example"])], "");
    for version in [&TLS12, &TLS13] {
        let config = client(&[version], &[ECDSA]);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut stream = tls(&config, proxy.address, "a.example");
            open(&mut stream, "/echo?room=r"); // with TLS 1.3 the ticket comes before the answer
            assert_eq!(stream.conn.handshake_kind(), Some(kind), "{version:?}");
        }
    }
}

#[test]
fn a_backend_is_told_of_tls() {
    let authority = Authority::new();
    let (backend, handed) = Scripted::opening();
    let proxy = proxy(backend.address, &[&authority.issue("site", &["a.example"])], "");
    let mut stream = tls(&any_client(), proxy.address, "a.example");
    open(&mut stream, "/?room=r");
    let (_backend, head) = handed.next();
    assert_eq!(header(&head, "x-forwarded-proto"), Some("https"));
    let port = proxy.address.port().to_string();
    assert_eq!(header(&head, "x-forwarded-port"), Some(port.as_str()));
    // A plain request goes the same way, and the connection serves more than one.
    let page = Backend::start("page");
    let plain = self::proxy(page.address, &[&authority.issue("b", &["b.example"])], "");
    let mut stream = tls(&any_client(), plain.address, "b.example");
    for _ in 0..2 {
        stream.write_all(b"HEAD /health HTTP/1.1\r\nHost: b.example\r\n\r\n").unwrap();
        assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn each_side_may_end_first_and_the_other_goes_on() {
    let Opened { proxy: _proxy, client: mut stream, backend, _kept } = opened();
    stream.write_all(&masked(TEXT, "last")).unwrap();
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    assert_eq!(read_frame(&backend).unwrap().text(), "last");
    assert!(read_to_end(&backend).is_empty());
    send(&backend, &unmasked(TEXT, "still here"));
    assert_eq!(read_frame(&mut stream).unwrap().text(), "still here");
    drop(backend);
    // rustls calls an end of TCP without one of TLS an error.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "no close_notify");
}

#[test]
fn an_end_without_one_of_tls_is_an_end() {
    let Opened { proxy: _proxy, client: stream, backend, _kept } = opened();
    stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!((&backend).read(&mut [0]).unwrap(), 0, "an end, and no reset");
}

#[test]
fn a_big_message_goes_both_ways() {
    let authority = Authority::new();
    let backend = Backend::start("a");
    let proxy = proxy(backend.address, &[&authority.issue("site", &["a.example"])], "");
    let mut stream = tls(&any_client(), proxy.address, "a.example");
    open(&mut stream, "/echo?room=r");
    let message: Vec<u8> =
        (0..16 << 20).map(|n: u32| n.to_le_bytes()[usize::from(n.is_multiple_of(3))]).collect();
    stream.write_all(&masked(BINARY, message.clone())).unwrap();
    assert!(read_frame(&mut stream).unwrap() == Frame::new(BINARY, message), "changed");
}

#[test]
fn a_client_that_does_not_read_costs_little_and_misses_nothing() {
    const FRAMES: usize = 1024;
    let Opened { proxy, client: mut stream, backend, _kept } = opened();
    let before = proxy.memory_kib("VmRSS");
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let writing = std::thread::spawn(move || {
        for number in 0..FRAMES {
            send(&backend, &unmasked(BINARY, vec![u8::try_from(number % 251).unwrap(); 65536]));
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut last = (usize::MAX, Instant::now());
    eventually("the flood stands still", || {
        let now = sent.load(Ordering::SeqCst);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > 0 && last.1.elapsed() > Duration::from_millis(500)).then_some(())
    });
    assert!(sent.load(Ordering::SeqCst) < FRAMES, "all of it went somewhere");
    let grown = proxy.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 8 * 1024, "the proxy has grown by {grown} KiB");
    for number in 0..FRAMES {
        let frame = read_frame(&mut stream).unwrap();
        assert!(frame.payload == vec![u8::try_from(number % 251).unwrap(); 65536], "{number}");
    }
    writing.join().unwrap();
}

#[test]
fn a_client_that_does_not_read_keeps_no_key_on_a_backend_that_is_gone() {
    let Opened { proxy, client: _deaf, backend, _kept } = opened();
    proxy.wait_for_metric("steadfast_placed_keys", &[], 1.0);
    // Each no more than TLS holds: what it takes and the socket does not waits within it.
    let stalls = || proxy.metric("steadfast_relay_stalls_total", &[("direction", "from_backend")]);
    eventually("the client takes no more", || {
        send(&backend, &unmasked(BINARY, vec![1; 24_000]));
        (stalls() > 0.0).then_some(())
    });
    socket2::SockRef::from(&backend).set_linger(Some(Duration::ZERO)).unwrap();
    drop(backend);
    proxy.wait_for_metric("steadfast_placed_keys", &[], 0.0);
}

#[test]
fn an_idle_connection_holds_no_more_than_tls_needs() {
    const STEP: usize = 200;
    let authority = Authority::new();
    let backend = Backend::start("a");
    let proxy = proxy(backend.address, &[&authority.issue("site", &["a.example"])], "");
    let config = any_client();
    let mut idle = Vec::new();
    let mut more = || {
        for number in 0..STEP {
            let mut stream = tls(&config, proxy.address, "a.example");
            open(&mut stream, &format!("/echo?room={number}"));
            idle.push(stream);
        }
        proxy.memory_kib("VmRSS")
    };
    more(); // what is needed once
    let (before, after) = (more(), more());
    let each = after.saturating_sub(before) as f64 / STEP as f64;
    assert!(each < 16.0, "{each} KiB for each idle connection");
}

#[test]
fn a_crowd_of_rsa_handshakes_does_not_stop_an_echo() {
    const CROWD: usize = 300;
    let authority = Authority::new();
    let rsa = authority.issue_with("rsa", &["a.example"], &PKCS_RSA_SHA256, |_| {});
    let backend = Backend::start("a");
    let one_worker = [("server", "workers = 1"), ("listener", &certificates(&[&rsa]))];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &one_worker));
    let mut echoing = tls(&any_client(), proxy.address, "a.example");
    open(&mut echoing, "/echo?room=r");
    // All say hello before any of them reads an answer: all handshakes are ready at once.
    let hello = any_client();
    let mut crowd: Vec<Tls> = (0..CROWD).map(|_| tls(&hello, proxy.address, "a.example")).collect();
    for one in &mut crowd {
        one.conn.write_tls(&mut one.sock).unwrap();
    }
    let answers = std::thread::spawn(move || {
        crowd.iter_mut().for_each(|one| drop(shake_hands(one)));
    });
    let (mut rounds, mut longest) = (0, Duration::ZERO);
    while !answers.is_finished() {
        let began = Instant::now();
        echoing.write_all(&masked(TEXT, "x")).unwrap();
        read_frame(&mut echoing).unwrap();
        longest = longest.max(began.elapsed());
        rounds += 1;
    }
    answers.join().unwrap();
    assert!(rounds >= 10, "{rounds} echoes, the longest took {longest:?}");
    assert!(longest < Duration::from_secs(2), "an echo took {longest:?}");
}

#[test]
fn backends_with_tls() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let site = authority.issue("site", &["rooms.example"]);
    let local = authority.issue("local", &["127.0.0.1"]);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let serve = |issued: &Issued, more: &[&str]| {
        let files = ["--cert", &path(&issued.cert), "--key", &path(&issued.key)];
        PythonServer::start(&[&files, more].concat())
    };
    let by_name = serve(&site, &[]);
    let by_address = serve(&local, &[]);
    let member = authority.issue("member", &["member"]);
    let closed = serve(&local, &["--client-ca", &path(&authority.file())]);
    let (ca, wrong) = (path(&authority.file()), path(&stranger.file()));
    let (cert, key) = (path(&member.cert), path(&member.key));
    let works = |server: &PythonServer, tls: &str| {
        let pool = format!("tls = {tls}\n");
        let proxy = Proxy::start(&config(&[("a", server.address)], &[("pool", &pool)]));
        let ws = ws::ask(proxy.address, "/echo?room=r", &[]);
        let plain = http::get(proxy.address, "/closes").status;
        if ws.answer.status != 101 {
            assert_eq!((ws.answer.status, plain), (502, 502), "{tls}");
            return false;
        }
        assert_eq!(plain, 200, "{tls}");
        ws.send(TEXT, "hello");
        ws.expect_text("hello");
        true
    };
    assert!(works(&by_address, &format!("{{ ca = {ca:?} }}")));
    assert!(!works(&by_address, &format!("{{ ca = {wrong:?} }}")), "another's certificate");
    assert!(!works(&by_address, "true"), "not the system's");
    assert!(!works(&by_address, "false"), "in the clear");
    assert!(works(&by_name, &format!("{{ ca = {ca:?}, server_name = \"rooms.example\" }}")));
    assert!(!works(&by_name, &format!("{{ ca = {ca:?} }}")), "a certificate for another name");
    assert!(!works(&closed, &format!("{{ ca = {ca:?} }}")), "without a client certificate");
    let with = format!("{{ ca = {ca:?}, client_cert = {cert:?}, client_key = {key:?} }}");
    assert!(works(&closed, &with));
    // Checks go the same way.
    for (ca, state) in [(&ca, "in_service"), (&wrong, "out_of_service")] {
        let pool = format!("tls = {{ ca = {ca:?} }}\n");
        for kind in ["kind = \"http\"\npath = \"/closes\"", "kind = \"tcp\""] {
            let health = format!("{kind}\ninterval = \"100ms\"");
            let parts = [("pool", pool.as_str()), ("health", health.as_str())];
            let proxy = Proxy::start(&config(&[("a", by_address.address)], &parts));
            eventually(state, || (proxy.state("a") == state).then_some(()));
        }
    }
}

#[test]
fn tls_on_both_sides() {
    // From a client to a proxy, from there to another proxy, and in the clear to a backend.
    let authority = Authority::new();
    let inside = Backend::start("a");
    let inner = proxy(inside.address, &[&authority.issue("inner", &["127.0.0.1"])], "");
    let outer = authority.issue("outer", &["a.example"]);
    let pool = format!("tls = {{ ca = {:?} }}\n", authority.file());
    let outer = Proxy::start(&config(
        &[("inner", inner.address)],
        &[("listener", &certificates(&[&outer])), ("pool", &pool)],
    ));
    let mut stream = tls(&any_client(), outer.address, "a.example");
    open(&mut stream, "/echo?room=r");
    for size in [1, 16 * 1024, 1 << 20] {
        let message = vec![5; size];
        stream.write_all(&masked(BINARY, message.clone())).unwrap();
        assert!(read_frame(&mut stream).unwrap() == Frame::new(BINARY, message), "{size}");
    }
    stream.write_all(&masked(ws::CLOSE, ws::close_payload(1000, "bye"))).unwrap();
    assert_eq!(read_frame(&mut stream).unwrap().close().0, 1000);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "no close_notify");
}

#[test]
fn the_check_of_a_config_names_the_file_that_is_wrong() {
    let authority = Authority::new();
    authority.issue("site", &["a.example"]);
    authority.issue("other", &["a.example"]);
    authority.issue_with("old", &["a.example"], &PKCS_ECDSA_P256_SHA256, |params| {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    authority.issue_with("young", &["a.example"], &PKCS_ECDSA_P256_SHA256, |params| {
        params.not_before = date_time_ymd(2090, 1, 1);
        params.not_after = date_time_ymd(2091, 1, 1);
    });
    let told = |listener: &str, pool: &str, command: &str| {
        let text = config(
            &[("a", "127.0.0.1:9001".parse().unwrap())],
            &[("listener", listener), ("pool", pool)],
        );
        let file = authority.folder().join("config.toml");
        std::fs::write(&file, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_steadfast"))
            .args([command, "--config"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{listener}{pool}");
        String::from_utf8(output.stderr).unwrap()
    };
    let pair = |cert: &str, key: &str| {
        format!("tls.certificates = [{{ cert = \"{cert}\", key = \"{key}\" }}]")
    };
    for (cert, key, expected) in [
        (
            "old.pem",
            "old.key",
            "cert names the file \"old.pem\", which has a certificate that expired on",
        ),
        ("young.pem", "young.key", "which has a certificate that is not valid before"),
        ("site.pem", "other.key", "key names the file \"other.key\", which is not the key of that"),
        ("site.pem", "site.pem", "key names the file \"site.pem\", which has no private key"),
        ("site.key", "site.key", "cert names the file \"site.key\", which has no certificate"),
        ("none.pem", "site.key", "cert names the file \"none.pem\", which can't be read"),
    ] {
        for command in ["check", "run"] {
            let told = told(&pair(cert, key), "", command);
            assert!(told.contains(expected), "{expected}:\n{told}");
            assert_eq!(
                told.matches("config.toml:").count(),
                1 + usize::from(command == "check"),
                "{told}"
            );
        }
    }
    let ca = told("", "tls = { ca = \"site.key\" }\n", "check");
    assert!(ca.contains("tls.ca names the file \"site.key\", which has no certificate"), "{ca}");
    let alone = told("", "tls = { ca = \"ca.pem\", client_cert = \"site.pem\" }\n", "check");
    assert!(alone.contains("tls.client_cert stands alone; name its client_key too"), "{alone}");
    let client = told(
        "",
        "tls = { ca = \"ca.pem\", client_cert = \"old.pem\", client_key = \"old.key\" }\n",
        "check",
    );
    assert!(client.contains("tls.client_cert names the file \"old.pem\""), "{client}");
}

#[test]
fn a_proxy_in_the_clear_is_not_asked_for_tls() {
    let backend = Backend::start("a");
    let proxy = Proxy::before(&[("a", backend.address)]);
    assert_eq!(request(proxy.address, "GET", "/health", &[], b"").status, 200);
    let mut stream = tls(&any_client(), proxy.address, "a.example");
    assert!(stream.write_all(b"x").is_err());
}

#[test]
fn a_certificate_that_expires_soon_is_told_of() {
    let authority = Authority::new();
    let backend = Backend::start("a");
    let in_days = |name: &str, days: u64| {
        let end = std::time::SystemTime::now() + Duration::from_secs(days * 24 * 3600 + 3600);
        authority.issue_with(name, &[name], &PKCS_ECDSA_P256_SHA256, |params| {
            params.not_after = end.into();
        })
    };
    let (long, short) = (in_days("long.example", 300), in_days("short.example", 5));
    let days =
        |proxy: &Proxy| proxy.metric("steadfast_certificate_days_left", &[("listener", "main")]);
    let patient = proxy(backend.address, &[&long], "");
    assert!((300.0..300.1).contains(&days(&patient)), "{}", days(&patient));
    assert!(!patient.process.output().contains("expires soon"));
    let mut urgent = proxy(backend.address, &[&long, &short], "");
    assert!((5.0..5.1).contains(&days(&urgent)), "{}", days(&urgent));
    let told = urgent.process.wait_for("expires soon", |line| {
        line.contains("a certificate expires soon").then(|| line.to_owned())
    });
    assert!(told.contains("listener=main") && told.contains("short.example"), "{told}");
}
