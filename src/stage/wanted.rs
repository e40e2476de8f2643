//! Which chunks are missing, by their digests: for each chunk that the booted slot has it must be known at once where
//! the new image wants it.

use super::origins::{Origin, Origins};
use super::workspace::{List, Workspace};
use crate::bundle::{ChunkDigest, Index, Keeper as _};

/// A digest and the position of a chunk with it, bytes.
const ENTRY: usize = 20;
/// Entries that are read at once, at most.
const PAGE: usize = 256;
/// About so many entries are sorted at once: 1.3 MB.
const SORTED: usize = 1 << 16;

/// The missing chunks in the order of their digests.
pub(super) struct Wanted {
    list: List,
    /// Where each page begins, and with which digest.
    pages: Vec<(ChunkDigest, usize)>,
    end: usize,
}

impl Wanted {
    /// Of the chunks whose origin is `Fetch`.
    pub(super) fn new(index: &Index, origins: &Origins, workspace: &Workspace) -> Wanted {
        Wanted::sorted(index, origins, workspace, SORTED)
    }

    fn sorted(index: &Index, origins: &Origins, workspace: &Workspace, at_once: usize) -> Wanted {
        let missing = || {
            let all = (0u32..).zip(index.iter().zip(origins.iter()));
            let missing = all.filter(|(_, (_, origin))| *origin == Origin::Fetch);
            missing.map(|(position, (chunk, _))| (chunk.digest, position))
        };
        let count = missing().count();
        let list = workspace.list((count * ENTRY) as u64);
        let mut wanted = Wanted { list, pages: Vec::new(), end: 0 };
        // Digests are spread evenly, so each part of their range has about as many.
        let parts = count.div_ceil(at_once.max(1));
        let mut part = Vec::new();
        for number in 0..parts {
            part.clear();
            part.extend(missing().filter(|(digest, _)| part_of(digest, parts) == number));
            part.sort_unstable();
            part.chunks(PAGE).for_each(|page| wanted.push(page));
        }
        wanted
    }

    fn push(&mut self, page: &[(ChunkDigest, u32)]) {
        let entry =
            |(digest, position): &(ChunkDigest, u32)| digest.0.into_iter().chain(position.to_le_bytes());
        let bytes: Vec<u8> = page.iter().flat_map(entry).collect();
        self.list.write(&bytes, self.end as u64);
        self.pages.extend(page.first().map(|(digest, _)| (*digest, self.end)));
        self.end += bytes.len();
    }

    /// The positions of all chunks with this digest.
    pub(super) fn positions(&self, digest: &ChunkDigest) -> Vec<usize> {
        let mut found = Vec::new();
        // The page before may end with it.
        let first = self.pages.partition_point(|(begin, _)| begin < digest).saturating_sub(1);
        let mut block = [0; PAGE * ENTRY];
        for (number, (begin, start)) in self.pages.iter().enumerate().skip(first) {
            if begin > digest {
                break;
            }
            let end = self.pages.get(number + 1).map_or(self.end, |(_, next)| *next);
            let Some(page) = block.get_mut(..end - start) else { break };
            if !self.list.read(page, *start as u64) {
                break;
            }
            let entries = page.chunks_exact(ENTRY).filter_map(|entry| entry.split_first_chunk::<16>());
            let same = entries.filter(|(own, _)| **own == digest.0);
            let position = same.filter_map(|(_, position)| position.try_into().ok()).map(u32::from_le_bytes);
            found.extend(position.map(|position| position as usize));
        }
        found
    }
}

/// Which of `parts` parts of all digests this one is in.
fn part_of(digest: &ChunkDigest, parts: usize) -> usize {
    let first = digest.0.first_chunk().copied().map_or(0, u32::from_be_bytes);
    ((u64::from(first) * parts as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_chunk_is_found_by_its_digest_and_twins_both() {
        let mut image = vec![0u8; 9 << 20];
        fastrand::Rng::with_seed(3).fill(&mut image[..4 << 20]);
        image.copy_within(..4 << 20, 4 << 20);
        let parts = crate::bundle::testing::parts(&image, "board", "1");
        let body = crate::manifest::Body::parse(&parts.manifest).unwrap();
        let index = Index::parse(parts.index, &body.image).unwrap();
        let workspace = Workspace::default();
        let origins = Origins::new(&workspace, index.len());
        origins.set(1, &[Origin::InPlace]);
        let held = index.get(1).unwrap().digest;
        for at_once in [SORTED, 100, 1] {
            let wanted = Wanted::sorted(&index, &origins, &workspace, at_once);
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
        assert!(Wanted::new(&index, &all_held, &workspace).positions(&held).is_empty());
        workspace.check().unwrap();
    }
}
