//! Both handshakes, and what else reads a request's headers, of any header lines.
//!
//! The input's lines are those of the request, then behind an empty one those of the answer.
#![no_main]

use std::net::Ipv4Addr;

use http::header::CONNECTION;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use libfuzzer_sys::fuzz_target;
use steadfast::http::headers::{
    ClientFacts, client_address, ensure_request_id, remove_hop_by_hop, set_forwarded,
    strip_steadfast,
};
use steadfast::ws::handshake::{check_request, check_response, is_handshake};

fn headers<'a>(lines: impl Iterator<Item = &'a [u8]>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|&byte| byte == b'\n');
    let mut request = headers(lines.by_ref().take_while(|line| !line.is_empty()));
    let answer = headers(lines);
    if check_request(&Method::GET, Version::HTTP_11, &request).is_ok() {
        assert!(is_handshake(&request));
    }
    let _ = check_response(&answer, &request);

    let peer = Ipv4Addr::new(10, 0, 0, 1).into();
    let trusted = ["10.0.0.0/8".parse().expect("it is a network")];
    let _ = client_address(peer, &trusted, &request);
    strip_steadfast(&mut request);
    remove_hop_by_hop(&mut request);
    let facts = ClientFacts { peer, trusted: true, https: false, local_port: 80 };
    set_forwarded(&mut request, &facts);
    ensure_request_id(&mut request, || HeaderValue::from_static("minted"));
    assert!(request.get(CONNECTION).is_none_or(|value| value == "te"));
    assert!(request.keys().all(|name| !name.as_str().starts_with("steadfast-")));
});
