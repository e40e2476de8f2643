//! What a cut of power must not take: bytes that the medium holds before anything goes on, and files that are
//! replaced in one step. The record, the boot environment, the slots' maps and the assigned hub are kept by it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc::O_NONBLOCK;

/// Up to `size` bytes at `offset`: fewer where the file ends.
pub fn read(file: &File, offset: u64, size: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled = filled.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Overwrites in one call, and returns when the medium says that it has the bytes. After an error too, the next read
/// asks the medium: pages that could not be written would look like content.
pub fn write(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let written = file.write_all_at(bytes, offset).and_then(|()| file.sync_data());
    // Only advice: tmpfs, for one, has no medium.
    if let Err(error) = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
        tracing::debug!(%error, "the page cache stays");
    }
    written
}

/// Whether the medium gives back what was written to it.
pub fn holds(file: &File, offset: u64, bytes: &[u8]) -> io::Result<bool> {
    Ok(read(file, offset, bytes.len())? == bytes)
}

/// An empty file beside `path`, whose content will be put in its place; a pipe that lies there is not waited for.
pub fn draft(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.custom_flags(O_NONBLOCK).write(true).create(true).truncate(true).mode(0o600).open(beside(path))
}

/// Puts the draft in the place of `path`: it holds the old content or the new, whenever the power fails.
pub fn put(draft: &File, path: &Path) -> io::Result<()> {
    draft.sync_all()?;
    fs::rename(beside(path), path)?;
    sync_folder(path)
}

/// Makes durable that `path` is in its folder, or is no longer.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// The name of the draft of `path`.
pub fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_an_error() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(write(&file, 0, b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn reading_stops_where_the_file_ends() {
        let file = tempfile::tempfile().unwrap();
        write(&file, 0, b"abc").unwrap();
        assert_eq!(read(&file, 1, 10).unwrap(), b"bc");
        assert!(holds(&file, 1, b"bc").unwrap() && !holds(&file, 1, b"bcd").unwrap());
    }

    #[test]
    fn a_draft_is_nothing_until_it_is_put_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seat");
        fs::write(&path, "old").unwrap();
        let file = draft(&path).unwrap();
        write(&file, 0, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        put(&file, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
