//! What holds its own counters: looked up once, when it begins, and then counted without a look-up.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::Metrics;
use crate::observe::labels::{DirectionLabels, ListenerLabel, RequestLabels, RouteLabel};
use crate::observe::series::Series;
use crate::ws::driver::RelayCounts;
use crate::ws::relay::Direction;

impl Metrics {
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
