//! `[registry]`: the Redis that several proxies share.
//!
//! Its URLs may hold a password, so no message shows one: their places are hidden first of all.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::limits::{duration_or_zero, size};
use super::secret::{self, Taken};
use crate::config::Environment;
use crate::config::problems::Problems;
use crate::config::raw::{Cursor, Located};
use crate::config::value::quoted;
use crate::registry::redis::{Place, Settings};

/// The longest that a handshake may be kept waiting.
const LONGEST_JOIN_WAIT: Duration = Duration::from_secs(10);
/// The largest message that may be allowed.
const MAX_MESSAGE: RangeInclusive<u64> = 1 << 10..=64 << 20;
/// The longest prefix, in characters.
const LONGEST_PREFIX: usize = 64;

/// Resolves `[registry]`; `None` where there is no such table, or where it does not say where the
/// registry is.
pub(super) fn resolve(
    root: &mut Cursor<'_>,
    folder: &Path,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Settings> {
    if !root.has_table("registry") {
        // Asked for all the same, so that it is known, and told of where it is no table.
        root.table("registry", "registry", "", problems);
        return None;
    }
    let mut table = root.table("registry", "registry", "", problems);
    table.set_place("registry".to_owned());
    let place = place(&mut table, folder, environment, problems);
    let prefix = prefix(&mut table, problems);
    let required = table.take("required", problems).is_some_and(|taken| taken.value);
    let join_wait = join_wait(&mut table, problems);
    let max_message = size(&mut table, "max_message", 1 << 20, &MAX_MESSAGE, problems);
    table.finish(problems);
    let max_message = usize::try_from(max_message).unwrap_or(usize::MAX);
    place.map(|place| Settings { place, prefix, required, join_wait, max_message })
}

fn place(
    table: &mut Cursor<'_>,
    folder: &Path,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Option<Place> {
    let url = secret::take(table, "url", folder, environment, problems);
    let members = members(table, problems);
    match (url, members) {
        (Taken::Absent, Taken::Absent) => {
            let remedy = "is missing; write url = \"redis://127.0.0.1:6379\", or cluster = [\"redis://..\", ..]";
            table.note(problems, table.span(), "url", remedy);
            None
        }
        (Taken::Given(url), Taken::Absent) => {
            let wrong = match Place::at(&url.value) {
                Ok(place) => return Some(place),
                Err(wrong) => format!("{}{wrong}", url.source),
            };
            table.note(problems, url.span, "url", &wrong);
            None
        }
        (Taken::Absent, Taken::Given(members)) => {
            let wrong = match Place::cluster(members.value.iter().map(String::as_str)) {
                Ok(place) => return Some(place),
                Err(wrong) => wrong.to_string(),
            };
            table.note(problems, members.span, "cluster", &wrong);
            None
        }
        (Taken::Given(url), Taken::Given(_)) => {
            table.note(problems, url.span, "url", "can't stand beside cluster; keep one of them");
            None
        }
        (Taken::Wrong, _) | (_, Taken::Wrong) => None,
    }
}

/// The URLs of `cluster`, and where the list stands.
fn members(table: &mut Cursor<'_>, problems: &mut Problems) -> Taken<Located<Vec<String>>> {
    const KEY: &str = "cluster";
    let Some(span) = table.span_of(KEY) else {
        table.list::<String>(KEY, problems); // so that it is known
        return Taken::Absent;
    };
    problems.hide(span.clone());
    let before = problems.len();
    let members = table.list::<String>(KEY, problems);
    if problems.len() > before {
        return Taken::Wrong;
    }
    let members = members.into_iter().map(|member| member.value).collect();
    Taken::Given(Located { value: members, span })
}

fn prefix(table: &mut Cursor<'_>, problems: &mut Problems) -> String {
    let Some(text) = table.take::<String>("prefix", problems) else {
        return "steadfast".to_owned();
    };
    // No brace: a Redis Cluster would take what stands in it for the whole key.
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    if !(1..=LONGEST_PREFIX).contains(&text.value.len()) || !text.value.bytes().all(fits) {
        let shown = quoted(&text.value);
        let what = format!("can't be {shown}; use 1 to 64 letters, digits, -, _, ., : and /");
        table.note(problems, text.span, "prefix", &what);
    }
    text.value
}

fn join_wait(table: &mut Cursor<'_>, problems: &mut Problems) -> Duration {
    const KEY: &str = "join_wait";
    let span = table.span_of(KEY);
    let wait = duration_or_zero(table, KEY, Duration::from_millis(50), problems);
    if let Some(span) = span.filter(|_| wait > LONGEST_JOIN_WAIT) {
        table.note(
            problems,
            span,
            KEY,
            "must be at most 10s: clients wait for it; the default is \"50ms\"",
        );
    }
    wait
}
