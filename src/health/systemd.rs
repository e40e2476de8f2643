//! What systemd says of its units, by `systemctl`: a child of the agent, or of root where the agent has a user of its
//! own. Root needs no D-Bus for it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Command;

use super::command;
use super::{BOOT_COMPLETE, HealthError, PATH, excerpt};
use crate::root::{self, Finished, Verb};

/// systemctl waits 25 s for the bus by itself.
const LIMIT: Duration = Duration::from_secs(40);
/// More than the list of all units of any machine.
const OUTPUT_LIMIT: usize = 1 << 20;

/// How systemd is asked; other values than the default serve tests.
#[derive(Debug, Clone)]
pub struct Systemd {
    pub systemctl: PathBuf,
    /// Where root is asked to start checks and `systemctl`. `None`: the agent is no service with a user of its own,
    /// and these are its children.
    pub root: Option<PathBuf>,
    /// Exists on a machine that systemd booted: sd_booted(3).
    pub booted: PathBuf,
}

impl Default for Systemd {
    fn default() -> Systemd {
        Systemd { systemctl: "systemctl".into(), root: root::socket(), booted: "/run/systemd/system".into() }
    }
}

impl Systemd {
    /// The units that have failed.
    pub async fn failed_units(&self) -> Result<BTreeSet<String>, HealthError> {
        let finished = self.ask(Verb::FailedUnits).await?;
        if !finished.status.is_some_and(|s| s.success()) {
            return Err(self.failed(excerpt(&finished.output)));
        }
        let text = String::from_utf8_lossy(&finished.output);
        Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// The unit's state when it is not `active`, such as `failed`, `activating` or `inactive`.
    pub async fn not_active(&self, unit: &str) -> Result<Option<String>, HealthError> {
        let finished = self.ask(Verb::UnitState(unit.to_owned())).await?;
        let state = excerpt(&finished.output).trim().to_owned();
        match finished.status {
            Some(status) if status.success() => Ok(None),
            Some(_) if !state.is_empty() => Ok(Some(state)),
            _ => Err(self.failed(format!("is-active {unit} gave no answer"))),
        }
    }

    /// Starts `boot-complete.target`, and waits until it was started or could not be.
    pub async fn boot_complete(&self) -> Result<(), HealthError> {
        self.ask(Verb::BootComplete).await.map(drop)
    }

    /// What `systemctl status` tells of a unit, for the evidence; empty when it tells nothing.
    pub async fn status(&self, unit: &str) -> String {
        let told = self.ask(Verb::UnitStatus(unit.to_owned())).await;
        told.map(|finished| excerpt(&finished.output)).unwrap_or_default()
    }

    /// Whether the unit has failed.
    pub async fn has_failed(&self, unit: &str) -> bool {
        self.failed_units().await.is_ok_and(|units| units.contains(unit))
    }

    /// By root, or by a child of this process.
    pub async fn ask(&self, verb: Verb) -> Result<Finished, HealthError> {
        if !self.booted.exists() {
            return Err(HealthError::NoSystemd);
        }
        if let Some(socket) = &self.root {
            return Ok(root::ask(socket, &verb, LIMIT).await?);
        }
        let mut command = Command::new(&self.systemctl);
        command.args(arguments(&verb)).env("LC_ALL", "C").env("SYSTEMD_COLORS", "0");
        if std::env::var_os("PATH").is_none() {
            command.env("PATH", PATH);
        }
        command::run(command, LIMIT, OUTPUT_LIMIT).await.map_err(|e| self.failed(e.to_string()))
    }

    fn failed(&self, detail: String) -> HealthError {
        HealthError::Systemctl { command: self.systemctl.clone(), detail }
    }
}

/// What `systemctl` is asked for.
fn arguments(verb: &Verb) -> Vec<&str> {
    match verb {
        Verb::UnitState(unit) => vec!["is-active", "--", unit],
        Verb::UnitStatus(unit) => vec!["status", "--no-pager", "--full", "--lines=10", "--", unit],
        Verb::BootComplete => vec!["start", "--", BOOT_COMPLETE],
        _ => vec!["list-units", "--state=failed", "--all", "--plain", "--no-legend", "--full", "--no-pager"],
    }
}
