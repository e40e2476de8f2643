//! The verdict on what the medium really holds: exactly the image's bytes are read back past the page cache
//! and hashed, reading and hashing at the same time.

use std::sync::mpsc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::buffer::Buffer;
use super::target::STEP;
use super::{Progress, StageError, Step, Target};
use crate::manifest::Digest;

/// Reads the first `size` bytes of the target back and compares their SHA-256. Blocks for as long as the
/// medium takes.
pub fn read_back(
    target: &Target,
    size: u64,
    sha256: Digest,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), StageError> {
    read_back_behind(&[], target, size, sha256, progress, cancel)
}

/// The same for a target whose first bytes are still in memory.
pub(super) fn read_back_behind(
    head: &[u8],
    target: &Target,
    size: u64,
    sha256: Digest,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), StageError> {
    if size > target.capacity() {
        return Err(StageError::TooLarge {
            path: target.path().to_owned(),
            image: size,
            capacity: target.capacity(),
        });
    }
    target.sync()?;
    target.forget(0, size)?;
    progress.send_modify(|p| *p = Progress { step: Step::ReadingBack, total: size, done: 0, ..*p });
    let found = digest(head, target, size, progress, cancel)?;
    if found != sha256 {
        return Err(StageError::ReadBack { path: target.path().to_owned(), found, expected: sha256 });
    }
    Ok(())
}

/// Hashes `head` and then the target from there to `size`.
fn digest(
    head: &[u8],
    target: &Target,
    size: u64,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<Digest, StageError> {
    use sha2::Digest as _;
    let (full, filled) = mpsc::sync_channel::<(Buffer, usize)>(2);
    let (empty, emptied) = mpsc::channel::<Buffer>();
    std::thread::scope(|scope| {
        let hasher = scope.spawn(move || {
            let mut hash = sha2::Sha256::new_with_prefix(head);
            for (buffer, length) in filled {
                hash.update(buffer.first(length));
                progress.send_modify(|p| p.done += length as u64);
                // The reader may be done and gone.
                empty.send(buffer).ok();
            }
            Digest(hash.finalize().into())
        });
        for at in (head.len() as u64..size).step_by(STEP) {
            if cancel.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            let mut buffer = emptied.try_recv().unwrap_or_else(|_| Buffer::new(STEP));
            let length = (size - at).min(STEP as u64) as usize;
            target.read(buffer.first_mut(length), at)?;
            if full.send((buffer, length)).is_err() {
                break;
            }
        }
        drop(full);
        hasher.join().map_err(|_| StageError::Thread("the hasher panicked".into()))
    })
}
