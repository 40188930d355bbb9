//! A backend for what holds no place: a plain request, or a connection without a key.
//!
//! A request with a key goes where the key is placed, by this proxy or by another, so that it meets
//! the state that its connections made, and else where a connection would go; but it places nothing itself. What has
//! no key goes anywhere: to the owner of a place on the ring that changes from one to the next,
//! which spreads it by weight, needs no state but a counter, and knows at once the order of those
//! to try if that one fails. In a pool without a ring that is so for all that comes, and the place
//! is the chance by which `random_two` goes.
//!
//! From its choice on a backend is charged with what it will get, so that those who choose at the
//! same moment don't all find the same one idle.

use std::fmt;
use std::sync::Arc;

use super::backend::{RequestGauge, Slot, Waiting};
use super::balance::scattered;
use super::select::Demand;
use super::table::Stay;
use super::{Backend, NoBackend, Pool, ring};

/// A backend chosen once, and how to choose another if it can't be connected to.
pub struct Choice {
    pool: Arc<Pool>,
    /// Where on the ring the candidates begin.
    position: u64,
    key: Option<Box<str>>,
    /// Where other proxies have live connections of the key, as far as was asked.
    lives: Option<Arc<Backend>>,
    backend: Arc<Backend>,
    tried: Vec<Arc<Backend>>,
    demand: Demand,
    hold: Hold,
}

/// What a backend is charged with until the thing itself counts.
enum Hold {
    Nothing,
    Slot(Slot),
    Waiting(#[expect(dead_code, reason = "a guard")] Waiting),
}

impl Choice {
    pub(super) fn of_key(
        pool: &Arc<Pool>,
        key: &str,
        lives: Option<Arc<Backend>>,
    ) -> Result<Self, NoBackend> {
        let position = ring::position(key.as_bytes());
        let found = pool.find(key).map(|placed| placed.backend);
        let found = found.or_else(|| pool.find_elsewhere(key)).or_else(|| lives.clone());
        let found = found.map(|backend| (backend, Hold::Nothing));
        let found = found.or_else(|| select(pool, position, &[], Demand::Request));
        let choice = Self::new(pool, position, Some(key.into()), Demand::Request, found)?;
        Ok(Self { lives, ..choice })
    }

    pub(super) fn of_turn(pool: &Arc<Pool>, turn: u64, demand: Demand) -> Result<Self, NoBackend> {
        let position = scattered(turn ^ pool.seed);
        let found = select(pool, position, &[], demand);
        Self::new(pool, position, None, demand, found)
    }

    fn new(
        pool: &Arc<Pool>,
        position: u64,
        key: Option<Box<str>>,
        demand: Demand,
        found: Option<(Arc<Backend>, Hold)>,
    ) -> Result<Self, NoBackend> {
        let (backend, hold) = found.ok_or_else(|| pool.no_backend())?;
        let pool = Arc::clone(pool);
        Ok(Self { pool, position, key, lives: None, backend, tried: Vec::new(), demand, hold })
    }

    /// The key that decides, if one does.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Has it go where other proxies have live connections of its key, or nowhere.
    pub fn lives_at(&mut self, backend: Arc<Backend>) {
        self.lives = Some(backend);
    }

    /// The backend to use.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Counts the plain request that this is for, which is sent now.
    pub fn request(&mut self) -> RequestGauge {
        let request = self.backend.request();
        self.hold = Hold::Nothing;
        request
    }

    /// Hands over the backend's place for the connection that this is for; `None` if it is full.
    pub fn slot(&mut self) -> Option<Slot> {
        match std::mem::replace(&mut self.hold, Hold::Nothing) {
            Hold::Slot(slot) => Some(slot),
            _ => self.backend.slot(self.pool.settings().max_connections),
        }
    }

    /// Goes on to another backend, because this one could not be connected to.
    ///
    /// That is where the key is placed by now, if it is and that was not tried yet, else the next
    /// that may have it: on the ring, or by the pool's rule.
    ///
    /// # Errors
    ///
    /// [`Stay::Live`] if the key has live connections on a backend that was tried: there the
    /// state is, and an answer from elsewhere would not know it. [`Stay::NoneLeft`] if every
    /// backend in service was tried.
    pub fn go_on(&mut self) -> Result<(), Stay> {
        self.tried.push(Arc::clone(&self.backend));
        self.hold = Hold::Nothing;
        let key = self.key.as_deref();
        if let Some(placed) = key.and_then(|key| self.pool.find(key)) {
            let tried = self.tried.iter().any(|one| Arc::ptr_eq(one, &placed.backend));
            if !tried {
                self.backend = placed.backend;
                return Ok(());
            }
            if placed.live > 0 {
                return Err(Stay::Live);
            }
        } else if let Some(placed) =
            key.and_then(|key| self.pool.find_elsewhere(key)).or_else(|| self.lives.clone())
        {
            if self.tried.iter().any(|one| Arc::ptr_eq(one, &placed)) {
                return Err(Stay::Live);
            }
            self.backend = placed;
            return Ok(());
        }
        let found = select(&self.pool, self.position, &self.tried, self.demand);
        (self.backend, self.hold) = found.ok_or(Stay::NoneLeft)?;
        Ok(())
    }
}

fn select(
    pool: &Pool,
    position: u64,
    tried: &[Arc<Backend>],
    demand: Demand,
) -> Option<(Arc<Backend>, Hold)> {
    match demand {
        Demand::Connection => {
            let slot = pool.admit(position, tried)?;
            Some((Arc::clone(slot.backend()), Hold::Slot(slot)))
        }
        Demand::Request => {
            let backend = pool.choose(position, tried, demand)?;
            // On a ring nobody looks at what others are busy with.
            let hold =
                if pool.places_keys() { Hold::Nothing } else { Hold::Waiting(backend.waiting()) };
            Some((backend, hold))
        }
    }
}

impl fmt::Debug for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (backend, tried) = (&self.backend, &self.tried);
        formatter.debug_struct("Choice").field("backend", backend).field("tried", tried).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::tests::{lose, pool, put_out, weighted};
    use super::*;

    #[test]
    fn a_request_goes_where_a_connection_would() {
        let pool = pool(&["a", "b", "c"]);
        for number in 0..50 {
            let key = format!("room-{number}");
            let request = pool.lookup(&key, None).unwrap();
            assert!(Arc::ptr_eq(request.backend(), pool.place(&key, None).unwrap().backend()));
        }
        assert!(pool.placed().is_empty(), "it places nothing");
    }

    #[test]
    fn a_request_follows_live_connections_and_stays_with_them() {
        let pool = pool(&["a", "b"]);
        let mut live = pool.place("k", None).unwrap();
        live.go_on().unwrap();
        live.establish().unwrap();
        put_out(live.backend());
        let mut request = pool.lookup("k", None).unwrap();
        assert!(Arc::ptr_eq(request.backend(), live.backend()));
        assert_eq!(request.go_on(), Err(Stay::Live));
    }

    #[test]
    fn a_request_without_live_connections_tries_each_once() {
        let pool = pool(&["a", "b", "c"]);
        let _under_way = pool.place("k", None).unwrap();
        let mut request = pool.lookup("k", None).unwrap();
        let mut visited = vec![request.backend().id().to_owned()];
        while request.go_on().is_ok() {
            visited.push(request.backend().id().to_owned());
        }
        visited.sort_unstable();
        assert_eq!(visited, ["a", "b", "c"]);
        assert_eq!(request.go_on(), Err(Stay::NoneLeft));
    }

    #[test]
    fn a_request_that_failed_goes_where_the_key_was_placed_meanwhile() {
        let pool = pool(&["a", "b", "c", "d"]);
        let mut request = pool.lookup("k", None).unwrap();
        let mut live = pool.place("k", None).unwrap();
        live.go_on().unwrap();
        live.go_on().unwrap();
        live.establish().unwrap();
        request.go_on().unwrap();
        assert!(Arc::ptr_eq(request.backend(), live.backend()));
        assert_eq!(request.go_on(), Err(Stay::Live));
    }

    #[test]
    fn without_a_key_weights_decide() {
        let pool = weighted(&[("a", 1), ("b", 3)]);
        let mut loads = HashMap::new();
        for _ in 0..10_000 {
            let choice = pool.any().unwrap();
            *loads.entry(choice.backend().id().to_owned()).or_insert(0_u32) += 1;
        }
        for (index, backend) in pool.backends().iter().enumerate() {
            let share = f64::from(loads[backend.id()]) / 10_000.0;
            assert!((share - pool.ring().share(index)).abs() < 0.02, "{backend:?}: {share}");
        }
    }

    #[test]
    fn without_a_key_another_is_found_too() {
        let pool = pool(&["a", "b", "c"]);
        put_out(&pool.backends()[0]);
        lose(&pool.backends()[1]);
        let mut choice = pool.any().unwrap();
        assert_eq!(choice.backend().id(), "c");
        assert_eq!(choice.go_on(), Err(Stay::NoneLeft));
        put_out(&pool.backends()[2]);
        assert!(pool.any().is_err());
        assert!(pool.lookup("k", None).is_err());
    }
}
