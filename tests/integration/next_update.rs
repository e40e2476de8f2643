//! A trial asks whether its image could take the next update: what the old slot could do and the new one cannot leads
//! back. Here images bring settings and keys of their own along.

use std::fs;

use fwupdate_hub::firmware::Slot;
use serde_json::{Value, json};

use crate::harness::{LIMIT, Release, Setup, Spec, World};

/// The gateway's own settings with these replacements, and a verdict that falls soon.
pub fn settings(world: &World, changes: &[(&str, &str)]) -> String {
    let own = fs::read_to_string(world.gateway.dir().join("fwupdate.toml")).unwrap();
    let soon = own.replace("deadline = \"20s\"", "deadline = \"2s\"");
    changes.iter().fold(soon, |text, (from, to)| {
        assert!(text.contains(from), "{from} is not in {text}");
        text.replace(from, to)
    })
}

/// The line of the settings that begins so.
fn line(world: &World, start: &str) -> String {
    let own = fs::read_to_string(world.gateway.dir().join("fwupdate.toml")).unwrap();
    own.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start}")).to_owned()
}

pub fn image(world: &mut World, version: &str, etc: &[(&str, &str)]) -> Release {
    world.make(Spec { version, etc, ..Spec::default() })
}

/// Installs an image with such settings, which must be found wanting.
pub async fn goes_back(world: &mut World, version: &str, etc: &[(&str, &str)], question: &str, word: &str) {
    let release = image(world, version, etc);
    let last = world.install(&release).await;
    assert_eq!(
        (&last["result"], &last["error"]["code"]),
        (&"rolledBack".into(), &"HealthCheckFailed".into()),
        "{question}: {last}"
    );
    let evidence = &last["error"]["evidence"];
    assert_eq!(evidence["check"], format!("next-update: {question}"), "{last}");
    assert!(evidence["excerpt"].as_str().unwrap().contains(word), "{word}: {last}");
    assert_eq!(world.booted(), Slot::A, "{question}");
    assert_eq!(world.gateway.boot_variable("fwupdate_primary").unwrap(), "A");
}

async fn stays(world: &mut World, version: &str, etc: &[(&str, &str)]) {
    let release = image(world, version, etc);
    let last = world.install(&release).await;
    assert_eq!(last["result"], "committed", "{last}\n{}", world.gateway.log());
}

/// The findings of a doctor's document by name: status and message.
fn finding(doctor: &Value, check: &str) -> (String, String) {
    let all = doctor["findings"].as_array().unwrap();
    let found = all.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("{check}: {doctor}"));
    let text = |name: &str| found[name].as_str().unwrap().to_owned();
    (text("status"), text("message"))
}

#[tokio::test]
async fn an_image_whose_keys_accept_no_bundle_goes_back() {
    let mut world = World::new().await;
    let own = world.gateway.root().join("etc/keys").display().to_string();
    let trusted = line(&world, "keys = ");
    let key = fs::read_to_string(world.scratch().join("trusted/release.pem")).unwrap();
    let keys = format!("keys = {own:?}");
    let plain = settings(&world, &[(&trusted, &keys)]);
    let etc = [("fwupdate.toml", plain.as_str()), ("keys/a.pem", "no key at all\n")];
    goes_back(&mut world, "2.0.0", &etc, "signing keys", "a.pem").await;

    // Two signatures, and one key in two files.
    let two = settings(&world, &[(&trusted, &format!("{keys}\nrequired_signatures = 2"))]);
    let etc = [("fwupdate.toml", two.as_str()), ("keys/a.pem", &key), ("keys/b.pem", &key)];
    goes_back(&mut world, "2.0.1", &etc, "signing keys", "1 different key").await;
    world.finish().await;
}

#[tokio::test]
async fn an_image_for_another_board_or_host_goes_back() {
    let mut world = World::new().await;
    let other = settings(&world, &[("compatible = \"sim-gateway\"", "compatible = \"sim-gatewy\"")]);
    goes_back(&mut world, "2.0.0", &[("fwupdate.toml", &other)], "board", "sim-gatewy").await;
    let hosts = line(&world, "allowed_hosts = ");
    let other = settings(&world, &[(&hosts, "allowed_hosts = [\"downloads.example\"]")]);
    goes_back(&mut world, "2.0.1", &[("fwupdate.toml", &other)], "package host", "allowed_hosts").await;
    let release = "IMAGE_VERSION=2.0.2\nFWUPDATE_SECURITY_VERSION=7\n";
    let plain = settings(&world, &[]);
    let etc = [("fwupdate.toml", plain.as_str()), ("os-release", release)];
    goes_back(&mut world, "2.0.2", &etc, "security version", "7").await;
    world.finish().await;
}

#[tokio::test]
async fn an_image_without_its_hub_goes_back() {
    let mut world = World::new().await;
    let connection = line(&world, "connection_string_file = ");
    let none = settings(&world, &[(&connection, "")]);
    goes_back(&mut world, "2.0.0", &[("fwupdate.toml", &none)], "hub settings", "gw at").await;

    // A credential that lay in the old slot is not in the new one.
    let absent = world.gateway.root().join("etc/connection-string").display().to_string();
    let lost = settings(&world, &[(&connection, &format!("connection_string_file = {absent:?}"))]);
    goes_back(&mut world, "2.0.2", &[("fwupdate.toml", &lost)], "hub settings", "connection-string").await;

    // Somebody else, and nobody would notice.
    let text = fs::read_to_string(world.gateway.dir().join("state/connection")).unwrap();
    let other = text.replace("DeviceId=gw;", "DeviceId=gv;");
    assert_ne!(text, other);
    let path = world.gateway.root().join("etc/connection").display().to_string();
    let changes = [
        (connection.as_str(), format!("connection_string_file = {path:?}")),
        ("[health]\n", "[health]\nrequire_cloud = false\n".to_owned()),
    ];
    let changes: Vec<(&str, &str)> = changes.iter().map(|(from, to)| (*from, to.as_str())).collect();
    let strange = settings(&world, &changes);
    let etc = [("fwupdate.toml", strange.as_str()), ("connection", &other)];
    goes_back(&mut world, "2.0.3", &etc, "hub settings", "gv at").await;
    world.finish_disturbed().await;
}

/// Settings of an image whose connection string has another key of the same device, and that file.
fn with_a_wrong_key(world: &World, more: &str) -> (String, String) {
    let text = fs::read_to_string(world.gateway.dir().join("state/connection")).unwrap();
    let (who, _) = text.split_once("SharedAccessKey=").unwrap();
    let path = world.gateway.root().join("etc/connection").display().to_string();
    let connection = line(world, "connection_string_file = ");
    let new = format!("connection_string_file = {path:?}\nreconnect_longest = \"2s\"");
    let changed = settings(world, &[(&connection, &new), ("[health]\n", &format!("[health]\n{more}"))]);
    let changed = changed.replace("deadline = \"2s\"", "deadline = \"20s\"");
    (changed, format!("{who}SharedAccessKey=b3RoZXI="))
}

#[tokio::test]
async fn an_image_that_its_hub_refuses_goes_back_and_the_hubs_word_is_waited_for() {
    let mut world = World::new().await;
    for (version, more) in [("2.0.0", "require_cloud = false\n"), ("2.0.1", "")] {
        let (changed, wrong) = with_a_wrong_key(&world, more);
        let etc = [("fwupdate.toml", changed.as_str()), ("connection", &wrong)];
        goes_back(&mut world, version, &etc, "hub", "refused the credentials of gw").await;
    }
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_hub_that_refuses_the_old_slot_too_or_is_not_there_says_nothing_against_an_image() {
    // Not there: the key is wrong, and nobody says so.
    let mut world = World::new().await;
    let (changed, wrong) = with_a_wrong_key(&world, "require_cloud = false\n");
    let etc = [("fwupdate.toml", changed.as_str()), ("connection", &wrong)];
    let release = image(&mut world, "2.0.0", &etc);
    world.update(json!({"fwPackageUri": release.url})).await;
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.cut_off();
    world.gateway.reboot().await.unwrap();
    world.until_shown_at_all(&["status"]).await;
    let committed = |shown: &Value| shown["fwupdate"]["last"]["result"] == "committed";
    world.until_shown(&["status"], committed).await;
    assert_eq!(
        (world.booted(), world.gateway.boot_variable("fwupdate_primary").unwrap()),
        (Slot::B, "B".into())
    );

    // There again, and it refuses: so it does what comes next, which is no worse.
    world.hub.faults().clear();
    world.doctor_says_of_the_hub("refused the credentials").await;
    let next = image(&mut world, "2.0.1", &etc);
    let output = world.ctl(&["install", next.bundle.to_str().unwrap(), "--wait"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.booted(), Slot::A);
    world.finish_disturbed().await;
}

/// Disabled at the hub in the middle of a trial: the old slot is refused as well.
#[tokio::test]
async fn a_device_that_its_hub_refuses_altogether_says_nothing_against_its_image() {
    let settings = "[cloud]\nreconnect_longest = \"2s\"\n[health]\ndeadline = \"8s\"\n".to_owned();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let release = world.release("2.0.0");
    let id = world.update(json!({"fwPackageUri": release.url})).await;
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.hub.faults().mqtt(|faults| faults.refuse_connects = u64::MAX);
    world.gateway.reboot().await.unwrap();
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.gateway.reboot().await.unwrap();
    world.doctor_says("quarantine", "empty").await;
    assert_eq!(world.booted(), Slot::A);
    world.hub.faults().clear();
    let last = world.outcome(&id).await;
    let told = (&last["result"], &last["error"]["evidence"]["check"]);
    assert_eq!(told, (&"rolledBack".into(), &"next-update: hub".into()), "{last}");
    assert!(last["error"]["message"].as_str().unwrap().contains("refuses this device itself"), "{last}");
    assert_eq!(world.install(&release).await["result"], "committed");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn an_image_that_lacks_the_other_slot_goes_back() {
    let mut world = World::new().await;
    let dir = world.gateway.dir().to_owned();
    let slot = format!("{:?}", dir.join("slot-a").display().to_string());
    let gone = format!("{:?}", dir.join("slot-c").display().to_string());
    let absent = settings(&world, &[(&slot, &gone)]);
    goes_back(&mut world, "2.0.0", &[("fwupdate.toml", &absent)], "spare slot", "slot-c").await;
    fs::write(dir.join("slot-c"), vec![0; 1 << 20]).unwrap();
    goes_back(&mut world, "2.0.1", &[("fwupdate.toml", &absent)], "spare slot", "make the slots equal").await;
    world.finish().await;
}

#[tokio::test]
async fn an_image_that_keeps_its_state_elsewhere_goes_back() {
    let mut world = World::new().await;
    let state = format!("dir = {:?}", world.gateway.dir().join("state").display().to_string());
    let other = format!("dir = {:?}", world.gateway.root().join("var").display().to_string());
    // Where its credentials were, too.
    let connection = line(&world, "connection_string_file = ");
    let strange = settings(&world, &[(&state, &other), (&connection, "")]);
    let release = image(&mut world, "2.0.0", &[("fwupdate.toml", &strange)]);
    let last = world.install(&release).await;
    assert_eq!((&last["result"], &last["error"]["code"]), (&"failed".into(), &"BootloaderFailed".into()));
    assert!(last["error"]["message"].as_str().unwrap().contains("state.dir"), "{last}");
    assert_eq!(world.booted(), Slot::A);
    let log = fs::read_to_string(world.gateway.log_path()).unwrap();
    assert!(log.contains("the health check next-update: trial record fails:"), "{log}");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn one_unusable_key_file_is_named_and_passed_over() {
    let mut world = World::new().await;
    let own = world.gateway.root().join("etc/keys").display().to_string();
    let trusted = line(&world, "keys = ");
    let key = fs::read_to_string(world.scratch().join("trusted/release.pem")).unwrap();
    let plain = settings(&world, &[(&trusted, &format!("keys = {own:?}"))]);
    let private = fs::read_to_string(world.scratch().join("keys/release.key.pem")).unwrap();
    let etc = [
        ("fwupdate.toml", plain.as_str()),
        ("keys/a.pem", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"),
        ("keys/b.pem", &private),
        ("keys/c.pem", &key),
    ];
    stays(&mut world, "2.0.0", &etc).await;
    let doctor = world.ctl_json(&["doctor"]).await;
    let (status, message) = finding(&doctor, "signing keys");
    assert!(status == "warning" && message.contains("a.pem") && message.contains("b.pem"), "{message}");
    stays(&mut world, "3.0.0", &[]).await;
    let log = fs::read_to_string(world.gateway.log_path()).unwrap();
    assert!(log.contains("a key is passed over: ") && log.contains("b.pem: it holds a private key"), "{log}");
    world.finish().await;
}

#[tokio::test]
async fn new_keys_and_another_host_beside_the_old_one_are_no_fault() {
    let mut world = World::new().await;
    let own = world.gateway.root().join("etc/keys").display().to_string();
    let trusted = line(&world, "keys = ");
    let mut keygen = std::process::Command::new(env!("CARGO_BIN_EXE_fwupdate-bundle"));
    crate::harness::run(keygen.arg("keygen").arg("--out").arg(world.scratch().join("next")));
    let key = fs::read_to_string(world.scratch().join("next/release.pub.pem")).unwrap();
    let hosts = line(&world, "allowed_hosts = ");
    let more = hosts.replace('[', "[\"downloads.example\", ");
    let plain = settings(&world, &[(&trusted, &format!("keys = {own:?}")), (&hosts, &more)]);
    stays(&mut world, "2.0.0", &[("fwupdate.toml", &plain), ("keys/next.pem", &key)]).await;
    world.finish().await;
}

/// The record of an agent that knew nothing of these questions.
#[tokio::test]
async fn without_knowledge_of_the_old_slot_only_what_ends_all_updates_counts() {
    let mut world = World::new().await;
    let own = world.gateway.root().join("etc/keys").display().to_string();
    let trusted = line(&world, "keys = ");
    let keyless = settings(&world, &[(&trusted, &format!("keys = {own:?}"))]);
    let other = settings(&world, &[("compatible = \"sim-gateway\"", "compatible = \"sim-gatewy\"")]);
    for (version, text, result) in [("2.0.0", &keyless, "rolledBack"), ("3.0.0", &other, "committed")] {
        let release = image(&mut world, version, &[("fwupdate.toml", text)]);
        let id = world.update(json!({"fwPackageUri": release.url})).await;
        world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
        world.gateway.shut_down().await.unwrap();
        crate::bad::forget_in_record(&world, "abilities");
        world.gateway.power_on().unwrap();
        let last = world.outcome(&id).await;
        assert_eq!(last["result"], result, "{last}");
    }
    world.finish().await;
}
