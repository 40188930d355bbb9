//! Even spacing: nothing sooner than a gap after the one before it.
//!
//! Who comes too early is told when its time is, and waits for that itself. What is promised is
//! never taken back: one that goes away while it waits leaves its place empty, which makes a pause,
//! never a rush. Without a burst to save up, a backend that was idle for long gets no crowd at once.

use std::time::{Duration, Instant};

/// When the next one may come.
#[derive(Debug, Default)]
pub struct Spacing {
    next: Option<Instant>,
}

impl Spacing {
    /// Takes the next place; `None`, and nothing is taken, if that is further away than `patience`.
    pub fn take(&mut self, now: Instant, gap: Duration, patience: Duration) -> Option<Instant> {
        let place = self.next.map_or(now, |next| next.max(now));
        if place.duration_since(now) > patience {
            return None;
        }
        self.next = Some(place + gap);
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_millis(100);
    const PATIENCE: Duration = Duration::from_secs(1);

    #[test]
    fn a_crowd_is_spaced_evenly_and_the_impatient_are_refused() {
        let mut spacing = Spacing::default();
        let now = Instant::now();
        let places: Vec<_> = (0..20).filter_map(|_| spacing.take(now, GAP, PATIENCE)).collect();
        let wanted: Vec<_> = (0..=10).map(|number| now + GAP * number).collect();
        assert_eq!(places, wanted);
        // A place that was refused is not lost to the next.
        let later = now + GAP;
        assert_eq!(spacing.take(later, GAP, PATIENCE), Some(now + GAP * 11));
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut spacing = Spacing::default();
        let now = Instant::now();
        spacing.take(now, GAP, PATIENCE);
        let later = now + Duration::from_secs(60);
        assert_eq!(spacing.take(later, GAP, PATIENCE), Some(later));
        assert_eq!(spacing.take(later, GAP, PATIENCE), Some(later + GAP));
    }
}
