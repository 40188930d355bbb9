//! How a demo stops, in this process and as a process of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

mod support;
use support::{At, Running, soon};

#[tokio::test]
async fn open_websockets_get_a_close_and_the_address_is_free_again() {
    let demo = Running::start("a").await;
    let At(address) = *demo;
    let mut clients = Vec::new();
    for path in ["/ws", "/echo", "/rooms"] {
        clients.push(demo.connect(path).await);
    }
    let stopped = demo.stop();
    for client in &mut clients {
        assert_eq!(client.close_frame().await.code, 1001.into());
    }
    drop(clients);
    soon(stopped).await.unwrap().unwrap();
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn health_is_503_while_a_websocket_still_closes() {
    let demo = Running::start("a").await;
    // Does not read, so it does not answer the Close either.
    let mut silent = demo.connect("/echo").await;
    let mut watcher = demo.connect("/echo").await;
    let at = *demo;
    let stopped = demo.stop();
    watcher.close_frame().await;
    assert_eq!(at.get("/health").await.0, 503);
    soon(stopped).await.unwrap().unwrap();
    assert_eq!(silent.close_frame().await.code, 1001.into());
}

#[tokio::test]
async fn half_a_request_does_not_hold_it_up() {
    let demo = Running::start("a").await;
    let mut half = TcpStream::connect(demo.0).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut half, b"GET / HTTP/1.1\r\n").await.unwrap();
    soon(demo.stop()).await.unwrap().unwrap();
}

#[tokio::test]
async fn several_in_one_process_know_nothing_of_each_other() {
    let (a, b) = (Running::start("a").await, Running::start("b").await);
    let mut ann = a.connect("/rooms?room=r&name=ann").await;
    ann.json().await;
    let mut bob = b.connect("/rooms?room=r&name=bob").await;
    assert_eq!(bob.json().await["welcome"]["members"], serde_json::json!(["bob"]));
    let stopped = a.stop();
    assert_eq!(ann.close_frame().await.code, 1001.into());
    drop(ann);
    soon(stopped).await.unwrap().unwrap();
    assert_eq!(b.get("/health").await, (200, "b".into()));
}

/// The binary, killed where a test fails before it ended.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_binary_says_where_it_listens_and_ends_on_sigterm() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backend-demo"));
    command.args(["--listen", "127.0.0.1:0", "--id", "a"]).stderr(Stdio::piped());
    let mut process = Process(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(process.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.strip_prefix("listening on ").unwrap().strip_suffix(" as \"a\"\n").unwrap();

    let demo = At(address.parse().unwrap());
    let mut client = demo.connect("/echo").await;
    let pid = process.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(client.close_frame().await.code, 1001.into());
    _ = client.0.get_mut().read(&mut [0]).await;
    let status = soon(tokio::task::spawn_blocking(move || process.0.wait())).await.unwrap();
    assert!(status.unwrap().success());
}
