//! Groups of chunks -> verified pieces. A group is built up in one buffer, in order, each chunk from where it
//! is: unpacked behind what precedes it as soon as its block has come, copied from the booted slot, or read from
//! its place. Every chunk is verified there; neighbours go to the writer together.

use std::ops::Range;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use crate::bundle::{Chunk, Decoder, Index, offset_of, verify};
use crate::manifest::BLOCK;
use crate::stage::apply::writer::{self, Writer};
use crate::stage::buffer::{Buffer, PIECE};
use crate::stage::error::StageError;
use crate::stage::slot::withheld::Sink;
use crate::stage::sources::chunks::ChunkSource;
use crate::stage::sources::plan::RestorePlan;
use crate::stage::sources::shared::Shared;

/// A zero chunk of at least so many bytes is left to the device's own means; shorter ones are written with
/// their neighbours.
const ZERO_RUN: u32 = 128 * 1024;
/// Packed bytes that are unpacked at once, if so many have come.
const GATHER: usize = 64 * 1024;

/// What was fetched for one chunk.
#[derive(Debug)]
pub struct PackedChunk {
    pub position: usize,
    pub bytes: Bytes,
    /// Its place in the window, free again when it was unpacked.
    pub _room: OwnedSemaphorePermit,
}

/// The blocks of one group, in order, as they come.
#[derive(Debug, Default)]
pub struct Arrivals {
    coming: Option<mpsc::UnboundedReceiver<Vec<PackedChunk>>>,
    here: Vec<PackedChunk>,
}

impl Arrivals {
    pub fn new(coming: mpsc::UnboundedReceiver<Vec<PackedChunk>>) -> Arrivals {
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

#[derive(Debug)]
pub struct Part {
    pub position: usize,
    pub chunk: Chunk,
    pub source: ChunkSource,
}

/// The chunks of one group, in image order, and the blocks of those that are fetched.
#[derive(Debug)]
pub struct Group {
    pub parts: Vec<Part>,
    pub arrivals: Arrivals,
}

impl Group {
    /// The group that begins at `position`.
    pub fn at(index: &Index, plan: &RestorePlan, position: usize) -> Group {
        let chunks = index.from(position).zip(plan.of(position..usize::MAX));
        let mut group = None;
        let parts = (position..)
            .zip(chunks)
            .take_while(|(_, (chunk, _))| *group.get_or_insert(chunk.group_offset) == chunk.group_offset)
            .map(|(position, (chunk, source))| Part { position, chunk, source });
        Group { parts: parts.collect(), arrivals: Arrivals::default() }
    }

    pub fn is_fetched(&self) -> bool {
        self.parts.iter().any(|part| part.source == ChunkSource::Fetch)
    }

    /// Whether it has chunks that others must bring first.
    pub fn has_duplicates(&self) -> bool {
        self.parts.iter().any(|part| matches!(part.source, ChunkSource::Duplicate(_)))
    }
}

/// A range of the buffer that was verified and is not yet with the writer.
#[derive(Debug, Default)]
struct Unwritten {
    range: Range<usize>,
    /// Zeros throughout, and long.
    zero: bool,
    /// Bytes of it that a slot had.
    reused: u64,
}

/// How many of the first parts come from one place at once: chunks whose blocks are here, or that lie side by
/// side in the seed too, up to about `PIECE` bytes. None, if the next block is not the first part's.
fn run_length(parts: &[Part], here: &[PackedChunk]) -> usize {
    let mut end = 0usize;
    let in_piece = |part: &&Part| {
        end = end.saturating_add(part.chunk.length as usize);
        end <= PIECE || end == part.chunk.length as usize
    };
    match parts.first().map(|part| part.source) {
        Some(ChunkSource::Fetch) => {
            let pairs = parts.iter().take_while(in_piece).zip(here);
            pairs.take_while(|(part, block)| part.position == block.position).count()
        }
        Some(ChunkSource::Seed(first)) => {
            side_by_side(parts.iter().take_while(in_piece), first, ChunkSource::Seed)
        }
        Some(ChunkSource::Duplicate(first)) => {
            side_by_side(parts.iter().take_while(in_piece), first, ChunkSource::Duplicate)
        }
        _ => 1,
    }
}

/// How many of the parts lie one behind the other from block `next` on.
fn side_by_side<'a>(
    parts: impl Iterator<Item = &'a Part>,
    mut next: u32,
    of: fn(u32) -> ChunkSource,
) -> usize {
    let joins = |part: &&Part| {
        let joined = part.source == of(next);
        next = next.saturating_add(part.chunk.length / BLOCK);
        joined
    };
    parts.take_while(joins).count()
}

/// What could not be brought to its place.
#[derive(Debug, Default)]
pub struct Missed {
    /// Positions of the chunks.
    pub chunks: Vec<usize>,
    /// What is wrong with what was fetched for some of them; the others are no longer where they were.
    pub wrong: Option<StageError>,
}

/// Works until the queue ends. What is queued after a cancel is short and was paid for, so it is still written.
/// Returns what could not be brought to its place; an error of the writer is a `stop` for those who wait for the
/// network.
pub fn run(
    shared: &Shared,
    sink: &Sink,
    mut queue: mpsc::Receiver<Group>,
    stop: &CancellationToken,
) -> Result<Missed, StageError> {
    writer::beside(shared, sink, stop, |writer| {
        let (decoder, buffer) = (Decoder::default(), Buffer::new(shared.group));
        let mut worker = Worker { shared, sink, writer, decoder, buffer, missed: Missed::default() };
        while let Some(group) = queue.blocking_recv() {
            worker.work(group)?;
        }
        Ok(worker.missed)
    })
}

struct Worker<'a> {
    shared: &'a Shared,
    sink: &'a Sink,
    writer: &'a Writer,
    decoder: Decoder,
    buffer: Buffer,
    missed: Missed,
}

impl Worker<'_> {
    /// Builds the group up, run by run, and writes what is not in place.
    fn work(&mut self, group: Group) -> Result<(), StageError> {
        let Group { parts, mut arrivals } = group;
        let Some(start) = parts.first().map(|part| part.chunk.offset) else { return Ok(()) };
        let last_fetched = parts.iter().rposition(|part| part.source == ChunkSource::Fetch);
        let (mut next, mut pending) = (0usize, Unwritten::default());
        while let Some(part) = parts.get(next) {
            if part.source == ChunkSource::Fetch {
                arrivals.gather();
            }
            let rest = parts.get(next..).unwrap_or_default();
            let count = run_length(rest, &arrivals.here);
            let run = rest.get(..count).unwrap_or_default();
            if matches!(part.source, ChunkSource::Duplicate(_)) {
                self.flush(&mut pending, start)?;
                self.writer.settle()?;
            }
            let needed = part.source != ChunkSource::InPlace || last_fetched.is_some_and(|last| next < last);
            if run.is_empty() || needed && !self.fill(run, &mut arrivals.here, start)? {
                // What comes behind can't be unpacked without it. Where the target itself fails, its next places are
                // not asked either: each could cost the whole group once more.
                let history = match part.source {
                    ChunkSource::InPlace => last_fetched.map_or(0, |last| last.saturating_sub(next)),
                    _ => count,
                };
                let is_lost =
                    |(n, part): &(usize, &Part)| *n < history || part.source != ChunkSource::InPlace;
                let lost = rest.iter().enumerate().filter(is_lost);
                self.missed.chunks.extend(lost.map(|(_, part)| part.position));
                return self.flush(&mut pending, start);
            }
            for part in run {
                self.put(part, start, &mut pending)?;
            }
            next = next.saturating_add(count);
        }
        self.flush(&mut pending, start)?;
        self.writer.done(start)
    }

    /// Brings a run's verified content into the buffer; `false` if it is not where it was.
    fn fill(&mut self, run: &[Part], here: &mut Vec<PackedChunk>, start: u64) -> Result<bool, StageError> {
        let Some(Part { chunk, source, .. }) = run.first() else { return Ok(true) };
        let at = chunk.offset.saturating_sub(start) as usize;
        let length: usize = run.iter().map(|part| part.chunk.length as usize).sum();
        let (history, rest) = self.buffer.first_mut(at.saturating_add(length)).split_at_mut(at);
        Ok(match source {
            ChunkSource::Fetch => {
                let blocks: Vec<PackedChunk> = here.drain(..run.len().min(here.len())).collect();
                let pairs = run.iter().zip(&blocks).map(|(part, block)| (part.chunk, &*block.bytes));
                let unpacked = self.decoder.decode(&pairs.collect::<Vec<_>>(), history, rest);
                let from = self.shared.name.clone();
                let wrong = unpacked.err().map(|source| StageError::Bundle { from, source });
                let right = wrong.is_none();
                self.missed.wrong = self.missed.wrong.take().or(wrong);
                right
            }
            // Those were brought before, or fetched since.
            ChunkSource::Patch => false,
            ChunkSource::Zero => {
                rest.fill(0);
                true
            }
            ChunkSource::Seed(block) => {
                let seed = self.shared.seed.as_ref();
                seed.is_some_and(|seed| seed.read(rest, offset_of(*block)).is_ok()) && are_right(run, rest)
            }
            ChunkSource::Duplicate(block) => {
                self.sink.read(rest, offset_of(*block)).is_ok() && are_right(run, rest)
            }
            ChunkSource::InPlace => {
                self.sink.read(rest, chunk.offset).is_ok() && self.shared.index.has(chunk, rest)
            }
        })
    }

    /// Adds a chunk to what is pending; passes that on first if they do not join or make more than a piece.
    fn put(&self, part: &Part, start: u64, pending: &mut Unwritten) -> Result<(), StageError> {
        let Part { chunk, source, .. } = part;
        if *source == ChunkSource::InPlace {
            return Ok(());
        }
        let (at, length) = (chunk.offset.saturating_sub(start) as usize, chunk.length as usize);
        let zero = *source == ChunkSource::Zero && chunk.length >= ZERO_RUN;
        let full = !zero && pending.range.len().saturating_add(length) > PIECE;
        if pending.range.end != at || pending.zero != zero || full {
            self.flush(pending, start)?;
            *pending = Unwritten { range: at..at, zero, reused: 0 };
        }
        pending.range.end = at.saturating_add(length);
        if matches!(source, ChunkSource::Seed(_) | ChunkSource::Duplicate(_)) {
            pending.reused = pending.reused.saturating_add(u64::from(chunk.length));
        }
        Ok(())
    }

    fn flush(&self, pending: &mut Unwritten, start: u64) -> Result<(), StageError> {
        let Unwritten { range, zero, reused } = std::mem::take(pending);
        let (offset, length) = (start.saturating_add(range.start as u64), range.len());
        match (length, zero) {
            (0, _) => Ok(()),
            (_, true) => self.writer.zero(offset, length),
            (_, false) => {
                let content = self.buffer.first(range.end).get(range).unwrap_or_default();
                self.writer.write(content, offset, reused)
            }
        }
    }
}

/// Whether `content` is that of the parts, one behind the other.
fn are_right(parts: &[Part], content: &[u8]) -> bool {
    verify(parts.iter().map(|part| &part.chunk), content).is_ok()
}
