//! What lies at and around a place where no copy of the environment is valid.
//!
//! A wrong size or offset in `fw_env.config` makes a live environment look lost. Before anything is made anew or
//! overwritten, the neighbourhood is searched: other sizes, offsets and both forms by their checksum, and text that
//! could be variables.

use super::area::{Area, SECTOR};
use super::env_copy::EnvCopy;
use crate::boot::bootloader::BootError;
use crate::boot::{raw, variables};

/// How far around a place is looked, bytes.
const REACH: u64 = 1 << 20;
/// The largest environment that is looked for, bytes, and the step in which sizes are tried.
const LARGEST: usize = 1 << 20;
const STEP: usize = 16;
/// Most places with text whose checksum is tried.
const TRIES: usize = 64;
/// Longest name of a variable, bytes.
const NAME: usize = 64;

/// Something that could be an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Bytes from the start of the device or file.
    pub start: u64,
    pub form: Form,
}

/// Its checksum is right over so many bytes in all; or there are but variables to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Redundant(usize),
    Single(usize),
    Text,
}

impl Found {
    /// What is wrong about a line that leads beside this.
    pub fn complaint(&self, area: &Area) -> String {
        let (path, start) = (area.path.display(), self.start);
        let here = format!("no copy of the environment is valid at {:#x} of {path}", area.start);
        match self.form {
            Form::Redundant(size) => format!(
                "{here} with the size {:#x}, but one of a redundant pair begins at {start:#x} with the size {size:#x}: \
                 correct the line to `{path} {start:#x} {size:#x}`",
                area.size
            ),
            Form::Single(size) => format!(
                "{here} in this form, but a single copy (not redundant) begins at {start:#x} with the size {size:#x}: \
                 correct the line to `{path} {start:#x} {size:#x}`"
            ),
            Form::Text => format!(
                "{here} with the size {:#x}, but variables can be read at {start:#x}: correct the line, or erase that \
                 area if they are of no use",
                area.size
            ),
        }
    }
}

/// The nearest thing that could be an environment: one with a checksum before mere text.
pub fn look(area: &Area) -> Result<Option<Found>, BootError> {
    if let Some(found) = valid_copies(area)?.into_iter().next() {
        return Ok(Some(found));
    }
    let bytes = raw::read(&area.file, &area.path, area.start, area.size)?;
    Ok(readable(&bytes).then_some(Found { start: area.start, form: Form::Text }))
}

/// All copies around `area` whose checksum is right, the nearest first.
pub fn valid_copies(area: &Area) -> Result<Vec<Found>, BootError> {
    let (from, bytes) = window(area)?;
    let mut places: Vec<u64> =
        places(area, from, bytes.len()).filter(|start| has_name(&bytes, from, *start)).collect();
    places.sort_by_key(|start| start.abs_diff(area.start));
    places.truncate(TRIES);
    Ok(places.into_iter().filter_map(|start| checked(bytes.get(index(from, start)..)?, start)).collect())
}

/// Where the bytes that were read begin, and the bytes.
fn window(area: &Area) -> Result<(u64, Vec<u8>), BootError> {
    let from = area.start.saturating_sub(REACH);
    let before = usize::try_from(area.start.saturating_sub(from)).unwrap_or_default();
    let length = before.saturating_add(area.size).saturating_add(REACH as usize).saturating_add(LARGEST);
    Ok((from, raw::read(&area.file, &area.path, from, length)?))
}

/// Starts in steps of a sector, counted from the device and from the place itself.
fn places(area: &Area, from: u64, length: usize) -> impl Iterator<Item = u64> {
    let end = from.saturating_add(length as u64);
    let near = |first: u64| (first..end).step_by(SECTOR as usize);
    let own = from.saturating_add(area.start.saturating_sub(from) % SECTOR);
    let odd = if own % SECTOR == 0 { end } else { own };
    near(from.next_multiple_of(SECTOR)).chain(near(odd))
}

fn index(from: u64, start: u64) -> usize {
    usize::try_from(start.saturating_sub(from)).unwrap_or(usize::MAX)
}

/// Whether a variable begins behind a header of either form.
fn has_name(bytes: &[u8], from: u64, start: u64) -> bool {
    [4, 5].into_iter().any(|header| {
        let entry = bytes.get(index(from, start).saturating_add(header)..);
        entry.is_some_and(|entry| name_of(entry).is_some())
    })
}

/// The name in front of `=`.
fn name_of(entry: &[u8]) -> Option<&[u8]> {
    let end = entry.iter().take(NAME.saturating_add(1)).position(|byte| *byte == b'=')?;
    entry.get(..end).filter(|name| name.len() > 1 && name.iter().all(u8::is_ascii_graphic))
}

/// `area` as a whole environment of some size.
fn checked(area: &[u8], start: u64) -> Option<Found> {
    let form = size_of(area, 5).map(Form::Redundant).or_else(|| size_of(area, 4).map(Form::Single));
    form.map(|form| Found { start, form })
}

/// The size for which the checksum in front is right.
fn size_of(area: &[u8], header: usize) -> Option<usize> {
    let (stored, _) = area.split_first_chunk::<4>()?;
    let stored = u32::from_ne_bytes(*stored);
    let mut hash = crc32fast::Hasher::new();
    let (mut size, mut rest) = (header, area.get(header..LARGEST.min(area.len()))?);
    // Sizes are round, whatever the header takes.
    let mut step = STEP.saturating_sub(header);
    while let Some((part, tail)) = rest.split_at_checked(step) {
        hash.update(part);
        (size, rest, step) = (size.saturating_add(part.len()), tail, STEP);
        if hash.clone().finalize() == stored {
            return Some(size);
        }
    }
    None
}

/// Whether a variable of the board can be read somewhere in these bytes. fwupdate's own would be set anew.
fn readable(bytes: &[u8]) -> bool {
    let heads = [4, 5].into_iter().filter_map(|header| bytes.get(header..)?.split(|byte| *byte == 0).next());
    let is_entry = |entry: &[u8]| {
        let text = entry.iter().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t'));
        text && name_of(entry).is_some_and(|name| !name.starts_with(variables::PREFIX.as_bytes()))
    };
    bytes.split(|byte| *byte == 0).chain(heads).any(is_entry)
}

/// Whether `bytes` is what a torn write leaves of a copy beside `current`, or was never written at all.
pub fn remains(bytes: &[u8], current: &EnvCopy) -> bool {
    let blank = |byte: &u8| matches!(byte, 0 | 0xff);
    let data = bytes.get(5..).unwrap_or_default();
    if begins_like(bytes, current) || data.iter().all(blank) {
        return true;
    }
    let written = data.iter().filter(|byte| !blank(byte)).count();
    let known = data.split(|byte| *byte == 0).filter(|entry| is_known(entry, current)).map(<[u8]>::len);
    // Damage where only one variable is: then most of it still stands where the other copy has it.
    let other = current.render(bytes.len()).unwrap_or_default();
    let same =
        data.iter().zip(other.iter().skip(5)).filter(|(byte, other)| !blank(byte) && byte == other).count();
    known.sum::<usize>().max(same).saturating_mul(2) >= written
}

/// A variable of the current copy, or one of ours, begins exactly where a copy's first one does.
pub fn begins_like(bytes: &[u8], current: &EnvCopy) -> bool {
    bytes.get(5..).is_some_and(|data| is_known(data, current))
}

fn is_known(entry: &[u8], current: &EnvCopy) -> bool {
    let Some(name) = name_of(entry) else { return false };
    name.starts_with(variables::PREFIX.as_bytes())
        || current.entries.iter().any(|entry| name_of(entry) == Some(name))
}
