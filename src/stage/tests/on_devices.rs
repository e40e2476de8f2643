//! The same stories on real block devices: loop devices, which need root. Without it, each test says so and
//! passes over.

use std::path::{Path, PathBuf};

use crate::device::Identity;
use crate::stage::slot::testing::{Loop, run};
use crate::stage::testing::*;
use crate::stage::*;

/// A mounted folder; unmounted when dropped.
struct TestMount(PathBuf);

impl TestMount {
    fn new(args: &[&str], at: &Path) -> TestMount {
        std::fs::create_dir_all(at).unwrap();
        run("mount", &[args, &[at.to_str().unwrap()]].concat()).expect("mount works for root");
        TestMount(at.to_owned())
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        run("umount", &[self.0.to_str().unwrap()]);
    }
}

#[tokio::test]
async fn loop_devices_with_both_sector_sizes_are_written_directly() {
    for sector in [512, 4096] {
        // With 512-byte sectors, the slot is no multiple of 4096.
        let spare = if sector == 512 { (1 << 20) + 512 } else { 2 << 20 };
        let mut bench = Bench::new(image(40, 5), spare).await;
        let file = bench.slot.clone();
        let Some(device) = Loop::over(&file, sector) else { return };
        bench.slot = device.device.clone();
        let target = bench.target();
        assert!(target.is_direct());
        assert_eq!(target.capacity(), (5 << 20) + spare as u64);
        assert!(matches!(Target::acquire(&bench.slot, &[]), Err(StageError::Busy { .. })));
        drop(target);
        bench.update().await.unwrap();
        bench.assert_complete();
        // Once more, now with a stale chunk of data where zeros belong.
        let stale = bench.image.chunks(4096).skip(300).position(|block| block.iter().all(|byte| *byte == 0));
        let target = bench.target();
        target.write(&[0x77; 4096], (stale.unwrap() as u64 + 300) * 4096).unwrap();
        drop(target);
        let before = bench.server.served.sent();
        bench.update().await.unwrap();
        bench.assert_complete();
        assert!(bench.server.served.sent() - before < 3 << 19, "only the first MiB had to be fetched");
    }
}

#[tokio::test]
async fn a_mounted_device_is_refused() {
    let bench = Bench::new(image(41, 1), 7 << 20).await;
    let Some(device) = Loop::over(&bench.slot, 512) else { return };
    run("mkfs.ext4", &["-q", "-F", device.text()]).expect("mkfs.ext4 is installed");
    let mount = TestMount::new(&[device.text()], &bench.folder.path().join("mnt"));
    let refused = Target::acquire(&device.device, &[]).unwrap_err();
    assert!(matches!(refused, StageError::Busy { .. }), "{refused}");
    // The file below is not locked by the loop device: the caller names it.
    let backing = Identity::of(&bench.slot).unwrap();
    assert!(matches!(Target::acquire(&bench.slot, &[backing]), Err(StageError::Busy { .. })));
    drop(mount);
    drop(Target::acquire(&device.device, &[]).unwrap());
}

#[tokio::test]
async fn a_full_file_system_is_an_error_with_path_and_offset() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let mut bench = Bench::new(image(42, 6), 0).await;
    let folder = bench.folder.path().join("small");
    let _mount = TestMount::new(&["-t", "tmpfs", "-o", "size=3m", "tmpfs"], &folder);
    bench.slot = folder.join("slot");
    std::fs::File::create(&bench.slot).unwrap().set_len(6 << 20).unwrap();
    match bench.update().await.unwrap_err() {
        StageError::Slot { path, source, .. } => {
            assert_eq!(path, bench.slot);
            assert_eq!(source.raw_os_error(), Some(nix::errno::Errno::ENOSPC as i32));
        }
        other => panic!("{other}"),
    }
    bench.assert_not_loadable();
}

#[tokio::test]
async fn a_device_that_fails_in_the_middle_is_an_error_with_path_and_offset() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let mut bench = Bench::new(image(43, 6), 0).await;
    // Writes to a loop device fail when the file system below its file is full.
    let folder = bench.folder.path().join("small");
    let _mount = TestMount::new(&["-t", "tmpfs", "-o", "size=3m", "tmpfs"], &folder);
    let file = folder.join("file");
    std::fs::File::create(&file).unwrap().set_len(6 << 20).unwrap();
    let Some(device) = Loop::over(&file, 512) else { return };
    bench.slot = device.device.clone();
    match bench.update().await.unwrap_err() {
        StageError::Slot { path, offset, source } => {
            assert_eq!(path, bench.slot);
            assert!(offset >= GUARD, "{offset}");
            // Kernels differ in which of the two they pass on.
            let errors = [nix::errno::Errno::EIO as i32, nix::errno::Errno::ENOSPC as i32];
            assert!(errors.contains(&source.raw_os_error().unwrap()), "{source}");
        }
        other => panic!("{other}"),
    }
    bench.assert_not_loadable();
}

#[tokio::test]
async fn an_update_that_ran_out_of_space_goes_on_when_there_is_room() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let mut bench = Bench::new(image(44, 8), 0).await;
    let folder = bench.folder.path().join("small");
    let _mount = TestMount::new(&["-t", "tmpfs", "-o", "size=5m", "tmpfs"], &folder);
    let file = folder.join("file");
    std::fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
    let Some(device) = Loop::over(&file, 4096) else { return };
    bench.slot = device.device.clone();
    assert!(matches!(bench.update().await, Err(StageError::Slot { .. })));
    bench.assert_not_loadable();
    let (first, whole) = (bench.server.served.sent(), bench.progress.borrow().expected_download);
    run("mount", &["-o", "remount,size=32m", folder.to_str().unwrap()]).expect("tmpfs can be made larger");
    bench.update().await.unwrap();
    bench.assert_complete();
    let second = bench.server.served.sent() - first;
    assert!(second + (1 << 19) < whole, "{second} of {whole}: what reached the medium is not fetched again");
}

#[tokio::test]
async fn slots_of_eight_gib_are_used_to_their_ends() {
    const SIZE: u64 = 8 << 30;
    // Of the device, the image has a little; the old one lies far beyond what 32 bits can count.
    let (old, far) = (image(45, 4), 5 << 30);
    let mut new = old.clone();
    new[3 << 20..(3 << 20) + 4096].fill(0x22);
    let mut bench = Bench::new(new, 0).await;
    let folder = bench.folder.path().to_owned();
    let sparse = |name: &str, odd: u64| {
        let path = folder.join(name);
        std::fs::File::create(&path).unwrap().set_len(SIZE + odd).unwrap();
        path
    };
    // No multiple of a chunk, of a MiB, or of what is written at once.
    let Some(target) = Loop::over(&sparse("b", 3 * 4096), 4096) else { return };
    let Some(booted) = Loop::over(&sparse("a", 0), 4096) else { return };
    let write = |path: &Path, bytes: &[u8], offset| {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).unwrap();
        file.sync_all().unwrap();
    };
    write(&booted.device, &old, far);
    let end = SIZE + 3 * 4096 - 4096;
    write(&target.device, &[0x77; 4096], end);
    let maps = Maps { booted: folder.join("chunks.A"), target: folder.join("chunks.B") };
    let parts = parts(&old);
    let held = crate::manifest::Body::parse(&parts.manifest).unwrap().image;
    let draft = maps::Draft::new(&maps.booted, &held.chunking);
    let index = crate::bundle::Index::parse(parts.index, &held).unwrap();
    index.iter().for_each(|chunk| draft.note(chunk.digest, ((far + chunk.offset) / 4096) as u32));
    draft.finish();

    bench.slot = target.device.clone();
    let http = bench.server.http();
    bench.update_by(&http, Some(&booted.device), Some(&maps), Meter::new(0, None, None)).await.unwrap();
    let told = *bench.progress.borrow();
    assert!(told.downloaded == told.expected_download && told.downloaded < 1 << 20, "{told:?}");
    let held = bench.target();
    assert_eq!(held.capacity(), SIZE + 3 * 4096);
    let (mut found, mut last) = (vec![0; bench.image.len()], [1; 4096]);
    held.read(&mut found, 0).unwrap();
    held.read(&mut last, end).unwrap();
    assert!(found == bench.image && last == [0; 4096], "the image is there, and the slot's end is cleared");

    // Across the border of 32 bits, and at the very end: written, zeroed by the device, and no byte beyond.
    for offset in [(4 << 30) - 4096, end - 4096] {
        held.write(&[0x55; 8192], offset).unwrap();
        held.zero(offset, 4096).unwrap();
        let mut back = [1; 8192];
        held.read(&mut back, offset).unwrap();
        assert!(back[..4096] == [0; 4096] && back[4096..] == [0x55; 4096], "{offset}");
    }
    assert!(matches!(held.write(&[0; 8192], end), Err(StageError::Slot { .. })));
    assert!(matches!(held.zero(end, 8192), Err(StageError::Slot { .. })));
}

#[tokio::test]
async fn a_booted_slot_that_lost_its_end_costs_bytes_only() {
    let old = image(46, 6);
    let mut bench = Bench::new(old.clone(), 0).await;
    let folder = bench.folder.path().to_owned();
    let maps = Maps { booted: folder.join("chunks.A"), target: folder.join("chunks.B") };
    let install = Maps { booted: maps.target.clone(), target: maps.booted.clone() };
    let http = bench.server.http();
    bench.update_by(&http, None, Some(&install), Meter::new(0, None, None)).await.unwrap();
    let booted = folder.join("booted");
    std::fs::rename(&bench.slot, &booted).unwrap();
    bench.slot = folder.join("other");
    std::fs::write(&bench.slot, vec![0xaa; old.len()]).unwrap();
    let Some(device) = Loop::over(&booted, 512) else { return };
    // The device goes on to say that it has six MiB, and reads what lies behind short.
    std::fs::OpenOptions::new().write(true).open(&booted).unwrap().set_len((4 << 20) + 100).unwrap();
    let before = bench.server.served.sent();
    bench.update_by(&http, Some(&device.device), Some(&maps), Meter::new(0, None, None)).await.unwrap();
    bench.assert_complete();
    let fetched = bench.server.served.sent() - before;
    let told = *bench.progress.borrow();
    assert_eq!((told.downloaded, told.expected_download), (fetched, fetched));
    assert!((1 << 20..5 << 19).contains(&fetched), "{fetched}");
}
