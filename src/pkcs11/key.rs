//! What is known of a key in a token, what it signs, and why it cannot be used.

use serde::{Deserialize, Serialize};

/// Which key it is, as far as signing with it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyKind {
    P256,
    Rsa {
        /// The token knows PSS, without which there is no TLS 1.3.
        pss: bool,
    },
}

/// How to sign; the digest is SHA-256 each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scheme {
    /// The signature is an `Ecdsa-Sig-Value`.
    Ecdsa,
    RsaPss,
    RsaPkcs1,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub kind: KeyKind,
    /// Its `SubjectPublicKeyInfo`, DER; `None`: the token does not tell.
    pub public_key: Option<Vec<u8>>,
}

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// In the worker's words.
    #[error("{0}")]
    Told(String),
    #[error(
        "the PKCS#11 module {path} cannot be used ({cause}): check that it is installed and that its token is there, or name \
         another by module-path"
    )]
    Module { path: String, cause: String },
    #[error(
        "no token is there that {uri} names: check that it is plugged in (`p11tool --list-tokens`), and that the \
         agent may open its device (cloud.key_device)"
    )]
    NoToken { uri: String },
    #[error("the token has no private key that {uri} names, or shows it only to who logs in (pin-source)")]
    NoKey { uri: String },
    #[error("{uri} names several {what}: add more of their attributes")]
    Ambiguous { uri: String, what: String },
    #[error(
        "the PIN in {file} cannot be read ({cause}): check that the file exists and that the agent may read it"
    )]
    PinFile { file: String, cause: String },
    #[error(
        "the token refuses the PIN in {file}: correct it before the token is locked; it is not tried again before"
    )]
    PinRefused { file: String },
    #[error(
        "the token has few tries of its PIN left, so none is spent: log in once by hand (`pkcs11-tool --login`), or \
         unlock it"
    )]
    PinGuarded,
    #[error("the key {uri} is neither on P-256 nor an RSA key: make one that is")]
    Kind { uri: String },
    #[error("the token does not sign: {cause}")]
    Failed { cause: String },
}
