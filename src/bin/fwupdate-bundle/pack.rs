//! Image -> frames and index, as a stream: a reader that cuts and hashes, one compressor a core, and a writer
//! that puts the frames in order. What is in flight is bounded, so memory does not grow with the image.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use fwupdate::bundle::chunker::{Chunker, is_zero};
use fwupdate::bundle::{IndexWriter, frame_bound};
use fwupdate::failure::{Code, Failure};
use fwupdate::manifest::{BLOCK, Chunking, Digest, INDEX_CAP, PAYLOAD_CAP};
use sha2::Digest as _;
use zstd_safe::{CCtx, CParameter};

use crate::progress::Progress;
use crate::{Result, files};

/// Chunks in flight for each compressor.
const DEPTH: usize = 8;

/// What became of the image; the frames are where `pack` wrote them.
pub struct Packed {
    pub index: Vec<u8>,
    pub payload_size: u64,
    pub sha256: Digest,
}

/// The image to pack, of a size that is known and a multiple of 4096.
pub struct Source<'a> {
    pub path: &'a Path,
    pub reader: &'a mut dyn Read,
    pub size: u64,
}

struct Frame {
    bytes: Vec<u8>,
    length: u32,
    sha256: Digest,
}

/// A chunk on its way to a compressor, and where its frame is awaited.
type Job = (Vec<u8>, SyncSender<Result<Frame>>);

/// Packs `source`, writing the frames to `out`.
pub fn pack(
    source: Source<'_>,
    chunking: &Chunking,
    level: i32,
    out: &mut (dyn Write + Send),
) -> Result<Packed> {
    let cutter = Chunker::new(chunking);
    let cutter = cutter.ok_or_else(|| Failure::new(Code::Internal, "the chunking can't be used"))?;
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let (jobs, queue) = sync_channel::<Job>(workers);
    let (frames, ordered) = sync_channel(DEPTH * workers);
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| compress_all(&queue, level));
        }
        let writer = scope.spawn(move || write_all(&ordered, out));
        let image = read_all(source, cutter, chunking.max, jobs, frames);
        let written = writer.join().map_err(|_| Failure::new(Code::Internal, "the writer broke down"))?;
        // The writer's error is the cause when both have one: without a writer, the reader stops.
        let (index, payload_size) = written?;
        Ok(Packed { index, payload_size, sha256: image? })
    })
}

/// Cuts the image; the order of the receivers in `frames` is the order of the chunks. Returns its digest.
fn read_all(
    source: Source<'_>,
    mut cutter: Chunker,
    max: u32,
    jobs: SyncSender<Job>,
    frames: SyncSender<Receiver<Result<Frame>>>,
) -> Result<Digest> {
    let stopped = || Failure::new(Code::Internal, "packing stopped");
    let send = |chunk: Vec<u8>| -> Result<()> {
        let (sender, receiver) = sync_channel(1);
        frames.send(receiver).map_err(|_| stopped())?;
        jobs.send((chunk, sender)).map_err(|_| stopped())
    };
    let mut progress = Progress::new("Packing", source.size);
    let (mut hash, mut block, mut done) = (sha2::Sha256::new(), [0; BLOCK as usize], 0);
    let mut chunk = Vec::with_capacity(max as usize);
    while done < source.size {
        source.reader.read_exact(&mut block).map_err(|error| read_error(source.path, error))?;
        hash.update(block);
        chunk.extend_from_slice(&block);
        done += u64::from(BLOCK);
        progress.at(done);
        if let Some(length) = cutter.push(&block) {
            let rest = chunk.split_off((length as usize).min(chunk.len()));
            send(std::mem::replace(&mut chunk, rest))?;
        }
    }
    if cutter.finish().is_some() {
        send(chunk)?;
    }
    Ok(Digest(hash.finalize().into()))
}

fn read_error(path: &Path, error: io::Error) -> Failure {
    if error.kind() != io::ErrorKind::UnexpectedEof {
        return files::at(path)(error);
    }
    let message =
        format!("{}: it became shorter while it was read; build it to the end first", path.display());
    Failure::new(Code::Internal, message)
}

/// Compresses jobs until there are no more.
fn compress_all(queue: &Mutex<Receiver<Job>>, level: i32) {
    let mut compressor = Compressor::new(level);
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((chunk, sender)) = job else { return };
        let frame = match &mut compressor {
            Ok(compressor) => compressor.frame(&chunk),
            Err(failure) => Err(failure.clone()),
        };
        // A writer that is gone has told why.
        sender.send(frame).unwrap_or_default();
    }
}

struct Compressor {
    context: CCtx<'static>,
    /// Frames of zero chunks by length: an image has many of them, all alike.
    zeros: HashMap<usize, (Vec<u8>, Digest)>,
}

fn zstd_failure(code: usize) -> Failure {
    Failure::new(Code::Internal, format!("zstd: {}", zstd_safe::get_error_name(code)))
}

impl Compressor {
    fn new(level: i32) -> Result<Compressor> {
        let mut context = CCtx::create();
        let parameters = [
            CParameter::CompressionLevel(level),
            CParameter::ContentSizeFlag(true),
            CParameter::ChecksumFlag(false),
        ];
        for parameter in parameters {
            context.set_parameter(parameter).map_err(zstd_failure)?;
        }
        Ok(Compressor { context, zeros: HashMap::new() })
    }

    fn frame(&mut self, chunk: &[u8]) -> Result<Frame> {
        let length = chunk.len() as u32;
        let zero = is_zero(chunk);
        if let Some((bytes, sha256)) = self.zeros.get(&chunk.len()).filter(|_| zero) {
            return Ok(Frame { bytes: bytes.clone(), length, sha256: *sha256 });
        }
        let mut bytes = Vec::with_capacity(frame_bound(length) as usize);
        self.context.compress2(&mut bytes, chunk).map_err(zstd_failure)?;
        // The queue holds frames by their capacity.
        bytes.shrink_to_fit();
        let sha256 = Digest::of(chunk);
        if zero {
            self.zeros.insert(chunk.len(), (bytes.clone(), sha256));
        }
        Ok(Frame { bytes, length, sha256 })
    }
}

/// Writes the frames in the order of their receivers; returns index and payload size.
fn write_all(
    ordered: &Receiver<Receiver<Result<Frame>>>,
    out: &mut (dyn Write + Send),
) -> Result<(Vec<u8>, u64)> {
    let (mut index, mut size) = (IndexWriter::new(), 0);
    for receiver in ordered {
        let broken = |_| Failure::new(Code::Internal, "a compressor broke down");
        let frame = receiver.recv().map_err(broken)??;
        index.push(frame.length, frame.bytes.len() as u32, frame.sha256);
        size += frame.bytes.len() as u64;
        if size > PAYLOAD_CAP || index.size() > INDEX_CAP {
            return Err(Failure::new(
                Code::TooLarge,
                "the image is too large for one bundle: compressed it must stay below 8 GiB",
            ));
        }
        out.write_all(&frame.bytes).map_err(|error| {
            Failure::new(Code::Internal, format!("the frames can't be written beside the output: {error}"))
        })?;
    }
    Ok((index.finish(), size))
}
