//! Chunks in the order of their digests: for each chunk that the booted slot has it must be known at once where the
//! new image wants it, and what the image has twice need be fetched only once.

use crate::bundle::{Chunk, ChunkDigest, GAP, Index, Keeper as _};
use crate::manifest::BLOCK;
use crate::stage::sources::plan::{Origin, Origins};
use crate::stage::workspace::{List, Workspace};

/// A digest and the position of a chunk with it, bytes.
const ENTRY: usize = 20;
/// Entries that are read at once, at most: to look a digest up is to read a page or two.
const PAGE: usize = 64;
/// About so many entries are sorted at once: 1.3 MB.
const SORTED: usize = 1 << 16;

/// Some chunks of an image, in the order of their digests.
pub struct ByDigest {
    list: List,
    /// Where each page begins, and with which digest.
    pages: Vec<(ChunkDigest, usize)>,
    end: usize,
}

impl ByDigest {
    /// The chunks that will be fetched.
    pub fn missing(index: &Index, origins: &Origins, workspace: &Workspace) -> ByDigest {
        ByDigest::new(index, origins, workspace, SORTED, |_, origin| origin == Origin::Fetch)
    }

    fn new(
        index: &Index,
        origins: &Origins,
        workspace: &Workspace,
        at_once: usize,
        which: impl Fn(&Chunk, Origin) -> bool,
    ) -> ByDigest {
        let chosen = || {
            let all = (0u32..).zip(index.iter().zip(origins.iter()));
            let chosen = all.filter(|(_, (chunk, origin))| which(chunk, *origin));
            chosen.map(|(position, (chunk, _))| (chunk.digest, position))
        };
        let count = chosen().count();
        let list = workspace.list(count.saturating_mul(ENTRY) as u64);
        let mut all = ByDigest { list, pages: Vec::new(), end: 0 };
        // Digests are spread evenly, so each part of their range has about as many.
        let parts = count.div_ceil(at_once.max(1));
        let mut part = Vec::new();
        for number in 0..parts {
            part.clear();
            part.extend(chosen().filter(|(digest, _)| part_of(digest, parts) == number));
            part.sort_unstable();
            part.chunks(PAGE).for_each(|page| all.push(page));
        }
        all
    }

    fn push(&mut self, page: &[(ChunkDigest, u32)]) {
        let entry =
            |(digest, position): &(ChunkDigest, u32)| digest.0.into_iter().chain(position.to_le_bytes());
        let bytes: Vec<u8> = page.iter().flat_map(entry).collect();
        self.list.write(&bytes, self.end as u64);
        self.pages.extend(page.first().map(|(digest, _)| (*digest, self.end)));
        self.end = self.end.saturating_add(bytes.len());
    }

    /// The positions of all chunks with this digest.
    pub fn positions(&self, digest: &ChunkDigest) -> Vec<usize> {
        // The page before may end with it.
        let first = self.pages.partition_point(|(begin, _)| begin < digest).saturating_sub(1);
        let from = self.entries(first).skip_while(|(own, _)| own < digest);
        from.take_while(|(own, _)| own == digest).map(|(_, position)| position).collect()
    }

    /// What the pages from this one on have.
    fn entries(&self, page: usize) -> impl Iterator<Item = (ChunkDigest, usize)> {
        let numbers = page..self.pages.len();
        numbers.map_while(|number| self.page(number)).flatten()
    }

    fn page(&self, number: usize) -> Option<Vec<(ChunkDigest, usize)>> {
        let (_, start) = self.pages.get(number)?;
        let end = self.pages.get(number.saturating_add(1)).map_or(self.end, |(_, next)| *next);
        let mut block = [0; PAGE * ENTRY];
        let page = block.get_mut(..end.checked_sub(*start)?)?;
        if !self.list.read(page, *start as u64) {
            return None;
        }
        let entries = page.chunks_exact(ENTRY).filter_map(|entry| entry.split_first_chunk::<16>());
        let entry = |(digest, position): (&[u8; 16], &[u8])| {
            Some((ChunkDigest(*digest), u32::from_le_bytes(position.try_into().ok()?) as usize))
        };
        Some(entries.filter_map(entry).collect())
    }
}

/// Gives chunks that would be fetched although the image has them twice, and the target has or will have one of them,
/// that one as their origin. Frames that are as short as a gap between two requests are not worth it.
pub fn find_twins(index: &Index, origins: &Origins, workspace: &Workspace) {
    let worth = |chunk: &Chunk, origin: Origin| {
        u64::from(chunk.frame_length) > GAP && matches!(origin, Origin::Fetch | Origin::InPlace)
    };
    let all = ByDigest::new(index, origins, workspace, SORTED, worth);
    let mut twins: Vec<(ChunkDigest, usize)> = Vec::new();
    for entry in all.entries(0) {
        if twins.first().is_some_and(|(digest, _)| *digest != entry.0) {
            share(&twins, index, origins);
            twins.clear();
        }
        twins.push(entry);
    }
    share(&twins, index, origins);
}

/// Chunks with one digest, ascending: one that is in place serves all, or else the first is fetched for all.
fn share(twins: &[(ChunkDigest, usize)], index: &Index, origins: &Origins) {
    if twins.len() < 2 {
        return;
    }
    let in_place = twins.iter().find(|(_, position)| origins.get(*position) == Some(Origin::InPlace));
    let Some((_, source)) = in_place.or(twins.first()) else { return };
    let block = index.get(*source).and_then(|chunk| chunk.offset.checked_div(u64::from(BLOCK)));
    let block = block.and_then(|block| u32::try_from(block).ok());
    let Some(block) = block else { return };
    for (_, position) in twins.iter().filter(|(_, position)| position != source) {
        if origins.get(*position) == Some(Origin::Fetch) {
            origins.set(*position, &[Origin::Twin(block)]);
        }
    }
}

/// Which of `parts` parts of all digests this one is in.
fn part_of(digest: &ChunkDigest, parts: usize) -> usize {
    let first = digest.0.first_chunk().copied().map_or(0, u32::from_be_bytes);
    (u64::from(first).saturating_mul(parts as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an image that has 4 MiB of noise twice.
    fn doubled(seed: u64) -> Index {
        let mut image = vec![0u8; 9 << 20];
        fastrand::Rng::with_seed(seed).fill(&mut image[..4 << 20]);
        image.copy_within(..4 << 20, 4 << 20);
        let parts = crate::bundle::testing::parts(&image, "board", "1");
        let body = crate::manifest::Body::parse(&parts.manifest).unwrap();
        Index::parse(parts.index, &body.image).unwrap()
    }

    #[test]
    fn every_missing_chunk_is_found_by_its_digest_and_twins_both() {
        let index = doubled(3);
        let workspace = Workspace::default();
        let origins = Origins::new(&workspace, index.len());
        origins.set(1, &[Origin::InPlace]);
        let held = index.get(1).unwrap().digest;
        for at_once in [SORTED, 100, 1] {
            let missing = |_: &Chunk, origin| origin == Origin::Fetch;
            let wanted = ByDigest::new(&index, &origins, &workspace, at_once, missing);
            assert!(at_once < SORTED || wanted.pages.len() > 2, "one page does not show much");
            for chunk in index.iter() {
                let all =
                    index.iter().enumerate().filter(|(n, other)| *n != 1 && other.digest == chunk.digest);
                let expected: Vec<usize> = all.map(|(position, _)| position).collect();
                assert_eq!(wanted.positions(&chunk.digest), expected);
            }
            let twin = wanted.positions(&held);
            assert!(twin.len() == 1 && index.get(twin[0]).unwrap().offset >= 4 << 20);
            for none in [[0; 16], [0xff; 16]] {
                assert!(wanted.positions(&ChunkDigest(none)).is_empty());
            }
        }
        let all_held = Origins::new(&workspace, index.len());
        all_held.replace(|_| true, Origin::InPlace);
        assert!(ByDigest::missing(&index, &all_held, &workspace).positions(&held).is_empty());
        workspace.check().unwrap();
    }

    #[test]
    fn what_the_image_has_twice_is_fetched_once() {
        let index = doubled(4);
        let (workspace, twins) = (Workspace::default(), |chunk: &Chunk| {
            let same = |other: &Chunk| other.digest == chunk.digest && u64::from(chunk.frame_length) > GAP;
            index.iter().enumerate().filter(|(_, other)| same(other)).map(|(n, _)| n).collect::<Vec<_>>()
        });
        let block = |position| Origin::Twin((index.get(position).unwrap().offset / u64::from(BLOCK)) as u32);
        let origins = Origins::new(&workspace, index.len());
        // The second of one pair is in place already.
        let pair = twins(&index.get(3).unwrap());
        assert_eq!((pair.len(), pair[0]), (2, 3));
        origins.set(pair[1], &[Origin::InPlace]);
        find_twins(&index, &origins, &workspace);
        let mut shared = 0;
        for (position, (chunk, origin)) in index.iter().zip(origins.iter()).enumerate() {
            let all = twins(&chunk);
            let expected = match position {
                _ if position == pair[0] => block(pair[1]),
                _ if position == pair[1] => Origin::InPlace,
                _ if all.len() > 1 && position != all[0] => block(all[0]),
                _ => Origin::Fetch,
            };
            shared += usize::from(matches!(expected, Origin::Twin(_)));
            assert_eq!(origin, expected, "{position}");
        }
        assert!(shared > 100 && shared < index.len() / 2);
    }
}
