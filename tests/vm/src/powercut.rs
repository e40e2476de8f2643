//! Power cuts at random instants over whole updates. Each cut loses some of what was not flushed. After each, the
//! disk is examined, the gateway must boot what was found on it, and the twin's story must end true.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::disklog::Loss;
use crate::examine::Examiner;
use crate::images::{Release, Workshop};
use crate::site::{PATIENCE, Site, text};
use crate::story;

/// Longest work from power-on, or from the call, to the cut, as seconds of the emulator's processor time: about what
/// a boot and most of an update take. Processor time, so that a busy host does not move all cuts into the boot.
const LONGEST: Duration = Duration::from_secs(25);
/// A machine that waits for something uses no processor time; it is cut after this long.
const IDLE: Duration = Duration::from_secs(90);
/// Cuts within one update; after that it is left alone to end.
const CUTS_PER_UPDATE: usize = 3;

/// One cut.
struct Cut {
    seed: u64,
    after: Duration,
    /// The phase in the record on the disk.
    phase: String,
    writes: usize,
    unflushed: usize,
    lost: usize,
}

/// Updates from image to image, with `cuts` in all; `table`: the file whose part between this bootloader's
/// markers the results replace.
pub async fn run(workshop: &Workshop, cuts: usize, seed: u64, table: Option<&Path>) -> Result<()> {
    let releases = story::releases(workshop)?;
    let mut campaign = Campaign {
        site: Site::new(workshop, "power-cut", story::FIRST).await?,
        examiner: Examiner::new(workshop.bootloader, story::images(workshop)?)?,
        results: Results::default(),
    };
    campaign.site.machine.power_on().await?;
    campaign.site.connected().await?;
    let mut seed = seed;
    while campaign.results.cuts < cuts {
        let (_, version) = campaign.site.running().await?;
        let release =
            releases.iter().find(|release| release.version != version).context("no other version")?;
        let left = cuts - campaign.results.cuts;
        campaign
            .update(release, seed, left.min(CUTS_PER_UPDATE))
            .await
            .with_context(|| format!("seed {seed}"))?;
        seed += 1;
        if let Some(path) = table {
            campaign.results.publish(workshop.bootloader.name(), path)?;
        }
    }
    campaign.last_look().await?;
    print!("{}", campaign.results.table(workshop.bootloader.name())?);
    Ok(())
}

struct Campaign {
    site: Site,
    examiner: Examiner,
    results: Results,
}

impl Campaign {
    /// One update to `release` with some cuts.
    async fn update(&mut self, release: &Release, seed: u64, cuts: usize) -> Result<()> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut loss = Loss::Random(fastrand::Rng::with_seed(seed));
        let before = self.site.running().await?;
        let id = format!("cut-{seed}");
        self.site.start_update(release, &id).await?;
        let mut done = Vec::new();
        for _ in 0..cuts {
            let after = Duration::from_millis(rng.u64(0..u64::try_from(LONGEST.as_millis())?));
            done.push(self.cut(seed, after, &mut loss).await?);
        }
        // The outcome may have been told before the last cut.
        self.site.connected().await?;
        let last = self.site.outcome(&id).await?;
        self.site.at_rest().await?;
        let result = text(&last, "/result");
        let running = self.site.running().await?;
        match result {
            "committed" => ensure!(running.1 == release.version, "{running:?} runs after {last}"),
            "rolledBack" | "failed" => ensure!(running == before, "{running:?} runs after {last}"),
            _ => bail!("{last}"),
        }
        let outcome = format!("{result} {}", text(&last, "/error/code"));
        self.results.add(&done, outcome.trim());
        Ok(())
    }

    /// Cuts the power, examines what is left, and boots it.
    async fn cut(&mut self, seed: u64, after: Duration, loss: &mut Loss) -> Result<Cut> {
        self.site.machine.works(after, IDLE).await?;
        let summary = self.site.machine.cut(loss).await?;
        let found = self.examiner.examine(&fs::read(&self.site.machine.disk)?)?;
        let cut = Cut {
            seed,
            after,
            phase: found.phase,
            writes: summary.writes,
            unflushed: summary.unflushed,
            lost: summary.lost,
        };
        println!("{cut}");
        let from = self.site.machine.mark();
        self.site.machine.power_on().await?;
        let (slot, _) = found.boots;
        self.site.machine.expect(from, &format!(": slot {slot}"), PATIENCE).await?;
        self.site.machine.expect(from, &format!("fwupdate.slot={slot} "), PATIENCE).await?;
        Ok(cut)
    }

    /// The last update is examined as the others were, by the power-on after them.
    async fn last_look(&mut self) -> Result<()> {
        let running = self.site.running().await?;
        self.site.power_off().await?;
        let (slot, version) = self.examiner.examine(&fs::read(&self.site.machine.disk)?)?.boots;
        ensure!((slot.to_string(), version) == running, "{running:?} ran");
        Ok(())
    }
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "seed {}: cut after {:.1} s of work in phase {}; {} writes since power-on, {} of them not flushed, {} lost or torn",
            self.seed,
            self.after.as_secs_f32(),
            self.phase,
            self.writes,
            self.unflushed,
            self.lost
        )
    }
}

/// What a campaign has shown so far.
#[derive(Debug, Default)]
struct Results {
    cuts: usize,
    updates: usize,
    seeds: Option<(u64, u64)>,
    phases: BTreeMap<String, Phase>,
    outcomes: BTreeMap<String, usize>,
}

/// The cuts in one phase.
#[derive(Debug, Default)]
struct Phase {
    cuts: usize,
    lost: usize,
    /// Of the updates that they were in; an update may be counted in several phases.
    outcomes: BTreeMap<String, usize>,
    seeds: Vec<u64>,
}

impl Results {
    fn add(&mut self, cuts: &[Cut], outcome: &str) {
        println!("{outcome}");
        self.updates += 1;
        self.cuts += cuts.len();
        *self.outcomes.entry(outcome.to_owned()).or_default() += 1;
        for cut in cuts {
            self.seeds = Some((self.seeds.map_or(cut.seed, |(first, _)| first), cut.seed));
            let phase = self.phases.entry(cut.phase.clone()).or_default();
            phase.cuts += 1;
            phase.lost += cut.lost;
            *phase.outcomes.entry(outcome.to_owned()).or_default() += 1;
            if phase.seeds.last() != Some(&cut.seed) {
                phase.seeds.push(cut.seed);
            }
        }
    }

    fn table(&self, bootloader: &str) -> Result<String> {
        let (first, last) = self.seeds.unwrap_or_default();
        let mut text = format!(
            "{bootloader}: {} cuts in {} updates, seeds {first} to {last}; the updates ended: {}\n\n\
             | phase on the disk | cuts | writes lost or torn | their updates ended | seeds |\n|---|---|---|---|---|\n",
            self.cuts,
            self.updates,
            counted(&self.outcomes)
        );
        for (name, phase) in &self.phases {
            let seeds: Vec<String> = phase.seeds.iter().map(u64::to_string).collect();
            let (outcomes, seeds) = (counted(&phase.outcomes), seeds.join(" "));
            writeln!(text, "| {name} | {} | {} | {outcomes} | {seeds} |", phase.cuts, phase.lost)?;
        }
        Ok(text)
    }

    /// Replaces what stands between the markers of `bootloader` in the file.
    fn publish(&self, bootloader: &str, path: &Path) -> Result<()> {
        let page = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let (begin, end) = (format!("<!-- power cuts: {bootloader} -->\n"), "<!-- end -->");
        let (head, rest) = page.split_once(&begin).with_context(|| format!("no line {begin}"))?;
        let (_, tail) = rest.split_once(end).context("no end of the table")?;
        fs::write(path, format!("{head}{begin}{}{end}{tail}", self.table(bootloader)?))?;
        Ok(())
    }
}

fn counted(outcomes: &BTreeMap<String, usize>) -> String {
    let parts: Vec<String> = outcomes.iter().map(|(name, count)| format!("{count} {name}")).collect();
    parts.join(", ")
}
