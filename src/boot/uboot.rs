//! U-Boot's environment: two copies, of which a write replaces the older, so that a torn write costs nothing.

mod config;
mod copy;
mod lock;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use self::config::Location;
use self::copy::Copy;
use super::{BootError, Bootloader, durable, variables};
use crate::device::Identity;
use crate::slot::{Armed, BootEnv, Slot};

/// Beside `fw_env.config`: the variables that U-Boot is built with (libubootenv's name for the file).
const DEFAULTS: &str = "u-boot-initial-env";

/// The unit in which a block device changes.
const SECTOR: u64 = 512;

/// The environment that `fw_env.config` describes: on regular files or block devices.
#[derive(Debug)]
pub struct Uboot {
    config: PathBuf,
}

/// The devices or files of all copies.
pub fn places(config: &Path) -> Result<Vec<PathBuf>, BootError> {
    Ok(config::load(config)?.into_iter().map(|location| location.path).collect())
}

impl Uboot {
    pub fn new(config: &Path) -> Uboot {
        Uboot { config: config.to_owned() }
    }

    /// The area that is to be replaced, which is not the current copy's, and its new bytes.
    fn replacement<'a>(&self, medium: &'a Medium, env: &BootEnv) -> Result<(&'a Area, Vec<u8>), BootError> {
        let [first, second] = medium.areas.as_slice() else {
            return Err(BootError::SingleCopy(self.config.clone()));
        };
        let (area, next) = match medium.current()? {
            Some((0, copy)) => (second, copy.with(copy.flags.wrapping_add(1), env)),
            Some((_, copy)) => (first, copy.with(copy.flags.wrapping_add(1), env)),
            None => (first, self.defaults(medium)?.with(1, env)),
        };
        let full = |needed| BootError::Full { place: medium.place(), needed, size: area.size };
        Ok((area, next.render(area.size).map_err(full)?))
    }

    /// What a lost environment is rebuilt from. Once a valid copy exists, U-Boot forgets the variables that it
    /// was built with: our four alone would leave a board that does not boot.
    fn defaults(&self, medium: &Medium) -> Result<Copy, BootError> {
        let path = self.config.with_file_name(DEFAULTS);
        let text = fs::read(&path).map_err(|source| BootError::NoDefaults {
            place: medium.place(),
            defaults: path.clone(),
            source,
        })?;
        let lines = text.split(|byte| *byte == b'\n' || *byte == 0).filter(|line| !line.is_empty());
        Ok(Copy { flags: 0, entries: lines.map(<[u8]>::to_vec).collect() })
    }
}

impl Bootloader for Uboot {
    /// Takes no lock: a writer only ever touches the copy that is not current, and the CRC shows a half-written
    /// one.
    fn read(&self) -> Result<BootEnv, BootError> {
        let medium = Medium::open(&self.config, false)?;
        let place = medium.place();
        let (_, copy) = medium.current()?.ok_or_else(|| BootError::Lost(place.clone()))?;
        variables::parse(&place, |name| copy.get(name))
    }

    fn write(&self, env: &BootEnv) -> Result<(), BootError> {
        let _locks = lock::acquire()?;
        let medium = Medium::open(&self.config, true)?;
        let (area, bytes) = self.replacement(&medium, env)?;
        durable::write(&area.file, &area.path, area.start, &bytes)
    }

    fn ready(&self) -> Result<(), BootError> {
        let longest = BootEnv {
            primary: Slot::A,
            trial: Some(Armed { slot: Slot::B, tries: 9 }),
            fallback: Some(Slot::B),
        };
        self.replacement(&Medium::open(&self.config, true)?, &longest).map(drop)
    }
}

/// The copies as files that are open.
struct Medium {
    areas: Vec<Area>,
}

struct Area {
    path: PathBuf,
    file: File,
    start: u64,
    size: usize,
    identity: Option<Identity>,
}

impl Medium {
    fn open(config: &Path, writable: bool) -> Result<Medium, BootError> {
        let locations = config::load(config)?;
        let areas = locations.into_iter().map(|location| Area::open(location, writable));
        let medium = Medium { areas: areas.collect::<Result<_, _>>()? };
        medium.check_apart(config)?;
        Ok(medium)
    }

    /// Two names, or an offset from the start and one from the end, may still mean the same bytes.
    fn check_apart(&self, config: &Path) -> Result<(), BootError> {
        let [first, second] = self.areas.as_slice() else { return Ok(()) };
        let overlap = first.start.abs_diff(second.start) < first.size as u64;
        if overlap && first.identity == second.identity {
            let why = "the two copies overlap".to_owned();
            return Err(BootError::Config { path: config.to_owned(), line: 2, why });
        }
        Ok(())
    }

    /// Index and content of the current copy; `None` when no copy is valid.
    fn current(&self) -> Result<Option<(usize, Copy)>, BootError> {
        let redundant = self.areas.len() > 1;
        let mut copies = Vec::new();
        let mut unreadable = Vec::new();
        for (index, area) in self.areas.iter().enumerate() {
            match durable::read(&area.file, &area.path, area.start, area.size) {
                Ok(bytes) if bytes.len() < area.size => {}
                Ok(bytes) => copies.extend(Copy::parse(&bytes, redundant).map(|copy| (index, copy))),
                Err(error) => unreadable.push(error),
            }
        }
        // Half of a redundant environment is enough; storage that answers nothing is not a lost environment.
        match unreadable.pop() {
            Some(error) if copies.is_empty() => return Err(error),
            Some(error) => tracing::warn!("one copy of the boot environment cannot be read: {error}"),
            None => {}
        }
        let second = match copies.as_slice() {
            [(_, first), (_, second)] => copy::second_is_newer(first.flags, second.flags),
            _ => false,
        };
        Ok(if second { copies.pop() } else { copies.into_iter().next() })
    }

    /// For messages: the devices by name.
    fn place(&self) -> String {
        let mut paths: Vec<_> = self.areas.iter().map(|area| area.path.display().to_string()).collect();
        paths.dedup();
        paths.join(" and ")
    }
}

impl Area {
    fn open(location: Location, writable: bool) -> Result<Area, BootError> {
        let Location { path, offset, size } = location;
        refuse_flash(&path)?;
        let file = durable::open(&path, writable)?;
        let length = durable::length(&file, &path)?;
        let meta = file.metadata().map_err(durable::failed("examine", &path))?;
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
        Ok(Area { path, file, start, size, identity })
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

#[cfg(test)]
mod tests;
