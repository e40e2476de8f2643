//! What the product's chunker wants from its manifest.

pub const BLOCK: u32 = 4096;

#[allow(dead_code, reason = "the chunker only reads some of it")]
pub struct Chunking {
    pub algorithm: String,
    pub block: u32,
    pub min: u32,
    pub average: u32,
    pub max: u32,
    pub group: u32,
}
