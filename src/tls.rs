//! What TLS needs on either side: the cryptography, and certificates and keys from PEM text.
//!
//! The provider of the cryptography is given to each config that is built, and is no global of the
//! process. What is read here is checked here: a certificate that nobody would believe, or a key
//! that belongs to another, is found when the config is loaded and not by the first client. Reads
//! no file and no clock: text and time are arguments.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The application protocol that is spoken within TLS (RFC 7301), on both sides.
pub(crate) const ALPN_HTTP1: &[u8] = b"http/1.1";

/// So many bytes wait within TLS for a peer that takes none; what comes then waits outside, where
/// it is counted.
pub(crate) const BUFFER_BYTES: usize = 32 * 1024;

/// The cryptography: TLS 1.3 and 1.2, each with AEAD ciphers and forward secrecy alone.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A certificate with its chain, and its private key.
#[derive(Clone, Debug)]
pub struct KeyPair {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
    not_after: SystemTime,
}

/// What is wrong with a certificate or its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyPairError {
    /// No certificate in the text.
    #[error("has no certificate in PEM form; it begins with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    /// It can't be taken apart.
    #[error("has a certificate that can't be read ({0}); get it anew from who issued it")]
    Broken(String),
    /// Its time is over.
    #[error("has a certificate that expired on {0}; renew it")]
    Expired(String),
    /// Its time has not come.
    #[error("has a certificate that is not valid before {0}; is this machine's clock right?")]
    NotYetValid(String),
    /// No private key in the text.
    #[error(
        "has no private key in PEM form; it begins with -----BEGIN PRIVATE KEY-----, and can't be \
         an encrypted one"
    )]
    NoKey,
    /// Of a kind that is not supported, or damaged.
    #[error("has a private key that can't be used ({0}); ECDSA and RSA keys can")]
    Key(String),
    /// It is another certificate's.
    #[error("is not the key of that certificate; name the two that were made together")]
    Mismatch,
}

impl KeyPairError {
    /// Whether it is about the key, and not about the certificate.
    pub fn is_of_key(&self) -> bool {
        matches!(self, Self::NoKey | Self::Key(_) | Self::Mismatch)
    }
}

impl KeyPair {
    /// Reads and checks a certificate, the rest of its chain behind it, and its key.
    ///
    /// # Errors
    ///
    /// See [`KeyPairError`].
    pub fn from_pem(cert: &str, key: &str, now: SystemTime) -> Result<Self, KeyPairError> {
        let chain = certificates(cert)?;
        let (names, not_after) = {
            let first = chain.first().ok_or(KeyPairError::NoCertificate)?;
            let (_, first) = X509Certificate::from_der(first)
                .map_err(|error| KeyPairError::Broken(error.to_string()))?;
            check_time(&first, now)?;
            (names(&first), end_of(&first))
        };
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| KeyPairError::NoKey)?;
        let certified =
            CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => KeyPairError::Mismatch,
                rustls::Error::InvalidCertificate(error) => {
                    KeyPairError::Broken(format!("{error:?}"))
                }
                error => KeyPairError::Key(error.to_string()),
            })?;
        Ok(Self { certified: Arc::new(certified), names, not_after })
    }

    /// The host names that the certificate is for, in lower case, as `*.example.com` too.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many days the certificate is still valid; less than 0 once it is not.
    pub fn days_left(&self, now: SystemTime) -> f64 {
        let seconds = match self.not_after.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(over) => -over.duration().as_secs_f64(),
        };
        seconds / DAY.as_secs_f64()
    }

    /// What a handshake is made with.
    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

/// The same certificates are the same pair: their key is then the same too.
impl PartialEq for KeyPair {
    fn eq(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }
}

/// The certificates in a PEM text, in their order; at least one.
///
/// # Errors
///
/// There is none, or one that is damaged.
pub(crate) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, KeyPairError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match read {
        Ok(read) if read.is_empty() => Err(KeyPairError::NoCertificate),
        Ok(read) => Ok(read),
        Err(error) => Err(KeyPairError::Broken(error.to_string())),
    }
}

fn check_time(certificate: &X509Certificate<'_>, now: SystemTime) -> Result<(), KeyPairError> {
    let validity = certificate.validity();
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let now = i64::try_from(seconds).unwrap_or(i64::MAX);
    if now > validity.not_after.timestamp() {
        return Err(KeyPairError::Expired(validity.not_after.to_string()));
    }
    if now < validity.not_before.timestamp() {
        return Err(KeyPairError::NotYetValid(validity.not_before.to_string()));
    }
    Ok(())
}

fn end_of(certificate: &X509Certificate<'_>) -> SystemTime {
    // It has been checked: a time before 1970 is over.
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = names.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

/// Certificates for tests, made as they run.
#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, KeyPair as Key, PKCS_ECDSA_P256_SHA256, date_time_ymd};

    use super::*;

    pub(crate) fn now() -> SystemTime {
        // 2026-07-01
        UNIX_EPOCH + Duration::from_secs(1_782_864_000)
    }

    pub(crate) fn params(names: &[&str]) -> CertificateParams {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        params
    }

    pub(crate) fn pair(names: &[&str], algorithm: &'static rcgen::SignatureAlgorithm) -> KeyPair {
        let key = Key::generate_for(algorithm).unwrap();
        let cert = params(names).self_signed(&key).unwrap();
        KeyPair::from_pem(&cert.pem(), &key.serialize_pem(), now()).unwrap()
    }

    #[test]
    fn a_pair_is_read_with_its_names() {
        let pair = pair(&["A.example.com", "*.b.example.com"], &PKCS_ECDSA_P256_SHA256);
        assert_eq!(pair.names(), ["a.example.com", "*.b.example.com"]);
    }

    #[test]
    fn a_pair_knows_how_long_it_is_valid() {
        let pair = pair(&["a"], &PKCS_ECDSA_P256_SHA256);
        // From 2026-07-01 to 2027-01-01.
        assert_eq!(pair.days_left(now()), 184.0);
        assert_eq!(pair.days_left(now() + 185 * DAY), -1.0);
    }

    #[test]
    fn what_nobody_would_believe_is_refused() {
        let key = Key::generate().unwrap();
        let other = Key::generate().unwrap().serialize_pem();
        let cert = params(&["a"]).self_signed(&key).unwrap().pem();
        let key = key.serialize_pem();
        let year = Duration::from_secs(366 * 24 * 3600);
        let told = |cert: &str, key: &str, now| KeyPair::from_pem(cert, key, now).unwrap_err();
        assert!(matches!(told(&cert, &key, now() + year), KeyPairError::Expired(_)));
        assert!(matches!(told(&cert, &key, now() - year), KeyPairError::NotYetValid(_)));
        assert_eq!(told(&cert, &other, now()), KeyPairError::Mismatch);
        assert_eq!(told(&cert, &cert, now()), KeyPairError::NoKey);
        assert_eq!(told(&key, &key, now()), KeyPairError::NoCertificate);
        assert_eq!(told("", "", now()), KeyPairError::NoCertificate);
        let half = &cert[..cert.len() / 2];
        assert!(KeyPair::from_pem(half, &key, now()).is_err());
        let other_than_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(told(other_than_der, &key, now()), KeyPairError::Broken(_)));
        let not_a_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(matches!(told(&cert, not_a_key, now()), KeyPairError::Key(_)));
    }
}
