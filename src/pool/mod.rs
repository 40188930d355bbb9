//! Pools: which backend a key belongs to, where it is, and whether that backend is up to it.
//!
//! Three questions that are easily confused, so each has a file that knows nothing of the others:
//!
//! - `ring.rs`: whose key is it? A pure function of ids and weights, the same on every proxy.
//! - `verdict.rs`: may a backend be given anything? A state machine, fed by checks (`health.rs`)
//!   and by what traffic meets.
//! - `table.rs`: where is a key that has connections? Not necessarily where the ring names now:
//!   its state is in the memory of the backend on which it began.
//!
//! A fourth is asked of an operator: what is to leave (`drain.rs`)?
//!
//! A [`Pool`] puts them together. A connection with a key gets a [`Placement`]: where the key is
//! placed, unless that backend is lost, else the first on the ring that may have it. A plain
//! request, or a connection without a key, gets a [`Choice`], which is the same without holding
//! the place. Both know how to go on when a backend can't be connected to. In a pool that does not
//! go by keys there is no ring and no place: everything gets a [`Choice`], by a rule of
//! `balance.rs`.
//!
//! Who may have something new, `select.rs` says for all of them: health, limits, bounded load and
//! slow start come together there.
//!
//! Where proxies share a registry, other proxies have keys of the pool too: `elsewhere.rs` knows
//! what they say, and who gives way if two have placed a key differently.
//!
//! A pool is built whole and never changed: a reload [builds another](Pool::rebuild) (`build.rs`),
//! with a ring of its own, that shares the backends that stay and the table of placements. Changes of a
//! backend's state (`report.rs`) are told to the [`Observer`] that the pool was built with, which logs
//! them and ends the connections of a lost one; the pool itself has not heard of connections' ends.
//!
//! Not here: reading from a backend. `dial.rs` opens sockets, for checks and for traffic alike.

pub mod backend;
pub mod balance;
mod build;
pub mod choose;
pub mod dial;
pub mod drain;
mod elsewhere;
mod event;
pub mod health;
pub mod placement;
mod report;
pub mod ring;
mod select;
pub mod sessions;
mod settings;
pub mod spacing;
mod table;
pub mod tls;
pub mod turns;
pub mod verdict;
mod websocket_check;

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

pub use self::backend::Backend;
pub use self::choose::Choice;
pub use self::drain::{Clearing, DrainCause, DrainChange};
pub use self::event::{BackendEvent, Event, Observer, PanicEvent};
pub use self::placement::{Placement, Teller};
pub use self::settings::{
    BackendAddress, BackendSettings, Balance, CheckKind, HealthSettings, PoolSettings,
};
pub use self::table::{Moved, PlacedKey, Stay};
pub use self::verdict::State;

use self::balance::Rotation;
use self::placement::Placements;
use self::ring::Ring;
use self::select::Demand;
use self::sessions::Sessions;

/// No backend of a pool may be given what has come: a 503.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBackend {
    /// None is in service.
    #[error("pool {pool}: no backend in service")]
    OutOfService {
        /// The pool's name.
        pool: String,
    },
    /// Those in service have as many connections as they may.
    #[error("pool {pool}: every backend in service is full")]
    Full {
        /// The pool's name.
        pool: String,
    },
}

/// A set of interchangeable backends, and how one of them is chosen.
pub struct Pool {
    settings: PoolSettings,
    /// In the order of the settings; the ring's indexes are indexes of this.
    backends: Vec<Arc<Backend>>,
    ring: Ring,
    placements: Arc<Placements>,
    sessions: Arc<Sessions>,
    /// Backends that left the config; those that nothing holds any more are gone.
    departed: Vec<Weak<Backend>>,
    /// Counts what comes without a place.
    turn: AtomicU64,
    /// Keeps this proxy's chance from being that of another.
    seed: u64,
    rotation: Mutex<Rotation>,
    /// The panic that the observer was last told of.
    told_panic: Arc<Mutex<bool>>,
    /// Backends that operators want drained by all proxies, by id; also such as it does not have.
    asked: Arc<Mutex<HashSet<String>>>,
    observer: Observer,
}

impl Pool {
    /// Whether keys have a place here; where they have none, a key is only a name.
    pub fn places_keys(&self) -> bool {
        self.settings.balance == Balance::ConsistentHash
    }

    /// Takes a place for a connection of `key`, before its handshake goes anywhere.
    ///
    /// Where the key has connections, live or under way, it follows them, also to a backend out
    /// of service. One that is nowhere goes to where it `lives` at other proxies, as far as was
    /// asked, or nowhere; otherwise the ring decides, among those that may have a new key. Keys of
    /// at most 512 bytes are expected; the table keeps them as long as they are placed. Only for a
    /// pool that [places keys](Self::places_keys).
    ///
    /// # Errors
    ///
    /// [`NoBackend`] if the key is nowhere and no backend is in service, or all that are have as
    /// many connections as they may.
    pub fn place(
        self: &Arc<Self>,
        key: &str,
        lives: Option<Arc<Backend>>,
    ) -> Result<Placement, NoBackend> {
        Placement::begin(self, key, lives)
    }

    /// Finds the backend for a plain request of `key`, which holds no place. It goes where a
    /// connection would, by the same rules.
    ///
    /// # Errors
    ///
    /// [`NoBackend`] if the key is nowhere and no backend is in service.
    pub fn lookup(
        self: &Arc<Self>,
        key: &str,
        lives: Option<Arc<Backend>>,
    ) -> Result<Choice, NoBackend> {
        if self.places_keys() { Choice::of_key(self, key, lives) } else { self.any() }
    }

    /// Finds a backend for a plain request that no key decides on.
    ///
    /// # Errors
    ///
    /// [`NoBackend`] if no backend is in service.
    pub fn any(self: &Arc<Self>) -> Result<Choice, NoBackend> {
        Choice::of_turn(self, self.next_turn(), Demand::Request)
    }

    /// Finds a backend for a connection that no key decides on.
    ///
    /// # Errors
    ///
    /// [`NoBackend`] if no backend is in service, or all that are have as many connections as
    /// they may.
    pub fn any_for_connection(self: &Arc<Self>) -> Result<Choice, NoBackend> {
        Choice::of_turn(self, self.next_turn(), Demand::Connection)
    }

    fn next_turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// What the config says of it.
    pub fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// Its backends, in the order of the config.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// The backend with this id, found by looking at each.
    pub fn backend(&self, id: &str) -> Option<&Arc<Backend>> {
        self.backends.iter().find(|backend| backend.id() == id)
    }

    /// The ring of all its backends, whose indexes are those of [`backends`](Self::backends).
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The fingerprint of what the ring is made of: the same on every proxy with the same backends.
    pub fn fingerprint(&self) -> String {
        ring::fingerprint(self.settings.backends.iter().map(|one| (one.id.as_str(), one.weight)))
    }

    /// The home of a key, whatever its health; `None` only if the pool is empty.
    pub fn home(&self, key: &str) -> Option<&Arc<Backend>> {
        self.backends.get(self.ring.owner(key.as_bytes())?)
    }

    /// Where a key is placed; `None` also if that backend is lost.
    pub fn find(&self, key: &str) -> Option<PlacedKey> {
        self.placements.find(key)
    }

    /// The sessions that its backends have issued ids for.
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// All keys that are placed, in no order.
    ///
    /// Copies the table under its lock: as long as that takes nobody connects. How many keys a
    /// backend has, [`Backend::keys`] tells for nothing.
    pub fn placed(&self) -> Vec<PlacedKey> {
        self.placements.list()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, backends) = (self.name(), &self.backends);
        formatter.debug_struct("Pool").field("name", &name).field("backends", backends).finish()
    }
}

#[cfg(test)]
mod tests;
