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

use std::cell::RefCell;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::backend::Slot;
use super::table::{Moved, Phase, PlacedKey, Stay, Table, Ticket};
use super::{Backend, NoBackend, Pool, ring};

/// How long a key that was let go keeps those waiting who come for it. A backend that does not
/// answer a Close is cut later than that.
const VACATED_WITHIN: Duration = Duration::from_secs(2);

/// Where the keys of a pool are; outlives the reload of its pool.
#[derive(Debug, Default)]
pub(super) struct Placements {
    table: Mutex<Table>,
    /// Keys that are leaving; written while the table is locked, and zero but for drains.
    leaving: AtomicUsize,
    /// Tells of each key that has left.
    left: Notify,
}

impl Placements {
    pub(super) fn find(&self, key: &str) -> Option<PlacedKey> {
        self.lock().find(key)
    }

    pub(super) fn list(&self) -> Vec<PlacedKey> {
        self.lock().list()
    }

    pub(super) fn keys_at(&self, backend: &Arc<Backend>) -> Vec<Arc<str>> {
        self.lock().keys_at(backend)
    }

    pub(super) fn let_go(&self, keys: &[Arc<str>], backend: &Arc<Backend>) {
        self.change(|table| table.let_go(keys, backend));
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
                if !self.lock().is_leaving(key) {
                    return;
                }
                left.await;
            }
        };
        // Who waits for so long goes on all the same.
        let _ = timeout(VACATED_WITHIN, vacated).await;
    }

    /// Changes the table, and tells those that wait if a key has left.
    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = self.lock();
        let changed = change(&mut table);
        let (before, now) = (self.leaving.load(Ordering::Relaxed), table.leaving());
        if before != now {
            self.leaving.store(now, Ordering::Release);
        }
        drop(table);
        if now < before {
            self.left.notify_waiters();
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing in the table can panic between two halves of a change.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
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
}

impl Choices {
    /// Chooses a backend and takes its place for the connection, in one: whoever comes for the
    /// same key meanwhile finds it counted.
    fn choose(&self, tried: &[Arc<Backend>]) -> Option<Arc<Backend>> {
        let slot = self.pool.admit(self.position, tried)?;
        let backend = Arc::clone(slot.backend());
        self.slot.replace(Some(slot));
        Some(backend)
    }
}

impl Placement {
    pub(super) fn begin(pool: &Arc<Pool>, key: &str) -> Result<Self, NoBackend> {
        let position = ring::position(key.as_bytes());
        let placements = Arc::clone(&pool.placements);
        let choices = Choices {
            pool: Arc::clone(pool),
            position,
            tried: Vec::new(),
            slot: RefCell::default(),
        };
        let ticket = placements.lock().place(key, &|tried| choices.choose(tried));
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
        self.placements.change(|table| table.go_on(ticket, &|tried| choices.choose(tried)))?;
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
        self.placements.change(|table| table.establish(ticket, &|tried| choices.choose(tried)))?;
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
        let ticket = &mut self.ticket;
        self.placements.change(|table| table.leave(ticket, phase));
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
            let placement = pool.place(&key).unwrap();
            assert_eq!(placement.backend().id(), order(&pool, &key)[0]);
        }
        assert!(pool.placed().is_empty());
    }

    #[test]
    fn candidates_come_in_the_order_of_the_ring() {
        let pool = pool(&["a", "b", "c", "d"]);
        let order = order(&pool, "k");
        put_out(pool.backend(&order[2]).unwrap());
        let mut placement = pool.place("k").unwrap();
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
        let mut live = pool.place("k").unwrap();
        live.establish().unwrap();
        let under_way = pool.place("k").unwrap();
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
        let mut placement = pool.place("k").unwrap();
        assert_eq!(Arc::strong_count(&pool), 2);
        placement.establish().unwrap();
        assert_eq!(Arc::strong_count(&pool), 1);
        assert!(size_of::<Placement>() <= 48);
    }

    #[test]
    fn nobody_goes_in_circles() {
        let pool = pool(&["a", "b"]);
        let mut one = pool.place("k").unwrap();
        let mut two = pool.place("k").unwrap();
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
        let mut old = pool.place("k").unwrap();
        old.establish().unwrap();
        lose(old.backend());
        let mut new = pool.place("k").unwrap();
        new.establish().unwrap();
        assert_eq!(new.backend().id(), order[1]);
        drop(old);
        assert_eq!(pool.find("k").unwrap().live, 1);
        assert_eq!(pool.backend(&order[1]).unwrap().keys(), 1);
        lose(new.backend());
        let none = NoBackend::OutOfService { pool: "p".to_owned() };
        assert_eq!(pool.place("k").unwrap_err(), none);
    }

    #[test]
    fn a_rebuilt_pool_knows_its_placements() {
        let old = pool(&["a", "b", "c"]);
        let mut placement = old.place("k").unwrap();
        placement.establish().unwrap();
        let mut settings = old.settings().clone();
        settings.backends.retain(|backend| backend.id != placement.backend().id());
        let new = old.rebuild(settings);
        assert_eq!(new.place("k").unwrap().backend().id(), placement.backend().id());
        drop(placement);
        assert!(new.backend(new.place("k").unwrap().backend().id()).is_some());
    }
}
