//! Whether the environment lies where the bootloader can read it: on neither slot, and on the slots' disk.
//!
//! A file system that is not mounted leaves an empty folder in the slot, and an environment there would be believed
//! by the agent alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::bootloader::BootError;
use super::{raw, uboot};
use crate::config::BootloaderKind;
use crate::device::{Identity, Kernel};
use crate::slot::Slot;

/// What the environment's place is held against.
#[derive(Debug, Clone)]
pub struct Board {
    pub kernel: Kernel,
    /// The paths that `device::resolve` gave.
    pub slots: [(Slot, PathBuf); 2],
    /// The settings allow several disks.
    pub span_disks: bool,
}

/// An error when the environment lies on a slot, on the root file system, or on another disk than the slots; or
/// when the slots themselves are on several.
pub fn check(kind: &BootloaderKind, board: &Board) -> Result<(), BootError> {
    match kind {
        BootloaderKind::Uboot { config } => {
            for area in uboot::load(config)? {
                board.check_path(&area.path)?;
                board.check_range(&area)?;
            }
            Ok(())
        }
        BootloaderKind::Grub { grubenv } => board.check_path(grubenv),
    }
}

/// An error unless a lost environment may be made anew here: GRUB's only in a FAT file system that is mounted.
pub fn check_rebuild(kind: &BootloaderKind, board: &Board) -> Result<(), BootError> {
    let BootloaderKind::Grub { grubenv } = kind else { return Ok(()) };
    if board.disks().is_empty() {
        return Ok(());
    }
    let folder = grubenv.parent().unwrap_or(Path::new("/"));
    let mounts = folder.ancestors().filter_map(|folder| board.kernel.mounted_at(folder).ok().flatten());
    let mount = mounts.into_iter().next().filter(|mount| mount.point != Path::new("/"));
    match mount {
        Some(mount) if matches!(mount.kind.as_str(), "vfat" | "msdos") => Ok(()),
        found => {
            let what = found.map_or_else(
                || "nothing is mounted there".to_owned(),
                |mount| format!("{} ({}) is mounted there", mount.source, mount.kind),
            );
            Err(BootError::Misplaced(format!(
                "{} is lost and is not rebuilt, for {what}, and no FAT file system: mount the one that GRUB reads",
                grubenv.display()
            )))
        }
    }
}

impl Board {
    fn check_path(&self, path: &Path) -> Result<(), BootError> {
        let place = self.place(path)?;
        for (slot, device) in &self.slots {
            let own = self.kernel.aliases(device).unwrap_or_default();
            if !own.is_disjoint(&place) {
                return Err(self.on_slot(path, *slot));
            }
        }
        let disks = self.disks();
        if disks.is_empty() {
            return Ok(());
        }
        if is_on_root(path) {
            return Err(BootError::Misplaced(format!(
                "{} lies on the root file system, where no bootloader reads the environment: mount the file system that \
                 holds it (is its line in fstab?), or correct [bootloader] in the settings",
                path.display()
            )));
        }
        self.check_disks(path, &disks, &self.kernel.disks(&place))
    }

    /// What the environment's device or file lies on.
    fn place(&self, path: &Path) -> Result<BTreeSet<Identity>, BootError> {
        match std::fs::metadata(path) {
            Ok(meta) => match Identity::from_metadata(&meta) {
                Some(Identity::Block { major, minor }) => Ok(self.kernel.backing(major, minor)),
                Some(file) => {
                    let mut under = self.under(path)?;
                    under.insert(file);
                    Ok(under)
                }
                // Raw flash: on no disk.
                None => Ok(BTreeSet::new()),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let folder = path.ancestors().skip(1).find(|folder| folder.exists());
                self.under(folder.unwrap_or(Path::new("/")))
            }
            Err(error) => Err(raw::failed("examine", path)(error)),
        }
    }

    fn under(&self, path: &Path) -> Result<BTreeSet<Identity>, BootError> {
        let examined = self.kernel.under_file(path);
        examined.map_err(|error| {
            BootError::Misplaced(format!("the boot environment's place is not known: {error}"))
        })
    }

    /// The disks with the slots; none where they are files.
    fn disks(&self) -> BTreeSet<Identity> {
        let devices = self.slots.iter().filter_map(|(_, path)| Identity::of(path).ok());
        let under = devices.flat_map(|identity| match identity {
            Identity::Block { major, minor } => self.kernel.backing(major, minor),
            file @ Identity::File { .. } => BTreeSet::from([file]),
        });
        self.kernel.disks(&under.collect())
    }

    fn check_disks(
        &self,
        path: &Path,
        slots: &BTreeSet<Identity>,
        environment: &BTreeSet<Identity>,
    ) -> Result<(), BootError> {
        if self.span_disks || slots.union(environment).count() < 2 {
            return Ok(());
        }
        let names = |disks: &BTreeSet<Identity>| {
            disks.iter().map(|disk| self.kernel.name(*disk)).collect::<Vec<_>>().join(" and ")
        };
        let (slots, environment) = (names(slots), names(environment));
        Err(BootError::Misplaced(format!(
            "the slots are on {slots} and the boot environment ({}) is on {environment}: name devices of one disk in the \
             settings, or set slots.span_disks = true if this is how the board is built",
            path.display()
        )))
    }

    /// The environment in the middle of a disk must not lie in a slot's partition.
    fn check_range(&self, area: &uboot::Location) -> Result<(), BootError> {
        let (Ok(device), Ok(start)) = (Identity::of(&area.path), u64::try_from(area.offset)) else {
            return Ok(());
        };
        for (slot, path) in &self.slots {
            let extent = Identity::of(path).ok().and_then(|slot| self.kernel.extent(slot));
            let Some((_, first, length)) = extent.filter(|(disk, ..)| *disk == device) else { continue };
            if start < first.saturating_add(length) && start.saturating_add(area.size as u64) > first {
                return Err(self.on_slot(&area.path, *slot));
            }
        }
        Ok(())
    }

    fn on_slot(&self, path: &Path, slot: Slot) -> BootError {
        BootError::Misplaced(format!(
            "the boot environment ({}) lies on slot {slot}, where the bootloader does not read it and updates overwrite it: \
             mount the file system that holds it (is its line in fstab?), or correct [bootloader] in the settings",
            path.display()
        ))
    }
}

/// Whether a file or its folder is on the file system of `/`.
fn is_on_root(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let existing = path.ancestors().find_map(|path| std::fs::metadata(path).ok());
    let is_file =
        |meta: &std::fs::Metadata| !meta.file_type().is_block_device() && !meta.file_type().is_char_device();
    let root = std::fs::metadata("/").map(|root| root.dev());
    existing.filter(is_file).is_some_and(|meta| root.is_ok_and(|root| root == meta.dev()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    use super::*;

    /// Device nodes without a driver, and what sysfs would say of them: disk 240:0 with the slots 240:1 and 240:2 (64
    /// KiB each, from 1 MiB) and 240:3; its eMMC boot partition 240:8; another disk 240:16 with 240:17.
    struct Machine {
        dir: tempfile::TempDir,
        board: Board,
    }

    impl Machine {
        /// `None` without root.
        fn new() -> Option<Machine> {
            if !nix::unistd::geteuid().is_root() {
                eprintln!("skipped: only root can make device nodes");
                return None;
            }
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            fs::create_dir_all(path("sys/dev/block")).unwrap();
            fs::create_dir_all(path("proc/self")).unwrap();
            fs::write(path("proc/self/mountinfo"), "").unwrap();
            let disk = "mmc/block/mmcblk0";
            for (minor, folder, start) in [
                (0, disk.to_owned(), None),
                (1, format!("{disk}/mmcblk0p1"), Some(2048)),
                (2, format!("{disk}/mmcblk0p2"), Some(2176)),
                (3, format!("{disk}/mmcblk0p3"), Some(2304)),
                (8, format!("{disk}/mmcblk0boot0"), None),
                (16, "usb/block/sda".to_owned(), None),
                (17, "usb/block/sda/sda1".to_owned(), Some(2048)),
            ] {
                let folder = path("sys/devices").join(folder);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join("dev"), format!("240:{minor}\n")).unwrap();
                fs::write(folder.join("size"), "128\n").unwrap();
                if let Some(start) = start {
                    fs::write(folder.join("start"), format!("{start}\n")).unwrap();
                }
                symlink(&folder, path(&format!("sys/dev/block/240:{minor}"))).unwrap();
                let node = path(folder.file_name().unwrap().to_str().unwrap());
                mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR, makedev(240, minor)).unwrap();
            }
            let kernel = Kernel { proc: path("proc"), sys: path("sys") };
            let slots = [(Slot::A, path("mmcblk0p1")), (Slot::B, path("mmcblk0p2"))];
            Some(Machine { board: Board { kernel, slots, span_disks: false }, dir })
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// What is said of U-Boot's environment at these places.
        fn uboot(&self, lines: &[&str]) -> Result<(), String> {
            let config = self.path("fw_env.config");
            let text: String =
                lines.iter().map(|line| format!("{}/{line}\n", self.dir.path().display())).collect();
            fs::write(&config, text).unwrap();
            check(&BootloaderKind::Uboot { config }, &self.board).map_err(|error| error.to_string())
        }

        fn grub(&self) -> BootloaderKind {
            BootloaderKind::Grub { grubenv: self.path("esp/grubenv") }
        }
    }

    #[test]
    fn an_environment_on_the_slots_disk_is_where_it_should_be() {
        let Some(machine) = Machine::new() else { return };
        machine.uboot(&["mmcblk0p3 0 1000", "mmcblk0p3 0x1000 1000"]).unwrap();
        machine.uboot(&["mmcblk0boot0 0 1000", "mmcblk0boot0 0x1000 1000"]).unwrap();
        machine.uboot(&["mmcblk0 0x80000 1000", "mmcblk0 0x81000 1000"]).unwrap();
    }

    #[test]
    fn an_environment_in_a_slot_is_an_error() {
        let Some(machine) = Machine::new() else { return };
        for (lines, slot) in [
            (["mmcblk0p2 0 1000", "mmcblk0p2 0x1000 1000"], "slot B"),
            (["mmcblk0p3 0 1000", "mmcblk0p1 0 1000"], "slot A"),
            (["mmcblk0 0x100000 1000", "mmcblk0 0x80000 1000"], "slot A"),
            (["mmcblk0 0x80000 1000", "mmcblk0 0x11f000 1000"], "slot B"),
        ] {
            let said = machine.uboot(&lines).unwrap_err();
            assert!(said.contains(&format!("lies on {slot}")), "{lines:?}: {said}");
        }
    }

    #[test]
    fn an_environment_or_a_slot_on_another_disk_needs_a_setting() {
        let Some(mut machine) = Machine::new() else { return };
        let lines = ["sda1 0 1000", "sda1 0x1000 1000"];
        let said = machine.uboot(&lines).unwrap_err();
        assert!(said.contains("on mmcblk0 and") && said.contains("is on sda"), "{said}");
        machine.board.span_disks = true;
        machine.uboot(&lines).unwrap();
        machine.board.span_disks = false;
        machine.board.slots[1].1 = machine.path("sda1");
        let said = machine.uboot(&["mmcblk0p3 0 1000", "mmcblk0p3 0x1000 1000"]).unwrap_err();
        assert!(said.contains("the slots are on mmcblk0 and sda"), "{said}");
    }

    /// The ESP is not mounted: its folder is empty, and lies on the slot that runs.
    #[test]
    fn a_grubenv_in_an_empty_mount_point_is_an_error() {
        let Some(mut machine) = Machine::new() else { return };
        fs::create_dir(machine.path("esp")).unwrap();
        let said =
            |machine: &Machine| check(&machine.grub(), &machine.board).map_err(|error| error.to_string());
        if fs::metadata("/").unwrap().dev() == fs::metadata(machine.path("esp")).unwrap().dev() {
            let said = said(&machine).unwrap_err();
            assert!(said.contains("lies on the root file system") && said.contains("fstab"), "{said}");
        }
        // The slot's number is the folder's.
        let slot = machine.path("running");
        mknod(&slot, SFlag::S_IFBLK, Mode::S_IRUSR, fs::metadata(machine.path("esp")).unwrap().dev())
            .unwrap();
        machine.board.slots[0].1 = slot;
        for there in [false, true] {
            there.then(|| fs::write(machine.path("esp/grubenv"), "").unwrap());
            let said = said(&machine).unwrap_err();
            assert!(said.contains("lies on slot A") && said.contains("fstab"), "{said}");
        }
    }

    #[test]
    fn a_lost_grubenv_is_rebuilt_on_a_mounted_fat_only() {
        let Some(machine) = Machine::new() else { return };
        let esp = machine.path("esp");
        fs::create_dir(&esp).unwrap();
        let point = fs::canonicalize(&esp).unwrap().display().to_string();
        for (mounts, word) in [
            (String::new(), Some("nothing is mounted there")),
            (
                format!("30 1 8:1 / {point} rw - ext4 /dev/sda1 rw\n"),
                Some("/dev/sda1 (ext4) is mounted there"),
            ),
            (format!("30 1 8:1 / {point} rw - vfat /dev/sda1 rw\n"), None),
        ] {
            fs::write(
                machine.path("proc/self/mountinfo"),
                format!("1 1 8:2 / / rw - ext4 /dev/sda2 rw\n{mounts}"),
            )
            .unwrap();
            let said = check_rebuild(&machine.grub(), &machine.board).map_err(|error| error.to_string());
            match word {
                None => said.unwrap(),
                Some(word) => assert!(said.as_ref().is_err_and(|said| said.contains(word)), "{said:?}"),
            }
        }
    }
}
