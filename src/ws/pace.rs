//! How closes of the proxy's own are spread over time, so that clients do not come back as a herd.

use std::time::Duration;

/// How many of `total` closes are due `elapsed` after the first: evenly over `span`, the first at
/// once, all of them when `span` is over.
pub fn due(total: usize, elapsed: Duration, span: Duration) -> usize {
    if elapsed >= span {
        return total;
    }
    let share = elapsed.as_secs_f64() / span.as_secs_f64();
    // A product below `total`, which came from memory: it fits.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
    let due = (total as f64 * share) as usize;
    (due + 1).min(total)
}

/// How old a connection may become where that is limited to `age`: up to a tenth more or less, in
/// proportion to `random`. So those that came as a herd end evenly over a fifth of their age.
pub fn age(age: Duration, random: u16) -> Duration {
    age - age / 10 + age / 5 * u32::from(random) / u32::from(u16::MAX)
}

/// A mass close of the whole proxy that is under way: how many of it are to be closed now.
#[derive(Clone, Copy, Debug)]
pub struct MassClose {
    total: usize,
    span: Duration,
    done: usize,
}

impl MassClose {
    /// A mass close of `total` things, evenly over `span`; zero: all at once.
    pub fn new(total: usize, span: Duration) -> Self {
        Self { total, span, done: 0 }
    }

    /// Takes those that have become due: how many they are, `elapsed` after the first call was due.
    pub fn take_due(&mut self, elapsed: Duration) -> usize {
        // No less than before, should the clock stand still.
        let due = due(self.total, elapsed, self.span).max(self.done);
        due - std::mem::replace(&mut self.done, due)
    }

    /// How many are not due yet.
    pub fn left(&self) -> usize {
        self.total - self.done
    }

    /// Whether the turn of all has come.
    pub fn is_over(&self) -> bool {
        self.left() == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_is_taken_once_and_none_before_its_time(
            total in 0_usize..5000,
            millis in 0_u64..100_000,
            mut steps in prop::collection::vec(0_u64..120_000, 1..50),
        ) {
            let span = Duration::from_millis(millis);
            let mut closes = MassClose::new(total, span);
            steps.sort_unstable();
            let mut taken = 0;
            for step in steps {
                let elapsed = Duration::from_millis(step);
                taken += closes.take_due(elapsed);
                prop_assert_eq!(taken, due(total, elapsed, span));
                prop_assert_eq!(closes.left(), total - taken);
            }
            taken += closes.take_due(span);
            prop_assert!(taken == total && closes.is_over() && closes.take_due(span * 2) == 0);
        }
    }

    #[test]
    fn ages_are_spread_over_a_fifth() {
        let hour = Duration::from_secs(3600);
        let of = |random| age(hour, random).as_secs();
        assert_eq!([of(0), of(u16::MAX / 2), of(u16::MAX)], [3240, 3599, 3960]);
    }

    #[test]
    fn closes_are_spread_evenly_over_the_span() {
        let span = Duration::from_secs(10);
        let at = |millis| due(100, Duration::from_millis(millis), span);
        assert_eq!([at(0), at(100), at(5_000), at(9_990), at(10_000)], [1, 2, 51, 100, 100]);
    }

    #[test]
    fn without_a_span_all_are_due_at_once() {
        assert_eq!(due(7, Duration::ZERO, Duration::ZERO), 7);
        assert_eq!(due(0, Duration::ZERO, Duration::from_secs(1)), 0);
    }
}
