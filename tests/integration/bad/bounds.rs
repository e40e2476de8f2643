//! What callers and files can put into the record: no size, no number and no time of it ends updating.

use std::fs;

use fwupdate_hub::firmware::Slot;
use serde_json::{Value, json};

use super::state::{newest, read_record, records, write_record};
use super::{expect, failed, fetch, goes_on, take};
use crate::devices::{self, Mount};
use crate::harness::{DEVICE, LIMIT, Setup, Spec, World};

/// A URL that leads nowhere, as long as one may be; it fails at once.
fn long_url(n: usize) -> String {
    format!("https://elsewhere.invalid/{n}/{}", "x".repeat(3900))
}

#[tokio::test]
async fn no_call_is_so_large_that_updating_ends() {
    let mut world = World::new().await;
    let version = json!({"fwPackageUri": long_url(0), "version": "v".repeat(33_000)});
    let answer = world.call("firmwareUpdate", version).await;
    assert_eq!(answer.status, 400, "{}", answer.payload);
    expect("a long version", &answer.payload["error"], "MalformedRequest", "version");
    for n in 0..17 {
        let payload = json!({"fwPackageUri": long_url(n), "version": "\"".repeat(32)});
        let error = failed(&mut world, payload).await;
        assert_eq!(error["code"], "NotPermitted", "{error}");
    }
    world.crash().await;
    let good = world.release("2.0.0");
    take(&mut world, &good).await;
    let ended = world.ctl_json(&["history"]).await["history"].as_array().unwrap().len();
    assert_eq!(ended, 16);
    goes_on(world).await;
}

#[tokio::test]
async fn a_record_that_is_found_full_is_cut_back() {
    let mut world = World::new().await;
    let bad = json!({"fwPackageUri": long_url(0)});
    failed(&mut world, bad).await;
    world.kill().await;
    let mut record = newest(&world);
    let ended = record["history"][0].clone();
    let many = 60_000 / (ended.to_string().len() + 3900);
    let history = (0..many).map(|n| {
        let mut ended = ended.clone();
        ended["id"] = json!(format!("old-{n}"));
        ended["operation"]["uri"] = json!(long_url(n));
        ended
    });
    record["history"] = history.collect::<Vec<Value>>().into();
    for path in records(&world) {
        let (sequence, _) = read_record(&path);
        write_record(&path, 1, sequence, &record);
    }
    world.gateway.start_agent().unwrap();
    assert!(world.hub.wait_connected(DEVICE, true, LIMIT).await);
    let good = world.release("2.0.0");
    take(&mut world, &good).await;
    let history = world.ctl_json(&["history"]).await["history"].clone();
    assert_eq!((&history[0]["result"], &history[1]["id"]), (&json!("committed"), &json!("old-0")));
    goes_on(world).await;
}

#[tokio::test]
async fn a_time_beyond_all_times_is_refused_and_ends_nobody() {
    let mut world = World::new().await;
    let good = world.release("2.0.0");
    let late = "9999-12-31T23:59:59-01:00";
    for field in ["notBefore", "deadline"] {
        let mut payload = fetch(&world, &good.name);
        payload[field] = json!(late);
        let answer = world.call("firmwareUpdate", payload.clone()).await;
        assert_eq!(answer.status, 400, "{}", answer.payload);
        expect(field, &answer.payload["error"], "MalformedRequest", field);
        world.hub.patch_desired(DEVICE, json!({"fwupdate": payload})).unwrap();
        let wanted = |twin: &Value| twin["fwupdate"]["desired"]["code"] == "MalformedRequest";
        world.reported(wanted).await;
        world.crash().await;
        assert!(world.hub.wait_connected(DEVICE, true, LIMIT).await);
        world.hub.patch_desired(DEVICE, json!({"fwupdate": null})).unwrap();
        world.reported(|twin| twin["fwupdate"]["desired"].is_null()).await;
    }
    goes_on(world).await;
}

#[tokio::test]
async fn no_value_at_its_limit_ends_anybody() {
    let mut world = World::new().await;
    let good = world.release("2.0.0");
    let moments = [
        "1970-01-01T00:00:00Z",
        "1970-01-01T00:00:00+00:01",
        "1969-12-31T23:59:59.999999999Z",
        "0000-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999999Z",
        "9999-12-31T23:59:60Z",
        "2016-12-31T23:59:60Z",
        "2026-02-29T00:00:00Z",
        "2026-06-30T23:59:60+23:59",
        "2026-06-30T23:59:60-23:59",
        "2026-01-01T00:00:00-00:00",
        "2026-01-01t00:00:00z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:00+24:00",
        "+12026-01-01T00:00:00Z",
        "2026-01-01T00:00:00",
        "",
        " ",
    ];
    let numbers = [
        json!(0),
        json!(1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!("1"),
    ];
    let fields = ["notBefore", "deadline"].into_iter().flat_map(|field| moments.map(|at| (field, json!(at))));
    let budgets = numbers.into_iter().map(|number| ("maxDownloadBytes", number));
    for (field, value) in fields.chain(budgets) {
        let payload = json!({"fwPackageUri": world.hub.files_url("none.fwb"), field: value});
        let answer = world.call("firmwareUpdate", payload).await;
        match answer.status {
            200 => {
                world.call("firmwareCancel", json!({})).await;
                world.outcome(answer.payload["operationId"].as_str().unwrap()).await;
            }
            _ => expect(field, &answer.payload["error"], "MalformedRequest", field),
        }
    }
    for at in moments {
        let answer = world.call("firmwareDefer", json!({"until": at})).await;
        assert!([400, 503].contains(&answer.status), "{at} {}", answer.payload);
    }
    assert_eq!(world.gateway.power_ons(), 1);
    assert!(!world.gateway.log().contains("panicked"), "{}", world.gateway.log());
    take(&mut world, &good).await;
    goes_on(world).await;
}

#[tokio::test]
async fn a_forged_record_arms_no_slot_that_was_never_written() {
    let mut world = World::new().await;
    let release = world.release("2.0.0");
    let image = json!({
        "version": "2.0.0", "securityVersion": 0, "created": "2026-01-01T00:00:00Z",
        "manifest": "11".repeat(32), "sha256": "22".repeat(32), "size": fs::metadata(&release.image).unwrap().len(),
    });
    for (n, (image, rewrite)) in
        [(json!(null), true), (json!(null), false), (image.clone(), true), (image, false)]
            .into_iter()
            .enumerate()
    {
        world.kill().await;
        let mut record = newest(&world);
        let id = format!("forged-{n}");
        record["slots"]["b"] = json!({"state": "proven", "image": image});
        record["phase"] = json!({
            "name": "arming", "boot_id": "forged",
            "plan": {
                "operation": {"id": id, "uri": release.url}, "target": "B", "image": image, "fromVersion": "1.0.0",
                "tries": 3, "rewrite": rewrite,
            },
        });
        for path in records(&world) {
            let (sequence, _) = read_record(&path);
            write_record(&path, 1, sequence, &record);
        }
        world.gateway.start_agent().unwrap();
        let last = world.outcome(&id).await;
        assert_eq!(last["result"], "failed", "{last}");
        assert_eq!(world.gateway.boot_variable("fwupdate_trial").unwrap(), "");
        assert_eq!(world.gateway.power_ons(), 1, "the slot was booted");
    }
    goes_on(world).await;
}

#[tokio::test]
async fn a_forged_record_stages_nothing_below_the_security_floor() {
    let mut world = World::new().await;
    let old = world.make(Spec { create: &["--security-version", "1"], ..Spec::default() });
    take(&mut world, &old).await;
    let new = world.make(Spec { version: "3.0.0", create: &["--security-version", "5"], ..Spec::default() });
    take(&mut world, &new).await;
    world.kill().await;
    let mut record = newest(&world);
    let image = record["slots"]["b"]["image"].clone();
    assert_eq!(image["securityVersion"], 1);
    let operation = json!({"id": "forged", "uri": old.url, "allowDowngrade": true, "force": true});
    record["phase"] = json!({
        "name": "staging",
        "plan": {"operation": operation, "target": "B", "image": image, "fromVersion": null, "tries": 3, "rewrite": true},
    });
    for path in records(&world) {
        let (sequence, _) = read_record(&path);
        write_record(&path, 1, sequence, &record);
    }
    world.gateway.start_agent().unwrap();
    let last = world.outcome("forged").await;
    expect("a forged plan", &last["error"], "Downgrade", "below this gateway's floor 5");
    assert_eq!(world.booted(), Slot::A);
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_forged_record_commits_no_image_whose_checks_fail() {
    let settings = "[health]\ndeadline = \"2s\"\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let bad = world.make(Spec { health: "bad", ..Spec::default() });
    let id = world.update(fetch(&world, &bad.name)).await;
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.gateway.shut_down().await.unwrap();
    let mut record = newest(&world);
    record["phase"] = json!({"name": "committing", "plan": record["phase"]["plan"]});
    for path in records(&world) {
        let (sequence, _) = read_record(&path);
        write_record(&path, 1, sequence, &record);
    }
    world.gateway.power_on().unwrap();
    let last = world.outcome(&id).await;
    assert_eq!(last["result"], "rolledBack", "{last}");
    assert_eq!(last["error"]["code"], "HealthCheckFailed", "{last}");
    assert_eq!(world.booted(), Slot::A);
    goes_on(world).await;
}

#[tokio::test]
async fn a_desired_section_is_taken_up_when_its_record_can_be_saved() {
    if !devices::root("a_desired_section_is_taken_up_when_its_record_can_be_saved") {
        return;
    }
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let state = Mount::ram("1m", &world.gateway.dir().join("state"));
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    state.remount("ro");
    let good = world.release("2.0.0");
    world.hub.patch_desired(DEVICE, json!({"fwupdate": fetch(&world, &good.name)})).unwrap();
    world.reported(|reported| reported["fwupdate"]["agent"]["degraded"].is_string()).await;
    assert_eq!(world.hub.faults().count(&good.name).requests, 0);
    state.remount("rw");
    world.reported(|reported| reported["fwupdate"]["desired"]["code"] == "Committed").await;
    assert!(world.holds(world.booted(), &good));
    goes_on(world).await;
}
