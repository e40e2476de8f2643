//! Media that fail here and there, for a while, for ever, or without saying so. Whatever they do, a slot that can be
//! loaded holds the image, an error names the place, and what is right on them is not fetched again.

use std::path::Path;

use crate::manifest::CHUNK_CAP;
use crate::stage::testing::medium::{Fate, Medium, Transfer};
use crate::stage::testing::*;
use crate::stage::*;

const MIB: u64 = 1 << 20;

/// Bytes that an update fetches of this bundle before the payload.
async fn head(bench: &Bench) -> u64 {
    let bundle = bench.open(&bench.server.http(), Meter::new(0, None, None)).await.unwrap();
    bundle.layout().head_bytes()
}

/// Updates, and returns what was fetched, as announced.
async fn fetched(bench: &Bench, seed: Option<&Path>, maps: Option<&Maps>) -> u64 {
    bench.update_by(&bench.server.http(), seed, maps, Meter::new(0, None, None)).await.unwrap();
    bench.assert_complete();
    let told = *bench.progress.borrow();
    assert_eq!(told.downloaded, told.expected_download);
    told.downloaded
}

fn is_first(transfer: &Transfer<'_>) -> bool {
    transfer.offset < GUARD
}

fn has_data(transfer: &Transfer<'_>) -> bool {
    transfer.bytes.iter().any(|byte| *byte != 0)
}

/// As `Bench::assert_not_loadable`, whatever the medium says when it is read.
fn assert_not_loadable(medium: &Medium) {
    assert!(medium.content()[..GUARD as usize].iter().all(|byte| *byte == 0), "the first MiB is not zero");
}

/// An image in which nothing is there twice.
fn noise(seed: u64, mib: u64) -> Vec<u8> {
    let mut image = vec![0; (mib * MIB) as usize];
    fastrand::Rng::with_seed(seed).fill(&mut image);
    image
}

#[tokio::test]
async fn a_bad_sector_of_the_booted_slot_costs_what_can_only_be_read_with_it() {
    let (old, place) = (noise(110, 8), 5 * MIB + 77);
    let bench = Bench::new(old.clone(), 0).await;
    let head = head(&bench).await;
    let folder = bench.folder.path();
    let maps = Maps { booted: folder.join("chunks.A"), target: folder.join("chunks.B") };
    let install = Maps { booted: maps.target.clone(), target: maps.booted.clone() };
    bench.update_by(&bench.server.http(), None, Some(&install), Meter::new(0, None, None)).await.unwrap();
    let Some(booted) = Medium::holding(&old) else { return };
    booted.follow(move |transfer| if transfer.has(place) { Fate::Failed } else { Fate::Done });
    // With a map it is the chunk; a scan loses the piece that it reads, and some chunks before it cuts as before.
    for (maps, most) in [(Some(&maps), u64::from(CHUNK_CAP)), (None, MIB)] {
        std::fs::write(&bench.slot, vec![0xaa; old.len()]).unwrap();
        let cost = fetched(&bench, Some(&booted.path()), maps).await - head;
        assert!((4096..most).contains(&cost), "{cost}");
    }
}

#[tokio::test]
async fn a_bad_sector_of_the_target_is_written_anew() {
    let place = 3 * MIB + 77;
    let mut bench = Bench::new(noise(111, 6), 0).await;
    let head = head(&bench).await;
    let mut held = bench.image.clone();
    held[0] ^= 1;
    let Some(target) = Medium::holding(&held) else { return };
    bench.slot = target.path();
    // It can be read again once it was written: the drive has a spare one.
    let mut is_bad = true;
    target.follow(move |transfer| {
        is_bad &= !(transfer.has(place) && transfer.is_write);
        if is_bad && transfer.has(place) { Fate::Failed } else { Fate::Done }
    });
    let cost = fetched(&bench, None, None).await - head;
    // The first MiB is always written, and the chunk that could not be read.
    let most = GUARD + u64::from(2 * CHUNK_CAP);
    assert!((GUARD..most).contains(&cost), "{cost}");
}

#[tokio::test]
async fn a_sector_that_stays_bad_ends_the_update_with_its_place() {
    let place = 3 * MIB;
    for writes_fail in [false, true] {
        let mut bench = Bench::new(image(112, 6), 0).await;
        let Some(target) = Medium::holding(&vec![0xaa; bench.image.len()]) else { return };
        bench.slot = target.path();
        target.follow(move |transfer| match transfer.has(place) && transfer.is_write == writes_fail {
            true => Fate::Failed,
            false => Fate::Done,
        });
        match bench.update().await.unwrap_err() {
            StageError::Slot { path, offset, .. } => {
                assert_eq!(path, bench.slot);
                assert!((offset..offset + MIB).contains(&place), "{offset}");
            }
            other => panic!("{other}"),
        }
        assert_not_loadable(&target);
        // What came is kept, and another sector serves.
        target.follow(|_| Fate::Done);
        let before = bench.progress.borrow().downloaded;
        let again = fetched(&bench, None, None).await;
        assert!(writes_fail || again < before / 2, "{before}, then {again}");
    }
}

#[tokio::test]
async fn a_first_mib_that_does_not_come_back_is_taken_away_again() {
    // It can't be read after it was written; it was not written although the medium said so; or it ends where it begins.
    for fate in [Fate::Failed, Fate::Lost, Fate::Short(0)] {
        let mut bench = Bench::new(image(113, 4), 0).await;
        let head = head(&bench).await;
        let Some(target) = Medium::holding(&vec![0xaa; bench.image.len()]) else { return };
        bench.slot = target.path();
        let mut is_written = false;
        target.follow(move |transfer| {
            let is_last = is_first(transfer) && transfer.is_write && has_data(transfer);
            is_written |= is_last;
            match fate {
                Fate::Lost if is_last => fate,
                Fate::Lost => Fate::Done,
                _ if is_written && is_first(transfer) && !transfer.is_write => fate,
                _ => Fate::Done,
            }
        });
        match bench.update().await.unwrap_err() {
            StageError::Slot { path, offset, .. } => assert!(path == bench.slot && offset < GUARD),
            other => panic!("{other}"),
        }
        assert_not_loadable(&target);
        assert!(target.content()[GUARD as usize..] == bench.image[GUARD as usize..]);
        target.follow(|_| Fate::Done);
        assert!(fetched(&bench, None, None).await <= head + GUARD + u64::from(CHUNK_CAP));
    }
}

#[tokio::test]
async fn writes_that_a_medium_loses_are_found_by_the_read_back() {
    let place = 2 * MIB;
    let mut bench = Bench::new(image(114, 4), 0).await;
    let Some(target) = Medium::holding(&vec![0xaa; bench.image.len()]) else { return };
    bench.slot = target.path();
    target.follow(move |transfer| match transfer.has(place) && transfer.is_write {
        true => Fate::Lost,
        false => Fate::Done,
    });
    let ended = bench.update().await;
    assert!(matches!(ended, Err(StageError::ReadBack { .. })), "{ended:?}");
    assert_not_loadable(&target);

    // Were the zeros of the first MiB lost, the old image could still be loaded while it is overwritten.
    let before = target.content();
    let Some(target) = Medium::holding(&vec![0xaa; bench.image.len()]) else { return };
    bench.slot = target.path();
    target.follow(|transfer| if is_first(transfer) && transfer.is_write { Fate::Lost } else { Fate::Done });
    let ended = bench.update().await;
    assert!(matches!(ended, Err(StageError::Slot { .. })), "{ended:?}");
    assert!(target.content().iter().all(|byte| *byte == 0xaa) && before != target.content());
}

#[tokio::test]
async fn short_transfers_are_gone_on_with() {
    let mut bench = Bench::new(image(115, 4), 3 << 19).await;
    let Some(target) = Medium::holding(&vec![0xaa; bench.image.len() + (3 << 19)]) else { return };
    bench.slot = target.path();
    target.follow(|transfer| Fate::Short(if transfer.is_write { 8192 } else { 12288 }));
    let first = fetched(&bench, None, None).await;
    assert!(fetched(&bench, None, None).await < first / 4, "what is there is read in short transfers too");
}
