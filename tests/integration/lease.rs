//! Holds up the next write to a file, so that an effect of the agent can be watched while it is under way.
//!
//! The kernel's read lease (fcntl(2), F_SETLEASE) makes whoever opens the file for writing wait, and nobody else;
//! it gives way by itself after /proc/sys/fs/lease-break-time, 45 s. Of the libraries here none wraps it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::libc::{F_RDLCK, F_SETLEASE, SIGURG, fcntl};

/// Linux's F_SETSIG: the signal that says that somebody waits.
const F_SETSIG: i32 = 10;

/// Until it is dropped, nobody opens the file for writing.
#[derive(Debug)]
pub struct Lease(#[allow(dead_code, reason = "held, not read")] File);

impl Lease {
    pub async fn on(path: &Path) -> Lease {
        let file = File::open(path).unwrap();
        // The usual signal, SIGIO, would end this process; SIGURG is ignored.
        set(&file, F_SETSIG, SIGURG).unwrap();
        loop {
            match set(&file, F_SETLEASE, F_RDLCK) {
                Ok(()) => return Lease(file),
                // Somebody writes at this very moment.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("no lease on {}: {error}", path.display()),
            }
        }
    }
}

fn set(file: &File, command: i32, value: i32) -> io::Result<()> {
    // SAFETY: both commands take an integer, and the descriptor is open.
    match unsafe { fcntl(file.as_raw_fd(), command, value) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[tokio::test]
async fn a_writer_waits_and_a_reader_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "before").unwrap();
    let lease = Lease::on(&path).await;
    let (written, writer) = (path.clone(), tokio::task::spawn_blocking);
    let writer = writer(move || std::fs::OpenOptions::new().write(true).open(written).map(drop));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
    let waits = tokio::time::timeout(Duration::from_millis(50), std::future::pending::<()>()).await;
    assert!(waits.is_err() && !writer.is_finished());
    drop(lease);
    writer.await.unwrap().unwrap();
}
