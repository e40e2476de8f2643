//! The boot environment on disk, and which slot is really booted.
//!
//! One small set of variables is the same on every bootloader (docs/boot.md); what differs is how a change of
//! them becomes one atomic write, and that is what each module here is about.

mod bootloader;
mod detect;
mod grub;
mod place;
mod raw;
mod uboot;
mod variables;

use std::path::PathBuf;

use crate::config::BootloaderKind;

pub use bootloader::{BootError, Bootloader};
pub use detect::{Detected, booted, named};
pub use grub::Grub;
pub use place::{Board, check as check_place, check_rebuild};
pub use uboot::Uboot;

/// The environment that the settings name. Nothing is opened yet: each call reads the medium afresh.
pub fn open(kind: &BootloaderKind) -> Box<dyn Bootloader> {
    match kind {
        BootloaderKind::Uboot { config } => Box::new(Uboot::new(config)),
        BootloaderKind::Grub { grubenv } => Box::new(Grub::new(grubenv)),
    }
}

/// The devices or files that hold the environment: what the agent must be able to write.
pub fn places(kind: &BootloaderKind) -> Result<Vec<PathBuf>, BootError> {
    match kind {
        BootloaderKind::Uboot { config } => uboot::places(config),
        BootloaderKind::Grub { grubenv } => Ok(vec![grubenv.clone()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_lead_to_all_places_of_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let (config, grubenv) = (folder.path().join("fw_env.config"), folder.path().join("grubenv"));
        std::fs::write(&config, "/dev/mmcblk0boot0 0 4000\n/dev/mmcblk0boot1 0 4000\n").unwrap();
        let found = places(&BootloaderKind::Uboot { config }).unwrap();
        assert_eq!(found, ["/dev/mmcblk0boot0", "/dev/mmcblk0boot1"].map(PathBuf::from));
        assert_eq!(places(&BootloaderKind::Grub { grubenv: grubenv.clone() }).unwrap(), [grubenv]);
    }
}
