//! What stands under a device or a mount, read from `/proc` and `/sys` (proc(5), "mountinfo"; the kernel's
//! Documentation/ABI for `slaves` and `loop/backing_file`).
//!
//! The two folders are arguments, so that a simulated machine is examined by the very same code.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::identity::{DeviceError, Identity};
use super::mounts::{Mount, covering, layers, parse_mount, parse_number};

#[cfg(test)]
mod tests;

/// File systems with an anonymous number that name their device, which only root can mount. Elsewhere the source is a
/// text that whoever mounts may choose: any user's FUSE file system can be named like a slot.
const NAME_A_DEVICE: [&str; 2] = ["btrfs", "bcachefs"];

/// The kernel's own view of the machine.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub proc: PathBuf,
    pub sys: PathBuf,
}

impl Kernel {
    /// Everything that a block device stands on, itself included: the devices below it (`slaves`), and a loop
    /// device's file. What the file itself lies on is not followed: that disk holds many other things.
    pub fn backing(&self, major: u64, minor: u64) -> BTreeSet<Identity> {
        let mut found = BTreeSet::new();
        let mut todo = vec![Identity::Block { major, minor }];
        while let Some(identity) = todo.pop() {
            if !found.insert(identity) {
                continue;
            }
            if let Identity::Block { major, minor } = identity {
                todo.extend(self.slaves(major, minor));
                todo.extend(self.loop_file(major, minor));
            }
        }
        found
    }

    /// The names of the very bytes at `path`: its own identity and, for a loop device that shows a whole
    /// file, the file's. A target is in use when one of these is among [`Kernel::in_use`].
    pub fn aliases(&self, path: &Path) -> Result<BTreeSet<Identity>, DeviceError> {
        let mut found = BTreeSet::new();
        let mut next = Some(Identity::of(path)?);
        while let Some(identity) = next {
            if !found.insert(identity) {
                break;
            }
            next = match identity {
                Identity::Block { major, minor } if self.loop_offset(major, minor) == 0 => {
                    self.loop_file(major, minor)
                }
                _ => None,
            };
        }
        Ok(found)
    }

    /// Everything that the file or folder at `path` lies on: the file system's device and what that stands on.
    /// Empty where it lies on none (tmpfs) or it can't be told.
    pub fn under_file(&self, path: &Path) -> Result<BTreeSet<Identity>, DeviceError> {
        let meta = fs::metadata(path).map_err(|source| DeviceError::at(path, source))?;
        let (major, minor) = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
        if major != 0 {
            return Ok(self.backing(major, minor));
        }
        // btrfs, overlay and their like: the mount of that number knows.
        let mounts = self.mounts()?;
        let same = |mount: &&Mount| mount.major == 0 && mount.minor == minor;
        let index = mounts.iter().rev().find(same).and_then(|found| mounts.iter().position(|m| m == found));
        Ok(index.map(|index| self.under(&mounts, index)).unwrap_or_default())
    }

    /// The whole disks that these devices are parts of. A file, also one that a loop device shows, is on no disk of
    /// its own.
    pub fn disks(&self, devices: &BTreeSet<Identity>) -> BTreeSet<Identity> {
        let blocks = devices.iter().filter_map(|identity| match identity {
            Identity::Block { major, minor } => Some((*major, *minor)),
            Identity::File { .. } => None,
        });
        let leaves = blocks.filter(|(major, minor)| self.slaves(*major, *minor).is_empty());
        let file = |major, minor| self.device_dir(major, minor).join("loop/backing_file").exists();
        let whole = leaves
            .filter(|(major, minor)| !file(*major, *minor))
            .map(|(major, minor)| self.parent(major, minor).unwrap_or(Identity::Block { major, minor }));
        whole.collect()
    }

    /// The disk of a partition, or of an eMMC's boot partition: the device whose folder in sysfs holds its own.
    fn parent(&self, major: u64, minor: u64) -> Option<Identity> {
        let dir = fs::canonicalize(self.device_dir(major, minor)).ok()?;
        let above = dir.parent().filter(|above| above.join("size").exists())?;
        let (major, minor) = parse_number(fs::read_to_string(above.join("dev")).ok()?.trim())?;
        Some(Identity::Block { major, minor })
    }

    /// First byte and length of a partition on its disk.
    pub fn extent(&self, partition: Identity) -> Option<(Identity, u64, u64)> {
        let Identity::Block { major, minor } = partition else { return None };
        let number = |name: &str| -> Option<u64> {
            fs::read_to_string(self.device_dir(major, minor).join(name)).ok()?.trim().parse().ok()
        };
        let sectors = |count: u64| count.checked_mul(512);
        Some((self.parent(major, minor)?, sectors(number("start")?)?, sectors(number("size")?)?))
    }

    /// Whether the kernel refuses writes to this device: its own flag, or that of the disk it is on.
    pub fn is_read_only(&self, device: Identity) -> bool {
        let Identity::Block { major, minor } = device else { return false };
        let set = |major, minor| {
            fs::read_to_string(self.device_dir(major, minor).join("ro")).is_ok_and(|flag| flag.trim() == "1")
        };
        let disk = self.parent(major, minor).is_some_and(|disk| match disk {
            Identity::Block { major, minor } => set(major, minor),
            Identity::File { .. } => false,
        });
        disk || set(major, minor)
    }

    /// The names of all partitions whose label (`PARTNAME`) or id (`PARTUUID`) is the one that is `meant`.
    pub fn partitions(&self, key: &str, meant: impl Fn(&str) -> bool) -> Vec<String> {
        let entries = fs::read_dir(self.sys.join("class/block")).into_iter().flatten().flatten();
        let means = |dir: &Path| {
            let text = fs::read_to_string(dir.join("uevent")).unwrap_or_default();
            let known = (text + &self.udev(dir)).replace("E:ID_PART_ENTRY_UUID=", "PARTUUID=");
            let mut fields = known.lines().filter_map(|line| line.split_once('='));
            fields.any(|(found, text)| found == key && meant(text))
        };
        let found = entries.map(|entry| entry.path()).filter(|dir| means(dir));
        let mut names: Vec<String> =
            found.filter_map(|dir| Some(dir.file_name()?.to_string_lossy().into_owned())).collect();
        names.sort();
        names
    }

    /// What udev remembers of a device: the kernel itself tells partitions' ids since Linux 6.10 only.
    fn udev(&self, dir: &Path) -> String {
        if self.sys != Path::new("/sys") {
            return String::new();
        }
        let number = fs::read_to_string(dir.join("dev")).unwrap_or_default();
        fs::read_to_string(format!("/run/udev/data/b{}", number.trim())).unwrap_or_default()
    }

    /// How a device is called: its name in sysfs, else its number.
    pub fn name(&self, identity: Identity) -> String {
        let Identity::Block { major, minor } = identity else { return "a file".to_owned() };
        let dir = fs::canonicalize(self.device_dir(major, minor)).ok();
        let name = dir.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_else(|| format!("{major}:{minor}"))
    }

    /// The mount that is mounted at exactly this folder, the last where several are.
    pub fn mounted_at(&self, folder: &Path) -> Result<Option<Mount>, DeviceError> {
        let folder = fs::canonicalize(folder).map_err(|source| DeviceError::at(folder, source))?;
        Ok(self.mounts()?.into_iter().rfind(|mount| mount.point == folder))
    }

    /// All mounts of this process's namespace, in the kernel's order.
    pub fn mounts(&self) -> Result<Vec<Mount>, DeviceError> {
        let path = self.proc.join("self/mountinfo");
        let text = fs::read(&path).map_err(|source| DeviceError::Io { path, source })?;
        Ok(String::from_utf8_lossy(&text).lines().filter_map(parse_mount).collect())
    }

    /// Everything that the root file system stands on, through overlays too.
    pub fn root(&self) -> Result<BTreeSet<Identity>, DeviceError> {
        let mounts = self.mounts()?;
        Ok(match covering(&mounts, Path::new("/")) {
            Some(index) => self.under(&mounts, index),
            None => BTreeSet::new(),
        })
    }

    /// The upper folder of the overlay that shows `path`.
    pub fn overlay_upper(&self, path: &Path) -> Option<PathBuf> {
        let mounts = self.mounts().ok()?;
        let path = fs::canonicalize(path).ok()?;
        let mount = mounts.get(covering(&mounts, &path)?).filter(|mount| mount.kind == "overlay")?;
        mount.options.iter().find_map(|option| option.strip_prefix("upperdir=")).map(PathBuf::from)
    }

    /// Whether the mount that shows `path` is a RAM disk, as far as this namespace still shows it.
    pub fn is_on_tmpfs(&self, path: &Path) -> bool {
        let mounts = self.mounts().unwrap_or_default();
        let mount = covering(&mounts, path).and_then(|index| mounts.get(index));
        mount.is_some_and(|mount| matches!(mount.kind.as_str(), "tmpfs" | "ramfs"))
    }

    /// The memory that `path` lies on though its file system is that of a disk: a RAM disk, zram, or a file on tmpfs
    /// that a loop device shows.
    pub fn memory_under(&self, path: &Path) -> Option<String> {
        let mounts = self.mounts().unwrap_or_default();
        let on_tmpfs = |device| {
            let number = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
            mounts.iter().any(|mount| mount.kind == "tmpfs" && (mount.major, mount.minor) == number)
        };
        self.under_file(path).ok()?.into_iter().find_map(|identity| match identity {
            Identity::File { device, .. } => on_tmpfs(device).then(|| "a file on tmpfs".to_owned()),
            Identity::Block { .. } => {
                Some(self.name(identity)).filter(|name| name.starts_with("zram") || name.starts_with("ram"))
            }
        })
    }

    /// Everything that any mounted file system stands on.
    pub fn in_use(&self) -> Result<BTreeSet<Identity>, DeviceError> {
        let mounts = self.mounts()?;
        Ok((0..mounts.len()).flat_map(|index| self.under(&mounts, index)).collect())
    }

    fn under(&self, mounts: &[Mount], index: usize) -> BTreeSet<Identity> {
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut todo = vec![index];
        while let Some(index) = todo.pop() {
            let Some(mount) = mounts.get(index).filter(|_| seen.insert(index)) else { continue };
            if mount.major != 0 {
                found.extend(self.backing(mount.major, mount.minor));
            } else if NAME_A_DEVICE.contains(&mount.kind.as_str()) {
                if let Ok(Identity::Block { major, minor }) = Identity::of(Path::new(&mount.source)) {
                    found.extend(self.backing(major, minor));
                }
            }
            if mount.kind == "overlay" {
                todo.extend(layers(mount).iter().filter_map(|layer| covering(mounts, layer)));
            }
        }
        found
    }

    fn device_dir(&self, major: u64, minor: u64) -> PathBuf {
        self.sys.join(format!("dev/block/{major}:{minor}"))
    }

    fn slaves(&self, major: u64, minor: u64) -> Vec<Identity> {
        let Ok(entries) = fs::read_dir(self.device_dir(major, minor).join("slaves")) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("dev")).ok())
            .filter_map(|number| parse_number(number.trim()))
            .map(|(major, minor)| Identity::Block { major, minor })
            .collect()
    }

    fn loop_file(&self, major: u64, minor: u64) -> Option<Identity> {
        let path = self.device_dir(major, minor).join("loop/backing_file");
        let mut bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "cannot read a loop device's file name");
                return None;
            }
        };
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        Identity::of(Path::new(std::str::from_utf8(&bytes).ok()?)).ok()
    }

    fn loop_offset(&self, major: u64, minor: u64) -> u64 {
        let path = self.device_dir(major, minor).join("loop/offset");
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }
}
