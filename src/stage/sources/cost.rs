//! What an update will download, told without doing it, by the same rules by which `stage` makes its requests.

use crate::bundle::{Chunk, Index, Layout, PatchIndex};
use crate::stage::sources::chunks::{ChunkSource, Sources};
use crate::stage::sources::duplicates::find_duplicates;
use crate::stage::sources::patch::{self, UsablePatch};
use crate::stage::sources::plan::{Cost, RestorePlan};

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
    let patch = span.as_ref().map(|(number, _)| Ok(UsablePatch::new(*number, read(*number)?))).transpose()?;
    if let Some(patch) = &patch {
        patch.take(index, &sources, |_| true);
    }
    let Cost { patch, frames, .. } = RestorePlan::new(sources, patch).cost(index, layout);
    let list = span.map_or(0, |(_, span)| span.end.saturating_sub(span.start));
    Ok(Cost { head: layout.head_bytes(), patch: patch.saturating_add(list), frames })
}
