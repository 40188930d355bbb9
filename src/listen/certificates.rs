//! Which certificate a client gets.
//!
//! By the name that it asks for (SNI, RFC 6066 section 3): a certificate for exactly that name,
//! else one whose wildcard covers it, else the default, the first of the config. Of several for
//! one name the first is taken that the client can verify, so that an ECDSA certificate may stand
//! before an RSA one for old clients.
//!
//! A table is never changed: certificates that were renewed make another one, for a listener that
//! goes on with it, and who is connected keeps what he has.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::tls::KeyPair;

/// The certificates of one listener.
#[derive(Debug)]
pub struct Certificates {
    /// By name; a wildcard without its asterisk, as `.example.com`.
    by_name: HashMap<String, Same>,
    /// The first, and those that share a name with it.
    default: Same,
}

/// Several for one name: at least one.
type Same = Vec<Arc<CertifiedKey>>;

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}

impl Certificates {
    /// Certificates in the order of the config; the first is the default.
    pub fn new(pairs: &[KeyPair]) -> Self {
        let mut by_name: HashMap<String, Same> = HashMap::new();
        for pair in pairs {
            for name in pair.names() {
                let name = name.strip_prefix('*').unwrap_or(name).to_owned();
                by_name.entry(name).or_default().push(Arc::clone(pair.certified()));
            }
        }
        let of_first = pairs.first().map_or(&[][..], KeyPair::names);
        let like_first = pairs.iter().enumerate().filter(|(index, pair)| {
            *index == 0 || pair.names().iter().any(|name| of_first.contains(name))
        });
        let default = like_first.map(|(_, pair)| Arc::clone(pair.certified())).collect();
        Self { by_name, default }
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let same = name.and_then(|name| self.find(name)).unwrap_or(&self.default);
        let fits = |one: &&Arc<CertifiedKey>| one.key.choose_scheme(schemes).is_some();
        same.iter().find(fits).or(same.first()).cloned()
    }

    /// An asterisk stands for one label (RFC 9525 section 6.3).
    fn find(&self, name: &str) -> Option<&Same> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let wildcard = || self.by_name.get(&name[name.find('.')?..]);
        self.by_name.get(&name).or_else(wildcard)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};

    use super::*;
    use crate::tls::tests::pair;

    const ECDSA: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
    const RSA: SignatureScheme = SignatureScheme::RSA_PSS_SHA256;

    #[test]
    fn a_name_has_its_certificate_then_a_wildcard_then_the_default() {
        let of = |names: &[&str]| pair(names, &PKCS_ECDSA_P256_SHA256);
        let pairs = [of(&["first.example"]), of(&["*.b.example"]), of(&["exact.b.example"])];
        let table = Certificates::new(&pairs);
        let chosen = |name: Option<&str>| {
            let chosen = table.choose(name, &[ECDSA]).unwrap();
            pairs.iter().position(|pair| Arc::ptr_eq(pair.certified(), &chosen)).unwrap()
        };
        assert_eq!(chosen(Some("exact.b.example")), 2);
        assert_eq!(chosen(Some("EXACT.b.example.")), 2);
        assert_eq!(chosen(Some("any.b.example")), 1);
        for other in ["b.example", "two.labels.b.example", "other", "first.example", ".b.example"] {
            assert_eq!(chosen(Some(other)), usize::from(other == ".b.example"), "{other}");
        }
        assert_eq!(chosen(None), 0);
    }

    #[test]
    fn of_several_the_first_that_the_client_can_verify() {
        let ecdsa = pair(&["a.example"], &PKCS_ECDSA_P256_SHA256);
        let rsa = pair(&["a.example"], &PKCS_RSA_SHA256);
        let pairs = [ecdsa, rsa];
        let table = Certificates::new(&pairs);
        let chosen = |name: Option<&str>, schemes: &[SignatureScheme]| {
            let chosen = table.choose(name, schemes).unwrap();
            pairs.iter().position(|pair| Arc::ptr_eq(pair.certified(), &chosen)).unwrap()
        };
        for name in [Some("a.example"), None] {
            assert_eq!(chosen(name, &[RSA, ECDSA]), 0);
            assert_eq!(chosen(name, &[RSA]), 1);
            assert_eq!(chosen(name, &[SignatureScheme::ED25519]), 0);
        }
    }
}
