//! For each chunk of the image where it will come from. The survey finds it out, many threads at once.
//!
//! It takes four bytes a chunk of memory: half a megabyte for an image of 8 GiB that is mostly zeros, two for one that
//! is full.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::bundle::{Chunk, Index, Layout, Run, runs};

/// Marks the block as one of the target.
const DUPLICATE: u32 = 1 << 31;

/// Where a chunk will come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkSource {
    Fetch,
    /// It is where it belongs.
    InPlace,
    /// Zeros throughout.
    Zero,
    /// In a frame of the patch from what the seed is.
    Patch,
    /// In the seed at this block (of 4096 bytes).
    Seed(u32),
    /// In the target at this block: in place, or fetched for that place, which is further ahead.
    Duplicate(u32),
}

impl ChunkSource {
    /// The last block that can be told, of 8 TiB; a place behind it is kept as `Fetch`.
    pub const LAST_BLOCK: u32 = DUPLICATE - 5;

    fn packed(self) -> u32 {
        match self {
            ChunkSource::Fetch => 0,
            ChunkSource::InPlace => 1,
            ChunkSource::Zero => 2,
            ChunkSource::Patch => 3,
            // What is further behind is not used.
            ChunkSource::Seed(block) | ChunkSource::Duplicate(block) if block > ChunkSource::LAST_BLOCK => 0,
            ChunkSource::Seed(block) => block.saturating_add(4),
            ChunkSource::Duplicate(block) => block | DUPLICATE,
        }
    }

    fn unpacked(packed: u32) -> ChunkSource {
        match packed {
            0 => ChunkSource::Fetch,
            1 => ChunkSource::InPlace,
            2 => ChunkSource::Zero,
            3 => ChunkSource::Patch,
            place if place & DUPLICATE != 0 => ChunkSource::Duplicate(place ^ DUPLICATE),
            block => ChunkSource::Seed(block.saturating_sub(4)),
        }
    }
}

/// One source for each chunk, in image order, which many threads read and set; all are `Fetch` at first.
#[derive(Debug)]
pub struct Sources {
    packed: Vec<AtomicU32>,
}

impl Sources {
    pub fn new(chunks: usize) -> Sources {
        let packed =
            std::iter::repeat_with(|| AtomicU32::new(ChunkSource::Fetch.packed())).take(chunks).collect();
        Sources { packed }
    }

    /// `None` beyond the end.
    pub fn get(&self, position: usize) -> Option<ChunkSource> {
        self.packed.get(position).map(|packed| ChunkSource::unpacked(packed.load(Ordering::Relaxed)))
    }

    pub fn set(&self, positions: impl IntoIterator<Item = usize>, source: ChunkSource) {
        for packed in positions.into_iter().filter_map(|position| self.packed.get(position)) {
            packed.store(source.packed(), Ordering::Relaxed);
        }
    }

    /// Gives those that are `from` the source `to`.
    pub fn replace(&self, from: impl Fn(ChunkSource) -> bool, to: ChunkSource) {
        let chosen = self.iter().enumerate().filter(|(_, source)| from(*source));
        self.set(chosen.map(|(position, _)| position), to);
    }

    /// Those of the chunks in `positions`.
    pub fn of(&self, positions: Range<usize>) -> impl Iterator<Item = ChunkSource> + '_ {
        let positions = positions.start..positions.end.min(self.packed.len());
        positions.filter_map(|position| self.get(position))
    }

    pub fn iter(&self) -> impl Iterator<Item = ChunkSource> + '_ {
        self.of(0..self.packed.len())
    }

    pub fn is_done(&self) -> bool {
        self.iter().all(|source| source == ChunkSource::InPlace)
    }

    /// The chunks whose source is one of those.
    pub fn chunks<'a>(
        &'a self,
        index: &'a Index,
        which: impl Fn(ChunkSource) -> bool + 'a,
    ) -> impl Iterator<Item = (usize, Chunk)> + 'a {
        let all = index.iter().zip(self.iter()).enumerate();
        all.filter(move |(_, (_, source))| which(*source)).map(|(position, (chunk, _))| (position, chunk))
    }

    /// The requests for all plain frames that are fetched.
    pub fn requests<'a>(&'a self, index: &'a Index, layout: &'a Layout) -> impl Iterator<Item = Run> + 'a {
        runs(index, layout, |position, _| self.get(position) == Some(ChunkSource::Fetch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_kept_as_they_were_given() {
        let plan = Sources::new(100);
        assert!(plan.iter().all(|source| source == ChunkSource::Fetch));
        let all = [
            ChunkSource::InPlace,
            ChunkSource::Zero,
            ChunkSource::Patch,
            ChunkSource::Seed(0),
            ChunkSource::Seed(ChunkSource::LAST_BLOCK),
            ChunkSource::Duplicate(0),
            ChunkSource::Duplicate(ChunkSource::LAST_BLOCK),
        ];
        all.iter().enumerate().for_each(|(n, source)| plan.set([30 + n], *source));
        plan.set([99], ChunkSource::Seed(5));
        let mut expected = vec![ChunkSource::Fetch; 100];
        expected[30..37].copy_from_slice(&all);
        expected[99] = ChunkSource::Seed(5);
        assert_eq!(plan.iter().collect::<Vec<_>>(), expected);
        for range in [0..0, 5..35, 31..usize::MAX, 200..300] {
            let own = expected.get(range.start..range.end.min(100)).unwrap_or_default();
            assert_eq!(plan.of(range).collect::<Vec<_>>(), own);
        }
        assert_eq!((plan.get(31), plan.get(100)), (Some(ChunkSource::Zero), None));
        for beyond in [ChunkSource::LAST_BLOCK + 1, u32::MAX] {
            plan.set([0], ChunkSource::Seed(beyond));
            plan.set([1], ChunkSource::Duplicate(beyond));
            assert_eq!(plan.of(0..2).collect::<Vec<_>>(), [ChunkSource::Fetch; 2]);
        }
        plan.replace(|source| matches!(source, ChunkSource::Seed(_)), ChunkSource::InPlace);
        assert_eq!(plan.iter().filter(|source| *source == ChunkSource::InPlace).count(), 4);
        plan.set(vec![30, 99, 1000], ChunkSource::Fetch);
        assert_eq!(plan.iter().filter(|source| *source == ChunkSource::Fetch).count(), 100 - 6);
    }
}
