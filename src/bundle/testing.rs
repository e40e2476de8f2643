//! Small signed bundles for unit tests, built in memory by the same functions that the tool uses.

use ring::signature::{Ed25519KeyPair, KeyPair};
use time::OffsetDateTime;

use super::{ChunkDigest, IndexWriter, MEMBERS, chunker, frame_bound, frame_header, tar};
use crate::manifest::{
    Algorithm, Body, Digest, FORMAT, Image, PublicKey, Signature, SignatureList, TrustedKeys,
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
    let mut keys = TrustedKeys::new();
    keys.add(public(&key(seed))).unwrap();
    keys
}

/// A bundle in its parts, so that tests can damage one and join again.
pub(crate) struct Parts {
    pub manifest: Vec<u8>,
    pub signatures: Vec<u8>,
    pub index: Vec<u8>,
    pub payload: Vec<u8>,
}

/// Packs `image` (a multiple of 4096 bytes) for board `board`, signed by `key(1)`.
pub(crate) fn parts(image: &[u8], board: &str, version: &str) -> Parts {
    let chunking = chunker::default_chunking();
    let (mut cutter, mut lengths) = (chunker::Chunker::new(&chunking).unwrap(), Vec::new());
    lengths.extend(image.chunks(4096).filter_map(|block| cutter.push(block)));
    lengths.extend(cutter.finish());
    let (mut index, mut payload, mut at) = (IndexWriter::new(), Vec::new(), 0);
    let number = |at: usize| at / chunking.group as usize;
    let mut lengths = lengths.into_iter().map(|length| length as usize).peekable();
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
        extensions: Default::default(),
    };
    let manifest = body.to_bytes().unwrap();
    let signatures = sign(&manifest, &[1]);
    Parts { manifest, signatures, index, payload }
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
        file.resize(file.len() + tar::END, 0);
        file
    }
}
