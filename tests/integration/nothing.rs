//! An image that is there already: in the booted slot, or in the very slot that it is meant for.

use std::fs;
use std::time::SystemTime;

use fwupdate::bundle;
use fwupdate::manifest::Body;
use fwupdate_hub::firmware::Slot;
use serde_json::{Value, json};

use crate::harness::{Release, World};

/// Installs this release also where it runs; returns the outcome.
async fn force(world: &mut World, release: &Release) -> Value {
    let id = world.update(json!({"fwPackageUri": release.url, "force": true})).await;
    world.outcome(&id).await
}

/// What the agent must fetch of a bundle in any case: its manifest and its index, in two requests.
fn head_bytes(release: &Release) -> u64 {
    let bytes = fs::read(&release.bundle).unwrap();
    let head = bundle::head(&bytes).unwrap();
    head.layout(&Body::parse(head.manifest).unwrap()).unwrap().head_bytes()
}

/// When a byte of the slot was last written.
fn written(world: &World, slot: Slot) -> SystemTime {
    fs::metadata(world.gateway.slot(slot)).unwrap().modified().unwrap()
}

#[tokio::test]
async fn an_image_that_is_there_already_costs_no_byte_and_no_block() {
    let mut world = World::new().await;
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    let fetched = |world: &World| world.hub.faults().count(&release.name).body_bytes;
    assert!(fetched(&world) > head_bytes(&release), "the first time it is fetched");

    let again = world.update(json!({"fwPackageUri": release.url})).await;
    let last = world.outcome(&again).await;
    assert_eq!(last["error"]["code"], "AlreadyInstalled", "{last}");

    // Into the other slot: copied from the one that runs.
    let before = written(&world, Slot::A);
    world.hub.faults().reset_counts();
    assert_eq!(force(&mut world, &release).await["result"], "committed");
    assert!(world.booted() == Slot::A && world.holds(Slot::A, &release));
    assert_ne!(written(&world, Slot::A), before, "whoever writes a slot is seen");
    assert_eq!(fetched(&world), head_bytes(&release), "{:?}", world.hub.faults().log());

    // And back into the first one, which holds it.
    let before = written(&world, Slot::B);
    world.hub.faults().reset_counts();
    let last = force(&mut world, &release).await;
    assert_eq!(last["result"], "committed", "{last}");
    assert!(world.booted() == Slot::B && world.holds(Slot::B, &release));
    assert_eq!(fetched(&world), head_bytes(&release), "{:?}", world.hub.faults().log());
    assert_eq!(written(&world, Slot::B), before, "the slot was written\n{}", world.gateway.log());
    world.finish().await;
}
