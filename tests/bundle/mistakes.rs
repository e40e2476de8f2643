//! What is asked for by mistake: told in a sentence, with nothing destroyed or left behind.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::desk::{CREATED, TOOL, create, desk, signed};

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
