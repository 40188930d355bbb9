//! What may be spent at most: the figures in `benches/limits.toml`, held against what was measured.
//!
//! Only counts are held, of instructions and of heap: they are the same on a busy machine, where
//! times are not. A figure may exceed its limit by [`TOLERANCE_PERCENT`], which is what another
//! allocator, C library or patch release of the compiler may change.

use std::path::{Path, PathBuf};

/// By how much a figure may exceed its limit.
pub const TOLERANCE_PERCENT: u64 = 4;
/// With this in the environment, measured figures become the limits.
pub const UPDATE: &str = "UPDATE_LIMITS";

/// The limits, and what exceeded them so far.
pub struct Limits {
    path: PathBuf,
    text: String,
    updates: bool,
    exceeded: Vec<String>,
}

impl Limits {
    pub fn read() -> Self {
        // From the tests and from the bench alike: cargo runs both with their package's root.
        let path = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = path.ancestors().map(|folder| folder.join("benches/limits.toml"));
        let path = path.into_iter().find(|path| path.exists()).expect("the limits are in the tree");
        let text = std::fs::read_to_string(&path).expect("the limits are readable");
        let updates = std::env::var_os(UPDATE).is_some();
        Self { path, text, updates, exceeded: Vec::new() }
    }

    /// Holds a figure against the limit of its name; returns a line about it for a person.
    pub fn hold(&mut self, name: &str, measured: u64, unit: &str) -> String {
        let limit = self.limit(name);
        let line = format!("{name:<28} {measured:>9} {unit}");
        if self.updates {
            self.set(name, measured);
            return match limit {
                Some(limit) if limit != measured => format!("{line}, was {limit}"),
                _ => line,
            };
        }
        let Some(limit) = limit else {
            self.exceeded.push(format!("{name}: measured {measured} {unit}, and it has no limit"));
            return line;
        };
        let slack = limit * TOLERANCE_PERCENT / 100;
        if measured > limit + slack {
            self.exceeded.push(format!(
                "{name}: measured {measured} {unit}, the limit is {limit} (and {TOLERANCE_PERCENT} %)"
            ));
        }
        let hint =
            if measured + slack < limit { ": cheaper, hold it by a lower limit" } else { "" };
        format!("{line}, limit {limit}{hint}")
    }

    /// Writes the limits, if they are to be updated.
    ///
    /// # Errors
    ///
    /// Says what exceeded its limit, and what to do about it.
    pub fn settle(self) -> Result<(), String> {
        if self.updates {
            std::fs::write(&self.path, &self.text).expect("the tree can be written to");
        }
        if self.exceeded.is_empty() {
            return Ok(());
        }
        Err(format!(
            "dearer than benches/limits.toml allows:\n  {}\n\
             Make it cheaper; or, if it is worth its price, `scripts/gates --update` writes the \
             limits anew, and the commit says why.",
            self.exceeded.join("\n  ")
        ))
    }

    fn limit(&self, name: &str) -> Option<u64> {
        self.text.lines().find_map(|line| value_of(line, name)?.parse().ok())
    }

    fn set(&mut self, name: &str, value: u64) {
        let lines = self.text.lines().map(|line| match value_of(line, name) {
            Some(_) => format!("{name} = {value}\n"),
            None => format!("{line}\n"),
        });
        let text: String = lines.collect();
        let known = self.limit(name).is_some();
        assert!(known, "{name} has no line in benches/limits.toml: add `{name} = 0` to its table");
        self.text = text;
    }
}

fn value_of<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    Some(line.strip_prefix(name)?.trim_start().strip_prefix('=')?.trim())
}
