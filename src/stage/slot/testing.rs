//! Loop devices for the tests of this edge: they need root.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a program prints; `None` if it fails.
pub fn run(program: &str, args: &[&str]) -> Option<String> {
    let done = Command::new(program).args(args).output().ok()?;
    done.status.success().then(|| String::from_utf8(done.stdout).unwrap().trim().to_owned())
}

/// A loop device over a file; detached when dropped.
pub struct Loop {
    pub device: PathBuf,
}

impl Loop {
    pub fn over(file: &Path, sector: u32) -> Option<Loop> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: loop devices need root");
            return None;
        }
        let sector = sector.to_string();
        let device = run("losetup", &["--sector-size", &sector, "-f", "--show", file.to_str()?]);
        if device.is_none() {
            eprintln!("skipped: losetup made no loop device");
        }
        Some(Loop { device: device?.into() })
    }

    pub fn text(&self) -> &str {
        self.device.to_str().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["-d", self.text()]);
    }
}
