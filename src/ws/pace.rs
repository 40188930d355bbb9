//! How mass closes are spread over time, so that clients do not come back as a herd.

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

#[cfg(test)]
mod tests {
    use super::*;

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
