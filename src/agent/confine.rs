//! The part of the service's sandbox that depends on the settings and on this boot: which devices and files the agent
//! may open, and how.
//!
//! `fwupdate-generator` asks for it (`fwupdated --generate`) before units are loaded and devices are looked at, when the
//! state folder is not there yet: only the settings in `/usr/lib` and `/etc` count, and the kernel command line.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::boot;
use crate::config::RootSettings;
use crate::device;
use crate::failure::{Code, Failure};
use crate::slot::Slot;

/// The group of the agent alone (`systemd/fwupdate.sysusers`).
const GROUP: &str = "fwupdate-agent";

/// Slots and boot environment; a token may be any device.
const DISKS: &str = "SUBSYSTEM==\"block\", ";

/// What the agent may do with a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// The texts for systemd and udev.
#[derive(Debug)]
pub struct Confinement {
    /// A drop-in for `fwupdate.service` (systemd.unit(5)).
    pub service: String,
    /// Rules for the devices' permissions (udev(7)).
    pub rules: String,
    /// Mount units with a drop-in, which opens a file system without owners to the agent.
    pub mounts: Vec<(String, String)>,
}

/// The slot that runs can be read, for its content is reused; the other one and the boot environment can be written.
/// `booted` is what the kernel command line says: a boot that names no slot writes nothing.
///
/// `fstab` is the table of file systems, and `group` the number of the agent's group, if there is one.
pub fn confine(
    board: &RootSettings,
    booted: Option<Slot>,
    fstab: &str,
    group: Option<u32>,
) -> Result<Confinement, Failure> {
    let mut sandbox = Sandbox::default();
    for (place, access) in places(board, booted)? {
        match place.strip_prefix("/dev") {
            Ok(name) => sandbox.device(&place, name, access, DISKS),
            Err(_) => sandbox.file(&place, access, fstab, group),
        }
    }
    if let Some(device) = &board.key_device {
        let name = device.strip_prefix("/dev").map_err(|_| {
            Failure::new(Code::NotReady, format!("cloud.key_device {} is not below /dev", device.display()))
        })?;
        sandbox.device(device, name, Access::Write, "TAG+=\"systemd\", ");
    }
    if board.state.dir != Path::new("/var/lib/fwupdate") {
        sandbox.unit.push(format!("RequiresMountsFor={}", quoted(&board.state.dir)));
        sandbox.service.push(format!("ReadWritePaths={}", quoted(&board.state.dir)));
    }
    Ok(sandbox.texts())
}

fn places(board: &RootSettings, booted: Option<Slot>) -> Result<BTreeMap<PathBuf, Access>, Failure> {
    let named =
        |name: &String| device::path_of(name).map_err(|e| Failure::new(Code::NotReady, e.to_string()));
    let if_known = |access| if booted.is_some() { access } else { Access::Read };
    let mut places = BTreeMap::new();
    for place in boot::places(&board.bootloader.kind)? {
        places.insert(place, if_known(Access::Write));
    }
    for (slot, name) in [(Slot::A, &board.slots.a), (Slot::B, &board.slots.b)] {
        let access = if booted == Some(slot) { Access::Read } else { if_known(Access::Write) };
        places.insert(named(name)?, access);
    }
    Ok(places)
}

#[derive(Default)]
struct Sandbox {
    unit: Vec<String>,
    service: Vec<String>,
    rules: Vec<String>,
    mounts: Vec<(String, String)>,
}

impl Sandbox {
    /// A device is waited for, bound into the service's own `/dev`, and given to the agent's group. `kind` begins its
    /// rule for udev.
    fn device(&mut self, place: &Path, name: &Path, access: Access, kind: &str) {
        let device = unit_name(place, "device");
        self.unit.push(format!("Wants={device}"));
        self.unit.push(format!("After={device}"));
        self.service.push(format!("BindPaths=-{}", quoted(place)));
        let (allowed, mode) = match access {
            Access::Read => ("r", "0640"),
            Access::Write => ("rw", "0660"),
        };
        self.service.push(format!("DeviceAllow={} {allowed}", quoted(place)));
        let name = name.to_string_lossy();
        // A rule has no way to quote these.
        if !name.contains(['"', '*', '?', '[', '|']) {
            for key in ["KERNEL", "SYMLINK"] {
                let rule = format!("{kind}{key}==\"{name}\", GROUP=\"{GROUP}\", MODE=\"{mode}\"");
                self.rules.push(rule);
            }
        }
    }

    /// Of a file's folder nothing but the file itself can be written.
    fn file(&mut self, place: &Path, access: Access, fstab: &str, group: Option<u32>) {
        self.unit.push(format!("RequiresMountsFor={}", quoted(place.parent().unwrap_or(place))));
        if access == Access::Write {
            self.service.push(format!("ReadWritePaths=-{}", quoted(place)));
        }
        match without_owners(fstab, place) {
            Some((point, options)) => {
                let Some(group) = group else { return };
                // Later options win.
                let options =
                    format!("[Mount]\nOptions={},gid={group},umask=0007\n", options.replace('%', "%%"));
                self.mounts.push((unit_name(&point, "mount"), options));
                // A file that is gone leaves nothing to bind; an empty one is as lost, and can be made whole.
                let make = format!(
                    "ExecStartPre=-+/bin/sh -c 'test -e \"$$1\" || : > \"$$1\"' sh {}",
                    quoted(place)
                );
                self.service.push(make);
            }
            None => {
                self.service.push(format!("ExecStartPre=-+/bin/chgrp {GROUP} {}", quoted(place)));
                self.service.push(format!("ExecStartPre=-+/bin/chmod g+rw {}", quoted(place)));
            }
        }
    }

    fn texts(self) -> Confinement {
        let Sandbox { unit, service, rules, mounts } = self;
        let (unit, service) = (unit.join("\n"), service.join("\n"));
        let made = "# Made by fwupdate-generator from the settings.";
        Confinement {
            service: format!("{made}\n[Unit]\n{unit}\n[Service]\n{service}\n"),
            rules: format!("{made}\n{}\n", rules.join("\n")),
            mounts,
        }
    }
}

/// The mount point and options of the file system that `place` lies on, if it is FAT: its files belong to whom the
/// mount says.
fn without_owners(fstab: &str, place: &Path) -> Option<(PathBuf, String)> {
    let lines = fstab.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let entries = lines.filter_map(|fields| match fields[..] {
        [source, point, kind, options, ..] if !source.starts_with('#') && place.starts_with(point) => {
            Some((PathBuf::from(point), kind, options.to_owned()))
        }
        _ => None,
    });
    let (point, kind, options) = entries.max_by_key(|(point, ..)| point.components().count())?;
    ["vfat", "msdos"].contains(&kind).then_some((point, options))
}

/// A path in a unit file: backslashes, quotes, spaces, colons and specifiers mean themselves.
fn quoted(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        match character {
            '%' => text.push_str("%%"),
            '\\' | ' ' | '"' | '\'' | ':' => text.extend(['\\', character]),
            _ => text.push(character),
        }
    }
    text
}

/// The unit of a device node or mount point: systemd.unit(5), "String escaping for inclusion in unit names". Escaping leaves
/// no `%`, so that none has to be doubled.
fn unit_name(path: &Path, kind: &str) -> String {
    let mut name = String::new();
    for (index, byte) in path.as_os_str().as_bytes().iter().copied().skip(1).enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if index == 0 => name.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => name.push(char::from(byte)),
            _ => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    format!("{name}.{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Options};

    fn board(dir: &Path, bootloader: &str) -> RootSettings {
        let file = dir.join("fwupdate.toml");
        let text = format!(
            "compatible = \"b\"\ncloud.connection_string_file = \"/not/yet/mounted\"\nstate.dir = {dir:?}\nslots.a.device = \"PARTLABEL=root a\"\n\
             slots.b.device = \"/dev/mmcblk0p9\"\n{bootloader}"
        );
        std::fs::write(&file, text).unwrap();
        config::load_board(&Options::file(&file)).unwrap()
    }

    fn uboot(dir: &Path) -> RootSettings {
        let config = dir.join("fw_env.config");
        std::fs::write(&config, "/dev/mmcblk0p2 0x0 0x10000\n/dev/mmcblk0p4 0x0 0x10000\n").unwrap();
        board(dir, &format!("bootloader = {{ kind = \"uboot\", config = {config:?} }}\n"))
    }

    fn assert_lines(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_slot_that_runs_is_read_only_and_all_else_that_is_named_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let board = uboot(dir.path());
        let made = confine(&board, Some(Slot::A), "", None).unwrap();
        assert_lines(
            &made.service,
            &[
                r"Wants=dev-disk-by\x2dpartlabel-root\x5cx20a.device",
                r"DeviceAllow=/dev/disk/by-partlabel/root\\x20a r",
                r"BindPaths=-/dev/disk/by-partlabel/root\\x20a",
                "After=dev-mmcblk0p9.device",
                "DeviceAllow=/dev/mmcblk0p9 rw",
                "DeviceAllow=/dev/mmcblk0p2 rw",
                "DeviceAllow=/dev/mmcblk0p4 rw",
                &format!("ReadWritePaths={}", dir.path().display()),
            ],
        );
        assert_lines(
            &made.rules,
            &[
                r#"SUBSYSTEM=="block", SYMLINK=="disk/by-partlabel/root\x20a", GROUP="fwupdate-agent", MODE="0640""#,
                r#"SUBSYSTEM=="block", KERNEL=="mmcblk0p9", GROUP="fwupdate-agent", MODE="0660""#,
                r#"SUBSYSTEM=="block", KERNEL=="mmcblk0p4", GROUP="fwupdate-agent", MODE="0660""#,
            ],
        );
        let other = confine(&board, Some(Slot::B), "", None).unwrap();
        assert_lines(&other.service, &["DeviceAllow=/dev/mmcblk0p9 r"]);
        assert_lines(
            &other.rules,
            &[r#"SUBSYSTEM=="block", KERNEL=="mmcblk0p9", GROUP="fwupdate-agent", MODE="0640""#],
        );
    }

    #[test]
    fn of_all_other_devices_only_that_of_the_key_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let plain = confine(&uboot(dir.path()), Some(Slot::A), "", None).unwrap();
        assert!(!plain.service.contains("tpm"), "{}", plain.service);
        let board = board(
            dir.path(),
            "bootloader = { kind = \"grub\", grubenv = \"/boot/grubenv\" }\ncloud.key_device = \"/dev/tpmrm0\"\n",
        );
        let made = confine(&board, Some(Slot::A), "", None).unwrap();
        assert_lines(
            &made.service,
            &["Wants=dev-tpmrm0.device", "BindPaths=-/dev/tpmrm0", "DeviceAllow=/dev/tpmrm0 rw"],
        );
        let rule = r#"TAG+="systemd", KERNEL=="tpmrm0", GROUP="fwupdate-agent", MODE="0660""#;
        assert_lines(&made.rules, &[rule]);
    }

    #[test]
    fn a_boot_that_names_no_slot_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let made =
            confine(&uboot(dir.path()), boot::named("quiet fwupdate.slot=A fwupdate.slot=B"), "", None)
                .unwrap();
        assert!(!made.service.contains(" rw") && made.service.contains("mmcblk0p2 r\n"), "{}", made.service);
        assert!(!made.rules.contains("0660") && made.rules.contains("0640"), "{}", made.rules);
    }

    #[test]
    fn of_an_efi_system_partition_the_grubenv_alone_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let grub = board(dir.path(), "bootloader = { kind = \"grub\", grubenv = \"/boot/efi/grubenv\" }\n");
        let fstab = "PARTLABEL=data /var ext4 defaults 0 2\n#x /boot/efi ext4 a\nPARTLABEL=esp /boot/efi vfat umask=0077 0 0\n";
        let made = confine(&grub, Some(Slot::A), fstab, Some(991)).unwrap();
        assert_lines(&made.service, &["RequiresMountsFor=/boot/efi", "ReadWritePaths=-/boot/efi/grubenv"]);
        let options = "[Mount]\nOptions=umask=0077,gid=991,umask=0007\n".to_owned();
        assert_eq!(made.mounts, [("boot-efi.mount".to_owned(), options)]);
        assert!(
            made.service
                .contains(r#"ExecStartPre=-+/bin/sh -c 'test -e "$$1" || : > "$$1"' sh /boot/efi/grubenv"#)
        );
        // On a file system with owners the file itself is given to the group.
        let plain = confine(&grub, Some(Slot::A), "/dev/x /boot ext4 defaults\n", Some(991)).unwrap();
        assert_lines(&plain.service, &["ExecStartPre=-+/bin/chgrp fwupdate-agent /boot/efi/grubenv"]);
        assert_eq!(plain.mounts, []);
    }
}
