//! `estimate`: what a device that runs OLD will download to install NEW.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use fwupdate::bundle::ChunkDigest;
use fwupdate::bundle::chunker::Chunker;
use fwupdate::failure::{Code, Failure};
use fwupdate::manifest::{BLOCK, Chunking};
use serde_json::json;

use crate::progress::size;
use crate::reader::Bundle;
use crate::{Answer, Result, files};

/// Compares chunk by chunk.
pub fn estimate(old: &Path, new: &Path) -> Result<Answer> {
    let new = Bundle::open(new)?;
    let index = new.index()?;
    let held = if is_bundle(old)? { listed(old)? } else { scanned(old, &new.body.image.chunking)? };
    let download = new.layout.download_bytes(&index, |chunk| held.contains(&chunk.digest));
    let reused: u64 = index.iter().filter(|c| held.contains(&c.digest)).map(|c| u64::from(c.length)).sum();
    let (head, bundle_size) = (new.layout.head_bytes(), new.layout.file_size());
    let text = format!(
        "{} to download ({} of it for manifest and index), of a bundle of {}; {} of the image are there already",
        size(download),
        size(head),
        size(bundle_size),
        size(reused),
    );
    let json = json!({
        "downloadBytes": download, "headBytes": head, "frameBytes": download - head,
        "reusedBytes": reused, "imageSize": new.body.image.size, "bundleSize": bundle_size,
    });
    Ok(Answer { text, json })
}

/// A bundle begins with a ustar header; no file system does.
fn is_bundle(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(512).read_to_end(&mut start)).map_err(files::at(path))?;
    Ok(start.get(257..262) == Some(b"ustar"))
}

/// The chunks that a bundle lists.
fn listed(path: &Path) -> Result<HashSet<ChunkDigest>> {
    Ok(Bundle::open(path)?.index()?.iter().map(|chunk| chunk.digest).collect())
}

/// The chunks of a plain image when it is cut by these rules.
fn scanned(path: &Path, chunking: &Chunking) -> Result<HashSet<ChunkDigest>> {
    let mut cutter = Chunker::new(chunking).ok_or_else(|| {
        let message =
            "the new bundle is cut by rules that this release does not know; use a newer fwupdate-bundle";
        Failure::new(Code::MalformedBundle, message)
    })?;
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(files::at(path))?);
    let (mut chunk, mut held, mut block) = (Vec::new(), HashSet::new(), [0; BLOCK as usize]);
    while fill(&mut reader, &mut block).map_err(files::at(path))? {
        chunk.extend_from_slice(&block);
        if let Some(length) = cutter.push(&block) {
            let rest = chunk.split_off((length as usize).min(chunk.len()));
            held.insert(ChunkDigest::of(&std::mem::replace(&mut chunk, rest)));
        }
    }
    held.insert(ChunkDigest::of(&chunk));
    Ok(held)
}

/// Reads the next block; `false` at the end of the image.
fn fill(reader: &mut impl Read, block: &mut [u8]) -> std::io::Result<bool> {
    let mut have = 0;
    while let Some(space) = block.get_mut(have..).filter(|space| !space.is_empty()) {
        match reader.read(space) {
            Ok(0) if have == 0 => return Ok(false),
            Ok(0) => {
                return Err(std::io::Error::other("its size is no multiple of 4096; name a whole image"));
            }
            Ok(read) => have += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
