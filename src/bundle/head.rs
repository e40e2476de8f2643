//! What the first bytes of a bundle hold: the manifest, its signatures, and the header of the index.

use super::error::BundleError;
use super::layout::Layout;
use super::members::{MEMBERS, slice, small};
use super::tar;
use crate::manifest::{Body, MANIFEST_CAP, SIGNATURES_CAP};

/// So many first bytes of a bundle always hold the manifest, its signatures and the header of the index.
pub const HEAD_MAX: usize = 3 * tar::BLOCK + MANIFEST_CAP + SIGNATURES_CAP;

/// What the first bytes of a bundle hold. Nothing of it is to be believed before `manifest::open`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    /// The exact bytes of `manifest.json`.
    pub manifest: &'a [u8],
    /// The exact bytes of `manifest.sig`.
    pub signatures: &'a [u8],
    /// Where the index begins in the file.
    index_offset: u64,
    /// What the tar header says of its size.
    index_size: u64,
}

/// Reads the head from the first bytes of a bundle.
///
/// `BundleError::Short` names a larger number of bytes to come back with, at most `HEAD_MAX`.
pub fn head(bytes: &[u8]) -> Result<Head<'_>, BundleError> {
    let [manifest, signatures, index, _] = MEMBERS;
    let (manifest, at) = small(bytes, 0, manifest, MANIFEST_CAP)?;
    let (signatures, at) = small(bytes, at, signatures, SIGNATURES_CAP)?;
    let index_size = tar::parse(slice(bytes, at, tar::BLOCK)?, index)?;
    let index_offset = at.saturating_add(tar::BLOCK) as u64;
    Ok(Head { manifest, signatures, index_offset, index_size })
}

impl Head<'_> {
    /// Places the members by the sizes that the manifest has; the index's own header must agree.
    pub fn layout(&self, manifest: &Body) -> Result<Layout, BundleError> {
        let (found, expected) = (self.index_size, manifest.image.index_size);
        if found != expected {
            return Err(BundleError::Size { member: MEMBERS[2], found, expected, rule: "signed" });
        }
        Ok(Layout::new(self.index_offset, manifest))
    }
}
