//! Numbers, durations and sizes within their ranges, with their defaults.
//!
//! Each function takes one key, and gives its default where the key is absent or wrong: so the
//! rest of the file is checked too, and nothing of a wrong config is ever used. The messages say
//! the range, and what to write where somebody tried to turn off what can't be turned off.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::problems::Problems;
use crate::config::raw::{Cursor, Located};
use crate::config::typed::Size;
use crate::config::value::{quoted, show_duration, show_size};

/// The kernel counts keep-alive in whole seconds, at most 32,767 of them; 9 hours are less.
const KEEPALIVE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(9 * 3600);

/// Takes a duration for which zero has a meaning of its own.
pub(super) fn duration_or_zero(
    table: &mut Cursor<'_>,
    key: &'static str,
    default: Duration,
    problems: &mut Problems,
) -> Duration {
    table.take(key, problems).map_or(default, |taken| taken.value)
}

/// Takes a duration that can't be zero.
pub(super) fn time_out(
    table: &mut Cursor<'_>,
    key: &'static str,
    default: Duration,
    problems: &mut Problems,
) -> Duration {
    let Some(taken) = table.take::<Duration>(key, problems) else { return default };
    if taken.value.is_zero() {
        let what = format!(
            "must be longer than zero (it can't be turned off); the default is {}",
            quoted(&show_duration(default))
        );
        table.note(problems, taken.span, key, &what);
    }
    taken.value
}

/// Takes the time of TCP keep-alive.
pub(super) fn keepalive(
    table: &mut Cursor<'_>,
    default: Duration,
    problems: &mut Problems,
) -> Duration {
    let Some(taken) = table.take::<Duration>("keepalive", problems) else { return default };
    if !KEEPALIVE.contains(&taken.value) {
        let what =
            format!("must be from 1s to 9h; the default is {}", quoted(&show_duration(default)));
        table.note(problems, taken.span, "keepalive", &what);
    }
    taken.value
}

/// Takes a size within a range of bytes.
pub(super) fn size(
    table: &mut Cursor<'_>,
    key: &'static str,
    default: u64,
    range: &RangeInclusive<u64>,
    problems: &mut Problems,
) -> u64 {
    let Some(Located { value: Size(bytes), span }) = table.take(key, problems) else {
        return default;
    };
    if !range.contains(&bytes) {
        let (bound, limit) =
            if bytes < *range.start() { ("least", range.start()) } else { ("most", range.end()) };
        let default = quoted(&show_size(default));
        let what = format!("must be at {bound} {}; the default is {default}", show_size(*limit));
        table.note(problems, span, key, &what);
    }
    bytes
}

/// Takes a whole number within a range; `remedy` says what to do about one outside.
pub(super) fn number<T>(
    table: &mut Cursor<'_>,
    key: &'static str,
    default: T,
    range: RangeInclusive<T>,
    remedy: &str,
    problems: &mut Problems,
) -> T
where
    T: Copy + PartialOrd + Into<u64> + TryFrom<i128>,
{
    let Some(taken) = table.take::<i128>(key, problems) else { return default };
    if let Ok(number) = T::try_from(taken.value)
        && range.contains(&number)
    {
        return number;
    }
    let (low, high) = ((*range.start()).into(), (*range.end()).into());
    let what = if taken.value < i128::from(low) {
        format!("must be at least {low}; {remedy}")
    } else {
        format!("must be at most {high}; {remedy}")
    };
    table.note(problems, taken.span, key, &what);
    default
}

/// The most of anything that is counted: enough for every machine, and it fits everywhere.
const MOST: u32 = u32::MAX;

/// Takes the most that there may be of something; 0 is no limit.
pub(super) fn count_or_zero(
    table: &mut Cursor<'_>,
    key: &'static str,
    problems: &mut Problems,
) -> usize {
    let count = number(table, key, 0u32, 0..=MOST, "0 is no limit", problems);
    usize::try_from(count).unwrap_or(usize::MAX)
}
