//! What the slots already hold. Every chunk is looked for at its place in the target, then anywhere in the
//! booted slot (the seed). A slot's map says what to read of it; without one all of it is read, and the seed is cut
//! by the bundle's own chunking rules. Digests alone decide: no journal and no map is believed, so whatever an
//! interrupted run left, or whatever changed since, is right, and the bytes to fetch are known before the first is
//! fetched.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{O_CLOEXEC, O_DIRECT};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::buffer::{Buffer, PIECE, Pool, is_aligned};
use super::by_digest::{ByDigest, find_twins};
use super::map::{self, Draft, Maps};
use super::origins::{Origin, Origins};
use super::workspace::Workspace;
use super::{GUARD, Progress, StageError, Step, Target};
use crate::bundle::chunker::{Chunker, is_zero};
use crate::bundle::{Chunk, ChunkDigest, Index};
use crate::manifest::{BLOCK, CHUNK_CAP, Chunking};

/// So many blocks (8 MiB) a scanning thread goes on into the next one's part: by then that one cuts as if it had
/// begun at the slot's start, and no chunk is lost at the seam.
const SEAM: u64 = 2048;
/// A map is stale when more than this part of what it promises is not there: then all of its slot is read.
const STALE: u64 = 8;
/// What is read of a medium at once to check chunks in it, bytes: large reads are faster, and nothing else needs
/// memory yet.
const READ: usize = 1 << 20;
const _: () = assert!(READ >= CHUNK_CAP as usize);

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
    pub maps: Option<&'a Maps>,
    pub buffers: &'a Pool,
    pub workspace: &'a Workspace,
    pub progress: &'a watch::Sender<Progress>,
    pub cancel: &'a CancellationToken,
}

/// A slot in which chunks are checked.
#[derive(Clone, Copy)]
enum Medium<'a> {
    Target(&'a Target),
    Seed(&'a Seed),
}

impl Medium<'_> {
    /// Where a chunk of this origin begins in it, bytes; `None` if it is not said to be there.
    fn place(self, chunk: &Chunk, origin: Origin) -> Option<u64> {
        match (self, origin) {
            (Medium::Target(_), Origin::InPlace) => Some(chunk.offset),
            (Medium::Seed(_), Origin::Seed(block)) => Some(u64::from(block) * u64::from(BLOCK)),
            _ => None,
        }
    }

    /// `false`: it can't be read there, and so nothing of it can be used.
    fn read(self, buffer: &mut [u8], place: u64) -> bool {
        let read = match self {
            Medium::Target(target) => target.read(buffer, place).map_err(|error| error.to_string()),
            Medium::Seed(seed) => {
                seed.read(buffer, place).map_err(|error| format!("the booted slot: {error}"))
            }
        };
        read.inspect_err(|error| tracing::warn!(place, error, "a part of a slot can't be read")).is_ok()
    }
}

impl Survey<'_> {
    /// One origin for each chunk of the index. Reads of both slots what their maps say of it, or all of them when
    /// there is no such map, on `threads` threads. Each byte that is read is progress.
    pub(super) fn run(&self, threads: usize) -> Result<Origins, StageError> {
        self.progress.send_modify(|p| *p = Progress { step: Step::Surveying, total: 0, done: 0, ..*p });
        let origins = Origins::new(self.workspace, self.index.len());
        self.in_target(&origins, threads)?;
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

    /// Gives chunks that are where they belong the origin `InPlace`. An interrupted run leaves no map, so all that it
    /// wrote is looked at.
    fn in_target(&self, origins: &Origins, threads: usize) -> Result<(), StageError> {
        let medium = Medium::Target(self.target);
        if self.claim(origins) {
            let samples = self.samples(origins);
            let promised = self.bytes_in(medium, origins);
            origins.set_each(samples.clone(), Origin::InPlace);
            self.check(medium, origins, threads)?;
            let found = self.bytes_in(medium, origins);
            let surprise = samples.into_iter().any(|sample| origins.get(sample) == Some(Origin::InPlace));
            if !surprise && promised.saturating_sub(found) <= promised / STALE {
                return Ok(());
            }
            tracing::info!(
                promised,
                found,
                "the target changed since its chunk map was made: all of it is read"
            );
        }
        origins.replace(|_| true, Origin::InPlace);
        self.check(medium, origins, threads)
    }

    /// Gives the origin `InPlace` to the chunks that the target's map says are in place, and to zeros if it knows of
    /// nothing else there. `false`: there is no such map.
    fn claim(&self, origins: &Origins) -> bool {
        let Some(maps) = self.maps else { return false };
        let zeros = self.index.iter().enumerate().filter(|(_, chunk)| self.index.is_zero(chunk));
        origins.set_each(zeros.map(|(position, _)| position).collect(), Origin::InPlace);
        let from = |position| (position..).zip(self.index.from(position)).peekable();
        let (mut chunks, mut latest) = (from(0), None);
        map::read(&maps.target, self.chunking, |digest, block| {
            let place = u64::from(block) * u64::from(BLOCK);
            // Maps are in order, but for that of a scan, which several threads made.
            if chunks.peek().is_none_or(|(_, chunk)| chunk.offset > place) {
                chunks = from(self.index.position(place));
            }
            while chunks.next_if(|(_, chunk)| chunk.offset + u64::from(chunk.length) <= place).is_some() {}
            let Some((position, chunk)) = chunks.peek() else { return };
            let origin = match (chunk.offset, chunk.digest) == (place, digest) {
                true => Origin::InPlace,
                false if self.index.is_zero(chunk) => Origin::Zero,
                false => return,
            };
            if latest.replace(*position) != Some(*position) {
                origins.set(*position, &[origin]);
            }
        })
    }

    /// One chunk of each group that a map does not know of: if any of them is in place all the same, the map is that of
    /// another content.
    fn samples(&self, origins: &Origins) -> Vec<usize> {
        let mut latest = None;
        let unknown = self.index.iter().zip(origins.iter()).enumerate();
        let unknown = unknown.filter(|(_, (_, origin))| *origin == Origin::Fetch);
        let samples =
            unknown.filter(|(_, (chunk, _))| latest.replace(chunk.group_offset) != Some(chunk.group_offset));
        samples.map(|(position, _)| position).collect()
    }

    /// The first MiB of a target that is to be written is zeroed before: what is in place there will not be.
    fn give_up_first(&self, origins: &Origins) {
        let first = self.index.iter().take_while(|chunk| chunk.offset < GUARD).enumerate();
        let lost = first.filter(|(position, chunk)| {
            !self.index.is_zero(chunk) && origins.get(*position) == Some(Origin::InPlace)
        });
        origins.set_each(lost.map(|(position, _)| position).collect(), Origin::Fetch);
    }

    /// Gives chunks that would be fetched the place in the seed that the map says, where they are really there.
    /// `false`: there is no map for these chunks, or it is stale, and the rest must be looked for.
    fn by_map(&self, seed: &Seed, origins: &Origins, threads: usize) -> Result<bool, StageError> {
        let Some(maps) = self.maps else { return Ok(false) };
        let wanted = ByDigest::missing(self.index, origins, self.workspace);
        let mut sound = true;
        let whole = map::read(&maps.booted, self.chunking, |digest, block| {
            sound &= block <= Origin::LAST_BLOCK;
            origins.set_each(wanted.positions(&digest), Origin::Seed(block));
        });
        drop(wanted);
        let medium = Medium::Seed(seed);
        let promised = self.bytes_in(medium, origins);
        self.check(medium, origins, threads)?;
        let missing = promised - self.bytes_in(medium, origins);
        if missing > 0 {
            tracing::info!(promised, missing, "the booted slot changed since its chunk map was made");
        }
        Ok(whole && sound && missing <= promised / STALE)
    }

    /// Bytes of the chunks that `origins` says are in `medium`.
    fn bytes_in(&self, medium: Medium<'_>, origins: &Origins) -> u64 {
        let chunks = self.index.iter().zip(origins.iter());
        let held = chunks.filter(|(chunk, origin)| medium.place(chunk, *origin).is_some());
        held.map(|(chunk, _)| u64::from(chunk.length)).sum()
    }

    /// Reads the chunks that `origins` says are in `medium`, and takes that origin from those that are not. Shares them
    /// out among `threads` threads, so that each has a part of the image with as many bytes.
    fn check(&self, medium: Medium<'_>, origins: &Origins, threads: usize) -> Result<(), StageError> {
        let work = self.bytes_in(medium, origins);
        self.progress.send_modify(|p| p.total += work);
        let positions = |part: Range<u64>| self.index.position(part.start)..self.index.position(part.end);
        let parts = split(self.index.image_size(), threads).into_iter().map(positions);
        in_parallel(parts, |part| self.check_part(medium, part, origins))
    }

    /// The same for the chunks of `part`. What lies side by side is read at once.
    fn check_part(
        &self,
        medium: Medium<'_>,
        part: Range<usize>,
        origins: &Origins,
    ) -> Result<(), StageError> {
        let mut buffer = Buffer::new(READ);
        let all = part.clone().zip(self.index.from(part.start)).zip(origins.of(part));
        let placed = |((position, chunk), origin)| Some((position, medium.place(&chunk, origin)?, chunk));
        let mut told = all.filter_map(placed).peekable();
        while let Some((_, start, _)) = told.peek() {
            self.check_cancelled()?;
            let (start, mut length, mut batch) = (*start, 0, Vec::new());
            let joins = |place: u64, chunk: &Chunk, length: usize| {
                place == start + length as u64 && length + chunk.length as usize <= READ
            };
            while let Some(next) = told.next_if(|(_, place, chunk)| joins(*place, chunk, length)) {
                length += next.2.length as usize;
                batch.push(next);
            }
            let mut bytes = buffer.first_mut(length);
            let read = medium.read(bytes, start);
            for (position, place, chunk) in batch {
                let (content, rest) = bytes.split_at_mut(chunk.length as usize);
                // Around a bad sector, the chunks that do not have it can be read alone.
                let alone = |content: &mut [u8]| medium.read(content, place);
                if !(read || alone(content)) || !self.is_right(&chunk, content) {
                    origins.set(position, &[self.other_origin(&chunk)]);
                }
                bytes = rest;
            }
            self.progress.send_modify(|p| p.done += length as u64);
        }
        Ok(())
    }

    fn is_right(&self, chunk: &Chunk, content: &[u8]) -> bool {
        match self.index.is_zero(chunk) {
            true => is_zero(content),
            false => ChunkDigest::of(content) == chunk.digest,
        }
    }

    /// Of a chunk that no slot has.
    fn other_origin(&self, chunk: &Chunk) -> Origin {
        if self.index.is_zero(chunk) { Origin::Zero } else { Origin::Fetch }
    }

    /// Gives chunks that would be fetched an origin in the seed, where it has them, and keeps the seed's map.
    fn in_seed(&self, seed: &Seed, origins: &Origins, threads: usize) -> Result<(), StageError> {
        let wanted = ByDigest::missing(self.index, origins, self.workspace);
        self.progress.send_modify(|p| p.total += seed.size);
        let draft = self.maps.map(|maps| Draft::new(&maps.booted, self.chunking));
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
