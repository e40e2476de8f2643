//! Signed bytes -> `Manifest`. Only `manifest::open` can make one, so that whoever holds a `Manifest` holds
//! something that enough trusted keys have signed.
//!
//! The order is the point: caps, then signatures over the exact bytes, then JSON. Nobody without a trusted
//! key reaches the parser of the manifest.

mod digest;
mod keys;
mod patch;
mod signatures;

use std::ops::Deref;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::failure::{Code, Failure};

pub use digest::Digest;
pub use keys::{Algorithm, KeyError, KeyId, PublicKey, TrustedKeys};
pub use patch::{PATCH_INDEX_CAP, PATCHES_CAP, Patch};
pub use signatures::{Signature, SignatureList};

/// Most bytes that `manifest.json` may have.
pub const MANIFEST_CAP: usize = 64 * 1024;
/// Most bytes that `manifest.sig` may have.
pub const SIGNATURES_CAP: usize = 16 * 1024;
/// The only `format` that this release reads and writes.
pub const FORMAT: u32 = 1;
/// The grain of an image: its size and every chunk are multiples of it. Bytes.
pub const BLOCK: u32 = 4096;
/// Largest `chunking.max`: what one zstd block can hold. Bytes.
pub const CHUNK_CAP: u32 = 128 * 1024;
/// Largest `chunking.group`, so that the device's buffers stay small. Bytes.
pub const GROUP_CAP: u32 = 2 * 1024 * 1024;
/// Most bytes that `rootfs.index` may have.
pub const INDEX_CAP: u64 = 32 * 1024 * 1024;
/// Most bytes that `rootfs.zst` may have: what eleven octal digits of a ustar header can say.
pub const PAYLOAD_CAP: u64 = 0o777_7777_7777;

/// What a bundle says of itself, after its signatures were found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// SHA-256 of the exact bytes of `manifest.json`: what `manifestSha256` pins.
    digest: Digest,
    body: Body,
}

/// The fields of `manifest.json`; see docs/bundle-format.md. Unknown fields are refused unless they are
/// under `extensions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Body {
    /// 1.
    pub format: u32,
    /// The board this image is for.
    pub compatible: String,
    pub version: String,
    /// Never installed below the device's floor.
    pub security_version: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    pub image: Image,
    /// Old images that the bundle has a shorter way from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<Patch>,
    /// What later releases add and this one may ignore; whatever may not be ignored raises `format`.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub extensions: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Bytes of the unpacked image; a multiple of 4096.
    pub size: u64,
    pub sha256: Digest,
    /// `zstd`.
    pub codec: String,
    /// Size in bytes and digest of the member `rootfs.index`.
    pub index_size: u64,
    pub index_sha256: Digest,
    /// Bytes of the member `rootfs.zst`.
    pub payload_size: u64,
    pub chunking: Chunking,
}

/// How the image was cut, in bytes; the device needs only `max` and `group` (its buffer size), the rest is for
/// rebuilding a chunk map by scanning a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Chunking {
    /// `cdc-4k` is `bundle::chunker`; a device takes any other name too, but can't scan a slot with it.
    pub algorithm: String,
    pub block: u32,
    pub min: u32,
    pub average: u32,
    pub max: u32,
    /// Chunks that begin between two multiples of this share one zstd frame; a power of two.
    pub group: u32,
}

/// Why bytes did not become a `Manifest`.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{member} has {size} bytes, but {cap} is the limit; build the bundle again")]
    TooLarge { member: &'static str, size: usize, cap: usize },
    #[error("manifest.sig can't be read ({0}); sign the bundle again")]
    Signatures(String),
    #[error(
        "the manifest has {valid} of {required} valid signatures that are needed from different trusted keys \
         ({unknown} by keys that are not trusted, {wrong} wrong); sign it with a key that this side trusts"
    )]
    Untrusted { valid: usize, required: usize, unknown: usize, wrong: usize },
    #[error("manifest.json can't be read ({0}); build the bundle again")]
    Json(#[from] serde_json::Error),
    #[error("manifest.json has a bad `{field}`: {reason}; build the bundle again")]
    Field { field: &'static str, reason: String },
    #[error("manifest.json has format {0}, but this release reads format {FORMAT}; update the agent first")]
    Format(u64),
}

impl From<ManifestError> for Failure {
    fn from(error: ManifestError) -> Failure {
        let code = match error {
            ManifestError::Untrusted { .. } => Code::UntrustedSignature,
            _ => Code::MalformedBundle,
        };
        Failure::new(code, error.to_string())
    }
}

/// Makes a `Manifest` of the exact bytes of `manifest.json` and `manifest.sig`.
///
/// `required` valid signatures from different keys of `keys` are needed, and never fewer than one.
pub fn open(
    manifest: &[u8],
    signatures: &[u8],
    keys: &TrustedKeys,
    required: usize,
) -> Result<Manifest, ManifestError> {
    cap("manifest.json", manifest, MANIFEST_CAP)?;
    SignatureList::parse(signatures)?.check(manifest, keys, required.max(1))?;
    Ok(Manifest { digest: Digest::of(manifest), body: Body::parse(manifest)? })
}

impl Manifest {
    /// SHA-256 of the exact bytes of `manifest.json`.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn body(&self) -> &Body {
        &self.body
    }
}

impl Deref for Manifest {
    type Target = Body;

    fn deref(&self) -> &Body {
        &self.body
    }
}

fn cap(member: &'static str, bytes: &[u8], cap: usize) -> Result<(), ManifestError> {
    if bytes.len() > cap {
        return Err(ManifestError::TooLarge { member, size: bytes.len(), cap });
    }
    Ok(())
}

/// Read first and alone, so that a newer format is named as such and not by its first unknown field.
#[derive(Deserialize)]
struct FormatOnly {
    format: u64,
}

impl Body {
    /// Parses and validates without asking who signed: for tools that show or make a manifest. A device calls
    /// `open`.
    pub fn parse(bytes: &[u8]) -> Result<Body, ManifestError> {
        cap("manifest.json", bytes, MANIFEST_CAP)?;
        let FormatOnly { format } = serde_json::from_slice(bytes)?;
        if format != u64::from(FORMAT) {
            return Err(ManifestError::Format(format));
        }
        let body: Body = serde_json::from_slice(bytes)?;
        body.validate()?;
        Ok(body)
    }

    /// Checks every rule of docs/bundle-format.md that one manifest alone can break.
    pub fn validate(&self) -> Result<(), ManifestError> {
        Body::check_identity(&self.compatible, &self.version, self.created)?;
        self.image.validate()?;
        patch::validate(&self.patches)
    }

    /// The rules for what a caller of `fwupdate-bundle create` chooses, to be asked before the long work.
    pub fn check_identity(
        compatible: &str,
        version: &str,
        created: OffsetDateTime,
    ) -> Result<(), ManifestError> {
        word("compatible", compatible, 128)?;
        word("version", version, 64)?;
        let created = created.unix_timestamp();
        ensure((0..=0o777_7777_7777).contains(&created), "created", || "it must lie in 1970 to 2242".into())
    }

    /// The bytes to sign and to ship as `manifest.json`.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        cap("manifest.json", &bytes, MANIFEST_CAP)?;
        Ok(bytes)
    }
}

impl Image {
    fn validate(&self) -> Result<(), ManifestError> {
        self.chunking.validate()?;
        let block = u64::from(BLOCK);
        ensure(self.size > 0 && self.size.checked_rem(block) == Some(0), "image.size", || {
            format!("{} is no positive multiple of {BLOCK}", self.size)
        })?;
        ensure(self.codec == "zstd", "image.codec", || "only `zstd` is known".into())?;
        ensure((1..=PAYLOAD_CAP).contains(&self.payload_size), "image.payloadSize", || {
            format!("it must lie in 1 to {PAYLOAD_CAP}")
        })?;
        ensure(self.index_size <= INDEX_CAP, "image.indexSize", || format!("the limit is {INDEX_CAP}"))?;
        let chunks = crate::bundle::chunks_in(self.index_size);
        let fewest = self.size.div_ceil(u64::from(self.chunking.max));
        let possible = fewest..=self.size.div_ceil(block);
        ensure(chunks.is_some_and(|chunks| possible.contains(&chunks)), "image.indexSize", || {
            format!("{} bytes can't index this image", self.index_size)
        })
    }
}

impl Chunking {
    /// Most bytes that the chunks of one group can have: the last one may reach beyond.
    pub fn group_max(&self) -> usize {
        (self.group as usize).saturating_add(self.max as usize)
    }

    fn validate(&self) -> Result<(), ManifestError> {
        word("image.chunking.algorithm", &self.algorithm, 32)?;
        ensure(self.block == BLOCK, "image.chunking.block", || format!("it must be {BLOCK}"))?;
        let sizes = [self.min, self.average, self.max];
        let ordered = self.min > 0 && self.min <= self.average && self.average <= self.max;
        let whole = sizes.iter().all(|size| size % BLOCK == 0);
        ensure(ordered && whole && self.max <= CHUNK_CAP, "image.chunking", || {
            format!("min, average and max must be ascending multiples of {BLOCK} up to {CHUNK_CAP}")
        })?;
        let fits = self.group.is_power_of_two() && self.group >= self.max && self.group <= GROUP_CAP;
        ensure(fits, "image.chunking.group", || format!("it must be a power of two, from max to {GROUP_CAP}"))
    }
}

fn ensure(holds: bool, field: &'static str, reason: impl FnOnce() -> String) -> Result<(), ManifestError> {
    if holds { Ok(()) } else { Err(ManifestError::Field { field, reason: reason() }) }
}

fn word(field: &'static str, text: &str, longest: usize) -> Result<(), ManifestError> {
    ensure(is_word(text, longest), field, || {
        format!("it must be 1 to {longest} letters, digits or any of `._,+:~-`, the first a letter or digit")
    })
}

/// A word of letters, digits and `. _ , + : ~ -` that begins with a letter or digit: safe in a log, a path,
/// a shell and a boot environment.
fn is_word(text: &str, longest: usize) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "._,+:~-".contains(c);
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    first && text.len() <= longest && text.chars().all(good)
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::bundle::testing::{self, sign, trust};

    fn manifest() -> Vec<u8> {
        testing::parts(&[7; 8192], "board", "1.0").manifest
    }

    fn code(error: ManifestError) -> Code {
        Failure::from(error).code
    }

    #[test]
    fn a_signed_manifest_opens_and_knows_the_digest_of_its_exact_bytes() {
        let bytes = manifest();
        let opened = open(&bytes, &sign(&bytes, &[1]), &trust(1), 1).unwrap();
        assert_eq!(opened.digest(), Digest::of(&bytes));
        assert_eq!((opened.compatible.as_str(), opened.body().image.size), ("board", 8192));
    }

    #[test]
    fn without_a_valid_signature_nothing_opens() {
        let bytes = manifest();
        let empty = br#"{"signatures":[]}"#;
        // Not even when the caller asks for none.
        for (signatures, keys, required) in [
            (empty.to_vec(), trust(1), 1),
            (empty.to_vec(), trust(1), 0),
            (sign(&bytes, &[2]), trust(1), 1),
            (sign(&bytes, &[1]), TrustedKeys::new(), 0),
        ] {
            let error = open(&bytes, &signatures, &keys, required).unwrap_err();
            assert_eq!(code(error), Code::UntrustedSignature);
        }
    }

    #[test]
    fn signatures_count_once_a_key() {
        let (bytes, mut keys) = (manifest(), trust(1));
        keys.add(testing::public(&testing::key(2))).unwrap();
        let error = open(&bytes, &sign(&bytes, &[1, 1]), &keys, 2).unwrap_err();
        assert!(matches!(error, ManifestError::Untrusted { valid: 1, required: 2, .. }), "{error}");
        open(&bytes, &sign(&bytes, &[1, 2]), &keys, 2).unwrap();
        // A stranger's signature beside enough good ones does no harm.
        open(&bytes, &sign(&bytes, &[3, 1, 2]), &keys, 2).unwrap();
    }

    #[test]
    fn one_flipped_bit_anywhere_is_refused() {
        let bytes = manifest();
        let signatures = sign(&bytes, &[1]);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            let error = open(&flipped, &signatures, &trust(1), 1).unwrap_err();
            assert_eq!(code(error), Code::UntrustedSignature, "byte {at}");
        }
        let mut list = SignatureList::parse(&signatures).unwrap();
        for at in 0..64 {
            list.signatures[0].bytes[at] ^= 1;
            open(&bytes, &list.to_bytes().unwrap(), &trust(1), 1).unwrap_err();
            list.signatures[0].bytes[at] ^= 1;
        }
    }

    #[test]
    fn only_signed_bytes_reach_the_parser_of_the_manifest() {
        let error = open(b"{", &sign(b"other", &[1]), &trust(1), 1).unwrap_err();
        assert_eq!(code(error), Code::UntrustedSignature);
        let error = open(b"{", &sign(b"{", &[1]), &trust(1), 1).unwrap_err();
        assert!(matches!(error, ManifestError::Json(_)), "{error}");
    }

    #[test]
    fn caps_come_first() {
        let large = vec![b' '; MANIFEST_CAP + 1];
        let error = open(&large, &sign(&large, &[1]), &trust(1), 1).unwrap_err();
        assert!(matches!(error, ManifestError::TooLarge { member: "manifest.json", .. }));
        let error = open(&manifest(), &vec![b' '; SIGNATURES_CAP + 1], &trust(1), 1).unwrap_err();
        assert!(matches!(error, ManifestError::TooLarge { member: "manifest.sig", .. }));
    }

    #[test]
    fn signature_lists_are_strict() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"signatures":[],"x":1}"#,
            r#"{"signatures":[{"keyId":"0123456789abcdef","algorithm":"x","signature":"?"}]}"#,
            r#"{"signatures":[{"keyId":"0123456789abcdef","algorithm":"x"}]}"#,
            r#"{"signatures":[{"keyId":"0123456789ABCDEF","algorithm":"x","signature":""}]}"#,
            r#"{"signatures":[{"keyId":"0123456789abcdef","algorithm":"\u001b[2J","signature":""}]}"#,
        ] {
            let error = open(&manifest(), text.as_bytes(), &trust(1), 1).unwrap_err();
            assert_eq!(code(error), Code::MalformedBundle, "{text}");
        }
    }

    #[test]
    fn p256_takes_der_alone_and_under_its_own_name() {
        let (bytes, random) = (manifest(), SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair = |kind| EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random).unwrap();
        let (der, raw) = (pair(&ECDSA_P256_SHA256_ASN1_SIGNING), pair(&ECDSA_P256_SHA256_FIXED_SIGNING));
        let key = PublicKey::from_point(Algorithm::EcdsaP256Sha256, der.public_key().as_ref()).unwrap();
        let mut keys = TrustedKeys::new();
        keys.add(key.clone()).unwrap();
        let opens = |signature: Signature| {
            let list = SignatureList { signatures: vec![signature] };
            open(&bytes, &list.to_bytes().unwrap(), &keys, 1).is_ok()
        };
        let good = Signature::by(&key, der.sign(&random, &bytes).unwrap().as_ref().to_vec());
        assert!(opens(good.clone()));
        assert!(!opens(Signature { algorithm: "ed25519".into(), ..good }));
        assert!(!opens(Signature::by(&key, raw.sign(&random, &bytes).unwrap().as_ref().to_vec())));
    }

    /// Changes one field of a good manifest, signs the result, and returns what `open` says.
    fn changed(pointer: &str, value: Value) -> Result<Manifest, ManifestError> {
        let mut json: Value = serde_json::from_slice(&manifest()).unwrap();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[name] = value;
        let bytes = serde_json::to_vec(&json).unwrap();
        open(&bytes, &sign(&bytes, &[1]), &trust(1), 1)
    }

    #[test]
    fn every_rule_of_the_format_is_enforced() {
        for (pointer, value) in [
            ("/format", json!(0)),
            ("/format", json!(2)),
            ("/format", json!("1")),
            ("/surprise", json!(1)),
            ("/image/surprise", json!(1)),
            ("/image/chunking/surprise", json!(1)),
            ("/extensions", json!([])),
            ("/patches", json!({})),
            ("/patches", json!([{"baseSize": 4096}])),
            ("/compatible", json!("")),
            ("/compatible", json!("a b")),
            ("/compatible", json!("x".repeat(129))),
            ("/version", json!("-1")),
            ("/version", json!("1\n")),
            ("/version", json!("1/../2")),
            ("/version", json!("x".repeat(65))),
            ("/securityVersion", json!(-1)),
            ("/created", json!("yesterday")),
            ("/created", json!("1969-12-31T23:59:59Z")),
            ("/created", json!("9999-01-01T00:00:00Z")),
            ("/image/size", json!(0)),
            ("/image/size", json!(8191)),
            ("/image/size", json!(u64::MAX - 4095)),
            ("/image/sha256", json!("00")),
            ("/image/codec", json!("xz")),
            ("/image/payloadSize", json!(0)),
            ("/image/payloadSize", json!(PAYLOAD_CAP + 1)),
            ("/image/indexSize", json!(0)),
            ("/image/indexSize", json!(55)),
            ("/image/indexSize", json!(16)),
            ("/image/indexSize", json!(16 + 3 * 40)),
            ("/image/indexSize", json!(u64::MAX)),
            ("/image/chunking/algorithm", json!("")),
            ("/image/chunking/block", json!(512)),
            ("/image/chunking/min", json!(0)),
            ("/image/chunking/min", json!(6000)),
            ("/image/chunking/average", json!(0)),
            ("/image/chunking/max", json!(CHUNK_CAP + 4096)),
            ("/image/chunking/group", json!(CHUNK_CAP / 2)),
            ("/image/chunking/group", json!(CHUNK_CAP * 3)),
            ("/image/chunking/group", json!(2 * GROUP_CAP)),
        ] {
            let error = changed(pointer, value.clone()).unwrap_err();
            assert_eq!(code(error), Code::MalformedBundle, "{pointer} = {value}");
        }
    }

    #[test]
    fn extensions_and_foreign_chunkings_are_left_to_others() {
        changed("/extensions", json!({"later": {"anything": [1, 2]}})).unwrap();
        changed("/image/chunking/algorithm", json!("other-1")).unwrap();
    }

    #[test]
    fn a_newer_format_is_named_before_its_fields() {
        let bytes = br#"{"format": 2, "entirely": "different"}"#;
        let error = open(bytes, &sign(bytes, &[1]), &trust(1), 1).unwrap_err();
        assert!(matches!(error, ManifestError::Format(2)), "{error}");
    }
}
