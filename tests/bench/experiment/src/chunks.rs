//! An image as chunks: by the product's own chunker, at fixed places, or at any byte.

use std::collections::HashSet;
use std::ops::Range;

use sha2::Digest;

use crate::chunker::{self, ALGORITHM, Cutter, is_zero};
use crate::config::Config;
use crate::manifest::{BLOCK, Chunking};

pub struct Chunk {
    pub range: Range<usize>,
    pub zero: bool,
    digest: [u8; 32],
}

/// Cuts `image`; where average and maximum are the minimum, at fixed places.
pub fn chunks(image: &[u8], c: &Config) -> Vec<Chunk> {
    let ends = match c {
        _ if c.max == c.min => fixed(image.len(), c.min),
        _ if c.bytes => rolling(image, c),
        _ => cut(image, c),
    };
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let ranges: Vec<Range<usize>> = starts.zip(&ends).map(|(start, end)| start..*end).collect();
    let chunk = |range: &Range<usize>| {
        let content = &image[range.clone()];
        Chunk { range: range.clone(), zero: is_zero(content), digest: sha2::Sha256::digest(content).into() }
    };
    std::thread::scope(|scope| {
        let part = ranges.len().div_ceil(2);
        let work = |part: &[Range<usize>]| part.iter().map(chunk).collect::<Vec<Chunk>>();
        let threads: Vec<_> = ranges.chunks(part).map(|part| scope.spawn(move || work(part))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Which of `new` have content that none of `old` has; zeros never count.
pub fn missing(new: &[Chunk], old: &[Chunk]) -> Vec<bool> {
    let held: HashSet<[u8; 32]> = old.iter().map(|chunk| chunk.digest).collect();
    new.iter().map(|chunk| !chunk.zero && !held.contains(&chunk.digest)).collect()
}

/// The bytes of those chunks that are wanted, by number.
pub fn bytes(chunks: &[Chunk], wanted: impl Fn(usize) -> bool) -> usize {
    (0..chunks.len()).filter(|n| wanted(*n)).map(|n| chunks[n].range.len()).sum()
}

fn fixed(size: usize, length: usize) -> Vec<usize> {
    (1..=size.div_ceil(length)).map(|n| (n * length).min(size)).collect()
}

fn cut(image: &[u8], c: &Config) -> Vec<usize> {
    let size = |bytes: usize| bytes as u32;
    let rules = Chunking {
        algorithm: ALGORITHM.into(),
        min: size(c.min),
        average: size(c.average),
        max: size(c.max),
        group: size(c.group),
        ..chunker::default_chunking()
    };
    let mut cutter = Cutter::new(&rules).expect("sizes that the chunker takes");
    let (mut ends, mut end) = (Vec::new(), 0);
    cutter.push(image, |chunk| {
        end += chunk.len();
        ends.push(end);
    });
    ends.extend(cutter.finish().map(|rest| end + rest.len()));
    ends
}

/// Cuts where the last 64 bytes say so: a sum of random numbers for the bytes, each shifted by its distance.
fn rolling(image: &[u8], c: &Config) -> Vec<usize> {
    let numbers: Vec<u64> = (0..256).map(mixed).collect();
    let threshold = u64::MAX / (c.average - c.min) as u64;
    let (mut ends, mut start, mut hash) = (Vec::new(), 0, 0u64);
    for (at, byte) in image.iter().enumerate() {
        hash = (hash << 1).wrapping_add(numbers[*byte as usize]);
        let length = at + 1 - start;
        if length == c.max || (length >= c.min && hash < threshold) {
            ends.push(at + 1);
            (start, hash) = (at + 1, 0);
        }
    }
    if start < image.len() {
        ends.push(image.len());
    }
    ends
}

/// A number that looks random, the same for the same `seed` (the finishing steps of MurmurHash3).
fn mixed(seed: u64) -> u64 {
    let n = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let n = (n ^ (n >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    n ^ (n >> 33)
}
