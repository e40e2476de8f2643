//! Public keys in the form that every key vault and `openssl` print: PEM `PUBLIC KEY`, Ed25519 or P-256.
//!
//! The two DER prefixes are compared byte by byte: there is one encoding of each key, hence one key id.

use std::collections::BTreeMap;
use std::fmt;

use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// RFC 8410: SEQUENCE { SEQUENCE { id-Ed25519 }, BIT STRING of 32 bytes }.
const ED25519_PREFIX: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// RFC 5480: SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING of an uncompressed point }.
const P256_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Ed25519,
    EcdsaP256Sha256,
}

impl Algorithm {
    /// As `manifest.sig` names it, what its keys begin with, and what checks its signatures.
    fn facts(self) -> (&'static str, &'static [u8], &'static dyn VerificationAlgorithm) {
        match self {
            Algorithm::Ed25519 => ("ed25519", ED25519_PREFIX, &ED25519),
            Algorithm::EcdsaP256Sha256 => ("ecdsa-p256-sha256", P256_PREFIX, &ECDSA_P256_SHA256_ASN1),
        }
    }

    pub(super) fn name(self) -> &'static str {
        self.facts().0
    }
}

/// The first 16 hex digits of the SHA-256 of a key's DER SubjectPublicKeyInfo.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct KeyId(String);

impl TryFrom<String> for KeyId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<KeyId, &'static str> {
        let hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 16 || !text.bytes().all(hex) {
            return Err("a key id is 16 lower-case hex digits");
        }
        Ok(KeyId(text))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no public key that can be trusted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("it holds no readable PEM `PUBLIC KEY`; make one with `openssl pkey -pubout`")]
    Pem,
    #[error("it holds a private key, which belongs on the build host alone; copy the public one here")]
    Private,
    #[error("its key is neither Ed25519 nor an uncompressed P-256 point; only those two can be trusted")]
    Kind,
    #[error("two different keys share the key id {0}; make one of them anew")]
    SameId(KeyId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    algorithm: Algorithm,
    /// DER SubjectPublicKeyInfo.
    spki: Vec<u8>,
    /// What follows the prefix: 32 bytes, or 65 with a leading 4.
    point: Vec<u8>,
}

impl PublicKey {
    /// Takes a DER SubjectPublicKeyInfo.
    pub fn from_spki(spki: &[u8]) -> Result<PublicKey, KeyError> {
        let key =
            |algorithm, point: &[u8]| PublicKey { algorithm, spki: spki.to_vec(), point: point.to_vec() };
        match (spki.strip_prefix(ED25519_PREFIX), spki.strip_prefix(P256_PREFIX)) {
            (Some(point), _) if point.len() == 32 => Ok(key(Algorithm::Ed25519, point)),
            (_, Some(point)) if point.len() == 65 && point.first() == Some(&4) => {
                Ok(key(Algorithm::EcdsaP256Sha256, point))
            }
            _ => Err(KeyError::Kind),
        }
    }

    /// Wraps a bare public key as `ring` gives it: 32 bytes, or an uncompressed point of 65.
    pub fn from_point(algorithm: Algorithm, point: &[u8]) -> Result<PublicKey, KeyError> {
        PublicKey::from_spki(&[algorithm.facts().1, point].concat())
    }

    /// Takes the first `PUBLIC KEY` of a PEM text.
    pub fn from_pem(pem: &str) -> Result<PublicKey, KeyError> {
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| KeyError::Pem)?;
        PublicKey::from_spki(&spki)
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    pub fn id(&self) -> KeyId {
        let mut hex = Digest::of(&self.spki).to_string();
        hex.truncate(16);
        KeyId(hex)
    }

    /// Whether `signature` is this key's over `message`: 64 bytes for Ed25519, DER for ECDSA.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm.facts().2, &self.point).verify(message, signature).is_ok()
    }
}

/// The keys whose signatures count, each once.
#[derive(Debug, Clone, Default)]
pub struct TrustedKeys(BTreeMap<KeyId, PublicKey>);

impl TrustedKeys {
    /// Adds every `PUBLIC KEY` of one PEM text, of which there must be one at least. On an error nothing of
    /// this text is added.
    pub fn add_pem(&mut self, pem: &str) -> Result<(), KeyError> {
        // Behind an editor's byte order mark the first key would pass for text.
        let pem = pem.trim_start_matches('\u{feff}');
        let found: Result<Vec<_>, _> = SubjectPublicKeyInfoDer::pem_slice_iter(pem.as_bytes()).collect();
        let found = found.map_err(|_| KeyError::Pem)?;
        if found.is_empty() {
            let private = pem.contains("PRIVATE KEY-----");
            return Err(if private { KeyError::Private } else { KeyError::Pem });
        }
        let mut all = self.clone();
        for spki in found {
            all.add(PublicKey::from_spki(&spki)?)?;
        }
        *self = all;
        Ok(())
    }

    pub fn add(&mut self, key: PublicKey) -> Result<(), KeyError> {
        let id = key.id();
        match self.0.get(&id) {
            Some(other) if *other != key => Err(KeyError::SameId(id)),
            _ => {
                self.0.insert(id, key);
                Ok(())
            }
        }
    }

    pub fn get(&self, id: &KeyId) -> Option<&PublicKey> {
        self.0.get(id)
    }

    pub fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.0.keys()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10.1.
    const ED25519: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    /// Its private half: a folder of trusted keys is no place for it.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";

    #[test]
    fn a_pem_file_may_hold_several_keys_with_text_around() {
        let other = PublicKey::from_point(Algorithm::EcdsaP256Sha256, &[4; 65]).unwrap();
        let other = data_encoding::BASE64.encode(other.spki());
        let pem =
            format!("# old and new\n{ED25519}-----BEGIN PUBLIC KEY-----\n{other}\n-----END PUBLIC KEY-----");
        let mut keys = TrustedKeys::default();
        [pem.as_str(), ED25519].into_iter().for_each(|pem| keys.add_pem(pem).unwrap());
        assert_eq!(keys.len(), 2);
        // As editors of other systems write it: a byte order mark, other line ends, spaces behind a line.
        let tail = pem.split_once('\n').unwrap().1;
        for text in [
            pem.replace('\n', "\r\n"),
            tail.replace('\n', "\r"),
            format!("\u{feff}{tail}"),
            format!("\u{feff}{}", tail.replace('\n', " \r\n")),
        ] {
            let mut keys = TrustedKeys::default();
            keys.add_pem(&text).unwrap();
            assert_eq!(keys.len(), 2, "{text:?}");
        }
        let id = PublicKey::from_pem(ED25519).unwrap().id();
        assert_eq!(keys.get(&id).unwrap().algorithm(), Algorithm::Ed25519);
        assert!(keys.ids().any(|known| *known == id) && keys.ids().count() == 2 && !keys.is_empty());
        assert_eq!(id.to_string(), "a1e9156054e04fac");
    }

    #[test]
    fn another_key_of_the_same_id_is_refused() {
        let (key, other) =
            (PublicKey::from_pem(ED25519).unwrap(), PublicKey::from_point(Algorithm::Ed25519, &[7; 32]));
        let mut keys = TrustedKeys(BTreeMap::from([(key.id(), other.unwrap())]));
        assert_eq!(keys.add(key.clone()), Err(KeyError::SameId(key.id())));
    }

    #[test]
    fn what_is_no_public_key_is_refused_and_leaves_the_set_alone() {
        let mut keys = TrustedKeys::default();
        let broken = format!("{ED25519}-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n");
        let expected = [("", KeyError::Pem), (PRIVATE, KeyError::Private), (&broken, KeyError::Kind)];
        for (pem, error) in expected {
            assert_eq!(keys.add_pem(pem), Err(error), "{pem}");
        }
        assert!(keys.is_empty());
    }

    #[test]
    fn only_the_two_canonical_encodings_are_keys() {
        let compressed = [P256_PREFIX, &[2; 65]].concat();
        let long = [ED25519_PREFIX, &[0; 33]].concat();
        let short = [ED25519_PREFIX, &[0; 31]].concat();
        for spki in [&compressed, &long, &short, &vec![]] {
            assert_eq!(PublicKey::from_spki(spki), Err(KeyError::Kind));
        }
    }
}
