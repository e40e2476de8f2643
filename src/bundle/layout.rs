//! Where everything lies in the file of a bundle, as it follows from the signed sizes.

use std::ops::Range;

use super::chunk::Chunk;
use super::error::BundleError;
use super::frames::PatchFrame;
use super::members::{MEMBERS, PATCH_MEMBERS, after, between, signed_size, slice};
use super::tar;
use crate::manifest::{Body, Patch};

/// Bytes of a device's first request: enough for a usual manifest, its signatures and the headers.
pub const FIRST_READ: u64 = 8 * 1024;

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
