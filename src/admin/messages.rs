//! Sending to clients, and who is in which room.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::routing::{post, put};
use axum::{Json, Router};
use serde::Serialize;

use super::connections::{no_answer, no_connection};
use super::path::Named;
use super::problem::Problem;
use crate::fleet::{DeliverError, Fleet, ReachError, Reached, Whose};
use crate::publish::Audience;
use crate::publish::envelope::{MAX_EXCEPT, Said};
use crate::registry::Unavailable;
use crate::route::key::Key;
use crate::ws::message::Payload;
use crate::ws::rooms::Room;

/// The requests that send, and that change rooms; a message has at most `longest` bytes.
pub(super) fn routes(longest: usize) -> Router<Arc<Fleet>> {
    Router::new()
        .route("/v1/connections/{id}/messages", post(to_connection))
        .route("/v1/keys/{pool}/{key}/messages", post(to_key))
        .route("/v1/rooms/{room}/messages", post(to_room))
        .route("/v1/broadcast", post(to_all))
        .layer(DefaultBodyLimit::max(longest))
        .route("/v1/rooms/{room}/members/{id}", put(join).delete(leave))
}

/// What is answered where a message was taken.
#[derive(Serialize)]
struct SentView {
    /// How many proxies have somebody of the audience.
    proxies: usize,
    /// Only this proxy's own could be reached; left out where that is not so.
    #[serde(skip_serializing_if = "is_false")]
    partial: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(partial: &bool) -> bool {
    !partial
}

impl From<Reached> for SentView {
    fn from(Reached { proxies, partial }: Reached) -> Self {
        Self { proxies, partial }
    }
}

impl From<Unavailable> for Problem {
    fn from(error: Unavailable) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<ReachError> for Problem {
    fn from(error: ReachError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

type Sent = Result<(StatusCode, Json<SentView>), Problem>;
type Body = Result<Bytes, BytesRejection>;
type Parameters = Result<Query<Vec<(String, String)>>, QueryRejection>;

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

async fn to_connection(
    State(fleet): State<Arc<Fleet>>,
    Named(id): Named<String>,
    headers: HeaderMap,
    body: Body,
) -> Sent {
    let body = read(&fleet, body)?;
    let payload = payload(&headers, &body)?;
    match fleet.whose(&id) {
        Whose::Nobodys => return Err(no_connection()),
        Whose::Ours(_) => fleet.deliver(&id, payload.frame()).await?,
        Whose::Others(others, proxy) => {
            if !fleet.hand_on(others, proxy, &id, Said::Message(payload)).await? {
                return Err(Problem::new(StatusCode::GONE, "the proxy of the connection is gone"));
            }
        }
    }
    Ok((StatusCode::ACCEPTED, Json(SentView { proxies: 1, partial: false })))
}

impl From<DeliverError> for Problem {
    fn from(error: DeliverError) -> Self {
        match error {
            DeliverError::Unknown => no_connection(),
            DeliverError::Gone | DeliverError::Refused(_) => {
                Self::new(StatusCode::GONE, error.to_string())
            }
            DeliverError::Busy => no_answer(),
        }
    }
}

async fn to_key(
    State(fleet): State<Arc<Fleet>>,
    Named((pool, key)): Named<(String, String)>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Body,
) -> Sent {
    let known = fleet.shared.snapshot.load().pools().iter().any(|one| *one.name() == *pool);
    Key::new(&key).map_err(|error| bad(error.to_string()))?;
    let audience = Audience::Key { pool, key };
    let sent = send(&fleet, audience, parameters, &headers, body).await?;
    // A pool that has left the config may have connections for a while.
    if sent.1.proxies == 0 && !known && fleet.shared.registry.others().is_none() {
        return Err(Problem::new(StatusCode::NOT_FOUND, "there is no pool of this name"));
    }
    Ok(sent)
}

async fn to_room(
    State(fleet): State<Arc<Fleet>>,
    Named(room): Named<String>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Body,
) -> Sent {
    let audience = Audience::Room(named(&room)?);
    send(&fleet, audience, parameters, &headers, body).await
}

async fn to_all(
    State(fleet): State<Arc<Fleet>>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Body,
) -> Sent {
    send(&fleet, Audience::All, parameters, &headers, body).await
}

async fn send(
    fleet: &Fleet,
    audience: Audience,
    parameters: Parameters,
    headers: &HeaderMap,
    body: Body,
) -> Sent {
    let body = read(fleet, body)?;
    let payload = payload(headers, &body)?;
    let Query(parameters) = parameters.map_err(|error| bad(error.body_text()))?;
    let mut except = Vec::new();
    for (name, value) in parameters {
        if name != "except" {
            return Err(bad(format!("no parameter is called {name:?}")));
        }
        except.push(value);
    }
    if except.len() > MAX_EXCEPT {
        return Err(bad(format!("except is given {} times; at most {MAX_EXCEPT}", except.len())));
    }
    let reached = fleet.reach(audience, payload, &except).await?;
    Ok((StatusCode::ACCEPTED, Json(reached.into())))
}

fn read(fleet: &Fleet, body: Body) -> Result<Bytes, Problem> {
    body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a message has at most {} bytes", fleet.max_message()),
        ),
        status => Problem::new(status, error.body_text()),
    })
}

/// The message that a request brings.
fn payload<'b>(headers: &HeaderMap, body: &'b Bytes) -> Result<Payload<'b>, Problem> {
    if !is_text(headers.get(CONTENT_TYPE)) {
        return Ok(Payload::Binary(body));
    }
    let text = std::str::from_utf8(body);
    let text = text.map_err(|error| bad(format!("a text message must be UTF-8: {error}")))?;
    Ok(Payload::Text(text))
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
    Named((room, id)): Named<(String, String)>,
) -> Result<StatusCode, Problem> {
    let room = named(&room)?;
    let serial = match fleet.whose(&id) {
        Whose::Nobodys => return Err(no_connection()),
        Whose::Ours(serial) => serial,
        Whose::Others(others, proxy) => {
            return handed_on(fleet.hand_on(others, proxy, &id, Said::Join(&room)).await?);
        }
    };
    let joined = fleet.join(serial, room.clone()).await.ok_or_else(no_answer)?;
    let joined = joined.ok_or_else(no_connection)?;
    joined.map_err(|error| Problem::new(StatusCode::CONFLICT, error.to_string()))?;
    // Who is told that it stands may publish to the room at once.
    let (registry, group) = (&fleet.shared.registry, room.group());
    if let Some(standing) = registry.stand(&mut std::iter::once(group.clone())) {
        standing.await;
    }
    let stands = registry.stands(&group);
    Ok(if stands { StatusCode::NO_CONTENT } else { StatusCode::ACCEPTED })
}

async fn leave(
    State(fleet): State<Arc<Fleet>>,
    Named((room, id)): Named<(String, String)>,
) -> Result<StatusCode, Problem> {
    let room = named(&room)?;
    let serial = match fleet.whose(&id) {
        Whose::Nobodys => return Err(no_connection()),
        Whose::Ours(serial) => serial,
        Whose::Others(others, proxy) => {
            return handed_on(fleet.hand_on(others, proxy, &id, Said::Leave(&room)).await?);
        }
    };
    let left = fleet.leave(serial, room).await.ok_or_else(no_answer)?;
    if left { Ok(StatusCode::NO_CONTENT) } else { Err(no_connection()) }
}

/// What is answered where another proxy was told, or is not there to be told.
pub(super) fn handed_on(is_there: bool) -> Result<StatusCode, Problem> {
    if is_there {
        return Ok(StatusCode::ACCEPTED);
    }
    Err(Problem::new(StatusCode::NOT_FOUND, "the proxy that this id names is gone"))
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
