//! PROXY headers, read as a connection is: only as much as is asked for, within the bound.
//!
//! The first byte of the input chooses what stands in front: nothing, or how either version begins.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steadfast::listen::proxy_protocol::{LONGEST, Progress, look};

const BEGINNINGS: [&[u8]; 4] = [b"", b"PROXY ", b"PROXY TCP6 ", b"\r\n\r\n\0\r\nQUIT\n\x21\x11"];

fuzz_target!(|input: &[u8]| {
    let Some((&choice, rest)) = input.split_first() else { return };
    let stream = [BEGINNINGS[usize::from(choice) % BEGINNINGS.len()], rest].concat();
    let mut read = 0;
    while let Ok(Progress::Need(count)) = look(&stream[..read]) {
        assert!(count > 0 && read + count <= LONGEST);
        if read + count > stream.len() {
            return;
        }
        read += count;
    }
    if let Ok(Progress::Done(Some(client))) = look(&stream[..read]) {
        assert_eq!(client.ip(), client.ip().to_canonical());
    }
});
