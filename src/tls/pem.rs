//! Certificates and keys from PEM files, and which authorities are trusted.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::kind::{self, Holder};
use crate::config::{Roots, open_regular};
use crate::failure::{Code, Failure};
use crate::pkcs11::TokenError;

/// No bundle of roots in use comes near it.
pub const PEM_LIMIT: u64 = 4 << 20;
/// Characters of a PEM label that are shown.
const LABEL: usize = 40;

/// Why no TLS settings could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path} cannot be read ({source}): check that it exists and that the agent may read it")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is larger than {PEM_LIMIT} bytes: name a PEM file with certificates alone")]
    TooLarge { path: PathBuf },
    #[error("{path} holds no PEM certificate that can be used: check its content")]
    NoCertificate { path: PathBuf },
    #[error(
        "{path} holds no private key that can be used but {found}: it must be PEM, and PKCS#8, PKCS#1 or SEC1"
    )]
    NoKey { path: PathBuf, found: String },
    #[error(
        "{path} holds an encrypted private key, whose password nobody enters here: keep it decrypted (`openssl pkey \
         -in KEY -out NEW`), for the user fwupdate alone"
    )]
    Encrypted { path: PathBuf },
    #[error("{path} {what}")]
    Unusable { path: PathBuf, what: String },
    #[error(
        "the key in {key} is not that of the certificate in {certificate}: put there two that were made for each other"
    )]
    Strangers { certificate: PathBuf, key: String },
    #[error("no trusted root certificate was found: install ca-certificates or set cloud.ca_file")]
    NoRoots,
    #[error("{certificate} and {key} cannot be used together ({source}): check that they are a pair")]
    Identity { certificate: PathBuf, key: String, source: rustls::Error },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the TLS library refused its settings: {0}")]
    Settings(#[from] rustls::Error),
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Failure {
        Failure::new(Code::NotReady, error.to_string())
    }
}

/// A damaged system store is tolerated as long as anything can be trusted; a damaged `ca_file` is not, for
/// somebody meant it.
pub fn roots(trusted: &Roots) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if trusted.system {
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::debug!("a part of the system's root certificates cannot be read: {error}");
        }
        roots.add_parsable_certificates(system.certs);
    }
    if let Some(path) = &trusted.ca_file {
        let (added, _) = roots.add_parsable_certificates(certificates(path)?);
        if added == 0 {
            return Err(TlsError::NoCertificate { path: path.clone() });
        }
    }
    if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(roots) }
}

pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match parsed {
        Ok(list) if !list.is_empty() => Ok(list),
        _ => Err(TlsError::NoCertificate { path: path.to_path_buf() }),
    }
}

/// A device's certificate chain: the first is the device's own, and one that can be used.
pub fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = certificates(path)?;
    match chain.first().and_then(|own| kind::fault_of_certificate(own)) {
        Some(what) => Err(TlsError::Unusable { path: path.to_path_buf(), what }),
        None => Ok(chain),
    }
}

/// Whom the first certificate of a file names, and until when.
pub fn holder(path: &Path) -> Result<Holder, TlsError> {
    let chain = certificates(path)?;
    let own = chain.first().and_then(|own| kind::holder(own));
    own.ok_or_else(|| TlsError::NoCertificate { path: path.to_path_buf() })
}

/// A private key that can be used.
pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(path)?;
    let path = path.to_path_buf();
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(key) => match kind::fault_of_key(&key) {
            Some(what) => Err(TlsError::Unusable { path, what }),
            None => Ok(key),
        },
        Err(_) => Err(no_key(path, &String::from_utf8_lossy(&bytes))),
    }
}

fn no_key(path: PathBuf, text: &str) -> TlsError {
    let label = |line: &str| Some(line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----")?.to_owned());
    let labels: Vec<String> = text.lines().filter_map(label).collect();
    if labels.iter().any(|label| label.starts_with("ENCRYPTED")) || text.contains("Proc-Type: 4,ENCRYPTED") {
        return TlsError::Encrypted { path };
    }
    let found = labels.first().map_or("no PEM".to_owned(), |label| {
        label.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(LABEL).collect()
    });
    TlsError::NoKey { path, found }
}

pub fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    let file = open_regular(path).map_err(failed)?;
    let length = file.take(PEM_LIMIT + 1).read_to_end(&mut bytes).map_err(failed)?;
    if length as u64 > PEM_LIMIT {
        return Err(TlsError::TooLarge { path: path.to_path_buf() });
    }
    // Behind an editor's byte order mark the first of them would pass for text.
    Ok(bytes.strip_prefix("\u{feff}".as_bytes()).map(<[u8]>::to_vec).unwrap_or(bytes))
}
