//! Every metric, once: its name, its unit and its meaning.
//!
//! A [`Metrics`] belongs to one proxy; nothing is a process global. What counts holds its own
//! handle (a shared atomic number), looked up when it is made and never per message: see
//! `handles.rs`. Gauges are held: taken when a thing begins and given back when its guard is
//! dropped, so that no path can forget one. Labels are the names of the config and closed sets; never
//! a key or an id. What has names that left the config is forgotten with the next reload, once no
//! connection bears them.
//!
//! What others own (health, rings, placements, the load of workers) is read from them when the
//! page is written: see [`Collect`]. Names and meanings stand in `register.rs` and `collect.rs`; the
//! formats of the page in `page.rs`.

mod collect;
mod handles;
mod page;
mod register;

use std::hash::Hash;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use self::collect::{BackendSample, Collect, Nothing, WorkerSample};
pub use self::handles::{HandshakeCounts, Held, ListenerCounts};
pub use self::page::PageFormat;

use super::labels::{
    CloseLabels, ConnectionLabels, DirectionLabels, DrainLabels, ListenerLabel, LiveNames, Named,
    OutcomeLabel, PoolLabel, ReasonLabel, RefusedLabels, RequestLabels, RouteLabel, StateLabels,
};
use super::series::Series;
use crate::ws::close::CloseReason;

/// All counters of one proxy.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Client connections accepted, by listener.
    pub accepted: Series<ListenerLabel, Counter>,
    /// Open client connections, by listener.
    pub clients: Series<ListenerLabel, Gauge>,
    /// Live WebSocket connections.
    pub connections: Series<ConnectionLabels, Gauge>,
    /// WebSocket connections ever opened.
    pub connections_opened: Series<ConnectionLabels, Counter>,
    /// From a handshake's head to the 101.
    pub handshake_seconds: Series<RouteLabel, Histogram>,
    /// Answers to requests, handshakes included.
    pub requests: Series<RequestLabels, Counter>,
    /// Requests and connections that the proxy itself refused.
    pub refused: Series<RefusedLabels, Counter>,
    /// Ends of WebSocket connections.
    pub closes: Series<CloseLabels, Counter>,
    /// Connections that were cut with something left unsaid.
    pub cut: Series<RouteLabel, Counter>,
    messages: Series<DirectionLabels, Counter>,
    bytes: Series<DirectionLabels, Counter>,
    stalls: Series<DirectionLabels, Counter>,
    injected: Series<RouteLabel, Counter>,
    /// Messages of others that could not be queued.
    pub undeliverable: Series<ReasonLabel, Counter>,
    /// Changes of backends' states.
    pub backend_changes: Series<StateLabels, Counter>,
    /// Causes for which backends were drained.
    pub drains: Series<DrainLabels, Counter>,
    /// Keys kept although other proxies have them at a backend that comes first.
    pub placement_conflicts: Series<PoolLabel, Counter>,
    /// Failures of the proxy's own to connect: no port, no descriptor.
    pub own_failures: Counter,
    /// Lines of the access log that were dropped.
    pub access_log_dropped: Counter,
    reloads: Series<OutcomeLabel, Counter>,
    last_reload_successful: Gauge,
    last_reload_success: Gauge,
}

fn handshake_histogram() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
}

impl Metrics {
    /// All metrics at zero. `collect` is asked for what others own whenever a page is written.
    pub fn new(collect: Box<dyn Collect>) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("steadfast"),
            accepted: Series::default(),
            clients: Series::default(),
            connections: Series::default(),
            connections_opened: Series::default(),
            handshake_seconds: Series::new(handshake_histogram),
            requests: Series::default(),
            refused: Series::default(),
            closes: Series::default(),
            cut: Series::default(),
            messages: Series::default(),
            bytes: Series::default(),
            stalls: Series::default(),
            injected: Series::default(),
            undeliverable: Series::default(),
            backend_changes: Series::default(),
            drains: Series::default(),
            placement_conflicts: Series::default(),
            own_failures: Counter::default(),
            access_log_dropped: Counter::default(),
            reloads: Series::default(),
            last_reload_successful: Gauge::default(),
            last_reload_success: Gauge::default(),
        };
        metrics.last_reload_successful.set(1);
        metrics.register_clients();
        metrics.register_connections();
        metrics.register_rest();
        metrics.registry.register_collector(Box::new(collect::Collected(collect)));
        metrics
    }

    /// Forgets what is called by names that are neither in the config nor on a connection. A name
    /// that comes back later begins at zero.
    ///
    /// To be called when all that is in force has its counters, and by who makes them: what is
    /// looked up beside it may be forgotten while it is in use.
    pub fn forget_all_but(&self, live: &LiveNames) {
        fn forget<L: Named + Eq + Hash, M: Clone>(series: &Series<L, M>, live: &LiveNames) {
            series.retain(|labels| live.have(labels));
        }
        forget(&self.accepted, live);
        forget(&self.clients, live);
        forget(&self.connections, live);
        forget(&self.connections_opened, live);
        forget(&self.handshake_seconds, live);
        forget(&self.requests, live);
        forget(&self.refused, live);
        forget(&self.closes, live);
        forget(&self.cut, live);
        forget(&self.messages, live);
        forget(&self.bytes, live);
        forget(&self.stalls, live);
        forget(&self.injected, live);
        forget(&self.backend_changes, live);
        forget(&self.drains, live);
        forget(&self.placement_conflicts, live);
    }

    /// How many live WebSockets there are of which labels.
    pub fn live_connections(&self) -> Vec<(ConnectionLabels, usize)> {
        let mut live = Vec::new();
        self.connections.for_each(|labels, gauge| match usize::try_from(gauge.get()) {
            Ok(0) | Err(_) => {}
            Ok(connections) => live.push((labels.clone(), connections)),
        });
        live
    }

    /// Notes that a WebSocket connection of a route has ended.
    pub fn closed(&self, route: &str, reason: CloseReason, cut: bool) {
        let route = route.to_owned();
        if cut {
            self.cut.of(RouteLabel { route: route.clone() }).inc();
        }
        let labels = CloseLabels {
            route,
            by: reason.by().label(),
            reason: reason.label(),
            code: code_label(reason.code()),
        };
        self.closes.of(labels).inc();
    }

    /// Notes that a request was refused; `route` is empty where none matched.
    pub fn refuse(&self, route: &str, reason: &'static str) {
        let labels = RefusedLabels { route: route.to_owned(), reason };
        self.refused.of(labels).inc();
    }

    /// Notes that the config was read anew, and whether it took effect.
    pub fn reloaded(&self, successful: bool, at: SystemTime) {
        let outcome = if successful { "success" } else { "failure" };
        self.reloads.of(OutcomeLabel { outcome }).inc();
        self.last_reload_successful.set(i64::from(successful));
        if successful {
            self.took_effect(at);
        }
    }

    /// Notes when the config in force took effect.
    pub fn took_effect(&self, at: SystemTime) {
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.last_reload_success.set(i64::try_from(at).unwrap_or(i64::MAX));
    }

    /// Notes a message of others that could not be queued.
    pub fn undeliverable(&self, reason: &'static str) {
        self.undeliverable.of(ReasonLabel { reason }).inc();
    }
}

/// A close code as a label. Codes are chosen by peers: only those that RFC 6455 and its registry
/// name stand for themselves.
fn code_label(code: Option<u16>) -> &'static str {
    match code {
        None => "none",
        Some(1000) => "1000",
        Some(1001) => "1001",
        Some(1002) => "1002",
        Some(1003) => "1003",
        Some(1007) => "1007",
        Some(1008) => "1008",
        Some(1009) => "1009",
        Some(1010) => "1010",
        Some(1011) => "1011",
        Some(1012) => "1012",
        Some(1013) => "1013",
        Some(1014) => "1014",
        Some(3000..4000) => "3xxx",
        Some(4000..5000) => "4xxx",
        Some(_) => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_peers_choose_does_not_grow_the_page() {
        let metrics = Metrics::new(Box::new(Nothing));
        for code in 0..=u16::MAX {
            metrics.closed("all", CloseReason::ClientClosed(Some(code)), false);
            metrics.closed("all", CloseReason::BackendClosed(Some(code)), false);
        }
        let page = metrics.page(PageFormat::OpenMetrics).unwrap();
        let closes = page.lines().filter(|line| line.starts_with("steadfast_closes_total"));
        assert_eq!(closes.count(), 2 * 15);
    }
}
