//! The devices' door: MQTT 3.1.1 as IoT Hub speaks it, over any byte stream (TLS, or WebSocket over TLS).
//!
//! `connection` moves bytes and watches clocks, `connect` decides who may enter, `session` answers packets without
//! any I/O, `provisioning` is the provisioning service's session, `topics` knows the few topics that exist.

mod connect;
mod connection;
mod provisioning;
mod session;
pub mod topics;
pub mod websocket;

pub use connection::serve;
