//! The place of one connection's key, from the choice of a backend to the connection's end.
//!
//! A [`Placement`] is a guard: as long as it lives its key is where it says, and when it is
//! dropped, however that comes about, the key is free again once no other connection has it. A
//! connection takes one before it connects, goes [on](Placement::go_on) with it if it can't,
//! [establishes](Placement::establish) it when it has the 101, and keeps it to its end.
//!
//! The table behind it is one for all workers of the proxy, and read when connections come and
//! go, never per message. What it decides is in `table.rs`; here is the lock around it, held for
//! a look-up or two, and while a new key walks the ring to its first backend in service.
//!
//! Where the pool is [shared](Pool::share) with other proxies, the same lock is around what those
//! have said (`elsewhere.rs`), and each change of a key here is settled with that before it is let
//! go of: so what others are told, they are told in the order in which it happened.

use std::cell::RefCell;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::backend::Slot;
use super::elsewhere::{Elsewhere, Seen, Settled};
use super::select::Demand;
use super::table::{Moved, Phase, PlacedKey, Stay, Table, Ticket};
use super::{Backend, Event, NoBackend, Pool, ring};

/// How long a key that was let go keeps those waiting who come for it. A backend that does not
/// answer a Close is cut later than that.
const VACATED_WITHIN: Duration = Duration::from_secs(2);

/// Tells other proxies where a key of a pool is, or with `None` that it is nowhere here: pool, key,
/// backend id. Called under the lock of all keys of the pool; must not wait.
pub type Teller = Arc<dyn Fn(&str, &str, Option<&str>) + Send + Sync>;

/// Where the keys of a pool are; outlives the reload of its pool.
#[derive(Default)]
pub(super) struct Placements {
    places: Mutex<Places>,
    /// Keys that are leaving; written while the table is locked, and zero but for drains.
    leaving: AtomicUsize,
    /// Tells of each key that has left.
    left: Notify,
    /// Present where other proxies have keys of the pool too.
    sharing: OnceLock<Sharing>,
}

#[derive(Default)]
struct Places {
    here: Table,
    elsewhere: Elsewhere,
}

struct Sharing {
    pool: String,
    teller: Teller,
}

impl Sharing {
    fn tell(&self, key: &str, backend: Option<&str>) {
        (self.teller)(&self.pool, key, backend);
    }
}

impl Placements {
    pub(super) fn find(&self, key: &str) -> Option<PlacedKey> {
        self.lock().here.find(key)
    }

    pub(super) fn list(&self) -> Vec<PlacedKey> {
        self.lock().here.list()
    }

    pub(super) fn keys_at(&self, backend: &Arc<Backend>) -> Vec<Arc<str>> {
        self.lock().here.keys_at(backend)
    }

    pub(super) fn live_at(&self, backend: &Arc<Backend>) -> usize {
        self.lock().here.live_at(backend)
    }

    pub(super) fn is_shared(&self) -> bool {
        self.sharing.get().is_some()
    }

    pub(super) fn let_go(&self, keys: &[Arc<str>], backend: &Arc<Backend>) {
        self.change(|places| {
            places.here.let_go(keys, backend);
            let Some(sharing) = self.sharing.get() else { return };
            for key in keys {
                let is_gone = places.here.find(key).is_none();
                if is_gone && places.elsewhere.closed_at(key, &backend.shared_id()) {
                    sharing.tell(key, None);
                }
            }
        });
    }

    pub(super) fn share(&self, pool: &str, teller: Teller) {
        // A pool is shared once, by whoever has made it.
        let _ = self.sharing.set(Sharing { pool: pool.to_owned(), teller });
    }

    /// Changes the place of a key, and settles that with other proxies.
    fn change_key<T>(
        &self,
        pool: &Pool,
        key: &str,
        change: impl FnOnce(&mut Table, &Elsewhere) -> T,
    ) -> T {
        let (changed, told) = self.change(|places| {
            let changed = change(&mut places.here, &places.elsewhere);
            let told = self.sharing.get().and_then(|sharing| places.settle(sharing, pool, key));
            (changed, told)
        });
        if let Some(told) = told {
            pool.tell_of_place(told);
        }
        changed
    }

    /// What others were told: keys and backends' ids.
    pub(super) fn told(&self) -> Vec<(Arc<str>, Arc<str>)> {
        self.lock().elsewhere.told()
    }

    fn contested(&self) -> Vec<Arc<str>> {
        self.lock().elsewhere.contested()
    }

    /// See [`Pool::vacated`].
    pub(super) async fn vacated(&self, key: &str) {
        if self.leaving.load(Ordering::Acquire) == 0 {
            return;
        }
        let vacated = async {
            loop {
                let mut left = pin!(self.left.notified());
                // From now on none is missed.
                left.as_mut().enable();
                if !self.lock().here.is_leaving(key) {
                    return;
                }
                left.await;
            }
        };
        // Who waits for so long goes on all the same.
        let _ = timeout(VACATED_WITHIN, vacated).await;
    }

    /// Whether a key was let go, and something of it may still live where it was.
    pub(super) fn is_leaving(&self, key: &str) -> bool {
        self.lock().here.is_leaving(key)
    }

    /// Changes the table, and tells those that wait if a key has left.
    fn change<T>(&self, change: impl FnOnce(&mut Places) -> T) -> T {
        let mut places = self.lock();
        let changed = change(&mut places);
        let (before, now) = (self.leaving.load(Ordering::Relaxed), places.here.leaving());
        if before != now {
            self.leaving.store(now, Ordering::Release);
        }
        drop(places);
        if now < before {
            self.left.notify_waiters();
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        // Nothing in the tables can panic between two halves of a change.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Placements {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Placements").finish_non_exhaustive()
    }
}

/// What comes of a key that other proxies have elsewhere.
pub(super) enum Told {
    /// It was let go, and its connections at this backend are to be closed.
    GaveWay(Arc<str>, Arc<Backend>),
    /// It is kept at this backend, though it should be at another.
    Disputed(Arc<str>, Arc<Backend>),
}

impl Places {
    /// Has others know of a key what they are to know, and lets it go where it has to give way.
    fn settle(&mut self, sharing: &Sharing, pool: &Pool, key: &str) -> Option<Told> {
        let Some(PlacedKey { key, backend, .. }) = self.here.find(key) else {
            if self.elsewhere.gone(key) {
                sharing.tell(key, None);
            }
            return None;
        };
        let own = backend.shared_id();
        let at_home = pool.home(&key).is_some_and(|home| home.id() == &*own);
        let (settled, is_disputed) =
            self.elsewhere.settle(&key, &own, at_home, pool.seen_from(&key));
        match settled {
            Settled::Stays => {}
            Settled::IsTold => sharing.tell(&key, Some(&own)),
            Settled::GivesWay => {
                self.here.let_go(std::slice::from_ref(&key), &backend);
                if self.elsewhere.gone(&key) {
                    sharing.tell(&key, None);
                }
                return Some(Told::GaveWay(key, backend));
            }
        }
        is_disputed.then_some(Told::Disputed(key, backend))
    }
}

impl Pool {
    /// Shares the places of its keys with other proxies, which `teller` reaches. Once, before
    /// anything is placed.
    pub fn share(&self, teller: Teller) {
        self.placements.share(self.name(), teller);
    }

    /// Takes what another proxy says of a key: the id of the backend where it has it, `None` if it
    /// has it nowhere.
    pub fn hear(&self, key: &str, proxy: &str, backend: Option<&str>) {
        if !self.places_keys() {
            return;
        }
        self.placements.change(|places| places.elsewhere.hear(key, proxy, backend));
        self.placements.change_key(self, key, |_, _| ());
    }

    /// Takes all that other proxies say of its keys: keys, proxies and backends' ids.
    pub fn hear_anew(&self, all: &[(String, String, String)]) {
        if !self.places_keys() {
            return;
        }
        let touched = self.placements.change(|places| places.elsewhere.hear_anew(all));
        // One after the other, so that nobody waits for the lock for long.
        for key in touched {
            self.placements.change_key(self, &key, |_, _| ());
            self.placements.change(|places| {
                let Some(sharing) = self.placements.sharing.get() else { return };
                let own = places.here.find(&key).map(|placed| placed.backend);
                let own =
                    own.filter(|own| self.home(&key).is_some_and(|home| home.id() == own.id()));
                if own.is_some_and(|own| places.elsewhere.tidy(&key, own.id())) {
                    sharing.tell(&key, None);
                }
            });
        }
    }

    /// The keys that other proxies are to know of, with their backends' ids.
    pub fn told(&self) -> Vec<(Arc<str>, Arc<str>)> {
        self.placements.told()
    }

    /// Where other proxies have a key that is not placed here, if that backend is known and not lost.
    pub fn find_elsewhere(&self, key: &str) -> Option<Arc<Backend>> {
        self.followed(&self.placements.lock().elsewhere, key).cloned()
    }

    fn followed(&self, elsewhere: &Elsewhere, key: &str) -> Option<&Arc<Backend>> {
        self.backend(elsewhere.follow(key, self.seen_from(key))?)
    }

    /// Whether a key may live at its home without this proxy knowing: others do not tell of one that is
    /// there, and here it would not go there.
    ///
    /// Whoever is in doubt asks the registry, and [places](Pool::place) the key accordingly.
    pub fn is_in_doubt(&self, key: &str) -> bool {
        if !self.places_keys() || self.placements.sharing.get().is_none() {
            return false;
        }
        let Some(home) = self.home(key) else { return false };
        // Once its turn has come in a drain, whoever still has it there is about to close it.
        if home.is_draining() && home.drain().is_some_and(|drain| drain.has_come(key)) {
            return false;
        }
        let chosen = self.choose(ring::position(key.as_bytes()), &[], Demand::Connection);
        chosen.is_none_or(|chosen| !Arc::ptr_eq(&chosen, home))
            && self.find(key).is_none()
            && self.find_elsewhere(key).is_none()
    }

    /// Settles every key with other proxies, because homes may be others now.
    pub(super) fn settle_all(&self) {
        if self.placements.sharing.get().is_none() {
            return;
        }
        for PlacedKey { key, .. } in self.placements.list() {
            self.placements.change_key(self, &key, |_, _| ());
        }
    }

    /// Settles again the keys that other proxies have at another backend than this one, because which
    /// of them wins depends on how backends are.
    pub(super) fn settle_contested(&self) {
        // One after the other, so that nobody waits for the lock for long.
        for key in self.placements.contested() {
            self.placements.change_key(self, &key, |_, _| ());
        }
    }

    /// Its backends in the order in which they come from the position of a key.
    fn seen_from(&self, key: &str) -> impl Iterator<Item = Seen<'_>> {
        let walk = self.ring().walk(ring::position(key.as_bytes()));
        walk.filter_map(|index| self.backends().get(index)).map(|backend| Seen {
            id: backend.id(),
            is_lost: backend.is_lost(),
            in_service: backend.in_service(),
            is_draining: backend.is_draining(),
        })
    }

    fn tell_of_place(&self, told: Told) {
        match told {
            Told::GaveWay(key, backend) => {
                let clearing = self.clearing(&backend);
                (self.observer)(&Event::GaveWay { key, clearing });
            }
            Told::Disputed(key, backend) => {
                let pool = self.name().to_owned();
                (self.observer)(&Event::Disputed { pool, key, backend });
            }
        }
    }
}

/// A connection's hold on the place of its key.
///
/// 48 bytes, once it is live.
pub struct Placement {
    placements: Arc<Placements>,
    ticket: Ticket,
    /// Present until the connection is live, which needs no more choices: an idle connection
    /// does not keep the ring of a config of long ago.
    choices: Option<Box<Choices>>,
}

/// What a connection needs to go on to another backend.
struct Choices {
    pool: Arc<Pool>,
    position: u64,
    /// Where this very connection has been, so that it can't go in circles.
    tried: Vec<Arc<Backend>>,
    /// What was taken together with the choice of a backend for the key.
    slot: RefCell<Option<Slot>>,
    /// Where other proxies have live connections of the key, as far as was asked.
    lives: Option<Arc<Backend>>,
}

impl Choices {
    /// Chooses a backend and takes its place for the connection, in one: whoever comes for the
    /// same key meanwhile finds it counted.
    ///
    /// Where other proxies have the key it goes there or nowhere, as it does where it has live
    /// connections here: also to one that is full or out of service, and to no other if it can't be
    /// connected to, until it is lost.
    fn choose(
        &self,
        key: &str,
        elsewhere: &Elsewhere,
        tried: &[Arc<Backend>],
    ) -> Option<Arc<Backend>> {
        let lives = self.lives.as_ref().filter(|lives| !lives.is_lost());
        if let Some(followed) = self.pool.followed(elsewhere, key).or(lives) {
            let is_tried = tried.iter().any(|one| Arc::ptr_eq(one, followed));
            self.slot.replace(None);
            return (!is_tried).then(|| Arc::clone(followed));
        }
        let slot = self.pool.admit(self.position, tried)?;
        let backend = Arc::clone(slot.backend());
        self.slot.replace(Some(slot));
        Some(backend)
    }
}

impl Placement {
    pub(super) fn begin(
        pool: &Arc<Pool>,
        key: &str,
        lives: Option<Arc<Backend>>,
    ) -> Result<Self, NoBackend> {
        let position = ring::position(key.as_bytes());
        let placements = Arc::clone(&pool.placements);
        let choices = Choices {
            pool: Arc::clone(pool),
            position,
            tried: Vec::new(),
            slot: RefCell::default(),
            lives,
        };
        let ticket = placements.change_key(pool, key, |here, elsewhere| {
            here.place(key, &|tried| choices.choose(key, elsewhere, tried))
        });
        let ticket = ticket.ok_or_else(|| pool.no_backend())?;
        Ok(Self { placements, ticket, choices: Some(Box::new(choices)) })
    }

    /// Hands over the backend's place for this connection; `None` if it has as many connections
    /// as it may, or if this one is live.
    pub fn slot(&mut self) -> Option<Slot> {
        let choices = self.choices.as_ref()?;
        let backend = &self.ticket.backend;
        let taken = choices.slot.take().filter(|slot| Arc::ptr_eq(slot.backend(), backend));
        taken.or_else(|| backend.slot(choices.pool.settings().max_connections))
    }

    /// Has it go where other proxies have live connections of the key, or nowhere, unless it is live.
    pub fn lives_at(&mut self, backend: Arc<Backend>) {
        if let Some(choices) = &mut self.choices {
            choices.lives = Some(backend);
        }
    }

    /// Goes on to another backend, because this one could not be connected to.
    ///
    /// That is where the key was moved by somebody else meanwhile, or else the next in service on
    /// the ring; connections of the key that come now or that fail here too follow. Whether the
    /// failure counts against the backend is for the caller to [report](Pool::traffic_failed).
    ///
    /// # Errors
    ///
    /// [`Stay::Live`] if the key has live connections here, also if this is one of them;
    /// [`Stay::NoneLeft`] if every backend that this connection may try was tried. Either way
    /// this connection gets no answer, and the placement is to be dropped.
    pub fn go_on(&mut self) -> Result<(), Stay> {
        let Some(choices) = &mut self.choices else {
            return Err(Stay::Live);
        };
        choices.tried.push(Arc::clone(&self.ticket.backend));
        let choices = &*choices;
        let ticket = &mut self.ticket;
        let key = Arc::clone(&ticket.key);
        self.placements.change_key(&choices.pool, &key, |here, elsewhere| {
            here.go_on(ticket, &|tried| choices.choose(&key, elsewhere, tried))
        })?;
        if choices.tried.iter().any(|one| Arc::ptr_eq(one, &self.ticket.backend)) {
            return Err(Stay::NoneLeft);
        }
        Ok(())
    }

    /// Makes the connection a live one, because its backend has answered with a 101.
    ///
    /// Twice is once.
    ///
    /// # Errors
    ///
    /// [`Moved::Elsewhere`] if the key is on another backend by now: the answer is void, its
    /// upstream is to be dropped, and [`backend`](Self::backend) names where to begin again. That
    /// happens if others could not connect here while this one waited, if the backend was lost, or
    /// if it is drained and the key was let go; it can happen again there, so the caller counts. [`Moved::Nowhere`] if the backend was lost
    /// and no other is in service.
    pub fn establish(&mut self) -> Result<(), Moved> {
        let Some(choices) = &self.choices else {
            return Ok(());
        };
        let ticket = &mut self.ticket;
        let key = Arc::clone(&ticket.key);
        self.placements.change_key(&choices.pool, &key, |here, elsewhere| {
            here.establish(ticket, &|tried| choices.choose(&key, elsewhere, tried))
        })?;
        self.choices = None;
        Ok(())
    }

    /// The backend that this connection is to use.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.ticket.backend
    }

    /// The key.
    pub fn key(&self) -> &Arc<str> {
        &self.ticket.key
    }

    /// Whether it was established.
    pub fn is_live(&self) -> bool {
        self.choices.is_none()
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        let phase = if self.is_live() { Phase::Live } else { Phase::UnderWay };
        let ticket = &self.ticket;
        self.placements.change(|places| {
            places.here.leave(ticket, phase);
            if let Some(sharing) = self.placements.sharing.get()
                && places.here.find(&ticket.key).is_none()
                && places.elsewhere.gone(&ticket.key)
            {
                sharing.tell(&ticket.key, None);
            }
        });
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Placement")
            .field("key", &self.ticket.key)
            .field("backend", &self.ticket.backend)
            .field("live", &self.is_live())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{lose, pool, put_out};
    use super::*;

    /// The ids of all backends in the order in which they come into question for `key`.
    fn order(pool: &Pool, key: &str) -> Vec<String> {
        let walk = pool.ring().walk(ring::position(key.as_bytes()));
        walk.map(|index| pool.backends()[index].id().to_owned()).collect()
    }

    #[test]
    fn a_key_begins_at_home() {
        let pool = pool(&["a", "b", "c"]);
        for number in 0..50 {
            let key = format!("room-{number}");
            let placement = pool.place(&key, None).unwrap();
            assert_eq!(placement.backend().id(), order(&pool, &key)[0]);
        }
        assert!(pool.placed().is_empty());
    }

    #[test]
    fn candidates_come_in_the_order_of_the_ring() {
        let pool = pool(&["a", "b", "c", "d"]);
        let order = order(&pool, "k");
        put_out(pool.backend(&order[2]).unwrap());
        let mut placement = pool.place("k", None).unwrap();
        let mut visited = vec![placement.backend().id().to_owned()];
        while placement.go_on().is_ok() {
            visited.push(placement.backend().id().to_owned());
        }
        assert_eq!(visited, [&*order[0], &*order[1], &*order[3]]);
        assert_eq!(placement.go_on(), Err(Stay::NoneLeft));
    }

    #[test]
    fn a_dropped_placement_is_given_back() {
        let pool = pool(&["a", "b"]);
        let mut live = pool.place("k", None).unwrap();
        live.establish().unwrap();
        let under_way = pool.place("k", None).unwrap();
        let line = pool.find("k").unwrap();
        assert_eq!((line.live, line.under_way), (1, 1));
        drop(under_way);
        assert_eq!(live.go_on(), Err(Stay::Live));
        assert_eq!(live.establish(), Ok(()));
        assert_eq!(pool.placed().len(), 1);
        drop(live);
        assert!(pool.placed().is_empty());
    }

    #[test]
    fn a_live_placement_does_not_hold_its_pool() {
        let pool = pool(&["a"]);
        let mut placement = pool.place("k", None).unwrap();
        assert_eq!(Arc::strong_count(&pool), 2);
        placement.establish().unwrap();
        assert_eq!(Arc::strong_count(&pool), 1);
        assert!(size_of::<Placement>() <= 48);
    }

    #[test]
    fn nobody_goes_in_circles() {
        let pool = pool(&["a", "b"]);
        let mut one = pool.place("k", None).unwrap();
        let mut two = pool.place("k", None).unwrap();
        one.go_on().unwrap();
        two.go_on().unwrap();
        assert_eq!(one.go_on(), Err(Stay::NoneLeft));
        // The entry is gone with that; the ring would name the first again.
        assert_eq!(two.go_on(), Err(Stay::NoneLeft));
    }

    #[test]
    fn a_lost_key_goes_on_while_its_old_connections_end() {
        let pool = pool(&["a", "b"]);
        let order = order(&pool, "k");
        let mut old = pool.place("k", None).unwrap();
        old.establish().unwrap();
        lose(old.backend());
        let mut new = pool.place("k", None).unwrap();
        new.establish().unwrap();
        assert_eq!(new.backend().id(), order[1]);
        drop(old);
        assert_eq!(pool.find("k").unwrap().live, 1);
        assert_eq!(pool.backend(&order[1]).unwrap().keys(), 1);
        lose(new.backend());
        let none = NoBackend::OutOfService { pool: "p".to_owned() };
        assert_eq!(pool.place("k", None).unwrap_err(), none);
    }

    #[test]
    fn a_rebuilt_pool_knows_its_placements() {
        let old = pool(&["a", "b", "c"]);
        let mut placement = old.place("k", None).unwrap();
        placement.establish().unwrap();
        let mut settings = old.settings().clone();
        settings.backends.retain(|backend| backend.id != placement.backend().id());
        let new = old.rebuild(settings);
        assert_eq!(new.place("k", None).unwrap().backend().id(), placement.backend().id());
        drop(placement);
        assert!(new.backend(new.place("k", None).unwrap().backend().id()).is_some());
    }
}
