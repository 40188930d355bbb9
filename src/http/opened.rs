//! A session that an answer opens, and its id on the way through.
//!
//! An answer is read as it passes, at most [`MOST_READ`] bytes of it: what opens no session by then
//! opens none, and the session is simply not learnt. Ids are bounded in length and alphabet, because
//! they are kept.

use std::time::Duration;

/// How much of an answer is read.
pub const MOST_READ: usize = 1024;
/// The longest session id; the servers at hand make 20 characters, and 22.
const LONGEST_ID: usize = 64;
/// The longest that a session may be silent, whatever its server says.
pub const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// What a request has to do with sessions, by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// It begins one.
    Opens,
    /// It is of this one.
    Of(&'a str),
}

/// A session that a server has opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its id: 1 to 64 of `[A-Za-z0-9_-]`.
    pub id: String,
    /// How long it may be silent.
    pub life: Duration,
}

/// Whether a text can be a session's id.
pub fn is_session_id(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=LONGEST_ID).contains(&text.len()) && text.bytes().all(fits)
}

/// Reads the beginning of a body that comes in pieces.
#[derive(Debug)]
pub struct BodyStart {
    /// At most [`MOST_READ`] bytes.
    read: Vec<u8>,
    /// Finds what the beginning of a body opens.
    find: fn(&[u8]) -> Option<Opened>,
}

impl BodyStart {
    /// Nothing was read yet.
    pub fn new(find: fn(&[u8]) -> Option<Opened>) -> Self {
        Self { read: Vec::new(), find }
    }

    /// Takes the next piece, and tells once of the session that the body opens.
    pub fn feed(&mut self, piece: &[u8]) -> Option<Opened> {
        let room = MOST_READ - self.read.len();
        if room == 0 || piece.is_empty() {
            return None;
        }
        self.read.extend_from_slice(&piece[..piece.len().min(room)]);
        (self.find)(&self.read)
    }
}

/// What every reader of sessions promises; each shows it with its own.
#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::TestCaseError;

    use super::*;

    /// Any bytes, in pieces that fit no limit.
    pub(in crate::http) fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..700), 0..6)
    }

    /// Whatever comes: what is told is an id, and no more is read than may be.
    pub(in crate::http) fn is_bounded(
        find: fn(&[u8]) -> Option<Opened>,
        pieces: &[Vec<u8>],
    ) -> Result<(), TestCaseError> {
        let mut start = BodyStart::new(find);
        for piece in pieces {
            if let Some(opened) = start.feed(piece) {
                prop_assert!(is_session_id(&opened.id));
            }
            prop_assert!(start.read.len() <= MOST_READ);
        }
        Ok(())
    }
}
