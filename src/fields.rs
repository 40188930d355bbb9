//! Fields of an HTTP head that are lists of tokens, or stand alone (RFC 9110 section 5).
//!
//! What handshakes and forwarding both ask of a head, without knowing of each other.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The value of a header that stands there exactly once.
pub(crate) fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// The elements of a comma separated header, over all its lines (RFC 9110 section 5.6.1), without
/// the space around them. Empty ones are left out, as are whole lines that are not ASCII. For
/// lists of tokens: it doesn't know of quotes.
pub(crate) fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|token| token.trim_matches([' ', '\t']))
        .filter(|token| !token.is_empty())
}

/// Tells whether a comma separated header has this token, in upper or lower case.
pub(crate) fn list_has(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    list(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}
