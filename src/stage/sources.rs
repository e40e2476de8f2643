//! Where each chunk of the image comes from: found in the slots, without changing anything.

pub mod chunks;
pub mod duplicates;
pub mod maps;
pub mod patch;
pub mod plan;
pub mod scan;
pub mod seed;
pub mod shared;
pub mod survey;
