//! The part of the service's sandbox that depends on the settings: which devices and files the agent may write.
//!
//! `fwupdate-generator` asks for it (`fwupdated --unit-drop-in`) before units are loaded, when neither devices nor
//! the state folder are there yet: only the settings in `/usr/lib` and `/etc` count.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::boot;
use crate::config::Board;
use crate::device;
use crate::failure::{Code, Failure};

/// A drop-in for `fwupdate.service` (systemd.unit(5)): the slots and the boot environment can be written, and are
/// waited for.
pub fn drop_in(board: &Board) -> Result<String, Failure> {
    let named =
        |name: &String| device::path_of(name).map_err(|e| Failure::new(Code::NotReady, e.to_string()));
    let mut places: BTreeSet<PathBuf> = BTreeSet::from([named(&board.slots.a)?, named(&board.slots.b)?]);
    places.extend(boot::places(&board.bootloader.kind)?);
    let (mut unit, mut service) = (Vec::new(), Vec::new());
    for place in &places {
        if place.starts_with("/dev") {
            let device = device_unit(place);
            unit.push(format!("Wants={device}"));
            unit.push(format!("After={device}"));
            service.push(format!("DeviceAllow={} rw", quoted(place)));
        } else {
            let folder = place.parent().unwrap_or(place);
            unit.push(format!("RequiresMountsFor={}", quoted(folder)));
            service.push(format!("ReadWritePaths=-{}", quoted(folder)));
        }
    }
    if board.state.dir != Path::new("/var/lib/fwupdate") {
        unit.push(format!("RequiresMountsFor={}", quoted(&board.state.dir)));
        service.push(format!("ReadWritePaths={}", quoted(&board.state.dir)));
    }
    let (unit, service) = (unit.join("\n"), service.join("\n"));
    Ok(format!("# Made by fwupdate-generator from the settings.\n[Unit]\n{unit}\n[Service]\n{service}\n"))
}

/// A path in a unit file: backslashes, quotes, spaces and specifiers mean themselves.
fn quoted(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        match character {
            '%' => text.push_str("%%"),
            '\\' | ' ' | '"' | '\'' => text.extend(['\\', character]),
            _ => text.push(character),
        }
    }
    text
}

/// The unit of a device node: systemd.unit(5), "String escaping for inclusion in unit names". Escaping leaves
/// no `%`, so that none has to be doubled.
fn device_unit(path: &Path) -> String {
    let mut name = String::new();
    for (index, byte) in path.as_os_str().as_bytes().iter().copied().skip(1).enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if index == 0 => name.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => name.push(char::from(byte)),
            _ => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    name + ".device"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Options};

    fn board(dir: &Path, bootloader: &str) -> Board {
        let file = dir.join("fwupdate.toml");
        let text = format!(
            "compatible = \"b\"\ncloud.connection_string_file = \"/not/yet/mounted\"\nstate.dir = {dir:?}\nslots.a.device = \"PARTLABEL=root a\"\n\
             slots.b.device = \"/dev/mmcblk0p9\"\n{bootloader}"
        );
        std::fs::write(&file, text).unwrap();
        config::load_board(&Options::file(&file)).unwrap()
    }

    #[test]
    fn slots_and_environment_are_allowed_and_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("fw_env.config");
        std::fs::write(&config, "/dev/mmcblk0p2 0x0 0x10000\n/dev/mmcblk0p4 0x0 0x10000\n").unwrap();
        let uboot = format!("bootloader = {{ kind = \"uboot\", config = {config:?} }}\n");
        let text = drop_in(&board(dir.path(), &uboot)).unwrap();
        for line in [
            r"Wants=dev-disk-by\x2dpartlabel-root\x5cx20a.device",
            r"DeviceAllow=/dev/disk/by-partlabel/root\\x20a rw",
            "After=dev-mmcblk0p9.device",
            "DeviceAllow=/dev/mmcblk0p2 rw",
            "DeviceAllow=/dev/mmcblk0p4 rw",
            &format!("ReadWritePaths={}", dir.path().display()),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_grubenv_is_allowed_by_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let grub = "bootloader = { kind = \"grub\", grubenv = \"/boot/efi 1/grubenv\" }\n";
        let text = drop_in(&board(dir.path(), grub)).unwrap();
        assert!(text.contains("RequiresMountsFor=/boot/efi\\ 1\n"), "{text}");
        assert!(text.contains("ReadWritePaths=-/boot/efi\\ 1\n"), "{text}");
    }
}
