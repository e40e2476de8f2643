//! What becomes of the boot environment on a bad day: torn, lost, not writable; and a proven slot that lost its
//! kernel. Real bootloaders, one gateway, one day after the other.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::examine::{ENVIRONMENT, ESP, Examiner, SLOT_B};
use crate::images::{Bootloader, Release, Workshop, call};
use crate::site::{PATIENCE, Site, text};
use crate::story;

/// Copies of U-Boot's environment (image/disk.sh): distance and size, bytes.
const COPY: usize = 0x4000;
const SECTOR: usize = 512;
const GRUB_SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

pub async fn run(workshop: &Workshop) -> Result<()> {
    let releases = story::releases(workshop)?;
    let mut day = Day {
        bootloader: workshop.bootloader,
        examiner: Examiner::new(workshop.bootloader, story::images(workshop)?)?,
        site: Site::new(workshop, "environment", story::FIRST).await?,
    };
    day.lost().await.context("lost environment")?;
    day.cannot_save(&releases[0]).await.context("bootloader that cannot save")?;
    day.committed(&releases[0]).await.context("update after it")?;
    day.torn().await.context("torn environment")?;
    day.kernel_gone().await.context("primary without kernel")
}

struct Day {
    bootloader: Bootloader,
    examiner: Examiner,
    site: Site,
}

impl Day {
    /// Nothing of the environment is left: slot A boots, the agent learns that and rebuilds it.
    async fn lost(&mut self) -> Result<()> {
        for (start, length) in self.copies()? {
            self.overwrite(start, &vec![0; length])?;
        }
        ensure!(self.look().is_err(), "the environment is still there");
        self.boots("A", "1.0.0").await?;
        let arguments = self.site.machine.shell("cat /proc/cmdline").await?;
        ensure!(arguments.contains("fwupdate.env=lost"), "{arguments}");
        self.site.at_rest().await?;
        self.site.power_off().await?;
        let (slot, _) = self.look().context("it was not rebuilt")?;
        ensure!(slot == "A", "slot {slot} would boot");
        println!("lost environment: slot A boots, and the environment is rebuilt");
        Ok(())
    }

    /// The bootloader's write of the count fails: the trial is not begun, and the twin says so.
    async fn cannot_save(&mut self, release: &Release) -> Result<()> {
        self.site.machine.power_on().await?;
        self.site.connected().await?;
        let from = self.site.machine.mark();
        self.site.start_update(release, "cannot-save").await?;
        self.site.machine.expect(from, "reboot: Restarting system", PATIENCE).await?;
        // The bootloader meets the fault, and only it: the disk fails one write.
        self.site.machine.stop().await?;
        let bad = self.next_written()?;
        let from = self.site.machine.mark();
        self.site.machine.power_on_with(Some(bad)).await?;
        self.site.machine.expect(from, "fwupdate: A: slot A", PATIENCE).await?;
        let last = self.site.outcome("cannot-save").await?;
        let (code, message) = (text(&last, "/error/code"), text(&last, "/error/message"));
        ensure!((text(&last, "/result"), code) == ("failed", "BootloaderFailed"), "{last}");
        ensure!(self.site.running().await?.0 == "A", "{last}");
        println!("bootloader that cannot save: {code}: {message}");
        Ok(())
    }

    /// The same release is tried again and committed.
    async fn committed(&mut self, release: &Release) -> Result<()> {
        self.site.start_update(release, "again").await?;
        let last = self.site.outcome("again").await?;
        ensure!(text(&last, "/result") == "committed", "{last}");
        self.site.at_rest().await?;
        self.site.power_off().await
    }

    /// Half of the newest copy is gone: with U-Boot the older one counts. GRUB's is one sector, which is written
    /// whole or not at all.
    async fn torn(&mut self) -> Result<()> {
        if self.bootloader == Bootloader::Grub {
            return Ok(());
        }
        let newest = self.newest()?;
        self.overwrite(newest + COPY / 2, &[0x5a; COPY / 2])?;
        let (slot, version) = self.look()?;
        ensure!((slot.as_str(), version.as_str()) == ("B", "1.1.0"), "slot {slot} would boot");
        self.boots("B", "1.1.0").await?;
        self.site.at_rest().await?;
        self.site.power_off().await?;
        let (slot, _) = self.look()?;
        ensure!(slot == "B", "slot {slot} would boot");
        println!("torn environment: slot B, which was committed, boots");
        Ok(())
    }

    /// The primary's kernel is gone: the fallback boots, and the twin says what is wrong.
    async fn kernel_gone(&mut self) -> Result<()> {
        let slot = format!("{}?offset={}", self.site.machine.disk.display(), SLOT_B.0);
        call(Command::new("debugfs").args(["-w", "-R", "rm /boot/vmlinuz"]).arg(slot))?;
        let from = self.site.machine.mark();
        self.boots("A", "1.0.0").await?;
        self.site.machine.expect(from, "fwupdate: B: slot B", PATIENCE).await?;
        let told = self.site.at_rest().await?;
        let degraded = text(&told, "/fwupdate/agent/degraded");
        ensure!(!degraded.is_empty(), "the twin says nothing of it: {told}");
        println!("primary without kernel: the fallback boots; {degraded}");
        self.site.power_off().await
    }

    /// Powers on and waits until `slot` runs `version` and is in touch with the hub.
    async fn boots(&mut self, slot: &str, version: &str) -> Result<()> {
        let from = self.site.machine.mark();
        self.site.machine.power_on().await?;
        self.site.machine.expect(from, &format!("fwupdate.slot={slot} "), PATIENCE).await?;
        self.site.connected().await?;
        let running = self.site.running().await?;
        ensure!(running == (slot.to_owned(), version.to_owned()), "{running:?} runs");
        Ok(())
    }

    /// The slot that would boot from the disk, which is off, and its version.
    fn look(&self) -> Result<(String, String)> {
        let found = self.examiner.examine(&fs::read(&self.site.machine.disk)?)?;
        Ok((found.boots.0.to_string(), found.boots.1))
    }

    fn overwrite(&self, start: usize, bytes: &[u8]) -> Result<()> {
        let disk = OpenOptions::new().write(true).open(&self.site.machine.disk)?;
        Ok(disk.write_all_at(bytes, start as u64)?)
    }

    /// Where the environment lies on the disk: start and length of each copy, bytes.
    fn copies(&self) -> Result<Vec<(usize, usize)>> {
        if self.bootloader == Bootloader::Uboot {
            return Ok(vec![(ENVIRONMENT.0, COPY), (ENVIRONMENT.0 + COPY, COPY)]);
        }
        let disk = fs::read(&self.site.machine.disk)?;
        let esp = disk.get(ESP.0..ESP.0 + ESP.1).context("no ESP")?;
        let sector = esp.chunks(SECTOR).position(|sector| sector.starts_with(GRUB_SIGNATURE));
        let start = ESP.0 + sector.context("no grubenv on the ESP")? * SECTOR;
        Ok(vec![(start, 2 * SECTOR)])
    }

    /// Start of the copy of U-Boot's environment that counts: the flags count up, 255 is followed by 0.
    fn newest(&self) -> Result<usize> {
        let disk = fs::read(&self.site.machine.disk)?;
        let flags = |start: usize| disk.get(start + 4).copied().context("no environment");
        let (first, second) = (ENVIRONMENT.0, ENVIRONMENT.0 + COPY);
        let ahead = flags(second)?.wrapping_sub(flags(first)?);
        Ok(if (1..128).contains(&ahead) { second } else { first })
    }

    /// The sector that the bootloader writes first when it counts an attempt.
    fn next_written(&self) -> Result<u64> {
        let start = match self.bootloader {
            Bootloader::Grub => self.copies()?.first().context("no copy")?.0,
            Bootloader::Uboot => 2 * ENVIRONMENT.0 + COPY - self.newest()?,
        };
        Ok((start / SECTOR) as u64)
    }
}
