//! The plan is carried out: chunks are brought from their sources, unpacked, verified and written.

pub mod fetcher;
pub mod patch;
pub mod unpack;
pub mod writer;
