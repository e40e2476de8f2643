//! Signed bytes -> `Manifest`. Only `manifest::open` can make one, so that whoever holds a `Manifest` holds
//! something that enough trusted keys have signed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

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
#[serde(rename_all = "camelCase")]
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
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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

/// How the image was cut; the device needs only `max` (its buffer size), the rest is for rebuilding a
/// chunk map by scanning a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Chunking {
    /// `gear-4k`: content-defined, cut only at multiples of `block`.
    pub algorithm: String,
    pub block: u32,
    pub min: u32,
    pub average: u32,
    pub max: u32,
}
