//! Signed bytes -> `Manifest`. Only `manifest::open` can make one, so that whoever holds a `Manifest` holds
//! something that enough trusted keys have signed.
//!
//! The order is the point: caps, then signatures over the exact bytes, then JSON. Nobody without a trusted
//! key reaches the parser of the manifest.

mod body;
mod digest;
mod keys;
mod patch;
mod rules;
mod signatures;
#[cfg(test)]
mod tests;

use std::ops::Deref;

use rules::cap;

pub use body::{Body, Chunking, Image};
pub use digest::Digest;
pub use keys::{Algorithm, KeyError, KeyId, PublicKey, TrustedKeys};
pub use patch::{PATCH_INDEX_CAP, PATCHES_CAP, Patch};
pub use rules::{
    BLOCK, CHUNK_CAP, FORMAT, GROUP_CAP, INDEX_CAP, INDEX_RECORD, LIST_HEADER, MANIFEST_CAP, ManifestError,
    PAYLOAD_CAP, SIGNATURES_CAP,
};
pub use signatures::{Signature, SignatureList};

/// What a bundle says of itself, after its signatures were found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// SHA-256 of the exact bytes of `manifest.json`: what `manifestSha256` pins.
    digest: Digest,
    body: Body,
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
}

impl Deref for Manifest {
    type Target = Body;

    fn deref(&self) -> &Body {
        &self.body
    }
}
