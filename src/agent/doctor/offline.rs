//! doctor without the agent: the same questions from the settings alone, and why no agent runs. That is when
//! settings are wrong, which is when a doctor is needed.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};

use super::questions::document;
use super::subject::Subject;
use crate::agent::gateway::Gateway;
use crate::config::{self, Options, Settings, open_regular};
use crate::machine::Record;
use crate::store::Store;

/// In the runtime folder: the sentence with which the agent ended last.
const LAST_ERROR: &str = "last-error";
/// Longest sentence that is kept or repeated, bytes.
const LIMIT: u64 = 2048;

/// Examines the gateway while no agent runs. Blocks, and changes nothing; a PIN that a token refuses is remembered.
pub fn examine(options: &Options) -> Value {
    let settings = match config::load(options) {
        Ok(loaded) => loaded.settings,
        Err(error) => return refused(&error.to_string()),
    };
    let ended = ended(&settings);
    let record = Store::peek::<Record>(&settings.state.dir).ok().flatten().unwrap_or_default();
    let gateway = Arc::new(Gateway::new(settings));
    gateway.clock.remember(record.synchronised_time);
    let subject = Subject::new(gateway, record, false);
    document(&Subject { agent_ended: Some(ended), ..subject })
}

/// Nothing else can be asked without settings.
fn refused(error: &str) -> Value {
    let message = format!("it does not run, and these settings cannot be used: {error}");
    json!({ "findings": [{ "check": "agent", "status": "failed", "message": message }] })
}

fn ended(settings: &Settings) -> String {
    let mut why = "it does not run".to_owned();
    if let Some(said) = last_error(&settings.system.run) {
        why += &format!("; it ended with: {said}");
    }
    if let Some(state) = systemd_says() {
        why += &format!("; systemd says {state}");
    }
    why + "; start it with `systemctl start fwupdate`, and see `journalctl -u fwupdate`"
}

/// Keeps the sentence with which the agent ends, for a doctor who comes when it is gone; `None`: it started, and what
/// was said before is over.
pub fn note_end(run: &Path, why: Option<&str>) {
    let path = run.join(LAST_ERROR);
    let noted = match why {
        Some(why) => {
            let short: String = why.chars().take(LIMIT as usize / 4).collect();
            fs::create_dir_all(run).and_then(|()| fs::write(&path, short))
        }
        None if !path.exists() => Ok(()),
        None => fs::remove_file(&path),
    };
    if let Err(error) = noted {
        tracing::debug!("{} cannot be changed: {error}", path.display());
    }
}

fn last_error(run: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    open_regular(&run.join(LAST_ERROR)).ok()?.take(LIMIT).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// How the unit ended, where systemd runs and knows of it.
fn systemd_says() -> Option<String> {
    let properties = "--property=ActiveState,SubState,Result,ExecMainStatus";
    let output = Command::new("systemctl").args(["show", properties, "fwupdate.service"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().filter(|line| line.contains('=')).collect();
    (output.status.success() && !lines.is_empty()).then(|| lines.join(" "))
}
