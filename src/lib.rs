//! The map: every module in the order in which one update flows through it.
//!
//! cloud command -> open the manifest -> plan or refuse -> prepare -> stage -> arm -> reboot -> health ->
//! commit or roll back -> report. Imports run one way: programs -> agent -> edges -> core. The core does no
//! I/O, edges do not know each other, and only `agent` sees all of them.

// Numbers, times and offsets come from callers, servers and files: none of them may end the process by arithmetic.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod config;

// Core: pure; no tokio, no file system, no clock.
pub mod bounds;
pub mod bundle;
pub mod command;
pub mod desired;
pub mod failure;
pub mod lifecycle;
pub mod machine;
pub mod manifest;
pub mod plan;
pub mod report;
pub mod slot;
pub mod uri;

// Edges: I/O; ignorant of one another.
pub mod backoff;
pub mod boot;
pub mod cause;
pub mod clock;
pub mod control;
pub mod device;
pub mod durable;
pub mod fault;
pub mod health;
pub mod hub;
pub mod memory;
pub mod pkcs11;
pub mod programs;
pub mod reach;
pub mod root;
pub mod stage;
pub mod store;
pub mod tls;
pub mod tunnel;

// What the command-line programs share.
pub mod cli;

// Build step: man pages and completions of the programs.
#[cfg(feature = "pages")]
pub mod pages;

// Driver.
pub mod agent;
