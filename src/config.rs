//! Fragments -> inputs -> validated `Settings`; only `Settings` travel.
//!
//! `settings` has a row for each of them. `fragments` reads each layer's files and checks their keys, `inputs` merges them
//! and reads typed values, `load` validates; `hub` says how the hub is reached. This file is what the rest of the agent sees.

mod cloud;
mod connection;
mod credentials;
mod dps;
mod error;
mod files;
mod fragments;
mod hub;
mod inputs;
mod kinds;
mod load;
mod names;
mod proxy;
mod render;
mod row;
mod secret;
mod settings;
mod units;

pub use error::{ConfigError, Warning};
pub use files::open_regular;
pub use fragments::{Environment, Options};
pub use hub::{Auth, Cloud, Dps, KeyPlace, Place, Reconnect, Roots, Seat, TimeServer, Transport};
pub use load::{Loaded, RootSettings, load, load_board, outside_slots};
pub use proxy::{Proxy, Via};
pub use render::render;
pub use secret::Secret;
pub use settings::{
    Allowed, BootloaderKind, BootloaderSettings, Download, Health, Policy, Report, Settings, SlotSettings,
    State, System, Trust,
};
pub use units::{Window, duration};
