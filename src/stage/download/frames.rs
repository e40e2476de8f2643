//! Ranges -> the parts that were asked for, whatever pieces they come in: frames of chunks, frames of a patch, the index.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

use crate::bundle::BundleError;
use crate::stage::download::range::RangeReader;
use crate::stage::download::remote::Remote;
use crate::stage::error::StageError;

/// One request, cut into parts as its bytes arrive. Gaps between parts are passed over.
pub struct Frames<'a> {
    remote: &'a Remote,
    range: RangeReader<'a>,
    at: u64,
    bytes: Gathered,
}

impl<'a> Frames<'a> {
    pub fn new(remote: &'a Remote, span: Range<u64>) -> Frames<'a> {
        let range = remote.range(span.start, span.end);
        Frames { remote, range, at: span.start, bytes: Gathered::default() }
    }

    /// Whether nothing has to be waited for before the bytes up to `end` are here.
    pub fn has(&self, end: u64) -> bool {
        self.at.saturating_add(self.bytes.len() as u64) >= end
    }

    /// The bytes of `part`, which lies behind all parts before; `told` after each piece that came.
    pub async fn take(&mut self, part: Range<u64>, told: impl Fn(u64)) -> Result<Bytes, StageError> {
        self.bytes.expect(part.end.saturating_sub(self.at) as usize);
        while !self.has(part.end) {
            let next = self.range.next().await?;
            let from = || self.remote.name().to_owned();
            let short = || StageError::Bundle { from: from(), source: BundleError::Short { need: part.end } };
            let next = next.ok_or_else(short)?;
            told(self.remote.meter().spent());
            self.bytes.add(next);
        }
        self.bytes.skip(part.start.saturating_sub(self.at) as usize);
        self.at = part.end;
        Ok(self.bytes.take(part.end.saturating_sub(part.start) as usize))
    }
}

/// Bytes that come in pieces and go in others. What goes as it came is not copied, and what must be put together is
/// copied once, however small the pieces.
#[derive(Debug, Default)]
pub struct Gathered {
    bytes: BytesMut,
    expected: usize,
}

impl Gathered {
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// So many bytes will be taken or skipped together.
    pub fn expect(&mut self, length: usize) {
        self.expected = length;
    }

    pub fn add(&mut self, piece: Bytes) {
        if self.bytes.is_empty() && piece.len() >= self.expected {
            self.bytes = BytesMut::from(piece);
            return;
        }
        self.bytes.reserve(self.expected.saturating_sub(self.bytes.len()).max(piece.len()));
        self.bytes.extend_from_slice(&piece);
    }

    pub fn skip(&mut self, length: usize) {
        self.bytes.advance(length.min(self.bytes.len()));
    }

    pub fn take(&mut self, length: usize) -> Bytes {
        self.bytes.split_to(length.min(self.bytes.len())).freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_come_one_by_one_are_copied_once() {
        const FRAME: usize = 132 * 1024;
        let mut gathered = Gathered::default();
        let mut buffers = 0;
        for frame in 0..4 {
            gathered.expect(FRAME + 1);
            let mut at = std::ptr::null();
            while gathered.len() < FRAME + 1 {
                gathered.add(Bytes::from(vec![frame]));
                // Bytes move only when their buffer does.
                buffers += usize::from(
                    std::mem::replace(&mut at, gathered.bytes.as_ptr()) != gathered.bytes.as_ptr(),
                );
            }
            gathered.skip(1);
            assert_eq!(gathered.take(FRAME), vec![frame; FRAME]);
            assert_eq!(gathered.len(), 0);
        }
        assert!(buffers <= 4, "{buffers} buffers for 4 frames");
    }

    #[test]
    fn pieces_that_are_long_enough_are_not_copied() {
        let mut gathered = Gathered::default();
        let piece = Bytes::from(vec![7; 3000]);
        let at = piece.as_ptr();
        gathered.expect(1000);
        gathered.add(piece);
        let first = gathered.take(1000);
        assert_eq!((first.as_ptr(), gathered.len()), (at, 2000));
        gathered.expect(2500);
        gathered.add(Bytes::from(vec![8; 1000]));
        assert_eq!(gathered.take(2500), [vec![7; 2000], vec![8; 500]].concat());
        assert_eq!(gathered.take(600), vec![8; 500]);
    }
}
