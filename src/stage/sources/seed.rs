//! The booted slot, whose blocks are reused: it is only read.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{O_CLOEXEC, O_DIRECT};

use crate::stage::buffer::is_aligned;

/// The booted slot, read only. It may change while it is read: whatever is used of it is hashed first.
#[derive(Debug)]
pub struct Seed {
    plain: File,
    direct: Option<File>,
    size: u64,
}

impl Seed {
    pub fn open(path: &Path) -> io::Result<Seed> {
        let open = |flags| OpenOptions::new().read(true).custom_flags(O_CLOEXEC | flags).open(path);
        let plain = open(0)?;
        let size = (&plain).seek(SeekFrom::End(0))?;
        Ok(Seed { plain, direct: open(O_DIRECT).ok(), size })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = self.direct.as_ref().filter(|_| is_aligned(buffer, offset)) {
            if direct.read_exact_at(buffer, offset).is_ok() {
                return Ok(());
            }
        }
        self.plain.read_exact_at(buffer, offset)
    }
}
