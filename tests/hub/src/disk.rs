//! Small files written so that a reader, or a restart, sees the old content or the new, never half of it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

/// Writes `path` by renaming a finished file over it. `private`: mode 0600.
pub fn replace(path: &Path, content: &[u8], private: bool) -> Result<()> {
    let finished = write_beside(path, content, private).with_context(|| cannot_write(path))?;
    std::fs::rename(&finished, path).with_context(|| cannot_write(path))
}

/// Writes `path` only if it does not exist yet; `false` if it does.
pub fn create(path: &Path, content: &[u8]) -> Result<bool> {
    let finished = write_beside(path, content, true).with_context(|| cannot_write(path))?;
    let linked = std::fs::hard_link(&finished, path);
    std::fs::remove_file(&finished).with_context(|| cannot_write(path))?;
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| cannot_write(path)),
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// The name is unique among processes and threads, and starts with a dot, which lists skip.
fn write_beside(path: &Path, content: &[u8], private: bool) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_file_name(format!(".new-{}-{count}", std::process::id()));
    let mode = if private { 0o600 } else { 0o644 };
    let mut file: File =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
    file.write_all(content)?;
    Ok(beside)
}
