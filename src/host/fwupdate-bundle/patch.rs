//! Old image and new chunks -> a patch: frames that unpack behind blocks of the old image.
//!
//! The chunks of the new image that the old one does not have are taken in order, up to 1 MiB a frame; what is
//! compressed already and like nothing in the old image is left to the plain blocks, and so is every frame that
//! saves nothing. Frames are independent of each other, so each core makes one at a time.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use fwupdate::bundle::{
    Chunk, Decoder, Index, OUTPUT_CAP, PREFIX_CAP, PatchFrame, PatchIndexWriter, PrefixDigest,
};
use fwupdate::failure::{Code, Failure};
use fwupdate::manifest::{BLOCK, Chunking, Digest, PAYLOAD_CAP, Patch};
use zstd_safe::{CCtx, CParameter};

use crate::files;
use crate::held::OldImage;
use crate::output::Result;
use crate::progress::ProgressLine;
use crate::similar::{Builder, Similar};

/// An incompressible chunk is worth a try only if the old image has this share of it somewhere.
const ALIKE: f64 = 0.1;

/// Prefix and content fit a window of 2 to this power, bytes.
const WINDOW_LOG: u32 = 22;
const _: () = assert!(PREFIX_CAP + OUTPUT_CAP <= 1 << WINDOW_LOG);

/// A patch, its frames in a scratch file.
pub struct MadePatch {
    pub entry: Patch,
    pub index: Vec<u8>,
    pub frames: File,
    pub count: usize,
}

pub struct NewImage<'a> {
    pub path: &'a Path,
    pub index: &'a Index,
    pub chunking: &'a Chunking,
}

/// Makes the patch from the image at `base`; `None` if there is nothing that it saves.
pub fn make(target: &NewImage<'_>, base: &Path, level: i32, mut frames: File) -> Result<Option<MadePatch>> {
    let maker = Maker {
        index: target.index,
        image: ImageFile::open(target.path)?,
        base: ImageFile::open(base)?,
        level,
    };
    let mut builder = Builder::new(maker.base.size()?);
    let held = OldImage::of_image(base, target.chunking, |block| builder.push(block))?;
    let similar = builder.finish();
    let plans = maker.plan(&held, &similar)?;
    let mut out = BufWriter::with_capacity(1 << 20, &mut frames);
    let mut writer = PatchIndexWriter::default();
    let (mut progress, mut size, mut count) = (ProgressLine::new("Patching", plans.len() as u64), 0, 0);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    for (number, batch) in plans.chunks(workers).enumerate() {
        progress.at((number * workers) as u64);
        for (mut frame, bytes) in maker.frames(batch, &similar)? {
            frame.offset = size;
            if size + bytes.len() as u64 > PAYLOAD_CAP || !writer.push(&frame) {
                // A device does not need them.
                break;
            }
            size += bytes.len() as u64;
            count += 1;
            out.write_all(&bytes).map_err(files::at(base))?;
        }
    }
    out.flush().map_err(files::at(base))?;
    drop(out);
    frames.rewind().map_err(files::at(base))?;
    Ok(writer.finish().map(|index| {
        let entry = Patch {
            base_size: held.size,
            base_sha256: held.sha256,
            index_size: index.len() as u64,
            index_sha256: Digest::of(&index),
            payload_size: size,
        };
        MadePatch { entry, index, frames, count }
    }))
}

/// An image to read from here and there.
pub struct ImageFile<'a> {
    path: &'a Path,
    pub file: File,
}

impl ImageFile<'_> {
    pub fn open(path: &Path) -> Result<ImageFile<'_>> {
        Ok(ImageFile { path, file: files::open(path)? })
    }

    fn size(&self) -> Result<u64> {
        files::size(&self.file).map_err(files::at(self.path))
    }

    /// These blocks of it, one after the other.
    pub fn blocks(&self, ranges: &[Range<u32>]) -> Result<Vec<u8>> {
        let mut blocks = Vec::new();
        for range in ranges {
            let length = (range.end - range.start) as usize * BLOCK as usize;
            self.read(u64::from(range.start) * u64::from(BLOCK), length, &mut blocks)?;
        }
        Ok(blocks)
    }

    /// Appends this part of it.
    fn read(&self, offset: u64, length: usize, to: &mut Vec<u8>) -> Result<()> {
        let start = to.len();
        to.resize(start + length, 0);
        let space = to.get_mut(start..).unwrap_or_default();
        self.file.read_exact_at(space, offset).map_err(files::at(self.path))
    }
}

/// Numbers of the chunks of one frame.
type FramePlan = Vec<u32>;

struct Maker<'a> {
    index: &'a Index,
    image: ImageFile<'a>,
    base: ImageFile<'a>,
    level: i32,
}

impl Maker<'_> {
    /// Shares the chunks that the base does not have out among frames.
    fn plan(&self, held: &OldImage, similar: &Similar) -> Result<Vec<FramePlan>> {
        let (mut plans, mut plan, mut length, mut content) = (Vec::new(), FramePlan::new(), 0, Vec::new());
        for (number, chunk) in (0..).zip(self.index.iter()) {
            if self.index.is_zero(&chunk) || held.chunks.contains(&chunk.digest) {
                continue;
            }
            let compressed = u64::from(chunk.frame_length) * 20 > u64::from(chunk.length) * 19;
            if compressed {
                content.clear();
                self.image.read(chunk.offset, chunk.length as usize, &mut content)?;
                if similar.share(&content) < ALIKE {
                    continue;
                }
            }
            if length + chunk.length as usize > OUTPUT_CAP {
                plans.push(std::mem::take(&mut plan));
                length = 0;
            }
            plan.push(number);
            length += chunk.length as usize;
        }
        if !plan.is_empty() {
            plans.push(plan);
        }
        Ok(plans)
    }

    /// The frames of these plans that save something, in order; each in a thread of its own.
    fn frames(&self, plans: &[FramePlan], similar: &Similar) -> Result<Vec<(PatchFrame, Vec<u8>)>> {
        thread::scope(|scope| {
            let frame = |plan| scope.spawn(move || self.frame(plan, similar));
            let threads: Vec<_> = plans.iter().map(frame).collect();
            let mut frames = Vec::with_capacity(threads.len());
            for thread in threads {
                let broken = |_| Failure::new(Code::Internal, "a compressor broke down");
                frames.extend(thread.join().map_err(broken)??);
            }
            Ok(frames)
        })
    }

    fn frame(&self, plan: &FramePlan, similar: &Similar) -> Result<Option<(PatchFrame, Vec<u8>)>> {
        let chunks: Vec<Chunk> = plan.iter().filter_map(|number| self.index.get(*number as usize)).collect();
        let mut content = Vec::with_capacity(OUTPUT_CAP);
        for chunk in &chunks {
            self.image.read(chunk.offset, chunk.length as usize, &mut content)?;
        }
        let blocks = similar.choose(&content, PREFIX_CAP / BLOCK as usize);
        if blocks.is_empty() {
            return Ok(None);
        }
        let prefix = self.base.blocks(&blocks)?;
        let bytes = compress(&content, &prefix, self.level)?;
        self.check(&bytes, &prefix, &chunks, &content)?;
        let frame = PatchFrame {
            chunks: joined(plan),
            blocks,
            offset: 0,
            length: bytes.len() as u32,
            prefix: PrefixDigest::of(&prefix),
        };
        Ok(frame.pays(self.index, |_| true).then_some((frame, bytes)))
    }

    /// Unpacks what was packed, as a device does.
    fn check(&self, bytes: &[u8], prefix: &[u8], chunks: &[Chunk], content: &[u8]) -> Result<()> {
        let mut out = vec![0; content.len()];
        Decoder::default().patch(bytes, prefix, chunks, &mut out).map_err(|error| {
            let what =
                format!("a patch can't be unpacked ({error}); don't change the images while they are read");
            files::wrong(Code::Internal, self.image.path, what)
        })
    }
}

/// One zstd frame behind a raw prefix.
fn compress(content: &[u8], prefix: &[u8], level: i32) -> Result<Vec<u8>> {
    let failed = |code| Failure::new(Code::Internal, format!("zstd: {}", zstd_safe::get_error_name(code)));
    let mut context = CCtx::create();
    for parameter in [
        CParameter::CompressionLevel(level),
        CParameter::ChecksumFlag(false),
        CParameter::DeterministicRefPrefix(true),
        // Long matches are found at any level.
        CParameter::EnableLongDistanceMatching(true),
        CParameter::WindowLog(WINDOW_LOG),
    ] {
        context.set_parameter(parameter).map_err(failed)?;
    }
    context.ref_prefix(prefix).map_err(failed)?;
    let mut bytes = Vec::with_capacity(zstd_safe::compress_bound(content.len()));
    context.compress2(&mut bytes, content).map_err(failed)?;
    Ok(bytes)
}

fn joined(numbers: &[u32]) -> Vec<Range<u32>> {
    numbers.chunk_by(|a, b| a + 1 == *b).filter_map(|run| Some(*run.first()?..run.last()? + 1)).collect()
}
