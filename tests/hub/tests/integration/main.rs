//! The hub from outside: over its two ports, as clients meet it. One binary.

// Clippy exempts only functions marked as tests; the helpers beside them are tests no less.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

/// Certificates of devices' own keys: asked for at registration and at the hub.
mod certificates;
/// A hub for one test, and a bare MQTT client that can also break the rules.
mod client;
/// The command line: what it refuses, and what it says then.
mod command;
/// Who is let in, who is thrown out, and what survives.
mod connect;
/// Ranges, conditions and faults of the file server.
mod files;
/// What reaches many devices: queries, jobs and automatic configurations.
mod fleet;
/// A client library that others wrote, the one on which the agent is built.
mod library;
/// Direct methods and their time limits.
mod methods;
/// The service REST and its refusals.
mod rest;
/// Twins from the device's side, and the MQTT faults.
mod twin;
/// MQTT over WebSocket.
mod websocket;
