//! What goes over the control socket: requests and answers, one a line; and why there is no socket to serve.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::{Code, Failure};

/// The socket's name in the runtime folder.
pub const SOCKET: &str = "control.sock";
/// The group that may read.
pub const GROUP: &str = "fwupdate";
/// Longest line of an answer, in bytes.
pub(super) const LINE_LIMIT: usize = 256 * 1024;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Method {
    Status,
    Install,
    Cancel,
    Approve,
    Defer,
    Rollback,
    History,
    Slots,
    Doctor,
    Watch,
}

impl Method {
    /// Whether it changes something, which root alone may.
    pub fn changes(self) -> bool {
        use Method::*;
        match self {
            Install | Cancel | Approve | Defer | Rollback => true,
            Status | History | Slots | Doctor | Watch => false,
        }
    }
}

/// One request; the agent judges its `params`, an object or null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub method: Method,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub params: Value,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ControlAnswer {
    Result(Value),
    Error(Failure),
}

/// Why there is no socket to serve.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("another fwupdated serves {}; stop it first (systemctl stop fwupdate)", path.display())]
    Taken { path: PathBuf },
    #[error("{} is in the way and is no socket; remove it", path.display())]
    Obstacle { path: PathBuf },
    #[error("{} cannot be made: {source}; check that its folder can be written", path.display())]
    Bind { path: PathBuf, source: std::io::Error },
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Failure {
        Failure::new(Code::NotReady, error.to_string())
    }
}
