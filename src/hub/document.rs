//! What the agent tells the hub: the reported properties, newest first and nothing else.

use serde_json::{Map, Value};

/// What the reported properties shall say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Document {
    /// The keys to report at the root, whole. A null deletes the key. Root keys that are not named belong to
    /// other programs and are left alone; inside a named object everything is ours, so what is missing there
    /// is deleted from the twin.
    pub body: Map<String, Value>,
    /// Rises with every change.
    pub generation: u64,
    /// When it differs from that of the last patch, the document is sent at once; otherwise no sooner than
    /// the report interval.
    pub milestone: u64,
}
