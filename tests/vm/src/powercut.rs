//! Power cuts at random instants over whole updates. Each cut loses some of what was not flushed. After each, the
//! gateway must boot a whole image, and the twin's story must end true.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::disklog::Loss;
use crate::images::{Release, Spec, Workshop};
use crate::site::{PATIENCE, Site, text};

const FIRST: Spec = Spec { version: "1.0.0", kernel: 1, change: "" };
const SECOND: Spec = Spec { version: "1.1.0", kernel: 2, change: "echo 1.1 > $1/etc/changed" };

/// Longest time from power-on to the cut. An update with its reboot takes about as long.
const LONGEST: Duration = Duration::from_secs(150);
/// Cuts within one update; after that it is left alone to end.
const CUTS_PER_UPDATE: usize = 3;

/// One cut, for the table.
struct Row {
    seed: u64,
    at: Duration,
    phase: String,
    writes: usize,
    unflushed: usize,
    lost: usize,
}

pub async fn run(workshop: &Workshop, cuts: usize, seed: u64, table: Option<&Path>) -> Result<()> {
    let release = workshop.release(SECOND)?;
    let (mut left, mut seed) = (cuts, seed);
    let mut text = String::new();
    while left > 0 {
        let rows = update(workshop, &release, seed, left.min(CUTS_PER_UPDATE)).await;
        let (rows, outcome) = rows.with_context(|| format!("seed {seed}"))?;
        for row in &rows {
            writeln!(
                text,
                "| {} | {} | {:.1} | {} | {} | {} | {} | {outcome} |",
                workshop.bootloader.name(),
                row.seed,
                row.at.as_secs_f32(),
                row.phase,
                row.writes,
                row.unflushed,
                row.lost
            )?;
        }
        print!("{text}");
        if let Some(path) = table {
            std::fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(text.as_bytes())?;
        }
        text.clear();
        left = left.saturating_sub(rows.len());
        seed += 1;
    }
    Ok(())
}

/// One update with some cuts; what was cut, and how it ended.
async fn update(
    workshop: &Workshop,
    release: &Release,
    seed: u64,
    cuts: usize,
) -> Result<(Vec<Row>, String)> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut site = Site::new(workshop, &format!("power-cut-{seed}"), FIRST).await?;
    site.machine.power_on().await?;
    site.connected().await?;
    let id = format!("cut-{seed}");
    site.start_update(release, &id).await?;
    let mut loss = Loss::Random(fastrand::Rng::with_seed(seed));
    let mut rows = Vec::new();
    for _ in 0..cuts {
        let at = Duration::from_millis(rng.u64(0..LONGEST.as_millis() as u64));
        // The instant is what is random here: this sleep is the experiment, and no condition is waited for.
        tokio::time::sleep(at).await;
        let reported = site.reported();
        let phase = text(&reported, "/fwupdate/operation/phase");
        let phase = if phase.is_empty() { "idle" } else { phase }.to_owned();
        let summary = site.machine.cut(&mut loss).await?;
        rows.push(Row {
            seed,
            at,
            phase,
            writes: summary.writes,
            unflushed: summary.unflushed,
            lost: summary.lost,
        });
        let from = site.machine.mark();
        site.machine.power_on().await?;
        // Whatever was cut: it boots.
        site.machine.expect(from, "fwupdate: ", PATIENCE).await?;
    }
    let last = site.outcome(&id).await?;
    let result = text(&last, "/result").to_owned();
    let (slot, version, image) = match result.as_str() {
        "committed" => ("B", "1.1.0", release.image.clone()),
        "rolledBack" | "failed" => ("A", "1.0.0", workshop.image(FIRST)?),
        _ => anyhow::bail!("{last}"),
    };
    let running = site.running().await?;
    ensure!(running == (slot.to_owned(), version.to_owned()), "{running:?} runs after {last}");
    // Idle again, and nothing contradicts the outcome.
    let settled = |reported: &serde_json::Value| reported.pointer("/fwupdate/operation").is_none();
    site.hub.wait_reported(crate::site::DEVICE, PATIENCE, settled).await.context("never idle again")?;
    ensure!(site.reported().pointer("/fwupdate/last/id") == Some(&json!(id)), "{}", site.reported());
    site.machine.shell("nohup systemctl poweroff > /dev/null 2>&1 &").await?;
    site.machine.off(PATIENCE).await?;
    ensure!(site.holds(slot, &image)?, "slot {slot} runs, but is not the image of {version}");
    let code = text(&last, "/error/code");
    Ok((rows, format!("{result} {code}").trim().to_owned()))
}
