//! What the program at the gateway and the one from afar have in common: the fields of an update on the command line,
//! and how reports and progress are shown. Knows nothing of the agent but its documents.

pub mod screen;
pub mod show;
pub mod update;
