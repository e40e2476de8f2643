//! `cdc-4k`: cuts an image into chunks where its content says so, at multiples of 4096 bytes, so that two
//! images that share files share chunks wherever those files lie.
//!
//! A file system moves whole blocks, so only whole blocks are looked at: a chunk ends after a block whose
//! hash falls below a threshold. Zeros are chunks of their own, and long runs of them are all alike. The same
//! code cuts on the build host and, when a slot is scanned, on the device; docs/bundle-format.md specifies
//! it.

use crate::manifest::{BLOCK, Chunking};

/// The name of these rules in `chunking.algorithm`.
pub const ALGORITHM: &str = "cdc-4k";

/// What `fwupdate-bundle create` uses.
pub fn default_chunking() -> Chunking {
    let (min, average, max) = (16 * 1024, 64 * 1024, 256 * 1024);
    Chunking { algorithm: ALGORITHM.into(), block: BLOCK, min, average, max }
}

/// Takes an image block by block and tells where chunks end. It keeps no data: the caller has the current
/// chunk, never more than `max` bytes, in its own buffer.
#[derive(Debug, Clone)]
pub struct Chunker {
    /// In blocks, as are the fields below.
    min: u32,
    max: u32,
    /// A block whose hash is below this may end a chunk.
    threshold: u64,
    /// Length of the current chunk.
    length: u32,
    /// Zero blocks at its end.
    zeros: u32,
}

impl Chunker {
    /// `None` if these are not the rules of this module, or sizes that it can't work with.
    pub fn new(chunking: &Chunking) -> Option<Chunker> {
        let Chunking { algorithm, block, min, average, max } = chunking;
        let whole = [min, average, max].iter().all(|size| **size % BLOCK == 0);
        let ordered = *min >= 2 * BLOCK && min < average && average < max;
        if algorithm != ALGORITHM || *block != BLOCK || !whole || !ordered {
            return None;
        }
        let (min, average, max) = (min / BLOCK, average / BLOCK, max / BLOCK);
        Some(Chunker { min, max, threshold: u64::MAX / u64::from(average - min), length: 0, zeros: 0 })
    }

    /// Takes the next block, of 4096 bytes. When a chunk is complete, returns its length in bytes; what the
    /// caller holds beyond that length already belongs to the next chunk.
    pub fn push(&mut self, block: &[u8]) -> Option<u32> {
        let blocks = if block.iter().all(|byte| *byte == 0) { self.zero() } else { self.data(block) };
        blocks.map(|blocks| blocks * BLOCK)
    }

    /// The length in bytes of what remains when the image is over.
    pub fn finish(&mut self) -> Option<u32> {
        let rest = self.restart(0, 0);
        (rest > 0).then_some(rest * BLOCK)
    }

    fn zero(&mut self) -> Option<u32> {
        self.length += 1;
        self.zeros += 1;
        if self.zeros < self.length && self.zeros == self.min {
            // A run worth its own chunk: the data before it ends here.
            let run = self.zeros;
            return Some(self.restart(run, run) - run);
        }
        (self.length == self.max).then(|| self.restart(0, 0))
    }

    fn data(&mut self, block: &[u8]) -> Option<u32> {
        if self.length > 0 && self.zeros == self.length {
            return Some(self.restart(1, 0));
        }
        self.length += 1;
        self.zeros = 0;
        let cut = self.length >= self.min && hash(block) < self.threshold;
        (cut || self.length == self.max).then(|| self.restart(0, 0))
    }

    /// Begins a chunk that already has `length` blocks, and returns the length of the one before.
    fn restart(&mut self, length: u32, zeros: u32) -> u32 {
        self.zeros = zeros;
        std::mem::replace(&mut self.length, length)
    }
}

/// Mixes the block's little-endian 64-bit words by multiplication and rotation, then spreads the result over
/// all bits (the finishing steps of MurmurHash3's 64-bit variant).
fn hash(block: &[u8]) -> u64 {
    let words = block.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_le_bytes);
    let mut hash =
        words.fold(0u64, |hash, word| (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}
