//! Why staging ended: each with what helps, and its code of the contract. No URL here shows a token.

use std::io;
use std::path::PathBuf;

use time::OffsetDateTime;
use tokio::task::JoinHandle;

use crate::bundle::BundleError;
use crate::device::remedy;
use crate::failure::{Code, Failure};
use crate::manifest::{Digest, ManifestError};
use crate::stage::workspace::Broken;

#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("{url} may not be fetched: {reason}")]
    NotPermitted { url: String, reason: String },
    #[error("{url} answered {status}: check that the link (its SAS token) is valid and has not expired")]
    Forbidden { url: String, status: u16 },
    #[error(
        "{url} answered {status}: its link expired at {}; call firmwareUpdate again with the same operationId and \
         a fresh link",
        crate::bounds::told(*at)
    )]
    Expired { url: String, status: u16, at: OffsetDateTime },
    #[error("{url} does not exist ({reason}); check the address that the update was called with")]
    NotFound { url: String, reason: String },
    #[error("{url} could not be fetched: {reason}")]
    Download { url: String, reason: String },
    #[error("this update needs {need} bytes in all and its data budget is {limit}; raise maxDownloadBytes")]
    Budget { need: u64, limit: u64 },
    #[error("{url} changed on the server while it was fetched; call the update again")]
    Changed { url: String },
    #[error("{from}: {source}")]
    Manifest { from: String, source: ManifestError },
    #[error("{from}: {source}")]
    Bundle { from: String, source: BundleError },
    #[error("the manifest of {from} has digest {found}, but the call pinned {pinned}")]
    Pin { from: String, found: Digest, pinned: Digest },
    #[error("{} does not hold what was written: its digest is {found} instead of {expected}", path.display())]
    ReadBack { path: PathBuf, found: Digest, expected: Digest },
    #[error("the image has {image} bytes and the slot {} only {capacity}", path.display())]
    TooLarge { path: PathBuf, image: u64, capacity: u64 },
    #[error("the slot {} is in use: {reason}", path.display())]
    Busy { path: PathBuf, reason: String },
    #[error("the slot {} failed at offset {offset}: {source}{}", path.display(), remedy(source))]
    Slot { path: PathBuf, offset: u64, source: io::Error },
    #[error("the slot {} cannot be used: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error(transparent)]
    Workspace(#[from] Broken),
    #[error("staging was cancelled")]
    Cancelled,
    #[error("a staging thread stopped: {0}")]
    Thread(String),
}

/// Waits for a step that runs where it may block.
pub async fn finished<T>(step: JoinHandle<Result<T, StageError>>) -> Result<T, StageError> {
    step.await.unwrap_or_else(|error| Err(StageError::Thread(error.to_string())))
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Failure {
        use StageError::*;
        let message = error.to_string();
        let code = match error {
            NotPermitted { .. } => Code::NotPermitted,
            Forbidden { .. } | Expired { .. } => Code::Forbidden,
            NotFound { .. } => Code::NotFound,
            Download { .. } | Changed { .. } => Code::DownloadFailed,
            Budget { .. } => Code::DataBudgetExceeded,
            Manifest { source, .. } => Failure::from(source).code,
            Bundle { source, .. } => Failure::from(source).code,
            Pin { .. } | ReadBack { .. } => Code::DigestMismatch,
            TooLarge { .. } => Code::TooLarge,
            Busy { .. } => Code::SlotBusy,
            Slot { .. } | Unusable { .. } => Code::SlotWriteFailed,
            Cancelled => Code::Cancelled,
            Workspace(_) | Thread(_) => Code::Internal,
        };
        Failure::new(code, message)
    }
}
