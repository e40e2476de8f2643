//! Lists kept on disk while an update is staged: memory must not grow with the image. The files have no names, so nothing
//! is left of them whenever the power fails. A disk without room for one costs memory, never the update.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::posix_fallocate;
use nix::libc::{O_CLOEXEC, O_TMPFILE};

/// Where lists are kept: in memory without a folder.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    folder: Option<PathBuf>,
}

/// Why a list could not be written or read back.
#[derive(Debug, Clone, thiserror::Error)]
#[error("a working file in {} failed: {reason}; check that disk", folder.display())]
pub struct Broken {
    folder: PathBuf,
    reason: String,
}

impl Workspace {
    /// Keeps its lists in `folder`.
    pub fn on_disk(folder: &Path) -> Workspace {
        Workspace { folder: Some(folder.to_owned()) }
    }

    /// A list of `size` bytes, zeros at first.
    pub(in crate::stage) fn list(&self, size: u64) -> List {
        let file = self.folder.as_ref().and_then(|folder| {
            let full = |error: &io::Error| {
                let folder = folder.display();
                tracing::warn!("no room in {folder} for a list of {size} bytes, it stays in memory: {error}");
            };
            reserve(folder, size).inspect_err(full).ok()
        });
        let in_memory = || Storage::Memory(Mutex::new(vec![0; usize::try_from(size).unwrap_or(usize::MAX)]));
        let place = file.map_or_else(in_memory, Storage::Disk);
        List { place, size, folder: self.folder.clone().unwrap_or_default() }
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
    place: Storage,
    size: u64,
    folder: PathBuf,
}

#[derive(Debug)]
enum Storage {
    Disk(File),
    Memory(Mutex<Vec<u8>>),
}

impl List {
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `out` from `offset`.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<(), Broken> {
        let length = out.len();
        let read = match &self.place {
            Storage::Disk(file) => file.read_exact_at(out, offset),
            Storage::Memory(all) => within(all, offset, length, |own| out.copy_from_slice(own)),
        };
        read.map_err(|error| self.broken(&error))
    }

    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Broken> {
        let written = match &self.place {
            Storage::Disk(file) => file.write_all_at(bytes, offset),
            Storage::Memory(all) => within(all, offset, bytes.len(), |own| own.copy_from_slice(bytes)),
        };
        written.map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &io::Error) -> Broken {
        Broken { folder: self.folder.clone(), reason: error.to_string() }
    }

    #[cfg(test)]
    pub fn file(&self) -> Option<File> {
        match &self.place {
            Storage::Disk(file) => file.try_clone().ok(),
            Storage::Memory(_) => None,
        }
    }
}

fn within(all: &Mutex<Vec<u8>>, offset: u64, length: usize, work: impl FnOnce(&mut [u8])) -> io::Result<()> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    let own = all.get_mut(start..start.saturating_add(length));
    own.map(work).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_the_same_on_disk_and_in_memory_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for workspace in [Workspace::on_disk(folder.path()), Workspace::default()] {
            let list = workspace.list(10_000);
            assert_eq!(matches!(list.place, Storage::Disk(_)), workspace.folder.is_some());
            let mut found = [1; 4];
            list.read(&mut found, 9_996).unwrap();
            assert_eq!(found, [0; 4]);
            list.write(b"four", 5_000).unwrap();
            list.read(&mut found, 5_000).unwrap();
            assert_eq!(&found, b"four");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
            let error = list.read(&mut found, 9_998).unwrap_err();
            assert!(error.to_string().contains("check that disk"), "{error}");
        }
    }

    #[test]
    fn a_disk_without_room_costs_memory() {
        let folder = tempfile::tempdir().unwrap();
        for folder in [folder.path().join("none"), "/proc".into()] {
            let list = Workspace::on_disk(&folder).list(100);
            assert!(matches!(list.place, Storage::Memory(_)) && list.write(&[1; 100], 0).is_ok());
        }
        // More than any disk has; a file system may also say that no file is so long.
        assert!(reserve(folder.path(), 1 << 60).is_err());
    }
}
