//! What the next boot would find on a disk, examined without booting it: the boot environment parses, the slot that
//! would boot is byte for byte a whole image, and the record with that environment leads the machine to rest.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use fwupdate::boot::{Bootloader as _, Grub, Uboot};
use fwupdate::failure::{Code, Failure};
use fwupdate::machine::{Boot, BootId, Effect, Event, Record, step};
use fwupdate::slot::{Armed, BootEnv, Slot};
use fwupdate::store::Store;
use sha2::{Digest, Sha256};

use crate::images::{Bootloader, call};

const MIB: usize = 1 << 20;
/// Where things lie on the disk (image/disk.sh): offset and length, bytes.
pub const ENVIRONMENT: (usize, usize) = (MIB, MIB);
pub const ESP: (usize, usize) = (2 * MIB, 64 * MIB);
pub const SLOT_A: (usize, usize) = (66 * MIB, 224 * MIB);
pub const SLOT_B: (usize, usize) = (290 * MIB, 224 * MIB);
pub const DATA: (usize, usize) = (514 * MIB, 32 * MIB);

/// A whole image: what a slot may hold when it can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub version: String,
    digest: Vec<u8>,
    /// Bytes.
    length: usize,
}

impl Image {
    pub fn new(version: &str, path: &Path) -> Result<Image> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        Ok(Image {
            version: version.to_owned(),
            digest: Sha256::digest(&bytes).to_vec(),
            length: bytes.len(),
        })
    }
}

/// What was found on a disk.
#[derive(Debug)]
pub struct Found {
    /// The slot that boots next, and the version of the image that it holds.
    pub boots: (Slot, String),
    /// Name of the record's phase.
    pub phase: String,
}

/// Examines disks of one kind of bootloader.
pub struct Examiner {
    bootloader: Bootloader,
    images: Vec<Image>,
    scratch: tempfile::TempDir,
}

impl Examiner {
    pub fn new(bootloader: Bootloader, images: Vec<Image>) -> Result<Examiner> {
        Ok(Examiner { bootloader, images, scratch: tempfile::tempdir()? })
    }

    /// Examines the whole `disk`.
    pub fn examine(&self, disk: &[u8]) -> Result<Found> {
        self.examine_with(disk, |slot| self.version(disk, slot))
    }

    /// The same with `version` telling which image a slot holds, if it holds a whole one.
    pub fn examine_with(
        &self,
        disk: &[u8],
        mut version: impl FnMut(Slot) -> Result<Option<String>>,
    ) -> Result<Found> {
        let env = self.environment(disk)?;
        let boots = match env.trial {
            Some(Armed { slot, tries: 1.. }) => slot,
            _ => env.primary,
        };
        let mut whole = |slot| {
            version(slot)?.with_context(|| format!("slot {slot} may boot, but is no whole image: {env:?}"))
        };
        whole(env.primary)?;
        let holds = whole(boots)?;
        let record = self.record(disk)?;
        let phase = record.phase.name().to_owned();
        rests(record, env).with_context(|| format!("{phase} with {env:?}"))?;
        Ok(Found { boots: (boots, holds), phase })
    }

    /// The version of the image that `slot` holds; `None`: it is no whole image.
    pub fn version(&self, disk: &[u8], slot: Slot) -> Result<Option<String>> {
        let start = if slot == Slot::A { SLOT_A.0 } else { SLOT_B.0 };
        let mut lengths: Vec<usize> = self.images.iter().map(|image| image.length).collect();
        lengths.dedup();
        for length in lengths {
            let digest = Sha256::digest(part(disk, (start, length))?);
            let same = |image: &&Image| image.length == length && image.digest == digest.as_slice();
            if let Some(image) = self.images.iter().find(same) {
                return Ok(Some(image.version.clone()));
            }
        }
        Ok(None)
    }

    fn environment(&self, disk: &[u8]) -> Result<BootEnv> {
        let dir = self.scratch.path();
        match self.bootloader {
            Bootloader::Uboot => {
                let (area, config) = (dir.join("env"), dir.join("fw_env.config"));
                fs::write(&area, part(disk, ENVIRONMENT)?)?;
                let area = area.display();
                fs::write(&config, format!("{area} 0x0 0x4000\n{area} 0x4000 0x4000\n"))?;
                Ok(Uboot::new(&config).read()?)
            }
            Bootloader::Grub => {
                let (esp, grubenv) = (dir.join("esp"), dir.join("grubenv"));
                fs::write(&esp, part(disk, ESP)?)?;
                if grubenv.exists() {
                    fs::remove_file(&grubenv)?;
                }
                call(Command::new("mcopy").arg("-i").args([&esp, Path::new("::grubenv"), &grubenv]))?;
                Ok(Grub::new(&grubenv).read()?)
            }
        }
    }

    /// The record as the file system gives it after its journal was replayed.
    fn record(&self, disk: &[u8]) -> Result<Record> {
        let (data, state) = (self.scratch.path().join("data"), self.scratch.path().join("state"));
        fs::write(&data, part(disk, DATA)?)?;
        // 0: clean; 1: repaired, which replaying the journal counts as.
        let status = Command::new("e2fsck").args(["-p"]).arg(&data).output()?.status;
        ensure!(matches!(status.code(), Some(0 | 1)), "the data partition is damaged: {status}");
        if state.exists() {
            fs::remove_dir_all(&state)?;
        }
        fs::create_dir(&state)?;
        for name in ["record.0", "record.1"] {
            let dump = format!("dump {name} {}", state.join(name).display());
            Command::new("debugfs").args(["-R", &dump]).arg(&data).output()?;
        }
        let store = Store::open(&state)?;
        Ok(store.load::<Record>()?.unwrap_or_default())
    }
}

fn part(disk: &[u8], (offset, length): (usize, usize)) -> Result<&[u8]> {
    disk.get(offset..offset + length).context("beyond the disk")
}

/// Boots as the boot script would and performs every effect until the machine rests.
fn rests(mut record: Record, env: BootEnv) -> Result<()> {
    let mut boots = 0;
    let mut boot = Boot {
        // The examiner plays a bootloader that finds none, too.
        rebuild: true,
        trial: None,
        booted: None,
        env: Some(env),
        boot_id: BootId(String::new()),
        now: fwupdate::clock::Clock::default().now(),
        uptime: 30,
    };
    power_on(&mut boot, &mut boots);
    let mut event = Event::Started;
    for _ in 0..100 {
        let (next, effect) = step(&record, &boot, event);
        record = next;
        let Some(effect) = effect else {
            ensure!(record.phase.is_idle(), "it waits in {}", record.phase.name());
            return Ok(());
        };
        event = perform(&effect, &mut boot, &mut boots);
    }
    bail!("it never rests: {}", record.phase.name())
}

/// The boot script: a trial with tries left is counted and booted, else the primary.
fn power_on(boot: &mut Boot, boots: &mut u32) {
    *boots += 1;
    boot.boot_id = BootId(format!("boot {boots}"));
    if let Some(env) = &mut boot.env {
        boot.booted = Some(env.primary);
        if let Some(trial) = env.trial.as_mut().filter(|trial| trial.tries > 0) {
            trial.tries -= 1;
            boot.booted = Some(trial.slot);
        }
    }
}

fn perform(effect: &Effect, boot: &mut Boot, boots: &mut u32) -> Event {
    match effect {
        Effect::Open(_) => Event::Failed(Failure::new(Code::DownloadFailed, "no network here")),
        Effect::Prepare(plan) => {
            boot.env = Some(plan.env_before());
            Event::Prepared
        }
        Effect::Stage(_) => Event::Staged { hold: None },
        Effect::Hold(..) => Event::Released,
        Effect::Arm { plan, .. } => {
            boot.env = Some(plan.env_armed());
            Event::Armed { connected: false, failed_units: None, abilities: None }
        }
        Effect::Reboot => {
            power_on(boot, boots);
            Event::Started
        }
        Effect::Check(..) => Event::ChecksPassed,
        Effect::Commit(plan) => {
            boot.env = Some(plan.env_committed());
            Event::Committed
        }
        Effect::Revert(plan) => {
            boot.env = Some(plan.env_before());
            Event::Reverted
        }
        Effect::Rebuild(env) => {
            boot.env = Some(*env);
            Event::Rebuilt
        }
    }
}
