//! Bundles that are damaged, foreign, or not for this gateway.

use std::fs;
use std::ops::Range;
use std::process::Command;

use fwupdate_hub::firmware::Slot;
use serde_json::{Value, json};

use super::{Bytes, expect, failed, fetch, goes_on, take};
use crate::harness::{Release, SLOT, Spec, World, run};

const BUNDLE: &str = env!("CARGO_BIN_EXE_fwupdate-bundle");
/// Bytes of the slot that are zeroed before anything else is written.
const GUARD: usize = 1 << 20;

/// The members of a tar: name, place of the header, place of the content.
fn members(tar: &[u8]) -> Vec<(String, usize, Range<usize>)> {
    let (mut at, mut found) = (0, Vec::new());
    while tar[at] != 0 {
        let text = |range: Range<usize>| {
            String::from_utf8(tar[range].iter().copied().take_while(|byte| *byte != 0).collect()).unwrap()
        };
        let size = usize::from_str_radix(&text(at + 124..at + 136), 8).unwrap();
        let content = at + 512..at + 512 + size;
        found.push((text(at..at + 100), at, content.clone()));
        at = content.end.next_multiple_of(512);
    }
    assert_eq!(found.len(), 4);
    found
}

#[tokio::test]
async fn a_truncated_bundle_is_refused_before_a_byte_is_written() {
    let mut world = World::new().await;
    let before = Bytes::of(&world.gateway);
    let whole = fs::read(world.release("2.0.0").bundle).unwrap();
    let places = members(&whole).into_iter().flat_map(|(_, header, content)| {
        let middle = (content.start + content.end) / 2;
        [header + 1, header + 300, content.start, middle, content.end - 1]
    });
    let places: Vec<usize> = places.chain([whole.len() - 1025, whole.len() - 1]).collect();
    assert!(places.len() >= 20);
    for length in places {
        fs::write(world.www().join("cut.fwb"), &whole[..length]).unwrap();
        let payload = fetch(&world, "cut.fwb");
        let error = failed(&mut world, payload).await;
        let case = format!("{length} of {} bytes", whole.len());
        expect(&case, &error, "MalformedBundle", "");
        before.same(&world, &case);
    }
    fs::write(world.www().join("cut.fwb"), b"").unwrap();
    let payload = fetch(&world, "cut.fwb");
    expect("an empty file", &failed(&mut world, payload).await, "DownloadFailed", "shorter");
    before.same(&world, "an empty file");
    goes_on(world).await;
}

#[tokio::test]
async fn a_flipped_bit_is_noticed_in_every_member() {
    let mut world = World::new().await;
    let before = Bytes::of(&world.gateway);
    let whole = fs::read(world.release("2.0.0").bundle).unwrap();
    for (name, header, content) in members(&whole) {
        let middle = (content.start + content.end) / 2;
        for (place, at) in
            [("name", header), ("size", header + 130), ("start", content.start), ("middle", middle)]
        {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(world.www().join("flipped.fwb"), damaged).unwrap();
            let payload = fetch(&world, "flipped.fwb");
            let error = failed(&mut world, payload).await;
            let case = format!("{place} of {name}");
            let (codes, early): (&[&str], bool) = match (name.as_str(), place) {
                ("manifest.json", "start" | "middle") => (&["UntrustedSignature"], true),
                ("manifest.sig", "start" | "middle") => (&["UntrustedSignature", "MalformedBundle"], true),
                // What the manifest has a digest of is fetched when the slot was made ready for it.
                ("rootfs.index" | "rootfs.zst", "start" | "middle") => (&["DigestMismatch"], false),
                ("rootfs.zst", _) => (&["MalformedBundle"], false),
                _ => (&["MalformedBundle"], true),
            };
            assert!(codes.contains(&error["code"].as_str().unwrap()), "{case}: {error}");
            if early {
                before.same(&world, &case);
            }
            nothing_lost(&world, &before, &case);
        }
    }
    goes_on(world).await;
}

/// The running slot is as before and the only one that boots.
fn nothing_lost(world: &World, before: &Bytes, case: &str) {
    let now = Bytes::of(&world.gateway);
    assert!(now.slots[0] == before.slots[0], "{case}: the running slot changed");
    assert!(now.slots[1][..GUARD].iter().all(|byte| *byte == 0), "{case}: a half-written slot could boot");
    for (variable, value) in [("fwupdate_primary", "A"), ("fwupdate_trial", ""), ("fwupdate_tries", "")] {
        assert_eq!(world.gateway.boot_variable(variable).unwrap(), value, "{case}: {variable}");
    }
}

/// An image that is as good as any, under another name or for someone else.
fn repack(world: &World, good: &Release, version: &str, create: &[&str]) -> Release {
    world.pack(&good.image, version, create)
}

#[tokio::test]
async fn a_bundle_that_is_not_for_this_gateway_is_refused_by_its_manifest() {
    let mut world = World::new().await;
    let before = Bytes::of(&world.gateway);
    let stranger = world.scratch().join("stranger");
    run(Command::new(BUNDLE).arg("keygen").arg("--out").arg(&stranger));
    let stranger = stranger.join("release.key.pem").display().to_string();
    let good = world.release("2.0.0");
    let foreign = repack(&world, &good, "2.0.1", &["--key", &stranger]);
    let other_board = repack(&world, &good, "2.0.2", &["--compatible", "other-board"]);
    let older = repack(&world, &good, "0.9.0", &[]);
    let large = world.make(Spec { version: "2.0.3", size: SLOT + (1 << 20), ..Spec::default() });
    let pin = "ab".repeat(32);
    for (case, release, more, code, word) in [
        ("wrong key", &foreign, json!({"force": true}), "UntrustedSignature", "key"),
        ("wrong board", &other_board, json!({"force": true}), "WrongBoard", "other-board"),
        ("older version", &older, json!({"force": true}), "Downgrade", "allowDowngrade"),
        ("too large", &large, json!({}), "TooLarge", "slot"),
        ("another version", &good, json!({"version": "2.0"}), "VersionMismatch", "2.0.0"),
        ("another manifest", &good, json!({"manifestSha256": pin}), "DigestMismatch", "pinned"),
        ("no budget", &good, json!({"maxDownloadBytes": 1}), "DataBudgetExceeded", "maxDownloadBytes"),
    ] {
        let payload = merged(fetch(&world, &release.name), more);
        expect(case, &failed(&mut world, payload).await, code, word);
        before.same(&world, case);
    }
    // This much is known only once the slots were surveyed; nothing of the payload may have been fetched.
    world.hub.faults().reset_counts();
    let payload = merged(fetch(&world, &good.name), json!({"maxDownloadBytes": 100_000}));
    expect("small budget", &failed(&mut world, payload).await, "DataBudgetExceeded", "maxDownloadBytes");
    assert!(world.hub.faults().count(&good.name).body_bytes <= 100_000);
    nothing_lost(&world, &before, "small budget");
    goes_on(world).await;
}

fn merged(mut payload: Value, more: Value) -> Value {
    payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    payload
}

#[tokio::test]
async fn a_downgrade_needs_leave_and_never_goes_below_the_floor() {
    let mut world = World::new().await;
    let first =
        world.make(Spec { version: "2.0.0", create: &["--security-version", "3"], ..Spec::default() });
    take(&mut world, &first).await;

    let before = Bytes::of(&world.gateway);
    let payload = fetch(&world, &first.name);
    expect("once more", &failed(&mut world, payload).await, "AlreadyInstalled", "force");
    let weak = world.make(Spec { version: "3.0.0", create: &["--security-version", "2"], ..Spec::default() });
    let payload = merged(fetch(&world, &weak.name), json!({"allowDowngrade": true, "force": true}));
    expect("below the floor", &failed(&mut world, payload).await, "Downgrade", "floor 3");
    // The slot that ran before holds security version 0.
    let answer = world.call("firmwareRollback", json!({})).await;
    assert_eq!(
        (answer.status, &answer.payload["error"]["code"]),
        (412, &"Downgrade".into()),
        "{}",
        answer.payload
    );
    before.same(&world, "below the floor");

    let older =
        world.make(Spec { version: "1.5.0", create: &["--security-version", "3"], ..Spec::default() });
    let payload = fetch(&world, &older.name);
    expect("older", &failed(&mut world, payload).await, "Downgrade", "allowDowngrade");
    before.same(&world, "older");
    let id = world.update(merged(fetch(&world, &older.name), json!({"allowDowngrade": true}))).await;
    let last = world.outcome(&id).await;
    assert_eq!((&last["result"], &last["toVersion"]), (&"committed".into(), &"1.5.0".into()), "{last}");
    assert!(world.booted() == Slot::A && world.holds(Slot::A, &older));
    world.finish().await;
}

#[tokio::test]
async fn an_image_that_is_no_multiple_of_4096_becomes_no_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    run(Command::new(BUNDLE).arg("keygen").arg("--out").arg(at("keys")));
    for size in [0, 1, 4095, 4097, (1 << 20) + 512] {
        fs::write(at("image"), vec![7; size]).unwrap();
        let mut create = Command::new(BUNDLE);
        create
            .arg("create")
            .arg("--image")
            .arg(at("image"))
            .args(["--compatible", "b", "--version", "1"])
            .args(["--security-version", "1"]);
        let output =
            create.arg("--key").arg(at("keys/release.key.pem")).arg("-o").arg(at("out")).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{size}: {told}");
        assert!(told.contains("4096") && told.contains("image"), "{size}: {told}");
        assert!(!at("out").exists(), "{size}: a bundle was left behind");
    }
}
