//! The slot that is written: a block device or a regular file, held exclusively from Preparing to Arming.
//! Past the page cache where the target allows it (O_DIRECT), with bounded write-back otherwise, so that an
//! error of the medium shows where it happens and not after the verdict.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};
use nix::libc::{O_CLOEXEC, O_DIRECT, O_EXCL, O_NONBLOCK};

use crate::device::Identity;
use crate::stage::buffer::{ALIGN, Buffer, PIECE, is_aligned, pieces};
use crate::stage::error::StageError;
use crate::stage::slot::ioctl;

/// Bytes at the slot's start that are zeroed first and written last, and at its end that are cleared.
pub const GUARD: u64 = 1 << 20;

/// Dirty page cache that may pile up before it is flushed, bytes.
const WRITE_BACK: u64 = 16 << 20;

/// An exclusively held slot. Clones share the hold; it ends with the last one. Its methods block.
#[derive(Debug, Clone)]
pub struct Target {
    device: Arc<OpenDevice>,
}

#[derive(Debug)]
struct OpenDevice {
    path: PathBuf,
    /// Carries the exclusive hold.
    held: HeldSlot,
    /// The same device past the page cache, if it can be opened so.
    direct: Option<File>,
    is_block: bool,
    identity: Identity,
    capacity: u64,
    /// Bytes written through the page cache since it was flushed.
    dirty: AtomicU64,
    /// Bytes that it was made to hold, zeros too.
    written: AtomicU64,
}

#[derive(Debug)]
enum HeldSlot {
    /// O_EXCL on a block device.
    Opened(File),
    Locked(Flock<File>),
}

impl HeldSlot {
    fn file(&self) -> &File {
        match self {
            HeldSlot::Opened(file) => file,
            HeldSlot::Locked(lock) => lock,
        }
    }
}

impl Target {
    /// Takes hold of the slot at `path`. `forbidden` names every device that is in use below a mount point:
    /// O_EXCL alone does not see a file that backs a loop device.
    pub fn acquire(path: &Path, forbidden: &[Identity]) -> Result<Target, StageError> {
        let unusable = |error: io::Error| refuse(path, &error);
        let metadata = std::fs::metadata(path).map_err(unusable)?;
        let named = identity(&metadata).map_err(unusable)?;
        if forbidden.contains(&named) {
            return Err(busy(path, "the running system stands on it"));
        }
        let is_block = matches!(named, Identity::Block { .. });
        let exclusive = if is_block { O_EXCL } else { 0 };
        let file = open(path, exclusive).map_err(unusable)?;
        let opened = file.metadata().and_then(|metadata| identity(&metadata)).map_err(unusable)?;
        if opened != named {
            return Err(busy(path, "it was replaced while it was opened"));
        }
        let capacity = (&file).seek(SeekFrom::End(0)).map_err(unusable)?;
        check_sectors(&file, is_block).map_err(unusable)?;
        let held = if is_block { HeldSlot::Opened(file) } else { lock(path, file)? };
        let direct = open_direct(path, opened, capacity);
        let path = path.to_owned();
        let (dirty, written) = Default::default();
        let device = OpenDevice { path, held, direct, is_block, identity: opened, capacity, dirty, written };
        Ok(Target { device: Arc::new(device) })
    }

    pub fn path(&self) -> &Path {
        &self.device.path
    }

    /// Size of the slot, bytes.
    pub fn capacity(&self) -> u64 {
        self.device.capacity
    }

    /// Whether an image of so many bytes fits.
    pub(in crate::stage) fn check_size(&self, image: u64) -> Result<(), StageError> {
        match (self.capacity(), self.path().to_owned()) {
            (capacity, path) if image > capacity => Err(StageError::TooLarge { path, image, capacity }),
            _ => Ok(()),
        }
    }

    pub fn identity(&self) -> Identity {
        self.device.identity
    }

    /// Durably zeroes the slot's first MiB: from now on no bootloader can load it.
    pub fn invalidate(&self) -> Result<(), StageError> {
        let length = GUARD.min(self.capacity());
        self.write_zeros(0, length)?;
        self.sync()?;
        self.forget(0, length)?;
        match self.first_non_zero(0, length)? {
            None => Ok(()),
            Some(offset) => Err(self.failed(offset, io::Error::other("it still holds what was zeroed"))),
        }
    }

    /// Bytes written since it was acquired, zeros included.
    pub(in crate::stage) fn written(&self) -> u64 {
        self.device.written.load(Ordering::Relaxed)
    }

    /// Whether reads and writes go past the page cache.
    pub(in crate::stage) fn is_direct(&self) -> bool {
        self.device.direct.is_some()
    }

    /// Fills `buffer` from `offset`.
    pub(in crate::stage) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), StageError> {
        if let Some(direct) = self.direct(buffer, offset) {
            match direct.read_exact_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                done => return done.map_err(|error| self.failed(offset, error)),
            }
        }
        self.plain().read_exact_at(buffer, offset).map_err(|error| self.failed(offset, error))
    }

    /// Writes all of `bytes` at `offset`; durable after `sync`.
    pub(in crate::stage) fn write(&self, bytes: &[u8], offset: u64) -> Result<(), StageError> {
        self.check_range(offset, bytes.len() as u64)?;
        self.device.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if let Some(direct) = self.direct(bytes, offset) {
            match direct.write_all_at(bytes, offset) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                done => return done.map_err(|error| self.failed(offset, error)),
            }
        }
        self.plain().write_all_at(bytes, offset).map_err(|error| self.failed(offset, error))?;
        let dirty = self.device.dirty.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if dirty >= WRITE_BACK { self.sync() } else { Ok(()) }
    }

    /// Makes `length` bytes at `offset` read as zeros: by the device's own means if it has any.
    pub(in crate::stage) fn zero(&self, offset: u64, length: u64) -> Result<(), StageError> {
        self.check_range(offset, length)?;
        if self.device.is_block && ioctl::zero_out(self.plain(), offset, length).is_ok() {
            self.device.written.fetch_add(length, Ordering::Relaxed);
            return Ok(());
        }
        self.write_zeros(offset, length)
    }

    /// Everything written so far is on the medium, or this fails.
    pub(in crate::stage) fn sync(&self) -> Result<(), StageError> {
        self.device.dirty.store(0, Ordering::Relaxed);
        self.plain().sync_all().map_err(|error| self.failed(0, error))
    }

    /// Drops the page cache of a range that was synced, so that the next read is one of the medium.
    pub(in crate::stage) fn forget(&self, offset: u64, length: u64) -> Result<(), StageError> {
        let (start, length) = (i64::try_from(offset), i64::try_from(length));
        let (Ok(start), Ok(length)) = (start, length) else {
            return Err(self.failed(offset, io::ErrorKind::InvalidInput.into()));
        };
        posix_fadvise(self.plain(), start, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|error| self.failed(offset, error.into()))
    }

    /// Zeroes `start..end` unless it reads as zeros already. Returns the bytes written. What can't be read is
    /// written, too: that may be what a bad sector needs.
    pub(in crate::stage) fn clear(&self, start: u64, end: u64) -> Result<u64, StageError> {
        let length = end.saturating_sub(start);
        if matches!(self.first_non_zero(start, length), Ok(None)) {
            return Ok(0);
        }
        self.write_zeros(start, length)?;
        Ok(length)
    }

    fn write_zeros(&self, offset: u64, length: u64) -> Result<(), StageError> {
        let zeros = Buffer::new(length.min(PIECE as u64) as usize);
        for (at, step) in pieces(offset, length) {
            self.write(zeros.first(step), at)?;
        }
        Ok(())
    }

    /// Whether the first MiB is zero, as `invalidate` leaves it.
    pub(in crate::stage) fn is_invalid(&self) -> Result<bool, StageError> {
        Ok(self.first_non_zero(0, GUARD.min(self.capacity()))?.is_none())
    }

    fn first_non_zero(&self, offset: u64, length: u64) -> Result<Option<u64>, StageError> {
        let mut buffer = Buffer::new(PIECE);
        for (at, step) in pieces(offset, length) {
            let bytes = buffer.first_mut(step);
            self.read(bytes, at)?;
            if let Some(place) = bytes.iter().position(|byte| *byte != 0) {
                return Ok(Some(at.saturating_add(place as u64)));
            }
        }
        Ok(None)
    }

    fn plain(&self) -> &File {
        self.device.held.file()
    }

    /// The O_DIRECT file, if this transfer is aligned as it needs.
    fn direct(&self, bytes: &[u8], offset: u64) -> Option<&File> {
        self.device.direct.as_ref().filter(|_| is_aligned(bytes, offset))
    }

    /// A regular file would grow if it were written past its end.
    fn check_range(&self, offset: u64, length: u64) -> Result<(), StageError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.capacity() => Ok(()),
            _ => Err(self.failed(offset, io::Error::other("the write would go past the slot's end"))),
        }
    }

    pub(in crate::stage) fn failed(&self, offset: u64, source: io::Error) -> StageError {
        StageError::Slot { path: self.device.path.clone(), offset, source }
    }
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    // O_NONBLOCK: a name that turned into a FIFO must not hang the daemon.
    OpenOptions::new().read(true).write(true).custom_flags(flags | O_CLOEXEC | O_NONBLOCK).open(path)
}

/// Opens the same device with O_DIRECT and tries it; `None` if it does not work.
fn open_direct(path: &Path, expected: Identity, capacity: u64) -> Option<File> {
    let file = open(path, O_DIRECT).ok()?;
    if identity(&file.metadata().ok()?).ok()? != expected || capacity < ALIGN as u64 {
        return None;
    }
    let mut buffer = Buffer::new(ALIGN);
    file.read_exact_at(buffer.first_mut(ALIGN), 0).ok()?;
    Some(file)
}

fn lock(path: &Path, file: File) -> Result<HeldSlot, StageError> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(HeldSlot::Locked(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Err(busy(path, "another program has locked it")),
        Err((_, error)) => Err(refuse(path, &error.into())),
    }
}

fn check_sectors(file: &File, is_block: bool) -> io::Result<()> {
    if !is_block {
        return Ok(());
    }
    match ioctl::sector_size(file)? {
        512 | 4096 => Ok(()),
        other => {
            Err(io::Error::other(format!("its sectors have {other} bytes, only 512 and 4096 are supported")))
        }
    }
}

fn identity(metadata: &std::fs::Metadata) -> io::Result<Identity> {
    let unfit = || io::Error::other("it is neither a block device nor a regular file");
    Identity::from_metadata(metadata).ok_or_else(unfit)
}

fn busy(path: &Path, reason: &str) -> StageError {
    StageError::Busy { path: path.to_owned(), reason: reason.to_owned() }
}

fn refuse(path: &Path, error: &io::Error) -> StageError {
    if error.raw_os_error() == Some(Errno::EBUSY as i32) {
        return busy(path, "it is mounted, or another program holds it");
    }
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "it does not exist; check [slots] in the settings".to_owned(),
        _ => format!("{error}{}", crate::device::remedy(error)),
    };
    StageError::Unusable { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests;
