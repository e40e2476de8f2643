//! The PIN that its token refused last. It is not tried again before its file has changed, not after a restart or a reboot
//! either: a token counts wrong PINs, and locks itself.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::uri::KeyUri;
use crate::durable;

/// Where it is kept in the state folder.
const FILE: &str = "refused-pin";
/// Longest mark, bytes: a URI and a few numbers.
const LIMIT: u64 = 16 * 1024;
/// What lies below is written anew with each boot, or with each start of the service.
const PASSING: &str = "/run";

static LAST: Mutex<Refused> = Mutex::new(Refused { file: None, mark: None });

pub struct Refused {
    file: Option<PathBuf>,
    pub mark: Option<String>,
}

impl Refused {
    pub fn keep(&mut self, mark: String) {
        let write = |file: &PathBuf| {
            let mut draft = durable::draft(file)?;
            draft.write_all(mark.as_bytes())?;
            durable::put(&draft, file)
        };
        let known = self.mark.as_ref() == Some(&mark);
        if let Some(Err(error)) = self.file.as_ref().filter(|_| !known).map(write) {
            tracing::warn!("a restart will try the PIN again that the token refused: {error}");
        }
        self.mark = Some(mark);
    }
}

/// Held, nobody else asks a token.
pub fn last() -> MutexGuard<'static, Refused> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps it in this folder from now on.
pub fn keep_in(folder: &Path) {
    let file = folder.join(FILE);
    let mark = read(&file).ok();
    *last() = Refused { file: Some(file), mark };
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    if fs::symlink_metadata(file)?.is_file() {
        File::open(file)?.take(LIMIT).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// What tells this PIN for this key from another. Of the PIN itself there is too little in it to find it by.
pub fn mark(uri: &KeyUri) -> Option<String> {
    let file = uri.pin_file()?;
    let meta = fs::metadata(file).ok()?;
    let written = if file.starts_with(PASSING) { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
    let [first, second, ..] = Sha256::digest(fs::read(file).ok()?)[..] else { return None };
    Some(format!("{uri} {written:?} {first:02x}{second:02x}"))
}
