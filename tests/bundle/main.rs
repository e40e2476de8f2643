//! `fwupdate-bundle` as a build host uses it, and against the tools that everybody has: what `tar`, `zstd`
//! and `openssl` say of a bundle must be what we say.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "this file is tests only")]

/// What the tests of bundles share: a folder with a key and an image, and the commands that run in it.
mod desk;
/// What may be packed: images of file systems, and nothing that only looks like one.
mod images;
/// What is asked for by mistake: told in a sentence, with nothing destroyed or left behind.
mod mistakes;
/// A bundle from end to end: packed, unpacked by other tools, verified, looked at and estimated.
mod packing;
/// Patches from old images: what they save, and what other tools make of them.
mod patches;
/// Keys and signatures: ours, openssl's, and those of keys that we never see.
mod signing;
