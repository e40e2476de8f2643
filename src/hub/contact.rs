//! Who is spoken to and as whom, kept beside each connection so that every error can name both.

use std::net::SocketAddr;

/// Who is called, by whom, and through what: for messages.
#[derive(Debug, Clone)]
pub(super) struct Contact {
    /// `host:port`
    pub address: String,
    /// The MQTT client id.
    pub identity: String,
    /// What the connection leads to: the hub, or the proxy on the way to it.
    pub remote: Option<SocketAddr>,
}
