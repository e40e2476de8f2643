//! Commands: repeated, changed, in each other's way, withdrawn; from the cloud and on the spot.

use std::fs;

use fwupdate_hub::faults::{FileEffect, FileRule};
use fwupdate_hub::firmware::Slot;
use serde_json::{Value, json};

use crate::harness::{DEVICE, Release, Setup, Spec, World};

/// A stalled transfer stays stalled.
const PATIENT: &str = "[download]\nstall_timeout = \"1h\"\n";
/// Enough for manifest and index, and less than the payload.
const STALL: FileEffect = FileEffect::Stall { after: 100_000 };

/// A gateway that is staging `release` and stays there until the faults are cleared.
async fn staging(operation: Value) -> (World, Release) {
    let mut world = World::with(Setup { settings: PATIENT.into(), ..Setup::default() }).await;
    let release = world.release("2.0.0");
    world.hub.faults().file(FileRule::always(&release.name, STALL));
    let mut payload = json!({"fwPackageUri": release.url});
    payload.as_object_mut().unwrap().extend(operation.as_object().unwrap().clone());
    world.update(payload).await;
    world.phase("staging").await;
    (world, release)
}

#[tokio::test]
async fn a_repeated_call_starts_nothing_twice_and_another_is_refused() {
    let (mut world, release) = staging(json!({"operationId": "mine"})).await;
    for again in
        [json!({"fwPackageUri": release.url, "operationId": "mine"}), json!({"fwPackageUri": release.url})]
    {
        let answer = world.call("firmwareUpdate", again).await;
        assert_eq!(answer.status, 200, "{}", answer.payload);
        assert_eq!(answer.payload["operationId"], "mine");
        assert_eq!(answer.payload["firmwareStatus"], "downloading");
        assert_eq!(answer.payload["phase"], "staging");
    }
    let others = [
        json!({"fwPackageUri": world.hub.files_url("other.fwb")}),
        json!({"fwPackageUri": release.url, "operationId": "another"}),
        json!({"fwPackageUri": release.url, "force": true}),
    ];
    for other in others {
        let answer = world.call("firmwareUpdate", other.clone()).await;
        assert_eq!(answer.status, 409, "{other}: {}", answer.payload);
        assert_eq!(answer.payload["error"]["code"], "Busy");
        assert_eq!(answer.payload["error"]["operationId"], "mine");
    }
    for method in ["firmwareRollback", "reboot"] {
        let answer = world.call(method, json!({})).await;
        assert_eq!((answer.status, &answer.payload["error"]["code"]), (409, &"Busy".into()), "{method}");
    }
    world.hub.faults().clear();
    // The stalled requests do not know of that: a restart does.
    world.crash().await;
    let last = world.outcome("mine").await;
    assert_eq!(last["result"], "committed", "{last}");

    let answer =
        world.call("firmwareUpdate", json!({"fwPackageUri": release.url, "operationId": "mine"})).await;
    assert_eq!(answer.status, 200, "{}", answer.payload);
    assert_eq!(answer.payload["last"]["result"], "committed");
    assert!(world.twin()["fwupdate"]["operation"].is_null(), "an operation that had ended started again");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn cancelling_is_possible_until_the_slot_is_armed() {
    let (mut world, release) = staging(json!({"operationId": "first"})).await;
    let answer = world.call("firmwareCancel", json!({"operationId": "another"})).await;
    assert_eq!((answer.status, &answer.payload["error"]["operationId"]), (409, &"first".into()));
    let answer = world.call("firmwareCancel", json!({"operationId": "first"})).await;
    assert_eq!(answer.status, 200, "{}", answer.payload);
    let last = world.outcome("first").await;
    assert_eq!((&last["result"], &last["error"]["code"]), (&"cancelled".into(), &"Cancelled".into()));
    assert_eq!(world.twin()["firmwareStatus"], "cancelled");
    let answer = world.call("firmwareCancel", json!({})).await;
    assert_eq!((answer.status, &answer.payload["error"]["code"]), (503, &"NotReady".into()));

    world.hub.faults().clear();
    let go = world.scratch().join("go");
    world.gateway.add_check("90-wait", &format!("#!/bin/sh\n[ -e '{}' ]\n", go.display())).unwrap();
    let id = world.update(json!({"fwPackageUri": release.url})).await;
    world.phase("trying").await;
    let answer = world.call("firmwareCancel", json!({})).await;
    assert_eq!((answer.status, &answer.payload["error"]["operationId"]), (409, &id.as_str().into()));
    fs::write(go, "").unwrap();
    assert_eq!(world.outcome(&id).await["result"], "committed");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_fresh_token_for_the_same_bundle_lets_a_waiting_fetch_go_on() {
    let mut world = World::with(Setup { settings: PATIENT.into(), ..Setup::default() }).await;
    let release = world.release("2.0.0");
    world.hub.faults().file(FileRule::always(&release.name, STALL));
    let url = |token: &str| format!("{}?sig={token}", release.url);
    let id = world.update(json!({"fwPackageUri": url("old"), "operationId": "op"})).await;
    world.phase("staging").await;
    world.hub.faults().clear();
    world.hub.faults().reset_counts();
    let again =
        world.call("firmwareUpdate", json!({"fwPackageUri": url("fresh"), "operationId": "op"})).await;
    assert_eq!(again.status, 200, "{}", again.payload);
    let last = world.outcome(&id).await;
    assert_eq!(last["result"], "committed", "{last}");
    assert!(world.hub.faults().count(&release.name).requests > 0);
    for place in
        [world.hub.twin("gw").unwrap().to_string(), fs::read_to_string(world.gateway.log_path()).unwrap()]
    {
        assert!(!place.contains("sig="), "a token is visible in {place}");
    }
    world.finish_disturbed().await;
}

#[tokio::test]
async fn status_unknown_methods_and_malformed_calls() {
    let world = World::new().await;
    let answer = world.call("firmwareStatus", json!({})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.payload["firmwareStatus"], "standBy");
    assert_eq!(answer.payload["fwupdate"]["agent"]["bootedSlot"], "A");
    let answer = world.call("firmwareUpgrade", json!({})).await;
    assert_eq!((answer.status, &answer.payload["error"]["code"]), (404, &"NotFound".into()));
    let answer = world.call("firmwareUpdate", json!({"fwPackageUri": "https://x/y", "versoin": "1"})).await;
    assert_eq!((answer.status, &answer.payload["error"]["code"]), (400, &"MalformedRequest".into()));
    assert!(answer.payload["error"]["message"].as_str().unwrap().contains("versoin"));
    world.finish().await;
}

#[tokio::test]
async fn fwupdatectl_installs_a_file_and_shows_what_happened() {
    let mut world = World::new().await;
    assert_eq!(world.ctl_json(&["status"]).await["firmwareStatus"], "standBy");
    assert_eq!(world.ctl_json(&["slots"]).await["bootedSlot"], "A");
    let doctor = world.ctl_json(&["doctor"]).await;
    let failed =
        doctor["findings"].as_array().unwrap().iter().filter(|finding| finding["status"] == "failed");
    // The simulated gateway's state is on this machine's root file system, as doctor rightly says.
    let failed: Vec<_> = failed.filter(|finding| finding["check"] != "state folder").collect();
    assert!(failed.is_empty(), "a gateway fresh from the factory is well: {failed:?}");

    let release = world.release("2.0.0");
    let bundle = release.bundle.to_str().unwrap().to_owned();
    let output =
        world.ctl(&["install", &bundle, "--version", "2.0.0", "--operation-id", "local", "--wait"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.booted(), Slot::B);
    assert!(world.holds(Slot::B, &release));
    let history = world.ctl_json(&["history"]).await;
    assert_eq!(history["history"][0]["id"], "local");
    assert_eq!(
        (&history["history"][0]["source"], &history["history"][0]["result"]),
        (&"local".into(), &"committed".into())
    );
    assert_eq!(world.outcome("local").await["result"], "committed");

    let wrong =
        world.make(Spec { version: "3.0.0", create: &["--compatible", "another-board"], ..Spec::default() });
    let output = world.ctl(&["install", wrong.bundle.to_str().unwrap(), "--wait"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another-board"));
    let output = world.ctl(&["cancel"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));

    let output = world.ctl(&["rollback", "--operation-id", "back", "--wait"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.booted(), Slot::A);
    assert_eq!(world.outcome("back").await["result"], "committed");
    world.finish().await;
}

#[tokio::test]
async fn without_a_hub_fwupdatectl_still_tells_of_each_update() {
    let mut world = World::new().await;
    world.offline().await;
    for (version, slot) in [("2.0.0", Slot::B), ("3.0.0", Slot::A)] {
        let release = world.release(version);
        let file = release.bundle.to_str().unwrap();
        let output = world.ctl(&["install", file, "--operation-id", version, "--wait"]).await;
        assert!(output.status.success(), "{version}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(world.booted(), slot);
        assert_eq!(world.ctl_json(&["status"]).await["fwupdate"]["last"]["id"], version);
    }
    // The hub then hears of both, in order.
    world.hub.faults().clear();
    assert_eq!(world.outcome("3.0.0").await["result"], "committed");
    let history = world.hub.history(DEVICE);
    let told = history.iter().filter_map(|report| report.patch["fwupdate"]["last"]["id"].as_str());
    assert_eq!(told.collect::<Vec<_>>(), ["2.0.0", "3.0.0"]);
    world.finish_disturbed().await;
}
