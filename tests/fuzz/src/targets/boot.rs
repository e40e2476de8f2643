//! Boot environments, as their bootloaders and other programs may leave them. Parsers read files, so these do too.

use std::fs;

use fwupdate::boot::{self, Bootloader};
use fwupdate::config::BootloaderKind;
use fwupdate::slot::BootEnv;

use super::scratch;

/// Bytes of one copy of U-Boot's environment here.
const SIZE: usize = 0x400;

const VARIABLES: &[u8] =
    b"ethaddr=02:00:00:00:00:01\0fwupdate_primary=A\0fwupdate_trial=B\0fwupdate_tries=2\0fwupdate_fallback=\0\0";

fn u_boot() -> (Box<dyn Bootloader>, std::path::PathBuf) {
    let (config, area) = (scratch("fw_env.config"), scratch("area"));
    if !config.exists() {
        let line = |offset: usize| format!("{} {offset:#x} {SIZE:#x}\n", area.display());
        fs::write(&config, line(0) + &line(SIZE)).unwrap();
    }
    (boot::open(&BootloaderKind::Uboot { config }), area)
}

/// What can be read can be read again after the same was written.
fn written_back(bootloader: &dyn Bootloader) -> bool {
    let Ok(found) = bootloader.read() else { return false };
    if bootloader.write(&found).is_ok() {
        assert_eq!(bootloader.read().unwrap(), found);
        bootloader.write(&BootEnv::only(found.primary)).unwrap();
        assert_eq!(bootloader.read().unwrap(), BootEnv::only(found.primary));
    }
    true
}

/// Both copies of a redundant environment: flags and content of each, their checksums put right.
pub mod uboot_env {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        let (bootloader, area) = u_boot();
        let (first, second) = bytes.split_at(bytes.len() / 2);
        fs::write(&area, [copy(first), copy(second)].concat()).unwrap();
        written_back(&*bootloader)
    }

    /// Flags, content and padding of one copy; its last byte says whether the checksum is left wrong.
    fn copy(bytes: &[u8]) -> Vec<u8> {
        let (flags, content) = bytes.split_first().unwrap_or((&0, &[]));
        let mut data = content.to_vec();
        data.resize(SIZE - 5, 0);
        let wrong = u32::from(content.last() == Some(&0xff));
        let sum = crc32fast::hash(&data).wrapping_add(wrong);
        [&sum.to_le_bytes()[..], &[*flags], &data].concat()
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let copy = |flags: u8| [&[flags][..], VARIABLES].concat();
        vec![[copy(1), copy(2)].concat(), [copy(255), copy(0)].concat()]
    }
}

/// The file that says where the environment is.
pub mod fw_env_config {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        let config = scratch("any.config");
        fs::write(&config, bytes).unwrap();
        boot::places(&BootloaderKind::Uboot { config }).is_ok_and(|places| (1..=2).contains(&places.len()))
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let text = "# device offset size\n/dev/mmcblk0p2 0x0 0x10000\n/dev/mmcblk0p4 -65536 10000 0x200 2\n";
        vec![text.into()]
    }
}

/// GRUB's block of 1024 bytes; an input of another length counts as it is.
pub mod grubenv {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        let grubenv = scratch("grubenv");
        fs::write(&grubenv, bytes).unwrap();
        written_back(&*boot::open(&BootloaderKind::Grub { grubenv }))
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let text = "# GRUB Environment Block\nfwupdate_primary=A\nfwupdate_trial=B\nfwupdate_tries=2\n\
                    fwupdate_fallback=\nother=a\\\\b\n";
        let mut block = text.as_bytes().to_vec();
        block.resize(1024, b'#');
        vec![block]
    }
}
