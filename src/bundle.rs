//! The container: a strict ustar with four members, and the binary chunk index inside it. Bytes <-> values,
//! no I/O; the format is specified in docs/bundle-format.md.

use crate::manifest::Digest;

/// One chunk of the image, in image order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Offset in the image, bytes.
    pub offset: u64,
    /// Length in the image, bytes.
    pub length: u32,
    /// Offset of its zstd frame in the member `rootfs.zst`, bytes.
    pub frame_offset: u64,
    /// Length of that frame, bytes.
    pub frame_length: u32,
    pub sha256: Digest,
}
