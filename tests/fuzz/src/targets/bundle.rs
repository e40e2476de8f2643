//! What a bundle is made of. Signatures and digests are put right for each input.

use std::sync::LazyLock;

use fwupdate::bundle::{
    self, Chunk, ChunkDigest, Decoder, Index, IndexWriter, PatchFrame, PatchIndex, PatchIndexWriter,
    PrefixDigest,
};
use fwupdate::manifest::{self as signed, Body, Chunking, Digest, FORMAT, Image, Patch, SignatureList};

use super::{TRUST, now, sign};

const BLOCK: usize = 4096;

/// An image of twelve blocks that is cut into chunks of one, two, four and five.
fn content() -> Vec<u8> {
    (0..12 * BLOCK as u32).map(|n| (n.wrapping_mul(n) / 7) as u8).collect()
}

const LENGTHS: [usize; 4] = [BLOCK, 2 * BLOCK, 4 * BLOCK, 5 * BLOCK];

fn index() -> Vec<u8> {
    let (content, mut at, mut writer) = (content(), 0, IndexWriter::default());
    for (length, block) in LENGTHS.iter().zip(blocks()) {
        writer.push(*length as u32, block.len() as u32, ChunkDigest::of(&content[at..at + length]));
        at += length;
    }
    writer.finish()
}

/// The chunks' blocks, stored as they are; the first with the frame's header.
fn blocks() -> Vec<Vec<u8>> {
    let (content, mut at, mut blocks) = (content(), 0, Vec::new());
    for length in LENGTHS {
        let last = u32::from(at + length == content.len());
        let header = ((length as u32) << 3 | last).to_le_bytes();
        blocks.push([&header[..3], &content[at..at + length]].concat());
        at += length;
    }
    let frame = bundle::frame_header(content.len() as u32);
    blocks[0] = [&frame[..], &blocks[0]].concat();
    blocks
}

/// A body whose index is `index`, with the sizes that its records add up to.
fn body(index: &[u8]) -> Body {
    let records = || index.get(16..).unwrap_or_default().chunks_exact(20);
    let sizes = |record: &[u8]| u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
    let size: u64 = records().map(|record| u64::from(sizes(record) >> 24) * BLOCK as u64).sum();
    let payload: u64 = records().map(|record| u64::from(sizes(record) & 0x00ff_ffff)).sum();
    let algorithm = "cdc-4k".into();
    let chunking =
        Chunking { algorithm, block: 4096, min: 4096, average: 16384, max: 131_072, group: 1 << 20 };
    Body {
        format: FORMAT,
        compatible: "board".into(),
        version: "2.0.0".into(),
        security_version: 1,
        created: now(),
        image: Image {
            size,
            sha256: Digest::of(&content()),
            codec: "zstd".into(),
            index_size: index.len() as u64,
            index_sha256: Digest::of(index),
            payload_size: payload,
            chunking,
        },
        patches: Vec::new(),
        extensions: Default::default(),
    }
}

fn with_patch(mut body: Body, index: &[u8], payload: u64) -> Body {
    body.patches.push(Patch {
        base_size: 16 * BLOCK as u64,
        base_sha256: Digest::of(b"base"),
        index_size: index.len() as u64,
        index_sha256: Digest::of(index),
        payload_size: payload,
    });
    body
}

fn patch_index() -> Vec<u8> {
    let mut writer = PatchIndexWriter::default();
    for (chunks, blocks) in [(0..1, 0..3), (2..4, 5..9)] {
        let prefix = PrefixDigest::of(b"prefix");
        let frame = PatchFrame { chunks: vec![chunks], blocks: vec![blocks], offset: 0, length: 100, prefix };
        assert!(writer.push(&frame));
    }
    writer.finish().unwrap()
}

/// The index of the image, and what it consists of: made once, for a fuzzer asks for them at each run.
static INDEX: LazyLock<Index> = LazyLock::new(|| Index::parse(index(), &BODY.image).unwrap());
static BODY: LazyLock<Body> = LazyLock::new(|| body(&index()));
static CHUNKS: LazyLock<Vec<Chunk>> = LazyLock::new(|| INDEX.iter().collect());
static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(content);

/// A signed manifest of any content.
pub mod manifest {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        let Ok(manifest) = signed::open(bytes, &sign(bytes), &TRUST, 1) else { return false };
        let body: &Body = &manifest;
        // What is accepted can be written again, and is then accepted as the same.
        if let Ok(again) = body.to_bytes() {
            assert_eq!(Body::parse(&again).unwrap(), *body);
        }
        let layout = bundle::Layout::new(2048, body);
        assert!(layout.head_bytes() <= layout.file_size());
        assert!(body.patches.iter().enumerate().all(|(n, _)| layout.patch_span(n).is_some()));
        assert!(layout.padding().all(|(_, range)| range.start <= range.end));
        plan(&manifest);
        true
    }

    fn plan(manifest: &signed::Manifest) {
        let device = fwupdate::plan::Device {
            compatible: "board",
            booted: fwupdate::slot::Slot::A,
            booted_image: None,
            booted_version: Some("1.0.0"),
            floor: 0,
            capacity: u64::MAX,
            quarantine: &[],
            tries: 3,
        };
        let operation = fwupdate::machine::Operation::default();
        if let Err(failure) = fwupdate::plan::plan(&operation, manifest, &device) {
            assert!(!failure.message.is_empty());
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let plain = body(&index());
        let patched = with_patch(plain.clone(), &patch_index(), 200);
        [plain, patched].iter().map(|body| body.to_bytes().unwrap()).collect()
    }
}

/// Signatures over a manifest that stays the same.
pub mod signatures {
    use super::*;

    const MANIFEST: &[u8] = b"manifest";

    pub fn run(bytes: &[u8]) -> bool {
        let Ok(list) = SignatureList::parse(bytes) else { return false };
        let valid = list.check(MANIFEST, &TRUST, 1);
        // Only the key that is trusted can be among them.
        assert!(valid.as_ref().map_or(0, |keys| keys.len()) <= TRUST.len());
        valid.is_ok()
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        vec![sign(MANIFEST)]
    }
}

/// The first members of a bundle.
pub mod tar {
    use super::*;
    use fwupdate::bundle::MEMBERS;
    use fwupdate::bundle::tar::{END, build, padded};

    pub fn run(bytes: &[u8]) -> bool {
        let Ok(head) = bundle::head(bytes) else { return false };
        assert!(head.manifest.len() + head.signatures.len() < bytes.len());
        match signed::open(head.manifest, head.signatures, &TRUST, 1) {
            Ok(manifest) => head.layout(&manifest).is_ok(),
            Err(_) => true,
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let index = index();
        let manifest = body(&index).to_bytes().unwrap();
        let signatures = sign(&manifest);
        let payload = blocks().concat();
        let mut file = Vec::new();
        for (name, content) in MEMBERS.iter().zip([&manifest, &signatures, &index, &payload]) {
            file.extend_from_slice(&build(name, content.len() as u64, 1_700_000_000).unwrap());
            file.extend_from_slice(content);
            file.resize(padded(file.len() as u64) as usize, 0);
        }
        file.resize(file.len() + END, 0);
        vec![file]
    }
}

/// The chunk list; the image's sizes are what its records add up to.
pub mod chunk_index {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        let image = body(bytes).image;
        let Ok(index) = Index::parse(bytes.to_vec(), &image) else { return false };
        let (mut at, mut frames) = (0, 0);
        for (number, chunk) in index.iter().enumerate() {
            assert_eq!((chunk.offset, chunk.frame_offset), (at, frames));
            assert_eq!(index.get(number), Some(chunk));
            assert_eq!(index.position(chunk.offset), number);
            assert!(chunk.length > 0 && chunk.group_offset <= chunk.offset);
            at += u64::from(chunk.length);
            frames += u64::from(chunk.frame_length);
        }
        assert_eq!((at, frames), (image.size, image.payload_size));
        true
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        vec![index()]
    }
}

/// The frame list of a patch; the payload's size is what its frames add up to, if they do.
pub mod patch_index {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        // The sum is the one thing that a fuzzer would have to guess: the first two bytes say it.
        let Some((payload, bytes)) = bytes.split_first_chunk::<2>() else { return false };
        let body = with_patch(BODY.clone(), bytes, u64::from(u16::from_le_bytes(*payload)));
        let Ok(patch) = PatchIndex::parse(bytes.to_vec(), 0, &body, &INDEX) else { return false };
        let mut end = 0;
        for frame in patch.frames() {
            assert_eq!(frame.offset, end);
            end += u64::from(frame.length);
            assert!(frame.prefix_length() <= 2 << 20);
            assert!(frame.chunks(&INDEX).all(|(number, _)| number < INDEX.len()));
            frame.pays(&INDEX, |number| number % 2 == 0);
        }
        assert_eq!(end, body.patches[0].payload_size);
        true
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        vec![[&200u16.to_le_bytes()[..], &patch_index()].concat()]
    }
}

/// The blocks of one group: one chunk's block is the fuzzer's, behind the true content before it.
pub mod zstd_blocks {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        let Some((which, block)) = bytes.split_first() else { return false };
        let (chunk, content) = (CHUNKS[usize::from(*which) % CHUNKS.len()], &*CONTENT);
        let own = chunk.offset as usize..(chunk.offset + u64::from(chunk.length)) as usize;
        let mut out = vec![0; own.len()];
        let decoded = Decoder::default().decode(&[(chunk, block)], &content[..own.start], &mut out);
        if decoded.is_ok() {
            assert_eq!(out, content[own]);
        }
        decoded.is_ok()
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let numbered = blocks().into_iter().enumerate();
        numbered.map(|(number, block)| [&[number as u8][..], &block].concat()).collect()
    }
}

/// A patch's frame behind a prefix that the device has.
pub mod zstd_patch {
    use super::*;

    static PREFIX: LazyLock<Vec<u8>> =
        LazyLock::new(|| CONTENT.iter().map(|byte| byte.wrapping_add(1)).collect());

    pub fn run(bytes: &[u8]) -> bool {
        let chunks = &CHUNKS[..2];
        let mut out = vec![0; 3 * BLOCK];
        let decoded = Decoder::default().patch(bytes, &PREFIX, chunks, &mut out);
        if decoded.is_ok() {
            assert_eq!(out, CONTENT[..3 * BLOCK]);
        }
        decoded.is_ok()
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let content = &CONTENT[..3 * BLOCK];
        let mut frame = Vec::with_capacity(zstd_safe::compress_bound(content.len()));
        let mut context = zstd_safe::CCtx::create();
        context.ref_prefix(&PREFIX).unwrap();
        context.compress2(&mut frame, content).unwrap();
        vec![frame]
    }
}
