//! Blocks of a group's zstd frame -> chunks, or an error: nothing leaves here that its digest does not vouch
//! for.
//!
//! A chunk is one zstd block that uses neither tables nor repeated offsets of earlier blocks, only their
//! content, which the device has from wherever it has it. So a run of chunks is decoded as a frame of its
//! own, with what lies before it in the group as prefix.

use zstd_safe::DCtx;

use super::chunk::{Chunk, ChunkDigest};
use super::error::BundleError;

/// Bytes of a group's frame header; they belong to the group's first chunk.
pub const FRAME_HEADER: usize = 9;
pub const BLOCK_HEADER: usize = 3;

/// Most bytes that a chunk of `length` bytes may have in the payload: stored as it is.
pub fn frame_bound(length: u32, first: bool) -> u64 {
    let header = if first { FRAME_HEADER } else { 0 };
    u64::from(length).saturating_add(BLOCK_HEADER.saturating_add(header) as u64)
}

/// The header of a frame with `length` bytes of content (RFC 8878, 3.1.1.1): one segment, its size in four
/// bytes, no dictionary, no checksum.
pub fn frame_header(length: u32) -> [u8; FRAME_HEADER] {
    let [a, b, c, d] = length.to_le_bytes();
    [0x28, 0xb5, 0x2f, 0xfd, 0xa0, a, b, c, d]
}

/// Unpacks and verifies chunks; keep one a thread.
#[derive(Debug, Default)]
pub struct Decoder {
    frame: Vec<u8>,
}

impl Decoder {
    /// Unpacks a run of neighbouring chunks of one group into `out`, which must have exactly their length,
    /// and compares their digests. `history` is the group's content from its start to the run. After an error
    /// the content of `out` is worthless.
    pub fn decode(
        &mut self,
        run: &[(Chunk, &[u8])],
        history: &[u8],
        out: &mut [u8],
    ) -> Result<(), BundleError> {
        let Some((first, _)) = run.first() else { return Ok(()) };
        let bad = |chunk: &Chunk, reason| BundleError::Chunk { offset: chunk.offset, reason };
        if first.offset.checked_sub(first.group_offset) != Some(history.len() as u64) {
            return Err(bad(first, "what lies before it is missing"));
        }
        let length: u64 = run.iter().map(|(chunk, _)| u64::from(chunk.length)).sum();
        if length != out.len() as u64 || length > u64::from(u32::MAX) {
            return Err(bad(first, "it has another length"));
        }
        let packed: usize = run.iter().map(|(_, bytes)| bytes.len()).sum();
        self.frame.clear();
        self.frame.reserve_exact(packed.saturating_add(FRAME_HEADER));
        self.frame.extend_from_slice(&frame_header(length as u32));
        for (at, (chunk, bytes)) in run.iter().enumerate() {
            let block = block_of(chunk, bytes).map_err(|reason| bad(chunk, reason))?;
            let start = self.frame.len();
            self.frame.extend_from_slice(block);
            if let Some(flags) = self.frame.get_mut(start) {
                *flags = *flags & !1 | u8::from(at.saturating_add(1) == run.len());
            }
        }
        if !unpack(&self.frame, history, out) {
            return Err(bad(first, "it can't be unpacked"));
        }
        verify(run.iter().map(|(chunk, _)| chunk), out)
    }

    /// Unpacks a frame of a patch behind its prefix into `out`, which must have exactly the chunks' length, and
    /// compares their digests. After an error the content of `out` is worthless.
    pub fn patch(
        &mut self,
        frame: &[u8],
        prefix: &[u8],
        chunks: &[Chunk],
        out: &mut [u8],
    ) -> Result<(), BundleError> {
        let Some(first) = chunks.first() else { return Ok(()) };
        let bad = |reason| BundleError::Chunk { offset: first.offset, reason };
        let length: u64 = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
        if length != out.len() as u64 {
            return Err(bad("its patch has another length"));
        }
        if zstd_safe::find_frame_compressed_size(frame) != Ok(frame.len()) {
            return Err(bad("its patch is not one whole zstd frame"));
        }
        if !unpack(frame, prefix, out) {
            return Err(bad("its patch can't be unpacked"));
        }
        verify(chunks, out)
    }
}

/// Fills `out` with what `frame` holds behind `prefix`.
fn unpack(frame: &[u8], prefix: &[u8], out: &mut [u8]) -> bool {
    // A context keeps its prefix for as long as it lives.
    let mut context = DCtx::create();
    context.ref_prefix(prefix).and_then(|_| context.decompress(out, frame)) == Ok(out.len())
}

/// Compares the digests of chunks that lie one after the other in `content`.
pub fn verify<'a>(chunks: impl IntoIterator<Item = &'a Chunk>, content: &[u8]) -> Result<(), BundleError> {
    let mut rest = content;
    for chunk in chunks {
        let (own, after) = rest.split_at((chunk.length as usize).min(rest.len()));
        if ChunkDigest::of(own) != chunk.digest {
            return Err(BundleError::Chunk { offset: chunk.offset, reason: "its SHA-256 differs" });
        }
        rest = after;
    }
    Ok(())
}

/// The chunk's block in its bytes of the payload, which must be that block and nothing else.
fn block_of<'a>(chunk: &Chunk, bytes: &'a [u8]) -> Result<&'a [u8], &'static str> {
    let block = match chunk.offset == chunk.group_offset {
        false => bytes,
        true => match bytes.split_first_chunk::<FRAME_HEADER>() {
            Some(([0x28, 0xb5, 0x2f, 0xfd, 0xa0, ..], block)) => block,
            _ => return Err("its group does not begin with a frame header"),
        },
    };
    let Some(([a, b, c], content)) = block.split_first_chunk::<BLOCK_HEADER>() else {
        return Err("its block is too short");
    };
    let header = u32::from_le_bytes([*a, *b, *c, 0]);
    // RFC 8878, 3.1.1.2: last block, type, size. A block of type 1 is one byte, repeated.
    let (kind, size) = (header >> 1 & 3, header >> 3);
    let stored = if kind == 1 { 1 } else { size as usize };
    match kind != 3 && content.len() == stored {
        true => Ok(block),
        false => Err("it is not one whole zstd block"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::group;
    use super::*;

    fn chunks(data: &[u8], lengths: &[usize]) -> Vec<(Chunk, Vec<u8>)> {
        let mut at = 0;
        let blocks = group(data, lengths);
        let chunk = |(length, block): (&usize, Vec<u8>)| {
            let (offset, digest) = (at as u64, ChunkDigest::of(&data[at..at + length]));
            at += length;
            let chunk = Chunk {
                offset,
                group_offset: 0,
                length: *length as u32,
                frame_offset: 0,
                frame_length: block.len() as u32,
                digest,
            };
            (chunk, block)
        };
        lengths.iter().zip(blocks).map(chunk).collect()
    }

    fn data() -> Vec<u8> {
        (0..16384u32).map(|n| (n * n / 7) as u8).collect()
    }

    fn run(chunks: &[(Chunk, Vec<u8>)]) -> Vec<(Chunk, &[u8])> {
        chunks.iter().map(|(chunk, block)| (*chunk, block.as_slice())).collect()
    }

    #[test]
    fn any_run_of_a_group_unpacks_behind_what_precedes_it() {
        let data = data();
        let chunks = chunks(&data, &[4096, 8192, 4096]);
        let ends = [0, 4096, 12288, 16384];
        for start in 0..3 {
            for end in start + 1..=3 {
                let (from, to) = (ends[start], ends[end]);
                let mut out = vec![0; to - from];
                let mut decoder = Decoder::default();
                decoder.decode(&run(&chunks[start..end]), &data[..from], &mut out).unwrap();
                assert_eq!(out, data[from..to]);
                if from > 0 {
                    assert!(decoder.decode(&run(&chunks[start..end]), &data[1..from], &mut out).is_err());
                }
            }
        }
        let whole: Vec<u8> = chunks.iter().flat_map(|(_, block)| block.clone()).collect();
        let mut out = vec![0; data.len()];
        DCtx::create().decompress(&mut out[..], &whole).unwrap();
        assert_eq!(out, data);
    }

    #[test]
    fn no_flipped_or_missing_byte_gets_through() {
        let data = data();
        let (all, mut out) = (chunks(&data, &[4096, 12288]), vec![0; 12288]);
        let (chunk, block) = &all[1];
        let mut decoder = Decoder::default();
        for at in 0..block.len() {
            let mut flipped = block.clone();
            flipped[at] ^= 0x10;
            if decoder.decode(&[(*chunk, &flipped)], &data[..4096], &mut out).is_ok() {
                assert_eq!(out, data[4096..], "byte {at}");
            }
            assert!(
                decoder.decode(&[(*chunk, &block[..at])], &data[..4096], &mut out).is_err(),
                "cut at {at}"
            );
        }
        decoder.decode(&[(*chunk, block)], &data[..4096], &mut out).unwrap();
        assert_eq!(out, data[4096..]);
    }

    #[test]
    fn what_is_not_one_block_of_the_right_content_is_refused() {
        let (data, mut out, mut decoder) = (vec![5; 8192], vec![0; 8192], Decoder::default());
        let (chunk, block) = chunks(&data, &[8192]).remove(0);
        let other = |data: &[u8]| chunks(data, &[data.len()]).remove(0).1;
        for bytes in [
            other(&[6; 8192]),
            other(&[5; 4096]),
            other(&[5; 12288]),
            [block.clone(), vec![0]].concat(),
            [block.clone(), block.clone()].concat(),
            block[FRAME_HEADER..].to_vec(),
            block[..FRAME_HEADER].to_vec(),
            vec![],
        ] {
            assert!(decoder.decode(&[(chunk, &bytes)], &[], &mut out).is_err());
        }
        assert!(decoder.decode(&[(chunk, &block)], &[], &mut out[..4096]).is_err());
        assert!(decoder.decode(&[(chunk, &block)], &[0], &mut out).is_err());
        decoder.decode(&[(chunk, &block)], &[], &mut out).unwrap();
    }

    #[test]
    fn a_patch_unpacks_behind_its_own_prefix_alone() {
        let data = data();
        let (prefix, content) = data.split_at(8192);
        let run: Vec<Chunk> = chunks(content, &[4096, 4096]).into_iter().map(|(chunk, _)| chunk).collect();
        let frame = super::super::testing::patch_frame(content, prefix);
        let (mut out, mut decoder) = (vec![0; 8192], Decoder::default());
        decoder.patch(&frame, prefix, &run, &mut out).unwrap();
        assert_eq!(out, content);
        let double = [frame.as_slice(), &frame].concat();
        let short = super::super::testing::patch_frame(&content[..4096], prefix);
        for (bytes, before, chunks, length) in [
            (&frame, &prefix[..8191], &run[..], 8192),
            (&frame, &[][..], &run[..], 8192),
            (&frame, prefix, &run[..1], 8192),
            (&frame, prefix, &run[..1], 4096),
            (&frame, prefix, &run[..], 4096),
            (&short, prefix, &run[..], 8192),
            (&double, prefix, &run[..], 8192),
            (&vec![], prefix, &run[..], 8192),
        ] {
            assert!(decoder.patch(bytes, before, chunks, &mut out[..length]).is_err());
        }
        for at in 0..frame.len() {
            assert!(decoder.patch(&frame[..at], prefix, &run, &mut out).is_err(), "cut at {at}");
            let mut flipped = frame.clone();
            flipped[at] ^= 0x10;
            if decoder.patch(&flipped, prefix, &run, &mut out).is_ok() {
                assert_eq!(out, content, "byte {at}");
            }
        }
    }
}
