//! The members `patch-N.index` and `patch-N.zst`: a shorter way to some chunks for a device that has one old
//! image, the base. A frame unpacks to the contents of several chunks, behind blocks of the base that are put
//! together to its prefix. Each chunk is then checked by its digest, like any other.

use super::error::BundleError;
use super::frames::{OUTPUT_CAP, PatchFrame, Reader};
use super::index::Index;
use super::members::PATCH_MEMBERS;
use crate::manifest::{BLOCK, Body, Digest, Patch};

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
    match frames.is_done() {
        false => Err("it can't be read to its end"),
        true if end != patch.payload_size => Err("its frames do not add up to the signed size"),
        true => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "lists of ranges are what this module is about")]

    use super::super::chunk::Chunk;
    use super::super::frames::{PREFIX_CAP, PatchIndexWriter, PrefixDigest};
    use super::super::testing::{self, Parts};
    use super::*;
    use crate::manifest::PATCH_INDEX_CAP;

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
        let mut writer = PatchIndexWriter::default();
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
            super::super::Decoder::default().patch(bytes, &prefix, &chunks, &mut out).unwrap();
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
        let mut writer = PatchIndexWriter::default();
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
        assert!(PatchIndexWriter::default().finish().is_none());
    }
}
