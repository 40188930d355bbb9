//! TLS with backends: whom to believe, under which name, and who we are.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::BackendAddress;
use crate::listen::Stream;
use crate::tls::{self, KeyPair};

/// How TLS is made with the backends of a pool.
#[derive(Clone)]
pub struct BackendTls {
    authorities: Vec<CertificateDer<'static>>,
    server_name: Option<ServerName<'static>>,
    client: Option<KeyPair>,
    config: Arc<ClientConfig>,
}

impl BackendTls {
    /// Believes the certificates that these authorities have issued.
    ///
    /// `server_name` is what a backend's certificate must be for and what it is asked by (SNI);
    /// without one, the host or the IP address of the backend. `client` is shown to backends that
    /// ask for it.
    ///
    /// # Errors
    ///
    /// An authority's certificate can't be used, or there is none.
    pub fn new(
        authorities: Vec<CertificateDer<'static>>,
        server_name: Option<ServerName<'static>>,
        client: Option<KeyPair>,
    ) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        // The system's may hold some of a kind that nobody needs; then the others do.
        let (added, _) = roots.add_parsable_certificates(authorities.iter().cloned());
        if added == 0 {
            return Err(rustls::Error::General("no usable certificate of an authority".to_owned()));
        }
        let builder = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_root_certificates(roots);
        let mut config = match &client {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let only = rustls::sign::SingleCertAndKey::from(Arc::clone(pair.certified()));
                builder.with_client_cert_resolver(Arc::new(only))
            }
        };
        config.alpn_protocols = vec![tls::ALPN_HTTP1.to_vec()];
        Ok(Self { authorities, server_name, client, config: Arc::new(config) })
    }

    /// Makes the handshake with a backend over a connection to it. Cancel safe as a whole.
    ///
    /// # Errors
    ///
    /// The backend breaks off, speaks no TLS or none that is safe, refuses our certificate, or has
    /// one that is not believed.
    pub(super) async fn connect(
        &self,
        address: &BackendAddress,
        stream: TcpStream,
    ) -> io::Result<Stream> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => default_name(address)?,
        };
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let buffer_limit = Some(tls::BUFFER_BYTES);
        let connected =
            connector.connect_with(name, stream, |tls| tls.set_buffer_limit(buffer_limit));
        Ok(Stream::Tls(Box::new(connected.await?.into())))
    }
}

fn default_name(address: &BackendAddress) -> io::Result<ServerName<'static>> {
    match address {
        BackendAddress::Ip(address) => Ok(ServerName::from(address.ip())),
        BackendAddress::Name(name, _) => ServerName::try_from(name.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error)),
    }
}

/// What is built from the same parts is the same.
impl PartialEq for BackendTls {
    fn eq(&self, other: &Self) -> bool {
        self.authorities == other.authorities
            && self.server_name == other.server_name
            && self.client == other.client
    }
}

impl fmt::Debug for BackendTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BackendTls")
            .field("authorities", &self.authorities.len())
            .field("server_name", &self.server_name)
            .field("client", &self.client.is_some())
            .finish()
    }
}
