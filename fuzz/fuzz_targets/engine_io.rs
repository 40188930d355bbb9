//! Any bytes as the beginning of a backend's answer, cut in two, and as the query of a request: no
//! panic, nothing but an id is taken for one, and where the cut is does not matter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::http::engine_io::{BodyStart, MOST_READ, Request, opened};

fn is_id(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}

fuzz_target!(|input: (&[u8], usize)| {
    let (bytes, cut) = input;
    if let Some(Request::Of(id)) =
        std::str::from_utf8(bytes).ok().and_then(|text| Request::of(Some(text)))
    {
        assert!(is_id(id));
    }
    let whole = opened(&bytes[..bytes.len().min(MOST_READ)]);
    assert!(whole.as_ref().is_none_or(|opened| is_id(&opened.id)));
    let (first, second) = bytes.split_at(cut % (bytes.len() + 1));
    let mut start = BodyStart::default();
    let in_pieces = start.feed(first).or_else(|| start.feed(second));
    assert_eq!(in_pieces, whole);
});
