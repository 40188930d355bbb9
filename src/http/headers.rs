//! What headers change on their way through the proxy.
//!
//! Three kinds never pass: those of one hop (RFC 9110 section 7.6.1), those that only the proxy may
//! say (`Steadfast-*`), and what an untrusted client claims about itself (`X-Forwarded-*`). The
//! rest passes as it is. What the proxy adds comes last, so nothing in a request can take it away.
//!
//! The client's address is decided here too, since it rests on the same belief: a peer in
//! `trusted` is believed when it says for whom it speaks, and each address it names is believed as
//! long as that one is trusted as well. So the address found is the last one that a trusted hop
//! has seen with its own eyes, however long a list the client made up in front of it.
//!
//! Chosen beyond the RFCs: `Connection` can't name what frames or routes the message or says where
//! it comes from. `Proxy` goes no further, because CGI programs read it as the variable
//! `HTTP_PROXY`. `Proxy-Authenticate` and `Proxy-Authentication-Info` pass: section 7.6.1 doesn't
//! count them among the headers to remove, and a refusal of a backend reaches its client whole.
//! `Trailer` passes, since trailers that it does not announce would be lost.

use std::net::{IpAddr, SocketAddr};

use http::header::{
    CONNECTION, CONTENT_LENGTH, FORWARDED, HOST, HeaderName, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use percent_encoding::percent_decode;

use crate::fields::{list, list_has, only};
use crate::ws::rooms::Room;

/// The id by which logs of several systems name one request.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Where a request stands in a trace (W3C Trace Context). It passes as it is, with `tracestate`.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Every client and proxy that the request came by, the nearest last.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// How the client spoke to the first proxy: `http` or `https`, also for WebSockets.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The `Host` that the client asked for.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The port that the client connected to.
pub const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// What rooms a backend wants a connection to be in, on its 101.
const STEADFAST_JOIN: HeaderName = HeaderName::from_static("steadfast-join");

const ONE_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

const LONGEST_REQUEST_ID: usize = 128;

/// Removes what is meant for one hop only, from a request or a response.
///
/// That is what `Connection` names, `Connection` itself, and a fixed list. Where a client takes
/// trailers, `TE: trailers` is put back, named in a new `Connection` (RFC 9110 section 10.1.4).
/// A handshake sets its own `Connection` and `Upgrade` after this.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let takes_trailers = list_has(headers, &TE, "trailers");
    for name in named_by_connection(headers) {
        headers.remove(name);
    }
    for name in &ONE_HOP {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    list(headers, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !protected(name))
        .collect()
}

/// Headers that `Connection` must not take away: without them the message has another end,
/// another route, or, behind a trusted proxy that passed a client's `Connection` on, no origin.
fn protected(name: &HeaderName) -> bool {
    [HOST, CONTENT_LENGTH, FORWARDED].contains(name) || name.as_str().starts_with("x-forwarded-")
}

/// Removes every `Steadfast-*` header: of requests, so that clients can't speak for the proxy;
/// of answers, because what a backend says to the proxy is not for the client.
pub fn strip_steadfast(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("steadfast-")).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// The rooms that a backend wants a connection to be in, and how many of the names it gives are none.
/// Names are percent-encoded, so that each can stand in a list: one that is not ASCII is none,
/// whatever stands beside it.
pub fn rooms_to_join(headers: &HeaderMap) -> (Vec<Room>, usize) {
    let (mut rooms, mut wrong) = (Vec::new(), 0);
    let lines = headers.get_all(&STEADFAST_JOIN).iter().map(HeaderValue::as_bytes);
    let names = lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    for name in names.filter(|name| !name.is_empty()) {
        let name = Some(name).filter(|name| name.is_ascii());
        let room = name.and_then(|name| percent_decode(name).decode_utf8().ok());
        match room.and_then(|name| Room::new(&name).ok()) {
            Some(room) => rooms.push(room),
            None => wrong += 1,
        }
    }
    (rooms, wrong)
}

/// What the proxy itself knows about where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFacts {
    /// The other end of the client's socket.
    pub peer: IpAddr,
    /// Whether the listener trusts that peer: [`is_trusted`].
    pub trusted: bool,
    /// Whether it spoke TLS to us.
    pub https: bool,
    /// The port that it connected to.
    pub local_port: u16,
}

/// Sets the `X-Forwarded-*` headers of a request on its way to a backend.
///
/// Of an untrusted peer everything that claims an origin is removed first, `Forwarded` (RFC 7239)
/// included. Of a trusted one `X-Forwarded-For` is appended to, as one line, and the others are
/// kept where they are not empty; its `Forwarded` passes unchanged. `X-Forwarded-Host` is set only
/// where there is a `Host`.
pub fn set_forwarded(headers: &mut HeaderMap, client: &ClientFacts) {
    if !client.trusted {
        for name in
            [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, X_FORWARDED_PORT, FORWARDED]
        {
            headers.remove(name);
        }
    }
    append_forwarded_for(headers, client.peer);
    let proto = HeaderValue::from_static(if client.https { "https" } else { "http" });
    set_missing(headers, X_FORWARDED_PROTO, proto);
    set_missing(headers, X_FORWARDED_PORT, HeaderValue::from(client.local_port));
    if let Some(host) = headers.get(HOST).cloned() {
        set_missing(headers, X_FORWARDED_HOST, host);
    }
}

fn append_forwarded_for(headers: &mut HeaderMap, peer: IpAddr) {
    let mut hops: Vec<u8> = Vec::new();
    for line in headers.get_all(X_FORWARDED_FOR) {
        let line = line.as_bytes().trim_ascii();
        if !line.is_empty() {
            hops.extend_from_slice(line);
            hops.extend_from_slice(b", ");
        }
    }
    hops.extend_from_slice(peer.to_canonical().to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&hops) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

fn set_missing(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    if headers.get(&name).is_none_or(HeaderValue::is_empty) {
        headers.insert(name, value);
    }
}

/// Tells whether a peer is in one of the trusted networks; an IPv4-mapped address counts as IPv4.
pub fn is_trusted(peer: IpAddr, trusted: &[IpNet]) -> bool {
    let peer = peer.to_canonical();
    trusted.iter().any(|network| network.contains(&peer))
}

/// Finds the client behind trusted proxies: the right-most address of `X-Forwarded-For` that is
/// not itself trusted, as `peer` where that is not trusted.
///
/// Where all are trusted it is the left-most. What is no address ends the walk: what stands left
/// of it was not said by anyone we know. An address may carry a port, as some balancers write it.
/// IPv4-mapped addresses come back as IPv4.
pub fn client_address(peer: IpAddr, trusted: &[IpNet], headers: &HeaderMap) -> IpAddr {
    let mut client = peer.to_canonical();
    for line in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for hop in line.as_bytes().rsplit(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if !is_trusted(client, trusted) {
                return client;
            }
            if hop.is_empty() {
                continue;
            }
            let Some(address) = parse_hop(hop) else { return client };
            client = address;
        }
    }
    client
}

fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .ok()?;
    Some(address.to_canonical())
}

/// Makes sure that a request has one `X-Request-Id`, and returns it.
///
/// A client's own is kept if it is the only one and has 1 to 128 bytes of visible ASCII;
/// otherwise `mint` makes a new one, which replaces it.
pub fn ensure_request_id(
    headers: &mut HeaderMap,
    mint: impl FnOnce() -> HeaderValue,
) -> HeaderValue {
    if let Some(id) = request_id(headers) {
        return id.clone();
    }
    let id = mint();
    headers.insert(X_REQUEST_ID, id.clone());
    id
}

/// The `X-Request-Id` of a client's own, if it is one that is kept.
pub fn request_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    only(headers, &X_REQUEST_ID).filter(|id| is_request_id(id))
}

fn is_request_id(id: &HeaderValue) -> bool {
    (1..=LONGEST_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// The trace that a request belongs to, as its one `traceparent` names it: 32 digits, as of version
/// 00 of W3C Trace Context (section 3.2.2); later versions begin like it.
pub fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let value = only(headers, &TRACEPARENT)?.to_str().ok()?;
    let mut fields = value.split('-');
    let mut hexadecimal = |length: usize| {
        let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        let field = fields.next()?;
        (field.len() == length && field.as_bytes().iter().all(is_digit)).then_some(field)
    };
    let (version, trace) = (hexadecimal(2)?, hexadecimal(32)?);
    let (parent, _flags) = (hexadecimal(16)?, hexadecimal(2)?);
    let is_zero = |field: &str| field.bytes().all(|byte| byte == b'0');
    let ends = fields.next().is_none();
    let valid = version != "ff" && (ends || version != "00") && !is_zero(trace) && !is_zero(parent);
    valid.then_some(trace)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn facts(trusted: bool) -> ClientFacts {
        ClientFacts { peer: ip("::ffff:10.0.0.1"), trusted, https: true, local_port: 8443 }
    }

    #[test]
    fn what_one_hop_said_goes_no_further() {
        let mut map = headers(&[
            ("connection", "close, X-Mine"),
            ("connection", "x-other, , Upgrade, bad token"),
            ("x-mine", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eA=="),
            ("proxy", "http://evil"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("trailer", "x-sum"),
            ("proxy-authenticate", "Basic"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut map);
        let left = [("trailer", "x-sum"), ("proxy-authenticate", "Basic"), ("accept", "*/*")];
        assert_eq!(map, headers(&left));
    }

    #[test]
    fn rooms_are_listed_percent_encoded() {
        let map = headers(&[
            ("steadfast-join", "lobby, doc%207 ,,a%2Cb"),
            ("steadfast-join", "%ff, %C3%A4"),
        ]);
        let (rooms, wrong) = rooms_to_join(&map);
        let names: Vec<&str> = rooms.iter().map(Room::as_str).collect();
        assert_eq!((names, wrong), (vec!["lobby", "doc 7", "a,b", "ä"], 1));
        for bad in ["é".as_bytes(), b"\xe9", b"%ff", b"%C3%28"] {
            let line = [b"ok1, ", bad, b",ok2"].concat();
            let line = HeaderValue::from_bytes(&line).unwrap();
            let (rooms, wrong) = rooms_to_join(&HeaderMap::from_iter([(STEADFAST_JOIN, line)]));
            let names: Vec<&str> = rooms.iter().map(Room::as_str).collect();
            assert_eq!((names, wrong), (vec!["ok1", "ok2"], 1), "{bad:?}");
        }
        assert_eq!(rooms_to_join(&HeaderMap::new()), (Vec::new(), 0));
    }

    #[test]
    fn connection_cannot_name_framing_host_or_origin() {
        let lines = [
            ("host", "h"),
            ("content-length", "1"),
            ("x-forwarded-for", "192.0.2.1"),
            ("forwarded", "for=192.0.2.1"),
        ];
        let mut map = headers(&lines);
        let named = "Host, content-length, X-Forwarded-For, forwarded";
        map.insert(CONNECTION, HeaderValue::from_static(named));
        remove_hop_by_hop(&mut map);
        assert_eq!(map, headers(&lines));
    }

    #[test]
    fn wish_for_trailers_is_kept() {
        let mut map = headers(&[("te", "gzip"), ("te", "deflate, Trailers"), ("connection", "TE")]);
        remove_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("te", "trailers"), ("connection", "te")]));
    }

    #[test]
    fn no_steadfast_header_is_left() {
        let mut map = headers(&[
            ("Steadfast-Connection", "x"),
            ("steadfast-anything", "1"),
            ("steadfast-anything", "2"),
            ("steadfastly", "1"),
        ]);
        strip_steadfast(&mut map);
        assert_eq!(map, headers(&[("steadfastly", "1")]));
    }

    #[test]
    fn untrusted_peer_is_not_believed() {
        let mut map = headers(&[
            ("host", "chat.example.com:8443"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-port", "1"),
            ("forwarded", "for=192.0.2.7"),
        ]);
        set_forwarded(&mut map, &facts(false));
        let expected = headers(&[
            ("host", "chat.example.com:8443"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "chat.example.com:8443"),
            ("x-forwarded-port", "8443"),
        ]);
        assert_eq!(map, expected);
    }

    #[test]
    fn trusted_peer_is_appended_to_and_completed() {
        let mut map = headers(&[
            ("x-forwarded-for", "192.0.2.7, 192.0.2.8"),
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", ""),
            ("host", "h"),
            ("forwarded", "for=192.0.2.7"),
        ]);
        set_forwarded(&mut map, &facts(true));
        let expected = headers(&[
            ("x-forwarded-for", "192.0.2.7, 192.0.2.8, 10.0.0.9, 10.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "h"),
            ("x-forwarded-port", "8443"),
            ("host", "h"),
            ("forwarded", "for=192.0.2.7"),
        ]);
        assert_eq!(map, expected);
    }

    #[test]
    fn client_is_the_last_address_that_a_trusted_hop_saw() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let client = |peer, lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            client_address(ip(peer), &trusted, &headers(&lines)).to_string()
        };
        assert_eq!(client("192.0.2.1", &["198.51.100.1"]), "192.0.2.1");
        assert_eq!(client("::ffff:192.0.2.1", &[]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["192.0.2.7"]), "192.0.2.7");
        assert_eq!(client("::ffff:10.0.0.1", &["::ffff:192.0.2.7"]), "192.0.2.7");
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 192.0.2.7, 10.0.0.2"]), "192.0.2.7");
        assert_eq!(client("10.0.0.1", &["1.1.1.1", "192.0.2.7,,", "fd00::2"]), "192.0.2.7");
        assert_eq!(client("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3");
        assert_eq!(client("10.0.0.1", &["1.1.1.1, unknown, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(client("10.0.0.1", &["192.0.2.7:4711"]), "192.0.2.7");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:4711"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]"]), "2001:db8::1");
    }

    #[test]
    fn only_a_proper_request_id_is_passed_on() {
        let minted = || HeaderValue::from_static("minted");
        let id = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("x-request-id", *line)).collect();
            let mut map = headers(&lines);
            let id = ensure_request_id(&mut map, minted);
            assert_eq!(only(&map, &X_REQUEST_ID), Some(&id));
            id.to_str().unwrap().to_owned()
        };
        assert_eq!(id(&["abc-1"]), "abc-1");
        assert_eq!(id(&[&"a".repeat(128)]), "a".repeat(128));
        for bad in [&[][..], &[""], &["a b"], &["a", "a"], &[&"a".repeat(129)]] {
            assert_eq!(id(bad), "minted");
        }
    }

    #[test]
    fn a_trace_is_known_by_a_proper_traceparent_alone() {
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        let of = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("traceparent", *line)).collect();
            trace_id(&headers(&lines)).map(str::to_owned)
        };
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        assert_eq!(of(&[&good]).as_deref(), Some(TRACE));
        let later = format!("01-{TRACE}-00f067aa0ba902b7-01-more");
        assert_eq!(of(&[&later]).as_deref(), Some(TRACE));
        for bad in [
            "",
            "00",
            TRACE,
            &good[..good.len() - 1],
            &format!("{good}-more"),
            &good.replace("00-4b", "ff-4b"),
            &good.to_uppercase(),
            &good.replace(TRACE, &"0".repeat(32)),
            &good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &good.replace('4', "g"),
        ] {
            assert_eq!(of(&[bad]), None, "{bad}");
        }
        assert_eq!(of(&[&good, &good]), None);
    }

    proptest! {
        #[test]
        fn whatever_an_untrusted_client_claims_it_is_the_peer(lines in prop::collection::vec("[ -~]{0,30}", 0..4)) {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", line.as_str())).collect();
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let mut map = headers(&lines);
            prop_assert_eq!(client_address(ip("192.0.2.1"), &trusted, &map), ip("192.0.2.1"));
            set_forwarded(&mut map, &ClientFacts { peer: ip("192.0.2.1"), ..facts(false) });
            prop_assert_eq!(map, headers(&[
                ("x-forwarded-for", "192.0.2.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-port", "8443"),
            ]));
        }

        #[test]
        fn next_hop_finds_the_same_client(
            hops in prop::collection::vec("(10|192)\\.0\\.0\\.[1-9]", 0..6),
        ) {
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let list = hops.join(", ");
            let mut map = headers(&[("x-forwarded-for", &list)]);
            let client = client_address(ip("10.0.0.1"), &trusted, &map);
            set_forwarded(&mut map, &facts(true));
            prop_assert_eq!(client_address(ip("10.9.9.9"), &trusted, &map), client);
        }

        #[test]
        fn nothing_of_one_hop_survives(
            lines in prop::collection::vec(("connection|te|upgrade|keep-alive|proxy|a|b", "[a-b, ]{0,9}"), 0..8),
        ) {
            let lines: Vec<_> = lines.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let mut map = headers(&lines);
            let named: Vec<String> = list(&map, &CONNECTION).map(str::to_owned).collect();
            remove_hop_by_hop(&mut map);
            prop_assert!(ONE_HOP.iter().all(|name| !map.contains_key(name)));
            prop_assert!(named.iter().all(|name| !map.contains_key(name.as_str())));
        }
    }
}
