//! How a pool is built, and built anew with other settings out of what the one before knows.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use super::placement::Placements;
use super::ring::Ring;
use super::sessions::Sessions;
use super::verdict::Policy;
use super::{Backend, Balance, CheckKind, DrainCause, Observer, Pool, PoolSettings};

/// What outlives the reload of a pool, beside its backends.
#[derive(Default)]
struct Shared {
    placements: Arc<Placements>,
    sessions: Arc<Sessions>,
    told_panic: Arc<Mutex<bool>>,
    asked: Arc<Mutex<HashSet<String>>>,
}

impl Pool {
    /// Builds a pool whose backends are all in service and have nothing yet.
    pub fn new(settings: PoolSettings, observer: Observer) -> Arc<Self> {
        let now = Instant::now();
        let policy = Policy::from(&settings.health);
        let backends = settings.backends.iter();
        let backends = backends.map(|one| Arc::new(Backend::new(one.clone(), policy, now)));
        let backends = backends.collect();
        Self::assemble(settings, backends, Shared::default(), Vec::new(), observer)
    }

    /// Builds a pool of other settings that takes over what this one knows.
    ///
    /// Backends of the same id are shared, with verdict, counts and connections; that they have
    /// another weight or policy now holds at once, for this pool too, and so does another address of
    /// one that has no connection. One that has is drained at its old address, and another of its id
    /// takes its place. Placements are shared,
    /// also those at backends that are gone from the settings, which keep them until they end.
    ///
    /// Backends that are gone are drained from now on, and those that are back no longer: to be
    /// called when nothing can keep the settings from coming into force.
    pub fn rebuild(&self, settings: PoolSettings) -> Arc<Self> {
        let now = Instant::now();
        let policy = Policy::from(&settings.health);
        let mut backends = Vec::with_capacity(settings.backends.len());
        let mut left: Vec<Arc<Backend>> = self.backends.clone();
        left.extend(self.departed());
        for one in &settings.backends {
            // At another address there is another process, which does not have what this one's keys
            // have in memory: where it has any, they must not be in two places.
            let is_same =
                |known: &Arc<Backend>| known.id() == one.id && known.address() == one.address;
            let has_moved = |known: &Arc<Backend>| known.id() == one.id && known.slots() == 0;
            let index = left.iter().position(is_same).or_else(|| left.iter().position(has_moved));
            if let Some(index) = index {
                let known = left.swap_remove(index);
                known.reconfigure(one, policy);
                backends.push(known);
            } else {
                backends.push(Arc::new(Backend::newcomer(one.clone(), policy, now)));
            }
        }
        let shared = Shared {
            placements: Arc::clone(&self.placements),
            sessions: Arc::clone(&self.sessions),
            told_panic: Arc::clone(&self.told_panic),
            asked: Arc::clone(&self.asked),
        };
        let departed = left.iter().map(Arc::downgrade).collect();
        let kind = settings.health.kind.clone();
        let observer = Arc::clone(&self.observer);
        let pool = Self::assemble(settings, backends, shared, departed, observer);
        for backend in &pool.backends {
            pool.undrain(backend, DrainCause::Removed);
            // What no check can take back any more.
            if !kind.has_answers() {
                pool.undrain(backend, DrainCause::Backend);
            }
            if kind == CheckKind::Off {
                pool.undrain(backend, DrainCause::Refusing);
            }
        }
        left.iter().for_each(|backend| pool.drain(backend, DrainCause::Removed));
        pool.drain_asked();
        pool.settle_all();
        pool
    }

    fn assemble(
        settings: PoolSettings,
        backends: Vec<Arc<Backend>>,
        shared: Shared,
        departed: Vec<Weak<Backend>>,
        observer: Observer,
    ) -> Arc<Self> {
        let Shared { placements, sessions, told_panic, asked } = shared;
        let on_ring =
            if settings.balance == Balance::ConsistentHash { &settings.backends[..] } else { &[] };
        let ring = Ring::new(on_ring.iter().map(|one| (one.id.as_str(), one.weight)));
        Arc::new(Self {
            settings,
            backends,
            ring,
            placements,
            sessions,
            departed,
            turn: AtomicU64::new(0),
            seed: u64::from_ne_bytes(crate::random::bytes()),
            rotation: Mutex::default(),
            told_panic,
            asked,
            observer,
        })
    }
}

#[cfg(test)]
mod tests {

    use super::super::tests::{backend_settings, pool, put_out, settings};
    use super::super::{BackendAddress, BackendSettings, State, verdict};
    use super::*;

    #[test]
    fn a_rebuilt_pool_keeps_what_it_knows_of_those_that_stay() {
        let old = pool(&["a", "b"]);
        let connection = old.backend("a").unwrap().slot(0).unwrap().connection();
        put_out(old.backend("a").unwrap());
        let mut changed = settings(vec![backend_settings("c", 1)], CheckKind::Off);
        changed.backends.push(backend_settings("a", 2));
        let new = old.rebuild(changed);
        let a = new.backend("a").unwrap();
        assert_eq!((a.connections(), a.state()), (1, State::OutOfService));
        assert_eq!(a.settings().weight.get(), 2);
        assert!(new.backend("b").is_none());
        assert!(new.backend("c").unwrap().in_service());
        assert!((new.ring().share(1) - 2.0 / 3.0).abs() < 0.05);
        drop(connection);
        assert_eq!(a.connections(), 0);
        // The policy of `off` holds now: tried again after a while.
        new.tick(a, Instant::now() + verdict::TRY_AGAIN);
        assert!(a.in_service());
    }

    #[test]
    fn who_moves_with_connections_is_drained_where_it_was() {
        let old = pool(&["a", "b"]);
        let at = |address: &str| BackendSettings {
            address: BackendAddress::Name(address.to_owned(), 80),
            ..backend_settings("a", 1)
        };
        let first = Arc::clone(old.backend("a").unwrap());
        let moved = old.rebuild(settings(vec![at("idle")], CheckKind::Tcp));
        assert!(Arc::ptr_eq(moved.backend("a").unwrap(), &first), "it had nothing");
        assert_eq!(first.address().to_string(), "idle:80");
        let connection = first.slot(0).unwrap().connection();
        let moved = moved.rebuild(settings(vec![at("busy")], CheckKind::Tcp));
        let second = moved.backend("a").unwrap();
        assert!(first.is_draining() && !second.is_draining());
        assert_eq!(
            [first.address().to_string(), second.address().to_string()],
            ["idle:80", "busy:80"]
        );
        // And back, while it still has it.
        let back = moved.rebuild(settings(vec![at("idle")], CheckKind::Tcp));
        assert!(Arc::ptr_eq(back.backend("a").unwrap(), &first) && !first.is_draining());
        drop(connection);
    }
}
