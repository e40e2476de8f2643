//! The log of every write of one whole update, replayed to prefixes that end at a flush or between two: after each,
//! the disk is examined as the next boot would find it. Nothing is emulated, so that thousands can be.
//!
//! At each prefix: the boot environment parses, the slot that would boot is byte for byte a whole image, and the
//! record with that environment leads the machine to rest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use fwupdate::boot::{Bootloader as _, Grub, Uboot};
use fwupdate::failure::{Code, Failure};
use fwupdate::machine::{Boot, BootId, Effect, Event, Record, step};
use fwupdate::slot::{Armed, BootEnv, Slot};
use fwupdate::store::Store;
use sha2::{Digest, Sha256};

use crate::disklog::{FLUSH, Write, unit, writes};
use crate::images::{Bootloader, Release, Spec, Workshop, call};
use crate::site::{PATIENCE, Site, text};

const FIRST: Spec = Spec { version: "1.0.0", kernel: 1, change: "" };
const SECOND: Spec = Spec { version: "1.1.0", kernel: 2, change: "echo 1.1 > $1/etc/changed" };

const MIB: usize = 1 << 20;
/// Where things lie on the disk (image/disk.sh): offset and length, bytes.
const ENVIRONMENT: (usize, usize) = (MIB, MIB);
const ESP: (usize, usize) = (2 * MIB, 64 * MIB);
const SLOT_A: (usize, usize) = (66 * MIB, 224 * MIB);
const SLOT_B: (usize, usize) = (290 * MIB, 224 * MIB);
const DATA: (usize, usize) = (514 * MIB, 32 * MIB);

/// Runs one update to get its log, unless the log of the last run is to be used `again`; then examines about
/// `prefixes` prefixes of it.
pub async fn run(workshop: &Workshop, prefixes: usize, seed: u64, again: bool) -> Result<()> {
    let release = workshop.release(SECOND)?;
    let dir = workshop.dir.join("run").join(format!("{}-replay", workshop.bootloader.name()));
    let (before, log) = (dir.join("before.img"), dir.join("writes.log"));
    if !again {
        update(workshop, &release, &before).await?;
    }
    let images = [digest_of(&workshop.image(FIRST)?)?, digest_of(&release.image)?];
    let mut replay = Replay {
        bootloader: workshop.bootloader,
        disk: fs::read(&before)?,
        images,
        known: BTreeMap::new(),
        scratch: tempfile::tempdir()?,
    };
    let counts = replay.all(&log, prefixes, fastrand::Rng::with_seed(seed))?;
    println!("{}: {counts}", workshop.bootloader.name());
    Ok(())
}

/// One whole update; `before` is the disk as it was, the machine's folder holds the log.
async fn update(workshop: &Workshop, release: &Release, before: &Path) -> Result<()> {
    let mut site = Site::new(workshop, "replay", FIRST).await?;
    call(Command::new("cp").arg("--sparse=always").args([site.machine.disk.as_path(), before]))?;
    site.machine.power_on().await?;
    site.connected().await?;
    site.start_update(release, "replay").await?;
    let last = site.outcome("replay").await?;
    ensure!(text(&last, "/result") == "committed", "{last}");
    site.machine.shell("nohup systemctl poweroff > /dev/null 2>&1 &").await?;
    site.machine.off(PATIENCE).await
}

struct Replay {
    bootloader: Bootloader,
    disk: Vec<u8>,
    /// Digest and length of the old and the new image.
    images: [(Vec<u8>, usize); 2],
    /// Whether a slot holds a whole image; forgotten when it is written to.
    known: BTreeMap<Slot, bool>,
    scratch: tempfile::TempDir,
}

impl Replay {
    /// One prefix ends at each flush. Each is followed by as many as are wanted that end somewhere before the next
    /// flush, with some of the writes in between lost or torn.
    fn all(&mut self, log: &Path, prefixes: usize, mut rng: fastrand::Rng) -> Result<String> {
        let entries = writes(log)?;
        let is_flush = |entry: &Write| entry.flags & FLUSH != 0;
        let flushes: Vec<usize> =
            entries.iter().enumerate().filter(|(_, entry)| is_flush(entry)).map(|(at, _)| at).collect();
        let variants = (prefixes / flushes.len().max(1)).max(1);
        let (mut torn, mut done) = (0, 0);
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        for (number, flush) in flushes.iter().enumerate() {
            for entry in entries.get(done..=*flush).unwrap_or_default() {
                self.write(entry.offset, &entry.data)?;
            }
            done = flush + 1;
            *found.entry(self.examine().with_context(|| format!("at entry {flush}"))?).or_default() += 1;
            let next = flushes.get(number + 1).copied().unwrap_or(entries.len());
            for _ in 0..variants {
                let end = rng.usize(done..=next);
                let undo = self.tear(entries.get(done..end).unwrap_or_default(), &mut rng)?;
                let phase = self.examine().with_context(|| format!("between entries {flush} and {end}"))?;
                *found.entry(phase).or_default() += 1;
                torn += 1;
                for (offset, data) in undo.iter().rev() {
                    self.write(*offset, data)?;
                }
            }
        }
        let (writes, flushes) = (entries.len() - flushes.len(), flushes.len());
        Ok(format!(
            "{writes} writes, {flushes} flushes; examined {flushes} prefixes at a flush and {torn} torn ones \
             between flushes, by the record's phase: {found:?}"
        ))
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> Result<()> {
        for (slot, (start, length)) in [(Slot::A, SLOT_A), (Slot::B, SLOT_B)] {
            if !data.is_empty() && offset < start + length && offset + data.len() > start {
                self.known.remove(&slot);
            }
        }
        let place = self.disk.get_mut(offset..offset + data.len()).context("a write beyond the disk")?;
        place.copy_from_slice(data);
        Ok(())
    }

    /// Writes some of `between`, some of them only in part; what was there before.
    fn tear(&mut self, between: &[Write], rng: &mut fastrand::Rng) -> Result<Vec<(usize, Vec<u8>)>> {
        let mut undo = Vec::new();
        for entry in between {
            let kept = match rng.u8(0..4) {
                0 => 0,
                1 => {
                    let unit = usize::try_from(unit(entry.offset as u64))?;
                    rng.usize(0..=entry.data.len() / unit) * unit
                }
                _ => entry.data.len(),
            };
            let data = entry.data.get(..kept).unwrap_or_default();
            undo.push((entry.offset, self.part((entry.offset, kept))?.to_vec()));
            self.write(entry.offset, data)?;
        }
        Ok(undo)
    }

    fn part(&self, (offset, length): (usize, usize)) -> Result<&[u8]> {
        self.disk.get(offset..offset + length).context("beyond the disk")
    }

    /// What the next boot would find; the phase in which the record was.
    fn examine(&mut self) -> Result<String> {
        let env = self.environment()?;
        let booted = match env.trial {
            Some(Armed { slot, tries: 1.. }) => slot,
            _ => env.primary,
        };
        ensure!(self.is_whole(env.primary)?, "the primary {} is no whole image: {env:?}", env.primary);
        ensure!(self.is_whole(booted)?, "slot {booted} would boot, but is no whole image: {env:?}");
        let record = self.record()?;
        let phase = record.phase.name().to_owned();
        rests(record, env).with_context(|| format!("{phase} with {env:?}"))?;
        Ok(phase)
    }

    fn environment(&self) -> Result<BootEnv> {
        let dir = self.scratch.path();
        match self.bootloader {
            Bootloader::Uboot => {
                let (area, config) = (dir.join("env"), dir.join("fw_env.config"));
                fs::write(&area, self.part(ENVIRONMENT)?)?;
                let area = area.display();
                fs::write(&config, format!("{area} 0x0 0x4000\n{area} 0x4000 0x4000\n"))?;
                Ok(Uboot::new(&config).read()?)
            }
            Bootloader::Grub => {
                let (esp, grubenv) = (dir.join("esp"), dir.join("grubenv"));
                fs::write(&esp, self.part(ESP)?)?;
                if grubenv.exists() {
                    fs::remove_file(&grubenv)?;
                }
                call(Command::new("mcopy").arg("-i").args([&esp, Path::new("::grubenv"), &grubenv]))?;
                Ok(Grub::new(&grubenv).read()?)
            }
        }
    }

    fn is_whole(&mut self, slot: Slot) -> Result<bool> {
        if let Some(known) = self.known.get(&slot) {
            return Ok(*known);
        }
        let start = if slot == Slot::A { SLOT_A.0 } else { SLOT_B.0 };
        let mut whole = false;
        for (digest, length) in &self.images {
            whole |= Sha256::digest(self.part((start, *length))?).as_slice() == digest;
        }
        self.known.insert(slot, whole);
        Ok(whole)
    }

    /// The record as the file system gives it after its journal was replayed.
    fn record(&self) -> Result<Record> {
        let (data, state) = (self.scratch.path().join("data"), self.scratch.path().join("state"));
        fs::write(&data, self.part(DATA)?)?;
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

fn digest_of(image: &PathBuf) -> Result<(Vec<u8>, usize)> {
    let bytes = fs::read(image)?;
    Ok((Sha256::digest(&bytes).to_vec(), bytes.len()))
}

/// Boots as the boot script would and performs every effect until the machine rests.
fn rests(mut record: Record, env: BootEnv) -> Result<()> {
    let mut boots = 0;
    let mut boot = Boot {
        booted: None,
        env: Some(env),
        boot_id: BootId(String::new()),
        now: fwupdate::clock::now(time_floor()),
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

fn time_floor() -> time::OffsetDateTime {
    time::OffsetDateTime::UNIX_EPOCH
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
            Event::Armed { connected: false, failed_units: None }
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
