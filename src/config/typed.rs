//! The types that a TOML value can be read as.
//!
//! TOML knows text, numbers and lists; a config also has durations and sizes, which are text (or,
//! for sizes, numbers). Variables in text are replaced here, so no text goes around that. Ranges
//! are the business of those who ask: whole numbers come as wide as any they could want.

use std::time::Duration;

use toml::de::{DeInteger, DeValue};

use super::Environment;
use super::value::{duration, expand, size};

/// What can be read from one TOML value.
pub(super) trait Value: Sized {
    /// What to write, as in "must be ...".
    const EXPECTED: &'static str;

    /// Reads it.
    fn read(value: &DeValue<'_>, environment: &Environment<'_>) -> Result<Self, Misfit>;
}

/// Why a value can't be read.
pub(super) enum Misfit {
    /// It is another kind of TOML value.
    Kind,
    /// This is wrong with what it says.
    Content(String),
}

impl Value for String {
    const EXPECTED: &'static str = "text in quotes";

    fn read(value: &DeValue<'_>, environment: &Environment<'_>) -> Result<Self, Misfit> {
        let text = value.as_str().ok_or(Misfit::Kind)?;
        expand(text, environment.variable).map_err(Misfit::Content)
    }
}

impl Value for Duration {
    const EXPECTED: &'static str =
        "a duration in quotes, such as \"250ms\", \"2s\", \"5m\" or \"1h\"";

    fn read(value: &DeValue<'_>, environment: &Environment<'_>) -> Result<Self, Misfit> {
        duration(&String::read(value, environment)?).map_err(Misfit::Content)
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";

    fn read(value: &DeValue<'_>, _: &Environment<'_>) -> Result<Self, Misfit> {
        value.as_bool().ok_or(Misfit::Kind)
    }
}

/// A size in bytes.
#[derive(Clone, Copy)]
pub(super) struct Size(pub(super) u64);

impl Value for Size {
    const EXPECTED: &'static str = "a size, such as \"64KiB\" or a number of bytes";

    fn read(value: &DeValue<'_>, environment: &Environment<'_>) -> Result<Self, Misfit> {
        match value {
            DeValue::Integer(integer) => whole_number(integer)
                .and_then(|bytes| u64::try_from(bytes).ok())
                .map(Size)
                .ok_or_else(|| Misfit::Content(format!("is no size: {integer}"))),
            _ => size(&String::read(value, environment)?).map(Size).map_err(Misfit::Content),
        }
    }
}

/// A whole number of any size that a config may hold, and more: ranges are the taker's.
impl Value for i128 {
    const EXPECTED: &'static str = "a whole number";

    fn read(value: &DeValue<'_>, _: &Environment<'_>) -> Result<Self, Misfit> {
        let integer = value.as_integer().ok_or(Misfit::Kind)?;
        whole_number(integer).ok_or_else(|| Misfit::Content("is too large".to_owned()))
    }
}

fn whole_number(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}
