//! The members `patch-N.index` and `patch-N.zst`: a shorter way to some chunks for a device that has one old
//! image, the base. A frame unpacks to the contents of several chunks, behind blocks of the base that are put
//! together to its prefix. Each chunk is then checked by its digest, like any other.

use std::ops::Range;

use super::{BundleError, Chunk, Index, PATCH_MEMBERS};
use crate::manifest::{BLOCK, Body, Digest, PATCH_INDEX_CAP, Patch};

const MAGIC: &[u8; 8] = b"fwupatch";
const VERSION: u32 = 1;
const HEADER: usize = 16;
/// Bytes of a prefix's digest.
const DIGEST: usize = 8;

/// Most bytes that one frame may unpack to: what a device has in memory, and loses when it is interrupted.
pub const OUTPUT_CAP: usize = 1 << 20;
/// Most bytes of the base that one frame may want before it.
pub const PREFIX_CAP: usize = 2 << 20;

/// One frame of a patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchFrame {
    /// The chunks that it holds, in this order: ranges of their numbers in `rootfs.index`, ascending.
    pub chunks: Vec<Range<u32>>,
    /// The blocks (of 4096 bytes) of the base that make its prefix, ascending.
    pub blocks: Vec<Range<u32>>,
    /// Where it lies in `patch-N.zst`, bytes.
    pub offset: u64,
    pub length: u32,
    /// The first bytes of the prefix's SHA-256: a device asks before it fetches, as its slot may have changed.
    pub prefix: PrefixDigest,
}

/// The first 8 bytes of the SHA-256 of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixDigest(pub [u8; DIGEST]);

impl PrefixDigest {
    pub fn of(prefix: &[u8]) -> PrefixDigest {
        let mut first = [0; DIGEST];
        first.iter_mut().zip(Digest::of(prefix).0).for_each(|(to, from)| *to = from);
        PrefixDigest(first)
    }
}

impl PatchFrame {
    /// Its chunks and their numbers.
    pub fn chunks<'a>(&'a self, index: &'a Index) -> impl Iterator<Item = (usize, Chunk)> + 'a {
        self.chunks.iter().flat_map(|range| {
            let numbers = range.start as usize..range.end as usize;
            numbers.clone().zip(index.from(numbers.start))
        })
    }

    /// Bytes of its prefix.
    pub fn prefix_length(&self) -> usize {
        let blocks = self.blocks.iter().map(|range| range.end.saturating_sub(range.start) as usize);
        blocks.fold(0, usize::saturating_add).saturating_mul(BLOCK as usize)
    }

    /// Whether it is shorter than the plain blocks of those of its chunks that are `missing`.
    pub fn pays(&self, index: &Index, missing: impl Fn(usize) -> bool) -> bool {
        let wanted = self.chunks(index).filter(|(number, _)| missing(*number));
        let plain: u64 = wanted.map(|(_, chunk)| u64::from(chunk.frame_length)).sum();
        u64::from(self.length) < plain
    }
}

/// The frame list of a signed patch; every rule of the format holds for it. It is kept as it came, and read
/// anew by each pass.
#[derive(Debug, Clone)]
pub struct PatchIndex {
    bytes: Vec<u8>,
}

impl PatchIndex {
    /// Checks the bytes of `patch-N.index` against the manifest and the chunk list, and takes them over.
    /// `number` counts from 0.
    pub fn parse(
        bytes: Vec<u8>,
        number: usize,
        body: &Body,
        index: &Index,
    ) -> Result<PatchIndex, BundleError> {
        let Some((patch, [member, _])) = body.patches.get(number).zip(PATCH_MEMBERS.get(number)) else {
            return Err(BundleError::Patch { reason: "there is none of this number" });
        };
        let (found, expected) = (bytes.len() as u64, patch.index_size);
        if found != expected {
            return Err(BundleError::Size { member, found, expected, rule: "signed" });
        }
        if Digest::of(&bytes) != patch.index_sha256 {
            return Err(BundleError::Digest { member });
        }
        check(&bytes, patch, index).map_err(|reason| BundleError::Patch { reason })?;
        Ok(PatchIndex { bytes })
    }

    /// All frames, in the order of their chunks and of their places.
    pub fn frames(&self) -> impl Iterator<Item = PatchFrame> + '_ {
        Reader::new(&self.bytes).into_iter().flatten()
    }
}

fn check(bytes: &[u8], patch: &Patch, index: &Index) -> Result<(), &'static str> {
    let mut frames = Reader::new(bytes).ok_or("its header is not that of version 1")?;
    let mut end = 0;
    for frame in &mut frames {
        let numbers = frame.chunks.last().map_or(0, |range| range.end as usize);
        let output: usize = frame.chunks(index).map(|(_, chunk)| chunk.length as usize).sum();
        if numbers > index.len() || output > OUTPUT_CAP {
            return Err("a frame has impossible chunks");
        }
        let blocks = frame.blocks.last().map_or(0, |range| range.end);
        if u64::from(blocks) > patch.base_size.checked_div(u64::from(BLOCK)).unwrap_or(0) {
            return Err("a frame wants blocks that its base does not have");
        }
        if frame.length == 0 || frame.length as usize > output {
            return Err("a frame has an impossible length");
        }
        end = frame.offset.saturating_add(u64::from(frame.length));
    }
    match frames.left == 0 && frames.rest.is_empty() {
        false => Err("it can't be read to its end"),
        true if end != patch.payload_size => Err("its frames do not add up to the signed size"),
        true => Ok(()),
    }
}

/// Reads frame by frame; ends early at what is no frame.
struct Reader<'a> {
    rest: &'a [u8],
    /// Frames to come.
    left: u32,
    /// Where the chunks of the frames so far end.
    chunk: u32,
    offset: u64,
}

impl Reader<'_> {
    /// `None` if the header is not ours.
    fn new(bytes: &[u8]) -> Option<Reader<'_>> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let left = u32::from_le_bytes(*count);
        (u32::from_le_bytes(*version) == VERSION).then_some(Reader { rest, left, chunk: 0, offset: 0 })
    }

    /// A number in groups of seven bits, the low ones first; the top bit says that more follow.
    fn number(&mut self) -> Option<u32> {
        let mut number = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(number).ok();
            }
        }
        None
    }

    /// At least one range, each by its distance from the one before and its length; of at most `most` in all.
    fn ranges(&mut self, mut end: u32, most: usize) -> Option<Vec<Range<u32>>> {
        let (count, mut left) = (self.number()? as usize, most);
        if count == 0 || count > most {
            return None;
        }
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            let start = end.checked_add(self.number()?)?;
            let length = self.number()?;
            left = left.checked_sub(length as usize)?;
            end = start.checked_add(length).filter(|end| *end > start)?;
            ranges.push(start..end);
        }
        Some(ranges)
    }
}

impl Iterator for Reader<'_> {
    type Item = PatchFrame;

    fn next(&mut self) -> Option<PatchFrame> {
        let left = self.left.checked_sub(1)?;
        let chunks = self.ranges(self.chunk, OUTPUT_CAP.div_ceil(BLOCK as usize))?;
        let blocks = self.ranges(0, PREFIX_CAP.div_ceil(BLOCK as usize))?;
        let length = self.number()?;
        let (prefix, rest) = self.rest.split_first_chunk::<DIGEST>()?;
        let frame = PatchFrame { offset: self.offset, length, prefix: PrefixDigest(*prefix), chunks, blocks };
        (self.rest, self.left) = (rest, left);
        self.chunk = frame.chunks.last()?.end;
        self.offset = self.offset.checked_add(u64::from(length))?;
        Some(frame)
    }
}

/// Builds the bytes of `patch-N.index`, frame by frame.
#[derive(Debug, Clone)]
pub struct PatchIndexWriter {
    bytes: Vec<u8>,
    count: u32,
    chunk: u32,
}

impl Default for PatchIndexWriter {
    fn default() -> PatchIndexWriter {
        PatchIndexWriter::new()
    }
}

impl PatchIndexWriter {
    pub fn new() -> PatchIndexWriter {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        PatchIndexWriter { bytes, count: 0, chunk: 0 }
    }

    /// Frames must come in the order of their chunks and obey the caps; their offsets follow from the lengths.
    /// `false` if the index would become too long: then nothing was added.
    #[must_use]
    pub fn push(&mut self, frame: &PatchFrame) -> bool {
        let before = self.bytes.len();
        self.ranges(&frame.chunks, self.chunk);
        self.ranges(&frame.blocks, 0);
        self.number(frame.length);
        self.bytes.extend_from_slice(&frame.prefix.0);
        if self.bytes.len() as u64 > PATCH_INDEX_CAP {
            self.bytes.truncate(before);
            return false;
        }
        self.chunk = frame.chunks.last().map_or(self.chunk, |range| range.end);
        self.count = self.count.saturating_add(1);
        true
    }

    fn ranges(&mut self, ranges: &[Range<u32>], mut end: u32) {
        self.number(ranges.len() as u32);
        for range in ranges {
            self.number(range.start.saturating_sub(end));
            self.number(range.end.saturating_sub(range.start));
            end = range.end;
        }
    }

    fn number(&mut self, mut number: u32) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    /// `None` if there is no frame.
    pub fn finish(mut self) -> Option<Vec<u8>> {
        let count = self.bytes.get_mut(12..HEADER).filter(|_| self.count > 0)?;
        count.copy_from_slice(&self.count.to_le_bytes());
        Some(self.bytes)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges are what this module is about")]
mod tests {
    use super::super::testing::{self, Parts};
    use super::*;

    /// A new image, an old one that differs from it here and there, and the bundle with a patch of `output`
    /// bytes a frame.
    fn bundle(output: usize) -> (Vec<u8>, Vec<u8>, Parts) {
        let mut image = vec![0; 3 << 20];
        fastrand::Rng::with_seed(5).fill(&mut image);
        let mut base = image.clone();
        base.iter_mut().step_by(70_000).for_each(|byte| *byte ^= 1);
        let parts = testing::parts(&image, "board", "1").with_base(&image, &base, output);
        (image, base, parts)
    }

    fn read(parts: &Parts) -> (Body, Index) {
        let body = Body::parse(&parts.manifest).unwrap();
        let index = Index::parse(parts.index.clone(), &body.image).unwrap();
        (body, index)
    }

    /// Parses other bytes as if they had been signed.
    fn resigned(bytes: &[u8], body: &Body, index: &Index) -> Result<PatchIndex, BundleError> {
        let mut body = body.clone();
        body.patches[0].index_size = bytes.len() as u64;
        body.patches[0].index_sha256 = Digest::of(bytes);
        PatchIndex::parse(bytes.to_vec(), 0, &body, index)
    }

    /// The bytes of an index with these frames.
    fn written(frames: &[PatchFrame]) -> Vec<u8> {
        let mut writer = PatchIndexWriter::new();
        frames.iter().for_each(|frame| assert!(writer.push(frame)));
        writer.finish().unwrap()
    }

    #[test]
    fn frames_come_back_and_unpack_behind_the_base() {
        let (image, base, parts) = bundle(1 << 18);
        let (body, index) = read(&parts);
        let patch = PatchIndex::parse(parts.patches[0][0].clone(), 0, &body, &index).unwrap();
        let frames: Vec<PatchFrame> = patch.frames().collect();
        assert!(frames.len() > 1);
        assert_eq!(written(&frames), parts.patches[0][0]);
        let file = parts.join();
        let layout = super::super::head(&file).unwrap().layout(&body).unwrap();
        for frame in frames {
            let mut prefix = Vec::new();
            for range in &frame.blocks {
                prefix.extend_from_slice(&base[range.start as usize * 4096..range.end as usize * 4096]);
            }
            assert_eq!((PrefixDigest::of(&prefix), prefix.len()), (frame.prefix, frame.prefix_length()));
            let (_, chunks): (Vec<_>, Vec<Chunk>) = frame.chunks(&index).unzip();
            let place = layout.patch_frame(0, &frame).unwrap();
            let bytes = &file[place.start as usize..place.end as usize];
            let mut out = vec![0; chunks.iter().map(|chunk| chunk.length as usize).sum()];
            super::super::Decoder::new().patch(bytes, &prefix, &chunks, &mut out).unwrap();
            let mut at = 0;
            for chunk in chunks {
                let (start, length) = (chunk.offset as usize, chunk.length as usize);
                assert!(out[at..at + length] == image[start..start + length]);
                at += length;
            }
        }
    }

    #[test]
    fn a_patch_index_that_was_not_signed_is_refused() {
        let (_, _, parts) = bundle(1 << 18);
        let ((body, index), bytes) = (read(&parts), &parts.patches[0][0]);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            let error = PatchIndex::parse(flipped, 0, &body, &index).unwrap_err();
            assert_eq!(error, BundleError::Digest { member: "patch-1.index" });
            let error = PatchIndex::parse(bytes[..at].to_vec(), 0, &body, &index).unwrap_err();
            assert!(matches!(error, BundleError::Size { .. }));
        }
        let error = PatchIndex::parse(bytes.clone(), 1, &body, &index).unwrap_err();
        assert!(matches!(error, BundleError::Patch { .. }));
    }

    #[test]
    fn a_signed_patch_index_must_still_make_sense() {
        let (_, base, parts) = bundle(1 << 18);
        let ((body, index), bytes) = (read(&parts), &parts.patches[0][0]);
        let good: Vec<PatchFrame> = resigned(bytes, &body, &index).unwrap().frames().collect();
        let last = index.len() as u32;
        let (blocks, all) = ((base.len() / 4096) as u32, PREFIX_CAP as u32 / BLOCK);
        type Change = Box<dyn Fn(&mut PatchFrame)>;
        let changes: [Change; 12] = [
            Box::new(|frame| frame.chunks.clear()),
            Box::new(|frame| frame.blocks.clear()),
            Box::new(move |frame| frame.chunks = vec![last..last + 1]),
            Box::new(move |frame| frame.chunks = vec![0..last]),
            Box::new(|frame| frame.chunks = vec![0..u32::MAX]),
            Box::new(|frame| frame.chunks = vec![0..0]),
            Box::new(|frame| frame.blocks = vec![0..0, 0..1]),
            Box::new(move |frame| frame.blocks = vec![blocks - 1..blocks + 1]),
            Box::new(move |frame| frame.blocks = vec![0..all / 2, all / 2..all + 1]),
            Box::new(|frame| frame.blocks = vec![u32::MAX - 1..u32::MAX, u32::MAX..u32::MAX]),
            Box::new(|frame| frame.length = 0),
            Box::new(|frame| frame.length = u32::MAX),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut frames = good.clone();
            change(frames.last_mut().unwrap());
            let error = resigned(&written(&frames), &body, &index).unwrap_err();
            assert!(matches!(error, BundleError::Patch { .. }), "change {number}: {error}");
        }
        // A header of another kind, more or fewer frames than it says, and what no frame needs.
        let more = [bytes.as_slice(), &[0]].concat();
        for (at, value) in [(0, b'x'), (8, 2), (12, 0), (12, bytes[12] + 1), (12, bytes[12] - 1), (15, 0xff)]
        {
            let mut other = bytes.clone();
            other[at] = value;
            assert!(matches!(resigned(&other, &body, &index), Err(BundleError::Patch { .. })), "byte {at}");
        }
        assert!(matches!(resigned(&more, &body, &index), Err(BundleError::Patch { .. })));
        for cut in 1..bytes.len() {
            assert!(matches!(resigned(&bytes[..cut], &body, &index), Err(BundleError::Patch { .. })));
        }
        let mut other = body.clone();
        other.patches[0].payload_size -= 1;
        assert!(matches!(resigned(bytes, &other, &index), Err(BundleError::Patch { .. })));
    }

    #[test]
    fn whatever_a_hostile_signer_writes_the_caps_hold() {
        let (_, _, parts) = bundle(1 << 18);
        let ((body, index), bytes) = (read(&parts), &parts.patches[0][0]);
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..2000 {
            let mut hostile = bytes.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(8..hostile.len());
                hostile[at] = random.u8(..);
            }
            // As long as it takes to be believed.
            let mut body = body.clone();
            body.patches[0].payload_size =
                Reader::new(&hostile).into_iter().flatten().map(|frame| u64::from(frame.length)).sum();
            let Ok(patch) = resigned(&hostile, &body, &index) else { continue };
            let mut next = 0;
            for frame in patch.frames() {
                let output: u32 = frame.chunks(&index).map(|(_, chunk)| chunk.length).sum();
                assert!(output > 0 && output as usize <= OUTPUT_CAP && frame.length <= output);
                assert!(frame.prefix_length() <= PREFIX_CAP);
                for (number, _) in frame.chunks(&index) {
                    assert!(number >= next && number < index.len());
                    next = number + 1;
                }
            }
        }
    }

    #[test]
    fn a_frame_pays_only_for_what_is_missing() {
        let (_, _, parts) = bundle(1 << 20);
        let (body, index) = read(&parts);
        let patch = PatchIndex::parse(parts.patches[0][0].clone(), 0, &body, &index).unwrap();
        let frame = patch.frames().next().unwrap();
        assert!(frame.pays(&index, |_| true) && !frame.pays(&index, |_| false));
        let foreign = |number| !frame.chunks.iter().any(|range| range.contains(&(number as u32)));
        assert!(!frame.pays(&index, foreign));
    }

    #[test]
    fn the_writer_stops_at_the_cap() {
        let mut writer = PatchIndexWriter::new();
        let frame = |number: u32| PatchFrame {
            chunks: vec![number..number + 1],
            blocks: (0..512).map(|n| n * 2..n * 2 + 1).collect(),
            offset: 0,
            length: 1,
            prefix: PrefixDigest([0; 8]),
        };
        let count = (0..).take_while(|number| writer.push(&frame(*number))).count() as u32;
        let bytes = writer.finish().unwrap();
        assert!(bytes.len() as u64 <= PATCH_INDEX_CAP && bytes.len() as u64 > PATCH_INDEX_CAP - 2000);
        assert_eq!(bytes[12..16], count.to_le_bytes());
        assert!(PatchIndexWriter::new().finish().is_none());
    }
}
