//! A bundle from end to end: packed, unpacked by other tools, verified, looked at and estimated.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::Command;

use crate::desk::{CREATED, TOOL, desk, image, signed};

#[test]
fn tar_and_zstd_unpack_the_image() {
    let desk = desk(900);
    desk.good(&signed("image", "out.fwb"));
    let list = desk.command("tar", ["-tf", "out.fwb"]).stdout;
    assert_eq!(String::from_utf8(list).unwrap(), "manifest.json\nmanifest.sig\nrootfs.index\nrootfs.zst\n");
    desk.write("payload.zst", &desk.member("out.fwb", "rootfs.zst"));
    let unpacked = desk.command("zstd", ["-dc", "payload.zst"]);
    assert!(unpacked.status.success());
    assert!(unpacked.stdout == desk.read("image"));
    desk.good("verify out.fwb --keys keys");
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let desk = desk(900);
    desk.good(&signed("image", "one.fwb"));
    desk.good(&signed("image", "two.fwb"));
    assert!(desk.read("one.fwb") == desk.read("two.fwb"));
    let line = signed("image", "three.fwb").replace(&format!("--created {CREATED}"), "");
    let mut command = Command::new(TOOL);
    command.args(line.split_whitespace()).current_dir(desk.0.path()).env("SOURCE_DATE_EPOCH", "1769860800");
    assert!(command.output().unwrap().status.success());
    assert!(desk.read("one.fwb") == desk.read("three.fwb"));
}

#[test]
fn verify_notices_damage_wherever_it_is() {
    let desk = desk(40);
    desk.good(&signed("image", "good.fwb"));
    let good = desk.read("good.fwb");
    let shown = desk.json("inspect good.fwb");
    let payload = shown["headSize"].as_u64().unwrap() as usize;
    let index = payload - 1024;
    for (at, code) in [(600, 3), (index, 1), (payload - 500, 1), (payload + 20, 1), (good.len() - 1, 1)] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        desk.write("bad.fwb", &bad);
        desk.bad("verify bad.fwb --keys keys", code);
    }
    for length in (0..20).map(|part| good.len() * part / 20).chain([511, 512, 513, good.len() - 1]) {
        desk.write("bad.fwb", &good[..length]);
        let message = desk.bad("verify bad.fwb --keys keys", 1);
        assert!(message.contains("too early"), "{length}: {message}");
    }
    desk.write("bad.fwb", &[good.as_slice(), b"x"].concat());
    desk.bad("verify bad.fwb --keys keys", 1);
    desk.good("verify good.fwb --keys keys");
}

#[test]
fn inspect_shows_the_manifest() {
    let desk = desk(300);
    desk.good(&signed("image", "out.fwb").replace("--security-version 1", "--security-version 7"));
    let shown = desk.json("inspect out.fwb");
    assert_eq!(shown["manifest"]["compatible"], "gw-1");
    assert_eq!(shown["manifest"]["securityVersion"], 7);
    assert_eq!(shown["manifest"]["created"], CREATED);
    assert_eq!(shown["manifest"]["image"]["size"], 300 * 4096);
    assert_eq!(shown["manifestSha256"], desk.good("digest out.fwb").trim());
    assert_eq!(shown["bundleSize"], desk.read("out.fwb").len());
    let sum = String::from_utf8(desk.command("sha256sum", ["image"]).stdout).unwrap();
    assert_eq!(shown["manifest"]["image"]["sha256"], sum[..64]);
    assert!(desk.good("inspect out.fwb").contains("1.2.3"));
}

#[test]
fn estimate_counts_the_frames_of_chunks_that_are_not_there() {
    let desk = desk(2000);
    let mut next = desk.read("image");
    next[4096 * 700..4096 * 703].copy_from_slice(&image(99, 3));
    desk.write("next", &next);
    desk.good(&signed("image", "old.fwb"));
    desk.good(&signed("next", "new.fwb"));
    let by_bundle = desk.json("estimate old.fwb new.fwb");
    assert_eq!(by_bundle, desk.json("estimate image new.fwb"), "an image is scanned to the same chunks");
    let number = |name: &str| by_bundle[name].as_u64().unwrap();
    assert_eq!(number("downloadBytes"), number("headBytes") + number("frameBytes"));
    assert!(number("frameBytes") > 0 && number("frameBytes") <= 3 * 257 * 1024, "{by_bundle}");
    let same = desk.json("estimate new.fwb new.fwb");
    assert_eq!(same["downloadBytes"], same["headBytes"]);
    assert_eq!(same["reusedBytes"], same["imageSize"]);
    desk.write("foreign", &[7; 4096]);
    let all = desk.json("estimate foreign new.fwb");
    assert!(all["downloadBytes"].as_u64().unwrap() > all["bundleSize"].as_u64().unwrap() * 9 / 10);
}

#[test]
fn create_needs_little_memory_for_a_large_image() {
    let desk = desk(1);
    let mut large = fs::File::create(desk.path("large")).unwrap();
    large.set_len(2 << 30).unwrap();
    for part in 0..16 {
        large.seek(SeekFrom::Start(part << 27)).unwrap();
        large.write_all(&image(part, 512)).unwrap();
    }
    let line = signed("large", "out.fwb");
    let mut command = Command::new(TOOL);
    let mut create = command.args(line.split_whitespace()).current_dir(desk.0.path()).spawn().unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", create.id()));
    // The kernel keeps the peak; the last look before the end counts.
    let mut peak = 0;
    while create.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(peak);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(create.wait().unwrap().success());
    let shown = desk.json("inspect out.fwb");
    assert_eq!(shown["manifest"]["image"]["size"], 2u64 << 30);
    assert!(shown["bundleSize"].as_u64().unwrap() < 64 << 20);
    assert!(peak > 0 && peak < 200 * 1000, "{peak} KiB");
    println!("peak of create: {peak} KiB");
}
