//! U-Boot's environment: two copies, of which a write replaces the older, so that a torn write costs nothing.

mod area;
mod around;
mod config;
mod env_copy;
mod lock;

use std::fs;
use std::path::{Path, PathBuf};

use self::area::Area;
pub use self::config::{Location, load};
use self::env_copy::EnvCopy;
use super::bootloader::{BootError, Bootloader};
use super::{raw, variables};
use crate::slot::BootEnv;

/// Beside `fw_env.config`: the variables that U-Boot is built with (libubootenv's name for the file).
const DEFAULTS: &str = "u-boot-initial-env";

/// The environment that `fw_env.config` describes: on regular files or block devices.
#[derive(Debug)]
pub struct Uboot {
    config: PathBuf,
}

/// The devices or files of all copies.
pub fn places(config: &Path) -> Result<Vec<PathBuf>, BootError> {
    Ok(load(config)?.into_iter().map(|location| location.path).collect())
}

impl Uboot {
    pub fn new(config: &Path) -> Uboot {
        Uboot { config: config.to_owned() }
    }

    /// The area that is to be replaced, which is not the current copy's, and its new bytes. `None`: no copy is
    /// valid.
    fn replacement<'a>(
        &self,
        medium: &'a Medium,
        env: &BootEnv,
    ) -> Result<Option<(&'a Area, Vec<u8>)>, BootError> {
        let [first, second] = medium.areas.as_slice() else {
            return Err(BootError::SingleCopy(self.config.clone()));
        };
        let (area, current, copy) = match medium.current()? {
            Some((0, copy)) => (second, first, copy),
            Some((_, copy)) => (first, second, copy),
            None => return Ok(None),
        };
        self.check_replaced(area, current, &copy)?;
        Ok(Some((area, medium.render(area, &copy.with(copy.flags.wrapping_add(1), env))?)))
    }

    /// What is overwritten must be a copy, the remains of one, or nothing: it would be something else if its line
    /// were wrong.
    fn check_replaced(&self, area: &Area, current: &Area, copy: &EnvCopy) -> Result<(), BootError> {
        let bytes = raw::read(&area.file, &area.path, area.start, area.size)?;
        if EnvCopy::parse(&bytes, true).is_some() || around::begins_like(&bytes, copy) {
            return Ok(());
        }
        let is_current = |start| start == current.start && area.identity == current.identity;
        let other = around::valid_copies(area)?
            .into_iter()
            .find(|found| found.form == around::Form::Redundant(area.size) && !is_current(found.start));
        if let Some(found) = other {
            return Err(self.wrong(area, found.complaint(area)));
        }
        if around::remains(&bytes, copy) {
            return Ok(());
        }
        let why = format!(
            "the area at {:#x} of {} holds neither a copy of the environment nor what a torn write leaves of one, so it \
             is not overwritten: correct the line, or erase that area if it is the second copy",
            area.start,
            area.path.display()
        );
        Err(self.wrong(area, why))
    }

    /// The first copy of an environment that was lost: nothing around may be one.
    fn anew<'a>(&self, medium: &'a Medium, env: &BootEnv) -> Result<(&'a Area, Vec<u8>), BootError> {
        self.check_lost(medium)?;
        let [first, _] = medium.areas.as_slice() else {
            return Err(BootError::SingleCopy(self.config.clone()));
        };
        Ok((first, medium.render(first, &self.defaults(medium)?.with(1, env))?))
    }

    /// An error where something near could be the environment.
    fn check_lost(&self, medium: &Medium) -> Result<(), BootError> {
        for area in &medium.areas {
            if let Some(found) = around::look(area)? {
                return Err(self.wrong(area, found.complaint(area)));
            }
        }
        Ok(())
    }

    fn wrong(&self, area: &Area, why: String) -> BootError {
        BootError::Config { path: self.config.clone(), line: area.line, why }
    }

    /// Why nothing valid is there.
    fn absence(&self, medium: &Medium) -> BootError {
        self.check_lost(medium).err().unwrap_or_else(|| BootError::Lost(medium.place()))
    }

    /// What a lost environment is rebuilt from. Once a valid copy exists, U-Boot forgets the variables that it
    /// was built with: our four alone would leave a board that does not boot.
    fn defaults(&self, medium: &Medium) -> Result<EnvCopy, BootError> {
        let path = self.config.with_file_name(DEFAULTS);
        let text = fs::read(&path).map_err(|source| BootError::NoDefaults {
            place: medium.place(),
            defaults: path.clone(),
            source,
        })?;
        let lines = text.split(|byte| *byte == b'\n' || *byte == 0).filter(|line| !line.is_empty());
        Ok(EnvCopy { flags: 0, entries: lines.map(<[u8]>::to_vec).collect() })
    }
}

impl Bootloader for Uboot {
    /// Takes no lock: a writer only ever touches the copy that is not current, and the CRC shows a half-written
    /// one.
    fn read(&self) -> Result<BootEnv, BootError> {
        let medium = Medium::open(&self.config, false)?;
        let (_, copy) = medium.current()?.ok_or_else(|| self.absence(&medium))?;
        variables::parse(&medium.place(), |name| copy.get(name))
    }

    fn write(&self, env: &BootEnv) -> Result<(), BootError> {
        let _locks = lock::acquire();
        let medium = raw::patiently(|| Medium::open(&self.config, true))?;
        let (area, bytes) = self.replacement(&medium, env)?.ok_or_else(|| self.absence(&medium))?;
        raw::write(&area.file, &area.path, area.start, &bytes)
    }

    fn rebuild(&self, env: &BootEnv) -> Result<(), BootError> {
        let _locks = lock::acquire();
        let medium = raw::patiently(|| Medium::open(&self.config, true))?;
        let (area, bytes) = match self.replacement(&medium, env)? {
            Some(next) => next,
            None => self.anew(&medium, env)?,
        };
        raw::write(&area.file, &area.path, area.start, &bytes)
    }

    fn ready(&self) -> Result<(), BootError> {
        let medium = match Medium::open(&self.config, true) {
            // Writing waits for it.
            Err(error) if raw::is_leased(&error) => Medium::open(&self.config, false)?,
            opened => opened?,
        };
        self.replacement(&medium, &variables::LONGEST)?.ok_or_else(|| self.absence(&medium)).map(drop)
    }
}

/// The copies as files that are open.
struct Medium {
    areas: Vec<Area>,
}

impl Medium {
    fn open(config: &Path, writable: bool) -> Result<Medium, BootError> {
        let locations = load(config)?;
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
            return Err(BootError::Config { path: config.to_owned(), line: second.line, why });
        }
        Ok(())
    }

    /// Index and content of the current copy; `None` when no copy is valid.
    fn current(&self) -> Result<Option<(usize, EnvCopy)>, BootError> {
        let redundant = self.areas.len() > 1;
        let mut copies = Vec::new();
        let mut unreadable = Vec::new();
        for (index, area) in self.areas.iter().enumerate() {
            match raw::read(&area.file, &area.path, area.start, area.size) {
                Ok(bytes) if bytes.len() < area.size => {}
                Ok(bytes) => copies.extend(EnvCopy::parse(&bytes, redundant).map(|copy| (index, copy))),
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
            [(_, first), (_, second)] => env_copy::second_is_newer(first.flags, second.flags),
            _ => false,
        };
        Ok(if second { copies.pop() } else { copies.into_iter().next() })
    }

    /// The bytes of `copy` for `area`.
    fn render(&self, area: &Area, copy: &EnvCopy) -> Result<Vec<u8>, BootError> {
        let full = |needed| BootError::Full { place: self.place(), needed, size: area.size };
        copy.render(area.size).map_err(full)
    }

    /// For messages: the devices by name.
    fn place(&self) -> String {
        let mut paths: Vec<_> = self.areas.iter().map(|area| area.path.display().to_string()).collect();
        paths.dedup();
        paths.join(" and ")
    }
}

#[cfg(test)]
mod tests;
