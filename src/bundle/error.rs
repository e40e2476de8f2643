//! Why bytes are no bundle, or not the one that was signed, in sentences that say what to do.

use crate::failure::{Code, Failure};

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not an error while more bytes can be read.
    #[error("the bundle ends too early: {need} bytes are needed; build or upload it again")]
    Short { need: u64 },
    #[error("this is no bundle: `{member}` should come here, but {reason}; build it with fwupdate-bundle")]
    Header { member: &'static str, reason: &'static str },
    #[error("`{member}` has {found} bytes in the bundle, but {expected} are {rule}; build the bundle again")]
    Size { member: &'static str, found: u64, expected: u64, rule: &'static str },
    #[error("the bundle has stray bytes after `{member}`; build it again")]
    Padding { member: &'static str },
    #[error("`{member}` is not what was signed (its SHA-256 differs); build or upload the bundle again")]
    Digest { member: &'static str },
    #[error("the chunk index is inconsistent: {reason}; build the bundle again")]
    Index { reason: &'static str },
    #[error("the patch index is inconsistent: {reason}; build the bundle again")]
    Patch { reason: &'static str },
    #[error("the chunk at byte {offset} of the image is damaged: {reason}; upload the bundle again")]
    Chunk { offset: u64, reason: &'static str },
}

impl From<BundleError> for Failure {
    fn from(error: BundleError) -> Failure {
        let code = match error {
            BundleError::Digest { .. } | BundleError::Chunk { .. } => Code::DigestMismatch,
            _ => Code::MalformedBundle,
        };
        Failure::new(code, error.to_string())
    }
}
