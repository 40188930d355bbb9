//! What others own and is read only when the page is written: health, rings, places, loads.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::observe::labels::{BackendLabels, ListenerLabel, PoolLabel};

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
pub(super) struct Collected(pub(super) Box<dyn Collect>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_backends(&mut encoder)?;
        self.encode_pools(&mut encoder)?;
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
    fn encode_backends(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let backends = self.0.backends();
        let samples = |value: fn(&BackendSample) -> f64| {
            backends.iter().map(move |sample| (sample.labels.clone(), value(sample)))
        };
        gauges(
            encoder,
            "backend_in_service",
            "Whether a backend is in service",
            samples(|backend| f64::from(u8::from(backend.in_service))),
        )?;
        gauges(
            encoder,
            "backend_draining",
            "Whether a backend is drained, so that nothing new goes there",
            samples(|backend| f64::from(u8::from(backend.draining))),
        )?;
        gauges(
            encoder,
            "backend_connections",
            "Live WebSocket connections of a backend",
            samples(|backend| backend.connections as f64),
        )?;
        gauges(
            encoder,
            "backend_in_flight",
            "Plain requests and handshakes of a backend under way",
            samples(|backend| backend.in_flight as f64),
        )?;
        gauges(
            encoder,
            "backend_ring_share",
            "Share of the keys whose home a backend is",
            samples(|backend| backend.ring_share),
        )
    }

    fn encode_pools(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let keys = self.0.placed_keys().into_iter();
        gauges(
            encoder,
            "placed_keys",
            "Keys with live connections",
            keys.map(|(pool, keys)| (PoolLabel { pool }, keys as f64)),
        )?;
        let sessions = self.0.sessions().into_iter();
        gauges(
            encoder,
            "sessions",
            "Learnt sessions",
            sessions.map(|(pool, sessions)| (PoolLabel { pool }, sessions as f64)),
        )?;
        let panicking = self.0.panicking().into_iter();
        gauges(
            encoder,
            "pool_panicking",
            "Whether health is ignored because too few backends are in service",
            panicking.map(|(pool, is)| (PoolLabel { pool }, f64::from(u8::from(is)))),
        )?;
        let disagreements = self.0.ring_disagreements().into_iter();
        gauges(
            encoder,
            "ring_disagreements",
            "Other proxies whose backends of a pool are others than here",
            disagreements.map(|(pool, proxies)| (PoolLabel { pool }, proxies as f64)),
        )
    }

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
