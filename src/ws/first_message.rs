//! The first text message of a backend, read as it passes.
//!
//! For who must know what a WebSocket begins with. It is fed what has already been judged and passed
//! on, keeps at most [`MOST_KEPT`] bytes of it, and is dropped with the first data frame: after that a
//! relay costs what it costs without. A first message that is binary, fragmented, compressed or longer
//! than it may be is not told. Control frames before it are skipped; what others put between frames
//! never comes here.

use std::fmt;

use super::frame::parse_header;

/// The longest message that is told.
pub const LONGEST: usize = 1024;
/// The message and its header, and a few control frames before it.
pub const MOST_KEPT: usize = LONGEST + 4 + 4 * 127;
const OPCODE_TEXT: u8 = 1;
const OPCODE_CLOSE: u8 = 8;

type Tell = Box<dyn FnOnce(&[u8])>;

/// Waits for the first message, to tell it once.
pub struct FirstMessage {
    kept: Vec<u8>,
    tell: Option<Tell>,
}

impl FirstMessage {
    /// Has `tell` called with the message's text.
    pub fn new(tell: impl FnOnce(&[u8]) + 'static) -> Self {
        Self { kept: Vec::new(), tell: Some(Box::new(tell)) }
    }

    /// Takes what comes next from the backend. False: it wants no more.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        let room = MOST_KEPT - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let mut at = 0;
        loop {
            let Ok(header) = parse_header(&self.kept[at..]) else { return false };
            let Some(header) = header else { break };
            let Ok(length) = usize::try_from(header.payload_bytes) else { return false };
            let begin = at + header.header_bytes;
            if header.opcode >= OPCODE_CLOSE {
                at = begin.saturating_add(length);
                if at > self.kept.len() {
                    break;
                }
                continue;
            }
            let is_plain = header.opcode == OPCODE_TEXT && header.fin && header.reserved == 0;
            if !is_plain || length > LONGEST {
                return false;
            }
            let Some(text) = self.kept.get(begin..begin + length) else { break };
            if let Some(tell) = self.tell.take() {
                tell(text);
            }
            return false;
        }
        self.kept.len() < MOST_KEPT
    }
}

impl fmt::Debug for FirstMessage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FirstMessage")
            .field("kept", &self.kept.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    fn text(length: usize) -> Vec<u8> {
        let mut frame = vec![0x81];
        match u8::try_from(length) {
            Ok(length @ 0..=125) => frame.push(length),
            _ => {
                frame.push(126);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        frame.extend(vec![b'x'; length]);
        frame
    }

    /// What is told of pieces, and whether more is wanted after them.
    fn told(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, bool) {
        let heard: Rc<RefCell<Vec<Vec<u8>>>> = Rc::default();
        let sink = Rc::clone(&heard);
        let mut first = FirstMessage::new(move |text| sink.borrow_mut().push(text.to_vec()));
        let wants_more = pieces.iter().all(|piece| first.feed(piece));
        (heard.take(), wants_more)
    }

    #[test]
    fn every_cut_tells_the_message_once() {
        let bytes = [&[0x89, 2, b'h', b'i'][..], &text(300), &text(3)].concat();
        for cut in 0..=bytes.len() {
            let (heard, wants_more) = told(&[&bytes[..cut], &bytes[cut..]]);
            assert_eq!(heard, [vec![b'x'; 300]], "cut at {cut}");
            assert!(!wants_more);
        }
    }

    #[test]
    fn what_is_no_short_text_ends_it() {
        assert_eq!(told(&[&text(LONGEST)]).0.len(), 1);
        let (fragment, binary, compressed) = ([0x01, 1, b'a'], [0x82, 1, b'a'], [0xc1, 1, b'a']);
        let cases: [&[u8]; 5] = [
            &text(LONGEST + 1),
            &fragment,
            &binary,
            &compressed,
            &[0x81, 127, 255, 0, 0, 0, 0, 0, 0, 0],
        ];
        for bytes in cases {
            assert_eq!(told(&[bytes, &text(3)]), (Vec::new(), false), "{bytes:02x?}");
        }
    }

    #[test]
    fn pings_without_end_are_not_kept() {
        let ping = [&[0x89, 125][..], &[0; 125]].concat();
        let mut first = FirstMessage::new(|_| panic!("there was no message"));
        let fed = (0..100).take_while(|_| first.feed(&ping)).count();
        assert!(fed < 100 && first.kept.len() <= MOST_KEPT);
    }
}
