//! The slot as a file and as a block device, where a byte too many or too few matters.

use std::path::PathBuf;

use super::*;
use crate::stage::slot::testing::Loop;

const SIZE: usize = (2 << 20) + 4096;

struct Bench {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Bench {
    /// A file of `size` bytes, none of them zero.
    fn new(size: usize) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slot");
        std::fs::write(&path, vec![0xaa; size]).unwrap();
        Bench { _folder: folder, path }
    }

    fn target(&self) -> Target {
        Target::acquire(&self.path, &[]).unwrap()
    }

    fn refused(&self) -> String {
        Target::acquire(&self.path, &[]).unwrap_err().to_string()
    }

    /// Places of the bytes that are not as they were at first, and their value.
    fn changed(&self) -> Vec<(usize, usize, u8)> {
        let bytes = std::fs::read(&self.path).unwrap();
        let mut at = 0;
        let runs = bytes.chunk_by(|left, right| left == right).map(|run| {
            at += run.len();
            (at - run.len(), at, run[0])
        });
        runs.filter(|(.., byte)| *byte != 0xaa).collect()
    }
}

#[test]
fn bytes_go_where_they_should_and_never_past_the_end() {
    let bench = Bench::new(SIZE);
    let target = bench.target();
    assert_eq!((target.capacity(), target.path()), (SIZE as u64, bench.path.as_path()));
    assert_eq!(target.identity(), Identity::of(&bench.path).unwrap());
    let end = SIZE as u64 - 4096;
    target.write(&[1; 4096], end).unwrap();
    target.write(&[2; 3], 5).unwrap();
    assert_eq!(target.written(), 4099);
    for (offset, length) in [(end + 1, 4096), (u64::MAX, 1)] {
        let error = target.write(&vec![3; length], offset).unwrap_err();
        assert!(
            matches!(&error, StageError::Slot { path, offset: at, .. } if *path == bench.path && *at == offset)
        );
        assert!(error.to_string().contains("past the slot's end"), "{error}");
    }
    target.zero(4096, 8192).unwrap();
    target.zero(end + 1, 4096).unwrap_err();
    assert_eq!(bench.changed(), [(5, 8, 2), (4096, 12288, 0), (SIZE - 4096, SIZE, 1)]);
    let mut found = [0; 4];
    target.read(&mut found, 4).unwrap();
    assert_eq!(found, [0xaa, 2, 2, 2]);
    target.read(&mut found, SIZE as u64).unwrap_err();
    target.check_size(SIZE as u64).unwrap();
    let error = target.check_size(SIZE as u64 + 1).unwrap_err();
    assert!(
        matches!(error, StageError::TooLarge { image, capacity, .. } if image == capacity + 1),
        "{error}"
    );
}

#[test]
fn the_first_mib_alone_is_made_invalid() {
    let bench = Bench::new(SIZE);
    let target = bench.target();
    assert!(!target.is_invalid().unwrap());
    target.invalidate().unwrap();
    assert!(target.is_invalid().unwrap());
    assert_eq!(bench.changed(), [(0, 1 << 20, 0)]);
    target.write(&[1], (1 << 20) - 1).unwrap();
    assert!(!target.is_invalid().unwrap());
    let short = Bench::new(8192);
    short.target().invalidate().unwrap();
    assert_eq!(short.changed(), [(0, 8192, 0)]);
}

#[test]
fn what_is_zero_already_is_not_written() {
    let bench = Bench::new(SIZE);
    let target = bench.target();
    assert_eq!(target.clear(4096, 20480).unwrap(), 16384);
    assert_eq!(target.clear(4096, 20480).unwrap(), 0);
    target.write(&[1], 20479).unwrap();
    let before = target.written();
    assert_eq!(target.clear(8192, 20480).unwrap(), 12288);
    assert_eq!(target.written(), before + 12288);
    assert_eq!(bench.changed(), [(4096, 20480, 0)]);
}

#[test]
fn a_slot_is_held_by_one_and_is_a_file_or_a_device() {
    let bench = Bench::new(4096);
    let held = bench.target();
    assert!(bench.refused().contains("another program has locked it"), "{}", bench.refused());
    assert_eq!(held.is_direct(), open(&bench.path, O_DIRECT).is_ok());
    assert!(!Bench::new(4095).target().is_direct(), "a transfer needs 4096 bytes");
    drop(held);
    let stands_on_it = Target::acquire(&bench.path, &[Identity::of(&bench.path).unwrap()]);
    assert!(stands_on_it.unwrap_err().to_string().contains("the running system stands on it"));
    std::fs::remove_file(&bench.path).unwrap();
    assert!(bench.refused().contains("it does not exist; check [slots]"), "{}", bench.refused());
    nix::unistd::mkfifo(&bench.path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(bench.refused().contains("neither a block device nor a regular file"), "{}", bench.refused());
}

#[test]
fn a_block_device_is_held_zeroed_and_measured() {
    let bench = Bench::new(SIZE);
    let Some(device) = Loop::over(&bench.path, 4096) else { return };
    let target = Target::acquire(&device.device, &[]).unwrap();
    assert!(target.is_direct());
    let busy = Target::acquire(&device.device, &[]).unwrap_err();
    assert!(
        matches!(&busy, StageError::Busy { reason, .. } if reason.contains("another program holds it")),
        "{busy}"
    );
    target.zero(4096, 8192).unwrap();
    assert_eq!(target.written(), 8192);
    target.sync().unwrap();
    drop((target, device));
    assert_eq!(bench.changed(), [(4096, 12288, 0)]);
    let Some(odd) = Loop::over(&bench.path, 2048) else { return };
    let error = Target::acquire(&odd.device, &[]).unwrap_err().to_string();
    assert!(error.contains("its sectors have 2048 bytes"), "{error}");
}
