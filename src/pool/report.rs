//! What a pool hears of its backends, from checks, traffic and time; and what it tells of that.
//!
//! What it means for a backend, its verdict decides (`verdict.rs`). Here that is asked, under the
//! backend's own lock, and the observer told once what has changed: after it holds, without a lock.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::verdict::{Check, State, Transition};
use super::{Backend, BackendEvent, DrainCause, Event, PanicEvent, Pool};

impl Pool {
    /// Takes the outcome of a health check; `detail` says what failed.
    pub fn checked(
        &self,
        backend: &Arc<Backend>,
        check: Check,
        detail: &dyn fmt::Display,
        now: Instant,
    ) {
        if check != Check::Passed {
            backend.counters().check_failures.fetch_add(1, Ordering::Relaxed);
        }
        let mut is_refusing = false;
        let transition = backend.judge(|verdict| {
            let transition = verdict.checked(check, now);
            is_refusing = verdict.is_refusing();
            transition
        });
        self.tell(backend, transition, detail);
        if is_refusing && backend.connections() > 0 {
            self.drain(backend, DrainCause::Refusing);
        } else if check == Check::Passed && backend.in_service() {
            self.undrain(backend, DrainCause::Refusing);
        }
    }

    /// Takes a connect or a handshake of a client that `backend` failed; `detail` says how.
    ///
    /// An answer of any status is no failure, and one of the proxy's own
    /// ([`dial::is_own_failure`]) must not be reported.
    pub fn traffic_failed(&self, backend: &Arc<Backend>, detail: &dyn fmt::Display, now: Instant) {
        backend.counters().traffic_failures.fetch_add(1, Ordering::Relaxed);
        let transition = backend.judge(|verdict| verdict.traffic_failed(now));
        self.tell(backend, transition, detail);
    }

    /// Takes a handshake or a plain request of a client that `backend` answered.
    pub fn traffic_passed(&self, backend: &Arc<Backend>) {
        backend.judge(|verdict| {
            verdict.traffic_passed();
            None
        });
    }

    /// Lets time decide on `backend`; to be called about every second, with or without checks.
    pub fn tick(&self, backend: &Arc<Backend>, now: Instant) {
        let other = |one: &&Arc<Backend>| !Arc::ptr_eq(one, backend);
        let serves = |one: &Arc<Backend>| one.in_service() && !one.is_draining();
        // In a panic the checks are not believed, so nobody is given up for what they say; and who
        // refuses while his connections live is there.
        let another_serves = !self.is_panicking()
            && !Self::is_refusing(backend)
            && self.backends.iter().filter(other).any(serves);
        let transition = backend.judge(|verdict| verdict.tick(now, another_serves));
        self.tell(backend, transition, &"");
        // Other settings may have brought it about.
        self.tell_panic();
    }

    fn tell(
        &self,
        backend: &Arc<Backend>,
        transition: Option<Transition>,
        detail: &dyn fmt::Display,
    ) {
        let Some(transition) = transition else { return };
        (self.observer)(&Event::Backend(BackendEvent {
            pool: self.settings.name.clone(),
            backend: Arc::clone(backend),
            transition,
            detail: detail.to_string(),
        }));
        self.tell_panic();
        if transition.to == State::Lost {
            self.forget_announcements(backend);
        }
    }

    /// Tells of a panic that began or ended since this was last called.
    fn tell_panic(&self) {
        let panicking = {
            // Looked at under the lock: the last to come sees all that happened before.
            let mut told = self.told_panic.lock().unwrap_or_else(PoisonError::into_inner);
            let panicking = self.is_panicking();
            if std::mem::replace(&mut *told, panicking) == panicking {
                return;
            }
            panicking
        };
        (self.observer)(&Event::Panic(PanicEvent {
            pool: self.settings.name.clone(),
            panicking,
            in_service: self.backends.iter().filter(|backend| backend.in_service()).count(),
            backends: self.backends.len(),
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::super::tests::{backend_settings, bring_back, policy, pool, put_out, settings};
    use super::super::verdict::Cause;
    use super::super::{CheckKind, Observer};
    use super::*;

    /// A pool that keeps what its observer was told.
    fn observed(ids: &[&str]) -> (Arc<Pool>, Arc<Mutex<Vec<BackendEvent>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let backends = ids.iter().map(|id| backend_settings(id, 1)).collect();
        let observer: Observer = Arc::new(move |event| {
            if let Event::Backend(event) = event {
                tell.lock().unwrap().push(event.clone());
            }
        });
        (Pool::new(settings(backends, CheckKind::Tcp), observer), told)
    }

    #[test]
    fn changes_are_told_once_with_what_tipped_them() {
        let (pool, told) = observed(&["a", "b"]);
        let [a, _] = pool.backends() else { unreachable!() };
        let now = Instant::now();
        for number in 0..4 {
            pool.checked(a, Check::Failed, &format_args!("status 50{number}"), now);
        }
        pool.tick(a, now + Duration::from_secs(29));
        pool.tick(a, now + Duration::from_secs(30));
        pool.checked(a, Check::Passed, &"", now);
        pool.checked(a, Check::Passed, &"", now);
        (0..5).for_each(|_| pool.traffic_failed(a, &"refused", now));
        let told = told.lock().unwrap();
        let seen: Vec<_> = told
            .iter()
            .map(|event| (event.transition.to, event.transition.cause, event.detail.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (State::OutOfService, Cause::ChecksFailed, "status 502"),
                (State::Lost, Cause::OutTooLong, ""),
                (State::InService, Cause::ChecksPassed, ""),
                (State::OutOfService, Cause::TrafficFailed, "refused"),
            ]
        );
        assert!(told.iter().all(|event| event.pool == "p" && event.backend.id() == "a"));
        assert_eq!(a.counters().check_failures.load(Ordering::Relaxed), 4);
        assert_eq!(a.counters().traffic_failures.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_panic_is_told_when_it_begins_and_when_it_ends() {
        let told: Arc<Mutex<Vec<PanicEvent>>> = Arc::default();
        let tell = Arc::clone(&told);
        let observer: Observer = Arc::new(move |event| {
            if let Event::Panic(event) = event {
                tell.lock().unwrap().push(event.clone());
            }
        });
        let backends = ["a", "b", "c"].map(|id| backend_settings(id, 1));
        let mut settings = settings(backends.to_vec(), CheckKind::Tcp);
        settings.health.panic_threshold = 0.5;
        let pool = Pool::new(settings.clone(), observer);
        let now = Instant::now();
        let report = |pool: &Arc<Pool>, index: usize, check, times| {
            let backend = &pool.backends()[index];
            (0..times).for_each(|_| pool.checked(backend, check, &"", now));
        };
        let seen = || {
            let told = std::mem::take(&mut *told.lock().unwrap());
            told.iter().map(|event| (event.panicking, event.in_service)).collect::<Vec<_>>()
        };
        report(&pool, 0, Check::Failed, policy().fall);
        assert_eq!(seen(), []);
        report(&pool, 1, Check::Failed, policy().fall);
        report(&pool, 2, Check::Failed, policy().fall);
        assert_eq!(seen(), [(true, 1)], "once");
        report(&pool, 0, Check::Passed, policy().rise);
        assert_eq!(seen(), []);
        report(&pool, 1, Check::Passed, policy().rise);
        assert_eq!(seen(), [(false, 2)]);
        // Other settings count from the next second on.
        settings.health.panic_threshold = 0.9;
        let rebuilt = pool.rebuild(settings);
        rebuilt.tick(&rebuilt.backends()[0], now);
        assert_eq!(seen(), [(true, 2)]);
    }

    #[test]
    fn the_last_in_service_is_not_lost_by_time() {
        let (pool, _) = observed(&["a", "b"]);
        let [a, b] = pool.backends() else { unreachable!() };
        put_out(a);
        put_out(b);
        let later = Instant::now() + Duration::from_secs(600);
        pool.tick(a, later);
        assert_eq!(a.state(), State::OutOfService);
        bring_back(b);
        pool.tick(a, later);
        assert_eq!(a.state(), State::OutOfService, "only from now on another serves");
        pool.tick(a, later + Duration::from_secs(30));
        assert_eq!(a.state(), State::Lost);
    }

    #[test]
    fn traffic_that_goes_well_is_forgiving() {
        let pool = pool(&["a"]);
        let a = &pool.backends()[0];
        for _ in 0..3 {
            (0..4).for_each(|_| pool.traffic_failed(a, &"refused", Instant::now()));
            pool.traffic_passed(a);
        }
        assert!(a.in_service());
    }
}
