//! How often a line may be logged that traffic can multiply.
//!
//! A budget per call site and second, in one atomic number, so that whoever is over it pays for one
//! addition and no line. What was left out is told with the next line. Lines of level `debug` and
//! `trace` have no budget: whoever turns them on wants each of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lines of one call site in a second.
pub const A_SECOND: u32 = 10;

/// The budget of one call site.
#[derive(Debug)]
pub struct Rate {
    most: u32,
    /// The second that counts, then how often it was asked in it.
    asked: AtomicU64,
    suppressed: AtomicU64,
}

/// A line that may be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// How many like it were left out before; `None`: none was.
    pub suppressed: Option<u64>,
}

impl Rate {
    /// At most so many a second.
    pub const fn new(most: u32) -> Self {
        // No second is the last: the first that asks begins one.
        Self { most, asked: AtomicU64::new(u64::MAX), suppressed: AtomicU64::new(0) }
    }

    /// `None`: there were enough of these within this second.
    pub fn allow(&self) -> Option<Allowed> {
        static START: OnceLock<Instant> = OnceLock::new();
        let second = START.get_or_init(Instant::now).elapsed().as_secs();
        self.allow_in(u32::try_from(second).unwrap_or(u32::MAX - 1))
    }

    fn allow_in(&self, second: u32) -> Option<Allowed> {
        let count = |asked: u64| {
            let (of, times) = (asked >> 32, asked & u64::from(u32::MAX));
            let times = if of == u64::from(second) { times + 1 } else { 1 };
            u64::from(second) << 32 | times.min(u64::from(u32::MAX))
        };
        let before = self
            .asked
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |asked| Some(count(asked)));
        let times = before.map_or(0, count) & u64::from(u32::MAX);
        if times > u64::from(self.most) {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let suppressed = self.suppressed.swap(0, Ordering::Relaxed);
        Some(Allowed { suppressed: (suppressed > 0).then_some(suppressed) })
    }
}

/// Whether this call site may log a line: an `Option<Allowed>`, of at most [`A_SECOND`] or so many a second.
macro_rules! allowed {
    () => {
        allowed!($crate::observe::rate::A_SECOND)
    };
    ($most:expr) => {{
        static RATE: $crate::observe::rate::Rate = $crate::observe::rate::Rate::new($most);
        RATE.allow()
    }};
}
pub(crate) use allowed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_a_budget_and_the_next_line_tells_what_was_left_out() {
        let rate = Rate::new(3);
        let granted = |second| (0..100).filter_map(|_| rate.allow_in(second)).collect::<Vec<_>>();
        let line = |suppressed| Allowed { suppressed };
        assert_eq!(granted(0), [line(None); 3]);
        assert_eq!(granted(1), [line(Some(97)), line(None), line(None)]);
        assert_eq!(granted(7)[0], line(Some(97)));
    }

    #[test]
    fn each_call_site_has_its_own() {
        let sites = || (allowed!(1).is_some(), allowed!(1).is_some());
        assert_eq!(sites(), (true, true));
        assert_eq!(Rate::new(0).allow_in(0), None);
    }
}
