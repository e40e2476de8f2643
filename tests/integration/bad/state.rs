//! Settings that are not known, and a record that cannot be saved, cannot be read, or comes from the future.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use fwupdate_hub::firmware::Slot;
use serde_json::{Value, json};

use super::{Bytes, expect, fetch, goes_on, take};
use crate::devices::{self, Mount};
use crate::harness::{DEVICE, LIMIT, Setup, World};

/// Bytes of a file of the record.
const RECORD: usize = 64 * 1024;

#[tokio::test]
async fn an_unknown_setting_fails_the_check_and_stops_no_agent() {
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let file = world.gateway.dir().join("fwupdate.toml");
    let text = fs::read_to_string(&file).unwrap();
    let misspelt = text.replace("[download]\n", "[download]\npatiense = \"1min\"\n");
    fs::write(&file, misspelt).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_fwupdated"));
    let output = check.arg("--check-config").arg("--config").arg(&file).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for word in ["download.patiense", "download.patience", &file.display().to_string()] {
        assert!(told.contains(word), "{word} is not in {told}");
    }
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    assert!(world.gateway.log().contains("patiense"), "{}", world.gateway.log());
    goes_on(world).await;
}

/// The two files of the record.
pub(super) fn records(world: &World) -> [PathBuf; 2] {
    ["record.0", "record.1"].map(|name| world.gateway.dir().join("state").join(name))
}

/// Takes a file of the record apart, by the format that src/store.rs describes: sequence number and JSON.
pub(super) fn read_record(path: &PathBuf) -> (u64, Value) {
    let text = fs::read_to_string(path).unwrap();
    let (line, rest) = text.split_once('\n').unwrap();
    let field = |name: &str| {
        line.split(' ').find_map(|word| word.strip_prefix(name)).unwrap().parse::<usize>().unwrap()
    };
    (field("seq=") as u64, serde_json::from_str(&rest[..field("len=")]).unwrap())
}

pub(super) fn write_record(path: &PathBuf, version: u64, sequence: u64, record: &Value) {
    let body = record.to_string();
    let head = format!("fwupdate-record {version} seq={sequence} len={} crc32=", body.len());
    let sum = crc32fast::hash(format!("{head}{body}").as_bytes());
    let mut bytes = format!("{head}{sum:08x}\n{body}\n").into_bytes();
    bytes.resize(RECORD, b' ');
    fs::write(path, bytes).unwrap();
}

/// The record that counts.
pub(super) fn newest(world: &World) -> Value {
    records(world).iter().map(read_record).max_by_key(|(sequence, _)| *sequence).unwrap().1
}

#[tokio::test]
async fn what_a_newer_agent_wrote_is_kept_and_its_phase_is_derived_from_the_environment() {
    let mut world = World::new().await;
    let first = world.release("2.0.0");
    take(&mut world, &first).await;
    world.kill().await;
    for path in records(&world) {
        let (sequence, mut record) = read_record(&path);
        record["version"] = json!(999);
        record["phase"] = json!({"name": "levitating", "height": 3});
        record["novel"] = json!({"kept": [1, 2]});
        write_record(&path, 1, sequence, &record);
    }
    world.gateway.start_agent().unwrap();
    assert!(world.hub.wait_connected(DEVICE, true, LIMIT).await);
    let good = world.release("3.0.0");
    take(&mut world, &good).await;
    let record = newest(&world);
    assert_eq!(record["version"], 999);
    assert_eq!(record["novel"], json!({"kept": [1, 2]}));
    let history = record["history"].as_array().unwrap();
    assert_eq!(history.iter().map(|one| &one["toVersion"]).collect::<Vec<_>>(), ["3.0.0", "2.0.0"]);
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_record_of_a_format_that_is_not_known_is_not_overwritten() {
    let mut world = World::new().await;
    world.kill().await;
    for path in records(&world) {
        let (sequence, record) = read_record(&path);
        write_record(&path, 2, sequence, &record);
    }
    let before = Bytes::of(&world.gateway);
    let record = records(&world).map(|path| fs::read(path).unwrap());
    world.gateway.start_agent().unwrap();
    assert!(world.hub.wait_connected(DEVICE, true, LIMIT).await);
    let good = world.release("2.0.0");
    let answer = world.call("firmwareUpdate", fetch(&world, &good.name)).await;
    assert_eq!(answer.status, 503, "{}", answer.payload);
    expect("a newer format", &answer.payload["error"], "StateUnavailable", "format 2");
    before.same(&world, "a newer format");
    assert!(
        records(&world).map(|path| fs::read(path).unwrap()) == record,
        "the newer record was overwritten"
    );
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_damaged_record_is_replaced_by_what_the_environment_says() {
    let mut world = World::new().await;
    world.kill().await;
    for path in records(&world) {
        fs::write(path, vec![0xa5; RECORD]).unwrap();
    }
    world.gateway.start_agent().unwrap();
    assert!(world.hub.wait_connected(DEVICE, true, LIMIT).await);
    assert!(world.gateway.log().contains("damaged"), "{}", world.gateway.log());
    goes_on(world).await;
}

#[tokio::test]
async fn a_damaged_record_during_a_trial_leaves_the_verdict_to_the_checks() {
    let mut world = World::new().await;
    let good = world.release("2.0.0");
    world.update(fetch(&world, &good.name)).await;
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.gateway.shut_down().await.unwrap();
    for path in records(&world) {
        fs::write(path, vec![0xa5; RECORD]).unwrap();
    }
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["fwupdate"]["last"]["result"] == "unknown").await;
    assert_eq!(world.gateway.boot_variable("fwupdate_primary").unwrap(), "B");
    assert_eq!(world.gateway.boot_variable("fwupdate_trial").unwrap(), "");
    assert_eq!(world.booted(), Slot::B);
    goes_on(world).await;
}

#[tokio::test]
async fn without_room_for_the_record_no_update_starts() {
    if !devices::root("without_room_for_the_record_no_update_starts") {
        return;
    }
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let state = Mount::ram("64k", &world.gateway.dir().join("state"));
    world.gateway.power_on().unwrap();
    assert!(world.hub.wait_connected(DEVICE, true, LIMIT).await);
    let good = world.release("2.0.0");
    refused_for_the_state(&mut world, &good.name).await;
    state.remount("size=1m");
    starts_again(&mut world, &good.name).await;

    // With its files in place the record no longer depends on room.
    let filler = world.gateway.dir().join("state/filler");
    let full = fs::write(&filler, vec![1; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    goes_on(world).await;
}

#[tokio::test]
async fn on_a_read_only_state_folder_no_update_starts() {
    if !devices::root("on_a_read_only_state_folder_no_update_starts") {
        return;
    }
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let state = Mount::ram("1m", &world.gateway.dir().join("state"));
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    state.remount("ro");
    let good = world.release("2.0.0");
    refused_for_the_state(&mut world, &good.name).await;
    state.remount("rw");
    starts_again(&mut world, &good.name).await;
    goes_on(world).await;
}

async fn refused_for_the_state(world: &mut World, bundle: &str) {
    let before = Bytes::of(&world.gateway);
    let answer = world.call("firmwareUpdate", fetch(world, bundle)).await;
    assert_eq!(answer.status, 503, "{}", answer.payload);
    expect("no state", &answer.payload["error"], "StateUnavailable", "state");
    before.same(world, "no state");
    assert_eq!(world.hub.faults().count(bundle).requests, 0);
    let told = world.reported(|reported| reported["fwupdate"]["agent"]["degraded"].is_string()).await;
    let why = told["fwupdate"]["agent"]["degraded"].as_str().unwrap();
    let status = String::from_utf8(world.ctl(&["status"]).await.stdout).unwrap();
    assert!(status.starts_with(&format!("DEGRADED  {why}\n")), "{status}");
    let log = fs::read_to_string(world.gateway.log_path()).unwrap();
    assert!(log.contains(&format!("degraded: no update can start: {why}")), "{log}");
}

/// The agent finds out by itself that it can save again, and takes the update.
async fn starts_again(world: &mut World, bundle: &str) {
    world.reported(|reported| reported["fwupdate"]["agent"]["degraded"].is_null()).await;
    let id = world.update(fetch(world, bundle)).await;
    let last = world.outcome(&id).await;
    assert_eq!(last["result"], "committed", "{last}");
}

#[tokio::test]
async fn a_trial_is_decided_though_the_record_cannot_be_saved() {
    if !devices::root("a_trial_is_decided_though_the_record_cannot_be_saved") {
        return;
    }
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let state = Mount::ram("1m", &world.gateway.dir().join("state"));
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    let good = world.release("2.0.0");
    let id = world.update(fetch(&world, &good.name)).await;
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.gateway.stop_agent().await.unwrap();
    let read_only = records(&world).map(|path| Mount::read_only(&path));
    world.gateway.power_on().unwrap();
    let committed = async {
        while world.gateway.boot_variable("fwupdate_primary").unwrap() != "B" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, committed).await.expect("the trial is never decided");
    assert_eq!(world.gateway.boot_variable("fwupdate_trial").unwrap(), "");
    assert_ne!(world.twin()["firmwareStatus"], "completed", "told before it was saved");
    drop(read_only);
    let last = world.outcome(&id).await;
    assert_eq!(last["result"], "committed", "{last}");
    goes_on(world).await;
    drop(state);
}

/// Such an image could take no update any more.
#[tokio::test]
async fn an_image_that_mounts_its_state_read_only_goes_back() {
    if !devices::root("an_image_that_mounts_its_state_read_only_goes_back") {
        return;
    }
    let settings = "[health]\ndeadline = \"2s\"\n".into();
    let mut world = World::with(Setup { on: false, settings, ..Setup::default() }).await;
    let state = Mount::ram("1m", &world.gateway.dir().join("state"));
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    let bad = world.release("2.0.0");
    let id = world.update(fetch(&world, &bad.name)).await;
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.gateway.stop_agent().await.unwrap();
    state.remount("ro");
    world.gateway.power_on().unwrap();
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.gateway.stop_agent().await.unwrap();
    let log = fs::read_to_string(world.gateway.log_path()).unwrap();
    assert!(log.contains("the health check next-update: state access fails:"), "{log}");
    state.remount("rw");
    world.gateway.power_on().unwrap();
    assert_eq!(world.booted(), Slot::A);
    let last = world.outcome(&id).await;
    assert_eq!(last["result"], "failed", "{last}");
    goes_on(world).await;
}

/// Takes a field out of the record, as if an agent had written it that did not know the field.
pub fn forget_in_record(world: &World, field: &str) {
    for path in records(world) {
        let (sequence, mut record) = read_record(&path);
        record.as_object_mut().unwrap().remove(field).unwrap();
        write_record(&path, 1, sequence, &record);
    }
}
