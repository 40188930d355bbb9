//! A worker's coarse clock, and when to look at which connection again.
//!
//! Time-outs of relayed connections are seconds long, so they are counted in ticks of 100 ms: a
//! worker reads the clock once per tick, not once per message. Its [`Schedule`] is lazy: a
//! connection stands in it once, at the earliest moment at which it could have something to do.
//! Traffic moves that moment without touching the schedule; who is found too early is put back.
//! So a message costs nothing here, and an idle connection a few entries a minute.

use std::collections::BTreeMap;
use std::ops::{Add, Sub};
use std::time::Duration;

/// The length of a tick, in milliseconds.
pub const TICK_MILLIS: u32 = 100;

/// A moment, in ticks since its worker began. Wraps after 13 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(u32);

/// A span of time, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticks(u32);

impl Tick {
    /// A moment that does not come.
    pub const NEVER: Self = Self(u32::MAX);

    /// The moment so long after the beginning.
    pub fn at(since_start: Duration) -> Self {
        Self(Ticks::from(since_start).0)
    }

    /// How long after the beginning it is.
    pub fn since_start(self) -> Duration {
        Duration::from_millis(u64::from(self.0) * u64::from(TICK_MILLIS))
    }
}

impl Ticks {
    /// So many seconds.
    pub const fn from_secs(seconds: u32) -> Self {
        Self(seconds.saturating_mul(1000 / TICK_MILLIS))
    }

    /// No time at all; as a limit: none.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// So many times as long.
    pub fn times(self, factor: u32) -> Self {
        Self(self.0.saturating_mul(factor))
    }

    /// The whole duration in ticks, at least one unless it is zero: for a limit.
    pub fn of_limit(limit: Duration) -> Self {
        let ticks = limit.as_millis().div_ceil(u128::from(TICK_MILLIS));
        Self(u32::try_from(ticks).unwrap_or(u32::MAX))
    }
}

impl From<Duration> for Ticks {
    fn from(duration: Duration) -> Self {
        Self(u32::try_from(duration.as_millis() / u128::from(TICK_MILLIS)).unwrap_or(u32::MAX))
    }
}

impl Add<Ticks> for Tick {
    type Output = Tick;
    fn add(self, span: Ticks) -> Tick {
        Tick(self.0.saturating_add(span.0))
    }
}

impl Sub for Tick {
    type Output = Ticks;
    fn sub(self, earlier: Tick) -> Ticks {
        Ticks(self.0.saturating_sub(earlier.0))
    }
}

/// Which connection is to be looked at when.
#[derive(Debug, Default)]
pub struct Schedule {
    due: BTreeMap<Tick, Vec<u64>>,
}

impl Schedule {
    /// Notes that `connection` is to be looked at at `tick`.
    pub fn add(&mut self, tick: Tick, connection: u64) {
        self.due.entry(tick).or_default().push(connection);
    }

    /// Takes the connections of one moment that has come; `None` when all of them are taken.
    pub fn take_due(&mut self, now: Tick) -> Option<Vec<u64>> {
        let first = self.due.first_entry()?;
        (*first.key() <= now).then(|| first.remove())
    }
}
