//! Memory that O_DIRECT accepts: a slice that begins at a multiple of 4096, which suits 512-byte and 4Kn
//! devices alike. Cut from a slightly larger `Vec`, so that no `unsafe` is needed.

use std::ops::Range;

use crate::manifest::CHUNK_CAP;

/// What O_DIRECT may ask of addresses, offsets and lengths, bytes.
pub const ALIGN: usize = 4096;

/// Pieces in memory while the slot is written: one that is written, and one that is filled or waits.
pub const PIECES: usize = 2;

/// One transfer to or from a medium, bytes; at least the longest chunk.
pub const PIECE: usize = 256 * 1024;
const _: () = assert!(PIECE >= CHUNK_CAP as usize);

/// `offset..offset + length` in pieces of at most `PIECE`: where each begins, and how long it is.
pub fn pieces(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize)> {
    let end = offset.saturating_add(length);
    (offset..end).step_by(PIECE).map(move |at| (at, end.saturating_sub(at).min(PIECE as u64) as usize))
}

/// A zeroed buffer of fixed capacity.
#[derive(Debug, Default)]
pub struct Buffer {
    raw: Vec<u8>,
    start: usize,
    capacity: usize,
}

impl Buffer {
    pub fn new(capacity: usize) -> Buffer {
        let raw = vec![0; capacity.saturating_add(ALIGN)];
        let start = raw.as_ptr().align_offset(ALIGN).min(ALIGN);
        Buffer { raw, start, capacity }
    }

    /// The first `length` bytes; fewer if the buffer is smaller.
    pub fn first(&self, length: usize) -> &[u8] {
        self.raw.get(self.range(length)).unwrap_or_default()
    }

    pub fn first_mut(&mut self, length: usize) -> &mut [u8] {
        let range = self.range(length);
        self.raw.get_mut(range).unwrap_or_default()
    }

    fn range(&self, length: usize) -> Range<usize> {
        self.start..self.start.saturating_add(length.min(self.capacity))
    }
}

/// Whether O_DIRECT takes this transfer.
pub fn is_aligned(bytes: &[u8], offset: u64) -> bool {
    let whole = |number: u64| number.checked_rem(ALIGN as u64) == Some(0);
    bytes.as_ptr().align_offset(ALIGN) == 0 && whole(bytes.len() as u64) && whole(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_aligned_zeroed_and_bounded() {
        for capacity in [0, 1, 4096, 100_000] {
            let buffer = Buffer::new(capacity);
            assert_eq!(buffer.first(capacity).as_ptr().align_offset(ALIGN), 0);
            assert_eq!(buffer.first(usize::MAX), vec![0; capacity]);
        }
        let mut buffer = Buffer::new(8192);
        buffer.first_mut(4).fill(1);
        assert_eq!(buffer.first(5), [1, 1, 1, 1, 0]);
        assert!(is_aligned(buffer.first(8192), 4096));
        assert!(!is_aligned(buffer.first(8192), 512) && !is_aligned(buffer.first(512), 0));
    }
}
