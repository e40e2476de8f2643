//! What a command failed with, as people and scripts are told.

use std::io;

use fwupdate::cli::usage;
use fwupdate::control::ClientError;
use fwupdate::failure::{Code, Failure};

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
    /// The update was followed to its end, and that was no success.
    #[error("{0}")]
    Outcome(Failure),
    #[error("no update runs, so there is nothing to wait for; see `fwupdatectl status`")]
    NothingToWaitFor,
    #[error("the agent does not know operation {0}; see `fwupdatectl history`")]
    LostTrack(String),
}

impl Error {
    /// What scripts see: 1 failed, 2 usage, 3 refused, 4 not reached.
    pub fn exit(&self) -> u8 {
        match self {
            Error::Client(ClientError::Unreachable { .. } | ClientError::Closed) => 4,
            other => exit_of(other.failure().code),
        }
    }

    pub fn sentence(&self) -> String {
        usage::error_sentence("fwupdatectl", &self.to_string())
    }

    pub fn json(&self) -> String {
        let Failure { code, message, .. } = self.failure();
        usage::error_json(&code.to_string(), &message)
    }

    fn failure(&self) -> Failure {
        let code = match self {
            Error::Client(ClientError::Refused(failure)) | Error::Outcome(failure) => return failure.clone(),
            Error::Client(ClientError::Denied { .. }) => Code::NotPermitted,
            Error::Client(ClientError::Unreachable { .. } | ClientError::Closed) => Code::NotReady,
            _ => Code::Internal,
        };
        Failure::new(code, self.to_string())
    }
}

fn exit_of(code: Code) -> u8 {
    match code {
        Code::MalformedRequest => 2,
        Code::NotPermitted
        | Code::UntrustedSignature
        | Code::WrongBoard
        | Code::VersionMismatch
        | Code::AlreadyInstalled
        | Code::Downgrade
        | Code::Quarantined => 3,
        _ => 1,
    }
}
