//! The locks that U-Boot's own tool and libubootenv take, so that `fw_setenv` and the agent wait for each
//! other.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::boot::BootError;

/// U-Boot's tool, then libubootenv.
const FILES: [&str; 2] = ["/run/fw_printenv.lock", "/var/lock/fw_printenv.lock"];

/// `fw_setenv` holds its lock for milliseconds; who holds it for longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes both locks, each until dropped. A lock file that cannot be made (no root, no such folder) is passed
/// over: then `fw_setenv` of this user cannot lock it either.
pub fn acquire() -> Result<Vec<Flock<File>>, BootError> {
    let files = FILES.iter().filter_map(|path| Some((Path::new(path), open(Path::new(path))?)));
    files.map(|(path, file)| wait(path, file, PATIENCE)).collect()
}

/// An existing file is opened without asking to create it: in a sticky folder the kernel refuses the latter
/// for another user's file (fs.protected_regular).
fn open(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    let opened = match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => options.create(true).open(path),
        other => other,
    };
    opened.inspect_err(|error| tracing::debug!(path = %path.display(), %error, "lock passed over")).ok()
}

fn wait(path: &Path, mut file: File, patience: Duration) -> Result<Flock<File>, BootError> {
    let started = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EAGAIN | Errno::EINTR)) if started.elapsed() < patience => file = back,
            Err((_, Errno::EAGAIN | Errno::EINTR)) => return Err(BootError::Locked(path.to_owned())),
            Err((_, errno)) => {
                return Err(BootError::Io { action: "lock", path: path.to_owned(), source: errno.into() });
            }
        }
        sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_never_released_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = wait(&path, open(&path).unwrap(), Duration::ZERO).unwrap();
        let again = wait(&path, open(&path).unwrap(), Duration::ZERO);
        assert!(matches!(again, Err(BootError::Locked(found)) if found == path));
        drop(held);
        assert!(wait(&path, open(&path).unwrap(), Duration::ZERO).is_ok());
    }

    #[test]
    fn a_lock_that_cannot_be_made_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&dir.path().join("nowhere/lock")).is_none());
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
        assert!(open(&dir.path().join("link")).is_none());
    }
}
