//! A good update, there and back, on both boot loaders.

use fwupdate_hub::firmware::Slot;
use fwupdate_hub::gateway::Bootloader;

use crate::harness::{DEVICE, Setup, World};

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
