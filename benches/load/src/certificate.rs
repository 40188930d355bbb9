//! The certificate that all proxies show: made for one run, self-signed, ECDSA on P-256.

use std::fs;
use std::path::Path;

use crate::target::SERVER_NAME;

/// Writes `cert.pem`, `key.pem`, and `both.pem` with the one behind the other, as HAProxy wants it.
pub(crate) fn write(into: &Path) -> anyhow::Result<()> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let params = rcgen::CertificateParams::new([SERVER_NAME.to_owned()])?;
    let (cert, key) = (params.self_signed(&key)?.pem(), key.serialize_pem());
    fs::write(into.join("cert.pem"), &cert)?;
    fs::write(into.join("key.pem"), &key)?;
    Ok(fs::write(into.join("both.pem"), cert + &key)?)
}
