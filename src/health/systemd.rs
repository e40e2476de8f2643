//! What systemd says of its units, by `systemctl`: a child of the agent, or of root where the agent has a user of its
//! own. Root needs no D-Bus for it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Command;

use super::command::{self, PATH};
use super::failed::{HealthError, excerpt};
use crate::root::{self, Finished, Verb};

/// Units ordered before it that it requires are checks.
pub const BOOT_COMPLETE: &str = "boot-complete.target";

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

/// Whether a unit is made for a user or by one: what becomes of it says nothing about the image. A user can let each
/// of these fail at will: the own service manager, what belongs to a login, and transient units.
fn is_a_users(unit: &str) -> bool {
    let of_user = ["user@", "user-runtime-dir@"].iter().any(|prefix| unit.starts_with(prefix));
    let slice = unit.starts_with("user-") && unit.ends_with(".slice");
    of_user || slice || unit.ends_with(".scope") || is_transient(unit)
}

/// As systemd-run names what it is not told to name: `run-u12.service`, `run-r` and hexadecimal digits, `run-p44-i45`.
fn is_transient(unit: &str) -> bool {
    let number =
        unit.strip_prefix("run-").and_then(|rest| rest.strip_prefix(['u', 'r', 'p'])).unwrap_or_default();
    let name = number.split('.').next().unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'i'))
}

impl Default for Systemd {
    fn default() -> Systemd {
        Systemd { systemctl: "systemctl".into(), root: root::socket(), booted: "/run/systemd/system".into() }
    }
}

impl Systemd {
    /// The units that have failed by now: recorded before an update, so that old faults are not held against it.
    pub async fn failed_units(&self) -> Result<BTreeSet<String>, HealthError> {
        let finished = self.ask(Verb::FailedUnits).await?;
        if !finished.status.is_some_and(|s| s.success()) {
            return Err(self.failed(excerpt(&finished.output)));
        }
        let text = String::from_utf8_lossy(&finished.output);
        let units = text.lines().filter_map(|line| line.split_whitespace().next());
        Ok(units.filter(|unit| !is_a_users(unit)).map(str::to_owned).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_users_do_not_count() {
        for unit in [
            "user@1000.service",
            "user-runtime-dir@1000.service",
            "user-1000.slice",
            "session-3.scope",
            "run-u12.service",
            "run-r0123456789abcdef.service",
            "run-p44-i45.service",
            "run-u12.timer",
            "app.scope",
        ] {
            assert!(is_a_users(unit), "{unit}");
        }
        for unit in [
            "modem.service",
            "systemd-logind.service",
            "run-media.mount",
            "runner.service",
            "userdata.mount",
            "user-setup.service",
        ] {
            assert!(!is_a_users(unit), "{unit}");
        }
    }
}
