//! The records of the member `rootfs.index`, 20 bytes a chunk: they are read in order from wherever they are kept,
//! and written one by one.

use std::fmt;

use super::chunk::{Chunk, ChunkDigest};
use super::list::{self, HEADER};
use crate::manifest::{BLOCK, INDEX_CAP, INDEX_RECORD};

pub(super) const MAGIC: &[u8; 8] = b"fwuindex";
pub(super) const RECORD: usize = INDEX_RECORD as usize;
/// So many records are read at once.
pub(super) const STRIDE: usize = 256;

/// Where the bytes of an index are.
pub trait Keeper: fmt::Debug + Send + Sync {
    fn size(&self) -> u64;

    /// Fills `out` from `offset`. `false` if that is not possible: then a list of chunks ends early, and its owner
    /// has to know of it.
    fn read(&self, out: &mut [u8], offset: u64) -> bool;
}

impl Keeper for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, out: &mut [u8], offset: u64) -> bool {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.get(start..start.saturating_add(out.len())) {
            Some(bytes) => out.copy_from_slice(bytes),
            None => return false,
        }
        true
    }
}

/// What chunks add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sums {
    pub offset: u64,
    /// Where the latest group began.
    pub group_offset: u64,
    pub frame_offset: u64,
}

/// How many records lie behind the header.
pub(super) fn count(bytes: &dyn Keeper) -> usize {
    usize::try_from(bytes.size()).unwrap_or(usize::MAX).saturating_sub(HEADER) / RECORD
}

/// The chunks of an index in image order.
///
/// The sums can't overflow: an index has at most `INDEX_CAP` bytes, hence fewer than 2^21 chunks of less
/// than 2^24 bytes.
#[derive(Debug, Clone)]
pub struct Chunks<'a> {
    bytes: &'a dyn Keeper,
    /// Records from `next` on that were read together, the last ones first.
    read: Vec<[u8; RECORD]>,
    pub(super) next: usize,
    pub(super) sums: Sums,
    group: u32,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(bytes: &'a dyn Keeper, group: u32, next: usize, sums: Sums) -> Chunks<'a> {
        Chunks { bytes, read: Vec::new(), next, sums, group }
    }

    /// The next record; `None` at the end, and where it can't be read.
    fn record(&mut self) -> Option<[u8; RECORD]> {
        if self.read.is_empty() {
            let mut block = [0; STRIDE * RECORD];
            let left = count(self.bytes).saturating_sub(self.next);
            let part = block.get_mut(..left.min(STRIDE).saturating_mul(RECORD))?;
            if !self.bytes.read(part, HEADER.saturating_add(self.next.saturating_mul(RECORD)) as u64) {
                return None;
            }
            let records = part.chunks_exact(RECORD).rev();
            self.read.extend(records.filter_map(|record| <[u8; RECORD]>::try_from(record).ok()));
        }
        self.read.pop()
    }
}

const _: () = assert!(INDEX_CAP / (RECORD as u64) < 1 << 21);

impl Iterator for Chunks<'_> {
    type Item = Chunk;

    fn next(&mut self) -> Option<Chunk> {
        let record = self.record()?;
        let (sizes, digest) = list::word(&record)?;
        let (length, frame_length) = ((sizes >> 24).saturating_mul(BLOCK), sizes & 0x00ff_ffff);
        let digest = ChunkDigest(digest.try_into().ok()?);
        let Sums { offset, frame_offset, .. } = self.sums;
        let number = |offset: u64| offset.checked_div(u64::from(self.group));
        if number(offset) != number(self.sums.group_offset) {
            self.sums.group_offset = offset;
        }
        let group_offset = self.sums.group_offset;
        self.next = self.next.saturating_add(1);
        self.sums.offset = offset.saturating_add(u64::from(length));
        self.sums.frame_offset = frame_offset.saturating_add(u64::from(frame_length));
        Some(Chunk { offset, group_offset, length, frame_offset, frame_length, digest })
    }
}

/// Builds the bytes of `rootfs.index`, chunk by chunk.
#[derive(Debug, Clone)]
pub struct IndexWriter {
    bytes: Vec<u8>,
    count: u32,
}

impl Default for IndexWriter {
    fn default() -> IndexWriter {
        IndexWriter { bytes: list::begin(MAGIC), count: 0 }
    }
}

impl IndexWriter {
    /// `length`: a multiple of 4096 below 2^20; `frame_length`: below 2^24.
    pub fn push(&mut self, length: u32, frame_length: u32, digest: ChunkDigest) {
        let sizes = (length / BLOCK) << 24 | frame_length;
        self.bytes.extend_from_slice(&sizes.to_le_bytes());
        self.bytes.extend_from_slice(&digest.0);
        self.count = self.count.saturating_add(1);
    }

    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub fn finish(self) -> Vec<u8> {
        list::finish(self.bytes, self.count)
    }
}
