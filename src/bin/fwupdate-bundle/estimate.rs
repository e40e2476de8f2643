//! `estimate`: what a device that runs OLD will download to install NEW.

use std::path::Path;

use fwupdate::bundle::Index;
use serde_json::json;

use crate::held::Held;
use crate::progress::size;
use crate::reader::Bundle;
use crate::{Answer, Result};

/// Compares chunk by chunk, and takes the patch from OLD if the bundle has one.
pub fn estimate(old: &Path, new: &Path) -> Result<Answer> {
    let new = Bundle::open(new)?;
    let index = new.index()?;
    let held = Held::of(old, &new.body.image.chunking)?;
    let mut missing: Vec<bool> =
        index.iter().map(|chunk| !index.is_zero(&chunk) && !held.chunks.contains(&chunk.digest)).collect();
    let present = index.iter().filter(|chunk| held.chunks.contains(&chunk.digest));
    let reused: u64 = present.map(|chunk| u64::from(chunk.length)).sum();
    let patch = take_patch(&new, &index, &held, &mut missing)?;
    let frames = plain(&index, &missing);
    let (head, bundle_size) = (new.layout.payload().start, new.layout.file_size());
    let download = head + frames + patch;
    let text = format!(
        "{} to download ({} of it for manifest and index, {} for a patch), of a bundle of {}; {} of the image are \
         there already",
        size(download),
        size(head),
        size(patch),
        size(bundle_size),
        size(reused),
    );
    let json = json!({
        "downloadBytes": download, "headBytes": head, "frameBytes": frames, "patchBytes": patch,
        "reusedBytes": reused, "imageSize": new.body.image.size, "bundleSize": bundle_size,
    });
    Ok(Answer { text, json })
}

/// Bytes of the plain frames of what is missing.
fn plain(index: &Index, missing: &[bool]) -> u64 {
    let wanted = index.iter().zip(missing).filter(|(_, missing)| **missing);
    wanted.map(|(chunk, _)| u64::from(chunk.frame_length)).sum()
}

/// Bytes of the patch's index and of its frames that pay; what those hold is then no longer `missing`.
fn take_patch(new: &Bundle, index: &Index, held: &Held, missing: &mut [bool]) -> Result<u64> {
    let Some(number) = new.body.patches.iter().position(|patch| patch.base_sha256 == held.sha256) else {
        return Ok(0);
    };
    let span = new.layout.patch_span(number).map_or(0, |span| span.end - span.start);
    if plain(index, missing) <= span {
        return Ok(0);
    }
    let mut bytes = span;
    for frame in new.patch_index(number, index)?.frames() {
        if frame.pays(index, |chunk| missing.get(chunk) == Some(&true)) {
            bytes += u64::from(frame.length);
            for (chunk, _) in frame.chunks(index) {
                missing.get_mut(chunk).into_iter().for_each(|missing| *missing = false);
            }
        }
    }
    Ok(bytes)
}
