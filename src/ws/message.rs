//! A message of the proxy's own making: one frame, as a server sends it (RFC 6455 section 5.2).
//!
//! It is unmasked, in one piece and not compressed, which every client takes whatever it has
//! negotiated (RFC 7692 leaves it open for each message). It is made once, and whoever gets it
//! shares the same bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::HEADER_BYTES;

/// The last frame of a message, which is its first too.
const FIN: u8 = 0x80;

/// What a message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// Text.
    Text(&'a str),
    /// Any bytes.
    Binary(&'a [u8]),
}

impl Payload<'_> {
    /// How many bytes it has.
    pub fn len(self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The frame of a message that holds this.
    pub fn frame(self) -> Bytes {
        let (opcode, payload) = match self {
            Self::Text(text) => (1, text.as_bytes()),
            Self::Binary(bytes) => (2, bytes),
        };
        let mut frame = BytesMut::with_capacity(HEADER_BYTES + payload.len());
        frame.put_u8(FIN | opcode);
        // The shortest of the three ways to write a length is the only valid one.
        if let Ok(length @ 0..126) = u8::try_from(payload.len()) {
            frame.put_u8(length);
        } else if let Ok(length) = u16::try_from(payload.len()) {
            frame.put_u8(126);
            frame.put_u16(length);
        } else {
            frame.put_u8(127);
            frame.put_u64(payload.len() as u64);
        }
        frame.put_slice(payload);
        frame.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{FrameTracker, Passed, ReservedBits, Scan, Sender, StopAt};
    use super::*;

    #[test]
    fn frames_of_every_length_are_those_of_a_server() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20] {
            let payload = vec![b'x'; length];
            for (frame, first) in [
                (Payload::Text(std::str::from_utf8(&payload).unwrap()).frame(), 0x81),
                (Payload::Binary(&payload).frame(), 0x82),
            ] {
                assert_eq!(frame[0], first);
                assert!(frame.ends_with(&payload));
                let mut tracker = FrameTracker::new(Sender::Backend, ReservedBits::None, u64::MAX);
                let scanned = tracker.scan(&frame, StopAt::Nowhere).unwrap();
                assert_eq!(scanned, Scan::Data(frame.len()), "{length}");
                assert!(tracker.between_messages());
                let passed = Passed { messages: 1, bytes: length as u64 };
                assert_eq!(tracker.take_passed(), passed);
            }
        }
    }
}
