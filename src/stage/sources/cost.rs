//! What an update will download, told without doing it, by the same rules by which `stage` makes its requests.

use crate::bundle::{Chunk, Index, Layout, PatchIndex};
use crate::stage::apply::fetcher::fetch_size;
use crate::stage::apply::patch::{self, Patch};
use crate::stage::sources::duplicates::find_twins;
use crate::stage::sources::plan::{Origin, Origins};
use crate::stage::workspace::Workspace;

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
    let origin = |chunk: Chunk| match index.is_zero(&chunk) || held(&chunk) {
        true => Origin::InPlace,
        false => Origin::Fetch,
    };
    let workspace = Workspace::default();
    let origins = Origins::new(&workspace, index.len());
    origins.set(0, &index.iter().map(origin).collect::<Vec<_>>());
    find_twins(index, &origins, &workspace);
    let mut cost = Cost { head: layout.head_bytes(), ..Cost::default() };
    let missing = patch::missing(index, &origins);
    if let Some((number, span)) =
        number.and_then(|number| Some((number, patch::span(layout, number, missing)?)))
    {
        let patch = Patch::new(number, read(number)?);
        patch.take(index, &origins, |_| true);
        let frames = patch.fetch_size(layout, index, &origins);
        cost.patch = span.end.saturating_sub(span.start).saturating_add(frames);
    }
    cost.frames = fetch_size(layout, index, &origins);
    Ok(cost)
}
