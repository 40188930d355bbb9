//! The end of a chunked body: the same however its bytes are cut into reads.
//!
//! The first byte of the input says how large the pieces are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::http::framing::{Body, BodyScanner, HeadLimits, Refusal};

const LIMITS: HeadLimits = HeadLimits { bytes: 256, headers: 4 };

/// How many bytes belong to the body and whether it ended, read in pieces of this size.
fn read(stream: &[u8], piece: usize) -> Result<(usize, bool), Refusal> {
    let mut scanner = BodyScanner::new(Body::Chunked, LIMITS);
    let mut taken = 0;
    for piece in stream.chunks(piece) {
        taken += scanner.feed(piece)?;
    }
    Ok((taken, scanner.done()))
}

fuzz_target!(|input: &[u8]| {
    let Some((&piece, stream)) = input.split_first() else { return };
    let whole = read(stream, stream.len().max(1));
    if let Ok((taken, done)) = whole {
        assert!(taken == stream.len() || done);
    }
    assert_eq!(read(stream, usize::from(piece).max(1)), whole);
});
