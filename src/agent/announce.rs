//! One journal entry for each lifecycle event, with the fields and the message ids of docs/logging.md.

use crate::machine::{Last, Outcome, Phase, Record};

/// Message ids, in the catalogue `systemd/fwupdate.catalog`.
mod id {
    pub const STARTED: &str = "6f1c2a6e0d5b4e0c9a4e5f3e7b1d0a01";
    pub const PHASE: &str = "6f1c2a6e0d5b4e0c9a4e5f3e7b1d0a02";
    pub const COMMITTED: &str = "6f1c2a6e0d5b4e0c9a4e5f3e7b1d0a03";
    pub const ROLLED_BACK: &str = "6f1c2a6e0d5b4e0c9a4e5f3e7b1d0a04";
    pub const FAILED: &str = "6f1c2a6e0d5b4e0c9a4e5f3e7b1d0a05";
    pub const CANCELLED: &str = "6f1c2a6e0d5b4e0c9a4e5f3e7b1d0a06";
}

/// Logs what the step from `before` to `after` means.
pub fn change(before: &Record, after: &Record) {
    if let Some(last) = after.last().filter(|last| Some(*last) != before.last()) {
        outcome(last);
    }
    if before.phase != after.phase && !after.phase.is_idle() {
        phase(&before.phase, &after.phase);
    }
}

fn phase(before: &Phase, after: &Phase) {
    let Some(operation) = after.operation() else { return };
    let slot = after.plan().map(|plan| plan.target.to_string()).unwrap_or_default();
    let version = after.plan().and_then(|plan| plan.image.as_ref()).map(|image| image.version.as_str());
    let version = version.or(operation.version.as_deref()).unwrap_or("?");
    let message_id = if before.is_idle() { id::STARTED } else { id::PHASE };
    let told = match after {
        Phase::Opening { .. } => "firmware update started: reading the manifest".to_owned(),
        Phase::Preparing { .. } => format!("preparing slot {slot} for version {version}"),
        Phase::Staging { .. } => format!("fetching version {version} and writing it to slot {slot}"),
        Phase::Holding { .. } => format!("version {version} is staged; the reboot waits"),
        Phase::Arming { .. } => format!("arming a trial of slot {slot}"),
        Phase::Rebooting { .. } => format!("rebooting into slot {slot}"),
        Phase::Trying { trial, .. } => {
            format!("slot {slot} is on trial, boot {}: checking its health", trial.boots)
        }
        Phase::Committing { .. } => format!("slot {slot} is healthy: committing version {version}"),
        Phase::RollingBack { failure, .. } => format!("going back to the old slot: {failure}"),
        Phase::Idle | Phase::Unknown => return,
    };
    tracing::info!(
        message_id,
        operation_id = operation.id.as_str(),
        phase = after.name(),
        slot = slot.as_str(),
        "{told}"
    );
}

fn outcome(last: &Last) {
    let to = last.to_version.as_deref().unwrap_or("?");
    let why = last.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    let (message_id, told) = match last.result {
        Outcome::Committed => (id::COMMITTED, format!("version {to} is committed")),
        Outcome::RolledBack => (id::ROLLED_BACK, format!("version {to} was rolled back{why}")),
        Outcome::Failed => (id::FAILED, format!("the update to version {to} failed{why}")),
        Outcome::Cancelled => (id::CANCELLED, format!("the update to version {to} was cancelled")),
        Outcome::Unknown => (id::COMMITTED, "a trial that no record explains was committed".to_owned()),
    };
    let error_code = last.error.as_ref().map(|error| error.code.to_string()).unwrap_or_default();
    let (operation_id, error_code) = (last.id.as_str(), error_code.as_str());
    if matches!(last.result, Outcome::Failed | Outcome::RolledBack) {
        tracing::error!(message_id, operation_id, error_code, phase = "idle", "{told}");
    } else {
        tracing::info!(message_id, operation_id, error_code, phase = "idle", "{told}");
    }
}
