//! The admin API's answers, as far as the commands read them. What they don't know of a later
//! version is passed over.

use serde::{Deserialize, Serialize};

use super::print::counted;

/// `GET /v1/pools`.
#[derive(Debug, Deserialize)]
pub(super) struct Pools {
    pub(super) pools: Vec<Pool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) panicking: bool,
    pub(super) backends: Vec<Backend>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Backend {
    pub(super) id: String,
    pub(super) address: String,
    pub(super) state: String,
    pub(super) connections: usize,
    pub(super) keys: usize,
    pub(super) in_flight: usize,
    pub(super) ring_share: f64,
    /// `None`: it is not drained.
    #[serde(default)]
    pub(super) drain: Option<Drain>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Drain {
    pub(super) by: Vec<String>,
    pub(super) total: usize,
    pub(super) left: usize,
    /// In Unix milliseconds.
    pub(super) until: u64,
}

/// Another proxy, as `elsewhere` in `GET /v1/connections` names it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Peer {
    pub(super) proxy: String,
    /// The address of its admin API, if others know one.
    pub(super) admin: Option<String>,
}

/// Which proxy it is, and whom it shares its registry with, as `GET /v1/status` says.
#[derive(Debug, Deserialize)]
pub(super) struct Identity {
    #[serde(default)]
    pub(super) proxy: String,
    /// `own`: it is alone.
    #[serde(default = "alone")]
    pub(super) registry: String,
}

fn alone() -> String {
    "own".to_owned()
}

/// `GET /v1/status`.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) proxy: String,
    pub(super) version: String,
    /// In Unix milliseconds.
    pub(super) started: u64,
    pub(super) ready: bool,
    pub(super) workers: usize,
    pub(super) connections: usize,
    pub(super) listeners: Vec<Listener>,
    pub(super) routes: Vec<Route>,
    pub(super) last_reload: Option<Reload>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Listener {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) tls: bool,
    pub(super) clients: usize,
}

#[derive(Debug, Deserialize)]
pub(super) struct Route {
    pub(super) name: String,
    pub(super) pool: String,
    pub(super) connections: usize,
}

#[derive(Debug, Deserialize)]
pub(super) struct Reload {
    /// In Unix milliseconds.
    pub(super) at: u64,
    pub(super) error: Option<String>,
}

/// One of `GET /v1/connections`.
#[derive(Debug, Deserialize)]
pub(super) struct Connection {
    pub(super) id: String,
    pub(super) backend: String,
    pub(super) pool: String,
    pub(super) route: String,
    pub(super) key: Option<String>,
    pub(super) client: String,
    /// In Unix milliseconds.
    pub(super) since: u64,
    /// `None`: another proxy has it.
    #[serde(flatten)]
    pub(super) traffic: Option<Traffic>,
}

/// What a connection has carried.
#[derive(Debug, Deserialize)]
pub(super) struct Traffic {
    pub(super) messages_from_client: u64,
    pub(super) bytes_from_client: u64,
    pub(super) messages_from_backend: u64,
    pub(super) bytes_from_backend: u64,
    /// In Unix milliseconds.
    pub(super) last_activity: u64,
}

/// `POST /v1/reload` and `POST /v1/plan`.
#[derive(Debug, Deserialize)]
pub(super) struct Changes {
    pub(super) changes: Vec<Change>,
    pub(super) needs_restart: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Change {
    part: String,
    name: String,
    change: String,
    #[serde(default)]
    keys: Vec<String>,
    pub(super) connections: usize,
    pub(super) fate: Option<String>,
}

impl Changes {
    /// Each change on a line; what has to wait for a restart on a last one.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.changes.iter().map(Change::line).collect();
        if !self.needs_restart.is_empty() {
            let keys = self.needs_restart.join(", ");
            lines.push(format!("{keys} changed; that takes effect when the process starts anew"));
        }
        lines
    }
}

impl Change {
    fn line(&self) -> String {
        let Self { part, name, change, keys, connections, fate } = self;
        let name = if name.is_empty() { String::new() } else { format!(" {name}") };
        let what = match (change.as_str(), keys.is_empty()) {
            ("changed", false) => format!("{} changed", keys.join(", ")),
            _ => change.clone(),
        };
        let whom = match fate {
            Some(fate) => format!("; {} {fate}", counted(*connections, "connection")),
            None => String::new(),
        };
        format!("{part}{name}: {what}{whom}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_is_told_with_whom_it_touches() {
        let changes: Changes = serde_json::from_value(json!({
            "changes": [
                { "part": "server", "name": "", "change": "changed", "keys": ["log", "admin"],
                  "connections": 0, "fate": null },
                { "part": "listener", "name": "127.0.0.1:80", "change": "added",
                  "connections": 0, "fate": null },
                { "part": "backend", "name": "rooms/a", "change": "removed",
                  "connections": 1, "fate": "drained" },
            ],
            "needs_restart": ["server.workers"],
        }))
        .unwrap();
        let lines = [
            "server: log, admin changed",
            "listener 127.0.0.1:80: added",
            "backend rooms/a: removed; 1 connection drained",
            "server.workers changed; that takes effect when the process starts anew",
        ];
        assert_eq!(changes.lines(), lines);
    }
}
