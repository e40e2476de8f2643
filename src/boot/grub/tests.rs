//! The file on a real file system; grub-editenv joins in tests/boot.rs.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::mount::{MsFlags, mount, umount};

use super::*;
use crate::slot::{Armed, Slot};

struct TestBoard {
    _dir: tempfile::TempDir,
    path: PathBuf,
    grub: Grub,
}

impl TestBoard {
    fn new(content: &[u8]) -> TestBoard {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grubenv");
        fs::write(&path, content).unwrap();
        TestBoard { grub: Grub::new(&path), path, _dir: dir }
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }
}

fn block(text: &str) -> Vec<u8> {
    let mut bytes = format!("# GRUB Environment Block\n{text}").into_bytes();
    bytes.resize(SIZE, b'#');
    bytes
}

fn armed(slot: Slot, tries: u8) -> BootEnv {
    BootEnv { primary: !slot, trial: Some(Armed { slot, tries }), fallback: Some(!slot) }
}

#[test]
fn a_write_changes_the_first_sector_of_the_same_file_only() {
    // `far` lies wholly in the second sector once our lines are in front.
    let text = format!("near={}\nfar=1\n", "x".repeat(500));
    let board = TestBoard::new(&block(&text));
    assert!(matches!(board.grub.read(), Err(BootError::Uninitialised(_))));
    assert!(matches!(board.grub.write(&armed(Slot::B, 3)), Err(BootError::WouldMove(_))));
    assert_eq!(board.bytes(), block(&text));

    let first = Grub::new(&board.path);
    fs::write(&board.path, Block::parse(&block(&text)).unwrap().render(&BootEnv::only(Slot::A)).unwrap())
        .unwrap();
    let (inode, second) = (fs::metadata(&board.path).unwrap().ino(), board.bytes()[SECTOR..].to_vec());
    for env in [armed(Slot::B, 3), BootEnv::only(Slot::B), armed(Slot::A, 1)] {
        first.ready().unwrap();
        first.write(&env).unwrap();
        assert_eq!(first.read().unwrap(), env);
        assert_eq!(board.bytes()[SECTOR..], second);
        assert_eq!(board.bytes().len(), SIZE);
        assert_eq!(fs::metadata(&board.path).unwrap().ino(), inode);
    }
}

#[test]
fn torn_between_the_sectors_it_is_the_old_or_the_new_one() {
    let board = TestBoard::new(&block("a=1\n"));
    let (old, new) = (BootEnv::only(Slot::A), armed(Slot::B, 3));
    board.grub.write(&old).unwrap();
    let before = board.bytes();
    board.grub.write(&new).unwrap();
    let after = board.bytes();
    for (first, second, expected) in [(&before, &after, old), (&after, &before, new)] {
        fs::write(&board.path, [&first[..SECTOR], &second[SECTOR..]].concat()).unwrap();
        assert_eq!(board.grub.read().unwrap(), expected);
    }
}

#[test]
fn what_grub_cannot_read_is_lost_and_rebuilt_in_place() {
    let mut unsigned = block("fwupdate_primary=A\n");
    unsigned[0] = b'x';
    for content in [&b""[..], &block("")[..100], &[0; SIZE], &unsigned, &vec![0xff; 4096]] {
        let board = TestBoard::new(content);
        let place = board.path.display().to_string();
        assert!(matches!(board.grub.read(), Err(BootError::Lost(said)) if said == place));
        assert!(matches!(board.grub.ready(), Err(BootError::Lost(_))));
        assert!(matches!(board.grub.write(&BootEnv::only(Slot::B)), Err(BootError::Lost(_))));
        assert_eq!(board.bytes(), content, "it was touched");
        board.grub.rebuild(&BootEnv::only(Slot::B)).unwrap();
        assert_eq!(board.grub.read().unwrap(), BootEnv::only(Slot::B));
        assert_eq!(board.bytes().len(), SIZE);
    }
}

#[test]
fn a_grubenv_that_still_holds_variables_or_lies_elsewhere_is_not_rebuilt() {
    let mut unsigned = block("serial=17\nfwupdate_primary=A\n");
    unsigned[0] = b'x';
    for content in [&unsigned[..], &block("serial=17\n")[..100]] {
        let board = TestBoard::new(content);
        let error = board.grub.rebuild(&BootEnv::only(Slot::B)).unwrap_err();
        assert!(error.to_string().contains("variables can be read in it"), "{error}");
        assert_eq!(board.bytes(), content);
    }
    let board = TestBoard::new(b"");
    let real = board.path.with_file_name("EFI").join("BOOT/grubenv");
    fs::create_dir_all(real.parent().unwrap()).unwrap();
    fs::write(&real, block("fwupdate_primary=A\n")).unwrap();
    for error in [board.grub.read().unwrap_err(), board.grub.rebuild(&BootEnv::only(Slot::B)).unwrap_err()] {
        assert!(error.to_string().contains(&format!("one is in {}", real.display())), "{error}");
    }
    assert_eq!(board.bytes(), b"");
    let mut long = block("fwupdate_primary=A\n");
    long.resize(SIZE + 1, b'#');
    fs::write(&real, long).unwrap();
    assert!(matches!(board.grub.read(), Err(BootError::Lost(_))), "GRUB could not read that one either");
}

#[test]
fn a_missing_file_is_created_and_a_missing_folder_is_an_error() {
    let board = TestBoard::new(b"");
    fs::remove_file(&board.path).unwrap();
    assert!(matches!(board.grub.read(), Err(BootError::Lost(_))));
    board.grub.rebuild(&armed(Slot::A, 9)).unwrap();
    assert_eq!(board.grub.read().unwrap(), armed(Slot::A, 9));
    let circle = Grub::new(&board.path.with_file_name("circle"));
    std::os::unix::fs::symlink("circle", &circle.path).unwrap();
    assert!(
        matches!(circle.read(), Err(BootError::Io { .. })),
        "it cannot be opened, which is not the same as lost"
    );
    let nowhere = Grub::new(&board.path.with_file_name("nowhere/grubenv"));
    assert!(matches!(nowhere.rebuild(&BootEnv::only(Slot::A)), Err(BootError::Io { .. })));
}

#[test]
fn a_block_of_another_size_is_not_cut_short() {
    let mut long = block("a=1\n");
    long.resize(4096, b'#');
    let board = TestBoard::new(&long);
    assert!(matches!(board.grub.write(&BootEnv::only(Slot::A)), Err(BootError::Unsupported { .. })));
    assert_eq!(board.bytes(), long);
}

#[test]
fn other_variables_without_room_are_kept_and_the_write_refused() {
    let text = format!("a={}\n", "x".repeat(950));
    let board = TestBoard::new(&block(&text));
    assert!(matches!(board.grub.ready(), Err(BootError::Full { .. })));
    assert!(matches!(board.grub.write(&BootEnv::only(Slot::A)), Err(BootError::Full { .. })));
    assert_eq!(board.bytes(), block(&text));
}

/// A tmpfs of its own; unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn at(folder: &Path) -> Option<Tmpfs> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can mount a tmpfs");
            return None;
        }
        fs::create_dir(folder).unwrap();
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Some(Tmpfs(folder.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        umount(&self.0).unwrap();
    }
}

#[test]
fn another_file_systems_block_is_none_of_ours_and_a_read_only_one_is_not_made_anew() {
    let board = TestBoard::new(&block("fwupdate_primary=A\n"));
    let Some(esp) = Tmpfs::at(&board.path.with_file_name("esp")) else { return };
    let grub = Grub::new(&esp.0.join("grubenv"));
    assert!(matches!(grub.read(), Err(BootError::Lost(_))));
    grub.rebuild(&BootEnv::only(Slot::B)).unwrap();
    mount(None::<&str>, &esp.0, None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>)
        .unwrap();
    for error in [grub.write(&BootEnv::only(Slot::A)).unwrap_err(), grub.ready().unwrap_err()] {
        assert!(error.to_string().contains("cannot open"), "{error}");
    }
    assert_eq!(grub.read().unwrap(), BootEnv::only(Slot::B));
}
