//! The key of a request: of any path, query, cookie and header it is none, an error or a valid one.
//!
//! The input's lines are the target, then cookies.
#![no_main]

use std::net::Ipv4Addr;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use steadfast::route::key::MAX_KEY_BYTES;
use steadfast::route::{KeySource, RequestFacts, find_key};

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|&byte| byte == b'\n');
    let Ok(target) = std::str::from_utf8(lines.next().unwrap_or_default()) else { return };
    let mut headers = HeaderMap::new();
    for value in lines.take(8).filter_map(|line| HeaderValue::from_bytes(line).ok()) {
        headers.append(COOKIE, value);
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let client = Ipv4Addr::LOCALHOST.into();
    let request = RequestFacts { path, query, headers: &headers, client };
    for source in [
        KeySource::Query("k".to_owned()),
        KeySource::Cookie("k".to_owned()),
        KeySource::Header(COOKIE),
        KeySource::Path(1),
        KeySource::Path(2),
    ] {
        if let Ok(Some(found)) = find_key(std::slice::from_ref(&source), &request) {
            assert!((1..=MAX_KEY_BYTES).contains(&found.key.as_str().len()));
            assert!(found.key.percent_encoded().bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
});
