//! A medium that does not answer for a while holds up what needs it and nothing else: the watchdog is fed, local control
//! and the hub are answered, and what was asked for comes about when it answers again.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use fwupdate_hub::faults::{FileEffect, FileRule};
use serde_json::{Value, json};
use tokio::net::UnixDatagram;
use tokio::time::{Instant, timeout};

use crate::harness::{LIMIT, Setup, World};
use crate::medium::Medium;
use crate::stops::{ID, Stop, Walk};

/// What systemd would hear.
struct Systemd(UnixDatagram);

impl Systemd {
    /// Agents that are started from now on have a watchdog of a second.
    fn over(world: &mut World) -> Systemd {
        let path = world.scratch().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        world.gateway.set_variable("NOTIFY_SOCKET", path.to_str().unwrap());
        world.gateway.set_variable("WATCHDOG_USEC", "1000000");
        Systemd(socket)
    }

    /// Returns when the watchdog was fed so often from now on.
    async fn fed(&self, times: usize) {
        let (mut fed, mut message) = (0, [0; 4096]);
        while self.0.try_recv(&mut message).is_ok() {}
        while fed < times {
            let length =
                timeout(LIMIT, self.0.recv(&mut message)).await.expect("the watchdog is fed").unwrap();
            fed += usize::from(message[..length].starts_with(b"WATCHDOG=1"));
        }
    }
}

/// Moves a file of the gateway onto a medium of its own.
fn on_a_medium(world: &World, name: &str) -> Option<Medium> {
    let (folder, file) = (world.gateway.dir().join("medium"), world.gateway.dir().join(name));
    fs::create_dir(&folder).unwrap();
    fs::rename(&file, folder.join(name)).unwrap();
    symlink(folder.join(name), &file).unwrap();
    Medium::under(&folder)
}

/// Status is told, and the watchdog fed for longer than it would wait.
async fn lives(world: &mut World, systemd: &Systemd) {
    systemd.fed(4).await;
    let status = world.ctl_json(&["status"]).await;
    assert!(status["fwupdate"]["agent"]["version"].is_string(), "{status}");
    assert!(world.ctl_json(&["history"]).await.is_object());
}

async fn off() -> (World, Systemd) {
    let settings = "[policy]\napproval = true\n".to_owned();
    let mut world = World::with(Setup { on: false, settings, ..Setup::default() }).await;
    let systemd = Systemd::over(&mut world);
    (world, systemd)
}

#[tokio::test]
async fn a_state_folder_that_does_not_answer_holds_up_the_saving_alone() {
    let (mut world, systemd) = off().await;
    let Some(medium) = Medium::under(&world.gateway.dir().join("state")) else {
        return world.finish().await;
    };
    world.switch_on().await;
    let release = world.release("2.0.0");
    medium.hold();
    lives(&mut world, &systemd).await;
    let call = json!({"fwPackageUri": release.url, "operationId": ID});
    let (answer, ()) = tokio::join!(world.hub.invoke("gw", method("firmwareUpdate", call)), async {
        medium.awaited().await;
        systemd.fed(4).await;
        let status = world.hub.invoke("gw", method("firmwareStatus", json!({}))).await.unwrap();
        assert_eq!(status.payload["firmwareStatus"], "standBy");
        medium.release();
    });
    let answer = answer.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.payload);
    world.phase("holding").await;
    medium.hold();
    let (answer, ()) =
        tokio::join!(world.hub.invoke("gw", method("firmwareCancel", json!({"operationId": ID}))), async {
            medium.awaited().await;
            systemd.fed(4).await;
            medium.release();
        });
    assert_eq!(answer.unwrap().status, 200);
    assert_eq!(world.outcome(ID).await["result"], "cancelled");
    world.finish_disturbed().await;
}

fn method(name: &str, payload: Value) -> fwupdate_hub::methods::Call {
    let call = fwupdate_hub::methods::Call::new(name, Some(payload));
    fwupdate_hub::methods::Call { connect_timeout: LIMIT, response_timeout: LIMIT, ..call }
}

#[tokio::test]
async fn a_boot_environment_that_does_not_answer_holds_up_the_update_alone() {
    let mut world = World::with(Setup { on: false, registered: false, ..Setup::default() }).await;
    let systemd = Systemd::over(&mut world);
    let Some(medium) = on_a_medium(&world, "uboot.env") else { return world.finish_without_twin().await };
    world.gateway.power_on().unwrap();
    world.until_shown_at_all(&["status"]).await;
    let release = world.release("2.0.0");
    medium.hold();
    install_waits(world, &systemd, &medium, &release.bundle).await;
}

/// `fwupdatectl install` waits for the medium, and nothing else does; when it answers again the install comes to its end.
async fn install_waits(mut world: World, systemd: &Systemd, medium: &Medium, bundle: &Path) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_fwupdatectl"));
    command.arg("install").arg(bundle).arg("--socket").arg(world.gateway.socket());
    let install = tokio::task::spawn_blocking(move || command.output().unwrap());
    medium.awaited().await;
    lives(&mut world, systemd).await;
    medium.release();
    let output = install.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.finish_without_twin().await;
}

/// A stick that sleeps, or a share whose server is away.
#[tokio::test]
async fn a_bundle_on_a_medium_that_does_not_answer_holds_up_its_own_install_alone() {
    let mut world = World::with(Setup { on: false, registered: false, ..Setup::default() }).await;
    let systemd = Systemd::over(&mut world);
    let release = world.release("2.0.0");
    let folder = world.scratch().join("stick");
    fs::create_dir(&folder).unwrap();
    fs::copy(&release.bundle, folder.join("2.fwb")).unwrap();
    let Some(medium) = Medium::under(&folder) else { return world.finish_without_twin().await };
    world.gateway.power_on().unwrap();
    world.until_shown_at_all(&["status"]).await;
    medium.hold();
    install_waits(world, &systemd, &medium, &folder.join("2.fwb")).await;
}

#[tokio::test]
async fn a_slot_that_does_not_answer_holds_up_neither_control_nor_its_own_cancelling() {
    let (mut world, systemd) = off().await;
    let Some(medium) = on_a_medium(&world, "slot-b") else { return world.finish().await };
    world.switch_on().await;
    let release = world.release("2.0.0");
    world.hub.faults().file(FileRule::always(&release.name, FileEffect::Hold { after: 300_000 }));
    let asked = json!({"fwPackageUri": release.url, "operationId": ID});
    world.update(asked).await;
    world.phase("staging").await;
    timeout(LIMIT, world.hub.faults().holding()).await.unwrap();
    medium.hold();
    world.hub.faults().clear_files();
    medium.awaited().await;
    lives(&mut world, &systemd).await;
    let answer = world.call("firmwareCancel", json!({"operationId": ID})).await;
    assert_eq!(answer.status, 200, "{}", answer.payload);
    assert!(answer.payload["Response"].as_str().unwrap().contains("being cancelled"), "{}", answer.payload);
    lives(&mut world, &systemd).await;
    medium.release();
    assert_eq!(world.outcome(ID).await["result"], "cancelled");
    world.finish_disturbed().await;
}

/// The write of the boot environment waits for its file, and the call is answered all the same.
#[tokio::test]
async fn an_effect_that_cannot_let_go_is_cancelled_when_it_does() {
    let mut walk = Walk::new(true, false, "").await;
    walk.enter(Stop::Opening).await;
    walk.enter(Stop::Preparing).await;
    let since = Instant::now();
    let answer = walk.ask("firmwareCancel", json!({"operationId": ID})).await;
    assert!(since.elapsed() < Duration::from_secs(30), "longer than Azure waits for an answer");
    assert!(answer.payload["Response"].as_str().unwrap().contains("being cancelled"), "{}", answer.payload);
    let again = walk.ask("firmwareCancel", json!({"operationId": ID})).await;
    assert_eq!(again.status, 200, "{}", again.payload);
    walk.unlock();
    let last = walk.world.outcome(ID).await;
    assert_eq!(last["result"], "cancelled", "{last}");
    walk.world.finish_disturbed().await;
}
