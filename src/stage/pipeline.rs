//! Fetching, unpacking, hashing and writing at the same time: async fetchers collect the blocks of each group
//! and put complete groups into a bounded queue; threads take them out and bring each group to its place
//! (`worker`). Groups go to the medium as they arrive, in any order, so that little is lost when the agent
//! dies. Memory is a few groups, whatever the image's size.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Buf;
use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::open::Bundle;
use super::survey::{Origin, Seed};
use super::worker::{Group, Part, Sink, Worker};
use super::{Progress, StageError};
use crate::bundle::{BundleError, Chunk, Index, Run, fetch_bytes, runs};

/// Range requests in flight at most: hides the round trips of many small ones.
const IN_FLIGHT: usize = 4;
/// What the requests in flight may bring in all, KiB: bounds memory, and what a kill loses. A longer request than
/// half of it counts as half, so that two are in flight always.
const WINDOW: usize = 4096;
/// Groups that may wait for a thread. A group is up to 2 MiB, and all memory is groups.
const QUEUE: usize = 1;

/// What all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The bundle's name, for messages.
    pub name: String,
    pub index: Arc<Index>,
    pub seed: Option<Seed>,
    /// Longest group, bytes.
    pub group_max: usize,
    pub progress: watch::Sender<Progress>,
    pub threads: usize,
}

/// Brings all chunks of `positions` that are not in place to `sink`.
///
/// Chunks that the seed lost since the survey are set to `Fetch` in `origins` and fetched then.
pub(super) async fn transfer(
    bundle: &Bundle,
    shared: &Arc<Shared>,
    origins: &mut [Origin],
    positions: Range<usize>,
    sink: Sink,
    cancel: &CancellationToken,
) -> Result<(), StageError> {
    let missed = pass(bundle, shared, origins, positions.clone(), &sink, cancel).await?;
    if missed.is_empty() {
        return Ok(());
    }
    // The pass brought all others to their places.
    let here = origins.get_mut(positions.clone()).unwrap_or_default();
    here.iter_mut().for_each(|origin| *origin = Origin::InPlace);
    for position in missed {
        if let Some(origin) = origins.get_mut(position) {
            *origin = Origin::Fetch;
        }
    }
    let more = fetch_size(bundle, &shared.index, origins, positions.clone());
    if bundle.remote().is_metered() {
        bundle.remote().meter().afford(more)?;
        shared.progress.send_modify(|p| p.expected_download += more);
    }
    pass(bundle, shared, origins, positions, &sink, cancel).await.map(drop)
}

/// Bytes of the requests that `transfer` will make.
pub(super) fn fetch_size(bundle: &Bundle, index: &Index, origins: &[Origin], positions: Range<usize>) -> u64 {
    fetch_bytes(index, bundle.layout(), positions, must_fetch(origins))
}

/// Which positions must be fetched.
fn must_fetch(origins: &[Origin]) -> impl Fn(usize, &Chunk) -> bool + '_ {
    |position, _| origins.get(position) == Some(&Origin::Fetch)
}

/// One pass; returns the chunks that could not be brought to their place, as the seed no longer had them or
/// others of their group.
async fn pass(
    bundle: &Bundle,
    shared: &Arc<Shared>,
    origins: &[Origin],
    positions: Range<usize>,
    sink: &Sink,
    cancel: &CancellationToken,
) -> Result<Vec<usize>, StageError> {
    let stop = cancel.child_token();
    let (jobs, queue) = mpsc::channel(QUEUE);
    let queue = Arc::new(Mutex::new(queue));
    let worker = |_| {
        let (shared, sink) = (shared.clone(), sink.clone());
        let (queue, stop) = (queue.clone(), stop.clone());
        tokio::task::spawn_blocking(move || Worker::new(shared, sink).run(&queue, &stop))
    };
    let workers: Vec<_> = (0..shared.threads).map(worker).collect();
    drop(queue);
    let waiting = Waiting::default();
    let window = Semaphore::new(WINDOW);
    let fetch = Fetch { bundle, shared, origins, positions: positions.clone(), jobs: &jobs, waiting, window };
    let feed = async { tokio::try_join!(feed_local(&shared.index, origins, positions, &jobs), fetch.run(),) };
    let fed = tokio::select! {
        fed = feed => fed.map(drop),
        () = stop.cancelled() => Err(StageError::Cancelled),
    };
    if fed.is_err() {
        fetch.salvage().await;
    }
    drop(jobs);
    // A worker's error is the reason, and the feeder's then only its consequence.
    let missed = join(workers).await?;
    fed.map(|()| missed)
}

async fn join(workers: Vec<JoinHandle<Result<Vec<usize>, StageError>>>) -> Result<Vec<usize>, StageError> {
    let mut result = Ok(Vec::new());
    for worker in workers {
        let done = worker.await.unwrap_or_else(|error| Err(StageError::Thread(error.to_string())));
        result = match (result, done) {
            (Ok(mut all), Ok(missed)) => {
                all.extend(missed);
                Ok(all)
            }
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        };
    }
    result
}

/// Queues the groups that need no network.
async fn feed_local(
    index: &Index,
    origins: &[Origin],
    positions: Range<usize>,
    jobs: &mpsc::Sender<Group>,
) -> Result<(), StageError> {
    let mut next = positions.start;
    while next < positions.end {
        let group = Group::at(index, origins, next, positions.end);
        next += group.parts.len().max(1);
        let local = |part: &Part| matches!(part.origin, Origin::Zero | Origin::Seed(_));
        if group.missing() == 0 && group.parts.iter().any(local) {
            send(jobs, group).await?;
        }
    }
    Ok(())
}

/// Groups some of whose blocks have arrived, by the offset of their first chunk.
type Waiting = Mutex<HashMap<u64, (Group, usize)>>;

/// What the fetchers share.
struct Fetch<'a> {
    bundle: &'a Bundle,
    shared: &'a Shared,
    origins: &'a [Origin],
    positions: Range<usize>,
    jobs: &'a mpsc::Sender<Group>,
    waiting: Waiting,
    window: Semaphore,
}

impl Fetch<'_> {
    /// Fetches the blocks of all chunks to fetch, and queues their groups.
    async fn run(&self) -> Result<(), StageError> {
        let (index, layout) = (&self.shared.index, self.bundle.layout());
        let requests = runs(index, layout, self.positions.clone(), must_fetch(self.origins));
        let fetches = requests.map(|run| self.fetch(run));
        let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(IN_FLIGHT);
        while let Some(fetched) = fetches.next().await {
            fetched?;
        }
        Ok(())
    }

    /// Cuts one range into blocks as its bytes arrive.
    async fn fetch(&self, run: Run) -> Result<(), StageError> {
        let (bundle, shared) = (self.bundle, self.shared);
        let share = ((run.span.end - run.span.start) / 1024).clamp(1, WINDOW as u64 / 2);
        let _share = self.window.acquire_many(share as u32).await.map_err(|_| stopped())?;
        let mut range = bundle.remote().range(run.span.start, run.span.end);
        let (mut at, mut bytes) = (run.span.start, bytes::Bytes::new());
        for position in run.chunks {
            let position = position as usize;
            let Some(chunk) = shared.index.get(position) else { break };
            let span = bundle.layout().frame(&chunk);
            let mut block = Vec::with_capacity(chunk.frame_length as usize);
            while at < span.end {
                if bytes.is_empty() {
                    let next = range.next().await?;
                    bytes = next.ok_or_else(|| bundle.malformed(BundleError::Short { need: span.end }))?;
                    shared.progress.send_modify(|p| p.downloaded = bundle.remote().meter().spent());
                }
                let gap = span.start.saturating_sub(at).min(bytes.len() as u64);
                bytes.advance(gap as usize);
                at += gap;
                let part = (span.end - at).min(bytes.len() as u64);
                block.extend_from_slice(&bytes.split_to(part as usize));
                at += part;
            }
            if self.arrived(position, &chunk, block) {
                // It stays where a cancel finds it until there is room for it.
                let room = self.jobs.reserve().await.map_err(|_| stopped())?;
                if let Some(group) = self.take(chunk.group_offset) {
                    room.send(group);
                }
            }
        }
        Ok(())
    }

    /// Puts a block to its group; tells whether that is complete now.
    fn arrived(&self, position: usize, chunk: &Chunk, block: Vec<u8>) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (group, missing) = waiting.entry(chunk.group_offset).or_insert_with(|| {
            let group = Group::around(&self.shared.index, self.origins, position, &self.positions);
            let missing = group.missing();
            (group, missing)
        });
        if let Some(part) = group.parts.iter_mut().find(|part| part.position == position) {
            part.block = block;
            *missing = missing.saturating_sub(1);
        }
        *missing == 0
    }

    fn take(&self, group_offset: u64) -> Option<Group> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&group_offset).map(|(group, _)| group)
    }

    /// Queues what was paid for: the beginnings of groups that did not become complete.
    async fn salvage(self) {
        let waiting = self.waiting.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (group, _) in waiting.into_values() {
            // Workers that are gone had an error of their own.
            self.jobs.send(group).await.ok();
        }
    }
}

async fn send(jobs: &mpsc::Sender<Group>, group: Group) -> Result<(), StageError> {
    // Only when every worker has ended: their error is the one that counts.
    jobs.send(group).await.map_err(|_| stopped())
}

fn stopped() -> StageError {
    StageError::Thread("the writers stopped".into())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[tokio::test]
    async fn what_the_seed_lost_since_the_survey_is_fetched_within_the_budget() {
        let bench = Bench::new(image(60, 2), 0).await;
        let seed = bench.folder.path().join("seed");
        std::fs::write(&seed, vec![0x33; 2 << 20]).unwrap();
        for (limit, ends_well) in [(None, true), (Some(100_000), false)] {
            std::fs::write(&bench.slot, vec![0; 2 << 20]).unwrap();
            let meter = super::super::Meter::new(0, limit, None);
            let bundle = bench.open(&bench.server.http(), meter).await.unwrap();
            let index = Arc::new(bundle.index().await.unwrap());
            let shared = Arc::new(Shared {
                name: "b".into(),
                index: index.clone(),
                seed: Some(Seed::open(&seed).unwrap()),
                group_max: bundle.manifest().image.chunking.group_max(),
                progress: bench.progress.clone(),
                threads: 2,
            });
            // As if all of it had been there, but for one chunk that even the seed's end is too near for.
            let mut origins = vec![Origin::Seed(0); index.len()];
            origins[1] = Origin::Seed(511);
            let (all, sink) = (0..index.len(), Sink::Target(bench.target(), Arc::default()));
            let cancel = CancellationToken::new();
            let done = transfer(&bundle, &shared, &mut origins, all, sink, &cancel).await;
            match ends_well {
                true => assert!(done.is_ok() && bench.written() == bench.image),
                false => assert!(matches!(done, Err(StageError::Budget { .. }))),
            }
        }
    }
}
