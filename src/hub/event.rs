//! What the hub tells the agent: calls, changes, and whether there is a session.

use serde_json::Value;

use super::method::MethodCall;

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
