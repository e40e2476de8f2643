//! What the slots already hold. Every chunk is looked for at its place in the target, then anywhere in the
//! booted slot (the seed): where its map says, or else by cutting all of it by the bundle's own chunking rules.
//! Digests alone decide: no journal and no map is believed, so whatever an interrupted run left, or whatever
//! changed since, is right, and the bytes to fetch are known before the first is fetched.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{O_CLOEXEC, O_DIRECT};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::buffer::{PIECE, Pool, is_aligned};
use super::by_digest::{ByDigest, find_twins};
use super::map::{self, Draft};
use super::origins::{Origin, Origins};
use super::workspace::Workspace;
use super::{GUARD, Progress, StageError, Step, Target};
use crate::bundle::chunker::{Chunker, is_zero};
use crate::bundle::{Chunk, ChunkDigest, Index};
use crate::manifest::{BLOCK, Chunking};

/// So many blocks (8 MiB) a scanning thread goes on into the next one's part: by then that one cuts as if it had
/// begun at the slot's start, and no chunk is lost at the seam.
const SEAM: u64 = 2048;
/// A map is stale when more than this part of what it promises is not there: then the seed is scanned.
const STALE: u64 = 8;

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
    pub buffers: &'a Pool,
    pub workspace: &'a Workspace,
    pub progress: &'a watch::Sender<Progress>,
    pub cancel: &'a CancellationToken,
}

impl Survey<'_> {
    /// One origin for each chunk of the index. Reads the target once, and of the seed what its map says of
    /// missing chunks, or all of it when there is no such map, on `threads` threads. Each byte that is read is
    /// progress.
    pub(super) fn run(&self, threads: usize) -> Result<Origins, StageError> {
        let total = self.index.image_size();
        self.progress.send_modify(|p| *p = Progress { step: Step::Surveying, total, done: 0, ..*p });
        let origins = Origins::new(self.workspace, self.index.len());
        self.in_parts(threads, |part| self.in_target(part, &origins))?;
        if origins.iter().any(|origin| origin != Origin::InPlace) {
            self.give_up_first(&origins);
        }
        if let Some(seed) = self.seed.filter(|_| origins.iter().any(|origin| origin == Origin::Fetch)) {
            if !self.by_map(seed, &origins, threads)? {
                self.in_seed(seed, &origins, threads)?;
            }
        }
        find_twins(self.index, &origins, self.workspace);
        self.workspace.check()?;
        Ok(origins)
    }

    /// The first MiB of a target that is to be written is zeroed before: what is in place there will not be.
    fn give_up_first(&self, origins: &Origins) {
        let first = self.index.iter().take_while(|chunk| chunk.offset < GUARD).enumerate();
        let lost = first.filter(|(position, chunk)| {
            !self.index.is_zero(chunk) && origins.get(*position) == Some(Origin::InPlace)
        });
        origins.set_each(lost.map(|(position, _)| position).collect(), Origin::Fetch);
    }

    /// Shares the chunks out among `threads` threads, so that each has as many bytes.
    fn in_parts(
        &self,
        threads: usize,
        work: impl Fn(Range<usize>) -> Result<(), StageError> + Sync,
    ) -> Result<(), StageError> {
        let positions = |part: Range<u64>| self.index.position(part.start)..self.index.position(part.end);
        in_parallel(split(self.index.image_size(), threads).into_iter().map(positions), work)
    }

    /// Gives chunks that would be fetched the place in the seed that the map says, where they are really there.
    /// `false`: there is no map for these chunks, or it is stale, and the rest must be looked for.
    fn by_map(&self, seed: &Seed, origins: &Origins, threads: usize) -> Result<bool, StageError> {
        let Some(path) = self.map else { return Ok(false) };
        let wanted = ByDigest::missing(self.index, origins, self.workspace);
        let mut sound = true;
        let whole = map::read(path, self.chunking, |digest, block| {
            sound &= block <= Origin::LAST_BLOCK;
            origins.set_each(wanted.positions(&digest), Origin::Seed(block));
        });
        drop(wanted);
        let promised = self.in_seed_bytes(origins);
        self.progress.send_modify(|p| p.total += promised);
        self.in_parts(threads, |part| self.check_map(seed, part, origins))?;
        let missing = promised - self.in_seed_bytes(origins);
        if missing > 0 {
            tracing::info!(promised, missing, "the booted slot changed since its chunk map was made");
        }
        Ok(whole && sound && missing <= promised / STALE)
    }

    /// Bytes of the chunks that will be taken from the seed.
    fn in_seed_bytes(&self, origins: &Origins) -> u64 {
        let chunks = self.index.iter().zip(origins.iter());
        let held = chunks.filter(|(_, origin)| matches!(origin, Origin::Seed(_)));
        held.map(|(chunk, _)| u64::from(chunk.length)).sum()
    }

    /// Sets the chunks of `part` to `Fetch` that are not where `origins` says they are in the seed. Chunks that lie
    /// side by side are read at once.
    fn check_map(&self, seed: &Seed, part: Range<usize>, origins: &Origins) -> Result<(), StageError> {
        let (mut buffer, mut at) = (self.buffers.take(), part.start);
        let mut told = origins.of(part.clone()).peekable();
        while let Some(origin) = told.next() {
            self.check_cancelled()?;
            let Origin::Seed(start) = origin else {
                at += 1;
                continue;
            };
            let mut block = start;
            let beside = |position: usize, chunk: &Chunk| {
                let here = position == at || told.next_if_eq(&Origin::Seed(block)).is_some();
                block = block.saturating_add(chunk.length / BLOCK);
                here
            };
            let batch = self.batch(at..part.end, beside);
            let length = batch.iter().map(|chunk| chunk.length as usize).sum();
            let mut bytes = buffer.first_mut(length);
            let read = seed.read(bytes, u64::from(start) * u64::from(BLOCK));
            for (position, chunk) in (at..).zip(&batch) {
                let (content, rest) = bytes.split_at_mut(chunk.length as usize);
                if read.is_err() || ChunkDigest::of(content) != chunk.digest {
                    origins.set(position, &[Origin::Fetch]);
                }
                bytes = rest;
            }
            at += batch.len().max(1);
            self.progress.send_modify(|p| p.done += length as u64);
        }
        self.buffers.give(buffer);
        Ok(())
    }

    /// Compares the chunks of `part` with the target, in reads of up to `PIECE` bytes.
    fn in_target(&self, part: Range<usize>, origins: &Origins) -> Result<(), StageError> {
        let (mut buffer, mut next) = (self.buffers.take(), part.start);
        while next < part.end {
            self.check_cancelled()?;
            let batch = self.batch(next..part.end, |_, _| true);
            let Some(start) = batch.first().map(|chunk| chunk.offset) else { break };
            let length = batch.iter().map(|chunk| chunk.length as usize).sum();
            let mut bytes = buffer.first_mut(length);
            let read = self.target.read(bytes, start);
            if let Err(error) = &read {
                // Not in place, then: writing it anew may be what a bad sector needs, and fails otherwise.
                tracing::warn!(%error, "a part of the target can't be read");
            }
            let mut found = Vec::with_capacity(batch.len());
            for chunk in &batch {
                let (content, rest) = bytes.split_at_mut(chunk.length as usize);
                found.push(self.compare(chunk, read.as_ref().ok().map(|()| &*content)));
                bytes = rest;
            }
            origins.set(next, &found);
            next += batch.len();
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

    /// The first chunks of `part` that fit one read, as far as they `belong`.
    fn batch(&self, part: Range<usize>, mut belong: impl FnMut(usize, &Chunk) -> bool) -> Vec<Chunk> {
        let mut room = PIECE as u64;
        let mut fits =
            |chunk: &Chunk| room.checked_sub(u64::from(chunk.length)).inspect(|left| room = *left).is_some();
        let chunks = part.clone().zip(self.index.from(part.start));
        chunks.take_while(|(n, chunk)| fits(chunk) && belong(*n, chunk)).map(|(_, chunk)| chunk).collect()
    }

    /// Gives chunks that would be fetched an origin in the seed, where it has them, and keeps the seed's map.
    fn in_seed(&self, seed: &Seed, origins: &Origins, threads: usize) -> Result<(), StageError> {
        let wanted = ByDigest::missing(self.index, origins, self.workspace);
        self.progress.send_modify(|p| p.total += seed.size);
        let draft = self.map.map(|path| Draft::new(path, self.chunking));
        let note = |digest: ChunkDigest, block: u32| {
            if let Some(draft) = &draft {
                draft.note(digest, block);
            }
            origins.set_each(wanted.positions(&digest), Origin::Seed(block));
        };
        // Each thread begins with a fresh chunker: cuts depend on content, so after a chunk or two they are
        // the same as if the seed had been cut from its start.
        let blocks = (seed.size / u64::from(BLOCK)).min(u64::from(u32::MAX));
        in_parallel(split(blocks, threads).into_iter(), |part| {
            let (mut at, end, mut lost) = (part.start, (part.end + SEAM).min(blocks), None);
            while at < end {
                let (next, error) = self.scan(seed, at..end, &note)?;
                at = next;
                lost = lost.or(error.map(|error| (next, error)));
            }
            if let Some((block, error)) = lost {
                // The seed only saves bytes; an unreadable place costs some.
                let before = block * u64::from(BLOCK);
                tracing::warn!(before, %error, "the booted slot can't be read everywhere");
            }
            Ok(())
        })?;
        if let Some(draft) = draft {
            draft.finish();
        }
        Ok(())
    }

    /// Cuts `part` (in blocks) of the seed into chunks and tells `note` of each. Returns how far it came: to the end, or
    /// behind a place that can't be read, where cutting begins anew.
    fn scan(
        &self,
        seed: &Seed,
        part: Range<u64>,
        note: &(dyn Fn(ChunkDigest, u32) + Sync),
    ) -> Result<(u64, Option<io::Error>), StageError> {
        let Some(mut chunker) = Chunker::new(self.chunking) else { return Ok((part.end, None)) };
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
        for at in part.clone().step_by(PIECE / block) {
            self.check_cancelled()?;
            let length = (part.end - at).min((PIECE / block) as u64) as usize * block;
            let bytes = buffer.first_mut(length);
            if let Err(error) = seed.read(bytes, at * BLOCK as u64) {
                self.progress.send_modify(|p| p.done = (p.done + length as u64).min(p.total));
                self.buffers.give(buffer);
                return Ok((at + (length / block) as u64, Some(error)));
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
        Ok((part.end, None))
    }

    fn check_cancelled(&self) -> Result<(), StageError> {
        if self.cancel.is_cancelled() { Err(StageError::Cancelled) } else { Ok(()) }
    }
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
}
