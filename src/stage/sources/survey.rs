//! What the slots already hold. Every chunk is looked for at its place in the target, then anywhere in the
//! booted slot (the seed). A slot's map says what to read of it; without one all of it is read, and the seed is cut
//! by the bundle's own chunking rules. Digests alone decide: no journal and no map is believed, so whatever an
//! interrupted run left, or whatever changed since, is right, and the bytes to fetch are known before the first is
//! fetched.

use std::ops::Range;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bundle::{Chunk, Index, offset_of};
use crate::manifest::{CHUNK_CAP, Chunking};
use crate::stage::buffer::Buffer;
use crate::stage::error::StageError;
use crate::stage::parallel::{in_parallel, split};
use crate::stage::progress::{Progress, Step};
use crate::stage::sources::chunks::{ChunkSource, Sources};
use crate::stage::sources::duplicates::{ByDigest, find_duplicates};
use crate::stage::sources::maps::{self, Draft, Maps};
use crate::stage::sources::scan::Scan;
use crate::stage::sources::seed::Seed;

/// A map is stale when more than this part of what it promises is not there: then all of its slot is read.
const STALE: u64 = 8;
/// What is read of a medium at once to check chunks in it, bytes: large reads are faster, and nothing else needs
/// memory yet.
const READ: usize = 1 << 20;
const _: () = assert!(READ >= CHUNK_CAP as usize);
/// Around a bad sector the chunks are read one by one. When so many of them fail it is more than a sector, and the
/// others are given up: each failure may take a medium seconds.
const TRIES: usize = 4;

/// Fills the buffer from this offset.
pub type ReadAt<'a> = dyn Fn(&mut [u8], u64) -> Result<(), StageError> + Sync + 'a;

pub struct Survey<'a> {
    pub index: &'a Index,
    pub chunking: &'a Chunking,
    pub target: &'a ReadAt<'a>,
    /// Bytes at the target's start that are zeroed before anything is written there.
    pub withheld: u64,
    pub seed: Option<&'a Seed>,
    pub maps: Option<&'a Maps>,
    pub progress: &'a watch::Sender<Progress>,
    pub cancel: &'a CancellationToken,
}

#[derive(Clone, Copy)]
enum Searched<'a> {
    Target(&'a ReadAt<'a>),
    Seed(&'a Seed),
}

impl Searched<'_> {
    /// Where a chunk of this source begins in it, bytes; `None` if it is not said to be there.
    fn place(self, chunk: &Chunk, source: ChunkSource) -> Option<u64> {
        match (self, source) {
            (Searched::Target(_), ChunkSource::InPlace) => Some(chunk.offset),
            (Searched::Seed(_), ChunkSource::Seed(block)) => Some(offset_of(block)),
            _ => None,
        }
    }

    fn read(self, buffer: &mut [u8], place: u64) -> Result<(), String> {
        match self {
            Searched::Target(read) => read(buffer, place).map_err(|error| error.to_string()),
            Searched::Seed(seed) => seed
                .read(buffer, place)
                .map_err(|error| format!("the booted slot failed at {place}: {error}")),
        }
    }
}

impl Survey<'_> {
    /// One source for each chunk of the index. Reads of both slots what their maps say of it, or all of them when
    /// there is no such map, on `threads` threads. Each byte that is read is progress.
    pub fn run(&self, threads: usize) -> Result<Sources, StageError> {
        self.progress.send_modify(|p| *p = Progress { step: Step::Surveying, total: 0, done: 0, ..*p });
        let sources = Sources::new(self.index.len());
        self.in_target(&sources, threads)?;
        if !sources.is_done() {
            self.give_up_first(&sources);
        }
        if let Some(seed) = self.seed.filter(|_| sources.iter().any(|source| source == ChunkSource::Fetch)) {
            if !self.by_map(seed, &sources, threads)? {
                self.by_scan(seed, &sources, threads)?;
            }
        }
        find_duplicates(self.index, &sources);
        Ok(sources)
    }

    /// Gives chunks that are where they belong the source `InPlace`. An interrupted run leaves no map, so all that it
    /// wrote is looked at.
    fn in_target(&self, sources: &Sources, threads: usize) -> Result<(), StageError> {
        let medium = Searched::Target(self.target);
        if self.claim(sources) {
            let samples = self.samples(sources);
            let promised = self.bytes_in(medium, sources);
            sources.set(samples.iter().copied(), ChunkSource::InPlace);
            self.check(medium, sources, threads)?;
            let found = self.bytes_in(medium, sources);
            let surprise =
                samples.into_iter().any(|sample| sources.get(sample) == Some(ChunkSource::InPlace));
            if !surprise && promised.saturating_sub(found) <= promised / STALE {
                return Ok(());
            }
            tracing::info!(
                promised,
                found,
                "the target changed since its chunk map was made: all of it is read"
            );
        }
        sources.replace(|_| true, ChunkSource::InPlace);
        self.check(medium, sources, threads).map(drop)
    }

    /// Gives the source `InPlace` to the chunks that the target's map says are in place, and to zeros if it knows of
    /// nothing else there. `false`: there is no such map.
    fn claim(&self, sources: &Sources) -> bool {
        let Some(maps) = self.maps else { return false };
        let zeros = self.index.iter().enumerate().filter(|(_, chunk)| self.index.is_zero(chunk));
        sources.set(zeros.map(|(position, _)| position), ChunkSource::InPlace);
        let from = |position| (position..).zip(self.index.from(position)).peekable();
        let (mut chunks, mut latest) = (from(0), None);
        maps::read(&maps.target, self.chunking, |digest, block| {
            let place = offset_of(block);
            // Maps are in order, but for that of a scan, which several threads made.
            if chunks.peek().is_none_or(|(_, chunk)| chunk.offset > place) {
                chunks = from(self.index.position(place));
            }
            while chunks.next_if(|(_, chunk)| chunk.end() <= place).is_some() {}
            let Some((position, chunk)) = chunks.peek() else { return };
            let source = match (chunk.offset, chunk.digest) == (place, digest) {
                true => ChunkSource::InPlace,
                false if self.index.is_zero(chunk) => ChunkSource::Zero,
                false => return,
            };
            if latest.replace(*position) != Some(*position) {
                sources.set([*position], source);
            }
        })
    }

    /// One chunk of each group that a map does not know of: if any of them is in place all the same, the map is that of
    /// another content.
    fn samples(&self, sources: &Sources) -> Vec<usize> {
        let mut latest = None;
        let unknown = self.index.iter().zip(sources.iter()).enumerate();
        let unknown = unknown.filter(|(_, (_, source))| *source == ChunkSource::Fetch);
        let samples =
            unknown.filter(|(_, (chunk, _))| latest.replace(chunk.group_offset) != Some(chunk.group_offset));
        samples.map(|(position, _)| position).collect()
    }

    /// The first MiB of a target that is to be written is zeroed before: what is in place there will not be.
    fn give_up_first(&self, sources: &Sources) {
        let first = self.index.iter().take_while(|chunk| chunk.offset < self.withheld).enumerate();
        let lost = first.filter(|(position, chunk)| {
            !self.index.is_zero(chunk) && sources.get(*position) == Some(ChunkSource::InPlace)
        });
        sources.set(lost.map(|(position, _)| position), ChunkSource::Fetch);
    }

    /// Gives chunks that would be fetched the place in the seed that the map says, where they are really there.
    /// `false`: there is no map for these chunks, or it is stale, and the rest must be looked for.
    fn by_map(&self, seed: &Seed, sources: &Sources, threads: usize) -> Result<bool, StageError> {
        let Some(maps) = self.maps else { return Ok(false) };
        let wanted = ByDigest::missing(self.index, sources);
        let mut sound = true;
        let whole = maps::read(&maps.booted, self.chunking, |digest, block| {
            sound &= block <= ChunkSource::LAST_BLOCK;
            sources.set(wanted.positions(&digest), ChunkSource::Seed(block));
        });
        drop(wanted);
        let medium = Searched::Seed(seed);
        let promised = self.check(medium, sources, threads)?;
        let missing = promised.saturating_sub(self.bytes_in(medium, sources));
        if missing > 0 {
            tracing::info!(promised, missing, "the booted slot changed since its chunk map was made");
        }
        Ok(whole && sound && missing <= promised / STALE)
    }

    /// Gives chunks that would be fetched an source in the seed, wherever it has them, and keeps the seed's map.
    fn by_scan(&self, seed: &Seed, sources: &Sources, threads: usize) -> Result<(), StageError> {
        let wanted = ByDigest::missing(self.index, sources);
        let draft = self.maps.map(|maps| Draft::new(&maps.booted, self.chunking));
        let &Survey { chunking, progress, cancel, .. } = self;
        Scan { seed, chunking, progress, cancel }.run(threads, |digest, block| {
            if let Some(draft) = &draft {
                draft.note(digest, block);
            }
            sources.set(wanted.positions(&digest), ChunkSource::Seed(block));
        })?;
        if let Some(draft) = draft {
            draft.finish();
        }
        Ok(())
    }

    /// Bytes of the chunks that `sources` says are in `medium`.
    fn bytes_in(&self, medium: Searched<'_>, sources: &Sources) -> u64 {
        let chunks = self.index.iter().zip(sources.iter());
        let held = chunks.filter(|(chunk, source)| medium.place(chunk, *source).is_some());
        held.map(|(chunk, _)| u64::from(chunk.length)).sum()
    }

    /// Reads the chunks that `sources` says are in `medium`, and takes that source from those that are not. Shares them
    /// out among `threads` threads, so that each has a part of the image with as many bytes. Returns how many bytes
    /// it read.
    fn check(&self, medium: Searched<'_>, sources: &Sources, threads: usize) -> Result<u64, StageError> {
        let work = self.bytes_in(medium, sources);
        self.progress.send_modify(|p| p.total = p.total.saturating_add(work));
        let positions = |part: Range<u64>| self.index.position(part.start)..self.index.position(part.end);
        let parts = split(self.index.image_size(), threads).into_iter().map(positions);
        let checked = in_parallel(parts, |part| self.check_part(medium, part, sources))?;
        checked.into_iter().collect::<Result<(), _>>()?;
        Ok(work)
    }

    /// The same for the chunks of `part`. What lies side by side is read at once.
    fn check_part(
        &self,
        medium: Searched<'_>,
        part: Range<usize>,
        sources: &Sources,
    ) -> Result<(), StageError> {
        let mut buffer = Buffer::new(READ);
        let all = part.clone().zip(self.index.from(part.start)).zip(sources.of(part));
        let placed = |((position, chunk), source)| Some((position, medium.place(&chunk, source)?, chunk));
        let (mut told, mut unreadable) = (all.filter_map(placed).peekable(), None);
        while let Some((_, start, _)) = told.peek() {
            self.check_cancelled()?;
            let (start, mut length, mut batch) = (*start, 0usize, Vec::new());
            let joins = |place: u64, chunk: &Chunk, length: usize| {
                place == start.saturating_add(length as u64)
                    && length.saturating_add(chunk.length as usize) <= READ
            };
            while let Some(next) = told.next_if(|(_, place, chunk)| joins(*place, chunk, length)) {
                length = length.saturating_add(next.2.length as usize);
                batch.push(next);
            }
            let mut bytes = buffer.first_mut(length);
            let (failed, mut tries) = (medium.read(bytes, start).err(), TRIES);
            for (position, place, chunk) in batch {
                let (content, rest) = bytes.split_at_mut(chunk.length as usize);
                let is_read = failed.is_none() || tries > 0 && medium.read(content, place).is_ok();
                tries = tries.saturating_sub(usize::from(!is_read));
                if !is_read || !self.index.has(&chunk, content) {
                    sources.set([position], self.source_elsewhere(&chunk));
                }
                bytes = rest;
            }
            unreadable = unreadable.or(failed);
            self.progress.send_modify(|p| p.done = p.done.saturating_add(length as u64));
        }
        if let Some(error) = unreadable {
            // Of the target it is written anew: a bad sector may need that, and fails otherwise.
            tracing::warn!(
                error,
                "a slot can't be read everywhere; what it may have had there is brought anew"
            );
        }
        Ok(())
    }

    /// Of a chunk that no slot has.
    fn source_elsewhere(&self, chunk: &Chunk) -> ChunkSource {
        if self.index.is_zero(chunk) { ChunkSource::Zero } else { ChunkSource::Fetch }
    }

    fn check_cancelled(&self) -> Result<(), StageError> {
        if self.cancel.is_cancelled() { Err(StageError::Cancelled) } else { Ok(()) }
    }
}
