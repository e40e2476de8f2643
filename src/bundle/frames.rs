//! The frames of a patch as `patch-N.index` lists them: read one by one, and written one by one.

use std::ops::Range;

use super::chunk::Chunk;
use super::index::Index;
use super::list;
use crate::manifest::{BLOCK, Digest, PATCH_INDEX_CAP};

const MAGIC: &[u8; 8] = b"fwupatch";
const DIGEST: usize = 8;

/// Most bytes that one frame may unpack to: what a device has in memory, and loses when it is interrupted.
pub const OUTPUT_CAP: usize = 1 << 20;
/// Most bytes of the base that one frame may want before it.
pub const PREFIX_CAP: usize = 2 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchFrame {
    /// The chunks that it holds, in this order: ranges of their numbers in `rootfs.index`, ascending.
    pub chunks: Vec<Range<u32>>,
    /// The blocks (of 4096 bytes) of the base that make its prefix, ascending.
    pub blocks: Vec<Range<u32>>,
    /// Where it lies in `patch-N.zst`, bytes.
    pub offset: u64,
    pub length: u32,
    /// The first bytes of the prefix's SHA-256: a device asks before it fetches, as its slot may have changed.
    pub prefix: PrefixDigest,
}

/// The first 8 bytes of the SHA-256 of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixDigest(pub [u8; DIGEST]);

impl PrefixDigest {
    pub fn of(prefix: &[u8]) -> PrefixDigest {
        PrefixDigest(Digest::of(prefix).first())
    }
}

impl PatchFrame {
    pub fn chunks<'a>(&'a self, index: &'a Index) -> impl Iterator<Item = (usize, Chunk)> + 'a {
        self.chunks.iter().flat_map(|range| {
            let numbers = range.start as usize..range.end as usize;
            numbers.clone().zip(index.from(numbers.start))
        })
    }

    pub fn prefix_length(&self) -> usize {
        let blocks = self.blocks.iter().map(|range| range.end.saturating_sub(range.start) as usize);
        blocks.fold(0, usize::saturating_add).saturating_mul(BLOCK as usize)
    }

    /// Whether it is shorter than the plain blocks of those of its chunks that are `missing`.
    pub fn pays(&self, index: &Index, missing: impl Fn(usize) -> bool) -> bool {
        let wanted = self.chunks(index).filter(|(number, _)| missing(*number));
        let plain: u64 = wanted.map(|(_, chunk)| u64::from(chunk.frame_length)).sum();
        u64::from(self.length) < plain
    }
}

/// Reads frame by frame; ends early at what is no frame.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Frames to come.
    left: u32,
    /// Where the chunks of the frames so far end.
    chunk: u32,
    offset: u64,
}

impl Reader<'_> {
    /// `None` if the header is not ours.
    pub(super) fn new(bytes: &[u8]) -> Option<Reader<'_>> {
        let (left, rest) = list::read(bytes, MAGIC)?;
        Some(Reader { rest, left, chunk: 0, offset: 0 })
    }

    /// A number in groups of seven bits, the low ones first; the top bit says that more follow.
    fn number(&mut self) -> Option<u32> {
        let mut number = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(number).ok();
            }
        }
        None
    }

    /// At least one range, each by its distance from the one before and its length; of at most `most` in all.
    fn ranges(&mut self, mut end: u32, most: usize) -> Option<Vec<Range<u32>>> {
        let (count, mut left) = (self.number()? as usize, most);
        if count == 0 || count > most {
            return None;
        }
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            let start = end.checked_add(self.number()?)?;
            let length = self.number()?;
            left = left.checked_sub(length as usize)?;
            end = start.checked_add(length).filter(|end| *end > start)?;
            ranges.push(start..end);
        }
        Some(ranges)
    }

    pub(super) fn is_done(&self) -> bool {
        self.left == 0 && self.rest.is_empty()
    }
}

impl Iterator for Reader<'_> {
    type Item = PatchFrame;

    fn next(&mut self) -> Option<PatchFrame> {
        let left = self.left.checked_sub(1)?;
        let chunks = self.ranges(self.chunk, OUTPUT_CAP.div_ceil(BLOCK as usize))?;
        let blocks = self.ranges(0, PREFIX_CAP.div_ceil(BLOCK as usize))?;
        let length = self.number()?;
        let (prefix, rest) = self.rest.split_first_chunk::<DIGEST>()?;
        let frame = PatchFrame { offset: self.offset, length, prefix: PrefixDigest(*prefix), chunks, blocks };
        (self.rest, self.left) = (rest, left);
        self.chunk = frame.chunks.last()?.end;
        self.offset = self.offset.checked_add(u64::from(length))?;
        Some(frame)
    }
}

/// Builds the bytes of `patch-N.index`, frame by frame.
#[derive(Debug, Clone)]
pub struct PatchIndexWriter {
    bytes: Vec<u8>,
    count: u32,
    chunk: u32,
}

impl Default for PatchIndexWriter {
    fn default() -> PatchIndexWriter {
        PatchIndexWriter { bytes: list::begin(MAGIC), count: 0, chunk: 0 }
    }
}

impl PatchIndexWriter {
    /// Frames must come in the order of their chunks and obey the caps; their offsets follow from the lengths.
    /// `false` if the index would become too long: then nothing was added.
    #[must_use]
    pub fn push(&mut self, frame: &PatchFrame) -> bool {
        let before = self.bytes.len();
        self.ranges(&frame.chunks, self.chunk);
        self.ranges(&frame.blocks, 0);
        self.number(frame.length);
        self.bytes.extend_from_slice(&frame.prefix.0);
        if self.bytes.len() as u64 > PATCH_INDEX_CAP {
            self.bytes.truncate(before);
            return false;
        }
        self.chunk = frame.chunks.last().map_or(self.chunk, |range| range.end);
        self.count = self.count.saturating_add(1);
        true
    }

    fn ranges(&mut self, ranges: &[Range<u32>], mut end: u32) {
        self.number(ranges.len() as u32);
        for range in ranges {
            self.number(range.start.saturating_sub(end));
            self.number(range.end.saturating_sub(range.start));
            end = range.end;
        }
    }

    fn number(&mut self, mut number: u32) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    /// `None` if there is no frame.
    pub fn finish(self) -> Option<Vec<u8>> {
        (self.count > 0).then(|| list::finish(self.bytes, self.count))
    }
}
