//! The store on a real file system, with every way in which it can be hurt.

use std::os::unix::fs::PermissionsExt;

use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

use super::*;

fn record(n: u64) -> Value {
    json!({ "phase": "staging", "n": n })
}

fn saved(dir: &Path, up_to: u64) -> Store {
    let mut store = Store::open(dir).unwrap();
    (1..=up_to).for_each(|n| store.save(&record(n)).unwrap());
    store
}

fn load(store: &Store) -> Option<Value> {
    store.load().unwrap()
}

#[test]
fn a_fresh_folder_holds_no_record_and_two_files_of_full_size() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("var/lib/fwupdate");
    let store = Store::open(&state).unwrap();
    assert_eq!(load(&store), None);
    for name in NAMES {
        let meta = fs::metadata(state.join(name)).unwrap();
        assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (CAPACITY as u64, 0o600));
    }
}

/// A process that was taken over may leave anything in its folder, for every agent after it to find.
#[test]
fn a_pipe_in_the_place_of_a_copy_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_owned();
    NAMES
        .iter()
        .for_each(|name| nix::unistd::mkfifo(&state.join(name), nix::sys::stat::Mode::S_IRWXU).unwrap());
    let (told, tells) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut store = Store::open(&state).unwrap();
        told.send(store.load::<Value>().unwrap_err()).unwrap();
        told.send(store.save(&record(1)).unwrap_err()).unwrap();
        told.send(Store::peek::<Value>(&state).unwrap_err())
    });
    for _ in 0..3 {
        let error = tells.recv_timeout(std::time::Duration::from_secs(60)).unwrap().to_string();
        assert!(error.contains("record.0: it is no regular file") || error.contains("record.1"), "{error}");
    }
}

#[test]
fn the_last_record_is_found_again_and_the_files_never_grow() {
    let dir = tempfile::tempdir().unwrap();
    for n in 1..=5 {
        let mut store = Store::open(dir.path()).unwrap();
        store.save(&record(n)).unwrap();
        assert_eq!(load(&store), Some(record(n)));
        drop(store);
        assert_eq!(load(&Store::open(dir.path()).unwrap()), Some(record(n)));
    }
    for name in NAMES {
        assert_eq!(fs::metadata(dir.path().join(name)).unwrap().len(), CAPACITY as u64);
    }
}

#[test]
fn a_person_can_read_it_and_sees_nothing_of_longer_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = saved(dir.path(), 1);
    store.save(&json!({ "text": "x".repeat(20_000) })).unwrap();
    store.save(&record(3)).unwrap();
    store.save(&record(4)).unwrap();
    let text = fs::read_to_string(dir.path().join(NAMES[1])).unwrap();
    let (header, body) = text.split_once('\n').unwrap();
    assert!(header.starts_with("fwupdate-record 1 seq=4 len="), "{header}");
    assert_eq!(serde_json::from_str::<Value>(body).unwrap(), record(4));
    assert!(body.contains("\n  \"n\": 4"));
    fs::write(dir.path().join(NAMES[0]), [b'x'; CAPACITY]).unwrap();
    store.save(&record(5)).unwrap();
    let text = fs::read_to_string(dir.path().join(NAMES[0])).unwrap();
    assert_eq!(serde_json::from_str::<Value>(text.split_once('\n').unwrap().1).unwrap(), record(5));
}

#[test]
fn a_save_torn_anywhere_leaves_the_old_or_the_new_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = saved(dir.path(), 3);
    let target = dir.path().join(NAMES[1]);
    let before = fs::read(&target).unwrap();
    store.save(&record(4)).unwrap();
    let after = fs::read(&target).unwrap();
    let end = after.iter().rposition(|byte| *byte != b' ').unwrap() + 1;
    for cut in 0..=end {
        fs::write(&target, [&after[..cut], &before[cut..]].concat()).unwrap();
        let found = load(&store).unwrap();
        assert!(found == record(3) || found == record(4), "cut at {cut}: {found}");
    }
    fs::write(&target, [&after[..end / 2], &before[end / 2..]].concat()).unwrap();
    store.save(&record(5)).unwrap();
    assert_eq!(load(&store), Some(record(5)));
}

#[test]
fn no_sequence_number_is_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = saved(dir.path(), 2);
    for name in NAMES {
        let last = StoredCopy { sequence: u64::MAX, body: b"{}".to_vec() };
        fs::write(dir.path().join(name), last.render().unwrap()).unwrap();
    }
    for n in 3..=6 {
        store.save(&record(n)).unwrap();
        assert_eq!(load(&store), Some(record(n)));
    }
}

#[test]
fn damage_to_one_copy_costs_at_most_the_last_save() {
    let dir = tempfile::tempdir().unwrap();
    let store = saved(dir.path(), 4);
    for (name, left) in [(NAMES[0], 4), (NAMES[1], 3)] {
        let path = dir.path().join(name);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[70] ^= 1;
        for content in [&bad[..], b"", &good[..60]] {
            fs::write(&path, content).unwrap();
            assert_eq!(load(&store), Some(record(left)), "{name}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(load(&store), Some(record(left)), "{name}");
        fs::write(&path, good).unwrap();
    }
}

#[test]
fn both_copies_damaged_is_not_a_fresh_start_but_can_be_saved_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = saved(dir.path(), 2);
    for name in NAMES {
        fs::write(dir.path().join(name), "garbage").unwrap();
    }
    assert!(matches!(store.load::<Value>(), Err(StoreError::Damaged(_))));
    store.save(&record(9)).unwrap();
    assert_eq!(load(&store), Some(record(9)));
}

#[test]
fn a_newer_format_is_neither_read_nor_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = saved(dir.path(), 1);
    let head = "fwupdate-record 7 seq=2 len=2 crc32=";
    let text = format!("{head}{:08x}\n[]\n", crc32fast::hash(format!("{head}[]").as_bytes()));
    fs::write(dir.path().join(NAMES[1]), &text).unwrap();
    assert!(matches!(store.load::<Value>(), Err(StoreError::Newer { version: 7, .. })));
    assert!(matches!(store.save(&record(3)), Err(StoreError::Newer { .. })));
    assert!(fs::read_to_string(dir.path().join(NAMES[1])).unwrap().starts_with(&text));
}

#[test]
fn a_record_of_another_shape_is_an_error_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = saved(dir.path(), 1);
    assert!(matches!(store.load::<Vec<u8>>(), Err(StoreError::Foreign { .. })));
    assert_eq!(load(&store), Some(record(1)));
}

#[test]
fn a_record_that_is_too_large_leaves_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = saved(dir.path(), 1);
    let error = store.save(&"x".repeat(CAPACITY)).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge(_)));
    assert_eq!(Failure::from(error).code, Code::StateUnavailable);
    assert_eq!(load(&store), Some(record(1)));
}

#[test]
fn two_agents_never_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked(_))));
    drop(first);
    assert!(Store::open(dir.path()).is_ok());
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_and_no_fresh_start() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let mut store = Store::open(&dir.path().join("file/state")).unwrap();
    assert!(matches!(store.load::<Value>(), Err(StoreError::Io { .. })));
    assert!(matches!(store.save(&record(1)), Err(StoreError::Io { .. })));
    std::os::unix::fs::symlink(NAMES[0], dir.path().join(NAMES[0])).unwrap();
    let error = Store::open(dir.path()).unwrap().save(&record(1)).unwrap_err().to_string();
    assert!(error.contains("cannot examine"), "{error}");
}

/// A small tmpfs of its own; needs root.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new() -> Option<Tmpfs> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can mount a tmpfs");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=192k")).unwrap();
        Some(Tmpfs(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn fill(&self) {
        let file = File::create(self.path().join("filler")).unwrap();
        let mut at = 0;
        while file.write_all_at(&[1; 4096], at).is_ok() {
            at += 4096;
        }
    }

    fn remount(&self, flags: MsFlags) {
        mount(None::<&str>, self.path(), None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        umount(self.path()).unwrap();
    }
}

#[test]
fn a_full_disk_takes_nothing_from_files_that_are_there() {
    let Some(disk) = Tmpfs::new() else { return };
    let mut store = saved(disk.path(), 1);
    disk.fill();
    for n in 2..=4 {
        store.save(&record(n)).unwrap();
        assert_eq!(load(&store), Some(record(n)));
    }
}

#[test]
fn a_disk_that_was_full_from_the_start_refuses_until_there_is_room() {
    let Some(disk) = Tmpfs::new() else { return };
    disk.fill();
    let mut store = Store::open(disk.path()).unwrap();
    assert_eq!(load(&store), None);
    let error = store.save(&record(1)).unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    fs::remove_file(disk.path().join("filler")).unwrap();
    store.save(&record(2)).unwrap();
    assert_eq!(load(&store), Some(record(2)));
}

#[test]
fn a_read_only_disk_still_tells_what_it_holds() {
    let Some(disk) = Tmpfs::new() else { return };
    drop(saved(disk.path(), 3));
    disk.remount(MsFlags::MS_RDONLY);
    let mut store = Store::open(disk.path()).unwrap();
    assert_eq!(load(&store), Some(record(3)));
    assert!(matches!(store.save(&record(4)), Err(StoreError::Io { .. })));
    assert!(matches!(Store::open(disk.path()), Err(StoreError::Locked(_))));
    disk.remount(MsFlags::empty());
    store.save(&record(5)).unwrap();
    assert_eq!(load(&store), Some(record(5)));
}
