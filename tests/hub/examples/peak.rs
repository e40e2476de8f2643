//! How much memory `fwupdated` itself takes for an update, with its session to the hub, its record and its log: the
//! program as it is shipped, told to update over HTTPS and stopped before the reboot. For `make bench`.
//!
//!     peak FOLDER-OF-PROGRAMS BUNDLE KEY.pem IMAGE-OF-THE-BOOTED-SLOT

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is absent")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fwupdate_hub::gateway::{Bootloader, Cloud, Gateway, Parts};
use fwupdate_hub::methods::Call;
use fwupdate_hub::{Hub, Options};
use serde_json::{Value, json};

const DEVICE: &str = "peak";
const LIMIT: Duration = Duration::from_secs(900);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [programs, bundle, key, booted] = arguments.as_slice() else {
        anyhow::bail!("see the head of peak.rs");
    };
    let dir = std::env::current_dir()?.join(format!("peak-{}", std::process::id()));
    let measured = measure(&dir, programs, bundle, key, booted).await;
    std::fs::remove_dir_all(&dir)?;
    let (peak, downloaded) = measured?;
    println!("{{\"peakKiB\":{peak},\"fetched\":{downloaded}}}");
    Ok(())
}

/// Peak of the agent's resident memory, KiB, and bytes downloaded.
async fn measure(
    dir: &Path,
    programs: &Path,
    bundle: &Path,
    key: &Path,
    booted: &Path,
) -> Result<(u64, Value)> {
    let (www, keys) = (dir.join("www"), dir.join("keys"));
    std::fs::create_dir_all(&www)?;
    std::fs::create_dir_all(&keys)?;
    std::fs::copy(bundle, www.join("new.fwb"))?;
    std::fs::copy(key, keys.join("bench.pub.pem"))?;
    let hub = Hub::start(Options { www: Some(www), ..Options::ephemeral(dir.join("hub")) }).await?;
    let mut gateway = Gateway::new(Parts {
        dir: dir.join("gateway"),
        agent: std::fs::canonicalize(programs.join("fwupdated"))?,
        image: booted.to_owned(),
        slot_size: std::fs::metadata(booted)?.len(),
        bootloader: Bootloader::Uboot,
        keys,
        cloud: Some(Cloud::register(&hub, DEVICE)?),
        // The bundles of the benchmark; what is staged waits for an approval that does not come.
        settings: "compatible = \"bench\"\n[policy]\napproval = true\n".into(),
    })?;
    gateway.power_on()?;
    gateway.run_until(&hub, LIMIT, |twin| twin["firmwareStatus"] == "standBy").await?;
    let payload = json!({ "fwPackageUri": hub.files_url("new.fwb") });
    let answer = hub.invoke(DEVICE, Call::new("firmwareUpdate", Some(payload))).await?;
    ensure!(answer.status == 200, "the method was refused: {}", answer.payload);
    let waits = |twin: &Value| {
        let fwupdate = &twin["fwupdate"];
        fwupdate["operation"]["phase"] == "holding" || !fwupdate["last"].is_null()
    };
    let twin = gateway.run_until(&hub, LIMIT, waits).await?;
    ensure!(
        twin["fwupdate"]["last"].is_null(),
        "it ended as {}\n{}",
        twin["fwupdate"]["last"],
        gateway.log()
    );
    let peak = peak(gateway.agent_id().context("the agent is gone")?)?;
    gateway.shut_down().await?;
    hub.stop().await;
    Ok((peak, twin["fwupdate"]["operation"]["downloadedBytes"].clone()))
}

fn peak(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
