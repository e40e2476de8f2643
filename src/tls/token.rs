//! A key in a token as rustls wants it: the handshake signs by asking the token's worker, and waits for it. A connection
//! that proves itself so must not share its thread with anything that has to go on.

use std::sync::Arc;

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};

use crate::pkcs11::{self, Description, KeyKind, KeyUri, Scheme, TokenError};

/// TLS 1.3 takes no signatures of RSA keys but PSS, which some tokens, or their modules, do not make.
pub(super) fn fits_tls13(pair: &CertifiedKey) -> bool {
    let is_rsa = pair.key.algorithm() == SignatureAlgorithm::RSA;
    !is_rsa || pair.key.choose_scheme(&[SignatureScheme::RSA_PSS_SHA256]).is_some()
}

/// Asks the token what key it is, so it blocks.
pub(super) fn signing_key(uri: &Arc<KeyUri>) -> Result<Arc<dyn SigningKey>, TokenError> {
    let description = pkcs11::describe(uri)?;
    Ok(Arc::new(TokenSigningKey { uri: uri.clone(), description }))
}

#[derive(Debug)]
struct TokenSigningKey {
    uri: Arc<KeyUri>,
    description: Description,
}

impl SigningKey for TokenSigningKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let known = [
            (SignatureScheme::ECDSA_NISTP256_SHA256, Scheme::Ecdsa, self.description.kind == KeyKind::P256),
            (
                SignatureScheme::RSA_PSS_SHA256,
                Scheme::RsaPss,
                self.description.kind == KeyKind::Rsa { pss: true },
            ),
            (SignatureScheme::RSA_PKCS1_SHA256, Scheme::RsaPkcs1, self.description.kind != KeyKind::P256),
        ];
        let (name, scheme, _) = known.into_iter().find(|(name, _, fits)| *fits && offered.contains(name))?;
        Some(Box::new(TokenSigner { uri: self.uri.clone(), name, scheme }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.description.public_key.as_deref().map(Into::into)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.description.kind {
            KeyKind::P256 => SignatureAlgorithm::ECDSA,
            KeyKind::Rsa { .. } => SignatureAlgorithm::RSA,
        }
    }
}

#[derive(Debug)]
struct TokenSigner {
    uri: Arc<KeyUri>,
    name: SignatureScheme,
    scheme: Scheme,
}

impl Signer for TokenSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        pkcs11::sign(&self.uri, self.scheme, message).map_err(|why| rustls::Error::General(why.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.name
    }
}
