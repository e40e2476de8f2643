//! Rollback and reboot by method, and every method called twice: what they do, and when they refuse.

use std::fs;

use fwupdate_hub::firmware::Slot;
use serde_json::{Value, json};

use crate::harness::{DEVICE, LIMIT, Setup, Spec, World};

async fn refused(world: &World, method: &str, payload: Value, status: i64, code: &str) -> Value {
    let answer = world.call(method, payload).await;
    assert_eq!(
        (answer.status, &answer.payload["error"]["code"]),
        (status, &code.into()),
        "{}",
        answer.payload
    );
    answer.payload["error"]["message"].clone()
}

#[tokio::test]
async fn a_rollback_needs_a_proven_slot_that_is_not_below_the_floor() {
    let mut world = World::new().await;
    let why = refused(&world, "firmwareRollback", json!({}), 412, "NotPermitted").await;
    assert!(why.as_str().unwrap().contains("slot B"), "{why}");
    let unknown = json!({"operationId": "x", "slot": "A"});
    assert!(
        refused(&world, "firmwareRollback", unknown, 400, "MalformedRequest")
            .await
            .to_string()
            .contains("slot")
    );

    let secure = world.make(Spec { create: &["--security-version", "2"], ..Spec::default() });
    assert_eq!(world.install(&secure).await["result"], "committed");
    refused(&world, "firmwareRollback", json!({}), 412, "Downgrade").await;
    assert_eq!(world.gateway.power_ons(), 2, "a refused rollback rebooted");
    world.finish().await;
}

#[tokio::test]
async fn a_rollback_is_a_trial_like_any_other() {
    let settings = "[health]\ndeadline = \"3s\"\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let two = world.release("2.0.0");
    assert_eq!(world.install(&two).await["result"], "committed");

    // The old image does not work any more: the gateway tries it, and stays with the new one.
    let os_release = world.gateway.root().join("etc/os-release");
    let broken = world.scratch().join("broken");
    fs::write(&broken, "").unwrap();
    let check = format!(
        "#!/bin/sh\n! [ -e '{}' ] || ! grep -q IMAGE_VERSION=1.0.0 '{}'\n",
        broken.display(),
        os_release.display()
    );
    world.gateway.add_check("50-old", &check).unwrap();
    let answer = world.call("firmwareRollback", json!({"operationId": "back"})).await;
    assert_eq!(answer.status, 200, "{}", answer.payload);
    let last = world.outcome("back").await;
    assert_eq!(
        (&last["result"], &last["error"]["code"]),
        (&"rolledBack".into(), &"HealthCheckFailed".into())
    );
    assert_eq!((&last["fromVersion"], world.booted()), (&"2.0.0".into(), Slot::B));
    assert_eq!(world.gateway.boot_variable("fwupdate_primary").unwrap(), "B");

    // A slot that failed is not offered again as a place to go back to.
    fs::remove_file(broken).unwrap();
    refused(&world, "firmwareRollback", json!({"operationId": "again"}), 412, "NotPermitted").await;
    world.finish().await;
}

#[tokio::test]
async fn a_reboot_is_only_a_reboot() {
    let mut world = World::new().await;
    let answer = world.call("reboot", json!({})).await;
    assert_eq!((answer.status, &answer.payload["Response"]), (200, &"Reboot started".into()));
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.gateway.reboot().await.unwrap();
    let answer = world.call("firmwareStatus", json!({})).await;
    assert_eq!(answer.payload["firmwareStatus"], "standBy");
    assert_eq!((world.booted(), world.gateway.power_ons()), (Slot::A, 2));
    assert!(world.ctl_json(&["history"]).await["history"].as_array().unwrap().is_empty());
    world.finish().await;
}

#[tokio::test]
async fn a_method_that_ran_although_its_caller_heard_nothing_can_be_called_again() {
    let settings = "[policy]\napproval = true\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let two = world.release("2.0.0");
    let id = |id: &str| json!({"operationId": id});
    let update = |id: &str| json!({"fwPackageUri": two.url, "operationId": id});

    world.update(update("first")).await;
    world.phase("holding").await;
    for _ in 0..2 {
        assert_eq!(world.call("firmwareCancel", id("first")).await.status, 200);
    }
    refused(&world, "firmwareCancel", id("another"), 503, "NotReady").await;

    let go = world.scratch().join("go");
    world.gateway.add_check("90-wait", &format!("#!/bin/sh\n[ -e '{}' ]\n", go.display())).unwrap();
    world.update(update("second")).await;
    world.phase("holding").await;
    refused(&world, "firmwareApprove", id("another"), 409, "Busy").await;
    assert_eq!(world.call("firmwareApprove", id("second")).await.status, 200);
    world.phase("trying").await;
    let again = world.call("firmwareApprove", id("second")).await;
    assert_eq!((again.status, &again.payload["phase"]), (200, &"trying".into()), "{}", again.payload);
    fs::write(&go, "").unwrap();
    world.outcome("second").await;

    fs::remove_file(&go).unwrap();
    assert_eq!(world.call("firmwareRollback", id("back")).await.status, 200);
    world.phase("trying").await;
    let again = world.call("firmwareRollback", id("back")).await;
    assert_eq!((again.status, &again.payload["phase"]), (200, &"trying".into()), "{}", again.payload);
    fs::write(&go, "").unwrap();
    assert_eq!(world.outcome("back").await["result"], "committed");

    // Late repetitions, also of what is not the last: nothing starts.
    let boots = world.gateway.power_ons();
    for (method, payload, result) in [
        ("firmwareRollback", id("back"), "committed"),
        ("firmwareApprove", id("second"), "committed"),
        ("firmwareUpdate", update("second"), "committed"),
        ("firmwareUpdate", update("first"), "cancelled"),
    ] {
        let answer = world.call(method, payload).await;
        assert_eq!((answer.status, &answer.payload["last"]["result"]), (200, &result.into()), "{method}");
    }
    assert!(world.twin()["fwupdate"]["operation"].is_null());
    assert_eq!((world.gateway.power_ons(), world.booted()), (boots, Slot::A));
    assert_eq!(
        world.hub.visits(DEVICE).iter().filter(|visit| visit.accepted).count(),
        3,
        "a boot, a session"
    );
    world.finish().await;
}
