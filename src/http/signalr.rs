//! What the proxy reads of SignalR for ASP.NET Core: whose connection a request is, and which one an
//! answer opens.
//!
//! A client begins with `POST HUB/negotiate?negotiateVersion=1`. The answer is JSON and names the
//! connection: by its `connectionToken`, or, before version 1, by its `connectionId` (SignalR transport
//! protocols, "`POST [endpoint-base]/negotiate` request"). Every later request, long polls, sends,
//! server-sent events and the WebSocket, has that as `id` in its query, and only the process that
//! issued it knows it. A client that skips the negotiation opens a WebSocket without an id: it is
//! alone, and there is nothing to learn. An answer that sends the client elsewhere (`url`), as that of
//! the Azure service does, opens nothing here.

use std::borrow::Cow;
use std::time::Duration;

use http::Method;
use serde::Deserialize;

use super::opened::{Opened, Request, is_session_id};

/// How long a connection may be without a request. A server gives a client some 15 seconds to come
/// back after each; a long poll that waits is a request.
const LIFE: Duration = Duration::from_secs(60);

/// Reads a request line; `None` where it is none of a connection. An id that can't be one is nobody's.
pub fn request_of<'a>(method: &Method, path: &str, query: Option<&'a str>) -> Option<Request<'a>> {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let mut ids = pairs.filter(|(name, _)| *name == "id").map(|(_, value)| value);
    if let Some(id) = ids.next() {
        return is_session_id(id).then_some(Request::Of(id));
    }
    let negotiates = *method == Method::POST && path.ends_with("/negotiate");
    negotiates.then_some(Request::Opens)
}

/// The answer to a negotiation, as far as it matters here.
#[derive(Deserialize)]
struct Negotiated<'a> {
    #[serde(rename = "connectionToken", borrow, default)]
    token: Option<Cow<'a, str>>,
    #[serde(rename = "connectionId", borrow, default)]
    id: Option<Cow<'a, str>>,
}

/// Finds the connection that an answer to a negotiation opens. What is cut off in its middle is not
/// found yet.
pub fn opened(body: &[u8]) -> Option<Opened> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Negotiated<'_>>();
    let Negotiated { token, id } = values.next()?.ok()?;
    let id = token.or(id)?.into_owned();
    is_session_id(&id).then_some(Opened { id, life: LIFE })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::opened::tests::{is_bounded, pieces};
    use super::super::opened::{BodyStart, MOST_READ};
    use super::*;

    const ANSWER: &str = r#"{"connectionToken":"05265228-1e2c-46c5-82a1-6a5bcc3f0143","connectionId":"807809a5-31bf-470d-9e23-afaee35d8a0d","negotiateVersion":1,"availableTransports":[{"transport":"LongPolling","transferFormats":["Text","Binary"]}]}"#;

    #[test]
    fn a_request_opens_a_connection_or_is_of_one() {
        let of = |method: &Method, path, query| request_of(method, path, query);
        let negotiation = of(&Method::POST, "/chat/negotiate", Some("negotiateVersion=1"));
        assert_eq!(negotiation, Some(Request::Opens));
        assert_eq!(of(&Method::POST, "/negotiate", None), Some(Request::Opens));
        for method in [Method::GET, Method::POST, Method::DELETE] {
            let found = of(&method, "/chat", Some("x=1&id=a_B-9&id=b"));
            assert_eq!(found, Some(Request::Of("a_B-9")));
        }
        assert_eq!(of(&Method::GET, "/chat/negotiate", None), None);
        assert_eq!(of(&Method::POST, "/chat", Some("transport=longPolling")), None);
        assert_eq!(of(&Method::GET, "/chat", None), None, "it has skipped the negotiation");
        for no_id in ["", "a b", "%61", "a.b", &"a".repeat(65)] {
            let query = format!("id={no_id}");
            assert_eq!(request_of(&Method::GET, "/chat", Some(&query)), None, "{no_id}");
        }
    }

    #[test]
    fn the_token_counts_before_the_id() {
        let id = |body: &str| opened(body.as_bytes()).map(|opened| opened.id);
        assert_eq!(id(ANSWER).as_deref(), Some("05265228-1e2c-46c5-82a1-6a5bcc3f0143"));
        assert_eq!(id(r#"{"connectionId":"abc"}"#).as_deref(), Some("abc"));
        for nothing in [
            "",
            "{}",
            "[]",
            r#"{"url":"https://elsewhere.example","accessToken":"x"}"#,
            r#"{"connectionToken":"a b"}"#,
            r#"{"connectionToken":7}"#,
            r#"{"error":"not for you"}"#,
        ] {
            assert_eq!(id(nothing), None, "{nothing}");
        }
        let long = format!(r#"{{"connectionId":"abc","rest":"{}"}}"#, "a".repeat(MOST_READ));
        assert_eq!(BodyStart::new(opened).feed(long.as_bytes()), None);
    }

    #[test]
    fn every_cut_of_the_same_answer_tells_once() {
        for cut in 0..=ANSWER.len() {
            let mut start = BodyStart::new(opened);
            let (first, second) = ANSWER.as_bytes().split_at(cut);
            let found = [start.feed(first), start.feed(second)];
            assert_eq!(found.into_iter().flatten().count(), 1, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_and_bounded(pieces in pieces()) {
            is_bounded(opened, &pieces)?;
        }

        #[test]
        fn any_request_is_read(path in ".{0,40}", query in ".{0,80}") {
            request_of(&Method::POST, &path, Some(&query));
        }
    }
}
