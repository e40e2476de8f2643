//! Real input: a Debian 12 root file system with a kernel, through the whole of an update onto real block devices.
//!
//! The image is made once by tests/debian-root.sh and kept under target/debian.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use fwupdate_hub::firmware::Slot;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::devices::{self, Loops, Mount};
use crate::harness::{Release, Setup, World, run};

/// Least bytes of files that make an image a real one.
const CONTENT: u64 = 300 << 20;

/// The image, made anew when the script has changed.
fn image() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/debian-root.sh");
    let key = data_encoding::HEXLOWER.encode(&Sha256::digest(fs::read(&script).unwrap())[..6]);
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("debian");
    fs::create_dir_all(&cache).unwrap();
    let image = cache.join(format!("root-{key}.ext4"));
    if !image.exists() {
        run(Command::new(script).arg(&image));
    }
    image
}

/// The next release: one new file, and another version.
fn changed(image: &Path, world: &World) -> PathBuf {
    let next = world.scratch().join("next.ext4");
    run(Command::new("cp").arg("--sparse=always").arg(image).arg(&next));
    let root = Mount::new(&["-o", "loop", next.to_str().unwrap()], &world.scratch().join("next"));
    let os_release = root.path().join("usr/lib/os-release");
    let text = fs::read_to_string(&os_release).unwrap().replace("12.1.0", "12.2.0");
    fs::write(os_release, text).unwrap();
    fs::write(root.path().join("usr/local/bin/app"), fs::read("/bin/sh").unwrap()).unwrap();
    drop(root);
    next
}

/// Installs over the whole way, and compares the slot with the image byte by byte.
async fn install(world: &mut World, release: &Release, slot: Slot) {
    let id = world.update(json!({"fwPackageUri": release.url, "version": release.version})).await;
    let last = world.outcome(&id).await;
    assert_eq!(last["result"], "committed", "{last}\n{}", world.gateway.log());
    assert_eq!(world.booted(), slot);
    assert_same(&release.image, world.gateway.slot(slot));
    let root = Mount::new(
        &["-o", "ro", world.gateway.slot(slot).to_str().unwrap()],
        &world.scratch().join(format!("slot-{slot:?}")),
    );
    let told = fs::read_to_string(root.path().join("etc/os-release")).unwrap();
    for line in ["ID=debian".to_owned(), format!("IMAGE_VERSION=\"{}\"", release.version)] {
        assert!(told.lines().any(|found| found == line), "{line} is not in {told}");
    }
    assert!(root.path().join("usr/bin/dpkg").exists());
}

/// The device begins with exactly the bytes of the image.
fn assert_same(image: &Path, device: &Path) {
    let (mut expected, mut found) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let (mut image, mut device) = (File::open(image).unwrap(), File::open(device).unwrap());
    let mut at = 0;
    while at < image.metadata().unwrap().len() {
        let length = image.read(&mut expected).unwrap();
        device.read_exact(&mut found[..length]).unwrap();
        let differs = expected[..length].iter().zip(&found).position(|(one, other)| one != other);
        assert_eq!(differs.map(|place| at + place as u64), None, "first byte that differs");
        at += length as u64;
    }
}

#[tokio::test]
async fn debian_goes_from_slot_to_slot_over_tls() {
    if !devices::root("debian_goes_from_slot_to_slot_over_tls") {
        return;
    }
    let image = image();
    let size = fs::metadata(&image).unwrap().len();
    let mut world = World::with(Setup { on: false, slot_size: size + (4 << 20), ..Setup::default() }).await;
    let _loops = Loops::under(&mut world);
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;

    let first = world.pack(&image, "12.1.0", &[]);
    install(&mut world, &first, Slot::B).await;
    let root = Mount::new(
        &["-o", "ro", world.gateway.slot(Slot::B).to_str().unwrap()],
        &world.scratch().join("measured"),
    );
    let used = nix::sys::statvfs::statvfs(root.path()).unwrap();
    assert!((used.blocks() - used.blocks_free()) * used.fragment_size() >= CONTENT, "{used:?}");
    drop(root);

    let second = world.pack(&changed(&image, &world), "12.2.0", &[]);
    install(&mut world, &second, Slot::A).await;
    let fetched = |release: &Release| world.hub.faults().count(&release.name).body_bytes;
    let (all, few) = (fetched(&first), fetched(&second));
    println!("image {size} bytes; first update fetched {all}, second {few}");
    let whole = fs::metadata(&first.bundle).unwrap().len();
    assert!(all <= whole + whole / 100, "{all} bytes were fetched of a bundle of {whole}");
    assert!(few < all / 20, "{few} bytes for a change of a few files, {all} for the whole");
    world.finish().await;
}
