//! What systemd says of its units, by `systemctl`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Command;

use super::command::{self, Finished};
use super::{HealthError, PATH, excerpt};

/// systemctl waits 25 s for the bus by itself.
const LIMIT: Duration = Duration::from_secs(40);
/// More than the list of all units of any machine.
const OUTPUT_LIMIT: usize = 1 << 20;

/// How systemd is asked; other values than the default serve tests.
#[derive(Debug, Clone)]
pub struct Systemd {
    pub systemctl: PathBuf,
    /// Starts each check in a unit of its own, outside the agent's sandbox. `None`: the agent is no service
    /// itself, and its checks are its children.
    pub systemd_run: Option<PathBuf>,
    /// Exists on a machine that systemd booted: sd_booted(3).
    pub booted: PathBuf,
}

impl Default for Systemd {
    fn default() -> Systemd {
        // Set for a service of Type=notify.
        let service = std::env::var_os("NOTIFY_SOCKET").is_some();
        Systemd {
            systemctl: "systemctl".into(),
            systemd_run: service.then(|| "systemd-run".into()),
            booted: "/run/systemd/system".into(),
        }
    }
}

impl Systemd {
    /// The units that have failed.
    pub async fn failed_units(&self) -> Result<BTreeSet<String>, HealthError> {
        let args =
            ["list-units", "--state=failed", "--all", "--plain", "--no-legend", "--full", "--no-pager"];
        let finished = self.ask(&args, &[]).await?;
        if !finished.status.is_some_and(|s| s.success()) {
            return Err(self.failed(excerpt(&finished.output)));
        }
        let text = String::from_utf8_lossy(&finished.output);
        Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// The unit's state when it is not `active`, such as `failed`, `activating` or `inactive`.
    pub async fn not_active(&self, unit: &str) -> Result<Option<String>, HealthError> {
        let finished = self.ask(&["is-active"], &[unit]).await?;
        let state = excerpt(&finished.output).trim().to_owned();
        match finished.status {
            Some(status) if status.success() => Ok(None),
            Some(_) if !state.is_empty() => Ok(Some(state)),
            _ => Err(self.failed(format!("is-active {unit} gave no answer"))),
        }
    }

    /// Starts a unit, and waits until it was started or could not be.
    pub async fn start(&self, unit: &str) -> Result<(), HealthError> {
        self.ask(&["start"], &[unit]).await.map(drop)
    }

    /// What `systemctl status` tells of a unit, for the evidence; empty when it tells nothing.
    pub async fn status(&self, unit: &str) -> String {
        let args = ["status", "--no-pager", "--full", "--lines=10"];
        self.ask(&args, &[unit]).await.map(|finished| excerpt(&finished.output)).unwrap_or_default()
    }

    async fn ask(&self, args: &[&str], units: &[&str]) -> Result<Finished, HealthError> {
        if !self.booted.exists() {
            return Err(HealthError::NoSystemd);
        }
        let mut command = Command::new(&self.systemctl);
        command.args(args).arg("--").args(units).env("LC_ALL", "C").env("SYSTEMD_COLORS", "0");
        if std::env::var_os("PATH").is_none() {
            command.env("PATH", PATH);
        }
        command::run(command, LIMIT, OUTPUT_LIMIT).await.map_err(|e| self.failed(e.to_string()))
    }

    fn failed(&self, detail: String) -> HealthError {
        HealthError::Systemctl { command: self.systemctl.clone(), detail }
    }
}
