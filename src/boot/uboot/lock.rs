//! The locks that U-Boot's own tool and libubootenv take, so that `fw_setenv` and the agent wait for each
//! other.
//!
//! They are a courtesy, and no more: whoever may open such a file may hold it for ever. So only a file of root or of
//! the agent's own user is waited for, and that for a while; then the write goes on, which touches one copy alone.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

/// U-Boot's tool, then libubootenv.
const FILES: [&str; 2] = ["/run/fw_printenv.lock", "/var/lock/fw_printenv.lock"];

/// `fw_setenv` holds its lock for milliseconds; who holds it for longer hangs, or means no good.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes both locks, each until dropped. One that cannot be had (no such folder, another user's file, held by somebody
/// who does not let go) is passed over.
pub fn acquire() -> Vec<Flock<File>> {
    FILES.iter().filter_map(|path| take(Path::new(path), PATIENCE)).collect()
}

fn take(path: &Path, patience: Duration) -> Option<Flock<File>> {
    wait(path, open(path)?, patience)
}

/// An existing file is opened without asking to create it: in a sticky folder the kernel refuses the latter
/// for another user's file (fs.protected_regular).
fn open(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    options.read(true).write(true).mode(0o600).custom_flags(flags.bits());
    let opened = match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => options.create_new(true).open(path),
        other => other,
    };
    let file = opened
        .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "lock passed over"))
        .ok()?;
    let meta = file.metadata().ok()?;
    let ours = [0, nix::unistd::geteuid().as_raw()].contains(&meta.uid());
    if ours && meta.is_file() {
        return Some(file);
    }
    tracing::warn!(
        "{} belongs to user {}: it is no lock of root, and not waited for",
        path.display(),
        meta.uid()
    );
    None
}

fn wait(path: &Path, mut file: File, patience: Duration) -> Option<Flock<File>> {
    let started = Instant::now();
    loop {
        let error = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((back, Errno::EAGAIN | Errno::EINTR)) if started.elapsed() < patience => {
                file = back;
                sleep(Duration::from_millis(20));
                continue;
            }
            Err((_, error)) => error,
        };
        tracing::warn!(
            "{} is held by another program for {} s ({error}): the boot environment is written without it",
            path.display(),
            patience.as_secs()
        );
        return None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_never_released_is_passed_over_in_bounded_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = take(&path, Duration::ZERO).unwrap();
        assert!(take(&path, Duration::from_millis(50)).is_none());
        drop(held);
        assert!(take(&path, Duration::ZERO).is_some());
    }

    /// Whoever may read the file may lock it, also root's own.
    #[test]
    fn a_lock_that_a_reader_holds_is_passed_over_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "").unwrap();
        let reader = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        assert!(take(&path, Duration::ZERO).is_none());
        drop(reader);
    }

    #[test]
    fn another_users_file_is_not_waited_for() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can give a file away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "").unwrap();
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
        let held = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        assert!(take(&path, Duration::from_secs(3600)).is_none());
        drop(held);
    }

    #[test]
    fn a_lock_that_cannot_be_made_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&dir.path().join("nowhere/lock")).is_none());
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
        assert!(open(&dir.path().join("link")).is_none());
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open(&dir.path().join("fifo")).is_none());
    }
}
