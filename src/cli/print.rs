//! What the commands print for a person: tables, and figures in units that can be read at a glance.
//!
//! Names and keys come from clients and other machines: what could move a terminal's cursor is
//! replaced.

use std::fmt;
use std::io::{ErrorKind, Write as _};
use std::time::Duration;

/// The longest text in a table, in characters; ids of connections are longer, and never cut.
pub(super) const LONGEST: usize = 48;

/// Whoever reads standard output has read enough, as `head` does.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
pub(super) struct NobodyReads;

/// Writes to standard output, at once.
pub(super) fn out(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(NobodyReads.into()),
        written => Ok(written?),
    }
}

/// Writes lines to standard error.
pub(super) fn complain(lines: impl IntoIterator<Item = impl AsRef<str>>) {
    let mut err = std::io::stderr().lock();
    for line in lines {
        // Where standard error is closed, nobody would read it anyway.
        let _ = writeln!(err, "{}", plain(line.as_ref()));
    }
}

/// Writes one JSON value on a line of its own.
pub(super) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    out(&(serde_json::to_string(value)? + "\n"))
}

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// As words do.
    Left,
    /// As figures do.
    Right,
}

/// Rows below a heading, in columns as wide as they need to be.
#[derive(Debug)]
pub(super) struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(super) fn new(columns: &[(&str, Side)]) -> Self {
        let heading = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        Self { sides: columns.iter().map(|(_, side)| *side).collect(), rows: vec![heading] }
    }

    /// Adds a row; it has a cell for each column.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.sides.len());
        self.rows.push(cells.into_iter().map(|cell| plain(&cell)).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.sides.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, side), width) in row.iter().zip(&self.sides).zip(&widths) {
                let padding = " ".repeat(width - cell.chars().count());
                match side {
                    Side::Left => line.extend([cell, padding.as_str(), "  "]),
                    Side::Right => line.extend([padding.as_str(), cell, "  "]),
                }
            }
            writeln!(formatter, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// The text without what a terminal would act on.
pub(super) fn plain(text: &str) -> String {
    let shown = |one: char| if one.is_control() { char::REPLACEMENT_CHARACTER } else { one };
    text.chars().map(shown).collect()
}

/// The text, or its beginning if it is long.
pub(super) fn short(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST - 1).chain(['…']).collect()
}

/// A time span in its two largest units.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// From one moment to another, both in Unix milliseconds; zero where clocks disagree.
pub(super) fn between(from: u64, to: u64) -> Duration {
    Duration::from_millis(to.saturating_sub(from))
}

/// Bytes in the largest binary unit that leaves at least one of it.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn bytes(count: u64) -> String {
    if count < 1024 { format!("{count} B") } else { many_bytes(count as f64) }
}

fn many_bytes(mut count: f64) -> String {
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if count < 1024.0 {
            break;
        }
        (count, unit) = (count / 1024.0, larger);
    }
    format!("{count:.1} {unit}")
}

/// So many a second.
pub(super) fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 10.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}

/// So many bytes a second.
pub(super) fn byte_rate(per_second: f64) -> String {
    if per_second < 1024.0 { format!("{per_second:.0} B") } else { many_bytes(per_second) }
}

/// A number with its noun.
pub(super) fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[("NAME", Side::Left), ("N", Side::Right), ("X", Side::Left)]);
        table.row(vec!["é".to_owned(), "1000".to_owned(), String::new()]);
        table.row(vec!["longer".to_owned(), "7".to_owned(), "x".to_owned()]);
        let wanted = "NAME       N  X\né       1000\nlonger     7  x\n";
        assert_eq!(table.to_string(), wanted);
    }

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(plain("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(short(&"é".repeat(LONGEST)).chars().count(), LONGEST);
        assert_eq!(short(&"é".repeat(LONGEST + 1)).chars().last(), Some('…'));
        assert_eq!(short(&"é".repeat(900)).chars().count(), LONGEST);
    }

    #[test]
    fn figures_are_short() {
        for (seconds, wanted) in
            [(0, "0s"), (59, "59s"), (61, "1m 1s"), (7260, "2h 1m"), (90_000, "1d 1h")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), wanted);
        }
        for (count, wanted) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB")] {
            assert_eq!(bytes(count), wanted);
        }
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        for (per_second, wanted) in [(0.0, "0"), (0.25, "0.2"), (12.6, "13")] {
            assert_eq!(rate(per_second), wanted);
        }
        assert_eq!(between(5, 3), Duration::ZERO);
    }
}
