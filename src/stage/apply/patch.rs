//! What a patch brings: fetched frame after frame, unpacked behind what the booted slot has, verified and written chunk
//! by chunk. Whatever it does not bring is fetched as if there were none.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::bundle::{Chunk, Decoder, Index, OUTPUT_CAP, PREFIX_CAP, PatchFrame};
use crate::stage::buffer::Buffer;
use crate::stage::download::frames::Frames;
use crate::stage::download::open::Bundle;
use crate::stage::error::{StageError, finished};
use crate::stage::slot::withheld::Sink;
use crate::stage::sources::chunks::ChunkSource;
use crate::stage::sources::patch::{UsablePatch, prefix};
use crate::stage::sources::plan::RestorePlan;
use crate::stage::sources::shared::Shared;

/// A frame with the chunks that are taken from it.
struct FetchedFrame {
    frame: PatchFrame,
    bytes: Bytes,
    chunks: Vec<(usize, Chunk)>,
    /// One for each chunk.
    wanted: Vec<bool>,
}

/// Brings all chunks of the source `Patch` to `sink`. Their source is then `InPlace`, or `Fetch` if the seed has lost what
/// their frame stands on.
pub async fn bring(
    patch: &UsablePatch,
    bundle: &Bundle,
    shared: &Arc<Shared>,
    plan: &RestorePlan,
    sink: &Arc<Sink>,
    cancel: &CancellationToken,
) -> Result<(), StageError> {
    let (jobs, queue) = mpsc::channel(1);
    let patcher = Patcher { shared: shared.clone(), sink: sink.clone(), decoder: Decoder::default() };
    let patcher = tokio::task::spawn_blocking(move || patcher.run(queue));
    let fed = tokio::select! {
        fed = shared.index.reading(|index| feed(patch, bundle, shared, index, plan, &jobs)) => fed,
        () = jobs.closed() => Ok(Err(stopped())),
        () = cancel.cancelled() => Ok(Err(StageError::Cancelled)),
    };
    drop(jobs);
    // Its error is the reason, and the feeder's then only its consequence.
    let lost = finished(patcher).await?;
    fed??;
    plan.replace(|source| source == ChunkSource::Patch, ChunkSource::InPlace);
    plan.set(lost, ChunkSource::Fetch);
    Ok(())
}

/// Fetches frame after frame.
async fn feed(
    patch: &UsablePatch,
    bundle: &Bundle,
    shared: &Shared,
    index: &Index,
    plan: &RestorePlan,
    jobs: &mpsc::Sender<FetchedFrame>,
) -> Result<(), StageError> {
    let layout = bundle.layout();
    for (span, frames) in patch.requests(layout, index, plan) {
        let mut range = Frames::new(bundle.remote(), span);
        for frame in frames {
            let place = layout.patch_frame(patch.number, &frame).unwrap_or_default();
            let told = |spent| shared.progress.send_modify(|p| p.downloaded = spent);
            let bytes = range.take(place, told).await?;
            let chunks: Vec<_> = frame.chunks(index).collect();
            let wanted =
                chunks.iter().map(|(number, _)| plan.get(*number) == Some(ChunkSource::Patch)).collect();
            jobs.send(FetchedFrame { frame, bytes, chunks, wanted }).await.map_err(|_| stopped())?;
        }
    }
    Ok(())
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
    fn run(mut self, mut queue: mpsc::Receiver<FetchedFrame>) -> Result<Vec<usize>, StageError> {
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
    fn work(
        &mut self,
        job: &FetchedFrame,
        before: &mut Buffer,
        out: &mut Buffer,
    ) -> Result<bool, StageError> {
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

impl FetchedFrame {
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
