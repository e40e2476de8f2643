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

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bundle::{Chunk, Index};
use crate::manifest::{Digest, Image};
use apply::fetcher::{Shared, fetch_size, transfer};
use apply::patch::Patch;
use buffer::Pool;
use error::finished;
use slot::read_back::{Frontier, compare, read_along, read_back_behind};
use slot::withheld::{Sink, Withheld};
use sources::maps;
use sources::plan::{Origin, Origins};
use sources::seed::Seed;
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
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod workspace;

pub use download::budget::Meter;
pub use download::open::{Bundle, open};
pub use download::remote::{Http, Source};
pub use error::StageError;
pub use progress::{Progress, Step};
pub use slot::read_back::read_back;
pub use slot::target::{GUARD, Target};
pub use sources::cost::{Cost, cost};
pub use sources::maps::Maps;
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

/// Makes the target hold the bundle's image, durably and read back.
///
/// `seed` is the booted slot, whose blocks are reused, found by its map if there is one. Chunks that are already
/// right are not written, and nothing is when all are. After an error or a cancel the target holds verified chunks
/// only, and cannot be loaded if any of it was written; calling again goes on from there. At the end the target's
/// own map is kept.
pub async fn stage(
    bundle: &Bundle,
    index: impl Into<Arc<Index>>,
    target: &Target,
    seed: Option<Booted<'_>>,
    maps: Option<&Maps>,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), StageError> {
    let image = bundle.manifest().image.clone();
    if image.size > target.capacity() {
        let (path, capacity) = (target.path().to_owned(), target.capacity());
        return Err(StageError::TooLarge { path, image: image.size, capacity });
    }
    let shared = Arc::new(Shared {
        name: bundle.name().to_owned(),
        index: index.into(),
        seed: seed.and_then(|seed| open_seed(seed.path)),
        group: image.chunking.group_max(),
        buffers: Pool::default(),
        progress: progress.clone(),
    });
    let written = target.written();
    let staging = Staging {
        bundle,
        shared,
        target: target.clone(),
        image,
        booted_image: seed.and_then(|seed| seed.image),
        maps: maps.cloned(),
        cancel: cancel.clone(),
    };
    staging.run().await?;
    staging.remember().await?;
    let (written, Progress { downloaded, reused, .. }) =
        (target.written().saturating_sub(written), *progress.borrow());
    tracing::info!(downloaded, reused, written, "the slot holds the image");
    Ok(())
}

/// A seed only saves bytes: without one everything is fetched.
fn open_seed(path: &Path) -> Option<Seed> {
    Seed::open(path)
        .inspect_err(|error| tracing::warn!("the booted slot can't be read: {}: {error}", path.display()))
        .ok()
}

struct Staging<'a> {
    bundle: &'a Bundle,
    shared: Arc<Shared>,
    target: Target,
    image: Image,
    booted_image: Option<Digest>,
    maps: Option<Maps>,
    cancel: CancellationToken,
}

impl Staging<'_> {
    async fn run(&self) -> Result<(), StageError> {
        let origins = self.survey().await?;
        if origins.iter().all(|origin| origin == Origin::InPlace) {
            self.account(&origins, None)?;
            return self.confirm().await;
        }
        let (image, cancel) = (self.booted_image, &self.cancel);
        let patch = Patch::open(self.bundle, &self.shared, image, &origins, cancel).await?;
        self.account(&origins, patch.as_ref())?;
        self.invalidate().await?;
        if let Some(maps) = &self.maps {
            maps::forget(&maps.target);
        }
        let sink = Arc::new(Sink {
            target: self.target.clone(),
            withheld: Withheld::new(self.bundle.workspace(), GUARD.min(self.image.size) as usize),
            frontier: Frontier::new(self.unwritten(&origins)),
        });
        let _behind = Behind(sink.clone());
        let follower = self.follow(&sink);
        if let Some(patch) = patch {
            self.patch(patch, &origins, &sink).await?;
        }
        transfer(self.bundle, &self.shared, &origins, &sink, cancel).await?;
        drop(origins);
        self.blocking(|staging| staging.clear_tail()).await?;
        let total = self.image.size;
        self.shared.progress.send_modify(|p| {
            *p = Progress { step: Step::ReadingBack, total, done: 0, ..*p };
        });
        let found = match follower {
            Some(follower) => Some(follower.await?),
            None => None,
        };
        self.blocking(move |staging| staging.seal(&sink, found)).await
    }

    /// Brings what the patch has; what it could not bring is fetched after it, within the budget.
    async fn patch(&self, patch: Patch, origins: &Origins, sink: &Arc<Sink>) -> Result<(), StageError> {
        let size = |origins: &Origins| fetch_size(self.bundle.layout(), &self.shared.index, origins);
        let before = size(origins);
        patch.apply(self.bundle, &self.shared, origins, sink, &self.cancel).await?;
        let still = self.unwritten(origins);
        let groups: BTreeSet<u64> = self.shared.index.iter().map(|chunk| chunk.group_offset).collect();
        groups.difference(&still).for_each(|group| sink.frontier.done(*group));
        let (need, remote) = (size(origins), self.bundle.remote());
        if need > before && remote.is_metered() {
            remote.meter().afford(need)?;
            let more = need.saturating_sub(before);
            let add = |p: &mut Progress| p.expected_download = p.expected_download.saturating_add(more);
            self.shared.progress.send_modify(add);
        }
        Ok(())
    }

    /// Keeps the map of what the target holds now.
    async fn remember(&self) -> Result<(), StageError> {
        self.blocking(|staging| {
            if let Some(maps) = &staging.maps {
                maps::keep(&maps.target, &staging.shared.index, &staging.image.chunking);
            }
            Ok(())
        })
        .await
    }

    /// Offsets of the groups that are not in place.
    fn unwritten(&self, origins: &Origins) -> BTreeSet<u64> {
        let all = self.shared.index.iter().zip(origins.iter());
        let missing = all.filter(|(_, origin)| *origin != Origin::InPlace);
        missing.map(|(chunk, _)| chunk.group_offset).collect()
    }

    /// Reads back close behind the writing, if both go past the page cache: only then is it the medium that
    /// answers.
    fn follow(&self, sink: &Arc<Sink>) -> Option<impl Future<Output = Result<Digest, StageError>> + use<>> {
        if !self.target.is_direct() {
            return None;
        }
        let (sink, size) = (sink.clone(), self.image.size);
        let (progress, cancel) = (self.shared.progress.clone(), self.cancel.clone());
        let follower = tokio::task::spawn_blocking(move || {
            read_along(&sink.withheld, &sink.target, size, &sink.frontier, &progress, &cancel)
        });
        Some(finished(follower))
    }

    async fn survey(&self) -> Result<Arc<Origins>, StageError> {
        let workspace = self.bundle.workspace().clone();
        self.blocking(move |staging| {
            let Shared { index, seed, buffers, progress, .. } = &*staging.shared;
            let (seed, chunking) = (seed.as_ref(), &staging.image.chunking);
            let (target, cancel) = (&staging.target, &staging.cancel);
            let maps = staging.maps.as_ref();
            let workspace = &workspace;
            let survey = Survey { index, chunking, target, seed, maps, buffers, workspace, progress, cancel };
            survey.run(THREADS).map(Arc::new)
        })
        .await
    }

    /// Zeroes the first MiB, before anything else changes.
    async fn invalidate(&self) -> Result<(), StageError> {
        // What can't be read is zeroed too: writing may be what it needs.
        self.blocking(|staging| match staging.target.is_invalid() {
            Ok(true) => Ok(()),
            _ => staging.target.invalidate(),
        })
        .await
    }

    /// Now the bytes to fetch are known: reports them, and refuses what the budget does not cover.
    fn account(&self, origins: &Origins, patch: Option<&Patch>) -> Result<(), StageError> {
        let (index, layout) = (&self.shared.index, self.bundle.layout());
        let patched = patch.map_or(0, |patch| patch.fetch_size(layout, index, origins));
        let need = patched.saturating_add(fetch_size(layout, index, origins));
        let remote = self.bundle.remote();
        let in_place = |(chunk, origin): (Chunk, Origin)| match origin {
            Origin::InPlace => u64::from(chunk.length),
            _ => 0,
        };
        let reused = self.shared.index.iter().zip(origins.iter()).map(in_place).sum();
        self.bundle.workspace().check()?;
        let spent = remote.meter().spent();
        let expected_download = if remote.is_metered() { spent.saturating_add(need) } else { spent };
        self.shared.progress.send_modify(|p| {
            *p = Progress {
                step: Step::Writing,
                total: self.image.size,
                done: reused,
                reused,
                downloaded: spent,
                expected_download,
            };
        });
        remote.afford(need)
    }

    /// Everything was in place already: look at the medium all the same.
    async fn confirm(&self) -> Result<(), StageError> {
        self.blocking(|staging| {
            staging.clear_tail()?;
            let Image { size, sha256, .. } = staging.image;
            let verdict = read_back(&staging.target, size, sha256, &staging.shared.progress, &staging.cancel);
            if let Err(StageError::ReadBack { .. } | StageError::Slot { .. }) = verdict {
                // The reason that counts is the first.
                staging.target.invalidate().ok();
            }
            verdict
        })
        .await
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Blocking) -> Result<T, StageError> + Send + 'static,
    ) -> Result<T, StageError> {
        let staging = Blocking {
            shared: self.shared.clone(),
            target: self.target.clone(),
            image: self.image.clone(),
            maps: self.maps.clone(),
            cancel: self.cancel.clone(),
        };
        finished(tokio::task::spawn_blocking(move || work(&staging))).await
    }
}

/// Ends the reading back when the writing ends, however that comes about.
struct Behind(Arc<Sink>);

impl Drop for Behind {
    fn drop(&mut self) {
        self.0.frontier.end();
    }
}

/// What a blocking step needs of `Staging`.
struct Blocking {
    shared: Arc<Shared>,
    target: Target,
    image: Image,
    maps: Option<Maps>,
    cancel: CancellationToken,
}

impl Blocking {
    /// Zeroes the last MiB of the slot beyond the image: stale superblocks there mislead.
    fn clear_tail(&self) -> Result<(), StageError> {
        let end = self.target.capacity();
        self.target.clear(self.image.size.max(end.saturating_sub(GUARD)), end)?;
        self.target.sync()
    }

    /// Reads the rest back, then writes the withheld bytes and reads those back too.
    /// `found` is the digest of the rest, if it was read back already.
    fn seal(&self, sink: &Sink, found: Option<Digest>) -> Result<(), StageError> {
        let Image { size, sha256, .. } = self.image;
        let progress = &self.shared.progress;
        match found {
            Some(found) => compare(&self.target, found, sha256)?,
            None => read_back_behind(&sink.withheld, &self.target, size, sha256, progress, &self.cancel)?,
        }
        if self.cancel.is_cancelled() {
            return Err(StageError::Cancelled);
        }
        let released = sink.release();
        if !matches!(released, Ok(true)) {
            self.target.invalidate().ok();
        }
        if !released? {
            let error = std::io::Error::other("it does not hold what was just written");
            return Err(self.target.failed(0, error));
        }
        progress.send_modify(|p| p.done = p.total);
        Ok(())
    }
}
