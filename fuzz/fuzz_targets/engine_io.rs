//! Any bytes as the beginning of a backend's answer, cut in two, and as the query of a request, of
//! Engine.IO and of SignalR: no
//! panic, nothing but an id is taken for one, and where the cut is does not matter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::http::opened::{BodyStart, MOST_READ, Opened, Request};
use steadfast::http::{engine_io, signalr};

fn is_id(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}

fn cut_anywhere(bytes: &[u8], cut: usize, opened: fn(&[u8]) -> Option<Opened>) {
    let whole = opened(&bytes[..bytes.len().min(MOST_READ)]);
    assert!(whole.as_ref().is_none_or(|opened| is_id(&opened.id)));
    let (first, second) = bytes.split_at(cut % (bytes.len() + 1));
    let mut start = BodyStart::new(opened);
    let in_pieces = start.feed(first).or_else(|| start.feed(second));
    assert_eq!(in_pieces, whole);
}

fuzz_target!(|input: (&[u8], usize)| {
    let (bytes, cut) = input;
    if let Ok(text) = std::str::from_utf8(bytes) {
        let of_signalr = signalr::request_of(&http::Method::GET, text, Some(text));
        for request in [engine_io::request_of(Some(text)), of_signalr] {
            if let Some(Request::Of(id)) = request {
                assert!(is_id(id));
            }
        }
    }
    cut_anywhere(bytes, cut, engine_io::opened);
    cut_anywhere(bytes, cut, signalr::opened);
});
