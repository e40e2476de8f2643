//! How the allocator deals with large buffers. glibc raises the size from which buffers get pages of their own each
//! time such a buffer is freed; from then on large and small ones lie in one heap, whose holes are not given back. An
//! update frees a few buffers of megabytes early on: with a fixed size its peak is 3 MB lower.
//!
//! `unsafe`: `mallopt` is a C function.
#![allow(unsafe_code)]

/// Buffers of at least so many bytes get pages of their own: glibc's own first choice.
#[cfg(target_env = "gnu")]
const OWN_PAGES: nix::libc::c_int = 128 * 1024;

/// Fixes that size. To be called once, at the start of a program.
pub fn give_back_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and changes nothing but how later allocations are served.
    let fixed = unsafe { nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, OWN_PAGES) };
    #[cfg(target_env = "gnu")]
    if fixed == 0 {
        tracing::debug!("the allocator keeps its own rules");
    }
}
