//! Reads the PROXY protocol header of a connection, and not a byte of what follows it.
//!
//! What a header is, `proxy_protocol.rs` knows; here is the reading. Version 1 has no length, so it
//! is read byte by byte: a hundred small reads, once per connection of a balancer.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::proxy_protocol::{BadHeader, LONGEST, Progress, look};

/// Why a peer that should have said for whom it speaks did not.
#[derive(Debug, thiserror::Error)]
pub enum IntroductionError {
    /// It ended the connection before it had sent anything, as a check of a port does.
    #[error("the peer ended without a PROXY header")]
    Nothing,
    /// It took too long.
    #[error("no whole PROXY header came within {0:?}")]
    Late(Duration),
    /// What came is no header.
    #[error(transparent)]
    Bad(#[from] BadHeader),
    /// The connection broke, or ended within the header.
    #[error("the connection broke within the PROXY header")]
    Broken(#[source] io::Error),
}

/// Reads a header, within `limit`; tells whom the peer speaks for, `None`: for itself.
///
/// # Errors
///
/// See [`IntroductionError`]: the connection is to be closed.
pub async fn introduced(
    stream: &mut TcpStream,
    limit: Duration,
) -> Result<Option<SocketAddr>, IntroductionError> {
    timeout(limit, read(stream)).await.unwrap_or(Err(IntroductionError::Late(limit)))
}

async fn read(stream: &mut TcpStream) -> Result<Option<SocketAddr>, IntroductionError> {
    // Never more than the longest header: `look` asks for no more.
    let mut header = Vec::new();
    loop {
        let count = match look(&header)? {
            Progress::Done(client) => return Ok(client),
            Progress::Need(count) => count.min(LONGEST),
        };
        match (&mut *stream).take(count as u64).read_buf(&mut header).await {
            Ok(0) if header.is_empty() => return Err(IntroductionError::Nothing),
            Ok(0) => return Err(IntroductionError::Broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(IntroductionError::Broken(error)),
        }
    }
}
