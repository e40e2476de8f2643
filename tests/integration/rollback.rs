//! Updates that must not stay: the gateway goes back to the slot that works, and says why.

use std::fs;

use fwupdate_hub::firmware::{Cut, Outcome, Slot};
use serde_json::{Value, json};

use crate::harness::{LIMIT, Release, Setup, Spec, World};

/// A verdict falls soon.
const IMPATIENT: &str = "[health]\ndeadline = \"3s\"\n";

async fn world(settings: &str) -> World {
    World::with(Setup { settings: settings.into(), ..Setup::default() }).await
}

fn assert_back_in_a(world: &World) {
    assert_eq!(world.booted(), Slot::A);
    assert_eq!(world.gateway.boot_variable("fwupdate_primary").unwrap(), "A");
    assert_eq!(world.gateway.boot_variable("fwupdate_trial").unwrap(), "");
}

/// The image is refused as it is, and tried again with force.
async fn assert_quarantined(world: &mut World, release: &Release, code: &str) {
    let before = world.gateway.power_ons();
    let last = world.install(release).await;
    assert_eq!(
        (&last["result"], &last["error"]["code"]),
        (&"failed".into(), &"Quarantined".into()),
        "{last}"
    );
    assert_eq!(world.gateway.power_ons(), before, "a quarantined image was tried");
    let id = world.update(json!({"fwPackageUri": release.url, "force": true})).await;
    let last = world.outcome(&id).await;
    assert_eq!((&last["result"], &last["error"]["code"]), (&"rolledBack".into(), &code.into()), "{last}");
    assert!(world.gateway.power_ons() > before, "force did not force");
}

#[tokio::test]
async fn a_failing_health_check_rolls_back_with_its_evidence() {
    let mut world = world(IMPATIENT).await;
    let bad = world.make(Spec { version: "2.0.0", health: "broken pipe", ..Spec::default() });
    let last = world.install(&bad).await;
    assert_eq!(last["result"], "rolledBack", "{last}");
    assert_eq!(last["error"]["code"], "HealthCheckFailed");
    let evidence = &last["error"]["evidence"];
    assert_eq!(
        (&evidence["check"], &evidence["bootAttempts"]),
        (&"required.d/10-app".into(), &1.into()),
        "{last}"
    );
    assert!(evidence["excerpt"].as_str().unwrap().contains("the application says: broken pipe"), "{last}");
    assert_back_in_a(&world);
    assert_eq!(world.twin()["firmwareStatus"], "rolledBack");
    assert_eq!(world.twin()["fwupdate"]["slots"]["B"]["state"], "failed");
    assert_quarantined(&mut world, &bad, "HealthCheckFailed").await;

    let good = world.release("3.0.0");
    assert_eq!(world.install(&good).await["result"], "committed");
    world.finish().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_loaded_falls_back() {
    let mut world = World::new().await;
    let bad = world.make(Spec { version: "2.0.0", bootable: false, ..Spec::default() });
    let last = world.install(&bad).await;
    assert_eq!(
        (&last["result"], &last["error"]["code"]),
        (&"rolledBack".into(), &"BootloaderFellBack".into())
    );
    assert_back_in_a(&world);
    assert_quarantined(&mut world, &bad, "BootloaderFellBack").await;
    world.finish().await;
}

#[tokio::test]
async fn a_hub_out_of_reach_counts_only_if_it_was_reached_before() {
    let mut world = world(IMPATIENT).await;
    let release = world.release("2.0.0");
    let id = world.update(json!({"fwPackageUri": release.url})).await;
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.cut_off();
    world.gateway.reboot().await.unwrap();
    assert_eq!(world.booted(), Slot::B);
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.hub.faults().clear();
    world.gateway.reboot().await.unwrap();
    let last = world.outcome(&id).await;
    assert_eq!((&last["result"], &last["error"]["code"]), (&"rolledBack".into(), &"CloudUnreachable".into()));
    assert_back_in_a(&world);

    // The hub was at fault and not the image. And a gateway without a hub can be updated from a file, and tells of
    // that on the spot, whether or not the hub's acknowledgement of the outcome before came through.
    world.offline().await;
    let output = world.ctl(&["install", release.bundle.to_str().unwrap(), "--wait"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.booted(), Slot::B);
    world.hub.faults().clear();
    world.reported(|twin| twin["firmwareStatus"] == "completed").await;
    world.finish_disturbed().await;
}

/// Stages a good release, and stops right before its first boot.
async fn armed(world: &mut World) -> (Release, String) {
    let release = world.release("2.0.0");
    let id = world.update(json!({"fwPackageUri": release.url})).await;
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.gateway.shut_down().await.unwrap();
    assert_eq!(world.gateway.boot_variable("fwupdate_tries").unwrap(), "3");
    (release, id)
}

#[tokio::test]
async fn a_first_boot_that_is_cut_twice_is_tried_again() {
    let mut world = World::new().await;
    let (release, id) = armed(&mut world).await;
    for cut in [Cut::After, Cut::After] {
        assert_eq!(world.gateway.power_fails_at_boot(cut).await.unwrap(), Outcome::Cut);
    }
    let outcome = world.gateway.power_on().unwrap();
    assert_eq!(outcome, Outcome::Booted { slot: Slot::B, trial: true, environment_lost: false });
    let last = world.outcome(&id).await;
    assert_eq!(last["result"], "committed", "{last}");
    assert!(world.holds(Slot::B, &release));
    world.finish().await;
}

#[tokio::test]
async fn a_cut_while_the_attempt_is_saved_costs_nothing() {
    let mut world = World::new().await;
    let (_, id) = armed(&mut world).await;
    for cut in [Cut::Before, Cut::During(3), Cut::During(10)] {
        assert_eq!(world.gateway.power_fails_at_boot(cut).await.unwrap(), Outcome::Cut);
        assert_eq!(world.gateway.boot_variable("fwupdate_tries").unwrap(), "3");
    }
    world.gateway.power_on().unwrap();
    assert_eq!(world.outcome(&id).await["result"], "committed");
    world.finish().await;
}

#[tokio::test]
async fn an_image_that_never_reaches_user_space_is_quarantined() {
    let mut world = World::new().await;
    let (release, id) = armed(&mut world).await;
    for _ in 0..3 {
        world.gateway.power_fails_at_boot(Cut::After).await.unwrap();
    }
    world.gateway.power_on().unwrap();
    let last = world.outcome(&id).await;
    assert_eq!(
        (&last["result"], &last["error"]["code"]),
        (&"rolledBack".into(), &"BootloaderFellBack".into())
    );
    assert_eq!(last["error"]["evidence"]["bootAttempts"], 3);
    assert_back_in_a(&world);
    let last = world.install(&release).await;
    assert_eq!(last["error"]["code"], "Quarantined", "{last}");
    world.finish().await;
}

#[tokio::test]
async fn an_image_whose_tries_were_used_up_by_power_cuts_is_offered_once_more() {
    let mut world = World::new().await;
    // The verdict waits for this file.
    let go = world.scratch().join("go");
    let wait = format!("#!/bin/sh\n[ -e '{}' ]\n", go.display());
    world.gateway.add_check("90-wait", &wait).unwrap();
    let release = world.release("2.0.0");
    for round in 1..=2 {
        let id = world.update(json!({"fwPackageUri": release.url})).await;
        for attempt in 1..=3 {
            let on_trial = |twin: &Value| {
                let operation = &twin["fwupdate"]["operation"];
                operation["phase"] == "trying" && operation["attempt"] == attempt
            };
            world.reported(on_trial).await;
            assert_eq!(world.booted(), Slot::B);
            world.power_cut().await;
        }
        let last = world.outcome(&id).await;
        assert_eq!(last["error"]["code"], "BootloaderFellBack", "round {round}: {last}");
        assert_eq!(last["error"]["evidence"]["bootAttempts"], 3);
        assert_back_in_a(&world);
    }
    let last = world.install(&release).await;
    assert_eq!(last["error"]["code"], "Quarantined", "{last}");
    fs::write(go, "").unwrap();
    let id = world.update(json!({"fwPackageUri": release.url, "force": true})).await;
    assert_eq!(world.outcome(&id).await["result"], "committed");
    world.finish_disturbed().await;
}
