//! Azure IoT Hub over MQTT: direct methods and desired properties come in, reported properties go out.
//!
//! `run` keeps one authenticated session alive, whatever network, tokens and hub do, and tells the agent about
//! it in [`HubEvent`]s. What is sent and when is decided by pure code (`twin`, `topics`, `merge`,
//! `sas`); only `connection` touches a socket. The wire is described in `docs/protocol.md`.

mod connection;
mod date;
mod dial;
mod dps;
mod error;
mod event;
mod identity;
mod merge;
mod method;
mod outbox;
mod placement;
mod provision;
mod relay;
mod sas;
mod session;
mod telemetry;
mod topics;
mod twin;
mod way;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use connection::{Parts, run};
pub use error::HubError;
pub use event::{Document, HubEvent};
pub use method::MethodCall;
pub use sas::service_token;
pub use telemetry::Message;

/// What reads the hub's and the provisioning service's bytes, for the fuzzer (tests/fuzz).
#[doc(hidden)]
pub mod parsers {
    pub use super::dps::{DpsAnswer, DpsRequest, Next};
    pub use super::merge::{difference, merge};
    pub use super::topics::parse as topic;
}
