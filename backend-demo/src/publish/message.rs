//! What Redis or a proxy is asked, and what its answers mean. Nothing here does I/O.
//!
//! Each [`Order`] is one command of Redis, or one request to the admin API of a proxy. Both answer
//! with how many proxies were reached, or with how many members of a room each proxy has.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::ws::Utf8Bytes;
use axum::http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::json;

/// All but what RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The most connections that one answer of a proxy lists.
const LISTED: usize = 1000;

/// A proxy's id of a connection: the id of the proxy, one dot, and a rest that only it understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionId(String);

impl ConnectionId {
    /// Reads what a proxy gives a backend; `None` for what no proxy would give.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (proxy, rest) = text.split_once('.')?;
        let is_part =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic());
        let valid = is_part(proxy) && is_part(rest) && !rest.contains('.');
        valid.then(|| Self(text.to_owned()))
    }

    /// The proxy that has the connection.
    pub(crate) fn proxy(&self) -> &str {
        self.0.split('.').next().unwrap_or_default()
    }
}

/// A message for the members of a room, wherever they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) room: String,
    pub(crate) text: Utf8Bytes,
    /// Who caused it, where that one is told by other means.
    pub(crate) except: Option<ConnectionId>,
    /// Who caused it waits behind a proxy for it, so that somebody must be reached.
    pub(crate) awaited: bool,
}

/// One thing that Redis or a proxy is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Sends a message.
    Tell(Notice),
    /// Puts a connection into a room.
    Join { room: String, connection: ConnectionId },
    /// Takes it out.
    Leave { room: String, connection: ConnectionId },
    /// Counts the members of a room that came through proxies.
    Count { room: String },
}

/// How many of something each proxy has.
pub(crate) type ByProxy = BTreeMap<String, u64>;

/// What was answered to an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// How many proxies were reached.
    Reached(u64),
    /// How many members of a room each proxy has, as far as is known there.
    Members(ByProxy),
}

/// A request to the admin API of a proxy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    /// A message, which is text.
    pub(super) body: Bytes,
}

/// What the admin API says of a request that it refuses (RFC 9457).
#[derive(Deserialize)]
struct Problem {
    detail: String,
}

#[derive(Deserialize)]
struct Reached {
    proxies: u64,
}

#[derive(Deserialize)]
struct Listed {
    connections: Vec<Connection>,
}

#[derive(Deserialize)]
struct Connection {
    id: String,
}

/// A text as one part of a path, or as a value of a header or a query.
pub(crate) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

impl Order {
    /// Tells whether there must be somebody who obeys it.
    pub(super) fn needs_somebody(&self) -> bool {
        match self {
            Self::Tell(notice) => notice.awaited,
            Self::Join { .. } | Self::Leave { .. } => true,
            Self::Count { .. } => false,
        }
    }

    /// The command for Redis: its name and its arguments. `prefix` begins the name of all that is
    /// of Steadfast there.
    pub(super) fn command(&self, prefix: &str) -> Vec<String> {
        let publish = |to: &str, name: &str, message: serde_json::Value| {
            vec!["PUBLISH".into(), format!("{prefix}:to:{to}:{name}"), message.to_string()]
        };
        match self {
            Self::Tell(Notice { room, text, except: None, .. }) => {
                publish("room", room, json!({ "text": text.as_str() }))
            }
            Self::Tell(Notice { room, text, except: Some(ConnectionId(id)), .. }) => {
                publish("room", room, json!({ "text": text.as_str(), "except": [id] }))
            }
            Self::Join { room, connection } => publish(
                "proxy",
                connection.proxy(),
                json!({ "connection": connection.0, "join": [room] }),
            ),
            Self::Leave { room, connection } => publish(
                "proxy",
                connection.proxy(),
                json!({ "connection": connection.0, "leave": [room] }),
            ),
            // Of each proxy, how many of its connections are members.
            Self::Count { room } => vec!["HGETALL".into(), format!("{prefix}:room:{room}")],
        }
    }

    /// The request for the admin API of a proxy.
    pub(super) fn request(&self) -> Request {
        let request = |method, path| Request { method, path, body: Bytes::new() };
        match self {
            Self::Tell(Notice { room, text, except, .. }) => {
                let mut path = format!("/v1/rooms/{}/messages", encoded(room));
                if let Some(ConnectionId(id)) = except {
                    path.push_str(&format!("?except={}", encoded(id)));
                }
                Request { method: Method::POST, path, body: text.clone().into() }
            }
            Self::Join { room, connection } => request(Method::PUT, member(room, connection)),
            Self::Leave { room, connection } => request(Method::DELETE, member(room, connection)),
            Self::Count { room } => {
                let path = format!("/v1/connections?room={}&limit={LISTED}", encoded(room));
                request(Method::GET, path)
            }
        }
    }

    /// What is in the answer to [`request`](Self::request), or why nothing is.
    ///
    /// A proxy lists its own connections alone, at most 1,000 of them: a count is one of members
    /// that came through the proxy that is asked.
    pub(super) fn answer(&self, status: StatusCode, body: &[u8]) -> Result<Answered, String> {
        if !status.is_success() {
            let problem = serde_json::from_slice::<Problem>(body);
            return Err(problem.map_or_else(|_| status.to_string(), |problem| problem.detail));
        }
        let strange = |error: serde_json::Error| format!("something else than expected: {error}");
        match self {
            Self::Tell(_) => {
                let reached = serde_json::from_slice::<Reached>(body).map_err(strange)?;
                Ok(Answered::Reached(reached.proxies))
            }
            Self::Join { .. } | Self::Leave { .. } => Ok(Answered::Reached(1)),
            Self::Count { .. } => {
                let listed = serde_json::from_slice::<Listed>(body).map_err(strange)?;
                let ids = listed.connections.iter().filter_map(|one| ConnectionId::parse(&one.id));
                let mut members = ByProxy::new();
                for id in ids {
                    *members.entry(id.proxy().to_owned()).or_default() += 1;
                }
                Ok(Answered::Members(members))
            }
        }
    }
}

fn member(room: &str, connection: &ConnectionId) -> String {
    format!("/v1/rooms/{}/members/{}", encoded(room), encoded(&connection.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ConnectionId {
        ConnectionId::parse(text).unwrap()
    }

    fn tell(except: Option<&str>) -> Order {
        let except = except.map(id);
        Order::Tell(Notice {
            room: "tea, ä".into(), text: "{\"a\"}".into(), except, awaited: true
        })
    }

    #[test]
    fn a_connection_id_names_its_proxy() {
        assert_eq!(id("edge1-6b07.00ff").proxy(), "edge1-6b07");
        for bad in ["", "edge1", ".x", "x.", "a.b.c", "a b.c", "ä.b"] {
            assert_eq!(ConnectionId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn each_order_is_one_command() {
        let (room, connection) = (String::from("tea, ä"), id("p.1"));
        let order = |order: &Order| order.command("sf");
        for (command, wanted) in [
            (order(&tell(None)), ["PUBLISH", "sf:to:room:tea, ä", r#"{"text":"{\"a\"}"}"#]),
            (
                order(&tell(Some("p.1"))),
                ["PUBLISH", "sf:to:room:tea, ä", r#"{"except":["p.1"],"text":"{\"a\"}"}"#],
            ),
            (
                order(&Order::Join { room: room.clone(), connection: connection.clone() }),
                ["PUBLISH", "sf:to:proxy:p", r#"{"connection":"p.1","join":["tea, ä"]}"#],
            ),
            (
                order(&Order::Leave { room: room.clone(), connection }),
                ["PUBLISH", "sf:to:proxy:p", r#"{"connection":"p.1","leave":["tea, ä"]}"#],
            ),
        ] {
            assert_eq!(command, wanted);
        }
        let count = Order::Count { room };
        assert_eq!(count.command("steadfast"), ["HGETALL", "steadfast:room:tea, ä"]);
    }

    #[test]
    fn each_order_is_one_request() {
        let (room, connection) = (String::from("tea, ä/?"), id("p.1"));
        let request = |order: Order| {
            let Request { method, path, body } = order.request();
            format!("{method} {path} {}", String::from_utf8_lossy(&body))
        };
        let room_path = "/v1/rooms/tea%2C%20%C3%A4";
        for (request, wanted) in [
            (request(tell(None)), format!("POST {room_path}/messages {{\"a\"}}")),
            (request(tell(Some("p.1"))), format!("POST {room_path}/messages?except=p.1 {{\"a\"}}")),
            (
                request(Order::Join { room: room.clone(), connection: connection.clone() }),
                format!("PUT {room_path}%2F%3F/members/p.1 "),
            ),
            (
                request(Order::Leave { room: room.clone(), connection }),
                format!("DELETE {room_path}%2F%3F/members/p.1 "),
            ),
            (
                request(Order::Count { room }),
                "GET /v1/connections?room=tea%2C%20%C3%A4%2F%3F&limit=1000 ".to_owned(),
            ),
        ] {
            assert_eq!(request, wanted);
        }
    }

    #[test]
    fn answers_of_a_proxy_say_how_many_or_why_not() {
        let join = || Order::Join { room: "r".into(), connection: id("p.1") };
        let count = || Order::Count { room: "r".into() };
        let (reached, members) = (Answered::Reached, ByProxy::from([("p".to_owned(), 2)]));
        let listed =
            r#"{"connections": [{"id": "p.1", "pool": "a"}, {"id": "p.2"}], "next": null}"#;
        let problem = r#"{"status": 404, "detail": "no such connection"}"#;
        for (order, status, body, wanted) in [
            (tell(None), StatusCode::ACCEPTED, r#"{"proxies": 2}"#, Ok(reached(2))),
            (
                tell(None),
                StatusCode::ACCEPTED,
                r#"{"proxies": 0, "partial": true}"#,
                Ok(reached(0)),
            ),
            (join(), StatusCode::NO_CONTENT, "", Ok(reached(1))),
            (join(), StatusCode::ACCEPTED, "", Ok(reached(1))),
            (join(), StatusCode::NOT_FOUND, problem, Err("no such connection")),
            (join(), StatusCode::BAD_GATEWAY, "<html>", Err("502 Bad Gateway")),
            (count(), StatusCode::OK, listed, Ok(Answered::Members(members))),
        ] {
            let wanted = wanted.map_err(str::to_owned);
            assert_eq!(order.answer(status, body.as_bytes()), wanted, "{body}");
        }
        assert!(tell(None).answer(StatusCode::OK, b"hello").is_err());
    }
}
