//! The certificate of a server whose answer tells the time: taken note of in the handshake, and judged afterwards by
//! the very time that the answer told. A clock that is wrong can judge nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use time::OffsetDateTime;

use super::pem::{TlsError, roots};
use crate::config::Roots;

/// What one server showed. It did prove that it holds the certificate's key; nothing else is known yet.
#[derive(Debug)]
pub struct Proof {
    verifier: Arc<WebPkiServerVerifier>,
    shown: Mutex<Option<Shown>>,
}

#[derive(Debug)]
struct Shown {
    leaf: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    name: ServerName<'static>,
}

impl Proof {
    /// The settings for one connection, and what will be known of its server. No certificate of ours is shown, and
    /// nothing may be believed that such a connection brings before [`Proof::holds_at`] says so. Reads files, so it
    /// blocks.
    pub fn of(trusted: &Roots) -> Result<(ClientConfig, Arc<Proof>), TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots(trusted)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
        let verifier = verifier.map_err(|_| TlsError::NoRoots)?;
        let proof = Arc::new(Proof { verifier, shown: Mutex::default() });
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .dangerous()
            .with_custom_certificate_verifier(proof.clone())
            .with_no_client_auth();
        Ok((config, proof))
    }

    /// Whether what was shown is good at this time: chain, name and purpose.
    pub fn holds_at(&self, time: OffsetDateTime) -> Result<(), Error> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = shown.as_ref().ok_or(Error::NoCertificatesPresented)?;
        let seconds = u64::try_from(time.unix_timestamp()).map_err(|_| CertificateError::NotValidYet)?;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        self.verifier.verify_server_cert(&shown.leaf, &shown.chain, &shown.name, &[], at).map(drop)
    }
}

impl ServerCertVerifier for Proof {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let shown = Shown { leaf: leaf.clone().into_owned(), chain, name: name.to_owned() };
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
