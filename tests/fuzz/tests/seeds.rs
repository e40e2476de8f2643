//! Seeds get through their parsers, and nothing that was ever found ends a process again.

// Clippy exempts only functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::Path;

use fwupdate_fuzz::TARGETS;

#[test]
fn every_seed_reaches_behind_its_parser() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seed", target.name);
        for (number, seed) in seeds.iter().enumerate() {
            assert!((target.run)(seed), "seed {number} of {} is refused", target.name);
        }
    }
}

/// Every prefix, and every byte changed: what a fuzzer does in its first second.
#[test]
fn damaged_seeds_are_refused_or_understood_and_end_nothing() {
    for target in TARGETS {
        for seed in (target.seeds)().into_iter().filter(|seed| seed.len() < 4096) {
            for end in 0..seed.len() {
                (target.run)(&seed[..end]);
                let mut changed = seed.clone();
                changed[end] = changed[end].wrapping_add(0x81);
                (target.run)(&changed);
            }
        }
    }
}

#[test]
fn what_was_found_once_stays_mended() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("findings");
    let mut found = 0;
    for target in TARGETS {
        let Ok(files) = fs::read_dir(folder.join(target.name)) else { continue };
        for file in files {
            (target.run)(&fs::read(file.unwrap().path()).unwrap());
            found += 1;
        }
    }
    let all = fs::read_dir(&folder).unwrap().map(|sub| fs::read_dir(sub.unwrap().path()).unwrap().count());
    assert_eq!(found, all.sum::<usize>(), "a folder in findings is no target's");
}
