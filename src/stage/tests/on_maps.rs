//! Chunk maps on the way that an update takes: two slots that are updated by turns, and maps that are missing,
//! stale, damaged or of other rules. Whatever a map says, the slot ends up right, and what was announced is what
//! was fetched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::bundle::{ChunkDigest, Index};
use crate::manifest::{Chunking, Image};
use crate::stage::sources::chunks::ChunkSource;
use crate::stage::sources::seed::Seed;
use crate::stage::sources::survey::Survey;
use crate::stage::testing::*;
use crate::stage::*;

/// A gateway that runs `old` and is offered `new`, which is `old` with some of it moved and some changed.
struct Gateway {
    bench: Bench,
    booted: PathBuf,
    maps: Maps,
    old: Vec<u8>,
}

impl Gateway {
    /// Slot A holds `old` from its own install, with the map that the install kept.
    async fn new() -> Gateway {
        let old = image(70, 6);
        let first = Bench::new(old.clone(), 0).await;
        let folder = first.folder.path();
        let maps = Maps { booted: folder.join("chunks.B"), target: folder.join("chunks.A") };
        first.update_by(&first.server.http(), None, Some(&maps), Meter::new(0, None, None)).await.unwrap();
        let map = fs::read(&maps.target).unwrap();

        let mut new = image(71, 1)[..40960].to_vec();
        new.extend_from_slice(&old);
        new[3 << 20..(3 << 20) + 4096].fill(0x11);
        let bench = Bench::new(new, 0).await;
        let folder = bench.folder.path();
        let booted = folder.join("booted");
        let maps = Maps { booted: folder.join("chunks.A"), target: folder.join("chunks.B") };
        fs::copy(&first.slot, &booted).unwrap();
        fs::write(&maps.booted, map).unwrap();
        Gateway { bench, booted, maps, old }
    }

    /// Updates slot B, of which nothing is known, and checks it; returns the bytes that were fetched.
    async fn update(&self) -> u64 {
        fs::write(&self.bench.slot, vec![0xaa; self.bench.image.len()]).unwrap();
        maps::forget(&self.maps.target);
        self.go_on().await
    }

    /// The same, whatever slot B holds.
    async fn go_on(&self) -> u64 {
        let bench = &self.bench;
        let before = bench.server.served.sent();
        let meter = Meter::new(0, None, None);
        bench.update_by(&bench.server.http(), Some(&self.booted), Some(&self.maps), meter).await.unwrap();
        bench.assert_complete();
        let progress = *bench.progress.borrow();
        let fetched = bench.server.served.sent() - before;
        assert_eq!((progress.downloaded, progress.expected_download), (fetched, fetched));
        fetched
    }

    /// What a survey reads of the booted slot, bytes.
    fn reads(&self) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        fs::write(&empty, vec![0; self.bench.image.len()]).unwrap();
        let maps = Maps { target: folder.path().join("none"), ..self.maps.clone() };
        let (read, origins) = self.survey(&empty, &maps);
        assert!(origins.iter().any(|origin| matches!(origin, ChunkSource::Seed(_))));
        read - self.bench.image.len() as u64
    }

    /// What a survey for a slot reads in all, bytes, and what it finds.
    fn survey(&self, slot: &Path, maps: &Maps) -> (u64, Vec<ChunkSource>) {
        let (index, image) = self.index();
        let (progress, cancel) = (watch(), CancellationToken::new());
        let seed = Seed::open(&self.booted).unwrap();
        let target = Target::acquire(slot, &[]).unwrap();
        let survey = Survey {
            index: &index,
            chunking: &image.chunking,
            target: &|buffer: &mut [u8], offset| target.read(buffer, offset),
            withheld: GUARD,
            seed: Some(&seed),
            maps: Some(maps),
            progress: &progress,
            cancel: &cancel,
        };
        let origins = survey.run(2).unwrap().iter().collect();
        let seen = *progress.borrow();
        // A thread that scans goes on into the next one's part, which is no progress.
        assert_eq!((seen.step, seen.done), (Step::Surveying, seen.total));
        (seen.total, origins)
    }

    /// Slot B gets this image by an update of its own, with the map that it keeps.
    async fn install(&self, image: &[u8]) {
        let mut bench = Bench::new(image.to_vec(), 0).await;
        bench.slot = self.bench.slot.clone();
        fs::write(&bench.slot, vec![0; self.bench.image.len()]).unwrap();
        let meter = Meter::new(0, None, None);
        bench.update_by(&bench.server.http(), None, Some(&self.maps), meter).await.unwrap();
    }

    fn index(&self) -> (Index, Image) {
        let parts = parts(&self.bench.image);
        let image = crate::manifest::Body::parse(&parts.manifest).unwrap().image;
        (Index::parse(parts.index, &image).unwrap(), image)
    }

    fn chunks(&self, map: &Path) -> BTreeSet<(u32, ChunkDigest)> {
        let (mut found, rules) = (BTreeSet::new(), self.index().1.chunking);
        assert!(maps::read(map, &rules, |digest, block| {
            found.insert((block, digest));
        }));
        found
    }
}

fn watch() -> tokio::sync::watch::Sender<Progress> {
    tokio::sync::watch::Sender::default()
}

#[tokio::test]
async fn an_install_keeps_its_map_and_the_next_update_reads_only_what_it_needs() {
    let gateway = Gateway::new().await;
    let slot = gateway.old.len() as u64;
    let read = gateway.reads();
    // A quarter of the image is zeros or changed; the head of the map's promise is that the rest is there.
    assert!(read > slot / 2 && read < slot * 9 / 10, "{read} of {slot}");
    let by_map = gateway.update().await;
    // Without a map all of the slot is read, the same is found, and the map is there for the next time.
    let kept = gateway.chunks(&gateway.maps.booted);
    fs::remove_file(&gateway.maps.booted).unwrap();
    assert_eq!(gateway.reads(), slot);
    let rebuilt = gateway.chunks(&gateway.maps.booted);
    assert!(kept.is_subset(&rebuilt), "{} of {} chunks", kept.intersection(&rebuilt).count(), kept.len());
    assert_eq!(gateway.reads(), read);
    fs::remove_file(&gateway.maps.booted).unwrap();
    assert_eq!(gateway.update().await, by_map);
    // The target's own map is that of the image it holds now.
    let (index, _) = gateway.index();
    let own = index.iter().filter(|chunk| !index.is_zero(chunk));
    let own: BTreeSet<_> = own.map(|chunk| ((chunk.offset / 4096) as u32, chunk.digest)).collect();
    assert_eq!(gateway.chunks(&gateway.maps.target), own);
}

#[tokio::test]
async fn a_slot_that_changed_a_little_costs_what_changed() {
    let gateway = Gateway::new().await;
    let (slot, before) = (gateway.old.len() as u64, gateway.update().await);
    // As a file system that is mounted read-write does: a block here and there.
    let mut booted = gateway.old.clone();
    booted.iter_mut().skip(1000).step_by(2 << 20).for_each(|byte| *byte ^= 1);
    fs::write(&gateway.booted, booted).unwrap();
    let map = fs::read(&gateway.maps.booted).unwrap();
    let after = gateway.update().await;
    assert!(after > before && after < before + (1 << 20), "{before}, then {after}");
    assert!(gateway.reads() < slot, "the slot was scanned");
    assert_eq!(fs::read(&gateway.maps.booted).unwrap(), map);
}

#[tokio::test]
async fn a_stale_map_leads_to_a_scan_that_finds_what_there_is() {
    let gateway = Gateway::new().await;
    let (slot, before) = (gateway.old.len() as u64, gateway.update().await);
    // Somebody wrote the same system to the slot by other means, 8 KiB further on.
    let mut booted = vec![0; 8192];
    booted.extend_from_slice(&gateway.old);
    booted.truncate(gateway.old.len());
    fs::write(&gateway.booted, booted).unwrap();
    assert!(gateway.reads() > slot, "the map was asked, and then the slot");
    assert!(gateway.reads() < slot, "the map is a new one");
    let after = gateway.update().await;
    assert!(after < before + (256 << 10), "{before}, then {after}");
}

#[tokio::test]
async fn a_map_of_other_rules_or_a_damaged_one_is_none() {
    let gateway = Gateway::new().await;
    let (slot, before) = (gateway.old.len() as u64, gateway.update().await);
    let whole = fs::read(&gateway.maps.booted).unwrap();
    let (index, image) = gateway.index();
    let other = Chunking { average: image.chunking.average * 2, ..image.chunking };
    let damages: [&dyn Fn(); 3] = [
        &|| maps::keep(&gateway.maps.booted, &index, &other),
        &|| fs::write(&gateway.maps.booted, &whole[..whole.len() - 7]).unwrap(),
        &|| fs::write(&gateway.maps.booted, vec![0xff; 100_000]).unwrap(),
    ];
    for damage in damages {
        damage();
        assert_eq!(gateway.reads(), slot);
        damage();
        assert_eq!(gateway.update().await, before);
    }
    // Every place in it is wrong, and beyond the slot's end.
    let draft = maps::Draft::new(&gateway.maps.booted, &gateway.index().1.chunking);
    index.iter().for_each(|chunk| draft.note(chunk.digest, u32::MAX));
    draft.finish();
    assert_eq!(gateway.update().await, before);
}

#[tokio::test]
async fn an_update_does_not_need_a_place_for_its_maps() {
    let mut gateway = Gateway::new().await;
    let before = gateway.update().await;
    let none = gateway.bench.folder.path().join("none");
    gateway.maps = Maps { booted: none.join("chunks.A"), target: none.join("chunks.B") };
    assert_eq!(gateway.update().await, before);
    assert!(!none.exists());
}

#[tokio::test]
async fn of_a_target_with_a_map_only_what_can_be_in_place_is_read() {
    let gateway = Gateway::new().await;
    let size = gateway.bench.image.len() as u64;
    // Slot B holds a sibling of the new image: its second half is the same.
    let mut sibling = gateway.bench.image.clone();
    fastrand::Rng::with_seed(72).fill(&mut sibling[..size as usize / 2]);
    gateway.install(&sibling).await;
    let none = Maps { target: gateway.bench.folder.path().join("none"), ..gateway.maps.clone() };
    let (whole, all) = gateway.survey(&gateway.bench.slot, &none);
    let (read, found) = gateway.survey(&gateway.bench.slot, &gateway.maps);
    assert!(all == found && found.contains(&ChunkSource::InPlace) && found.contains(&ChunkSource::Zero));
    // All but a sample of each 2 MiB.
    let spared = (whole - read) as i64 - size as i64 / 2;
    assert!(spared.abs() < 300 << 10, "{whole}, then {read}");
    let map = fs::read(&gateway.maps.target).unwrap();
    let with = gateway.go_on().await;
    gateway.install(&sibling).await;
    fs::remove_file(&gateway.maps.target).unwrap();
    assert_eq!(gateway.go_on().await, with);

    // Its records in any order tell the same.
    let line = map.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut records: Vec<_> = map[line..].chunks(20).collect();
    fastrand::Rng::with_seed(73).shuffle(&mut records);
    gateway.install(&sibling).await;
    fs::write(&gateway.maps.target, [&map[..line], &records.concat()].concat()).unwrap();
    assert_eq!(gateway.survey(&gateway.bench.slot, &gateway.maps), (read, found));
}

#[tokio::test]
async fn what_is_in_place_is_found_whatever_the_map_of_the_target_says() {
    let gateway = Gateway::new().await;
    gateway.install(&gateway.old).await;
    let map = fs::read(&gateway.maps.target).unwrap();
    let none = Maps { target: gateway.bench.folder.path().join("none"), ..gateway.maps.clone() };
    let bench = &gateway.bench;
    let mut half = gateway.old.clone();
    let middle = half.len() / 2;
    half.truncate(middle);
    half.extend_from_slice(&bench.image[middle..]);
    // Somebody wrote the new image to the slot by other means, or half of it; or something else altogether.
    for content in [&bench.image, &half, &vec![0xaa; bench.image.len()], &vec![0; bench.image.len()]] {
        fs::write(&bench.slot, content).unwrap();
        fs::write(&gateway.maps.target, &map).unwrap();
        let [with, without] = [&gateway.maps, &none].map(|maps| gateway.survey(&bench.slot, maps).1);
        let blank = content.iter().all(|byte| *byte == 0);
        for pair in with.into_iter().zip(without) {
            // Where the map knows of data, zeros are not looked for; to write them once more costs no byte.
            assert!(
                pair.0 == pair.1 || blank && pair == (ChunkSource::Zero, ChunkSource::InPlace),
                "{pair:?}"
            );
        }
        gateway.go_on().await;
    }
    // No block that was changed behind the map's back is taken for what it was.
    gateway.install(&gateway.old).await;
    let mut damaged = gateway.old.clone();
    damaged.resize(bench.image.len(), 0);
    damaged.iter_mut().skip(77).step_by(1 << 20).for_each(|byte| *byte ^= 1);
    fs::write(&bench.slot, damaged).unwrap();
    gateway.go_on().await;
}

#[tokio::test]
async fn a_slot_that_is_written_has_no_map_until_it_is_whole() {
    let gateway = Gateway::new().await;
    gateway.update().await;
    assert!(gateway.maps.target.exists());
    fs::write(&gateway.bench.slot, vec![0xaa; gateway.bench.image.len()]).unwrap();
    let head = gateway.bench.server.served.count() + 2;
    gateway.bench.server.served.script(move |request| match request.number < head {
        true => Act::Serve,
        false => Act::Status(404, String::new()),
    });
    let http = gateway.bench.server.http();
    let meter = Meter::new(0, None, None);
    let ended = gateway.bench.update_by(&http, Some(&gateway.booted), Some(&gateway.maps), meter).await;
    assert!(matches!(ended, Err(StageError::NotFound { .. })), "{ended:?}");
    assert!(!gateway.maps.target.exists());
    assert!(gateway.maps.booted.exists());
}
