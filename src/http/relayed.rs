//! A WebSocket while it is relayed: the driver, and all that counts as long as it lives.
//!
//! Most of what a proxy with many idle clients keeps in memory is this future, once for each. So
//! it is written by hand and holds nothing that it could look up: an async block would keep every
//! local of its beginning to its end.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::SystemTime;

use tracing::debug;

use super::session::OfWebSocket;
use super::snapshot::Live;
use super::{Accepted, Context};
use crate::observe::access_log::{ConnectionLine, Rest, unix_millis};
use crate::observe::labels::ConnectionLabels;
use crate::observe::metrics::Held;
use crate::pool::Placement;
use crate::pool::backend::ConnectionGauge;
use crate::ws::driver::{Driver, Ended};
use crate::ws::relay::Direction;
use crate::ws::table::Entry;

/// One live WebSocket; resolves when it is over and that was written down.
pub(super) struct Relayed {
    driver: Driver<Placement>,
    context: Rc<Context>,
    guards: Guards,
    _shown: Held,
}

/// What a WebSocket holds as long as it lives.
pub(super) struct Guards {
    /// Its place in its route.
    #[expect(dead_code, reason = "held, not read")]
    pub(super) live: Live,
    /// Its backend has it.
    pub(super) counted: ConnectionGauge,
    /// Its session lives as long as it does.
    #[expect(dead_code, reason = "held, not read")]
    pub(super) session: Option<OfWebSocket>,
    /// Its client's socket counts.
    pub(super) accepted: Rc<Accepted>,
    /// What its line tells of its handshake, if the access log was on then.
    pub(super) asked: Option<Rest>,
}

impl Relayed {
    /// Counts a connection that has just been opened on both sides, and has `drive` relay it.
    pub(super) fn begin(
        context: Rc<Context>,
        entry: Entry,
        guards: Guards,
        drive: impl FnOnce(Entry) -> Driver<Placement>,
    ) -> Self {
        let names = &entry.connection().facts.names;
        let labels = ConnectionLabels {
            route: names.route.to_string(),
            pool: names.pool.to_string(),
            backend: guards.counted.backend().id().to_owned(),
        };
        let metrics = &context.shared.metrics;
        metrics.connections_opened.of(labels.clone()).inc();
        let id = |serial| context.shared.connection_id(serial);
        debug!(connection = id(entry.connection().serial), backend = labels.backend, "opened");
        let shown = Held::new(metrics.connections.of(labels));
        Self { driver: drive(entry), context, guards, _shown: shown }
    }

    /// The one place that says how a connection ended.
    fn write_down(&self, ended: &Ended) {
        let Ended { reason, cut, entry } = ended;
        let shared = &self.context.shared;
        let connection = entry.connection();
        let names = &connection.facts.names;
        shared.metrics.closed(&names.route, *reason, *cut);
        let id = shared.connection_id(connection.serial);
        let backend = self.guards.counted.backend().id();
        let (messages_from_client, bytes_from_client) = connection.counts(Direction::FromClient);
        let (messages_from_backend, bytes_from_backend) = connection.counts(Direction::FromBackend);
        let since = connection.facts.since.time();
        let last_activity = self.context.table.time_of(connection.last_activity()).max(since);
        let (since, now) = (unix_millis(since), unix_millis(SystemTime::now()));
        let line = ConnectionLine {
            kind: "connection",
            time: now,
            proxy: &shared.proxy_id,
            connection: &id,
            client: connection.facts.client.ip(),
            listener: &self.guards.accepted.listener.label,
            route: &names.route,
            pool: &names.pool,
            backend,
            since,
            last_activity: unix_millis(last_activity),
            duration_ms: now.saturating_sub(since),
            by: reason.by().label(),
            reason: reason.label(),
            code: reason.code(),
            cut: *cut,
            messages_from_client,
            bytes_from_client,
            messages_from_backend,
            bytes_from_backend,
        };
        shared.access_log.record(&line, self.guards.asked.as_ref());
        debug!(
            connection = id,
            route = line.route,
            backend,
            by = line.by,
            reason = line.reason,
            code = line.code,
            cut,
            messages_from_client,
            bytes_from_client,
            messages_from_backend,
            bytes_from_backend,
            "closed: {reason}",
        );
    }
}

impl Future for Relayed {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<()> {
        let ended = ready!(Pin::new(&mut self.driver).poll(context));
        self.write_down(&ended);
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of tasks are multiples of 128 bytes; 104 of them are tokio's and the count of tasks.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn its_task_fits_in_512_bytes() {
        let size = size_of::<Relayed>();
        assert!((281..=408).contains(&size), "{size} bytes");
    }
}
