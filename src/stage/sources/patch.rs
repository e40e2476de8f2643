//! The patch that the booted slot has the base of, and what of it can be used. Before a frame of the patch is fetched the
//! blocks that it stands on are read and compared, so a slot that changed costs no byte.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::bundle::{Index, Layout, PREFIX_CAP, PatchFrame, PatchIndex, PrefixDigest, join, offset_of};
use crate::manifest::{self, BLOCK, Digest};
use crate::stage::buffer::{Buffer, PIECE};
use crate::stage::download::open::Bundle;
use crate::stage::error::{StageError, finished};
use crate::stage::parallel::in_parallel;
use crate::stage::sources::chunks::{ChunkSource, Sources};
use crate::stage::sources::seed::Seed;
use crate::stage::sources::shared::Shared;

/// Threads that read a prefix: many short ranges, which wait for the medium and not for a processor.
const READERS: usize = 4;

#[derive(Debug)]
pub struct UsablePatch {
    /// Its number in the manifest, from 0.
    pub number: usize,
    pub index: PatchIndex,
}

impl UsablePatch {
    /// The patch from what the booted slot holds, if the bundle has one and it saves bytes: the chunks that its frames
    /// bring get the source `Patch`. `image`: what the slot is known to hold.
    pub async fn find(
        bundle: &Bundle,
        shared: &Arc<Shared>,
        image: Option<Digest>,
        sources: Sources,
    ) -> Result<(Sources, Option<UsablePatch>), StageError> {
        let missing = shared.index.read(|index| missing(index, &sources))?;
        if bundle.manifest().patches.is_empty() || missing == 0 {
            return Ok((sources, None));
        }
        let Some(number) = number(bundle, shared, image).await? else { return Ok((sources, None)) };
        let Some(span) = span(bundle.layout(), number, missing) else { return Ok((sources, None)) };
        let remote = bundle.remote();
        remote.afford(length(&span))?;
        let index = tokio::select! {
            index = remote.insist(|| read_index(bundle, shared, number, span.clone())) => index?,
            () = shared.cancel.cancelled() => return Err(StageError::Cancelled),
        };
        let (patch, shared) = (UsablePatch { number, index }, shared.clone());
        let surveyed = tokio::task::spawn_blocking(move || {
            patch.survey(&shared, &sources)?;
            Ok((sources, Some(patch)))
        });
        finished(surveyed).await
    }

    /// Takes the frames that pay and that the device `can` unpack: their chunks get the source `Patch`.
    pub fn take(&self, index: &Index, sources: &Sources, mut can: impl FnMut(&PatchFrame) -> bool) {
        for frame in self.index.frames() {
            let pays = frame.pays(index, |chunk| sources.get(chunk) == Some(ChunkSource::Fetch));
            if !pays || !can(&frame) {
                continue;
            }
            for (number, _) in frame.chunks(index) {
                if sources.get(number) == Some(ChunkSource::Fetch) {
                    sources.set([number], ChunkSource::Patch);
                }
            }
        }
    }

    fn survey(&self, shared: &Shared, sources: &Sources) -> Result<(), StageError> {
        let Some(seed) = &shared.seed else { return Ok(()) };
        let mut buffer = Buffer::new(PREFIX_CAP);
        let can =
            |frame: &PatchFrame| !shared.cancel.is_cancelled() && prefix(seed, frame, &mut buffer).is_some();
        shared.index.read(|index| self.take(index, sources, can))?;
        shared.check_cancelled()
    }

    /// The frames that bring something, joined to requests.
    pub fn requests<'a>(
        &'a self,
        layout: &'a Layout,
        index: &'a Index,
        sources: &'a Sources,
    ) -> impl Iterator<Item = (Range<u64>, Vec<PatchFrame>)> + 'a {
        let wanted = |frame: &PatchFrame| {
            frame.chunks(index).any(|(number, _)| sources.get(number) == Some(ChunkSource::Patch))
        };
        let frames = self.index.frames().filter(wanted);
        join(frames.filter_map(|frame| layout.patch_frame(self.number, &frame).map(|span| (frame, span))))
    }

    /// Bytes of the requests that `apply` will make.
    pub fn fetch_size(&self, layout: &Layout, index: &Index, sources: &Sources) -> u64 {
        self.requests(layout, index, sources).map(|(span, _)| length(&span)).sum()
    }
}

async fn read_index(
    bundle: &Bundle,
    shared: &Shared,
    number: usize,
    span: Range<u64>,
) -> Result<PatchIndex, StageError> {
    let bytes = bundle.remote().read(span.start, span.end).await?;
    let own = bundle.layout().patch_index(number, &bytes).map_err(|error| bundle.malformed(error))?;
    let parse = |index: &Index| PatchIndex::parse(own.to_vec(), number, bundle.manifest(), index);
    shared.index.read(parse)?.map_err(|error| bundle.malformed(error))
}

/// Bytes of the plain blocks that would be fetched.
pub fn missing(index: &Index, sources: &Sources) -> u64 {
    let wanted = sources.chunks(index, |source| source == ChunkSource::Fetch);
    wanted.map(|(_, chunk)| u64::from(chunk.frame_length)).sum()
}

/// What to fetch of a patch before its frames, if that is less than what is missing in all.
pub fn span(layout: &Layout, number: usize, missing: u64) -> Option<Range<u64>> {
    layout.patch_span(number).filter(|span| length(span) < missing)
}

fn length(span: &Range<u64>) -> u64 {
    span.end.saturating_sub(span.start)
}

/// Reads a frame's prefix into `buffer`; `None` if the seed does not have it.
pub fn prefix<'a>(seed: &Seed, frame: &PatchFrame, buffer: &'a mut Buffer) -> Option<&'a [u8]> {
    let whole = buffer.first_mut(frame.prefix_length());
    let (mut rest, mut reads) = (&mut *whole, Vec::with_capacity(frame.blocks.len()));
    for range in &frame.blocks {
        let length = range.len().saturating_mul(BLOCK as usize);
        let (own, after) = rest.split_at_mut_checked(length)?;
        reads.push((own, offset_of(range.start)));
        rest = after;
    }
    let read = |part: &mut [(&mut [u8], u64)]| part.iter_mut().all(|(own, at)| seed.read(own, *at).is_ok());
    let share = reads.len().div_ceil(READERS).max(1);
    let is_read = in_parallel(reads.chunks_mut(share), read).ok()?.into_iter().all(|is_read| is_read);
    (is_read && PrefixDigest::of(whole) == frame.prefix).then_some(&*whole)
}

/// The number of the patch from what the booted slot holds. Is that not known, then its digest tells.
async fn number(
    bundle: &Bundle,
    shared: &Arc<Shared>,
    image: Option<Digest>,
) -> Result<Option<usize>, StageError> {
    let patches = &bundle.manifest().patches;
    if let Some(image) = image {
        return Ok(patches.iter().position(|patch| patch.base_sha256 == image));
    }
    let (patches, shared) = (patches.clone(), shared.clone());
    let identified = tokio::task::spawn_blocking(move || {
        let Some(seed) = &shared.seed else { return Ok(None) };
        let found = identify(seed, &patches, &shared);
        shared.check_cancelled()?;
        let told = found.inspect_err(|error| tracing::warn!("the booted slot can't be read: {error}"));
        Ok(told.unwrap_or(None))
    });
    finished(identified).await
}

/// Hashes the seed from its start, and asks at the size of each old image.
fn identify(seed: &Seed, patches: &[manifest::Patch], shared: &Shared) -> io::Result<Option<usize>> {
    let mut order: Vec<_> = patches.iter().enumerate().collect();
    order.sort_by_key(|(_, patch)| patch.base_size);
    let (mut hash, mut at, mut buffer) = (Sha256::new(), 0, Buffer::new(PIECE));
    let mut found = None;
    for (number, patch) in order {
        if patch.base_size > seed.size() {
            break;
        }
        while at < patch.base_size && !shared.cancel.is_cancelled() {
            let part = buffer.first_mut(patch.base_size.saturating_sub(at).min(PIECE as u64) as usize);
            seed.read(part, at)?;
            hash.update(&*part);
            at = at.saturating_add(part.len() as u64);
        }
        if Digest(hash.clone().finalize().into()) == patch.base_sha256 {
            // A longer one that fits too is the better one.
            found = Some(number);
        }
    }
    Ok(found)
}
