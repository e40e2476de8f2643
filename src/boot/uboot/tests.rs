//! The environment on regular files; the tools of libubootenv join in tests/boot.rs.

use super::*;
use crate::failure::{Code, Failure};
use crate::slot::{Armed, Slot};

const SIZE: usize = 0x200;

struct TestBoard {
    dir: tempfile::TempDir,
    uboot: Uboot,
}

impl TestBoard {
    /// Two valid copies, the second newer: another's variables and a primary.
    fn new() -> TestBoard {
        let board = TestBoard::blank();
        let entries = [b"bootcmd=run distro_bootcmd".to_vec(), b".flags=a:sw".to_vec()];
        let old = EnvCopy { flags: 255, entries: entries.to_vec() };
        board.put(0, &old.render(SIZE).unwrap());
        board.put(1, &old.with(0, &BootEnv::only(Slot::A)).render(SIZE).unwrap());
        board
    }

    fn blank() -> TestBoard {
        let dir = tempfile::tempdir().unwrap();
        let (config, env) = (dir.path().join("fw_env.config"), dir.path().join("env"));
        let line = |offset| format!("{} {offset:#x} {SIZE:#x}\n", env.display());
        fs::write(&config, line(0) + &line(SIZE)).unwrap();
        fs::write(&env, vec![0xff; 2 * SIZE]).unwrap();
        TestBoard { uboot: Uboot::new(&config), dir }
    }

    fn env(&self) -> PathBuf {
        self.dir.path().join("env")
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.env()).unwrap()
    }

    fn put(&self, index: usize, area: &[u8]) {
        let mut bytes = self.bytes();
        bytes[index * SIZE..][..SIZE].copy_from_slice(area);
        fs::write(self.env(), bytes).unwrap();
    }

    fn copy(&self, index: usize) -> Option<EnvCopy> {
        EnvCopy::parse(&self.bytes()[index * SIZE..][..SIZE], true)
    }
}

fn armed(slot: Slot, tries: u8) -> BootEnv {
    BootEnv { primary: !slot, trial: Some(Armed { slot, tries }), fallback: None }
}

#[test]
fn writes_go_to_the_older_copy_and_count_over_the_wrap() {
    let board = TestBoard::new();
    assert_eq!(board.uboot.read().unwrap(), BootEnv::only(Slot::A));
    for (index, flags, env) in
        [(0, 1, armed(Slot::B, 3)), (1, 2, BootEnv::only(Slot::B)), (0, 3, armed(Slot::A, 1))]
    {
        let other = board.copy(1 - index);
        board.uboot.write(&env).unwrap();
        assert_eq!(board.uboot.read().unwrap(), env);
        assert_eq!(board.copy(index).unwrap().flags, flags);
        assert_eq!(board.copy(1 - index), other, "the other copy was touched");
        let kept = board.copy(index).unwrap().entries;
        assert!(kept.starts_with(&[b"bootcmd=run distro_bootcmd".to_vec(), b".flags=a:sw".to_vec()]));
    }
}

#[test]
fn a_write_torn_anywhere_leaves_the_old_or_the_new_environment() {
    let board = TestBoard::new();
    let before = board.bytes();
    let (old, new) = (BootEnv::only(Slot::A), armed(Slot::B, 3));
    board.uboot.write(&new).unwrap();
    let after = board.bytes();
    for cut in 0..=SIZE {
        let torn = [&after[..cut], &before[cut..]].concat();
        fs::write(board.env(), torn).unwrap();
        let found = board.uboot.read().unwrap();
        assert!(found == old || found == new, "cut at {cut}: {found:?}");
        if cut % 32 == 0 {
            board.uboot.write(&new).unwrap();
            assert_eq!(board.uboot.read().unwrap(), new, "cut at {cut}");
        }
    }
}

#[test]
fn damage_to_one_copy_never_loses_the_environment_and_is_repaired() {
    let board = TestBoard::new();
    board.uboot.write(&BootEnv::only(Slot::A)).unwrap();
    let good = board.bytes();
    for at in (0..2 * SIZE).filter(|at| at % SIZE != 4) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(board.env(), &bytes).unwrap();
        assert!(board.copy(at / SIZE).is_none(), "byte {at}");
        assert_eq!(board.uboot.read().unwrap(), BootEnv::only(Slot::A), "byte {at}");
        if at % 64 == 0 {
            board.uboot.write(&armed(Slot::B, 2)).unwrap();
            assert!(board.copy(0).is_some() && board.copy(1).is_some(), "byte {at}");
            assert_eq!(board.uboot.read().unwrap(), armed(Slot::B, 2), "byte {at}");
        }
    }
}

#[test]
fn a_lost_environment_is_rebuilt_from_the_boards_defaults_only() {
    let board = TestBoard::blank();
    assert!(matches!(board.uboot.read(), Err(BootError::Lost(_))));
    assert!(matches!(board.uboot.rebuild(&BootEnv::only(Slot::B)), Err(BootError::NoDefaults { .. })));
    fs::write(board.dir.path().join(DEFAULTS), "bootcmd=boot\nbootdelay=2\n").unwrap();
    assert!(matches!(board.uboot.ready(), Err(BootError::Lost(_))));
    assert!(matches!(board.uboot.write(&BootEnv::only(Slot::B)), Err(BootError::Lost(_))));
    assert_eq!(board.bytes(), vec![0xff; 2 * SIZE]);
    board.uboot.rebuild(&BootEnv::only(Slot::B)).unwrap();
    assert_eq!(board.uboot.read().unwrap(), BootEnv::only(Slot::B));
    assert_eq!(board.copy(0).unwrap().get("bootdelay"), "2");
}

#[test]
fn a_board_that_was_never_set_up_is_told_from_a_lost_environment() {
    let board = TestBoard::new();
    board.put(1, &[0; SIZE]);
    assert!(matches!(board.uboot.read(), Err(BootError::Uninitialised(_))));
    board.uboot.rebuild(&BootEnv::only(Slot::A)).unwrap();
    assert_eq!(board.uboot.read().unwrap(), BootEnv::only(Slot::A));
    assert_eq!(board.copy(1).unwrap().get("bootcmd"), "run distro_bootcmd");
}

#[test]
fn a_single_copy_is_read_but_never_written() {
    let board = TestBoard::blank();
    let line = format!("{} 0 {SIZE:x}\n", board.env().display());
    fs::write(board.dir.path().join("fw_env.config"), line).unwrap();
    let mut data = b"fwupdate_primary=B\0\0".to_vec();
    data.resize(SIZE - 4, 0);
    board.put(0, &[&crc32fast::hash(&data).to_ne_bytes()[..], &data].concat());
    let before = board.bytes();
    assert_eq!(board.uboot.read().unwrap(), BootEnv::only(Slot::B));
    assert!(matches!(board.uboot.ready(), Err(BootError::SingleCopy(_))));
    let error = board.uboot.write(&BootEnv::only(Slot::A)).unwrap_err();
    assert!(matches!(error, BootError::SingleCopy(_)), "{error}");
    assert_eq!(Failure::from(error).code, Code::NotReady, "a matter of the settings");
    assert_eq!(board.bytes(), before);
}

#[test]
fn an_environment_without_room_is_left_as_it_is() {
    let board = TestBoard::blank();
    let entry = [b"x=".to_vec(), vec![b'y'; SIZE - 20]].concat();
    board.put(0, &EnvCopy { flags: 1, entries: vec![entry] }.render(SIZE).unwrap());
    let before = board.bytes();
    assert!(matches!(board.uboot.ready(), Err(BootError::Full { .. })));
    assert!(matches!(board.uboot.write(&BootEnv::only(Slot::A)), Err(BootError::Full { .. })));
    assert_eq!(board.bytes(), before);
}

#[test]
fn one_place_under_two_names_is_no_redundant_environment() {
    let board = TestBoard::new();
    let link = board.dir.path().join("link");
    std::os::unix::fs::symlink(board.env(), &link).unwrap();
    let env = board.env();
    for second in [format!("{} 0x100", link.display()), format!("{} -0x200", env.display())] {
        let config = format!("# one\n{} 0x100 {SIZE:x}\n\n# two\n{second} {SIZE:x}\n", env.display());
        fs::write(board.dir.path().join("fw_env.config"), config).unwrap();
        assert!(matches!(board.uboot.read(), Err(BootError::Config { line: 5, .. })), "{second}");
    }
}

#[test]
fn an_offset_may_count_from_the_end() {
    let board = TestBoard::new();
    let env = board.env();
    let config = format!("{0} -0x400 200\n{0} -0x200 200\n", env.display());
    fs::write(board.dir.path().join("fw_env.config"), config).unwrap();
    assert_eq!(board.uboot.read().unwrap(), BootEnv::only(Slot::A));
}

#[test]
fn raw_flash_is_refused_with_the_reason() {
    let board = TestBoard::blank();
    for device in ["/dev/mtd0", "/dev/ubi0:env"] {
        let config = format!("{device} 0 200\n");
        fs::write(board.dir.path().join("fw_env.config"), config).unwrap();
        assert!(matches!(board.uboot.read(), Err(BootError::Unsupported { .. })), "{device}");
    }
}

#[test]
fn a_file_that_is_missing_or_too_short() {
    let board = TestBoard::new();
    fs::write(board.env(), &board.bytes()[..SIZE + 100]).unwrap();
    assert!(matches!(board.uboot.read(), Err(BootError::Uninitialised(_))), "only the older copy is whole");
    fs::remove_file(board.env()).unwrap();
    assert!(matches!(board.uboot.read(), Err(BootError::Io { .. })));
}

/// `lines` of an `fw_env.config` for a file in which a redundant environment lies at 0x1000 and 0x1400, each of
/// 0x400 bytes, with a board's own variables.
fn misconfigured(lines: &str) -> TestBoard {
    let board = TestBoard::blank();
    let mut bytes = vec![0xff; 0x3000];
    let entries = ["ethaddr=02:00:00:00:00:01", "serial#=17", "fwupdate_primary=A"];
    for (start, flags) in [(0x1000, 4), (0x1400, 5)] {
        let entries = entries.map(|entry| entry.as_bytes().to_vec()).to_vec();
        bytes[start..start + 0x400].copy_from_slice(&EnvCopy { flags, entries }.render(0x400).unwrap());
    }
    fs::write(board.env(), bytes).unwrap();
    let lines = lines.replace("ENV", board.env().to_str().unwrap());
    fs::write(board.dir.path().join("fw_env.config"), lines).unwrap();
    fs::write(board.dir.path().join(DEFAULTS), "bootcmd=boot\n").unwrap();
    board
}

#[test]
fn a_wrong_size_or_offset_is_named_and_nothing_is_rebuilt_over_a_live_environment() {
    for (lines, line, right) in [
        // Size, offset, both, one line alone, and from the end.
        ("ENV 0x1000 0x800\nENV 0x1800 0x800\n", 1, "0x1000 0x400"),
        ("ENV 0x1000 0x200\nENV 0x1400 0x200\n", 1, "0x1000 0x400"),
        ("# a comment\nENV 0x800 0x400\nENV 0xc00 0x400\n", 2, "0x1000 0x400"),
        ("ENV 0x0 0x1000\nENV 0x2000 0x1000\n", 1, "0x1000 0x400"),
        ("ENV -0x400 0x400\nENV -0x800 0x400\n", 1, "0x1400 0x400"),
        ("ENV 0x1000 0x400\n", 1, "0x1000 0x400"),
    ] {
        let board = misconfigured(lines);
        let before = board.bytes();
        let (env, named) =
            (BootEnv::only(Slot::B), format!("correct the line to `{} {right}`", board.env().display()));
        for error in [
            board.uboot.read().unwrap_err(),
            board.uboot.rebuild(&env).unwrap_err(),
            board.uboot.write(&env).unwrap_err(),
        ] {
            if matches!(error, BootError::SingleCopy(_)) {
                continue;
            }
            assert!(
                matches!(error, BootError::Config { line: found, .. } if found == line),
                "{lines}{error}"
            );
            assert!(error.to_string().contains(&named), "{lines}{error}");
        }
        assert_eq!(board.bytes(), before, "{lines}: something was written");
    }
}

#[test]
fn a_single_copy_where_two_are_expected_is_found_too() {
    let board = misconfigured("ENV 0x1000 0x400\nENV 0x1400 0x400\n");
    let mut data = b"ethaddr=02:00:00:00:00:01\0serial#=17\0\0".to_vec();
    data.resize(0x800 - 4, 0);
    let single = [&crc32fast::hash(&data).to_ne_bytes()[..], &data].concat();
    let mut bytes = vec![0; 0x3000];
    bytes[0x1000..0x1800].copy_from_slice(&single);
    fs::write(board.env(), &bytes).unwrap();
    let error = board.uboot.rebuild(&BootEnv::only(Slot::B)).unwrap_err().to_string();
    assert!(error.contains("a single copy (not redundant) begins at 0x1000 with the size 0x800"), "{error}");
    assert_eq!(board.bytes(), bytes);
}

#[test]
fn variables_that_can_still_be_read_are_not_written_over() {
    let board = TestBoard::new();
    fs::write(board.dir.path().join(DEFAULTS), "").unwrap();
    let mut bytes = board.bytes();
    for at in [SIZE / 2, SIZE + SIZE / 2] {
        bytes[at] ^= 1;
    }
    fs::write(board.env(), &bytes).unwrap();
    let error = board.uboot.rebuild(&BootEnv::only(Slot::B)).unwrap_err();
    assert!(error.to_string().contains("variables can be read at 0x0"), "{error}");
    assert_eq!(board.bytes(), bytes);
}

#[test]
fn a_second_copy_that_is_not_understood_is_not_written_over() {
    // The second line leads beside the second copy, into blank space, or to something else altogether.
    for (lines, word) in [
        ("ENV 0x1000 0x400\nENV 0x1500 0x400\n", "begins at 0x1400"),
        ("ENV 0x1000 0x400\nENV 0x1800 0x400\n", "begins at 0x1400"),
        ("ENV 0x1000 0x400\nENV 0x2000 0x400\n", "begins at 0x1400"),
    ] {
        let board = misconfigured(lines);
        let before = board.bytes();
        assert_eq!(board.uboot.read().unwrap(), BootEnv::only(Slot::A), "{lines}");
        for error in [board.uboot.ready().unwrap_err(), board.uboot.write(&armed(Slot::B, 3)).unwrap_err()] {
            assert!(matches!(error, BootError::Config { line: 2, .. }), "{lines}{error}");
            assert!(error.to_string().contains(word), "{lines}{error}");
        }
        assert_eq!(board.bytes(), before, "{lines}");
    }
    let board = misconfigured("ENV 0x1000 0x400\nENV 0x1400 0x400\n");
    let mut bytes = board.bytes();
    bytes[0x1400..0x1800].copy_from_slice(&[0x5a; 0x400]);
    fs::write(board.env(), &bytes).unwrap();
    let error = board.uboot.write(&armed(Slot::B, 3)).unwrap_err();
    assert!(error.to_string().contains("line 2: the area at 0x1400"), "{error}");
    assert_eq!(board.bytes(), bytes);
}
