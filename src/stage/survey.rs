//! What the slots already hold. Every chunk is looked for at its place in the target, then anywhere in the
//! booted slot (the seed): where its map says, or else by cutting all of it by the bundle's own chunking rules.
//! Digests alone decide: no journal and no map is believed, so whatever an interrupted run left, or whatever
//! changed since, is right, and the bytes to fetch are known before the first is fetched.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;

use nix::libc::{O_CLOEXEC, O_DIRECT};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::buffer::{Pool, is_aligned};
use super::map::{self, Draft};
use super::{Progress, StageError, Step, Target};
use crate::bundle::chunker::{Chunker, is_zero};
use crate::bundle::{Chunk, ChunkDigest, Index};
use crate::manifest::{BLOCK, Chunking};

/// One read, bytes.
pub(super) const STEP: usize = 1 << 20;
/// So many blocks (8 MiB) a scanning thread goes on into the next one's part: by then that one cuts as if it had
/// begun at the slot's start, and no chunk is lost at the seam.
const SEAM: u64 = 2048;
/// A map is stale when more than this part of what it promises is not there: then the seed is scanned.
const STALE: u64 = 8;

/// Where a chunk will come from. Eight bytes, for there is one for each chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is where it belongs.
    InPlace,
    /// Zeros throughout.
    Zero,
    /// In the seed at this block (of 4096 bytes).
    Seed(u32),
    Fetch,
    /// In a frame of the patch from what the seed is.
    Patch,
}

/// Chunks that could not be had from where they were found.
pub(super) fn fetch_again(origins: &mut [Origin], lost: Vec<usize>) {
    for position in lost {
        if let Some(origin) = origins.get_mut(position) {
            *origin = Origin::Fetch;
        }
    }
}

/// The booted slot, read only. It may change while it is read: whatever is used of it is hashed first.
#[derive(Debug)]
pub(super) struct Seed {
    plain: File,
    direct: Option<File>,
    size: u64,
}

impl Seed {
    pub(super) fn open(path: &Path) -> io::Result<Seed> {
        let open = |flags| OpenOptions::new().read(true).custom_flags(O_CLOEXEC | flags).open(path);
        let plain = open(0)?;
        let size = (&plain).seek(SeekFrom::End(0))?;
        Ok(Seed { plain, direct: open(O_DIRECT).ok(), size })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = self.direct.as_ref().filter(|_| is_aligned(buffer, offset)) {
            if direct.read_exact_at(buffer, offset).is_ok() {
                return Ok(());
            }
        }
        self.plain.read_exact_at(buffer, offset)
    }
}

/// Everything that a survey looks at.
pub(super) struct Survey<'a> {
    pub index: &'a Index,
    pub chunking: &'a Chunking,
    pub target: &'a Target,
    pub seed: Option<&'a Seed>,
    /// The seed's map.
    pub map: Option<&'a Path>,
    /// Of at least `STEP` bytes each.
    pub buffers: &'a Pool,
    pub progress: &'a watch::Sender<Progress>,
    pub cancel: &'a CancellationToken,
}

impl Survey<'_> {
    /// One origin for each chunk of the index. Reads the target once, and of the seed what its map says of
    /// missing chunks, or all of it when there is no such map, on `threads` threads. Each byte that is read is
    /// progress.
    pub(super) fn run(&self, threads: usize) -> Result<Vec<Origin>, StageError> {
        let total = self.index.iter().map(|chunk| u64::from(chunk.length)).sum();
        self.progress.send_modify(|p| *p = Progress { step: Step::Surveying, total, done: 0, ..*p });
        let mut origins = vec![Origin::Fetch; self.index.len()];
        let length = origins.len().div_ceil(threads.max(1)).max(1);
        let parts = origins.chunks_mut(length).enumerate().map(|(n, part)| (n * length, part));
        in_parallel(parts, |(first, part)| self.in_target(first, part))?;
        if let Some(seed) = self.seed.filter(|_| origins.contains(&Origin::Fetch)) {
            if !self.by_map(seed, &mut origins, threads)? {
                self.in_seed(seed, &mut origins, threads)?;
            }
        }
        Ok(origins)
    }

    /// Gives chunks that would be fetched the place in the seed that the map says, where they are really there.
    /// `false`: there is no map for these chunks, or it is stale, and the rest must be looked for.
    fn by_map(&self, seed: &Seed, origins: &mut [Origin], threads: usize) -> Result<bool, StageError> {
        let Some(path) = self.map else { return Ok(false) };
        let wanted = Wanted::new(self.index, origins);
        let whole = map::read(path, self.chunking, |digest, block| {
            for position in wanted.positions(self.index, &digest) {
                if let Some(origin) = origins.get_mut(position as usize) {
                    *origin = Origin::Seed(block);
                }
            }
        });
        drop(wanted);
        let promised = self.in_seed_bytes(origins);
        self.progress.send_modify(|p| p.total += promised);
        let length = origins.len().div_ceil(threads.max(1)).max(1);
        let parts = origins.chunks_mut(length).enumerate().map(|(n, part)| (n * length, part));
        in_parallel(parts, |(first, part)| self.check_map(seed, first, part))?;
        let missing = promised - self.in_seed_bytes(origins);
        if missing > 0 {
            tracing::info!(promised, missing, "the booted slot changed since its chunk map was made");
        }
        Ok(whole && missing <= promised / STALE)
    }

    /// Bytes of the chunks that will be taken from the seed.
    fn in_seed_bytes(&self, origins: &[Origin]) -> u64 {
        let chunks = self.index.iter().zip(origins);
        let held = chunks.filter(|(_, origin)| matches!(origin, Origin::Seed(_)));
        held.map(|(chunk, _)| u64::from(chunk.length)).sum()
    }

    /// Sets the chunks from `first` on to `Fetch` that are not where `origins` says they are in the seed. Chunks
    /// that lie side by side are read at once.
    fn check_map(&self, seed: &Seed, first: usize, origins: &mut [Origin]) -> Result<(), StageError> {
        let (mut buffer, mut at) = (self.buffers.take(), 0);
        while let Some(origin) = origins.get(at) {
            self.check_cancelled()?;
            let Origin::Seed(start) = *origin else {
                at += 1;
                continue;
            };
            let mut block = start;
            let beside = |position: usize, chunk: &Chunk| {
                let here = origins.get(position - first) == Some(&Origin::Seed(block));
                block = block.saturating_add(chunk.length / BLOCK);
                here
            };
            let batch = self.batch(first + at, first + origins.len(), beside);
            let length = batch.iter().map(|chunk| chunk.length as usize).sum();
            let mut bytes = buffer.first_mut(length);
            let read = seed.read(bytes, u64::from(start) * u64::from(BLOCK));
            for (chunk, origin) in batch.iter().zip(origins.iter_mut().skip(at)) {
                let (content, rest) = bytes.split_at_mut(chunk.length as usize);
                if read.is_err() || ChunkDigest::of(content) != chunk.digest {
                    *origin = Origin::Fetch;
                }
                bytes = rest;
            }
            at += batch.len().max(1);
            self.progress.send_modify(|p| p.done += length as u64);
        }
        self.buffers.give(buffer);
        Ok(())
    }

    /// Compares the chunks from `first` on with the target, in reads of up to `STEP`.
    fn in_target(&self, first: usize, mut origins: &mut [Origin]) -> Result<(), StageError> {
        let mut buffer = self.buffers.take();
        let mut next = first;
        while !origins.is_empty() {
            self.check_cancelled()?;
            let batch = self.batch(next, next + origins.len(), |_, _| true);
            next += batch.len();
            let (found, rest) = origins.split_at_mut(batch.len());
            origins = rest;
            let Some(start) = batch.first().map(|chunk| chunk.offset) else { break };
            let length = batch.iter().map(|chunk| chunk.length as usize).sum();
            let mut bytes = buffer.first_mut(length);
            let read = self.target.read(bytes, start);
            if let Err(error) = &read {
                // Not in place, then: writing it anew may be what a bad sector needs, and fails otherwise.
                tracing::warn!(%error, "a part of the target can't be read");
            }
            for (chunk, origin) in batch.iter().zip(found) {
                let (content, rest) = bytes.split_at_mut(chunk.length as usize);
                *origin = self.compare(chunk, read.as_ref().ok().map(|()| &*content));
                bytes = rest;
            }
            self.progress.send_modify(|p| p.done += length as u64);
        }
        self.buffers.give(buffer);
        Ok(())
    }

    fn compare(&self, chunk: &Chunk, content: Option<&[u8]>) -> Origin {
        let zero = self.index.is_zero(chunk);
        let in_place = content.is_some_and(|content| match zero {
            true => is_zero(content),
            false => ChunkDigest::of(content) == chunk.digest,
        });
        match (in_place, zero) {
            (true, _) => Origin::InPlace,
            (false, true) => Origin::Zero,
            (false, false) => Origin::Fetch,
        }
    }

    /// The chunks from `next` on that fit one read, as far as they `belong`.
    fn batch(&self, next: usize, end: usize, mut belong: impl FnMut(usize, &Chunk) -> bool) -> Vec<Chunk> {
        let mut room = STEP as u64;
        let mut fits =
            |chunk: &Chunk| room.checked_sub(u64::from(chunk.length)).inspect(|left| room = *left).is_some();
        let chunks = (next..end).zip(self.index.from(next));
        chunks.take_while(|(n, chunk)| belong(*n, chunk) && fits(chunk)).map(|(_, chunk)| chunk).collect()
    }

    /// Gives chunks that would be fetched an origin in the seed, where it has them, and keeps the seed's map.
    fn in_seed(&self, seed: &Seed, origins: &mut [Origin], threads: usize) -> Result<(), StageError> {
        let wanted = Wanted::new(self.index, origins);
        let blocks = seed.size / u64::from(BLOCK);
        let origins = Mutex::new(origins);
        self.progress.send_modify(|p| p.total += seed.size);
        let draft = self.map.map(|path| Draft::new(path, self.chunking));
        let note = |digest: ChunkDigest, block: u32| {
            if let Some(draft) = &draft {
                draft.note(digest, block);
            }
            for position in wanted.positions(self.index, &digest) {
                let mut origins = origins.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(origin) = origins.get_mut(position as usize) {
                    *origin = Origin::Seed(block);
                }
            }
        };
        // Each thread begins with a fresh chunker: cuts depend on content, so after a chunk or two they are
        // the same as if the seed had been cut from its start.
        let blocks = blocks.min(u64::from(u32::MAX));
        in_parallel(split(blocks, threads).into_iter(), |part| match Chunker::new(self.chunking) {
            Some(chunker) => self.scan(seed, part.start..(part.end + SEAM).min(blocks), chunker, &note),
            None => Ok(()),
        })?;
        if let Some(draft) = draft {
            draft.finish();
        }
        Ok(())
    }

    /// Cuts `part` (in blocks) of the seed into chunks and tells `note` of each.
    fn scan(
        &self,
        seed: &Seed,
        part: Range<u64>,
        mut chunker: Chunker,
        note: &(dyn Fn(ChunkDigest, u32) + Sync),
    ) -> Result<(), StageError> {
        let block = BLOCK as usize;
        let mut buffer = self.buffers.take();
        // Bytes of the current chunk, which may reach back over several reads.
        let mut held: Vec<u8> = Vec::with_capacity(self.chunking.max as usize + block);
        let mut start = part.start;
        let mut emit = |held: &mut Vec<u8>, length: u32| {
            // Nobody looks for zeros.
            if let Some(content) = held.get(..length as usize).filter(|content| !is_zero(content)) {
                note(ChunkDigest::of(content), start as u32);
            }
            held.drain(..(length as usize).min(held.len()));
            start += u64::from(length / BLOCK);
        };
        for at in part.clone().step_by(STEP / block) {
            self.check_cancelled()?;
            let length = (part.end - at).min((STEP / block) as u64) as usize * block;
            let bytes = buffer.first_mut(length);
            if let Err(error) = seed.read(bytes, at * BLOCK as u64) {
                // The seed only saves bytes; an unreadable place costs some.
                tracing::warn!(offset = at * BLOCK as u64, %error, "the booted slot can't be read here");
                return Ok(());
            }
            self.progress.send_modify(|p| p.done = (p.done + length as u64).min(p.total));
            for content in bytes.chunks_exact(block) {
                let cut = chunker.push(content);
                held.extend_from_slice(content);
                if let Some(length) = cut {
                    emit(&mut held, length);
                }
            }
        }
        if let Some(length) = chunker.finish() {
            emit(&mut held, length);
        }
        self.buffers.give(buffer);
        Ok(())
    }

    fn check_cancelled(&self) -> Result<(), StageError> {
        if self.cancel.is_cancelled() { Err(StageError::Cancelled) } else { Ok(()) }
    }
}

/// Chunk numbers in the order of their digests: four bytes a chunk, found by bisection.
struct Wanted(Vec<u32>);

impl Wanted {
    fn new(index: &Index, origins: &[Origin]) -> Wanted {
        let missing = origins.iter().enumerate().filter(|(_, origin)| **origin == Origin::Fetch);
        let mut positions: Vec<u32> = missing.filter_map(|(position, _)| position.try_into().ok()).collect();
        positions.sort_unstable_by_key(|position| digest_at(index, *position));
        Wanted(positions)
    }

    /// All chunks with this digest.
    fn positions<'a>(
        &'a self,
        index: &'a Index,
        digest: &ChunkDigest,
    ) -> impl Iterator<Item = u32> + use<'a> {
        let digest = Some(*digest);
        let first = self.0.partition_point(|position| digest_at(index, *position) < digest);
        let rest = self.0.get(first..).unwrap_or_default().iter().copied();
        rest.take_while(move |position| digest_at(index, *position) == digest)
    }
}

fn digest_at(index: &Index, position: u32) -> Option<ChunkDigest> {
    index.get(position as usize).map(|chunk| chunk.digest)
}

/// `0..count` in `parts` ranges of nearly the same length.
fn split(count: u64, parts: usize) -> Vec<Range<u64>> {
    let length = count.div_ceil(parts.max(1) as u64).max(1);
    (0..count).step_by(length as usize).map(|start| start..(start + length).min(count)).collect()
}

/// Runs `work` on each part in a thread of its own; the first error counts.
fn in_parallel<P: Send>(
    parts: impl Iterator<Item = P>,
    work: impl Fn(P) -> Result<(), StageError> + Sync,
) -> Result<(), StageError> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<(), StageError>>| {
            thread.join().unwrap_or_else(|_| Err(StageError::Thread("the survey panicked".into())))
        };
        // All are joined, also after an error.
        let done: Vec<_> = threads.into_iter().map(join).collect();
        done.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        for (count, parts) in [(0, 2), (1, 4), (7, 2), (8, 4), (9, 0)] {
            let covered: Vec<u64> = split(count, parts).into_iter().flatten().collect();
            assert_eq!(covered, (0..count).collect::<Vec<u64>>());
        }
    }

    #[test]
    fn a_chunk_that_the_image_has_twice_is_found_twice() {
        let mut image = vec![0u8; 3 << 20];
        fastrand::Rng::with_seed(3).fill(&mut image[..1 << 20]);
        image.copy_within(..1 << 20, 2 << 20);
        let parts = crate::bundle::testing::parts(&image, "board", "1");
        let body = crate::manifest::Body::parse(&parts.manifest).unwrap();
        let index = Index::parse(parts.index, &body.image).unwrap();
        let wanted = Wanted::new(&index, &vec![Origin::Fetch; index.len()]);
        let twin = index.iter().position(|chunk| chunk.offset == 2 << 20).unwrap() as u32;
        let first = index.get(0).unwrap().digest;
        let mut found: Vec<u32> = wanted.positions(&index, &first).collect();
        found.sort();
        assert_eq!(found, [0, twin]);
        assert_eq!(wanted.positions(&index, &ChunkDigest([0; 16])).count(), 0);
    }
}
