//! The agent as its users meet it: the real programs, a real hub over TLS, a simulated gateway. One binary.

// Clippy exempts only functions marked as tests; the helpers beside them are tests no less.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

/// What every test ends with: was each report that the hub ever got true?
mod checker;
/// A hub, a gateway and releases for one test. Start reading here.
mod harness;
/// A good update, there and back.
mod update;
