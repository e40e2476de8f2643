//! The boot environment that the agent reads and the one that the bootloader reads: nothing is made anew, overwritten
//! or believed on the agent's word alone, and a trial that cannot be decided goes back with the true reason.

use std::fs;
use std::path::PathBuf;

use fwupdate_hub::firmware::{Outcome, Slot, uboot_copy};
use serde_json::{Value, json};

use crate::harness::{LIMIT, Release, Setup, World};

/// Bytes of one copy in the simulated gateway.
const SIZE: usize = 0x1000;

/// The environment's file, as the board's own `fw_env.config` names it.
fn medium(world: &World) -> PathBuf {
    world.gateway.dir().join("uboot.env")
}

/// From now on the agent, and not the bootloader, follows these lines; `ENV` is the environment's file.
fn mislead(world: &World, lines: &str) -> PathBuf {
    let folder = world.gateway.dir().join("misled");
    fs::create_dir_all(&folder).unwrap();
    let config = folder.join("fw_env.config");
    fs::write(&config, lines.replace("ENV", medium(world).to_str().unwrap())).unwrap();
    fs::write(folder.join("u-boot-initial-env"), "bootcmd=run distro_bootcmd\n").unwrap();
    world.gateway.configure("bootloader", &format!("[bootloader]\nconfig = {config:?}\n")).unwrap();
    config
}

fn lead_back(world: &World) {
    fs::remove_file(world.gateway.dir().join("fwupdate.d/bootloader.toml")).unwrap();
}

/// A board whose environment holds variables of its own.
fn with_serial_number(world: &World) -> Vec<u8> {
    let variables = ["ethaddr=02:00:00:00:00:01", "serial#=17", "fwupdate_primary=A"];
    let bytes = [0, 1].map(|flags| uboot_copy(&variables, flags, SIZE)).concat();
    fs::write(medium(world), &bytes).unwrap();
    bytes
}

async fn degraded(world: &mut World) -> String {
    let told = world.reported(|twin| !twin["fwupdate"]["agent"]["degraded"].is_null()).await;
    told["fwupdate"]["agent"]["degraded"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_wrong_size_in_fw_env_config_costs_the_board_nothing_and_is_named() {
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let before = with_serial_number(&world);
    let config = mislead(&world, "ENV 0x0 0x800\nENV 0x800 0x800\n");
    world.gateway.power_on().unwrap();
    let said = degraded(&mut world).await;
    let right = format!("correct the line to `{} 0x0 0x1000`", medium(&world).display());
    assert!(said.contains(&format!("{}, line 1", config.display())) && said.contains(&right), "{said}");
    let doctor = world.ctl_json(&["doctor"]).await.to_string();
    assert!(doctor.contains("line 1") && !doctor.contains("a trial can be armed"), "{doctor}");
    let release = world.release("2.0.0");
    let answer = world.call("firmwareUpdate", json!({"fwPackageUri": release.url})).await;
    assert_eq!(answer.status, 503, "{}", answer.payload);
    assert_eq!(fs::read(medium(&world)).unwrap(), before, "the environment was touched");

    fs::remove_file(world.gateway.dir().join("fwupdate.d/bootloader.toml")).unwrap();
    world.kill().await;
    world.gateway.start_agent().unwrap();
    let last = world.install(&release).await;
    assert_eq!(last["result"], "committed", "{last}");
    let text = fs::read(medium(&world)).unwrap();
    assert!(text.windows(10).any(|word| word == b"serial#=17"));
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_lost_environment_waits_for_the_bootloaders_word() {
    let mut world = World::new().await;
    fs::write(world.gateway.dir().join("u-boot-initial-env"), "bootdelay=2\n").unwrap();
    let lost = vec![0xff; 2 * SIZE];
    fs::write(medium(&world), &lost).unwrap();
    world.crash().await;
    let said = degraded(&mut world).await;
    assert!(said.contains("the bootloader of this boot does not call it lost"), "{said}");
    assert_eq!(fs::read(medium(&world)).unwrap(), lost, "made anew on one witness");

    let outcome = world.power_cut().await;
    assert_eq!(outcome, Outcome::Booted { slot: Slot::A, trial: false, environment_lost: true });
    world.reported(|twin| twin["fwupdate"]["agent"]["degraded"].is_null()).await;
    assert_eq!(world.gateway.boot_variable("fwupdate_primary").unwrap(), "A");
    assert_eq!(world.gateway.boot_variable("bootdelay").unwrap(), "2");
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    world.finish_disturbed().await;
}

/// Stages and arms a release, and stops right before its first boot.
async fn armed(world: &mut World) -> (Release, String) {
    let release = world.release("2.0.0");
    let id = world.update(json!({"fwPackageUri": release.url})).await;
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.gateway.shut_down().await.unwrap();
    (release, id)
}

fn assert_rolled_back(world: &World, last: &Value, code: &str, word: &str) {
    assert_eq!(last["result"], "rolledBack", "{last}");
    let error = &last["error"];
    assert_eq!(error["code"], code, "{last}");
    assert!(error["message"].as_str().unwrap().contains(word), "{last}");
    assert_eq!(world.booted(), Slot::A);
    assert_eq!(world.gateway.boot_variable("fwupdate_primary").unwrap(), "A");
    assert_eq!(world.gateway.boot_variable("fwupdate_trial").unwrap(), "");
}

const IMPATIENT: &str = "[health]\ndeadline = \"2s\"\n";

async fn impatient() -> World {
    World::with(Setup { settings: IMPATIENT.into(), ..Setup::default() }).await
}

/// The new image's settings lead to an environment that has it for committed long ago, to a blank one, to a wrong
/// size; the bootloader's own still has it on trial.
#[tokio::test]
async fn an_image_that_reads_another_environment_is_not_committed() {
    const OTHER: &str = "OTHER 0x0 0x1000\nOTHER 0x1000 0x1000\n";
    for (lines, primary, code, word) in [
        (OTHER, Some("fwupdate_primary=B"), "HealthCheckFailed", "has no such trial"),
        (OTHER, Some("fwupdate_primary=A"), "BootloaderFailed", "leads to another environment"),
        (OTHER, None, "HealthCheckFailed", "does not call it lost"),
        ("ENV 0x0 0x2000\nENV 0x2000 0x2000\n", None, "HealthCheckFailed", "correct the line"),
    ] {
        let mut world = impatient().await;
        let (_, id) = armed(&mut world).await;
        let other = world.scratch().join("other.env");
        let copies = primary.map(|primary| [0, 1].map(|flags| uboot_copy(&[primary], flags, SIZE)).concat());
        fs::write(&other, copies.unwrap_or(vec![0; 2 * SIZE])).unwrap();
        let before = fs::read(&other).unwrap();
        // As long as the new image runs, its settings are the wrong ones.
        for left in ["2", "1", "0"] {
            mislead(&world, &lines.replace("OTHER", other.to_str().unwrap()));
            let outcome = world.gateway.boot_alone().unwrap();
            assert_eq!(outcome, Outcome::Booted { slot: Slot::B, trial: true, environment_lost: false });
            world.gateway.start_agent().unwrap();
            world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
            world.gateway.shut_down().await.unwrap();
            assert_eq!(world.gateway.boot_variable("fwupdate_tries").unwrap(), left);
            assert!(!world.gateway.dir().join("run/proven").exists(), "the dead-man was disarmed");
        }
        lead_back(&world);
        world.gateway.power_on().unwrap();
        let last = world.outcome(&id).await;
        assert_rolled_back(&world, &last, code, word);
        assert_eq!(fs::read(&other).unwrap(), before, "the other environment was touched");
        world.finish_disturbed().await;
    }
}

#[tokio::test]
async fn a_trial_whose_root_is_not_recognised_says_so_and_goes_back_by_itself() {
    let mut world = impatient().await;
    let (_, id) = armed(&mut world).await;
    world.gateway.boot_alone().unwrap();
    // The disk got another number, as from mmcblk0 to mmcblk1.
    let mounts = "26 1 179:11 / / rw,relatime shared:1 - ext4 /dev/root rw\n";
    fs::write(world.gateway.machine().proc.join("self/mountinfo"), mounts).unwrap();
    world.gateway.start_agent().unwrap();
    let said = degraded(&mut world).await;
    assert!(said.contains("says slot B") && said.contains("/ stands on neither slot's device"), "{said}");
    let last = world.outcome(&id).await;
    assert_rolled_back(&world, &last, "HealthCheckFailed", "/ stands on neither slot's device");
    let evidence = &last["error"]["evidence"];
    assert_eq!(
        (&evidence["check"], &evidence["bootAttempts"]),
        (&"running slot".into(), &1.into()),
        "{last}"
    );
    assert!(world.gateway.log().contains("the health check running slot fails"));
    world.finish_disturbed().await;
}
