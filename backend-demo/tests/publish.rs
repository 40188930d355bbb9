//! What a room server sends to Redis, or to the admin API of a proxy, instead of its own sockets.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::header::CONNECTION;
use axum::http::{HeaderName, StatusCode};
use backend_demo::Publish;
use futures_util::{Stream, StreamExt};
use http_body_util::BodyExt;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

mod support;
use support::{Client, Running, soon};

/// A room server, and a member that came through a proxy.
struct World {
    demo: Running,
    ann: Client,
}

const ANN: &str = "edge-1.0007";

impl World {
    async fn publishing(publish: Publish) -> Self {
        let demo = Running::publishing("a", publish).await;
        let ann = through_proxy(&demo, "room=tea%2C%20%C3%A4&name=ann", ANN).await;
        Self { demo, ann }
    }

    /// Has her say something, and tells the error that comes of it, if one does.
    async fn say(&mut self, text: &str) -> Option<String> {
        self.ask(&json!({ "say": text })).await
    }

    /// The same for any request that is not answered when it is done.
    async fn ask(&mut self, request: &Value) -> Option<String> {
        self.ann.send(request.to_string()).await;
        // A request that is always answered, with an error of its own.
        self.ann.send("?").await;
        let first = error(&self.ann.json().await);
        if first.starts_with("expected") {
            return None;
        }
        assert!(error(&self.ann.json().await).starts_with("expected"));
        Some(first)
    }

    /// Has her say something again and again until it is sent.
    async fn say_until_sent(&mut self, text: &str) {
        soon(async { while self.say(text).await.is_some() {} }).await;
    }
}

fn error(told: &Value) -> String {
    told["error"].as_str().unwrap_or_else(|| panic!("no error: {told}")).to_owned()
}

async fn through_proxy(demo: &Running, query: &str, id: &str) -> Client {
    let path = format!("/rooms?{query}");
    demo.try_connect(&path, &[("steadfast-connection", id)]).await.unwrap()
}

/// A Redis that keeps nothing, on a port of its own.
struct Redis {
    process: Child,
    port: u16,
}

impl Redis {
    async fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        Self::start_at(port).await
    }

    async fn start_at(port: u16) -> Self {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no"]).stdout(Stdio::null());
        let mut redis = Self { process: command.spawn().unwrap(), port };
        let starts = async {
            while redis.try_client().await.is_none() {
                assert!(redis.process.try_wait().unwrap().is_none(), "it has ended at once");
                sleep(Duration::from_millis(10)).await;
            }
        };
        soon(starts).await;
        redis
    }

    fn publish(&self, prefix: &str) -> Publish {
        let url = format!("redis://127.0.0.1:{}", self.port);
        Publish::Redis { url, prefix: prefix.into() }
    }

    async fn try_client(&self) -> Option<MultiplexedConnection> {
        let url = format!("redis://127.0.0.1:{}", self.port);
        let client = redis::Client::open(url).unwrap();
        client.get_multiplexed_async_connection().await.ok()
    }

    /// All that is published, as a proxy would hear it: the channel and the message.
    async fn published(&self) -> impl Stream<Item = (String, Value)> + use<> {
        let url = format!("redis://127.0.0.1:{}", self.port);
        let client = redis::Client::open(url).unwrap();
        let mut pubsub = client.get_async_pubsub().await.unwrap();
        pubsub.psubscribe("*").await.unwrap();
        pubsub.into_on_message().map(|message| {
            let text: String = message.get_payload().unwrap();
            let message_of = serde_json::from_str(&text).unwrap();
            (message.get_channel_name().to_owned(), message_of)
        })
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

async fn next<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> T {
    soon(stream.next()).await.unwrap()
}

/// A message to a room: the text as the JSON that it is, and who does not get it.
fn told(message: &Value) -> (Value, Value) {
    let text = message["text"].as_str().unwrap_or_else(|| panic!("no text: {message}"));
    (serde_json::from_str(text).unwrap(), message["except"].clone())
}

#[tokio::test]
async fn each_message_of_a_client_is_published_once() {
    const ROOM: &str = "steadfast:to:room:tea, ä";
    let redis = Redis::start().await;
    let mut published = Box::pin(redis.published().await);
    let mut world = World::publishing(redis.publish("steadfast")).await;
    assert_eq!(world.ann.1.headers["steadfast-join"], "tea%2C%20%C3%A4");
    let welcome = &world.ann.json().await["welcome"];
    assert_eq!((&welcome["connection"], &welcome["members"]), (&json!(ANN), &json!(1)));

    let room = "tea, ä";
    let (channel, message) = next(&mut published).await;
    let joined = json!({"room": room, "joined": "ann", "backend": "a"});
    assert_eq!((channel.as_str(), told(&message)), (ROOM, (joined, json!([ANN]))));

    assert_eq!(world.say("\"hi\"").await, None);
    let (channel, message) = next(&mut published).await;
    let said = json!({"room": room, "from": "ann", "said": "\"hi\"", "backend": "a"});
    assert_eq!((channel.as_str(), told(&message)), (ROOM, (said, Value::Null)));

    // A membership goes to the proxy, which puts nobody in before the others are told.
    world.ann.send(r#"{"join": "s"}"#).await;
    let joined = json!({"room": "s", "joined": "ann", "backend": "a"});
    assert_eq!(world.ann.json().await, joined);
    let to_proxy = ("steadfast:to:proxy:edge-1".to_owned(), "steadfast:to:room:s".to_owned());
    let (channel, message) = next(&mut published).await;
    assert_eq!((channel, message), (to_proxy.0.clone(), json!({"connection": ANN, "join": ["s"]})));
    let (channel, message) = next(&mut published).await;
    assert_eq!((channel, told(&message)), (to_proxy.1.clone(), (joined, json!([ANN]))));

    assert_eq!(world.say("both").await, None);
    for wanted in [to_proxy.1.as_str(), ROOM] {
        let (channel, message) = next(&mut published).await;
        assert_eq!((channel.as_str(), &told(&message).0["said"]), (wanted, &json!("both")));
    }

    world.ann.send(r#"{"leave": "s"}"#).await;
    let left = json!({"room": "s", "left": "ann", "backend": "a"});
    assert_eq!(world.ann.json().await, left);
    let (channel, message) = next(&mut published).await;
    assert_eq!((channel, message), (to_proxy.0, json!({"connection": ANN, "leave": ["s"]})));
    let (channel, message) = next(&mut published).await;
    assert_eq!((channel, told(&message)), (to_proxy.1, (left, json!([ANN]))));

    drop(world.ann);
    let (channel, message) = next(&mut published).await;
    let left = json!({"room": room, "left": "ann", "backend": "a"});
    assert_eq!((channel.as_str(), told(&message)), (ROOM, (left, json!([ANN]))));
}

#[tokio::test]
async fn who_came_without_a_proxy_is_told_by_the_instance_itself() {
    let redis = Redis::start().await;
    let mut published = Box::pin(redis.published().await);
    let mut client = redis.try_client().await.unwrap();
    let counts: &[(&str, u32)] = &[("edge-1", 3), ("edge-2", 4)];
    let mut count = redis::cmd("HSET");
    count.arg("sf:room:r").arg(counts);
    count.query_async::<()>(&mut client).await.unwrap();

    let demo = Running::publishing("a", redis.publish("sf")).await;
    let mut ann = through_proxy(&demo, "room=r&name=ann", ANN).await;
    // Those that were there, and she.
    assert_eq!(ann.json().await["welcome"]["members"], 8);
    let mut eve = demo.connect("/rooms?room=r&name=eve").await;
    assert!(!eve.1.headers.contains_key("steadfast-join"));
    assert_eq!(eve.json().await["welcome"]["members"], 8);
    for _ in 0..2 {
        let (channel, message) = next(&mut published).await;
        assert_eq!(
            (channel.as_str(), told(&message).0["joined"].is_string()),
            ("sf:to:room:r", true)
        );
    }
    for (client, name) in [(&mut ann, "ann"), (&mut eve, "eve")] {
        client.send(r#"{"say": "hi"}"#).await;
        let said = json!({"room": "r", "from": name, "said": "hi", "backend": "a"});
        assert_eq!(told(&next(&mut published).await.1), (said.clone(), Value::Null));
    }
    // She hears both from here, and ann hears neither: her proxy tells her.
    for name in ["ann", "eve"] {
        assert_eq!(eve.json().await["from"], name);
    }
    ann.send("?").await;
    error(&ann.json().await);
}

#[tokio::test]
async fn who_comes_in_is_counted_whatever_its_proxy_has_written_down() {
    let redis = Redis::start().await;
    let mut client = redis.try_client().await.unwrap();
    let demo = Running::publishing("a", redis.publish("sf")).await;
    let come = async |query: &str, id: &str, members: u64| {
        let mut client = through_proxy(&demo, query, id).await;
        assert_eq!(client.json().await["welcome"]["members"], members, "{query} {id}");
        client
    };
    // Nothing is written down: who came here is known here.
    let _first = come("room=r&name=ann", "edge-1.0001", 1).await;
    let _second = come("room=r&name=bob", "edge-1.0002", 2).await;
    let _third = come("room=r&name=eve", "edge-2.0001", 3).await;
    // One of them, then all, and two who came to another instance.
    for (counts, members) in
        [([("edge-1", 1), ("edge-3", 2)], 6), ([("edge-1", 3), ("edge-3", 2)], 7)]
    {
        let mut write = redis::cmd("HSET");
        write.arg("sf:room:r").arg(&counts);
        write.query_async::<()>(&mut client).await.unwrap();
        let came = come("room=r&name=guest", "edge-1.0009", members).await;
        came.leave().await;
    }
}

#[tokio::test]
async fn what_one_socket_says_keeps_its_order() {
    let redis = Redis::start().await;
    let mut published = Box::pin(redis.published().await);
    let mut world = World::publishing(redis.publish("steadfast")).await;
    world.ann.json().await;
    next(&mut published).await;
    for number in 0..200 {
        world.ann.send(json!({"say": number.to_string()}).to_string()).await;
    }
    for number in 0..200 {
        assert_eq!(told(&next(&mut published).await.1).0["said"], number.to_string());
    }
}

#[tokio::test]
async fn that_no_proxy_listens_is_told_and_changes_nothing() {
    let redis = Redis::start().await;
    let mut world = World::publishing(redis.publish("steadfast")).await;
    world.ann.json().await;
    assert!(world.say("hi").await.unwrap().contains("no proxy"));
    assert!(world.ask(&json!({"join": "s"})).await.unwrap().contains("no proxy"));
    assert!(world.ask(&json!({"leave": "s"})).await.unwrap().contains("not in room s"));
}

#[tokio::test]
async fn while_redis_is_away_the_speaker_is_told_and_stays() {
    let redis = Redis::start().await;
    let port = redis.port;
    let mut world = World::publishing(redis.publish("steadfast")).await;
    world.ann.json().await;
    drop(redis);
    let away = world.say("lost").await.unwrap();
    assert!(away.starts_with("Redis "), "{away}");
    // Who comes now gets a welcome all the same, and nobody can tell who is there.
    let mut bob = through_proxy(&world.demo, "room=r&name=bob", "edge-1.0008").await;
    assert_eq!(bob.json().await["welcome"]["members"], Value::Null);
    assert!(world.ask(&json!({"join": "s"})).await.is_some());

    let redis = Redis::start_at(port).await;
    let mut published = Box::pin(redis.published().await);
    world.say_until_sent("back").await;
    assert_eq!(world.say("again").await, None);
    for said in ["back", "again"] {
        assert_eq!(told(&next(&mut published).await.1).0["said"], said);
    }
}

#[tokio::test]
async fn a_redis_that_hangs_costs_its_members_no_more_than_an_error() {
    let redis = Redis::start().await;
    let _subscriber = Box::pin(redis.published().await);
    let mut world = World::publishing(redis.publish("steadfast")).await;
    world.ann.json().await;
    assert_eq!(world.say("before").await, None);
    redis.signal("-STOP");
    assert!(world.say("hanging").await.is_some());
    redis.signal("-CONT");
    world.say_until_sent("after").await;
}

#[tokio::test]
async fn a_stop_publishes_who_left() {
    let redis = Redis::start().await;
    let mut published = Box::pin(redis.published().await);
    let mut world = World::publishing(redis.publish("steadfast")).await;
    world.ann.json().await;
    next(&mut published).await;
    let stopped = world.demo.stop();
    assert_eq!(world.ann.close_frame().await.code, 1001.into());
    drop(world.ann);
    soon(stopped).await.unwrap().unwrap();
    assert_eq!(told(&next(&mut published).await.1).0["left"], "ann");
}

/// Status, whether the connection is kept, and body.
type Answer = (StatusCode, [(HeaderName, &'static str); 1], &'static str);

const KEPT: [(HeaderName, &str); 1] = [(CONNECTION, "keep-alive")];
const CLOSED: [(HeaderName, &str); 1] = [(CONNECTION, "close")];

/// An admin API that notes what it is asked, and answers as it is told.
struct Admin {
    address: SocketAddr,
    asked: mpsc::Receiver<String>,
    answer: Arc<Mutex<Answer>>,
    serving: JoinHandle<()>,
}

impl Admin {
    async fn start(address: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (note, asked) = mpsc::channel(100);
        let answer = (StatusCode::OK, KEPT, r#"{"proxies": 1, "connections": []}"#);
        let answer = Arc::new(Mutex::new(answer));
        let answers = Arc::clone(&answer);
        let app = Router::new().fallback(async move |request: Request| {
            let (head, body) = request.into_parts();
            let body: Bytes = body.collect().await.unwrap().to_bytes();
            let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap());
            let headers = [header("authorization"), header("content-type")];
            let headers: Vec<&str> = headers.into_iter().flatten().collect();
            let body = String::from_utf8_lossy(&body);
            let noted = format!("{} {} {} {body}", head.method, head.uri, headers.join(" "));
            note.send(noted.trim_end().to_owned()).await.unwrap();
            answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
        });
        let serving = tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        Self { address, asked, answer, serving }
    }

    fn publish(&self, token: Option<&str>) -> Publish {
        let url = format!("http://{}", self.address);
        Publish::ProxyAdmin { url, token: token.map(str::to_owned) }
    }

    fn answer(&self, status: StatusCode, body: &'static str) {
        *self.answer.lock().unwrap() = (status, KEPT, body);
    }

    async fn next(&mut self) -> String {
        soon(self.asked.recv()).await.unwrap()
    }
}

#[tokio::test]
async fn a_proxy_is_asked_for_what_redis_would_be() {
    let mut admin = Admin::start("127.0.0.1:0".parse().unwrap()).await;
    let demo = Running::publishing("a", admin.publish(Some("secret"))).await;
    admin.answer(StatusCode::OK, r#"{"connections": [{"id": "edge-1.0001"}], "next": null}"#);
    let mut ann = through_proxy(&demo, "room=tea%2C%20%C3%A4&name=ann", ANN).await;
    assert_eq!(ann.1.headers["steadfast-join"], "tea%2C%20%C3%A4");
    assert_eq!(ann.json().await["welcome"]["members"], 2);
    let room = "tea%2C%20%C3%A4";
    let count = format!("GET /v1/connections?room={room}&limit=1000 Bearer secret");
    assert_eq!(admin.next().await, count);
    let mut expect = async |request: &str, body: &str| {
        let wanted = format!("{request} Bearer secret{body}");
        assert_eq!(admin.next().await, wanted);
    };
    let joined = r#" application/json {"room":"tea, ä","joined":"ann","backend":"a"}"#;
    expect(&format!("POST /v1/rooms/{room}/messages?except={ANN}"), joined).await;
    ann.send(r#"{"say": "hi"}"#).await;
    let said = r#" application/json {"room":"tea, ä","from":"ann","said":"hi","backend":"a"}"#;
    expect(&format!("POST /v1/rooms/{room}/messages"), said).await;
    // This answer was none of a proxy.
    assert!(error(&ann.json().await).contains("something else"));

    admin.answer(StatusCode::OK, r#"{"proxies": 1}"#);
    ann.send(r#"{"join": "s"}"#).await;
    assert_eq!(ann.json().await["joined"], "ann");
    assert_eq!(admin.next().await, format!("PUT /v1/rooms/s/members/{ANN} Bearer secret"));
    assert!(admin.next().await.starts_with("POST /v1/rooms/s/messages?except="));
    ann.send(r#"{"leave": "s"}"#).await;
    assert_eq!(ann.json().await["left"], "ann");
    assert_eq!(admin.next().await, format!("DELETE /v1/rooms/s/members/{ANN} Bearer secret"));
    assert!(admin.next().await.starts_with("POST /v1/rooms/s/messages?except="));
}

#[tokio::test]
async fn what_a_proxy_refuses_is_told_and_changes_nothing() {
    let admin = Admin::start("127.0.0.1:0".parse().unwrap()).await;
    let mut world = World::publishing(admin.publish(None)).await;
    assert_eq!(world.ann.json().await["welcome"]["members"], 1);
    admin.answer(StatusCode::CONFLICT, r#"{"detail": "it is in 128 rooms"}"#);
    assert!(world.ask(&json!({"join": "s"})).await.unwrap().ends_with("it is in 128 rooms"));
    assert!(world.ask(&json!({"leave": "s"})).await.unwrap().contains("not in room s"));
    admin.answer(StatusCode::ACCEPTED, r#"{"proxies": 0}"#);
    assert!(world.say("hi").await.unwrap().contains("no proxy"));

    // It goes away, and the connection with it, and comes back.
    *admin.answer.lock().unwrap() = (StatusCode::ACCEPTED, CLOSED, r#"{"proxies": 1}"#);
    assert_eq!(world.say("the last").await, None);
    admin.serving.abort();
    let address = admin.address;
    assert!(admin.serving.await.unwrap_err().is_cancelled());
    assert!(world.say("lost").await.unwrap().starts_with("the proxy's admin API "));
    let _admin = Admin::start(address).await;
    world.say_until_sent("back").await;
}
