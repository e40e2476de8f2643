//! What an agent that was taken over could do: tried from inside its sandbox, with the rights of the real service.

use anyhow::{Result, ensure};

use crate::images::Workshop;
use crate::site::Site;
use crate::story::FIRST;

/// The agent's own work, which must succeed: without it a sandbox that allows nothing would pass.
const WORK: [&str; 4] = [
    "read the slot that runs",
    "write the spare slot",
    "write the boot environment",
    "write the state folder",
];

pub async fn run(workshop: &Workshop) -> Result<()> {
    let mut site = Site::new(workshop, "sandbox", FIRST).await?;
    site.machine.power_on().await?;
    site.connected().await?;
    println!("{}", tries(&site, &[]).await?.trim());
    let user = site.machine.shell("stat -c %U /proc/$(systemctl show -P MainPID fwupdate)").await?;
    ensure!(user.trim() == "fwupdate", "the agent runs as {user}");
    site.power_off().await
}

/// Tries all of the list, which it returns: the agent's work and what is `opened` must be allowed, and nothing else.
pub async fn tries(site: &Site, opened: &[&str]) -> Result<String> {
    let (slot, _) = site.running().await?;
    let list = site.machine.shell(&format!("sh /usr/lib/vm/sandbox {slot}")).await?;
    ensure!(list.contains("end of the list"), "the probe did not reach its end:\n{list}");
    ensure!(!list.contains("\nno "), "a tool is missing:\n{list}");
    let allowed: Vec<&str> = list.lines().filter_map(|line| line.strip_prefix("allowed ")).collect();
    let wanted = [&WORK, opened].concat();
    ensure!(allowed == wanted, "allowed is {allowed:?} and not {wanted:?}");
    let refused = list.lines().filter(|line| line.starts_with("refused ")).count();
    ensure!(refused > 40, "only {refused} tries were refused");
    Ok(list)
}
