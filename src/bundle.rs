//! The container: a strict ustar with four members and two more a patch, and the binary lists inside it.
//! Bytes <-> values, no I/O; the format is specified in docs/bundle-format.md.
//!
//! A reader takes the first `HEAD_MAX` bytes of the file (or all, if it is shorter), asks `head`, opens the
//! manifest, and from then on every position follows from signed sizes: `Head::layout`, the bytes of
//! `Layout::index_span`, `Layout::index`, `Index::parse`, and a `Decoder` for the frames.

pub mod chunker;
mod frame;
mod index;
mod patch;
mod runs;
pub mod tar;
#[cfg(test)]
pub(crate) mod testing;

use std::ops::Range;

use crate::failure::{Code, Failure};
use crate::manifest::{Body, Digest, MANIFEST_CAP, PATCHES_CAP, Patch, SIGNATURES_CAP};

pub use frame::{BLOCK_HEADER, Decoder, FRAME_HEADER, frame_bound, frame_header};
pub use index::{Chunks, Index, IndexWriter, Keeper, chunks_in};
pub use patch::{OUTPUT_CAP, PREFIX_CAP, PatchFrame, PatchIndex, PatchIndexWriter, PrefixDigest};
pub use runs::{GAP, LONGEST, Run, fetch_bytes, join, runs};

/// The members, in the order in which they must come.
pub const MEMBERS: [&str; 4] = ["manifest.json", "manifest.sig", "rootfs.index", "rootfs.zst"];

/// The index and the frames of each patch: they follow, in the order of the manifest's list.
pub const PATCH_MEMBERS: [[&str; 2]; PATCHES_CAP] = [
    ["patch-1.index", "patch-1.zst"],
    ["patch-2.index", "patch-2.zst"],
    ["patch-3.index", "patch-3.zst"],
    ["patch-4.index", "patch-4.zst"],
    ["patch-5.index", "patch-5.zst"],
    ["patch-6.index", "patch-6.zst"],
    ["patch-7.index", "patch-7.zst"],
    ["patch-8.index", "patch-8.zst"],
];

/// So many first bytes of a bundle always hold the manifest, its signatures and the header of the index.
pub const HEAD_MAX: usize = 3 * tar::BLOCK + MANIFEST_CAP + SIGNATURES_CAP;

/// Bytes of a device's first request: enough for a usual manifest, its signatures and the headers.
pub const FIRST_READ: u64 = 8 * 1024;

/// One chunk of the image, in image order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Offset in the image, bytes.
    pub offset: u64,
    /// Where the first chunk of its group begins in the image, bytes.
    pub group_offset: u64,
    /// Length in the image, bytes.
    pub length: u32,
    /// Offset of its part of a zstd frame in the member `rootfs.zst`, bytes.
    pub frame_offset: u64,
    /// Length of that part, bytes.
    pub frame_length: u32,
    pub digest: ChunkDigest,
}

/// The first 16 bytes of a chunk's SHA-256: enough to find and to check a chunk by, since the image as a whole
/// is read back against all 32 bytes of its own before a slot can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkDigest(pub [u8; 16]);

impl ChunkDigest {
    /// Hashes a chunk's content.
    pub fn of(content: &[u8]) -> ChunkDigest {
        ChunkDigest::from(Digest::of(content))
    }
}

impl From<Digest> for ChunkDigest {
    fn from(Digest(whole): Digest) -> ChunkDigest {
        let mut first = [0; 16];
        first.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
        ChunkDigest(first)
    }
}

/// Why bytes are no bundle, or not the one that was signed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not an error while more bytes can be read.
    #[error("the bundle ends too early: {need} bytes are needed; build or upload it again")]
    Short { need: u64 },
    #[error("this is no bundle: `{member}` should come here, but {reason}; build it with fwupdate-bundle")]
    Header { member: &'static str, reason: &'static str },
    #[error("`{member}` has {found} bytes in the bundle, but {expected} are {rule}; build the bundle again")]
    Size { member: &'static str, found: u64, expected: u64, rule: &'static str },
    #[error("the bundle has stray bytes after `{member}`; build it again")]
    Padding { member: &'static str },
    #[error("`{member}` is not what was signed (its SHA-256 differs); build or upload the bundle again")]
    Digest { member: &'static str },
    #[error("the chunk index is inconsistent: {reason}; build the bundle again")]
    Index { reason: &'static str },
    #[error("the patch index is inconsistent: {reason}; build the bundle again")]
    Patch { reason: &'static str },
    #[error("the chunk at byte {offset} of the image is damaged: {reason}; upload the bundle again")]
    Chunk { offset: u64, reason: &'static str },
}

impl From<BundleError> for Failure {
    fn from(error: BundleError) -> Failure {
        let code = match error {
            BundleError::Digest { .. } | BundleError::Chunk { .. } => Code::DigestMismatch,
            _ => Code::MalformedBundle,
        };
        Failure::new(code, error.to_string())
    }
}

/// What the first bytes of a bundle hold. Nothing of it is to be believed before `manifest::open`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    /// The exact bytes of `manifest.json`.
    pub manifest: &'a [u8],
    /// The exact bytes of `manifest.sig`.
    pub signatures: &'a [u8],
    /// Where the index begins in the file.
    index_offset: u64,
    /// What the tar header says of its size.
    index_size: u64,
}

/// Reads the head from the first bytes of a bundle.
///
/// `BundleError::Short` names a larger number of bytes to come back with, at most `HEAD_MAX`.
pub fn head(bytes: &[u8]) -> Result<Head<'_>, BundleError> {
    let [manifest, signatures, index, _] = MEMBERS;
    let (manifest, at) = small_member(bytes, 0, manifest, MANIFEST_CAP)?;
    let (signatures, at) = small_member(bytes, at, signatures, SIGNATURES_CAP)?;
    let index_size = tar::parse(slice(bytes, at, tar::BLOCK)?, index)?;
    let index_offset = at.saturating_add(tar::BLOCK) as u64;
    Ok(Head { manifest, signatures, index_offset, index_size })
}

/// A whole member at `at`, and where the next header is.
fn small_member<'a>(
    bytes: &'a [u8],
    at: usize,
    member: &'static str,
    cap: usize,
) -> Result<(&'a [u8], usize), BundleError> {
    let size = tar::parse(slice(bytes, at, tar::BLOCK)?, member)?;
    let length = usize::try_from(size).ok().filter(|length| *length <= cap);
    let Some(length) = length else {
        let rule = "the limit";
        return Err(BundleError::Size { member, found: size, expected: cap as u64, rule });
    };
    let padded = length.next_multiple_of(tar::BLOCK);
    let start = at.saturating_add(tar::BLOCK);
    let (content, padding) = slice(bytes, start, padded)?.split_at(length);
    zeros(padding, member)?;
    Ok((content, start.saturating_add(padded)))
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], BundleError> {
    let end = at.saturating_add(length);
    bytes.get(at..end).ok_or(BundleError::Short { need: end as u64 })
}

fn zeros(padding: &[u8], member: &'static str) -> Result<(), BundleError> {
    if padding.iter().any(|byte| *byte != 0) {
        return Err(BundleError::Padding { member });
    }
    Ok(())
}

impl Head<'_> {
    /// Places the members by the sizes that the manifest has; the index's own header must agree.
    pub fn layout(&self, manifest: &Body) -> Result<Layout, BundleError> {
        let (found, expected) = (self.index_size, manifest.image.index_size);
        if found != expected {
            return Err(BundleError::Size { member: MEMBERS[2], found, expected, rule: "signed" });
        }
        Ok(Layout::new(self.index_offset, manifest))
    }
}

/// Where everything lies in the file, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    index: Range<u64>,
    payload: Range<u64>,
    /// Index and payload of each patch.
    patches: Vec<[Range<u64>; 2]>,
}

impl Layout {
    /// For an index that begins at `index_offset`. The sizes are capped by the manifest's own rules; a sum
    /// that would not fit names the end of the world instead of wrapping.
    pub fn new(index_offset: u64, manifest: &Body) -> Layout {
        let index = index_offset..index_offset.saturating_add(manifest.image.index_size);
        let payload = behind(&index, manifest.image.payload_size);
        let mut last = payload.clone();
        let mut place = |patch: &Patch| {
            let index = behind(&last, patch.index_size);
            last = behind(&index, patch.payload_size);
            [index, last.clone()]
        };
        let patches = manifest.patches.iter().map(&mut place).collect();
        Layout { index, payload, patches }
    }

    /// Where the index's header is: what comes before depends on the signatures, what follows does not.
    pub fn index_header(&self) -> u64 {
        self.index.start.saturating_sub(tar::BLOCK as u64)
    }

    /// The bytes to fetch after the head: the index, its padding and the header of the payload.
    pub fn index_span(&self) -> Range<u64> {
        self.index.start..self.payload.start
    }

    /// The compressed frames; a chunk's `frame_offset` counts from its start.
    pub fn payload(&self) -> Range<u64> {
        self.payload.clone()
    }

    /// Where a chunk's frame lies in the file.
    pub fn frame(&self, chunk: &Chunk) -> Range<u64> {
        let start = self.payload.start.saturating_add(chunk.frame_offset);
        start..start.saturating_add(u64::from(chunk.frame_length))
    }

    /// What to fetch of the patch of this number (from 0) before its frames: its index, and the headers on both
    /// sides.
    pub fn patch_span(&self, number: usize) -> Option<Range<u64>> {
        let [index, payload] = self.patches.get(number)?;
        Some(index.start.saturating_sub(tar::BLOCK as u64)..payload.start)
    }

    /// Where a frame of that patch lies in the file.
    pub fn patch_frame(&self, number: usize, frame: &PatchFrame) -> Option<Range<u64>> {
        let [_, payload] = self.patches.get(number)?;
        let start = payload.start.saturating_add(frame.offset);
        Some(start..start.saturating_add(u64::from(frame.length)))
    }

    /// Takes the bytes of `patch_span` apart: checks headers and padding, and returns the patch's index. The
    /// `need` of `BundleError::Short` counts from the start of the span here.
    pub fn patch_index<'a>(&self, number: usize, span: &'a [u8]) -> Result<&'a [u8], BundleError> {
        let places = self.patches.get(number).zip(PATCH_MEMBERS.get(number));
        let Some(([index, payload], [index_member, payload_member])) = places else {
            return Err(BundleError::Patch { reason: "there is none of this number" });
        };
        signed_size(slice(span, 0, tar::BLOCK)?, index_member, index)?;
        let rest = span.get(tar::BLOCK..).unwrap_or_default();
        between(rest, (index_member, index), (payload_member, payload))
    }

    /// What a device fetches before the payload: its first request, and the index with the header behind it.
    pub fn head_bytes(&self) -> u64 {
        let first = FIRST_READ.min(self.file_size()).max(self.index.start);
        first.saturating_add(self.payload.start.saturating_sub(self.index.start))
    }

    /// The size of the whole file.
    pub fn file_size(&self) -> u64 {
        let last = self.patches.last().map_or(&self.payload, |[_, payload]| payload);
        tar::padded(last.end).saturating_add(tar::END as u64)
    }

    /// The zeros after the last byte of each member from `rootfs.zst` on: up to the next header, or to the end
    /// of the file. The name is that of the member.
    pub fn padding(&self) -> impl Iterator<Item = (&'static str, Range<u64>)> + '_ {
        let payload = std::iter::once((MEMBERS[3], &self.payload));
        let patches = self.patches.iter().zip(PATCH_MEMBERS);
        let all = payload.chain(patches.map(|([_, payload], [_, member])| (member, payload)));
        let last = self.patches.len();
        all.enumerate().map(move |(number, (member, content))| {
            let end = if number == last { self.file_size() } else { tar::padded(content.end) };
            (member, content.end..end)
        })
    }

    /// Takes the bytes of `index_span` apart: checks padding and payload header, and returns the index. The
    /// `need` of `BundleError::Short` counts from the start of the span here.
    pub fn index<'a>(&self, span: &'a [u8]) -> Result<&'a [u8], BundleError> {
        let [_, _, index, payload] = MEMBERS;
        between(span, (index, &self.index), (payload, &self.payload))
    }

    /// Checks what `index_span` has behind the index itself: its padding and the payload's header. The `need` of
    /// `BundleError::Short` counts from there.
    pub fn index_end(&self, bytes: &[u8]) -> Result<(), BundleError> {
        let [_, _, index, payload] = MEMBERS;
        after(bytes, (index, &self.index), (payload, &self.payload))
    }
}

/// Where a member of this size lies that follows `before`.
fn behind(before: &Range<u64>, size: u64) -> Range<u64> {
    let start = tar::padded(before.end).saturating_add(tar::BLOCK as u64);
    start..start.saturating_add(size)
}

/// Takes apart a content, its padding and the header of the next member; returns the content.
fn between<'a>(
    bytes: &'a [u8],
    own: (&'static str, &Range<u64>),
    next: (&'static str, &Range<u64>),
) -> Result<&'a [u8], BundleError> {
    let length = usize::try_from(own.1.end.saturating_sub(own.1.start)).unwrap_or(usize::MAX);
    let content = slice(bytes, 0, length)?;
    after(bytes.get(length..).unwrap_or_default(), own, next)?;
    Ok(content)
}

/// Checks what follows a content: its padding and the header of the next member.
fn after(
    bytes: &[u8],
    (member, place): (&'static str, &Range<u64>),
    (next, next_place): (&'static str, &Range<u64>),
) -> Result<(), BundleError> {
    let padding = tar::padded(place.end).saturating_sub(place.end) as usize;
    zeros(slice(bytes, 0, padding)?, member)?;
    signed_size(slice(bytes, padding, tar::BLOCK)?, next, next_place)
}

/// The header of `member` must give the size of `place`.
fn signed_size(header: &[u8], member: &'static str, place: &Range<u64>) -> Result<(), BundleError> {
    let (found, expected) = (tar::parse(header, member)?, place.end.saturating_sub(place.start));
    if found != expected {
        return Err(BundleError::Size { member, found, expected, rule: "signed" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    #[test]
    fn a_bundle_opens_and_unpacks_to_its_image() {
        let image: Vec<u8> =
            (0..600u32 * 1024).flat_map(|n| n.wrapping_mul(2654435761).to_le_bytes()).collect();
        let file = testing::parts(&image, "board", "1.0").join();
        let head = head(&file).unwrap();
        let manifest = manifest::open(head.manifest, head.signatures, &testing::trust(1), 1).unwrap();
        let layout = head.layout(&manifest).unwrap();
        assert_eq!(layout.file_size(), file.len() as u64);
        let at = |range: Range<u64>| &file[range.start as usize..range.end as usize];
        let index =
            Index::parse(layout.index(at(layout.index_span())).unwrap().to_vec(), &manifest.image).unwrap();
        let (mut decoder, mut unpacked) = (Decoder::new(), Vec::new());
        for chunk in index.iter() {
            let mut out = vec![0; chunk.length as usize];
            let history = &unpacked[chunk.group_offset as usize..];
            decoder.decode(&[(chunk, at(layout.frame(&chunk)))], history, &mut out).unwrap();
            unpacked.extend(out);
        }
        assert!(unpacked == image);
    }

    #[test]
    fn every_beginning_of_a_head_asks_for_more() {
        let parts = testing::parts(&[9; 4096], "board", "1.0");
        let file = parts.join();
        let mut length = 0;
        // Following `need` from nothing leads to the head in a few steps, and never beyond `HEAD_MAX`.
        while let Err(BundleError::Short { need }) = head(&file[..length]) {
            assert!(need as usize > length && need as usize <= HEAD_MAX);
            length = need as usize;
        }
        head(&file[..length]).unwrap();
        let near = (0..=length / 512).flat_map(|n| [n * 512, n * 512 + 1, (n * 512).saturating_sub(1)]);
        for cut in near.filter(|cut| *cut < length) {
            assert!(matches!(head(&file[..cut]), Err(BundleError::Short { .. })), "cut at {cut}");
        }
    }

    #[test]
    fn the_largest_head_fits_head_max() {
        let mut parts = testing::parts(&[9; 4096], "board", "1.0");
        parts.manifest.resize(MANIFEST_CAP, b' ');
        parts.signatures.resize(SIGNATURES_CAP, b' ');
        let file = parts.join();
        assert!(head(&file[..HEAD_MAX]).is_ok());
        assert!(matches!(head(&file[..HEAD_MAX - 1]), Err(BundleError::Short { .. })));
        parts.signatures.push(b' ');
        let expected = SIGNATURES_CAP as u64;
        let error =
            BundleError::Size { member: MEMBERS[1], found: expected + 1, expected, rule: "the limit" };
        assert_eq!(head(&parts.join()), Err(error));
    }

    #[test]
    fn one_flipped_bit_outside_the_contents_is_noticed() {
        let parts = testing::parts(&[9; 4096], "board", "1.0");
        let (file, body) = (parts.join(), Body::parse(&parts.manifest).unwrap());
        let read = |file: &[u8]| {
            let (layout, same) =
                head(file).and_then(|head| Ok((head.layout(&body)?, head.manifest == parts.manifest)))?;
            let span = layout.index_span();
            let index = layout.index(&file[span.start as usize..span.end as usize])?;
            Ok::<_, BundleError>(same && index == parts.index)
        };
        assert_eq!(read(&file), Ok(true));
        let payload = head(&file).unwrap().layout(&body).unwrap().payload().start as usize;
        let signatures = 1024 + parts.manifest.len().next_multiple_of(512);
        let signatures = signatures..signatures + parts.signatures.len();
        for at in (0..payload).filter(|at| !signatures.contains(at)) {
            let mut flipped = file.clone();
            flipped[at] ^= 1 << (at % 8);
            assert_ne!(read(&flipped), Ok(true), "byte {at}");
        }
    }

    #[test]
    fn headers_must_agree_with_signed_sizes() {
        let mut parts = testing::parts(&[9; 4096], "board", "1.0");
        let body = Body::parse(&parts.manifest).unwrap();
        parts.payload.push(0);
        let file = parts.join();
        let layout = head(&file).unwrap().layout(&body).unwrap();
        let span = layout.index_span();
        for length in 0..span.end - span.start {
            let cut = &file[span.start as usize..(span.start + length) as usize];
            assert!(matches!(layout.index(cut), Err(BundleError::Short { .. })), "{length}");
        }
        let error = layout.index(&file[span.start as usize..span.end as usize]).unwrap_err();
        assert!(matches!(error, BundleError::Size { member: "rootfs.zst", rule: "signed", .. }), "{error}");
        parts.index.push(0);
        let error = head(&parts.join()).unwrap().layout(&body).unwrap_err();
        assert!(matches!(error, BundleError::Size { member: "rootfs.index", .. }), "{error}");
    }

    #[test]
    fn members_in_another_order_are_no_bundle() {
        let parts = testing::parts(&[9; 4096], "board", "1.0");
        let file = parts.join();
        let second = 512 + parts.manifest.len().next_multiple_of(512);
        let error = head(&file[second..]).unwrap_err();
        assert!(matches!(error, BundleError::Header { member: "manifest.json", .. }), "{error}");
        assert!(matches!(head(&vec![0; HEAD_MAX]), Err(BundleError::Header { .. })));
    }

    #[test]
    fn patches_lie_where_the_signed_sizes_say() {
        let image: Vec<u8> =
            (0..600u32 * 1024).flat_map(|n| n.wrapping_mul(2654435761).to_le_bytes()).collect();
        let old = |at: usize| {
            let mut old = image.clone();
            old[at] ^= 1;
            old
        };
        let parts = testing::parts(&image, "board", "1.0");
        let parts = parts.with_base(&image, &old(5000), 1 << 20).with_base(&image, &old(1_000_000), 1 << 20);
        let (file, body) = (parts.join(), Body::parse(&parts.manifest).unwrap());
        let layout = head(&file).unwrap().layout(&body).unwrap();
        assert_eq!(layout.file_size(), file.len() as u64);
        for (_, place) in layout.padding() {
            assert!(file[place.start as usize..place.end as usize].iter().all(|byte| *byte == 0));
        }
        for (number, [index, payload]) in parts.patches.iter().enumerate() {
            let span = layout.patch_span(number).unwrap();
            let bytes = &file[span.start as usize..span.end as usize];
            assert_eq!(layout.patch_index(number, bytes).unwrap(), index);
            assert!(file[span.end as usize..].starts_with(payload));
            for at in 0..bytes.len() {
                let error = layout.patch_index(number, &bytes[..at]).unwrap_err();
                assert!(matches!(error, BundleError::Short { .. }), "{at}: {error}");
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 1;
                assert_ne!(layout.patch_index(number, &flipped), Ok(index.as_slice()), "byte {at}");
            }
            assert!(layout.patch_index(1 - number, bytes).is_err());
        }
        assert_eq!(layout.patch_span(2), None);
        assert!(layout.patch_index(2, &file).is_err());
    }
}
