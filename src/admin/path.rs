//! What the path and the query of a request name.

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use percent_encoding::percent_decode_str;

use super::problem::Problem;

/// Whether all that a request names is text. What reads a query would put other characters in the
/// place of those that are none, and take a `%` that encodes nothing for itself: a connection would
/// be closed with another reason than was asked for, and others listed.
pub(super) fn is_text(uri: &Uri) -> Result<(), Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    for (part, text) in [("path", uri.path()), ("query", uri.query().unwrap_or_default())] {
        if !encodes_all(text) {
            let detail = "has a % without two hexadecimal digits behind it; a % itself is %25";
            return Err(bad(format!("the {part} {detail}")));
        }
        // What separates names and values is ASCII, and breaks no character.
        if let Err(error) = percent_decode_str(text).decode_utf8() {
            return Err(bad(format!("the {part} must be UTF-8, percent-encoded: {error}")));
        }
    }
    Ok(())
}

/// Whether every `%` has two hexadecimal digits behind it (RFC 3986 section 2.1).
fn encodes_all(text: &str) -> bool {
    let is_encoding = |behind: &str| {
        behind
            .as_bytes()
            .first_chunk::<2>()
            .is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    };
    text.split('%').skip(1).all(is_encoding)
}

/// The names in a path, decoded; a problem as all others where one does not fit.
pub(super) struct Named<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for Named<T>
where
    Path<T>: FromRequestParts<S, Rejection = PathRejection>,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::from_request_parts(parts, state).await;
        let Path(names) = path.map_err(|error| Problem::new(error.status(), error.body_text()))?;
        Ok(Self(names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_text() {
        for (target, text) in [
            ("/", true),
            ("/v1/rooms/50%25/messages?except=a+b&x=%C3%A4", true),
            ("/v1/rooms/%ff/messages", false),
            ("/v1/rooms/%zz/messages", false),
            ("/v1/rooms/50%", false),
            ("/v1/rooms/50%2", false),
            ("/?reason=%ff", false),
            ("/?%ff=x", false),
            ("/?reason=%C3&x=%A4", false),
            ("/?reason=100%&x=1", false),
            ("/?reason=%2", false),
            ("/?a=%2/%20", false),
        ] {
            assert_eq!(is_text(&target.parse().unwrap()).is_ok(), text, "{target}");
        }
    }
}
