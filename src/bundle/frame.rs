//! One chunk's zstd frame -> the chunk, or an error: nothing leaves here that its digest does not vouch for.

use zstd_safe::DCtx;

use super::{BundleError, Chunk};
use crate::manifest::Digest;

/// Most bytes that the frame of a chunk of `length` bytes may have (`ZSTD_COMPRESSBOUND`).
pub fn frame_bound(length: u32) -> u64 {
    let length = u64::from(length);
    let margin = if length < 128 * 1024 { (128 * 1024 - length) >> 11 } else { 0 };
    length + (length >> 8) + margin
}

/// Unpacks and verifies chunks; keep one a thread.
pub struct Decoder(DCtx<'static>);

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    pub fn new() -> Decoder {
        Decoder(DCtx::create())
    }

    /// Unpacks `frame` into `out`, which must have exactly the chunk's length, and compares digests. After an
    /// error the content of `out` is worthless.
    pub fn decode(&mut self, frame: &[u8], chunk: &Chunk, out: &mut [u8]) -> Result<(), BundleError> {
        let bad = |reason| BundleError::Chunk { offset: chunk.offset, reason };
        // One frame and nothing else: libzstd would accept several, and skippable ones.
        if zstd_safe::find_frame_compressed_size(frame) != Ok(frame.len()) {
            return Err(bad("it is not one whole zstd frame"));
        }
        let length = self.0.decompress(out, frame).map_err(|_| bad("its frame can't be unpacked"))?;
        if length != out.len() || u64::from(chunk.length) != length as u64 {
            return Err(bad("it has another length"));
        }
        if Digest::of(out) != chunk.sha256 {
            return Err(bad("its SHA-256 differs"));
        }
        Ok(())
    }
}
