//! `fwupdate-bundle` as a build host uses it, and against the tools that everybody has: what `tar`, `zstd`
//! and `openssl` say of a bundle must be what we say.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "this file is tests only")]

use std::ffi::OsStr;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fwupdate::bundle::{Index, PatchIndex};
use fwupdate::manifest::Body;
use serde_json::Value;
use tempfile::TempDir;

const TOOL: &str = env!("CARGO_BIN_EXE_fwupdate-bundle");
const CREATED: &str = "2026-01-31T12:00:00Z";

/// A folder of one test, and the commands that run in it.
struct Desk(TempDir);

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
    }

    fn command<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Output {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.0.path()).env_remove("SOURCE_DATE_EPOCH");
        command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// Runs the tool with the words of `line`.
    fn tool(&self, line: &str) -> Output {
        self.command(TOOL, line.split_whitespace())
    }

    /// Runs the tool, which must succeed; returns its standard output.
    fn good(&self, line: &str) -> String {
        let output = self.tool(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.good(&format!("--json {line}"))).unwrap()
    }

    /// Runs the tool, which must end with `code`; returns its one sentence.
    fn bad(&self, line: &str, code: i32) -> String {
        let output = self.tool(line);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {message}");
        message
    }

    /// Runs another program with the words of `line`; `true` if it succeeds.
    fn runs(&self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        self.command(words.next().unwrap(), words).status.success()
    }

    fn must(&self, line: &str) {
        assert!(self.runs(line), "{line}");
    }

    /// A member of a bundle, as `tar` extracts it.
    fn member(&self, bundle: &str, name: &str) -> Vec<u8> {
        let output = self.command("tar", ["-xOf", bundle, name]);
        assert!(output.status.success());
        output.stdout
    }

    /// The bytes of the signature at `position`, by way of the JSON alone.
    fn signature(&self, bundle: &str, position: usize) -> Vec<u8> {
        let list: Value = serde_json::from_slice(&self.member(bundle, "manifest.sig")).unwrap();
        let text = list["signatures"][position]["signature"].as_str().unwrap();
        data_encoding::BASE64.decode(text.as_bytes()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Random blocks, text-like blocks and zeros: something of each kind that a file system holds.
fn image(seed: u64, blocks: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut image = Vec::with_capacity(blocks * 4096);
    while image.len() < blocks * 4096 {
        let run = 4096 * random.usize(1..40);
        let start = image.len();
        image.resize(start + run, 0);
        // An image of zeros alone is refused.
        match if start == 0 { 0 } else { random.u8(0..3) } {
            0 => random.fill(&mut image[start..]),
            1 => image[start..].iter_mut().for_each(|byte| *byte = random.u8(b'a'..b'f')),
            _ => {}
        }
    }
    image.truncate(blocks * 4096);
    image
}

/// A desk with a key in `keys/` and an image in `image`.
fn desk(blocks: usize) -> Desk {
    let desk = Desk::new();
    desk.good("keygen --out keys");
    desk.write("image", &image(1, blocks));
    desk
}

/// The command that packs `image` into `out`, but for the keys.
fn create(image: &str, out: &str) -> String {
    format!(
        "create --image {image} --compatible gw-1 --version 1.2.3 --security-version 1 --created {CREATED} \
         --level 3 -o {out}"
    )
}

fn signed(image: &str, out: &str) -> String {
    create(image, out) + " --key keys/release.key.pem"
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

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
fn keygen_makes_keys_that_openssl_reads_and_never_overwrites_one() {
    for algorithm in ["ed25519", "p256"] {
        let desk = Desk::new();
        desk.good(&format!("keygen --out a/b --algorithm {algorithm}"));
        desk.must("openssl pkey -in a/b/release.key.pem -pubout -out public.pem");
        assert_eq!(desk.read("public.pem"), desk.read("a/b/release.pub.pem"));
        let mode = fs::metadata(desk.path("a/b/release.key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let key = desk.read("a/b/release.key.pem");
        fs::remove_file(desk.path("a/b/release.pub.pem")).unwrap();
        assert!(desk.bad("keygen --out a/b", 1).contains("exists already"));
        assert_eq!(desk.read("a/b/release.key.pem"), key);
        assert!(!desk.path("a/b/release.pub.pem").exists());
    }
}

/// How openssl checks `signature` over `manifest.json` with the key in `public.pem`.
fn openssl_verifies(desk: &Desk, algorithm: &str) -> bool {
    desk.runs(match algorithm {
        "ed25519" => {
            "openssl pkeyutl -verify -rawin -pubin -inkey public.pem -in manifest.json -sigfile signature"
        }
        _ => "openssl dgst -sha256 -verify public.pem -signature signature manifest.json",
    })
}

#[test]
fn openssl_agrees_about_our_signatures() {
    for algorithm in ["ed25519", "p256"] {
        let desk = Desk::new();
        desk.good(&format!("keygen --out keys --algorithm {algorithm}"));
        desk.write("image", &image(1, 20));
        desk.good(&signed("image", "out.fwb"));
        desk.write("public.pem", &desk.read("keys/release.pub.pem"));
        desk.write("manifest.json", &desk.member("out.fwb", "manifest.json"));
        desk.write("signature", &desk.signature("out.fwb", 0));
        assert!(openssl_verifies(&desk, algorithm));
        desk.good("verify out.fwb --keys keys");

        let version = 512 + desk.read("manifest.json").windows(5).position(|part| part == b"1.2.3").unwrap();
        flip(&desk.path("manifest.json"), version - 512);
        flip(&desk.path("out.fwb"), version);
        assert_eq!(desk.member("out.fwb", "manifest.json"), desk.read("manifest.json"));
        assert!(!openssl_verifies(&desk, algorithm));
        desk.bad("verify out.fwb --keys keys", 3);
    }
}

/// r and s of a DER signature as 64 bytes, as a key vault gives them.
fn raw(der: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        let digits = &der[at + 2..at + 2 + der[at + 1] as usize];
        let digits = &digits[digits.iter().take_while(|byte| **byte == 0).count()..];
        [vec![0; 32 - digits.len()], digits.to_vec()].concat()
    };
    [number(2), number(4 + der[3] as usize)].concat()
}

#[test]
fn a_key_that_we_never_see_signs_by_openssl() {
    for (algorithm, genpkey, sign) in [
        ("ed25519", "ed25519", "pkeyutl -sign -rawin -inkey hsm/key -in manifest.json -out signature"),
        (
            "p256",
            "EC -pkeyopt ec_paramgen_curve:P-256",
            "dgst -sha256 -sign hsm/key -out signature manifest.json",
        ),
    ] {
        let desk = desk(20);
        fs::create_dir(desk.path("hsm")).unwrap();
        desk.must(&format!("openssl genpkey -algorithm {genpkey} -out hsm/key"));
        desk.must("openssl pkey -in hsm/key -pubout -out hsm/public.pem");
        desk.good(&(create("image", "out.fwb") + " --unsigned"));
        assert!(desk.bad("verify out.fwb --keys hsm", 3).contains("0 of 1 valid"));

        let digest = desk.good("digest out.fwb --manifest manifest.json");
        let sum = String::from_utf8(desk.command("sha256sum", ["manifest.json"]).stdout).unwrap();
        assert_eq!(digest.trim(), &sum[..64]);
        desk.must(&format!("openssl {sign}"));
        let unsigned = desk.read("out.fwb");
        let mut forged = desk.read("signature");
        *forged.last_mut().unwrap() ^= 1;
        desk.write("forged", &forged);
        desk.bad("sign out.fwb --signature forged --public-key hsm/public.pem", 3);
        desk.bad("sign out.fwb --signature signature --public-key keys/release.pub.pem", 3);
        assert!(desk.read("out.fwb") == unsigned);

        desk.good("sign out.fwb --signature signature --public-key hsm/public.pem");
        desk.good("verify out.fwb --keys hsm");
        if algorithm == "p256" {
            let once = desk.read("out.fwb");
            desk.write("raw", &raw(&desk.read("signature")));
            desk.good("sign out.fwb --signature raw --public-key hsm/public.pem");
            assert!(desk.read("out.fwb") == once, "the same signature, replaced and in the same form");
        }
    }
}

#[test]
fn keys_that_openssl_made_sign_directly_and_two_sign_side_by_side() {
    let desk = desk(20);
    fs::create_dir(desk.path("more")).unwrap();
    desk.must("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out other.key");
    desk.must("openssl pkey -in other.key -pubout -out more/other.pem");
    desk.good(&(signed("image", "out.fwb") + " --key other.key"));
    desk.bad("verify out.fwb --keys keys/release.pub.pem --required 2", 3);
    desk.good("verify out.fwb --keys more");
    fs::copy(desk.path("keys/release.pub.pem"), desk.path("more/release.pem")).unwrap();
    desk.good("verify out.fwb --keys more --required 2");
    let message = desk.bad(&(signed("image", "twice.fwb") + " --key keys/release.key.pem"), 1);
    assert!(message.contains("given twice"), "{message}");
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

#[test]
fn mistakes_are_told_and_leave_nothing_behind() {
    let desk = desk(20);
    desk.write("odd", &[1; 5000]);
    desk.write("empty", &[]);
    let before = desk.names();
    assert!(desk.bad(&signed("odd", "out.fwb"), 1).contains("multiple of 4096"));
    assert!(desk.bad(&signed("empty", "out.fwb"), 1).contains("it is empty"));
    assert!(desk.bad(&signed("absent", "out.fwb"), 1).contains("absent"));
    assert!(desk.bad(&signed("image", "out.fwb").replace("gw-1", "gw/1"), 1).contains("compatible"));
    assert!(desk.bad(&(create("image", "out.fwb") + " --key odd"), 1).contains("PKCS#8"));
    assert!(desk.bad(&signed("image", "image"), 1).contains("another output"));
    assert!(desk.bad(&signed("image", "no/such/out.fwb"), 1).contains("no/such/out.fwb"));
    assert!(desk.bad(&create("image", "out.fwb"), 2).contains("--key"));
    assert!(desk.bad(&(signed("image", "out.fwb") + " --unsigned"), 2).contains("--unsigned"));
    assert!(desk.bad("inspect image", 1).contains("no bundle"));
    assert!(desk.bad("verify image --keys hsm", 1).contains("hsm"));
    assert_eq!(desk.names(), before);

    let output = desk.tool("--json inspect absent");
    assert!(output.stdout.is_empty());
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "NotFound");
    assert!(error["error"]["message"].as_str().unwrap().contains("absent"));
}

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

#[test]
fn keys_from_another_systems_editor_are_read() {
    let desk = desk(20);
    for name in ["key", "pub"] {
        let pem = String::from_utf8(desk.read(&format!("keys/release.{name}.pem"))).unwrap();
        desk.write(&format!("{name}.pem"), format!("\u{feff}{}", pem.replace('\n', "\r\n")).as_bytes());
    }
    desk.good(&(create("image", "out.fwb") + " --key key.pem"));
    desk.good("verify out.fwb --keys pub.pem");
}

#[test]
fn no_output_takes_the_place_of_what_is_read_or_of_a_device() {
    let desk = desk(20);
    desk.good(&signed("image", "good.fwb"));
    fs::create_dir(desk.path("folder")).unwrap();
    nix::unistd::mkfifo(&desk.path("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    std::os::unix::fs::symlink("keys/release.key.pem", desk.path("link")).unwrap();
    let before = (desk.read("good.fwb"), desk.read("keys/release.key.pem"), desk.names());
    for (line, what) in [
        (signed("image", "keys/release.key.pem"), "another output"),
        (signed("image", "link"), "another output"),
        (signed("image", "folder"), "a folder"),
        (signed("image", "pipe"), "a pipe"),
        ("digest good.fwb --manifest good.fwb".to_owned(), "another output"),
        ("digest good.fwb --manifest pipe".to_owned(), "a pipe"),
    ] {
        let told = desk.bad(&line, 1);
        assert!(told.contains(what), "{line}: {told}");
    }
    assert_eq!((desk.read("good.fwb"), desk.read("keys/release.key.pem"), desk.names()), before);
    use std::os::unix::fs::FileTypeExt;
    assert!(fs::metadata(desk.path("pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn a_time_that_no_bundle_can_have_is_refused() {
    let desk = desk(20);
    for time in ["9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00+01:00", "1969-12-31T23:59:59Z"] {
        let told = desk.bad(&signed("image", "out.fwb").replace(CREATED, time), 1);
        assert!(told.contains("1970 to 2242") && told.lines().count() == 1, "{time}: {told}");
    }
}

#[test]
fn a_reader_that_went_away_has_seen_enough() {
    let desk = desk(20);
    desk.good(&signed("image", "good.fwb"));
    let run = |line: &str, out: Stdio| {
        let mut command = Command::new(TOOL);
        command.args(line.split_whitespace()).current_dir(desk.0.path()).stdout(out).output().unwrap()
    };
    for line in ["inspect good.fwb", "--json verify good.fwb --keys keys"] {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let gone = run(line, writer.into());
        assert_eq!((gone.status.code(), &*gone.stderr), (Some(0), &b""[..]), "{line}");
        let full = run(line, fs::File::create("/dev/full").unwrap().into());
        assert_eq!(full.status.code(), Some(1), "{line}");
        assert!(String::from_utf8_lossy(&full.stderr).contains("cannot be written: No space"), "{line}");
    }
}

#[test]
fn create_wants_a_security_version_and_says_what_it_is() {
    let desk = desk(20);
    let line = signed("image", "out.fwb").replace("--security-version 1", "");
    let told = desk.bad(&line, 2);
    for word in ["--security-version", "never falls", "Begin with 1"] {
        assert!(told.contains(word), "{told}");
    }
    assert!(!desk.path("out.fwb").exists());
    let output = desk.tool(&format!("--json {line}"));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((output.status.code(), &error["error"]["code"]), (Some(2), &"MalformedRequest".into()));
}

#[test]
fn file_names_and_manifests_do_not_drive_the_terminal() {
    let desk = desk(20);
    let evil = "a\u{1b}[2J\u{9b}8m\u{202e}\u{2028}b";
    desk.write(evil, &desk.read("image"));
    let mut outputs =
        vec![desk.command(TOOL, ["inspect", evil]), desk.command(TOOL, ["--json", "inspect", evil])];
    let line = signed("image", "out.fwb").replace("out.fwb", "OUT");
    let words = line.split_whitespace().map(|word| if word == "OUT" { "evil\u{9b}.fwb" } else { word });
    outputs.push(desk.command(TOOL, words));
    outputs.push(desk.command(TOOL, ["--json", "verify", "evil\u{9b}.fwb", "--keys", "keys"]));
    for output in outputs {
        let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!told.is_empty());
        assert_eq!(told, fwupdate::cli::plain::lines(&told));
    }
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
