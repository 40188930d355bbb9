//! Names: their form, that they are given once, and what another must have meant.
//!
//! Names go into metrics, logs, URLs of the admin API and names in the registry, so their
//! alphabet is small. Who takes a name that another has is told on which line the first stands.

use std::collections::HashMap;
use std::hash::Hash;

use crate::config::problems::Problems;
use crate::config::raw::{Cursor, Located, Span};
use crate::config::value::{nearest, quoted};

/// The longest name, in characters.
pub(super) const LONGEST: usize = 64;

/// Tells whether a text can be the name of a pool, a route or a listener.
pub(super) fn is_name(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len()) && text.bytes().all(is_plain)
}

/// Tells whether a text can be the id of a backend.
pub(super) fn is_backend_id(text: &str) -> bool {
    let fits = |byte: u8| is_plain(byte) || byte == b'.' || byte == b':';
    (1..=LONGEST).contains(&text.len()) && text.bytes().all(fits)
}

/// Brings any text into the form of a name, as far as it goes; what has no place becomes a dash.
pub(super) fn into_name(text: &str) -> String {
    let fit = |character: char| {
        let plain = u8::try_from(character).is_ok_and(is_plain);
        if plain { character } else { '-' }
    };
    text.chars().take(LONGEST).map(fit).collect()
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// What the form is, for messages.
pub(super) const NAME_FORM: &str = "use 1 to 64 letters, digits, - and _";

/// Takes an optional name. One of the wrong form is noted, and given all the same: what refers
/// to it is not wrong too.
pub(super) fn name(table: &mut Cursor<'_>, problems: &mut Problems) -> Option<Located<String>> {
    let name = table.take::<String>("name", problems)?;
    if !is_name(&name.value) {
        let what = format!("can't be {}; {NAME_FORM}", quoted(&name.value));
        table.note(problems, name.span.clone(), "name", &what);
    }
    Some(name)
}

/// How messages name a table of a list: by its name, or by its number in the list.
pub(super) fn place(what: &str, name: Option<&str>, index: usize) -> String {
    match name {
        Some(name) => format!("{what} {}", quoted(name)),
        None => format!("{what} {}", index + 1),
    }
}

/// What was there before, and where it was first.
pub(super) struct Seen<K>(HashMap<K, Span>);

impl<K: Eq + Hash> Seen<K> {
    /// Begins with nothing.
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Remembers something; where it was there before, gives the place of the first.
    pub(super) fn again(&mut self, what: K, span: Span) -> Option<Span> {
        if let Some(first) = self.0.get(&what) {
            return Some(first.clone());
        }
        self.0.insert(what, span);
        None
    }
}

/// Says what was probably meant by a name that nothing has.
pub(super) fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_unstable();
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {}?", quoted(near)),
        None if known.is_empty() => "there is none yet; add it".to_owned(),
        None => {
            let list: Vec<_> = known.iter().take(10).map(|name| quoted(name)).collect();
            format!("known are: {}{}", list.join(", "), if known.len() > 10 { ", .." } else { "" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_of_names_is_small() {
        for good in ["a", "A-z_09", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a.b", "a:b", "a b", "ä", "/ws/*", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(is_backend_id("10.0.0.1:9001"));
        assert!(!is_backend_id("a/b"));
    }

    #[test]
    fn a_host_name_becomes_a_name() {
        assert_eq!(into_name("edge1.example.com"), "edge1-example-com");
        assert_eq!(into_name("käse 1"), "k-se-1");
        assert_eq!(into_name(&"a.".repeat(50)).len(), LONGEST);
    }
}
