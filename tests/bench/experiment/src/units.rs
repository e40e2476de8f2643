//! The block method: 4 KiB blocks are looked up one by one, but fetched in compressed units of GROUP.

use crate::Row;
use crate::chunks::{bytes, chunks, missing};
use crate::config::Config;
use crate::encoder::Encoder;

/// Bytes of index a block: a whole digest.
const ENTRY: usize = 32;

pub fn run(new: &[u8], old: &[u8], c: &Config) -> Row {
    let (own, held) = (chunks(new, c), chunks(old, c));
    let missing = missing(&own, &held);
    let units = missing.chunks(c.group / c.min).zip(new.chunks(c.group));
    let fetched: Vec<&[u8]> = units.filter(|(part, _)| part.contains(&true)).map(|(_, unit)| unit).collect();
    Row {
        chunks: own.len(),
        data: bytes(&own, |n| !own[n].zero),
        missing: bytes(&own, |n| missing[n]),
        full: 0,
        delta: size(&fetched, c.level),
        index: ENTRY * own.len(),
        dictionary: 0,
    }
}

/// Compresses the units, on two threads.
fn size(units: &[&[u8]], level: i32) -> usize {
    let work = |part: &[&[u8]]| -> usize {
        let mut encoder = Encoder::new(level);
        part.iter().map(|unit| encoder.frame(unit, None)).sum()
    };
    let (a, b) = units.split_at(units.len() / 2);
    std::thread::scope(|scope| {
        let (a, b) = (scope.spawn(move || work(a)), scope.spawn(move || work(b)));
        a.join().unwrap() + b.join().unwrap()
    })
}
