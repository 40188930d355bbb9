//! The body of a request: which bytes belong to it, and where it ends.
//!
//! Chunked bodies are read as RFC 9112 section 7.1 has them, with a carriage return before each
//! line feed and nowhere else. White space around the size is let through (some clients pad it);
//! it can't be read in two ways. Extensions and trailers are bounded, since a reader that skips
//! them without counting can be kept busy for nothing.
//!
//! What the bytes mean is nobody's business here: chunks are counted off, neither joined nor kept.

use super::{Body, HeadLimits, Refusal};

/// The longest line that a chunk begins with, extensions included, without its line end.
const MAX_SIZE_LINE: usize = 256;
/// The most digits of a chunk's size: those of 64 bits.
const MAX_SIZE_DIGITS: usize = 16;
/// hyper takes fewer bytes of extensions than this in one body.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// Counts off the body of one request, as its bytes arrive.
///
/// However the same bytes are cut into reads, the end is found at the same byte.
#[derive(Clone, Debug)]
pub struct BodyScanner {
    state: State,
    limits: HeadLimits,
    /// Bytes of all chunk extensions together.
    extensions: usize,
    /// Bytes of the trailers, with the empty line after them.
    trailer_bytes: usize,
    /// Trailer lines that were begun.
    trailers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a body of known length; so many bytes are left.
    Length(u64),
    /// In the line that a chunk begins with.
    Size(SizeLine),
    /// Before the line feed of that line; so many bytes of payload follow.
    SizeLf(u64),
    /// In a chunk's payload; so many bytes are left.
    Payload(u64),
    /// Before the line end of a chunk.
    PayloadCr,
    PayloadLf,
    /// Before a trailer or the empty line that ends the message.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    /// Before the last byte of the message.
    EndLf,
    Done,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SizeLine {
    size: u64,
    digits: usize,
    bytes: usize,
    part: SizePart,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SizePart {
    #[default]
    Digits,
    Space,
    Extension,
}

impl BodyScanner {
    /// Begins behind the head. The limits are those of the trailers.
    pub fn new(body: Body, limits: HeadLimits) -> Self {
        let state = match body {
            Body::None | Body::Length(0) => State::Done,
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::Size(SizeLine::default()),
        };
        Self { state, limits, extensions: 0, trailer_bytes: 0, trailers: 0 }
    }

    /// Takes the next bytes of the stream and tells how many of them belong to this message.
    ///
    /// Fewer than all means that the message ended: ask [`done`](Self::done), which also tells
    /// where all belong to it. Payload is skipped without looking at it.
    ///
    /// # Errors
    ///
    /// [`Refusal::Bad`], and for trailers [`Refusal::TooLarge`] and [`Refusal::TooManyHeaders`].
    /// The scanner must not be fed after that.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut taken = 0;
        while taken < bytes.len() && self.state != State::Done {
            taken += match &mut self.state {
                State::Length(left) | State::Payload(left) => skip(left, bytes.len() - taken),
                _ => {
                    self.state = self.step(bytes[taken])?;
                    1
                }
            };
            match self.state {
                State::Length(0) => self.state = State::Done,
                State::Payload(0) => self.state = State::PayloadCr,
                _ => {}
            }
        }
        Ok(taken)
    }

    /// The message has ended.
    pub fn done(&self) -> bool {
        self.state == State::Done
    }

    /// What follows after one byte outside of payload.
    fn step(&mut self, byte: u8) -> Result<State, Refusal> {
        let next = match (self.state, byte) {
            (State::Size(line), _) => return self.step_size(line, byte),
            (State::SizeLf(0), b'\n') => State::TrailerStart,
            (State::SizeLf(size), b'\n') => State::Payload(size),
            (State::PayloadCr, b'\r') => State::PayloadLf,
            (State::PayloadLf, b'\n') => State::Size(SizeLine::default()),
            (
                State::TrailerStart
                | State::TrailerName
                | State::TrailerValue
                | State::TrailerLf
                | State::EndLf,
                _,
            ) => return self.step_trailer(byte),
            _ => return Err(Refusal::Bad("a chunk does not end where its size says")),
        };
        Ok(next)
    }

    fn step_size(&mut self, mut line: SizeLine, byte: u8) -> Result<State, Refusal> {
        if byte == b'\r' && line.digits > 0 {
            return Ok(State::SizeLf(line.size));
        }
        line.bytes += 1;
        match (line.part, byte) {
            (SizePart::Digits, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => line.push(byte)?,
            (SizePart::Digits | SizePart::Space, b' ' | b'\t') if line.digits > 0 => {
                line.part = SizePart::Space;
            }
            (SizePart::Digits | SizePart::Space, b';') if line.digits > 0 => {
                line.part = SizePart::Extension;
            }
            (SizePart::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.extensions += 1,
            _ => return Err(Refusal::Bad("not a chunk size")),
        }
        if line.bytes > MAX_SIZE_LINE || self.extensions >= MAX_EXTENSIONS {
            return Err(Refusal::Bad("chunk extensions are too long"));
        }
        Ok(State::Size(line))
    }

    /// Trailers are header lines (RFC 9112 section 7.1.2), and checked as strictly.
    fn step_trailer(&mut self, byte: u8) -> Result<State, Refusal> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > self.limits.bytes {
            return Err(Refusal::TooLarge);
        }
        match (self.state, byte) {
            (State::TrailerStart, b'\r') => Ok(State::EndLf),
            (State::EndLf, b'\n') => Ok(State::Done),
            (State::TrailerStart, _) if is_name_byte(byte) => {
                self.trailers += 1;
                let few = self.trailers <= self.limits.headers;
                few.then_some(State::TrailerName).ok_or(Refusal::TooManyHeaders)
            }
            (State::TrailerName, _) if is_name_byte(byte) => Ok(State::TrailerName),
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => Ok(State::TrailerValue),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            _ => Err(Refusal::Bad("not a trailer")),
        }
    }
}

impl SizeLine {
    fn push(&mut self, digit: u8) -> Result<(), Refusal> {
        let value = char::from(digit).to_digit(16).ok_or(Refusal::Bad("not a chunk size"))?;
        self.digits += 1;
        if self.digits > MAX_SIZE_DIGITS {
            return Err(Refusal::Bad("a chunk size is too large"));
        }
        self.size = self.size << 4 | u64::from(value);
        Ok(())
    }
}

/// Takes as much off `left` as is there, and tells how much that was.
fn skip(left: &mut u64, there: usize) -> usize {
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(there);
    *left -= taken as u64;
    taken
}

/// A byte of a token (RFC 9110 section 5.6.2).
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
