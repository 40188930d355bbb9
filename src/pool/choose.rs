//! A backend for what holds no place: a plain request, or a connection without a key.
//!
//! A request with a key goes where the key is placed, so that it meets the state that its
//! connections made, and else where a connection would go; but it places nothing itself. What has
//! no key goes anywhere: to the owner of a place on the ring that changes from one to the next,
//! which spreads it by weight, needs no state but a counter, and knows at once the order of those
//! to try if that one fails.

use std::fmt;
use std::sync::Arc;

use super::table::Stay;
use super::{Backend, NoBackend, Pool, ring};

/// A backend chosen once, and how to choose another if it can't be connected to.
pub struct Choice {
    pool: Arc<Pool>,
    /// Where on the ring the candidates begin.
    position: u64,
    key: Option<Box<str>>,
    backend: Arc<Backend>,
    tried: Vec<Arc<Backend>>,
}

impl Choice {
    pub(super) fn of_key(pool: &Arc<Pool>, key: &str) -> Result<Self, NoBackend> {
        let position = ring::position(key.as_bytes());
        let placed = pool.find(key).map(|placed| placed.backend);
        let backend = placed.or_else(|| pool.choose(position, &[]));
        let backend = backend.ok_or_else(|| pool.no_backend())?;
        let (pool, key) = (Arc::clone(pool), Some(key.into()));
        Ok(Self { pool, position, key, backend, tried: Vec::new() })
    }

    pub(super) fn of_turn(pool: &Arc<Pool>, turn: u64) -> Result<Self, NoBackend> {
        let position = scattered(turn);
        let backend = pool.choose(position, &[]).ok_or_else(|| pool.no_backend())?;
        let pool = Arc::clone(pool);
        Ok(Self { pool, position, key: None, backend, tried: Vec::new() })
    }

    /// The backend to use.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Goes on to another backend, because this one could not be connected to.
    ///
    /// That is where the key is placed by now, if it is and that was not tried yet, else the next
    /// in service on the ring.
    ///
    /// # Errors
    ///
    /// [`Stay::Live`] if the key has live connections on a backend that was tried: there the
    /// state is, and an answer from elsewhere would not know it. [`Stay::NoneLeft`] if every
    /// backend in service was tried.
    pub fn go_on(&mut self) -> Result<(), Stay> {
        self.tried.push(Arc::clone(&self.backend));
        if let Some(placed) = self.key.as_deref().and_then(|key| self.pool.find(key)) {
            let tried = self.tried.iter().any(|one| Arc::ptr_eq(one, &placed.backend));
            if !tried {
                self.backend = placed.backend;
                return Ok(());
            }
            if placed.live > 0 {
                return Err(Stay::Live);
            }
        }
        self.backend = self.pool.choose(self.position, &self.tried).ok_or(Stay::NoneLeft)?;
        Ok(())
    }
}

impl fmt::Debug for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (backend, tried) = (&self.backend, &self.tried);
        formatter.debug_struct("Choice").field("backend", backend).field("tried", tried).finish()
    }
}

/// Scatters consecutive numbers over all of `u64`, each to another: the mixer of SplitMix64
/// (Steele, Lea, Flood 2014).
fn scattered(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
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
            let request = pool.lookup(&key).unwrap();
            assert!(Arc::ptr_eq(request.backend(), pool.place(&key).unwrap().backend()));
        }
        assert!(pool.placed().is_empty(), "it places nothing");
    }

    #[test]
    fn a_request_follows_live_connections_and_stays_with_them() {
        let pool = pool(&["a", "b"]);
        let mut live = pool.place("k").unwrap();
        live.go_on().unwrap();
        live.establish().unwrap();
        put_out(live.backend());
        let mut request = pool.lookup("k").unwrap();
        assert!(Arc::ptr_eq(request.backend(), live.backend()));
        assert_eq!(request.go_on(), Err(Stay::Live));
    }

    #[test]
    fn a_request_without_live_connections_tries_each_once() {
        let pool = pool(&["a", "b", "c"]);
        let _under_way = pool.place("k").unwrap();
        let mut request = pool.lookup("k").unwrap();
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
        let mut request = pool.lookup("k").unwrap();
        let mut live = pool.place("k").unwrap();
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
        assert!(pool.lookup("k").is_err());
    }
}
