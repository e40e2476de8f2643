//! A user's world for one test: a hub over TLS, a simulated gateway with the real agent, and releases to install.
//!
//! ```ignore
//! let mut world = World::new().await;                    // 1.0.0 runs in slot A and is connected
//! let release = world.release("2.0.0");                  // an ext4 image, and its signed bundle on the server
//! let last = world.install(&release).await;              // calls firmwareUpdate, lives through the reboots
//! assert_eq!(last["result"], "committed");
//! world.finish().await;                                  // no report that the hub ever got was false
//! ```
//!
//! - `World::with(Setup { .. })` changes the gateway: boot loader, settings, slot size, whether it is switched on.
//! - `world.make(Spec { .. })` makes unusual releases: one that fails its health check, one that no bootloader can
//!   load, one of a given size, one made with other arguments of `fwupdate-bundle create`.
//! - `world.www()` is the folder behind `world.hub.files_url(name)`: put or damage files there.
//! - `world.call(method, payload)` is any direct method; `world.ctl(args)` runs `fwupdatectl`.
//! - `world.kill()`, `crash()`, `power_cut()` disturb; `world.gateway` is the machine itself: add_check, slot,
//!   boot_variable, log ...
//! - `world.hub.faults()` makes the server misbehave and counts what it served.
//! - Every wait is on a condition, with [`LIMIT`] as its overall limit. An update's health check is an executable
//!   that reads `/etc/health` of the booted image: `good` passes.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use fwupdate_hub::faults::MqttFaults;
use fwupdate_hub::firmware::{Outcome, Slot};
use fwupdate_hub::gateway::{Bootloader, COMPATIBLE, Cloud, Gateway, Parts};
use fwupdate_hub::history::{ReportedPatch, Witness};
use fwupdate_hub::methods::{Answer, Call};
use fwupdate_hub::{Hub, Options, image};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checker;
use crate::relay::Relay;

/// No wait takes longer, however busy the machine is.
pub const LIMIT: Duration = Duration::from_secs(120);
/// The gateway's name at the hub.
pub const DEVICE: &str = "gw";
/// Bytes of a slot, unless a test wants another size.
pub const SLOT: u64 = 4 << 20;

const AGENT: &str = env!("CARGO_BIN_EXE_fwupdated");
const CTL: &str = env!("CARGO_BIN_EXE_fwupdatectl");
const BUNDLE: &str = env!("CARGO_BIN_EXE_fwupdate-bundle");

/// What may differ in a gateway.
#[derive(Debug, Clone)]
pub struct Setup {
    pub bootloader: Bootloader,
    /// Another program than `fwupdated`.
    pub agent: Option<PathBuf>,
    /// Settings that override the gateway's own.
    pub settings: String,
    pub slot_size: u64,
    /// The hub's own address, where it has port 443 too: Microsoft's clients for Node dial no other.
    pub address: Option<IpAddr>,
    /// Switched on, and connected to the hub.
    pub on: bool,
    /// The way to the hub leads through [`World::relay`].
    pub relay: bool,
    /// Who the gateway is at the hub: `device` or `device/module`.
    pub device: &'static str,
    /// Known to the hub, and has a connection string. If not, the test says how it gets its place.
    pub registered: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        let (bootloader, settings) = (Bootloader::Uboot, String::new());
        let (device, registered, agent, address) = (DEVICE, true, None, None);
        Setup {
            bootloader,
            agent,
            settings,
            slot_size: SLOT,
            address,
            on: true,
            relay: false,
            device,
            registered,
        }
    }
}

/// A release to make.
#[derive(Debug, Clone)]
pub struct Spec<'a> {
    pub version: &'a str,
    /// What `/etc/health` says; the gateway's check passes on `good` alone.
    pub health: &'a str,
    /// Bytes of the image.
    pub size: u64,
    /// Bytes of noise in it, which differ from release to release: what an update has to download.
    pub noise: usize,
    /// Whether a bootloader can read it.
    pub bootable: bool,
    /// Files below its `/etc`, such as settings of its own.
    pub etc: &'a [(&'a str, &'a str)],
    /// Further arguments of `fwupdate-bundle create`.
    pub create: &'a [&'a str],
}

impl Default for Spec<'_> {
    fn default() -> Self {
        let (version, health, size, noise) = ("2.0.0", "good", 3 << 20, 512 << 10);
        Spec { version, health, size, noise, bootable: true, etc: &[], create: &[] }
    }
}

/// A release on the server.
#[derive(Debug, Clone)]
pub struct Release {
    pub version: String,
    pub image: PathBuf,
    /// The bundle's file, and its name below `/files/`.
    pub bundle: PathBuf,
    pub name: String,
    pub url: String,
}

pub struct World {
    pub hub: Hub,
    pub gateway: Gateway,
    device: &'static str,
    releases: Vec<Release>,
    /// The name under which the gateway knows the hub, which may move.
    pub relay: Option<Relay>,
    unchecked: Unchecked,
    dir: TempDir,
}

/// A test that ends without having its reports checked has proven nothing: it fails.
struct Unchecked(bool);

impl Drop for Unchecked {
    fn drop(&mut self) {
        assert!(!self.0 || std::thread::panicking(), "the test did not end with World::finish");
    }
}

impl World {
    pub async fn new() -> World {
        World::with(Setup::default()).await
    }

    pub async fn with(setup: Setup) -> World {
        let dir = tempfile::tempdir().unwrap();
        let www = dir.path().join("www");
        fs::create_dir_all(&www).unwrap();
        let mut options = Options { www: Some(www), ..Options::ephemeral(dir.path().join("hub")) };
        if let Some(address) = setup.address {
            (options.bind, options.https_port) = (address, 443);
        }
        let hub = Hub::start(options).await.unwrap();
        keygen(dir.path());
        let mut cloud = match (setup.registered, setup.device.split_once('/')) {
            (false, _) => Cloud::unregistered(&hub, setup.device),
            (true, None) => Cloud::register(&hub, setup.device).unwrap(),
            (true, Some((device, module))) => {
                hub.add_device(device).unwrap();
                let connection_string = Some(hub.add_module(device, module).unwrap());
                Cloud { connection_string, ..Cloud::unregistered(&hub, setup.device) }
            }
        };
        let factory = build_image(dir.path(), &Spec { version: "1.0.0", ..Spec::default() });
        let relay = if setup.relay { Some(Relay::to(hub.mqtt_addr()).await) } else { None };
        cloud.mqtt_port = relay.as_ref().map_or(cloud.mqtt_port, Relay::port);
        let gateway = Gateway::new(Parts {
            dir: dir.path().join("gateway"),
            agent: setup.agent.unwrap_or(AGENT.into()),
            image: factory,
            slot_size: setup.slot_size,
            bootloader: setup.bootloader,
            keys: dir.path().join("trusted"),
            cloud: Some(cloud),
            settings: setup.settings,
        });
        let gateway = gateway.unwrap();
        gateway.add_check("10-app", &health_check(&gateway.root())).unwrap();
        hub.watch_reports(setup.device, witness(&gateway));
        let (device, releases, unchecked) = (setup.device, Vec::new(), Unchecked(true));
        let mut world = World { hub, gateway, device, releases, relay, unchecked, dir };
        if setup.on {
            world.switch_on().await;
        }
        world
    }

    /// Switches the gateway on, and waits until it is connected and idle.
    pub async fn switch_on(&mut self) {
        self.gateway.power_on().unwrap();
        self.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    }

    /// The folder behind `/files/`.
    pub fn www(&self) -> PathBuf {
        self.dir.path().join("www")
    }

    /// A folder for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// A good release that the gateway accepts.
    pub fn release(&mut self, version: &str) -> Release {
        self.make(Spec { version, ..Spec::default() })
    }

    pub fn make(&mut self, spec: Spec<'_>) -> Release {
        let image = build_image(self.dir.path(), &spec);
        let release = self.pack(&image, spec.version, spec.create);
        self.releases.push(release.clone());
        release
    }

    /// Packs any image with `fwupdate-bundle`, signed by the key that the gateway trusts.
    pub fn pack(&self, image: &Path, version: &str, create: &[&str]) -> Release {
        let name = format!("{version}.fwb");
        let bundle = self.www().join(&name);
        let key = self.dir.path().join("keys/release.key.pem");
        let mut command = Command::new(BUNDLE);
        command.arg("create").arg("--image").arg(image).args(["--version", version, "--level", "1"]);
        if !create.contains(&"--compatible") {
            command.args(["--compatible", COMPATIBLE]);
        }
        if !create.contains(&"--security-version") {
            // That of the image from the factory.
            command.args(["--security-version", "0"]);
        }
        if !create.contains(&"--key") {
            command.arg("--key").arg(key);
        }
        run(command.args(create).arg("-o").arg(&bundle));
        let url = self.hub.files_url(&name);
        Release { version: version.to_owned(), image: image.to_owned(), bundle, name, url }
    }

    /// Invokes a direct method, which the gateway must answer.
    pub async fn call(&self, method: &str, payload: Value) -> Answer {
        let call = Call { connect_timeout: LIMIT, ..Call::new(method, Some(payload)) };
        self.hub
            .invoke(self.device, call)
            .await
            .unwrap_or_else(|error| panic!("{method}: {error}\n{}", self.gateway.log()))
    }

    /// Calls `firmwareUpdate`, which must be accepted; returns the operation's id.
    pub async fn update(&self, payload: Value) -> String {
        let answer = self.call("firmwareUpdate", payload).await;
        assert_eq!(answer.status, 200, "{}", answer.payload);
        answer.payload["operationId"].as_str().unwrap().to_owned()
    }

    /// Installs a release by direct method; returns the outcome as the twin tells it.
    pub async fn install(&mut self, release: &Release) -> Value {
        let id = self.update(json!({"fwPackageUri": release.url, "version": release.version})).await;
        self.outcome(&id).await
    }

    /// Lets the gateway live until this operation's outcome is in the twin: `fwupdate.last`.
    pub async fn outcome(&mut self, id: &str) -> Value {
        let reported = self.reported(|reported| reported["fwupdate"]["last"]["id"] == id).await;
        reported["fwupdate"]["last"].clone()
    }

    /// Lets the gateway live until this phase of an operation is in the twin.
    pub async fn phase(&mut self, phase: &str) -> Value {
        self.reported(|reported| reported["fwupdate"]["operation"]["phase"] == phase).await
    }

    /// Lets the gateway live, reboots included, until the reported properties are as wanted.
    pub async fn reported(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        match self.gateway.run_until(&self.hub, LIMIT, wanted).await {
            Ok(reported) => reported,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// The reported properties now.
    pub fn twin(&self) -> Value {
        self.hub.twin(self.device).unwrap()["properties"]["reported"].clone()
    }

    /// No session with the hub from now on, until the faults are cleared.
    pub fn cut_off(&self) {
        self.hub
            .faults()
            .mqtt(|faults| *faults = MqttFaults { drop_connects: u64::MAX, ..MqttFaults::default() });
        self.hub.drop_connections(None);
    }

    /// The same; returns once the agent has noticed.
    pub async fn offline(&mut self) {
        self.cut_off();
        let noticed = |doctor: &Value| {
            let findings = doctor["findings"].as_array().unwrap();
            findings.iter().any(|finding| finding["check"] == "hub" && finding["status"] == "warning")
        };
        self.until_shown(&["doctor"], noticed).await;
    }

    /// SIGKILL to the agent. Returns once the hub knows, too: the next call must not go to the dead connection, where
    /// it would time out as in Azure.
    pub async fn kill(&mut self) {
        self.gateway.kill().await.unwrap();
        assert!(self.hub.wait_connected(self.device, false, LIMIT).await);
    }

    /// The agent crashes, and is started again as by systemd.
    pub async fn crash(&mut self) {
        self.kill().await;
        self.gateway.start_agent().unwrap();
    }

    /// The power fails and comes back.
    pub async fn power_cut(&mut self) -> Outcome {
        self.kill().await;
        self.gateway.power_on().unwrap()
    }

    /// Runs `fwupdatectl` to its end, while the gateway lives on, reboots included.
    pub async fn ctl(&mut self, args: &[&str]) -> Output {
        let mut command = tokio::process::Command::new(CTL);
        command.args(args).arg("--socket").arg(self.gateway.socket());
        self.beside(command).await
    }

    /// Runs any program to its end, while the gateway lives on, reboots included.
    pub async fn beside(&mut self, mut command: tokio::process::Command) -> Output {
        let running = command.kill_on_drop(true).output();
        tokio::pin!(running);
        loop {
            tokio::select! {
                output = &mut running => return output.unwrap(),
                asked = self.gateway.reboot_requested() => {
                    asked.unwrap();
                    self.gateway.reboot().await.unwrap();
                }
            }
        }
    }

    /// What `fwupdatectl ... --json` prints.
    pub async fn ctl_json(&mut self, args: &[&str]) -> Value {
        let output = self.ctl(&[args, &["--json"]].concat()).await;
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{args:?}: {error}: {text}{}", String::from_utf8_lossy(&output.stderr))
        })
    }

    /// Asks `fwupdatectl` again and again until its JSON is as wanted.
    pub async fn until_shown(&mut self, args: &[&str], wanted: impl Fn(&Value) -> bool) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let shown = self.ctl_json(args).await;
            if wanted(&shown) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{args:?} still shows {shown}");
        }
    }

    /// Asks `fwupdatectl` until it is answered: the agent may still be starting.
    pub async fn until_shown_at_all(&mut self, args: &[&str]) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        while !self.ctl(args).await.status.success() {
            assert!(tokio::time::Instant::now() < deadline, "{args:?}\n{}", self.gateway.log());
        }
    }

    /// Waits until `fwupdatectl doctor` says something like `word` of the hub; the agent may still be starting.
    pub async fn doctor_says_of_the_hub(&mut self, word: &str) {
        self.doctor_says("hub", word).await;
    }

    /// The same of any check.
    pub async fn doctor_says(&mut self, check: &str, word: &str) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let output = self.ctl(&["doctor", "--json"]).await;
            let doctor: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let mut findings = doctor["findings"].as_array().into_iter().flatten();
            let said = findings.find(|finding| finding["check"] == check).map(|finding| &finding["message"]);
            if said.and_then(Value::as_str).is_some_and(|said| said.contains(word)) {
                return;
            }
            let late = tokio::time::Instant::now() > deadline;
            assert!(!late, "doctor does not say {word:?} but {said:?}\n{}", self.gateway.log());
        }
    }

    /// The slot that is booted.
    pub fn booted(&self) -> Slot {
        booted_slot(&self.gateway.machine().proc).unwrap()
    }

    /// Whether a slot holds exactly this release's image.
    pub fn holds(&self, slot: Slot, release: &Release) -> bool {
        let image = fs::read(&release.image).unwrap();
        fs::read(self.gateway.slot(slot)).unwrap().starts_with(&image)
    }

    /// Ends the test: every report ever made was true, and the gateway is what the last one says.
    pub async fn finish(self) {
        self.end(Some(checker::PATCHES)).await;
    }

    /// The same for a test that killed the agent or cut connections, which makes it repeat itself.
    pub async fn finish_disturbed(self) {
        self.end(None).await;
    }

    /// The same for a gateway whose clock was set back: its `logTime` went with it, and only that.
    pub async fn finish_with_a_clock_that_jumped(self) {
        self.end_with(None, |report| drop(report.patch.as_object_mut().map(|patch| patch.remove("logTime"))))
            .await;
    }

    /// For a test after which the hub has no twin of the gateway: what it was told until then is checked.
    pub async fn finish_without_twin(mut self) {
        self.unchecked.0 = false;
        checker::check(&self.hub.history(self.device), None);
        self.hub.stop().await;
    }

    async fn end(self, patches: Option<usize>) {
        self.end_with(patches, |_| {}).await;
    }

    async fn end_with(mut self, patches: Option<usize>, pardon: impl FnMut(&mut ReportedPatch)) {
        // An undisturbed agent ends well; one that was just started again may not listen to signals yet.
        match patches {
            Some(_) => self.gateway.shut_down().await.unwrap(),
            None => self.gateway.stop_agent().await.unwrap(),
        }
        self.unchecked.0 = false;
        let mut history = self.hub.history(self.device);
        history.iter_mut().for_each(pardon);
        checker::check(&history, patches);
        let reported = self.twin();
        let last = &reported["fwupdate"]["last"];
        let committed = |release: &&Release| release.version == last["toVersion"];
        if let Some(release) = self.releases.iter().find(committed).filter(|_| last["result"] == "committed")
        {
            assert!(self.holds(self.booted(), release), "the running slot is not {}", release.version);
        }
        self.hub.stop().await;
    }
}

/// What the reports are held against: the boot environment on disk and the slot that is booted.
fn witness(gateway: &Gateway) -> Witness {
    let machine = gateway.machine().clone();
    Witness::new(move || {
        let variable = |name| fwupdate_hub::firmware::variable(&machine.environment, name).ok().flatten();
        json!({
            "primary": variable("fwupdate_primary"),
            "trial": variable("fwupdate_trial"),
            "booted": booted_slot(&machine.proc).map(|slot| format!("{slot:?}")),
        })
    })
}

fn booted_slot(proc: &Path) -> Option<Slot> {
    let line = fs::read_to_string(proc.join("cmdline")).ok()?;
    match line.split_once("fwupdate.slot=")?.1.chars().next()? {
        'A' => Some(Slot::A),
        'B' => Some(Slot::B),
        _ => None,
    }
}

/// A check that looks at the image that is booted.
fn health_check(root: &Path) -> String {
    let file = root.join("etc/health");
    format!(
        "#!/bin/sh\nhealth=$(cat '{}')\necho \"the application says: $health\"\n[ \"$health\" = good ]\n",
        file.display()
    )
}

/// Makes the release key, and the folder of keys that the gateway trusts.
fn keygen(dir: &Path) {
    run(Command::new(BUNDLE).arg("keygen").arg("--out").arg(dir.join("keys")));
    fs::create_dir_all(dir.join("trusted")).unwrap();
    fs::copy(dir.join("keys/release.pub.pem"), dir.join("trusted/release.pem")).unwrap();
}

/// A root file system with an os-release, the application's health, and noise that no other release holds.
fn build_image(dir: &Path, spec: &Spec<'_>) -> PathBuf {
    let (folder, image) =
        (dir.join(format!("root-{}", spec.version)), dir.join(format!("{}.img", spec.version)));
    fs::create_dir_all(folder.join("etc")).unwrap();
    fs::create_dir_all(folder.join("usr/bin")).unwrap();
    fs::write(folder.join("etc/os-release"), format!("ID=sim\nIMAGE_VERSION={}\n", spec.version)).unwrap();
    fs::write(folder.join("etc/health"), format!("{}\n", spec.health)).unwrap();
    for (name, text) in spec.etc {
        let path = folder.join("etc").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::write(folder.join("usr/bin/app"), noise(spec.version, spec.noise)).unwrap();
    image::make(&image, spec.size, &folder).unwrap();
    if !spec.bootable {
        let mut bytes = fs::read(&image).unwrap();
        bytes[0x438..0x43a].fill(0);
        fs::write(&image, bytes).unwrap();
    }
    image
}

/// Bytes that do not compress; the same for the same name.
fn noise(name: &str, length: usize) -> Vec<u8> {
    let seed = name.bytes().fold(1, |seed: u64, byte| seed.wrapping_mul(257) + u64::from(byte));
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Runs a tool that must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
