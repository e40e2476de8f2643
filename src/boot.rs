//! The boot environment on disk, and which slot is really booted.

use crate::failure::{Code, Failure};
use crate::slot::BootEnv;

/// One boot environment, whatever bootloader it belongs to: the only seam that tests replace.
pub trait Bootloader: Send + Sync {
    /// Reads the environment. `Err(BootError::Lost)` when no copy of it is valid.
    fn read(&self) -> Result<BootEnv, BootError>;

    /// Replaces the environment's `fwupdate_*` variables in one atomic, durable write; others are kept.
    ///
    /// Also rebuilds an environment that was lost.
    fn write(&self, env: &BootEnv) -> Result<(), BootError>;
}

/// Why the boot environment could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("no copy of the boot environment in {0} is valid")]
    Lost(String),
}

impl From<BootError> for Failure {
    fn from(error: BootError) -> Failure {
        Failure::new(Code::BootloaderFailed, error.to_string())
    }
}
