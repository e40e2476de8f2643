//! The experiment behind docs/delta.md: how chunk sizes, grouping, shared windows and dictionaries change the
//! size of a bundle and of an update, on real images.
//!
//!     experiment NEW OLD SAMPLE CONFIG...      CONFIG: min/average/max/group/mode/level, sizes in KiB
//!
//! `mode` is how a chunk is compressed: `frame` (alone), `prefix` (behind the earlier bytes of its group, as
//! one zstd frame with a prefix), `blocks` (as one block of the group's single zstd frame, which uses neither
//! tables nor repeated offsets of earlier blocks), `dict` (alone, with a trained dictionary of `group` KiB).
//! SAMPLE n: compress only every nth 4 MiB of the image and scale; 1 is exact.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::Digest;
use zstd_sys::*;

const BLOCK: usize = 4096;

struct Config {
    name: String,
    min: usize,
    average: usize,
    max: usize,
    group: usize,
    mode: String,
    level: i32,
}

fn config(name: &str) -> Config {
    let part: Vec<&str> = name.split('/').collect();
    let size = |n: usize| part[n].parse::<usize>().unwrap() * 1024;
    let (min, average, max, group) = (size(0), size(1), size(2), size(3));
    Config { name: name.into(), min, average, max, group, mode: part[4].into(), level: part[5].parse().unwrap() }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

fn hash(block: &[u8]) -> u64 {
    let words = block.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap()));
    let mut h = words.fold(0u64, |h, w| (h.rotate_left(23) ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// (start, length, zero) of every chunk; the rules of `cdc-4k`, and fixed blocks when average = min.
fn cut(image: &[u8], c: &Config) -> Vec<(usize, usize, bool)> {
    let (min, max) = (c.min / BLOCK, c.max / BLOCK);
    let spread = (c.average - c.min) / BLOCK;
    let threshold = if spread == 0 { u64::MAX } else { u64::MAX / spread as u64 };
    let zero_run = min.max(2);
    let (mut chunks, mut start, mut zeros) = (Vec::new(), 0, 0);
    let blocks = image.len() / BLOCK;
    for at in 0..blocks {
        let block = &image[at * BLOCK..(at + 1) * BLOCK];
        let length = at - start;
        let end = |chunks: &mut Vec<_>, start: &mut usize, end: usize, zero| {
            chunks.push((*start * BLOCK, (end - *start) * BLOCK, zero));
            *start = end;
        };
        if is_zero(block) {
            zeros += 1;
            if zeros < length + 1 && zeros == zero_run {
                end(&mut chunks, &mut start, at + 1 - zeros, false);
            } else if length + 1 == max {
                end(&mut chunks, &mut start, at + 1, zeros == max);
                zeros = 0;
            }
            continue;
        }
        if length > 0 && zeros == length {
            end(&mut chunks, &mut start, at, true);
        }
        zeros = 0;
        let length = at + 1 - start;
        if length == max || (length >= min && hash(block) < threshold) {
            end(&mut chunks, &mut start, at + 1, false);
        }
    }
    if start < blocks {
        chunks.push((start * BLOCK, (blocks - start) * BLOCK, zeros == blocks - start));
    }
    chunks
}

fn digests(image: &[u8], chunks: &[(usize, usize, bool)]) -> Vec<[u8; 32]> {
    let parts = chunks.chunks(chunks.len().div_ceil(2));
    std::thread::scope(|scope| {
        let work = |part: &[(usize, usize, bool)]| -> Vec<[u8; 32]> {
            part.iter().map(|(at, n, _)| sha2::Sha256::digest(&image[*at..at + n]).into()).collect()
        };
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    })
}

struct Encoder(*mut ZSTD_CCtx, Vec<u8>, Vec<ZSTD_Sequence>);

impl Encoder {
    fn new() -> Encoder {
        Encoder(unsafe { ZSTD_createCCtx() }, vec![0; 1 << 23], Vec::new())
    }

    fn set(&self, parameter: ZSTD_cParameter, value: i32) {
        let code = unsafe { ZSTD_CCtx_setParameter(self.0, parameter, value) };
        assert!(unsafe { ZSTD_isError(code) } == 0, "{parameter:?} {value}");
    }

    fn reset(&self, level: i32) {
        unsafe { ZSTD_CCtx_reset(self.0, ZSTD_ResetDirective::ZSTD_reset_session_and_parameters) };
        self.set(ZSTD_cParameter::ZSTD_c_compressionLevel, level);
    }

    fn frame(&mut self, level: i32, prefix: &[u8], dict: *const ZSTD_CDict, content: &[u8]) -> usize {
        self.reset(level);
        unsafe {
            if !prefix.is_empty() {
                self.set(ZSTD_cParameter::ZSTD_c_windowLog, 23);
                ZSTD_CCtx_refPrefix(self.0, prefix.as_ptr().cast(), prefix.len());
            }
            if !dict.is_null() {
                ZSTD_CCtx_refCDict(self.0, dict);
            }
            let out = ZSTD_compress2(self.0, self.1.as_mut_ptr().cast(), self.1.len(), content.as_ptr().cast(), content.len());
            assert!(ZSTD_isError(out) == 0);
            out
        }
    }

    /// The group's sequences, then each chunk's own as a block.
    fn blocks(&mut self, level: i32, group: &[u8], lengths: &[usize], out: &mut Vec<usize>) {
        self.reset(level);
        let bound = unsafe { ZSTD_sequenceBound(group.len()) };
        let none = ZSTD_Sequence { offset: 0, litLength: 0, matchLength: 0, rep: 0 };
        self.2.resize(bound, none);
        let count = unsafe { ZSTD_generateSequences(self.0, self.2.as_mut_ptr(), bound, group.as_ptr().cast(), group.len()) };
        assert!(unsafe { ZSTD_isError(count) } == 0);
        let mut sequences = self.2[..count].iter().copied();
        let mut rest = none;
        let mut at = 0;
        for length in lengths {
            let (mut own, mut left, mut literals) = (Vec::new(), *length, 0usize);
            while left > 0 {
                if rest.litLength == 0 && rest.matchLength == 0 {
                    rest = sequences.next().unwrap();
                    continue;
                }
                let lit = (rest.litLength as usize).min(left);
                rest.litLength -= lit as u32;
                literals += lit;
                left -= lit;
                if rest.litLength > 0 || rest.matchLength == 0 {
                    continue;
                }
                let m = (rest.matchLength as usize).min(left);
                if m == 0 {
                    continue;
                }
                rest.matchLength -= m as u32;
                left -= m;
                if m < 3 {
                    literals += m;
                } else {
                    own.push(ZSTD_Sequence { offset: rest.offset, litLength: literals as u32, matchLength: m as u32, rep: 0 });
                    literals = 0;
                }
                // What a boundary leaves of a match may be too short for one.
                if rest.matchLength > 0 && rest.matchLength < 3 {
                    rest = ZSTD_Sequence { litLength: rest.matchLength, matchLength: 0, ..none };
                }
            }
            own.push(ZSTD_Sequence { litLength: literals as u32, ..none });
            self.reset(level);
            self.set(ZSTD_cParameter::ZSTD_c_experimentalParam11, 1); // explicit block delimiters
            self.set(ZSTD_cParameter::ZSTD_c_experimentalParam19, 2); // no repeated offsets
            self.set(ZSTD_cParameter::ZSTD_c_minMatch, 3);
            self.set(ZSTD_cParameter::ZSTD_c_windowLog, 23);
            let content = &group[at..at + length];
            let size = unsafe {
                ZSTD_compressSequences(self.0, self.1.as_mut_ptr().cast(), self.1.len(), own.as_ptr(), own.len(), content.as_ptr().cast(), content.len())
            };
            assert!(unsafe { ZSTD_isError(size) } == 0, "{size}");
            let header = unsafe { ZSTD_frameHeaderSize(self.1.as_ptr().cast(), size) };
            out.push(size - header);
            at += length;
        }
    }
}

fn dictionary(image: &[u8], chunks: &[(usize, usize, bool)], c: &Config) -> *const ZSTD_CDict {
    let step = (chunks.len() / 6000).max(1);
    let picked: Vec<_> = chunks.iter().step_by(step).filter(|chunk| !chunk.2).collect();
    let samples: Vec<u8> = picked.iter().flat_map(|(at, n, _)| image[*at..at + n.min(&32768)].iter().copied()).collect();
    let sizes: Vec<usize> = picked.iter().map(|(_, n, _)| *n.min(&32768)).collect();
    let mut dict = vec![0u8; c.group];
    unsafe {
        let size = ZDICT_trainFromBuffer(dict.as_mut_ptr().cast(), dict.len(), samples.as_ptr().cast(), sizes.as_ptr(), sizes.len() as u32);
        assert!(ZDICT_isError(size) == 0);
        ZSTD_createCDict(dict.as_ptr().cast(), size, c.level)
    }
}

/// The block method: 4 KiB blocks are looked up one by one, but fetched in compressed units of `group`.
fn units(new: &[u8], old: &[u8], c: &Config) {
    let blocks = |image: &[u8]| -> Vec<(usize, usize, bool)> {
        image.chunks(BLOCK).enumerate().map(|(n, b)| (n * BLOCK, b.len(), is_zero(b))).collect()
    };
    let own = blocks(new);
    let held: HashSet<[u8; 32]> = digests(old, &blocks(old)).into_iter().collect();
    let missing: Vec<bool> =
        digests(new, &own).iter().zip(&own).map(|(d, block)| !block.2 && !held.contains(d)).collect();
    let per = c.group / BLOCK;
    let units: Vec<usize> = (0..missing.len().div_ceil(per))
        .filter(|n| missing[n * per..(n * per + per).min(missing.len())].iter().any(|m| *m))
        .collect();
    let size = |units: &[usize]| -> usize {
        let mut encoder = Encoder::new();
        let unit = |n: &usize| &new[n * c.group..(n * c.group + c.group).min(new.len())];
        units.iter().map(|n| encoder.frame(c.level, &[], std::ptr::null(), unit(n))).sum()
    };
    let delta: usize = std::thread::scope(|scope| {
        let size = &size;
        let threads: Vec<_> =
            units.chunks(units.len().div_ceil(2)).map(|part| scope.spawn(move || size(part))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let index = 32 * missing.len();
    println!("{:28} delta {delta} index {index} (32 bytes a block) units {}", c.name, units.len());
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (new, old) = (std::fs::read(&args[1]).unwrap(), std::fs::read(&args[2]).unwrap());
    let sample: usize = args[3].parse().unwrap();
    println!("{:28} {:>8} {:>11} {:>11} {:>9} {:>11}", "config", "chunks", "payload", "delta", "index", "delta+index");
    // The same places of the image whatever the chunks are.
    let sampled = |offset: usize| (offset / (4 << 20)) % sample == sample / 2;
    for c in args[4..].iter().map(|name| config(name)) {
        if c.mode == "unit" {
            units(&new, &old, &c);
            continue;
        }
        let chunks = cut(&new, &c);
        let held: HashSet<[u8; 32]> = digests(&old, &cut(&old, &c)).into_iter().collect();
        let missing: Vec<bool> =
            digests(&new, &chunks).iter().zip(&chunks).map(|(d, chunk)| !chunk.2 && !held.contains(d)).collect();
        let dict = if c.mode == "dict" { dictionary(&new, &chunks, &c) } else { std::ptr::null() };
        // Groups: chunk ranges of at most `group` bytes; zero chunks end one.
        let (mut groups, mut first, mut bytes) = (Vec::new(), 0, 0);
        for (n, (_, length, zero)) in chunks.iter().enumerate() {
            if *zero || bytes + length > c.group || c.mode == "dict" {
                if first < n { groups.push(first..n) }
                (first, bytes) = (n, 0);
            }
            if *zero { first = n + 1; } else { bytes += length; }
        }
        if first < chunks.len() { groups.push(first..chunks.len()) }
        let next = AtomicUsize::new(0);
        let totals = Mutex::new((0usize, 0usize, 0usize, 0usize, 0usize));
        let dict_address = dict as usize;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut encoder = Encoder::new();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let Some(group) = groups.get(n) else { break };
                        let bytes: usize = chunks[group.clone()].iter().map(|chunk| chunk.1).sum();
                        let lost: usize = group.clone().filter(|n| missing[*n]).map(|n| chunks[n].1).sum();
                        let used = sampled(chunks[group.start].0);
                        let (mut payload, mut delta) = (0, 0);
                        if used {
                            let start = chunks[group.start].0;
                            let lengths: Vec<usize> = chunks[group.clone()].iter().map(|chunk| chunk.1).collect();
                            let mut sizes = Vec::new();
                            if c.mode == "blocks" {
                                encoder.blocks(c.level, &new[start..start + bytes], &lengths, &mut sizes);
                            } else {
                                let mut at = start;
                                for length in &lengths {
                                    let prefix = if c.mode == "prefix" { &new[start..at] } else { &[][..] };
                                    sizes.push(encoder.frame(c.level, prefix, dict_address as *const _, &new[at..at + length]));
                                    at += length;
                                }
                            }
                            payload = sizes.iter().sum();
                            delta = group.clone().zip(&sizes).filter(|(n, _)| missing[*n]).map(|(_, size)| size).sum();
                        }
                        let mut t = totals.lock().unwrap();
                        t.0 += bytes;
                        t.1 += lost;
                        if used {
                            t.2 += bytes;
                            t.3 += payload;
                            t.4 += delta;
                        }
                    }
                });
            }
        });
        let t = totals.into_inner().unwrap();
        let lost_used: usize = {
            groups.iter().filter(|group| sampled(chunks[group.start].0)).flat_map(|group| group.clone())
                .filter(|n| missing[*n]).map(|n| chunks[n].1).sum()
        };
        let payload = t.3 as f64 * t.0 as f64 / t.2 as f64;
        let delta = if lost_used > 0 { t.4 as f64 * t.1 as f64 / lost_used as f64 } else { 0.0 };
        let index = 16 + 40 * chunks.len();
        println!(
            "{:28} {:>8} {:>11.0} {:>11.0} {:>9} {:>11.0}  data {} missing {}",
            c.name, chunks.len(), payload, delta, index, delta + index as f64, t.0, t.1
        );
    }
}
