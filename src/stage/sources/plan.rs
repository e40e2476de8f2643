//! The restore plan: where each chunk of the image will come from. The survey makes it; it is shown and checked against
//! the budget before anything changes; then it is carried out.
//!
//! It takes four bytes a chunk of memory: half a megabyte for an image of 8 GiB that is mostly zeros, two for one that
//! is full.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::bundle::{Chunk, Index, Layout, Run, runs};
use crate::stage::sources::cost::Cost;
use crate::stage::sources::patch::Patch;

/// Marks the block as one of the target.
const DUPLICATE: u32 = 1 << 31;

/// Where a chunk will come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
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

impl Source {
    /// The last block that can be told, of 8 TiB; a place behind it is kept as `Fetch`.
    pub const LAST_BLOCK: u32 = DUPLICATE - 5;

    fn packed(self) -> u32 {
        match self {
            Source::Fetch => 0,
            Source::InPlace => 1,
            Source::Zero => 2,
            Source::Patch => 3,
            // What is further behind is not used.
            Source::Seed(block) | Source::Duplicate(block) if block > Source::LAST_BLOCK => 0,
            Source::Seed(block) => block.saturating_add(4),
            Source::Duplicate(block) => block | DUPLICATE,
        }
    }

    fn unpacked(packed: u32) -> Source {
        match packed {
            0 => Source::Fetch,
            1 => Source::InPlace,
            2 => Source::Zero,
            3 => Source::Patch,
            place if place & DUPLICATE != 0 => Source::Duplicate(place ^ DUPLICATE),
            block => Source::Seed(block.saturating_sub(4)),
        }
    }
}

/// One source for each chunk, in image order, which many threads read and set; all are `Fetch` at first.
#[derive(Debug)]
pub struct Plan {
    sources: Vec<AtomicU32>,
    /// What brings the chunks of the source `Patch`.
    pub patch: Option<Patch>,
}

impl Plan {
    pub fn new(chunks: usize) -> Plan {
        let sources =
            std::iter::repeat_with(|| AtomicU32::new(Source::Fetch.packed())).take(chunks).collect();
        Plan { sources, patch: None }
    }

    pub fn with(self, patch: Patch) -> Plan {
        Plan { patch: Some(patch), ..self }
    }

    /// `None` beyond the end.
    pub fn get(&self, position: usize) -> Option<Source> {
        self.sources.get(position).map(|packed| Source::unpacked(packed.load(Ordering::Relaxed)))
    }

    pub fn set(&self, positions: impl IntoIterator<Item = usize>, source: Source) {
        for packed in positions.into_iter().filter_map(|position| self.sources.get(position)) {
            packed.store(source.packed(), Ordering::Relaxed);
        }
    }

    /// Gives those that are `from` the source `to`.
    pub fn replace(&self, from: impl Fn(Source) -> bool, to: Source) {
        let chosen = self.iter().enumerate().filter(|(_, source)| from(*source));
        self.set(chosen.map(|(position, _)| position), to);
    }

    /// Those of the chunks in `positions`.
    pub fn of(&self, positions: Range<usize>) -> impl Iterator<Item = Source> + '_ {
        let positions = positions.start..positions.end.min(self.sources.len());
        positions.filter_map(|position| self.get(position))
    }

    /// All, in image order.
    pub fn iter(&self) -> impl Iterator<Item = Source> + '_ {
        self.of(0..self.sources.len())
    }

    /// Whether nothing is to be done.
    pub fn is_done(&self) -> bool {
        self.iter().all(|source| source == Source::InPlace)
    }

    /// The chunks whose source is one of those.
    pub fn chunks<'a>(
        &'a self,
        index: &'a Index,
        which: impl Fn(Source) -> bool + 'a,
    ) -> impl Iterator<Item = (usize, Chunk)> + 'a {
        let all = index.iter().zip(self.iter()).enumerate();
        all.filter(move |(_, (_, source))| which(*source)).map(|(position, (chunk, _))| (position, chunk))
    }

    /// The requests for all plain frames that are fetched.
    pub fn requests<'a>(&'a self, index: &'a Index, layout: &'a Layout) -> impl Iterator<Item = Run> + 'a {
        runs(index, layout, |position, _| self.get(position) == Some(Source::Fetch))
    }

    /// Bytes that will be fetched from here on: of the patch's frames, and of plain frames.
    pub fn cost(&self, index: &Index, layout: &Layout) -> Cost {
        let patch = self.patch.as_ref().map_or(0, |patch| patch.fetch_size(layout, index, self));
        let frames = self.requests(index, layout);
        let frames =
            frames.map(|run| run.span.end.saturating_sub(run.span.start)).fold(0, u64::saturating_add);
        Cost { head: 0, patch, frames }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_kept_as_they_were_given() {
        let plan = Plan::new(100);
        assert!(plan.iter().all(|source| source == Source::Fetch));
        let all = [
            Source::InPlace,
            Source::Zero,
            Source::Patch,
            Source::Seed(0),
            Source::Seed(Source::LAST_BLOCK),
            Source::Duplicate(0),
            Source::Duplicate(Source::LAST_BLOCK),
        ];
        all.iter().enumerate().for_each(|(n, source)| plan.set([30 + n], *source));
        plan.set([99], Source::Seed(5));
        let mut expected = vec![Source::Fetch; 100];
        expected[30..37].copy_from_slice(&all);
        expected[99] = Source::Seed(5);
        assert_eq!(plan.iter().collect::<Vec<_>>(), expected);
        for range in [0..0, 5..35, 31..usize::MAX, 200..300] {
            let own = expected.get(range.start..range.end.min(100)).unwrap_or_default();
            assert_eq!(plan.of(range).collect::<Vec<_>>(), own);
        }
        assert_eq!((plan.get(31), plan.get(100)), (Some(Source::Zero), None));
        for beyond in [Source::LAST_BLOCK + 1, u32::MAX] {
            plan.set([0], Source::Seed(beyond));
            plan.set([1], Source::Duplicate(beyond));
            assert_eq!(plan.of(0..2).collect::<Vec<_>>(), [Source::Fetch; 2]);
        }
        plan.replace(|source| matches!(source, Source::Seed(_)), Source::InPlace);
        assert_eq!(plan.iter().filter(|source| *source == Source::InPlace).count(), 4);
        plan.set(vec![30, 99, 1000], Source::Fetch);
        assert_eq!(plan.iter().filter(|source| *source == Source::Fetch).count(), 100 - 6);
    }
}
