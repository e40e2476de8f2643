//! What the module of each bootloader offers, and why it may fail.

use std::io;
use std::path::PathBuf;

use crate::device::remedy;
use crate::failure::{Code, Failure};
use crate::slot::BootEnv;

/// One boot environment, whatever bootloader it belongs to: the only seam that tests replace.
pub trait Bootloader: Send + Sync {
    /// Reads the environment. `Err(BootError::Lost)` when no copy of it is valid and nothing near could be one,
    /// `Err(BootError::Uninitialised)` when it is valid but was never fwupdate's.
    fn read(&self) -> Result<BootEnv, BootError>;

    /// Replaces the environment's `fwupdate_*` variables in one atomic, durable write; others are kept. An
    /// environment that is lost is not made anew.
    fn write(&self, env: &BootEnv) -> Result<(), BootError>;

    /// Makes an environment that is lost anew, or fwupdate's own. Only for who knows that the bootloader, too, has
    /// found none.
    fn rebuild(&self, env: &BootEnv) -> Result<(), BootError>;

    /// Whether `write` could arm a trial here: asked before an update starts, changes nothing.
    fn ready(&self) -> Result<(), BootError>;
}

/// Why the boot environment could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(
        "no copy of the boot environment in {0} is valid: it is rebuilt once the booted slot is known for sure and the \
         bootloader, too, finds none (fwupdate.env=lost)"
    )]
    Lost(String),
    #[error("the boot environment in {0} has no fwupdate_primary: set it to the proven slot, A or B, once")]
    Uninitialised(String),
    #[error("{name} is {value:?} in the boot environment in {place}: set it to {expected}")]
    Malformed { place: String, name: &'static str, value: String, expected: &'static str },
    #[error(
        "{0} describes a single copy of U-Boot's environment, which no write can change atomically: build U-Boot \
         with a redundant environment and list both copies"
    )]
    SingleCopy(PathBuf),
    #[error("{path}, line {line}: {why}")]
    Config { path: PathBuf, line: usize, why: String },
    #[error("the boot environment on {path} is not supported: {why}")]
    Unsupported { path: PathBuf, why: String },
    #[error(
        "U-Boot's environment in {place} is lost and {defaults} cannot be read ({source}): put the board's default \
         environment there, or an empty file if only fwupdate's boot script uses that area"
    )]
    NoDefaults { place: String, defaults: PathBuf, source: io::Error },
    #[error("the boot environment in {place} has no room: {needed} bytes are needed, {size} are there")]
    Full { place: String, needed: usize, size: usize },
    #[error(
        "other variables in {0} reach into its second sector and would have to move, which is no atomic write: \
         create the file anew and set fwupdate's variables first"
    )]
    WouldMove(PathBuf),
    /// The environment is not where the bootloader reads it.
    #[error("{0}")]
    Misplaced(String),
    #[error("{0} does not return what was written to it: replace the storage")]
    NotWritten(PathBuf),
    #[error("cannot {action} {path}: {source}{}", remedy(source))]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl From<BootError> for Failure {
    fn from(error: BootError) -> Failure {
        let code = match error {
            BootError::Uninitialised(_)
            | BootError::SingleCopy(_)
            | BootError::Config { .. }
            | BootError::Misplaced(_)
            | BootError::Unsupported { .. } => Code::NotReady,
            _ => Code::BootloaderFailed,
        };
        Failure::new(code, error.to_string())
    }
}
