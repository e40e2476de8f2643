//! A shorter way to what the slots lack, if the booted slot holds an old image that the bundle has a patch from.
//! Before a frame of the patch is fetched the blocks that it stands on are read and compared, so a slot that
//! changed costs no byte. What a patch brings is verified and written chunk by chunk, as everything is; whatever it
//! does not bring is fetched as if there were none.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::bundle::{
    BundleError, Chunk, Decoder, Index, Layout, OUTPUT_CAP, PREFIX_CAP, PatchFrame, PatchIndex, PrefixDigest,
    join,
};
use crate::manifest::{self, BLOCK, Digest};
use crate::stage::apply::fetcher::Shared;
use crate::stage::buffer::{Buffer, PIECE, Pool};
use crate::stage::download::open::Bundle;
use crate::stage::error::StageError;
use crate::stage::error::finished;
use crate::stage::parallel::in_parallel;
use crate::stage::slot::withheld::Sink;
use crate::stage::sources::plan::{Origin, Origins};
use crate::stage::sources::seed::Seed;

/// Threads that read a prefix: many short ranges, which wait for the medium and not for a processor.
const READERS: usize = 4;

/// A patch from what the booted slot holds.
#[derive(Debug)]
pub struct Patch {
    /// Its number in the manifest, from 0.
    number: usize,
    index: PatchIndex,
}

/// A frame with the chunks that are taken from it.
struct Job {
    frame: PatchFrame,
    bytes: Vec<u8>,
    chunks: Vec<(usize, Chunk)>,
    /// One for each chunk.
    wanted: Vec<bool>,
}

impl Patch {
    /// Fetches the patch's index, and gives the chunks that its frames bring the origin `Patch`. `None` if there is
    /// no patch from what the booted slot holds, or nothing to save. `image`: what it is known to hold.
    pub async fn open(
        bundle: &Bundle,
        shared: &Arc<Shared>,
        image: Option<Digest>,
        origins: &Arc<Origins>,
        cancel: &CancellationToken,
    ) -> Result<Option<Patch>, StageError> {
        let missing = missing(&shared.index, origins);
        if bundle.manifest().patches.is_empty() || missing == 0 {
            return Ok(None);
        }
        let Some(number) = number(bundle, shared, image, cancel).await? else { return Ok(None) };
        let Some(span) = span(bundle.layout(), number, missing) else { return Ok(None) };
        let remote = bundle.remote();
        remote.afford(length(&span))?;
        let index = tokio::select! {
            index = remote.insist(|| read_index(bundle, shared, number, span.clone())) => index?,
            () = cancel.cancelled() => return Err(StageError::Cancelled),
        };
        let patch = Patch::new(number, index);
        let (shared, origins, cancel) = (shared.clone(), origins.clone(), cancel.clone());
        let surveyed = tokio::task::spawn_blocking(move || {
            patch.survey(&shared, &origins, &cancel)?;
            Ok(Some(patch))
        });
        finished(surveyed).await
    }

    pub fn new(number: usize, index: PatchIndex) -> Patch {
        Patch { number, index }
    }

    /// Takes the frames that pay and that the device `can` unpack: their chunks get the origin `Patch`.
    pub fn take(&self, index: &Index, origins: &Origins, mut can: impl FnMut(&PatchFrame) -> bool) {
        for frame in self.index.frames() {
            let pays = frame.pays(index, |chunk| origins.get(chunk) == Some(Origin::Fetch));
            if !pays || !can(&frame) {
                continue;
            }
            for (number, _) in frame.chunks(index) {
                if origins.get(number) == Some(Origin::Fetch) {
                    origins.set(number, &[Origin::Patch]);
                }
            }
        }
    }

    /// Takes what the seed has the prefix for.
    fn survey(
        &self,
        shared: &Shared,
        origins: &Origins,
        cancel: &CancellationToken,
    ) -> Result<(), StageError> {
        let Some(seed) = &shared.seed else { return Ok(()) };
        let mut buffer = Buffer::new(PREFIX_CAP);
        self.take(&shared.index, origins, |frame| {
            !cancel.is_cancelled() && prefix(seed, frame, &mut buffer).is_some()
        });
        if cancel.is_cancelled() { Err(StageError::Cancelled) } else { Ok(()) }
    }

    /// The frames that bring something, joined to requests.
    fn runs<'a>(
        &'a self,
        layout: &'a Layout,
        index: &'a Index,
        origins: &'a Origins,
    ) -> impl Iterator<Item = (Range<u64>, Vec<PatchFrame>)> + 'a {
        let wanted = |frame: &PatchFrame| {
            frame.chunks(index).any(|(number, _)| origins.get(number) == Some(Origin::Patch))
        };
        let frames = self.index.frames().filter(wanted);
        join(frames.filter_map(|frame| layout.patch_frame(self.number, &frame).map(|span| (frame, span))))
    }

    /// Bytes of the requests that `apply` will make.
    pub fn fetch_size(&self, layout: &Layout, index: &Index, origins: &Origins) -> u64 {
        self.runs(layout, index, origins).map(|(span, _)| length(&span)).sum()
    }

    /// Brings all chunks of origin `Patch` to `sink`. Their origin is then `InPlace`, or `Fetch` if the seed has
    /// lost what their frame stands on.
    pub async fn apply(
        &self,
        bundle: &Bundle,
        shared: &Arc<Shared>,
        origins: &Origins,
        sink: &Arc<Sink>,
        cancel: &CancellationToken,
    ) -> Result<(), StageError> {
        let (jobs, queue) = mpsc::channel(1);
        let patcher = Patcher { shared: shared.clone(), sink: sink.clone(), decoder: Decoder::new() };
        let patcher = tokio::task::spawn_blocking(move || patcher.run(queue));
        let fed = tokio::select! {
            fed = self.feed(bundle, shared, origins, &jobs) => fed,
            () = jobs.closed() => Err(stopped()),
            () = cancel.cancelled() => Err(StageError::Cancelled),
        };
        drop(jobs);
        // Its error is the reason, and the feeder's then only its consequence.
        let lost = finished(patcher).await?;
        fed?;
        origins.replace(|origin| origin == Origin::Patch, Origin::InPlace);
        origins.set_each(lost, Origin::Fetch);
        Ok(())
    }

    /// Fetches frame after frame.
    async fn feed(
        &self,
        bundle: &Bundle,
        shared: &Shared,
        origins: &Origins,
        jobs: &mpsc::Sender<Job>,
    ) -> Result<(), StageError> {
        for (span, frames) in self.runs(bundle.layout(), &shared.index, origins) {
            let mut range = bundle.remote().range(span.start, span.end);
            let (mut at, mut piece) = (span.start, bytes::Bytes::new());
            for frame in frames {
                let place = bundle.layout().patch_frame(self.number, &frame).unwrap_or_default();
                let mut bytes = Vec::with_capacity(frame.length as usize);
                while at < place.end {
                    if piece.is_empty() {
                        let next = range.next().await?;
                        let short = BundleError::Short { need: place.end };
                        piece = next.ok_or_else(|| bundle.malformed(short))?;
                        let spent = bundle.remote().meter().spent();
                        shared.progress.send_modify(|p| p.downloaded = spent);
                    }
                    let gap = place.start.saturating_sub(at).min(piece.len() as u64);
                    bytes::Buf::advance(&mut piece, gap as usize);
                    at = at.saturating_add(gap);
                    let part = place.end.saturating_sub(at).min(piece.len() as u64);
                    bytes.extend_from_slice(&piece.split_to(part as usize));
                    at = at.saturating_add(part);
                }
                let chunks: Vec<_> = frame.chunks(&shared.index).collect();
                let wanted =
                    chunks.iter().map(|(number, _)| origins.get(*number) == Some(Origin::Patch)).collect();
                let sent = jobs.send(Job { frame, bytes, chunks, wanted }).await;
                sent.map_err(|_| stopped())?;
            }
        }
        Ok(())
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
    let index = PatchIndex::parse(own.to_vec(), number, bundle.manifest(), &shared.index);
    index.map_err(|error| bundle.malformed(error))
}

/// Bytes of the plain blocks that would be fetched.
pub fn missing(index: &Index, origins: &Origins) -> u64 {
    let wanted = index.iter().zip(origins.iter()).filter(|(_, origin)| *origin == Origin::Fetch);
    wanted.map(|(chunk, _)| u64::from(chunk.frame_length)).sum()
}

/// What to fetch of a patch before its frames, if that is less than what is missing in all.
pub fn span(layout: &Layout, number: usize, missing: u64) -> Option<Range<u64>> {
    layout.patch_span(number).filter(|span| length(span) < missing)
}

fn length(span: &Range<u64>) -> u64 {
    span.end.saturating_sub(span.start)
}

/// Reads a frame's prefix into `buffer`; `None` if the seed does not have it.
fn prefix<'a>(seed: &Seed, frame: &PatchFrame, buffer: &'a mut Buffer) -> Option<&'a [u8]> {
    let whole = buffer.first_mut(frame.prefix_length());
    let (mut rest, mut reads) = (&mut *whole, Vec::with_capacity(frame.blocks.len()));
    for range in &frame.blocks {
        let length = range.len().saturating_mul(BLOCK as usize);
        let (own, after) = rest.split_at_mut_checked(length)?;
        reads.push((own, u64::from(range.start).saturating_mul(u64::from(BLOCK))));
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
    cancel: &CancellationToken,
) -> Result<Option<usize>, StageError> {
    let patches = &bundle.manifest().patches;
    if let Some(image) = image {
        return Ok(patches.iter().position(|patch| patch.base_sha256 == image));
    }
    let (patches, shared, cancel) = (patches.clone(), shared.clone(), cancel.clone());
    let identified = tokio::task::spawn_blocking(move || {
        let Some(seed) = &shared.seed else { return Ok(None) };
        let found = identify(seed, &patches, &shared.buffers, &cancel);
        if cancel.is_cancelled() {
            return Err(StageError::Cancelled);
        }
        Ok(found
            .inspect_err(|error| tracing::warn!("the booted slot can't be read: {error}"))
            .unwrap_or(None))
    });
    finished(identified).await
}

/// Hashes the seed from its start, and asks at the size of each old image.
fn identify(
    seed: &Seed,
    patches: &[manifest::Patch],
    buffers: &Pool,
    cancel: &CancellationToken,
) -> io::Result<Option<usize>> {
    let mut order: Vec<_> = patches.iter().enumerate().collect();
    order.sort_by_key(|(_, patch)| patch.base_size);
    let (mut hash, mut at, mut buffer) = (Sha256::new(), 0, buffers.take());
    let mut found = None;
    for (number, patch) in order {
        if patch.base_size > seed.size() {
            break;
        }
        while at < patch.base_size && !cancel.is_cancelled() {
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
    buffers.give(buffer);
    Ok(found)
}

fn stopped() -> StageError {
    StageError::Thread("the writer stopped".into())
}

/// Unpacks frames and writes what they bring.
struct Patcher {
    shared: Arc<Shared>,
    sink: Arc<Sink>,
    decoder: Decoder,
}

impl Patcher {
    /// Works until the queue ends. Returns the chunks that it could not bring.
    fn run(mut self, mut queue: mpsc::Receiver<Job>) -> Result<Vec<usize>, StageError> {
        let (mut before, mut out) = (Buffer::new(PREFIX_CAP), Buffer::new(OUTPUT_CAP));
        let mut lost = Vec::new();
        while let Some(job) = queue.blocking_recv() {
            if !self.work(&job, &mut before, &mut out)? {
                let wanted = job.chunks.iter().zip(&job.wanted).filter(|(_, wanted)| **wanted);
                lost.extend(wanted.map(|((number, _), _)| *number));
            }
        }
        Ok(lost)
    }

    /// `false` if the seed changed since the frame was asked for, or the frame is not what was signed.
    fn work(&mut self, job: &Job, before: &mut Buffer, out: &mut Buffer) -> Result<bool, StageError> {
        let seed = self.shared.seed.as_ref();
        let Some(prefix) = seed.and_then(|seed| prefix(seed, &job.frame, before)) else { return Ok(false) };
        let chunks: Vec<Chunk> = job.chunks.iter().map(|(_, chunk)| *chunk).collect();
        let length = chunks.iter().map(|chunk| chunk.length as usize).sum();
        let content = out.first_mut(length);
        if let Err(error) = self.decoder.patch(&job.bytes, prefix, &chunks, content) {
            tracing::warn!(url = self.shared.name, %error, "a part of the patch is of no use");
            return Ok(false);
        }
        let mut rest: &[u8] = content;
        // Neighbours are written together.
        for run in job.runs() {
            let length: usize = run.iter().map(|(chunk, _)| chunk.length as usize).sum();
            let (own, after) = rest.split_at(length.min(rest.len()));
            rest = after;
            if let Some((first, true)) = run.first() {
                self.sink.write(own, first.offset)?;
                let written = own.len() as u64;
                self.shared.progress.send_modify(|p| p.done = p.done.saturating_add(written));
            }
        }
        Ok(true)
    }
}

impl Job {
    /// Chunks that lie side by side in the image, and are all wanted or all not.
    fn runs(&self) -> Vec<Vec<(Chunk, bool)>> {
        let chunks = self.chunks.iter().map(|(_, chunk)| *chunk).zip(self.wanted.iter().copied());
        let all: Vec<(Chunk, bool)> = chunks.collect();
        let side_by_side = |(a, own): &(Chunk, bool), (b, other): &(Chunk, bool)| {
            own == other && a.offset.checked_add(u64::from(a.length)) == Some(b.offset)
        };
        all.chunk_by(side_by_side).map(<[_]>::to_vec).collect()
    }
}
