//! `manifest.sig`: detached signatures over the exact bytes of `manifest.json`, each with its key id.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::keys::{KeyId, PublicKey, TrustedKeys};
use super::rules::{ManifestError, SIGNATURES_CAP, cap, is_word};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignatureList {
    pub signatures: Vec<Signature>,
}

/// One signature. Its algorithm is text: one that this release does not know is passed over, as is a key
/// that it does not know, so that a bundle can carry signatures for newer devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Signature {
    pub key_id: KeyId,
    pub algorithm: String,
    /// Ed25519: 64 bytes; ECDSA: the DER that `openssl dgst -sha256 -sign` writes.
    #[serde(rename = "signature", with = "base64")]
    pub bytes: Vec<u8>,
}

impl Signature {
    /// Labels signature bytes with the key that made them.
    pub fn by(key: &PublicKey, bytes: Vec<u8>) -> Signature {
        Signature { key_id: key.id(), algorithm: key.algorithm().name().to_owned(), bytes }
    }
}

impl SignatureList {
    pub fn parse(bytes: &[u8]) -> Result<SignatureList, ManifestError> {
        cap("manifest.sig", bytes, SIGNATURES_CAP)?;
        let list: SignatureList =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::Signatures(error.to_string()))?;
        if list.signatures.iter().any(|signature| !is_word(&signature.algorithm, 32)) {
            return Err(ManifestError::Signatures("an `algorithm` is no plain word".into()));
        }
        Ok(list)
    }

    /// The bytes to ship as `manifest.sig`.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        let mut bytes =
            serde_json::to_vec_pretty(self).map_err(|error| ManifestError::Signatures(error.to_string()))?;
        bytes.push(b'\n');
        cap("manifest.sig", &bytes, SIGNATURES_CAP)?;
        Ok(bytes)
    }

    /// Demands `required` valid signatures over `manifest` from different keys. A wrong or foreign signature
    /// beside enough good ones does no harm: whoever can add it could as well remove it.
    pub fn check(
        &self,
        manifest: &[u8],
        keys: &TrustedKeys,
        required: usize,
    ) -> Result<BTreeSet<&KeyId>, ManifestError> {
        let (mut valid, mut unknown, mut wrong) = (BTreeSet::new(), 0_usize, 0_usize);
        for signature in &self.signatures {
            match keys.get(&signature.key_id) {
                None => unknown = unknown.saturating_add(1),
                Some(key) if signature.verifies(manifest, key) => {
                    valid.insert(&signature.key_id);
                }
                Some(_) => wrong = wrong.saturating_add(1),
            }
        }
        if valid.len() < required {
            return Err(ManifestError::Untrusted { valid: valid.len(), required, unknown, wrong });
        }
        Ok(valid)
    }
}

impl Signature {
    fn verifies(&self, manifest: &[u8], key: &PublicKey) -> bool {
        self.algorithm == key.algorithm().name() && key.verifies(manifest, &self.bytes)
    }
}

mod base64 {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&data_encoding::BASE64.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        data_encoding::BASE64.decode(text.as_bytes()).map_err(serde::de::Error::custom)
    }
}
