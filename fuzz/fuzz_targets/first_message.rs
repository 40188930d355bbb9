//! Any bytes of a backend behind its 101, cut in two, through the reader of its first message: no
//! panic, no more kept than may be, and where the cut is does not matter.
#![no_main]

use std::cell::RefCell;
use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use steadfast::ws::first_message::{FirstMessage, LONGEST};

/// What is told of these pieces.
fn told(pieces: &[&[u8]]) -> Option<Vec<u8>> {
    let heard: Rc<RefCell<Option<Vec<u8>>>> = Rc::default();
    let sink = Rc::clone(&heard);
    let mut first = FirstMessage::new(move |text| *sink.borrow_mut() = Some(text.to_vec()));
    let _ = pieces.iter().all(|piece| first.feed(piece));
    heard.take()
}

fuzz_target!(|input: (&[u8], usize)| {
    let (bytes, cut) = input;
    let (first, second) = bytes.split_at(cut % (bytes.len() + 1));
    let whole = told(&[bytes]);
    assert!(whole.as_ref().is_none_or(|text| text.len() <= LONGEST));
    assert_eq!(told(&[first, second]), whole);
});
