//! Signed bytes -> `Manifest`. Only `manifest::open` can make one, so that whoever holds a `Manifest` holds
//! something that enough trusted keys have signed.
//!
//! The order is the point: caps, then signatures over the exact bytes, then JSON. Nobody without a trusted
//! key reaches the parser of the manifest.

mod keys;
mod signatures;

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::failure::{Code, Failure};

pub use keys::{Algorithm, KeyError, KeyId, PublicKey, TrustedKeys};
pub use signatures::{Signature, SignatureList};

/// Most bytes that `manifest.json` may have.
pub const MANIFEST_CAP: usize = 64 * 1024;
/// Most bytes that `manifest.sig` may have.
pub const SIGNATURES_CAP: usize = 16 * 1024;
/// The only `format` that this release reads and writes.
pub const FORMAT: u32 = 1;
/// The grain of an image: its size and every chunk are multiples of it. Bytes.
pub const BLOCK: u32 = 4096;
/// Largest `chunking.max`, so that the device's buffers stay small. Bytes.
pub const CHUNK_CAP: u32 = 1024 * 1024;
/// Most bytes that `rootfs.index` may have.
pub const INDEX_CAP: u64 = 32 * 1024 * 1024;
/// Most bytes that `rootfs.zst` may have: what eleven octal digits of a ustar header can say.
pub const PAYLOAD_CAP: u64 = 0o777_7777_7777;

/// A SHA-256 digest; written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        use sha2::Digest as _;
        Digest(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = &'static str;

    /// Takes 64 hex digits of either case.
    fn from_str(text: &str) -> Result<Digest, &'static str> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
        let bytes: Option<[u8; 32]> = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Digest).ok_or("a SHA-256 digest is 64 hex digits")
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

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

/// How the image was cut, in bytes; the device needs only `max` (its buffer size), the rest is for rebuilding
/// a chunk map by scanning a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Chunking {
    /// `cdc-4k` is `bundle::chunker`; a device takes any other name too, but can't scan a slot with it.
    pub algorithm: String,
    pub block: u32,
    pub min: u32,
    pub average: u32,
    pub max: u32,
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
    cap("manifest.sig", signatures, SIGNATURES_CAP)?;
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
        word("compatible", &self.compatible, 128)?;
        word("version", &self.version, 64)?;
        let created = self.created.unix_timestamp();
        ensure((0..=0o777_7777_7777).contains(&created), "created", || "it must lie in 1970 to 2242".into())?;
        self.image.validate()
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
        ensure(self.size > 0 && self.size % block == 0, "image.size", || {
            format!("{} is no positive multiple of {BLOCK}", self.size)
        })?;
        ensure(self.codec == "zstd", "image.codec", || "only `zstd` is known".into())?;
        ensure((1..=PAYLOAD_CAP).contains(&self.payload_size), "image.payloadSize", || {
            format!("it must lie in 1 to {PAYLOAD_CAP}")
        })?;
        ensure(self.index_size <= INDEX_CAP, "image.indexSize", || format!("the limit is {INDEX_CAP}"))?;
        let chunks = crate::bundle::chunks_in(self.index_size);
        let fewest = self.size.div_ceil(u64::from(self.chunking.max));
        let possible = fewest..=self.size / block;
        ensure(chunks.is_some_and(|chunks| possible.contains(&chunks)), "image.indexSize", || {
            format!("{} bytes can't index this image", self.index_size)
        })
    }
}

impl Chunking {
    fn validate(&self) -> Result<(), ManifestError> {
        word("image.chunking.algorithm", &self.algorithm, 32)?;
        ensure(self.block == BLOCK, "image.chunking.block", || format!("it must be {BLOCK}"))?;
        let sizes = [self.min, self.average, self.max];
        let ordered = self.min > 0 && self.min <= self.average && self.average <= self.max;
        let whole = sizes.iter().all(|size| size % BLOCK == 0);
        ensure(ordered && whole && self.max <= CHUNK_CAP, "image.chunking", || {
            format!("min, average and max must be ascending multiples of {BLOCK} up to {CHUNK_CAP}")
        })
    }
}

fn ensure(holds: bool, field: &'static str, reason: impl FnOnce() -> String) -> Result<(), ManifestError> {
    if holds { Ok(()) } else { Err(ManifestError::Field { field, reason: reason() }) }
}

/// A word of letters, digits and `. _ , + : ~ -` that begins with a letter or digit: safe in a log, a path,
/// a shell and a boot environment.
fn word(field: &'static str, text: &str, longest: usize) -> Result<(), ManifestError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._,+:~-".contains(c);
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    ensure(first && text.len() <= longest && text.chars().all(good), field, || {
        format!("it must be 1 to {longest} letters, digits or any of `._,+:~-`, the first a letter or digit")
    })
}
