//! Which backends may have something new, and which of them gets it.
//!
//! Everything that has a say comes together here: health, or its absence in a panic; a drain, which
//! holds in a panic too; the limit of
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

    /// Whether any backend may have something new, full or not.
    pub fn serves(&self) -> bool {
        let tried = &[];
        let (panicking, demand) = (self.is_panicking(), Demand::Request);
        let open = Open { pool: self, panicking, tried, demand };
        self.backends.iter().any(|backend| open.serves(backend))
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
        if self.serves() { NoBackend::Full { pool } } else { NoBackend::OutOfService { pool } }
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
        let is_fit = backend.in_service() || (self.panicking && !backend.is_lost());
        is_fit && !backend.is_draining()
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::super::tests::{backend_settings, bring_back, lose, put_out, settings};
    use super::super::{CheckKind, Placement, PoolSettings, Stay};
    use super::*;

    fn tuned(backends: &[(&str, u32)], tune: impl FnOnce(&mut PoolSettings)) -> Arc<Pool> {
        let backends = backends.iter().map(|(id, weight)| backend_settings(id, *weight));
        let mut settings = settings(backends.collect(), CheckKind::Tcp);
        tune(&mut settings);
        Pool::new(settings, Arc::new(|_| {}))
    }

    /// A live connection of a key: its place, and its slot.
    fn join(pool: &Arc<Pool>, key: &str) -> Option<(Placement, Slot)> {
        let mut placement = pool.place(key, None).ok()?;
        let slot = placement.slot()?;
        placement.establish().unwrap();
        Some((placement, slot))
    }

    fn home(pool: &Pool, key: &str) -> String {
        pool.home(key).unwrap().id().to_owned()
    }

    fn slots(pool: &Pool) -> Vec<usize> {
        pool.backends().iter().map(|backend| backend.slots()).collect()
    }

    fn keys() -> impl Iterator<Item = String> {
        (0..).map(|number| format!("room-{number}"))
    }

    #[test]
    fn bounded_load_holds_while_it_fills_and_moves_few_keys() {
        let pool = tuned(&[("a", 1), ("b", 1), ("c", 2)], |pool| pool.bounded_load = 1.25);
        let mut open = Vec::new();
        let mut away = 0;
        for (total, key) in keys().take(2000).enumerate() {
            let (placement, slot) = join(&pool, &key).unwrap();
            away += usize::from(placement.backend().id() != home(&pool, &key));
            for (backend, weight) in pool.backends().iter().zip([1, 1, 2]) {
                let bound = balance::bound(1.25, total, weight, 4);
                assert!(backend.slots() as f64 <= bound, "{total}: {:?}", slots(&pool));
            }
            open.push((placement, slot));
        }
        assert!(away < 200, "{away} keys are away from home");
    }

    #[test]
    fn a_crowd_of_one_key_stays_and_new_keys_pass_it_over() {
        let pool = tuned(&[("a", 1), ("b", 1)], |pool| pool.bounded_load = 1.25);
        let crowd: Vec<_> = (0..50).map(|_| join(&pool, "crowd").unwrap()).collect();
        let at = crowd[0].0.backend();
        assert!(crowd.iter().all(|(placement, _)| Arc::ptr_eq(placement.backend(), at)));
        let others: Vec<_> = keys().take(20).map(|key| join(&pool, &key).unwrap()).collect();
        assert!(others.iter().all(|(placement, _)| !Arc::ptr_eq(placement.backend(), at)));
        // A request of a new key goes where its connection would.
        let request = pool.lookup("new", None).unwrap();
        assert!(!Arc::ptr_eq(request.backend(), at));
    }

    #[test]
    fn bounds_are_shared_among_those_in_service() {
        let pool = tuned(&[("a", 1), ("b", 1), ("c", 1)], |pool| pool.bounded_load = 1.1);
        put_out(&pool.backends()[0]);
        let _open: Vec<_> = keys().take(100).map(|key| join(&pool, &key).unwrap()).collect();
        let slots = slots(&pool);
        assert_eq!(slots[0], 0);
        assert!(slots[1].abs_diff(50) <= 5 && slots[2].abs_diff(50) <= 5, "{slots:?}");
    }

    #[test]
    fn a_walk_that_finds_nobody_under_the_bound_takes_the_least_loaded() {
        let pool = tuned(&[("a", 1), ("b", 1)], |pool| pool.bounded_load = 1.01);
        // Whoever may have it is over its bound: the other one was tried in vain.
        let mut open: Vec<_> = (0..10).map(|_| join(&pool, "k").unwrap()).collect();
        let full = Arc::clone(open[0].0.backend());
        let other = pool.backends().iter().find(|one| !Arc::ptr_eq(one, &full)).unwrap();
        let slot = pool.admit(7, std::slice::from_ref(other)).unwrap();
        assert!(Arc::ptr_eq(slot.backend(), &full));
        open.clear();
    }

    #[test]
    fn new_keys_pass_a_full_backend_over_and_nobody_else_does() {
        let pool = tuned(&[("a", 1), ("b", 1)], |pool| pool.max_connections = 2);
        let first = join(&pool, "k").unwrap();
        let second = join(&pool, "k").unwrap();
        let mut third = pool.place("k", None).unwrap();
        assert!(third.slot().is_none(), "it lives there");
        drop(third);
        let away: Vec<_> = keys().take(2).map(|key| join(&pool, &key).unwrap()).collect();
        assert!(away.iter().all(|one| !Arc::ptr_eq(one.0.backend(), first.0.backend())));
        let full = NoBackend::Full { pool: "p".to_owned() };
        assert_eq!(pool.place("more", None).unwrap_err(), full);
        assert_eq!(pool.any_for_connection().unwrap_err(), full);
        assert!(pool.lookup("more", None).is_ok() && pool.any().is_ok());
        drop((first, second));
        assert!(join(&pool, "more").is_some());
        assert_eq!(slots(&pool).iter().sum::<usize>(), 2);
    }

    #[test]
    fn a_request_passes_a_full_backend_over_while_another_has_room() {
        let pool = tuned(&[("a", 1), ("b", 1)], |pool| pool.max_connections = 1);
        let full = join(&pool, "k").unwrap();
        for key in keys().take(20) {
            assert!(!Arc::ptr_eq(pool.lookup(&key, None).unwrap().backend(), full.0.backend()));
        }
        assert!(Arc::ptr_eq(pool.lookup("k", None).unwrap().backend(), full.0.backend()));
    }

    #[test]
    fn a_choice_takes_its_place_at_once() {
        let pool = tuned(&[("a", 1), ("b", 1)], |pool| pool.max_connections = 1);
        let mut at_a = keys().filter(|key| home(&pool, key) == "a");
        // Both before either connects.
        let mut placements = [(); 2].map(|()| pool.place(&at_a.next().unwrap(), None).unwrap());
        let ids = placements.each_ref().map(|placement| placement.backend().id().to_owned());
        assert_eq!(ids, ["a", "b"]);
        assert!(placements.iter_mut().all(|placement| placement.slot().is_some()));
    }

    #[test]
    fn a_slot_goes_along_when_a_connection_goes_on() {
        let pool = tuned(&[("a", 1), ("b", 1)], |pool| pool.max_connections = 1);
        let mut placement = pool.place("k", None).unwrap();
        let slot = placement.slot().unwrap();
        placement.go_on().unwrap();
        drop(slot);
        let slot = placement.slot().unwrap();
        assert!(Arc::ptr_eq(slot.backend(), placement.backend()));
        assert_eq!(slots(&pool).iter().sum::<usize>(), 1);
        assert_eq!(placement.go_on(), Err(Stay::NoneLeft));
    }

    #[test]
    fn a_backend_that_came_back_gets_a_part_of_its_new_keys_and_all_if_it_is_alone() {
        let pool = tuned(&[("a", 1), ("b", 1)], |pool| pool.slow_start = Duration::from_secs(3600));
        let at_home = |pool: &Arc<Pool>| {
            let at_a = keys().take(2000).filter(|key| home(pool, key) == "a");
            let all: Vec<_> = at_a.collect();
            let there = |key: &&String| pool.place(key, None).unwrap().backend().id() == "a";
            let stayed = all.iter().filter(there).count();
            stayed as f64 / all.len() as f64
        };
        assert_eq!(at_home(&pool), 1.0, "at the start there is no slow start");
        put_out(&pool.backends()[0]);
        assert_eq!(at_home(&pool), 0.0);
        bring_back(&pool.backends()[0]);
        let share = at_home(&pool);
        assert!((share - 0.1).abs() < 0.04, "{share}");
        assert_eq!(at_home(&pool), share, "the same keys each time");
        put_out(&pool.backends()[1]);
        assert_eq!(at_home(&pool), 1.0, "there is nobody else");
    }

    #[test]
    fn a_slow_start_is_a_small_weight_for_the_other_rules() {
        for balance in [Balance::LeastConnections, Balance::RoundRobin, Balance::RandomTwo] {
            let pool = tuned(&[("a", 1), ("b", 1)], |pool| {
                pool.balance = balance;
                pool.slow_start = Duration::from_secs(3600);
            });
            put_out(&pool.backends()[0]);
            bring_back(&pool.backends()[0]);
            let _open: Vec<_> =
                (0..110).map(|_| pool.any_for_connection().unwrap().slot().unwrap()).collect();
            let slots = slots(&pool);
            assert!(slots[0].abs_diff(10) <= 8, "{balance:?}: {slots:?}");
        }
    }

    #[test]
    fn every_rule_goes_on_to_each_of_the_others_once() {
        for balance in [Balance::LeastConnections, Balance::RoundRobin, Balance::RandomTwo] {
            let pool = tuned(&[("a", 1), ("b", 5), ("c", 2), ("d", 1)], |pool| {
                pool.balance = balance;
            });
            lose(&pool.backends()[3]);
            for _ in 0..10 {
                for mut choice in [pool.any().unwrap(), pool.any_for_connection().unwrap()] {
                    let mut visited = vec![choice.backend().id().to_owned()];
                    while choice.go_on().is_ok() {
                        visited.push(choice.backend().id().to_owned());
                    }
                    visited.sort_unstable();
                    assert_eq!(visited, ["a", "b", "c"], "{balance:?}");
                }
            }
            let loads: usize = pool.backends().iter().map(|backend| backend.load()).sum();
            assert_eq!(loads, 0, "what was chosen and not used is given back");
        }
    }

    #[test]
    fn requests_under_way_count_from_their_choice_on() {
        let pool = tuned(&[("a", 1), ("b", 1)], |pool| pool.balance = Balance::LeastConnections);
        let mut choices: Vec<_> = (0..10).map(|_| pool.any().unwrap()).collect();
        let loads = |pool: &Pool| pool.backends().iter().map(|one| one.load()).collect::<Vec<_>>();
        assert_eq!(loads(&pool), [5, 5]);
        let requests: Vec<_> = choices.iter_mut().map(super::super::Choice::request).collect();
        drop(choices);
        assert_eq!(loads(&pool), [5, 5]);
        drop(requests);
        assert_eq!(loads(&pool), [0, 0]);
    }

    #[test]
    fn in_a_panic_all_but_the_lost_are_chosen() {
        let pool = tuned(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)], |pool| {
            pool.health.panic_threshold = 0.5;
        });
        let served = || {
            let mut served = HashMap::new();
            for key in keys().take(200) {
                let backend = pool.place(&key, None).unwrap().backend().id().to_owned();
                *served.entry(backend).or_insert(0) += 1;
            }
            served
        };
        put_out(&pool.backends()[0]);
        lose(&pool.backends()[1]);
        assert!(!pool.is_panicking(), "two of four is not less than half");
        assert_eq!(served().len(), 2);
        put_out(&pool.backends()[2]);
        assert!(pool.is_panicking());
        let in_panic = served();
        assert!(in_panic.len() == 3 && !in_panic.contains_key("b"), "{in_panic:?}");
        // With all out it is as if all were in, but for the lost one.
        put_out(&pool.backends()[3]);
        assert_eq!(served().len(), 3);
    }

    #[test]
    fn in_a_panic_nobody_is_lost_by_time() {
        let pool = tuned(&[("a", 1), ("b", 1), ("c", 1)], |pool| {
            pool.health.panic_threshold = 0.5;
        });
        put_out(&pool.backends()[0]);
        put_out(&pool.backends()[1]);
        let later = Instant::now() + Duration::from_secs(600);
        pool.tick(&pool.backends()[0], later);
        assert!(!pool.backends()[0].is_lost());
        bring_back(&pool.backends()[1]);
        pool.tick(&pool.backends()[0], later + Duration::from_secs(600));
        assert!(pool.backends()[0].is_lost());
    }
}
