//! `download.windows`: hours in which nothing may be fetched, on the whole agent and by its own clock.

use std::time::Duration;

use fwupdate::bundle::FIRST_READ;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::harness::{LIMIT, Setup, World};

/// When the window opens: hours away, whatever the test takes.
fn far() -> OffsetDateTime {
    let opens = OffsetDateTime::now_utc() + Duration::from_secs(6 * 3600);
    opens.replace_nanosecond(0).unwrap().replace_second(0).unwrap()
}

/// An hour from then on.
fn setting(opens: OffsetDateTime) -> String {
    let ends = opens + Duration::from_secs(3600);
    let [start, end] = [opens, ends].map(|time| format!("{:02}:{:02}", time.hour(), time.minute()));
    format!("[download]\nwindows = [\"{start}-{end}\"]\n")
}

/// What is waited for; `None` if nothing is.
fn waiting(shown: &Value) -> Option<&str> {
    shown["fwupdate"]["operation"]["waiting"].as_str()
}

/// What `fwupdatectl` shows; nothing while the agent is starting.
async fn shown(world: &mut World) -> Value {
    let output = world.ctl(&["status", "--json"]).await;
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Of the bundle only the manifest was ever asked for, so many times.
fn assert_manifests(world: &World, times: usize) {
    let log = world.hub.faults().log();
    let manifest = log.iter().filter(|served| served.offset == 0 && served.length <= FIRST_READ);
    assert!(manifest.count() == times && log.len() == times, "{log:?}");
}

#[tokio::test]
async fn a_closed_window_is_waited_for_also_over_a_restart_until_the_setting_changes() {
    let opens = far();
    let mut world = World::with(Setup { settings: setting(opens), ..Setup::default() }).await;
    let release = world.release("2.0.0");
    let id = world.update(json!({"fwPackageUri": release.url, "version": release.version})).await;

    let twin = world.reported(|twin| waiting(twin).is_some()).await;
    let reason = waiting(&twin).unwrap().to_owned();
    // The machine decides whether its clock can be trusted.
    let until = opens.format(&Rfc3339).unwrap();
    let reasons = [
        format!("download.windows is closed; the download goes on at {until}"),
        "download.windows needs the time, and the clock is not synchronised yet".to_owned(),
    ];
    assert!(reasons.contains(&reason), "{reason}");
    let operation = &twin["fwupdate"]["operation"];
    assert_eq!(
        (&twin["firmwareStatus"], &operation["id"], &operation["phase"]),
        (&json!("downloading"), &json!(id), &json!("staging"))
    );
    assert_manifests(&world, 1);

    world.kill().await;
    world.gateway.start_agent().unwrap();
    // The new agent says so itself, on the spot and to the hub.
    let deadline = Instant::now() + LIMIT;
    while !waiting(&shown(&mut world).await).is_some_and(|said| reasons.iter().any(|reason| reason == said)) {
        assert!(Instant::now() < deadline, "{}", world.gateway.log());
    }
    world.reported(|twin| waiting(twin).is_some()).await;
    assert_eq!(world.twin()["fwupdate"]["operation"]["id"], id);
    assert_manifests(&world, 2);

    world.gateway.configure("60-no-windows", "[download]\nwindows = []\n").unwrap();
    world.crash().await;
    let last = world.outcome(&id).await;
    assert_eq!(last["result"], "committed", "{last}");
    world.finish_disturbed().await;
}
