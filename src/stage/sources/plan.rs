//! Where each chunk of an image will come from: what the survey finds, and what the steps after it go by.

use std::ops::Range;

use crate::bundle::Keeper as _;
use crate::stage::workspace::{List, Workspace};

/// Bytes of an origin.
const ENTRY: usize = 4;
/// Marks the block as one of the target.
const TWIN: u32 = 1 << 31;
/// Origins that are read at once.
const BLOCK: usize = 1024;

/// Where a chunk will come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
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
    Twin(u32),
}

impl Origin {
    /// The last block that can be told, of 8 TiB; a place behind it is kept as `Fetch`.
    pub const LAST_BLOCK: u32 = TWIN - 5;

    fn entry(self) -> [u8; ENTRY] {
        let number = match self {
            Origin::Fetch => 0,
            Origin::InPlace => 1,
            Origin::Zero => 2,
            Origin::Patch => 3,
            // What is further behind is not used.
            Origin::Seed(block) | Origin::Twin(block) if block > Origin::LAST_BLOCK => 0,
            Origin::Seed(block) => block.saturating_add(4),
            Origin::Twin(block) => block | TWIN,
        };
        number.to_le_bytes()
    }

    fn of(entry: [u8; ENTRY]) -> Origin {
        match u32::from_le_bytes(entry) {
            0 => Origin::Fetch,
            1 => Origin::InPlace,
            2 => Origin::Zero,
            3 => Origin::Patch,
            twin if twin & TWIN != 0 => Origin::Twin(twin ^ TWIN),
            block => Origin::Seed(block.saturating_sub(4)),
        }
    }
}

/// Where the entry of the chunk at `position` is in the list.
fn place(position: usize) -> u64 {
    (position as u64).saturating_mul(ENTRY as u64)
}

/// One origin for each chunk, in image order; all are `Fetch` at first.
#[derive(Debug)]
pub struct Origins {
    list: List,
    count: usize,
}

impl Origins {
    pub fn new(workspace: &Workspace, count: usize) -> Origins {
        Origins { list: workspace.list(place(count)), count }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// `None` beyond the end.
    pub fn get(&self, position: usize) -> Option<Origin> {
        let mut entry = [0; ENTRY];
        let there = position < self.count && self.list.read(&mut entry, place(position));
        there.then(|| Origin::of(entry))
    }

    /// Of the chunks from `first` on.
    pub fn set(&self, first: usize, origins: &[Origin]) {
        let entries: Vec<u8> = origins.iter().flat_map(|origin| origin.entry()).collect();
        self.list.write(&entries, place(first));
    }

    /// Of chunks here and there.
    pub fn set_each(&self, positions: impl IntoIterator<Item = usize>, origin: Origin) {
        positions.into_iter().for_each(|position| self.set(position, &[origin]));
    }

    /// Gives those that are `from` the origin `to`.
    pub fn replace(&self, from: impl Fn(Origin) -> bool, to: Origin) {
        for first in (0..self.count).step_by(BLOCK) {
            let part = first..first.saturating_add(BLOCK).min(self.count);
            let replaced = self.of(part).map(|origin| if from(origin) { to } else { origin });
            self.set(first, &replaced.collect::<Vec<_>>());
        }
    }

    /// Those of the chunks in `positions`, some read at once.
    pub fn of(&self, positions: Range<usize>) -> impl Iterator<Item = Origin> {
        let (mut next, end) = (positions.start, positions.end.min(self.count));
        let mut read: Vec<Origin> = Vec::new();
        std::iter::from_fn(move || {
            if read.is_empty() {
                let mut entries = [0; BLOCK * ENTRY];
                let entries = entries.get_mut(..end.saturating_sub(next).min(BLOCK).saturating_mul(ENTRY))?;
                if entries.is_empty() || !self.list.read(entries, place(next)) {
                    return None;
                }
                let own = entries.chunks_exact(ENTRY).rev();
                read.extend(own.filter_map(|entry| entry.try_into().ok()).map(Origin::of));
                next = next.saturating_add(read.len());
            }
            read.pop()
        })
    }

    /// All, in image order.
    pub fn iter(&self) -> impl Iterator<Item = Origin> {
        self.of(0..self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_kept_as_they_were_given() {
        let origins = Origins::new(&Workspace::default(), 3 * BLOCK + 7);
        assert!(origins.iter().all(|origin| origin == Origin::Fetch));
        let all = [
            Origin::InPlace,
            Origin::Zero,
            Origin::Patch,
            Origin::Seed(0),
            Origin::Seed(Origin::LAST_BLOCK),
            Origin::Twin(0),
            Origin::Twin(Origin::LAST_BLOCK),
        ];
        origins.set(BLOCK - 2, &all);
        origins.set(3 * BLOCK + 6, &[Origin::Seed(5)]);
        let mut expected = vec![Origin::Fetch; 3 * BLOCK + 7];
        expected[BLOCK - 2..BLOCK + 5].copy_from_slice(&all);
        expected[3 * BLOCK + 6] = Origin::Seed(5);
        assert_eq!(origins.iter().collect::<Vec<_>>(), expected);
        for range in [0..0, 5..BLOCK + 1, BLOCK - 1..usize::MAX, 4 * BLOCK..5 * BLOCK] {
            let end = range.end.min(expected.len());
            let own = expected.get(range.start..end).unwrap_or_default();
            assert_eq!(origins.of(range).collect::<Vec<_>>(), own);
        }
        assert_eq!(origins.get(BLOCK - 1), Some(Origin::Zero));
        assert_eq!(origins.get(3 * BLOCK + 7), None);
        for beyond in [Origin::LAST_BLOCK + 1, u32::MAX] {
            origins.set(0, &[Origin::Seed(beyond), Origin::Twin(beyond)]);
            assert_eq!(origins.of(0..2).collect::<Vec<_>>(), [Origin::Fetch; 2]);
        }
        origins.replace(|origin| matches!(origin, Origin::Seed(_)), Origin::InPlace);
        assert_eq!(origins.iter().filter(|origin| *origin == Origin::InPlace).count(), 4);
        origins.set_each(vec![BLOCK, 3 * BLOCK + 6], Origin::Fetch);
        assert_eq!(origins.iter().filter(|origin| *origin == Origin::Fetch).count(), 3 * BLOCK + 7 - 6);
    }
}
