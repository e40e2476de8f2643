//! Certificates and keys from PEM files, and which authorities are trusted.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::config::{Roots, open_regular};
use crate::failure::{Code, Failure};

/// No bundle of roots in use comes near it.
pub const PEM_LIMIT: u64 = 4 << 20;

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
        "{path} holds no PEM private key that can be used: it must be PKCS#8, PKCS#1 or SEC1, unencrypted"
    )]
    NoKey { path: PathBuf },
    #[error("no trusted root certificate was found: install ca-certificates or set cloud.ca_file")]
    NoRoots,
    #[error("{certificate} and {key} cannot be used together ({source}): check that they are a pair")]
    Identity { certificate: PathBuf, key: PathBuf, source: rustls::Error },
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
