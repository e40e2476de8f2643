//! Loop devices under the gateway's slots, and mounts: what only root may make. Dropping them undoes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fwupdate_hub::firmware::Slot;

use crate::harness::{World, run};

/// Whether this may go on; prints why not.
pub fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: loop devices and mounts need root");
    }
    root
}

/// Loop devices over the files of both slots.
pub struct Loops([PathBuf; 2]);

impl Loops {
    /// Puts a gateway that is still off on them.
    pub fn under(world: &mut World) -> Loops {
        Loops::with(world, &[])
    }

    /// The same, slot B by a device that was attached with these options.
    pub fn with(world: &mut World, options: &[&str]) -> Loops {
        let slot = |slot| world.gateway.slot(slot);
        let loops = Loops([attach(slot(Slot::A), &[]), attach(slot(Slot::B), options)]);
        world.gateway.use_devices(loops.0.clone()).unwrap();
        loops
    }

    /// Slot B takes no writes from now on, or takes them again, whoever has it open.
    pub fn protect(&self, protect: bool) {
        let flag = if protect { "--setro" } else { "--setrw" };
        run(Command::new("blockdev").arg(flag).arg(&self.0[1]));
    }
}

fn attach(file: &Path, options: &[&str]) -> PathBuf {
    let output = run(Command::new("losetup").args(["--find", "--show"]).args(options).arg(file));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.0 {
            complain(Command::new("losetup").arg("--detach").arg(device));
        }
    }
}

/// A mounted file system.
pub struct Mount(PathBuf);

impl Mount {
    /// `mount ARGS FOLDER`; the folder is made.
    pub fn new(args: &[&str], folder: &Path) -> Mount {
        fs::create_dir_all(folder).unwrap();
        run(Command::new("mount").args(args).arg(folder));
        Mount(folder.to_owned())
    }

    /// The file itself, which can only be read there.
    pub fn read_only(file: &Path) -> Mount {
        run(Command::new("mount").arg("--bind").arg(file).arg(file));
        let mount = Mount(file.to_owned());
        mount.remount("bind,ro");
        mount
    }

    /// A RAM disk of `size`, with what the folder held before.
    pub fn ram(size: &str, folder: &Path) -> Mount {
        let before = folder.with_extension("before");
        fs::rename(folder, &before).unwrap();
        let mount = Mount::new(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], folder);
        run(Command::new("cp").arg("-a").arg(before.join(".")).arg(folder));
        mount
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// False while somebody writes there.
    pub fn try_remount(&self, option: &str) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{option}")]).arg(&self.0);
        mount.output().unwrap().status.success()
    }

    pub fn remount(&self, option: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.0));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // An agent that outlives its test by a moment must not keep the mount for ever.
        let unmounted = Command::new("umount").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            complain(Command::new("umount").arg("--lazy").arg(&self.0));
        }
    }
}

/// A test that is ending must not panic again.
fn complain(command: &mut Command) {
    match command.status() {
        Ok(status) if status.success() => {}
        ended => eprintln!("{command:?}: {ended:?}"),
    }
}
