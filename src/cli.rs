//! What the command-line programs have in common: how a command line is read, the fields of an update on it, and how
//! reports, progress, amounts and errors are shown. Knows nothing of the agent but its documents.

pub mod amount;
pub mod log;
pub mod plain;
pub mod screen;
pub mod show;
pub mod update;
pub mod usage;
