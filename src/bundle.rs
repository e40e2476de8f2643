//! The container: a strict ustar with four members and two more a patch, and the binary lists inside it.
//! Bytes <-> values, no I/O; the format is specified in docs/bundle-format.md.
//!
//! A reader takes the first `HEAD_MAX` bytes of the file (or all, if it is shorter), asks `head`, opens the
//! manifest, and from then on every position follows from signed sizes: `Head::layout`, the bytes of
//! `Layout::index_span`, `Layout::index`, `Index::parse`, and a `Decoder` for the frames.

mod chunk;
pub mod chunker;
mod error;
mod frame;
mod frames;
mod head;
mod index;
mod layout;
mod list;
mod members;
mod patch;
mod records;
mod runs;
pub mod tar;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use chunk::{Chunk, ChunkDigest, offset_of};
pub use error::BundleError;
pub use frame::{BLOCK_HEADER, Decoder, frame_bound, frame_header, verify};
pub use frames::{OUTPUT_CAP, PREFIX_CAP, PatchFrame, PatchIndexWriter, PrefixDigest};
pub use head::{HEAD_MAX, Head, head};
pub use index::Index;
pub use layout::{FIRST_READ, Layout};
pub use members::{MEMBERS, PATCH_MEMBERS};
pub use patch::PatchIndex;
pub use records::{Chunks, IndexWriter, Keeper};
pub use runs::{GAP, LONGEST, Run, join, runs};
