//! Values that are, or hold, a secret: from the config itself, a variable, or a file.
//!
//! The place of such a value is hidden before anything is looked at, so that no message shows it.

use std::path::Path;

use crate::config::Environment;
use crate::config::problems::Problems;
use crate::config::raw::{Cursor, Span};
use crate::config::value::quoted;

/// A value, or why there is none: the absence of one may be the reader's own choice.
pub(super) enum Taken<T> {
    Absent,
    /// It was given, and is no good; this was noted.
    Wrong,
    Given(T),
}

impl<T> Taken<T> {
    pub(super) fn given(self) -> Option<T> {
        if let Self::Given(value) = self { Some(value) } else { None }
    }

    /// The same of a value of another kind, which is not given.
    pub(super) fn without<U>(&self) -> Taken<U> {
        if matches!(self, Self::Absent) { Taken::Absent } else { Taken::Wrong }
    }
}

/// The text of a secret.
pub(super) struct Text {
    pub(super) value: String,
    pub(super) span: Span,
    /// How a sentence about it begins behind its key, where it is not the value that is wrong.
    pub(super) source: &'static str,
}

/// Takes a text, or, where it is `file:PATH`, what that file holds, less one newline at its end.
pub(super) fn take(
    table: &mut Cursor<'_>,
    key: &'static str,
    folder: &Path,
    environment: &Environment<'_>,
    problems: &mut Problems,
) -> Taken<Text> {
    let Some(span) = table.span_of(key) else {
        table.take::<String>(key, problems); // so that it is known
        return Taken::Absent;
    };
    problems.hide(span);
    let Some(text) = table.take::<String>(key, problems) else { return Taken::Wrong };
    let Some(path) = text.value.strip_prefix("file:") else {
        return Taken::Given(Text { value: text.value, span: text.span, source: "" });
    };
    match (environment.file)(&folder.join(path)) {
        Ok(content) => {
            let source = "holds a file whose content ";
            Taken::Given(Text { value: without_newline(content), span: text.span, source })
        }
        Err(error) => {
            let what = format!(
                "names the file {}, which can't be read ({error}); its path starts at the config's folder",
                quoted(path)
            );
            table.note(problems, text.span, key, &what);
            Taken::Wrong
        }
    }
}

/// Drops one newline at the end, of either kind: editors put it there.
fn without_newline(mut content: String) -> String {
    if content.ends_with('\n') {
        content.pop();
        if content.ends_with('\r') {
            content.pop();
        }
    }
    content
}
