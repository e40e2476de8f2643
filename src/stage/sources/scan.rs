//! A seed without a map: all of it is read and cut by the bundle's own chunking rules.

use std::io;
use std::ops::Range;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bundle::ChunkDigest;
use crate::bundle::chunker::{Cutter, is_zero};
use crate::manifest::{BLOCK, Chunking};
use crate::stage::buffer::{Buffer, PIECE};
use crate::stage::error::StageError;
use crate::stage::parallel::{in_parallel, split};
use crate::stage::progress::Progress;
use crate::stage::sources::seed::Seed;

/// So many blocks (8 MiB) a scanning thread goes on into the next one's part: by then that one cuts as if it had
/// begun at the slot's start, and no chunk is lost at the seam.
const SEAM: u64 = 2048;

const AT_ONCE: usize = PIECE / BLOCK as usize;

pub struct Scan<'a> {
    pub seed: &'a Seed,
    pub chunking: &'a Chunking,
    pub progress: &'a watch::Sender<Progress>,
    pub cancel: &'a CancellationToken,
}

impl Scan<'_> {
    /// Tells `note` of each chunk but zeros, and the block where it begins, on `threads` threads. Each byte that is read
    /// is progress.
    pub fn run(&self, threads: usize, note: impl Fn(ChunkDigest, u32) + Sync) -> Result<(), StageError> {
        let seed = self.seed;
        self.progress.send_modify(|p| p.total = p.total.saturating_add(seed.size()));
        // Each thread begins with a fresh chunker: cuts depend on content, so after a chunk or two they are
        // the same as if the seed had been cut from its start.
        let blocks = seed.size().checked_div(u64::from(BLOCK)).unwrap_or(0).min(u64::from(u32::MAX));
        in_parallel(split(blocks, threads).into_iter(), |part| {
            let (mut at, mut lost) = (part.start, None);
            let end = part.end.saturating_add(SEAM).min(blocks);
            while at < end {
                let (next, error) = self.part(at..end, &note)?;
                at = next;
                lost = lost.or(error.map(|error| (next, error)));
            }
            if let Some((block, error)) = lost {
                // The seed only saves bytes; an unreadable place costs some.
                let before = block.saturating_mul(u64::from(BLOCK));
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
        let Some(mut cutter) = Cutter::new(self.chunking) else { return Ok((part.end, None)) };
        let mut buffer = Buffer::new(PIECE);
        let mut start = part.start;
        let mut emit = |content: &[u8]| {
            // Nobody looks for zeros.
            if !is_zero(content) {
                note(ChunkDigest::of(content), start as u32);
            }
            start = start.saturating_add(content.chunks(BLOCK as usize).len() as u64);
        };
        for at in part.clone().step_by(AT_ONCE) {
            if self.cancel.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            let next = at.saturating_add(AT_ONCE as u64).min(part.end);
            let length = next.saturating_sub(at).saturating_mul(u64::from(BLOCK));
            let bytes = buffer.first_mut(length as usize);
            let read = self.seed.read(bytes, at.saturating_mul(u64::from(BLOCK)));
            self.progress.send_modify(|p| p.done = p.done.saturating_add(length).min(p.total));
            if let Err(error) = read {
                return Ok((next, Some(error)));
            }
            cutter.push(bytes, &mut emit);
        }
        if let Some(rest) = cutter.finish() {
            emit(&rest);
        }
        Ok((part.end, None))
    }
}
