//! Chunks in the order of their digests: for each chunk that the booted slot has it must be known at once where the
//! new image wants it, and what the image has twice need be fetched only once.

use crate::bundle::{Chunk, ChunkDigest, GAP, Index};
use crate::stage::sources::chunks::{ChunkSource, Sources};

/// Some chunks of an image, in the order of their digests: eight bytes a chunk, for as long as one step takes.
pub struct ByDigest<'a> {
    index: &'a Index,
    /// The first four bytes of the digest and, below them, the position.
    sorted: Vec<u64>,
}

impl<'a> ByDigest<'a> {
    pub fn missing(index: &'a Index, sources: &Sources) -> ByDigest<'a> {
        ByDigest::new(index, sources, |_, source| source == ChunkSource::Fetch)
    }

    fn new(index: &'a Index, sources: &Sources, which: impl Fn(&Chunk, ChunkSource) -> bool) -> ByDigest<'a> {
        let all = (0u64..).zip(index.iter().zip(sources.iter()));
        let chosen = all.filter(|(_, (chunk, source))| which(chunk, *source));
        let mut sorted: Vec<u64> =
            chosen.map(|(position, (chunk, _))| first_bytes(&chunk.digest) | position).collect();
        sorted.sort_unstable();
        ByDigest { index, sorted }
    }

    /// The positions of all chunks with this digest, ascending.
    pub fn positions(&self, digest: &ChunkDigest) -> Vec<usize> {
        let first = self.sorted.partition_point(|entry| *entry < first_bytes(digest));
        let alike = self.sorted.iter().skip(first).take_while(|entry| *entry & DIGEST == first_bytes(digest));
        let positions = alike.map(|entry| position(*entry));
        positions.filter(|position| self.digest(*position) == Some(*digest)).collect()
    }

    fn digest(&self, position: usize) -> Option<ChunkDigest> {
        self.index.get(position).map(|chunk| chunk.digest)
    }
}

/// The part of an entry that is of a digest.
const DIGEST: u64 = !0 << 32;

fn first_bytes(digest: &ChunkDigest) -> u64 {
    digest.0.first_chunk().map_or(0, |first| u64::from(u32::from_be_bytes(*first)) << 32)
}

fn position(entry: u64) -> usize {
    (entry & !DIGEST) as usize
}

/// Gives chunks that would be fetched although the image has them twice, and the target has or will have one of them,
/// that one as their source. Frames that are as short as a gap between two requests are not worth it.
pub fn find_duplicates(index: &Index, sources: &Sources) {
    let worth = |chunk: &Chunk, source: ChunkSource| {
        u64::from(chunk.frame_length) > GAP && matches!(source, ChunkSource::Fetch | ChunkSource::InPlace)
    };
    let all = ByDigest::new(index, sources, worth);
    let alike = all.sorted.chunk_by(|one, other| one & DIGEST == other & DIGEST);
    for alike in alike.filter(|alike| alike.len() > 1) {
        // So many bytes may be the same by chance.
        let digest = |entry: &u64| Some((all.digest(position(*entry))?, position(*entry)));
        let mut alike: Vec<_> = alike.iter().filter_map(digest).collect();
        alike.sort_unstable();
        alike.chunk_by(|one, other| one.0 == other.0).for_each(|same| share(same, index, sources));
    }
}

/// Chunks with one digest, ascending: one that is in place serves all, or else the first is fetched for all.
fn share(same: &[(ChunkDigest, usize)], index: &Index, sources: &Sources) {
    let positions = || same.iter().map(|(_, position)| *position);
    let in_place = positions().find(|position| sources.get(*position) == Some(ChunkSource::InPlace));
    let Some(original) = in_place.or(positions().next()) else { return };
    let Some(block) = index.get(original).and_then(|chunk| chunk.block()) else { return };
    let others = positions().filter(|position| *position != original);
    sources.set(
        others.filter(|position| sources.get(*position) == Some(ChunkSource::Fetch)),
        ChunkSource::Duplicate(block),
    );
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
    fn every_missing_chunk_is_found_by_its_digest_and_duplicates_both() {
        let index = doubled(3);
        let sources = Sources::new(index.len());
        sources.set([1], ChunkSource::InPlace);
        let held = index.get(1).unwrap().digest;
        let wanted = ByDigest::missing(&index, &sources);
        for chunk in index.iter() {
            let all = index.iter().enumerate().filter(|(n, other)| *n != 1 && other.digest == chunk.digest);
            let expected: Vec<usize> = all.map(|(position, _)| position).collect();
            assert_eq!(wanted.positions(&chunk.digest), expected);
        }
        let twin = wanted.positions(&held);
        assert!(twin.len() == 1 && index.get(twin[0]).unwrap().offset >= 4 << 20);
        for none in [[0; 16], [0xff; 16]] {
            assert!(wanted.positions(&ChunkDigest(none)).is_empty());
        }
        // Another digest that begins alike is another one.
        let mut alike = held;
        alike.0[15] ^= 1;
        assert!(wanted.positions(&alike).is_empty());
        sources.replace(|_| true, ChunkSource::InPlace);
        assert!(ByDigest::missing(&index, &sources).positions(&held).is_empty());
    }

    #[test]
    fn what_the_image_has_twice_is_fetched_once() {
        let index = doubled(4);
        let twins = |chunk: &Chunk| {
            let same = |other: &Chunk| other.digest == chunk.digest && u64::from(chunk.frame_length) > GAP;
            index.iter().enumerate().filter(|(_, other)| same(other)).map(|(n, _)| n).collect::<Vec<_>>()
        };
        let block = |position| ChunkSource::Duplicate(index.get(position).unwrap().block().unwrap());
        let sources = Sources::new(index.len());
        // The second of one pair is in place already.
        let pair = twins(&index.get(3).unwrap());
        assert_eq!((pair.len(), pair[0]), (2, 3));
        sources.set([pair[1]], ChunkSource::InPlace);
        find_duplicates(&index, &sources);
        let mut shared = 0;
        for (position, (chunk, source)) in index.iter().zip(sources.iter()).enumerate() {
            let all = twins(&chunk);
            let expected = match position {
                _ if position == pair[0] => block(pair[1]),
                _ if position == pair[1] => ChunkSource::InPlace,
                _ if all.len() > 1 && position != all[0] => block(all[0]),
                _ => ChunkSource::Fetch,
            };
            shared += usize::from(matches!(expected, ChunkSource::Duplicate(_)));
            assert_eq!(source, expected, "{position}");
        }
        assert!(shared > 100 && shared < index.len() / 2);
    }
}
