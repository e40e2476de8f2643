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

#[cfg(test)]
mod tests {
    use super::*;

    fn compress(data: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(zstd_safe::compress_bound(data.len()));
        zstd_safe::compress(&mut frame, data, 3).unwrap();
        frame
    }

    fn chunk(data: &[u8]) -> Chunk {
        let length = data.len() as u32;
        Chunk { offset: 0, length, frame_offset: 0, frame_length: 0, sha256: Digest::of(data) }
    }

    #[test]
    fn the_bound_is_that_of_libzstd() {
        for length in [1, 4096, 65536, 131_071, 131_072, 262_144, 1 << 20] {
            assert_eq!(frame_bound(length), zstd_safe::compress_bound(length as usize) as u64);
        }
    }

    #[test]
    fn no_flipped_or_missing_byte_gets_through() {
        let data: Vec<u8> = (0..4096u32).map(|n| (n * n / 7) as u8).collect();
        let (frame, chunk, mut out) = (compress(&data), chunk(&data), vec![0; 4096]);
        let mut decoder = Decoder::new();
        for at in 0..frame.len() {
            let mut flipped = frame.clone();
            flipped[at] ^= 0x10;
            // A flip that changes nothing in the output (an unused header bit) would be harmless.
            if decoder.decode(&flipped, &chunk, &mut out).is_ok() {
                assert_eq!(out, data, "byte {at}");
            }
            assert!(decoder.decode(&frame[..at], &chunk, &mut out).is_err(), "cut at {at}");
        }
        decoder.decode(&frame, &chunk, &mut out).unwrap();
        assert_eq!(out, data);
    }

    #[test]
    fn frames_of_other_content_length_or_number_are_refused() {
        let (data, mut out, mut decoder) = ([5; 8192], vec![0; 8192], Decoder::new());
        let chunk = chunk(&data);
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        for frame in [
            compress(&[6; 8192]),
            compress(&[5; 4096]),
            compress(&[5; 12288]),
            [compress(&data[..4096]), compress(&data[..4096])].concat(),
            [compress(&data), skippable.to_vec()].concat(),
            [skippable.to_vec(), compress(&data)].concat(),
            skippable.to_vec(),
            vec![],
        ] {
            assert!(decoder.decode(&frame, &chunk, &mut out).is_err());
        }
        assert!(decoder.decode(&compress(&data), &chunk, &mut out[..4096]).is_err());
        decoder.decode(&compress(&data), &chunk, &mut out).unwrap();
    }
}
