//! What an agent that was taken over could do: tried from inside its sandbox, with the rights of the real service.

use anyhow::{Result, ensure};

use crate::images::Workshop;
use crate::site::Site;
use crate::story::FIRST;

/// How many of the tries are the agent's own work, which must succeed.
const WORK: usize = 4;

pub async fn run(workshop: &Workshop) -> Result<()> {
    let mut site = Site::new(workshop, "sandbox", FIRST).await?;
    site.machine.power_on().await?;
    site.connected().await?;
    let (slot, _) = site.running().await?;
    let list = site.machine.shell(&format!("sh /usr/lib/vm/sandbox {slot}")).await?;
    println!("{}", list.trim());
    let tries: Vec<&str> =
        list.lines().filter(|line| line.starts_with("allowed ") || line.starts_with("refused ")).collect();
    ensure!(list.contains("end of the list"), "the probe did not reach its end");
    ensure!(!list.contains("\nno "), "a tool is missing");
    let (work, attacks) = tries.split_at(WORK.min(tries.len()));
    for line in work {
        ensure!(line.starts_with("allowed "), "the agent could not do its work: {line}");
    }
    for line in attacks {
        ensure!(line.starts_with("refused "), "{line}");
    }
    ensure!(attacks.len() > 40, "only {} tries", attacks.len());
    println!("{} tries were refused", attacks.len());
    let user = site.machine.shell("stat -c %U /proc/$(systemctl show -P MainPID fwupdate)").await?;
    ensure!(user.trim() == "fwupdate", "the agent runs as {user}");
    site.power_off().await
}
