//! Sending to clients, and who is in which room.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::routing::{post, put};
use axum::{Json, Router};
use serde::Serialize;

use super::api::{no_answer, no_connection};
use super::problem::Problem;
use crate::fleet::{DeliverError, Fleet};
use crate::publish::{Action, Audience, MAX_MESSAGE_BYTES, Publication};
use crate::route::key::Key;
use crate::ws::message::Payload;
use crate::ws::rooms::Room;

/// The requests that send, and that change rooms.
pub(super) fn routes() -> Router<Arc<Fleet>> {
    Router::new()
        .route("/v1/connections/{id}/messages", post(to_connection))
        .route("/v1/keys/{pool}/{key}/messages", post(to_key))
        .route("/v1/rooms/{room}/messages", post(to_room))
        .route("/v1/broadcast", post(to_all))
        .layer(DefaultBodyLimit::max(MAX_MESSAGE_BYTES))
        .route("/v1/rooms/{room}/members/{id}", put(join).delete(leave))
}

/// What is answered where a message was taken.
#[derive(Serialize)]
struct Reached {
    /// How many proxies have somebody of the audience.
    proxies: usize,
}

type Sent = Result<(StatusCode, Json<Reached>), Problem>;
type Body = Result<Bytes, BytesRejection>;
type Parameters = Result<Query<Vec<(String, String)>>, QueryRejection>;

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

async fn to_connection(
    State(fleet): State<Arc<Fleet>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Sent {
    let frame = frame(&headers, body)?;
    fleet.deliver(&id, frame).await.map_err(|error| match error {
        DeliverError::Unknown => no_connection(),
        DeliverError::Gone | DeliverError::Refused(_) => {
            Problem::new(StatusCode::GONE, error.to_string())
        }
        DeliverError::Busy => no_answer(),
    })?;
    Ok((StatusCode::ACCEPTED, Json(Reached { proxies: 1 })))
}

async fn to_key(
    State(fleet): State<Arc<Fleet>>,
    Path((pool, key)): Path<(String, String)>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Body,
) -> Sent {
    let known = fleet.shared.snapshot.load().pools().iter().any(|one| *one.name() == *pool);
    Key::new(&key).map_err(|error| bad(error.to_string()))?;
    let audience = Audience::Key { pool, key };
    let sent = publish(&fleet, audience, parameters, frame(&headers, body)?).await?;
    // A pool that has left the config may have connections for a while.
    if sent.1.proxies == 0 && !known {
        return Err(Problem::new(StatusCode::NOT_FOUND, "there is no pool of this name"));
    }
    Ok(sent)
}

async fn to_room(
    State(fleet): State<Arc<Fleet>>,
    Path(room): Path<String>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Body,
) -> Sent {
    let audience = Audience::Room(named(&room)?);
    publish(&fleet, audience, parameters, frame(&headers, body)?).await
}

async fn to_all(
    State(fleet): State<Arc<Fleet>>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Body,
) -> Sent {
    publish(&fleet, Audience::All, parameters, frame(&headers, body)?).await
}

async fn publish(fleet: &Fleet, audience: Audience, parameters: Parameters, frame: Bytes) -> Sent {
    let Query(parameters) = parameters.map_err(|error| bad(error.body_text()))?;
    let mut except = Vec::new();
    for (name, value) in parameters {
        if name != "except" {
            return Err(bad(format!("no parameter is called {name:?}")));
        }
        // Who is not connected here gets nothing anyway.
        except.extend(fleet.serial(&value));
    }
    let publication = Publication::new(audience, Action::Send(frame), except);
    let somebody = fleet.publish(publication).await.ok_or_else(no_answer)?;
    Ok((StatusCode::ACCEPTED, Json(Reached { proxies: usize::from(somebody) })))
}

/// The frame of the message that a request brings.
fn frame(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a message has at most {MAX_MESSAGE_BYTES} bytes"),
        ),
        status => Problem::new(status, error.body_text()),
    })?;
    if !is_text(headers.get(CONTENT_TYPE)) {
        return Ok(Payload::Binary(&body).frame());
    }
    let text = std::str::from_utf8(&body);
    let text = text.map_err(|error| bad(format!("a text message must be UTF-8: {error}")))?;
    Ok(Payload::Text(text).frame())
}

/// Whether a body of this type is sent as text.
fn is_text(content_type: Option<&HeaderValue>) -> bool {
    let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("text/") || essence == "application/json"
}

fn named(room: &str) -> Result<Room, Problem> {
    Room::new(room).map_err(|error| bad(error.to_string()))
}

async fn join(
    State(fleet): State<Arc<Fleet>>,
    Path((room, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let room = named(&room)?;
    let serial = fleet.serial(&id).ok_or_else(no_connection)?;
    let joined = fleet.join(serial, room).await.ok_or_else(no_answer)?;
    let joined = joined.ok_or_else(no_connection)?;
    joined.map_err(|error| Problem::new(StatusCode::CONFLICT, error.to_string()))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn leave(
    State(fleet): State<Arc<Fleet>>,
    Path((room, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let room = named(&room)?;
    let serial = fleet.serial(&id).ok_or_else(no_connection)?;
    let left = fleet.leave(serial, room).await.ok_or_else(no_answer)?;
    if left { Ok(StatusCode::NO_CONTENT) } else { Err(no_connection()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_says_so() {
        for (content_type, text) in [
            ("text/plain", true),
            ("Text/HTML; charset=utf-8", true),
            ("application/json", true),
            ("application/json;charset=utf-8", true),
            ("application/octet-stream", false),
            ("application/x-www-form-urlencoded", false),
            ("application/jsonp", false),
            ("", false),
        ] {
            let value = HeaderValue::from_static(content_type);
            assert_eq!(is_text(Some(&value)), text, "{content_type}");
        }
        assert!(!is_text(None));
    }
}
