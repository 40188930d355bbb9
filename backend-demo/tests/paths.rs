//! Each path of the demo, over real sockets.

use serde_json::json;
use tokio_tungstenite::tungstenite::{Error, Message};

mod support;
use support::{Running, soon};

#[tokio::test]
async fn plain_requests_get_plain_answers() {
    let demo = Running::start("a").await;
    assert_eq!(demo.get("/health").await, (200, "a".into()));
    let (status, page) = demo.get("/").await;
    assert_eq!(status, 200);
    let ids = ["messageInput", "sendButton", "messages", "state", "backend", "connection"];
    for id in ids.iter().chain(&["room", "moves", "error", "roomInput", "joinButton"]) {
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
    assert_eq!(demo.get("/nowhere").await.0, 404);
    for path in ["/ws", "/echo", "/rooms"] {
        assert_eq!(demo.get(path).await.0, 400, "{path} without a handshake");
    }
}

#[tokio::test]
async fn ws_greets_then_answers_texts_alone() {
    let demo = Running::start("a").await;
    let mut client = demo.connect("/ws").await;
    assert_eq!(client.text().await, "Welcome! This is backend a.");
    client.send(Message::binary(&b"not this"[..])).await;
    client.send("hello").await;
    assert_eq!(client.text().await, "Server received: hello");
}

#[tokio::test]
async fn echo_returns_text_and_binary_as_they_are() {
    let demo = Running::start("a").await;
    let mut client = demo.connect("/echo").await;
    for message in [Message::text(""), Message::text("ä"), Message::binary(&b"\0\xff"[..])] {
        client.send(message.clone()).await;
        assert_eq!(client.next().await, message);
    }
}

#[tokio::test]
async fn echo_returns_a_message_over_16_mib() {
    let demo = Running::start("a").await;
    let mut client = demo.connect("/echo").await;
    let bytes: Vec<u8> = (0..(16 << 20) + 7_usize).map(|n| n.to_le_bytes()[n % 3]).collect();
    client.send(Message::binary(bytes.clone())).await;
    assert!(client.next().await.into_data() == bytes);
}

#[tokio::test]
async fn a_close_is_answered() {
    let demo = Running::start("a").await;
    for path in ["/ws", "/echo", "/rooms"] {
        let mut client = demo.connect(path).await;
        soon(client.0.close(None)).await.unwrap();
        while let Some(message) = soon(futures_util::StreamExt::next(&mut client.0)).await {
            message.expect("no end without a Close");
        }
    }
}

#[tokio::test]
async fn the_welcome_tells_where_one_is() {
    let demo = Running::start("a").await;
    let headers = [("steadfast-connection", "edge-1.0042")];
    let path = "/rooms?room=tea%20room&name=ann";
    let mut ann = demo.try_connect(path, &headers).await.unwrap();
    let welcome = json!({"welcome": {
        "backend": "a", "connection": "edge-1.0042", "room": "tea room", "members": ["ann"],
    }});
    assert_eq!(ann.json().await, welcome);

    let mut nobody = demo.connect("/rooms").await;
    let welcome = json!({"welcome": {
        "backend": "a", "connection": "", "room": "lobby", "members": ["guest"],
    }});
    assert_eq!(nobody.json().await, welcome);
}

#[tokio::test]
async fn two_members_hear_each_other() {
    let demo = Running::start("a").await;
    let mut ann = demo.connect("/rooms?room=r&name=ann").await;
    ann.json().await;
    let mut bob = demo.connect("/rooms?room=r&name=bob").await;
    bob.json().await;
    assert_eq!(ann.json().await, json!({"room": "r", "joined": "bob", "backend": "a"}));

    bob.send(r#"{"say": "hi"}"#).await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(
            client.json().await,
            json!({"room": "r", "from": "bob", "said": "hi", "backend": "a"})
        );
    }
    bob.send(r#"{"join": "s"}"#).await;
    assert_eq!(bob.json().await, json!({"room": "s", "joined": "bob", "backend": "a"}));
    bob.send(r#"{"leave": "s"}"#).await;
    assert_eq!(bob.json().await, json!({"room": "s", "left": "bob", "backend": "a"}));
    drop(bob);
    assert_eq!(ann.json().await, json!({"room": "r", "left": "bob", "backend": "a"}));
}

#[tokio::test]
async fn bad_json_is_answered_and_changes_nothing() {
    let demo = Running::start("a").await;
    let mut ann = demo.connect("/rooms?room=r").await;
    ann.json().await;
    for bad in ["", "{", r#"{"say": 1}"#, r#"{"sing": "la"}"#, r#"{"join": ""}"#] {
        ann.send(bad).await;
        assert!(ann.json().await["error"].is_string(), "{bad}");
    }
    ann.send(Message::binary(&b"{}"[..])).await;
    assert!(ann.json().await["error"].is_string());
    ann.send(r#"{"say": "still here"}"#).await;
    assert_eq!(ann.json().await["said"], "still here");
}

#[tokio::test]
async fn a_room_or_name_out_of_bounds_is_refused() {
    let demo = Running::start("a").await;
    let long = "x".repeat(65);
    for query in [format!("room={long}"), format!("name={long}"), "room=a%0Ab".into()] {
        is_refused(&demo, &query, &[]).await;
    }
}

async fn is_refused(demo: &Running, query: &str, headers: &[(&'static str, &str)]) {
    match demo.try_connect(&format!("/rooms?{query}"), headers).await {
        Err(Error::Http(answer)) => assert_eq!(answer.status(), 400),
        other => panic!("{query}: {:?}", other.map(|_| "connected")),
    }
}

#[tokio::test]
async fn through_a_proxy_the_room_is_named() {
    let demo = Running::start("a").await;
    for query in ["", "room=", "room=%20&name=ann"] {
        is_refused(&demo, query, &[("steadfast-connection", "edge-1.0042")]).await;
    }
}

#[tokio::test]
async fn a_slow_member_is_closed_and_the_others_go_on() {
    let demo = Running::start("a").await;
    let mut slow = demo.connect("/rooms?room=r&name=slow").await;
    slow.json().await;
    let mut ann = demo.connect("/rooms?room=r&name=ann").await;
    ann.json().await;

    let say = json!({"say": "x".repeat(16 << 10)}).to_string();
    let mut heard = json!(null);
    while heard != json!({"room": "r", "left": "slow", "backend": "a"}) {
        // One at a time: `ann` reads what she hears, `slow` reads nothing at all.
        if heard["left"].is_null() {
            ann.send(say.as_str()).await;
        }
        heard = ann.json().await;
    }
    assert_eq!(slow.close_frame().await.code, 1013.into());
    ann.send(r#"{"say": "on we go"}"#).await;
    while ann.json().await["said"] != "on we go" {}
}
