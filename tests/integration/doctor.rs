//! `fwupdatectl doctor`: with the agent, without it, and on a trial.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use fwupdate::store::Store;
use fwupdate_hub::firmware::Slot;
use serde_json::{Value, json};

use crate::devices::{self, Mount};
use crate::harness::{DEVICE, LIMIT, Setup, Spec, World};

/// Status and message of a finding; panics without it.
fn finding(doctor: &Value, check: &str) -> (String, String) {
    let all = doctor["findings"].as_array().unwrap_or_else(|| panic!("{doctor}"));
    let found = all.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("{check}: {doctor}"));
    let text = |name: &str| found[name].as_str().unwrap().to_owned();
    (text("status"), text("message"))
}

async fn doctor(world: &mut World) -> Value {
    world.ctl_json(&["doctor"]).await
}

/// Where no agent answers.
fn offline(world: &World) -> (Output, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fwupdatectl"));
    command.args(["doctor", "--json", "--config"]).arg(world.gateway.settings_file());
    let output = command.arg("--socket").arg(world.gateway.socket()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (output, found)
}

/// The agent runs again, and is connected.
async fn starts(world: &mut World) {
    world.gateway.restart_agent().await.unwrap();
    assert!(world.hub.wait_connected(DEVICE, true, LIMIT).await, "{}", world.gateway.log());
}

#[tokio::test]
async fn without_the_agent_doctor_asks_its_questions_all_the_same() {
    let mut world = World::new().await;
    world.gateway.shut_down().await.unwrap();
    let (output, found) = offline(&world);
    assert_eq!(output.status.code(), Some(1));
    let (status, message) = finding(&found, "agent");
    assert!(status == "failed" && message.contains("does not run"), "{message}");
    for check in ["running slot", "boot environment", "spare slot", "signing keys", "hub settings"] {
        assert_eq!(finding(&found, check).0, "ok", "{check}: {found}");
    }
    // Settings that cannot be used are why it does not run.
    let file = world.gateway.settings_file();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("kind = \"uboot\"", "kind = \"lilo\"")).unwrap();
    let (output, found) = offline(&world);
    assert_eq!(output.status.code(), Some(1));
    let (status, message) = finding(&found, "agent");
    assert!(status == "failed" && message.contains("lilo"), "{message}");
    fs::write(&file, text).unwrap();
    starts(&mut world).await;
    world.finish_disturbed().await;
}

#[tokio::test]
async fn without_the_agent_doctor_repeats_why_it_ended() {
    let mut world = World::new().await;
    world.gateway.shut_down().await.unwrap();
    // Somebody else holds the record: the agent cannot run.
    let state = fs::File::open(world.gateway.dir().join("state")).unwrap();
    let held = nix::fcntl::Flock::lock(state, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    world.gateway.start_agent().unwrap();
    let ended = world.gateway.wait_reboot_requested(LIMIT).await.unwrap_err();
    assert!(format!("{ended:#}").contains("ended by itself"), "{ended:#}");
    let (_, found) = offline(&world);
    let (_, message) = finding(&found, "agent");
    assert!(message.contains("it ended with: ") && message.contains("state"), "{message}");
    drop(held);
    starts(&mut world).await;
    world.kill().await;
    let (_, found) = offline(&world);
    let (_, message) = finding(&found, "agent");
    assert!(!message.contains("it ended with"), "it started since: {message}");
    starts(&mut world).await;
    world.finish_disturbed().await;
}

#[tokio::test]
async fn on_a_trial_doctor_names_the_failing_check_and_the_way_back() {
    let mut world = World::new().await;
    let go = world.scratch().join("go");
    world.gateway.add_check("90-wait", &format!("#!/bin/sh\n[ -e '{}' ]\n", go.display())).unwrap();
    let release = world.release("2.0.0");
    let id = world.update(json!({"fwPackageUri": release.url})).await;
    world.phase("trying").await;
    world
        .until_shown(&["doctor"], |shown| {
            let (status, message) = finding(shown, "fallback");
            assert!(status == "ok" && message.contains("slot A is proven"), "{status}: {message}");
            finding(shown, "trial").1.contains("required.d/90-wait fails")
        })
        .await;
    assert_eq!(world.twin()["fwupdate"]["slots"]["A"]["state"], "proven");
    let log = fs::read_to_string(world.gateway.log_path()).unwrap();
    assert_eq!(log.matches("the health check required.d/90-wait fails: ").count(), 1, "once: {log}");
    fs::write(go, "").unwrap();
    assert_eq!(world.outcome(&id).await["result"], "committed");
    let found = doctor(&mut world).await;
    assert!(found["findings"].as_array().unwrap().iter().all(|f| f["check"] != "trial"), "{found}");
    world.finish().await;
}

#[tokio::test]
async fn a_slot_from_the_factory_keeps_its_version_when_it_is_left() {
    let mut world = World::new().await;
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    let slots = &world.twin()["fwupdate"]["slots"];
    assert_eq!(slots["A"], json!({"version": "1.0.0", "state": "proven"}));
    let answer = world.call("firmwareRollback", json!({})).await;
    let id = answer.payload["operationId"].as_str().unwrap().to_owned();
    let last = world.outcome(&id).await;
    assert_eq!((&last["result"], &last["toVersion"]), (&"committed".into(), &"1.0.0".into()), "{last}");
    assert_eq!(world.booted(), Slot::A);
    world.finish().await;
}

#[tokio::test]
async fn doctor_warns_of_an_exposed_credential_unequal_slots_and_no_watchdog() {
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let secret = world.gateway.dir().join("state/connection");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let slot = fs::OpenOptions::new().write(true).open(world.gateway.slot(Slot::B)).unwrap();
    slot.set_len(crate::harness::SLOT * 2).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_fwupdated"));
    let check = check.arg("--check-config").arg("--config").arg(world.gateway.settings_file());
    let told = String::from_utf8(check.output().unwrap().stderr).unwrap();
    assert!(told.contains("slot sizes: slot A has ") && told.contains("make them equal"), "{told}");
    world.switch_on().await;
    let found = doctor(&mut world).await;
    for (check, word) in [
        ("credentials", secret.display().to_string()),
        ("slot sizes", "make them equal".to_owned()),
        ("hardware watchdog", "docs/watchdog.md".to_owned()),
    ] {
        let (status, message) = finding(&found, check);
        assert!(status == "warning" && message.contains(&word), "{check}: {status}: {message}");
    }
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let watchdog = world.gateway.dir().join("sys/class/watchdog/watchdog0");
    fs::create_dir_all(&watchdog).unwrap();
    fs::write(watchdog.join("state"), "inactive\n").unwrap();
    let found = doctor(&mut world).await;
    assert_eq!(finding(&found, "credentials").0, "ok");
    assert!(finding(&found, "hardware watchdog").1.contains("RuntimeWatchdogSec"));
    fs::write(watchdog.join("state"), "active\n").unwrap();
    assert_eq!(finding(&doctor(&mut world).await, "hardware watchdog").0, "ok");
    world.finish().await;
}

#[tokio::test]
async fn a_health_deadline_after_the_dead_man_is_found_before_a_trial_meets_it() {
    if !devices::root("a_health_deadline_after_the_dead_man_is_found_before_a_trial_meets_it") {
        return;
    }
    let settings = "[health]\ndeadline = \"19min\"\n".to_owned();
    let world = World::with(Setup { on: false, settings, ..Setup::default() }).await;
    // A machine with the timer as it is shipped, which only these programs see.
    let timer = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/fwupdate-deadman.timer");
    let beside = "mount -t tmpfs none /run && mkdir -p /run/systemd/system/fwupdate-deadman.timer.d && \
                  cp \"$1\" /run/systemd/system && \
                  printf \"$2\" > /run/systemd/system/fwupdate-deadman.timer.d/later.conf && shift 2 && exec \"$@\"";
    let ask = |drop_in: &str, args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", beside, "sh", timer, drop_in]);
        command.args(args).arg("--config").arg(world.gateway.settings_file()).output().unwrap()
    };
    let agent = env!("CARGO_BIN_EXE_fwupdated");
    for (drop_in, late) in [("", true), ("[Timer]\nOnBootSec=\nOnBootSec=40min\n", false)] {
        let found = serde_json::from_slice(&ask(drop_in, &[agent, "--doctor"]).stdout).unwrap();
        let (status, message) = finding(&found, "dead-man");
        assert_eq!(status, if late { "failed" } else { "ok" }, "{message}");
        let checked = ask(drop_in, &[agent, "--check-config"]);
        let told = String::from_utf8(checked.stderr).unwrap();
        assert_eq!((told.contains("dead-man"), checked.status.success()), (late, !late), "{told}");
        assert_eq!(told.contains("raise OnBootSec="), late, "{told}");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_state_folder_in_memory_is_found_before_an_update_loses_it() {
    if !devices::root("a_state_folder_in_memory_is_found_before_an_update_loses_it") {
        return;
    }
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let _state = Mount::ram("1m", &world.gateway.dir().join("state"));
    let mut check = Command::new(env!("CARGO_BIN_EXE_fwupdated"));
    let output =
        check.arg("--check-config").arg("--config").arg(world.gateway.settings_file()).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("lies in memory"), "{told}");
    world.switch_on().await;
    let (status, message) = finding(&doctor(&mut world).await, "state medium");
    assert!(status == "failed" && message.contains("lies in memory"), "{message}");
    world.finish().await;
}

/// By a forged or damaged record, or by a release that was numbered by mistake.
#[tokio::test]
async fn a_floor_that_no_image_accounts_for_is_named_with_the_way_out() {
    let mut world = World::new().await;
    world.gateway.shut_down().await.unwrap();
    let state = world.gateway.dir().join("state");
    let mut store = Store::open(&state).unwrap();
    let mut record = store.load::<Value>().unwrap().unwrap();
    record["floor"] = json!(u64::MAX);
    (0..2).for_each(|_| store.save(&record).unwrap());
    drop(store);
    let (status, message) = finding(&offline(&world).1, "security floor");
    assert!(status == "failed" && message.contains(&u64::MAX.to_string()), "{message}");
    assert!(message.contains(&state.display().to_string()) && message.contains("record.0"), "{message}");
    // What it says.
    for name in ["record.0", "record.1"] {
        fs::remove_file(state.join(name)).unwrap();
    }
    starts(&mut world).await;
    assert_eq!(finding(&doctor(&mut world).await, "security floor").0, "ok");
    let next = world.make(Spec { create: &["--security-version", "3"], ..Spec::default() });
    assert_eq!(world.install(&next).await["result"], "committed");
    let (status, message) = finding(&doctor(&mut world).await, "security floor");
    assert!(status == "ok" && message.contains("--security-version 3 or a higher"), "{message}");
    let etc: &[_] = &[("os-release", "IMAGE_VERSION=2.1.0\nFWUPDATE_SECURITY_VERSION=v3\n")];
    let create: &[_] = &["--security-version", "3"];
    let typo = world.make(Spec { version: "2.1.0", etc, create, ..Spec::default() });
    assert_eq!(world.install(&typo).await["result"], "committed");
    let (status, message) = finding(&doctor(&mut world).await, "security floor");
    assert!(status == "failed" && message.contains("FWUPDATE_SECURITY_VERSION=v3"), "{message}");
    world.finish_disturbed().await;
}
