//! What the agent tells the hub, the newest report and nothing else; and what the hub tells the agent: calls, changes,
//! and whether there is a session.

use serde_json::{Map, Value};

use super::method::MethodCall;

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

/// What the agent is told.
#[derive(Debug)]
pub enum HubEvent {
    /// Authenticated, subscribed, and the twin was read. Not repeated when a token is renewed.
    Connected,
    /// Another clock is believed than at the last attempt, which is about to be repeated.
    ClockChanged,
    /// There is no session: it ended, or could not be had for a new reason. A sentence for people. `denied`: this
    /// gateway's credentials were refused, and refused again when they were shown once more.
    Disconnected { reason: String, denied: bool },
    /// A direct method; the caller waits for `respond`.
    Method(MethodCall),
    /// The whole desired section with its `$version`: on each connect, and when it changed. Several changes
    /// may arrive as one.
    Desired(Value),
    /// The hub holds this generation of the document. Earlier generations may never be acknowledged by
    /// themselves: a newer one took their place.
    Acknowledged { generation: u64 },
}
