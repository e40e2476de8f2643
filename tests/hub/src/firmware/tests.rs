//! The simulated firmware on real bytes of both boot environments.

use super::*;

struct Bench {
    dir: tempfile::TempDir,
    machine: Machine,
}

const SIZE: usize = 0x100;

impl Bench {
    fn uboot(variables: &[&str]) -> Bench {
        let bench = Bench::new(|dir| Environment::Uboot { config: dir.join("fw_env.config") });
        let env = bench.dir.path().join("env");
        let lines = [0, SIZE].map(|offset| format!("{} {offset:#x} {SIZE:#x}\n", env.display()));
        fs::write(bench.dir.path().join("fw_env.config"), lines.concat()).unwrap();
        fs::write(env, [254, 255].map(|flags| uboot_copy(variables, flags, SIZE)).concat()).unwrap();
        bench
    }

    fn grub(variables: &[&str]) -> Bench {
        let bench = Bench::new(|dir| Environment::Grub { grubenv: dir.join("env") });
        fs::write(bench.dir.path().join("env"), grub_block(variables)).unwrap();
        bench
    }

    /// Both slots hold a file system.
    fn new(environment: impl Fn(&Path) -> Environment) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let machine = Machine {
            environment: environment(dir.path()),
            slots: [path("a.img"), path("b.img")],
            proc: path("proc"),
            sys: path("sys"),
            cut: None,
        };
        let bench = Bench { machine, dir };
        for slot in [Slot::A, Slot::B] {
            let mut image = vec![0; 0x1000];
            image[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
            fs::write(bench.machine.path(slot), image).unwrap();
        }
        bench
    }

    fn both(variables: &[&str]) -> [Bench; 2] {
        [Bench::uboot(variables), Bench::grub(variables)]
    }

    fn wipe(&self, slot: Slot) {
        fs::write(self.machine.path(slot), [0; 0x1000]).unwrap();
    }

    fn boot(&self) -> Outcome {
        boot(&self.machine).unwrap()
    }

    fn tries(&self) -> String {
        Loaded::read(&self.machine.environment).unwrap().unwrap().variable("fwupdate_tries")
    }

    fn shown(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap()
    }
}

fn booted(slot: Slot, trial: bool) -> Outcome {
    Outcome::Booted { slot, trial, environment_lost: false }
}

const TRIAL: [&str; 3] = ["fwupdate_primary=A", "fwupdate_trial=B", "fwupdate_tries=2"];

#[test]
fn the_checksum_is_that_of_the_format() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn a_trial_is_counted_down_and_then_the_primary_boots() {
    for bench in Bench::both(&TRIAL) {
        for (outcome, left) in [
            (booted(Slot::B, true), "1"),
            (booted(Slot::B, true), "0"),
            (booted(Slot::A, false), "0"),
            (booted(Slot::A, false), "0"),
        ] {
            assert_eq!((bench.boot(), bench.tries().as_str()), (outcome, left));
        }
    }
}

#[test]
fn an_ordinary_boot_writes_nothing() {
    for bench in Bench::both(&["fwupdate_primary=B", "fwupdate_fallback=A"]) {
        let before = fs::read(bench.dir.path().join("env")).unwrap();
        assert_eq!(bench.boot(), booted(Slot::B, false));
        assert_eq!(fs::read(bench.dir.path().join("env")).unwrap(), before);
    }
}

#[test]
fn without_a_kernel_the_next_in_line_boots_in_the_same_pass() {
    for bench in Bench::both(&TRIAL) {
        bench.wipe(Slot::B);
        assert_eq!((bench.boot(), bench.tries().as_str()), (booted(Slot::A, false), "1"));
        bench.wipe(Slot::A);
        assert_eq!(bench.boot(), Outcome::Stuck, "an unproven slot is no fallback");
    }
    for bench in Bench::both(&["fwupdate_primary=B", "fwupdate_fallback=A"]) {
        bench.wipe(Slot::B);
        assert_eq!(bench.boot(), booted(Slot::A, false));
    }
}

#[test]
fn without_a_primary_a_boots_then_b_and_the_kernel_is_told() {
    let broken = Bench::both(&TRIAL).map(|bench| {
        fs::write(bench.dir.path().join("env"), b"").unwrap();
        bench
    });
    let never_set_up = Bench::both(&["fwupdate_trial=B", "fwupdate_tries=2"]);
    let cases = broken.map(|bench| (bench, true)).into_iter().chain(never_set_up.map(|bench| (bench, false)));
    for (bench, environment_lost) in cases {
        let started = |slot| Outcome::Booted { slot, trial: false, environment_lost };
        let word = if environment_lost { "lost" } else { "unset" };
        assert_eq!(bench.boot(), started(Slot::A));
        assert!(bench.shown("proc/cmdline").ends_with(&format!(" fwupdate.slot=A fwupdate.env={word}\n")));
        bench.wipe(Slot::A);
        assert_eq!(bench.boot(), started(Slot::B));
    }
}

#[test]
fn a_cut_around_the_save_leaves_the_old_or_the_new_count() {
    for mut bench in Bench::both(&TRIAL) {
        let original = fs::read(bench.dir.path().join("env")).unwrap();
        let cuts = (0..=SIZE).step_by(8).map(|bytes| (Cut::During(bytes), None));
        for (cut, left) in cuts.chain([(Cut::Before, Some("2")), (Cut::After, Some("1"))]) {
            fs::write(bench.dir.path().join("env"), &original).unwrap();
            bench.machine.cut = Some(cut);
            assert_eq!(bench.boot(), Outcome::Cut);
            let tries = bench.tries();
            assert!(left.map_or(tries == "2" || tries == "1", |left| tries == left), "{cut:?}: {tries}");
            bench.machine.cut = None;
            assert_eq!(bench.boot(), booted(Slot::B, true));
        }
    }
}

#[test]
fn the_booted_kernel_shows_its_slot() {
    let bench = Bench::uboot(&TRIAL);
    assert_eq!(bench.boot(), booted(Slot::B, true));
    assert!(bench.shown("proc/cmdline").contains(" fwupdate.slot=B fwupdate.trial=1 panic=10"));
    assert!(bench.shown("proc/self/mountinfo").contains(" 7:1 / / "));
    let file = bench.shown("sys/dev/block/7:1/loop/backing_file");
    assert_eq!(Path::new(file.trim_end()), fs::canonicalize(bench.machine.path(Slot::B)).unwrap());
    let first = bench.shown("proc/sys/kernel/random/boot_id");
    bench.boot();
    assert_ne!(first, bench.shown("proc/sys/kernel/random/boot_id"));
}

#[test]
fn a_single_copy_is_read_but_starts_no_trial() {
    let bench = Bench::uboot(&[]);
    let env = bench.dir.path().join("env");
    fs::write(bench.dir.path().join("fw_env.config"), format!("{} 0 100\n", env.display())).unwrap();
    let mut data = TRIAL.join("\0").into_bytes();
    data.resize(SIZE - 4, 0);
    fs::write(&env, [&crc32(&data).to_ne_bytes()[..], &data].concat()).unwrap();
    assert_eq!(bench.boot(), booted(Slot::A, false));
}
