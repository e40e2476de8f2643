//! The hub's own certificate authority, kept in its folder, and the server's certificate made from it at each start.
//!
//! Clients trust `ca.pem` once; ports and addresses may change from start to start.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use time::{Duration, OffsetDateTime};

use crate::disk;

/// Settings for both ports, and the CA that clients must trust.
#[derive(Debug)]
pub struct Certificates {
    pub ca_pem: String,
    pub mqtt: Arc<ServerConfig>,
    pub https: Arc<ServerConfig>,
}

/// Reads or makes the CA in `dir` and issues a leaf for localhost, both loopback addresses, `bind` and `names`.
pub fn prepare(dir: &Path, bind: IpAddr, names: &[String]) -> Result<Certificates> {
    let ca_key = kept_key(dir, "ca")?;
    let ca = ca_params()?.self_signed(&ca_key)?;
    let ca_pem = match std::fs::read_to_string(dir.join("ca.pem")) {
        Ok(pem) => pem,
        Err(_) => {
            disk::replace(&dir.join("ca.pem"), ca.pem().as_bytes(), false)?;
            ca.pem()
        }
    };
    let leaf_key = KeyPair::generate()?;
    let leaf = leaf_params(bind, names)?.signed_by(&leaf_key, &ca, &ca_key)?;
    let config = |alpn: &[&[u8]]| server_config(leaf.der().clone(), leaf_key.serialize_der(), alpn);
    Ok(Certificates { ca_pem, mqtt: config(&[])?, https: config(&[b"http/1.1"])? })
}

/// The key `{name}.key.pem` of an authority. Without its certificate `{name}.pem` it would sign what nobody trusts, so
/// both are made anew together.
pub fn kept_key(dir: &Path, name: &str) -> Result<KeyPair> {
    let (path, certificate) = (dir.join(format!("{name}.key.pem")), dir.join(format!("{name}.pem")));
    if path.exists() && certificate.exists() {
        let pem =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        return KeyPair::from_pem(&pem).with_context(|| format!("{} holds no private key", path.display()));
    }
    let key = KeyPair::generate()?;
    disk::replace(&path, key.serialize_pem().as_bytes(), true)?;
    if certificate.exists() {
        std::fs::remove_file(&certificate)?;
    }
    Ok(key)
}

/// Always the same name and, with the same key, the same key id: leaves made later still chain to an older `ca.pem`.
fn ca_params() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, "fwupdate-hub local CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lasting(&mut params, 3650);
    Ok(params)
}

fn leaf_params(bind: IpAddr, more: &[String]) -> Result<CertificateParams> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
    let bind = (!bind.is_unspecified()).then(|| bind.to_string());
    for name in bind.iter().chain(more) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let mut params =
        CertificateParams::new(names).context("a name of the hub cannot stand in a certificate")?;
    params.distinguished_name.push(DnType::CommonName, "fwupdate-hub");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    lasting(&mut params, 397);
    Ok(params)
}

/// From a day ago, so that a clock that is a little behind does not matter.
pub fn lasting(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(days);
}

fn server_config(leaf: CertificateDer<'static>, key: Vec<u8>, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS12, &rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyClientCertificate(provider)))
        .with_single_cert(vec![leaf], PrivatePkcs8KeyDer::from(key).into())?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Asks for a certificate and takes any whose key the client proves to hold: as IoT Hub does, the thumbprint is
/// compared later, at CONNECT.
#[derive(Debug)]
struct AnyClientCertificate(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClientCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = prepare(dir.path(), "127.0.0.1".parse().unwrap(), &[]).unwrap();
        let second = prepare(dir.path(), "127.9.8.7".parse().unwrap(), &["10.0.2.2".to_owned()]).unwrap();
        assert_eq!(first.ca_pem, second.ca_pem);
        assert_eq!(std::fs::read_to_string(dir.path().join("ca.pem")).unwrap(), first.ca_pem);
    }

    #[test]
    fn the_key_is_readable_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), "127.0.0.1".parse().unwrap(), &[]).unwrap();
        let mode = std::fs::metadata(dir.path().join("ca.key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
