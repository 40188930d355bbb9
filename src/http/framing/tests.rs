//! Both scanners: what they refuse, every cut, whole pipelines, and whether hyper agrees.

use proptest::prelude::*;

use super::*;

mod hyper_agrees;

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, headers: 20 };

fn scan(bytes: &[u8]) -> Result<Option<RequestHead>, Refusal> {
    HeadScanner::new(LIMITS).scan(bytes)
}

/// Scans a head that has these header lines and one `Host`.
fn scan_lines(lines: &str) -> Result<RequestHead, Refusal> {
    let head = format!("POST / HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
    scan(head.as_bytes()).map(|head| head.expect("the head is whole"))
}

/// One message of a stream, and how many bytes it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    head: usize,
    body: usize,
}

/// What a stream holds: whole messages, then how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Split {
    messages: Vec<Message>,
    refused: Option<Refusal>,
}

/// Splits a stream that arrives in pieces of these sizes, over and over, as the gate would.
fn split(stream: &[u8], pieces: &[usize]) -> Split {
    let mut done = Split { messages: Vec::new(), refused: None };
    let mut start = 0;
    let mut arrived = 0;
    let mut pieces = pieces.iter().cycle();
    let mut head: Option<RequestHead> = None;
    let mut head_scanner = HeadScanner::new(LIMITS);
    let mut body_scanner = BodyScanner::new(Body::None, LIMITS);
    let mut body = 0;
    while arrived < stream.len() {
        let from = arrived;
        arrived = (arrived + pieces.next().expect("it cycles").max(&1)).min(stream.len());
        let mut fresh = from.max(start);
        loop {
            let step = match head {
                None => head_scanner.scan(&stream[start..arrived]).map(|found| {
                    if let Some(found) = found {
                        body_scanner = BodyScanner::new(found.body, LIMITS);
                        fresh = start + found.len;
                        head = Some(found);
                    }
                }),
                Some(_) => body_scanner.feed(&stream[fresh..arrived]).map(|taken| {
                    body += taken;
                    fresh += taken;
                }),
            };
            if let Err(refusal) = step {
                done.refused = Some(refusal);
                return done;
            }
            let Some(RequestHead { len, .. }) = head.filter(|_| body_scanner.done()) else {
                if head.is_none() || fresh == arrived {
                    break;
                }
                continue;
            };
            done.messages.push(Message { head: len, body });
            (start, head, body) = (fresh, None, 0);
            head_scanner = HeadScanner::new(LIMITS);
        }
    }
    done
}

#[test]
fn plain_head_is_read() {
    let head = scan(b"GET /a?b HTTP/1.1\r\nHost: h\r\n\r\nrest").unwrap().unwrap();
    let expected = RequestHead {
        leading: 0,
        len: 30,
        body: Body::None,
        upgrade: false,
        expects_continue: false,
    };
    assert_eq!(head, expected);
}

#[test]
fn framing_headers_are_read() {
    let body = |lines| scan_lines(lines).unwrap().body;
    assert_eq!(body("content-length: 12\r\n"), Body::Length(12));
    assert_eq!(body("content-length: 0\r\n"), Body::None);
    assert_eq!(body("content-length: 00012 \r\n"), Body::Length(12));
    assert_eq!(body("content-length: 9223372036854775807\r\n"), Body::Length(MAX));
    assert_eq!(body("transfer-encoding:  Chunked\t\r\n"), Body::Chunked);
    assert!(scan_lines("upgrade: websocket\r\n").unwrap().upgrade);
    let expecting = "Expect: 100-Continue\r\nContent-Length: 1\r\n";
    assert!(scan_lines(expecting).unwrap().expects_continue);
    assert!(!scan_lines("Expect: 100-continue\r\n").unwrap().expects_continue);
    const MAX: u64 = i64::MAX as u64;
}

#[test]
fn http_10_needs_no_host_and_upgrades_nothing() {
    let head = scan(b"GET / HTTP/1.0\r\nUpgrade: websocket\r\n\r\n").unwrap().unwrap();
    assert!(!head.upgrade);
    assert_eq!(head.body, Body::None);
}

#[test]
fn ambiguous_or_malformed_heads_are_a_400() {
    for lines in [
        "content-length: 1\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 1\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 0\r\ncontent-length: 0\r\n",
        "content-length: +5\r\n",
        "content-length: -0\r\n",
        "content-length: 5,5\r\n",
        "content-length: 5 5\r\n",
        "content-length: 0x5\r\n",
        "content-length:\r\n",
        "content-length: 9223372036854775808\r\n",
        "content-length: 99999999999999999999\r\n",
        "content-length : 5\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: gzip\r\n",
        "transfer-encoding: chunked, gzip\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: , chunked\r\n",
        "transfer-encoding: chunked;q=1\r\n",
        "transfer-encoding: \"chunked\"\r\n",
        "transfer-encoding:\r\n",
        "transfer-encoding: \x0bchunked\r\n",
        "transfer-encoding:\r\n chunked\r\n",
        "a: b\n",
        "a: b\n\n",
        "a: b\rc: d\r\n",
        "a: b\r\r\n",
        "a: b\r\n c\r\n",
        " a: b\r\n",
        "a\0: b\r\n",
        "a: \0\r\n",
        "a\r\n",
        ": b\r\n",
        "host: h\r\n",
    ] {
        let refusal = scan_lines(lines).expect_err(lines);
        assert_eq!(refusal.status(), StatusCode::BAD_REQUEST, "{lines:?}");
    }
}

#[test]
fn malformed_request_lines_are_a_400() {
    for head in [
        "GET /\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET  / HTTP/1.1\r\nhost: h\r\n\r\n",
        "GET /  HTTP/1.1\r\nhost: h\r\n\r\n",
        "GET / http/1.1\r\nhost: h\r\n\r\n",
        "GET / HTTP/1.10\r\nhost: h\r\n\r\n",
        "GET / HTTP/1.1 \r\nhost: h\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nhost: h\r\n\r\n",
        "G(T / HTTP/1.1\r\nhost: h\r\n\r\n",
        "GET /\x7f HTTP/1.1\r\nhost: h\r\n\r\n",
        "GET / HTTP/1.1\nhost: h\r\n\r\n",
        "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
        "\n\nGET / HTTP/1.1\r\nhost: h\r\n\r\n",
    ] {
        let refusal = scan(head.as_bytes()).expect_err(head);
        assert_eq!(refusal.status(), StatusCode::BAD_REQUEST, "{head:?}");
    }
}

#[test]
fn what_is_not_spoken_here_has_its_own_status() {
    let status = |head: &str| scan(head.as_bytes()).unwrap_err().status().as_u16();
    assert_eq!(status("PRI * HTTP/2.0\r\n\r\n"), 505);
    assert_eq!(status("\r\nGET / HTTP/0.9\r\nhost: h\r\n\r\n"), 505);
    assert_eq!(status("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n"), 501);
    let refusal = scan_lines("transfer-encoding: gzip, chunked\r\n").unwrap_err();
    assert_eq!(refusal.status(), StatusCode::NOT_IMPLEMENTED);
}

#[test]
fn other_protocols_are_refused_at_their_first_bytes() {
    assert!(scan(b"\x16\x03\x01\x02").is_err());
    assert!(scan(b"\x05").is_err());
    assert!(scan(b"GET / HTTP/1.1\n").is_err());
}

#[test]
fn few_empty_lines_are_passed_over_and_counted() {
    let request = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let after = |lines| scan(format!("{}{request}", "\r\n".repeat(lines)).as_bytes());
    let head = after(MAX_EMPTY_LINES).unwrap().unwrap();
    assert_eq!((head.leading, head.len), (8, 8 + request.len()));
    assert!(after(MAX_EMPTY_LINES + 1).is_err());
    assert_eq!(scan(b"\r\n\r\n"), Ok(None));
}

#[test]
fn head_at_the_limit_passes_and_one_byte_more_does_not() {
    let head = |size: usize| {
        let rest = size - "GET / HTTP/1.1\r\nHost: h\r\na: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: h\r\na: {}\r\n\r\n", "x".repeat(rest))
    };
    assert_eq!(scan(head(LIMITS.bytes).as_bytes()).unwrap().unwrap().len, LIMITS.bytes);
    let over = head(LIMITS.bytes + 1);
    assert_eq!(scan(over.as_bytes()), Err(Refusal::TooLarge));
    assert_eq!(scan(&over.as_bytes()[..LIMITS.bytes]), Err(Refusal::TooLarge));
    assert_eq!(scan(&over.as_bytes()[..LIMITS.bytes - 1]), Ok(None));
}

#[test]
fn header_lines_are_counted_before_the_head_is_whole() {
    assert!(scan_lines(&"a: b\r\n".repeat(LIMITS.headers - 1)).is_ok());
    let over = scan_lines(&"a: b\r\n".repeat(LIMITS.headers));
    assert_eq!(over, Err(Refusal::TooManyHeaders));
    let limits = HeadLimits { bytes: 1 << 20, headers: 200 };
    let many = format!("GET / HTTP/1.0\r\n{}\r\n", "a: b\r\n".repeat(200));
    assert!(HeadScanner::new(limits).scan(many.as_bytes()).unwrap().is_some());
}

#[test]
fn overlong_target_is_a_414() {
    let limits = HeadLimits { bytes: 1 << 20, headers: 20 };
    let head = format!("GET /{} HTTP/1.0\r\n\r\n", "a".repeat(65_534));
    let refusal = HeadScanner::new(limits).scan(head.as_bytes()).unwrap_err();
    assert_eq!(refusal.status(), StatusCode::URI_TOO_LONG);
}

/// Feeds a chunked body in one piece: how many bytes belong to it, and whether it ended.
fn chunked(bytes: &[u8]) -> Result<(usize, bool), Refusal> {
    let mut scanner = BodyScanner::new(Body::Chunked, LIMITS);
    let taken = scanner.feed(bytes)?;
    Ok((taken, scanner.done()))
}

#[test]
fn chunked_bodies_end_behind_their_trailers() {
    for (body, rest) in [
        ("0\r\n\r\n", ""),
        ("0\r\n\r\n", "GET"),
        ("5\r\nhello\r\n0\r\n\r\n", "\r\n"),
        ("A;x=\"y;z\"\r\n0123456789\r\n000\r\na: b\r\nc:\r\n\r\n", "x"),
        ("1 \t; x\r\n\n\r\n0 \r\n\r\n", "0"),
        ("0000000000000001\r\na\r\n0\r\n\r\n", "a"),
    ] {
        let stream = format!("{body}{rest}");
        assert_eq!(chunked(stream.as_bytes()), Ok((body.len(), true)), "{body:?}");
    }
    assert_eq!(chunked(b"FFFFFFFFFFFFFFFF\r\nabc"), Ok((21, false)));
}

#[test]
fn malformed_chunks_are_a_400() {
    for body in [
        "\r\n",
        "g\r\n",
        " 5\r\n",
        ";a\r\n",
        "-1\r\n",
        "0x5\r\n",
        "5\nhello",
        "5\rhello",
        "5\r\r\n",
        "5 5\r\n",
        "5;a\nb\r\n",
        "5;a\0\r\n",
        "5;a\rb\r\n",
        "5\r\nhello!",
        "5\r\nhello\n",
        "5\r\nhello\r\r",
        "00000000000000005\r\n",
        "10000000000000000\r\n",
        "0\r\n\n",
        "0\r\n a: b\r\n",
        "0\r\na : b\r\n",
        "0\r\na\r\n",
        "0\r\n: b\r\n",
        "0\r\na: b\n",
        "0\r\na: b\r\r\n",
        "0\r\na: b\r\n c",
        "0\r\na: \0",
        "0\r\n\rx",
    ] {
        let refusal = chunked(body.as_bytes()).expect_err(body);
        assert_eq!(refusal.status(), StatusCode::BAD_REQUEST, "{body:?}");
    }
}

#[test]
fn extensions_and_trailers_are_bounded() {
    assert!(chunked(format!("5;{}\r\n", "x".repeat(254)).as_bytes()).is_ok());
    assert!(chunked(format!("5;{}", "x".repeat(255)).as_bytes()).is_err());
    assert!(chunked(format!("5{}", " ".repeat(256)).as_bytes()).is_err());
    let extended = format!("1;{}\r\na\r\n", "x".repeat(200));
    assert!(chunked(extended.repeat(81).as_bytes()).is_ok());
    assert!(chunked(extended.repeat(82).as_bytes()).is_err());
    let trailers = |count| format!("0\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert!(chunked(trailers(LIMITS.headers).as_bytes()).is_ok());
    assert_eq!(chunked(trailers(LIMITS.headers + 1).as_bytes()), Err(Refusal::TooManyHeaders));
    let long = format!("0\r\na: {}", "x".repeat(LIMITS.bytes));
    assert_eq!(chunked(long.as_bytes()), Err(Refusal::TooLarge));
}

#[test]
fn body_of_known_length_ends_after_it() {
    let mut scanner = BodyScanner::new(Body::Length(5), LIMITS);
    assert_eq!(scanner.feed(b"abc"), Ok(3));
    assert!(!scanner.done());
    assert_eq!(scanner.feed(b"deGET"), Ok(2));
    assert!(scanner.done());
    assert_eq!(scanner.feed(b"GET"), Ok(0));
    assert!(BodyScanner::new(Body::None, LIMITS).done());
}

#[test]
fn empty_pieces_change_nothing() {
    let mut head = HeadScanner::new(LIMITS);
    assert_eq!(head.scan(b""), Ok(None));
    let mut body = BodyScanner::new(Body::Chunked, LIMITS);
    assert_eq!(body.feed(b""), Ok(0));
}

#[test]
fn every_cut_of_a_pipeline_splits_it_alike() {
    let stream = b"\r\nPOST /1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
        3;a\r\n\r\n\r\r\n0\r\nb: c\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n\
        GET GET /3 HTTP/1.0\r\n\r\n";
    let whole = split(stream, &[stream.len()]);
    assert_eq!(whole.refused, None);
    assert_eq!(whole.messages.len(), 3);
    assert_eq!(whole.messages.iter().map(|one| one.head + one.body).sum::<usize>(), stream.len());
    for cut in 0..=stream.len() {
        assert_eq!(split(stream, &[cut, stream.len()]), whole, "cut at {cut}");
    }
    assert_eq!(split(stream, &[1]), whole);
}

/// A well-formed request, and how long its head and body are.
fn request() -> impl Strategy<Value = (Vec<u8>, Message)> {
    let chunk = ("[0-9a-f\r\n; ]{1,12}", "(;[a-z=]{0,5})?");
    let chunks = (prop::collection::vec(chunk, 0..4), "([a-z]{1,5}: ?[ -~]{0,8}\r\n){0,3}");
    let body = prop_oneof![
        Just(None),
        "[ -~\r\n]{0,20}".prop_map(|body| Some((format!("Content-Length: {}", body.len()), body))),
        chunks.prop_map(|(chunks, trailers)| {
            let chunks = chunks
                .iter()
                .map(|(data, extension)| format!("{:x}{extension}\r\n{data}\r\n", data.len()));
            let body = format!("{}0\r\n{trailers}\r\n", chunks.collect::<String>());
            Some(("Transfer-Encoding: chunked".to_owned(), body))
        }),
    ];
    ("(\r\n){0,2}", "/[a-z?=]{0,8}", "(x-[a-z]{1,4}: ?[ -~]{0,9}\r\n){0,3}", body).prop_map(
        |(lead, target, lines, body)| {
            let (framing, body) = body
                .map_or_else(Default::default, |(framing, body)| (format!("{framing}\r\n"), body));
            let head = format!("{lead}POST {target} HTTP/1.1\r\nHost: h\r\n{lines}{framing}\r\n");
            let message = Message { head: head.len(), body: body.len() };
            (format!("{head}{body}").into_bytes(), message)
        },
    )
}

/// Requests one behind the other, then perhaps a few bytes replaced and a line put in between.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let index = any::<prop::sample::Index>;
    let damage = (index(), prop::sample::select(&b"\r\n 0:;,a\t\x00\xff"[..]));
    let lines = prop::sample::select(vec![
        "",
        "Content-Length: 3\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: 3, 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: chunked, x\r\n",
        "Host: other\r\n",
        " folded\r\n",
        "0\r\n\r\n",
        "\r\n",
        "\n",
    ]);
    let requests = prop::collection::vec(request(), 1..4);
    let damages = prop::collection::vec(damage, 0..3);
    (requests, (index(), lines), damages).prop_map(|(requests, (at, line), damages)| {
        let mut stream: Vec<u8> = requests.into_iter().flat_map(|(bytes, _)| bytes).collect();
        let ends: Vec<usize> =
            (2..stream.len()).filter(|&i| stream[..i].ends_with(b"\r\n")).collect();
        let at = *at.get(&ends);
        stream.splice(at..at, line.bytes());
        for (at, byte) in damages {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        stream
    })
}

proptest! {
    #[test]
    fn pipelined_messages_are_split_exactly(
        requests in prop::collection::vec(request(), 1..5),
        pieces in prop::collection::vec(1usize..40, 1..6),
    ) {
        let stream: Vec<u8> = requests.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        let messages = requests.iter().map(|(_, message)| *message).collect();
        prop_assert_eq!(split(&stream, &pieces), Split { messages, refused: None });
    }

    #[test]
    fn every_cut_ends_in_the_same_state(
        stream in stream(),
        pieces in prop::collection::vec(1usize..30, 1..6),
    ) {
        let whole = split(&stream, &[stream.len()]);
        prop_assert_eq!(split(&stream, &pieces), whole);
    }

    #[test]
    fn no_bytes_panic(stream in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = scan(&stream);
        let _ = chunked(&stream);
        let _ = split(&stream, &[7]);
    }
}
