//! `[policy.cloud]`: what the operator of a gateway denies to whoever commands from afar, and not to root on it.

use serde_json::{Value, json};

use crate::harness::{DEVICE, Setup, World};

/// Nothing beyond an ordinary update; windows and approval that an update passes in this test.
const STRICT: &str = "[download]\nmax_bytes = \"100MB\"\n\
    [policy]\napproval = true\nwindows = [\"00:00-12:00\", \"12:00-00:00\"]\n\
    [policy.cloud]\ndowngrade = false\nforce = false\nbudget = false\ndeadline = false\napprove = false\n\
    rollback = false\nreboot = false\n";

async fn refused(world: &World, method: &str, payload: Value, setting: &str) {
    let answer = world.call(method, payload).await;
    assert_eq!(answer.status, 412, "{method}: {}", answer.payload);
    let error = &answer.payload["error"];
    assert_eq!(error["code"], "NotPermitted", "{error}");
    assert!(error["message"].as_str().unwrap().contains(&format!("policy.cloud.{setting}")), "{error}");
}

#[tokio::test]
async fn what_the_operator_denies_to_the_cloud_is_refused_by_its_setting_and_left_to_local_control() {
    let mut world = World::with(Setup { settings: STRICT.into(), ..Setup::default() }).await;
    let release = world.release("2.0.0");
    for (field, value, setting) in [
        ("allowDowngrade", json!(true), "downgrade"),
        ("force", json!(true), "force"),
        ("maxDownloadBytes", json!(100_000_001), "budget"),
        ("deadline", json!("2100-01-01T00:00:00Z"), "deadline"),
    ] {
        let mut payload = json!({"fwPackageUri": release.url});
        payload[field] = value;
        refused(&world, "firmwareUpdate", payload.clone(), setting).await;
        world.hub.patch_desired(DEVICE, json!({"fwupdate": payload})).unwrap();
        let told = world.reported(|twin| twin["fwupdate"]["desired"]["code"] == "NotPermitted").await;
        assert!(told["fwupdate"]["desired"]["message"].as_str().unwrap().contains(setting), "{told}");
        world.hub.patch_desired(DEVICE, json!({"fwupdate": null})).unwrap();
        world.reported(|twin| twin["fwupdate"]["desired"].is_null()).await;
    }
    refused(&world, "firmwareRollback", json!({}), "rollback").await;
    refused(&world, "reboot", json!({}), "reboot").await;
    assert_eq!(world.hub.faults().count(&release.name).requests, 0);

    let payload = json!({"fwPackageUri": release.url, "maxDownloadBytes": 100_000_000});
    let id = world.update(payload).await;
    world.phase("holding").await;
    refused(&world, "firmwareApprove", json!({}), "approve").await;
    assert!(world.ctl(&["approve"]).await.status.success());
    assert_eq!(world.outcome(&id).await["result"], "committed");
    assert!(world.ctl(&["rollback", "--wait"]).await.status.success());
    assert_eq!(world.booted(), fwupdate_hub::firmware::Slot::A);
    world.reported(|twin| twin["fwupdate"]["last"]["source"] == "local").await;
    world.finish_disturbed().await;
}
