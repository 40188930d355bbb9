//! Taking a backend out of service on purpose: why, since when, and what it still has.
//!
//! A backend is drained for as long as there is a cause, and there may be several at once: an
//! operator asked for it, it left the config, it says so itself, it refuses new connections. That
//! has nothing to do with the verdict: a drained backend may be as healthy as any. Nothing new goes
//! to it, which `select.rs` sees to; what is there is closed a little at a time by whoever observes
//! the pool, with what a [`Clearing`] offers: the keys and sessions that are there, and how to let
//! them go.
//!
//! The causes stand in the backend, which reloads share, so a drain outlives a reload. A backend
//! that left the config is remembered by its pool for as long as anything holds it, so that it is
//! the same one if it returns.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::placement::Placements;
use super::sessions::Sessions;
use super::turns::turn_of;
use super::{Backend, Event, Pool};

/// How long a backend must have refused, beyond its verdict, before the first is closed for it: a
/// listener that is opened anew shall cost nobody a connection.
const REFUSING_GRACE: Duration = Duration::from_secs(1);

/// Why a backend is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DrainCause {
    /// Somebody asked for it over the admin API.
    Api = 1,
    /// It left the config.
    Removed = 2,
    /// Its own health answers say so.
    Backend = 4,
    /// It refuses new connections while its old ones live.
    Refusing = 8,
}

impl DrainCause {
    const ALL: [Self; 4] = [Self::Api, Self::Removed, Self::Backend, Self::Refusing];

    /// Its word in logs, metrics and the HTTP API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Removed => "removed",
            Self::Backend => "backend",
            Self::Refusing => "refusing",
        }
    }
}

impl fmt::Display for DrainCause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A change of why a backend is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainChange {
    /// It is drained from now on.
    Begun(DrainCause),
    /// It was, and now also for this.
    Joined(DrainCause),
    /// It still is, but no longer for this.
    Left(DrainCause),
    /// It is drained no longer; this was the last cause.
    Ended(DrainCause),
}

/// How far a drain has come; written by whoever closes what is there.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicUsize,
    left: AtomicUsize,
    until: AtomicU64,
}

impl Progress {
    /// Notes that `total` things are closed one after the other from now on, until `until`.
    pub fn begin(&self, total: usize, until: SystemTime) {
        self.total.store(total, Ordering::Relaxed);
        self.left.store(total, Ordering::Relaxed);
        self.until.store(crate::observe::access_log::unix_millis(until), Ordering::Relaxed);
    }

    /// Notes how many are still to come.
    pub fn set_left(&self, left: usize) {
        self.left.store(left, Ordering::Relaxed);
    }

    /// Keys, sessions, and connections without a place, that this proxy had when it began.
    pub fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Of those, the ones whose turn has not come.
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// When the last one's turn comes, in Unix milliseconds.
    pub fn until(&self) -> u64 {
        self.until.load(Ordering::Relaxed)
    }
}

/// The drain of a backend, as it is now.
#[derive(Clone, Debug)]
pub struct Drain {
    causes: u8,
    /// Since when it has been drained, whatever for.
    pub since: SystemTime,
    /// How far it has come.
    pub progress: Arc<Progress>,
    /// From when on turns come, and over which time.
    turns: (Instant, Duration),
    /// The cause that it began with.
    began_by: DrainCause,
    /// Whether other proxies have told since when.
    is_told: bool,
}

impl Drain {
    /// From when on turns come: that may be a moment ahead.
    pub fn turns_from(&self) -> Instant {
        self.turns.0
    }

    /// Whether the turn of a key or a session has come, where proxies agree about it.
    pub fn has_come(&self, name: &str) -> bool {
        let (from, span) = self.turns;
        from.elapsed() >= turn_of(name, span)
    }

    /// What it is drained for; never nothing.
    pub fn causes(&self) -> impl Iterator<Item = DrainCause> + use<> {
        let causes = self.causes;
        DrainCause::ALL.into_iter().filter(move |cause| causes & *cause as u8 != 0)
    }
}

/// A backend that operators want drained, as other proxies say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its id.
    pub backend: String,
    /// Since when; `None`: that is not known.
    pub since: Option<SystemTime>,
    /// How far its turns have come, by that.
    pub age: Duration,
}

/// A drain that may begin.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    span: Duration,
    /// How long ago its turns began, for others.
    age: Duration,
    /// What is there.
    total: usize,
}

/// Whether a backend is drained: an atomic for every request, the rest behind a lock.
#[derive(Debug, Default)]
pub(super) struct Drains {
    on: AtomicBool,
    now: Mutex<Option<Drain>>,
}

impl Drains {
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    pub(super) fn now(&self) -> Option<Drain> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Drain>> {
        // A store cannot panic half way.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds(&self, cause: DrainCause) -> bool {
        self.lock().as_ref().is_some_and(|drain| drain.causes & cause as u8 != 0)
    }

    /// Adds a cause; `None` if it was there.
    pub(super) fn add(&self, cause: DrainCause, beginning: &Beginning) -> Option<DrainChange> {
        let mut now = self.lock();
        if let Some(drain) = &mut *now {
            let is_new = drain.causes & cause as u8 == 0;
            drain.causes |= cause as u8;
            return is_new.then_some(DrainChange::Joined(cause));
        }
        let &Beginning { span, age, total } = beginning;
        let since = SystemTime::now();
        let progress = Arc::<Progress>::default();
        progress.begin(total, since + span.saturating_sub(age));
        let grace = if cause == DrainCause::Refusing { REFUSING_GRACE } else { Duration::ZERO };
        // Beyond the span it makes no difference how long ago it was.
        let from = Instant::now().checked_sub(age.min(span)).unwrap_or_else(Instant::now) + grace;
        let (turns, began_by, is_told) = ((from, span), cause, false);
        *now = Some(Drain { causes: cause as u8, since, progress, turns, began_by, is_told });
        self.on.store(true, Ordering::Release);
        Some(DrainChange::Begun(cause))
    }

    /// Takes since when it is drained from other proxies: that counts, unless it was drained for
    /// something else before.
    fn told_since(&self, since: SystemTime) {
        let mut now = self.lock();
        let Some(drain) = &mut *now else { return };
        let is_first = !std::mem::replace(&mut drain.is_told, true);
        if (is_first && drain.began_by == DrainCause::Api) || since < drain.since {
            drain.since = since;
        }
    }

    /// Takes a cause away; `None` if it was not there.
    pub(super) fn remove(&self, cause: DrainCause) -> Option<DrainChange> {
        let mut now = self.lock();
        let drain = now.as_mut().filter(|drain| drain.causes & cause as u8 != 0)?;
        drain.causes &= !(cause as u8);
        if drain.causes != 0 {
            return Some(DrainChange::Left(cause));
        }
        *now = None;
        self.on.store(false, Ordering::Release);
        Some(DrainChange::Ended(cause))
    }
}

/// What a drained backend still has, and how to let go of it.
#[derive(Clone, Debug)]
pub struct Clearing {
    /// The name of its pool.
    pub pool: Arc<str>,
    /// Whose it is.
    pub backend: Arc<Backend>,
    /// Whether keys have a place in its pool; where they have none each connection is for itself.
    pub by_key: bool,
    /// How long it may take.
    pub span: Duration,
    /// Whether its turns are to be those that other proxies take.
    pub is_shared: bool,
    placements: Arc<Placements>,
    sessions: Arc<Sessions>,
}

impl Clearing {
    /// The keys that are placed there. Looks at every key of the pool, under the lock of all.
    pub fn keys(&self) -> Vec<Arc<str>> {
        self.placements.keys_at(&self.backend)
    }

    /// The ids of the sessions that are learnt there. Looks at every session of the pool, likewise.
    pub fn sessions(&self) -> Vec<Arc<str>> {
        self.sessions.of(&self.backend)
    }

    /// Has keys be placed there no longer. Their connections are to be closed at once: until the
    /// last of them has ended, whoever comes for the key [waits](Pool::vacated).
    pub fn let_go(&self, keys: &[Arc<str>]) {
        self.placements.let_go(keys, &self.backend);
    }

    /// Whether something of a key that was let go may still live where it was.
    pub fn is_leaving(&self, key: &str) -> bool {
        self.placements.is_leaving(key)
    }

    /// Forgets sessions, as far as they are that backend's.
    pub fn forget(&self, sessions: &[Arc<str>]) {
        self.sessions.forget(sessions, &self.backend);
    }
}

impl Pool {
    /// Drains `backend` for a cause, until that is [taken away](Self::undrain) again.
    pub fn drain(&self, backend: &Arc<Backend>, cause: DrainCause) {
        self.drain_from(backend, cause, Duration::ZERO);
    }

    fn drain_from(&self, backend: &Arc<Backend>, cause: DrainCause, age: Duration) {
        let total = if backend.is_draining() { 0 } else { self.held(backend) };
        let beginning = Beginning { span: self.settings.drain_timeout, age, total };
        let change = backend.drains().add(cause, &beginning);
        self.tell_of_drain(backend, change);
    }

    /// How many keys, sessions and connections without a place a backend has.
    fn held(&self, backend: &Arc<Backend>) -> usize {
        // They may change between the looks: it is counted again when the first is closed.
        let placed = self.placements.live_at(backend);
        let alone = backend.connections().saturating_sub(placed);
        backend.keys() + alone + self.sessions.of(backend).len()
    }

    /// Whether a session of a drained backend is over for all proxies, since its turn has come.
    pub fn has_ended(&self, session: &str, backend: &Backend) -> bool {
        self.placements.is_shared()
            && backend.is_draining()
            && backend.drain().is_some_and(|drain| drain.has_come(session))
    }

    /// Takes away one cause of the drain of `backend`, which ends with the last.
    pub fn undrain(&self, backend: &Arc<Backend>, cause: DrainCause) {
        self.tell_of_drain(backend, backend.drains().remove(cause));
    }

    /// Drains by [`DrainCause::Api`] these backends and no others, also those that come by a reload:
    /// operators ask all proxies for it.
    pub fn drain_only(&self, all: &[Asked]) {
        let asked = all.iter().map(|asked| asked.backend.clone()).collect();
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = asked;
        for backend in self.backends.iter().cloned().chain(self.departed()) {
            let Some(asked) = all.iter().find(|asked| asked.backend == backend.id()) else {
                self.undrain(&backend, DrainCause::Api);
                continue;
            };
            self.drain_from(&backend, DrainCause::Api, asked.age);
            if let Some(since) = asked.since {
                backend.drains().told_since(since);
            }
        }
    }

    /// Drains who is new to the config and was asked for before.
    pub(super) fn drain_asked(&self) {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_asked = |backend: &&Arc<Backend>| asked.contains(backend.id());
        self.backends.iter().filter(is_asked).for_each(|one| self.drain(one, DrainCause::Api));
    }

    /// Drains all backends, because the pool left the config.
    pub fn retire(&self) {
        self.backends.iter().for_each(|backend| self.drain(backend, DrainCause::Removed));
    }

    /// Whether a backend of it, also one that left it, has a connection, be it under way.
    pub fn has_connections(&self) -> bool {
        let departed = self.departed();
        self.backends.iter().chain(&departed).any(|backend| backend.slots() > 0)
    }

    /// Backends that left the config and that something still holds, such as a connection.
    pub fn departed(&self) -> Vec<Arc<Backend>> {
        self.departed.iter().filter_map(std::sync::Weak::upgrade).collect()
    }

    /// Takes what an answer of `backend` to a health check says of its going.
    pub fn announced(&self, backend: &Arc<Backend>, drains: bool) {
        match drains {
            true if backend.is_lost() => {}
            true => self.drain(backend, DrainCause::Backend),
            false => self.undrain(backend, DrainCause::Backend),
        }
    }

    /// Whether `backend` goes by itself, and its connections must not be taken for lost.
    pub(super) fn is_refusing(backend: &Backend) -> bool {
        backend.connections() > 0 && backend.drains().holds(DrainCause::Refusing)
    }

    /// Ends what a backend itself gives cause for, because it is lost.
    pub(super) fn forget_announcements(&self, backend: &Arc<Backend>) {
        for cause in [DrainCause::Backend, DrainCause::Refusing] {
            self.undrain(backend, cause);
        }
    }

    /// Waits until connections of `key` that are being closed for a drain have ended at their
    /// backend, so that the key does not begin elsewhere before; for at most two seconds, after
    /// which it may. Returns at once where nothing is drained. Cancel safe.
    pub async fn vacated(&self, key: &str) {
        self.placements.vacated(key).await;
    }

    fn tell_of_drain(&self, backend: &Arc<Backend>, change: Option<DrainChange>) {
        let Some(change) = change else { return };
        (self.observer)(&Event::Drain(change, self.clearing(backend)));
        self.settle_contested();
    }

    /// What `backend` has, and how to let go of it.
    pub(super) fn clearing(&self, backend: &Arc<Backend>) -> Clearing {
        Clearing {
            pool: self.settings.name.as_str().into(),
            backend: Arc::clone(backend),
            by_key: self.places_keys(),
            span: self.settings.drain_timeout,
            is_shared: self.placements.is_shared(),
            placements: Arc::clone(&self.placements),
            sessions: Arc::clone(&self.sessions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{backend_settings, lose, pool, put_out, settings};
    use super::super::verdict::Check;
    use super::super::{CheckKind, Placement};
    use super::*;

    use std::time::Instant;

    /// A pool, and what its observer was told of drains.
    fn observed(ids: &[&str]) -> (Arc<Pool>, Arc<Mutex<Vec<DrainChange>>>) {
        let told = Arc::<Mutex<Vec<DrainChange>>>::default();
        let tell = Arc::clone(&told);
        let backends = ids.iter().map(|id| backend_settings(id, 1)).collect();
        let observer = move |event: &Event| {
            if let Event::Drain(change, _) = event {
                tell.lock().unwrap().push(*change);
            }
        };
        (Pool::new(settings(backends, CheckKind::Tcp), Arc::new(observer)), told)
    }

    fn causes(backend: &Backend) -> Vec<DrainCause> {
        backend.drain().map(|drain| drain.causes().collect()).unwrap_or_default()
    }

    fn live(pool: &Arc<Pool>, key: &str) -> Placement {
        let mut placement = pool.place(key, None).unwrap();
        placement.establish().unwrap();
        placement
    }

    /// A key whose home is `id`.
    fn key_of(pool: &Pool, id: &str) -> String {
        let keys = (0..).map(|number| format!("room-{number}"));
        keys.into_iter().find(|key| pool.home(key).unwrap().id() == id).unwrap()
    }

    #[test]
    fn causes_hold_at_once_and_the_last_ends_the_drain() {
        let (pool, told) = observed(&["a", "b"]);
        let a = pool.backend("a").unwrap();
        pool.drain(a, DrainCause::Api);
        pool.announced(a, true);
        pool.announced(a, true);
        assert_eq!(causes(a), [DrainCause::Api, DrainCause::Backend]);
        pool.undrain(a, DrainCause::Api);
        assert!(a.is_draining());
        pool.undrain(a, DrainCause::Api);
        pool.announced(a, false);
        assert!(!a.is_draining() && a.drain().is_none());
        let all = [
            DrainChange::Begun(DrainCause::Api),
            DrainChange::Joined(DrainCause::Backend),
            DrainChange::Left(DrainCause::Api),
            DrainChange::Ended(DrainCause::Backend),
        ];
        assert_eq!(*told.lock().unwrap(), all);
    }

    #[test]
    fn who_refuses_while_he_has_connections_is_going_until_checks_pass() {
        let (pool, told) = observed(&["a", "b"]);
        let a = pool.backend("a").unwrap();
        let now = Instant::now();
        let refuse = || pool.checked(a, Check::Refused, &"refused", now);
        (0..5).for_each(|_| refuse());
        assert!(!a.is_draining(), "nothing is there to be drained");
        let connection = a.slot(0).unwrap().connection();
        pool.checked(a, Check::Failed, &"503", now);
        (0..2).for_each(|_| refuse());
        assert!(!a.is_draining(), "another failure came between");
        refuse();
        assert_eq!(causes(a), [DrainCause::Refusing]);
        // As long as they live it is going, not lost.
        for seconds in 1..100 {
            pool.tick(a, now + Duration::from_secs(seconds));
        }
        assert!(!a.is_lost());
        pool.checked(a, Check::Passed, &"", now);
        assert!(a.is_draining());
        pool.checked(a, Check::Passed, &"", now);
        assert!(!a.is_draining() && a.in_service());
        let cause = DrainCause::Refusing;
        assert_eq!(*told.lock().unwrap(), [DrainChange::Begun(cause), DrainChange::Ended(cause)]);
        drop(connection);
    }

    #[test]
    fn a_lost_backend_announces_nothing_and_what_was_asked_for_stays() {
        let (pool, _) = observed(&["a", "b"]);
        let a = pool.backend("a").unwrap();
        pool.announced(a, true);
        pool.drain(a, DrainCause::Api);
        (0..3).for_each(|_| pool.checked(a, Check::Unreachable, &"", Instant::now()));
        assert!(a.is_lost());
        assert_eq!(causes(a), [DrainCause::Api]);
    }

    #[test]
    fn a_drain_survives_a_reload() {
        let old = pool(&["a", "b"]);
        old.drain(old.backend("a").unwrap(), DrainCause::Api);
        let since = old.backend("a").unwrap().drain().unwrap().since;
        let new = old.rebuild(old.settings().clone());
        let drain = new.backend("a").unwrap().drain().unwrap();
        assert_eq!(drain.since, since);
        assert!(drain.causes().eq([DrainCause::Api]));
    }

    #[test]
    fn those_asked_for_are_drained_and_no_others_also_if_they_come_later() {
        let pool = pool(&["a", "b"]);
        let drained = |pool: &Pool| {
            let all = pool.backends().iter().filter(|one| one.is_draining());
            all.map(|one| one.id().to_owned()).collect::<Vec<_>>()
        };
        pool.drain(pool.backend("b").unwrap(), DrainCause::Api);
        let asked =
            |backend: &str| Asked { backend: backend.to_owned(), since: None, age: Duration::ZERO };
        pool.drain_only(&["a", "c"].map(asked));
        assert_eq!(drained(&pool), ["a"]);
        let mut more = pool.settings().clone();
        more.backends.push(backend_settings("c", 1));
        let more = pool.rebuild(more);
        assert_eq!(drained(&more), ["a", "c"]);
        more.drain_only(&[]);
        assert!(drained(&more).is_empty());
    }

    #[test]
    fn since_when_is_what_others_say_unless_it_was_drained_before() {
        let pool = pool(&["a", "b"]);
        let (a, b) = (pool.backend("a").unwrap(), pool.backend("b").unwrap());
        pool.announced(a, true);
        pool.drain(b, DrainCause::Api);
        let since = |backend: &Backend| backend.drain().unwrap().since;
        let own = since(a);
        let hear = |at: SystemTime| {
            let asked = |backend: &str| Asked {
                backend: backend.to_owned(),
                since: Some(at),
                age: Duration::ZERO,
            };
            pool.drain_only(&["a", "b"].map(asked));
        };
        let second = Duration::from_secs(1);
        hear(own + second);
        assert_eq!([since(a), since(b)], [own, own + second]);
        // Whoever writes it anew, since Redis has lost it, does not change it here.
        hear(own + second * 2);
        assert_eq!([since(a), since(b)], [own, own + second]);
        hear(own - second);
        assert_eq!([since(a), since(b)], [own - second; 2]);
    }

    #[test]
    fn what_is_there_is_counted_from_the_first_moment() {
        let pool = pool(&["a"]);
        let backend = &pool.backends()[0];
        let members = [live(&pool, "k"), live(&pool, "k"), live(&pool, "other")];
        let mut connections: Vec<_> =
            (0..3).map(|_| backend.slot(0).unwrap().connection()).collect();
        connections.push(backend.slot(0).unwrap().connection());
        let life = Duration::from_secs(60);
        let session = pool.sessions().learn("s", backend, [127, 0, 0, 1].into(), life);
        pool.drain(backend, DrainCause::Api);
        let progress = backend.drain().unwrap().progress;
        assert_eq!((progress.total(), progress.left()), (4, 4), "two keys, one alone, one session");
        drop((members, session));
    }

    #[test]
    fn a_session_is_over_for_all_from_its_turn_on_where_proxies_share() {
        let shared = pool(&["a", "b"]);
        shared.share(Arc::new(|_, _, _| {}));
        let sessions: Vec<String> = (0..100).map(|number| format!("s{number}")).collect();
        let ended = |pool: &Pool| {
            let backend = pool.backend("a").unwrap();
            sessions.iter().filter(|session| pool.has_ended(session, backend)).count()
        };
        let ask = |pool: &Pool, age: Duration| {
            let asked = Asked { backend: "a".to_owned(), since: None, age };
            pool.drain_only(&[asked]);
        };
        assert_eq!(ended(&shared), 0);
        let span = shared.settings().drain_timeout;
        ask(&shared, span / 2);
        assert!(ended(&shared).abs_diff(50) < 20, "{}", ended(&shared));
        shared.drain_only(&[]);
        ask(&shared, span * 100);
        assert_eq!(ended(&shared), 100);
        let alone = pool(&["a", "b"]);
        ask(&alone, span * 100);
        assert_eq!(ended(&alone), 0);
    }

    #[test]
    fn who_left_the_config_is_drained_and_the_same_if_he_returns() {
        let (old, told) = observed(&["a", "b", "c"]);
        let both = old.settings().clone();
        let key = key_of(&old, "a");
        let placement = live(&old, &key);
        let a = Arc::clone(old.backend("a").unwrap());
        let mut without = both.clone();
        without.backends.retain(|one| one.id != "a");
        let new = old.rebuild(without.clone());
        assert!(new.backend("a").is_none());
        assert_eq!(causes(&a), [DrainCause::Removed]);
        assert!(new.departed().iter().any(|one| Arc::ptr_eq(one, &a)));
        // Its key stays until it is let go, for the old routes as for the new ones.
        assert!(Arc::ptr_eq(new.place(&key, None).unwrap().backend(), &a));
        let keys = (0..50).map(|number| number.to_string()).filter(|other| *other != key);
        for other in keys {
            assert_ne!(old.place(&other, None).unwrap().backend().id(), "a");
        }
        // Reloaded once more, and back again.
        let again = new.rebuild(without).rebuild(both);
        assert!(Arc::ptr_eq(again.backend("a").unwrap(), &a));
        assert!(!a.is_draining() && again.departed().is_empty());
        let cause = DrainCause::Removed;
        assert_eq!(*told.lock().unwrap(), [DrainChange::Begun(cause), DrainChange::Ended(cause)]);
        assert_eq!(placement.backend().keys(), 1);
    }

    #[test]
    fn who_left_with_nothing_is_forgotten() {
        let old = pool(&["a", "b"]);
        let mut without = old.settings().clone();
        without.backends.retain(|one| one.id != "a");
        let new = old.rebuild(without);
        assert_eq!(new.departed().len(), 1);
        drop(old);
        assert!(new.departed().is_empty());
    }

    #[test]
    fn a_header_of_long_ago_does_not_outlive_the_checks_that_read_it() {
        let old = pool(&["a"]);
        old.announced(&old.backends()[0], true);
        let mut settings = old.settings().clone();
        settings.health.kind = CheckKind::Off;
        let new = old.rebuild(settings);
        assert!(!new.backends()[0].is_draining());
    }

    #[test]
    fn a_key_that_was_let_go_begins_elsewhere_once_its_connections_have_ended() {
        let pool = pool(&["a", "b"]);
        let key = key_of(&pool, "a");
        let (a, b) = (pool.backend("a").unwrap(), pool.backend("b").unwrap());
        let old = live(&pool, &key);
        pool.drain(a, DrainCause::Api);
        let joins = live(&pool, &key);
        assert!(Arc::ptr_eq(joins.backend(), a), "its turn has not come");
        let mut late = pool.place(&key, None).unwrap();
        let keys = pool.placements.keys_at(a);
        assert_eq!(keys, [Arc::from(key.as_str())]);
        pool.placements.let_go(&keys, a);
        let new = live(&pool, &key);
        assert!(Arc::ptr_eq(new.backend(), b));
        assert!(late.establish().is_err(), "its handshake was answered too late");
        assert!(Arc::ptr_eq(late.backend(), b));
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let begun = tokio::time::Instant::now();
            pool.vacated("another").await;
            assert!(begun.elapsed().is_zero());
            pool.vacated(&key).await;
            assert_eq!(begun.elapsed().as_secs(), 2, "bounded");
            let ends = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                drop(old);
                tokio::time::sleep(Duration::from_millis(100)).await;
                drop(joins);
            };
            let begun = tokio::time::Instant::now();
            tokio::join!(pool.vacated(&key), ends);
            assert!(begun.elapsed() < Duration::from_millis(300));
            pool.vacated(&key).await;
        });
        assert_eq!((a.keys(), b.keys()), (0, 1));
    }

    #[test]
    fn nothing_new_goes_to_a_drained_backend_not_even_in_a_panic() {
        let drained = |tune: &dyn Fn(&mut super::super::PoolSettings)| {
            let backends = ["a", "b", "c"].map(|id| backend_settings(id, 1)).to_vec();
            let mut settings = settings(backends, CheckKind::Tcp);
            tune(&mut settings);
            let pool = Pool::new(settings, Arc::new(|_| {}));
            pool.drain(&pool.backends()[0], DrainCause::Api);
            put_out(&pool.backends()[1]);
            for number in 0..50 {
                assert_ne!(pool.any().unwrap().backend().id(), "a");
                assert_ne!(pool.any_for_connection().unwrap().backend().id(), "a");
                let key = number.to_string();
                assert_ne!(pool.lookup(&key, None).unwrap().backend().id(), "a");
                if pool.places_keys() {
                    assert_ne!(pool.place(&key, None).unwrap().backend().id(), "a");
                }
            }
            lose(&pool.backends()[1]);
            lose(&pool.backends()[2]);
            assert!(pool.any().is_err(), "rather nobody");
        };
        use super::super::Balance::*;
        for balance in [ConsistentHash, LeastConnections, RoundRobin, RandomTwo] {
            drained(&|settings| settings.balance = balance);
            drained(&|settings| {
                settings.balance = balance;
                settings.health.panic_threshold = 1.0;
                settings.bounded_load = if balance == ConsistentHash { 1.25 } else { 0.0 };
            });
        }
    }
}
