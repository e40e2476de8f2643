//! The verdict on what the medium really holds: exactly the image's bytes are read back past the page cache
//! and hashed, reading and hashing at the same time; where the target is written past the page cache too,
//! close behind the writing.

use std::sync::mpsc;

use sha2::Digest as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::manifest::Digest;
use crate::stage::buffer::{Buffer, PIECE, pieces};
use crate::stage::error::StageError;
use crate::stage::progress::{Progress, Step};
use crate::stage::slot::frontier::Frontier;
use crate::stage::slot::target::Target;
use crate::stage::slot::withheld::Withheld;

/// Reads the first `size` bytes of the target back and compares their SHA-256. Blocks for as long as the
/// medium takes.
pub fn read_back(
    target: &Target,
    size: u64,
    sha256: Digest,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), StageError> {
    ReadBack { head: &Withheld::none(), target, size, progress, cancel }.judge(sha256)
}

/// A target that is read back, whose first bytes may be withheld.
pub struct ReadBack<'a> {
    pub head: &'a Withheld,
    pub target: &'a Target,
    pub size: u64,
    pub progress: &'a watch::Sender<Progress>,
    pub cancel: &'a CancellationToken,
}

impl ReadBack<'_> {
    /// Reads all of it, and compares the digest.
    pub fn judge(&self, sha256: Digest) -> Result<(), StageError> {
        let (target, size) = (self.target, self.size);
        target.check_size(size)?;
        target.sync()?;
        target.forget(0, size)?;
        self.progress.send_modify(|p| *p = Progress { step: Step::ReadingBack, total: size, done: 0, ..*p });
        compare(target, self.along(&Frontier::default())?, sha256)
    }

    /// Hashes the withheld bytes and then the target from there on, as far as `frontier` has come. Progress is told
    /// once the step is `ReadingBack`.
    pub fn along(&self, frontier: &Frontier) -> Result<Digest, StageError> {
        let &ReadBack { head, target, size, progress, cancel } = self;
        // Two pieces are in memory: one that is read and one that is hashed.
        let (full, filled) = mpsc::sync_channel::<(Buffer, usize)>(0);
        let (empty, emptied) = mpsc::channel::<Buffer>();
        let start = head.len() as u64;
        frontier.wait(start)?;
        let mut hash = head.hash()?;
        std::thread::scope(|scope| {
            let hasher = scope.spawn(move || {
                let mut at = start;
                for (buffer, length) in filled {
                    hash.update(buffer.first(length));
                    at = at.saturating_add(length as u64);
                    progress.send_if_modified(|p| {
                        let tell = p.step == Step::ReadingBack;
                        p.done = if tell { at } else { p.done };
                        tell
                    });
                    // The reader may be done and gone.
                    empty.send(buffer).ok();
                }
                Digest(hash.finalize().into())
            });
            for (at, length) in pieces(start, size.saturating_sub(start)) {
                if cancel.is_cancelled() {
                    return Err(StageError::Cancelled);
                }
                frontier.wait(at.saturating_add(length as u64))?;
                let mut buffer = emptied.try_recv().unwrap_or_else(|_| Buffer::new(PIECE));
                target.read(buffer.first_mut(length), at)?;
                if full.send((buffer, length)).is_err() {
                    break;
                }
            }
            drop(full);
            hasher.join().map_err(|_| StageError::Thread("the hasher panicked".into()))
        })
    }
}

pub fn compare(target: &Target, found: Digest, expected: Digest) -> Result<(), StageError> {
    match found == expected {
        true => Ok(()),
        false => Err(StageError::ReadBack { path: target.path().to_owned(), found, expected }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_images_bytes_are_judged_and_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let slot = folder.path().join("slot");
        let bytes: Vec<u8> = (0..=255).cycle().take(2 * PIECE + 4096).collect();
        std::fs::write(&slot, &bytes).unwrap();
        let target = Target::acquire(&slot, &[]).unwrap();
        let (size, cancel) = (bytes.len() - 4096, CancellationToken::new());
        let sha256 = Digest::of(&bytes[..size]);
        let before = Progress { done: 7, total: 9, downloaded: 3, ..Progress::default() };
        let progress = watch::Sender::new(before);
        let judge = |size: usize, sha256| read_back(&target, size as u64, sha256, &progress, &cancel);
        judge(size, sha256).unwrap();
        let told = Progress {
            step: Step::ReadingBack,
            done: size as u64,
            total: size as u64,
            downloaded: 3,
            ..before
        };
        assert_eq!(*progress.borrow(), told);
        let error = judge(size + 1, sha256).unwrap_err();
        assert!(matches!(error, StageError::ReadBack { found, expected, .. }
                if found == Digest::of(&bytes[..size + 1]) && expected == sha256));
        assert!(matches!(judge(bytes.len() + 1, sha256), Err(StageError::TooLarge { .. })));
        progress.send_replace(before);
        cancel.cancel();
        assert!(matches!(judge(size, sha256), Err(StageError::Cancelled)));
        assert_eq!(*progress.borrow(), Progress { done: 0, ..told });
    }
}
