//! One group of chunks -> its place. The group is built up in one buffer, in order, each chunk from where it
//! is: unpacked behind what precedes it as soon as its block has come, copied from the booted slot, or read from
//! its place. Every chunk is verified in that buffer, and neighbours are written from it together.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::StageError;
use super::buffer::Buffer;
use super::pipeline::Shared;
use super::sink::Sink;
use super::survey::Origin;
use crate::bundle::chunker::is_zero;
use crate::bundle::{Chunk, ChunkDigest, Decoder, Index};
use crate::manifest::BLOCK;

/// A zero chunk of at least so many bytes is left to the device's own means; shorter ones are written with
/// their neighbours.
const ZERO_RUN: u32 = 128 * 1024;
/// Verified bytes that are written at once, if their group has so many: what a loss of power costs of a group.
pub(super) const PIECE: usize = 256 * 1024;
/// Packed bytes that are unpacked at once, if so many have come.
const GATHER: usize = 64 * 1024;

/// What was fetched for one chunk.
#[derive(Debug)]
pub(super) struct Block {
    pub position: usize,
    pub bytes: Bytes,
    /// Its place in the window, free again when it was unpacked.
    pub _room: OwnedSemaphorePermit,
}

/// The blocks of one group, in order, as they come.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    coming: Option<mpsc::UnboundedReceiver<Vec<Block>>>,
    here: Vec<Block>,
}

impl Arrivals {
    pub(super) fn new(coming: mpsc::UnboundedReceiver<Vec<Block>>) -> Arrivals {
        Arrivals { coming: Some(coming), here: Vec::new() }
    }

    /// Waits until a block is here, unless none will come, and takes more of those that came.
    fn gather(&mut self) {
        let Some(coming) = &mut self.coming else { return };
        if self.here.is_empty() {
            self.here.extend(coming.blocking_recv().unwrap_or_default());
        }
        while self.here.iter().map(|block| block.bytes.len()).sum::<usize>() < GATHER {
            let Ok(more) = coming.try_recv() else { break };
            self.here.extend(more);
        }
    }
}

/// One chunk of a group.
#[derive(Debug)]
pub(super) struct Part {
    pub position: usize,
    pub chunk: Chunk,
    pub origin: Origin,
}

/// The chunks of one group, in image order, and the blocks of those that are fetched.
#[derive(Debug)]
pub(super) struct Group {
    pub parts: Vec<Part>,
    pub arrivals: Arrivals,
}

impl Group {
    /// The group that begins at `position`.
    pub(super) fn at(index: &Index, origins: &[Origin], position: usize) -> Group {
        let chunks = index.from(position).zip(origins.get(position..).unwrap_or_default());
        let mut group = None;
        let parts = (position..)
            .zip(chunks)
            .take_while(|(_, (chunk, _))| *group.get_or_insert(chunk.group_offset) == chunk.group_offset)
            .map(|(position, (chunk, origin))| Part { position, chunk, origin: *origin });
        Group { parts: parts.collect(), arrivals: Arrivals::default() }
    }

    /// Whether it has chunks to fetch.
    pub(super) fn is_fetched(&self) -> bool {
        self.parts.iter().any(|part| part.origin == Origin::Fetch)
    }
}

/// A range of the buffer that was verified and not yet written.
#[derive(Debug, Default)]
struct Pending {
    range: Range<usize>,
    /// Zeros throughout, and long.
    zero: bool,
    /// Bytes of it that a slot had.
    reused: u64,
}

/// How many of the first parts come from one place at once: chunks whose blocks are here, or that lie side by
/// side in the seed too, up to about `PIECE` bytes. None, if the next block is not the first part's.
fn run_length(parts: &[Part], here: &[Block]) -> usize {
    let mut end = 0;
    let in_piece = |part: &&Part| {
        end += part.chunk.length as usize;
        end <= PIECE || end == part.chunk.length as usize
    };
    match parts.first().map(|part| part.origin) {
        Some(Origin::Fetch) => {
            let pairs = parts.iter().take_while(in_piece).zip(here);
            pairs.take_while(|(part, block)| part.position == block.position).count()
        }
        Some(Origin::Seed(first)) => {
            let mut next = Some(first);
            let joins = |part: &&Part| {
                let joined = next.is_some_and(|next| part.origin == Origin::Seed(next));
                next = next.and_then(|next| next.checked_add(part.chunk.length / BLOCK));
                joined
            };
            parts.iter().take_while(in_piece).take_while(joins).count()
        }
        _ => 1,
    }
}

/// One thread's tools.
pub(super) struct Worker {
    shared: Arc<Shared>,
    sink: Arc<Sink>,
    decoder: Decoder,
    buffer: Buffer,
    missed: Vec<usize>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, sink: Arc<Sink>) -> Worker {
        let buffer = shared.buffers.take();
        Worker { shared, sink, decoder: Decoder::new(), buffer, missed: Vec::new() }
    }

    /// Works until the queue ends; an error stops the feeders. What is queued by then is short and was paid
    /// for, so the others still write it, also after a cancel. Returns the chunks that it could not bring to
    /// their places.
    pub(super) fn run(
        mut self,
        queue: &Mutex<mpsc::Receiver<Group>>,
        stop: &CancellationToken,
    ) -> Result<Vec<usize>, StageError> {
        loop {
            let group = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
            let Some(group) = group else { break };
            self.work(group).inspect_err(|_| stop.cancel())?;
        }
        self.shared.buffers.give(self.buffer);
        Ok(self.missed)
    }

    /// Builds the group up, run by run, and writes what is not in place.
    fn work(&mut self, group: Group) -> Result<(), StageError> {
        let Group { parts, mut arrivals } = group;
        let Some(start) = parts.first().map(|part| part.chunk.offset) else { return Ok(()) };
        let last_fetched = parts.iter().rposition(|part| part.origin == Origin::Fetch);
        let (mut next, mut pending) = (0, Pending::default());
        while let Some(part) = parts.get(next) {
            if part.origin == Origin::Fetch {
                arrivals.gather();
            }
            let rest = parts.get(next..).unwrap_or_default();
            let count = run_length(rest, &arrivals.here);
            let run = rest.get(..count).unwrap_or_default();
            let needed = part.origin != Origin::InPlace || last_fetched.is_some_and(|last| next < last);
            if run.is_empty() || needed && !self.fill(run, &mut arrivals.here, start)? {
                // What comes behind can't be unpacked without it. Where the target itself fails, its next places are
                // not asked either: each could cost the whole group once more.
                let history = match part.origin {
                    Origin::InPlace => last_fetched.map_or(0, |last| last - next),
                    _ => count,
                };
                let is_lost = |(n, part): &(usize, &Part)| *n < history || part.origin != Origin::InPlace;
                let lost = rest.iter().enumerate().filter(is_lost);
                self.missed.extend(lost.map(|(_, part)| part.position));
                return self.flush(&mut pending, start);
            }
            for part in run {
                self.put(part, start, &mut pending)?;
            }
            next += count;
        }
        self.flush(&mut pending, start)?;
        self.sink.frontier.done(start);
        Ok(())
    }

    /// Brings a run's verified content into the buffer; `false` if it is not where it was.
    fn fill(&mut self, run: &[Part], here: &mut Vec<Block>, start: u64) -> Result<bool, StageError> {
        let Some(Part { chunk, origin, .. }) = run.first() else { return Ok(true) };
        let at = (chunk.offset - start) as usize;
        let length: usize = run.iter().map(|part| part.chunk.length as usize).sum();
        let (history, rest) = self.buffer.first_mut(at + length).split_at_mut(at);
        Ok(match origin {
            Origin::Fetch => {
                let blocks: Vec<Block> = here.drain(..run.len().min(here.len())).collect();
                let pairs = run.iter().zip(&blocks).map(|(part, block)| (part.chunk, &*block.bytes));
                let unpacked = self.decoder.decode(&pairs.collect::<Vec<_>>(), history, rest);
                let from = &self.shared.name;
                unpacked.map_err(|source| StageError::Bundle { from: from.clone(), source })?;
                true
            }
            // Those were brought before, or fetched since.
            Origin::Patch => false,
            Origin::Zero => {
                rest.fill(0);
                true
            }
            Origin::Seed(block) => {
                let seed = self.shared.seed.as_ref();
                let read = seed.map(|seed| seed.read(rest, u64::from(*block) * u64::from(BLOCK)));
                let mut left: &[u8] = rest;
                let mut right = |part: &Part| {
                    let (content, after) = left.split_at((part.chunk.length as usize).min(left.len()));
                    left = after;
                    ChunkDigest::of(content) == part.chunk.digest
                };
                matches!(read, Some(Ok(()))) && run.iter().all(&mut right)
            }
            Origin::InPlace => {
                let read = self.sink.read(rest, chunk.offset).is_ok();
                read && match self.shared.index.is_zero(chunk) {
                    true => is_zero(rest),
                    false => ChunkDigest::of(rest) == chunk.digest,
                }
            }
        })
    }

    /// Adds a chunk to what is pending; writes that first if they do not join, and then if it is enough.
    fn put(&self, part: &Part, start: u64, pending: &mut Pending) -> Result<(), StageError> {
        let Part { chunk, origin, .. } = part;
        if *origin == Origin::InPlace {
            return Ok(());
        }
        let at = (chunk.offset - start) as usize;
        let zero = *origin == Origin::Zero && chunk.length >= ZERO_RUN;
        if pending.range.end != at || pending.zero != zero {
            self.flush(pending, start)?;
            *pending = Pending { range: at..at, zero, reused: 0 };
        }
        pending.range.end = at + chunk.length as usize;
        if matches!(origin, Origin::Seed(_)) {
            pending.reused += u64::from(chunk.length);
        }
        if !zero && pending.range.len() >= PIECE { self.flush(pending, start) } else { Ok(()) }
    }

    fn flush(&self, pending: &mut Pending, start: u64) -> Result<(), StageError> {
        let Pending { range, zero, reused } = std::mem::take(pending);
        let (offset, length) = (start + range.start as u64, range.len());
        match (length, zero) {
            (0, _) => return Ok(()),
            (_, true) => self.sink.zero(offset, length)?,
            (_, false) => {
                self.sink.write(self.buffer.first(range.end).get(range).unwrap_or_default(), offset)?;
            }
        }
        self.shared.progress.send_modify(|p| {
            p.done += length as u64;
            p.reused += reused;
        });
        Ok(())
    }
}
