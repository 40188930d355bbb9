//! The access log: a line for each answered request and each closed WebSocket.

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use support::scripted::{Refusing, Scripted};
use support::ws::{self, TEXT};
use support::{Backend, Proxy, addresses, config, connect, eventually, http, send};

fn lines(proxy: &Proxy) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(proxy.folder().join("access.log")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn line(proxy: &Proxy, kind: &str) -> serde_json::Value {
    eventually(kind, || lines(proxy).into_iter().find(|line| line["kind"] == kind))
}

#[test]
fn requests_and_connections_are_written_down_without_their_queries() {
    let backends = Backend::fleet(&["a"]);
    let log = [("server", "access_log = \"access.log\"")];
    let proxy = Proxy::start(&config(&addresses(&backends), &log));
    http::get(proxy.address, "/health?room=r&token=secret");
    let request = line(&proxy, "request");
    assert_eq!(request["path"], "/health");
    assert_eq!((&request["status"], &request["bytes"]), (&200.into(), &1.into()));
    assert_eq!((&request["backend"], &request["route"]), (&"a".into(), &"all".into()));
    assert_eq!(request["refused"], serde_json::Value::Null);
    assert_eq!(request["request_id"].as_str().unwrap().len(), 32);

    let client = ws::open(proxy.address, "/echo?room=r");
    client.send(TEXT, "hello");
    client.expect_text("hello");
    client.send_close(4000, "done");
    client.expect_close(4000);
    let closed = line(&proxy, "connection");
    assert_eq!((&closed["by"], &closed["reason"]), (&"client".into(), &"client_closed".into()));
    assert_eq!((&closed["code"], &closed["key"]), (&4000.into(), &"r".into()));
    assert_eq!(
        (&closed["messages_from_client"], &closed["bytes_from_backend"]),
        (&1.into(), &5.into())
    );
    assert_eq!(closed["client"], "127.0.0.1");
    assert!(!lines(&proxy).iter().any(|line| line.to_string().contains("secret")));
}

#[test]
fn what_the_proxy_refused_says_why_and_the_last_lines_survive_a_stop() {
    let backends = Backend::fleet(&["a"]);
    let log = [("server", "access_log = \"access.log\""), ("route", "host = \"other.example\"")];
    let mut proxy = Proxy::start(&config(&addresses(&backends), &log));
    for _ in 0..200 {
        http::get(proxy.address, "/nowhere");
    }
    proxy.process.signal("TERM");
    assert!(proxy.process.wait_for_exit().success());
    let refused: Vec<_> = lines(&proxy);
    assert_eq!(refused.len(), 200);
    assert!(refused.iter().all(|line| line["refused"] == "no_route" && line["status"] == 404));
}

#[test]
fn a_connection_that_is_cut_at_the_end_of_a_shutdown_says_so() {
    let backends = Backend::fleet(&["a"]);
    let log = [("server", "access_log = \"access.log\"\nshutdown_grace = \"500ms\"")];
    let mut proxy = Proxy::start(&config(&addresses(&backends), &log));
    assert!(proxy.process.output().contains("allows so many relayed connections"));
    // It answers no Close.
    let _client = ws::open(proxy.address, "/echo?room=r");
    proxy.process.signal("TERM");
    assert!(proxy.process.wait_for_exit().success());
    let cut = line(&proxy, "connection");
    assert_eq!((&cut["reason"], &cut["code"]), (&"shutdown".into(), &1001.into()));
    assert_eq!((&cut["by"], &cut["cut"]), (&"proxy".into(), &true.into()));
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[test]
fn a_line_of_a_connection_tells_what_it_takes_to_explain_it() {
    let (backend, handed) = Scripted::opening_with("Sec-WebSocket-Protocol: json\r\n");
    let log = ("server", "access_log = \"access.log\"");
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[log]));
    let trace = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let headers = [
        ("Sec-WebSocket-Protocol", "chat, json"),
        ("X-Request-Id", "mine-1"),
        ("traceparent", &trace),
        ("tracestate", "vendor=1"),
    ];
    let client = ws::ask(proxy.address, "/chat?room=red&token=secret", &headers);
    let (backend, head) = handed.next();
    // What came with it goes on.
    assert_eq!(http::header(&head, "x-request-id"), Some("mine-1"));
    assert_eq!(http::header(&head, "traceparent"), Some(&*trace));
    assert_eq!(http::header(&head, "tracestate"), Some("vendor=1"));
    client.send(TEXT, "hello");
    drop((client, backend));
    let line = line(&proxy, "connection");
    let connections = http::header(&head, "steadfast-connection").unwrap();
    assert_eq!(line["connection"], connections);
    assert_eq!(line["proxy"], connections.split('.').next().unwrap());
    assert_eq!(
        (&line["listener"], &line["route"], &line["pool"]),
        (&"main".into(), &"all".into(), &"pool".into())
    );
    assert_eq!((&line["host"], &line["path"]), (&"test".into(), &"/chat".into()));
    assert_eq!((&line["request_id"], &line["trace_id"]), (&"mine-1".into(), &TRACE.into()));
    assert_eq!((&line["subprotocol"], &line["key"]), (&"json".into(), &"red".into()));
    let number = |field: &str| line[field].as_u64().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let times = [number("since"), number("last_activity"), number("time")];
    assert!(times.is_sorted() && u128::from(times[2]) <= now, "{times:?}");
    assert_eq!(number("duration_ms"), times[2] - times[0]);
    assert!(number("handshake_ms") <= number("duration_ms") + 1, "{line}");
}

#[test]
fn ids_of_plain_requests_pass_and_are_written_down() {
    let (backend, accepted) = Scripted::accepting();
    let log = ("server", "access_log = \"access.log\"");
    let proxy = Proxy::start(&config(&[("a", backend.address)], &[log]));
    let trace = format!("00-{TRACE}-00f067aa0ba902b7-00");
    let ask = |more: &str| {
        let client = connect(proxy.address);
        let head = format!("GET /x?q=1 HTTP/1.1\r\nHost: h.example\r\n{more}\r\n");
        send(&client, head.as_bytes());
        let (stream, head) = accepted.next_request();
        send(&stream, b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        assert_eq!(http::read_answer(&client, false).status, 204);
        head
    };
    let head = ask(&format!("X-Request-Id: mine-2\r\ntraceparent: {trace}\r\ntracestate: a=b\r\n"));
    assert_eq!(http::header(&head, "x-request-id"), Some("mine-2"));
    assert_eq!(http::header(&head, "traceparent"), Some(&*trace));
    assert_eq!(http::header(&head, "tracestate"), Some("a=b"));
    let head = ask(&format!("X-Request-Id: {}\r\ntraceparent: odd\r\n", "x".repeat(129)));
    // Not ours to judge for others; but it names no trace.
    assert_eq!(http::header(&head, "traceparent"), Some("odd"));
    let minted = http::header(&head, "x-request-id").unwrap();
    assert!(minted.len() == 32 && minted.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let lines = eventually("two lines", || Some(lines(&proxy)).filter(|lines| lines.len() == 2));
    assert_eq!((&lines[0]["request_id"], &lines[0]["trace_id"]), (&"mine-2".into(), &TRACE.into()));
    assert_eq!(lines[1]["request_id"], minted);
    assert!(lines[1]["trace_id"].is_null());
    assert_eq!((&lines[0]["host"], &lines[0]["path"]), (&"h.example".into(), &"/x".into()));
    assert!(lines.iter().all(|line| line["websocket"] == false));
}

#[test]
fn a_handshake_that_came_to_nothing_says_why() {
    let (backend, accepted) = Scripted::accepting();
    let more = [
        ("server", "access_log = \"access.log\""),
        ("route", "allowed_origins = [\"https://good.example\"]"),
        ("pool", "handshake_timeout = \"30s\""),
    ];
    let proxy = Proxy::start(&config(&[("a", backend.address)], &more));
    let refused = ws::ask(proxy.address, "/?room=r", &[("Origin", "https://bad.example")]);
    assert_eq!(refused.answer.status, 403);
    let origin = line(&proxy, "request");
    assert_eq!((&origin["refused"], &origin["status"]), (&"origin".into(), &403.into()));
    assert_eq!((&origin["websocket"], &origin["host"]), (&true.into(), &"test".into()));
    // Its client does not wait for the answer.
    let client = connect(proxy.address);
    send(&client, ws::handshake_head("/late?room=r", &[]).as_bytes());
    let _asked = accepted.next_request();
    drop(client);
    let gone =
        eventually("gone", || lines(&proxy).into_iter().find(|line| line["path"] == "/late"));
    assert_eq!((&gone["refused"], &gone["kind"]), (&"client_gone".into(), &"request".into()));
    assert!(gone["status"].is_null());
    // Nobody is there.
    let nobody = Refusing::new();
    let proxy = Proxy::start(&config(&[("a", nobody.address)], &more[..1]));
    assert_eq!(ws::ask(proxy.address, "/?room=r", &[]).answer.status, 502);
    let unreachable = line(&proxy, "request");
    assert_eq!(
        (&unreachable["refused"], &unreachable["backend"]),
        (&"unreachable".into(), &"a".into())
    );
}

#[test]
fn keys_that_may_be_credentials_are_left_out() {
    let backends = Backend::fleet(&["a"]);
    let log = ("server", "access_log = \"access.log\"");
    let config = config(&addresses(&backends), &[log])
        .replace("key = \"query:room\"", "key = [\"cookie:sid\", \"query:room\"]");
    let proxy = Proxy::start(&config);
    let close = |path: &str, headers: &[(&str, &str)]| {
        let client = ws::ask(proxy.address, path, headers);
        client.send_close(1000, "");
        client.expect_close(1000);
    };
    close("/echo?room=red", &[]);
    close("/echo", &[("Cookie", "sid=credential")]);
    let lines = eventually("two lines", || Some(lines(&proxy)).filter(|lines| lines.len() == 2));
    let mut keys: Vec<_> = lines.iter().map(|line| line["key"].as_str()).collect();
    keys.sort();
    assert_eq!(keys, [None, Some("red")]);
}

#[test]
fn a_renamed_file_is_let_go_of_and_no_line_is_lost() {
    let backends = Backend::fleet(&["a"]);
    let log = [("server", "access_log = \"access.log\""), ("route", "host = \"other.example\"")];
    let proxy = Proxy::start(&config(&addresses(&backends), &log));
    let folder = proxy.folder().to_owned();
    let mut asked = 0;
    for generation in 0..5 {
        for _ in 0..20 {
            http::get(proxy.address, &format!("/{asked}"));
            asked += 1;
        }
        let renamed = folder.join(format!("access.log.{generation}"));
        std::fs::rename(folder.join("access.log"), renamed).unwrap();
        proxy.process.signal("HUP");
        eventually("it is opened anew", || folder.join("access.log").exists().then_some(()));
    }
    let count =
        |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default().lines().count();
    eventually("every line", || {
        let old: usize = (0..5).map(|number| count(&format!("access.log.{number}"))).sum();
        (old + count("access.log") == asked).then_some(())
    });
}
