//! The access log: a line for each answered request and each closed WebSocket.

mod support;

use support::ws::{self, TEXT};
use support::{Backend, Proxy, addresses, config, eventually, http};

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
