//! Bundle -> slot: fetch, verify, write, read back. This edge alone touches the target slot.
//!
//! For every chunk of the image, in order: is it already in place in the target, or in the booted slot? Else
//! its frame is fetched. A chunk is hashed in the very buffer that is then written; nothing unverified ever
//! reaches the slot. The target's first MiB is zeroed before anything else changes and written last, after
//! the rest was read back from the medium, so that no bootloader can load a half-written slot. The same rule
//! gives delta, resume and repair, and needs no journal: only digests are trusted.
//!
//! In order: `open` (then plan), `Target::acquire`, `Bundle::index`, `stage`; and `read_back` again for a slot that
//! waited.

use std::io;
use std::path::PathBuf;

use time::OffsetDateTime;
use tokio::task::JoinHandle;

use crate::bundle::BundleError;
use crate::device::remedy;
use crate::failure::{Code, Failure};
use crate::manifest::{Digest, ManifestError};

mod answer;
mod buffer;
mod by_digest;
mod cost;
mod doubt;
mod fetch;
mod hosts;
mod ioctl;
mod line;
mod map;
#[cfg(test)]
mod map_tests;
mod meter;
mod open;
mod origins;
mod parallel;
#[doc(hidden)]
pub mod parsers;
mod patch;
mod pipeline;
mod range;
mod route;
mod scan;
mod seed;
mod sink;
mod survey;
mod target;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod testing_medium;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_on_bad_media;
#[cfg(test)]
mod tests_on_bytes;
#[cfg(test)]
mod tests_on_devices;
#[cfg(test)]
mod tests_on_faulty_media;
#[cfg(test)]
mod tests_on_networks;
#[cfg(test)]
mod tests_on_patches;
#[cfg(test)]
mod tests_on_servers;
mod verify;
mod web;
mod window;
mod worker;
mod workspace;
mod write;
mod writer;

pub use cost::{Cost, cost};
pub use fetch::{Http, Source};
pub use map::Maps;
pub use meter::Meter;
pub use open::{Bundle, open};
pub use target::Target;
pub use verify::read_back;
pub use workspace::Workspace;
pub use write::{Booted, stage};

/// Bytes at the slot's start that are zeroed first and written last, and at its end that are cleared.
pub const GUARD: u64 = 1 << 20;

/// How far staging has come. All figures are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub step: Step,
    /// The current step's work: the size of the image, or while surveying what is read of the slots.
    pub total: u64,
    /// How much of it is done.
    pub done: u64,
    /// Body bytes received over the network for this operation, those of earlier runs included.
    pub downloaded: u64,
    /// What `downloaded` will be at the end if no connection breaks; known once the slots were surveyed.
    pub expected_download: u64,
    /// Bytes of the image that were found in one of the slots instead of being fetched.
    pub reused: u64,
}

/// The steps of `stage`, in order; each runs `done` from 0 to `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Step {
    /// Looks for chunks that the slots already hold.
    #[default]
    Surveying,
    /// Fetches, copies and writes the rest.
    Writing,
    /// Reads the slot back from the medium.
    ReadingBack,
}

/// Why staging ended. URLs are redacted.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("{url} may not be fetched: {reason}")]
    NotPermitted { url: String, reason: String },
    #[error("{url} answered {status}: check that the link (its SAS token) is valid and has not expired")]
    Forbidden { url: String, status: u16 },
    #[error(
        "{url} answered {status}: its link expired at {}; call firmwareUpdate again with the same operationId and \
         a fresh link",
        crate::report::told(*at)
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
    #[error("a working file in {} failed: {reason}; check that disk", path.display())]
    Workspace { path: PathBuf, reason: String },
    #[error("staging was cancelled")]
    Cancelled,
    #[error("a staging thread stopped: {0}")]
    Thread(String),
}

/// Waits for a step that runs where it may block.
async fn finished<T>(step: JoinHandle<Result<T, StageError>>) -> Result<T, StageError> {
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
            Workspace { .. } | Thread(_) => Code::Internal,
        };
        Failure::new(code, message)
    }
}
