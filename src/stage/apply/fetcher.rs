//! Fetching, unpacking, hashing and writing at the same time: a few requests are on their way; their blocks go to
//! a thread that unpacks them (`worker`) in the order of the image, each as soon as it has come, and from there to
//! one that writes (`writer`). So little is lost when the agent dies, and memory is a window of packed bytes, a
//! group and two pieces, whatever the image's size.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::bundle::{Index, LONGEST, Run};
use crate::stage::apply::Restore;
use crate::stage::apply::unpack::{self, Arrivals, Group, Missed, PackedChunk, Part};
use crate::stage::download::frames::Frames;
use crate::stage::download::insist::Wrong;
use crate::stage::error::{StageError, finished};
use crate::stage::sources::chunks::ChunkSource;
use crate::stage::sources::plan::RestorePlan;

/// Range requests in flight at most: hides the round trips of many small ones.
const IN_FLIGHT: usize = 4;
/// What may have been asked for and not yet been unpacked, bytes: as much as 100 Mbit/s bring in 80 ms, and about two
/// groups. It bounds memory, and what a kill loses.
const WINDOW: usize = 2 * LONGEST as usize;
/// Groups that may wait for the thread; they hold no more than the window lets in.
const QUEUE: usize = 1;

impl Restore<'_> {
    /// Brings all chunks that are not in place to the sink.
    ///
    /// Chunks that the seed or the target lost since the survey are set to `Fetch` in the plan and fetched then, as are
    /// those that came and were not what was signed: for a while, from whatever servers there are.
    pub(super) async fn transfer(&self) -> Result<(), StageError> {
        let Restore { bundle, shared, plan, sink } = self;
        let (mut wrong, mut least, mut lost) = (Wrong::new(bundle.remote()), usize::MAX, false);
        loop {
            let missed = shared.index.reading(|index| self.pass(index)).await??;
            let Some(first) = missed.chunks.first() else { return Ok(()) };
            // By half, so that no server can draw this out with one right chunk at a time.
            if missed.chunks.len() <= least / 2 {
                least = missed.chunks.len();
                wrong.is_less();
            }
            match missed.wrong {
                Some(error) => tokio::select! {
                    again = wrong.again(error) => again?,
                    () = shared.cancel.cancelled() => return Err(StageError::Cancelled),
                },
                // Only what is in place was not fetched.
                None if lost => {
                    let error = std::io::Error::other("what was right before can't be read any more");
                    let offset = shared.index.read(|index| index.get(*first).map(|chunk| chunk.offset))?;
                    return Err(sink.target.failed(offset.unwrap_or_default(), error));
                }
                None => lost = true,
            }
            // The pass brought all others to their places.
            plan.replace(|_| true, ChunkSource::InPlace);
            plan.set(missed.chunks, ChunkSource::Fetch);
            let more = self.frames()?;
            self.afford(more, more)?;
        }
    }

    /// One pass; returns the chunks that could not be brought to their place, as the seed no longer had them or
    /// others of their group.
    async fn pass(&self, index: &Index) -> Result<Missed, StageError> {
        let Restore { shared, plan, sink, .. } = *self;
        let stop = shared.cancel.child_token();
        let (jobs, queue) = mpsc::channel(QUEUE);
        let worker = {
            let (shared, sink, stop) = (shared.clone(), sink.clone(), stop.clone());
            tokio::task::spawn_blocking(move || {
                unpack::run(&shared, &sink, queue, &stop).inspect_err(|_| stop.cancel())
            })
        };
        let (lines, coming) = mpsc::unbounded_channel();
        let fetch = Fetch { apply: self, index, window: Arc::new(Semaphore::new(WINDOW)) };
        let mut delivery =
            Delivery { index, plan, jobs: &jobs, lines: coming, line: None, batch: None, open: None };
        let fed = async {
            let local = feed(index, plan, &jobs, |group| !group.is_fetched() && !group.has_duplicates());
            tokio::try_join!(local, fetch.run(lines), delivery.run())?;
            // Now the worker has had every original. A group of the network's needs no such care: it comes in the order of
            // the image, and originals that are fetched lie further ahead.
            feed(index, plan, &jobs, |group| !group.is_fetched() && group.has_duplicates()).await
        };
        let fed = tokio::select! {
            fed = fed => fed,
            () = stop.cancelled() => Err(StageError::Cancelled),
        };
        if fed.is_err() {
            // What has come was paid for. A worker that is gone had an error of its own.
            delivery.run().await.ok();
        }
        drop(delivery);
        drop(jobs);
        // The worker's error is the reason, and the feeder's then only its consequence.
        let missed = finished(worker).await?;
        fed.map(|()| missed)
    }
}

/// Queues those groups that `belong`, if there is something to do for them.
async fn feed(
    index: &Index,
    plan: &RestorePlan,
    jobs: &mpsc::Sender<Group>,
    belong: impl Fn(&Group) -> bool,
) -> Result<(), StageError> {
    let mut next = 0;
    while next < index.len() {
        let group = Group::at(index, plan, next);
        next = next.saturating_add(group.parts.len().max(1));
        let local = |part: &Part| {
            matches!(part.source, ChunkSource::Zero | ChunkSource::Seed(_) | ChunkSource::Duplicate(_))
        };
        if belong(&group) && group.parts.iter().any(local) {
            // This fails only when the worker has ended: its error is the one that counts.
            jobs.send(group).await.map_err(|_| stopped())?;
        }
    }
    Ok(())
}

/// Neighbouring blocks of one group that came together.
type Batch = Vec<PackedChunk>;
/// The blocks of one request, as they come.
type Arriving = mpsc::UnboundedReceiver<Batch>;

struct Fetch<'a> {
    apply: &'a Restore<'a>,
    index: &'a Index,
    window: Arc<Semaphore>,
}

impl Fetch<'_> {
    /// Makes all requests, a few at a time, and hands out a line for each, in order.
    async fn run(&self, lines: mpsc::UnboundedSender<Arriving>) -> Result<(), StageError> {
        let mut fetches = FuturesUnordered::new();
        for run in self.apply.plan.requests(self.index, self.apply.bundle.layout()) {
            // Admitted one after the other, so that the first is never kept waiting by a later one.
            let length = run.span.end.saturating_sub(run.span.start).min(WINDOW as u64);
            let mut room = std::pin::pin!(self.window.clone().acquire_many_owned(length as u32));
            let room = loop {
                tokio::select! {
                    Some(fetched) = fetches.next() => fetched?,
                    room = &mut room, if fetches.len() < IN_FLIGHT => break room.map_err(|_| stopped())?,
                }
            };
            let (line, batches) = mpsc::unbounded_channel();
            lines.send(batches).ok();
            fetches.push(self.fetch(run, room, line));
        }
        while let Some(fetched) = fetches.next().await {
            fetched?;
        }
        Ok(())
    }

    /// Cuts one range into blocks as its bytes arrive. What is on `line` survives a cancel.
    async fn fetch(
        &self,
        run: Run,
        mut room: OwnedSemaphorePermit,
        line: mpsc::UnboundedSender<Batch>,
    ) -> Result<(), StageError> {
        let Restore { bundle, shared, .. } = self.apply;
        let mut frames = Frames::new(bundle.remote(), run.span);
        let (mut batch, mut group) = (Batch::new(), None);
        let first = run.chunks.first().map_or(0, |first| *first as usize);
        let mut chunks = (first..).zip(self.index.from(first));
        for position in run.chunks {
            let position = position as usize;
            let Some((_, chunk)) = chunks.find(|(number, _)| *number == position) else { break };
            let place = bundle.layout().frame(&chunk);
            // What is here goes on its way before anything is waited for.
            if group.replace(chunk.group_offset) != Some(chunk.group_offset) || !frames.has(place.end) {
                send(&line, &mut batch);
            }
            let bytes = frames.take(place, |spent| shared.downloaded(spent)).await?;
            let room = room.split(bytes.len()).ok_or_else(stopped)?;
            batch.push(PackedChunk { position, bytes, _room: room });
        }
        send(&line, &mut batch);
        Ok(())
    }
}

fn send(line: &mpsc::UnboundedSender<Batch>, batch: &mut Batch) {
    if !batch.is_empty() {
        // Nobody listens once the worker is gone.
        line.send(std::mem::take(batch)).ok();
    }
}

/// Brings what arrives to its group, in the order of the image.
struct Delivery<'a> {
    index: &'a Index,
    plan: &'a RestorePlan,
    jobs: &'a mpsc::Sender<Group>,
    lines: mpsc::UnboundedReceiver<Arriving>,
    line: Option<Arriving>,
    /// Stays here until there is room for its group: a cancel may come in between.
    batch: Option<Batch>,
    /// The latest group that was queued.
    open: Option<(u64, mpsc::UnboundedSender<Batch>)>,
}

impl Delivery<'_> {
    /// Goes on until the last line has ended; also after it was cancelled in between.
    async fn run(&mut self) -> Result<(), StageError> {
        while let Some(position) = self.receive().await {
            let Some(chunk) = self.index.get(position) else { break };
            if self.open.as_ref().is_none_or(|(offset, _)| *offset != chunk.group_offset) {
                // Nothing more comes for the one before.
                self.open = None;
                let room = self.jobs.reserve().await.map_err(|_| stopped())?;
                let (to, coming) = mpsc::unbounded_channel();
                let first = self.index.position(chunk.group_offset);
                let group = Group::at(self.index, self.plan, first);
                room.send(Group { arrivals: Arrivals::new(coming), ..group });
                self.open = Some((chunk.group_offset, to));
            }
            if let (Some((_, to)), Some(batch)) = (&self.open, self.batch.take()) {
                // A group that lacks something before it does not wait for it.
                to.send(batch).ok();
            }
        }
        self.open = None;
        Ok(())
    }

    /// Waits for a batch; returns the position of its first block.
    async fn receive(&mut self) -> Option<usize> {
        while self.batch.is_none() {
            match &mut self.line {
                Some(line) => {
                    self.batch = line.recv().await;
                    if self.batch.is_none() {
                        self.line = None;
                    }
                }
                None => self.line = Some(self.lines.recv().await?),
            }
        }
        self.batch.as_ref()?.first().map(|block| block.position)
    }
}

fn stopped() -> StageError {
    StageError::Thread("the writers stopped".into())
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::stage::slot::frontier::Frontier;
    use crate::stage::slot::withheld::{Sink, Withheld};
    use crate::stage::sources::chunks::Sources;
    use crate::stage::sources::seed::Seed;
    use crate::stage::sources::shared::Shared;
    use crate::stage::testing::*;

    #[tokio::test]
    async fn what_the_seed_lost_since_the_survey_is_fetched_within_the_budget() {
        let bench = Bench::new(image(60, 2), 0).await;
        let seed = bench.folder.path().join("seed");
        std::fs::write(&seed, vec![0x33; 2 << 20]).unwrap();
        for (limit, ends_well) in [(None, true), (Some(100_000), false)] {
            std::fs::write(&bench.slot, vec![0; 2 << 20]).unwrap();
            let meter = crate::stage::download::budget::Meter::new(0, limit, None);
            let bundle = bench.open(&bench.server.http(), meter).await.unwrap();
            let index = Arc::new(bundle.index().await.unwrap());
            let shared = Arc::new(Shared {
                name: "b".into(),
                index: index.clone(),
                seed: Some(Seed::open(&seed).unwrap()),
                group: bundle.manifest().image.chunking.group_max(),
                progress: bench.progress.clone(),
                cancel: CancellationToken::new(),
            });
            // As if all of it had been there, but for one chunk that even the seed's end is too near for.
            let sources = Sources::new(index.read(Index::len).unwrap());
            let plan = RestorePlan::new(sources, None);
            plan.replace(|_| true, ChunkSource::Seed(0));
            plan.set([1], ChunkSource::Seed(511));
            let sink =
                Sink { target: bench.target(), withheld: Withheld::none(), frontier: Frontier::default() };
            let apply = Restore { bundle: &bundle, shared: &shared, plan: &plan, sink: &Arc::new(sink) };
            let done = apply.transfer().await;
            match ends_well {
                true => assert!(done.is_ok() && bench.written() == bench.image),
                false => assert!(matches!(done, Err(StageError::Budget { .. }))),
            }
        }
    }
}
