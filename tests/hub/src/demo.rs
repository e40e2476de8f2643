//! `fwupdate-hub demo`: four updates of one simulated gateway, told while they happen. An error is the verdict.
//!
//! Nothing is staged for show: the hub, the agent, the keys, the bundles and the ext4 images are real, and so is
//! the SIGKILL. Only the machine is simulated (see `gateway`).

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is absent")]

use std::cell::RefCell;
use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::firmware::{Outcome, Slot};
use crate::gateway::{Bootloader, COMPATIBLE, Cloud, Gateway, Parts};
use crate::methods::Call;
use crate::{Hub, Options, image};

const DEVICE: &str = "demo-gateway";
const LIMIT: Duration = Duration::from_secs(60);
const IMAGE: u64 = 32 << 20;
/// Slow enough that a person, and the story of the cut, can follow it.
const SETTINGS: &str = "[download]\nrate_limit = \"6MiB\"\n[health]\ndeadline = \"4s\"\n";
/// What is fetched again though some of it was in the slot: the frames that four threads were unpacking, each of
/// at most 1 MiB; and the index.
const UNFINISHED: u64 = 5 << 20;
/// The start of a slot, which is written last.
const GUARD: usize = 1 << 20;

/// Tells the four stories with the programs in `programs`, in a folder of its own.
pub async fn run(programs: &Path) -> Result<()> {
    let begun = Instant::now();
    let dir = std::env::temp_dir().join(format!("fwupdate-demo-{}", std::process::id()));
    let told = tell(programs, &dir).await;
    match told {
        Ok(()) => {
            fs::remove_dir_all(&dir)?;
            say(&format!("\nAll four updates ended as they must, in {} s.", begun.elapsed().as_secs()));
            Ok(())
        }
        Err(error) => Err(error.context(format!("the demo failed; its files are left in {}", dir.display()))),
    }
}

async fn tell(programs: &Path, dir: &Path) -> Result<()> {
    title("Before: a hub, a gateway with two slots, and keys");
    let mut demo = Demo::new(programs, dir).await?;
    demo.good_update().await?;
    demo.failing_health().await?;
    demo.tampered_bundle().await?;
    demo.cut_while_staging().await?;
    demo.gateway.shut_down().await?;
    demo.hub.stop().await;
    Ok(())
}

struct Demo {
    hub: Hub,
    gateway: Gateway,
    tools: Tools,
    /// The image of the last story.
    newest: PathBuf,
}

impl Demo {
    async fn new(programs: &Path, dir: &Path) -> Result<Demo> {
        let tools = Tools { dir: dir.to_owned(), bundle: program(programs, "fwupdate-bundle")? };
        fs::create_dir_all(tools.www())?;
        let options = Options { www: Some(tools.www()), ..Options::ephemeral(dir.join("hub")) };
        let hub = Hub::start(options).await?;
        say(&format!(
            "hub          https://{}, MQTT over TLS on port {}",
            hub.https_addr(),
            hub.mqtt_addr().port()
        ));
        tools.keygen()?;
        say("keys         an Ed25519 release key; the gateway trusts its public half");
        let factory = tools.image("1.0.0", "good", 1 << 20)?;
        let mut gateway = Gateway::new(Parts {
            dir: dir.join("gateway"),
            agent: program(programs, "fwupdated")?,
            image: factory,
            slot_size: IMAGE,
            bootloader: Bootloader::Uboot,
            keys: dir.join("trusted"),
            cloud: Some(Cloud::register(&hub, DEVICE)?),
            settings: SETTINGS.to_owned(),
        })?;
        gateway.add_check("50-application", &health_check(&gateway.root()))?;
        say("gateway      slot A: 1.0.0 (ext4), slot B: empty; U-Boot environment: primary=A");
        say("health check the application of the booted image must find its database");
        let outcome = gateway.power_on()?;
        ensure!(outcome == booted(Slot::A), "the gateway did not boot: {outcome:?}");
        gateway.run_until(&hub, LIMIT, |twin| twin["firmwareStatus"] == "standBy").await?;
        say("twin         standBy");
        Ok(Demo { hub, gateway, tools, newest: PathBuf::new() })
    }

    async fn good_update(&mut self) -> Result<()> {
        title("1. A good update");
        let image = self.tools.release("2.0.0", "good", 16 << 20)?;
        let last = self.update("2.0.0", "2.0.0.fwb").await?;
        ensure!(last["result"] == "committed", "it ended as {last}");
        self.expect_slot(Slot::B, "2.0.0")?;
        let same = fs::read(self.gateway.slot(Slot::B))? == fs::read(image)?;
        ensure!(same, "slot B does not hold the image");
        say("slot B runs, is the primary, and holds the image byte for byte; slot A stays as the way back");
        Ok(())
    }

    async fn failing_health(&mut self) -> Result<()> {
        title("2. A bad update: its application does not work");
        self.tools.release("3.0.0", "database missing", 4 << 20)?;
        let last = self.update("3.0.0", "3.0.0.fwb").await?;
        ensure!(last["result"] == "rolledBack", "it ended as {last}");
        ensure!(last["error"]["code"] == "HealthCheckFailed", "it failed as {last}");
        let evidence = &last["error"]["evidence"];
        ensure!(evidence["check"] == "required.d/50-application", "the evidence is {evidence}");
        say(&format!("evidence     {} said {}", text(&evidence["check"]), evidence["excerpt"]));
        self.expect_slot(Slot::B, "2.0.0")?;
        say("slot B with 2.0.0 runs again; 3.0.0 is quarantined");
        Ok(())
    }

    async fn tampered_bundle(&mut self) -> Result<()> {
        title("3. A tampered bundle");
        self.newest = self.tools.release("4.0.0", "good", 24 << 20)?;
        let mut bytes = fs::read(self.tools.www().join("4.0.0.fwb"))?;
        let place = find(&bytes, b"4.0.0").context("the manifest names no version")?;
        if let Some(part) = bytes.get_mut(place..place + 5) {
            part.copy_from_slice(b"4.0.1");
        }
        fs::write(self.tools.www().join("tampered.fwb"), bytes)?;
        say("someone changed the version in the signed manifest to 4.0.1");
        let before = digest(self.gateway.slot(Slot::A))?;
        let last = self.update("4.0.1", "tampered.fwb").await?;
        ensure!(last["error"]["code"] == "UntrustedSignature", "it ended as {last}");
        let after = digest(self.gateway.slot(Slot::A))?;
        ensure!(before == after, "slot A was written");
        say(&format!("slot A       SHA-256 {before:.16} before, {after:.16} after: not a byte was written"));
        Ok(())
    }

    async fn cut_while_staging(&mut self) -> Result<()> {
        title("4. The agent is killed in the middle of an update");
        let id = self.call("4.0.0", "4.0.0.fwb").await?;
        let screen = Screen::default();
        let half =
            |twin: &Value| screen.show(twin) >= 50 && twin["fwupdate"]["operation"]["phase"] == "staging";
        let twin = self.gateway.run_until(&self.hub, LIMIT, half).await?;
        self.gateway.kill().await?;
        screen.end_line();
        let had = in_place(&fs::read(&self.newest)?, &fs::read(self.gateway.slot(Slot::A))?);
        let percent = &twin["fwupdate"]["operation"]["percent"];
        say(&format!("SIGKILL      at {percent} %: slot A holds {} MiB of the new image", mebi(had)));
        self.hub.faults().reset_counts();
        self.gateway.start_agent()?;
        say("started again");
        let last = self.follow(&id).await?;
        ensure!(last["result"] == "committed", "it ended as {last}");
        let size = fs::metadata(self.tools.www().join("4.0.0.fwb"))?.len();
        let asked: u64 = self.hub.faults().log().iter().map(|request| request.length).sum();
        say(&format!(
            "of the bundle's {} MiB it asked the server for {} MiB more: what it had was not fetched again",
            mebi(size),
            mebi(asked)
        ));
        ensure!(asked <= size.saturating_sub(had) + UNFINISHED, "it fetched {asked} bytes after the cut");
        self.expect_slot(Slot::A, "4.0.0")
    }

    /// Calls the method and follows the update to its end.
    async fn update(&mut self, version: &str, name: &str) -> Result<Value> {
        let id = self.call(version, name).await?;
        self.follow(&id).await
    }

    async fn call(&self, version: &str, name: &str) -> Result<String> {
        let payload = json!({"fwPackageUri": self.hub.files_url(name), "version": version});
        say(&format!("method       firmwareUpdate {payload}"));
        let answer = self.hub.invoke(DEVICE, Call::new("firmwareUpdate", Some(payload))).await?;
        say(&format!("answer       {} {}", answer.status, answer.payload));
        ensure!(answer.status == 200, "the method was refused");
        Ok(answer.payload["operationId"].as_str().context("the answer names no operation")?.to_owned())
    }

    /// Lives through the update, telling what the twin shows; returns `fwupdate.last`.
    async fn follow(&mut self, id: &str) -> Result<Value> {
        let screen = Screen::default();
        let ended = |twin: &Value| {
            screen.show(twin);
            twin["fwupdate"]["last"]["id"] == id
        };
        let twin = self.gateway.run_until(&self.hub, LIMIT, ended).await?;
        screen.end_line();
        let last = twin["fwupdate"]["last"].clone();
        if let Some(message) = last["error"]["message"].as_str() {
            say(&format!(
                "{:<12} {}: {message}",
                twin["firmwareStatus"].as_str().unwrap_or(""),
                text(&last["error"]["code"])
            ));
        }
        Ok(last)
    }

    /// The firmware booted this slot in the ordinary way, and the image in it is this version.
    fn expect_slot(&self, slot: Slot, version: &str) -> Result<()> {
        let release = fs::read_to_string(self.gateway.root().join("etc/os-release"))?;
        ensure!(release.contains(&format!("IMAGE_VERSION={version}\n")), "the booted image says {release}");
        let primary = self.gateway.boot_variable("fwupdate_primary")?;
        ensure!(primary == format!("{slot:?}"), "the primary is {primary}");
        ensure!(self.gateway.boot_variable("fwupdate_trial")?.is_empty(), "a trial was left behind");
        Ok(())
    }
}

/// The host's side: images, keys and bundles.
struct Tools {
    dir: PathBuf,
    bundle: PathBuf,
}

impl Tools {
    fn www(&self) -> PathBuf {
        self.dir.join("www")
    }

    fn keygen(&self) -> Result<()> {
        self.run(&["keygen", "--out", "keys"])?;
        fs::create_dir_all(self.dir.join("trusted"))?;
        fs::copy(self.dir.join("keys/release.pub.pem"), self.dir.join("trusted/release.pem"))?;
        Ok(())
    }

    /// A real ext4 image with an os-release, an application and its data.
    fn image(&self, version: &str, health: &str, data: usize) -> Result<PathBuf> {
        let (root, image) = (self.dir.join("root"), self.dir.join(format!("{version}.img")));
        fs::create_dir_all(root.join("etc"))?;
        fs::create_dir_all(root.join("usr/lib/app"))?;
        fs::write(
            root.join("etc/os-release"),
            format!("ID=demo\nNAME=\"Demo OS\"\nIMAGE_VERSION={version}\n"),
        )?;
        fs::write(root.join("etc/app.conf"), format!("{health}\n"))?;
        let mut noise = vec![0; data];
        fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
        fs::write(root.join("usr/lib/app/data"), noise)?;
        image::make(&image, IMAGE, &root)?;
        Ok(image)
    }

    /// An image and its signed bundle on the server.
    fn release(&self, version: &str, health: &str, data: usize) -> Result<PathBuf> {
        let image = self.image(version, health, data)?;
        let (name, output) = (format!("{version}.img"), format!("www/{version}.fwb"));
        let key = "keys/release.key.pem";
        let what = ["create", "--image", &name, "--compatible", COMPATIBLE, "--version", version];
        let what = [&what[..], &["--security-version", "1"]].concat();
        self.run(&[&what[..], &["--key", key, "--level", "1", "-o", &output]].concat())?;
        let size = fs::metadata(self.dir.join(output))?.len();
        say(&format!(
            "release      {version}: an ext4 image of {} MiB, signed, a bundle of {} MiB",
            mebi(IMAGE),
            mebi(size)
        ));
        Ok(image)
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.bundle);
        let output = command.args(args).current_dir(&self.dir).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("fwupdate-bundle {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// Shows what the twin says: a line a stage, and a bar that moves where there is a terminal.
#[derive(Default)]
struct Screen(RefCell<Shown>);

#[derive(Default)]
struct Shown {
    stage: String,
    percent: u64,
    bar: bool,
}

impl Screen {
    /// Returns the percent.
    fn show(&self, twin: &Value) -> u64 {
        let mut shown = self.0.borrow_mut();
        let (status, operation) = (text(&twin["firmwareStatus"]), &twin["fwupdate"]["operation"]);
        let percent = operation["percent"].as_u64().unwrap_or(0);
        let stage = format!("{status:<12} {}", text(&operation["phase"]));
        if operation.is_null() && shown.stage.is_empty() {
            // Still the outcome of the update before.
            return 0;
        }
        if stage != shown.stage {
            shown.end_line();
            let slot = text(&twin["fwupdate"]["agent"]["bootedSlot"]);
            say(&format!("twin         {stage:<24} (running: slot {slot})"));
            shown.stage = stage;
        }
        if operation["phase"] == "staging" && percent != shown.percent {
            shown.percent = percent;
            shown.draw();
        }
        percent
    }

    fn end_line(&self) {
        self.0.borrow_mut().end_line();
    }
}

impl Shown {
    fn draw(&mut self) {
        let full = usize::try_from(self.percent.min(100) / 4).unwrap_or(0);
        let bar =
            format!("             [{}{}] {:>3} %", "#".repeat(full), ".".repeat(25 - full), self.percent);
        if std::io::stdout().is_terminal() {
            write(&format!("\r{bar}"));
            self.bar = true;
        } else {
            say(&bar);
        }
    }

    fn end_line(&mut self) {
        if std::mem::take(&mut self.bar) {
            say("");
        }
    }
}

/// The check that the gateway runs in a new image, as root would run it from `/etc/fwupdate/checks`.
fn health_check(root: &Path) -> String {
    let conf = root.join("etc/app.conf");
    format!(
        "#!/bin/sh\nstate=$(cat '{}')\n[ \"$state\" = good ] || {{ echo \"application: $state\"; exit 1; }}\n",
        conf.display()
    )
}

fn booted(slot: Slot) -> Outcome {
    Outcome::Booted { slot, trial: false, environment_lost: false }
}

fn program(programs: &Path, name: &str) -> Result<PathBuf> {
    let path = programs.join(name);
    ensure!(path.is_file(), "{} is missing: build it with `cargo build --bins`", path.display());
    Ok(path)
}

/// Bytes that the slot holds of the image, without zeros and without what is written last.
fn in_place(image: &[u8], slot: &[u8]) -> u64 {
    let blocks = image.chunks(4096).zip(slot.chunks(4096)).skip(GUARD / 4096);
    let same = blocks.filter(|(image, slot)| image == slot && image.iter().any(|byte| *byte != 0));
    same.map(|(image, _)| image.len() as u64).sum()
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn digest(path: &Path) -> Result<String> {
    let digest = ring::digest::digest(&ring::digest::SHA256, &fs::read(path)?);
    Ok(data_encoding::HEXLOWER.encode(digest.as_ref()))
}

fn mebi(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn title(text: &str) {
    say(&format!("\n== {text} =="));
}

fn say(line: &str) {
    write(&format!("{line}\n"));
}

/// A reader that went away is no reason to stop: the exit status still tells.
fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
