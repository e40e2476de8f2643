//! A simulated gateway: the real agent on two file-backed slots, started by the simulated firmware, without root.
//!
//! Everything that a real gateway has is a file in one folder: the slots, the boot environment, the state that
//! outlives both slots, and what the booted system sees as `/proc`, `/sys`, `/run` and `/etc`. The agent's program
//! is run as it is; only its settings point here. It asks for a reboot by a line in a FIFO, so that whoever drives
//! the gateway waits for the reboot and not for a time.
//!
//! What it cannot show: a page cache lost with the power. A killed process loses nothing that it wrote; the
//! machine in tests/vm loses it.

mod factory;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

pub use self::factory::{Bootloader, COMPATIBLE, Cloud, Parts};
use self::factory::{factory_environment, make_fifo, set_clock, settings};
use crate::firmware::{self, Cut, Machine, Outcome, Slot};
use crate::{Hub, image};

/// How long the agent may take to stop when the system shuts down.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// What the agent must not see of the environment in which the tests run.
const HIDDEN: [&str; 7] = [
    "JOURNAL_STREAM",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// A gateway, switched on or off. Dropping it kills the agent.
#[derive(Debug)]
pub struct Gateway {
    dir: PathBuf,
    agent: PathBuf,
    machine: Machine,
    device: Option<String>,
    reboots: pipe::Receiver,
    process: Option<Child>,
    booted: Option<Outcome>,
    power_ons: u32,
    /// Variables of the agent's environment.
    environment: Vec<(String, String)>,
}

impl Gateway {
    /// Makes the files of a gateway as it leaves the factory: slot A runs, slot B was never written.
    pub fn new(parts: Parts) -> Result<Gateway> {
        let Parts { dir, image, slot_size, .. } = &parts;
        for folder in ["fwupdate.d", "state/conf.d", "checks/required.d", "checks/wanted.d", "run", "sys"] {
            fs::create_dir_all(dir.join(folder)).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let dir = fs::canonicalize(dir)?;
        let slots = [dir.join("slot-a"), dir.join("slot-b")];
        fs::copy(image, dir.join("slot-a")).with_context(|| format!("cannot read {}", image.display()))?;
        for slot in &slots {
            OpenOptions::new().write(true).create(true).truncate(false).open(slot)?.set_len(*slot_size)?;
        }
        let environment = factory_environment(&dir, parts.bootloader)?;
        let reboots = make_fifo(&dir.join("power"))?;
        fs::write(dir.join("fwupdate.toml"), settings(&dir, &parts))?;
        set_clock(&dir, 0, true)?;
        fs::write(dir.join("fwupdate.d/50-test.toml"), &parts.settings)?;
        if let Some(text) = parts.cloud.as_ref().and_then(|cloud| cloud.connection_string.as_ref()) {
            crate::disk::replace(&dir.join("state/connection"), text.as_bytes(), true)?;
        }
        let machine = Machine { environment, slots, proc: dir.join("proc"), sys: dir.join("sys"), cut: None };
        let (agent, device) = (parts.agent, parts.cloud.map(|cloud| cloud.device));
        let (process, booted, power_ons) = (None, None, 0);
        let environment = Vec::new();
        Ok(Gateway { agent, dir, machine, device, reboots, process, booted, power_ons, environment })
    }

    /// Adds settings as a drop-in, or replaces it; the agent reads it when it starts.
    pub fn configure(&self, name: &str, settings: &str) -> Result<()> {
        let path = self.dir.join("fwupdate.d").join(format!("{name}.toml"));
        crate::disk::replace(&path, settings.as_bytes(), true)
    }

    /// Sets the gateway's clock: so many seconds off, and whether a time service keeps it right. Counts at once.
    pub fn set_clock(&self, offset: i64, synchronised: bool) -> Result<()> {
        set_clock(&self.dir, offset, synchronised)
    }

    /// Sets a variable for agents that are started from now on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Puts the slots on block devices, such as loop devices over the slots' files. The agent then sees the kernel's
    /// own `/sys`.
    pub fn use_devices(&mut self, devices: [PathBuf; 2]) -> Result<()> {
        let [a, b] = devices.each_ref().map(|device| format!("{:?}", device.display().to_string()));
        let text = format!("[slots]\na.device = {a}\nb.device = {b}\n\n[system]\nsys = \"/sys\"\n");
        fs::write(self.dir.join("fwupdate.d/40-devices.toml"), text)?;
        self.machine.slots = devices;
        self.machine.sys = PathBuf::from("/sys");
        Ok(())
    }

    /// Switches the gateway on: the firmware chooses a slot and the agent is started.
    pub fn power_on(&mut self) -> Result<Outcome> {
        let outcome = self.firmware(None)?;
        if matches!(outcome, Outcome::Booted { .. }) {
            self.start_agent()?;
        }
        Ok(outcome)
    }

    /// The power fails during a boot, before the kernel or its user space come up: an attempt is used up.
    pub async fn power_fails_at_boot(&mut self, cut: Cut) -> Result<Outcome> {
        self.kill().await?;
        self.firmware(Some(cut))
    }

    /// Switches the gateway on without starting its agent.
    pub fn boot_alone(&mut self) -> Result<Outcome> {
        self.firmware(None)
    }

    /// Runs the firmware alone: no agent is started.
    fn firmware(&mut self, cut: Option<Cut>) -> Result<Outcome> {
        if self.process.is_some() {
            bail!("the gateway is on already");
        }
        // Of `/run`, which is new at each boot, this alone outlives an agent.
        match fs::remove_file(self.dir.join("run/proven")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        // What the last boot asked for is over.
        while self.reboots.try_read(&mut [0; 16]).is_ok() {}
        let machine = Machine { cut, ..self.machine.clone() };
        let outcome = firmware::boot(&machine)?;
        self.power_ons += 1;
        self.booted = Some(outcome);
        if let Outcome::Booted { slot, .. } = outcome {
            image::extract_etc(self.slot(slot), &self.root())?;
        }
        Ok(outcome)
    }

    /// Starts the agent in the system that is booted.
    pub fn start_agent(&mut self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(&self.agent);
        command.arg("--config").arg(self.settings_file());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        for variable in HIDDEN {
            command.env_remove(variable);
        }
        command.envs(self.environment.iter().cloned());
        let child = command.spawn().with_context(|| format!("cannot start {}", self.agent.display()))?;
        self.process = Some(child);
        Ok(())
    }

    /// The settings of the image that is booted, if it brings `/etc/fwupdate.toml` along; else the gateway's own.
    pub fn settings_file(&self) -> PathBuf {
        let own = self.root().join("etc/fwupdate.toml");
        if own.exists() { own } else { self.dir.join("fwupdate.toml") }
    }

    /// SIGKILL to the agent; returns once it is gone. The system stays booted.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.process.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// The agent is killed and started again in the same boot, as systemd would.
    pub async fn restart_agent(&mut self) -> Result<()> {
        self.kill().await?;
        self.start_agent()
    }

    /// The power fails and comes back.
    pub async fn power_cycle(&mut self) -> Result<Outcome> {
        self.kill().await?;
        self.power_on()
    }

    /// An orderly reboot: SIGTERM, then the firmware.
    pub async fn reboot(&mut self) -> Result<Outcome> {
        self.stop_agent().await?;
        self.power_on()
    }

    /// SIGTERM, and waits until the agent is gone; an error if it does not end well.
    pub async fn shut_down(&mut self) -> Result<()> {
        match self.terminate().await? {
            Some(status) if !status.success() => {
                bail!("the agent ended with {status}; see {}", self.log_path().display())
            }
            _ => Ok(()),
        }
    }

    /// The same, also for an agent that may just have been started: one that does not listen to signals yet dies of
    /// it, which systemd, too, takes for a good end.
    pub async fn stop_agent(&mut self) -> Result<()> {
        match self.terminate().await? {
            Some(status) if !status.success() && status.signal() != Some(Signal::SIGTERM as i32) => {
                bail!("the agent ended with {status}; see {}", self.log_path().display())
            }
            _ => Ok(()),
        }
    }

    /// How the agent ended on SIGTERM; `None` if there was none.
    async fn terminate(&mut self) -> Result<Option<ExitStatus>> {
        let Some(mut child) = self.process.take() else { return Ok(None) };
        if let Some(pid) = child.id() {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
        }
        let ended = timeout(SHUTDOWN, child.wait()).await;
        Ok(Some(ended.context("the agent does not stop on SIGTERM")??))
    }

    /// The agent's process.
    pub fn agent_id(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }

    /// Waits until the agent asks for a reboot; the caller performs it. An error if the agent ends instead.
    pub async fn reboot_requested(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else { bail!("the gateway is off") };
        let mut byte = [0];
        tokio::select! {
            read = self.reboots.read_exact(&mut byte) => read.map(drop).context("the power FIFO is gone"),
            status = process.wait() => bail!("the agent ended by itself with {}", status?),
        }
    }

    /// Lets the gateway live, reboots included, until its reported properties are as `wanted` says; returns them.
    /// `wanted` is asked at each change and may tell of it.
    pub async fn run_until(
        &mut self,
        hub: &Hub,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let Some(device) = self.device.clone() else { bail!("the gateway has no hub") };
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::select! {
                reported = hub.wait_reported(&device, left, &wanted) => match reported {
                    Some(reported) => return Ok(reported),
                    None => bail!("{device} did not get there in {limit:?}: {}\n{}", self.shown(hub), self.log()),
                },
                asked = self.reboot_requested() => {
                    asked.with_context(|| self.log())?;
                    self.reboot().await?;
                }
            }
        }
    }

    /// Waits until the agent asks for a reboot, at most `limit`.
    pub async fn wait_reboot_requested(&mut self, limit: Duration) -> Result<()> {
        let asked = timeout_at(Instant::now() + limit, self.reboot_requested()).await;
        asked.with_context(|| format!("no reboot was asked for in {limit:?}\n{}", self.log()))?
    }

    fn shown(&self, hub: &Hub) -> String {
        let twin = self.device.as_ref().and_then(|device| hub.twin(device).ok());
        let reported = twin.as_ref().and_then(|twin| twin.pointer("/properties/reported"));
        let mut reported = reported.cloned().unwrap_or_default();
        if let Some(fields) = reported.as_object_mut() {
            fields.remove("$metadata");
        }
        reported.to_string()
    }

    /// The last lines of the agent's log.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n")
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What can be seen of the booted root file system: its `/etc`.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub fn slot(&self, slot: Slot) -> &Path {
        let [a, b] = &self.machine.slots;
        match slot {
            Slot::A => a,
            Slot::B => b,
        }
    }

    /// The control socket, for `fwupdatectl --socket`.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/control.sock")
    }

    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// How the last power-on ended.
    pub fn booted(&self) -> Option<Outcome> {
        self.booted
    }

    /// How often the firmware ran.
    pub fn power_ons(&self) -> u32 {
        self.power_ons
    }

    /// The parts that the firmware works with, to look at or to break.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// A variable of the boot environment as it is on disk; empty when it is not set, an error when all is lost.
    pub fn boot_variable(&self, name: &str) -> Result<String> {
        firmware::variable(&self.machine.environment, name)?.context("the boot environment is lost")
    }

    /// Puts an executable health check in place.
    pub fn add_check(&self, name: &str, script: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.join("checks/required.d").join(name);
        fs::write(&path, script)?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
    }
}
