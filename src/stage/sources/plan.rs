//! The restore plan: where each chunk of the image will come from, and what that costs. It is made before anything changes,
//! shown and checked against the budget, and then carried out; its cost can be told without carrying it out.

use std::collections::BTreeSet;
use std::ops::Deref;

use crate::bundle::{Chunk, Index, Layout, PatchIndex};
use crate::stage::sources::chunks::{ChunkSource, Sources};
use crate::stage::sources::duplicates::find_duplicates;
use crate::stage::sources::patch::{self, UsablePatch};

/// Body bytes that are fetched, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Manifest, signatures and index.
    pub head: u64,
    /// A patch's index and its frames.
    pub patch: u64,
    /// Plain frames.
    pub frames: u64,
}

impl Cost {
    pub fn total(&self) -> u64 {
        self.head.saturating_add(self.patch).saturating_add(self.frames)
    }
}

/// A source for each chunk, and the patch that brings those of the source `Patch`.
#[derive(Debug)]
pub struct RestorePlan {
    sources: Sources,
    pub patch: Option<UsablePatch>,
}

impl Deref for RestorePlan {
    type Target = Sources;

    fn deref(&self) -> &Sources {
        &self.sources
    }
}

impl RestorePlan {
    pub fn new(sources: Sources, patch: Option<UsablePatch>) -> RestorePlan {
        RestorePlan { sources, patch }
    }

    /// Offsets of the groups that are not in place.
    pub fn unwritten(&self, index: &Index) -> BTreeSet<u64> {
        let missing = self.chunks(index, |source| source != ChunkSource::InPlace);
        missing.map(|(_, chunk)| chunk.group_offset).collect()
    }

    /// Bytes that will be fetched from here on: of the patch's frames, and of plain frames.
    pub fn cost(&self, index: &Index, layout: &Layout) -> Cost {
        let patch = self.patch.as_ref().map_or(0, |patch| patch.fetch_size(layout, index, self));
        let frames = self.requests(index, layout);
        let frames =
            frames.map(|run| run.span.end.saturating_sub(run.span.start)).fold(0, u64::saturating_add);
        Cost { head: 0, patch, frames }
    }
}

/// What is fetched by a device that has the chunks that `held` names, and the base of the patch of this number (from
/// 0), whose index `read` gives if it is needed.
pub fn cost<E>(
    layout: &Layout,
    index: &Index,
    held: impl Fn(&Chunk) -> bool,
    number: Option<usize>,
    read: impl FnOnce(usize) -> Result<PatchIndex, E>,
) -> Result<Cost, E> {
    let sources = Sources::new(index.len());
    let has = index.iter().enumerate().filter(|(_, chunk)| index.is_zero(chunk) || held(chunk));
    sources.set(has.map(|(position, _)| position), ChunkSource::InPlace);
    find_duplicates(index, &sources);
    let missing = patch::missing(index, &sources);
    let span = number.and_then(|number| Some((number, patch::span(layout, number, missing)?)));
    let patch = span
        .as_ref()
        .map(|(number, _)| Ok(UsablePatch { number: *number, index: read(*number)? }))
        .transpose()?;
    if let Some(patch) = &patch {
        patch.take(index, &sources, |_| true);
    }
    let Cost { patch, frames, .. } = RestorePlan::new(sources, patch).cost(index, layout);
    let list = span.map_or(0, |(_, span)| span.end.saturating_sub(span.start));
    Ok(Cost { head: layout.head_bytes(), patch: patch.saturating_add(list), frames })
}
