//! Every metric, once: its name, its unit and its meaning.
//!
//! A [`Metrics`] belongs to one proxy; nothing is a process global. What counts holds its own
//! handle (a shared atomic number), looked up when it is made and never per message. Gauges are
//! held: taken when a thing begins and given back when its guard is dropped, so that no path can
//! forget one. Labels are the names of the config and closed sets; never a key or an id. What has
//! names that left the config is forgotten with the next reload, once no connection bears them.
//!
//! What others own (health, rings, placements, the load of workers) is read from them when the
//! page is written: see [`Collect`].

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::labels::{
    BackendLabels, CloseLabels, ConnectionLabels, DirectionLabels, DrainLabels, ListenerLabel,
    LiveNames, Named, OutcomeLabel, PoolLabel, ReasonLabel, RefusedLabels, RequestLabels,
    RouteLabel, StateLabels,
};
use super::series::Series;
use crate::registry::redis::Counts;
use crate::ws::close::CloseReason;
use crate::ws::driver::RelayCounts;
use crate::ws::relay::Direction;

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
        metrics.registry.register_collector(Box::new(Collected(collect)));
        metrics
    }

    fn register_clients(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "client_connections_accepted",
            "Client connections accepted",
            self.accepted.clone(),
        );
        registry.register("client_connections", "Open client connections", self.clients.clone());
        registry.register(
            "requests",
            "Requests by the status of their answer, handshakes included",
            self.requests.clone(),
        );
        registry.register(
            "refused",
            "Requests and connections that the proxy itself refused",
            self.refused.clone(),
        );
    }

    fn register_connections(&mut self) {
        let registry = &mut self.registry;
        registry.register("connections", "Live WebSocket connections", self.connections.clone());
        registry.register(
            "connections_opened",
            "WebSocket connections opened",
            self.connections_opened.clone(),
        );
        registry.register(
            "handshake_duration_seconds",
            "From the head of a WebSocket handshake to its 101",
            self.handshake_seconds.clone(),
        );
        registry.register("closes", "WebSocket connections ended", self.closes.clone());
        registry.register(
            "cut",
            "WebSocket connections cut with something left unsaid",
            self.cut.clone(),
        );
        registry.register("messages", "Data messages relayed", self.messages.clone());
        registry.register(
            "message_bytes",
            "Payload bytes of data messages relayed, as on the wire",
            self.bytes.clone(),
        );
        registry.register(
            "relay_stalls",
            "Writes that a peer did not take at once, so that reading stopped",
            self.stalls.clone(),
        );
        registry.register(
            "injected_messages",
            "Messages of others written to clients",
            self.injected.clone(),
        );
        registry.register(
            "undeliverable_messages",
            "Messages of others that could not be queued",
            self.undeliverable.clone(),
        );
    }

    fn register_rest(&mut self) {
        let registry = &mut self.registry;
        registry.register("config_reloads", "Reloads of the config", self.reloads.clone());
        registry.register(
            "config_last_reload_successful",
            "Whether the last reload of the config took effect",
            self.last_reload_successful.clone(),
        );
        registry.register(
            "config_last_reload_success_timestamp_seconds",
            "When the config in force was read, in Unix time",
            self.last_reload_success.clone(),
        );
        registry.register(
            "backend_state_changes",
            "Changes of a backend's state",
            self.backend_changes.clone(),
        );
        registry.register("drains", "Causes for drains of backends", self.drains.clone());
        registry.register(
            "placement_conflicts",
            "Keys kept here although other proxies have them at a backend that can't be reached",
            self.placement_conflicts.clone(),
        );
        registry.register(
            "own_failures",
            "Connects to backends that failed for want of a port or a descriptor",
            self.own_failures.clone(),
        );
        registry.register(
            "access_log_dropped_lines",
            "Lines of the access log that its writer was too slow for, or could not write",
            self.access_log_dropped.clone(),
        );
        registry.register(
            "log_dropped_lines",
            "Log events that standard error was too slow for, or that could not be written there",
            super::stderr::dropped(),
        );
        registry.register(
            "build",
            "The running version",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
    }

    /// Shows what is counted of a registry that is shared.
    pub fn register_registry(&mut self, counts: &Counts) {
        let registry = &mut self.registry;
        registry.register(
            "registry_up",
            "Whether the registry answers and messages arrive by it",
            counts.up.clone(),
        );
        registry.register(
            "registry_outages",
            "How many times the registry was lost",
            counts.outages.clone(),
        );
        registry.register(
            "registry_waits",
            "Handshakes that came before their subscriptions stood, by what became of the wait",
            counts.waits.clone(),
        );
        registry.register(
            "registry_messages",
            "Messages that came by the registry",
            counts.messages.clone(),
        );
        registry.register(
            "registry_dropped_messages",
            "Messages that came by the registry and were not handed on",
            counts.dropped.clone(),
        );
        registry.register(
            "registry_subscriptions",
            "Keys and rooms whose subscription stands",
            counts.subscriptions.clone(),
        );
        registry.register(
            "registry_pending",
            "Connections whose change is to be written to the registry",
            counts.pending.clone(),
        );
        registry.register(
            "registry_lag_seconds",
            "How long the oldest change that was written last to the registry had waited",
            counts.lag.clone(),
        );
        registry.register(
            "registry_writes",
            "Commands that wrote connections and rooms to the registry",
            counts.writes.clone(),
        );
        registry.register(
            "registry_refused_writes",
            "Commands that were to write to the registry and were refused",
            counts.refused_writes.clone(),
        );
        registry.register(
            "registry_rewrites",
            "Times that the whole table was written to the registry",
            counts.rewrites.clone(),
        );
        registry.register(
            "registry_swept",
            "Dead proxies whose entries were removed from the registry",
            counts.swept.clone(),
        );
    }

    /// The page that Prometheus reads.
    ///
    /// # Errors
    ///
    /// A metric can't be written as text: a fault of the program.
    pub fn page(&self, format: PageFormat) -> Result<String, fmt::Error> {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
        Ok(match format {
            PageFormat::OpenMetrics => page,
            PageFormat::Text => as_text(&page),
        })
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

    /// The counters of a route's relays.
    pub fn relay_counts(&self, route: &str) -> Arc<RelayCounts> {
        let of = |family: &Series<DirectionLabels, Counter>| {
            Direction::ALL.map(|direction| {
                family.of(DirectionLabels { route: route.to_owned(), direction: direction.label() })
            })
        };
        Arc::new(RelayCounts {
            messages: of(&self.messages),
            bytes: of(&self.bytes),
            stalls: of(&self.stalls),
            injected: self.injected.of(RouteLabel { route: route.to_owned() }),
        })
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

    /// The counters of a listener.
    pub fn of_listener(&self, listener: &str) -> ListenerCounts {
        let label = ListenerLabel { listener: listener.to_owned() };
        ListenerCounts {
            accepted: self.accepted.of(label.clone()),
            clients: self.clients.of(label),
        }
    }

    /// The counters of a route's handshakes.
    pub fn handshake_counts(&self, route: &str) -> HandshakeCounts {
        let (route, code) = (route.to_owned(), StatusCode::SWITCHING_PROTOCOLS.as_u16());
        HandshakeCounts {
            switched: self.requests.of(RequestLabels { route: route.clone(), code }),
            seconds: self.handshake_seconds.of(RouteLabel { route }),
        }
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

/// The counters of one listener.
#[derive(Debug)]
pub struct ListenerCounts {
    accepted: Counter,
    clients: Gauge,
}

impl ListenerCounts {
    /// Counts a client connection, until the guard is dropped.
    pub fn accepted(&self) -> Held {
        self.accepted.inc();
        Held::new(self.clients.clone())
    }
}

/// What a route counts of the handshakes that come to a 101.
#[derive(Debug)]
pub struct HandshakeCounts {
    /// Of its answers, those with a 101.
    pub switched: Counter,
    seconds: Histogram,
}

impl HandshakeCounts {
    /// Notes how long a handshake took.
    pub fn shook_hands(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
    }
}

/// What a page is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFormat {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    Text,
}

impl PageFormat {
    /// As it is called on the web.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The older text format knows neither `info` nor an end, and families are called as their samples.
fn as_text(page: &str) -> String {
    let kinds = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let kinds: HashMap<&str, &str> = kinds.collect();
    let mut text = String::with_capacity(page.len() + 1024);
    for line in page.lines().filter(|line| *line != "# EOF") {
        let comment = line.strip_prefix("# ").and_then(|rest| {
            let (word, rest) = rest.split_once(' ')?;
            let (family, rest) = rest.split_once(' ')?;
            Some((word, family, rest))
        });
        match comment {
            Some((word, family, rest)) => {
                let (suffix, kind) = match kinds.get(family) {
                    Some(&"counter") => ("_total", "counter"),
                    Some(&"info") => ("_info", "gauge"),
                    Some(kind) => ("", *kind),
                    None => ("", "untyped"),
                };
                let rest = if word == "TYPE" { kind } else { rest };
                text.push_str(&format!("# {word} {family}{suffix} {rest}"));
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
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

/// A gauge that counts the guards of it that live.
#[derive(Debug)]
pub struct Held(Gauge);

impl Held {
    /// Counts one more, until it is dropped.
    pub fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What a backend shows of itself.
#[derive(Clone, Debug)]
pub struct BackendSample {
    /// Whose it is.
    pub labels: BackendLabels,
    /// It is in service.
    pub in_service: bool,
    /// It is drained.
    pub draining: bool,
    /// Live WebSocket connections.
    pub connections: u64,
    /// Plain requests and handshakes under way.
    pub in_flight: u64,
    /// Its share of the ring, from 0 to 1.
    pub ring_share: f64,
}

/// What the workers show of themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerSample {
    /// How many there are.
    pub workers: u64,
    /// Client connections of the least loaded.
    pub least: u64,
    /// Client connections of the most loaded.
    pub most: u64,
    /// How long all of them together have been busy.
    pub busy: Duration,
    /// Which part of its time the busiest was busy of late, from 0 to 1.
    pub busiest: f64,
}

/// Those who own what is read only when a page is written.
pub trait Collect: fmt::Debug + Send + Sync {
    /// Each backend of each pool.
    fn backends(&self) -> Vec<BackendSample>;
    /// The workers.
    fn workers(&self) -> WorkerSample;
    /// How long the certificates of each listener with TLS are valid, in days.
    fn certificates(&self) -> Vec<(ListenerLabel, f64)>;
    /// Keys with live connections, by pool.
    fn placed_keys(&self) -> Vec<(String, u64)>;
    /// Learnt sessions, by pool.
    fn sessions(&self) -> Vec<(String, u64)>;
    /// Whether a pool has so few backends in service that it does not go by health.
    fn panicking(&self) -> Vec<(String, bool)>;
    /// How many other proxies have other backends in a pool; nothing where there is no registry.
    fn ring_disagreements(&self) -> Vec<(String, u64)>;
    /// Rooms with a member here, and members of all of them.
    fn rooms(&self) -> (u64, u64);
    /// The most open files, and how many connections that allows.
    fn descriptors(&self) -> (u64, u64);
}

/// Where there is nothing to read: no proxy runs.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Collect for Nothing {
    fn backends(&self) -> Vec<BackendSample> {
        Vec::new()
    }

    fn workers(&self) -> WorkerSample {
        WorkerSample::default()
    }

    fn certificates(&self) -> Vec<(ListenerLabel, f64)> {
        Vec::new()
    }

    fn panicking(&self) -> Vec<(String, bool)> {
        Vec::new()
    }

    fn ring_disagreements(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    fn rooms(&self) -> (u64, u64) {
        (0, 0)
    }

    fn placed_keys(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    fn sessions(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    fn descriptors(&self) -> (u64, u64) {
        (0, 0)
    }
}

#[derive(Debug)]
struct Collected(Box<dyn Collect>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let backends = self.0.backends();
        let samples = |value: fn(&BackendSample) -> f64| {
            backends.iter().map(move |sample| (sample.labels.clone(), value(sample)))
        };
        gauges(
            &mut encoder,
            "backend_in_service",
            "Whether a backend is in service",
            samples(|backend| f64::from(u8::from(backend.in_service))),
        )?;
        gauges(
            &mut encoder,
            "backend_draining",
            "Whether a backend is drained, so that nothing new goes there",
            samples(|backend| f64::from(u8::from(backend.draining))),
        )?;
        gauges(
            &mut encoder,
            "backend_connections",
            "Live WebSocket connections of a backend",
            samples(|backend| backend.connections as f64),
        )?;
        gauges(
            &mut encoder,
            "backend_in_flight",
            "Plain requests and handshakes of a backend under way",
            samples(|backend| backend.in_flight as f64),
        )?;
        gauges(
            &mut encoder,
            "backend_ring_share",
            "Share of the keys whose home a backend is",
            samples(|backend| backend.ring_share),
        )?;
        let keys = self.0.placed_keys().into_iter();
        gauges(
            &mut encoder,
            "placed_keys",
            "Keys with live connections",
            keys.map(|(pool, keys)| (PoolLabel { pool }, keys as f64)),
        )?;
        let sessions = self.0.sessions().into_iter();
        gauges(
            &mut encoder,
            "sessions",
            "Learnt sessions",
            sessions.map(|(pool, sessions)| (PoolLabel { pool }, sessions as f64)),
        )?;
        let panicking = self.0.panicking().into_iter();
        gauges(
            &mut encoder,
            "pool_panicking",
            "Whether health is ignored because too few backends are in service",
            panicking.map(|(pool, is)| (PoolLabel { pool }, f64::from(u8::from(is)))),
        )?;
        let disagreements = self.0.ring_disagreements().into_iter();
        gauges(
            &mut encoder,
            "ring_disagreements",
            "Other proxies whose backends of a pool are others than here",
            disagreements.map(|(pool, proxies)| (PoolLabel { pool }, proxies as f64)),
        )?;
        gauges(
            &mut encoder,
            "certificate_days_left",
            "Days until the first certificate of a listener expires",
            self.0.certificates().into_iter(),
        )?;
        self.encode_process(&mut encoder)
    }
}

impl Collected {
    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let workers = self.0.workers();
        let (descriptors, connections) = self.0.descriptors();
        let (rooms, memberships) = self.0.rooms();
        let busy = encoder.encode_descriptor(
            "worker_busy_seconds",
            "Time that workers spent on anything but waiting",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(workers.busy.as_secs_f64()).encode(busy)?;
        let busiest = encoder.encode_descriptor(
            "worker_busy_ratio_most",
            "Share of its time that the busiest worker was busy, in the last 5 seconds",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(workers.busiest).encode(busiest)?;
        for (name, help, value) in [
            ("workers", "Worker threads", workers.workers),
            (
                "worker_connections_least",
                "Client connections of the least loaded worker",
                workers.least,
            ),
            (
                "worker_connections_most",
                "Client connections of the most loaded worker",
                workers.most,
            ),
            ("rooms", "Rooms with a member", rooms),
            ("room_memberships", "Members of all rooms together", memberships),
            ("descriptor_limit", "The most open files of this process", descriptors),
            (
                "connection_capacity",
                "Relayed connections that the descriptor limit allows",
                connections,
            ),
        ] {
            let metric = ConstGauge::new(value as f64);
            let place = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            metric.encode(place)?;
        }
        Ok(())
    }
}

fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (L, f64)>,
) -> Result<(), fmt::Error> {
    let mut family: MetricEncoder<'_> =
        encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
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

    #[test]
    fn the_older_format_has_the_same_samples_under_their_own_names() {
        let metrics = Metrics::new(Box::new(Nothing));
        metrics.refuse("all", "no_backend");
        let page = metrics.page(PageFormat::OpenMetrics).unwrap();
        let text = metrics.page(PageFormat::Text).unwrap();
        let samples = |page: &str| {
            let samples = page.lines().filter(|line| !line.starts_with('#'));
            samples.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(samples(&page), samples(&text));
        for line in [
            "# TYPE steadfast_refused_total counter",
            "# HELP steadfast_refused_total Requests and connections that the proxy itself refused.",
            "# TYPE steadfast_build_info gauge",
            "# TYPE steadfast_workers gauge",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        assert!(!text.contains("EOF"));
    }
}
