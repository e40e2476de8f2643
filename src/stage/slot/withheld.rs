//! Where verified chunks go: to the slot, all but its first MiB. That is kept elsewhere until the rest was read
//! back, so that no bootloader can load a half-written slot.

use sha2::{Digest as _, Sha256};

use crate::stage::buffer::{Buffer, PIECE, pieces};
use crate::stage::error::StageError;
use crate::stage::slot::frontier::Frontier;
use crate::stage::slot::target::Target;
use crate::stage::workspace::{List, Workspace};

/// The slot's first bytes, zero at first as they are in the slot itself.
#[derive(Debug)]
pub struct Withheld {
    bytes: List,
}

impl Withheld {
    pub fn new(workspace: &Workspace, length: usize) -> Withheld {
        Withheld { bytes: workspace.list(length as u64) }
    }

    /// Of a slot that has all its bytes.
    pub fn none() -> Withheld {
        Withheld::new(&Workspace::default(), 0)
    }

    pub fn len(&self) -> usize {
        self.bytes.size() as usize
    }

    /// Begins a hash with them.
    pub fn hash(&self) -> Result<Sha256, StageError> {
        let mut hash = Sha256::new();
        self.each(|part, _| {
            hash.update(part);
            Ok(())
        })?;
        Ok(hash)
    }

    /// Shows them piece by piece, each with its offset.
    fn each(&self, mut show: impl FnMut(&[u8], u64) -> Result<(), StageError>) -> Result<(), StageError> {
        let mut buffer = Buffer::new(self.len().min(PIECE));
        for (at, length) in pieces(0, self.bytes.size()) {
            let part = buffer.first_mut(length);
            self.bytes.read(part, at)?;
            show(part, at)?;
        }
        Ok(())
    }

    /// How many bytes of a transfer of `length` bytes at `offset` are withheld.
    fn share(&self, offset: u64, length: usize) -> usize {
        self.bytes.size().saturating_sub(offset).min(length as u64) as usize
    }
}

/// The slot with its first bytes withheld, and who follows the writing.
#[derive(Debug)]
pub struct Sink {
    pub target: Target,
    pub withheld: Withheld,
    pub frontier: Frontier,
}

impl Sink {
    pub fn read(&self, content: &mut [u8], offset: u64) -> Result<(), StageError> {
        let share = self.withheld.share(offset, content.len());
        let (held, rest) = content.split_at_mut(share);
        if share > 0 {
            self.withheld.bytes.read(held, offset)?;
        }
        if rest.is_empty() { Ok(()) } else { self.target.read(rest, offset.saturating_add(share as u64)) }
    }

    pub fn write(&self, content: &[u8], offset: u64) -> Result<(), StageError> {
        let share = self.withheld.share(offset, content.len());
        let (held, rest) = content.split_at(share);
        if share > 0 {
            self.withheld.bytes.write(held, offset)?;
        }
        if rest.is_empty() { Ok(()) } else { self.target.write(rest, offset.saturating_add(share as u64)) }
    }

    pub fn zero(&self, offset: u64, length: usize) -> Result<(), StageError> {
        let share = self.withheld.share(offset, length);
        for at in (0..share).step_by(ZEROS.len()) {
            let part = ZEROS.get(..share.saturating_sub(at).min(ZEROS.len())).unwrap_or_default();
            self.withheld.bytes.write(part, offset.saturating_add(at as u64))?;
        }
        match length.saturating_sub(share) {
            0 => Ok(()),
            rest => self.target.zero(offset.saturating_add(share as u64), rest as u64),
        }
    }

    /// Writes the withheld bytes durably, and tells whether the medium gives them back.
    pub fn release(&self) -> Result<bool, StageError> {
        self.withheld.each(|part, offset| self.target.write(part, offset))?;
        self.target.sync()?;
        self.target.forget(0, self.withheld.len() as u64)?;
        let (mut again, mut same) = (Buffer::new(PIECE), true);
        self.withheld.each(|part, offset| {
            let found = again.first_mut(part.len());
            self.target.read(found, offset)?;
            same &= found == part;
            Ok(())
        })?;
        Ok(same)
    }
}

static ZEROS: [u8; 4096] = [0; 4096];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_stay_in_memory_until_they_are_released() {
        let folder = tempfile::tempdir().unwrap();
        let slot = folder.path().join("slot");
        std::fs::write(&slot, vec![0; 64 * 1024]).unwrap();
        let (target, withheld) =
            (Target::acquire(&slot, &[]).unwrap(), Withheld::new(&Workspace::default(), 16 * 1024));
        let sink = Sink { target, withheld, frontier: Frontier::default() };
        let mut content = Buffer::new(24 * 1024);
        content.first_mut(24 * 1024).iter_mut().zip((1..=255).cycle()).for_each(|(to, n)| *to = n);
        // Within, across, and beyond the border; each reads as it was written, whatever lies where.
        for (offset, length) in [(0, 8192), (8192, 20480), (16384, 12288), (40960, 4096)] {
            sink.write(content.first(length), offset).unwrap();
            let mut found = Buffer::new(length);
            sink.read(found.first_mut(length), offset).unwrap();
            assert_eq!(found.first(length), content.first(length), "{offset}");
            assert!(std::fs::read(&slot).unwrap()[..16384].iter().all(|byte| *byte == 0));
        }
        sink.zero(12288, 8192).unwrap();
        let mut found = vec![1; 12288];
        sink.read(&mut found, 8192).unwrap();
        assert!(found[..4096] == content.first(4096)[..] && found[4096..].iter().all(|byte| *byte == 0));
        let mut first = vec![1; 16384];
        sink.read(&mut first, 0).unwrap();
        assert_eq!(sink.withheld.hash().unwrap().finalize(), Sha256::digest(&first));
        assert!(sink.release().unwrap());
        let mut whole = vec![1; 64 * 1024];
        sink.read(&mut whole, 0).unwrap();
        assert_eq!(std::fs::read(&slot).unwrap(), whole);
    }
}
