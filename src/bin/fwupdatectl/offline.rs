//! doctor while no agent runs: the daemon's own program asks the questions, so that this one stays small.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Where packages put it.
const DAEMON: &str = "/usr/sbin/fwupdated";

/// The findings of `fwupdated --doctor`; `None` when that cannot be run.
pub fn examine(config: Option<&Path>) -> Option<Value> {
    let mut command = Command::new(daemon());
    command.arg("--doctor").stdin(Stdio::null()).stderr(Stdio::inherit());
    if let Some(file) = config {
        command.arg("--config").arg(file);
    }
    let output = command.output().ok().filter(|output| output.status.success())?;
    serde_json::from_slice(&output.stdout).ok()
}

/// The one beside this program, else the installed one.
fn daemon() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|path| path.with_file_name("fwupdated"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| DAEMON.into())
}
