//! What is loaded: an address, with or without TLS.
//!
//! Of TLS just one thing is offered (version 1.3, X25519, AES-128-GCM), so that every proxy does
//! the same work however it is configured; each handshake is a whole one, its certificate
//! verified. Session tickets are counted and thrown away.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use clap::Args;
use rustls::client::{
    ClientConfig, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{HandshakeKind, NamedGroup, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::frame::READ_BYTES;

/// The name in the certificate.
pub(crate) const SERVER_NAME: &str = "bench.test";

/// Where a client connects.
#[derive(Debug, Args)]
pub(crate) struct To {
    /// Where to connect.
    #[arg(long)]
    to: SocketAddr,
    /// Speak TLS, and believe this certificate.
    #[arg(long)]
    ca: Option<PathBuf>,
}

/// A connection, plain or TLS.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub(crate) type Stream = Box<dyn Duplex>;

/// [`To`], with what its handshakes need.
#[derive(Clone)]
pub(crate) struct Target {
    address: SocketAddr,
    tls: Option<TlsConnector>,
    tickets: Arc<Tickets>,
}

impl Target {
    pub(crate) fn new(to: &To) -> anyhow::Result<Self> {
        let tickets = Arc::new(Tickets::default());
        let config = to.ca.as_deref().map(|ca| client_config(ca, Arc::clone(&tickets)));
        let tls = config.transpose()?.map(|config| TlsConnector::from(Arc::new(config)));
        Ok(Self { address: to.to, tls, tickets })
    }

    /// Session tickets that came so far.
    pub(crate) fn tickets(&self) -> usize {
        self.tickets.0.load(Ordering::Relaxed)
    }

    /// Opens a WebSocket; each has a key of its own.
    pub(crate) async fn open(&self, number: usize) -> anyhow::Result<Stream> {
        let tcp = connect(self.address).await?;
        let Some(connector) = &self.tls else {
            return Ok(Box::new(upgraded(tcp, number).await?));
        };
        let tls = connector.connect(ServerName::try_from(SERVER_NAME)?, tcp).await?;
        let kind = tls.get_ref().1.handshake_kind();
        ensure!(kind == Some(HandshakeKind::Full), "not a whole TLS handshake: {kind:?}");
        Ok(Box::new(upgraded(tls, number).await?))
    }

    /// As [`open`](Self::open), as the bare socket that it is without TLS.
    pub(crate) async fn open_plain(&self, number: usize) -> anyhow::Result<TcpStream> {
        ensure!(self.tls.is_none(), "this is measured without TLS only");
        upgraded(connect(self.address).await?, number).await
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

async fn upgraded<S: Duplex>(stream: S, number: usize) -> anyhow::Result<S> {
    let (stream, rest) = handshake(stream, &format!("/?room={number}")).await?;
    ensure!(rest.is_empty(), "the echo server has nothing to say yet");
    Ok(stream)
}

/// Makes a WebSocket of a connection; gives what came behind the 101, too.
pub(crate) async fn handshake<S: Duplex>(
    mut stream: S,
    path: &str,
) -> anyhow::Result<(S, Vec<u8>)> {
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {SERVER_NAME}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::with_capacity(READ_BYTES);
    let end = loop {
        if let Some(at) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        ensure!(stream.read_buf(&mut answer).await? > 0, "the handshake was cut");
    };
    ensure!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    let rest = answer.split_off(end);
    Ok((stream, rest))
}

fn client_config(ca: &Path, tickets: Arc<Tickets>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(ca);
    roots.add(certificate.with_context(|| format!("reading {}", ca.display()))?)?;
    let provider = CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::store(tickets);
    Ok(config)
}

/// Counts tickets and gives none, so that no session is resumed.
#[derive(Debug, Default)]
struct Tickets(AtomicUsize);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}
