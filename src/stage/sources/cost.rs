//! What an update will download, told without doing it, by the same rules by which `stage` makes its requests.

use crate::bundle::{Chunk, Index, Layout, PatchIndex};
use crate::stage::sources::duplicates::find_duplicates;
use crate::stage::sources::patch::{self, Patch};
use crate::stage::sources::plan::{Plan, Source};

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

/// What is fetched by a device that has the chunks that `held` names, and the base of the patch of this number (from
/// 0), whose index `read` gives if it is needed.
pub fn cost<E>(
    layout: &Layout,
    index: &Index,
    held: impl Fn(&Chunk) -> bool,
    number: Option<usize>,
    read: impl FnOnce(usize) -> Result<PatchIndex, E>,
) -> Result<Cost, E> {
    let mut plan = Plan::new(index.len());
    let has = index.iter().enumerate().filter(|(_, chunk)| index.is_zero(chunk) || held(chunk));
    plan.set(has.map(|(position, _)| position), Source::InPlace);
    find_duplicates(index, &plan);
    let missing = patch::missing(index, &plan);
    let span = number.and_then(|number| Some((number, patch::span(layout, number, missing)?)));
    if let Some((number, _)) = &span {
        let patch = Patch::new(*number, read(*number)?);
        patch.take(index, &plan, |_| true);
        plan = plan.with(patch);
    }
    let Cost { patch, frames, .. } = plan.cost(index, layout);
    let list = span.map_or(0, |(_, span)| span.end.saturating_sub(span.start));
    Ok(Cost { head: layout.head_bytes(), patch: patch.saturating_add(list), frames })
}
