//! One backend: what is known of it while the proxy runs.
//!
//! The config says who it is and where; the rest is found out: the verdict on it, what it has at
//! the moment, what it has failed at. All of that must outlive a reload, so a backend is shared by
//! every pool that is built of it, and its settings are the part that can be exchanged.
//!
//! What every request reads is an atomic. The verdict is behind a lock of its own, held for a
//! few instructions by whoever reports something. Counts of what is there at the moment are
//! guards: taken when the thing begins, given back when they are dropped, however it ends.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::drain::{Drain, DrainCause, Drains};
use super::spacing::Spacing;
use super::verdict::{Policy, State, Transition, Verdict};
use super::{BackendAddress, BackendSettings};

/// One backend of a pool, shared by all that have to do with it.
pub struct Backend {
    id: Arc<str>,
    settings: ArcSwap<BackendSettings>,
    verdict: Mutex<Verdict>,
    /// The state of `verdict`, written only while that is locked.
    state: AtomicU8,
    connections: AtomicUsize,
    /// Connections, and those that are to become one: chosen for this backend, still without 101.
    slots: AtomicUsize,
    requests: AtomicUsize,
    /// Of `requests`, those that are no handshakes.
    plain: AtomicUsize,
    /// Plain requests that were given to this backend and are not sent yet.
    waiting: AtomicUsize,
    keys: AtomicUsize,
    /// The time from which on `warm_since` counts.
    born: Instant,
    /// When it came into service, in milliseconds from `born` and one; 0: it always was.
    warm_since: AtomicU64,
    spacing: Mutex<Spacing>,
    drains: Drains,
    counters: Counters,
}

/// What happened to a backend since the proxy started; these only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections begun.
    pub connections: AtomicU64,
    /// Plain requests and handshakes begun.
    pub requests: AtomicU64,
    /// Connects and handshakes of clients that the backend failed.
    pub traffic_failures: AtomicU64,
    /// Health checks that it failed.
    pub check_failures: AtomicU64,
    /// Health checks that the proxy could not make, for want of a port or a descriptor.
    pub checks_not_made: AtomicU64,
}

impl Backend {
    /// Makes a backend that is in service, as if it always had been, and has nothing yet.
    pub fn new(settings: BackendSettings, policy: Policy, now: Instant) -> Self {
        Self {
            id: settings.id.as_str().into(),
            settings: ArcSwap::from_pointee(settings),
            verdict: Mutex::new(Verdict::new(policy, now)),
            state: AtomicU8::new(State::InService as u8),
            connections: AtomicUsize::new(0),
            slots: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            plain: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            keys: AtomicUsize::new(0),
            born: now,
            warm_since: AtomicU64::new(0),
            spacing: Mutex::default(),
            drains: Drains::default(),
            counters: Counters::default(),
        }
    }

    /// Makes a backend that came into service just now.
    pub(super) fn newcomer(settings: BackendSettings, policy: Policy, now: Instant) -> Self {
        let backend = Self::new(settings, policy, now);
        backend.warm_since.store(1, Ordering::Relaxed);
        backend
    }

    /// Exchanges the settings, whose id is the same, and the policy; verdict and counts stay.
    pub(super) fn reconfigure(&self, settings: &BackendSettings, policy: Policy) {
        debug_assert_eq!(*self.id, *settings.id, "a backend keeps its id");
        self.settings.store(Arc::new(settings.clone()));
        self.with_verdict(|verdict| verdict.set_policy(policy));
    }

    /// Lets `event` change the verdict, and tells how the state changed, if it did.
    ///
    /// The verdict is locked while `event` runs.
    pub(super) fn judge(
        &self,
        event: impl FnOnce(&mut Verdict) -> Option<Transition>,
    ) -> Option<Transition> {
        self.with_verdict(|verdict| {
            let transition = event(verdict)?;
            if transition.to == State::InService {
                let millis = verdict.since().saturating_duration_since(self.born).as_millis();
                let since = u64::try_from(millis).unwrap_or(u64::MAX).saturating_add(1);
                self.warm_since.store(since, Ordering::Relaxed);
            }
            self.state.store(transition.to as u8, Ordering::Release);
            Some(transition)
        })
    }

    fn with_verdict<T>(&self, then: impl FnOnce(&mut Verdict) -> T) -> T {
        // The verdict is whole after each of its functions: a panic elsewhere leaves it usable.
        then(&mut self.verdict.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a place for a connection that is to come, if fewer than `most` are taken; 0 is no
    /// limit.
    pub fn slot(self: &Arc<Self>, most: usize) -> Option<Slot> {
        let more = |slots| (most == 0 || slots < most).then_some(slots + 1);
        let taken = self.slots.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Slot { backend: Arc::clone(self), live: false })
    }

    /// Counts a plain request, from when it is sent, until the guard is dropped.
    pub fn request(self: &Arc<Self>) -> RequestGauge {
        self.plain.fetch_add(1, Ordering::Relaxed);
        self.begun(true)
    }

    /// Counts a handshake, from when it is sent, until the guard is dropped.
    pub fn handshake(self: &Arc<Self>) -> RequestGauge {
        self.begun(false)
    }

    fn begun(self: &Arc<Self>, plain: bool) -> RequestGauge {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        RequestGauge { backend: Arc::clone(self), plain }
    }

    /// Counts a plain request that is on its way here, until the guard is dropped.
    pub(super) fn waiting(self: &Arc<Self>) -> Waiting {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(Arc::clone(self))
    }

    /// Takes the next place among the handshakes that this backend is sent, no two closer than
    /// `gap`; `None` if that is more than `patience` away. A place that is not used stays empty.
    pub fn next_handshake(&self, gap: Duration, patience: Duration) -> Option<Instant> {
        let mut spacing = self.spacing.lock().unwrap_or_else(PoisonError::into_inner);
        spacing.take(Instant::now(), gap, patience)
    }

    /// Counts a key that is placed here until the guard is dropped.
    pub(super) fn key(self: &Arc<Self>) -> KeyGauge {
        self.keys.fetch_add(1, Ordering::Relaxed);
        KeyGauge(Arc::clone(self))
    }

    /// The id, which never changes.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The id, for who keeps it.
    pub fn shared_id(&self) -> Arc<str> {
        Arc::clone(&self.id)
    }

    /// Where it is now.
    pub fn address(&self) -> BackendAddress {
        self.settings.load().address.clone()
    }

    /// What the config says of it now.
    pub fn settings(&self) -> Arc<BackendSettings> {
        self.settings.load_full()
    }

    /// Its state; reads one atomic.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            state if state == State::InService as u8 => State::InService,
            state if state == State::OutOfService as u8 => State::OutOfService,
            _ => State::Lost,
        }
    }

    /// Whether new keys may go here.
    pub fn in_service(&self) -> bool {
        self.state() == State::InService
    }

    /// Whether it is no longer in the config.
    pub(super) fn has_left(&self) -> bool {
        self.drain().is_some_and(|drain| drain.causes().any(|cause| cause == DrainCause::Removed))
    }

    /// Whether nothing may stay here.
    pub fn is_lost(&self) -> bool {
        self.state() == State::Lost
    }

    /// Whether nothing new may go here, because it is taken out of service on purpose; reads one
    /// atomic.
    pub fn is_draining(&self) -> bool {
        self.drains.is_on()
    }

    /// What it is drained for, since when, and how far that has come; `None` if it is not.
    pub fn drain(&self) -> Option<Drain> {
        self.drains.now()
    }

    pub(super) fn drains(&self) -> &Drains {
        &self.drains
    }

    /// The word for how it is, in the HTTP API and for a person.
    pub fn condition(&self) -> &'static str {
        match self.state() {
            State::Lost => State::Lost.as_str(),
            _ if self.is_draining() => "draining",
            state => state.as_str(),
        }
    }

    /// When its state was reached; takes the verdict's lock.
    pub fn since(&self) -> Instant {
        self.with_verdict(|verdict| verdict.since())
    }

    /// Connections that it has now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    /// Connections that it has now, with those whose handshake is under way.
    pub fn slots(&self) -> usize {
        self.slots.load(Ordering::Relaxed)
    }

    /// Whether another connection may come, where `most` may be; 0 is no limit.
    pub(super) fn has_room(&self, most: usize) -> bool {
        most == 0 || self.slots() < most
    }

    /// All that it is busy with: connections, handshakes and plain requests, each once.
    pub fn load(&self) -> usize {
        let requests = self.plain.load(Ordering::Relaxed) + self.waiting.load(Ordering::Relaxed);
        self.slots() + requests
    }

    /// How long it has been in service, as far as a slow start goes; `None`: since ever.
    pub(super) fn warming(&self, now: Instant) -> Option<Duration> {
        let since = self.warm_since.load(Ordering::Relaxed).checked_sub(1)?;
        let since = self.born + Duration::from_millis(since);
        Some(now.saturating_duration_since(since))
    }

    /// Plain requests and handshakes in flight.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Keys placed here.
    pub fn keys(&self) -> usize {
        self.keys.load(Ordering::Relaxed)
    }

    /// What happened to it so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, state) = (&self.id, self.state());
        formatter.debug_struct("Backend").field("id", id).field("state", &state).finish()
    }
}

/// A place at a backend for one connection; dropping it gives it back.
#[derive(Debug)]
pub struct Slot {
    backend: Arc<Backend>,
    live: bool,
}

impl Slot {
    /// Counts the connection that it was taken for, from its 101.
    pub fn connection(mut self) -> ConnectionGauge {
        self.backend.counters.connections.fetch_add(1, Ordering::Relaxed);
        self.backend.connections.fetch_add(1, Ordering::Relaxed);
        self.live = true;
        ConnectionGauge(self)
    }

    /// Whose it is.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // In this order: whoever sees the connection gone finds its place free.
        self.backend.slots.fetch_sub(1, Ordering::Relaxed);
        self.backend.connections.fetch_sub(usize::from(self.live), Ordering::Release);
    }
}

/// A connection that a backend has; dropping it takes it off the count.
#[derive(Debug)]
pub struct ConnectionGauge(Slot);

impl ConnectionGauge {
    /// The backend that has it.
    pub fn backend(&self) -> &Arc<Backend> {
        self.0.backend()
    }
}

/// A request or a handshake in flight; dropping it takes it off the count.
#[derive(Debug)]
pub struct RequestGauge {
    backend: Arc<Backend>,
    plain: bool,
}

impl Drop for RequestGauge {
    fn drop(&mut self) {
        self.backend.requests.fetch_sub(1, Ordering::Relaxed);
        self.backend.plain.fetch_sub(usize::from(self.plain), Ordering::Relaxed);
    }
}

/// A plain request on its way to a backend; dropping it takes it off the count.
#[derive(Debug)]
pub(super) struct Waiting(Arc<Backend>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A key that is placed at a backend; dropping it takes it off the count.
#[derive(Debug)]
pub(super) struct KeyGauge(Arc<Backend>);

impl KeyGauge {
    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for KeyGauge {
    fn drop(&mut self) {
        self.0.keys.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{backend, policy};
    use super::*;
    use crate::pool::verdict::Check;

    #[test]
    fn gauges_give_back_what_they_took() {
        let backend = backend("a");
        let one = backend.slot(0).unwrap().connection();
        let two = backend.slot(0).unwrap().connection();
        let request = backend.request();
        let key = backend.key();
        assert_eq!((backend.connections(), backend.requests(), backend.keys()), (2, 1, 1));
        drop((one, request, key));
        assert_eq!((backend.connections(), backend.requests(), backend.keys()), (1, 0, 0));
        drop(two);
        assert_eq!(backend.connections(), 0);
        assert_eq!(backend.counters().connections.load(Ordering::Relaxed), 2);
        assert_eq!(backend.counters().requests.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_a_backend_is_busy_with_counts_once() {
        let backend = backend("a");
        let slot = backend.slot(1).unwrap();
        assert!(backend.slot(1).is_none() && !backend.has_room(1) && backend.has_room(2));
        let handshake = backend.handshake();
        let waiting = backend.waiting();
        assert_eq!((backend.load(), backend.slots(), backend.connections()), (2, 1, 0));
        let connection = slot.connection();
        drop(handshake);
        let request = backend.request();
        drop(waiting);
        assert_eq!((backend.load(), backend.slots(), backend.connections()), (2, 1, 1));
        drop((connection, request));
        assert_eq!((backend.load(), backend.slots(), backend.connections()), (0, 0, 0));
    }

    #[test]
    fn only_a_backend_that_came_back_warms_up() {
        let backend = backend("a");
        assert_eq!(backend.warming(Instant::now()), None);
        let now = Instant::now();
        for _ in 0..policy().fall {
            backend.judge(|verdict| verdict.checked(Check::Failed, now));
        }
        let back = now + Duration::from_secs(5);
        for _ in 0..policy().rise {
            backend.judge(|verdict| verdict.checked(Check::Passed, back));
        }
        let warming = backend.warming(back + Duration::from_secs(3)).unwrap();
        assert!(warming.abs_diff(Duration::from_secs(3)) <= Duration::from_millis(1));
        let settings = super::super::tests::backend_settings("b", 1);
        let newcomer = Backend::newcomer(settings, policy(), now);
        assert_eq!(newcomer.warming(now), Some(Duration::ZERO));
    }

    #[test]
    fn the_state_follows_the_verdict() {
        let backend = backend("a");
        let now = Instant::now();
        assert!(backend.in_service());
        for _ in 0..policy().fall {
            backend.judge(|verdict| verdict.checked(Check::Failed, now));
        }
        assert_eq!(backend.state(), State::OutOfService);
        for _ in 0..policy().fall {
            backend.judge(|verdict| verdict.checked(Check::Unreachable, now));
        }
        assert!(backend.is_lost());
    }
}
