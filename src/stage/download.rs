//! What comes over the network: a bundle that is opened, and ranges of it, within windows and budget, from whatever
//! servers there are.

pub mod answer;
pub mod budget;
pub mod connect;
pub mod doubt;
pub mod expiry;
pub mod frames;
pub mod hosts;
pub mod http;
pub mod insist;
pub mod open;
pub mod range;
pub mod remote;
pub mod route;
pub mod web;
pub mod windows;
