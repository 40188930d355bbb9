//! Any bytes as a message to clients: no panic, and what is read is within its bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::publish::envelope::{MAX_EXCEPT, read};
use steadfast::publish::{Action, MAX_MESSAGE_BYTES};
use steadfast::ws::rooms::MAX_ROOMS;

fuzz_target!(|bytes: &[u8]| {
    let Ok(envelope) = read(bytes, MAX_MESSAGE_BYTES) else { return };
    assert!(envelope.except.len() <= MAX_EXCEPT);
    match envelope.action {
        Action::Send(frame) => assert!(frame.len() <= MAX_MESSAGE_BYTES + 10),
        Action::Close { text, .. } => assert!(text.len() <= 123),
        Action::Join(rooms) | Action::Leave(rooms) => assert!(rooms.len() <= MAX_ROOMS),
    }
});
