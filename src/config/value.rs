//! Text in the config that means something else: durations, sizes, variables.
//!
//! Durations are a whole number and one unit ("250ms", "2s", "5m", "1h"), sizes are bytes with
//! one of the units that count in 1,024s ("512B", "64KiB", "1MiB", "1GiB"). What is more than one
//! number, has a fraction, or leaves the unit to be guessed is refused: a time-out that was
//! meant otherwise is found too late. Each of the two can be shown in the form in which it is
//! read; messages do that with limits.
//!
//! `${NAME}` stands for the value of an environment variable. What was put in is not looked
//! through again, so a variable can hold any text.
//!
//! Errors are the second half of a sentence whose first half is the key.

use std::time::Duration;

/// The longest duration that is taken: a year. Longer ones would overflow the clock's arithmetic
/// somewhere, and mean "never", for which there is zero.
pub(super) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

const SIZE_UNITS: [(&str, u64); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads a duration.
///
/// Errs where it is not a whole number and a unit, or longer than a year.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let refused = || {
        format!(
            "is no duration: {}; write a whole number and ms, s, m or h, such as \"90s\"",
            quoted(text)
        )
    };
    let milliseconds = number_with_unit(text, &DURATION_UNITS).ok_or_else(refused)?;
    match milliseconds.map(Duration::from_millis) {
        Some(duration) if duration <= LONGEST => Ok(duration),
        _ => Err(format!("is too long: {}; at most {}", quoted(text), show_duration(LONGEST))),
    }
}

/// Reads a size in bytes.
///
/// Errs where it is not a whole number and a unit, or does not fit 63 bits.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let bytes = number_with_unit(text, &SIZE_UNITS).ok_or_else(|| {
        format!(
            "is no size: {}; write a whole number and B, KiB, MiB or GiB, such as \"64KiB\"",
            quoted(text)
        )
    })?;
    bytes
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| format!("is too large: {}", quoted(text)))
}

/// `None` where the form is wrong, `Some(None)` where the number is too large.
fn number_with_unit(text: &str, units: &[(&str, u64)]) -> Option<Option<u64>> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    (digits > 0).then(|| number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor)))
}

/// Shows a duration as it is written in a config, to the millisecond, in its largest whole unit.
pub(super) fn show_duration(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if milliseconds == 0 { "0s".to_owned() } else { show(milliseconds, &DURATION_UNITS) }
}

/// Shows a size as it is written in a config, in its largest whole unit.
pub(super) fn show_size(bytes: u64) -> String {
    if bytes == 0 { "0B".to_owned() } else { show(bytes, &SIZE_UNITS) }
}

fn show(number: u64, units: &[(&str, u64)]) -> String {
    let whole = units.iter().find(|(_, factor)| number.is_multiple_of(*factor));
    whole.map_or_else(|| number.to_string(), |(unit, factor)| format!("{}{unit}", number / factor))
}

/// Puts the values of environment variables where `${NAME}` stands.
///
/// Errs where a variable is not set, or the braces don't hold a name.
pub(super) fn expand(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        expanded.push_str(before);
        let (name, behind) = after
            .split_once('}')
            .filter(|(name, _)| is_variable(name))
            .ok_or("has \"${\" without a variable's name and \"}\" behind it; write \"${NAME}\"")?;
        let value = variable(name).ok_or_else(|| {
            format!("needs the environment variable {name}, which is not set; set it, or write the value here")
        })?;
        expanded.push_str(&value);
        rest = behind;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn is_variable(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|character| character.is_ascii_alphanumeric() || character == '_')
}

/// Text from the file as a message shows it: in quotes, without control characters, not too long.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST_SHOWN: usize = 80;
    if text.chars().count() <= LONGEST_SHOWN {
        return format!("{text:?}");
    }
    let start: String = text.chars().take(LONGEST_SHOWN).collect();
    format!("{:?}", start + "...")
}

/// The one of `known` that `word` was probably meant to be, if any is near enough.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.get(..word.len().min(100))?.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in ["", "5", "s", "5 s", " 5s", "1.5s", "-1s", "+1s", "1m30s", "5S", "5min", "٣s"]
        {
            assert!(duration(wrong).unwrap_err().contains("is no duration"), "{wrong}");
        }
        for long in ["8761h", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(long).unwrap_err().contains("at most 8760h"), "{long}");
        }
    }

    #[test]
    fn sizes_are_a_number_and_a_unit() {
        assert_eq!(size("512B"), Ok(512));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("1MiB"), Ok(1_048_576));
        for wrong in ["", "64", "64KB", "64k", "KiB", "1.5MiB", "-1B", "64 KiB", "64kib"] {
            assert!(size(wrong).unwrap_err().contains("is no size"), "{wrong}");
        }
        assert!(size("9223372036854775808B").unwrap_err().contains("too large"));
        assert!(size("99999999999GiB").unwrap_err().contains("too large"));
    }

    #[test]
    fn variables_are_put_in_once() {
        let variable = |name: &str| match name {
            "HOST" => Some("edge".to_owned()),
            "TRICK" => Some("${HOST}".to_owned()),
            _ => None,
        };
        assert_eq!(expand("a-${HOST}:${HOST}$", &variable).unwrap(), "a-edge:edge$");
        assert_eq!(expand("${TRICK}", &variable).unwrap(), "${HOST}");
        assert!(expand("${NONE}", &variable).unwrap_err().contains("NONE, which is not set"));
        for wrong in ["${", "${HOST", "${}", "${A B}", "${1}", "${A${HOST}}"] {
            assert!(expand(wrong, &variable).unwrap_err().contains("write \"${NAME}\""), "{wrong}");
        }
    }

    #[test]
    fn a_near_word_is_found_and_a_far_one_is_not() {
        assert_eq!(nearest("wieght", ["id", "weight"]), Some("weight"));
        assert_eq!(nearest("Bind", ["name", "bind"]), Some("bind"));
        assert_eq!(nearest("colour", ["id", "weight", "address"]), None);
    }

    proptest! {
        #[test]
        fn a_shown_duration_reads_the_same(milliseconds in 0..=31_536_000_000u64) {
            let given = Duration::from_millis(milliseconds);
            prop_assert_eq!(duration(&show_duration(given)), Ok(given));
        }

        #[test]
        fn a_shown_size_reads_the_same(bytes in 0..=i64::MAX.unsigned_abs()) {
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = (duration(&text), size(&text), expand(&text, &|_| None), quoted(&text));
            let _ = nearest(&text, ["weight"]);
        }
    }
}
