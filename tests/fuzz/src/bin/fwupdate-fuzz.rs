//! libFuzzer's program for one target: `FUZZ_TARGET=record fwupdate-fuzz [LIBFUZZER ARGUMENTS] CORPUS...`.
//!
//! `tests/fuzz/run.sh` builds it with coverage of our own code alone, so that the dependencies are those of every
//! other build.

#![no_main]
#![allow(clippy::expect_used, reason = "without a target there is nothing to run")]

use std::sync::LazyLock;

use fwupdate_fuzz::{Target, target};

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    target(&name).expect("FUZZ_TARGET is a target; fwupdate-fuzz-seeds lists them")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    (TARGET.run)(bytes);
});
