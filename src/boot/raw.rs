//! The file or block device of a boot environment: opened, measured, read and written, with errors that name it.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use super::bootloader::BootError;
use crate::durable;

/// Longer than the kernel lets a lease be held against a writer (fs.lease-break-time is 45 s).
const LEASE: Duration = Duration::from_secs(60);
const LEASE_STEP: Duration = Duration::from_millis(20);

/// Opens an environment's file or block device; anything else (flash through MTD or UBI) is refused.
pub fn open(path: &Path, writable: bool) -> Result<File, BootError> {
    let mut options = OpenOptions::new();
    options.read(true).write(writable).custom_flags(OFlag::O_SYNC.bits() | OFlag::O_NONBLOCK.bits());
    let file = options.open(path).map_err(failed("open", path))?;
    let kind = file.metadata().map_err(failed("examine", path))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    let why = "only a regular file or a block device can hold it, not raw flash (MTD, UBI)".to_owned();
    Err(BootError::Unsupported { path: path.to_owned(), why })
}

/// Opens for writing what somebody else (a file server, a backup) may hold a lease on: waits until the kernel ends it.
pub fn patiently<T>(open: impl Fn() -> Result<T, BootError>) -> Result<T, BootError> {
    let started = Instant::now();
    loop {
        match open() {
            Err(error) if is_leased(&error) && started.elapsed() < LEASE => sleep(LEASE_STEP),
            other => return other,
        }
    }
}

/// Somebody holds a lease: whoever waits can write.
pub fn is_leased(error: &BootError) -> bool {
    matches!(error, BootError::Io { source, .. } if source.kind() == io::ErrorKind::WouldBlock)
}

/// Length in bytes of a regular file or a block device.
pub fn length(file: &File, path: &Path) -> Result<u64, BootError> {
    let mut handle = file;
    handle.seek(SeekFrom::End(0)).map_err(failed("measure", path))
}

/// Up to `size` bytes at `offset`: fewer where the file ends.
pub fn read(file: &File, path: &Path, offset: u64, size: usize) -> Result<Vec<u8>, BootError> {
    durable::read(file, offset, size).map_err(failed("read", path))
}

/// Writes durably, and compares what the medium holds then.
pub fn write(file: &File, path: &Path, offset: u64, bytes: &[u8]) -> Result<(), BootError> {
    durable::write(file, offset, bytes).map_err(failed("write", path))?;
    let held = durable::holds(file, offset, bytes).map_err(failed("read", path))?;
    held.then_some(()).ok_or_else(|| BootError::NotWritten(path.to_owned()))
}

pub fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> BootError {
    let path = path.to_owned();
    move |source| BootError::Io { action, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn character_devices_hold_no_environment() {
        assert!(matches!(open(Path::new("/dev/null"), false), Err(BootError::Unsupported { .. })));
    }

    #[test]
    fn a_full_disk_is_an_error_that_names_the_device() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = write(&file, Path::new("/dev/full"), 0, b"x").unwrap_err();
        assert!(error.to_string().starts_with("cannot write /dev/full: No space left"), "{error}");
    }
}
