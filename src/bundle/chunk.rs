//! One chunk of an image: where it lies, where its compressed form lies, and the digest that it is known by.

use crate::manifest::{BLOCK, Digest};

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

impl Chunk {
    /// Where the chunk behind it begins.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }

    /// The block at which it begins; `None` if that has no 32-bit number.
    pub fn block(&self) -> Option<u32> {
        u32::try_from(self.offset.checked_div(u64::from(BLOCK))?).ok()
    }
}

/// Where a block begins, bytes.
pub fn offset_of(block: u32) -> u64 {
    u64::from(block).saturating_mul(u64::from(BLOCK))
}

/// The first 16 bytes of a chunk's SHA-256: enough to find and to check a chunk by, since the image as a whole
/// is read back against all 32 bytes of its own before a slot can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkDigest(pub [u8; 16]);

impl ChunkDigest {
    pub fn of(content: &[u8]) -> ChunkDigest {
        ChunkDigest::from(Digest::of(content))
    }
}

impl From<Digest> for ChunkDigest {
    fn from(whole: Digest) -> ChunkDigest {
        ChunkDigest(whole.first())
    }
}
