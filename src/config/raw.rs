//! The config file as a tree with places, and a cursor that takes things out of it.
//!
//! The tree is the TOML parser's own: it goes on after a syntax error, so all of them are told
//! at once, and each key and value in it knows its range of the source. A derived `Deserialize`
//! would stop at the first thing that doesn't fit, and would not know unknown keys from places.
//!
//! A [`Cursor`] stands on one table. Whoever resolves that table takes its keys by name and
//! type; what doesn't fit is noted as a problem, and the taker goes on as if it were absent.
//! Each question is remembered, so that [`Cursor::finish`] can tell what was not asked for: keys
//! of a later version, and misspelt ones with the nearest that is known.
//!
//! What a value means (a port, a path, a weight) is none of this file's business; which kinds of
//! value there are, `typed` says.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Environment;
use super::problems::Problems;
use super::typed::{Misfit, Value};
use super::unsupported::{self, NOT_SUPPORTED};
use super::value::{nearest, quoted};

/// Bytes of the source, from and to.
pub(super) type Span = Range<usize>;

/// Reads TOML, or notes every syntax error; then there is nothing to go on with.
pub(super) fn read<'s>(source: &'s str, problems: &mut Problems) -> Option<DeTable<'s>> {
    let (table, errors) = DeTable::parse_recoverable(source);
    for error in &errors {
        match error.span() {
            Some(span) => problems.at(span, syntax_message(error.message())),
            None => problems.whole(syntax_message(error.message())),
        }
    }
    errors.is_empty().then(|| table.into_inner())
}

/// Reads what can be read of a text that may be no TOML.
pub(super) fn read_what_can_be(source: &str) -> DeTable<'_> {
    DeTable::parse_recoverable(source).0.into_inner()
}

/// The parser's words, in plainer ones where they don't tell what to do.
fn syntax_message(message: &str) -> String {
    let plain = match message.trim_end_matches(", expected nothing") {
        "duplicate key" => "this is given twice; keep one",
        "recursion limit" => "too many levels; nothing here needs more than four",
        _ if message.starts_with("string values must be quoted") => {
            "this is no number and no list; put text in quotes, as in \"value\""
        }
        _ if message.starts_with("key with no value") => "a key without a value; write key = value",
        _ if message.starts_with("invalid basic string, expected `\"`") => {
            "the text that begins on this line has no end; close the quotes"
        }
        other => other,
    };
    format!("not valid TOML: {plain}")
}

/// A value, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// Takes keys out of one table.
pub(super) struct Cursor<'t> {
    /// Which kind of table it is, as `unsupported` names it: `pool.health`.
    kind: &'static str,
    /// Which table it is, as messages name it: `pool "rooms", backend "a"`.
    place: String,
    /// What stands before its keys in messages: `timeouts.`.
    prefix: &'static str,
    /// Where a problem with the table as a whole is shown.
    span: Span,
    /// What nobody took yet.
    entries: BTreeMap<&'t str, Entry<'t>>,
    /// What was asked for.
    asked: Vec<&'static str>,
    environment: &'t Environment<'t>,
}

struct Entry<'t> {
    key: Span,
    value: &'t Spanned<DeValue<'t>>,
}

impl<'t> Cursor<'t> {
    /// Stands on the whole file.
    pub(super) fn root(table: &'t DeTable<'t>, environment: &'t Environment<'t>) -> Self {
        let mut root = Self::empty("", environment);
        root.fill(table);
        root
    }

    fn empty(kind: &'static str, environment: &'t Environment<'t>) -> Self {
        Self {
            kind,
            place: String::new(),
            prefix: "",
            span: 0..0,
            entries: BTreeMap::new(),
            asked: Vec::new(),
            environment,
        }
    }

    fn fill(&mut self, table: &'t DeTable<'t>) {
        self.entries = table
            .iter()
            .map(|(key, value)| (key.get_ref().as_ref(), Entry { key: key.span(), value }))
            .collect();
    }

    /// Says how messages name this table.
    pub(super) fn set_place(&mut self, place: String) {
        self.place = place;
    }

    /// How messages name this table.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Where the table begins.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Tells whether the table has this key, taken or not taken before the call.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Tells whether a key that was not taken yet holds a table.
    pub(super) fn has_table(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.value.get_ref().as_table().is_some())
    }

    /// The text of a key as it stands in the file, to name the table by; takes nothing.
    pub(super) fn peek(&self, key: &str) -> Option<&'t str> {
        self.entries.get(key)?.value.get_ref().as_str()
    }

    /// The place of the value of a key that was not taken yet.
    pub(super) fn span_of(&self, key: &str) -> Option<Span> {
        self.entries.get(key).map(|entry| entry.value.span())
    }

    /// Notes what is wrong with a key's value: `key` and `what` become one sentence.
    pub(super) fn note(&self, problems: &mut Problems, span: Span, key: &str, what: &str) {
        problems.at(span, self.sentence(key, what));
    }

    fn sentence(&self, key: &str, what: &str) -> String {
        let place = if self.place.is_empty() { "" } else { &format!("{}: ", self.place) };
        format!("{place}{}{key} {what}", self.prefix)
    }

    /// Takes a key's value. Where it is absent, or was found wrong, that is `None`.
    pub(super) fn take<T: Value>(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<Located<T>> {
        let entry = self.pull(key)?;
        self.read(key, "must be", entry.value, problems)
    }

    /// Takes a key's value that must be there; `remedy` says what to write where it is not.
    pub(super) fn require<T: Value>(
        &mut self,
        key: &'static str,
        remedy: &str,
        problems: &mut Problems,
    ) -> Option<Located<T>> {
        if !self.has(key) {
            self.note(problems, self.span(), key, &format!("is missing; {remedy}"));
        }
        self.take(key, problems)
    }

    /// Takes a list; what doesn't fit in it is noted and left out.
    pub(super) fn list<T: Value>(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Vec<Located<T>> {
        let Some(entry) = self.pull(key) else { return Vec::new() };
        let DeValue::Array(items) = entry.value.get_ref() else {
            let what =
                format!("must be a list in brackets, not {}", kind_of(entry.value.get_ref()));
            self.note(problems, entry.value.span(), key, &what);
            return Vec::new();
        };
        items.iter().filter_map(|item| self.read(key, "must hold", item, problems)).collect()
    }

    /// Takes a list, or one value that stands for a list of it.
    pub(super) fn one_or_list<T: Value>(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Vec<Located<T>> {
        match self.entries.get(key).map(|entry| entry.value.get_ref()) {
            Some(DeValue::Array(_)) => self.list(key, problems),
            _ => self.take(key, problems).into_iter().collect(),
        }
    }

    /// Stands on a table within this one; on an empty one where it is absent.
    ///
    /// Its keys are named `prefix` and their own name in messages.
    pub(super) fn table(
        &mut self,
        key: &'static str,
        kind: &'static str,
        prefix: &'static str,
        problems: &mut Problems,
    ) -> Cursor<'t> {
        let mut inner = Self::empty(kind, self.environment);
        inner.place.clone_from(&self.place);
        inner.prefix = prefix;
        inner.span = self.span();
        let Some(entry) = self.pull(key) else { return inner };
        inner.span = entry.value.span();
        match entry.value.get_ref() {
            DeValue::Table(table) => inner.fill(table),
            DeValue::Array(_) => {
                let what = format!("is one table, not a list; write [{key}]");
                self.note(problems, entry.key, key, &what);
            }
            other => {
                let what = format!("must be a table in braces, not {}", kind_of(other));
                self.note(problems, entry.value.span(), key, &what);
            }
        }
        inner
    }

    /// Stands on each table of a list in turn.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
        kind: &'static str,
        remedy: &str,
        problems: &mut Problems,
    ) -> Vec<Cursor<'t>> {
        let Some(entry) = self.pull(key) else { return Vec::new() };
        let DeValue::Array(items) = entry.value.get_ref() else {
            self.note(problems, entry.key, key, &format!("must be a list of tables; {remedy}"));
            return Vec::new();
        };
        let mut cursors = Vec::new();
        for item in items {
            let DeValue::Table(table) = item.get_ref() else {
                let what = format!("must hold tables, not {}; {remedy}", kind_of(item.get_ref()));
                self.note(problems, item.span(), key, &what);
                continue;
            };
            cursors.push(self.within(kind, table, item.span()));
        }
        cursors
    }

    /// Takes all that is left: tables whose keys are names, in the order of the file.
    pub(super) fn named_tables(
        &mut self,
        kind: &'static str,
        remedy: &str,
        problems: &mut Problems,
    ) -> Vec<(Located<&'t str>, Cursor<'t>)> {
        let mut cursors = Vec::new();
        for (name, entry) in std::mem::take(&mut self.entries) {
            if let DeValue::Table(table) = entry.value.get_ref() {
                let cursor = self.within(kind, table, entry.value.span());
                cursors.push((Located { value: name, span: entry.key }, cursor));
            } else {
                let what =
                    format!("must be one table, not {}; {remedy}", kind_of(entry.value.get_ref()));
                self.note(problems, entry.key, &shown_key(name), &what);
            }
        }
        cursors.sort_by_key(|(name, _)| name.span.start);
        cursors
    }

    fn within(&self, kind: &'static str, table: &'t DeTable<'t>, span: Span) -> Cursor<'t> {
        let mut inner = Self::empty(kind, self.environment);
        inner.span = span;
        inner.fill(table);
        inner
    }

    /// Notes a value that is none of those that a key can have.
    ///
    /// `known` are those that this version acts on.
    pub(super) fn note_choice(
        &self,
        problems: &mut Problems,
        key: &str,
        text: &Located<String>,
        known: &[&str],
    ) {
        let later = unsupported::values(self.kind, key);
        let shown = quoted(&text.value);
        let list = known.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
        let near = nearest(&text.value, known.iter().chain(later).copied());
        let what = match near {
            _ if later.contains(&text.value.as_str()) => {
                format!("{shown} is {NOT_SUPPORTED}; known are: {list}")
            }
            Some(near) if later.contains(&near) => format!(
                "has no choice {shown}; {near:?}, if that is meant, is {NOT_SUPPORTED}; known are: {list}"
            ),
            Some(near) => {
                format!("has no choice {shown}; did you mean {near:?}? (known are: {list})")
            }
            None => format!("has no choice {shown}; known are: {list}"),
        };
        self.note(problems, text.span.clone(), key, &what);
    }

    /// Reports the keys that nobody took.
    pub(super) fn finish(self, problems: &mut Problems) {
        let later = unsupported::keys(self.kind);
        for (key, entry) in &self.entries {
            let what = if later.contains(key) {
                format!("is {NOT_SUPPORTED}; leave it out")
            } else {
                self.unknown(key, entry, later, problems)
            };
            self.note(problems, entry.key.clone(), &shown_key(key), &what);
        }
    }

    fn unknown(
        &self,
        key: &str,
        entry: &Entry<'_>,
        later: &[&'static str],
        problems: &mut Problems,
    ) -> String {
        let known = self.asked.iter().chain(later).copied();
        let Some(near) = nearest(key, known) else {
            let mut known = self.asked.clone();
            known.sort_unstable();
            let known = format!("is no known key here; known are: {}", known.join(", "));
            if key == "registry" {
                // Its value may be a URL with a password.
                problems.hide(entry.value.span());
                return format!(
                    "{known}; the one registry of a proxy has a table of its own, [registry]"
                );
            }
            return known;
        };
        if near.contains("token") {
            problems.hide(entry.value.span());
        }
        if later.contains(&near) {
            return format!("is no known key here; {near}, if that is meant, is {NOT_SUPPORTED}");
        }
        format!("is no known key here; did you mean {}{near}?", self.prefix)
    }

    fn pull(&mut self, key: &'static str) -> Option<Entry<'t>> {
        self.asked.push(key);
        self.entries.remove(key)
    }

    fn read<T: Value>(
        &self,
        key: &str,
        must: &str,
        value: &Spanned<DeValue<'_>>,
        problems: &mut Problems,
    ) -> Option<Located<T>> {
        let what = match T::read(value.get_ref(), self.environment) {
            Ok(read) => return Some(Located { value: read, span: value.span() }),
            Err(Misfit::Kind) => {
                format!("{must} {}, not {}", T::EXPECTED, kind_of(value.get_ref()))
            }
            Err(Misfit::Content(what)) => what,
        };
        self.note(problems, value.span(), key, &what);
        None
    }
}

/// A key as it can stand in a message, and in TOML.
fn shown_key(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_bare = (1..=80).contains(&key.len()) && key.bytes().all(plain);
    if is_bare { key.to_owned() } else { quoted(key) }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
