//! Patches from old images: what they save, and what other tools make of them.

use fwupdate::bundle::{Index, PatchIndex};
use fwupdate::manifest::Body;
use serde_json::Value;

use crate::desk::{Desk, desk, image, signed};

/// An old version of `image`: bytes differ here and there, and a part lies elsewhere, between blocks.
fn older(image: &[u8]) -> Vec<u8> {
    let mut old = image.to_vec();
    old.iter_mut().step_by(9000).for_each(|byte| *byte = byte.wrapping_add(1));
    old[4096 * 300..4096 * 500].rotate_left(1234);
    old
}

/// A desk with an old image, and the bundle `new.fwb` of `image` with a patch from it.
fn desk_with_base() -> Desk {
    let desk = desk(2000);
    desk.write("old", &older(&desk.read("image")));
    desk.good(&(signed("image", "new.fwb") + " --base old"));
    desk
}

#[test]
fn a_patch_from_an_old_image_saves_most_of_the_download() {
    let desk = desk_with_base();
    desk.good("verify new.fwb --keys keys --base old");
    desk.good(&signed("image", "plain.fwb"));
    let number = |json: &Value, name: &str| json[name].as_u64().unwrap();
    let (with, without) = (desk.json("estimate old new.fwb"), desk.json("estimate old plain.fwb"));
    assert_eq!(number(&without, "patchBytes"), 0);
    assert!(number(&with, "patchBytes") > 0);
    assert!(number(&with, "downloadBytes") * 10 < number(&without, "downloadBytes"), "{with} {without}");
    let sum = ["headBytes", "frameBytes", "patchBytes"].map(|name| number(&with, name)).iter().sum::<u64>();
    assert_eq!(number(&with, "downloadBytes"), sum);
    // Any other old image is served as if there were no patch.
    desk.write("other", &[7; 4096]);
    let (with, without) = (desk.json("estimate other new.fwb"), desk.json("estimate other plain.fwb"));
    assert_eq!(number(&with, "patchBytes"), 0);
    assert_eq!(number(&with, "frameBytes"), number(&without, "frameBytes"));
    // By the old bundle, or by the image in it.
    desk.good(&signed("old", "old.fwb"));
    assert_eq!(desk.json("estimate old.fwb new.fwb"), desk.json("estimate old new.fwb"));
}

#[test]
fn tar_and_zstd_take_a_patch_apart() {
    let desk = desk_with_base();
    desk.must("tar -xf new.fwb");
    let (image, old) = (desk.read("image"), desk.read("old"));
    let body = Body::parse(&desk.read("manifest.json")).unwrap();
    let index = Index::parse(desk.read("rootfs.index"), &body.image).unwrap();
    let patch = PatchIndex::parse(desk.read("patch-1.index"), 0, &body, &index).unwrap();
    let frames = desk.read("patch-1.zst");
    assert!(patch.frames().count() > 1);
    for frame in patch.frames() {
        let blocks = frame.blocks.iter();
        let bytes = blocks.flat_map(|range| &old[range.start as usize * 4096..range.end as usize * 4096]);
        desk.write("prefix", &bytes.copied().collect::<Vec<u8>>());
        let start = frame.offset as usize;
        desk.write("frame.zst", &frames[start..start + frame.length as usize]);
        desk.must("zstd -qdf --patch-from=prefix frame.zst -o content");
        let content = frame.chunks(&index).flat_map(|(_, chunk)| {
            let start = chunk.offset as usize;
            image[start..start + chunk.length as usize].to_vec()
        });
        assert!(desk.read("content") == content.collect::<Vec<u8>>());
    }
    desk.must("zstd -qdf rootfs.zst -o whole");
    assert!(desk.read("whole") == image, "the plain frames are all there still");
}

#[test]
fn the_same_bases_give_the_same_bytes_and_several_have_a_patch_each() {
    let desk = desk_with_base();
    desk.good(&(signed("image", "again.fwb") + " --base old"));
    assert!(desk.read("again.fwb") == desk.read("new.fwb"));
    let mut second = desk.read("old");
    second[4096 * 900..4096 * 1000].rotate_left(99);
    desk.write("second", &second);
    desk.write("foreign", &image(77, 50));
    // Of the image itself, and of what is like nothing in it, there is nothing to patch.
    let made =
        desk.json(&(signed("image", "both.fwb") + " --base old --base image --base foreign --base second"));
    assert_eq!(made["patches"].as_array().unwrap().len(), 2);
    desk.good("verify both.fwb --keys keys --base old --base second");
    assert!(desk.bad("verify both.fwb --keys keys --base foreign", 1).contains("no patch from this image"));
    assert!(desk.good("inspect both.fwb").contains("frames"));
    let (old, second) = (desk.json("estimate old both.fwb"), desk.json("estimate second both.fwb"));
    assert!(old["patchBytes"].as_u64().unwrap() > 0 && second["patchBytes"].as_u64().unwrap() > 0);
}

#[test]
fn verify_notices_a_damaged_patch() {
    let desk = desk_with_base();
    let good = desk.read("new.fwb");
    let patch = &desk.json("inspect new.fwb")["manifest"]["patches"][0];
    let size = |name: &str| patch[name].as_u64().unwrap() as usize;
    let payload = good.len() - 1024 - size("payloadSize").next_multiple_of(512);
    let index = payload - 512 - size("indexSize").next_multiple_of(512);
    for (at, without) in [(index - 512, 1), (index, 1), (payload - 512, 1), (payload + 100, 0)] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        desk.write("bad.fwb", &bad);
        desk.bad("verify bad.fwb --keys keys --base old", 1);
        let code = desk.tool("verify bad.fwb --keys keys").status.code();
        assert_eq!(code, Some(without), "frames can't be checked without the old image ({at})");
    }
}

#[test]
fn mistakes_with_bases_are_told_before_the_work() {
    let desk = desk(20);
    desk.write("odd", &[1; 5000]);
    desk.good(&signed("image", "old.fwb"));
    let before = desk.names();
    let bad = |bases: &str| desk.bad(&format!("{} {bases}", signed("image", "out.fwb")), 1);
    assert!(bad("--base absent").contains("absent"));
    assert!(bad("--base odd").contains("multiple of 4096"));
    assert!(bad("--base old.fwb").contains("it is a bundle"));
    assert!(bad("--base out.fwb").contains("out.fwb"));
    assert!(bad(&"--base image ".repeat(9)).contains("the limit is 8"));
    assert_eq!(desk.names(), before);
    desk.write("out.fwb", &desk.read("image"));
    assert!(bad("--base out.fwb").contains("another output"));
    let desk = desk_with_base();
    let twice = signed("image", "out.fwb") + " --base old --base old";
    assert!(desk.bad(&twice, 1).contains("given twice"));
}
