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
use std::time::Instant;

use arc_swap::ArcSwap;

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
    requests: AtomicUsize,
    keys: AtomicUsize,
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
    /// Makes a backend that is in service and has nothing yet.
    pub fn new(settings: BackendSettings, policy: Policy, now: Instant) -> Self {
        Self {
            id: settings.id.as_str().into(),
            settings: ArcSwap::from_pointee(settings),
            verdict: Mutex::new(Verdict::new(policy, now)),
            state: AtomicU8::new(State::InService as u8),
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            keys: AtomicUsize::new(0),
            counters: Counters::default(),
        }
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
            self.state.store(transition.to as u8, Ordering::Release);
            Some(transition)
        })
    }

    fn with_verdict<T>(&self, then: impl FnOnce(&mut Verdict) -> T) -> T {
        // The verdict is whole after each of its functions: a panic elsewhere leaves it usable.
        then(&mut self.verdict.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts a connection from its 101 until the guard is dropped.
    pub fn connection(self: &Arc<Self>) -> ConnectionGauge {
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
        ConnectionGauge(Arc::clone(self))
    }

    /// Counts a plain request or a handshake, from when it is sent, until the guard is dropped.
    pub fn request(self: &Arc<Self>) -> RequestGauge {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        RequestGauge(Arc::clone(self))
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

    /// Whether nothing may stay here.
    pub fn is_lost(&self) -> bool {
        self.state() == State::Lost
    }

    /// When its state was reached; takes the verdict's lock.
    pub fn since(&self) -> Instant {
        self.with_verdict(|verdict| verdict.since())
    }

    /// Connections that it has now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
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

/// A connection that a backend has; dropping it takes it off the count.
#[derive(Debug)]
pub struct ConnectionGauge(Arc<Backend>);

impl ConnectionGauge {
    /// The backend that has it.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for ConnectionGauge {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A plain request in flight; dropping it takes it off the count.
#[derive(Debug)]
pub struct RequestGauge(Arc<Backend>);

impl Drop for RequestGauge {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
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
        let one = backend.connection();
        let two = backend.connection();
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
