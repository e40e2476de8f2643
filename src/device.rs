//! What the kernel knows of block devices: which device a name means, and what a mounted file system really
//! stands on (through partitions, loop devices, device mapper and overlays).

mod identity;
mod kernel;
mod mounts;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use identity::{DeviceError, Identity};
pub use kernel::Kernel;
pub use mounts::Mount;

/// What to do about a device that takes no writes.
pub const READ_ONLY: &str = "is read-only: check the lock switch of an SD card, force_ro of an eMMC's boot partition, \
                             or `blockdev --setrw`; flash that wore out also ends so";

/// What helps against an error of a write, for messages: empty, where its name says all.
pub fn remedy(error: &io::Error) -> &'static str {
    use nix::libc::{EACCES, EIO, ENOSPC, EPERM, EROFS};
    match error.raw_os_error() {
        Some(EROFS) => {
            "; it is read-only: remount it, check the lock switch of an SD card and force_ro of an eMMC"
        }
        Some(EIO) => "; the medium failed: see the kernel's log, and replace the storage if it comes again",
        Some(ENOSPC) => "; it is full: delete what is not needed there, or make it larger",
        Some(EPERM | EACCES) => {
            "; it is read-only (the lock switch of an SD card, force_ro of an eMMC's boot partition, `blockdev --setrw`), \
             or the agent may not write: check the unit's DeviceAllow and ReadWritePaths, and the device's owner"
        }
        _ => "",
    }
}

/// The kind of memory that `dir` lies on, if that is lost with the power; seen through overlays.
pub fn volatile(dir: &Path, kernel: &Kernel) -> Option<String> {
    use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};
    let existing = dir.ancestors().find(|dir| dir.exists())?;
    let kind = statfs(existing).ok()?.filesystem_type();
    if kind == TMPFS_MAGIC || kind.0 == RAMFS_MAGIC {
        return Some("a RAM disk (tmpfs)".to_owned());
    }
    if kind != OVERLAYFS_SUPER_MAGIC {
        return kernel.memory_under(existing).map(|device| format!("a RAM disk ({device})"));
    }
    let upper = kernel.overlay_upper(existing)?;
    let ram = statfs(&upper).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
        || kernel.is_on_tmpfs(&upper)
        || kernel.memory_under(&upper).is_some();
    ram.then(|| format!("an overlay whose upper layer ({}) is a RAM disk", upper.display()))
}

/// linux/magic.h
const RAMFS_MAGIC: nix::libc::__fsword_t = 0x858458f6u32 as nix::libc::__fsword_t;

/// Bytes of a block device or a regular file.
pub fn size(path: &Path) -> io::Result<u64> {
    use std::io::Seek;
    fs::File::open(path)?.seek(io::SeekFrom::End(0))
}

/// As [`resolve`], but the device need not be there yet.
pub fn path_of(name: &str) -> Result<PathBuf, DeviceError> {
    locate(name, Path::new("/dev"))
}

/// The path of the device or file that a setting names: an absolute path, `PARTLABEL=` or `PARTUUID=`.
///
/// The path exists and is a block device or a regular file; it is not canonical, for a name that survives
/// re-enumeration of the disks is worth keeping.
pub fn resolve(name: &str, kernel: &Kernel) -> Result<PathBuf, DeviceError> {
    check_unique(name, kernel)?;
    resolve_in(name, Path::new("/dev"))
}

/// A label that several partitions have means none: the link in `/dev/disk` leads to whichever came last.
pub fn check_unique(name: &str, kernel: &Kernel) -> Result<(), DeviceError> {
    let link = locate(name, Path::new("/dev")).unwrap_or_default();
    let id = |folder: &str| link.strip_prefix(folder).ok()?.to_str();
    let found = match (id("/dev/disk/by-partlabel"), id("/dev/disk/by-partuuid")) {
        (Some(label), _) => kernel.partitions("PARTNAME", |text| udev_name(text) == label),
        (_, Some(id)) => kernel.partitions("PARTUUID", |text| text.eq_ignore_ascii_case(id)),
        _ => Vec::new(),
    };
    if found.len() < 2 {
        return Ok(());
    }
    Err(DeviceError::Several { name: name.to_owned(), found })
}

fn resolve_in(name: &str, dev: &Path) -> Result<PathBuf, DeviceError> {
    let path = locate(name, dev)?;
    match Identity::of(&path) {
        Ok(_) => Ok(path),
        Err(DeviceError::NoSuchPath(path)) if name.contains('=') && !name.starts_with('/') => {
            Err(DeviceError::Missing { name: name.to_owned(), path })
        }
        Err(error) => Err(error),
    }
}

fn locate(name: &str, dev: &Path) -> Result<PathBuf, DeviceError> {
    if name.starts_with('/') && !name.contains('\0') {
        return Ok(PathBuf::from(name));
    }
    match name.split_once('=') {
        Some(("PARTLABEL", label)) if !label.is_empty() => {
            Ok(dev.join("disk/by-partlabel").join(udev_name(label)))
        }
        Some(("PARTUUID", id)) if is_part_id(id) => {
            Ok(dev.join("disk/by-partuuid").join(id.to_ascii_lowercase()))
        }
        Some(("UUID" | "LABEL", _)) => Err(DeviceError::Ambiguous(name.to_owned())),
        _ => Err(DeviceError::BadName(name.to_owned())),
    }
}

/// GPT: 36 characters; MBR: `12345678-01`.
fn is_part_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 36 && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// A partition's label as udev spells it in `/dev/disk/by-partlabel`: all but letters, digits, `#+-.:=@_` and
/// non-ASCII text becomes `\xNN` (systemd, `encode_devnode_name`).
fn udev_name(label: &str) -> String {
    let mut name = String::with_capacity(label.len());
    for c in label.chars() {
        if !c.is_ascii() || c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) {
            name.push(c);
        } else {
            name.push_str(&format!("\\x{:02x}", u32::from(c)));
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn a_file_has_one_identity_under_every_name() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("slot"), dir.path().join("link"));
        fs::write(&file, "x").unwrap();
        symlink(&file, &link).unwrap();
        let meta = fs::metadata(&file).unwrap();
        let expected = Identity::File { device: meta.dev(), inode: meta.ino() };
        assert_eq!(Identity::of(&file).unwrap(), expected);
        assert_eq!(Identity::of(&link).unwrap(), expected);
    }

    #[test]
    fn folders_and_character_devices_are_no_slots() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Identity::of(dir.path()), Err(DeviceError::NotADevice(_))));
        assert!(matches!(Identity::of(Path::new("/dev/null")), Err(DeviceError::NotADevice(_))));
    }

    #[test]
    fn names_lead_to_devices() {
        let dir = tempfile::tempdir().unwrap();
        let dev = dir.path();
        fs::create_dir_all(dev.join("disk/by-partlabel")).unwrap();
        fs::create_dir_all(dev.join("disk/by-partuuid")).unwrap();
        for name in ["disk/by-partlabel/root\\x20a\\x2f1", "disk/by-partuuid/0f0e-01", "sda"] {
            fs::write(dev.join(name), "").unwrap();
        }
        let plain = dev.join("sda");
        let resolved = |name: &str| resolve_in(name, dev).unwrap();
        assert_eq!(resolved(plain.to_str().unwrap()), plain);
        assert_eq!(resolved("PARTLABEL=root a/1"), dev.join("disk/by-partlabel/root\\x20a\\x2f1"));
        assert_eq!(resolved("PARTUUID=0F0E-01"), dev.join("disk/by-partuuid/0f0e-01"));
    }

    #[test]
    fn errors_of_writes_say_what_helps() {
        for (errno, word) in
            [(30, "lock switch"), (5, "replace the storage"), (28, "full"), (1, "DeviceAllow"), (11, "")]
        {
            assert!(remedy(&io::Error::from_raw_os_error(errno)).contains(word), "{errno}");
        }
    }

    #[test]
    fn a_label_of_two_partitions_means_neither() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Kernel { proc: dir.path().join("proc"), sys: dir.path().to_owned() };
        for (name, uevent) in [
            ("mmcblk0p3", "DEVNAME=mmcblk0p3\nPARTNAME=rootfs-b\nPARTUUID=0f0e-03\n"),
            ("sda3", "DEVNAME=sda3\nPARTNAME=rootfs-b\nPARTUUID=0F0E-03\n"),
            ("sda2", "DEVNAME=sda2\nPARTNAME=rootfs-a\nPARTUUID=0f0e-02\n"),
        ] {
            let folder = dir.path().join("class/block").join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("uevent"), uevent).unwrap();
        }
        for name in ["PARTLABEL=rootfs-b", "PARTUUID=0f0e-03"] {
            let error = resolve(name, &kernel).unwrap_err();
            assert!(error.to_string().contains("mmcblk0p3 and sda3"), "{error}");
        }
        for name in ["/dev/disk/by-partlabel/rootfs-b", "/dev/disk/by-partuuid/0f0e-03"] {
            let error = resolve(name, &kernel).unwrap_err();
            assert!(error.to_string().contains("mmcblk0p3 and sda3"), "{name}: {error}");
        }
        for name in ["PARTLABEL=rootfs-a", "PARTUUID=0f0e-02", "/dev/null"] {
            check_unique(name, &kernel).unwrap();
        }
    }

    struct Mounted(PathBuf);

    impl Mounted {
        fn new(kind: &str, options: &str, folder: PathBuf) -> Mounted {
            Mounted::of(Path::new(kind), kind, options, folder)
        }

        fn of(source: &Path, kind: &str, options: &str, folder: PathBuf) -> Mounted {
            fs::create_dir(&folder).unwrap();
            let mut mount = std::process::Command::new("mount");
            mount.args(["-t", kind, "-o", options]).arg(source).arg(&folder);
            assert!(mount.status().unwrap().success(), "{mount:?}");
            Mounted(folder)
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            drop(std::process::Command::new("umount").arg(&self.0).status());
        }
    }

    #[test]
    fn memory_is_seen_through_an_overlay() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("SKIPPED memory_is_seen_through_an_overlay: mounts need root");
        }
        let kernel = Kernel { proc: "/proc".into(), sys: "/sys".into() };
        let dir = tempfile::tempdir().unwrap();
        let lower = dir.path().join("lower");
        fs::create_dir(&lower).unwrap();
        assert_eq!(volatile(&lower, &kernel), None);
        let ram = Mounted::new("tmpfs", "size=1m", dir.path().join("ram"));
        assert_eq!(volatile(&ram.0.join("to/be/made"), &kernel).as_deref(), Some("a RAM disk (tmpfs)"));
        let [upper, work] = ["upper", "work"].map(|name| ram.0.join(name));
        [&upper, &work].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let overlay = Mounted::new("overlay", &layers, dir.path().join("overlay"));
        let found = volatile(&overlay.0, &kernel).unwrap();
        assert!(found.contains(&upper.display().to_string()), "{found}");
    }

    #[test]
    fn memory_is_seen_through_a_loop_device() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("SKIPPED memory_is_seen_through_a_loop_device: mounts need root");
        }
        let kernel = Kernel { proc: "/proc".into(), sys: "/sys".into() };
        let dir = tempfile::tempdir().unwrap();
        let ram = Mounted::new("tmpfs", "size=16m", dir.path().join("ram"));
        for (folder, expected) in
            [(&ram.0, Some("a RAM disk (a file on tmpfs)")), (&dir.path().to_owned(), None)]
        {
            let image = folder.join("image");
            fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
            let made = std::process::Command::new("mkfs.ext4").arg("-q").arg(&image).status().unwrap();
            assert!(made.success());
            let mounted = Mounted::of(
                &image,
                "ext4",
                "loop",
                dir.path().join(if expected.is_some() { "a" } else { "b" }),
            );
            assert_eq!(volatile(&mounted.0.join("state"), &kernel).as_deref(), expected);
        }
    }

    #[test]
    fn names_that_mean_nothing_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "sda1", "PARTLABEL=", "PARTUUID=", "PARTUUID=../sda", "ROOT=x", "/a\0b"] {
            assert!(matches!(resolve_in(name, dir.path()), Err(DeviceError::BadName(_))), "{name:?}");
        }
        assert!(matches!(resolve_in("UUID=1234", dir.path()), Err(DeviceError::Ambiguous(_))));
        assert!(matches!(resolve_in("PARTLABEL=b", dir.path()), Err(DeviceError::Missing { .. })));
        assert!(matches!(resolve_in("/nowhere=1", dir.path()), Err(DeviceError::NoSuchPath(_))));
    }
}
