//! The consistent hash ring: from a key to the backends that may serve it, in order.
//!
//! A backend has many points on a circle of 64-bit positions, in proportion to its weight. A key
//! has one position and belongs to the first point at or after it; past the last point the circle
//! begins anew. Taking a backend away moves only the keys that were its own, and spreads those
//! over all others.
//!
//! Every proxy must find the same owner, also one of another version or architecture. So the
//! positions are computed here, from bytes in a fixed order, and the `hashring` crate, which
//! hashes whatever it is given, gets a hasher that hands them through. It keeps the sorted points
//! and searches them; weights, equal positions and the walk are ours. `tests/golden/ring.json`
//! fixes the outcome.
//!
//! The ring has not heard of health: who is out of service is skipped by whoever walks, so that a
//! backend that comes back finds its keys where they were. It is built once per change of the
//! backends (2 ms for ten of weight 1) and never changed; a point takes 24 bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::num::NonZeroU32;

use hashring::HashRing;
use xxhash_rust::xxh3::xxh3_64;

/// Points of a backend for each unit of its weight.
///
/// So many that of ten equal backends the fullest has only some hundredths more keys than the
/// average; with the usual 160 it is a seventh.
pub const POINTS_PER_WEIGHT: u32 = 1024;

/// The most points that a config may ask of one ring: 24 MiB, and an eighth of a second to build.
pub const MAX_POINTS: u64 = 1 << 20;

/// Where a key stands on the ring.
///
/// `key` is any bytes, also none. Every proxy computes the same.
pub fn position(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// A fingerprint of what a ring is made of, each backend's id and weight: 16 hexadecimal digits.
///
/// The xxh3-64 of the backends in the order of their ids: the id's bytes, a zero byte, and the weight
/// as 32-bit little-endian. Proxies compare it, so it is the same in every version.
pub fn fingerprint<'a>(backends: impl IntoIterator<Item = (&'a str, NonZeroU32)>) -> String {
    let sorted: BTreeMap<&str, NonZeroU32> = backends.into_iter().collect();
    let mut bytes = Vec::new();
    for (id, weight) in sorted {
        bytes.extend_from_slice(id.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&weight.get().to_le_bytes());
    }
    format!("{:016x}", xxh3_64(&bytes))
}

/// A ring of backends, which it knows by their index in the list it was built from.
pub struct Ring {
    /// No two points have the same position.
    points: HashRing<Point, HandThrough>,
    shares: Vec<f64>,
}

impl Ring {
    /// Builds the ring of these backends, each an id and a weight.
    ///
    /// Ids are distinct, and their points together at most [`MAX_POINTS`]: the config sees to
    /// both. The order of the backends changes their indexes only. No backend: no key has an
    /// owner.
    pub fn new<'a>(backends: impl IntoIterator<Item = (&'a str, NonZeroU32)>) -> Self {
        let backends: Vec<_> = backends.into_iter().collect();
        let by_id: BTreeMap<&str, (usize, NonZeroU32)> = backends
            .iter()
            .enumerate()
            .map(|(index, &(id, weight))| (id, (index, weight)))
            .collect();
        let points = by_id.iter().flat_map(|(id, &(index, weight))| points_of(id, index, weight));
        Self::of_points(points.collect(), backends.len())
    }

    /// Takes points in the order of their backends' ids.
    fn of_points(mut points: Vec<Point>, backends: usize) -> Self {
        // The sort is stable: of two points at one place the smaller id's comes first, and stays.
        points.sort_by_key(|point| point.position);
        points.dedup_by_key(|point| point.position);
        let shares = shares(&points, backends);
        let mut ring = HashRing::with_hasher(HandThrough::default());
        ring.batch_add(points);
        Self { points: ring, shares }
    }

    /// Finds the backend that owns `key`, whatever its health; `None` if there is no backend.
    ///
    /// `key` is any bytes, also none. O(log points), no allocation.
    pub fn owner(&self, key: &[u8]) -> Option<usize> {
        self.points.get(&At(position(key))).map(|point| point.backend)
    }

    /// Walks all backends, each once, in the order in which they come clockwise from `position`.
    ///
    /// The first is the owner of a key that stands there. A step costs a binary search for each
    /// point it passes; up to the first backend nothing is allocated, nor for the first 64 of the
    /// list at all.
    pub fn walk(&self, position: u64) -> Walk<'_> {
        Walk {
            ring: self,
            position,
            first: None,
            last: None,
            seen: Seen::default(),
            left: self.shares.len(),
        }
    }

    /// Tells which part of all positions a backend owns, from 0 to 1; 0 for an unknown index.
    pub fn share(&self, backend: usize) -> f64 {
        self.shares.get(backend).copied().unwrap_or(0.0)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (points, backends) = (self.points.len(), self.shares.len());
        formatter
            .debug_struct("Ring")
            .field("backends", &backends)
            .field("points", &points)
            .finish()
    }
}

/// The backends from a place on the ring onwards; [`Ring::walk`] begins it.
#[derive(Debug)]
pub struct Walk<'a> {
    ring: &'a Ring,
    /// Where to look for the next point.
    position: u64,
    /// The point at which the walk began: there it has come round.
    first: Option<u64>,
    /// The backend told last, noted as seen only at the next step: most walks end at their first.
    last: Option<usize>,
    seen: Seen,
    /// Backends not told yet, so that nobody goes round in search of the end.
    left: usize,
}

impl Iterator for Walk<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if let Some(last) = self.last.take() {
            self.seen.insert(last);
        }
        while self.left > 0 {
            let point = self.ring.points.get(&At(self.position))?;
            if self.first == Some(point.position) {
                // Only if equal positions left a backend without a point.
                self.left = 0;
                return None;
            }
            self.first.get_or_insert(point.position);
            // After the very last position comes the very first.
            self.position = point.position.wrapping_add(1);
            if !self.seen.contains(point.backend) {
                self.left -= 1;
                self.last = Some(point.backend);
                return self.last;
            }
        }
        None
    }
}

/// A set of indexes, of which those below 64 need no allocation.
#[derive(Debug, Default)]
struct Seen {
    low: u64,
    high: Vec<u64>,
}

impl Seen {
    fn insert(&mut self, index: usize) {
        let (word, bit) = (index / 64, 1 << (index % 64));
        if word == 0 {
            self.low |= bit;
            return;
        }
        if self.high.len() < word {
            self.high.resize(word, 0);
        }
        self.high[word - 1] |= bit;
    }

    fn contains(&self, index: usize) -> bool {
        let (word, bit) = (index / 64, 1 << (index % 64));
        let bits = if word == 0 { self.low } else { self.high.get(word - 1).copied().unwrap_or(0) };
        bits & bit != 0
    }
}

/// A backend's points: at the hash of its id, a zero byte, and the number of the point.
fn points_of(id: &str, backend: usize, weight: NonZeroU32) -> impl Iterator<Item = Point> {
    let mut bytes = [id.as_bytes(), &[0; 5]].concat();
    let number_at = id.len() + 1;
    (0..weight.get().saturating_mul(POINTS_PER_WEIGHT)).map(move |number| {
        bytes[number_at..].copy_from_slice(&number.to_le_bytes());
        Point { position: xxh3_64(&bytes), backend }
    })
}

/// The share of each backend: a point owns what lies between the one before it and itself.
#[expect(clippy::cast_precision_loss, reason = "a share is shown with a few digits")]
fn shares(points: &[Point], backends: usize) -> Vec<f64> {
    let mut owned = vec![0_u128; backends];
    let whole = 1_u128 << 64;
    let mut before = points.last().map_or(0, |point| point.position);
    for point in points {
        let arc = u128::from(point.position.wrapping_sub(before));
        // A point alone is its own predecessor, at distance nought: it owns the whole circle.
        owned[point.backend] += if arc == 0 { whole } else { arc };
        before = point.position;
    }
    owned.into_iter().map(|arc| arc as f64 / whole as f64).collect()
}

#[derive(Clone, Copy, Debug)]
struct Point {
    position: u64,
    backend: usize,
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.position);
    }
}

/// A place to look from.
struct At(u64);

impl Hash for At {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// A hasher whose hash is the number that was written to it: positions are hashes already.
#[derive(Clone, Debug, Default)]
struct HandThrough(u64);

impl BuildHasher for HandThrough {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl Hasher for HandThrough {
    fn write_u64(&mut self, position: u64) {
        self.0 = position;
    }

    fn write(&mut self, _: &[u8]) {
        debug_assert!(false, "points and places are written as one u64");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(points: &[(u64, usize)], backends: usize) -> Ring {
        let points = points.iter().map(|&(position, backend)| Point { position, backend });
        Ring::of_points(points.collect(), backends)
    }

    fn walk(ring: &Ring, from: u64) -> Vec<usize> {
        ring.walk(from).collect()
    }

    #[test]
    fn a_fingerprint_is_of_ids_and_weights_in_any_order() {
        let weight = |weight| NonZeroU32::new(weight).unwrap();
        let (a, b) = (("a", weight(1)), ("b", weight(2)));
        assert_eq!(fingerprint([a, b]), fingerprint([b, a]));
        // What versions agree on.
        assert_eq!(fingerprint([a, b]), "787637b8d89a04f0");
        for other in [vec![a], vec![a, ("b", weight(1))], vec![("ab", weight(1))], vec![]] {
            assert_ne!(fingerprint(other), fingerprint([a, b]));
        }
    }

    #[test]
    fn a_place_belongs_to_the_next_point_its_own_included() {
        let ring = ring(&[(10, 0), (20, 1), (30, 2)], 3);
        assert_eq!(walk(&ring, 10), [0, 1, 2]);
        assert_eq!(walk(&ring, 11), [1, 2, 0]);
        assert_eq!(walk(&ring, 30), [2, 0, 1]);
        assert_eq!(walk(&ring, 31), [0, 1, 2]);
    }

    #[test]
    fn the_circle_closes_at_the_last_position() {
        let ring = ring(&[(0, 0), (5, 1), (u64::MAX, 2)], 3);
        assert_eq!(walk(&ring, u64::MAX), [2, 0, 1]);
        assert_eq!(walk(&ring, 6), [2, 0, 1]);
        assert_eq!(walk(&ring, 0), [0, 1, 2]);
    }

    #[test]
    fn of_two_points_at_one_place_the_first_id_has_it() {
        let ring = ring(&[(7, 1), (9, 1), (7, 0), (20, 0)], 2);
        assert_eq!(walk(&ring, 7), [1, 0]);
        assert_eq!(walk(&ring, 10), [0, 1]);
    }

    #[test]
    fn a_backend_without_a_place_of_its_own_is_left_out() {
        let ring = ring(&[(7, 1), (7, 0)], 2);
        let mut steps = ring.walk(0);
        assert_eq!(steps.next(), Some(1));
        assert_eq!(steps.next(), None);
        assert_eq!(steps.next(), None);
        assert_eq!(ring.share(0), 0.0);
        assert_eq!(ring.share(1), 1.0);
    }

    #[test]
    fn a_backend_is_told_once_however_many_points_it_has() {
        let ring = ring(&[(1, 0), (2, 0), (3, 1), (4, 0), (5, 2), (6, 1)], 3);
        assert_eq!(walk(&ring, 2), [0, 1, 2]);
        assert_eq!(walk(&ring, 6), [1, 0, 2]);
    }

    #[test]
    fn an_empty_ring_has_no_owner() {
        let ring = Ring::new([]);
        assert_eq!(ring.owner(b"any"), None);
        assert_eq!(ring.walk(0).next(), None);
    }

    #[test]
    fn shares_are_the_arcs_before_the_points() {
        let quarter = 1_u64 << 62;
        let even = ring(&[(quarter, 0), (3 * quarter, 1)], 2);
        assert_eq!(even.share(0), 0.5);
        assert_eq!(even.share(1), 0.5);
        let uneven = ring(&[(0, 0), (quarter, 1)], 2);
        assert_eq!(uneven.share(0), 0.75);
        assert_eq!(uneven.share(1), 0.25);
        assert_eq!(uneven.share(2), 0.0);
    }

    #[test]
    fn a_walk_of_many_backends_tells_all() {
        let points: Vec<_> = (0..200).map(|index| (index as u64 * 3, index)).collect();
        let ring = ring(&points, 200);
        let mut all = walk(&ring, 100);
        assert_eq!(all[0], 34);
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
    }
}
