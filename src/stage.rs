//! Bundle -> slot: fetch, verify, write, read back. This edge alone touches the target slot.
//!
//! For every chunk of the image, in order: is it already in place in the target, or in the booted slot? Else
//! its frame is fetched. A chunk is hashed in the very buffer that is then written; nothing unverified ever
//! reaches the slot. The target's first MiB is zeroed before anything else changes and written last, after
//! the rest was read back from the medium, so that no bootloader can load a half-written slot. The same rule
//! gives delta, resume and repair, and needs no journal: only digests are trusted.
//!
//! In order: `open` (then plan), `Target::acquire`, `Bundle::index`, `stage`; and `read_back` again for a slot that
//! waited.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bundle::Index;
use crate::manifest::{Digest, Image};
use apply::Restore;
use error::finished;
use slot::frontier::Frontier;
use slot::read_back::{ReadBack, compare};
use slot::withheld::{Sink, Withheld};
use sources::chunks::{ChunkSource, Sources};
use sources::maps;
use sources::patch::UsablePatch;
use sources::plan::RestorePlan;
use sources::seed::Seed;
use sources::shared::Shared;
use sources::survey::Survey;

mod apply;
mod buffer;
mod download;
mod error;
mod parallel;
#[doc(hidden)]
pub mod parsers;
mod progress;
mod slot;
mod sources;
mod stored;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod workspace;

pub use download::budget::Meter;
pub use download::http::{BundleSource, Http};
pub use download::open::{Bundle, Opening, open};
pub use error::StageError;
pub use progress::{Progress, Step};
pub use slot::read_back::read_back;
pub use slot::target::{GUARD, Target};
pub use sources::maps::Maps;
pub use sources::plan::{Cost, cost};
pub use stored::StoredIndex;
pub use workspace::Workspace;

/// Threads that survey: two that read while two hash. Each has a piece in memory.
const THREADS: usize = 4;

/// The booted slot.
#[derive(Debug, Clone, Copy)]
pub struct Booted<'a> {
    pub path: &'a Path,
    /// The digest of the image that was written there, if it is known: whether a patch fits depends on it.
    pub image: Option<Digest>,
}

impl<'a> From<&'a Path> for Booted<'a> {
    fn from(path: &'a Path) -> Booted<'a> {
        Booted { path, image: None }
    }
}

/// What staging goes by, beside the bundle.
#[derive(Debug, Clone, Copy)]
pub struct Staging<'a> {
    pub target: &'a Target,
    /// The booted slot, whose blocks are reused, found by its map if there is one.
    pub seed: Option<Booted<'a>>,
    pub maps: Option<&'a Maps>,
    pub progress: &'a watch::Sender<Progress>,
    pub cancel: &'a CancellationToken,
}

impl<'a> Staging<'a> {
    /// With nothing but the target.
    pub fn of(
        target: &'a Target,
        progress: &'a watch::Sender<Progress>,
        cancel: &'a CancellationToken,
    ) -> Staging<'a> {
        Staging { target, seed: None, maps: None, progress, cancel }
    }
}

/// Makes the target hold the bundle's image, durably and read back.
///
/// Chunks that are already right are not written, and nothing is when all are. After an error or a cancel the target
/// holds verified chunks only, and cannot be loaded if any of it was written; calling again goes on from there. At the
/// end the target's own map is kept.
pub async fn stage(
    bundle: &Bundle,
    index: impl Into<Arc<StoredIndex>>,
    staging: Staging<'_>,
) -> Result<(), StageError> {
    let Staging { target, seed, maps, progress, cancel } = staging;
    let image = bundle.manifest().image.clone();
    target.check_size(image.size)?;
    let written = target.written();
    let shared = Shared {
        name: bundle.name().to_owned(),
        index: index.into(),
        seed: seed.and_then(|seed| open_seed(seed.path)),
        group: image.chunking.group_max(),
        progress: progress.clone(),
        cancel: cancel.clone(),
    };
    let (shared, target, maps) = (Arc::new(shared), target.clone(), maps.cloned());
    let work = Arc::new(Blocking { shared, target, image, maps });
    let story = Story { bundle, work, booted_image: seed.and_then(|seed| seed.image) };
    story.run().await?;
    story.blocking(Blocking::remember).await?;
    let (written, Progress { downloaded, reused, .. }) =
        (story.work.target.written().saturating_sub(written), *progress.borrow());
    tracing::info!(downloaded, reused, written, "the slot holds the image");
    Ok(())
}

/// A seed only saves bytes: without one everything is fetched.
fn open_seed(path: &Path) -> Option<Seed> {
    Seed::open(path)
        .inspect_err(|error| tracing::warn!("the booted slot can't be read: {}: {error}", path.display()))
        .ok()
}

/// One staging from its first step to its last.
struct Story<'a> {
    bundle: &'a Bundle,
    work: Arc<Blocking>,
    booted_image: Option<Digest>,
}

impl Story<'_> {
    /// Survey, fetch, apply, read back.
    async fn run(&self) -> Result<(), StageError> {
        let Story { bundle, work, booted_image } = self;
        let shared = &work.shared;
        let found = self.blocking(Blocking::survey).await?;
        let (found, patch) = UsablePatch::find(bundle, shared, *booted_image, found).await?;
        let plan = RestorePlan::new(found, patch);
        self.announce(&plan)?;
        if plan.is_done() {
            return self.blocking(Blocking::confirm).await;
        }
        self.blocking(Blocking::invalidate).await?;
        let sink = Arc::new(work.sink(bundle.workspace(), &plan)?);
        let _behind = Behind(sink.clone());
        let follower = self.follow(&sink);
        Restore { bundle, shared, plan: &plan, sink: &sink }.run().await?;
        drop(plan);
        self.blocking(Blocking::clear_tail).await?;
        shared.progress.send_modify(|p| *p = Progress { step: Step::ReadingBack, done: 0, ..*p });
        let found = match follower {
            Some(follower) => Some(follower.await?),
            None => None,
        };
        self.blocking(move |work| work.seal(&sink, found)).await
    }

    /// Reads back close behind the writing, if both go past the page cache: only then is it the medium that
    /// answers.
    fn follow(&self, sink: &Arc<Sink>) -> Option<impl Future<Output = Result<Digest, StageError>> + use<>> {
        if !self.work.target.is_direct() {
            return None;
        }
        let (sink, work) = (sink.clone(), self.work.clone());
        let follower = tokio::task::spawn_blocking(move || work.reader(&sink.withheld).along(&sink.frontier));
        Some(finished(follower))
    }

    /// Now the bytes to fetch are known: reports them, and refuses what the budget does not cover.
    fn announce(&self, plan: &RestorePlan) -> Result<(), StageError> {
        let Blocking { shared, image, .. } = &*self.work;
        let (need, done) = shared.index.read(|index| {
            let in_place = plan.chunks(index, |source| source == ChunkSource::InPlace);
            let in_place: u64 = in_place.map(|(_, chunk)| u64::from(chunk.length)).sum();
            (plan.cost(index, self.bundle.layout()).total(), in_place)
        })?;
        let remote = self.bundle.remote();
        let downloaded = remote.meter().spent();
        let expected_download =
            if remote.is_metered() { downloaded.saturating_add(need) } else { downloaded };
        let (step, total, reused) = (Step::Writing, image.size, done);
        shared.progress.send_replace(Progress { step, total, done, reused, downloaded, expected_download });
        remote.afford(need)
    }

    /// Runs `step` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Blocking) -> Result<T, StageError> + Send + 'static,
    ) -> Result<T, StageError> {
        let work = self.work.clone();
        finished(tokio::task::spawn_blocking(move || step(&work))).await
    }
}

/// Ends the reading back when the writing ends, however that comes about.
struct Behind(Arc<Sink>);

impl Drop for Behind {
    fn drop(&mut self) {
        self.0.frontier.end();
    }
}

/// What the blocking steps need.
struct Blocking {
    shared: Arc<Shared>,
    target: Target,
    image: Image,
    maps: Option<Maps>,
}

impl Blocking {
    fn survey(&self) -> Result<Sources, StageError> {
        let Shared { index, seed, progress, cancel, .. } = &*self.shared;
        let target = |buffer: &mut [u8], offset| self.target.read(buffer, offset);
        let survey = |index: &Index| {
            let survey = Survey {
                index,
                chunking: &self.image.chunking,
                target: &target,
                withheld: GUARD,
                seed: seed.as_ref(),
                maps: self.maps.as_ref(),
                progress,
                cancel,
            };
            survey.run(THREADS)
        };
        index.read(survey)?
    }

    /// Zeroes the first MiB, before anything else changes, and forgets what the target held.
    fn invalidate(&self) -> Result<(), StageError> {
        // What can't be read is zeroed too: writing may be what it needs.
        if !matches!(self.target.is_invalid(), Ok(true)) {
            self.target.invalidate()?;
        }
        if let Some(maps) = &self.maps {
            maps::forget(&maps.target);
        }
        Ok(())
    }

    fn sink(&self, workspace: &Workspace, plan: &RestorePlan) -> Result<Sink, StageError> {
        let withheld = Withheld::new(workspace, GUARD.min(self.image.size) as usize);
        let frontier = Frontier::new(self.shared.index.read(|index| plan.unwritten(index))?);
        Ok(Sink { target: self.target.clone(), withheld, frontier })
    }

    fn reader<'a>(&'a self, head: &'a Withheld) -> ReadBack<'a> {
        let Shared { progress, cancel, .. } = &*self.shared;
        ReadBack { head, target: &self.target, size: self.image.size, progress, cancel }
    }

    /// Everything was in place already: look at the medium all the same.
    fn confirm(&self) -> Result<(), StageError> {
        self.clear_tail()?;
        let verdict = self.reader(&Withheld::none()).judge(self.image.sha256);
        if let Err(StageError::ReadBack { .. } | StageError::Slot { .. }) = verdict {
            // The reason that counts is the first.
            self.target.invalidate().ok();
        }
        verdict
    }

    /// Keeps the map of what the target holds now.
    fn remember(&self) -> Result<(), StageError> {
        let Some(maps) = &self.maps else { return Ok(()) };
        self.shared.index.read(|index| maps::keep(&maps.target, index, &self.image.chunking))
    }

    /// Zeroes the last MiB of the slot beyond the image: stale superblocks there mislead.
    fn clear_tail(&self) -> Result<(), StageError> {
        let end = self.target.capacity();
        self.target.clear(self.image.size.max(end.saturating_sub(GUARD)), end)?;
        self.target.sync()
    }

    /// Reads the rest back, then writes the withheld bytes and reads those back too.
    /// `found` is the digest of the rest, if it was read back already.
    fn seal(&self, sink: &Sink, found: Option<Digest>) -> Result<(), StageError> {
        match found {
            Some(found) => compare(&self.target, found, self.image.sha256)?,
            None => self.reader(&sink.withheld).judge(self.image.sha256)?,
        }
        self.shared.check_cancelled()?;
        let released = sink.release();
        if !matches!(released, Ok(true)) {
            self.target.invalidate().ok();
        }
        if !released? {
            let error = std::io::Error::other("it does not hold what was just written");
            return Err(self.target.failed(0, error));
        }
        self.shared.progress.send_modify(|p| p.done = p.total);
        Ok(())
    }
}
