//! Image -> blocks and index, as a stream: a reader that cuts and hashes, one compressor a core, and a writer
//! that puts the groups in order. What is in flight is bounded, so memory does not grow with the image.

use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use fwupdate::bundle::IndexWriter;
use fwupdate::bundle::chunker::Cutter;
use fwupdate::failure::{Code, Failure};
use fwupdate::manifest::{BLOCK, Chunking, Digest, INDEX_CAP, PAYLOAD_CAP};
use sha2::Digest as _;

use crate::encoder::{ChunkGroup, EncodedChunk, Encoder};
use crate::files;
use crate::output::Result;
use crate::progress::ProgressLine;

/// Groups in flight for each compressor.
const DEPTH: usize = 4;

/// What became of the image; the frames are where `pack` wrote them.
pub struct Packed {
    pub index: Vec<u8>,
    pub payload_size: u64,
    pub sha256: Digest,
}

/// A group on its way to a compressor, and where its blocks are awaited.
type PackJob = (ChunkGroup, SyncSender<Result<Vec<EncodedChunk>>>);

/// Packs the first `size` bytes, a multiple of 4096, of the image at `path`; the frames go to `out`.
pub fn pack(
    path: &Path,
    size: u64,
    chunking: &Chunking,
    level: i32,
    out: &mut (dyn Write + Send),
) -> Result<Packed> {
    let cutter = Cutter::new(chunking);
    let cutter = cutter.ok_or_else(|| Failure::new(Code::Internal, "the chunking can't be used"))?;
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let (jobs, queue) = sync_channel::<PackJob>(workers);
    let (groups, ordered) = sync_channel(DEPTH * workers);
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| compress_all(&queue, level));
        }
        let writer = scope.spawn(move || write_all(&ordered, out));
        let image = read_all(path, size, cutter, chunking.group, jobs, groups);
        let written = writer.join().map_err(|_| Failure::new(Code::Internal, "the writer broke down"))?;
        // The writer's error is the cause when both have one: without a writer, the reader stops.
        let (index, payload_size) = written?;
        Ok(Packed { index, payload_size, sha256: image? })
    })
}

/// Cuts the image; the order of the receivers in `groups` is that of the groups. Returns its digest.
fn read_all(
    path: &Path,
    size: u64,
    mut cutter: Cutter,
    group_size: u32,
    jobs: SyncSender<PackJob>,
    groups: SyncSender<Receiver<Result<Vec<EncodedChunk>>>>,
) -> Result<Digest> {
    let mut reader = BufReader::with_capacity(1 << 20, files::open(path)?);
    let stopped = || Failure::new(Code::Internal, "packing stopped");
    let send = |group: ChunkGroup| -> Result<()> {
        let (sender, receiver) = sync_channel(1);
        groups.send(receiver).map_err(|_| stopped())?;
        jobs.send((group, sender)).map_err(|_| stopped())
    };
    let number = |offset: u64| offset / u64::from(group_size);
    let mut progress = ProgressLine::new("Packing", size);
    let (mut hash, mut block) = (sha2::Sha256::new(), [0; BLOCK as usize]);
    let (mut group, mut start, mut at) = (ChunkGroup::default(), 0, 0);
    let mut add = |chunk: &[u8]| -> Result<()> {
        if number(at) != number(start) {
            send(std::mem::take(&mut group))?;
            start = at;
        }
        group.content.extend_from_slice(chunk);
        group.lengths.push(chunk.len() as u32);
        at += chunk.len() as u64;
        Ok(())
    };
    for done in (0..size).step_by(BLOCK as usize) {
        progress.at(done);
        reader.read_exact(&mut block).map_err(|error| read_error(path, error))?;
        hash.update(block);
        let mut added = Ok(());
        cutter.push(&block, |chunk| added = add(chunk));
        added?;
    }
    if let Some(rest) = cutter.finish() {
        add(&rest)?;
    }
    if !group.lengths.is_empty() {
        send(group)?;
    }
    Ok(Digest(hash.finalize().into()))
}

fn read_error(path: &Path, error: io::Error) -> Failure {
    if error.kind() != io::ErrorKind::UnexpectedEof {
        return files::at(path)(error);
    }
    let what = "it became shorter while it was read; build it to the end first";
    files::wrong(Code::Internal, path, what)
}

fn compress_all(queue: &Mutex<Receiver<PackJob>>, level: i32) {
    let mut encoder = Encoder::new(level);
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((group, sender)) = job else { return };
        let blocks = match &mut encoder {
            Ok(encoder) => encoder.encode(&group),
            Err(failure) => Err(failure.clone()),
        };
        // A writer that is gone has told why.
        sender.send(blocks).unwrap_or_default();
    }
}

/// Writes the blocks in the order of their receivers; returns index and payload size.
fn write_all(
    ordered: &Receiver<Receiver<Result<Vec<EncodedChunk>>>>,
    out: &mut (dyn Write + Send),
) -> Result<(Vec<u8>, u64)> {
    let (mut index, mut size) = (IndexWriter::default(), 0);
    for receiver in ordered {
        let broken = |_| Failure::new(Code::Internal, "a compressor broke down");
        for block in receiver.recv().map_err(broken)?? {
            index.push(block.length, block.bytes.len() as u32, block.digest);
            size += block.bytes.len() as u64;
            if size > PAYLOAD_CAP || index.size() > INDEX_CAP {
                let message = "the image is too large for one bundle: compressed it must stay below 8 GiB";
                return Err(Failure::new(Code::TooLarge, message));
            }
            out.write_all(&block.bytes).map_err(|error| {
                let message = format!("the frames can't be written beside the output: {error}");
                Failure::new(Code::Internal, message)
            })?;
        }
    }
    Ok((index.finish(), size))
}
