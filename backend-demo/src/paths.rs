//! From path to server: the one place that knows what is where.
//!
//! A request for a WebSocket path that is no handshake gets the library's 400 or 426, with a
//! sentence; a room or a name that is out of bounds is a 400 before any upgrade; other paths are
//! 404. While the demo stops, everything is 503: taking `Serving` as an argument is what does it.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use crate::Backend;
use crate::echo::{self, ECHO_MESSAGE_BYTES, GREETER_MESSAGE_BYTES};
use crate::page::page;
use crate::rooms::{self, Label, Newcomer};
use crate::socket::sized;
use crate::stop::Serving;

/// The proxy's name for the connection.
const CONNECTION_HEADER: &str = "steadfast-connection";
/// Tells the proxy which rooms the connection joins; the client never sees it.
const JOIN_HEADER: HeaderName = HeaderName::from_static("steadfast-join");

pub(crate) fn router(backend: Arc<Backend>) -> Router {
    Router::new()
        .route("/", get(async |_: Serving| page()))
        .route("/health", get(health))
        .route("/ws", get(greet))
        .route("/echo", get(echo))
        .route("/rooms", get(rooms))
        .with_state(backend)
}

async fn health(State(backend): State<Arc<Backend>>, _: Serving) -> String {
    backend.id.clone()
}

async fn greet(
    State(backend): State<Arc<Backend>>,
    serving: Serving,
    upgrade: WebSocketUpgrade,
) -> Response {
    sized(upgrade, GREETER_MESSAGE_BYTES)
        .on_upgrade(async move |socket| echo::greet(socket, serving, &backend.id).await)
}

async fn echo(serving: Serving, upgrade: WebSocketUpgrade) -> Response {
    sized(upgrade, ECHO_MESSAGE_BYTES).on_upgrade(|socket| echo::echo(socket, serving))
}

#[derive(Deserialize)]
struct RoomQuery {
    room: Option<String>,
    name: Option<String>,
}

async fn rooms(
    State(backend): State<Arc<Backend>>,
    mut serving: Serving,
    Query(query): Query<RoomQuery>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let newcomer = match newcomer(query, &headers) {
        Ok(newcomer) => newcomer,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    let others = tokio::select! {
        others = backend.rooms.count(&newcomer) => others,
        () = serving.stopped() => None,
    };
    let to_join = backend.rooms.to_join(&newcomer).map(|room| [(JOIN_HEADER, room)]);
    let upgraded = sized(upgrade, rooms::MESSAGE_BYTES).on_upgrade(async move |socket| {
        rooms::serve(socket, serving, &backend, newcomer, others).await;
    });
    (to_join, upgraded).into_response()
}

/// Why nobody comes in.
#[derive(Debug, thiserror::Error)]
enum NoEntry {
    #[error(transparent)]
    Label(#[from] rooms::BadLabel),
    #[error("write /rooms?room=lobby: a proxy goes by the room, and others may be elsewhere")]
    NoRoom,
}

/// Without a name it is a guest. Without a room it is the lobby, but not through a proxy: that had
/// no key to go by, and may have sent it where the others of the lobby are not.
fn newcomer(query: RoomQuery, headers: &HeaderMap) -> Result<Newcomer, NoEntry> {
    let given = |given: Option<String>| given.filter(|text| !text.trim().is_empty());
    let connection = headers.get(CONNECTION_HEADER).and_then(|value| value.to_str().ok());
    let room = match given(query.room) {
        Some(room) => room,
        None if connection.is_none() => "lobby".to_owned(),
        None => return Err(NoEntry::NoRoom),
    };
    Ok(Newcomer {
        room: Label::parse(&room)?,
        name: Label::parse(given(query.name).as_deref().unwrap_or("guest"))?,
        connection: connection.unwrap_or_default().to_owned(),
    })
}
