//! Python's `websockets` on either side of the proxy.

mod support;

use serde_json::Value;
use support::ws;
use support::{
    Backend, NodeServer, Proxy, PythonServer, eventually, http, node_client, python_client,
};

fn echo_url(proxy: &Proxy) -> String {
    format!("ws://{}/echo?room=r", proxy.address)
}

#[test]
fn python_client_and_node_server() {
    let server = NodeServer::start(&[("DEFLATE", "1")]);
    let proxy = Proxy::before(&[("node", server.address)]);
    let url = echo_url(&proxy);
    python_client("echo", &url, &[]);
    python_client("ping", &url, &[]);
    python_client("deflate", &url, &[]);
    for (code, reason) in [("1000", ""), ("1001", "away"), ("3000", ""), ("4999", "own")] {
        python_client("close", &url, &[code, reason]);
    }
}

#[test]
fn python_client_and_demo_backend() {
    let backend = Backend::start("a");
    let proxy = Proxy::before(&[("a", backend.address)]);
    let url = echo_url(&proxy);
    python_client("echo", &url, &[]);
    python_client("ping", &url, &[]);
    for (code, reason) in [("1000", "done"), ("4999", "own")] {
        python_client("close", &url, &[code, reason]);
    }
}

#[test]
fn node_client_and_python_server() {
    let server = PythonServer::start(&["--subprotocols", "chat,json"]);
    let proxy = Proxy::before(&[("python", server.address)]);
    let url = echo_url(&proxy);
    node_client("echo", &url, &[]);
    node_client("ping", &url, &[]);
    node_client("deflate", &url, &[]);
    node_client("subprotocol", &url, &["other,json", "json"]);
    node_client("subprotocol", &url, &["other", "-"]);
    let refused = format!("ws://{}/refuse/403?room=r", proxy.address);
    node_client("refused", &refused, &["403", "refused with 403\n"]);
}

#[test]
fn python_client_and_python_server() {
    let server = PythonServer::start(&[]);
    let proxy = Proxy::before(&[("python", server.address)]);
    let url = echo_url(&proxy);
    python_client("echo", &url, &[]);
    python_client("deflate", &url, &[]);
}

#[test]
fn closes_of_a_python_server_reach_the_client() {
    let server = PythonServer::start(&[]);
    let proxy = Proxy::before(&[("python", server.address)]);
    for (code, reason) in [("1000", "done"), ("1001", ""), ("4999", "own")] {
        let url = format!("ws://{}/close/{code}?room=r&reason={reason}", proxy.address);
        node_client("expect-close", &url, &[code, reason]);
    }
}

#[test]
fn closes_of_a_client_reach_the_python_server() {
    let server = PythonServer::start(&[]);
    let proxy = Proxy::before(&[("python", server.address)]);
    for (code, reason) in [(1000, "done"), (3000, ""), (4999, "own")] {
        let path = format!("/echo?room=r&code={code}");
        let url = format!("ws://{}{path}", proxy.address);
        node_client("close", &url, &[&code.to_string(), reason]);
        let end = eventually("the server tells how it ended", || {
            let ends = http::get(server.address, "/closes").body;
            let ends: Vec<Value> = serde_json::from_slice(&ends).unwrap();
            ends.into_iter().find(|end| end["path"] == path)
        });
        assert_eq!(end["code"], code);
        assert_eq!(end["reason"], reason);
    }
}

#[test]
fn a_python_server_that_dies_is_told_as_1014() {
    let mut server = PythonServer::start(&[]);
    let proxy = Proxy::before(&[("python", server.address)]);
    let client = ws::open(proxy.address, "/echo?room=r");
    client.send(ws::TEXT, "still here");
    client.expect_text("still here");
    server.process.kill();
    client.answer_close(1014);
}
