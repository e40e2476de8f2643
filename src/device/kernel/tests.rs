//! Made-up machines: folders that look like `/proc` and `/sys`.

use super::*;

/// A made-up machine: folders that look like `/proc` and `/sys`.
struct Fake {
    dir: tempfile::TempDir,
    kernel: Kernel,
}

impl Fake {
    fn new(mountinfo: &str) -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Kernel { proc: dir.path().join("proc"), sys: dir.path().join("sys") };
        fs::create_dir_all(kernel.proc.join("self")).unwrap();
        fs::write(kernel.proc.join("self/mountinfo"), mountinfo).unwrap();
        Fake { dir, kernel }
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.kernel.sys.join("dev/block").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn file(&self, name: &str) -> (String, Identity) {
        let path = self.dir.path().join(name);
        fs::write(&path, "").unwrap();
        (path.to_str().unwrap().to_owned(), Identity::of(&path).unwrap())
    }
}

fn block(major: u64, minor: u64) -> Identity {
    Identity::Block { major, minor }
}

#[test]
fn a_partition_is_the_root_by_its_own_number() {
    let fake = Fake::new(
        "21 1 0:20 / /proc rw shared:5 - proc proc rw\n\
         30 1 259:1048579 / / rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro\n",
    );
    assert_eq!(fake.kernel.root().unwrap(), BTreeSet::from([block(259, 1_048_579)]));
}

#[test]
fn device_mapper_and_loop_are_seen_through() {
    let fake = Fake::new("30 1 254:0 / / rw - ext4 /dev/mapper/root rw\n");
    let (path, identity) = fake.file("slot a.img");
    fake.put("254:0/slaves/loop7/dev", "7:7\n");
    fake.put("254:0/slaves/sda3/dev", "8:3\n");
    fake.put("7:7/loop/backing_file", &format!("{path}\n"));
    let expected = BTreeSet::from([block(254, 0), block(7, 7), block(8, 3), identity]);
    assert_eq!(fake.kernel.root().unwrap(), expected);
}

#[test]
fn a_device_is_read_only_by_its_own_flag_or_its_disks() {
    // As the kernel lays out an eMMC whose lock switch is open, and whose first boot partition has force_ro.
    let fake = Fake::new("");
    let disk = fake.kernel.sys.join("devices/mmcblk0");
    let numbers = fake.kernel.sys.join("dev/block");
    fs::create_dir_all(&numbers).unwrap();
    for (folder, number, flag) in
        [("", "179:0", "0"), ("mmcblk0p2", "179:2", "0"), ("mmcblk0boot0", "179:8", "1")]
    {
        let folder = disk.join(folder);
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in [("dev", number), ("ro", flag), ("size", "8192")] {
            fs::write(folder.join(name), text.to_owned() + "\n").unwrap();
        }
        std::os::unix::fs::symlink(folder, numbers.join(number)).unwrap();
    }
    let read_only = || [0, 2, 8].map(|minor| fake.kernel.is_read_only(block(179, minor)));
    assert_eq!(read_only(), [false, false, true]);
    fs::write(disk.join("ro"), "1\n").unwrap();
    assert_eq!(read_only(), [true, true, true]);
    assert!(!fake.kernel.is_read_only(block(8, 3)), "nothing is known of it");
}

#[test]
fn compressed_memory_and_ram_disks_are_memory() {
    let number = fs::metadata("/proc/self/exe").unwrap().dev();
    let number = format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number));
    for (name, memory) in [("zram0", true), ("ram1", true), ("mmcblk0p4", false)] {
        let fake = Fake::new("");
        let device = fake.kernel.sys.join("devices").join(name);
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(fake.kernel.sys.join("dev/block")).unwrap();
        std::os::unix::fs::symlink(&device, fake.kernel.sys.join("dev/block").join(&number)).unwrap();
        let found = fake.kernel.memory_under(Path::new("/proc/self/exe"));
        assert_eq!(found.as_deref(), memory.then_some(name));
    }
}

#[test]
fn a_cycle_among_slaves_ends() {
    let fake = Fake::new("");
    fake.put("254:0/slaves/dm-1/dev", "254:1\n");
    fake.put("254:1/slaves/dm-0/dev", "254:0\n");
    assert_eq!(fake.kernel.backing(254, 0).len(), 2);
}

#[test]
fn an_overlay_stands_on_its_layers() {
    let fake = Fake::new(
        "30 1 0:33 / / rw - overlay overlay rw,lowerdir=/media/ro\\134:1:/media/ro\\0402,upperdir=/media/rw/up,workdir=/media/rw/work\n\
         31 30 8:3 / /media/ro:1 ro - squashfs /dev/sda3 ro\n\
         32 30 8:4 / /media/ro\\0402 ro - squashfs /dev/sda4 ro\n\
         33 30 8:5 / /media/rw rw - ext4 /dev/sda5 rw\n\
         34 30 8:6 / /media/r rw - ext4 /dev/sda6 rw\n",
    );
    assert_eq!(fake.kernel.root().unwrap(), BTreeSet::from([block(8, 3), block(8, 4), block(8, 5)]));
    assert!(fake.kernel.in_use().unwrap().contains(&block(8, 6)));
}

#[test]
fn an_overlay_whose_layers_went_out_of_sight_stands_on_nothing_known() {
    let fake = Fake::new("30 1 0:33 / / rw - overlay overlay rw,lowerdir=/old/ro,upperdir=/old/rw\n");
    assert!(fake.kernel.root().unwrap().is_empty());
}

#[test]
fn of_two_mounts_at_one_point_the_last_is_seen() {
    let fake = Fake::new(
        "1 1 0:2 / / rw - rootfs rootfs rw\n\
         30 1 8:3 / / rw - ext4 /dev/sda3 rw\n",
    );
    assert_eq!(fake.kernel.root().unwrap(), BTreeSet::from([block(8, 3)]));
}

#[test]
fn odd_lines_are_passed_over() {
    let fake = Fake::new("\n-\n30\n30 1 8:x / / rw - ext4\n30 1 8:3 / / rw\n31 1 8:4 / /a rw - ext4 none\n");
    let mounts = fake.kernel.mounts().unwrap();
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].point, Path::new("/a"));
    assert!(fake.kernel.root().unwrap().is_empty());
}

#[test]
fn a_source_that_a_user_may_choose_is_not_believed() {
    let node =
        ["/dev/loop0", "/dev/vda", "/dev/sda"].into_iter().find(|node| Identity::of(Path::new(node)).is_ok());
    let Some(node) = node else { return };
    for (kind, believed) in [("fuse.sshfs", false), ("fuse", false), ("tmpfs", false), ("btrfs", true)] {
        let fake = Fake::new(&format!("30 1 0:44 / /home/user/m rw - {kind} {node} rw\n"));
        let used = fake.kernel.in_use().unwrap();
        assert_eq!(used.contains(&Identity::of(Path::new(node)).unwrap()), believed, "{kind}");
    }
}

#[test]
fn no_mountinfo_is_an_error_that_names_it() {
    let fake = Fake::new("");
    fs::remove_file(fake.kernel.proc.join("self/mountinfo")).unwrap();
    assert!(fake.kernel.root().unwrap_err().to_string().contains("self/mountinfo"));
}

#[test]
fn a_file_is_its_own_only_alias() {
    let fake = Fake::new("");
    let (path, identity) = fake.file("slot");
    assert_eq!(fake.kernel.aliases(Path::new(&path)).unwrap(), BTreeSet::from([identity]));
}
