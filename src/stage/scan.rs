//! A seed without a map: all of it is read and cut by the bundle's own chunking rules.

use std::io;
use std::ops::Range;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::buffer::{PIECE, Pool};
use super::parallel::{in_parallel, split};
use super::seed::Seed;
use super::{Progress, StageError};
use crate::bundle::ChunkDigest;
use crate::bundle::chunker::{Chunker, is_zero};
use crate::manifest::{BLOCK, Chunking};

/// So many blocks (8 MiB) a scanning thread goes on into the next one's part: by then that one cuts as if it had
/// begun at the slot's start, and no chunk is lost at the seam.
const SEAM: u64 = 2048;

/// Everything that a scan needs.
pub(super) struct Scan<'a> {
    pub seed: &'a Seed,
    pub chunking: &'a Chunking,
    pub buffers: &'a Pool,
    pub progress: &'a watch::Sender<Progress>,
    pub cancel: &'a CancellationToken,
}

impl Scan<'_> {
    /// Tells `note` of each chunk but zeros, and the block where it begins, on `threads` threads. Each byte that is read
    /// is progress.
    pub(super) fn run(
        &self,
        threads: usize,
        note: impl Fn(ChunkDigest, u32) + Sync,
    ) -> Result<(), StageError> {
        let seed = self.seed;
        self.progress.send_modify(|p| p.total += seed.size());
        // Each thread begins with a fresh chunker: cuts depend on content, so after a chunk or two they are
        // the same as if the seed had been cut from its start.
        let blocks = (seed.size() / u64::from(BLOCK)).min(u64::from(u32::MAX));
        in_parallel(split(blocks, threads).into_iter(), |part| {
            let (mut at, end, mut lost) = (part.start, (part.end + SEAM).min(blocks), None);
            while at < end {
                let (next, error) = self.part(at..end, &note)?;
                at = next;
                lost = lost.or(error.map(|error| (next, error)));
            }
            if let Some((block, error)) = lost {
                // The seed only saves bytes; an unreadable place costs some.
                let before = block * u64::from(BLOCK);
                tracing::warn!(
                    "the booted slot can't be read everywhere, here before byte {before}: {error}"
                );
            }
            Ok(())
        })?
        .into_iter()
        .collect()
    }

    /// Cuts `part` (in blocks) of the seed into chunks and tells `note` of each. Returns how far it came: to the end, or
    /// behind a place that can't be read, where cutting begins anew.
    fn part(
        &self,
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
            if self.cancel.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            let length = (part.end - at).min((PIECE / block) as u64) as usize * block;
            let bytes = buffer.first_mut(length);
            if let Err(error) = self.seed.read(bytes, at * BLOCK as u64) {
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
}
