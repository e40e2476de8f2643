//! What a patch brings: fetched frame after frame, unpacked behind what the booted slot has, verified and written chunk
//! by chunk. Whatever it does not bring is fetched as if there were none.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::bundle::{Chunk, Decoder, Index, OUTPUT_CAP, PREFIX_CAP, PatchFrame};
use crate::stage::apply::Restore;
use crate::stage::buffer::Buffer;
use crate::stage::download::frames::Frames;
use crate::stage::error::{StageError, finished};
use crate::stage::slot::withheld::Sink;
use crate::stage::sources::chunks::ChunkSource;
use crate::stage::sources::patch::{UsablePatch, prefix};
use crate::stage::sources::shared::Shared;

/// A frame with its chunks: their numbers, and which of them are taken from it.
struct FetchedFrame {
    frame: PatchFrame,
    bytes: Bytes,
    chunks: Vec<(usize, Chunk, bool)>,
}

impl Restore<'_> {
    /// Brings all chunks of the source `Patch` to the sink. Their source is then `InPlace`, or `Fetch` if the seed has lost
    /// what their frame stands on.
    pub(super) async fn bring(&self, patch: &UsablePatch) -> Result<(), StageError> {
        let Restore { shared, plan, sink, .. } = *self;
        let (jobs, queue) = mpsc::channel(1);
        let (to, from) = (sink.clone(), shared.clone());
        let patcher = tokio::task::spawn_blocking(move || Patcher::new(&from, &to).run(queue));
        let fed = tokio::select! {
            fed = shared.index.reading(|index| self.feed(patch, index, &jobs)) => fed,
            () = jobs.closed() => Ok(Err(stopped())),
            () = shared.cancel.cancelled() => Ok(Err(StageError::Cancelled)),
        };
        drop(jobs);
        // Its error is the reason, and the feeder's then only its consequence.
        let lost = finished(patcher).await?;
        fed??;
        plan.replace(|source| source == ChunkSource::Patch, ChunkSource::InPlace);
        plan.set(lost, ChunkSource::Fetch);
        Ok(())
    }

    async fn feed(
        &self,
        patch: &UsablePatch,
        index: &Index,
        jobs: &mpsc::Sender<FetchedFrame>,
    ) -> Result<(), StageError> {
        let Restore { bundle, shared, plan, .. } = self;
        let layout = bundle.layout();
        for (span, frames) in patch.requests(layout, index, plan) {
            let mut range = Frames::new(bundle.remote(), span);
            for frame in frames {
                let place = layout.patch_frame(patch.number, &frame).unwrap_or_default();
                let bytes = range.take(place, |spent| shared.downloaded(spent)).await?;
                let wanted = |(number, chunk)| (number, chunk, plan.get(number) == Some(ChunkSource::Patch));
                let chunks = frame.chunks(index).map(wanted).collect();
                jobs.send(FetchedFrame { frame, bytes, chunks }).await.map_err(|_| stopped())?;
            }
        }
        Ok(())
    }
}

fn stopped() -> StageError {
    StageError::Thread("the writer stopped".into())
}

struct Patcher<'a> {
    shared: &'a Shared,
    sink: &'a Sink,
    decoder: Decoder,
    before: Buffer,
    out: Buffer,
}

impl<'a> Patcher<'a> {
    fn new(shared: &'a Shared, sink: &'a Sink) -> Patcher<'a> {
        let (before, out) = (Buffer::new(PREFIX_CAP), Buffer::new(OUTPUT_CAP));
        Patcher { shared, sink, decoder: Decoder::default(), before, out }
    }

    /// Works until the queue ends. Returns the chunks that it could not bring.
    fn run(mut self, mut queue: mpsc::Receiver<FetchedFrame>) -> Result<Vec<usize>, StageError> {
        let mut lost = Vec::new();
        while let Some(job) = queue.blocking_recv() {
            if !self.work(&job)? {
                lost.extend(job.chunks.iter().filter(|(.., wanted)| *wanted).map(|(number, ..)| *number));
            }
        }
        Ok(lost)
    }

    /// `false` if the seed changed since the frame was asked for, or the frame is not what was signed.
    fn work(&mut self, job: &FetchedFrame) -> Result<bool, StageError> {
        let seed = self.shared.seed.as_ref();
        let prefix = seed.and_then(|seed| prefix(seed, &job.frame, &mut self.before));
        let Some(prefix) = prefix else { return Ok(false) };
        let chunks: Vec<Chunk> = job.chunks.iter().map(|(_, chunk, _)| *chunk).collect();
        let content = self.out.first_mut(chunks.iter().map(|chunk| chunk.length as usize).sum());
        if let Err(error) = self.decoder.patch(&job.bytes, prefix, &chunks, content) {
            tracing::warn!(url = self.shared.name, %error, "a part of the patch is of no use");
            return Ok(false);
        }
        let mut rest: &[u8] = content;
        // Neighbours that are all wanted, or all not, go together.
        for run in job.chunks.chunk_by(|(_, a, own), (_, b, other)| own == other && a.end() == b.offset) {
            let length: usize = run.iter().map(|(_, chunk, _)| chunk.length as usize).sum();
            let (own, after) = rest.split_at(length.min(rest.len()));
            rest = after;
            if let Some((_, first, true)) = run.first() {
                self.sink.write(own, first.offset)?;
                let written = own.len() as u64;
                self.shared.progress.send_modify(|p| p.done = p.done.saturating_add(written));
            }
        }
        Ok(true)
    }
}
