//! The restore plan, carried out: every chunk is brought from where it is to the slot.

use std::sync::Arc;

use crate::stage::download::open::Bundle;
use crate::stage::error::StageError;
use crate::stage::progress::Progress;
use crate::stage::slot::withheld::Sink;
use crate::stage::sources::plan::RestorePlan;
use crate::stage::sources::shared::Shared;

mod fetcher;
mod patch;
mod unpack;
mod writer;

/// A plan, and what it is carried out with.
pub struct Restore<'a> {
    pub bundle: &'a Bundle,
    pub shared: &'a Arc<Shared>,
    pub plan: &'a RestorePlan,
    pub sink: &'a Arc<Sink>,
}

impl Restore<'_> {
    /// Brings what the patch has, and then all else: also what the patch could not bring, within the budget.
    pub async fn run(&self) -> Result<(), StageError> {
        if let Some(patch) = &self.plan.patch {
            let before = self.frames()?;
            self.bring(patch).await?;
            let still = self.shared.index.read(|index| self.plan.unwritten(index))?;
            self.sink.frontier.keep(&still);
            let need = self.frames()?;
            if need > before {
                self.afford(need, need.saturating_sub(before))?;
            }
        }
        self.transfer().await
    }

    /// Bytes of plain frames that are to be fetched.
    fn frames(&self) -> Result<u64, StageError> {
        self.shared.index.read(|index| self.plan.cost(index, self.bundle.layout()).frames)
    }

    /// Refuses `need` bytes that the budget does not cover; `more` of them were not expected before.
    fn afford(&self, need: u64, more: u64) -> Result<(), StageError> {
        self.bundle.remote().afford(need)?;
        if self.bundle.remote().is_metered() {
            let add = |p: &mut Progress| p.expected_download = p.expected_download.saturating_add(more);
            self.shared.progress.send_modify(add);
        }
        Ok(())
    }
}
