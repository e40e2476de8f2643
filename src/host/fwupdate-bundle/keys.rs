//! Signing keys: PKCS#8 in PEM, as OpenSSL 3 reads and writes it.

use std::path::Path;

use clap::ValueEnum;
use fwupdate::failure::{Code, Failure};
use fwupdate::manifest::{Algorithm, PublicKey, Signature};
use fwupdate::pkcs11::{self, Description, SCHEME, Scheme, TokenKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;

use crate::files;
use crate::output::{Output, Result};

/// RFC 8410: PKCS#8 version 1 around a seed. `ring` would write version 2, which OpenSSL 3.0 can't read.
const ED25519_PKCS8: &[u8] =
    &[0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

const KEY_CAP: u64 = 64 * 1024;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum KeyKind {
    Ed25519,
    P256,
}

pub fn generate(folder: &Path, kind: KeyKind) -> Result<Output> {
    let (secret, public) = (folder.join("release.key.pem"), folder.join("release.pub.pem"));
    for path in [&secret, &public] {
        if path.symlink_metadata().is_ok() {
            let what = "it exists already; move it away or name another folder";
            return Err(files::wrong(Code::MalformedRequest, path, what));
        }
    }
    std::fs::create_dir_all(folder).map_err(files::at(folder))?;
    let pkcs8 = new_pkcs8(kind)?;
    let key = SigningKey::from_pkcs8(&pkcs8).ok_or_else(|| unusable("the new key"))?;
    let id = key.public()?.id();
    files::create_new(&secret, 0o600, pem("PRIVATE KEY", &pkcs8).as_bytes())?;
    files::create_new(&public, 0o644, pem("PUBLIC KEY", key.public()?.spki()).as_bytes())?;
    let text = format!(
        "Key {id}.\nSecret: {}\nPublic: {} (copy it to the devices' trusted keys)",
        secret.display(),
        public.display()
    );
    Ok(Output { text, json: json!({"keyId": id, "secretKey": secret, "publicKey": public}) })
}

fn new_pkcs8(kind: KeyKind) -> Result<Vec<u8>> {
    let random = SystemRandom::new();
    let failed = |_| Failure::new(Code::Internal, "the system has no random numbers; try again");
    match kind {
        KeyKind::Ed25519 => {
            let mut seed = [0; 32];
            random.fill(&mut seed).map_err(failed)?;
            Ok([ED25519_PKCS8, &seed].concat())
        }
        KeyKind::P256 => {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random);
            Ok(pkcs8.map_err(failed)?.as_ref().to_vec())
        }
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line) + "\n");
    format!("-----BEGIN {label}-----\n{}-----END {label}-----\n", lines.collect::<String>())
}

fn unusable(what: &str) -> Failure {
    Failure::new(
        Code::MalformedRequest,
        format!(
            "{what}: this is no unencrypted PKCS#8 key for Ed25519 or P-256; make one with \
             `fwupdate-bundle keygen`, or convert it with `openssl pkcs8 -topk8 -nocrypt`"
        ),
    )
}

pub enum SigningKey {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    /// On P-256, in a token.
    Token(TokenKey, PublicKey),
}

impl SigningKey {
    /// A file, or a key in a token by its URI.
    pub fn load(path: &Path) -> Result<SigningKey> {
        if let Some(uri) = path.to_str().filter(|name| name.starts_with(SCHEME)) {
            return SigningKey::in_token(uri);
        }
        let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(read(path)?.as_bytes()).ok();
        let key = pkcs8.and_then(|pkcs8| SigningKey::from_pkcs8(pkcs8.secret_pkcs8_der()));
        key.ok_or_else(|| unusable(&path.display().to_string()))
    }

    fn in_token(uri: &str) -> Result<SigningKey> {
        let refused = |why: String| Failure::new(Code::MalformedRequest, format!("{uri}: {why}"));
        let key = TokenKey::open(&uri.parse().map_err(refused)?).map_err(|why| refused(why.to_string()))?;
        let spki = match key.description() {
            Description { kind: pkcs11::KeyKind::P256, public_key: Some(spki) } => spki,
            Description { kind: pkcs11::KeyKind::P256, .. } => {
                return Err(refused("the token holds no public key beside it: put it there".to_owned()));
            }
            _ => return Err(refused("an RSA key signs no bundle; make one on P-256".to_owned())),
        };
        let public = PublicKey::from_spki(spki).map_err(|why| refused(why.to_string()))?;
        Ok(SigningKey::Token(key, public))
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Option<SigningKey> {
        let ed25519 = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map(SigningKey::Ed25519);
        let p256 = || EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, &SystemRandom::new());
        ed25519.or_else(|_| p256().map(SigningKey::P256)).ok()
    }

    pub fn public(&self) -> Result<PublicKey> {
        let (algorithm, point) = match self {
            SigningKey::Ed25519(pair) => (Algorithm::Ed25519, pair.public_key().as_ref()),
            SigningKey::P256(pair) => (Algorithm::EcdsaP256Sha256, pair.public_key().as_ref()),
            SigningKey::Token(_, public) => return Ok(public.clone()),
        };
        PublicKey::from_point(algorithm, point)
            .map_err(|error| Failure::new(Code::Internal, error.to_string()))
    }

    pub fn sign(&self, manifest: &[u8]) -> Result<Signature> {
        let failed = |why: String| Failure::new(Code::Internal, why);
        let bytes = match self {
            SigningKey::Ed25519(pair) => Ok(pair.sign(manifest)),
            SigningKey::P256(pair) => pair.sign(&SystemRandom::new(), manifest),
            SigningKey::Token(key, public) => {
                let signature = key.sign(Scheme::Ecdsa, manifest).map_err(|why| failed(why.to_string()))?;
                return Ok(Signature::by(public, signature));
            }
        };
        let bytes = bytes.map_err(|_| failed("signing failed; try again".to_owned()))?;
        Ok(Signature::by(&self.public()?, bytes.as_ref().to_vec()))
    }
}

/// The text of a key file, which some editors begin with a byte order mark.
pub fn read(path: &Path) -> Result<String> {
    let pem = files::read(path, KEY_CAP)?;
    Ok(String::from_utf8_lossy(&pem).trim_start_matches('\u{feff}').to_owned())
}

pub fn load_public(path: &Path) -> Result<PublicKey> {
    PublicKey::from_pem(&read(path)?).map_err(|error| files::wrong(Code::MalformedRequest, path, error))
}
