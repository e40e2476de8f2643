//! The restore plan: where each chunk of the image will come from, and what that costs. It is made before anything changes,
//! shown and checked against the budget, and then carried out.

use std::ops::Deref;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::bundle::{Index, Layout};
use crate::manifest::Digest;
use crate::stage::download::open::Bundle;
use crate::stage::error::StageError;
use crate::stage::sources::chunks::Sources;
use crate::stage::sources::patch::UsablePatch;
use crate::stage::sources::shared::Shared;

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

    /// From what a survey found, and with the patch from what the booted slot is known to hold, if there is one and it
    /// saves bytes.
    pub async fn make(
        bundle: &Bundle,
        shared: &Arc<Shared>,
        found: Sources,
        booted: Option<Digest>,
        cancel: &CancellationToken,
    ) -> Result<RestorePlan, StageError> {
        let (sources, patch) = UsablePatch::find(bundle, shared, booted, found, cancel).await?;
        Ok(RestorePlan { sources, patch })
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
