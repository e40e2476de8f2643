//! The fields of `manifest.json`, and the rules that one manifest alone can break.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::digest::Digest;
use super::patch::{self, Patch};
use super::rules::{
    BLOCK, CHUNK_CAP, FORMAT, GROUP_CAP, INDEX_CAP, INDEX_RECORD, LIST_HEADER, MANIFEST_CAP, ManifestError,
    PAYLOAD_CAP, cap, ensure, word,
};

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
    /// How many chunks `rootfs.index` lists; `None` if no list has that size.
    pub fn chunks(&self) -> Option<u64> {
        let records = self.index_size.checked_sub(LIST_HEADER)?;
        (records % INDEX_RECORD == 0).then_some(records / INDEX_RECORD)
    }

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
        let fewest = self.size.div_ceil(u64::from(self.chunking.max));
        let possible = fewest..=self.size.div_ceil(block);
        ensure(self.chunks().is_some_and(|chunks| possible.contains(&chunks)), "image.indexSize", || {
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
