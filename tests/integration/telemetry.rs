//! Lifecycle events: one message for each step of an update, which a back end can route.

use std::collections::BTreeSet;

use fwupdate_hub::history::Telemetry;
use serde_json::{Value, json};

use crate::harness::{DEVICE, LIMIT, Setup, Spec, World};

/// A property of a message's topic, by its encoded name.
fn property<'a>(message: &'a Telemetry, name: &str) -> Option<&'a str> {
    message
        .properties
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, v)| v)
}

fn body(message: &Telemetry) -> Value {
    serde_json::from_str(&message.body).unwrap()
}

fn names(messages: &[Telemetry]) -> Vec<String> {
    messages.iter().map(|message| property(message, "event").unwrap().to_owned()).collect()
}

/// Lets the gateway live until the hub has this event of this operation.
async fn until(world: &World, event: &str, id: &str) -> Vec<Telemetry> {
    let is_it =
        |message: &Telemetry| property(message, "event") == Some(event) && body(message)["operationId"] == id;
    let told = world.hub.wait_telemetry(DEVICE, LIMIT, |all| all.iter().any(is_it)).await;
    assert!(told, "no {event}: {:?}\n{}", names(&world.hub.telemetry(DEVICE)), world.gateway.log());
    world.hub.telemetry(DEVICE)
}

#[tokio::test]
async fn each_step_is_told_once_over_the_reboot_and_can_be_routed() {
    let settings = "[health]\ndeadline = \"3s\"\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let release = world.release("2.0.0");
    let id = world.install(&release).await["id"].as_str().unwrap().to_owned();
    let told = until(&world, "committed", &id).await;
    let steps =
        ["accepted", "preparing", "staging", "arming", "rebooting", "trying", "committing", "committed"];
    assert_eq!(names(&told), steps);
    for message in &told {
        assert_eq!(property(message, "%24.ct"), Some("application%2Fjson"));
        assert_eq!(property(message, "%24.ce"), Some("utf-8"));
        assert_eq!(property(message, "schema"), Some("fwupdate.lifecycle.v1"));
        assert_eq!(property(message, "%24.cid"), Some(&*id));
        assert_eq!(body(message)["event"], property(message, "event").unwrap());
        assert!(message.body.len() < 512, "{} bytes", message.body.len());
    }
    let ids: BTreeSet<_> = told.iter().map(|message| property(message, "%24.mid").unwrap()).collect();
    assert_eq!(ids.len(), told.len(), "each has an id of its own");
    let last = body(told.last().unwrap());
    assert_eq!((&last["fromVersion"], &last["toVersion"]), (&json!("1.0.0"), &json!("2.0.0")));

    let bad = world.make(Spec { version: "3.0.0", health: "bad", ..Spec::default() });
    let id = world.install(&bad).await["id"].as_str().unwrap().to_owned();
    let told = until(&world, "rolledBack", &id).await.split_off(steps.len());
    assert_eq!(
        names(&told),
        ["accepted", "preparing", "staging", "arming", "rebooting", "trying", "rollingBack", "rolledBack"]
    );
    assert_eq!(property(told.last().unwrap(), "code"), Some("HealthCheckFailed"));
    assert_eq!(body(told.last().unwrap())["error"]["code"], "HealthCheckFailed");
    world.finish().await;
}

#[tokio::test]
async fn an_outcome_that_the_hub_missed_is_told_when_it_is_back() {
    let settings = "[health]\ndeadline = \"3s\"\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let release = world.release("2.0.0");
    world.offline().await;
    let file = release.bundle.to_str().unwrap();
    let done = world.ctl(&["install", file, "--operation-id", "local", "--wait"]).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(world.hub.telemetry(DEVICE).is_empty());
    // What waited in the agent's memory goes with it; the outcome stands in the record.
    world.gateway.kill().await.unwrap();
    world.gateway.start_agent().unwrap();
    world.hub.faults().clear();
    let told = until(&world, "committed", "local").await;
    assert_eq!(names(&told), ["committed"]);
    world.finish_disturbed().await;
}

#[tokio::test]
async fn none_is_sent_when_it_is_switched_off() {
    let settings = "[report]\ntelemetry = false\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    // Stopping sends whatever still waits.
    world.gateway.shut_down().await.unwrap();
    assert!(world.hub.telemetry(DEVICE).is_empty(), "{:?}", world.hub.telemetry(DEVICE));
    world.finish().await;
}
