//! A local stand-in for Azure IoT Hub and the Device Provisioning Service, faithful enough for the official SDKs: for tests, demos and developers.
//!
//! As a library it runs inside a test, on ports of its own; as the program `fwupdate-hub` it is a server. It shares
//! no code with the agent, because shared code would share a misreading of the protocol.
//!
//! [`hub`] is the handle. The modules in the order of a request: `server` accepts connections, `mqtt` and `rest` are the two doors,
//! [`core`] is the hub behind them, made of [`registry`], [`live`], [`methods`], `devicebound`, [`history`], [`trace`] and [`faults`];
//! `configurations` and `jobs` are its engines for fleets; [`twin`], [`query`] and [`auth`] are the rules, as plain functions over data.

pub mod auth;
pub mod authority;
mod certs;
mod clock;
mod configurations;
pub mod core;
mod credentials;
pub mod demo;
mod devicebound;
mod disk;
pub mod dps;
pub mod error;
pub mod faults;
pub mod firmware;
pub mod gateway;
pub mod history;
pub mod hub;
pub mod image;
mod jobs;
pub mod live;
pub mod methods;
mod mqtt;
pub mod proxy;
pub mod query;
pub mod registry;
mod rest;
mod server;
pub mod setup;
pub mod trace;
pub mod twin;
mod x509;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use hub::{Hub, Options};

/// The one shared access policy, with all permissions.
pub const SERVICE_POLICY: &str = "iothubowner";

/// Locks; a panic elsewhere leaves data that is whole, since every change is made in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
