//! A good update, there and back, on both boot loaders; what it costs; what it waits for.

use std::collections::HashSet;
use std::fs;

use fwupdate_hub::faults::{FileEffect, FileRule};
use fwupdate_hub::firmware::Slot;
use fwupdate_hub::gateway::Bootloader;
use serde_json::json;

use crate::harness::{DEVICE, Setup, Spec, World};

async fn there_and_back(bootloader: Bootloader) {
    let mut world = World::with(Setup { bootloader, ..Setup::default() }).await;
    let first = world.release("2.0.0");
    let second = world.release("3.0.0");

    let last = world.install(&first).await;
    assert_eq!(last["result"], "committed", "{last}");
    assert_eq!((&last["fromVersion"], &last["toVersion"]), (&"1.0.0".into(), &"2.0.0".into()));
    assert_eq!(world.booted(), Slot::B);
    assert!(world.holds(Slot::B, &first));
    let twin = world.twin();
    assert_eq!(twin["firmwareStatus"], "completed");
    for time in ["downloadComplete", "startedApplyingImage", "lastFirmwareUpdate", "logTime"] {
        assert!(twin[time].as_str().is_some_and(|time| time.ends_with('Z')), "{time} in {twin}");
    }
    assert_eq!(twin["fwupdate"]["slots"]["B"]["state"], "booted");
    assert_eq!(twin["fwupdate"]["slots"]["A"]["state"], "proven");

    let last = world.install(&second).await;
    assert_eq!(last["result"], "committed", "{last}");
    assert_eq!((world.booted(), &last["fromVersion"]), (Slot::A, &"2.0.0".into()));
    assert!(world.holds(Slot::A, &second));
    assert_eq!(world.gateway.power_ons(), 3);

    let phases: Vec<_> = world
        .hub
        .history(DEVICE)
        .iter()
        .filter_map(|report| report.patch["fwupdate"]["operation"]["phase"].as_str().map(str::to_owned))
        .collect();
    for phase in ["staging", "trying"] {
        assert!(phases.iter().any(|seen| seen == phase), "{phase} in {phases:?}");
    }
    world.finish().await;
}

#[tokio::test]
async fn there_and_back_with_uboot() {
    there_and_back(Bootloader::Uboot).await;
}

#[tokio::test]
async fn there_and_back_with_grub() {
    there_and_back(Bootloader::Grub).await;
}

#[tokio::test]
async fn a_patch_from_the_image_that_runs_saves_most_of_the_download() {
    let mut world = World::with(Setup::default()).await;
    let first = world.release("2.0.0");
    assert_eq!(world.install(&first).await["result"], "committed");

    // The next image differs in every block of its large file.
    let mut image = fs::read(&first.image).unwrap();
    let version = b"IMAGE_VERSION=2.0.0";
    let at = image.windows(version.len()).position(|window| window == version).unwrap();
    image[at + 14] = b'3';
    // That alone is noise, with all bytes there are; the file system's own blocks are not.
    let noise = |block: &&mut [u8]| block.iter().collect::<HashSet<_>>().len() == 256;
    image.chunks_mut(4096).filter(noise).for_each(|block| block[1000] ^= 1);
    let path = world.scratch().join("3.0.0.img");
    fs::write(&path, image).unwrap();
    let plain = world.pack(&path, "3.0.0", &[]);
    let plain = fs::metadata(&plain.bundle).unwrap().len();
    let second = world.pack(&path, "3.0.0", &["--base", first.image.to_str().unwrap()]);

    let last = world.install(&second).await;
    assert_eq!(last["result"], "committed", "{last}");
    assert!(world.holds(Slot::A, &second));
    let fetched = world.hub.faults().count(&second.name).body_bytes;
    assert!(fetched * 4 < plain, "{fetched} of {plain}");
    world.finish().await;
}

/// The largest count of received bytes that was ever reported for this operation.
fn received(world: &World, id: &str) -> u64 {
    let (mut twin, mut most) = (json!({}), 0);
    for report in world.hub.history(DEVICE) {
        crate::checker::merge(&mut twin, &report.patch);
        let operation = &twin["fwupdate"]["operation"];
        if operation["id"] == id {
            most = most.max(operation["downloadedBytes"].as_u64().unwrap());
        }
    }
    most
}

#[tokio::test]
async fn received_bytes_are_counted_over_restarts_and_against_the_budget() {
    let settings = "[download]\nrate_limit = \"1MiB\"\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let release = world.make(Spec { size: 4 << 20, noise: 2 << 20, ..Spec::default() });
    let size = fs::metadata(&release.bundle).unwrap().len();

    let small = json!({"fwPackageUri": release.url, "maxDownloadBytes": size / 2});
    let id = world.update(small).await;
    let last = world.outcome(&id).await;
    assert_eq!(
        (&last["result"], &last["error"]["code"]),
        (&"failed".into(), &"DataBudgetExceeded".into()),
        "{last}"
    );
    assert!(
        world.hub.faults().count(&release.name).body_bytes < size / 2,
        "the budget was known to be too small"
    );

    world.hub.faults().reset_counts();
    let id = world.update(json!({"fwPackageUri": release.url, "maxDownloadBytes": size * 2})).await;
    world.reported(|twin| twin["fwupdate"]["operation"]["percent"].as_u64() >= Some(40)).await;
    let before = received(&world, &id);
    assert!(before > 0 && before < size, "{before} of {size}");
    let eta = |twin: &serde_json::Value| twin["fwupdate"]["operation"]["etaSeconds"].is_u64();
    assert!(world.hub.history(DEVICE).iter().any(|report| eta(&report.patch)), "the time left is never told");
    world.crash().await;
    assert_eq!(world.outcome(&id).await["result"], "committed");
    let requested: u64 = world.hub.faults().log().iter().map(|request| request.length).sum();
    let counted = received(&world, &id);
    // The end of the file is padding that nobody fetches.
    assert!(counted > size - 4096 && counted <= requested, "{counted} of {size}, requested {requested}");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn an_expired_link_waits_for_a_fresh_one_and_goes_on() {
    let settings = "[download]\nrate_limit = \"1MiB\"\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let release = world.make(Spec { size: 4 << 20, noise: 2 << 20, ..Spec::default() });
    let size = fs::metadata(&release.bundle).unwrap().len();
    let link = |expiry: &str| format!("{}?se={expiry}&sig=secret", release.url);

    // Short connections, and then no more.
    world.hub.faults().file(FileRule::always(&release.name, FileEffect::Drop { after: 150_000 }));
    let id = world.update(json!({"fwPackageUri": link("2020-01-01T00%3A00%3A00Z")})).await;
    world.reported(|twin| twin["fwupdate"]["operation"]["percent"].as_u64() >= Some(30)).await;
    world.hub.faults().clear();
    world.hub.faults().file(FileRule::always(&release.name, FileEffect::Status { status: 403 }));
    let twin = world.reported(|twin| !twin["fwupdate"]["operation"]["waiting"].is_null()).await;
    let waiting = twin["fwupdate"]["operation"]["waiting"].as_str().unwrap();
    assert!(waiting.contains("expired at 2020-01-01") && !waiting.contains("secret"), "{waiting}");
    let status = String::from_utf8(world.ctl(&["status"]).await.stdout).unwrap();
    assert!(status.starts_with(&format!("WAITING   {waiting}\n")), "{status}");
    assert!(world.gateway.log().contains(&format!("the update waits: {waiting}")), "{}", world.gateway.log());
    assert_eq!(
        (&twin["firmwareStatus"], &twin["fwupdate"]["operation"]["id"]),
        (&"downloading".into(), &json!(id))
    );

    world.hub.faults().clear();
    let fresh = json!({"fwPackageUri": link("9999-01-01T00%3A00%3A00Z"), "operationId": id});
    assert_eq!(world.call("firmwareUpdate", fresh).await.status, 200);
    assert_eq!(world.outcome(&id).await["result"], "committed");
    // Only what was in flight is fetched again.
    let counted = received(&world, &id);
    assert!(counted < size + size / 2, "{counted} received of {size}: it began anew");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_link_that_is_refused_before_it_expires_ends_the_update() {
    let mut world = World::new().await;
    let release = world.release("2.0.0");
    world.hub.faults().file(FileRule::always(&release.name, FileEffect::Status { status: 403 }));
    let link = format!("{}?se=9999-01-01T00%3A00%3A00Z&sig=secret", release.url);
    let id = world.update(json!({"fwPackageUri": link})).await;
    assert_eq!(world.outcome(&id).await["error"]["code"], "Forbidden");
    world.finish().await;
}

#[tokio::test]
async fn an_update_waits_for_approval_also_over_a_restart() {
    let settings = "[policy]\napproval = true\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let release = world.release("2.0.0");
    let id = world.update(json!({"fwPackageUri": release.url})).await;
    world.phase("holding").await;
    assert_eq!(world.twin()["firmwareStatus"], "downloading");
    world.power_cut().await;
    assert_eq!(world.booted(), Slot::A);
    let answer = world.call("firmwareApprove", json!({"operationId": id})).await;
    assert_eq!(answer.status, 200, "{}", answer.payload);
    assert_eq!(world.outcome(&id).await["result"], "committed");
    assert_eq!(world.booted(), Slot::B);
    world.finish_disturbed().await;
}
