//! A request's head on its way to a backend.
//!
//! Kept apart from the client it came from: what a backend is sent is a function of a stored head,
//! so that it can be sent to another backend as well.

use http::header::{CONNECTION, EXPECT, HOST, HeaderName, HeaderValue, UPGRADE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Uri, Version};

use super::body::RequestBody;
use super::headers::{self, ClientFacts};
use crate::route::key::Key;

/// The connection id, on handshakes.
const STEADFAST_CONNECTION: HeaderName = HeaderName::from_static("steadfast-connection");
/// The key, percent-encoded, on handshakes.
const STEADFAST_KEY: HeaderName = HeaderName::from_static("steadfast-key");

/// What a backend is sent, but for the body.
#[derive(Clone, Debug)]
pub(super) struct RequestHead {
    method: Method,
    target: Uri,
    headers: HeaderMap,
}

impl RequestHead {
    /// Takes the head of a client's request, as a backend may see it: without what is meant for
    /// one hop or claims what only the proxy can say, and with who the client is.
    ///
    /// `host` is the request's host, which an absolute-form target has in itself
    /// (RFC 9112 section 3.2.2); `None` only for HTTP/1.0.
    pub(super) fn new(parts: Parts, host: Option<HeaderValue>, client: &ClientFacts) -> Self {
        let Parts { method, uri, mut headers, .. } = parts;
        headers::remove_hop_by_hop(&mut headers);
        headers::strip_steadfast(&mut headers);
        headers::ensure_request_id(&mut headers, mint_request_id);
        if let Some(host) = host {
            headers.insert(HOST, host);
        }
        headers::set_forwarded(&mut headers, client);
        let target = origin_form(&uri);
        Self { method, target, headers }
    }

    /// Makes it a handshake of a connection: what [`RequestHead::new`] took away because it is for
    /// one hop is said anew, and the connection named.
    pub(super) fn into_handshake(mut self, connection_id: &str, key: Option<&Key>) -> Self {
        let headers = &mut self.headers;
        headers.remove(EXPECT);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        insert(headers, STEADFAST_CONNECTION, connection_id);
        if let Some(key) = key {
            insert(headers, STEADFAST_KEY, &key.percent_encoded());
        }
        self
    }

    /// The request to send, with a body.
    pub(super) fn request(&self, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// Whether its client came by TLS, to us or to a trusted proxy in front: nobody else's word
    /// for it is left in the head.
    pub(super) fn came_by_tls(&self) -> bool {
        let proto = self.headers.get(headers::X_FORWARDED_PROTO).map(HeaderValue::as_bytes);
        let first = proto.and_then(|proto| proto.split(|&byte| byte == b',').next());
        first.is_some_and(|proto| {
            let proto = proto.trim_ascii();
            proto.eq_ignore_ascii_case(b"https") || proto.eq_ignore_ascii_case(b"wss")
        })
    }

    /// Its headers.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The id by which this request is known along its way.
    pub(super) fn request_id(&self) -> Option<String> {
        let id = self.headers.get(headers::X_REQUEST_ID)?;
        id.to_str().ok().map(str::to_owned)
    }

    /// Gives it a `Host` where it has none, since HTTP/1.1 asks for one.
    pub(super) fn or_host(&mut self, host: &str) {
        if !self.headers.contains_key(HOST) {
            insert(&mut self.headers, HOST, host);
        }
    }

    /// Whether the client waits for a 100 before it sends its body.
    pub(super) fn expects_continue(&self) -> bool {
        let value = self.headers.get(EXPECT).map(HeaderValue::as_bytes);
        value.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"))
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Visible ASCII, by the making of ids, percent-encoding and addresses.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The target as a server that is no proxy wants it (RFC 9112 section 3.2.1).
fn origin_form(uri: &Uri) -> Uri {
    let target = uri.path_and_query().cloned();
    Uri::from(target.unwrap_or_else(|| PathAndQuery::from_static("/")))
}

/// 128 random bits, in hexadecimal.
fn mint_request_id() -> HeaderValue {
    let id = u128::from_ne_bytes(crate::random::bytes());
    HeaderValue::from_str(&format!("{id:032x}")).unwrap_or_else(|_| HeaderValue::from_static("-"))
}
