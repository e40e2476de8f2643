//! Every parser of what comes from outside, as a fuzzer sees it: bytes in; whether they got through, out.
//!
//! A target puts checksums and signatures right itself, so that what lies behind them is reached, and it checks what
//! must hold of anything that got through. Seeds are inputs that get through: `tests/seeds.rs` says so for each, and
//! replays whatever was ever found (`findings/`).

// A broken promise of a parser has to end the run: that is what a fuzzer looks for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod targets;

pub use targets::TARGETS;

/// One parser.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// Whether the bytes were understood.
    pub run: fn(&[u8]) -> bool,
    /// Inputs that are understood.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
