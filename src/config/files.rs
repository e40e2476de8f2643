//! Small files that people and other programs write, in whatever state they are.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;

use super::error::ConfigError;

/// The `*.toml` files of `dir` in name order; none when there is no such folder.
pub fn files_in(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read { path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|e| e.path())).collect();
    let mut paths = paths.map_err(failed)?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    paths.sort();
    Ok(paths)
}

/// Reads a small text file; `None` when it does not exist.
pub fn read_text(path: &Path, limit: u64) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = match open_regular(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(ConfigError::TooLarge { path: path.to_owned(), limit });
    }
    let found = decode(bytes).map_err(|found| ConfigError::Encoding { path: path.to_owned(), found })?;
    Ok(Some(found))
}

/// Opens a regular file to be read. Nobody may have to be waited for: a FIFO has no end until somebody writes to it.
pub fn open_regular(path: &Path) -> std::io::Result<File> {
    let file = File::options().read(true).custom_flags(O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::other("it is no regular file")),
    }
}

/// The text of a file, which some editors begin with a byte order mark; else what it is in place of UTF-8.
fn decode(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("UTF-16".to_owned());
    }
    // Without the mark: every other byte of plain letters is zero.
    let zeros = bytes.iter().filter(|byte| **byte == 0).count();
    if zeros > 0 && zeros < bytes.len() && zeros >= bytes.len() / 3 {
        return Err("UTF-16, or torn".to_owned());
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
        Err(error) => {
            let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            let line = good.iter().filter(|byte| **byte == b'\n').count().saturating_add(1);
            Err(format!("an older encoding, such as Latin-1 or Windows-1252 (line {line})"))
        }
    }
}

/// Whether the file itself lets everybody read it.
pub fn others_can_read(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}
