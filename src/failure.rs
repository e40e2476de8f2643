//! What went wrong, in the one vocabulary that methods, twin, command line and journal share.
//!
//! Every edge maps its own errors to a `Failure` once; nothing downstream looks inside again.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bounds;

/// An error code of the public contract. The variant's name is the word users see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    MalformedRequest,
    Busy,
    NotReady,
    StateUnavailable,
    NotPermitted,
    UntrustedSignature,
    MalformedBundle,
    WrongBoard,
    VersionMismatch,
    AlreadyInstalled,
    Downgrade,
    Quarantined,
    TooLarge,
    DataBudgetExceeded,
    NotFound,
    Forbidden,
    DownloadFailed,
    DigestMismatch,
    SlotWriteFailed,
    SlotBusy,
    BootloaderFailed,
    BootloaderFellBack,
    HealthCheckFailed,
    CloudUnreachable,
    Cancelled,
    DeadlinePassed,
    /// Also what an unknown code of a newer agent's record reads as.
    #[serde(other)]
    Internal,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a failing check left behind. `excerpt` is at most 1 KiB of its output.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Evidence {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_attempts: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<String>,
}

/// A code, a sentence that says what to do, and the evidence if there is any.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Failure {
    pub code: Code,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

impl Failure {
    /// Whatever a server or a file put into `message`, it stays a sentence of bounded length.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        let mut message = message.into();
        bounds::cut(&mut message, bounds::MESSAGE);
        Failure { code, message, evidence: None }
    }

    pub fn with(mut self, evidence: Evidence) -> Failure {
        self.evidence = Some(evidence);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}
