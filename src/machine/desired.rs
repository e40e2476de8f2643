//! What the record remembers of the desired section: its content's digest, and what became of it.

use serde::{Deserialize, Serialize};

use crate::bounds::short;
use crate::failure::Failure;
use crate::manifest::Digest;

/// `Desired::code` of a section whose operation runs, was committed, or gave way to a later command; any other
/// is an error code of the contract.
pub const ACCEPTED: &str = "Accepted";
pub const COMMITTED: &str = "Committed";
pub const SUPERSEDED: &str = "Superseded";

/// Longest message that is kept, encoded bytes.
const MESSAGE_LIMIT: usize = 256;

/// The desired section as it was last acted upon, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Desired {
    /// Digest of the section without query strings.
    pub digest: Digest,
    pub version: Option<String>,
    /// `Accepted`, `Committed`, `Superseded`, or an error code.
    pub code: String,
    pub message: String,
    /// Id of the operation that it led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
}

impl Desired {
    /// What is remembered of the section with this digest before it led to an operation.
    pub fn new(digest: Digest, version: Option<String>, code: impl ToString, message: &str) -> Desired {
        Desired {
            digest,
            version,
            code: code.to_string(),
            message: short(message, MESSAGE_LIMIT),
            operation: None,
        }
    }

    /// Notes that the operation `id` ended, with `error` or well.
    pub fn ended(&mut self, id: &str, error: Option<&Failure>) {
        if self.operation.as_deref() == Some(id) {
            self.code = error.map_or_else(|| COMMITTED.to_owned(), |failure| failure.code.to_string());
            self.message = error.map_or_else(String::new, |failure| short(&failure.message, MESSAGE_LIMIT));
        }
    }

    /// Notes that another command took the section's place.
    pub fn superseded(&mut self) {
        SUPERSEDED.clone_into(&mut self.code);
        "a later command took its place; change the section to act on it again".clone_into(&mut self.message);
    }
}
