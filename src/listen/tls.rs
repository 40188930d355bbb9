//! TLS with clients: what is offered, and how many handshakes at a time.
//!
//! TLS 1.3 and 1.2 with the ciphers of `tls.rs`; a client that comes back resumes by a ticket, so
//! no session is stored here. Client certificates are not asked for.
//!
//! A handshake is the most expensive thing that a stranger can ask for: signing with an RSA key of
//! 2048 bits takes 0.8 ms, and all relays of the worker wait meanwhile. So a worker has
//! [`Handshakes`]: it reads a client's first message without limit, since that costs little, then
//! lets a bounded number into the handshake, and of those only a few are polled between two
//! looks at the worker's sockets. The rest waits, in order of arrival, within its time-out; who
//! has a place and leaves the others waiting for its next word loses it.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{Acceptor, NoServerSessionStorage};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

use super::Stream;
use super::certificates::Certificates;
use crate::shutdown::Tasks;
use crate::tls::{self, KeyPair};

/// Handshakes of one worker that are under way. Each holds some 20 KiB.
const UNDER_WAY: usize = 1024;

/// How many of them may compute between two looks at the sockets: at 0.8 ms for the worst, relays
/// wait 3 ms and not, as without a limit, for all that are ready.
const PER_TURN: usize = 4;

/// Once all places are taken, who has said nothing within its handshake for so long gives its own
/// up. So whoever would hold them all must send hellos about as fast as the worker can answer them.
const SILENCE: Duration = Duration::from_secs(1);

/// The TLS of one listener.
#[derive(Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// TLS with these certificates, of which the first is the default.
    ///
    /// # Errors
    ///
    /// The system has no random bytes for the key of the tickets.
    pub fn new(pairs: &[KeyPair]) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Certificates::new(pairs)));
        config.alpn_protocols = vec![tls::ALPN_HTTP1.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Ticketer::new()?;
        // Each costs 15 us and 130 bytes; browsers use them more than once where they must.
        config.send_tls13_tickets = 1;
        Ok(Self { config: Arc::new(config) })
    }

    /// The same with other certificates. Who has a ticket can still resume with it.
    #[must_use]
    pub fn renewed(&self, pairs: &[KeyPair]) -> Self {
        let mut config = ServerConfig::clone(&self.config);
        config.cert_resolver = Arc::new(Certificates::new(pairs));
        Self { config: Arc::new(config) }
    }
}

/// Why a client did not get through its TLS handshake.
#[derive(Debug, thiserror::Error)]
pub enum TlsRefused {
    /// It left before it had said what it wants: no failure of anybody.
    #[error("the client left before its TLS handshake")]
    Gone,
    /// It speaks no TLS, none that is safe, or does not like the certificate.
    #[error("the TLS handshake failed")]
    Failed(#[source] io::Error),
    /// It took too long, or was kept waiting too long.
    #[error("the TLS handshake took too long")]
    TimedOut,
}

impl TlsRefused {
    /// As it stands in a metric label; `None` where there is nothing to count.
    pub fn label(&self) -> Option<&'static str> {
        match self {
            Self::Gone => None,
            Self::Failed(_) => Some("tls_handshake"),
            Self::TimedOut => Some("tls_timeout"),
        }
    }
}

/// The TLS handshakes of one worker.
#[derive(Debug)]
pub struct Handshakes {
    slots: Semaphore,
    /// What is left of [`PER_TURN`] until the sockets are looked at. Both are fair: first come,
    /// first served.
    turns: Semaphore,
    refilling: Cell<bool>,
    tasks: Tasks,
}

impl Handshakes {
    /// None yet; `tasks` are the worker's.
    pub fn new(tasks: Tasks) -> Self {
        Self {
            slots: Semaphore::new(UNDER_WAY),
            turns: Semaphore::new(PER_TURN),
            refilling: Cell::new(false),
            tasks,
        }
    }

    /// Makes the handshake with a client within `limit`, the waiting for its turn included.
    ///
    /// # Errors
    ///
    /// See [`TlsRefused`]; a client that can be told why has been.
    pub async fn accept(
        self: &Rc<Self>,
        tls: &ServerTls,
        stream: TcpStream,
        limit: Duration,
    ) -> Result<Stream, TlsRefused> {
        let handshake = async {
            let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
            let hello = hello.await.map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => TlsRefused::Gone,
                _ => TlsRefused::Failed(error),
            })?;
            let _slot = self.slots.acquire().await;
            let config = Arc::clone(&tls.config);
            let rest = async {
                let buffer_limit = Some(tls::BUFFER_BYTES);
                hello.into_stream_with(config, |tls| tls.set_buffer_limit(buffer_limit)).await
            };
            let stream = self.paced(rest).await.ok_or(TlsRefused::TimedOut)?;
            let stream = stream.map_err(TlsRefused::Failed)?;
            Ok(Stream::Tls(Box::new(stream.into())))
        };
        timeout(limit, handshake).await.unwrap_or(Err(TlsRefused::TimedOut))
    }

    /// Polls a future only when it is its turn. `None`: it was silent, and others need its place.
    async fn paced<F: Future>(self: &Rc<Self>, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        loop {
            self.turn().await;
            let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
            match polled {
                Poll::Ready(output) => return Some(output),
                Poll::Pending if self.is_silent().await && self.is_full() => return None,
                // After a silence it is polled as well: the two may have come at once.
                Poll::Pending => {}
            }
        }
    }

    /// Waits until the task is woken; true: by nothing but time.
    async fn is_silent(&self) -> bool {
        tokio::select! {
            biased;
            () = tokio::time::sleep(SILENCE) => true,
            () = Woken::default() => false,
        }
    }

    fn is_full(&self) -> bool {
        self.slots.available_permits() == 0
    }

    async fn turn(self: &Rc<Self>) {
        // It is never closed.
        if let Ok(turn) = self.turns.acquire().await {
            turn.forget();
        }
        if !self.refilling.replace(true) {
            let handshakes = Rc::clone(self);
            self.tasks.spawn(async move { handshakes.refill().await });
        }
    }

    /// Gives out turns anew whenever the worker has looked at its sockets, until none is wanted.
    async fn refill(&self) {
        loop {
            // Woken only after the runtime's look at its sockets.
            tokio::task::yield_now().await;
            let taken = PER_TURN - self.turns.available_permits();
            if taken == 0 {
                return self.refilling.set(false);
            }
            self.turns.add_permits(taken);
        }
    }
}

/// Ready when its task is woken: by what another future, polled before it, waits for.
#[derive(Default)]
struct Woken(bool);

impl Future for Woken {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::PKCS_ECDSA_P256_SHA256;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::runtime::{Builder, LocalOptions};

    use super::*;
    use crate::tls::tests::pair;

    /// What a client begins with.
    fn hello() -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from("a.example").unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    }

    #[test]
    fn who_is_silent_within_its_handshake_gives_way_once_all_places_are_taken() {
        const SOON: Duration = Duration::from_secs(10);
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_all().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async {
            let handshakes = Handshakes::new(Tasks::default());
            let handshakes = Rc::new(Handshakes { slots: Semaphore::new(1), ..handshakes });
            let server = ServerTls::new(&[pair(&["a.example"], &PKCS_ECDSA_P256_SHA256)]);
            let server = Rc::new(server.unwrap());
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut clients = Vec::new();
            let mut accepted = Vec::new();
            for _ in 0..3 {
                let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                let (stream, _) = listener.accept().await.unwrap();
                let (handshakes, server) = (Rc::clone(&handshakes), Rc::clone(&server));
                accepted.push(tokio::task::spawn_local(async move {
                    handshakes.accept(&server, stream, 2 * SOON).await.map(drop)
                }));
                client.write_all(&hello()).await.unwrap();
                // Each has its answer, though none of those before it goes on.
                timeout(SOON, client.read_u8()).await.expect("it has a place").unwrap();
                clients.push(client);
            }
            for gone in accepted.drain(..2) {
                let refused = gone.await.unwrap().unwrap_err();
                assert!(matches!(refused, TlsRefused::TimedOut), "{refused}");
            }
            assert!(!accepted[0].is_finished(), "nobody wants its place");
        });
    }

    #[test]
    fn between_two_looks_at_the_sockets_few_handshakes_compute() {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_all().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async {
            let tasks = Tasks::default();
            let handshakes = Rc::new(Handshakes::new(tasks.clone()));
            let polls = Rc::new(Cell::new(0));
            const ALL: usize = 500;
            for _ in 0..ALL {
                let (handshakes, polls) = (Rc::clone(&handshakes), Rc::clone(&polls));
                tasks.spawn(async move {
                    // Two flights: the second is ready at once.
                    let mut flights = 0;
                    let handshake = poll_fn(move |context| {
                        polls.set(polls.get() + 1);
                        flights += 1;
                        context.waker().wake_by_ref();
                        if flights == 2 { Poll::Ready(()) } else { Poll::Pending }
                    });
                    assert!(handshakes.paced(handshake).await.is_some());
                });
            }
            let mut seen = 0;
            while polls.get() < 2 * ALL {
                tokio::task::yield_now().await;
                let now = polls.get();
                assert!(now - seen <= 2 * PER_TURN, "{} at once", now - seen);
                seen = now;
            }
            tasks.all_ended().await;
            assert!(!handshakes.refilling.get());
            assert_eq!(handshakes.turns.available_permits(), PER_TURN);
        });
    }
}
