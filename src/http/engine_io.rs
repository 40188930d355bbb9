//! What the proxy reads of Engine.IO, the transport below Socket.IO: whose session a request is,
//! and which session an answer opens.
//!
//! A client begins without a session id. The server's first packet names one, `0` and JSON (Engine.IO
//! protocol, "Handshake"): over long polling it is the body of the first answer, over a WebSocket
//! without an id it is the first message. Every later request has it as `sid` in its query, and only
//! the process that issued it knows it.

use std::time::Duration;

use serde::Deserialize;

use super::opened::{LONGEST_LIFE, Opened, Request, is_session_id};

/// Between the packets of one body (protocol 4).
const RECORD_SEPARATOR: u8 = 0x1e;

/// Reads a query as sent; `None` where it is none of Engine.IO's. An id that can't be one is
/// nobody's, and a server will say so.
pub fn request_of(query: Option<&str>) -> Option<Request<'_>> {
    let (mut is_engine_io, mut has_transport, mut id) = (false, false, None);
    for (name, value) in query?.split('&').filter_map(|pair| pair.split_once('=')) {
        match name {
            "EIO" => is_engine_io = true,
            "transport" => has_transport = matches!(value, "polling" | "websocket"),
            "sid" if id.is_none() => id = Some(value),
            _ => {}
        }
    }
    if !is_engine_io || !has_transport {
        return None;
    }
    match id {
        None => Some(Request::Opens),
        Some(id) => is_session_id(id).then_some(Request::Of(id)),
    }
}

/// The open packet, as far as it matters here.
#[derive(Deserialize)]
struct OpenPacket<'a> {
    sid: &'a str,
    #[serde(rename = "pingInterval")]
    ping_interval_millis: u64,
    #[serde(rename = "pingTimeout")]
    ping_timeout_millis: u64,
}

/// Finds the open packet in the beginning of a body, or in a message.
///
/// It need not be whole: what is cut off in the middle of the packet is not found yet. Protocol 3
/// writes the length of each packet and a colon before it.
pub fn opened(text: &[u8]) -> Option<Opened> {
    text.split(|&byte| byte == RECORD_SEPARATOR).find_map(|packet| {
        let digits = packet.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let packet = match packet.get(digits) {
            Some(b':') => &packet[digits + 1..],
            _ => packet,
        };
        let json = packet.strip_prefix(b"0").filter(|json| json.first() == Some(&b'{'))?;
        let mut values = serde_json::Deserializer::from_slice(json).into_iter::<OpenPacket<'_>>();
        let packet = values.next()?.ok()?;
        let millis = packet.ping_interval_millis.saturating_add(packet.ping_timeout_millis);
        let life = Duration::from_millis(millis).min(LONGEST_LIFE);
        is_session_id(packet.sid).then(|| Opened { id: packet.sid.to_owned(), life })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::opened::BodyStart;
    use super::super::opened::tests::{is_bounded, pieces};
    use super::*;

    const OPEN: &str = r#"0{"sid":"lv_VI97HAXpY6yYWAAAC","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#;

    fn session() -> Opened {
        Opened { id: "lv_VI97HAXpY6yYWAAAC".to_owned(), life: Duration::from_secs(45) }
    }

    #[test]
    fn a_request_opens_a_session_or_is_of_one() {
        let of = |query| request_of(Some(query));
        assert_eq!(of("EIO=4&transport=polling"), Some(Request::Opens));
        assert_eq!(of("t=x&transport=websocket&EIO=4"), Some(Request::Opens));
        assert_eq!(of("EIO=4&transport=polling&sid=a_B-9"), Some(Request::Of("a_B-9")));
        assert_eq!(of("EIO=4&transport=websocket&sid=a&sid=b"), Some(Request::Of("a")));
        for other in ["", "EIO=4", "transport=polling", "sid=a", "EIO=4&transport=x", "room=a"] {
            assert_eq!(of(other), None, "{other}");
        }
        for no_id in ["", "a b", "%61", "a.b", &"a".repeat(65)] {
            let query = format!("EIO=4&transport=polling&sid={no_id}");
            assert_eq!(request_of(Some(&query)), None, "{no_id}");
        }
        assert_eq!(request_of(None), None);
    }

    #[test]
    fn the_open_packet_is_found_alone_and_among_others() {
        assert_eq!(opened(OPEN.as_bytes()), Some(session()));
        for body in [format!("{OPEN}\x1e40{{}}"), format!("2\x1e{OPEN}"), format!("118:{OPEN}2:40")]
        {
            assert_eq!(opened(body.as_bytes()), Some(session()), "{body}");
        }
    }

    #[test]
    fn what_is_no_open_packet_opens_nothing() {
        let long = format!(r#"0{{"sid":"{}","pingInterval":1,"pingTimeout":1}}"#, "a".repeat(65));
        for text in [
            "",
            "0",
            "4hello",
            "40{\"sid\":\"of-a-namespace\"}",
            r#"0{"sid":"a"}"#,
            r#"0{"sid":"a b","pingInterval":1,"pingTimeout":1}"#,
            r#"0{"sid":"","pingInterval":1,"pingTimeout":1}"#,
            r#"0{"sid":"a","pingInterval":-1,"pingTimeout":1}"#,
            r#"4{"sid":"a","pingInterval":1,"pingTimeout":1}"#,
            &long,
        ] {
            assert_eq!(opened(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn no_server_can_have_a_session_kept_for_ever() {
        let text = format!(r#"0{{"sid":"a","pingInterval":{},"pingTimeout":9}}"#, u64::MAX);
        assert_eq!(opened(text.as_bytes()).unwrap().life, LONGEST_LIFE);
    }

    #[test]
    fn every_cut_of_the_same_body_tells_once() {
        let body = format!("{OPEN}\x1e40");
        for cut in 0..=body.len() {
            let mut start = BodyStart::new(opened);
            let (first, second) = body.as_bytes().split_at(cut);
            let found: Vec<_> =
                [start.feed(first), start.feed(second)].into_iter().flatten().collect();
            assert_eq!(found.first(), Some(&session()), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_and_bounded(pieces in pieces()) {
            is_bounded(opened, &pieces)?;
        }

        #[test]
        fn any_query_is_read(query in ".{0,80}") {
            request_of(Some(&query));
        }
    }
}
