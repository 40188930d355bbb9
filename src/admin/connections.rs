//! Connections: who owns them, and how they are closed.
//!
//! By id and by key it is the whole fleet that is asked. Other lists are this proxy's own; they name
//! the others, who can be asked the same.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::messages::handed_on;
use super::path::Named;
use super::problem::Problem;
use crate::fleet::{self, Fleet, Row, Whose};
use crate::observe::access_log::unix_millis;
use crate::publish::envelope::Said;
use crate::registry::{Others, Owned, Peer, Unavailable};
use crate::ws::close::{CLOSE_CODES, CLOSE_TEXT_BYTES, CloseCode};
use crate::ws::connection::Serial;
use crate::ws::rooms::Room;

const DEFAULT_LIMIT: usize = 100;
const LARGEST_LIMIT: usize = 1000;

/// The requests about connections.
pub(super) fn routes() -> Router<Arc<Fleet>> {
    Router::new()
        .route("/v1/connections", get(connections))
        .route("/v1/connections/{id}", get(connection).delete(close))
}

/// What `/v1/connections` may be asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    pool: Option<String>,
    key: Option<String>,
    backend: Option<String>,
    room: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct Connections {
    connections: Vec<ConnectionView>,
    /// Where the next page begins; null: this was the last.
    next: Option<String>,
    /// The proxies that have others; left out where the list is the whole fleet's.
    #[serde(skip_serializing_if = "Option::is_none")]
    elsewhere: Option<Vec<PeerView>>,
    /// Only this proxy's own could be listed; left out where that is not so.
    #[serde(skip_serializing_if = "Option::is_none")]
    partial: Option<bool>,
}

#[derive(Serialize)]
struct PeerView {
    proxy: String,
    /// The address of its admin API; null: it has none.
    admin: Option<String>,
}

impl From<Peer> for PeerView {
    fn from(peer: Peer) -> Self {
        Self { proxy: peer.proxy, admin: peer.admin }
    }
}

#[derive(Serialize)]
struct ConnectionView {
    id: String,
    proxy: String,
    backend: String,
    pool: String,
    route: String,
    key: Option<String>,
    rooms: Vec<String>,
    client: String,
    /// Times are in Unix milliseconds.
    since: u64,
    /// What only its own proxy knows.
    #[serde(flatten)]
    traffic: Option<TrafficView>,
}

#[derive(Serialize)]
struct TrafficView {
    messages_from_client: u64,
    bytes_from_client: u64,
    messages_from_backend: u64,
    bytes_from_backend: u64,
    last_activity: u64,
}

/// Where a page begins: this proxy's own connections come first, those of others behind them.
enum Cursor {
    Own(Option<Serial>),
    /// Behind this id; `None`: at the first.
    Others(Option<String>),
}

impl Cursor {
    /// Stands for the first of the others. An id has something before its dot.
    const OTHERS: &str = ".";

    fn read(text: Option<String>) -> Result<Self, Problem> {
        let Some(text) = text else { return Ok(Self::Own(None)) };
        if text == Self::OTHERS {
            return Ok(Self::Others(None));
        }
        if text.contains('.') {
            return Ok(Self::Others(Some(text)));
        }
        let serial = text.parse().map_err(|_| bad("this is not a cursor"))?;
        Ok(Self::Own(Some(serial)))
    }
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

pub(super) fn no_connection() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no connection has this id")
}

pub(super) fn no_answer() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "a worker does not answer; try again")
}

async fn connections(
    State(fleet): State<Arc<Fleet>>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<Connections>, Problem> {
    let Query(filter) = filter.map_err(|error| bad(error.body_text()))?;
    let limit = filter.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=LARGEST_LIMIT).contains(&limit) {
        return Err(bad(format!("limit must be from 1 to {LARGEST_LIMIT}")));
    }
    let room = filter.room.as_deref().map(Room::new).transpose();
    let mut query = fleet::Query {
        room: room.map_err(|error| bad(error.to_string()))?,
        pool: filter.pool,
        key: filter.key,
        backend: filter.backend,
        serial: None,
        after: None,
        // One more tells whether there is a next page.
        limit: limit + 1,
    };
    let others = fleet.shared.registry.others();
    let by_key = others.filter(|_| query.key.is_some());
    let cursor = Cursor::read(filter.cursor)?;
    let mut page = Connections {
        connections: Vec::new(),
        next: None,
        elsewhere: others
            .filter(|_| by_key.is_none())
            .map(|others| others.peers().into_iter().map(PeerView::from).collect()),
        partial: None,
    };
    let behind = match cursor {
        Cursor::Own(after) => {
            query.after = after;
            let mut rows = list(&fleet, &query).await?;
            let more = rows.len() > limit;
            rows.truncate(limit);
            page.next = rows.last().filter(|_| more).map(|row| row.serial.to_string());
            page.connections.extend(rows.into_iter().map(|row| own_view(&fleet, row)));
            None
        }
        Cursor::Others(behind) => behind,
    };
    let Some(others) = by_key.filter(|_| page.next.is_none()) else { return Ok(Json(page)) };
    match of_others(&fleet, others, &query, behind, limit - page.connections.len()).await {
        Ok((found, next)) => {
            page.connections.extend(found.into_iter().map(ConnectionView::from));
            page.next = next;
        }
        Err(_) => page.partial = Some(true),
    }
    Ok(Json(page))
}

/// The connections that other proxies have of a key behind an id, at most `limit`, and where those
/// behind them begin.
async fn of_others(
    fleet: &Fleet,
    others: &dyn Others,
    query: &fleet::Query,
    mut behind: Option<String>,
    limit: usize,
) -> Result<(Vec<Owned>, Option<String>), Unavailable> {
    let key = query.key.as_deref().unwrap_or_default();
    let pools: Vec<String> = match &query.pool {
        Some(pool) => vec![pool.clone()],
        None => {
            let snapshot = fleet.shared.snapshot.load();
            snapshot.pools_with_gone().map(|pool| pool.name().to_owned()).collect()
        }
    };
    let own = format!("{}.", fleet.shared.proxy_id);
    let wanted = |one: &Owned| {
        !one.id.starts_with(&own)
            && query.backend.as_deref().is_none_or(|wanted| wanted == &*one.record.backend)
            && query
                .room
                .as_ref()
                .is_none_or(|wanted| one.record.rooms.iter().any(|room| **room == *wanted.as_str()))
    };
    let mut found: Vec<Owned> = Vec::new();
    // Ids are distinct over all pools: a page is the first of them, whatever pool they are of.
    loop {
        let (mut batch, mut whole) = (Vec::new(), true);
        for pool in &pools {
            let of_pool = others.of_key(pool, key, behind.as_deref(), LARGEST_LIMIT).await?;
            whole &= of_pool.len() < LARGEST_LIMIT;
            batch.extend(of_pool);
        }
        batch.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        // What is cut off is read with what follows.
        whole &= batch.len() <= LARGEST_LIMIT;
        batch.truncate(LARGEST_LIMIT);
        behind = batch.last().map(|last| last.id.clone());
        found.extend(batch.into_iter().filter(&wanted));
        if found.len() > limit {
            found.truncate(limit);
            let next = found.last().map_or_else(|| Cursor::OTHERS.to_owned(), |one| one.id.clone());
            return Ok((found, Some(next)));
        }
        if whole || behind.is_none() {
            return Ok((found, None));
        }
    }
}

/// Asks one worker after the other, in the order of their connections' serials.
async fn list(fleet: &Fleet, query: &fleet::Query) -> Result<Vec<Row>, Problem> {
    let first = query.after.map_or(0, Serial::worker);
    let mut rows = Vec::new();
    for worker in first..fleet.workers() {
        let limit = query.limit - rows.len();
        if limit == 0 {
            break;
        }
        let query = fleet::Query { limit, ..query.clone() };
        rows.extend(fleet.list(worker, query).await.ok_or_else(no_answer)?);
    }
    Ok(rows)
}

async fn connection(
    State(fleet): State<Arc<Fleet>>,
    Named(id): Named<String>,
) -> Result<Json<ConnectionView>, Problem> {
    let view = match fleet.whose(&id) {
        Whose::Nobodys => None,
        Whose::Others(others, _) => others.owner(&id).await?.map(ConnectionView::from),
        Whose::Ours(serial) => {
            let query = fleet::Query { serial: Some(serial), limit: 1, ..fleet::Query::default() };
            let found = fleet.list(serial.worker(), query).await.ok_or_else(no_answer)?;
            found.into_iter().next().map(|row| own_view(&fleet, row))
        }
    };
    view.map(Json).ok_or_else(no_connection)
}

/// How a connection is to be closed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Farewell {
    code: Option<u16>,
    reason: Option<String>,
}

/// Closes a connection: both its peers get a Close with this code and reason.
async fn close(
    State(fleet): State<Arc<Fleet>>,
    Named(id): Named<String>,
    farewell: Result<Query<Farewell>, QueryRejection>,
) -> Result<StatusCode, Problem> {
    let Query(farewell) = farewell.map_err(|error| bad(error.body_text()))?;
    let code = match farewell.code {
        Some(code) => CloseCode::new(code).ok_or_else(|| bad(CLOSE_CODES))?,
        None => CloseCode::NORMAL,
    };
    let text = farewell.reason.unwrap_or_default().into_boxed_str();
    if text.len() > CLOSE_TEXT_BYTES {
        let detail = format!("reason has {} bytes; at most {CLOSE_TEXT_BYTES} fit", text.len());
        return Err(bad(detail));
    }
    match fleet.whose(&id) {
        Whose::Nobodys => Err(no_connection()),
        Whose::Others(others, proxy) => {
            handed_on(fleet.hand_on(others, proxy, &id, Said::Close(code, &text)).await?)
        }
        Whose::Ours(serial) => match fleet.close(serial, code, text).await {
            Some(true) => Ok(StatusCode::NO_CONTENT),
            Some(false) => Err(no_connection()),
            None => Err(no_answer()),
        },
    }
}

fn own_view(fleet: &Fleet, row: Row) -> ConnectionView {
    let [(messages_from_client, bytes_from_client), (messages_from_backend, bytes_from_backend)] =
        row.counts;
    ConnectionView {
        id: fleet.shared.connection_id(row.serial),
        proxy: fleet.shared.proxy_id.to_string(),
        backend: row.backend.to_string(),
        pool: row.pool.to_string(),
        route: row.route.to_string(),
        key: row.key.map(|key| key.to_string()),
        rooms: row.rooms.iter().map(Room::to_string).collect(),
        client: row.client.to_string(),
        since: unix_millis(row.since),
        traffic: Some(TrafficView {
            messages_from_client,
            bytes_from_client,
            messages_from_backend,
            bytes_from_backend,
            last_activity: unix_millis(row.last_activity),
        }),
    }
}

impl From<Owned> for ConnectionView {
    fn from(Owned { id, record }: Owned) -> Self {
        Self {
            proxy: id.split('.').next().unwrap_or_default().to_owned(),
            id,
            backend: record.backend.to_string(),
            pool: record.pool.to_string(),
            route: record.route.to_string(),
            key: record.key.map(|key| key.to_string()),
            rooms: record.rooms.iter().map(ToString::to_string).collect(),
            client: record.client.to_string(),
            since: record.opened_at,
            traffic: None,
        }
    }
}
