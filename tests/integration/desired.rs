//! What the desired properties ask for: acted upon once, replaced, withdrawn, overruled, and caught up with.

use std::fs;

use fwupdate_hub::faults::{FileEffect, FileRule};
use fwupdate_hub::firmware::Slot;
use serde_json::{Value, json};

use crate::harness::{DEVICE, Release, Setup, Spec, World};

/// A stalled transfer stays stalled.
const PATIENT: &str = "[download]\nstall_timeout = \"1h\"\n";
/// Enough for manifest and index, and less than the payload.
const STALL: FileEffect = FileEffect::Stall { after: 100_000 };

fn want(world: &World, section: Value) {
    world.hub.patch_desired(DEVICE, json!({"fwupdate": section})).unwrap();
}

fn asked(release: &Release) -> Value {
    json!({"fwPackageUri": release.url, "version": release.version, "operationId": null})
}

/// Lets the gateway live until `fwupdate.desired` has this code, and nothing runs.
async fn settled(world: &mut World, code: &str) -> Value {
    world
        .reported(|twin| {
            twin["fwupdate"]["desired"]["code"] == code && twin["fwupdate"]["operation"].is_null()
        })
        .await["fwupdate"]
        .clone()
}

/// The ids of all operations that ended, oldest first, by the gateway's own word: a short one may be over before
/// the twin ever showed it running.
async fn operations(world: &mut World) -> Vec<String> {
    let history = world.ctl_json(&["history"]).await["history"].clone();
    let ended = history.as_array().unwrap().iter().rev();
    ended.map(|last| last["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_section_is_acted_upon_once_until_it_changes() {
    let mut world = World::new().await;
    let (two, three) = (world.release("2.0.0"), world.release("3.0.0"));
    want(&world, asked(&two));
    let told = settled(&mut world, "Committed").await;
    assert_eq!((&told["last"]["source"], &told["last"]["result"]), (&"desired".into(), &"committed".into()));
    assert_eq!(told["desired"]["version"], "2.0.0");
    assert_eq!(world.booted(), Slot::B);

    // Neither a restart, nor a reconnect, nor a fresh token makes it act again; a method overrules it.
    world.crash().await;
    want(&world, json!({"fwPackageUri": format!("{}?sig=fresh", two.url)}));
    let back = world.call("firmwareRollback", json!({"operationId": "back"})).await;
    assert_eq!(back.status, 200, "{}", back.payload);
    assert_eq!(world.outcome("back").await["result"], "committed");
    assert_eq!(world.booted(), Slot::A);
    assert_eq!(world.twin()["fwupdate"]["desired"]["code"], "Superseded");
    world.crash().await;
    world.hub.wait_connected(DEVICE, true, crate::harness::LIMIT).await;
    let ended = operations(&mut world).await;
    assert_eq!(ended.len(), 2, "{ended:?}");
    assert_eq!(ended[1], "back");

    want(&world, asked(&three));
    assert_eq!(settled(&mut world, "Committed").await["last"]["toVersion"], "3.0.0");
    assert_eq!(operations(&mut world).await.len(), 3);
    assert!(!world.hub.history(DEVICE).iter().any(|report| report.patch.to_string().contains("sig=")));
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_change_replaces_what_is_staged_and_null_cancels_it() {
    let mut world = World::with(Setup { settings: PATIENT.into(), ..Setup::default() }).await;
    let (two, three) = (world.release("2.0.0"), world.release("3.0.0"));
    world.hub.faults().file(FileRule::always(&two.name, STALL));
    want(&world, asked(&two));
    let first = world.phase("staging").await["fwupdate"]["operation"]["id"].clone();
    want(&world, Value::Null);
    let told = world.reported(|twin| twin["firmwareStatus"] == "cancelled").await["fwupdate"].clone();
    assert_eq!((&told["last"]["id"], &told["last"]["error"]["code"]), (&first, &"Cancelled".into()));
    world.reported(|twin| twin["fwupdate"]["desired"].is_null()).await;

    want(&world, asked(&two));
    let second = world.phase("staging").await["fwupdate"]["operation"]["id"].clone();
    assert_ne!(first, second);
    want(&world, asked(&three));
    let told = settled(&mut world, "Committed").await;
    assert_eq!(told["last"]["toVersion"], "3.0.0");
    assert!(world.holds(Slot::B, &three));
    let history = world.ctl_json(&["history"]).await["history"].clone();
    let ended: Vec<_> = history.as_array().unwrap().iter().map(|last| last["result"].clone()).collect();
    assert_eq!(ended, ["committed", "cancelled", "cancelled"]);
    assert_eq!(history[1]["id"], second);
    world.finish().await;
}

#[tokio::test]
async fn a_change_after_arming_waits_for_the_outcome() {
    let mut world = World::new().await;
    let (two, three) = (world.release("2.0.0"), world.release("3.0.0"));
    let go = world.scratch().join("go");
    world.gateway.add_check("90-wait", &format!("#!/bin/sh\n[ -e '{}' ]\n", go.display())).unwrap();
    want(&world, asked(&two));
    let first = world.phase("trying").await["fwupdate"]["operation"]["id"].clone();
    want(&world, asked(&three));
    // The agent answers in order: what came before this call did not disturb the trial.
    assert_eq!(world.call("firmwareStatus", json!({})).await.payload["fwupdate"]["operation"]["id"], first);
    fs::write(go, "").unwrap();
    world.outcome(first.as_str().unwrap()).await;
    let told =
        world.reported(|twin| twin["fwupdate"]["last"]["toVersion"] == "3.0.0").await["fwupdate"].clone();
    assert_eq!(told["last"]["result"], "committed");
    assert_eq!(told["desired"]["code"], "Committed");
    assert_eq!((operations(&mut world).await.len(), world.booted()), (2, Slot::A));
    world.finish().await;
}

#[tokio::test]
async fn refusals_and_failures_are_told_with_their_code() {
    let settings = "[health]\ndeadline = \"3s\"\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    want(&world, json!({"fwPackageUri": "https://x/y", "version": "9", "colour": "red"}));
    let told = settled(&mut world, "MalformedRequest").await;
    assert_eq!(told["desired"]["version"], "9");
    assert!(told["desired"]["message"].as_str().unwrap().contains("colour"), "{told}");
    assert!(told["last"].is_null(), "nothing was begun");

    let bad = world.make(Spec { health: "bad", ..Spec::default() });
    want(&world, Value::Null);
    want(&world, asked(&bad));
    let told = settled(&mut world, "HealthCheckFailed").await;
    assert_eq!(told["last"]["result"], "rolledBack");
    assert_eq!(world.booted(), Slot::A);

    // The same image under another content: refused by the quarantine.
    want(&world, json!({"maxDownloadBytes": 1 << 30}));
    let told = settled(&mut world, "Quarantined").await;
    assert_eq!(
        (&told["last"]["result"], told["desired"]["version"].as_str()),
        (&"failed".into(), Some("2.0.0"))
    );
    world.finish().await;
}

#[tokio::test]
async fn a_gateway_that_was_offline_catches_up_and_one_made_anew_is_made_whole() {
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let two = world.release("2.0.0");
    want(&world, json!({"fwPackageUri": "https://localhost/never.fwb", "version": "1.5.0"}));
    want(&world, asked(&two));
    world.gateway.power_on().unwrap();
    let last = settled(&mut world, "Committed").await["last"].clone();
    assert_eq!(operations(&mut world).await.len(), 1, "only the newest section counts");

    world.hub.remake_device(DEVICE).unwrap();
    let twin = world.reported(|twin| twin["firmwareStatus"] == "completed").await;
    assert_eq!(twin["fwupdate"]["last"], last);
    world.reported(|twin| twin["fwupdate"]["desired"].is_null()).await;
    // The fleet's section reaches the new twin: this version runs already, so nothing begins.
    want(&world, asked(&two));
    let told = settled(&mut world, "AlreadyInstalled").await;
    assert_eq!((&told["last"], world.twin()["firmwareStatus"].as_str()), (&last, Some("completed")));
    assert_eq!(operations(&mut world).await.len(), 1);
    world.finish_disturbed().await;
}
