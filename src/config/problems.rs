//! What is wrong with a config, and how a person is told.
//!
//! Checking a file never ends at the first problem: everything that is found is noted here with
//! its place, put in the order of the file, and shown at once, each with the line it stands on.
//! Places are byte ranges of the source, as the TOML parser gives them; lines and columns are
//! worked out when a problem is noted.
//!
//! A line that is shown may hold a secret, even one whose key is misspelt or whose quotes are
//! broken. So values are covered in two ways: by ranges that the checks give to
//! [`Problems::hide`], and by reading the text for keys that sound like secrets and for user
//! information in URLs, which also works where the file is no valid TOML.
//!
//! At most [`KEPT`] problems are kept; more are only counted, so that a file of four megabytes
//! that is wrong everywhere is told about in bounded time and space.

use std::fmt;
use std::ops::Range;

/// The most problems that are shown.
const KEPT: usize = 200;

/// The most characters of a line that are shown, and how many of them stand before the problem.
const SHOWN: usize = 140;
const BEFORE: usize = 60;

/// A key that holds one of these words holds a secret.
const SECRET_WORDS: [&str; 4] = ["token", "secret", "password", "passwd"];

/// How far behind its word a key with a secret may go on.
const LONGEST_KEY: usize = 100;

/// Everything that is wrong with one config file, in the order of the file.
///
/// `Display` renders all of it for a terminal, without colours; secrets are covered.
#[derive(Clone)]
pub struct Problems {
    text: Box<Text>,
    /// Never more than `KEPT`; sorted by place once `finish` was called.
    list: Vec<Problem>,
    /// How many more there are.
    more: usize,
    /// Ranges of the source that are never shown.
    hidden: Vec<Range<usize>>,
}

/// The file that the problems are about.
#[derive(Clone)]
struct Text {
    file: String,
    source: String,
    /// Where each line of the source begins.
    lines: Vec<usize>,
}

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where; `None` where it is no matter of a line, such as a file that can't be read.
    pub place: Option<Place>,
    /// What is wrong with which key, and what to do.
    pub message: String,
    span: Range<usize>,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
}

impl Problems {
    /// Begins without problems; `file` is the name to show, `source` what stands in it.
    pub(super) fn new(file: &str, source: &str) -> Self {
        let newlines = source.match_indices('\n').map(|(newline, _)| newline + 1);
        let text = Text {
            file: file.to_owned(),
            source: source.to_owned(),
            lines: std::iter::once(0).chain(newlines).collect(),
        };
        Self { text: Box::new(text), list: Vec::new(), more: 0, hidden: Vec::new() }
    }

    /// Notes a problem with what stands at `span`.
    pub(super) fn at(&mut self, span: Range<usize>, message: impl Into<String>) {
        if !self.are_all_shown() {
            self.more += 1;
            return;
        }
        let place = Some(self.place_of(span.start));
        self.list.push(Problem { place, message: message.into(), span });
    }

    /// Tells whether one more problem would be shown, not only counted.
    pub(super) fn are_all_shown(&self) -> bool {
        self.list.len() < KEPT
    }

    /// Notes a problem with the file as a whole.
    pub(super) fn whole(&mut self, message: impl Into<String>) {
        self.list.push(Problem { place: None, message: message.into(), span: 0..0 });
    }

    /// Keeps what stands at `span` out of every line that is shown.
    pub(super) fn hide(&mut self, span: Range<usize>) {
        self.hidden.push(span);
    }

    /// Puts the problems in the order of the file, and drops what was noted twice.
    pub(super) fn finish(&mut self) {
        self.list
            .sort_by(|one, other| (one.place, &one.message).cmp(&(other.place, &other.message)));
        self.list.dedup();
    }

    /// Tells how many there are, those included that are too many to be shown.
    pub fn len(&self) -> usize {
        self.list.len() + self.more
    }

    /// Tells whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives the problems in the order of the file, at most 200.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// The number of the line that holds this byte.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.text.lines.partition_point(|&start| start <= offset)
    }

    fn place_of(&self, offset: usize) -> Place {
        let line = self.line_of(offset);
        let before = self.text.source.get(self.text.lines[line - 1]..offset).unwrap_or_default();
        Place { line, column: before.chars().count() + 1 }
    }

    /// Each problem on a line of its own, as `FILE:LINE:COLUMN: MESSAGE`, without the text around.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let file = &self.text.file;
        self.list.iter().map(move |problem| match problem.place {
            Some(Place { line, column }) => format!("{file}:{line}:{column}: {}", problem.message),
            None => format!("{file}: {}", problem.message),
        })
    }

    fn write(
        &self,
        out: &mut fmt::Formatter<'_>,
        problem: &Problem,
        hidden: &[Range<usize>],
    ) -> fmt::Result {
        let Some(Place { line, column }) = problem.place else {
            return writeln!(out, "{}: {}", self.text.file, problem.message);
        };
        writeln!(out, "{}:{line}:{column}: {}", self.text.file, problem.message)?;
        let (text, mark) = self.excerpt(problem, hidden);
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(out, "{margin} |\n{number} | {}\n{margin} | {mark}", text.trim_end())
    }

    /// The line of a problem, without what is hidden, and a line that marks the place below it.
    fn excerpt(&self, problem: &Problem, hidden: &[Range<usize>]) -> (String, String) {
        let Some(Place { line, column }) = problem.place else { return Default::default() };
        let line_start = self.text.lines[line - 1];
        let text = self.text.source[line_start..].lines().next().unwrap_or_default();
        let length = text.chars().count();
        let from = column - 1;
        let first =
            if length <= SHOWN { 0 } else { from.saturating_sub(BEFORE).min(length - SHOWN) };
        let head = if first > 0 { "..." } else { "" };
        let tail = if length > first + SHOWN { "..." } else { "" };
        let shown = text.char_indices().skip(first).take(SHOWN);
        let marked =
            shown.clone().filter(|(at, _)| problem.span.contains(&(line_start + at))).count();
        let shown: String = shown
            .map(|(at, character)| match character {
                _ if is_within(hidden, line_start + at) => '*',
                control if control.is_control() => ' ',
                other => other,
            })
            .collect();
        let indent = " ".repeat(head.len() + from - first);
        (format!("{head}{shown}{tail}"), indent + &"^".repeat(marked.max(1)))
    }

    /// Every range that must not be shown, in order, none in another.
    fn hidden(&self) -> Vec<Range<usize>> {
        let mut ranges = self.hidden.clone();
        ranges.extend(secrets_in(&self.text.source));
        ranges.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<usize>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }
}

fn is_within(ranges: &[Range<usize>], offset: usize) -> bool {
    let next = ranges.partition_point(|range| range.end <= offset);
    ranges.get(next).is_some_and(|range| range.contains(&offset))
}

/// Finds what looks like a secret, in any text: values of keys that sound like one, and what
/// stands before the `@` of a URL.
fn secrets_in(source: &str) -> Vec<Range<usize>> {
    let lower = source.to_ascii_lowercase();
    let mut found = Vec::new();
    for word in SECRET_WORDS {
        let mut end = 0; // a word within a value needs no look: this keeps the search linear
        for (at, _) in lower.match_indices(word) {
            if let Some(value) = (at >= end).then(|| value_after(source, at)).flatten() {
                end = value.end;
                found.push(value);
            }
        }
    }
    for (at, mark) in source.match_indices("://") {
        let start = at + mark.len();
        let end =
            source[start..].find(['/', '"', '\'', '\n']).map_or(source.len(), |end| start + end);
        if let Some(user) = source[start..end].rfind('@') {
            found.push(start..start + user);
        }
    }
    found
}

/// The value that a key within which `at` lies is given: to its closing quotes, or where it has
/// none to the end of its line; `None` where no `=` follows the key.
fn value_after(source: &str, at: usize) -> Option<Range<usize>> {
    let name = |character: char| character.is_alphanumeric() || "_-\"'".contains(character);
    let key = source[at..].chars().take(LONGEST_KEY).take_while(|&character| name(character));
    let rest = &source[at + key.map(char::len_utf8).sum::<usize>()..];
    let rest = rest.trim_start_matches([' ', '\t']).strip_prefix('=')?;
    let value = rest.trim_start_matches([' ', '\t']);
    let start = source.len() - value.len();
    let length = ["\"\"\"", "'''", "\"", "'"]
        .into_iter()
        .find(|quotes| value.starts_with(quotes))
        .map_or_else(|| line_length(value), |quotes| quoted_length(value, quotes));
    Some(start..start + length)
}

fn quoted_length(value: &str, quotes: &str) -> usize {
    let within = if quotes.len() == 1 { &value[..line_length(value)] } else { value };
    let body = &within[quotes.len()..];
    let escapes = quotes.starts_with('"');
    let mut ends = body.match_indices(quotes).map(|(end, _)| end);
    let end = ends.find(|&end| {
        let backslashes = body[..end].bytes().rev().take_while(|&byte| byte == b'\\').count();
        !escapes || backslashes % 2 == 0
    });
    end.map_or(within.len(), |end| quotes.len() + end + quotes.len())
}

fn line_length(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.hidden();
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            self.write(out, problem, &hidden)?;
        }
        if self.more > 0 {
            writeln!(out, "\n{}: {} more problems are not shown", self.text.file, self.more)?;
        }
        Ok(())
    }
}

/// As `Display`: the source, which may hold secrets, is left out.
impl fmt::Debug for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(source: &str, at: &str) -> String {
        let start = source.find(at).unwrap();
        let mut problems = Problems::new("config.toml", source);
        problems.at(start..start + at.len(), "is wrong; do better");
        problems.to_string()
    }

    #[test]
    fn a_problem_shows_its_line_and_a_mark_below_it() {
        let expected =
            "config.toml:2:10: is wrong; do better\n  |\n2 | weight = 0\n  |          ^\n";
        assert_eq!(shown("first = 1\nweight = 0\r\nlast = 2", "0"), expected);
    }

    #[test]
    fn columns_count_characters() {
        assert!(shown("nämé = 'öl' # x", "x").starts_with("config.toml:1:15:"));
    }

    #[test]
    fn a_mark_ends_with_its_line_and_stands_also_behind_it() {
        assert!(shown("a = '''one\ntwo'''", "'''one\ntwo'''").ends_with("|     ^^^^^^\n"));
        let mut problems = Problems::new("f", "a =");
        problems.at(3..3, "is empty");
        assert!(problems.to_string().ends_with("| a =\n  |    ^\n"));
    }

    #[test]
    fn a_long_line_is_cut_around_its_problem() {
        let source = format!("a = '{}' # here {}", "x".repeat(500), "y".repeat(500));
        let text = shown(&source, "here");
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[2].len() < 160, "{text}");
        assert_eq!(lines[2].find("here"), lines[3].find("^^^^"), "{text}");
    }

    #[test]
    fn terminal_controls_of_a_file_are_not_passed_on() {
        assert!(!shown("a = '\u{1b}[31m' # here", "here").contains('\u{1b}'));
    }

    #[test]
    fn secrets_are_covered_also_where_the_file_is_broken() {
        for source in [
            "admin_token = \"hush\" # here",
            "\"admin_token\"='hush' # here",
            "server = { admin_token = \"a\\\"hush\", workers = \"here\" }",
            "admin_token = \"hush # here",
            "admin_token = hush # here",
            "admin_token = [\"hush\", \"hush\"] # here",
            "admin_token = \"\"\"\nhush here",
            "url = \"redis://user:hush@host/\" # here",
            "Password = 'hush' # here",
        ] {
            assert!(!shown(source, "here").contains("hush"), "{source}");
        }
    }

    #[test]
    fn problems_past_the_bound_are_counted() {
        let mut problems = Problems::new("f", "x");
        (0..KEPT + 5).for_each(|number| problems.at(0..1, format!("{number}")));
        assert_eq!(problems.len(), KEPT + 5);
        assert!(problems.to_string().ends_with("f: 5 more problems are not shown\n"));
    }
}
