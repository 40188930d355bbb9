//! Which of several backends gets the next one, where no key decides.
//!
//! Three rules over the same list of [`Candidate`]s, each of which says what a backend may take,
//! what it has and whether it comes into question at all: the [`Rotation`] deals out turns in
//! proportion to the weights, [`least_connections`] looks for the one that has the least for its
//! weight, and [`random_two`] looks at two that chance names, which needs no agreement between
//! those who choose at the same time. Who could not connect asks again with that candidate
//! not eligible, so nobody is named twice.
//!
//! Beside them stand the numbers that the ring needs when it may not simply name the next: the
//! [`bound`] of a backend's load (consistent hashing with bounded loads: Mirrokni, Thorup and
//! Zadimoghaddam 2016), and how far a backend that came back is warmed up.
//!
//! Knows no backend, no clock and no randomness: who asks brings them along.

use std::cmp::Ordering;
use std::time::Duration;

/// The whole of a weight, in the parts in which a slow start counts.
pub const WHOLE: u32 = 1000;

/// What a backend begins with after it came into service, in parts of [`WHOLE`].
pub const LEAST: u32 = 100;

/// One backend as a rule sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// What it may take, relative to the others: its weight in parts of [`WHOLE`]. At least 1.
    pub weight: u64,
    /// What it has.
    pub load: usize,
    /// Whether it comes into question.
    pub eligible: bool,
}

impl Candidate {
    /// Compares what two have for their weight.
    fn compare(&self, other: &Self) -> Ordering {
        let of = |one: &Self, by: &Self| one.load as u128 * u128::from(by.weight);
        of(self, other).cmp(&of(other, self))
    }
}

/// Deals out turns by weight, as evenly as they can be: smooth weighted round robin.
///
/// At each turn everybody is credited with its weight, the one with the most credit is named, and
/// pays for all. While weights and eligibility hold still, everyone has had its exact share after
/// as many turns as the weights add up to, and turns of one are spread among those of the others.
/// Credit stands still for those who are not eligible.
#[derive(Debug, Default)]
pub struct Rotation {
    credits: Vec<i64>,
}

impl Rotation {
    /// Names the next; `None` if nobody is eligible. The list always has the same order.
    pub fn next(&mut self, candidates: &[Candidate]) -> Option<usize> {
        self.deal(candidates, |candidate| candidate.eligible)
    }

    fn deal(
        &mut self,
        candidates: &[Candidate],
        takes_part: impl Fn(&Candidate) -> bool,
    ) -> Option<usize> {
        self.credits.resize(candidates.len(), 0);
        let mut named: Option<usize> = None;
        let mut paid = 0_i64;
        for (index, candidate) in candidates.iter().enumerate() {
            if !takes_part(candidate) {
                continue;
            }
            let weight = i64::try_from(candidate.weight).unwrap_or(i64::MAX);
            self.credits[index] = self.credits[index].saturating_add(weight);
            paid = paid.saturating_add(weight);
            if named.is_none_or(|best| self.credits[index] > self.credits[best]) {
                named = Some(index);
            }
        }
        let named = named?;
        self.credits[named] = self.credits[named].saturating_sub(paid);
        Some(named)
    }
}

/// Names the one that has the least for its weight; among equals it is whose turn it is.
pub fn least_connections(rotation: &mut Rotation, candidates: &[Candidate]) -> Option<usize> {
    let eligible = candidates.iter().filter(|candidate| candidate.eligible);
    let least = *eligible.min_by(|one, other| one.compare(other))?;
    let is_least = |one: &Candidate| one.eligible && one.compare(&least) == Ordering::Equal;
    rotation.deal(candidates, is_least)
}

/// Of two that `random` names by weight, the one that has less for its weight; among equals the
/// one that was named first. `random` is any number, evenly from all of `u64`.
pub fn random_two(candidates: &[Candidate], random: u64) -> Option<usize> {
    let first = by_weight(candidates, random, None)?;
    let Some(second) = by_weight(candidates, scattered(random), Some(first)) else {
        return Some(first);
    };
    let less = candidates[second].compare(&candidates[first]) == Ordering::Less;
    Some(if less { second } else { first })
}

fn by_weight(candidates: &[Candidate], random: u64, without: Option<usize>) -> Option<usize> {
    let listed = || {
        let all = candidates.iter().enumerate();
        all.filter(move |(index, one)| one.eligible && Some(*index) != without)
    };
    let total: u128 = listed().map(|(_, one)| u128::from(one.weight)).sum();
    let mut place = (u128::from(random) * total) >> 64;
    for (index, one) in listed() {
        match place.checked_sub(u128::from(one.weight)) {
            Some(rest) => place = rest,
            None => return Some(index),
        }
    }
    None
}

/// Names the one that has the least for its weight; among equals the first from `start` on.
pub fn least_loaded(candidates: &[Candidate], start: usize) -> Option<usize> {
    let from = start.checked_rem(candidates.len())?;
    let order = (from..candidates.len()).chain(0..from);
    order
        .filter(|index| candidates[*index].eligible)
        .min_by(|one, other| candidates[*one].compare(&candidates[*other]))
}

/// The load from which on a backend gets no new key: `ceil(c * (total + 1) * weight / weights)`.
///
/// `c` is above 1, `total` what all have, `weights` the sum of their weights. At any time at least
/// one of them has less than its bound.
#[expect(clippy::cast_precision_loss, reason = "no machine has 2^53 connections")]
pub fn bound(c: f64, total: usize, weight: u64, weights: u64) -> f64 {
    (c * (total as f64 + 1.0) * weight as f64 / weights as f64).ceil()
}

/// How much of its weight a backend has so long after it came into service, in parts of
/// [`WHOLE`]: from [`LEAST`] in a straight line to all of it after `slow_start`.
pub fn warmth(since: Duration, slow_start: Duration) -> u32 {
    if since >= slow_start {
        return WHOLE;
    }
    let part = since.as_nanos() * u128::from(WHOLE) / slow_start.as_nanos().max(1);
    u32::try_from(part).unwrap_or(WHOLE).clamp(LEAST, WHOLE)
}

/// Whether a key at `position` on the ring goes to a backend that is so warm.
///
/// It depends on nothing else, so proxies that saw the backend come back at about the same time
/// agree on all but a few keys; and a key that went there once does so for the rest of the start.
pub fn is_warm_for(position: u64, warmth: u32) -> bool {
    scattered(position) % u64::from(WHOLE) < u64::from(warmth)
}

/// Scatters numbers over all of `u64`, each to another: the mixer of SplitMix64 (Steele, Lea,
/// Flood 2014).
pub fn scattered(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn idle(weights: &[u64]) -> Vec<Candidate> {
        let weights = weights.iter();
        weights.map(|&weight| Candidate { weight, load: 0, eligible: true }).collect()
    }

    /// Has `choose` place so many connections that stay; tells who has how many.
    fn fill(
        weights: &[u64],
        count: usize,
        mut choose: impl FnMut(&[Candidate], u64) -> Option<usize>,
    ) -> Vec<usize> {
        let mut candidates = idle(weights);
        for number in 0..count {
            let chosen = choose(&candidates, scattered(number as u64)).unwrap();
            candidates[chosen].load += 1;
        }
        candidates.iter().map(|candidate| candidate.load).collect()
    }

    #[test]
    fn a_rotation_gives_each_its_exact_share_spread_among_the_others() {
        let mut rotation = Rotation::default();
        let turns: Vec<_> = (0..14).map(|_| rotation.next(&idle(&[5, 1, 1])).unwrap()).collect();
        assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn whoever_is_out_of_a_rotation_gets_no_turn_and_none_afterwards_for_it() {
        let mut rotation = Rotation::default();
        let mut candidates = idle(&[1, 1, 1]);
        candidates[1].eligible = false;
        let turns: Vec<_> = (0..6).map(|_| rotation.next(&candidates).unwrap()).collect();
        assert!(!turns.contains(&1), "{turns:?}");
        candidates[1].eligible = true;
        let again: Vec<_> = (0..30).map(|_| rotation.next(&candidates).unwrap()).collect();
        assert_eq!(again.iter().filter(|&&turn| turn == 1).count(), 10);
    }

    #[test]
    fn least_connections_fills_by_weight() {
        let mut rotation = Rotation::default();
        let loads =
            fill(&[1, 3, 2], 600, |candidates, _| least_connections(&mut rotation, candidates));
        assert_eq!(loads, [100, 300, 200]);
    }

    #[test]
    fn least_connections_fills_up_who_is_empty_first() {
        let mut rotation = Rotation::default();
        let mut candidates = idle(&[1, 1, 1]);
        candidates[0].load = 50;
        candidates[2].load = 50;
        for _ in 0..50 {
            assert_eq!(least_connections(&mut rotation, &candidates), Some(1));
            candidates[1].load += 1;
        }
        let chosen: Vec<_> =
            (0..3).map(|_| least_connections(&mut rotation, &candidates).unwrap()).collect();
        assert!(chosen.contains(&0) && chosen.contains(&2), "{chosen:?}");
    }

    #[test]
    fn among_the_idle_least_connections_goes_round_by_weight() {
        let mut rotation = Rotation::default();
        let mut turns = [0; 2];
        for _ in 0..400 {
            turns[least_connections(&mut rotation, &idle(&[1, 3])).unwrap()] += 1;
        }
        assert_eq!(turns, [100, 300]);
    }

    #[test]
    fn random_two_fills_nearly_by_weight_and_evener_than_chance() {
        let loads = fill(&[1, 3, 2], 6000, random_two);
        for (load, wanted) in loads.iter().zip([1000, 3000, 2000]) {
            assert!(load.abs_diff(wanted) < 30, "{loads:?}");
        }
        let even = fill(&[1; 10], 10_000, random_two);
        assert!(even.iter().all(|load| load.abs_diff(1000) < 10), "{even:?}");
        assert_eq!(even, fill(&[1; 10], 10_000, random_two), "the same numbers, the same choice");
    }

    #[test]
    fn among_the_idle_random_two_goes_by_weight() {
        let mut turns = [0_usize; 2];
        for number in 0..10_000 {
            turns[random_two(&idle(&[1, 3]), scattered(number)).unwrap()] += 1;
        }
        assert!(turns[0].abs_diff(2500) < 200, "{turns:?}");
    }

    #[test]
    fn loads_under_the_bound_stay_near_the_average() {
        // A key that is hot, and its neighbours: all would go to the first.
        let weights = [1, 1, 2];
        let mut candidates = idle(&weights);
        for total in 0..4000 {
            let has_room = |one: &Candidate| (one.load as f64) < bound(1.25, total, one.weight, 4);
            let chosen = candidates.iter().position(has_room).expect("one is always below");
            candidates[chosen].load += 1;
        }
        assert!(candidates[0].load <= 1251 && candidates[1].load <= 1251, "{candidates:?}");
        assert!(candidates[0].load >= 1249, "{candidates:?}");
    }

    #[test]
    fn a_slow_start_is_a_straight_line_from_a_tenth() {
        let slow = Duration::from_secs(10);
        let at = |millis| warmth(Duration::from_millis(millis), slow);
        assert_eq!([at(0), at(500), at(1000), at(5000), at(9999)], [100, 100, 100, 500, 999]);
        assert_eq!([at(10_000), at(u64::MAX)], [WHOLE, WHOLE]);
        assert_eq!(warmth(Duration::ZERO, Duration::ZERO), WHOLE);
    }

    #[test]
    fn the_share_of_keys_that_a_warm_backend_takes_only_grows() {
        let taken = |warmth: u32| -> Vec<u64> {
            (0..10_000).map(scattered).filter(|key| is_warm_for(*key, warmth)).collect()
        };
        let (few, half) = (taken(LEAST), taken(500));
        assert!(few.len().abs_diff(1000) < 120 && half.len().abs_diff(5000) < 250);
        assert!(few.iter().all(|key| half.contains(key)));
        assert_eq!(taken(WHOLE).len(), 10_000);
    }

    #[test]
    fn of_the_least_loaded_the_first_from_the_start_is_named() {
        let mut candidates = idle(&[1, 1, 1]);
        assert_eq!(least_loaded(&candidates, 7), Some(1));
        candidates[1].load = 1;
        assert_eq!(least_loaded(&candidates, 7), Some(2));
        assert_eq!(least_loaded(&[], 7), None);
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (1..5000_u64, 0..100_usize, any::<bool>());
        let one = one.prop_map(|(weight, load, eligible)| Candidate { weight, load, eligible });
        prop::collection::vec(one, 0..12)
    }

    proptest! {
        #[test]
        fn only_the_eligible_are_named_each_once_and_then_nobody(
            given in candidates(),
            random in any::<u64>(),
        ) {
            let mut rotation = Rotation::default();
            for rule in 0..4 {
                let mut left = given.clone();
                let eligible = left.iter().filter(|one| one.eligible).count();
                for _ in 0..eligible {
                    let named = match rule {
                        0 => rotation.next(&left),
                        1 => least_connections(&mut rotation, &left),
                        2 => random_two(&left, random),
                        _ => least_loaded(&left, 3),
                    };
                    prop_assert!(left[named.unwrap()].eligible);
                    left[named.unwrap()].eligible = false;
                }
                prop_assert_eq!(rotation.next(&left), None);
                prop_assert_eq!(least_connections(&mut rotation, &left), None);
                prop_assert_eq!(random_two(&left, random), None);
            }
        }

        #[test]
        fn a_rotation_is_exact_after_each_round(weights in prop::collection::vec(1..20_u64, 1..6)) {
            let mut rotation = Rotation::default();
            let candidates = idle(&weights);
            let mut turns = vec![0; weights.len()];
            for _ in 0..weights.iter().sum() {
                turns[rotation.next(&candidates).unwrap()] += 1;
            }
            prop_assert_eq!(turns, weights);
        }
    }
}
