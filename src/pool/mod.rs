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
//! A pool is built whole and never changed: a reload [builds another](Pool::rebuild), with a ring
//! of its own, that shares the backends that stay and the table of placements. Changes of a
//! backend's state are told to the [`Observer`] that the pool was built with, which logs them and
//! ends the connections of a lost one; the pool itself has not heard of connections' ends.
//!
//! Not here: reading from a backend. `dial.rs` opens sockets, for checks and for traffic alike.

pub mod backend;
pub mod balance;
pub mod choose;
pub mod dial;
pub mod drain;
mod elsewhere;
pub mod health;
pub mod placement;
pub mod ring;
mod select;
pub mod sessions;
pub mod spacing;
mod table;
pub mod tls;
pub mod turns;
pub mod verdict;
mod websocket_check;

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

pub use self::backend::Backend;
pub use self::choose::Choice;
pub use self::drain::{Clearing, DrainCause, DrainChange};
pub use self::placement::{Placement, Teller};
pub use self::table::{Moved, PlacedKey, Stay};
pub use self::verdict::State;

use self::balance::Rotation;
use self::placement::Placements;
use self::ring::Ring;
use self::select::Demand;
use self::sessions::Sessions;
use self::verdict::{Check, Policy, Transition};
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

    /// Whether keys have a place here; where they have none, a key is only a name.
    pub fn places_keys(&self) -> bool {
        self.settings.balance == Balance::ConsistentHash
    }

    /// Takes a place for a connection of `key`, before its handshake goes anywhere.
    ///
    /// Where the key has connections, live or under way, it follows them, also to a backend out
    /// of service; otherwise the ring decides, among those that may have a new key. Keys of at
    /// most 512 bytes are expected; the table keeps them as long as they are placed. Only for a
    /// pool that [places keys](Self::places_keys).
    ///
    /// # Errors
    ///
    /// [`NoBackend`] if the key is nowhere and no backend is in service, or all that are have as
    /// many connections as they may.
    pub fn place(self: &Arc<Self>, key: &str) -> Result<Placement, NoBackend> {
        Placement::begin(self, key)
    }

    /// Finds the backend for a plain request of `key`, which holds no place.
    ///
    /// # Errors
    ///
    /// [`NoBackend`] if the key is nowhere and no backend is in service.
    pub fn lookup(self: &Arc<Self>, key: &str) -> Result<Choice, NoBackend> {
        if self.places_keys() { Choice::of_key(self, key) } else { self.any() }
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

/// What the config says of one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSettings {
    /// Its name, the NAME of `[pool.NAME]`.
    pub name: String,
    /// How a backend is chosen.
    pub balance: Balance,
    /// How far over its share of the connections a backend may go and still get new keys, as a
    /// factor above 1; 0: as far as they come. Only with [`Balance::ConsistentHash`].
    pub bounded_load: f64,
    /// How long a backend takes from coming into service to its whole weight; zero: no time.
    pub slow_start: Duration,
    /// The most handshakes a second that one backend is sent; 0: no limit.
    pub handshake_rate: u32,
    /// The most connections of one backend; 0: no limit.
    pub max_connections: usize,
    /// Until a connection to a backend stands, the TLS handshake included.
    pub connect_timeout: Duration,
    /// Until a backend has answered a WebSocket handshake.
    pub handshake_timeout: Duration,
    /// Over how long the drain of a backend spreads its closes; zero: all at once.
    pub drain_timeout: Duration,
    /// TCP keep-alive to backends, and `TCP_USER_TIMEOUT`.
    pub keepalive: Duration,
    /// How TLS is made with them; `None`: plain TCP.
    pub tls: Option<tls::BackendTls>,
    /// Its backends; ids are unique, there is at least one.
    pub backends: Vec<BackendSettings>,
    /// How they are watched.
    pub health: HealthSettings,
}

/// How a pool finds the backend for what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// By the key, on the ring; keys have places.
    ConsistentHash,
    /// The one that has the least for its weight.
    LeastConnections,
    /// In turn, by weight.
    RoundRobin,
    /// The better of two, by chance and weight.
    RandomTwo,
}

impl Balance {
    /// Its word in the config and in the HTTP API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConsistentHash => "consistent_hash",
            Self::LeastConnections => "least_connections",
            Self::RoundRobin => "round_robin",
            Self::RandomTwo => "random_two",
        }
    }
}

/// What the config says of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    /// Its id, which stays when its address changes; 1 to 64 of `[A-Za-z0-9_.:-]`.
    pub id: String,
    /// Where it is: an IP address or a host name, with a port.
    pub address: BackendAddress,
    /// Its share of what comes.
    pub weight: NonZeroU32,
}

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendAddress {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A host name, looked up at each connect, and a port.
    Name(String, u16),
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(formatter),
            Self::Name(name, port) => write!(formatter, "{name}:{port}"),
        }
    }
}

/// What the config says of a pool's health checks.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthSettings {
    /// What a check does.
    pub kind: CheckKind,
    /// From the beginning of one check to that of the next.
    pub interval: Duration,
    /// Until a check has failed.
    pub timeout: Duration,
    /// Successes in a row that bring a backend into service.
    pub rise: u32,
    /// Failures in a row that take it out.
    pub fall: u32,
    /// Connect or handshake failures in a row, seen by traffic, that take it out; 0: off.
    pub passive_fall: u32,
    /// Out of service for so long while another is in service: lost; zero: never.
    pub lost_after: Duration,
    /// With less than this share of its backends in service, a pool goes by whether they are lost
    /// alone; 0: never.
    pub panic_threshold: f64,
}

/// What a health check does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// GET this path; 2xx is healthy.
    Http {
        /// The path, with its query.
        path: String,
    },
    /// Open a WebSocket at this path, ping it and close it.
    WebSocket {
        /// The path, with its query.
        path: String,
    },
    /// Connect.
    Tcp,
    /// Nothing: traffic alone decides.
    Off,
}

impl CheckKind {
    /// Whether a backend answers in words, which may say that it goes.
    fn has_answers(&self) -> bool {
        matches!(self, Self::Http { .. } | Self::WebSocket { .. })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::verdict::Cause;
    use super::*;

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
