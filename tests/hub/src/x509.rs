//! Client certificates: which authority signed one, and whom it names.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;

/// Whether the authority signed it, for a client, and it is valid now.
pub fn signed_by(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    authority: CertificateDer<'_>,
) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.into_owned()).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| error.to_string())?;
    let verdict = verifier.verify_client_cert(leaf, intermediates, UnixTime::now());
    verdict.map(drop).map_err(|error| error.to_string())
}

/// The subject's common name (OID 2.5.4.3).
pub fn common_name(leaf: &CertificateDer<'_>) -> Option<String> {
    const OID: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
    let certificate = webpki::EndEntityCert::try_from(leaf).ok()?;
    let subject = certificate.subject();
    let at = subject.windows(OID.len()).position(|window| window == OID)?;
    // After the OID: the string's tag, its length in one byte, and the string.
    let length = usize::from(*subject.get(at + OID.len() + 1)?);
    let start = at + OID.len() + 2;
    String::from_utf8(subject.get(start..start + length)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_name_is_the_subject_s() {
        let mut params = rcgen::CertificateParams::new(vec!["other".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "gw-17");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(common_name(certificate.der()).as_deref(), Some("gw-17"));
        assert_eq!(common_name(&CertificateDer::from(vec![0x30, 0])), None);
    }
}
