//! The limits of the format, and the error that says which of its rules does not hold.

use crate::failure::{Code, Failure};

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
/// Bytes of the header of a binary list in a bundle.
pub const LIST_HEADER: u64 = 16;
/// Bytes that `rootfs.index` has for each chunk.
pub const INDEX_RECORD: u64 = 20;

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

pub(super) fn cap(member: &'static str, bytes: &[u8], cap: usize) -> Result<(), ManifestError> {
    if bytes.len() > cap {
        return Err(ManifestError::TooLarge { member, size: bytes.len(), cap });
    }
    Ok(())
}

pub(super) fn ensure(
    holds: bool,
    field: &'static str,
    reason: impl FnOnce() -> String,
) -> Result<(), ManifestError> {
    if holds { Ok(()) } else { Err(ManifestError::Field { field, reason: reason() }) }
}

pub(super) fn word(field: &'static str, text: &str, longest: usize) -> Result<(), ManifestError> {
    ensure(is_word(text, longest), field, || {
        format!("it must be 1 to {longest} letters, digits or any of `._,+:~-`, the first a letter or digit")
    })
}

/// A word of letters, digits and `. _ , + : ~ -` that begins with a letter or digit: safe in a log, a path,
/// a shell and a boot environment.
pub(super) fn is_word(text: &str, longest: usize) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "._,+:~-".contains(c);
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    first && text.len() <= longest && text.chars().all(good)
}
