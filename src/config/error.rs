//! What can be wrong with settings. Errors stop the agent; warnings stop `--check-config` alone, because an
//! older agent must start with a newer one's file, and because what is not there today may be there tomorrow: only
//! what an edit alone can mend may stop a gateway for good.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::failure::{Code, Failure};

/// Why no settings could be made. No message holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{} cannot be read: {source}; check that it exists, and that the user fwupdate may read it", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than {limit} bytes; it does not look like the right file", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{} cannot be read: it is in {found} and not in UTF-8; save it as UTF-8", path.display())]
    Encoding { path: PathBuf, found: String },
    #[error("{} is not valid TOML (line {line}): {detail}", path.display())]
    Syntax { path: PathBuf, line: usize, detail: String },
    #[error("{key} in {file} must be {expected}, not {found}")]
    Value { key: String, file: String, expected: String, found: String },
    #[error("the connection string in {file} {problem}")]
    ConnectionString { file: String, problem: String },
    #[error("{0}")]
    Conflict(String),
    /// A file that other programs write, beside the settings.
    #[error("{} ({key}) {problem}", file.display())]
    Awaited { file: PathBuf, key: String, problem: String },
    #[error("settings are missing: {}{}", missing.join("; "), hints(warnings))]
    Missing { missing: Vec<&'static str>, warnings: Vec<Warning> },
    #[error("the settings layers cannot be merged: {0}; check the files one by one")]
    Merge(#[from] config::ConfigError),
}

impl ConfigError {
    /// Starting again may help: nobody has to edit anything.
    pub fn may_pass(&self) -> bool {
        matches!(self, ConfigError::Read { .. } | ConfigError::Awaited { .. })
    }

    /// The same as the fault of a file that other programs write, which may still change.
    pub(super) fn of(self, file: &Path, key: &str) -> ConfigError {
        let problem = match self {
            ConfigError::Awaited { .. } => return self,
            ConfigError::ConnectionString { problem, .. } => format!("is no good yet: its text {problem}"),
            other => format!("is no good yet: {other}"),
        };
        ConfigError::Awaited { file: file.to_owned(), key: key.to_owned(), problem }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::new(Code::NotReady, error.to_string())
    }
}

/// A misspelt key is the likeliest reason for a missing one.
fn hints(warnings: &[Warning]) -> String {
    warnings.iter().map(|w| format!(" ({w})")).collect()
}

/// What the daemon only logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// No version of this agent's keys has that name.
    UnknownKey { key: String, file: String, nearest: Option<&'static str> },
    /// The key may not be set in this layer and was ignored.
    Misplaced { key: String, file: String },
    /// A file with a secret that others can read.
    Exposed { file: String },
    /// A file of the device's own layer, which does not count as it is.
    PassedOver { file: String, why: String },
    /// The hub waits for this file.
    Awaited { why: String },
    /// A variable of the environment, which does not count as it is.
    Variable { why: String },
}

impl Warning {
    /// Whether `--check-config` fails because of it.
    pub fn fails_check(&self) -> bool {
        !matches!(self, Warning::Exposed { .. })
    }

    /// What is set and does not count now, as a sentence: something else than a person's edit may mend it.
    pub fn awaited(&self) -> Option<String> {
        match self {
            Warning::PassedOver { .. } | Warning::Awaited { .. } | Warning::Variable { .. } => {
                Some(self.to_string())
            }
            _ => None,
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::UnknownKey { key, file, nearest: Some(near) } => {
                write!(f, "unknown key {key} in {file}; did you mean {near}?")
            }
            Warning::UnknownKey { key, file, nearest: None } => {
                write!(f, "unknown key {key} in {file}; remove it or see docs/configuration.md")
            }
            Warning::Misplaced { key, file } => {
                write!(f, "{key} in {file} is ignored; set it in /etc/fwupdate.toml instead")
            }
            Warning::PassedOver { file, why } => {
                write!(f, "{file} is passed over until it is written anew: {why}")
            }
            Warning::Awaited { why } => write!(f, "the connection to the hub waits for a file: {why}"),
            Warning::Variable { why } => write!(f, "{why}; it is passed over, and no proxy is used"),
            Warning::Exposed { file } => {
                write!(f, "{file} holds a secret and others can read it; run `chmod 0600 {file}`")
            }
        }
    }
}
