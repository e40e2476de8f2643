//! A seed without a map: all of it is read and cut by the bundle's own chunking rules, and its map is made from that.

use std::io;
use std::ops::Range;

use super::StageError;
use super::buffer::PIECE;
use super::by_digest::ByDigest;
use super::map::Draft;
use super::origins::{Origin, Origins};
use super::seed::Seed;
use super::survey::{Survey, in_parallel, split};
use crate::bundle::ChunkDigest;
use crate::bundle::chunker::{Chunker, is_zero};
use crate::manifest::BLOCK;

/// So many blocks (8 MiB) a scanning thread goes on into the next one's part: by then that one cuts as if it had
/// begun at the slot's start, and no chunk is lost at the seam.
const SEAM: u64 = 2048;

impl Survey<'_> {
    /// Gives chunks that would be fetched an origin in the seed, where it has them, and keeps the seed's map.
    pub(super) fn by_scan(&self, seed: &Seed, origins: &Origins, threads: usize) -> Result<(), StageError> {
        let wanted = ByDigest::missing(self.index, origins, self.workspace);
        self.progress.send_modify(|p| p.total += seed.size());
        let draft = self.maps.map(|maps| Draft::new(&maps.booted, self.chunking));
        let note = |digest: ChunkDigest, block: u32| {
            if let Some(draft) = &draft {
                draft.note(digest, block);
            }
            origins.set_each(wanted.positions(&digest), Origin::Seed(block));
        };
        // Each thread begins with a fresh chunker: cuts depend on content, so after a chunk or two they are
        // the same as if the seed had been cut from its start.
        let blocks = (seed.size() / u64::from(BLOCK)).min(u64::from(u32::MAX));
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
}
