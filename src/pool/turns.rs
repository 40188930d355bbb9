//! When the turn of each thing comes that is closed in a drain.
//!
//! A proxy that is alone takes what is there evenly, in no order. Proxies that share a registry each have
//! some connections of a key, and must close them together: else a client that one of them has closed
//! comes back through another, finds its key where it was, and is closed once more. They have no list in
//! common of which keys there are, so what is even for one is not for another. Therefore the turn of a key
//! there, and of a session, is where its [hash](turn_of) puts it in the span, whatever else is there: as
//! even as chance makes it, which with many keys is even, and with few is a pause here and two at once there.
//!
//! A proxy that hears of a drain when it is under way goes by the same turns. Those that it has missed it
//! makes up for within a quarter of the span: soon, but not as a herd.
//!
//! Pure: time is counted from the beginning of the drain.

use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Keeps turns apart from positions on the ring, of which a backend has only some.
const SEED: u64 = 1;
/// Which part of the span it takes to make up for turns that were missed.
const CATCHING_UP: u32 = 4;

/// When the turn of a key or a session is, where proxies agree about it.
///
/// Every proxy computes the same, in every version.
pub fn turn_of(name: &str, span: Duration) -> Duration {
    let hash = u128::from(xxh3_64_with_seed(name.as_bytes(), SEED));
    let nanos = (span.as_nanos() * hash) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// What is still to be closed, each with its turn.
#[derive(Debug)]
pub struct Line<T> {
    /// The last first.
    units: Vec<(Duration, T)>,
}

impl<T> Line<T> {
    /// Evenly over `span`, in the order in which they are given: the first at once.
    pub fn even(units: Vec<T>, span: Duration) -> Self {
        let mut line = Self { units: Vec::with_capacity(units.len()) };
        line.add_evenly(units, Duration::ZERO, span);
        line.sorted()
    }

    /// As proxies agree, of which this one comes `age` after the beginning: by name where a unit has
    /// one, else evenly over what is left.
    pub fn agreed(
        units: impl IntoIterator<Item = T>,
        name: impl Fn(&T) -> Option<&str>,
        span: Duration,
        age: Duration,
    ) -> Self {
        let catching_up = span / CATCHING_UP;
        let mut line = Self { units: Vec::new() };
        let (mut missed, mut nameless) = (Vec::new(), Vec::new());
        for unit in units {
            match name(&unit).map(|name| turn_of(name, span)) {
                None => nameless.push(unit),
                Some(turn) if turn < age => missed.push((turn, unit)),
                Some(turn) => line.units.push((turn, unit)),
            }
        }
        missed.sort_by_key(|(turn, _)| *turn);
        line.add_evenly(missed.into_iter().map(|(_, unit)| unit).collect(), age, catching_up);
        line.add_evenly(nameless, age, span.saturating_sub(age).max(catching_up));
        line.sorted()
    }

    #[expect(clippy::cast_precision_loss, reason = "no machine has 2^53 connections")]
    fn add_evenly(&mut self, units: Vec<T>, from: Duration, span: Duration) {
        let count = units.len() as f64;
        let turn = |index: usize| from + span.mul_f64(index as f64 / count);
        self.units.extend(units.into_iter().enumerate().map(|(index, one)| (turn(index), one)));
    }

    fn sorted(mut self) -> Self {
        self.units.sort_by_key(|(turn, _)| std::cmp::Reverse(*turn));
        self
    }

    /// Takes those whose turn has come.
    pub fn take_due(&mut self, elapsed: Duration) -> Vec<T> {
        let first_due = self.units.partition_point(|(turn, _)| *turn > elapsed);
        self.units.drain(first_due..).rev().map(|(_, unit)| unit).collect()
    }

    /// How many are not due yet.
    pub fn left(&self) -> usize {
        self.units.len()
    }

    /// When the turn of the last comes; zero if none is left.
    pub fn end(&self) -> Duration {
        self.units.first().map_or(Duration::ZERO, |(turn, _)| *turn)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPAN: Duration = Duration::from_secs(60);

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("room-{number}")).collect()
    }

    fn agreed(names: &[String], age: Duration) -> Line<&str> {
        Line::agreed(names.iter().map(String::as_str), |name| Some(*name), SPAN, age)
    }

    /// How many are due in each tenth of the span, and after it.
    fn tenths(line: &mut Line<&str>) -> Vec<usize> {
        let mut tenths: Vec<usize> =
            (1..=10).map(|tenth| line.take_due(SPAN / 10 * tenth).len()).collect();
        tenths.push(line.left());
        tenths
    }

    #[test]
    fn a_turn_is_the_same_for_every_proxy_and_version() {
        let turns = ["", "room-1", "é"].map(|name| turn_of(name, SPAN).as_millis());
        assert_eq!(turns, [18_227, 23_571, 47_028]);
    }

    #[test]
    fn by_hash_turns_are_as_even_as_chance_makes_them() {
        let all = tenths(&mut agreed(&names(1000), Duration::ZERO));
        assert!(all[..10].iter().all(|count| (70..=130).contains(count)), "{all:?}");
        assert_eq!(all[10], 0);
        let few = tenths(&mut agreed(&names(30), Duration::ZERO));
        assert!(few.iter().all(|count| *count <= 8), "{few:?}");
    }

    /// Keys of one backend lie where its points on the ring are: their turns must not.
    #[test]
    fn turns_have_nothing_to_do_with_positions_on_the_ring() {
        let names = names(20_000);
        let near =
            names.iter().filter(|name| super::super::ring::position(name.as_bytes()) >> 60 == 0);
        let near: Vec<String> = near.cloned().collect();
        let count = near.len() / 10;
        let all = tenths(&mut agreed(&near, Duration::ZERO));
        assert!(all[..10].iter().all(|one| one.abs_diff(count) < count / 3), "{all:?}");
    }

    #[test]
    fn who_comes_late_makes_up_for_what_was_missed_soon_and_not_at_once() {
        let names = names(1000);
        let mut line = agreed(&names, SPAN / 2);
        let due = line.take_due(SPAN / 2).len();
        assert_eq!(due, 1, "no herd");
        let on_time = |name: &str| turn_of(name, SPAN) >= SPAN / 2;
        let soon = line.take_due(SPAN / 4 * 3);
        let (regular, late): (Vec<_>, Vec<_>) = soon.into_iter().partition(|name| on_time(name));
        assert!(regular.iter().all(|name| turn_of(name, SPAN) <= SPAN / 4 * 3));
        assert_eq!(late.len() + due, names.iter().filter(|name| !on_time(name)).count());
        assert!(line.take_due(SPAN).into_iter().all(on_time));
        // Long after: a quarter of the span from then on.
        let mut line = agreed(&names, SPAN * 100);
        let at = |part: u32| SPAN * 100 + SPAN / 40 * part;
        let counts: Vec<usize> = (1..=10).map(|part| line.take_due(at(part)).len()).collect();
        assert!(counts.iter().all(|count| count.abs_diff(100) <= 1), "{counts:?}");
        assert_eq!(line.left(), 0);
    }

    #[test]
    fn what_has_no_name_comes_evenly() {
        let mut line = Line::agreed(0..100, |_| None, SPAN, SPAN / 2);
        assert_eq!(line.take_due(SPAN / 4 * 3).len(), 51);
        assert_eq!(line.take_due(SPAN).len(), 49);
    }

    proptest! {
        #[test]
        fn each_is_taken_once_and_evenly(
            total in 0_usize..2000,
            millis in 0_u64..100_000,
            mut steps in prop::collection::vec(0_u64..120_000, 1..50),
        ) {
            let span = Duration::from_millis(millis);
            let mut line = Line::even((0..total).collect(), span);
            prop_assert!(line.end() <= span);
            steps.sort_unstable();
            let mut taken = Vec::new();
            for step in steps {
                let elapsed = Duration::from_millis(step);
                taken.extend(line.take_due(elapsed));
                let due = crate::ws::pace::due(total, elapsed, span);
                prop_assert!(taken.len().abs_diff(due) <= 1, "{} of {due}", taken.len());
                prop_assert_eq!(line.left(), total - taken.len());
            }
            taken.extend(line.take_due(span));
            prop_assert_eq!(taken, (0..total).collect::<Vec<_>>());
        }

        #[test]
        fn proxies_that_heard_at_once_agree_about_every_name_that_they_share(
            mine in prop::collection::hash_set("[a-z]{1,4}", 0..40),
            theirs in prop::collection::hash_set("[a-z]{1,4}", 0..40),
            millis in 0_u64..100_000,
        ) {
            let (span, elapsed) = (SPAN, Duration::from_millis(millis));
            let due = |names: &std::collections::HashSet<String>| {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let mut line = Line::agreed(names, |name| Some(*name), span, Duration::ZERO);
                line.take_due(elapsed).into_iter().map(str::to_owned).collect::<std::collections::HashSet<_>>()
            };
            let (due_here, due_there) = (due(&mine), due(&theirs));
            for name in mine.intersection(&theirs) {
                prop_assert_eq!(due_here.contains(name), due_there.contains(name));
            }
        }
    }
}
