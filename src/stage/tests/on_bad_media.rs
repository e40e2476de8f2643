//! Media that can't be read everywhere: loop devices over files that end too early. What lies behind the file's
//! end is still part of the device, answers EIO when it is read, and can be read again once it was written, as a
//! bad sector for which the drive has a spare one. Loop devices need root; without it, each test says so and passes
//! over.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::errno::Errno;

use crate::stage::slot::testing::Loop;
use crate::stage::testing::*;
use crate::stage::*;

const MIB: u64 = 1 << 20;
/// What a place costs at most beyond its own bytes: it is read together with its neighbours.
const NEIGHBOURS: u64 = MIB + MIB / 4;

/// A loop device over a file of the bench's folder.
struct Medium {
    file: PathBuf,
    device: Loop,
}

impl Medium {
    /// `None` without root.
    fn holding(bench: &Bench, name: &str, content: &[u8]) -> Option<Medium> {
        let file = bench.folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        let device = Loop::over(&file, 512)?;
        Some(Medium { file, device })
    }

    fn path(&self) -> &Path {
        &self.device.device
    }

    /// From here on nothing can be read.
    fn break_from(&self, place: u64) {
        cut(&self.file, place);
        assert_unreadable(self.path(), place);
    }
}

fn cut(file: &Path, place: u64) {
    OpenOptions::new().write(true).open(file).unwrap().set_len(place).unwrap();
}

fn assert_unreadable(path: &Path, place: u64) {
    let read = File::open(path).unwrap().read_exact_at(&mut [0; 4096], place);
    assert_eq!(read.unwrap_err().raw_os_error(), Some(Errno::EIO as i32));
}

/// Where the group of the image's last chunk begins.
fn last_group(image: &[u8]) -> u64 {
    let parts = parts(image);
    let held = crate::manifest::Body::parse(&parts.manifest).unwrap().image;
    crate::bundle::Index::parse(parts.index, &held).unwrap().iter().last().unwrap().group_offset
}

/// Runs `action` at the first request of the payload, before a byte of it is sent. Until then no thread has anything
/// to write or to read back.
fn at_the_payload(bench: &Bench, action: impl FnOnce() + Send + 'static) {
    let (progress, action) = (bench.progress.clone(), Mutex::new(Some(action)));
    bench.server.served.script(move |_| {
        if progress.borrow().step == Step::Writing {
            let action = action.lock().unwrap().take();
            action.into_iter().for_each(|action| action());
        }
        Act::Serve
    });
}

/// The update ended well, and told the truth: what was announced was fetched, and that is what the server sent.
fn assert_truthful(bench: &Bench, fetched: u64) {
    bench.assert_complete();
    let told = *bench.progress.borrow();
    assert_eq!((told.downloaded, told.expected_download), (fetched, fetched));
}

fn assert_slot_failed(ended: Result<(), StageError>, slot: &Path, place: u64) {
    match ended.unwrap_err() {
        StageError::Slot { path, offset, source } => {
            assert_eq!((path.as_path(), source.raw_os_error()), (slot, Some(Errno::EIO as i32)));
            assert!((offset..offset + MIB).contains(&place), "{offset} is not where it failed");
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_unreadable_place_of_the_booted_slot_costs_its_bytes() {
    const SIZE: u64 = 12 * MIB;
    // Nothing in it is there twice.
    let mut old = vec![0; SIZE as usize];
    fastrand::Rng::with_seed(90).fill(&mut old);
    let bundle = parts(&old).join();
    // A place that is small beside what the map promises; a large one, so that the map counts as stale; and no map.
    for (lost, mapped) in [(MIB / 4, true), (5 * MIB, true), (MIB / 4, false)] {
        let mut bench = Bench::serving(old.clone(), bundle.clone(), 0).await;
        let http = bench.server.http();
        let folder = bench.folder.path().to_owned();
        let maps = Maps { booted: folder.join("chunks.A"), target: folder.join("chunks.B") };
        if mapped {
            let install = Maps { booted: maps.target.clone(), target: maps.booted.clone() };
            bench.update_by(&http, None, Some(&install), Meter::new(0, None, None)).await.unwrap();
        }
        let Some(booted) = Medium::holding(&bench, "booted", &old) else { return };
        booted.break_from(SIZE - lost);
        bench.slot = folder.join("other");
        std::fs::write(&bench.slot, vec![0xaa; old.len()]).unwrap();

        let (before, map) = (bench.server.served.sent(), std::fs::read(&maps.booted).ok());
        let used = mapped.then_some(&maps);
        bench.update_by(&http, Some(booted.path()), used, Meter::new(0, None, None)).await.unwrap();
        let fetched = bench.server.served.sent() - before;
        assert_truthful(&bench, fetched);
        assert!((lost..lost + NEIGHBOURS).contains(&fetched), "{fetched} for {lost}, mapped: {mapped}");
        // A scan would have made another map.
        let scanned = std::fs::read(&maps.booted).ok() != map;
        assert_eq!(scanned, mapped && lost > MIB, "a slot that lost little of its map is not scanned");
    }
}

#[tokio::test]
async fn what_the_booted_slot_can_no_longer_read_after_the_survey_is_fetched_after_all() {
    let old = image(91, 6);
    let place = last_group(&old);
    let mut new = old.clone();
    new[place as usize..place as usize + 4096].fill(0x22);
    let bench = Bench::new(new, 0).await;
    let Some(booted) = Medium::holding(&bench, "booted", &old) else { return };
    // The group waits for its first chunk, which alone was to be fetched.
    let (file, device) = (booted.file.clone(), booted.path().to_owned());
    let (progress, announced) = (bench.progress.clone(), std::sync::Arc::new(Mutex::new(0)));
    let first = announced.clone();
    at_the_payload(&bench, move || {
        *first.lock().unwrap() = progress.borrow().expected_download;
        cut(&file, place);
        assert_unreadable(&device, place);
    });
    bench.update_with(&bench.server.http(), Some(booted.path()), Meter::new(0, None, None)).await.unwrap();
    assert_truthful(&bench, bench.server.served.sent());
    let (announced, lost) = (*announced.lock().unwrap(), 6 * MIB - place);
    assert!(announced > 0 && bench.server.served.sent() > announced + lost / 2, "{announced}");
}

#[tokio::test]
async fn an_unreadable_place_of_the_target_is_written_anew() {
    let (size, spare, place) = (6, 2, 3 * MIB + 512);
    let mut bench = Bench::new(image(92, size), spare << 20).await;
    let whole = [&bench.image[..], &vec![0xaa; spare << 20]].concat();
    let Some(target) = Medium::holding(&bench, "target", &whole) else { return };
    bench.slot = target.path().to_owned();
    // Half of the image, and the end of the slot, which is to be cleared.
    target.break_from(place.next_multiple_of(4096));
    bench.update().await.unwrap();
    let fetched = bench.server.served.sent();
    assert_truthful(&bench, fetched);
    // The first MiB is always written, and about two more were right.
    let least = (size as u64 * MIB - place + MIB) / 4 * 3;
    assert!((least..least + NEIGHBOURS).contains(&fetched), "{fetched}");
}

#[tokio::test]
async fn what_the_target_can_no_longer_read_after_the_survey_is_fetched_after_all() {
    let old = image(93, 6);
    let place = last_group(&old);
    let mut new = old.clone();
    // The last chunk is unpacked behind all others of its group, which were in place.
    let end = new.len() - 4096;
    new[end..].fill(0x22);
    let mut bench = Bench::new(new, 0).await;
    let Some(target) = Medium::holding(&bench, "target", &old) else { return };
    bench.slot = target.path().to_owned();
    let file = target.file.clone();
    at_the_payload(&bench, move || cut(&file, place));
    bench.update().await.unwrap();
    let fetched = bench.server.served.sent();
    assert_truthful(&bench, fetched);
    assert!(fetched > (6 * MIB - place + MIB) / 2, "{fetched}");
}

#[tokio::test]
async fn a_read_back_that_fails_leaves_a_slot_that_cannot_be_loaded() {
    let (size, place) = (8 * MIB, 5 * MIB);
    let mut bench = Bench::new(image(94, 8), 0).await;
    let mut held = bench.image.clone();
    held[0] ^= 1;
    let Some(target) = Medium::holding(&bench, "target", &held) else { return };
    bench.slot = target.path().to_owned();
    // All but the first MiB is in place, until that is fetched.
    let file = target.file.clone();
    at_the_payload(&bench, move || cut(&file, place));
    assert_slot_failed(bench.update().await, target.path(), place);
    assert_unreadable(target.path(), place);
    let mut first = vec![1; GUARD as usize];
    File::open(target.path()).unwrap().read_exact_at(&mut first, 0).unwrap();
    assert!(first.iter().all(|byte| *byte == 0), "the first MiB is not zero");

    // On a medium that takes what is written, the next run mends it, and fetches no more than that.
    let before = bench.server.served.sent();
    bench.update().await.unwrap();
    let fetched = bench.server.served.sent() - before;
    assert_truthful(&bench, fetched);
    assert!(fetched < size - place + 2 * MIB, "{fetched}");

    // And a slot that goes bad while it waits is not armed.
    target.break_from(place);
    let digest = crate::manifest::Digest::of(&bench.image);
    let held = bench.target();
    let waited = read_back(&held, size, digest, &bench.progress, &Default::default());
    assert_slot_failed(waited, target.path(), place);
}
