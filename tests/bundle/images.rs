//! What may be packed: images of file systems, and nothing that only looks like one.

use std::fs;

use crate::desk::{Desk, desk, image, signed};

/// `count` blocks as some tool leaves them: its bytes at the start, and noise.
fn begins_with(at: usize, magic: &[u8], blocks: usize) -> Vec<u8> {
    let mut content = vec![0; blocks * 4096];
    fastrand::Rng::with_seed(9).fill(&mut content[40_000..]);
    content[at..at + magic.len()].copy_from_slice(magic);
    content
}

/// Pads a file to whole blocks.
fn pad(desk: &Desk, name: &str) {
    let mut content = desk.read(name);
    content.resize(content.len().next_multiple_of(4096), 0);
    desk.write(name, &content);
}

#[test]
fn create_refuses_what_is_no_image_and_says_what_it_is() {
    let desk = desk(40);
    desk.write("big", &begins_with(0, b"", 600));
    // What real tools make, where they are at hand: of the image, and padded as their users do.
    for (file, line) in [
        ("image.gz", "gzip -k image"),
        ("image.xz", "xz -k image"),
        ("image.zst", "zstd -q image"),
        ("image.bz2", "bzip2 -k image"),
        ("image.tar", "tar -cf image.tar image"),
        ("image.v7", "tar --format=v7 -cf image.v7 image"),
        ("image.cpio", "cpio -o -H newc -F image.cpio"),
        ("image.bcpio", "cpio -o -H bin -F image.bcpio"),
    ] {
        if desk.command("sh", ["-c", &format!("echo image | {line}")]).status.success() {
            pad(&desk, file);
        }
    }
    desk.good(&signed("image", "image.fwb"));
    fs::copy("/bin/true", desk.path("elf")).unwrap();
    desk.write("text", &b"#!/bin/sh\necho not an image\n".repeat(200));
    desk.write("zeros", &[0; 64 * 4096]);
    desk.write("erased", &[0xff; 64 * 4096]);
    desk.write("sparse", &begins_with(0, b"\x3a\xff\x26\xed\x01\0\0\0", 20));
    desk.write("qcow2", &begins_with(0, b"QFI\xfb\0\0\0\x03", 20));
    desk.write("vmdk", &begins_with(0, b"KDMV", 20));
    desk.write("iso", &begins_with(32769, b"CD001", 20));
    desk.write("gpt", &begins_with(512, b"EFI PART", 20));
    let mut mbr = begins_with(510, b"\x55\xaa", 20);
    mbr[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    desk.write("mbr", &mbr);
    for (file, what) in [
        ("image.gz", "gzip"),
        ("image.xz", "xz"),
        ("image.zst", "zstd"),
        ("image.bz2", "bzip2"),
        ("image.tar", "a tar archive"),
        ("image.v7", "a tar archive"),
        ("image.cpio", "a cpio archive"),
        ("image.bcpio", "a cpio archive"),
        ("image.fwb", "a bundle already"),
        ("elf", "an ELF program"),
        ("text", "a text"),
        ("zeros", "nothing but bytes of 0x00"),
        ("erased", "nothing but bytes of 0xff"),
        ("sparse", "Android sparse image"),
        ("qcow2", "qcow2"),
        ("vmdk", "vmdk"),
        ("iso", "ISO 9660"),
        ("gpt", "GPT partition table"),
        ("mbr", "MBR partition table"),
    ] {
        if !desk.path(file).exists() {
            eprintln!("left out: {file}, for its tool is not there");
            continue;
        }
        pad(&desk, file);
        let told = desk.bad(&signed(file, "out.fwb"), 1);
        assert!(told.contains(what) && told.contains("--any-content"), "{file}: {told}");
        assert!(told.lines().count() == 1 && !desk.path("out.fwb").exists(), "{file}: {told}");
        desk.good(&(signed(file, "forced.fwb") + " --any-content"));
        if file != "image.fwb" {
            let told = desk.bad(&(signed("image", "out.fwb") + " --base " + file), 1);
            assert!(told.contains(what), "{file} as a base: {told}");
        }
    }
}

#[test]
fn create_refuses_what_is_no_file_without_waiting_for_it() {
    let desk = desk(20);
    fs::create_dir(desk.path("folder")).unwrap();
    nix::unistd::mkfifo(&desk.path("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    desk.write("empty", &[]);
    desk.good(&signed("image", "good.fwb"));
    for (name, what) in [("folder", "a folder"), ("pipe", "a pipe"), ("/dev/zero", "a character device")] {
        let lines = [
            signed(name, "out.fwb"),
            signed(name, "out.fwb") + " --any-content",
            signed("image", "out.fwb") + " --base " + name,
            format!("inspect {name}"),
            format!("verify {name} --keys keys"),
            format!("verify good.fwb --keys keys --base {name}"),
            format!("estimate {name} good.fwb"),
            format!("sign good.fwb --signature {name} --public-key keys/release.pub.pem"),
        ];
        for line in lines {
            let told = desk.bad(&line, 1);
            assert!(told.contains(what) && told.contains(name), "{line}: {told}");
        }
    }
    assert!(desk.bad(&signed("empty", "out.fwb"), 1).contains("it is empty"));
}

#[test]
fn file_systems_pass_and_half_of_one_does_not() {
    let desk = Desk::new();
    desk.good("keygen --out keys");
    fs::create_dir(desk.path("tree")).unwrap();
    desk.write("tree/file", &image(1, 20));
    let make = |name: &str, line: &str| {
        fs::File::create(desk.path(name))
            .unwrap()
            .set_len(if name == "btrfs" || name == "xfs" { 320 << 20 } else { 64 << 20 })
            .unwrap();
        let made = desk.command("sh", ["-c", &format!("{line} >/dev/null 2>&1")]).status.success();
        if !made {
            eprintln!("left out: {name}, for its tool is not there");
            fs::remove_file(desk.path(name)).unwrap_or_default();
        }
        made
    };
    assert!(make("ext4", "mkfs.ext4 -q -F -d tree ext4"), "mkfs.ext4 makes the images of all other tests");
    let mut made = vec!["ext4"];
    for (name, line) in [
        ("ext2", "mkfs.ext2 -q -F -b 1024 ext2"),
        ("squashfs", "rm squashfs && mksquashfs tree squashfs -noappend -mem 50M -processors 1"),
        ("erofs", "rm erofs && mkfs.erofs erofs tree"),
        ("btrfs", "mkfs.btrfs btrfs"),
        ("f2fs", "mkfs.f2fs f2fs"),
        ("xfs", "mkfs.xfs xfs"),
        ("fat", "mkfs.vfat fat"),
    ] {
        if make(name, line) {
            pad(&desk, name);
            made.push(name);
        }
    }
    for name in &made {
        desk.good(&signed(name, "out.fwb"));
        // Behind the file system come the hashes of dm-verity.
        if !matches!(*name, "btrfs" | "xfs") {
            desk.write("verity", &[desk.read(name), image(5, 10)].concat());
            desk.good(&signed("verity", "out.fwb"));
        }
    }
    for name in made.into_iter().filter(|name| *name != "fat") {
        let whole = desk.read(name);
        desk.write("half", &whole[..(whole.len() / 2) & !4095]);
        let told = desk.bad(&signed("half", "out.fwb"), 1);
        assert!(told.contains("of which only") && told.contains("copy it again"), "{name}: {told}");
    }
}
