//! Which slot is really booted: two witnesses who know nothing of each other, the kernel command line that the
//! boot script wrote and the devices that `/` stands on. When they disagree, nothing may be installed: the slot
//! taken for the spare one could be the one that runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::device::{DeviceError, Kernel};
use crate::slot::Slot;

/// What was found out about this boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The booted slot, when both witnesses name it.
    pub slot: Option<Slot>,
    /// Otherwise one sentence: what each of them says.
    pub reason: Option<String>,
    /// The boot script says that this is a trial of this slot.
    pub trial: Option<Slot>,
    /// The boot script found no valid copy of the environment.
    pub env_lost: bool,
    /// It found one that names no primary.
    pub env_unset: bool,
    /// The kernel's name for this boot, new each time.
    pub boot_id: String,
}

/// Examines the running system; `slots` are the paths that `device::resolve` gave.
///
/// A slot whose device cannot be examined is not the one under `/`. `Err`: the kernel's own files cannot be
/// read.
pub fn booted(kernel: &Kernel, slots: &[(Slot, PathBuf); 2]) -> Result<Detected, DeviceError> {
    let cmdline = CommandLine::parse(&read(&kernel.proc.join("cmdline"))?);
    let boot_id = read(&kernel.proc.join("sys/kernel/random/boot_id"))?.trim().to_owned();
    let (slot, reason) = match agree(&cmdline.slots, &under_root(kernel, slots)?) {
        Ok(slot) => (Some(slot), None),
        Err(reason) => (None, Some(reason)),
    };
    let CommandLine { env_lost, env_unset, .. } = cmdline;
    Ok(Detected { slot, reason, trial: cmdline.trial(), env_lost, env_unset, boot_id })
}

/// The slot that a kernel command line names, if it names one alone.
pub fn named(cmdline: &str) -> Option<Slot> {
    said(&CommandLine::parse(cmdline).slots).ok()
}

fn read(path: &Path) -> Result<String, DeviceError> {
    let failed = |source: io::Error| DeviceError::Io { path: path.to_owned(), source };
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(failed)
}

/// What the boot script told the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
struct CommandLine {
    /// Every value of `fwupdate.slot=`.
    slots: Vec<String>,
    trial: bool,
    env_lost: bool,
    env_unset: bool,
}

impl CommandLine {
    /// The slot on trial.
    fn trial(&self) -> Option<Slot> {
        said(&self.slots).ok().filter(|_| self.trial)
    }

    /// What follows `--` is meant for init.
    fn parse(text: &str) -> CommandLine {
        let mut found = CommandLine::default();
        for word in text.split_ascii_whitespace().take_while(|word| *word != "--") {
            match word.split_once('=') {
                Some(("fwupdate.slot", slot)) => found.slots.push(slot.to_owned()),
                Some(("fwupdate.trial", "1")) => found.trial = true,
                Some(("fwupdate.env", "lost")) => found.env_lost = true,
                Some(("fwupdate.env", "unset")) => found.env_unset = true,
                _ => {}
            }
        }
        found
    }
}

/// The slots that the root file system stands on.
fn under_root(kernel: &Kernel, slots: &[(Slot, PathBuf); 2]) -> Result<Vec<Slot>, DeviceError> {
    let root = kernel.root()?;
    let is_under = |path: &Path| match kernel.aliases(path) {
        Ok(names) => !names.is_disjoint(&root),
        Err(error) => {
            tracing::warn!("the slot at {} cannot be examined: {error}", path.display());
            false
        }
    };
    Ok(slots.iter().filter(|(_, path)| is_under(path)).map(|(slot, _)| *slot).collect())
}

/// The one slot that the boot script names.
fn said(slots: &[String]) -> Result<Slot, String> {
    match slots {
        [] => Err("the kernel command line has no fwupdate.slot=".to_owned()),
        [first, rest @ ..] if rest.iter().all(|other| other == first) => {
            first.parse().map_err(|()| format!("the kernel command line says fwupdate.slot={first:?}"))
        }
        _ => Err(format!("the kernel command line names several slots ({})", slots.join(", "))),
    }
}

fn agree(slots: &[String], under: &[Slot]) -> Result<Slot, String> {
    let first = said(slots);
    let second = match under {
        [slot] => Ok(*slot),
        [] => Err("/ stands on neither slot's device".to_owned()),
        _ => Err("/ stands on both slots' devices".to_owned()),
    };
    match (first, second) {
        (Ok(first), Ok(second)) if first == second => Ok(first),
        (first, second) => Err(format!(
            "{}, and {}: check the boot script and the settings' slots",
            first.map_or_else(|why| why, |slot| format!("the kernel command line says slot {slot}")),
            second.map_or_else(|why| why, |slot| format!("/ stands on slot {slot}")),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine {
        dir: tempfile::TempDir,
        kernel: Kernel,
        slots: [(Slot, PathBuf); 2],
    }

    impl Machine {
        /// Two slots in files, `/` on a loop device over slot A.
        fn new(cmdline: &str) -> Machine {
            let dir = tempfile::tempdir().unwrap();
            let kernel = Kernel { proc: dir.path().join("proc"), sys: dir.path().join("sys") };
            let slots = [(Slot::A, dir.path().join("a.img")), (Slot::B, dir.path().join("b.img"))];
            let machine = Machine { dir, kernel, slots };
            machine.put("a.img", "");
            machine.put("b.img", "");
            machine.put("proc/cmdline", cmdline);
            machine.put("proc/sys/kernel/random/boot_id", "6a7f0e1c-5b0d-4c69-9d3e-4d1f9a3f6f6b\n");
            machine.put("proc/self/mountinfo", "30 1 7:0 / / rw - ext4 /dev/loop0 rw\n");
            machine.root_on(&machine.slots[0].1.clone());
            machine
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn root_on(&self, slot: &Path) {
            self.put("sys/dev/block/7:0/loop/backing_file", &format!("{}\n", slot.display()));
        }

        fn booted(&self) -> Detected {
            booted(&self.kernel, &self.slots).unwrap()
        }
    }

    #[test]
    fn witnesses_that_agree_are_believed() {
        let machine = Machine::new("console=ttyS0 fwupdate.slot=A root=PARTUUID=1\n");
        let found = machine.booted();
        assert_eq!(
            (found.slot, found.reason, found.trial, found.env_lost),
            (Some(Slot::A), None, None, false)
        );
        assert_eq!(found.boot_id, "6a7f0e1c-5b0d-4c69-9d3e-4d1f9a3f6f6b");
    }

    #[test]
    fn an_overlay_over_a_slot_is_seen_through() {
        let machine = Machine::new("fwupdate.slot=B fwupdate.trial=1\n");
        machine.root_on(&machine.slots[1].1);
        machine.put(
            "proc/self/mountinfo",
            "30 1 0:30 / / rw - overlay o rw,lowerdir=/media/ro,upperdir=/data/up,workdir=/data/work\n\
             31 30 7:0 / /media/ro ro - squashfs /dev/loop0 ro\n\
             32 30 8:9 / /data rw - ext4 /dev/sda9 rw\n",
        );
        let found = machine.booted();
        assert_eq!((found.slot, found.trial), (Some(Slot::B), Some(Slot::B)), "{:?}", found.reason);
    }

    #[test]
    fn witnesses_that_disagree_are_both_quoted() {
        for (cmdline, word) in [
            ("fwupdate.slot=B", "says slot B, and / stands on slot A"),
            ("quiet", "has no fwupdate.slot=, and / stands on slot A"),
            ("fwupdate.slot=C", "says fwupdate.slot=\"C\""),
            ("fwupdate.slot=A fwupdate.slot=B", "names several slots (A, B)"),
            ("init=/x -- fwupdate.slot=A", "has no fwupdate.slot="),
        ] {
            let found = Machine::new(cmdline).booted();
            assert_eq!(found.slot, None, "{cmdline}");
            assert!(found.reason.as_ref().unwrap().contains(word), "{:?}", found.reason);
        }
    }

    #[test]
    fn a_root_on_neither_or_both_slots_is_no_witness() {
        let machine = Machine::new("fwupdate.slot=A");
        machine.root_on(Path::new("/nowhere"));
        assert!(machine.booted().reason.unwrap().contains("neither"));
        fs::remove_file(&machine.slots[1].1).unwrap();
        fs::hard_link(&machine.slots[0].1, &machine.slots[1].1).unwrap();
        machine.root_on(&machine.slots[0].1);
        assert!(machine.booted().reason.unwrap().contains("both"));
    }

    #[test]
    fn a_missing_slot_does_not_hide_the_other() {
        let machine = Machine::new("fwupdate.slot=A fwupdate.env=lost");
        fs::remove_file(&machine.slots[1].1).unwrap();
        let found = machine.booted();
        assert_eq!((found.slot, found.env_lost, found.env_unset), (Some(Slot::A), true, false));
    }

    #[test]
    fn a_command_line_alone_names_a_slot_and_what_is_wrong_with_the_environment() {
        assert_eq!(named("quiet fwupdate.slot=B"), Some(Slot::B));
        assert_eq!(named("fwupdate.slot=A fwupdate.slot=B"), None);
        let found = Machine::new("fwupdate.slot=A fwupdate.env=unset").booted();
        assert_eq!((found.slot, found.env_lost, found.env_unset), (Some(Slot::A), false, true));
    }
}
