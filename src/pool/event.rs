//! What a pool tells whoever watches over it: changes of its backends, panics, drains, keys that move.

use std::sync::Arc;

use super::Backend;
use super::drain::{Clearing, DrainChange};
use super::verdict::Transition;

/// A change of a backend's state.
#[derive(Clone, Debug)]
pub struct BackendEvent {
    /// The name of its pool.
    pub pool: String,
    /// The backend; its state may be yet another by now.
    pub backend: Arc<Backend>,
    /// From what, to what, and why.
    pub transition: Transition,
    /// The failure that tipped it, for a person; empty where it was none.
    pub detail: String,
}

/// A panic of a pool that begins or ends: whether health is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanicEvent {
    /// The name of the pool.
    pub pool: String,
    /// Whether it panics now.
    pub panicking: bool,
    /// How many of its backends are in service.
    pub in_service: usize,
    /// How many it has.
    pub backends: usize,
}

/// What an [`Observer`] is told of.
#[derive(Clone, Debug)]
pub enum Event {
    /// The state of a backend has changed.
    Backend(BackendEvent),
    /// With that, or with other settings, a panic has begun or ended.
    Panic(PanicEvent),
    /// A backend is drained, or no longer, or for another cause.
    Drain(DrainChange, Clearing),
    /// A key was let go at a backend, because other proxies have it at one that comes first: its
    /// connections there are to be closed.
    GaveWay {
        /// The key.
        key: Arc<str>,
        /// The backend that it was at, and what is there.
        clearing: Clearing,
    },
    /// A key is kept at a backend although other proxies have it at one that comes first, which can't
    /// be reached from here.
    Disputed {
        /// The name of its pool.
        pool: String,
        /// The key.
        key: Arc<str>,
        /// Where it is.
        backend: Arc<Backend>,
    },
}

/// Is told of every change of a backend's state, of panics and of drains, by whatever thread caused it.
///
/// Called after the change holds, without a lock; must not block. Events of one backend come in
/// order as far as checks cause them; traffic on two threads may cross.
pub type Observer = Arc<dyn Fn(&Event) + Send + Sync>;
