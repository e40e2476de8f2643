//! Lists with an entry a chunk, kept on disk while an update is staged: memory must not grow with the image. The
//! files have no names, so nothing is left of them whenever the power fails. A disk without room for one costs memory,
//! never the update.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::posix_fallocate;
use nix::libc::{O_CLOEXEC, O_TMPFILE};

use crate::bundle::Keeper;
use crate::stage::error::StageError;

/// Where lists are kept. Clones share what went wrong with any of them.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    /// In memory without one.
    folder: Option<PathBuf>,
    failed: Arc<Mutex<Option<String>>>,
}

impl Workspace {
    /// Keeps its lists in `folder`.
    pub fn on_disk(folder: &Path) -> Workspace {
        Workspace { folder: Some(folder.to_owned()), ..Workspace::default() }
    }

    /// An error if a list could not be written or read back: then some lists ended early, and what was concluded
    /// from them is worthless.
    pub(in crate::stage) fn check(&self) -> Result<(), StageError> {
        match self.failed().clone() {
            None => Ok(()),
            Some(reason) => {
                Err(StageError::Workspace { path: self.folder.clone().unwrap_or_default(), reason })
            }
        }
    }

    fn failed(&self) -> MutexGuard<'_, Option<String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A list of `size` bytes, zeros at first.
    pub(in crate::stage) fn list(&self, size: u64) -> List {
        let reserved = self.folder.as_ref().map(|folder| (reserve(folder, size), folder));
        let file = match reserved {
            Some((Ok(file), _)) => Some(file),
            Some((Err(error), folder)) => {
                tracing::warn!(
                    "no room in {} for a list of {size} bytes, it stays in memory: {error}",
                    folder.display()
                );
                None
            }
            None => None,
        };
        let place = match file {
            Some(file) => Place::Disk(file),
            None => Place::Memory(Mutex::new(vec![0; usize::try_from(size).unwrap_or(usize::MAX)])),
        };
        List { place, size, workspace: self.clone() }
    }
}

/// A nameless file that has all its room already.
fn reserve(folder: &Path, size: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).mode(0o600).custom_flags(O_TMPFILE | O_CLOEXEC).open(folder)?;
    let length = i64::try_from(size).map_err(io::Error::other)?;
    if length > 0 {
        posix_fallocate(&file, 0, length)?;
    }
    Ok(file)
}

/// Bytes that many threads read and write by offset.
#[derive(Debug)]
pub(in crate::stage) struct List {
    place: Place,
    size: u64,
    workspace: Workspace,
}

#[derive(Debug)]
enum Place {
    Disk(File),
    Memory(Mutex<Vec<u8>>),
}

impl List {
    /// `false` after an error, which the workspace then has.
    pub(in crate::stage) fn write(&self, bytes: &[u8], offset: u64) -> bool {
        let written = match &self.place {
            Place::Disk(file) => file.write_all_at(bytes, offset),
            Place::Memory(all) => {
                within(&mut all.lock().unwrap_or_else(PoisonError::into_inner), offset, bytes.len())
                    .map(|own| own.copy_from_slice(bytes))
            }
        };
        self.noted(written)
    }

    /// Fills `out` from `offset`.
    pub(in crate::stage) fn get(&self, out: &mut [u8], offset: u64) -> Result<(), StageError> {
        if self.read(out, offset) { Ok(()) } else { self.workspace.check() }
    }

    pub(in crate::stage) fn put(&self, bytes: &[u8], offset: u64) -> Result<(), StageError> {
        if self.write(bytes, offset) { Ok(()) } else { self.workspace.check() }
    }

    fn noted(&self, done: io::Result<()>) -> bool {
        done.inspect_err(|error| {
            self.workspace.failed().get_or_insert_with(|| error.to_string());
        })
        .is_ok()
    }
}

fn within(all: &mut [u8], offset: u64, length: usize) -> io::Result<&mut [u8]> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    all.get_mut(start..start.saturating_add(length)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

impl Keeper for List {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, out: &mut [u8], offset: u64) -> bool {
        let read = match &self.place {
            Place::Disk(file) => file.read_exact_at(out, offset),
            Place::Memory(all) => {
                within(&mut all.lock().unwrap_or_else(PoisonError::into_inner), offset, out.len())
                    .map(|own| out.copy_from_slice(own))
            }
        };
        self.noted(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_the_same_on_disk_and_in_memory_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for workspace in [Workspace::on_disk(folder.path()), Workspace::default()] {
            let list = workspace.list(10_000);
            assert_eq!(matches!(list.place, Place::Disk(_)), workspace.folder.is_some());
            let mut found = [1; 4];
            assert!(list.read(&mut found, 9_996) && found == [0; 4]);
            assert!(list.write(b"four", 5_000) && list.read(&mut found, 5_000) && &found == b"four");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
            workspace.check().unwrap();
            assert!(!list.read(&mut found, 9_998));
            let error = workspace.clone().check().unwrap_err();
            assert!(matches!(error, StageError::Workspace { .. }), "{error}");
        }
    }

    #[test]
    fn a_disk_without_room_costs_memory() {
        let folder = tempfile::tempdir().unwrap();
        for folder in [folder.path().join("none"), "/proc".into()] {
            let list = Workspace::on_disk(&folder).list(100);
            assert!(matches!(list.place, Place::Memory(_)) && list.write(&[1; 100], 0));
        }
        // More than any disk has; a file system may also say that no file is so long.
        assert!(reserve(folder.path(), 1 << 60).is_err());
    }
}
