//! Slots and boot environments that are not as they should be.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use fwupdate_hub::faults::{FileEffect, FileRule};
use fwupdate_hub::firmware::Slot;
use fwupdate_hub::gateway::Bootloader;
use serde_json::Value;
use tokio::time::timeout;

use super::{Bytes, expect, failed, fetch, goes_on, no_secrets, take};
use crate::devices::{self, Loops, Mount};
use crate::harness::{DEVICE, LIMIT, SLOT, Setup, World};

#[tokio::test]
async fn a_missing_slot_fails_and_may_come_back() {
    let mut world = World::new().await;
    let good = world.release("2.0.0");
    let slot = world.gateway.slot(Slot::B).to_owned();
    fs::remove_file(&slot).unwrap();
    let before = Bytes::of(&world.gateway);
    let payload = fetch(&world, &good.name);
    let error = failed(&mut world, payload).await;
    expect("no slot B", &error, "SlotWriteFailed", &slot.display().to_string());
    before.same(&world, "no slot B");
    assert!(!slot.exists(), "an update must not make a file of a missing device");
    fs::File::create(&slot).unwrap().set_len(SLOT).unwrap();
    goes_on(world).await;
}

#[tokio::test]
async fn a_mounted_slot_is_not_written() {
    if !devices::root("a_mounted_slot_is_not_written") {
        return;
    }
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    fs::copy(world.scratch().join("1.0.0.img"), world.gateway.slot(Slot::B)).unwrap();
    fs::OpenOptions::new().write(true).open(world.gateway.slot(Slot::B)).unwrap().set_len(SLOT).unwrap();
    let _loops = Loops::under(&mut world);
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    let good = world.release("2.0.0");
    let device = world.gateway.slot(Slot::B).display().to_string();
    let mounted = Mount::new(&["-o", "ro", &device], &world.scratch().join("mounted"));
    let before = Bytes::of(&world.gateway);
    let payload = fetch(&world, &good.name);
    let error = failed(&mut world, payload).await;
    expect("a mounted slot", &error, "SlotBusy", &device);
    before.same(&world, "a mounted slot");
    drop(mounted);
    goes_on(world).await;
}

#[tokio::test]
async fn a_read_only_slot_is_named_before_an_update_and_by_it() {
    if !devices::root("a_read_only_slot_is_named_before_an_update_and_by_it") {
        return;
    }
    for (way, options) in [("losetup", &["--read-only"][..]), ("blockdev", &[])] {
        let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
        let loops = Loops::with(&mut world, options);
        loops.protect(true);
        let device = world.gateway.slot(Slot::B).display().to_string();
        let named = |said: &str| said.contains(&device) && said.contains("lock switch");
        let mut check = Command::new(env!("CARGO_BIN_EXE_fwupdated"));
        let check = check.arg("--check-config").arg("--config").arg(world.gateway.settings_file()).output();
        let (told, check) = check.map(|out| (String::from_utf8(out.stderr).unwrap(), out.status)).unwrap();
        assert!(!check.success() && told.contains("read-only media") && named(&told), "{way}: {told}");

        world.switch_on().await;
        for check in ["read-only media", "spare slot"] {
            world.doctor_says(check, &device).await;
            world.doctor_says(check, "lock switch").await;
        }
        let good = world.release("2.0.0");
        let before = Bytes::of(&world.gateway);
        let payload = fetch(&world, &good.name);
        let error = failed(&mut world, payload).await;
        assert!(named(error["message"].as_str().unwrap()), "{way}: {error}");
        expect(way, &error, "SlotWriteFailed", "is read-only");
        before.same(&world, way);
        if options.is_empty() {
            loops.protect(false);
            goes_on(world).await;
        } else {
            world.finish().await;
        }
    }
}

#[tokio::test]
async fn a_slot_that_turns_read_only_while_it_is_written_ends_the_update_with_what_helps() {
    if !devices::root("a_slot_that_turns_read_only_while_it_is_written_ends_the_update_with_what_helps") {
        return;
    }
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let loops = Loops::under(&mut world);
    world.switch_on().await;
    let good = world.release("2.0.0");
    let faults = world.hub.faults();
    faults.file(FileRule::always(&good.name, FileEffect::Hold { after: 100_000 }));
    let id = world.update(fetch(&world, &good.name)).await;
    timeout(LIMIT, faults.holding()).await.unwrap();
    world.phase("staging").await;
    loops.protect(true);
    world.hub.faults().clear_files();
    let last = world.outcome(&id).await;
    expect("in the middle", &last["error"], "SlotWriteFailed", "lock switch");
    assert_eq!((&last["result"], world.booted()), (&"failed".into(), Slot::A), "{last}");
    world.doctor_says("read-only media", "lock switch").await;
    loops.protect(false);
    goes_on(world).await;
}

#[tokio::test]
async fn one_damaged_copy_of_the_environment_is_repaired() {
    for copy in [0, 1] {
        let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
        let path = world.gateway.dir().join("uboot.env");
        damage(&world, copy);
        world.gateway.power_on().unwrap();
        world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
        let good = world.release("2.0.0");
        take(&mut world, &good).await;
        assert_eq!(world.gateway.boot_variable("fwupdate_primary").unwrap(), "B");
        // Each copy alone is valid again: whichever is lost, the other one speaks.
        let whole = fs::read(&path).unwrap();
        for lost in [0, 1] {
            damage(&world, lost);
            assert!(world.gateway.boot_variable("fwupdate_primary").is_ok(), "only copy {lost} was valid");
            fs::write(&path, &whole).unwrap();
        }
        no_secrets(&world);
        world.finish().await;
    }
}

/// Flips a bit in a copy of U-Boot's environment.
fn damage(world: &World, copy: u64) {
    let path = world.gateway.dir().join("uboot.env");
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2 * copy + 20;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test]
async fn an_environment_that_is_lost_is_left_alone_without_the_boards_defaults_and_rebuilt_with_them() {
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    damage(&world, 0);
    damage(&world, 1);
    let before = Bytes::of(&world.gateway);
    world.gateway.power_on().unwrap();
    assert!(world.hub.wait_connected(DEVICE, true, LIMIT).await);
    let good = world.release("2.0.0");
    let answer = world.call("firmwareUpdate", fetch(&world, &good.name)).await;
    assert_eq!(answer.status, 503, "{}", answer.payload);
    expect("lost", &answer.payload["error"], "NotReady", "environment");
    before.same(&world, "a lost environment");

    world.kill().await;
    fs::write(world.gateway.dir().join("u-boot-initial-env"), "bootdelay=2\n").unwrap();
    world.gateway.power_on().unwrap();
    rebuilt(&mut world).await;
    assert_eq!(world.gateway.boot_variable("bootdelay").unwrap(), "2");
    goes_on(world).await;
}

#[tokio::test]
async fn a_lost_grubenv_is_rebuilt_whole() {
    let mut world = World::with(Setup { on: false, bootloader: Bootloader::Grub, ..Setup::default() }).await;
    fs::write(world.gateway.dir().join("grubenv"), b"# GRUB Environment Block\n").unwrap();
    world.gateway.power_on().unwrap();
    rebuilt(&mut world).await;
    assert_eq!(fs::metadata(world.gateway.dir().join("grubenv")).unwrap().len(), 1024);
    let good = world.release("2.0.0");
    take(&mut world, &good).await;
    world.finish().await;
}

/// Waits until nothing is wrong any more: the environment names the running slot.
async fn rebuilt(world: &mut World) {
    assert!(world.hub.wait_connected(DEVICE, true, LIMIT).await);
    let fit = |reported: &Value| {
        reported["firmwareStatus"] == "standBy" && reported["fwupdate"]["agent"]["degraded"].is_null()
    };
    world.reported(fit).await;
    world
        .until_shown(&["doctor"], |shown| {
            let findings = shown["findings"].as_array().unwrap();
            findings.iter().any(|found| found["check"] == "boot environment" && found["status"] == "ok")
        })
        .await;
    assert_eq!(world.gateway.boot_variable("fwupdate_primary").unwrap(), "A");
    assert_eq!(world.gateway.boot_variable("fwupdate_trial").unwrap(), "");
}
