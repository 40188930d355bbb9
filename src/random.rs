//! Random bytes from the operating system: for ids and for what a client may not guess.

use rustix::rand::{GetRandomFlags, getrandom};

/// So many fresh random bytes.
pub fn bytes<const COUNT: usize>() -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    let mut filled = 0;
    while filled < COUNT {
        // It fails only when interrupted by a signal, before which it has filled nothing.
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty()).unwrap_or(0);
    }
    bytes
}
