//! The end and the framing of a request head: the same however its bytes are cut into reads.
//!
//! The first byte of the input says how large the pieces are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::http::framing::{HeadLimits, HeadScanner};

const LIMITS: HeadLimits = HeadLimits { bytes: 2048, headers: 16 };

fuzz_target!(|input: &[u8]| {
    let Some((&piece, stream)) = input.split_first() else { return };
    let whole = HeadScanner::new(LIMITS).scan(stream);
    if let Ok(Some(head)) = whole {
        assert!(head.leading < head.len && head.len <= stream.len().min(LIMITS.bytes));
    }
    let mut scanner = HeadScanner::new(LIMITS);
    let mut arrived = 0;
    while arrived < stream.len() {
        arrived = (arrived + usize::from(piece).max(1)).min(stream.len());
        let found = scanner.scan(&stream[..arrived]);
        if found != Ok(None) {
            return assert_eq!(found, whole);
        }
    }
    assert_eq!(whole, Ok(None));
});
