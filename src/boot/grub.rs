//! GRUB's environment block: 1024 bytes without a checksum, overwritten in place.
//!
//! GRUB finds the file's blocks without replaying a journal, so the file is never truncated nor renamed. A
//! disk changes in sectors of 512 bytes: all of ours stays in the first, and a write touches no other.
//! (GRUB, grub-core/lib/envblk.c.)

mod block;

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use self::block::{Block, SECTOR, SIZE};
use super::bootloader::{BootError, Bootloader};
use super::{raw, variables};
use crate::durable;
use crate::slot::BootEnv;

/// Most folders of `EFI` that are looked into.
const VENDORS: usize = 32;

/// The environment in a grubenv file.
#[derive(Debug)]
pub struct Grub {
    path: PathBuf,
}

enum GrubenvContent {
    Valid(Vec<u8>, Block),
    /// Missing, of another length, or no environment block: GRUB itself could neither read nor save it.
    Lost,
}

impl Grub {
    pub fn new(grubenv: &Path) -> Grub {
        Grub { path: grubenv.to_owned() }
    }

    fn load(&self) -> Result<GrubenvContent, BootError> {
        let file = match raw::open(&self.path, false) {
            Err(BootError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(GrubenvContent::Lost);
            }
            other => other?,
        };
        let bytes = raw::read(&file, &self.path, 0, SIZE + 1)?;
        if bytes.len() > SIZE && block::has_signature(&bytes) {
            let why = format!("it is longer than {SIZE} bytes: create it anew with grub-editenv");
            return Err(BootError::Unsupported { path: self.path.clone(), why });
        }
        Ok(match Block::parse(&bytes) {
            Some(block) => GrubenvContent::Valid(bytes, block),
            None if block::has_text(&bytes) => {
                let why =
                    "it is no valid block, but variables can be read in it: repair it with grub-editenv, or \
                           delete it if they are of no use"
                        .to_owned();
                return Err(BootError::Unsupported { path: self.path.clone(), why });
            }
            None => GrubenvContent::Lost,
        })
    }

    /// Why there is no block: it is lost, or the settings lead beside it.
    fn absence(&self) -> BootError {
        let Some(other) = self.others().find(|path| is_block(path)) else {
            return BootError::Lost(self.place());
        };
        let why = format!(
            "there is no valid block, but one is in {}: correct bootloader.grubenv in the settings, or delete that file",
            other.display()
        );
        BootError::Unsupported { path: self.path.clone(), why }
    }

    /// Where else on this file system GRUB's blocks are found.
    fn others(&self) -> impl Iterator<Item = PathBuf> {
        let device = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.dev());
        let home = self.path.parent().and_then(device);
        let inside = move |path: &&Path| *path != Path::new("/") && home.is_some() && device(path) == home;
        let folders = self.path.ancestors().skip(1).take_while(inside).flat_map(subfolders);
        folders.map(|folder| folder.join("grubenv")).filter(|path| *path != self.path)
    }

    /// The sector to write at the file's start.
    fn next(&self, env: &BootEnv) -> Result<Vec<u8>, BootError> {
        let GrubenvContent::Valid(old, block) = self.load()? else { return Err(self.absence()) };
        let mut new = block.render(env).map_err(|needed| self.full(needed))?;
        if new.get(SECTOR..) != old.get(SECTOR..) {
            return Err(BootError::WouldMove(self.path.clone()));
        }
        new.truncate(SECTOR);
        Ok(new)
    }

    /// The whole file, which was lost.
    fn anew(&self, env: &BootEnv) -> Result<Vec<u8>, BootError> {
        match self.absence() {
            BootError::Lost(_) => Block::default().render(env).map_err(|needed| self.full(needed)),
            other => Err(other),
        }
    }

    fn full(&self, needed: usize) -> BootError {
        BootError::Full { place: self.place(), needed, size: SIZE }
    }

    /// Opens the file for writing, creating it where it is missing.
    fn writable(&self) -> Result<File, BootError> {
        match raw::patiently(|| raw::open(&self.path, true)) {
            Err(BootError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        options.open(&self.path).map_err(raw::failed("create", &self.path))
    }

    /// A file that is whole again must also be found again: its length and its name are made durable.
    fn settle(&self, file: &File) -> Result<(), BootError> {
        file.set_len(SIZE as u64).and_then(|()| file.sync_all()).map_err(raw::failed("write", &self.path))?;
        durable::sync_folder(&self.path).map_err(raw::failed("write", &self.path))
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

impl Bootloader for Grub {
    fn read(&self) -> Result<BootEnv, BootError> {
        match self.load()? {
            GrubenvContent::Valid(_, block) => variables::parse(&self.place(), |name| block.get(name)),
            GrubenvContent::Lost => Err(self.absence()),
        }
    }

    fn write(&self, env: &BootEnv) -> Result<(), BootError> {
        let bytes = self.next(env)?;
        raw::write(&self.writable()?, &self.path, 0, &bytes)
    }

    fn rebuild(&self, env: &BootEnv) -> Result<(), BootError> {
        if let GrubenvContent::Valid(..) = self.load()? {
            return self.write(env);
        }
        let bytes = self.anew(env)?;
        let file = self.writable()?;
        raw::write(&file, &self.path, 0, &bytes)?;
        self.settle(&file)
    }

    fn ready(&self) -> Result<(), BootError> {
        self.next(&variables::LONGEST)?;
        match raw::open(&self.path, true) {
            Err(error) if !raw::is_leased(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Where distributions keep a grubenv, seen from a mount point or from a folder of it.
fn subfolders(top: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        ["", "grub", "grub2", "boot/grub", "boot/grub2", "fwupdate"].map(|name| top.join(name)).into();
    if let Ok(vendors) = std::fs::read_dir(top.join("EFI")) {
        found.extend(vendors.take(VENDORS).filter_map(|entry| Some(entry.ok()?.path())));
    }
    found
}

fn is_block(path: &Path) -> bool {
    let Ok(file) = raw::open(path, false) else { return false };
    raw::read(&file, path, 0, SIZE + 1).is_ok_and(|bytes| Block::parse(&bytes).is_some())
}

#[cfg(test)]
mod tests;
