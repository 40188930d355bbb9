//! Pools and backends for the tests of the files beside this one.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::verdict::{Check, Policy};
use super::{
    Backend, BackendAddress, BackendSettings, Balance, CheckKind, HealthSettings, Pool,
    PoolSettings,
};

pub(super) fn backend_settings(id: &str, weight: u32) -> BackendSettings {
    BackendSettings {
        id: id.to_owned(),
        address: BackendAddress::Ip(SocketAddr::from(([127, 0, 0, 1], 9))),
        weight: NonZeroU32::new(weight).unwrap(),
    }
}

pub(super) fn settings(backends: Vec<BackendSettings>, kind: CheckKind) -> PoolSettings {
    PoolSettings {
        name: "p".to_owned(),
        balance: Balance::ConsistentHash,
        bounded_load: 0.0,
        slow_start: Duration::ZERO,
        handshake_rate: 0,
        max_connections: 0,
        connect_timeout: Duration::from_secs(2),
        handshake_timeout: Duration::from_secs(10),
        drain_timeout: Duration::from_secs(60),
        keepalive: Duration::from_secs(30),
        tls: None,
        backends,
        health: HealthSettings {
            kind,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            passive_fall: 5,
            lost_after: Duration::from_secs(30),
            panic_threshold: 0.0,
        },
    }
}

pub(super) fn weighted(backends: &[(&str, u32)]) -> Arc<Pool> {
    let backends = backends.iter().map(|(id, weight)| backend_settings(id, *weight)).collect();
    Pool::new(settings(backends, CheckKind::Tcp), Arc::new(|_| {}))
}

pub(super) fn pool(ids: &[&str]) -> Arc<Pool> {
    weighted(&ids.iter().map(|id| (*id, 1)).collect::<Vec<_>>())
}

pub(super) fn policy() -> Policy {
    Policy::from(&settings(Vec::new(), CheckKind::Tcp).health)
}

pub(super) fn backend(id: &str) -> Arc<Backend> {
    Arc::new(Backend::new(backend_settings(id, 1), policy(), Instant::now()))
}

fn check(backend: &Backend, check: Check, times: u32) {
    let now = Instant::now();
    for _ in 0..times {
        backend.judge(|verdict| verdict.checked(check, now));
    }
}

/// Puts a backend out of service, unless it is lost.
pub(super) fn put_out(backend: &Backend) {
    check(backend, Check::Failed, policy().fall);
}

pub(super) fn lose(backend: &Backend) {
    check(backend, Check::Unreachable, policy().fall);
    assert!(backend.is_lost());
}

pub(super) fn bring_back(backend: &Backend) {
    check(backend, Check::Passed, policy().rise);
    assert!(backend.in_service());
}
