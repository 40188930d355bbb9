//! Which connections are asked for, and what is told of one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::ws::connection::{Connection, Serial};
use crate::ws::rooms::Room;
use crate::ws::table::Table;

/// Which connections to tell of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    /// Of this pool only.
    pub(crate) pool: Option<String>,
    /// Of this key only.
    pub(crate) key: Option<String>,
    /// At this backend only.
    pub(crate) backend: Option<String>,
    /// The members of this room only.
    pub(crate) room: Option<Room>,
    /// This one only.
    pub(crate) serial: Option<Serial>,
    /// Only those behind it.
    pub(crate) after: Option<Serial>,
    /// At most so many.
    pub(crate) limit: usize,
}

impl Query {
    /// Whether it asks for a connection; one without a backend is not open yet.
    pub(crate) fn wants(&self, connection: &Connection, table: &Table) -> bool {
        let Some(backend) = connection.backend() else { return false };
        let facts = &connection.facts;
        let is = |wanted: &Option<String>, value: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == value)
        };
        is(&self.pool, Some(&facts.names.pool))
            && is(&self.key, facts.key.as_deref())
            && is(&self.backend, Some(&backend))
            && self.room.as_ref().is_none_or(|room| table.is_member(connection, room))
    }
}

/// What is told of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Its number.
    pub(crate) serial: Serial,
    /// Its route's name.
    pub(crate) route: Arc<str>,
    /// Its pool's name.
    pub(crate) pool: Arc<str>,
    /// Its backend's id.
    pub(crate) backend: Arc<str>,
    /// Its key.
    pub(crate) key: Option<Arc<str>>,
    /// The rooms that it is in.
    pub(crate) rooms: Vec<Room>,
    /// Its client's address.
    pub(crate) client: IpAddr,
    /// When its handshake came.
    pub(crate) since: SystemTime,
    /// Messages and payload bytes, by [`Direction`](crate::ws::relay::Direction).
    pub(crate) counts: [(u64, u64); 2],
    /// When a frame last went either way.
    pub(crate) last_activity: SystemTime,
}
