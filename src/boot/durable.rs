//! Reading and writing small areas of a file or block device so that the medium, not the page cache, answers.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};

use super::BootError;

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
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled = filled.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("read", path)(error)),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Writes in one synchronous call, then reads back what the medium holds and compares.
///
/// After an error too, the next read asks the medium: pages that could not be written would look like content.
pub fn write(file: &File, path: &Path, offset: u64, bytes: &[u8]) -> Result<(), BootError> {
    let written = file.write_all_at(bytes, offset).and_then(|()| file.sync_all());
    forget_cache(file, path);
    written.map_err(failed("write", path))?;
    if read(file, path, offset, bytes.len())? == bytes {
        return Ok(());
    }
    Err(BootError::NotWritten(path.to_owned()))
}

/// Drops clean pages, so that the next read reaches the medium. Only advice: tmpfs, for one, has no medium.
fn forget_cache(file: &File, path: &Path) {
    if let Err(error) = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
        tracing::debug!(path = %path.display(), %error, "the page cache stays");
    }
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

    #[test]
    fn reading_stops_where_the_file_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abc").unwrap();
        let open = open(file.path(), false).unwrap();
        assert_eq!(read(&open, file.path(), 1, 10).unwrap(), b"bc");
        assert_eq!(length(&open, file.path()).unwrap(), 3);
    }
}
