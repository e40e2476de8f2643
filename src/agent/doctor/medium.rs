//! What no update has tripped over yet: media that can't be written or don't last, slots that differ, and a dead-man
//! that is faster than the verdict. `--check-config` asks these too.

use std::fs;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};

use super::{Answer, Subject};
use crate::boot;
use crate::config;
use crate::slot::Slot;

/// ramfs, as statfs(2) has it.
const RAMFS_MAGIC: i64 = 0x8584_58f6;
/// Where systemd looks for the timer and what overrides it; later ones win.
const UNITS: [&str; 3] = ["/usr/lib/systemd/system", "/run/systemd/system", "/etc/systemd/system"];
const TIMER: &str = "fwupdate-deadman.timer";
/// What a boot may take until the agent starts.
const BOOT: Duration = Duration::from_secs(120);

/// Devices that the kernel does not let anybody write: slots and the boot environment.
pub(super) fn read_only(subject: &Subject) -> Option<Answer> {
    let gateway = &subject.gateway;
    let mut places = vec![gateway.device(Slot::A), gateway.device(Slot::B)];
    places.extend(boot::places(&gateway.settings.bootloader.kind).unwrap_or_default());
    let blocked: Vec<String> = places
        .iter()
        .filter(|place| is_read_only(place, &gateway.settings.system.sys))
        .map(|place| place.display().to_string())
        .collect();
    let why = format!(
        "{} cannot be written: set force_ro in /sys/block to 0 (eMMC boot partitions), or slide the lock switch of \
         the SD card",
        blocked.join(", ")
    );
    Some(Answer::of("slots and boot environment can be written", blocked.is_empty().then_some(()).ok_or(why)))
}

fn is_read_only(place: &Path, sys: &Path) -> bool {
    let Ok(meta) = fs::metadata(place) else { return false };
    let device = if meta.file_type().is_block_device() { meta.rdev() } else { return false };
    let folder = sys.join(format!("dev/block/{}:{}", major(device), minor(device)));
    // A partition has a flag of its own, and its disk another.
    [folder.join("ro"), folder.join("../ro")]
        .iter()
        .any(|flag| fs::read_to_string(flag).is_ok_and(|text| text.trim() == "1"))
}

/// An image must fit both.
pub(super) fn sizes(subject: &Subject) -> Option<Answer> {
    let size = |slot: Slot| {
        let mut file = fs::File::open(subject.gateway.device(slot)).ok()?;
        file.seek(SeekFrom::End(0)).ok()
    };
    let (a, b) = (size(Slot::A)?, size(Slot::B)?);
    let doubt =
        format!("slot A has {a} bytes and slot B {b}: images must fit the smaller one; make them equal");
    Some(Answer::doubt("of one size", (a != b).then_some(doubt)))
}

/// A state folder in memory forgets what a trial was about.
pub(super) fn lasting(subject: &Subject) -> Option<Answer> {
    let dir = &subject.gateway.settings.state.dir;
    let existing = dir.ancestors().find(|dir| dir.exists())?;
    let volatile = match kind(existing)? {
        Kind::Memory => true,
        Kind::Overlay => upper_is_in_memory(subject, existing),
        Kind::Disk => false,
    };
    let why = format!(
        "{} lies in memory and is empty after each reboot: no trial would be remembered; mount a partition there",
        dir.display()
    );
    Some(Answer::of("on a medium that lasts", (!volatile).then_some(()).ok_or(why)))
}

enum Kind {
    Memory,
    Overlay,
    Disk,
}

// The kernel's type is narrower on 32 bits.
#[allow(clippy::useless_conversion)]
fn kind(dir: &Path) -> Option<Kind> {
    let found = statfs(dir).ok()?.filesystem_type();
    Some(match found {
        TMPFS_MAGIC => Kind::Memory,
        OVERLAYFS_SUPER_MAGIC => Kind::Overlay,
        other if i64::from(other.0) == RAMFS_MAGIC => Kind::Memory,
        _ => Kind::Disk,
    })
}

/// Where an overlay's changes go; a folder that can't be seen from here is often one of the initial RAM disk, of which
/// nothing is known.
fn upper_is_in_memory(subject: &Subject, dir: &Path) -> bool {
    let text = fs::read_to_string(subject.gateway.settings.system.proc.join("self/mountinfo"));
    let text = text.or_else(|_| fs::read_to_string("/proc/self/mountinfo")).unwrap_or_default();
    let overlay = text.lines().filter_map(overlay_of).filter(|(point, _)| dir.starts_with(point));
    let deepest = overlay.max_by_key(|(point, _)| point.components().count());
    deepest.is_some_and(|(_, upper)| matches!(kind(&upper), Some(Kind::Memory)))
}

/// Mount point and upper layer of a line of proc_pid_mountinfo(5) about an overlay.
fn overlay_of(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (before, after) = line.split_once(" - overlay ")?;
    let point = before.split(' ').nth(4)?;
    let upper = after.split([' ', ',']).find_map(|option| option.strip_prefix("upperdir="))?;
    Some((PathBuf::from(point), PathBuf::from(upper)))
}

/// The verdict must fall before the dead-man reboots the trial.
pub(super) fn dead_man(subject: &Subject) -> Option<Answer> {
    let fires = on_boot(&UNITS.map(PathBuf::from))?;
    let deadline = subject.gateway.settings.health.deadline;
    let needed = deadline.saturating_add(BOOT);
    let why = format!(
        "{TIMER} reboots a trial after {} s, and health.deadline is {} s from the agent's start: raise OnBootSec= in \
         a drop-in (docs/watchdog.md), or lower the deadline",
        fires.as_secs(),
        deadline.as_secs()
    );
    Some(Answer::of("later than the verdict", (needed <= fires).then_some(()).ok_or(why)))
}

/// `OnBootSec=` of the timer with its drop-ins; `None`: not installed, or not understood.
fn on_boot(folders: &[PathBuf]) -> Option<Duration> {
    let mut files = vec![folders.iter().rev().map(|dir| dir.join(TIMER)).find(|file| file.exists())?];
    let drop_ins =
        folders.iter().flat_map(|dir| fs::read_dir(dir.join(format!("{TIMER}.d"))).into_iter().flatten());
    let mut drop_ins: Vec<PathBuf> = drop_ins.flatten().map(|entry| entry.path()).collect();
    drop_ins.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    files.extend(drop_ins);
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    let values: Vec<String> = texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| line.trim().strip_prefix("OnBootSec=").map(|value| value.trim().to_owned()))
        .collect();
    // An empty value takes back those before it; of several the first to come fires.
    let last_reset = values.iter().rposition(String::is_empty).map_or(0, |at| at.saturating_add(1));
    values.iter().skip(last_reset).filter_map(|value| config::duration(value)).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_man_is_read_with_its_drop_ins() {
        let dir = tempfile::tempdir().unwrap();
        let folders = ["lib", "etc"].map(|name| dir.path().join(name));
        assert_eq!(on_boot(&folders), None);
        let drop_ins = folders[1].join(format!("{TIMER}.d"));
        fs::create_dir_all(&folders[0]).unwrap();
        fs::create_dir_all(&drop_ins).unwrap();
        fs::write(folders[0].join(TIMER), "[Timer]\n# OnBootSec=1s\nOnBootSec=20min\n").unwrap();
        assert_eq!(on_boot(&folders), Some(Duration::from_secs(1200)));
        fs::write(drop_ins.join("later.conf"), "[Timer]\nOnBootSec=\nOnBootSec=40min\n").unwrap();
        assert_eq!(on_boot(&folders), Some(Duration::from_secs(2400)));
    }

    #[test]
    fn an_overlay_tells_where_its_changes_go() {
        let line = "36 35 0:30 / /data rw,relatime shared:1 - overlay overlay rw,lowerdir=/l,upperdir=/run/u,workdir=/w";
        let expected = (PathBuf::from("/data"), PathBuf::from("/run/u"));
        assert_eq!(overlay_of(line), Some(expected));
        assert_eq!(overlay_of("36 35 0:30 / /data rw - ext4 /dev/sda1 rw"), None);
    }

    #[test]
    fn a_device_is_read_only_by_its_own_flag_or_its_disks() {
        let sys = tempfile::tempdir().unwrap();
        assert!(!is_read_only(Path::new("/dev/null"), sys.path()), "no block device");
        assert!(!is_read_only(&sys.path().join("nothing"), sys.path()));
    }
}
