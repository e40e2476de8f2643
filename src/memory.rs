//! How the allocator keeps this process small.
//!
//! glibc raises the size from which buffers get pages of their own each time such a buffer is freed; from then on large
//! and small ones lie in one heap, whose holes are not given back. An update frees a few buffers of megabytes early on:
//! with a fixed size its peak is 3 MB lower. And each thread gets a heap of its own, which outlives it: what blocks
//! runs on short-lived threads here, and with one heap for all the agent at rest is 0.8 MiB smaller.
//!
//! `unsafe`: `mallopt` is a C function.
#![allow(unsafe_code)]

/// Buffers of at least so many bytes get pages of their own: glibc's own first choice.
#[cfg(target_env = "gnu")]
const OWN_PAGES: nix::libc::c_int = 128 * 1024;
/// Heaps for all threads.
#[cfg(target_env = "gnu")]
const HEAPS: nix::libc::c_int = 1;

/// Fixes both. To be called once, at the start of a program.
pub fn stay_small() {
    #[cfg(target_env = "gnu")]
    for (rule, value) in [(nix::libc::M_MMAP_THRESHOLD, OWN_PAGES), (nix::libc::M_ARENA_MAX, HEAPS)] {
        // SAFETY: it takes two numbers, and changes nothing but how later allocations are served.
        if unsafe { nix::libc::mallopt(rule, value) } == 0 {
            tracing::debug!("the allocator keeps its own rules");
        }
    }
}
