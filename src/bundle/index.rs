//! The member `rootfs.index`: what the image consists of, chunk by chunk.
//!
//! It is kept as it came, 20 bytes a chunk, wherever its owner has room for it: the list of a large image would fill
//! a small gateway's memory. Offsets are running sums, remembered once every `STRIDE` chunks.

use super::chunk::{Chunk, ChunkDigest};
use super::chunker::is_zero;
use super::error::BundleError;
use super::frame::frame_bound;
use super::list::{self, HEADER};
use super::members::MEMBERS;
use super::records::{Chunks, Keeper, MAGIC, RECORD, STRIDE, Sums, count};
use crate::manifest::{Digest, Image};

/// The chunk list of a signed image; every rule of the format holds for it.
#[derive(Debug)]
pub struct Index {
    bytes: Box<dyn Keeper>,
    /// The sums before every `STRIDE`th chunk.
    marks: Vec<Sums>,
    /// Digests of one zero block, two, and so on up to the longest chunk.
    zeros: Vec<ChunkDigest>,
    size: u64,
    block: u32,
    group: u32,
}

impl Index {
    /// Checks the bytes of `rootfs.index` against the manifest and takes them over.
    pub fn parse(bytes: Vec<u8>, image: &Image) -> Result<Index, BundleError> {
        Index::open(Box::new(bytes), image)
    }

    /// The same for bytes that are kept elsewhere.
    pub fn open(bytes: Box<dyn Keeper>, image: &Image) -> Result<Index, BundleError> {
        let (member, found, expected) = (MEMBERS[2], bytes.size(), image.index_size);
        if found != expected {
            return Err(BundleError::Size { member, found, expected, rule: "signed" });
        }
        if hash(&*bytes) != Some(image.index_sha256) {
            return Err(BundleError::Digest { member });
        }
        let mut header = [0; HEADER];
        let listed = if bytes.read(&mut header, 0) { list::read(&header, MAGIC) } else { None };
        let (listed, _) =
            listed.ok_or(BundleError::Index { reason: "its header is not that of version 1" })?;
        if image.chunks() != Some(u64::from(listed)) {
            return Err(BundleError::Index { reason: "its chunk count does not fit its size" });
        }
        let marks = check_records(&*bytes, image)?;
        let zeros = zero_digests(image.chunking.block, image.chunking.max);
        let (block, group) = (image.chunking.block, image.chunking.group);
        Ok(Index { bytes, marks, zeros, size: image.size, block, group })
    }

    /// The number of chunks; at least one.
    #[allow(clippy::len_without_is_empty, reason = "an index is never empty")]
    pub fn len(&self) -> usize {
        count(&*self.bytes)
    }

    /// What the chunks add up to: the size of the image, bytes.
    pub fn image_size(&self) -> u64 {
        self.size
    }

    pub fn get(&self, position: usize) -> Option<Chunk> {
        self.from(position).next()
    }

    /// The position of the chunk that has byte `offset` of the image.
    pub fn position(&self, offset: u64) -> usize {
        let first =
            self.marks.partition_point(|sums| sums.offset <= offset).saturating_sub(1).saturating_mul(STRIDE);
        first.saturating_add(self.from(first).take_while(|chunk| chunk.end() <= offset).count())
    }

    /// The chunks from `position` on.
    pub fn from(&self, position: usize) -> Chunks<'_> {
        let first = position.saturating_sub(position % STRIDE);
        let sums = self.marks.get(position / STRIDE).copied();
        // Beyond the end there is none.
        let next = if sums.is_some() { first } else { self.len() };
        let mut chunks = Chunks::new(&*self.bytes, self.group, next, sums.unwrap_or_default());
        (first..position).for_each(|_| {
            chunks.next();
        });
        chunks
    }

    pub fn iter(&self) -> Chunks<'_> {
        self.from(0)
    }

    /// Whether `content` is that of the chunk. Zeros are told without hashing them.
    pub fn has(&self, chunk: &Chunk, content: &[u8]) -> bool {
        match self.is_zero(chunk) {
            true => is_zero(content),
            false => ChunkDigest::of(content) == chunk.digest,
        }
    }

    /// Whether the chunk is zeros throughout: nobody needs to fetch it.
    pub fn is_zero(&self, chunk: &Chunk) -> bool {
        let blocks = chunk.length.checked_div(self.block).unwrap_or(0) as usize;
        blocks.checked_sub(1).and_then(|last| self.zeros.get(last)) == Some(&chunk.digest)
    }
}

fn hash(bytes: &dyn Keeper) -> Option<Digest> {
    use sha2::Digest as _;
    let (mut hash, mut block) = (sha2::Sha256::new(), vec![0; STRIDE * RECORD]);
    for at in (0..bytes.size()).step_by(block.len()) {
        let length = bytes.size().saturating_sub(at).min(block.len() as u64) as usize;
        let part = block.get_mut(..length).filter(|_| length > 0)?;
        if !bytes.read(part, at) {
            return None;
        }
        hash.update(part);
    }
    Some(Digest(hash.finalize().into()))
}

/// Checks every record and the sums; returns the marks.
fn check_records(bytes: &dyn Keeper, image: &Image) -> Result<Vec<Sums>, BundleError> {
    let bad = |reason| Err(BundleError::Index { reason });
    let mut marks = Vec::new();
    let mut chunks = Chunks::new(bytes, image.chunking.group, 0, Sums::default());
    loop {
        let (position, before) = (chunks.next, chunks.sums);
        let Some(chunk) = chunks.next() else { break };
        if position % STRIDE == 0 {
            marks.push(before);
        }
        if chunk.length == 0 || chunk.length > image.chunking.max {
            return bad("a chunk has an impossible length");
        }
        let bound = frame_bound(chunk.length, chunk.offset == chunk.group_offset);
        if chunk.frame_length == 0 || u64::from(chunk.frame_length) > bound {
            return bad("a frame has an impossible length");
        }
    }
    match (chunks.sums.offset, chunks.sums.frame_offset) == (image.size, image.payload_size) {
        true => Ok(marks),
        false => bad("its chunks do not add up to the signed sizes"),
    }
}

fn zero_digests(block: u32, max: u32) -> Vec<ChunkDigest> {
    use sha2::Digest as _;
    let zeros = vec![0; block as usize];
    let mut hash = sha2::Sha256::new();
    (0..max.checked_div(block).unwrap_or(0))
        .map(|_| {
            hash.update(&zeros);
            ChunkDigest::from(Digest(hash.clone().finalize().into()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::records::IndexWriter;
    use super::*;
    use crate::bundle::chunker::default_chunking;

    /// An image of `chunks` (length, frame length), with digests that tell them apart.
    fn image(chunks: &[(u32, u32)]) -> (Vec<u8>, Image) {
        let mut writer = IndexWriter::default();
        for (number, (length, frame)) in chunks.iter().enumerate() {
            writer.push(*length, *frame, ChunkDigest::of(&number.to_le_bytes()));
        }
        let bytes = writer.finish();
        let sum = |part: fn(&(u32, u32)) -> u32| chunks.iter().map(|chunk| u64::from(part(chunk))).sum();
        let image = Image {
            size: sum(|chunk| chunk.0),
            sha256: Digest([0; 32]),
            codec: "zstd".into(),
            index_size: bytes.len() as u64,
            index_sha256: Digest::of(&bytes),
            payload_size: sum(|chunk| chunk.1),
            chunking: default_chunking(),
        };
        (bytes, image)
    }

    #[test]
    fn any_chunk_is_found_without_reading_all() {
        let chunks: Vec<_> = (0..600).map(|n| (4096 * (1 + n % 32), 1 + n)).collect();
        let (bytes, image) = image(&chunks);
        let index = Index::parse(bytes, &image).unwrap();
        assert_eq!((index.len(), index.iter().count()), (600, 600));
        let (mut end, mut group) = ((0, 0), 0);
        for (position, chunk) in index.iter().enumerate() {
            if chunk.offset >> 21 != group >> 21 {
                group = chunk.offset;
            }
            assert_eq!(chunk.group_offset, group);
            assert_eq!((chunk.offset, chunk.frame_offset), end);
            assert_eq!((chunk.length, chunk.frame_length), chunks[position]);
            assert_eq!(index.get(position), Some(chunk));
            let last = chunk.offset + u64::from(chunk.length) - 1;
            assert_eq!([chunk.offset, last].map(|offset| index.position(offset)), [position; 2]);
            end =
                (chunk.offset + u64::from(chunk.length), chunk.frame_offset + u64::from(chunk.frame_length));
        }
        assert_eq!(end, (image.size, image.payload_size));
        assert_eq!((index.get(600), index.position(image.size)), (None, 600));
    }

    #[test]
    fn an_index_that_was_not_signed_is_refused() {
        let (bytes, image) = image(&[(4096, 10), (8192, 20)]);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            let expected = BundleError::Digest { member: "rootfs.index" };
            assert_eq!(Index::parse(flipped, &image).unwrap_err(), expected);
            assert!(matches!(Index::parse(bytes[..at].to_vec(), &image), Err(BundleError::Size { .. })));
        }
        Index::parse(bytes, &image).unwrap();
    }

    #[test]
    fn a_signed_index_must_still_make_sense() {
        let resign = |bytes: Vec<u8>, mut image: Image| {
            image.index_size = bytes.len() as u64;
            image.index_sha256 = Digest::of(&bytes);
            Index::parse(bytes, &image)
        };
        for record in [(0, 1), (128 * 1024 + 4096, 1), (4096, 0), (4096, 5000), (4096, 0xff_ffff)] {
            let (bytes, image) = image(&[record]);
            assert!(matches!(resign(bytes, image), Err(BundleError::Index { .. })), "{record:?}");
        }
        let (bytes, good) = image(&[(4096, 10), (8192, 20)]);
        for (at, value) in [(0, b'x'), (8, 2), (12, 1), (12, 3), (15, 0xff)] {
            let mut other = bytes.clone();
            other[at] = value;
            assert!(matches!(resign(other, good.clone()), Err(BundleError::Index { .. })), "byte {at}");
        }
        for cut in [0, 8, 15, 16, 35] {
            assert!(matches!(resign(bytes[..cut].to_vec(), good.clone()), Err(BundleError::Index { .. })));
        }
        let other = Image { size: good.size + 4096, ..good.clone() };
        assert!(matches!(resign(bytes.clone(), other), Err(BundleError::Index { .. })));
        let other = Image { payload_size: good.payload_size - 1, ..good };
        assert!(matches!(resign(bytes, other), Err(BundleError::Index { .. })));
    }

    #[test]
    fn zero_chunks_are_known() {
        let mut writer = IndexWriter::default();
        writer.push(8192, 15, ChunkDigest::of(&[0; 8192]));
        writer.push(8192, 700, ChunkDigest::of(&[1; 8192]));
        writer.push(4096, 30, ChunkDigest::of(&[2; 4096]));
        let (bytes, mut image) = (writer.finish(), image(&[(20480, 745)]).1);
        (image.index_size, image.index_sha256) = (bytes.len() as u64, Digest::of(&bytes));
        let index = Index::parse(bytes, &image).unwrap();
        assert_eq!(index.iter().map(|chunk| index.is_zero(&chunk)).collect::<Vec<_>>(), [true, false, false]);
    }
}
