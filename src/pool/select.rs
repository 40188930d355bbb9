//! Which backends may have something new, and which of them gets it.
//!
//! Everything that has a say comes together here: health, or its absence in a panic; the limit of
//! connections; where no key decides, the pool's rule (`balance.rs`); and where one does, the
//! ring, whose walk passes over who is full, over its bound of load, or not warm enough for this
//! key after coming back. Whoever has none of that left for him is not sent away for it: bounds
//! and slow starts are wishes, a limit and health are not.
//!
//! Reads atomics of each backend, and allocates nothing on a ring without bounded load. The clock
//! is asked only where there is a slow start.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::backend::Slot;
use super::balance::{self, Candidate, WHOLE};
use super::{Backend, Balance, NoBackend, Pool};

/// How far a walk looks for a backend with all that could be wished for. With bounded load one
/// step is the rule; a long walk means a key that everybody wants.
const STEPS: usize = 64;

/// What a backend is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// A connection: it needs room.
    Connection,
    /// A plain request: it goes where a connection would, but also to one that is full.
    Request,
}

impl Pool {
    /// Whether so few backends are in service that health is not believed.
    #[expect(clippy::cast_precision_loss, reason = "a ring holds 1,024 backends")]
    pub fn is_panicking(&self) -> bool {
        let threshold = self.settings.health.panic_threshold;
        if threshold <= 0.0 {
            return false;
        }
        let healthy = self.backends.iter().filter(|backend| backend.in_service()).count();
        (healthy as f64) < threshold * self.backends.len() as f64
    }

    /// Chooses a backend for a connection and takes its place there, but none of `tried`.
    ///
    /// `position` is that of the key, or where there is none any number, evenly from all of them.
    pub(super) fn admit(&self, position: u64, tried: &[Arc<Backend>]) -> Option<Slot> {
        let most = self.settings.max_connections;
        let chosen = self.choose(position, tried, Demand::Connection)?;
        if let Some(slot) = chosen.slot(most) {
            return Some(slot);
        }
        // Others have filled it at this moment; each turn of this costs a backend.
        let mut passed = tried.to_vec();
        passed.push(chosen);
        loop {
            let chosen = self.choose(position, &passed, Demand::Connection)?;
            match chosen.slot(most) {
                Some(slot) => return Some(slot),
                None => passed.push(chosen),
            }
        }
    }

    /// Chooses a backend, but none of `tried`; `position` as for [`admit`](Self::admit).
    pub(super) fn choose(
        &self,
        position: u64,
        tried: &[Arc<Backend>],
        demand: Demand,
    ) -> Option<Arc<Backend>> {
        let open = Open { pool: self, panicking: self.is_panicking(), tried, demand };
        // In an outage everybody comes again and again: don't walk the whole ring for nothing.
        if !self.backends.iter().any(|backend| open.serves(backend)) {
            return None;
        }
        let chosen = match self.settings.balance {
            Balance::ConsistentHash => open.on_ring(position),
            _ => open.by_rule(position),
        };
        chosen.cloned()
    }

    /// Why nothing could be chosen.
    pub(super) fn no_backend(&self) -> NoBackend {
        let pool = self.settings.name.clone();
        let open = Open {
            pool: self,
            panicking: self.is_panicking(),
            tried: &[],
            demand: Demand::Request,
        };
        if self.backends.iter().any(|backend| open.serves(backend)) {
            NoBackend::Full { pool }
        } else {
            NoBackend::OutOfService { pool }
        }
    }
}

/// What is open to one choice.
struct Open<'a> {
    pool: &'a Pool,
    panicking: bool,
    tried: &'a [Arc<Backend>],
    demand: Demand,
}

impl<'a> Open<'a> {
    fn serves(&self, backend: &Backend) -> bool {
        backend.in_service() || (self.panicking && !backend.is_lost())
    }

    fn is_untried(&self, backend: &Arc<Backend>) -> bool {
        self.serves(backend) && !self.tried.iter().any(|other| Arc::ptr_eq(backend, other))
    }

    fn has_room(&self, backend: &Backend) -> bool {
        backend.has_room(self.pool.settings.max_connections)
    }

    /// How far the slow start of each has come.
    fn warmth(&self) -> impl Fn(&Backend) -> u32 + use<> {
        let slow_start = self.pool.settings.slow_start;
        let now = (!slow_start.is_zero()).then(Instant::now);
        move |backend| {
            let since = now.and_then(|now| backend.warming(now));
            since.map_or(WHOLE, |since| balance::warmth(since, slow_start))
        }
    }

    /// All backends, as a rule sees them.
    fn candidates(
        &self,
        load: impl Fn(&Backend) -> usize,
        warmth: impl Fn(&Backend) -> u32,
        eligible: impl Fn(&Arc<Backend>) -> bool,
    ) -> Vec<Candidate> {
        let settings = &self.pool.settings.backends;
        let all = self.pool.backends.iter().zip(settings);
        all.map(|(backend, settings)| Candidate {
            weight: u64::from(settings.weight.get()) * u64::from(warmth(backend)),
            load: load(backend),
            eligible: eligible(backend),
        })
        .collect()
    }

    fn by_rule(&self, random: u64) -> Option<&'a Arc<Backend>> {
        let eligible = |one: &Arc<Backend>| {
            self.is_untried(one) && (self.demand == Demand::Request || self.has_room(one))
        };
        let candidates = self.candidates(Backend::load, self.warmth(), eligible);
        let rotation = || self.pool.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match self.pool.settings.balance {
            Balance::LeastConnections => balance::least_connections(&mut rotation(), &candidates),
            Balance::RandomTwo => balance::random_two(&candidates, random),
            Balance::RoundRobin | Balance::ConsistentHash => rotation().next(&candidates),
        };
        self.pool.backends.get(index?)
    }

    fn on_ring(&self, position: u64) -> Option<&'a Arc<Backend>> {
        let walk = || {
            let walk = self.pool.ring.walk(position);
            walk.filter_map(|index| Some((index, self.pool.backends.get(index)?)))
        };
        let may = |one: &Arc<Backend>| self.is_untried(one) && self.has_room(one);
        let bounds = Bounds::of(self);
        let warmth = self.warmth();
        let wished = |&(index, one): &(usize, &Arc<Backend>)| {
            may(one) && bounds.allow(index, one) && balance::is_warm_for(position, warmth(one))
        };
        let found = walk().take(STEPS).find(wished).or_else(|| match bounds.0 {
            Some(_) => self.least_loaded(position, may),
            None => walk().find(|(_, one)| may(one)),
        });
        let found = found.or_else(|| {
            let full_too = self.demand == Demand::Request;
            full_too.then(|| walk().find(|(_, one)| self.is_untried(one))).flatten()
        });
        found.map(|(_, backend)| backend)
    }

    fn least_loaded(
        &self,
        position: u64,
        may: impl Fn(&Arc<Backend>) -> bool,
    ) -> Option<(usize, &'a Arc<Backend>)> {
        let candidates = self.candidates(Backend::slots, |_| WHOLE, may);
        // Equals are taken from a place of the key's own.
        let start = usize::try_from(balance::scattered(position)).unwrap_or(0);
        let index = balance::least_loaded(&candidates, start)?;
        Some((index, self.pool.backends.get(index)?))
    }
}

/// Up to which load a backend gets new keys; `None`: up to any.
struct Bounds<'a>(Option<BoundsOf<'a>>);

struct BoundsOf<'a> {
    pool: &'a Pool,
    total: usize,
    weights: u64,
}

impl<'a> Bounds<'a> {
    /// Shares the load of those that serve among them.
    fn of(open: &Open<'a>) -> Self {
        if open.pool.settings.bounded_load <= 0.0 {
            return Self(None);
        }
        let all = open.pool.backends.iter().zip(&open.pool.settings.backends);
        let serving = all.filter(|(backend, _)| open.serves(backend));
        let sums = serving.fold((0, 0), |(total, weights), (backend, settings)| {
            (total + backend.slots(), weights + u64::from(settings.weight.get()))
        });
        Self(Some(BoundsOf { pool: open.pool, total: sums.0, weights: sums.1 }))
    }

    #[expect(clippy::cast_precision_loss, reason = "no machine has 2^53 connections")]
    fn allow(&self, index: usize, backend: &Backend) -> bool {
        let Some(BoundsOf { pool, total, weights }) = &self.0 else { return true };
        let weight = pool.settings.backends.get(index).map_or(1, |one| one.weight.get());
        let bound = balance::bound(pool.settings.bounded_load, *total, u64::from(weight), *weights);
        (backend.slots() as f64) < bound
    }
}
