//! The experiment behind docs/delta.md: how chunk sizes, grouping and dictionaries change the size of a bundle
//! and of an update, on real images.
//!
//!     experiment NEW OLD SAMPLE CONFIG...      CONFIG: MIN/AVERAGE/MAX/GROUP/FORM/LEVEL, see config.rs
//!
//! SAMPLE n: compress only every nth 4 MiB of the image and scale; 1 is exact, 0 does not compress at all.
//! `data` and `missing` are exact, uncompressed and without zeros. `full` and `delta` are what all chunks and
//! the missing ones take, `index` is 20 bytes a chunk, `dictionary` its length at level 19 if it has to be
//! fetched; `fetched` is the sum of the last three. Cut, grouped and packed as by `fwupdate-bundle create`:
//! `full` at 4/12/128/2048/blocks/LEVEL is its payload, to the byte.

#[path = "../../../../src/bundle/chunker.rs"]
mod chunker;
mod chunks;
mod config;
mod dictionary;
mod encoder;
mod manifest;
mod trial;
mod units;

use config::{Config, Form};

/// One line of the table.
struct Row {
    chunks: usize,
    data: usize,
    missing: usize,
    full: usize,
    delta: usize,
    index: usize,
    dictionary: usize,
}

impl Row {
    fn print(&self, name: &str) {
        let Row { chunks, data, missing, full, delta, index, dictionary } = self;
        let fetched = delta + index + dictionary;
        print!("{name:34} {chunks:>7} {data:>10} {missing:>10} {full:>10} ");
        println!("{delta:>10} {index:>8} {dictionary:>10} {fetched:>10}");
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, new, old, sample, configs @ ..] = args.as_slice() else {
        eprintln!("usage: experiment NEW OLD SAMPLE CONFIG...");
        std::process::exit(2);
    };
    let read = |path: &String| std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (new, old) = (read(new), read(old));
    let sample: usize = sample.parse().expect("SAMPLE: a number");
    print!("{:34} {:>7} {:>10} {:>10} {:>10} ", "config", "chunks", "data", "missing", "full");
    println!("{:>10} {:>8} {:>10} {:>10}", "delta", "index", "dictionary", "fetched");
    for c in configs.iter().map(|name| Config::parse(name)) {
        let row = match c.form {
            Form::Unit => units::run(&new, &old, &c),
            _ => trial::run(&new, &old, sample, &c),
        };
        row.print(&c.name);
    }
}
