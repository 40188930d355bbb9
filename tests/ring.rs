//! The ring against what must never change, and against what it is chosen for.
//!
//! The golden file was made by another program from the rule alone; two versions of the proxy
//! that both agree with it agree with each other. The other tests compare with the simplest
//! search that could work, and measure how evenly keys fall.

#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::collections::HashMap;
use std::num::NonZeroU32;

use proptest::prelude::*;
use serde::Deserialize;
use steadfast::pool::ring::{POINTS_PER_WEIGHT, Ring, position};
use xxhash_rust::xxh3::xxh3_64;

type Fleet = Vec<(String, u32)>;

fn ring(fleet: &Fleet) -> Ring {
    Ring::new(fleet.iter().map(|(id, weight)| (id.as_str(), NonZeroU32::new(*weight).unwrap())))
}

fn fleet<S: AsRef<str>>(ids: impl IntoIterator<Item = S>) -> Fleet {
    ids.into_iter().map(|id| (id.as_ref().to_owned(), 1)).collect()
}

#[derive(Deserialize)]
struct Case {
    name: String,
    backends: Vec<CaseBackend>,
    keys: Vec<CaseKey>,
}

#[derive(Deserialize)]
struct CaseBackend {
    id: String,
    weight: u32,
}

#[derive(Deserialize)]
struct CaseKey {
    key: String,
    position: String,
    /// At most the first twelve.
    walk: Vec<String>,
}

#[test]
fn owners_are_those_of_the_golden_file() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("golden/ring.json")).unwrap();
    assert!(cases.len() >= 7);
    for case in cases {
        let fleet: Fleet = case.backends.into_iter().map(|one| (one.id, one.weight)).collect();
        let ring = ring(&fleet);
        for CaseKey { key, position: at, walk } in case.keys {
            let at = u64::from_str_radix(&at, 16).unwrap();
            assert_eq!(position(key.as_bytes()), at, "{}: {key:?}", case.name);
            let found: Vec<_> =
                ring.walk(at).take(12).map(|index| fleet[index].0.as_str()).collect();
            assert_eq!(found, walk, "{}: {key:?}", case.name);
            let owner = ring.owner(key.as_bytes()).map(|index| &fleet[index].0);
            assert_eq!(owner, walk.first(), "{}: {key:?}", case.name);
        }
    }
}

/// The owner by looking at every point: the nearest clockwise, then the smallest id.
fn naive_owner<'a>(fleet: &'a Fleet, key: &[u8]) -> Option<&'a str> {
    let from = xxh3_64(key);
    let points = fleet.iter().flat_map(|(id, weight)| {
        (0..weight * POINTS_PER_WEIGHT).map(move |number| {
            let bytes = [id.as_bytes(), &[0], &number.to_le_bytes()].concat();
            (xxh3_64(&bytes).wrapping_sub(from), id.as_str())
        })
    });
    points.min().map(|(_, id)| id)
}

fn fleets() -> impl Strategy<Value = Fleet> {
    let ids = prop::collection::btree_map("[A-Za-z0-9_.:-]{1,12}", 1_u32..4, 1..8);
    ids.prop_map(|fleet| fleet.into_iter().collect::<Fleet>()).prop_shuffle()
}

fn owner_id<'a>(ring: &Ring, fleet: &'a Fleet, key: &str) -> Option<&'a str> {
    ring.owner(key.as_bytes()).map(|index| fleet[index].0.as_str())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_owner_is_that_of_a_search_of_all_points(
        fleet in fleets(),
        keys in prop::collection::vec(".{0,24}", 1..4),
    ) {
        let ring = ring(&fleet);
        for key in &keys {
            prop_assert_eq!(owner_id(&ring, &fleet, key), naive_owner(&fleet, key.as_bytes()));
        }
    }

    #[test]
    fn a_backend_that_goes_takes_only_its_own_keys(
        fleet in fleets(),
        keys in prop::collection::vec(".{0,24}", 50),
        gone in any::<prop::sample::Index>(),
    ) {
        let before = ring(&fleet);
        let mut rest = fleet.clone();
        let (gone, _) = rest.remove(gone.index(fleet.len()));
        let after = ring(&rest);
        for key in &keys {
            let owner = owner_id(&before, &fleet, key);
            let expected = if owner == Some(&*gone) {
                let walk = before.walk(position(key.as_bytes()));
                walk.map(|index| fleet[index].0.as_str()).nth(1)
            } else {
                owner
            };
            prop_assert_eq!(owner_id(&after, &rest, key), expected, "{}", key);
        }
    }

    #[test]
    fn the_order_of_backends_does_not_matter(
        (fleet, other) in fleets().prop_flat_map(|fleet| {
            (Just(fleet.clone()), Just(fleet).prop_shuffle())
        }),
        keys in prop::collection::vec(".{0,24}", 50),
    ) {
        let (one, two) = (ring(&fleet), ring(&other));
        for key in &keys {
            prop_assert_eq!(owner_id(&one, &fleet, key), owner_id(&two, &other, key));
        }
    }

    #[test]
    fn a_walk_tells_each_backend_once_and_the_owner_first(fleet in fleets(), key in ".{0,24}") {
        let ring = ring(&fleet);
        let mut walk: Vec<_> = ring.walk(position(key.as_bytes())).collect();
        prop_assert_eq!(walk.first().copied(), ring.owner(key.as_bytes()));
        walk.sort_unstable();
        prop_assert_eq!(walk, (0..fleet.len()).collect::<Vec<_>>());
    }

    #[test]
    fn shares_add_up_and_follow_the_weights(fleet in fleets()) {
        let ring = ring(&fleet);
        let all: f64 = (0..fleet.len()).map(|index| ring.share(index)).sum();
        prop_assert!((all - 1.0).abs() < 1e-9);
        let weights: u32 = fleet.iter().map(|(_, weight)| weight).sum();
        for (index, (_, weight)) in fleet.iter().enumerate() {
            let fair = f64::from(*weight) / f64::from(weights);
            prop_assert!((ring.share(index) / fair - 1.0).abs() < 0.2);
        }
    }
}

/// The load of the fullest backend over the average, for the keys `room-0` onwards.
fn fullest(fleet: &Fleet, keys: u32) -> f64 {
    let ring = ring(fleet);
    let mut loads = HashMap::new();
    for number in 0..keys {
        let owner = ring.owner(format!("room-{number}").as_bytes()).unwrap();
        *loads.entry(owner).or_insert(0_u32) += 1;
    }
    let most = loads.values().copied().max().unwrap();
    f64::from(most) * fleet.len() as f64 / f64::from(keys)
}

#[test]
fn ten_thousand_rooms_fall_evenly_on_ten_backends() {
    let fullest = fullest(&fleet((0..10).map(|number| format!("b{number}"))), 10_000);
    assert!(fullest <= 1.05, "{fullest}");
}

#[test]
fn small_fleets_are_even_too() {
    for size in [3, 5] {
        let fullest = fullest(&fleet((0..size).map(|number| format!("b{number}"))), 10_000);
        assert!(fullest <= 1.06, "{size} backends: {fullest}");
    }
}

#[test]
fn most_fleets_are_even() {
    let ids = |round: u64| {
        (0..10_u64).map(move |number| xxh3_64(&[round, number].map(u64::to_le_bytes).concat()))
    };
    let mut fullest: Vec<_> = (0..100)
        .map(|round| fullest(&fleet(ids(round).map(|id| format!("{id:x}"))), 10_000))
        .collect();
    fullest.sort_by(f64::total_cmp);
    assert!(fullest[50] <= 1.08, "{}", fullest[50]);
}
