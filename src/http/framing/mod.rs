//! Where an HTTP/1 request begins and ends, told from its raw bytes.
//!
//! Whoever reads a stream of requests differently from the next in line lets one client speak in
//! another's name. What a parsed request shows has already been repaired: bare line feeds, a
//! `Content-Length` beside `Transfer-Encoding`, equal lengths twice. So the bytes are judged here,
//! before hyper gets them, and whatever two readers might understand in two ways is refused.
//!
//! [`HeadScanner`] finds the end of a head and reads the few headers that frame the message;
//! [`BodyScanner`] then counts the body off, and both together split a stream into messages. They
//! keep none of the bytes. Each byte is looked at once however the stream is cut into reads, and
//! once more when a head is complete.
//!
//! Everything taken here hyper takes too, with the same end: heads are read with hyper's own
//! parser (httparse), and the tests let hyper read the same streams. The reverse does not hold:
//! this is the stricter of the two. RFC 9112 is followed where it says MUST, and where it lets a
//! recipient be lenient (sections 2.2, 5.2, 6.3) this is not, but for a few empty lines before a
//! request.

use http::StatusCode;

mod body;
mod head;

pub use body::BodyScanner;
pub use head::{HeadScanner, MAX_EMPTY_LINES, RequestHead};

/// How large a head, and the trailers of a body, may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes, from the first of the empty lines before the head to the empty line that ends it.
    pub bytes: usize,
    /// Header lines.
    pub headers: usize,
}

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing; also `Content-Length: 0`.
    None,
    /// So many bytes, at least one.
    Length(u64),
    /// Chunks until the last one, then trailers (RFC 9112 section 7.1).
    Chunked,
}

/// Why a stream is read no further. After the answer the connection must be closed, because
/// nobody can say where the next request would begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not HTTP, or could be read in two ways: 400.
    #[error("{0}")]
    Bad(&'static str),
    /// The target is longer than hyper takes, 65,534 bytes: 414.
    #[error("the request target is too long")]
    TargetTooLong,
    /// The head or the trailers have too many bytes: 431.
    #[error("the head is too large")]
    TooLarge,
    /// The head or the trailers have too many lines: 431.
    #[error("the head has too many header lines")]
    TooManyHeaders,
    /// Well-formed, but nothing that is spoken here: 501.
    #[error("{0}")]
    NotImplemented(&'static str),
    /// A request line that is right but for its version, which is neither 1.0 nor 1.1: 505.
    #[error("the HTTP version is not supported")]
    Version,
}

impl Refusal {
    /// The status to answer with, where an answer can still be given.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooLarge | Self::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        }
    }
}

#[cfg(test)]
mod tests;
