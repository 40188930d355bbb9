//! Opens connections to backends, TCP with or without TLS, for checks and for traffic alike.
//!
//! A host name is looked up at each connect, and its addresses are tried one after the other, none
//! for more than its share of the time that is left: one that does not answer must not use up the
//! time of one that would. A socket comes back ready for frames: without Nagle's delay, and with
//! keep-alive and `TCP_USER_TIMEOUT`, by which a peer that vanished is noticed both on an idle
//! connection and on one that has something to send.
//!
//! What failed is told apart, because much follows from it: a backend that could not be reached in
//! time may be lost, one that refused is going, a name that nobody knows says nothing about who
//! bears it, and for want of a port or a descriptor no backend is to blame.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use super::BackendAddress;
use super::tls::BackendTls;
use crate::listen::Stream;
use crate::tcp;

/// A name that could not be looked up; the cause of an `io::Error`.
#[derive(Debug, thiserror::Error)]
#[error("{name} can't be looked up")]
struct LookupFailed {
    name: String,
    source: Option<io::Error>,
}

/// A backend that took a connection, and then said nothing in its TLS handshake.
#[derive(Debug, thiserror::Error)]
#[error("the TLS handshake took too long")]
struct TlsTimedOut;

/// Connects as [`connect`] does, and makes the TLS handshake where there is `tls`, all within
/// `timeout`. Cancel safe.
///
/// # Errors
///
/// As [`connect`]; a TLS handshake that failed or took too long, which is not
/// [unreachable](is_unreachable): there was somebody.
pub async fn open(
    address: &BackendAddress,
    tls: Option<&BackendTls>,
    timeout: Duration,
    keepalive: Duration,
) -> io::Result<Stream> {
    let deadline = Instant::now() + timeout;
    let stream = connect(address, timeout, keepalive).await?;
    let Some(tls) = tls else { return Ok(Stream::Tcp(stream)) };
    let secured = timeout_at(deadline, Box::pin(tls.connect(address, stream))).await;
    secured.unwrap_or_else(|_| Err(io::Error::other(TlsTimedOut)))
}

/// Connects to a backend within `timeout`, the look-up of its name included.
///
/// `keepalive` is the time for which the backend may answer no probe, and that sent bytes may stay
/// unacknowledged; zero sets neither. Cancel safe: a dropped future leaves nothing open.
///
/// # Errors
///
/// Of several addresses, the error that says most: a refusal, then a failure of the proxy's own
/// ([`is_own_failure`]), then the last. [`ErrorKind::TimedOut`] if an address did not answer.
/// [`ErrorKind::NotFound`] if the name has no address or its look-up took too long.
pub async fn connect(
    address: &BackendAddress,
    timeout: Duration,
    keepalive: Duration,
) -> io::Result<TcpStream> {
    let deadline = Instant::now() + timeout;
    let stream = match address {
        BackendAddress::Ip(address) => connect_one(*address, deadline).await?,
        BackendAddress::Name(name, port) => {
            connect_any(&look_up(name, *port, deadline).await?, deadline).await?
        }
    };
    tcp::prepare(&stream, keepalive)?;
    Ok(stream)
}

async fn look_up(name: &str, port: u16, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    let failed = |source| {
        io::Error::new(ErrorKind::NotFound, LookupFailed { name: name.to_owned(), source })
    };
    match timeout_at(deadline, lookup_host((name, port))).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) if is_own_failure(&error) => Err(error),
        Ok(Err(error)) => Err(failed(Some(error))),
        Err(_) => Err(failed(Some(ErrorKind::TimedOut.into()))),
    }
    .and_then(
        |addresses: Vec<_>| if addresses.is_empty() { Err(failed(None)) } else { Ok(addresses) },
    )
}

async fn connect_any(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut telling: Option<io::Error> = None;
    for (tried, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(now) / left;
        match connect_one(*address, now + share).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                let says_more =
                    telling.as_ref().is_none_or(|other| how_telling(&error) >= how_telling(other));
                telling = if says_more { Some(error) } else { telling };
            }
        }
    }
    Err(telling.unwrap_or_else(|| ErrorKind::NotFound.into()))
}

/// How much an error says about the backend, or keeps from being said.
fn how_telling(error: &io::Error) -> u8 {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => 2,
        _ if is_own_failure(error) => 1,
        _ => 0,
    }
}

async fn connect_one(address: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    timeout_at(deadline, TcpStream::connect(address)).await?
}

/// Whether an error is the proxy's own: no port, no descriptor, no memory for a socket.
///
/// Such a failure must never count against a backend.
pub fn is_own_failure(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const OWN: [Errno; 5] =
        [Errno::ADDRNOTAVAIL, Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| OWN.contains(&errno))
}

/// Whether an error of [`connect`] means that nobody was reached in time, as opposed to a refusal.
pub fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
    )
}

#[cfg(test)]
pub(super) mod tests {
    use socket2::SockRef;
    use std::net::TcpListener as StdListener;

    use socket2::{Domain, Socket, Type};

    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const KEEPALIVE: Duration = Duration::from_secs(30);

    /// An address that refuses: its port is taken, but nobody listens there yet.
    pub(crate) struct Refusing {
        pub(crate) address: SocketAddr,
        socket: Socket,
    }

    impl Refusing {
        pub(crate) fn new() -> Self {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            let address = socket.local_addr().unwrap().as_socket().unwrap();
            Self { address, socket }
        }

        /// Listens, and never accepts.
        pub(crate) fn listen(&self) {
            self.socket.listen(1024).unwrap();
        }
    }

    /// A listener that answers nobody: its backlog is full, and it accepts none. Linux then
    /// drops further SYNs, as a host that is gone would.
    pub(crate) struct Silent {
        pub(crate) address: SocketAddr,
        _listener: Socket,
        _waiting: Vec<TcpStream>,
    }

    impl Silent {
        pub(crate) async fn new() -> Self {
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            let mut waiting = Vec::new();
            let full = Duration::from_millis(200);
            while let Ok(stream) = connect_one(address, Instant::now() + full).await {
                waiting.push(stream);
                assert!(waiting.len() < 10, "the backlog has no end");
            }
            Self { address, _listener: listener, _waiting: waiting }
        }
    }

    #[tokio::test]
    async fn a_connection_has_its_options() {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let address = BackendAddress::Ip(listener.local_addr().unwrap());
        let stream = connect(&address, SOON, KEEPALIVE).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE / 2);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(KEEPALIVE));
        let plain = connect(&address, SOON, Duration::ZERO).await.unwrap();
        assert!(!SockRef::from(&plain).keepalive().unwrap());
        connect(&address, SOON, Duration::from_millis(10)).await.unwrap();
    }

    #[tokio::test]
    async fn a_name_is_looked_up() {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = BackendAddress::Name("localhost".to_owned(), port);
        connect(&address, SOON, KEEPALIVE).await.unwrap();
    }

    #[tokio::test]
    async fn an_unknown_name_says_nothing_of_the_backend() {
        let address = BackendAddress::Name("no such name".to_owned(), 80);
        let error = connect(&address, SOON, KEEPALIVE).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!is_unreachable(&error) && !is_own_failure(&error));
        assert_eq!(error.to_string(), "no such name can't be looked up");
    }

    #[tokio::test]
    async fn a_refusal_is_not_silence() {
        let refusing = Refusing::new();
        let address = BackendAddress::Ip(refusing.address);
        let refused = connect(&address, SOON, KEEPALIVE).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(!is_unreachable(&refused));
        let silent = Silent::new().await;
        let short = Duration::from_millis(50);
        let error =
            connect(&BackendAddress::Ip(silent.address), short, KEEPALIVE).await.unwrap_err();
        assert!(is_unreachable(&error), "{error}");
    }

    #[tokio::test]
    async fn an_address_that_is_silent_leaves_time_for_the_next() {
        let silent = Silent::new().await;
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let addresses = [silent.address, listener.local_addr().unwrap()];
        let deadline = Instant::now() + Duration::from_secs(1);
        connect_any(&addresses, deadline).await.unwrap();
    }

    #[tokio::test]
    async fn of_several_errors_the_refusal_is_told() {
        let silent = Silent::new().await;
        let refusing = Refusing::new();
        for addresses in [[silent.address, refusing.address], [refusing.address, silent.address]] {
            let deadline = Instant::now() + Duration::from_millis(200);
            let error = connect_any(&addresses, deadline).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    }

    #[test]
    fn own_failures_are_known_by_their_number() {
        let own = |number| is_own_failure(&io::Error::from_raw_os_error(number));
        // EMFILE, ENFILE, EADDRNOTAVAIL, ENOBUFS, ENOMEM
        assert!([24, 23, 99, 105, 12].into_iter().all(own));
        // ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ECONNRESET
        assert!(![111, 110, 113, 104].into_iter().any(own));
    }
}
