//! doctor while no agent runs: the daemon's own program asks the questions, so that this one stays small.

use std::path::Path;
use std::process::{Command, Stdio};

use fwupdate::programs;
use serde_json::Value;

/// Where packages put it.
const DAEMON: &str = "/usr/sbin/fwupdated";

/// The findings of `fwupdated --doctor`; `None` when that cannot be run.
pub fn examine(config: Option<&Path>) -> Option<Value> {
    let mut command = Command::new(programs::beside("fwupdated", DAEMON));
    command.arg("--doctor").stdin(Stdio::null()).stderr(Stdio::inherit());
    if let Some(file) = config {
        command.arg("--config").arg(file);
    }
    let output = command.output().ok().filter(|output| output.status.success())?;
    serde_json::from_slice(&output.stdout).ok()
}
