//! The durable record: what the agent must still know after any cut of power.
//!
//! Two files of fixed size are overwritten by turns, so that a torn write costs only the older content and a
//! full disk costs nothing: no file ever grows. Each begins with a line that a person can read,
//! `fwupdate-record 1 seq=12 len=345 crc32=89abcdef`, followed by `len` bytes of JSON and spaces. The highest
//! valid `seq` counts. What the record says is not this module's business.

mod stored;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Serialize, de::DeserializeOwned};

use self::stored::{CAPACITY, CopyState, StoredCopy};
use crate::config::open_regular;
use crate::device::remedy;
use crate::durable;
use crate::failure::{Code, Failure};

const NAMES: [&str; 2] = ["record.0", "record.1"];

/// Writes are rounded up to the page, the unit in which flash and page cache work.
const PAGE: usize = 4096;

/// Why the record could not be read or saved.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("another fwupdated uses the state folder {0}: stop it, or give this one its own [state] dir")]
    Locked(PathBuf),
    #[error("both copies of the record in {0} are damaged: check the storage; the boot environment decides")]
    Damaged(PathBuf),
    #[error(
        "the record in {dir} has format {version}, which a newer fwupdated wrote: install that one again"
    )]
    Newer { dir: PathBuf, version: u64 },
    #[error("the record in {dir} is not understood: {source}")]
    Foreign { dir: PathBuf, source: serde_json::Error },
    #[error("the record needs {0} bytes, more than its files hold")]
    TooLarge(usize),
    #[error("the record cannot be written as JSON: {0}")]
    Unwritable(serde_json::Error),
    #[error("{0} does not return what was written to it: replace the storage")]
    NotWritten(PathBuf),
    #[error("cannot {action} {path}: {source}{}", remedy(source))]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::new(Code::StateUnavailable, error.to_string())
    }
}

/// A state folder that belongs to this process until dropped.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    lock: Option<Flock<File>>,
}

impl Store {
    /// Opens the folder, making it and its files where they are missing.
    ///
    /// Only a folder that another agent holds is an error. A disk that is full or read-only is left for `save`
    /// to report, for what is there can still be read.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let mut store = Store { dir: dir.to_owned(), lock: None };
        match store.prepare() {
            Ok(()) => {}
            Err(error @ StoreError::Locked(_)) => return Err(error),
            Err(error) => tracing::warn!("the record can be read only: {error}"),
        }
        Ok(store)
    }

    /// The newest valid record of a folder that another process may hold; nothing is made or changed.
    pub fn peek<T: DeserializeOwned>(dir: &Path) -> Result<Option<T>, StoreError> {
        Store { dir: dir.to_owned(), lock: None }.load()
    }

    /// The newest valid record; `None` when none was ever saved here.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        match self.newest()? {
            Some((_, copy)) => serde_json::from_slice(&copy.body)
                .map(Some)
                .map_err(|source| StoreError::Foreign { dir: self.dir.clone(), source }),
            None => Ok(None),
        }
    }

    /// Replaces the older copy and returns once the medium holds it. After an error the old record still stands,
    /// unless all of the new one reached the medium before the error.
    pub fn save<T: Serialize>(&mut self, record: &T) -> Result<(), StoreError> {
        let body = serde_json::to_vec_pretty(record).map_err(StoreError::Unwritable)?;
        self.prepare()?;
        let (index, sequence) = match self.newest() {
            Ok(Some((index, copy))) => (usize::from(index == 0), copy.sequence.wrapping_add(1)),
            Ok(None) | Err(StoreError::Damaged(_)) => (0, 1),
            Err(error) => return Err(error),
        };
        let bytes = StoredCopy { sequence, body }.render().map_err(StoreError::TooLarge)?;
        overwrite(&self.path(index), bytes)
    }

    /// Makes what is missing: the folder, the lock on it, both files at their full size.
    fn prepare(&mut self) -> Result<(), StoreError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        if self.lock.is_none() && self.dir.is_dir() {
            self.lock = Some(lock(&self.dir)?);
        }
        made.map_err(failed("create", &self.dir))?;
        let mut new = false;
        for index in 0..NAMES.len() {
            new |= preallocate(&self.path(index))?;
        }
        if new { durable::sync_folder(&self.path(0)).map_err(failed("write", &self.dir)) } else { Ok(()) }
    }

    /// Index and content of the copy that counts.
    fn newest(&self) -> Result<Option<(usize, StoredCopy)>, StoreError> {
        let mut found: Option<(usize, StoredCopy)> = None;
        let mut fault = None;
        for index in 0..NAMES.len() {
            match self.read(index) {
                Ok(CopyState::Blank) => {}
                Ok(CopyState::Damaged) => fault = fault.or(Some(StoreError::Damaged(self.dir.clone()))),
                Ok(CopyState::Newer(version)) => {
                    return Err(StoreError::Newer { dir: self.dir.clone(), version });
                }
                Ok(CopyState::Valid(copy)) => {
                    if found.as_ref().is_none_or(|(_, best)| copy.follows(best)) {
                        found = Some((index, copy));
                    }
                }
                Err(error) => {
                    tracing::warn!("a copy of the record cannot be read: {error}");
                    fault = Some(error);
                }
            }
        }
        match fault {
            Some(fault) if found.is_none() => Err(fault),
            _ => Ok(found),
        }
    }

    fn read(&self, index: usize) -> Result<CopyState, StoreError> {
        let path = self.path(index);
        let file = match open_regular(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(CopyState::Blank),
            other => other.map_err(failed("open", &path))?,
        };
        Ok(stored::parse(&durable::read(&file, 0, CAPACITY).map_err(failed("read", &path))?))
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.join(NAMES.get(index).copied().unwrap_or_default())
    }
}

/// The folder itself is what is locked: that works on a read-only disk too, and leaves no file behind.
fn lock(dir: &Path) -> Result<Flock<File>, StoreError> {
    let handle = File::open(dir).map_err(failed("open", dir))?;
    Flock::lock(handle, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EAGAIN => StoreError::Locked(dir.to_owned()),
        errno => StoreError::Io { action: "lock", path: dir.to_owned(), source: errno.into() },
    })
}

/// Whether the file had to be made or brought to its full size. Spaces are written, not a hole: later writes
/// need no room.
fn preallocate(path: &Path) -> Result<bool, StoreError> {
    let length = match fs::metadata(path) {
        Ok(meta) if meta.is_file() => meta.len(),
        Ok(_) => return Err(failed("write", path)(io::Error::other("it is no regular file; remove it"))),
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(failed("examine", path)(error)),
    };
    let missing = CAPACITY.saturating_sub(usize::try_from(length).unwrap_or(CAPACITY));
    if missing == 0 {
        return Ok(false);
    }
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(failed("create", path))?;
    file.write_all_at(&vec![b' '; missing], length).map_err(failed("write", path))?;
    file.sync_all().map_err(failed("write", path))?;
    Ok(true)
}

/// Overwrites the start of the file in one write, makes it durable and compares what the medium holds.
fn overwrite(path: &Path, mut bytes: Vec<u8>) -> Result<(), StoreError> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("open", path))?;
    // So far as the old content reached, spaces must follow, or `cat` would show its end behind the new one.
    // Sectors that cannot be read may come to life again when all are written.
    let used = durable::read(&file, 0, CAPACITY).map_or(CAPACITY, |old| {
        old.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last.saturating_add(1))
    });
    bytes.resize(bytes.len().max(used).next_multiple_of(PAGE), b' ');
    // After an error pages that could not be written must not look like a valid copy: the next save would overwrite
    // the one that is really there.
    durable::write(&file, 0, &bytes).map_err(failed("write", path))?;
    let held = durable::holds(&file, 0, &bytes).map_err(failed("read", path))?;
    held.then_some(()).ok_or_else(|| StoreError::NotWritten(path.to_owned()))
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path: path.clone(), source }
}

#[cfg(test)]
mod tests;
