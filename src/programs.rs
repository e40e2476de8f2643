//! Programs and libraries that these programs run: where they are, and whether somebody could have put others there.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The program of this name beside the one that runs, else the installed one.
pub fn beside(name: &str, installed: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().map(|path| path.with_file_name(name));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| installed.into())
}

/// What of `real`, a path without links, and the folders above it others than these users can write; in a sticky folder
/// they cannot replace what is not theirs.
pub fn foreign<'a>(real: &'a Path, users: &[u32]) -> Option<&'a Path> {
    let is_theirs = |place: &&Path| {
        place.symlink_metadata().is_ok_and(|meta| {
            let (mode, is_sticky) = (meta.mode(), meta.is_dir() && meta.mode() & 0o1000 != 0);
            users.contains(&meta.uid()) && (mode & 0o022 == 0 || is_sticky)
        })
    };
    real.ancestors().find(|place| !is_theirs(place))
}
