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

/// What `fwupdate-bundle create` uses: the best of the experiment in docs/delta.md.
pub fn default_chunking() -> Chunking {
    let (min, average, max, group) = (4 * 1024, 12 * 1024, 128 * 1024, 2 * 1024 * 1024);
    Chunking { algorithm: ALGORITHM.into(), block: BLOCK, min, average, max, group }
}

/// A run of so many zero blocks is worth a chunk of its own.
const ZERO_RUN: u32 = 4;

/// Cuts an image into chunks: it takes the blocks and gives the chunks back one by one. It holds the current chunk
/// alone, of at most `chunking.max` bytes and a block.
#[derive(Debug)]
pub struct Cutter {
    ends: Chunker,
    held: Vec<u8>,
}

impl Cutter {
    /// `None` if these are not the rules of this module, or sizes that it can't work with.
    pub fn new(chunking: &Chunking) -> Option<Cutter> {
        let room = chunking.max.saturating_add(BLOCK) as usize;
        Some(Cutter { ends: Chunker::new(chunking)?, held: Vec::with_capacity(room) })
    }

    /// Takes whole blocks, and shows each chunk that they complete to `each`.
    pub fn push(&mut self, blocks: &[u8], mut each: impl FnMut(&[u8])) {
        for block in blocks.chunks_exact(BLOCK as usize) {
            let end = self.ends.push(block);
            self.held.extend_from_slice(block);
            let Some(length) = end.map(|length| length as usize) else { continue };
            each(self.held.get(..length).unwrap_or_default());
            self.held.drain(..length.min(self.held.len()));
        }
    }

    /// What remains when the image is over: its last chunk, if it had any byte.
    pub fn finish(self) -> Option<Vec<u8>> {
        Some(self.held).filter(|rest| !rest.is_empty())
    }
}

/// Tells where chunks end, block by block.
#[derive(Debug)]
struct Chunker {
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
    fn new(chunking: &Chunking) -> Option<Chunker> {
        let Chunking { algorithm, block, min, average, max, group: _ } = chunking;
        let whole = [min, average, max].iter().all(|size| **size % BLOCK == 0);
        let ordered = *min >= BLOCK && min < average && average < max && max / BLOCK > ZERO_RUN;
        if algorithm != ALGORITHM || *block != BLOCK || !whole || !ordered {
            return None;
        }
        let (min, average, max) = (min / BLOCK, average / BLOCK, max / BLOCK);
        let threshold = u64::MAX.checked_div(u64::from(average.saturating_sub(min)))?;
        Some(Chunker { min, max, threshold, length: 0, zeros: 0 })
    }

    /// Takes the next block. When a chunk is complete, returns its length in bytes; what was shown beyond that length
    /// already belongs to the next chunk.
    fn push(&mut self, block: &[u8]) -> Option<u32> {
        let blocks = if is_zero(block) { self.zero() } else { self.data(block) };
        blocks.map(|blocks| blocks.saturating_mul(BLOCK))
    }

    fn zero(&mut self) -> Option<u32> {
        self.length = self.length.saturating_add(1);
        self.zeros = self.zeros.saturating_add(1);
        if self.zeros < self.length && self.zeros == ZERO_RUN {
            // The data before it ends here.
            let run = self.zeros;
            return Some(self.restart(run, run).saturating_sub(run));
        }
        (self.length == self.max).then(|| self.restart(0, 0))
    }

    fn data(&mut self, block: &[u8]) -> Option<u32> {
        if self.length > 0 && self.zeros == self.length {
            return Some(self.restart(1, 0));
        }
        self.length = self.length.saturating_add(1);
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

pub fn is_zero(bytes: &[u8]) -> bool {
    const ZERO: [u8; BLOCK as usize] = [0; BLOCK as usize];
    bytes.chunks(ZERO.len()).all(|part| ZERO.starts_with(part))
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const ZERO: [u8; 4096] = [0; 4096];

    /// Blocks that are all different; the same numbers give the same blocks.
    fn blocks(numbers: std::ops::Range<u64>) -> Vec<[u8; 4096]> {
        let block = |number: u64| {
            let mut random = fastrand::Rng::with_seed(number);
            let mut block = [0; 4096];
            random.fill(&mut block);
            block
        };
        numbers.map(block).collect()
    }

    /// Cuts `image` as a caller would, and checks the promises that hold for every image.
    fn cut(image: &[[u8; 4096]]) -> Vec<Vec<[u8; 4096]>> {
        let chunking = default_chunking();
        let mut cutter = Cutter::new(&chunking).unwrap();
        let (room, mut chunks) = (cutter.held.capacity(), Vec::new());
        let blocks = |chunk: &[u8]| -> Vec<[u8; 4096]> {
            chunk.chunks(4096).map(|block| block.try_into().unwrap()).collect()
        };
        for block in image {
            cutter.push(block, |chunk| chunks.push(blocks(chunk)));
            assert!(cutter.held.len() <= 32 * 4096 && cutter.held.capacity() == room, "it grows");
        }
        chunks.extend(cutter.finish().map(|rest| blocks(&rest)));
        assert!(chunks.iter().all(|chunk| !chunk.is_empty()));
        assert!(chunks.concat() == image);
        chunks
    }

    #[test]
    fn sizes_are_as_asked() {
        let chunks = cut(&blocks(0..20_000));
        let (_, inner) = chunks.split_last().unwrap();
        assert!(inner.iter().all(|chunk| (1..=32).contains(&chunk.len())));
        let average = 20_000 / chunks.len();
        assert!((1..=3).contains(&average), "{average} blocks");
    }

    #[test]
    fn an_insertion_changes_only_what_is_near() {
        let old = blocks(0..2000);
        let mut new = old.clone();
        new.splice(777..777, blocks(5000..5003));
        let old: HashSet<_> = cut(&old).into_iter().collect();
        let fresh = cut(&new).into_iter().filter(|chunk| !old.contains(chunk)).count();
        assert!((1..=4).contains(&fresh), "{fresh} chunks changed");
    }

    #[test]
    fn a_change_in_place_stays_in_place() {
        let old = blocks(0..2000);
        for at in [0, 500, 1999] {
            let mut new = old.clone();
            new[at][17] ^= 1;
            let known: HashSet<_> = cut(&old).into_iter().collect();
            let fresh = cut(&new).into_iter().filter(|chunk| !known.contains(chunk)).count();
            assert!((1..=3).contains(&fresh), "{fresh} chunks changed at {at}");
        }
    }

    #[test]
    fn zero_runs_are_chunks_of_their_own_and_all_alike() {
        for run in [4, 5, 31, 32, 33, 66] {
            let image = [blocks(0..10), vec![ZERO; run], blocks(20..22), vec![ZERO; run]].concat();
            let chunks = cut(&image);
            let zero = |chunk: &&Vec<[u8; 4096]>| chunk.iter().all(|block| *block == ZERO);
            let lengths: Vec<_> = chunks.iter().filter(zero).map(Vec::len).collect();
            let mut once = vec![32; run / 32];
            once.extend(Some(run % 32).filter(|rest| *rest > 0));
            assert_eq!(lengths, [once.clone(), once].concat(), "{run}");
            let mixed = chunks.iter().filter(|chunk| !zero(chunk) && chunk.ends_with(&[ZERO]));
            assert_eq!(mixed.count(), 0);
        }
    }

    #[test]
    fn the_index_stays_below_half_a_percent_of_any_image() {
        // The worst that content can do: one block of data, then the shortest run of zeros, over and over.
        let image: Vec<_> =
            blocks(0..200).into_iter().flat_map(|data| [data, ZERO, ZERO, ZERO, ZERO]).collect();
        let chunks = cut(&image).len();
        assert_eq!(chunks, 400);
        assert!((16 + 20 * chunks) * 200 <= image.len() * 4096);
    }

    #[test]
    fn foreign_rules_and_impossible_sizes_are_no_chunker() {
        let good = default_chunking();
        for other in [
            Chunking { algorithm: "other".into(), ..good.clone() },
            Chunking { block: 512, ..good.clone() },
            Chunking { min: 0, ..good.clone() },
            Chunking { min: good.average, ..good.clone() },
            Chunking { max: good.average, ..good.clone() },
            Chunking { max: good.max + 1, ..good.clone() },
        ] {
            assert!(Cutter::new(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn the_hash_is_the_specified_one() {
        // docs/bundle-format.md gives these, for whoever writes a second implementation.
        let counting: Vec<u8> = (0..4096u32).map(|n| n as u8).collect();
        assert_eq!(hash(&[1; 4096]), 0x073c_faab_cefe_8888);
        assert_eq!(hash(&counting), 0x3029_56bf_fdf5_eda4);
    }
}
