//! The log of every write of two whole updates, replayed to prefixes that end at a flush or between two: after each,
//! the disk is examined as the next boot would find it. Nothing is emulated for that, so that thousands can be; a
//! sample of them is booted too.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fwupdate::slot::Slot;

use crate::disklog::{FLUSH, Write, survives, unit, writes};
use crate::examine::{Examiner, Found, SLOT_A, SLOT_B};
use crate::images::{Workshop, call};
use crate::site::{DEVICE, PATIENCE, Site, text};
use crate::story;

/// Tells the story to get its log, examines about `prefixes` prefixes of it, and boots `boots` of them.
pub async fn run(workshop: &Workshop, prefixes: usize, boots: usize, seed: u64) -> Result<()> {
    let releases = story::releases(workshop)?;
    let mut site = Site::new(workshop, "replay", story::FIRST).await?;
    let dir = site.machine.dir().to_owned();
    let (before, log) = (dir.join("before.img"), dir.join("story.log"));
    call(Command::new("cp").arg("--sparse=always").args([&site.machine.disk, &before]))?;
    story::tell(&mut site, &releases).await?;
    fs::rename(dir.join("writes.log"), &log)?;

    let mut replay = Replay {
        examiner: Examiner::new(workshop.bootloader, story::images(workshop)?)?,
        disk: fs::read(&before)?,
        known: BTreeMap::new(),
        sample: Sample { dir, every: prefixes.checked_div(boots), taken: Vec::new() },
    };
    let counts = replay.all(&log, prefixes, fastrand::Rng::with_seed(seed))?;
    println!("{}, seed {seed}: {counts}", workshop.bootloader.name());
    for (disk, found) in &replay.sample.taken {
        boot(&mut site, disk, found).await.with_context(|| format!("{}: {found:?}", disk.display()))?;
    }
    println!("{}: booted {} of them", workshop.bootloader.name(), replay.sample.taken.len());
    Ok(())
}

/// Boots `disk`: what was found on it runs, comes to rest, and the twin tells which version that is.
async fn boot(site: &mut Site, disk: &Path, found: &Found) -> Result<()> {
    fs::copy(disk, &site.machine.disk)?;
    // To the hub, too, it is as it was before.
    site.hub.remake_device(DEVICE)?;
    let from = site.machine.mark();
    site.machine.power_on().await?;
    let (slot, version) = &found.boots;
    site.machine.expect(from, &format!(": slot {slot}"), PATIENCE).await?;
    let told = site.at_rest().await?;
    let running = site.running().await?;
    let told_version = text(&told, &format!("/fwupdate/slots/{}/version", running.0));
    ensure!(running.1 == told_version, "{running:?} runs, the twin says {told}");
    if text(&told, "/fwupdate/last/result") == "committed" {
        ensure!(
            running.1 == text(&told, "/fwupdate/last/toVersion"),
            "{running:?} runs, the twin says {told}"
        );
    }
    println!(
        "booted a disk in phase {}: slot {slot}, {version}; at rest: slot {}, {}, {}",
        found.phase,
        running.0,
        running.1,
        text(&told, "/firmwareStatus")
    );
    site.power_off().await
}

/// Disks that were examined and are kept to be booted.
struct Sample {
    dir: PathBuf,
    /// One of so many is taken; `None`: none.
    every: Option<usize>,
    taken: Vec<(PathBuf, Found)>,
}

impl Sample {
    fn offer(&mut self, number: usize, disk: &[u8], found: Found) -> Result<()> {
        if self.every.is_some_and(|every| number % every.max(1) == every / 2) {
            let path = self.dir.join(format!("prefix-{number}.img"));
            fs::write(&path, disk)?;
            self.taken.push((path, found));
        }
        Ok(())
    }
}

struct Replay {
    examiner: Examiner,
    disk: Vec<u8>,
    /// The version of the whole image in a slot; forgotten when it is written to.
    known: BTreeMap<Slot, Option<String>>,
    sample: Sample,
}

impl Replay {
    /// One prefix ends at each flush. Each is followed by as many as are wanted that end somewhere before the next
    /// flush, with some of the writes in between lost or torn.
    fn all(&mut self, log: &Path, prefixes: usize, mut rng: fastrand::Rng) -> Result<String> {
        let entries = writes(log)?;
        let is_flush = |entry: &Write| entry.flags & FLUSH != 0;
        let flushes: Vec<usize> =
            entries.iter().enumerate().filter(|(_, entry)| is_flush(entry)).map(|(at, _)| at).collect();
        let variants = prefixes.div_ceil(flushes.len().max(1)).max(2) - 1;
        let (mut torn, mut done) = (0, 0);
        let mut phases: BTreeMap<String, usize> = BTreeMap::new();
        for (number, flush) in flushes.iter().enumerate() {
            for entry in entries.get(done..=*flush).unwrap_or_default() {
                self.write(entry.offset, &entry.data)?;
            }
            done = flush + 1;
            let phase = self.examine(number + torn).with_context(|| format!("at entry {flush}"))?;
            *phases.entry(phase).or_default() += 1;
            let next = flushes.get(number + 1).copied().unwrap_or(entries.len());
            for _ in 0..variants {
                let end = rng.usize(done..=next);
                let undo = self.tear(entries.get(done..end).unwrap_or_default(), &mut rng)?;
                torn += 1;
                let phase = self
                    .examine(number + torn)
                    .with_context(|| format!("between entries {flush} and {end}"))?;
                *phases.entry(phase).or_default() += 1;
                for (offset, data) in undo.iter().rev() {
                    self.write(*offset, data)?;
                }
            }
        }
        let (writes, flushes) = (entries.len() - flushes.len(), flushes.len());
        Ok(format!(
            "{writes} writes, {flushes} flushes; examined {flushes} prefixes at a flush and {torn} torn ones \
             between flushes, by the record's phase: {phases:?}"
        ))
    }

    /// Examines the disk, which is the `number`th; the record's phase.
    fn examine(&mut self, number: usize) -> Result<String> {
        let Replay { examiner, disk, known, sample } = self;
        let found = examiner.examine_with(disk, |slot| {
            if let Some(version) = known.get(&slot) {
                return Ok(version.clone());
            }
            let version = examiner.version(disk, slot)?;
            known.insert(slot, version.clone());
            Ok(version)
        })?;
        let phase = found.phase.clone();
        sample.offer(number, disk, found)?;
        Ok(phase)
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
            let kept = survives(rng, entry.data.len() as u64, unit(entry.offset as u64));
            let kept = usize::try_from(kept)?;
            let data = entry.data.get(..kept).unwrap_or_default();
            let before = self.disk.get(entry.offset..entry.offset + kept).context("beyond the disk")?;
            undo.push((entry.offset, before.to_vec()));
            self.write(entry.offset, data)?;
        }
        Ok(undo)
    }
}
