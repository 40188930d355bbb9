//! From a request to its key: the string that decides its backend.
//!
//! A route lists sources; the first that the request has gives the key. A source that is absent
//! and one that is empty are the same: the next one is asked. Of several values of one name the
//! first counts, also when it is empty, so that nobody can shift a key by adding a second one.
//!
//! What comes from a URL is percent-decoded once, as URL parsers do it: an incomplete or broken
//! escape (`%zz`) stays as it is. Cookies and headers are not decoded. Of a cookie's value, one
//! pair of surrounding double quotes is taken off, because RFC 6265 section 4.1.1 lets servers set
//! `name="value"` and clients differ in whether they send the quotes back; the same session must
//! not have two homes.
//!
//! A source that is present but can't be a key (not UTF-8, or too long) is an error and not the
//! next source's turn: guessing would send one user to two backends. The answer is then a 400.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::COOKIE;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;

/// Everything but the unreserved characters of RFC 3986 section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where a key may be found in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// `query:NAME`, percent-decoded, `+` is a space.
    Query(String),
    /// `header:NAME`, in lower case.
    Header(http::HeaderName),
    /// `cookie:NAME`.
    Cookie(String),
    /// `path:N`, the N-th segment, from 1, percent-decoded.
    Path(usize),
    /// `client_ip`, as text.
    ClientIp,
}

/// Writes the source as the config has it, such as `query:room`.
impl fmt::Display for KeySource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(name) => write!(formatter, "query:{name}"),
            Self::Header(name) => write!(formatter, "header:{name}"),
            Self::Cookie(name) => write!(formatter, "cookie:{name}"),
            Self::Path(segment) => write!(formatter, "path:{segment}"),
            Self::ClientIp => formatter.write_str("client_ip"),
        }
    }
}

/// A key: 1 to 512 bytes of UTF-8 text, compared byte by byte. Cloning shares the text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// Takes a text as a key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Empty`] and [`KeyError::TooLong`].
    pub fn new(text: &str) -> Result<Self, KeyError> {
        match text.len() {
            0 => Err(KeyError::Empty),
            1..=MAX_KEY_BYTES => Ok(Self(text.into())),
            bytes => Err(KeyError::TooLong { bytes }),
        }
    }

    /// A number as a key: 32 hexadecimal digits.
    pub(super) fn of_number(number: u128) -> Self {
        Self(format!("{number:032x}").into())
    }

    /// The text itself: what the ring hashes, and what JSON and Redis names carry.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key as headers and paths carry it: all but RFC 3986's unreserved characters
    /// percent-encoded, so it is visible ASCII, at most three times as long.
    pub fn percent_encoded(&self) -> String {
        utf8_percent_encode(&self.0, RESERVED).to_string()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Why what a source holds is no key. A request with such a key is answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is nothing in it. [`find_key`] never answers this: to it, empty is absent.
    #[error("the key is empty")]
    Empty,
    /// The bytes, after decoding, are not UTF-8.
    #[error("the key is not UTF-8")]
    NotUtf8,
    /// Over [`MAX_KEY_BYTES`], after decoding.
    #[error("the key has {bytes} bytes, at most {MAX_KEY_BYTES} are allowed")]
    TooLong {
        /// How many it has.
        bytes: usize,
    },
}

/// What a key may be taken from.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The path as sent, undecoded, without the query.
    pub path: &'a str,
    /// The query as sent, undecoded, without its question mark.
    pub query: Option<&'a str>,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// Who the client is, after proxies in front that are trusted.
    pub client: IpAddr,
}

/// A key, and the source that it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFound<'a> {
    /// The key.
    pub key: Key,
    /// The first of the route's sources that the request has.
    pub source: &'a KeySource,
}

/// Finds the key of a request: the value of the first source that is present and not empty.
///
/// `None` is a request without a key, which is not bound to any backend. Takes time in proportion
/// to the query and the cookies, once per source.
///
/// # Errors
///
/// [`KeyError::NotUtf8`] and [`KeyError::TooLong`] of the first source that is present.
pub fn find_key<'a>(
    sources: &'a [KeySource],
    request: &RequestFacts<'_>,
) -> Result<Option<KeyFound<'a>>, KeyError> {
    for source in sources {
        let value = value_of(source, request).filter(|value| !value.is_empty());
        if let Some(value) = value {
            let text = std::str::from_utf8(&value).map_err(|_| KeyError::NotUtf8)?;
            return Ok(Some(KeyFound { key: Key::new(text)?, source }));
        }
    }
    Ok(None)
}

fn value_of<'a>(source: &KeySource, request: &RequestFacts<'a>) -> Option<Cow<'a, [u8]>> {
    match source {
        KeySource::Query(name) => query_value(request.query?, name),
        KeySource::Header(name) => {
            Some(Cow::Borrowed(request.headers.get(name)?.as_bytes().trim_ascii()))
        }
        KeySource::Cookie(name) => cookie_value(request.headers, name).map(Cow::Borrowed),
        KeySource::Path(segment) => path_segment(request.path, *segment),
        KeySource::ClientIp => {
            Some(Cow::Owned(request.client.to_canonical().to_string().into_bytes()))
        }
    }
}

/// The first value of a name in a query, both decoded as in a form (WHATWG URL section 5.1).
fn query_value<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(raw, _)| *form_decode(raw) == *name.as_bytes())
        .map(|(_, value)| form_decode(value))
}

fn form_decode(raw: &str) -> Cow<'_, [u8]> {
    if !raw.contains('+') {
        return percent_decode(raw.as_bytes()).into();
    }
    // Before decoding: `%2B` is a plus.
    let spaced = raw.replace('+', " ");
    Cow::Owned(percent_decode(spaced.as_bytes()).collect())
}

/// The first value of a cookie, over all `Cookie` lines (HTTP/2 clients may send several), split
/// as in RFC 6265 section 5.2. Names are compared with case. What has no `=` is no cookie.
fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b';'))
        .filter_map(|pair| {
            let equals = pair.iter().position(|&byte| byte == b'=')?;
            Some((pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii()))
        })
        .find(|(found, _)| *found == name.as_bytes())
        .map(|(_, value)| unquoted(value))
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

/// The `number`-th segment of a path, from 1; segment 1 of `/a/b` is `a`. A plus stays a plus.
fn path_segment(path: &str, number: usize) -> Option<Cow<'_, [u8]>> {
    let segment = path.strip_prefix('/')?.split('/').nth(number.checked_sub(1)?)?;
    Some(percent_decode(segment.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str) -> KeySource {
        KeySource::Query(name.to_owned())
    }

    fn cookie(name: &str) -> KeySource {
        KeySource::Cookie(name.to_owned())
    }

    /// The key of a request with this target, these header lines and the client 192.0.2.1.
    fn key_of(
        sources: &[KeySource],
        target: &str,
        lines: &[(&'static str, &[u8])],
    ) -> Result<Option<String>, KeyError> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let client = Ipv4Addr::new(192, 0, 2, 1).into();
        let request = RequestFacts { path, query, headers: &headers, client };
        Ok(find_key(sources, &request)?.map(|found| found.key.to_string()))
    }

    #[test]
    fn query_names_and_values_are_decoded_once() {
        for (target, key) in [
            ("/?room=a", Some("a")),
            ("/?x=1&room=a%20b&y", Some("a b")),
            ("/?room=a+b%2Bc", Some("a b+c")),
            ("/?r%6Fom=a", Some("a")),
            ("/?room=%2541", Some("%41")),
            ("/?room=%zz%4", Some("%zz%4")),
            ("/?room=a=b", Some("a=b")),
            ("/?Room=a", None),
            ("/?room", None),
            ("/?room=", None),
            ("/?room=&room=second", None),
            ("/?room=first&room=second", Some("first")),
            ("/", None),
        ] {
            assert_eq!(key_of(&[query("room")], target, &[]).unwrap().as_deref(), key, "{target}");
        }
    }

    #[test]
    fn cookies_are_found_over_several_lines_and_lose_their_quotes() {
        for (lines, key) in [
            (&[&b"a=1; sid=x"[..]][..], Some("x")),
            (&[b"a=1", b"sid=x;b=2"], Some("x")),
            (&[b"sid=\"x y\""], Some("x y")),
            (&[b"sid=\"x"], Some("\"x")),
            (&[b"sid=\""], Some("\"")),
            (&[b"sid=\"\""], None),
            (&[b"SID=x; sid"], None),
            (&[b" sid =\tx%20 "], Some("x%20")),
            (&[b"sid=a=b"], Some("a=b")),
            (&[b"sid=1; sid=2"], Some("1")),
            (&[b"sid=; sid=2"], None),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("cookie", *line)).collect();
            assert_eq!(key_of(&[cookie("sid")], "/", &lines).unwrap().as_deref(), key);
        }
    }

    #[test]
    fn header_is_taken_as_it_is() {
        let source = [KeySource::Header(http::HeaderName::from_static("x-user"))];
        let key = |value| key_of(&source, "/", &[("x-user", value)]).unwrap();
        assert_eq!(key(b" a%20b, c ").as_deref(), Some("a%20b, c"));
        assert_eq!(key("é".as_bytes()).as_deref(), Some("é"));
        assert_eq!(key(b" \t"), None);
        let two: [(_, &[u8]); 2] = [("x-user", b""), ("x-user", b"b")];
        assert_eq!(key_of(&source, "/", &two), Ok(None));
    }

    #[test]
    fn path_segments_count_from_one() {
        let key = |number, path| key_of(&[KeySource::Path(number)], path, &[]).unwrap();
        assert_eq!(key(1, "/ws/a%2Fb").as_deref(), Some("ws"));
        assert_eq!(key(2, "/ws/a%2Fb+c?x").as_deref(), Some("a/b+c"));
        assert_eq!(key(3, "/ws/a"), None);
        assert_eq!(key(2, "/ws//a"), None);
        assert_eq!(key(0, "/ws"), None);
        assert_eq!(key(1, "*"), None);
        assert_eq!(key(1, "/"), None);
    }

    #[test]
    fn client_address_has_one_text() {
        for (address, text) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:0:0:0:0:0:1", "2001:db8::1"),
        ] {
            let headers = HeaderMap::new();
            let client = address.parse().unwrap();
            let request = RequestFacts { path: "/", query: None, headers: &headers, client };
            let found = find_key(&[KeySource::ClientIp], &request).unwrap().unwrap();
            assert_eq!(found.key.as_str(), text);
        }
    }

    #[test]
    fn first_source_that_is_present_gives_the_key() {
        let sources = [query("room"), cookie("sid"), KeySource::ClientIp];
        let sid: [(_, &[u8]); 1] = [("cookie", b"sid=s")];
        assert_eq!(key_of(&sources, "/?room=r", &sid).unwrap().as_deref(), Some("r"));
        assert_eq!(key_of(&sources, "/?room=", &sid).unwrap().as_deref(), Some("s"));
        assert_eq!(key_of(&sources, "/", &[]).unwrap().as_deref(), Some("192.0.2.1"));
        assert_eq!(key_of(&sources[..2], "/", &[]), Ok(None));
        assert_eq!(key_of(&[], "/?room=r", &sid), Ok(None));
    }

    #[test]
    fn present_source_that_is_no_key_is_an_error_not_the_next_ones_turn() {
        let sources = [query("room"), KeySource::ClientIp];
        assert_eq!(key_of(&sources, "/?room=%ff", &[]), Err(KeyError::NotUtf8));
        let at_limit = format!("/?room={}", "%61".repeat(MAX_KEY_BYTES));
        assert!(key_of(&sources, &at_limit, &[]).is_ok());
        let over = format!("/?room={}", "a".repeat(MAX_KEY_BYTES + 1));
        assert_eq!(key_of(&sources, &over, &[]), Err(KeyError::TooLong { bytes: 513 }));
        let bytes: [(_, &[u8]); 1] = [("cookie", b"sid=\xff")];
        assert_eq!(key_of(&[cookie("sid")], "/", &bytes), Err(KeyError::NotUtf8));
    }

    #[test]
    fn sources_are_written_as_in_the_config() {
        assert_eq!(query("room").to_string(), "query:room");
        assert_eq!(KeySource::Path(2).to_string(), "path:2");
        assert_eq!(KeySource::ClientIp.to_string(), "client_ip");
    }

    proptest! {
        #[test]
        fn encoded_key_is_unreserved_ascii_and_comes_back_from_a_query(text in "\\PC{1,120}") {
            let Ok(key) = Key::new(&text) else { return Ok(()) };
            let encoded = key.percent_encoded();
            let visible = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
            prop_assert!(encoded.bytes().all(visible));
            let target = format!("/x/{encoded}?a&room={encoded}");
            for source in [query("room"), KeySource::Path(2)] {
                let found = key_of(&[source], &target, &[]).unwrap();
                prop_assert_eq!(found.as_deref(), Some(text.as_str()));
            }
        }

        #[test]
        fn whatever_is_found_is_a_valid_key(target in "/[ -~é]{0,60}", line in "[ -~\t]{0,60}") {
            let sources = [query("a"), cookie("a"), KeySource::Path(1)];
            let lines = [("cookie", line.as_bytes())];
            if let Ok(Some(key)) = key_of(&sources, &target, &lines) {
                prop_assert!((1..=MAX_KEY_BYTES).contains(&key.len()));
            }
        }
    }
}
