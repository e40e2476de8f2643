//! One of the places of a file or block device that `fw_env.config` names.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::config::Location;
use crate::boot::bootloader::BootError;
use crate::boot::raw;
use crate::device::Identity;

/// The unit in which a block device changes.
pub const SECTOR: u64 = 512;

pub struct Area {
    pub path: PathBuf,
    pub file: File,
    pub start: u64,
    pub size: usize,
    pub identity: Option<Identity>,
    /// The line of `fw_env.config`.
    pub line: usize,
}

impl Area {
    pub fn open(location: Location, writable: bool) -> Result<Area, BootError> {
        let Location { path, offset, size, line } = location;
        refuse_flash(&path)?;
        let file = raw::open(&path, writable)?;
        let length = raw::length(&file, &path)?;
        let meta = file.metadata().map_err(raw::failed("examine", &path))?;
        let identity = Identity::from_metadata(&meta);
        let unsupported = |why: String| BootError::Unsupported { path: path.clone(), why };
        let start = match u64::try_from(offset) {
            Ok(start) => start,
            Err(_) => length
                .checked_sub(offset.unsigned_abs())
                .ok_or_else(|| unsupported(format!("offset {offset} lies before its start")))?,
        };
        if let Some(Identity::Block { .. }) = identity {
            if start.saturating_add(size as u64) > length {
                return Err(unsupported(format!("it ends at byte {length}, the environment after that")));
            }
            if start % SECTOR != 0 || size as u64 % SECTOR != 0 {
                return Err(unsupported(format!("offset and size must be multiples of {SECTOR} bytes")));
            }
        }
        Ok(Area { path, file, start, size, identity, line })
    }
}

/// Raw flash is erased in blocks and has other rules; its names may carry a volume after a colon.
fn refuse_flash(path: &Path) -> Result<(), BootError> {
    let name = path.to_string_lossy();
    if name.starts_with("/dev/mtd") || name.starts_with("/dev/ubi") {
        let why = "raw flash (MTD, UBI) needs erasing; keep the environment on a block device".to_owned();
        return Err(BootError::Unsupported { path: path.to_owned(), why });
    }
    Ok(())
}
