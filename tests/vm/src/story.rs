//! The good way: A to B to A, each with a changed root and a changed kernel.

use anyhow::{Result, ensure};

use crate::examine::Image;
use crate::images::{Release, Spec, Workshop};
use crate::site::{Site, text};

pub const FIRST: Spec = Spec { version: "1.0.0", kernel: 1, change: "" };
const SECOND: Spec = Spec { version: "1.1.0", kernel: 2, change: "echo 1.1 > $1/etc/changed" };
const THIRD: Spec = Spec { version: "1.2.0", kernel: 1, change: "echo 1.2 > $1/etc/changed" };

/// The two releases that follow the first image: for slot B, and for slot A.
pub fn releases(workshop: &Workshop) -> Result<[Release; 2]> {
    Ok([workshop.release(SECOND)?, workshop.release(THIRD)?])
}

/// All images that a slot may hold.
pub fn images(workshop: &Workshop) -> Result<Vec<Image>> {
    let mut images = vec![Image::new(FIRST.version, &workshop.image(FIRST)?)?];
    for release in releases(workshop)? {
        images.push(Image::new(&release.version, &release.image)?);
    }
    Ok(images)
}

pub async fn run(workshop: &Workshop) -> Result<()> {
    let mut site = Site::new(workshop, "story", FIRST).await?;
    tell(&mut site, &releases(workshop)?).await
}

/// From power-on to power-off, with both updates in between.
pub async fn tell(site: &mut Site, releases: &[Release; 2]) -> Result<()> {
    site.machine.power_on().await?;
    site.connected().await?;
    ensure!(site.running().await? == ("A".to_owned(), FIRST.version.to_owned()));
    let mut kernel = site.machine.shell("uname -r").await?;
    for (slot, release) in ["B", "A"].into_iter().zip(releases) {
        let id = operation(slot);
        site.start_update(release, &id).await?;
        let last = site.outcome(&id).await?;
        ensure!(text(&last, "/result") == "committed", "{last}");
        ensure!(site.running().await? == (slot.to_owned(), release.version.clone()));
        let new_kernel = site.machine.shell("uname -r").await?;
        ensure!(new_kernel != kernel, "the kernel is still {kernel}");
        println!("slot {slot} runs {} on Linux {}", release.version, new_kernel.trim());
        kernel = new_kernel;
        journal(site).await?;
        ensure!(site.machine.shell("test -e /run/fwupdate/proven").await.is_ok(), "the dead-man is armed");
        let deadman = site.machine.shell("systemctl is-active fwupdate-deadman.timer || true").await?;
        ensure!(deadman.trim() == "inactive", "after the commit the dead-man's timer is {deadman}");
    }
    let wanted = ["standBy", "downloading", "applying", "completed", "downloading", "applying", "completed"];
    let statuses = site.statuses();
    ensure!(statuses == wanted, "{statuses:?}");
    println!("twin: {}", statuses.join(", "));
    site.power_off().await?;
    for (slot, release) in ["B", "A"].into_iter().zip(releases) {
        ensure!(site.holds(slot, &release.image)?, "slot {slot} is not the image of {}", release.version);
    }
    println!("both slots hold their images, byte for byte");
    Ok(())
}

/// The id of the update into `slot`.
pub fn operation(slot: &str) -> String {
    format!("story-{slot}")
}

/// The journal tells the story with its fields.
async fn journal(site: &Site) -> Result<()> {
    let entries = site.machine.shell("journalctl -u fwupdate -o json --no-pager").await?;
    for field in ["\"OPERATION_ID\":\"story-", "\"PHASE\":\"committing\"", "\"MESSAGE_ID\":", "\"SLOT\":"] {
        ensure!(entries.contains(field), "no {field} in the journal:\n{entries}");
    }
    Ok(())
}
