//! Small signed bundles for unit tests, built in memory by the same functions that the tool uses.

use std::collections::HashSet;
use std::ops::Range;

use ring::signature::{Ed25519KeyPair, KeyPair};
use time::OffsetDateTime;

use super::chunk::{Chunk, ChunkDigest};
use super::chunker::{self, Cutter};
use super::frame::{frame_bound, frame_header};
use super::frames::{PatchFrame, PatchIndexWriter, PrefixDigest};
use super::index::Index;
use super::members::{MEMBERS, PATCH_MEMBERS};
use super::records::IndexWriter;
use super::tar;
use crate::manifest::{
    Algorithm, Body, Digest, FORMAT, Image, Patch, PublicKey, Signature, SignatureList, TrustedKeys,
};

/// The key pair of a seed: the same seed, the same key.
pub(crate) fn key(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

pub(crate) fn public(key: &Ed25519KeyPair) -> PublicKey {
    PublicKey::from_point(Algorithm::Ed25519, key.public_key().as_ref()).unwrap()
}

/// Trust in `key(seed)` alone.
pub(crate) fn trust(seed: u8) -> TrustedKeys {
    let mut keys = TrustedKeys::default();
    keys.add(public(&key(seed))).unwrap();
    keys
}

/// A bundle in its parts, so that tests can damage one and join again.
#[derive(Clone)]
pub(crate) struct Parts {
    pub manifest: Vec<u8>,
    pub signatures: Vec<u8>,
    pub index: Vec<u8>,
    pub payload: Vec<u8>,
    /// Index and frames of each patch.
    pub patches: Vec<[Vec<u8>; 2]>,
}

/// Packs `image` (a multiple of 4096 bytes) for board `board`, signed by `key(1)`.
pub(crate) fn parts(image: &[u8], board: &str, version: &str) -> Parts {
    let chunking = chunker::default_chunking();
    let (mut index, mut payload, mut at) = (IndexWriter::default(), Vec::new(), 0);
    let number = |at: usize| at / chunking.group as usize;
    let mut lengths = chunks(image).into_iter().map(|chunk| chunk.len()).peekable();
    while let Some(length) = lengths.next() {
        let (start, mut end, mut own) = (at, at + length, vec![length]);
        while let Some(length) = lengths.next_if(|_| number(end) == number(start)) {
            own.push(length);
            end += length;
        }
        for (length, block) in own.iter().zip(group(&image[start..end], &own)) {
            index.push(*length as u32, block.len() as u32, ChunkDigest::of(&image[at..at + length]));
            payload.extend_from_slice(&block);
            at += length;
        }
    }
    let index = index.finish();
    let body = Body {
        format: FORMAT,
        compatible: board.into(),
        version: version.into(),
        security_version: 0,
        created: OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap(),
        image: Image {
            size: image.len() as u64,
            sha256: Digest::of(image),
            codec: "zstd".into(),
            index_size: index.len() as u64,
            index_sha256: Digest::of(&index),
            payload_size: payload.len() as u64,
            chunking,
        },
        patches: Vec::new(),
        extensions: Default::default(),
    };
    let manifest = body.to_bytes().unwrap();
    let signatures = sign(&manifest, &[1]);
    Parts { manifest, signatures, index, payload, patches: Vec::new() }
}

impl Parts {
    /// Adds a patch from `base` and signs anew. Frames take what `base` lacks, up to `output` bytes each, behind
    /// what `base` has in the same places.
    pub(crate) fn with_base(mut self, image: &[u8], base: &[u8], output: usize) -> Parts {
        let mut body = Body::parse(&self.manifest).unwrap();
        let index = Index::parse(self.index.clone(), &body.image).unwrap();
        let held = digests(base);
        let missing = |chunk: &Chunk| !index.is_zero(chunk) && !held.contains(&chunk.digest);
        let mut plans: Vec<Vec<(u32, Chunk)>> = vec![Vec::new()];
        for (number, chunk) in (0..).zip(index.iter()).filter(|(_, chunk)| missing(chunk)) {
            let last = plans.last_mut().unwrap();
            if last.iter().map(|(_, chunk)| chunk.length).sum::<u32>() + chunk.length > output as u32 {
                plans.push(Vec::new());
            }
            plans.last_mut().unwrap().push((number, chunk));
        }
        let (mut writer, mut payload) = (PatchIndexWriter::default(), Vec::new());
        for plan in plans {
            let block = |at: u64| (at / 4096) as u32;
            let end = block(base.len() as u64);
            let span = |chunk: &Chunk| block(chunk.offset)..block(chunk.offset) + chunk.length / 4096;
            let blocks: Vec<_> =
                plan.iter().map(|(_, chunk)| span(chunk)).filter(|span| span.end <= end).collect();
            let of = |bytes: &[u8], range: &Range<u32>| {
                bytes[range.start as usize * 4096..range.end as usize * 4096].to_vec()
            };
            let prefix: Vec<u8> = blocks.iter().flat_map(|range| of(base, range)).collect();
            let content: Vec<u8> = plan.iter().flat_map(|(_, chunk)| of(image, &span(chunk))).collect();
            let frame = patch_frame(&content, &prefix);
            let chunks = plan.iter().map(|(number, _)| *number..number + 1).collect();
            let (length, prefix) = (frame.len() as u32, PrefixDigest::of(&prefix));
            assert!(writer.push(&PatchFrame { chunks, blocks, offset: 0, length, prefix }));
            payload.extend(frame);
        }
        let index = writer.finish().unwrap();
        body.patches.push(Patch {
            base_size: base.len() as u64,
            base_sha256: Digest::of(base),
            index_size: index.len() as u64,
            index_sha256: Digest::of(&index),
            payload_size: payload.len() as u64,
        });
        self.manifest = body.to_bytes().unwrap();
        self.signatures = sign(&self.manifest, &[1]);
        self.patches.push([index, payload]);
        self
    }
}

/// The digests of an image's chunks.
pub(crate) fn digests(image: &[u8]) -> HashSet<ChunkDigest> {
    chunks(image).iter().map(|chunk| ChunkDigest::of(chunk)).collect()
}

fn chunks(image: &[u8]) -> Vec<Vec<u8>> {
    let (mut cutter, mut chunks) = (Cutter::new(&chunker::default_chunking()).unwrap(), Vec::new());
    cutter.push(image, |chunk| chunks.push(chunk.to_vec()));
    chunks.extend(cutter.finish());
    chunks
}

/// One zstd frame behind a raw prefix.
pub(crate) fn patch_frame(content: &[u8], prefix: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(zstd_safe::compress_bound(content.len()));
    let mut context = zstd_safe::CCtx::create();
    context.ref_prefix(prefix).unwrap();
    context.compress2(&mut frame, content).unwrap();
    frame
}

/// The blocks of one group, the first with the frame's header. They use the content before them only if it
/// repeats as a whole: enough to need it, and nothing that `zstd -dc` would miss.
pub(crate) fn group(content: &[u8], lengths: &[usize]) -> Vec<Vec<u8>> {
    let (mut at, mut blocks) = (0, Vec::new());
    for length in lengths {
        let (history, own) = (&content[..at], &content[at..at + length]);
        let mut frame = Vec::with_capacity(zstd_safe::compress_bound(*length));
        let mut context = zstd_safe::CCtx::create();
        context.ref_prefix(history).unwrap();
        context.compress2(&mut frame, own).unwrap();
        let header = zstd_header(&frame);
        let mut block = frame.split_off(header);
        if block.len() > frame_bound(*length as u32, false) as usize {
            block = [&((*length as u32) << 3).to_le_bytes()[..3], own].concat();
        }
        at += length;
        block[0] = block[0] & !1 | u8::from(at == content.len());
        if blocks.is_empty() {
            block.splice(0..0, frame_header(content.len() as u32));
        }
        blocks.push(block);
    }
    blocks
}

/// Bytes of the header of a frame with content size and without dictionary id.
fn zstd_header(frame: &[u8]) -> usize {
    let (size, single) = (frame[4] >> 6, frame[4] >> 5 & 1);
    5 + usize::from(single == 0) + [usize::from(single), 2, 4, 8][usize::from(size)]
}

/// A `manifest.sig` by the keys of these seeds.
pub(crate) fn sign(manifest: &[u8], seeds: &[u8]) -> Vec<u8> {
    let by = |seed: &u8| Signature::by(&public(&key(*seed)), key(*seed).sign(manifest).as_ref().to_vec());
    SignatureList { signatures: seeds.iter().map(by).collect() }.to_bytes().unwrap()
}

impl Parts {
    /// The whole file.
    pub(crate) fn join(&self) -> Vec<u8> {
        let mut file = Vec::new();
        let contents = [&self.manifest, &self.signatures, &self.index, &self.payload];
        for (name, content) in MEMBERS.iter().zip(contents) {
            file.extend_from_slice(&tar::build(name, content.len() as u64, 1_700_000_000).unwrap());
            file.extend_from_slice(content);
            file.resize(file.len().next_multiple_of(tar::BLOCK), 0);
        }
        for (names, contents) in PATCH_MEMBERS.iter().zip(&self.patches) {
            for (name, content) in names.iter().zip(contents) {
                file.extend_from_slice(&tar::build(name, content.len() as u64, 1_700_000_000).unwrap());
                file.extend_from_slice(content);
                file.resize(file.len().next_multiple_of(tar::BLOCK), 0);
            }
        }
        file.resize(file.len() + tar::END, 0);
        file
    }
}
