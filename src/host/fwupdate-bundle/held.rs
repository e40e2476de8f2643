//! What an old image holds: the digests of its chunks when it is cut by a new bundle's rules, as a device does.

use std::collections::HashSet;
use std::io::{BufReader, Read};
use std::path::Path;

use fwupdate::bundle::ChunkDigest;
use fwupdate::bundle::chunker::Cutter;
use fwupdate::failure::{Code, Failure};
use fwupdate::manifest::{BLOCK, Chunking, Digest};
use sha2::Digest as _;

use crate::files;
use crate::output::Result;
use crate::progress::ProgressLine;
use crate::reader::BundleFile;

pub struct OldImage {
    pub sha256: Digest,
    pub size: u64,
    pub chunks: HashSet<ChunkDigest>,
}

impl OldImage {
    /// Of a bundle, which lists its chunks, or of a plain image.
    pub fn of(path: &Path, chunking: &Chunking) -> Result<OldImage> {
        if !is_bundle(path)? {
            return OldImage::of_image(path, chunking, |_| {});
        }
        let bundle = BundleFile::open(path)?;
        let chunks = bundle.index()?.iter().map(|chunk| chunk.digest).collect();
        let image = &bundle.body.image;
        Ok(OldImage { sha256: image.sha256, size: image.size, chunks })
    }

    /// Cuts a plain image; `also` sees it block by block.
    pub fn of_image(path: &Path, chunking: &Chunking, mut also: impl FnMut(&[u8])) -> Result<OldImage> {
        let mut cutter = Cutter::new(chunking).ok_or_else(|| {
            let message =
                "the new bundle is cut by rules that this release does not know; use a newer fwupdate-bundle";
            Failure::new(Code::MalformedBundle, message)
        })?;
        let file = files::open(path)?;
        let size = files::size(&file).map_err(files::at(path))?;
        if size % u64::from(BLOCK) != 0 {
            let what = "its size is no multiple of 4096; name a whole image";
            return Err(files::wrong(Code::Internal, path, what));
        }
        let mut progress = ProgressLine::new("Reading", size);
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let (mut hash, mut chunks, mut block) = (sha2::Sha256::new(), HashSet::new(), [0; BLOCK as usize]);
        for at in (0..size).step_by(BLOCK as usize) {
            progress.at(at);
            reader.read_exact(&mut block).map_err(files::at(path))?;
            hash.update(block);
            also(&block);
            cutter.push(&block, |chunk| {
                chunks.insert(ChunkDigest::of(chunk));
            });
        }
        chunks.extend(cutter.finish().map(|rest| ChunkDigest::of(&rest)));
        Ok(OldImage { sha256: Digest(hash.finalize().into()), size, chunks })
    }
}

/// A bundle begins with the ustar header of its manifest; no file system does.
pub fn is_bundle(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    files::open(path)?.take(512).read_to_end(&mut start).map_err(files::at(path))?;
    Ok(start.starts_with(b"manifest.json\0") && start.get(257..262) == Some(b"ustar"))
}
