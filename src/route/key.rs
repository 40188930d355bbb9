//! The key of a request.

/// Where a key may be found in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// `query:NAME`, percent-decoded, `+` is a space.
    Query(String),
    /// `header:NAME`, in lower case.
    Header(http::HeaderName),
    /// `cookie:NAME`.
    Cookie(String),
    /// `path:N`, the N-th segment, from 1, percent-decoded.
    Path(usize),
    /// `client_ip`, as text.
    ClientIp,
}
