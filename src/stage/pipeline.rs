//! Fetching, unpacking, hashing and writing at the same time: async fetchers put frames into a bounded queue,
//! threads take them out, verify each chunk in the buffer that they then write, and write it at its place.
//! Chunks go to the medium as they arrive, in any order, so that little is lost when the agent dies. Memory
//! is a few buffers of one chunk each, whatever the image's size.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Buf;
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::buffer::Buffer;
use super::open::Bundle;
use super::runs::{Run, runs};
use super::survey::{Origin, Seed};
use super::{Progress, StageError, Target};
use crate::bundle::{BundleError, Chunk, Decoder, Index};
use crate::manifest::{BLOCK, Digest};

/// Range requests in flight: hides a round trip, and bounds what a kill loses to so many unfinished frames.
const IN_FLIGHT: usize = 4;
/// Frames that may wait for a thread.
const QUEUE: usize = 8;

/// Where verified chunks go.
#[derive(Debug, Clone)]
pub(super) enum Sink {
    Target(Target),
    /// The withheld first chunks, until the rest was read back.
    Memory(Arc<Mutex<Buffer>>),
}

/// What all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The bundle's name, for messages.
    pub name: String,
    pub index: Arc<Index>,
    pub seed: Option<Seed>,
    pub chunk_max: usize,
    pub progress: watch::Sender<Progress>,
    pub threads: usize,
}

/// One chunk to bring to its place.
#[derive(Debug)]
enum Job {
    Frame(Chunk, Vec<u8>),
    Copy { position: usize, chunk: Chunk, block: u32 },
    Zero(Chunk),
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
    runs(index, bundle.layout(), origins, positions).map(|run| run.span.end - run.span.start).sum()
}

/// One pass; returns the chunks that the seed no longer had.
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
    let feed = async {
        tokio::try_join!(
            feed_local(&shared.index, origins, positions.clone(), &jobs),
            feed_frames(bundle, shared, origins, positions, &jobs),
        )
    };
    let fed = tokio::select! {
        fed = feed => fed.map(drop),
        () = stop.cancelled() => Err(StageError::Cancelled),
    };
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

/// Queues what needs no network.
async fn feed_local(
    index: &Index,
    origins: &[Origin],
    positions: Range<usize>,
    jobs: &mpsc::Sender<Job>,
) -> Result<(), StageError> {
    for position in positions {
        let Some((chunk, origin)) = index.get(position).zip(origins.get(position)) else { break };
        let job = match *origin {
            Origin::InPlace | Origin::Fetch => continue,
            Origin::Zero => Job::Zero(chunk),
            Origin::Seed(block) => Job::Copy { position, chunk, block },
        };
        send(jobs, job).await?;
    }
    Ok(())
}

/// Fetches and queues the frames of all chunks to fetch.
async fn feed_frames(
    bundle: &Bundle,
    shared: &Shared,
    origins: &[Origin],
    positions: Range<usize>,
    jobs: &mpsc::Sender<Job>,
) -> Result<(), StageError> {
    let requests = runs(&shared.index, bundle.layout(), origins, positions);
    let fetches = requests.map(|run| fetch_run(bundle, shared, run, jobs));
    let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(IN_FLIGHT);
    while let Some(fetched) = fetches.next().await {
        fetched?;
    }
    Ok(())
}

/// Cuts one range into frames as its bytes arrive.
async fn fetch_run(
    bundle: &Bundle,
    shared: &Shared,
    run: Run,
    jobs: &mpsc::Sender<Job>,
) -> Result<(), StageError> {
    let mut range = bundle.remote().range(run.span.start, run.span.end);
    let (mut at, mut bytes) = (run.span.start, bytes::Bytes::new());
    for chunk in run.chunks.iter().filter_map(|position| shared.index.get(*position as usize)) {
        let span = bundle.layout().frame(&chunk);
        let mut frame = Vec::with_capacity(chunk.frame_length as usize);
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
            frame.extend_from_slice(&bytes.split_to(part as usize));
            at += part;
        }
        send(jobs, Job::Frame(chunk, frame)).await?;
    }
    Ok(())
}

async fn send(jobs: &mpsc::Sender<Job>, job: Job) -> Result<(), StageError> {
    // Only when every worker has ended: their error is the one that counts.
    jobs.send(job).await.map_err(|_| StageError::Thread("the writers stopped".into()))
}

/// One thread's tools.
struct Worker {
    shared: Arc<Shared>,
    sink: Sink,
    decoder: Decoder,
    buffer: Buffer,
    missed: Vec<usize>,
}

impl Worker {
    fn new(shared: Arc<Shared>, sink: Sink) -> Worker {
        let buffer = Buffer::new(shared.chunk_max);
        Worker { shared, sink, decoder: Decoder::new(), buffer, missed: Vec::new() }
    }

    /// Works until the queue ends; an error stops the feeders. What is queued by then is short and was paid
    /// for, so the others still write it, also after a cancel.
    fn run(
        mut self,
        queue: &Mutex<mpsc::Receiver<Job>>,
        stop: &CancellationToken,
    ) -> Result<Vec<usize>, StageError> {
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
            let Some(job) = job else { return Ok(self.missed) };
            self.work(job).inspect_err(|_| stop.cancel())?;
        }
    }

    fn work(&mut self, job: Job) -> Result<(), StageError> {
        match job {
            Job::Zero(chunk) => self.zero(&chunk),
            Job::Frame(chunk, frame) => {
                let content = self.buffer.first_mut(chunk.length as usize);
                let unpacked = self.decoder.decode(&frame, &chunk, content);
                let from = &self.shared.name;
                unpacked.map_err(|source| StageError::Bundle { from: from.clone(), source })?;
                self.write(&chunk)
            }
            Job::Copy { position, chunk, block } => {
                let content = self.buffer.first_mut(chunk.length as usize);
                let seed = self.shared.seed.as_ref();
                let read = seed.map(|seed| seed.read(content, u64::from(block) * u64::from(BLOCK)));
                if !matches!(read, Some(Ok(()))) || Digest::of(content) != chunk.sha256 {
                    self.missed.push(position);
                    return Ok(());
                }
                self.shared.progress.send_modify(|p| p.reused += u64::from(chunk.length));
                self.write(&chunk)
            }
        }
    }

    /// Puts the verified buffer to its place.
    fn write(&self, chunk: &Chunk) -> Result<(), StageError> {
        let content = self.buffer.first(chunk.length as usize);
        match &self.sink {
            Sink::Target(target) => target.write(content, chunk.offset)?,
            Sink::Memory(memory) => {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                place(&mut memory, chunk).copy_from_slice(content);
            }
        }
        self.done(chunk);
        Ok(())
    }

    fn zero(&self, chunk: &Chunk) -> Result<(), StageError> {
        match &self.sink {
            Sink::Target(target) => target.zero(chunk.offset, u64::from(chunk.length))?,
            Sink::Memory(memory) => {
                place(&mut memory.lock().unwrap_or_else(PoisonError::into_inner), chunk).fill(0);
            }
        }
        self.done(chunk);
        Ok(())
    }

    fn done(&self, chunk: &Chunk) {
        self.shared.progress.send_modify(|p| p.done += u64::from(chunk.length));
    }
}

/// The chunk's place among the withheld ones.
fn place<'a>(memory: &'a mut Buffer, chunk: &Chunk) -> &'a mut [u8] {
    let (start, length) = (chunk.offset as usize, chunk.length as usize);
    memory.first_mut(start + length).get_mut(start..).unwrap_or_default()
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
                chunk_max: bundle.manifest().image.chunking.max as usize,
                progress: bench.progress.clone(),
                threads: 2,
            });
            // As if all of it had been there, but for one chunk that even the seed's end is too near for.
            let mut origins = vec![Origin::Seed(0); index.len()];
            origins[1] = Origin::Seed(511);
            let (all, sink) = (0..index.len(), Sink::Target(bench.target()));
            let cancel = CancellationToken::new();
            let done = transfer(&bundle, &shared, &mut origins, all, sink, &cancel).await;
            match ends_well {
                true => assert!(done.is_ok() && bench.written() == bench.image),
                false => assert!(matches!(done, Err(StageError::Budget { .. }))),
            }
        }
    }
}
