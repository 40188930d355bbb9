//! A byte stream to a client or a backend.
//!
//! A closed set, so an enum and not a boxed trait: a relay reads and writes it once per message.
//!
//! TLS takes bytes before the socket does, up to a bound: what was written is out only once
//! `poll_flush` is ready. The ends of TLS and of TCP go together: `poll_shutdown` sends
//! close_notify and a FIN, after which the peer may go on speaking.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// One of the streams that a connection may run over.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS, with a client or with a backend. One variant for both: with a third, each stream of an
    /// idle connection is 8 bytes larger.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether the peer has ended or reset its side, though what it said before may be unread.
    ///
    /// One system call; for a stream that is not being read.
    pub fn peer_has_ended(&self) -> bool {
        let mut polled = [PollFd::new(self.socket(), PollFlags::RDHUP)];
        // An error says nothing about the peer.
        let found = poll(&mut polled, Some(&Timespec::default())).unwrap_or(0);
        found > 0 && !polled[0].revents().is_empty()
    }

    /// Makes the drop of this stream a reset, as its peer's counterpart had.
    pub fn reset_on_drop(&self) {
        // Fails only on a socket that is gone, which needs no reset.
        drop(SockRef::from(self.socket()).set_linger(Some(std::time::Duration::ZERO)));
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
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
            Self::Tls(stream) => {
                let is_client = matches!(**stream, TlsStream::Server(_));
                match Pin::new(stream).poll_read(context, buffer) {
                    // Many clients end without TLS's own end (close_notify). That is an end: a
                    // request and a WebSocket message say by themselves whether they are whole.
                    // Not so with a backend: the end of its stream may be all that ends its answer.
                    Poll::Ready(Err(error))
                        if is_client && error.kind() == io::ErrorKind::UnexpectedEof =>
                    {
                        Poll::Ready(Ok(()))
                    }
                    polled => polled,
                }
            }
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
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rcgen::PKCS_ECDSA_P256_SHA256;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::tls::{provider, tests as pem};

    async fn tcp() -> (Stream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialed = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Stream::Tcp(dialed), Stream::Tcp(listener.accept().await.unwrap().0))
    }

    /// Both ends of a connection with TLS: the dialed one, the accepted one.
    async fn tls() -> (Stream, Stream) {
        let (Stream::Tcp(dialed), Stream::Tcp(accepted)) = tcp().await else { unreachable!() };
        let pair = pem::pair(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        let mut roots = RootCertStore::empty();
        roots.add(pair.certified().cert[0].clone()).unwrap();
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.time_provider = Arc::new(AtThatTime);
        let only = rustls::sign::SingleCertAndKey::from(Arc::clone(pair.certified()));
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(only));
        let name = ServerName::try_from("a.example").unwrap();
        let (dialed, accepted) = tokio::join!(
            TlsConnector::from(Arc::new(client)).connect(name, dialed),
            TlsAcceptor::from(Arc::new(server)).accept(accepted),
        );
        (
            Stream::Tls(Box::new(dialed.unwrap().into())),
            Stream::Tls(Box::new(accepted.unwrap().into())),
        )
    }

    #[derive(Debug)]
    struct AtThatTime;

    impl rustls::time_provider::TimeProvider for AtThatTime {
        fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
            let since = pem::now().duration_since(std::time::UNIX_EPOCH).ok()?;
            Some(rustls::pki_types::UnixTime::since_unix_epoch(since))
        }
    }

    async fn ends(stream: &Stream) {
        let ended = async {
            while !stream.peer_has_ended() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the end is seen");
    }

    #[tokio::test]
    async fn the_end_of_a_peer_is_seen_behind_what_it_said() {
        for over_tls in [false, true] {
            for dialed_ends in [false, true] {
                for by_reset in [false, true] {
                    let (dialed, accepted) = if over_tls { tls().await } else { tcp().await };
                    let (mut ending, stays) =
                        if dialed_ends { (dialed, accepted) } else { (accepted, dialed) };
                    ending.write_all(&[b'x'; 10_000]).await.unwrap();
                    ending.flush().await.unwrap();
                    assert!(!stays.peer_has_ended(), "over TLS: {over_tls}");
                    if by_reset {
                        ending.reset_on_drop();
                        drop(ending);
                    } else {
                        ending.shutdown().await.unwrap();
                    }
                    ends(&stays).await;
                }
            }
        }
    }
}
