//! The boot environments against the tools of the bootloaders' own projects: `fw_printenv` and `fw_setenv`
//! (Debian package libubootenv-tool), `grub-editenv` (grub-common); and, as root, on real block devices.

// Clippy's leave for tests does not reach the helpers beside them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fwupdate::boot::{self, BootError, Bootloader, Detected, Grub, Uboot};
use fwupdate::device::{Identity, Kernel};
use fwupdate::slot::{Armed, BootEnv, Slot};

/// Holds up whoever opens a file for writing.
#[path = "integration/lease.rs"]
mod lease;

/// The simulated firmware, by its source: it shares nothing with the agent but the bytes on the disk.
#[path = "hub/src/firmware.rs"]
mod firmware;

/// Runs a tool and gives what it prints; a tool that is missing fails the test by name.
fn run(package: &str, program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} of package {package} does not run: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn armed(slot: Slot, tries: u8) -> BootEnv {
    BootEnv { primary: !slot, trial: Some(Armed { slot, tries }), fallback: Some(!slot) }
}

/// U-Boot's environment of two copies as libubootenv sees it.
struct UbootBoard {
    _dir: tempfile::TempDir,
    config: PathBuf,
    defaults: PathBuf,
    uboot: Uboot,
}

impl UbootBoard {
    fn new(size: usize) -> UbootBoard {
        let dir = tempfile::tempdir().unwrap();
        let env = dir.path().join("env");
        fs::write(&env, vec![0xff; 2 * size]).unwrap();
        UbootBoard::on(dir, &env, size)
    }

    fn on(dir: tempfile::TempDir, env: &Path, size: usize) -> UbootBoard {
        let config = dir.path().join("fw_env.config");
        let defaults = dir.path().join("u-boot-initial-env");
        let lines = [0, size].map(|offset| format!("{} {offset:#x} {size:#x}\n", env.display()));
        fs::write(&config, lines.concat()).unwrap();
        fs::write(&defaults, "bootcmd=run distro_bootcmd\nbootdelay=2\n").unwrap();
        UbootBoard { uboot: Uboot::new(&config), config, defaults, _dir: dir }
    }

    fn setenv(&self, pairs: &[(&str, &str)]) {
        let script = self.config.with_file_name("script");
        let lines: String = pairs.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        fs::write(&script, lines).unwrap();
        self.tool("fw_setenv", &["-s", script.to_str().unwrap()]);
    }

    /// All variables, sorted.
    fn printenv(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.tool("fw_printenv", &[]).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn tool(&self, program: &str, args: &[&str]) -> String {
        let files = ["-c", self.config.to_str().unwrap(), "-f", self.defaults.to_str().unwrap()];
        run("libubootenv-tool", program, &[&files[..], args].concat())
    }
}

#[test]
fn fw_printenv_reads_what_we_write_and_we_read_what_fw_setenv_writes() {
    let board = UbootBoard::new(0x1000);
    assert!(matches!(board.uboot.read(), Err(BootError::Lost(_))));
    board.setenv(&[("serial#", "42"), ("fwupdate_primary", "A"), ("note", "keep = this  text")]);
    let theirs = board.printenv();
    assert_eq!(board.uboot.read().unwrap(), BootEnv::only(Slot::A));

    // By turns, long enough for the flags to wrap from 255 to 0 on either side.
    for round in 0..140u8 {
        let env = armed(if round % 2 == 0 { Slot::B } else { Slot::A }, round % 9 + 1);
        board.uboot.write(&env).unwrap();
        if round % 20 == 0 {
            let expected = [
                format!("fwupdate_fallback={}", env.fallback.unwrap()),
                format!("fwupdate_primary={}", env.primary),
                format!("fwupdate_trial={}", env.trial.unwrap().slot),
                format!("fwupdate_tries={}", env.trial.unwrap().tries),
            ];
            let (ours, others): (Vec<_>, Vec<_>) =
                board.printenv().into_iter().partition(|line| line.starts_with("fwupdate_"));
            assert_eq!(ours, expected, "round {round}");
            assert!(others.iter().all(|line| theirs.contains(line)) && others.len() + 1 == theirs.len());
        }
        board.setenv(&[("fwupdate_tries", "0"), ("round", &round.to_string())]);
        assert_eq!(board.uboot.read().unwrap().trial.unwrap().tries, 0, "round {round}");
        board.setenv(&[("round", "")]);
    }
    board.uboot.write(&BootEnv::only(Slot::B)).unwrap();
    let left: Vec<_> = board.printenv().into_iter().filter(|line| line.starts_with("fwupdate_")).collect();
    assert_eq!(left, ["fwupdate_primary=B"]);
}

#[test]
fn variable_types_of_libubootenv_survive_our_writes() {
    let board = UbootBoard::new(0x1000);
    board.setenv(&[(".flags", "serial:sr,count:dw"), ("count", "3")]);
    board.uboot.write(&BootEnv::only(Slot::A)).unwrap();
    assert_eq!(board.tool("fw_printenv", &["count"]), "count=3\n");
    assert!(fs::read(board.config.with_file_name("env")).unwrap().windows(7).any(|w| w == b".flags="));
}

#[test]
fn a_rebuilt_environment_is_the_boards_own_for_fw_printenv() {
    let board = UbootBoard::new(0x1000);
    board.uboot.rebuild(&BootEnv::only(Slot::B)).unwrap();
    assert_eq!(board.printenv(), ["bootcmd=run distro_bootcmd", "bootdelay=2", "fwupdate_primary=B"]);
}

#[test]
fn a_damaged_copy_is_passed_over_by_both_sides_alike() {
    for at in [0, 5, 0x1000, 0x1005] {
        let board = UbootBoard::new(0x1000);
        board.uboot.rebuild(&BootEnv::only(Slot::A)).unwrap();
        board.uboot.write(&BootEnv::only(Slot::B)).unwrap();
        let env = board.config.with_file_name("env");
        let mut bytes = fs::read(&env).unwrap();
        bytes[at] ^= 1;
        fs::write(&env, bytes).unwrap();
        let ours = board.uboot.read().unwrap().primary.to_string();
        assert_eq!(board.tool("fw_printenv", &["-n", "fwupdate_primary"]).trim(), ours, "byte {at}");
    }
}

/// GRUB's environment as grub-editenv sees it.
struct GrubBoard {
    dir: tempfile::TempDir,
    grub: Grub,
}

impl GrubBoard {
    fn new() -> GrubBoard {
        let dir = tempfile::tempdir().unwrap();
        let grub = Grub::new(&dir.path().join("grubenv"));
        GrubBoard { dir, grub }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("grubenv")
    }

    fn editenv(&self, args: &[&str]) -> String {
        run("grub-common", "grub-editenv", &[&[self.path().to_str().unwrap()], args].concat())
    }
}

#[test]
fn grub_editenv_lists_what_we_write_and_we_read_what_it_sets() {
    let board = GrubBoard::new();
    board.editenv(&["create"]);
    assert!(matches!(board.grub.read(), Err(BootError::Uninitialised(_))));
    board.editenv(&["set", "saved_entry=Debian \\ one", "fwupdate_primary=A"]);
    assert_eq!(board.grub.read().unwrap(), BootEnv::only(Slot::A));
    for tries in (1..=9).rev() {
        board.grub.write(&armed(Slot::B, tries)).unwrap();
        let (ours, theirs): (Vec<_>, Vec<_>) = {
            let listed = board.editenv(&["list"]);
            listed.lines().map(str::to_owned).partition(|line| line.starts_with("fwupdate_"))
        };
        let tried = format!("fwupdate_tries={tries}");
        assert_eq!(ours, ["fwupdate_primary=A", "fwupdate_trial=B", &tried, "fwupdate_fallback=A"]);
        assert_eq!(theirs, ["saved_entry=Debian \\ one"]);
        // GRUB's save_env edits the block with the same code: the layout stays.
        let before = fs::read(board.path()).unwrap();
        board.editenv(&["set", &format!("fwupdate_tries={}", tries - 1)]);
        let changed =
            before.iter().zip(fs::read(board.path()).unwrap()).filter(|(old, new)| **old != *new).count();
        assert_eq!(changed, 1);
        assert_eq!(board.grub.read().unwrap(), armed(Slot::B, tries - 1));
    }
    board.editenv(&["unset", "fwupdate_trial"]);
    board.editenv(&["unset", "fwupdate_tries"]);
    assert_eq!(board.grub.read().unwrap().trial, None);
    board.grub.write(&BootEnv::only(Slot::B)).unwrap();
    assert!(board.editenv(&["list"]).contains("fwupdate_primary=B\nfwupdate_trial=\n"));
}

#[test]
fn a_grubenv_that_we_rebuild_is_good_for_grub_editenv() {
    let board = GrubBoard::new();
    fs::write(board.path(), b"").unwrap();
    board.grub.rebuild(&armed(Slot::A, 2)).unwrap();
    board.editenv(&["set", "other=1"]);
    assert_eq!(board.grub.read().unwrap(), armed(Slot::A, 2));
    board.grub.write(&BootEnv::only(Slot::B)).unwrap();
    assert!(board.editenv(&["list"]).contains("other=1"));
}

/// A loop device over a new file; needs root.
struct Loop {
    device: PathBuf,
}

impl Loop {
    fn over(file: &Path, size: u64) -> Option<Loop> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can set up a loop device");
            return None;
        }
        fs::File::create(file).unwrap().set_len(size).unwrap();
        let device = run("mount", "losetup", &["--find", "--show", file.to_str().unwrap()]);
        Some(Loop { device: PathBuf::from(device.trim()) })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("mount", "losetup", &["--detach", self.device.to_str().unwrap()]);
    }
}

fn this_machine() -> Kernel {
    Kernel { proc: PathBuf::from("/proc"), sys: PathBuf::from("/sys") }
}

#[test]
fn an_environment_on_a_block_device() {
    let dir = tempfile::tempdir().unwrap();
    let Some(device) = Loop::over(&dir.path().join("disk"), 0x10000) else { return };
    let board = UbootBoard::on(tempfile::tempdir().unwrap(), &device.device, 0x4000);
    board.setenv(&[("fwupdate_primary", "A")]);
    for env in [armed(Slot::B, 3), BootEnv::only(Slot::B), armed(Slot::A, 1)] {
        board.uboot.ready().unwrap();
        board.uboot.write(&env).unwrap();
        assert_eq!(board.uboot.read().unwrap(), env);
        assert_eq!(board.tool("fw_printenv", &["-n", "fwupdate_primary"]).trim(), env.primary.to_string());
    }
    let beyond = format!("{0} 0 4000\n{0} 0xd000 4000\n", device.device.display());
    fs::write(&board.config, beyond).unwrap();
    assert!(matches!(board.uboot.read(), Err(BootError::Unsupported { .. })));
}

#[test]
fn a_mounted_loop_device_is_in_use_by_number_and_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("slot image");
    let Some(device) = Loop::over(&file, 4 << 20) else { return };
    let kernel = this_machine();
    let names = kernel.aliases(&device.device).unwrap();
    assert_eq!(names, [&device.device, &file].map(|path| Identity::of(path).unwrap()).into());
    assert!(names.is_disjoint(&kernel.in_use().unwrap()));

    run("e2fsprogs", "mkfs.ext4", &["-q", device.device.to_str().unwrap()]);
    let point = dir.path().join("mount point");
    fs::create_dir(&point).unwrap();
    run("mount", "mount", &[device.device.to_str().unwrap(), point.to_str().unwrap()]);
    let used = kernel.in_use().unwrap();
    run("mount", "umount", &[point.to_str().unwrap()]);
    assert!(names.is_subset(&used));
}

#[test]
fn the_settings_kind_decides_which_environment_is_opened() {
    let board = GrubBoard::new();
    let kind = fwupdate::config::BootloaderKind::Grub { grubenv: board.path() };
    boot::open(&kind).rebuild(&BootEnv::only(Slot::A)).unwrap();
    assert_eq!(board.grub.read().unwrap(), BootEnv::only(Slot::A));
}

/// A gateway made of files: the agent's side and the firmware's side of one boot environment.
struct Gateway {
    dir: tempfile::TempDir,
    machine: firmware::Machine,
    bootloader: Box<dyn Bootloader>,
}

impl Gateway {
    fn both() -> [Gateway; 2] {
        [
            Gateway::new(|dir| {
                let env = dir.join("env");
                fs::write(&env, [0xff; 0x800]).unwrap();
                let config = dir.join("fw_env.config");
                fs::write(dir.join("u-boot-initial-env"), "").unwrap();
                fs::write(&config, format!("{0} 0 400\n{0} 0x400 400\n", env.display())).unwrap();
                (firmware::Environment::Uboot { config: config.clone() }, Box::new(Uboot::new(&config)))
            }),
            Gateway::new(|dir| {
                let grubenv = dir.join("grubenv");
                (firmware::Environment::Grub { grubenv: grubenv.clone() }, Box::new(Grub::new(&grubenv)))
            }),
        ]
    }

    fn new(make: impl Fn(&Path) -> (firmware::Environment, Box<dyn Bootloader>)) -> Gateway {
        let dir = tempfile::tempdir().unwrap();
        let (environment, bootloader) = make(dir.path());
        let path = |name: &str| dir.path().join(name);
        let slots = [path("a.img"), path("b.img")];
        for slot in &slots {
            let mut image = vec![0; 0x1000];
            image[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
            fs::write(slot, image).unwrap();
        }
        let machine =
            firmware::Machine { environment, slots, proc: path("proc"), sys: path("sys"), cut: None };
        Gateway { dir, machine, bootloader }
    }

    /// Powers on, then looks around as the agent does when it starts.
    fn boot(&self) -> Detected {
        firmware::boot(&self.machine).unwrap();
        let kernel = Kernel { proc: self.dir.path().join("proc"), sys: self.dir.path().join("sys") };
        let [a, b] = self.machine.slots.clone();
        boot::booted(&kernel, &[(Slot::A, a), (Slot::B, b)]).unwrap()
    }
}

#[test]
fn agent_and_firmware_understand_each_other_through_a_whole_trial() {
    for gateway in Gateway::both() {
        let first = gateway.boot();
        assert_eq!((first.slot, first.env_lost, first.reason), (Some(Slot::A), true, None));
        assert!(matches!(gateway.bootloader.read(), Err(BootError::Lost(_))));

        gateway.bootloader.rebuild(&BootEnv::only(Slot::A)).unwrap();
        let second = gateway.boot();
        assert_eq!((second.slot, second.env_lost, second.trial), (Some(Slot::A), false, None));
        assert_ne!(first.boot_id, second.boot_id);

        gateway.bootloader.write(&armed(Slot::B, 2)).unwrap();
        for (slot, trial, tries) in [(Slot::B, true, 1), (Slot::B, true, 0), (Slot::A, false, 0)] {
            let found = gateway.boot();
            assert_eq!((found.slot, found.trial), (Some(slot), trial.then_some(slot)));
            assert_eq!(gateway.bootloader.read().unwrap(), armed(Slot::B, tries));
        }

        let committed = BootEnv { primary: Slot::B, trial: None, fallback: Some(Slot::A) };
        gateway.bootloader.write(&committed).unwrap();
        assert_eq!(gateway.boot().slot, Some(Slot::B));
        assert_eq!(gateway.bootloader.read().unwrap(), committed);
    }
}

/// A file server or a backup: the kernel ends its lease, and nothing is wrong with the environment meanwhile.
#[tokio::test]
async fn who_holds_a_lease_on_the_environment_is_waited_for() {
    for (gateway, file) in Gateway::both().into_iter().zip(["env", "grubenv"]) {
        gateway.bootloader.rebuild(&BootEnv::only(Slot::A)).unwrap();
        let lease = lease::Lease::on(&gateway.dir.path().join(file)).await;
        gateway.bootloader.ready().unwrap();
        let bootloader = gateway.bootloader;
        let mut writing = tokio::task::spawn_blocking(move || {
            bootloader.write(&armed(Slot::B, 3)).unwrap();
            bootloader.read().unwrap()
        });
        tokio::time::timeout(std::time::Duration::from_millis(100), &mut writing).await.unwrap_err();
        drop(lease);
        assert_eq!(writing.await.unwrap(), armed(Slot::B, 3));
    }
}
