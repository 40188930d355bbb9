//! What the metrics page asks of whoever owns it: backends, workers, certificates, places.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use super::busy::Busy;
use crate::fleet::Fleet;
use crate::listen::Loads;
use crate::observe::labels::{BackendLabels, ListenerLabel};
use crate::observe::metrics::{BackendSample, Collect, WorkerSample};
use crate::pool::{Backend, Pool};

/// Those who own what is read only when the metrics are.
#[derive(Debug)]
pub(super) struct Owners {
    /// Set once the proxy is built, of which the metrics are a part.
    fleet: OnceLock<Arc<Fleet>>,
    loads: Arc<Loads>,
    busy: Arc<Busy>,
}

impl Owners {
    /// Those of a proxy that is not built yet.
    pub(super) fn new(loads: Arc<Loads>, busy: Arc<Busy>) -> Self {
        Self { fleet: OnceLock::new(), loads, busy }
    }

    /// Names the proxy; once.
    pub(super) fn are_of(&self, fleet: &Arc<Fleet>) {
        let _ = self.fleet.set(Arc::clone(fleet));
    }

    fn pools(&self) -> Vec<Arc<Pool>> {
        let Some(fleet) = self.fleet.get() else { return Vec::new() };
        fleet.shared.snapshot.load().pools_with_gone().cloned().collect()
    }
}

fn sample(pool: &Pool, backend: &Backend, ring_share: f64) -> BackendSample {
    BackendSample {
        labels: BackendLabels { pool: pool.name().to_owned(), backend: backend.id().to_owned() },
        in_service: backend.in_service(),
        draining: backend.is_draining(),
        connections: backend.connections() as u64,
        in_flight: backend.requests() as u64,
        ring_share,
    }
}

impl Collect for Arc<Owners> {
    fn backends(&self) -> Vec<BackendSample> {
        let mut samples: Vec<BackendSample> = Vec::new();
        for pool in self.pools() {
            let (pool, shares) = (&*pool, (0..).map(|index| pool.ring().share(index)));
            samples.extend(
                pool.backends().iter().zip(shares).map(|(one, share)| sample(pool, one, share)),
            );
            for gone in pool.departed().iter().map(|one| sample(pool, one, 0.0)) {
                match samples.iter_mut().find(|here| here.labels == gone.labels) {
                    // It has moved: one id is one series.
                    Some(here) => {
                        here.connections += gone.connections;
                        here.in_flight += gone.in_flight;
                    }
                    None => samples.push(gone),
                }
            }
        }
        samples
    }

    fn workers(&self) -> WorkerSample {
        WorkerSample {
            workers: self.loads.workers() as u64,
            least: self.loads.least().1 as u64,
            most: self.loads.most() as u64,
            busy: self.busy.total(),
            busiest: self.busy.busiest(),
        }
    }

    fn certificates(&self) -> Vec<(ListenerLabel, f64)> {
        let Some(fleet) = self.fleet.get() else { return Vec::new() };
        let now = SystemTime::now();
        let listeners = fleet.listeners.load();
        let left = listeners.iter().filter_map(|listener| {
            let (_, days) = listener.settings.first_to_expire(now)?;
            Some((ListenerLabel { listener: listener.label.to_string() }, days))
        });
        left.collect()
    }

    fn placed_keys(&self) -> Vec<(String, u64)> {
        let keys = |pool: &Arc<Pool>| {
            let departed = pool.departed();
            pool.backends().iter().chain(&departed).map(|backend| backend.keys() as u64).sum()
        };
        self.pools().iter().map(|pool| (pool.name().to_owned(), keys(pool))).collect()
    }

    fn sessions(&self) -> Vec<(String, u64)> {
        let sessions = |pool: &Arc<Pool>| pool.sessions().len() as u64;
        self.pools().iter().map(|pool| (pool.name().to_owned(), sessions(pool))).collect()
    }

    fn panicking(&self) -> Vec<(String, bool)> {
        let pools = self.pools();
        pools.iter().map(|pool| (pool.name().to_owned(), pool.is_panicking())).collect()
    }

    fn ring_disagreements(&self) -> Vec<(String, u64)> {
        let Some(fleet) = self.fleet.get() else { return Vec::new() };
        let snapshot = fleet.shared.snapshot.load();
        let differing = snapshot.pools().iter().filter_map(|pool| {
            Some((pool.name().to_owned(), fleet.rings_differ(pool)?.len() as u64))
        });
        differing.collect()
    }

    fn rooms(&self) -> (u64, u64) {
        let Some(fleet) = self.fleet.get() else { return (0, 0) };
        let (rooms, memberships) = fleet.shared.registry.rooms();
        (rooms as u64, memberships as u64)
    }

    fn descriptors(&self) -> (u64, u64) {
        crate::descriptors::limit()
    }
}
