//! The two handshakes of a connection, as RFC 6455 section 4 wants them.
//!
//! [`check_request`] reads the client's request before any backend hears of it; [`check_response`]
//! reads a backend's 101 before the client does. Both are strict: behind a handshake that only one
//! side takes for one, frames would be read as requests or requests as frames, which is how
//! requests are smuggled past a proxy. So nothing becomes a tunnel without a valid pair.
//!
//! The key passes end to end: the backend answers to the client's own `Sec-WebSocket-Key`, and the
//! client's library checks the answer once more.
//!
//! Left to others: whether the origin is allowed, which backend it goes to, and the parameters of
//! extensions. Extensions are compared by name, because the relay reads no payload; it needs to
//! know just which reserved bits a frame may have, and [`ReservedBits`] says that.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use sha1::{Digest, Sha1};

use super::frame::ReservedBits;
use crate::fields::{list, list_has, only};

/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const DEFLATE: &str = "permessage-deflate";

/// Why a request that asks for a WebSocket gets none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Not a GET.
    #[error("the method of a WebSocket handshake is GET")]
    Method,
    /// Not HTTP/1.1.
    #[error("a WebSocket handshake is HTTP/1.1")]
    HttpVersion,
    /// No `Host`, or several.
    #[error("a WebSocket handshake has exactly one Host")]
    Host,
    /// It has a body, whose bytes would be taken for frames.
    #[error("a WebSocket handshake has no body")]
    Body,
    /// `Upgrade` doesn't have the token `websocket`.
    #[error("Upgrade does not name websocket")]
    Upgrade,
    /// `Connection` doesn't have the token `upgrade`.
    #[error("Connection does not name upgrade")]
    Connection,
    /// No `Sec-WebSocket-Key`, several, or not the base64 of 16 bytes.
    #[error("a WebSocket handshake has exactly one Sec-WebSocket-Key, the base64 of 16 bytes")]
    Key,
    /// No `Sec-WebSocket-Version`, or several.
    #[error("a WebSocket handshake has exactly one Sec-WebSocket-Version")]
    NoVersion,
    /// Right in all else, but another version than 13.
    #[error("only version 13 of the WebSocket protocol is spoken here")]
    Version,
}

impl HandshakeError {
    /// The status to answer with: 426 where only the version is wrong, and then the answer names
    /// version 13 in its own `Sec-WebSocket-Version` (RFC 6455 section 4.2.2); else 400.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::UPGRADE_REQUIRED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// What a proper handshake of a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHandshake {
    /// `Sec-WebSocket-Key`, as sent.
    pub key: HeaderValue,
}

/// Tells whether a request means to be a WebSocket handshake, proper or not: `Upgrade` names
/// websocket, or there is a `Sec-WebSocket-Key`. All others are plain HTTP.
pub fn is_handshake(headers: &HeaderMap) -> bool {
    list_has(headers, &UPGRADE, "websocket") || headers.contains_key(SEC_WEBSOCKET_KEY)
}

/// Checks a client's handshake against RFC 6455 section 4.2.1.
///
/// `Content-Length: 0` counts as no body.
///
/// # Errors
///
/// The first thing that is wrong; the version is looked at last, so that
/// [`HandshakeError::Version`] means that all else is right.
pub fn check_request(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
) -> Result<ClientHandshake, HandshakeError> {
    ensure(*method == Method::GET, HandshakeError::Method)?;
    ensure(version == Version::HTTP_11, HandshakeError::HttpVersion)?;
    ensure(only(headers, &HOST).is_some(), HandshakeError::Host)?;
    ensure(!has_body(headers), HandshakeError::Body)?;
    ensure(list_has(headers, &UPGRADE, "websocket"), HandshakeError::Upgrade)?;
    ensure(list_has(headers, &CONNECTION, "upgrade"), HandshakeError::Connection)?;
    let key = only(headers, &SEC_WEBSOCKET_KEY).filter(|key| is_key(key.as_bytes()));
    let key = key.ok_or(HandshakeError::Key)?.clone();
    let spoken = only(headers, &SEC_WEBSOCKET_VERSION).filter(|spoken| !spoken.is_empty());
    let spoken = spoken.ok_or(HandshakeError::NoVersion)?;
    ensure(spoken.as_bytes() == b"13", HandshakeError::Version)?;
    Ok(ClientHandshake { key })
}

fn ensure<E>(holds: bool, error: E) -> Result<(), E> {
    if holds { Ok(()) } else { Err(error) }
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers.get_all(CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0")
}

/// 16 bytes in base64 are 22 letters and two pads. The four bits that the last letter has too many
/// may be anything, as in the libraries that backends use: the answer is made of the text.
fn is_key(key: &[u8]) -> bool {
    let letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(letter)
}

/// The `Sec-WebSocket-Accept` that answers to a key (RFC 6455 section 4.2.2). Any bytes are taken
/// for a key.
pub fn accept_for(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// Why a backend's 101 is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// `Upgrade` doesn't have the token `websocket`.
    #[error("its Upgrade does not name websocket")]
    Upgrade,
    /// `Connection` doesn't have the token `upgrade`.
    #[error("its Connection does not name upgrade")]
    Connection,
    /// No `Sec-WebSocket-Accept`, several, or not the one that answers to the key.
    #[error("its Sec-WebSocket-Accept does not answer to the key")]
    Accept,
    /// Several subprotocols, or one that was not offered.
    #[error("it chose a subprotocol that was not offered")]
    Subprotocol,
    /// An extension that was not offered, or the same one twice.
    #[error("it chose an extension that was not offered, or one twice")]
    Extension,
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The one subprotocol, or none.
    pub subprotocol: Option<HeaderValue>,
    /// The reserved bits that the extensions in force may set.
    pub reserved: ReservedBits,
}

/// Checks a backend's 101 against RFC 6455 section 4.1, and reads what was agreed on.
///
/// The caller has checked the status. `request` is the head that the backend was sent: its
/// `Sec-WebSocket-Key` must be answered to, and only subprotocols (with case) and extensions (by
/// name) that it offers may be chosen.
///
/// # Errors
///
/// The first thing that is wrong. No tunnel may be opened then.
pub fn check_response(answer: &HeaderMap, request: &HeaderMap) -> Result<Negotiated, BadAnswer> {
    ensure(list_has(answer, &UPGRADE, "websocket"), BadAnswer::Upgrade)?;
    ensure(list_has(answer, &CONNECTION, "upgrade"), BadAnswer::Connection)?;
    let key = only(request, &SEC_WEBSOCKET_KEY).ok_or(BadAnswer::Accept)?;
    let accept = only(answer, &SEC_WEBSOCKET_ACCEPT).ok_or(BadAnswer::Accept)?;
    ensure(*accept == accept_for(key.as_bytes()), BadAnswer::Accept)?;
    Ok(Negotiated {
        subprotocol: chosen_subprotocol(answer, request)?,
        reserved: chosen_extensions(answer, request)?,
    })
}

fn chosen_subprotocol(
    answer: &HeaderMap,
    request: &HeaderMap,
) -> Result<Option<HeaderValue>, BadAnswer> {
    if !answer.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        return Ok(None);
    }
    let chosen = only(answer, &SEC_WEBSOCKET_PROTOCOL).ok_or(BadAnswer::Subprotocol)?;
    let offered = list(request, &SEC_WEBSOCKET_PROTOCOL).any(|offered| *chosen == *offered);
    ensure(offered, BadAnswer::Subprotocol)?;
    Ok(Some(chosen.clone()))
}

fn chosen_extensions(answer: &HeaderMap, request: &HeaderMap) -> Result<ReservedBits, BadAnswer> {
    let chosen = extension_names(answer, &SEC_WEBSOCKET_EXTENSIONS);
    let offered = extension_names(request, &SEC_WEBSOCKET_EXTENSIONS);
    let among = |names: &[String], name| names.iter().any(|n| n.eq_ignore_ascii_case(name));
    let mut extensions = ReservedBits::None;
    for (index, name) in chosen.iter().enumerate() {
        let fits = !name.is_empty() && among(&offered, name) && !among(&chosen[..index], name);
        ensure(fits, BadAnswer::Extension)?;
        let deflate = chosen.len() == 1 && name.eq_ignore_ascii_case(DEFLATE);
        extensions = if deflate { ReservedBits::Deflate } else { ReservedBits::Any };
    }
    Ok(extensions)
}

/// The names in a list of extensions, without their parameters (RFC 6455 section 9.1). A comma in
/// a quoted parameter separates nothing. An element without a name comes out as an empty one.
fn extension_names(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let mut names = Vec::new();
    for line in headers.get_all(name) {
        let (mut quoted, mut escaped) = (false, false);
        let elements = line.as_bytes().split(|&byte| {
            let separates = byte == b',' && !quoted;
            quoted ^= byte == b'"' && !escaped;
            escaped = byte == b'\\' && quoted && !escaped;
            separates
        });
        for element in elements {
            let name = element.split(|&byte| byte == b';').next().unwrap_or_default();
            if !element.trim_ascii().is_empty() {
                names.push(String::from_utf8_lossy(name.trim_ascii()).into_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn request() -> HeaderMap {
        headers(&[
            ("host", "chat.example.com"),
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-key", KEY),
            ("sec-websocket-version", "13"),
        ])
    }

    fn answer() -> HeaderMap {
        headers(&[
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", ACCEPT),
        ])
    }

    /// `base` without `name`, then with one line of it for each value.
    fn with(base: &HeaderMap, name: &str, values: &[&str]) -> HeaderMap {
        let mut headers = base.clone();
        headers.remove(name);
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        for value in values {
            headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn checked(headers: &HeaderMap) -> Result<ClientHandshake, HandshakeError> {
        check_request(&Method::GET, Version::HTTP_11, headers)
    }

    #[test]
    fn handshake_is_recognised_by_upgrade_or_key() {
        assert!(is_handshake(&request()));
        assert!(is_handshake(&headers(&[("upgrade", "h2c"), ("upgrade", "a, WebSocket")])));
        assert!(is_handshake(&headers(&[("sec-websocket-key", "")])));
        assert!(!is_handshake(&headers(&[("upgrade", "h2c, websockets")])));
        assert!(!is_handshake(&headers(&[("connection", "upgrade")])));
    }

    #[test]
    fn proper_request_passes_with_its_key() {
        assert_eq!(checked(&request()).unwrap().key, KEY);
        for (name, values) in [
            ("upgrade", &["h2c", "WebSocket, x"][..]),
            ("connection", &["keep-alive", "x, UPGRADE"]),
            ("content-length", &["0"]),
        ] {
            assert!(checked(&with(&request(), name, values)).is_ok(), "{name}");
        }
    }

    #[test]
    fn each_fault_of_a_request_has_its_error() {
        use HandshakeError::*;
        for (name, values, error) in [
            ("host", &[][..], Host),
            ("host", &["a", "b"], Host),
            ("content-length", &["1"], Body),
            ("transfer-encoding", &["chunked"], Body),
            ("upgrade", &[], Upgrade),
            ("upgrade", &["websocket2"], Upgrade),
            ("connection", &["close"], Connection),
            ("sec-websocket-key", &[], Key),
            ("sec-websocket-key", &[KEY, KEY], Key),
            ("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZQ"], Key),
            ("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZXM="], Key),
            ("sec-websocket-key", &["dGhlIHNhbXBsZSBub25j-Q=="], Key),
            ("sec-websocket-version", &[], NoVersion),
            ("sec-websocket-version", &[""], NoVersion),
            ("sec-websocket-version", &["13", "13"], NoVersion),
            ("sec-websocket-version", &["8"], Version),
            ("sec-websocket-version", &["13, 8"], Version),
        ] {
            let headers = with(&request(), name, values);
            assert_eq!(checked(&headers), Err(error), "{name} {values:?}");
        }
        let post = check_request(&http::Method::POST, http::Version::HTTP_11, &request());
        assert_eq!(post, Err(Method));
        let old = check_request(&http::Method::GET, http::Version::HTTP_10, &request());
        assert_eq!(old, Err(HttpVersion));
    }

    #[test]
    fn only_a_wrong_version_alone_is_a_426() {
        let wrong = with(&request(), "sec-websocket-version", &["12"]);
        assert_eq!(checked(&wrong).unwrap_err().status(), StatusCode::UPGRADE_REQUIRED);
        let more = with(&wrong, "sec-websocket-key", &["x"]);
        assert_eq!(checked(&more).unwrap_err().status(), StatusCode::BAD_REQUEST);
        let none = with(&request(), "sec-websocket-version", &[]);
        assert_eq!(checked(&none).unwrap_err().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn accept_is_that_of_the_rfc() {
        assert_eq!(accept_for(KEY.as_bytes()), ACCEPT);
    }

    #[test]
    fn proper_answer_passes() {
        let agreed = check_response(&answer(), &request()).unwrap();
        assert_eq!(agreed, Negotiated { subprotocol: None, reserved: ReservedBits::None });
    }

    #[test]
    fn each_fault_of_an_answer_has_its_error() {
        use BadAnswer::*;
        let mut request = with(&request(), "sec-websocket-protocol", &["a, b", "c"]);
        request.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(DEFLATE));
        for (name, values, error) in [
            ("upgrade", &[][..], Upgrade),
            ("connection", &["keep-alive"], Connection),
            ("sec-websocket-accept", &[], Accept),
            ("sec-websocket-accept", &[ACCEPT, ACCEPT], Accept),
            ("sec-websocket-accept", &["S3pPLMBiTxaQ9kYGzzhZRbK+xOo="], Accept),
            ("sec-websocket-protocol", &["d"], Subprotocol),
            ("sec-websocket-protocol", &["A"], Subprotocol),
            ("sec-websocket-protocol", &["a, b"], Subprotocol),
            ("sec-websocket-protocol", &["a", "b"], Subprotocol),
            ("sec-websocket-protocol", &[""], Subprotocol),
            ("sec-websocket-extensions", &["x-other"], Extension),
            ("sec-websocket-extensions", &["permessage-deflate", "permessage-deflate"], Extension),
        ] {
            let answer = with(&answer(), name, values);
            assert_eq!(check_response(&answer, &request), Err(error), "{name} {values:?}");
        }
        let keyless = with(&request, "sec-websocket-key", &[]);
        assert_eq!(check_response(&answer(), &keyless), Err(Accept));
    }

    #[test]
    fn offered_subprotocol_is_agreed_on() {
        let request = with(&request(), "sec-websocket-protocol", &["a, b", "c"]);
        for chosen in ["a", "b", "c"] {
            let answer = with(&answer(), "sec-websocket-protocol", &[chosen]);
            let agreed = check_response(&answer, &request).unwrap();
            assert_eq!(agreed.subprotocol.unwrap(), chosen);
        }
    }

    #[test]
    fn extensions_say_which_reserved_bits_may_be_set() {
        let offer = ["permessage-deflate; client_max_window_bits, x-a; p=\"1, x-b\"", "x-c"];
        let request = with(&request(), "sec-websocket-extensions", &offer);
        let extensions = |chosen: &[&str]| {
            let answer = with(&answer(), "sec-websocket-extensions", chosen);
            check_response(&answer, &request).map(|agreed| agreed.reserved)
        };
        assert_eq!(extensions(&[]), Ok(ReservedBits::None));
        assert_eq!(extensions(&[" , "]), Ok(ReservedBits::None));
        let deflate =
            "Permessage-Deflate; server_no_context_takeover; client_max_window_bits=\"9\"";
        assert_eq!(extensions(&[deflate]), Ok(ReservedBits::Deflate));
        assert_eq!(extensions(&["x-c"]), Ok(ReservedBits::Any));
        assert_eq!(extensions(&["x-a, permessage-deflate"]), Ok(ReservedBits::Any));
        assert_eq!(extensions(&["x-a", "x-c; q=\"\\\",\""]), Ok(ReservedBits::Any));
        assert_eq!(extensions(&["x-b"]), Err(BadAnswer::Extension));
        assert_eq!(extensions(&["; x-a"]), Err(BadAnswer::Extension));
    }

    proptest! {
        #[test]
        fn only_the_answer_to_this_very_key_is_believed(
            key in prop::array::uniform16(any::<u8>()),
            other in prop::array::uniform16(any::<u8>()),
        ) {
            let (text, other_text) = (STANDARD.encode(key), STANDARD.encode(other));
            let request = with(&request(), "sec-websocket-key", &[&text]);
            prop_assert!(checked(&request).is_ok());
            let accept = accept_for(other_text.as_bytes());
            let answer = with(&answer(), "sec-websocket-accept", &[&accept]);
            prop_assert_eq!(check_response(&answer, &request).is_ok(), key == other);
        }

        #[test]
        fn key_of_any_other_length_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let request = with(&request(), "sec-websocket-key", &[&STANDARD.encode(&bytes)]);
            prop_assert_eq!(checked(&request).is_ok(), bytes.len() == 16);
        }

        #[test]
        fn every_agreed_extension_was_offered(
            offer in "[ab,; \"\\\\]{0,12}",
            chosen in "[ab,; \"\\\\]{0,12}",
        ) {
            let request = with(&request(), "sec-websocket-extensions", &[&offer]);
            let answer = with(&answer(), "sec-websocket-extensions", &[&chosen]);
            let offered = extension_names(&request, &SEC_WEBSOCKET_EXTENSIONS);
            if check_response(&answer, &request).is_ok() {
                for name in extension_names(&answer, &SEC_WEBSOCKET_EXTENSIONS) {
                    prop_assert!(offered.contains(&name));
                }
            }
        }
    }
}
