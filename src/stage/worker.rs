//! One group of chunks -> its place. The group is built up in one buffer, in order, each chunk from where it
//! is: unpacked behind what precedes it, copied from the booted slot, or read from its place. Every chunk is
//! verified in that buffer, and neighbours are written from it together.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::buffer::Buffer;
use super::pipeline::Shared;
use super::survey::Origin;
use super::verify::Frontier;
use super::{StageError, Target};
use crate::bundle::chunker::is_zero;
use crate::bundle::{Chunk, ChunkDigest, Decoder, Index};
use crate::manifest::BLOCK;

/// A zero chunk of at least so many bytes is left to the device's own means; shorter ones are written with
/// their neighbours.
const ZERO_RUN: u32 = 128 * 1024;

/// Where verified chunks go.
#[derive(Debug, Clone)]
pub(super) enum Sink {
    /// The slot, and who follows the writing.
    Target(Target, Arc<Frontier>),
    /// The withheld first chunks, until the rest was read back.
    Memory(Arc<Mutex<Buffer>>),
}

impl Sink {
    fn read(&self, content: &mut [u8], offset: u64) -> Result<(), StageError> {
        match self {
            Sink::Target(target, _) => target.read(content, offset),
            Sink::Memory(memory) => {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                content.copy_from_slice(place(&mut memory, offset, content.len()));
                Ok(())
            }
        }
    }

    fn write(&self, content: &[u8], offset: u64) -> Result<(), StageError> {
        match self {
            Sink::Target(target, _) => target.write(content, offset),
            Sink::Memory(memory) => {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                place(&mut memory, offset, content.len()).copy_from_slice(content);
                Ok(())
            }
        }
    }

    fn zero(&self, offset: u64, length: usize) -> Result<(), StageError> {
        match self {
            Sink::Target(target, _) => target.zero(offset, length as u64),
            Sink::Memory(memory) => {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                place(&mut memory, offset, length).fill(0);
                Ok(())
            }
        }
    }
}

/// A place among the withheld bytes.
fn place(memory: &mut Buffer, offset: u64, length: usize) -> &mut [u8] {
    let start = offset as usize;
    memory.first_mut(start + length).get_mut(start..).unwrap_or_default()
}

/// One chunk of a group.
#[derive(Debug)]
pub(super) struct Part {
    pub position: usize,
    pub chunk: Chunk,
    pub origin: Origin,
    /// What was fetched for it.
    pub block: Vec<u8>,
}

/// The chunks of one group that are to be brought to their places, in image order.
#[derive(Debug)]
pub(super) struct Group {
    pub parts: Vec<Part>,
}

impl Group {
    /// The group that begins at `position`; of those before `end`.
    pub(super) fn at(index: &Index, origins: &[Origin], position: usize, end: usize) -> Group {
        let chunks =
            (position..end).zip(index.from(position).zip(origins.get(position..).unwrap_or_default()));
        let mut group = None;
        let parts = chunks
            .take_while(|(_, (chunk, _))| *group.get_or_insert(chunk.group_offset) == chunk.group_offset)
            .map(|(position, (chunk, origin))| Part { position, chunk, origin: *origin, block: Vec::new() });
        Group { parts: parts.collect() }
    }

    /// The group of the chunk at `position`.
    pub(super) fn around(
        index: &Index,
        origins: &[Origin],
        position: usize,
        positions: &Range<usize>,
    ) -> Group {
        let own = index.get(position).map(|chunk| chunk.group_offset);
        let before = (positions.start..position).rev();
        let same = |n: &usize| index.get(*n).map(|chunk| chunk.group_offset) == own;
        let first = before.take_while(same).last().unwrap_or(position);
        Group::at(index, origins, first, positions.end)
    }

    /// How many of its chunks must be fetched.
    pub(super) fn missing(&self) -> usize {
        self.parts.iter().filter(|part| part.origin == Origin::Fetch).count()
    }
}

/// A range of the buffer that was verified and not yet written.
#[derive(Debug, Default)]
struct Pending {
    range: Range<usize>,
    /// Zeros throughout, and long.
    zero: bool,
}

/// How many of the first parts come from one place: neighbouring blocks that have arrived, or chunks that lie
/// side by side in the seed too, which are read at once.
fn run_length(parts: &[Part]) -> usize {
    let mut next = None;
    let joins = |part: &&Part| match part.origin {
        Origin::Fetch => next.is_none() && !part.block.is_empty(),
        Origin::Seed(block) => {
            let joined = next.is_none_or(|next| next == block);
            next = block.checked_add(part.chunk.length / BLOCK);
            joined
        }
        _ => false,
    };
    let first_is_seed = parts.first().is_some_and(|part| matches!(part.origin, Origin::Seed(_)));
    let same = |part: &&Part| matches!(part.origin, Origin::Seed(_)) == first_is_seed;
    parts.iter().take_while(same).take_while(joins).count().max(1)
}

/// One thread's tools.
pub(super) struct Worker {
    shared: Arc<Shared>,
    sink: Sink,
    decoder: Decoder,
    buffer: Buffer,
    missed: Vec<usize>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, sink: Sink) -> Worker {
        let buffer = Buffer::new(shared.group_max);
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
            let Some(group) = group else { return Ok(self.missed) };
            self.work(&group).inspect_err(|_| stop.cancel())?;
        }
    }

    /// Builds the group up, run by run, and writes what is not in place.
    fn work(&mut self, group: &Group) -> Result<(), StageError> {
        let Some(start) = group.parts.first().map(|part| part.chunk.offset) else { return Ok(()) };
        let last_fetched = group.parts.iter().rposition(|part| part.origin == Origin::Fetch);
        let (mut next, mut pending) = (0, Pending::default());
        while let Some(part) = group.parts.get(next) {
            let rest = group.parts.get(next..).unwrap_or_default();
            let count = run_length(rest);
            let run = rest.get(..count).unwrap_or_default();
            let needed = part.origin != Origin::InPlace || last_fetched.is_some_and(|last| next < last);
            if needed && !self.fill(run, start)? {
                // What comes behind can't be unpacked without it.
                let later = rest.iter().skip(1).filter(|part| part.origin != Origin::InPlace);
                self.missed.extend(run.iter().chain(later).map(|part| part.position));
                return self.flush(&pending, start);
            }
            for part in run {
                self.put(part, start, &mut pending)?;
            }
            next += run.len();
        }
        self.flush(&pending, start)?;
        if let Sink::Target(_, frontier) = &self.sink {
            frontier.done(start);
        }
        Ok(())
    }

    /// Brings a run's verified content into the buffer; `false` if it is not where it was.
    fn fill(&mut self, run: &[Part], start: u64) -> Result<bool, StageError> {
        let Some(Part { chunk, origin, .. }) = run.first() else { return Ok(true) };
        let at = (chunk.offset - start) as usize;
        let length: usize = run.iter().map(|part| part.chunk.length as usize).sum();
        let (history, rest) = self.buffer.first_mut(at + length).split_at_mut(at);
        Ok(match origin {
            // A cancelled run has not fetched all.
            Origin::Fetch if run.iter().any(|part| part.block.is_empty()) => false,
            Origin::Fetch => {
                let blocks: Vec<_> = run.iter().map(|part| (part.chunk, part.block.as_slice())).collect();
                let from = &self.shared.name;
                let unpacked = self.decoder.decode(&blocks, history, rest);
                unpacked.map_err(|source| StageError::Bundle { from: from.clone(), source })?;
                true
            }
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

    /// Adds a chunk to what is pending, and writes that first if they do not join.
    fn put(&self, part: &Part, start: u64, pending: &mut Pending) -> Result<(), StageError> {
        let Part { chunk, origin, .. } = part;
        if *origin == Origin::InPlace {
            return Ok(());
        }
        let at = (chunk.offset - start) as usize;
        let range = at..at + chunk.length as usize;
        let zero = *origin == Origin::Zero && chunk.length >= ZERO_RUN;
        if pending.range.end == at && pending.zero == zero {
            pending.range.end = range.end;
        } else {
            self.flush(pending, start)?;
            *pending = Pending { range, zero };
        }
        self.shared.progress.send_modify(|p| {
            p.done += u64::from(chunk.length);
            if matches!(origin, Origin::Seed(_)) {
                p.reused += u64::from(chunk.length);
            }
        });
        Ok(())
    }

    fn flush(&self, pending: &Pending, start: u64) -> Result<(), StageError> {
        let (range, offset) = (pending.range.clone(), start + pending.range.start as u64);
        match (range.is_empty(), pending.zero) {
            (true, _) => Ok(()),
            (false, true) => self.sink.zero(offset, range.len()),
            (false, false) => {
                self.sink.write(self.buffer.first(range.end).get(range).unwrap_or_default(), offset)
            }
        }
    }
}
