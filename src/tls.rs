//! The TLS client settings for everything that leaves the gateway: the hub and the downloads.
//!
//! The crypto provider is named here, never taken from a process-wide default, and so is the clock: a gateway
//! whose real-time clock lost its battery would otherwise call every certificate "not yet valid" and never
//! update again.

mod kind;
mod pem;
mod proof;
mod token;
mod verdict;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, Error, InconsistentKeys, SupportedProtocolVersion};

pub use self::kind::Holder;
use self::pem::roots;
pub use self::pem::{TlsError, holder};
pub use self::proof::Proof;
pub use self::verdict::{Verdict, own_certificate};
use crate::clock::Clock;
use crate::config::{KeyPlace, Roots};

/// TLS 1.2 and 1.3, trusting `trusted`, with the client certificate (a PEM file) and key if they are given. Certificates are
/// judged by the time that `clock` believes at the handshake.
///
/// Reads files, so it blocks; call it anew for each connection to see renewed files.
pub fn client_config(
    trusted: &Roots,
    client_cert: Option<(&Path, &KeyPlace)>,
    clock: &Clock,
) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let identity = client_cert.map(|(certificate, key)| identity(certificate, key, &provider)).transpose()?;
    let versions: &[&SupportedProtocolVersion] = match &identity {
        Some(pair) if !token::fits_tls13(pair) => &[&TLS12],
        _ => &[&TLS13, &TLS12],
    };
    let builder = ClientConfig::builder_with_details(provider, Arc::new(Believed(clock.clone())))
        .with_protocol_versions(versions)?
        .with_root_certificates(roots(trusted)?);
    Ok(match identity {
        Some(pair) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))),
        None => builder.with_no_client_auth(),
    })
}

/// The certificate with its key, which must be a pair; a token that does not tell its public key is believed.
fn identity(
    certificate: &Path,
    place: &KeyPlace,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let wrong = |source| TlsError::Identity {
        certificate: certificate.to_path_buf(),
        key: place.to_string(),
        source,
    };
    let chain = pem::chain(certificate)?;
    let key = match place {
        KeyPlace::Token(uri) => token::signing_key(uri)?,
        KeyPlace::File(path) => provider.key_provider.load_private_key(pem::key(path)?).map_err(wrong)?,
    };
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(pair),
        Err(Error::InconsistentKeys(_)) => {
            Err(TlsError::Strangers { certificate: certificate.to_path_buf(), key: place.to_string() })
        }
        Err(source) => Err(wrong(source)),
    }
}

/// The gateway's clock as rustls wants it.
#[derive(Debug)]
struct Believed(Clock);

impl TimeProvider for Believed {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::pem::PEM_LIMIT;
    use super::*;

    fn authority() -> rcgen::CertifiedKey {
        rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap()
    }

    #[test]
    fn certificates_are_judged_by_the_time_that_is_believed() {
        let clock = Clock::default();
        let provider = Believed(clock.clone());
        let learned = clock.now() + Duration::from_secs(3600);
        clock.learn(learned, "hub.example");
        // The clock of the machine that runs the tests may be synchronised, and then it counts.
        let read = provider.current_time().unwrap().as_secs();
        assert!(read.abs_diff(clock.now().unix_timestamp() as u64) <= 1);
    }

    #[test]
    fn a_pair_of_certificate_and_key_is_accepted_and_a_mismatch_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (authority(), authority());
        let (certificate, key, other) =
            (dir.path().join("c.pem"), dir.path().join("k.pem"), dir.path().join("o.pem"));
        std::fs::write(&certificate, first.cert.pem()).unwrap();
        std::fs::write(&key, first.key_pair.serialize_pem()).unwrap();
        std::fs::write(&other, second.key_pair.serialize_pem()).unwrap();

        let clock = Clock::default();
        let config = client_config(
            &Roots::with(Some(certificate.clone())),
            Some((&certificate, &KeyPlace::File(key))),
            &clock,
        )
        .unwrap();
        assert!(config.client_auth_cert_resolver.has_certs());
        let error = client_config(
            &Roots::with(Some(certificate.clone())),
            Some((&certificate, &KeyPlace::File(other))),
            &clock,
        )
        .unwrap_err();
        assert!(matches!(error, TlsError::Strangers { .. }), "{error}");
        let error = client_config(
            &Roots::with(Some(certificate.clone())),
            Some((&certificate, &KeyPlace::File(certificate.clone()))),
            &clock,
        )
        .unwrap_err();
        assert!(matches!(error, TlsError::NoKey { .. }), "{error}");
    }

    #[test]
    fn a_ca_file_that_holds_no_certificate_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let clock = Clock::default();
        assert!(matches!(
            client_config(&Roots::with(Some(path.clone())), None, &clock),
            Err(TlsError::Read { .. })
        ));
        std::fs::write(&path, "not a certificate").unwrap();
        assert!(matches!(
            client_config(&Roots::with(Some(path.clone())), None, &clock),
            Err(TlsError::NoCertificate { .. })
        ));
        File::create(&path).unwrap().set_len(PEM_LIMIT + 1).unwrap();
        assert!(matches!(
            client_config(&Roots::with(Some(path.clone())), None, &clock),
            Err(TlsError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_ca_file_of_another_system_s_editor_is_read_and_one_without_an_end_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let alone = || roots(&Roots { system: false, ca_file: Some(path.clone()) });
        std::fs::write(&path, format!("\u{feff}{}", authority().cert.pem().replace('\n', "\r\n"))).unwrap();
        assert_eq!(alone().unwrap().len(), 1);
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let refused = alone().unwrap_err();
        assert!(refused.to_string().contains("no regular file"), "{refused}");
    }

    #[test]
    fn a_ca_file_stands_beside_the_systems_roots_or_in_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, authority().cert.pem()).unwrap();
        let count = |system| roots(&Roots { system, ca_file: Some(path.clone()) }).unwrap().len();
        let (beside, alone) = (count(true), count(false));
        assert_eq!(alone, 1);
        let system = roots(&Roots::with(None)).map_or(0, |roots| roots.len());
        assert_eq!(beside, system + 1);
    }
}
