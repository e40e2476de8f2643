//! What is not there yet, or torn by a cut of power, is waited for: the agent runs, says what it waits for, and goes on
//! when it comes. Only what a person has to edit ends it for good.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tokio::time::Instant;

use crate::harness::{DEVICE, LIMIT, Setup, World};

/// A gateway that is off, its connection string taken away.
async fn without_credential() -> (World, PathBuf, Vec<u8>) {
    let world = World::with(Setup { on: false, ..Setup::default() }).await;
    let file = world.gateway.dir().join("state/connection");
    let good = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    (world, file, good)
}

/// What doctor says of `check`; nothing, where it has to do without the agent.
fn finding(doctor: &Value, check: &str) -> Value {
    let mut findings = doctor["findings"].as_array().into_iter().flatten();
    findings.find(|finding| finding["check"] == check).cloned().unwrap_or_default()
}

/// Waits until what `args` show is as wanted; the agent may be starting anew.
async fn shown(world: &mut World, args: &[&str], wanted: impl Fn(&Value) -> bool) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let output = world.ctl(&[args, &["--json"]].concat()).await;
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if !shown.is_null() && wanted(&shown) {
            return;
        }
        assert!(Instant::now() < deadline, "{args:?} still shows {shown}\n{}", world.gateway.log());
    }
}

/// What doctor fails on, and status shows, must both contain `word`.
async fn says(world: &mut World, word: &str) {
    let said = |text: &Value| text.as_str().is_some_and(|text| text.contains(word));
    shown(world, &["doctor"], |doctor| {
        let found = finding(doctor, "settings");
        found["status"] == "failed" && said(&found["message"])
    })
    .await;
    shown(world, &["status"], |status| said(&status["fwupdate"]["agent"]["awaits"])).await;
}

#[tokio::test]
async fn a_connection_string_that_comes_late_is_waited_for() {
    let (mut world, file, good) = without_credential().await;
    world.gateway.power_on().unwrap();
    says(&mut world, "is not there yet").await;
    world.doctor_says_of_the_hub("state/connection").await;
    fs::write(&file, vec![0; good.len()]).unwrap();
    says(&mut world, "all zeros").await;
    fs::write(&file, &good).unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    assert!(world.twin()["fwupdate"]["agent"]["awaits"].is_null());
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    world.finish_disturbed().await;
}

/// A local update goes on when the credential comes in the middle of it.
#[tokio::test]
async fn an_update_from_a_file_needs_no_credential_and_outlives_its_coming() {
    let (mut world, file, good) = without_credential().await;
    world.gateway.configure("60-approval", "[policy]\napproval = true\n").unwrap();
    world.gateway.power_on().unwrap();
    world.until_shown_at_all(&["status"]).await;
    let release = world.release("2.0.0");
    let installed = world.ctl(&["install", release.bundle.to_str().unwrap()]).await;
    assert!(installed.status.success(), "{installed:?}");
    let holds = |status: &Value| status["fwupdate"]["operation"]["phase"] == "holding";
    world.until_shown(&["status"], holds).await;
    fs::write(&file, &good).unwrap();
    world.phase("holding").await;
    assert!(world.ctl(&["approve"]).await.status.success());
    let last = world.reported(|reported| !reported["fwupdate"]["last"].is_null()).await;
    assert_eq!(last["fwupdate"]["last"]["result"], "committed");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_torn_file_of_the_devices_own_is_passed_over_until_it_is_whole() {
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let folder = world.gateway.dir().join("state/conf.d");
    fs::write(folder.join("10-torn.toml"), vec![0; 512]).unwrap();
    fs::write(folder.join("20-good.toml"), "[policy]\nwindows = [\"00:00-00:01\"]\n").unwrap();
    world.switch_on().await;
    says(&mut world, "10-torn.toml").await;
    assert!(world.twin()["fwupdate"]["agent"]["awaits"].as_str().unwrap().contains("10-torn.toml"));
    fs::write(folder.join("10-torn.toml"), "[download]\nrate_limit = \"10MB/s\"\n").unwrap();
    world.reported(|reported| reported["fwupdate"]["agent"]["awaits"].is_null()).await;
    let doctor = world.ctl_json(&["doctor"]).await;
    assert_eq!(finding(&doctor, "settings")["status"], "ok", "{doctor}");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_proxy_variable_that_cannot_be_used_is_passed_over_and_named() {
    for url in ["https://proxy.example:3128", "socks5://proxy.example:1080", "http://"] {
        let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
        world.gateway.set_variable("HTTPS_PROXY", url);
        world.switch_on().await;
        says(&mut world, "HTTPS_PROXY").await;
        world.finish().await;
    }
}

/// How `fwupdated` ends with this in its settings' place.
fn ends_with(world: &World, settings: &str) -> Option<i32> {
    let file = world.scratch().join("broken.toml");
    fs::write(&file, settings).unwrap();
    Command::new(env!("CARGO_BIN_EXE_fwupdated")).arg("--config").arg(file).output().unwrap().status.code()
}

#[tokio::test]
async fn what_only_an_edit_can_mend_ends_the_agent_for_good() {
    let world = World::with(Setup { on: false, ..Setup::default() }).await;
    let good = fs::read_to_string(world.gateway.dir().join("fwupdate.toml")).unwrap();
    assert_eq!(ends_with(&world, "compatible ="), Some(78));
    assert_eq!(ends_with(&world, "compatible = \"x\"\n"), Some(78));
    assert_eq!(ends_with(&world, &good.replace("deadline = \"20s\"", "deadline = \"soon\"")), Some(78));
    let absent = Command::new(env!("CARGO_BIN_EXE_fwupdated")).args(["--config", "/no/such/file"]).output();
    assert_eq!(absent.unwrap().status.code(), Some(1), "it may be mounted a moment later");
    assert!(world.hub.history(DEVICE).is_empty());
    world.finish_without_twin().await;
}
