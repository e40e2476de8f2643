//! Where an old image has something like a new chunk: windows of 32 bytes are sampled by their content, so that
//! both images pick the same ones wherever they lie; what they have in common says which old blocks are worth
//! to stand before the new content.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

const WINDOW: usize = 32;
const BLOCK: u64 = 4096;
/// Most samples that are kept of an old image: eight bytes each.
const SAMPLES: u64 = 1 << 25;
/// A window that more blocks than these have says nothing.
const COMMON: usize = 16;
/// Blocks with fewer new windows than these are not worth their place.
const FEW: usize = 2;
/// So many blocks between two chosen ones are taken along: that costs less than telling of two ranges.
const GAP: u32 = 1;

/// Picks windows as bytes go by.
#[derive(Debug, Clone, Copy)]
struct Sampler {
    /// A window is picked if its hash ends up below this: one of so many is.
    below: u64,
    hash: u64,
    last: u32,
}

/// What a byte adds to the hash; 64 random bits each.
static GEAR: [u64; 256] = gear();

#[allow(clippy::indexing_slicing, reason = "checked by the compiler: it is a constant")]
const fn gear() -> [u64; 256] {
    let (mut table, mut state, mut at) = ([0; 256], 0u64, 0);
    while at < table.len() {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[at] = word ^ (word >> 31);
        at += 1;
    }
    table
}

impl Sampler {
    /// For an old image of `size` bytes.
    fn new(size: u64) -> Sampler {
        let one_of = (size / SAMPLES).next_power_of_two().max(16);
        Sampler { below: u64::MAX / one_of, hash: 0, last: 0 }
    }

    /// A picked window that ends with this byte. Shifted by two bits a byte, the hash forgets what is more
    /// than 32 bytes back. Of windows in a row that are all alike the first counts.
    fn push(&mut self, byte: u8) -> Option<u32> {
        self.hash = (self.hash << 2).wrapping_add(GEAR.get(usize::from(byte)).copied().unwrap_or_default());
        if self.hash >= self.below {
            return None;
        }
        let sample = (self.hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
        (std::mem::replace(&mut self.last, sample) != sample).then_some(sample)
    }
}

#[derive(Debug)]
pub struct Similar {
    /// Sample and block, sorted.
    samples: Vec<(u32, u32)>,
    sampler: Sampler,
}

/// Makes a `Similar`, to which the old image is shown from its start to its end.
#[derive(Debug)]
pub struct Builder {
    samples: Vec<(u32, u32)>,
    fresh: Sampler,
    sampler: Sampler,
    at: u64,
}

impl Builder {
    pub fn new(size: u64) -> Builder {
        let sampler = Sampler::new(size);
        Builder { samples: Vec::new(), fresh: sampler, sampler, at: 0 }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(sample) = self.sampler.push(*byte) {
                self.samples.push((sample, (self.at / BLOCK) as u32));
            }
            self.at += 1;
        }
    }

    pub fn finish(mut self) -> Similar {
        self.samples.sort_unstable();
        self.samples.dedup();
        Similar { samples: self.samples, sampler: self.fresh }
    }
}

impl Similar {
    /// Blocks that have this sample; none if it is too common.
    fn blocks(&self, sample: u32) -> impl Iterator<Item = u32> + '_ {
        let first = self.samples.partition_point(|(other, _)| *other < sample);
        let rest = self.samples.get(first..).unwrap_or_default();
        let count = rest.iter().take(COMMON + 1).take_while(|(other, _)| *other == sample).count();
        let count = if count > COMMON { 0 } else { count };
        rest.iter().take(count).map(|(_, block)| *block)
    }

    fn samples_of(&self, content: &[u8]) -> Vec<u32> {
        let mut sampler = self.sampler;
        // Before the first whole window there is nothing to go by.
        let windows = content.iter().map(|byte| sampler.push(*byte)).skip(WINDOW - 1);
        let mut samples: Vec<u32> = windows.flatten().collect();
        samples.sort_unstable();
        samples.dedup();
        samples
    }

    /// How much of `content` the old image has, from 0 to 1.
    pub fn share(&self, content: &[u8]) -> f64 {
        let samples = self.samples_of(content);
        let found = samples.iter().filter(|sample| self.blocks(**sample).next().is_some()).count();
        found as f64 / samples.len().max(1) as f64
    }

    /// At most `most` blocks that together have as many samples of `content` as can be, as ascending ranges.
    pub fn choose(&self, content: &[u8], most: usize) -> Vec<Range<u32>> {
        // Pairs of a block and the number of a sample that it has.
        let samples = self.samples_of(content);
        let mut pairs: Vec<(u32, u32)> = Vec::new();
        for (number, sample) in (0..).zip(&samples) {
            pairs.extend(self.blocks(*sample).map(|block| (block, number)));
        }
        pairs.sort_unstable();
        let mut covered = vec![false; samples.len()];
        let own = |block: u32| {
            let first = pairs.partition_point(|(other, _)| *other < block);
            let rest = pairs.get(first..).unwrap_or_default();
            rest.iter().take_while(move |(other, _)| *other == block).map(|(_, number)| *number as usize)
        };
        // Scores only fall as others are taken, so one that still holds when it comes up is the highest.
        let mut heap: BinaryHeap<(usize, Reverse<u32>)> = pairs
            .chunk_by(|a, b| a.0 == b.0)
            .filter_map(|same| Some((same.len(), Reverse(same.first()?.0))))
            .collect();
        let mut chosen = Vec::new();
        while let Some((score, Reverse(block))) = heap.pop() {
            if score < FEW || chosen.len() >= most {
                break;
            }
            let fresh = own(block).filter(|number| covered.get(*number) == Some(&false)).count();
            if fresh < score {
                heap.push((fresh, Reverse(block)));
                continue;
            }
            own(block).for_each(|number| {
                if let Some(covered) = covered.get_mut(number) {
                    *covered = true;
                }
            });
            chosen.push(block);
        }
        joined(chosen, most)
    }
}

/// Blocks as ascending ranges, with small gaps filled as long as there is room.
fn joined(mut blocks: Vec<u32>, most: usize) -> Vec<Range<u32>> {
    blocks.sort_unstable();
    let mut room = most.saturating_sub(blocks.len()) as u32;
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for block in blocks {
        match ranges.last_mut() {
            Some(last) if block - last.end <= GAP.min(room) => {
                room -= block - last.end;
                last.end = block + 1;
            }
            _ => ranges.push(block..block + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "lists of ranges are what this module is about")]

    use super::*;

    fn noise(seed: u64, blocks: usize) -> Vec<u8> {
        let mut noise = vec![0; blocks * BLOCK as usize];
        fastrand::Rng::with_seed(seed).fill(&mut noise);
        noise
    }

    fn similar(old: &[u8]) -> Similar {
        let mut builder = Builder::new(old.len() as u64);
        // In parts that have nothing to do with blocks.
        old.chunks(1000).for_each(|part| builder.push(part));
        builder.finish()
    }

    #[test]
    fn the_blocks_that_a_new_content_was_made_of_are_found() {
        let old = noise(1, 500);
        let similar = similar(&old);
        let mut new = noise(2, 2);
        // From the middle of block 99 to that of block 119, and a second part from 300 on; with changes.
        new.extend_from_slice(&old[99 * 4096 + 2000..119 * 4096 + 2000]);
        new.extend_from_slice(&old[300 * 4096..310 * 4096]);
        new.iter_mut().step_by(700).for_each(|byte| *byte ^= 1);
        assert_eq!(similar.choose(&new, 512), [99..120, 300..310]);
        assert!(similar.share(&new) > 0.8);
        assert_eq!(similar.choose(&noise(3, 20), 512), []);
        assert!(similar.share(&noise(3, 20)) < 0.1);
    }

    #[test]
    fn no_more_blocks_are_chosen_than_there_is_room_for() {
        let old = noise(1, 500);
        let similar = similar(&old);
        let blocks = |ranges: &[Range<u32>]| ranges.iter().map(|range| range.end - range.start).sum::<u32>();
        assert_eq!(blocks(&similar.choose(&old[..400 * 4096], 300)), 300);
        // Gaps are not filled beyond it either.
        let gaps: Vec<u8> = old.chunks(8192).flat_map(|pair| &pair[..4096]).copied().collect();
        assert_eq!(blocks(&similar.choose(&gaps, 250)), 250);
        assert_eq!(similar.choose(&gaps, 512), [0..499]);
    }

    #[test]
    fn what_is_everywhere_says_nothing() {
        let mut old = vec![0; 100 * 4096];
        let part = noise(1, 1);
        old.chunks_exact_mut(4096).skip(50).for_each(|block| block.copy_from_slice(&part));
        let similar = similar(&old);
        assert_eq!(similar.choose(&part, 512), []);
        assert_eq!(similar.choose(&[0; 8192], 512), []);
    }
}
