//! `estimate`: what a device that runs OLD will download to install NEW.

use std::path::Path;

use fwupdate::bundle::Chunk;
use fwupdate::cli::amount::size;
use fwupdate::stage::cost;
use serde_json::json;

use crate::held::OldImage;
use crate::output::{Output, Result};
use crate::reader::BundleFile;

/// Compares chunk by chunk, and takes the patch from OLD if the bundle has one.
pub fn estimate(old: &Path, new: &Path) -> Result<Output> {
    let new = BundleFile::open(new)?;
    let index = new.index()?;
    let held = OldImage::of(old, &new.body.image.chunking)?;
    let has = |chunk: &Chunk| held.chunks.contains(&chunk.digest);
    let patch = new.body.patches.iter().position(|patch| patch.base_sha256 == held.sha256);
    let cost = cost(&new.layout, &index, has, patch, |number| new.patch_index(number, &index))?;
    let reused: u64 = index.iter().filter(has).map(|chunk| u64::from(chunk.length)).sum();
    let bundle_size = new.layout.file_size();
    let text = format!(
        "{} to download ({} of it for manifest and index, {} for a patch), of a bundle of {}; {} of the image are \
         there already",
        size(cost.total()),
        size(cost.head),
        size(cost.patch),
        size(bundle_size),
        size(reused),
    );
    let json = json!({
        "downloadBytes": cost.total(), "headBytes": cost.head, "frameBytes": cost.frames,
        "patchBytes": cost.patch, "reusedBytes": reused, "imageSize": new.body.image.size,
        "bundleSize": bundle_size,
    });
    Ok(Output { text, json })
}
