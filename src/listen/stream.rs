//! A byte stream to a client or a backend.
//!
//! A closed set, so an enum and not a boxed trait: a relay reads and writes it once per message.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// One of the streams that a connection may run over.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
}

impl Stream {
    /// Whether the peer has ended or reset its side, though what it said before may be unread.
    ///
    /// One system call; for a stream that is not being read.
    pub fn peer_has_ended(&self) -> bool {
        let Self::Tcp(stream) = self;
        let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
        // An error says nothing about the peer.
        let found = poll(&mut polled, Some(&Timespec::default())).unwrap_or(0);
        found > 0 && !polled[0].revents().is_empty()
    }

    /// Makes the drop of this stream a reset, as its peer's counterpart had.
    pub fn reset_on_drop(&self) {
        match self {
            // Fails only on a socket that is gone, which needs no reset.
            Self::Tcp(stream) => {
                drop(SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)));
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
