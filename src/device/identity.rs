//! Which device or file a path really is, whatever name leads to it; and why one could not be told.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use crate::failure::{Code, Failure};

/// A device or file, however it is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// A block device by its number (`st_rdev`).
    Block { major: u64, minor: u64 },
    /// A regular file by the file system it lies on and its inode.
    File { device: u64, inode: u64 },
}

impl Identity {
    /// What `path` really is; symbolic links are followed. Anything but a block device or a regular file is
    /// an error.
    pub fn of(path: &Path) -> Result<Identity, DeviceError> {
        let meta = fs::metadata(path).map_err(|source| DeviceError::at(path, source))?;
        Identity::from_metadata(&meta).ok_or_else(|| DeviceError::NotADevice(path.to_owned()))
    }

    /// The same for a file that is already open: no name can change under the caller.
    pub fn from_metadata(meta: &fs::Metadata) -> Option<Identity> {
        let kind = meta.file_type();
        if kind.is_block_device() {
            Some(Identity::Block { major: major(meta.rdev()), minor: minor(meta.rdev()) })
        } else if kind.is_file() {
            Some(Identity::File { device: meta.dev(), inode: meta.ino() })
        } else {
            None
        }
    }
}

/// Why a device could not be found or examined.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "{name} means the device {path}, which does not exist: check the partition table and the settings' slots"
    )]
    Missing { name: String, path: PathBuf },
    #[error("{0} does not exist: check the settings' slots")]
    NoSuchPath(PathBuf),
    #[error("{0} is neither a block device nor a regular file: name one of these in the settings' slots")]
    NotADevice(PathBuf),
    #[error("{0:?} names no device: use an absolute path, PARTLABEL=name or PARTUUID=id")]
    BadName(String),
    #[error(
        "UUID= and LABEL= cannot tell two slots with the same image apart ({0}): use PARTLABEL= or PARTUUID="
    )]
    Ambiguous(String),
    #[error(
        "{name} means several partitions, {}: take one of the disks out, rename its partitions, or name the slot by \
         its path in the settings (/dev/disk/by-path/...)",
        found.join(" and ")
    )]
    Several { name: String, found: Vec<String> },
    #[error("cannot examine {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl DeviceError {
    pub(super) fn at(path: &Path, source: io::Error) -> DeviceError {
        match source.kind() {
            io::ErrorKind::NotFound => DeviceError::NoSuchPath(path.to_owned()),
            _ => DeviceError::Io { path: path.to_owned(), source },
        }
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Failure {
        Failure::new(Code::SlotWriteFailed, error.to_string())
    }
}
