//! What is said of a check that did not pass, or that could not be asked.

use std::path::PathBuf;

use crate::failure::{Code, Evidence, Failure};
use crate::root::RootError;

/// Most bytes of a check's output in the evidence.
pub const EXCERPT_LIMIT: usize = 1024;

/// Why the checks could not even be asked.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    #[error(
        "systemd does not run on this machine, so its units cannot be checked; empty health.units and set \
         health.no_new_failed_units = false, or boot with systemd"
    )]
    NoSystemd,
    #[error("{} gave no answer: {detail}; check that systemd is well", command.display())]
    Systemctl { command: PathBuf, detail: String },
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("root does not do this: {0}")]
    Refused(String),
    #[error("the folder {} cannot be read: {source}; check its permissions", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("{} is not an executable file; run `chmod +x` on it or take it out of the folder", path.display())]
    NotExecutable { path: PathBuf },
    #[error("{} cannot be started: {source}; a script needs `#!` and its interpreter", path.display())]
    Start { path: PathBuf, source: std::io::Error },
}

impl From<HealthError> for Failure {
    fn from(error: HealthError) -> Failure {
        Failure::new(Code::HealthCheckFailed, error.to_string())
    }
}

/// A required check that did not pass.
#[derive(Debug, Clone)]
pub struct Failed {
    pub code: Code,
    pub check: String,
    pub why: String,
    excerpt: String,
}

impl Failed {
    pub fn new(check: impl Into<String>, why: impl Into<String>, excerpt: String) -> Failed {
        Failed { code: Code::HealthCheckFailed, check: check.into(), why: why.into(), excerpt }
    }

    pub fn error(check: impl Into<String>, error: &HealthError) -> Failed {
        Failed::new(check, error.to_string(), String::new())
    }

    pub fn no_cloud() -> Failed {
        let why = "the hub did not accept a session since this boot; check network, clock and credentials";
        Failed { code: Code::CloudUnreachable, ..Failed::new("cloud", why, String::new()) }
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Failure {
        let message = format!("the check {} did not pass before the deadline: {}", failed.check, failed.why);
        let excerpt = Some(failed.excerpt).filter(|text| !text.is_empty());
        let evidence = Evidence { check: Some(failed.check), excerpt, ..Evidence::default() };
        Failure::new(failed.code, message).with(evidence)
    }
}

/// The end of an output as text of at most [`EXCERPT_LIMIT`] bytes, without control characters.
pub fn excerpt(output: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(output)
        .chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    let mut start = text.len().saturating_sub(EXCERPT_LIMIT);
    while !text.is_char_boundary(start) {
        start = start.saturating_add(1);
    }
    text.get(start..).unwrap_or_default().to_owned()
}
