//! What each metric is called, and what it means: the names under which counters are shown.
//!
//! What is read only when the page is written has its names in `collect.rs`.

use prometheus_client::metrics::info::Info;

use super::Metrics;
use crate::observe::stderr;
use crate::registry::redis::Counts;

impl Metrics {
    pub(super) fn register_clients(&mut self) {
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

    pub(super) fn register_connections(&mut self) {
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

    pub(super) fn register_rest(&mut self) {
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
            stderr::dropped(),
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
}
