//! Any bytes of a peer, cut in two, through the frame tracker: no panic, and no more bytes told
//! than were shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::ws::frame::{FrameTracker, ReservedBits, Scan, Sender, StopAt};

fuzz_target!(|input: (&[u8], usize)| {
    let (bytes, cut) = input;
    let mut tracker = FrameTracker::new(Sender::Client, ReservedBits::Deflate, 1 << 20);
    let mut kept = Vec::new();
    let cut = cut % (bytes.len() + 1);
    for chunk in [&bytes[..cut], &bytes[cut..]] {
        let bytes = [kept.as_slice(), chunk].concat();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match tracker.scan(rest, StopAt::Nowhere) {
                Ok(Scan::Data(length)) => rest = &rest[length..],
                Ok(Scan::Control(frame)) => rest = &rest[frame.frame_bytes()..],
                Ok(Scan::NeedMore) => break,
                Err(_) => return,
            }
        }
        kept = rest.to_vec();
    }
});
