//! What people read: each mistake is answered at once and in a sentence, each failure is told once, and nothing that
//! came from outside drives the reader's terminal.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use fwupdate::cli::plain;
use serde_json::{Value, json};

use crate::harness::{DEVICE, Setup, World};

const AGENT: &str = env!("CARGO_BIN_EXE_fwupdated");
const CLOUD: &str = env!("CARGO_BIN_EXE_fwupdate-cloud");
/// Clears the screen, hides what follows, turns letters around, forges a line.
const EVIL: &str = "1\u{1b}[2J\u{9b}8m\u{7f}\u{202e}\u{2066}\u{2028}\r\nforged";

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

async fn cloud(world: &mut World, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(CLOUD);
    command.arg("--connection-string-file").arg(world.hub.dir().join("service.txt"));
    command.arg("--ca").arg(world.hub.ca_path()).args(args);
    world.beside(command).await
}

#[tokio::test]
async fn what_is_no_bundle_is_refused_when_it_is_asked_for() {
    let mut world = World::new().await;
    let folder = world.scratch().join("folder");
    fs::create_dir(&folder).unwrap();
    let fifo = world.scratch().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let absent = world.scratch().join("absent.fwb");
    let cases = [
        (absent.to_str().unwrap(), 1, "NotFound", "no bundle"),
        (folder.to_str().unwrap(), 2, "MalformedRequest", "folder"),
        (fifo.to_str().unwrap(), 2, "MalformedRequest", "no regular file"),
        ("example.com/x.fwb", 1, "NotFound", "https://"),
        ("http://me:hush@example.com/x.fwb?sig=hush", 2, "MalformedRequest", "no https URL"),
    ];
    for (source, exit, code, said) in cases {
        let output = world.ctl(&["install", source, "--json"]).await;
        assert_eq!(output.status.code(), Some(exit), "{source}: {}", err(&output));
        assert!(output.stdout.is_empty(), "{source}: {}", out(&output));
        let error: Value = serde_json::from_str(&err(&output)).unwrap();
        assert_eq!(error["error"]["code"], code, "{source}: {error}");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(said) && !message.contains("hush"), "{source}: {message}");
    }
    // The same by any other program that speaks to the socket.
    for (file, code) in [(&absent, "NotFound"), (&folder, "MalformedRequest"), (&fifo, "MalformedRequest")] {
        let error = install(&world.gateway.socket(), file);
        assert_eq!(error["error"]["code"], code, "{error}");
    }
    assert!(world.ctl_json(&["status"]).await["fwupdate"].get("operation").is_none());
    world.finish().await;
}

/// The log that shows all, the record of what was told, and every command that reads.
#[tokio::test]
async fn no_output_shows_the_password_or_the_token_of_a_package_url() {
    let settings = "[download]\nfinal_after = \"10ms\"\n".to_owned();
    let mut world = World::with(Setup { on: false, settings, ..Setup::default() }).await;
    world.gateway.set_variable("FWUPDATE_LOG", "trace");
    world.switch_on().await;
    let secret = |url: &str| url.replace("https://", "https://me:hush@") + "?sig=hush#hush";
    let absent = secret(&world.hub.files_url("absent.fwb"));
    let mut told = String::new();
    for payload in [json!({"fwPackageUri": absent}), json!({"fwPackageUri": secret("https://[::1]/x.fwb")})] {
        let id = world.update(payload).await;
        let last = world.outcome(&id).await;
        assert_eq!(last["result"], "failed", "{last}");
        told += &last.to_string();
    }
    assert!(told.contains("/files/absent.fwb"), "it says which: {told}");
    for refused in ["http://me:hush@h/x?sig=hush", "https://me:hush@?sig=hush", "me:hush@h/x?sig=hush"] {
        told += &world.call("firmwareUpdate", json!({"fwPackageUri": refused})).await.payload.to_string();
        let output = world.ctl(&["install", refused]).await;
        told += &(out(&output) + &err(&output));
    }
    let waited = world.ctl(&["install", &absent, "--operation-id", "waited", "--wait"]).await;
    told += &(out(&waited) + &err(&waited));
    for line in [&["status"][..], &["history"], &["slots"], &["doctor"]] {
        for json in [&[][..], &["--json"]] {
            let output = world.ctl(&[line, json].concat()).await;
            told += &(out(&output) + &err(&output));
        }
    }
    told += &fs::read_to_string(world.gateway.log_path()).unwrap();
    told.extend(world.hub.history(DEVICE).into_iter().map(|report| report.patch.to_string()));
    let shown = told.lines().find(|line| line.contains("hush"));
    assert!(shown.is_none() && told.contains("waited"), "{shown:?}");
    world.finish().await;
}

/// One request without `fwupdatectl`.
fn install(socket: &Path, file: &Path) -> Value {
    use std::io::{BufRead, BufReader, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    writeln!(stream, "{}", json!({"method": "install", "params": {"file": file}})).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[tokio::test]
async fn a_failure_is_told_once_and_history_says_what_is_known() {
    let mut world = World::new().await;
    let release = world.release("2.0.0");
    fs::write(world.www().join("no.fwb"), "no bundle").unwrap();
    let url = world.hub.files_url("no.fwb");
    let output = world.ctl(&["install", &url, "--operation-id", "first", "--wait"]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = out(&output) + &err(&output);
    assert_eq!(told.matches("MalformedBundle").count(), 1, "{told}");
    let history = world.ctl(&["history"]).await;
    assert!(
        out(&history).starts_with("1.        failed") && !out(&history).contains("- ->"),
        "{}",
        out(&history)
    );

    // Another one follows; the first is asked for again, by its id.
    let output = world.ctl(&["install", &release.url, "--operation-id", "second", "--wait"]).await;
    assert!(output.status.success(), "{}", err(&output));
    let output = world.ctl(&["install", &url, "--operation-id", "first", "--wait"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("MalformedBundle"), "{}", err(&output));
    world.finish().await;
}

/// A shell may stand in a folder that was removed meanwhile.
#[tokio::test]
async fn a_folder_that_is_gone_stops_no_command() {
    let mut world = World::new().await;
    for (line, exit, said) in [("status", 0, ""), ("install x.fwb", 1, "there is no bundle x.fwb")] {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", "mkdir gone && cd gone && rmdir ../gone && exec \"$0\" --socket \"$1\" $2"]);
        command.arg(env!("CARGO_BIN_EXE_fwupdatectl")).arg(world.gateway.socket()).arg(line);
        command.current_dir(world.scratch());
        let output = world.beside(command).await;
        assert_eq!(output.status.code(), Some(exit), "{line}: {}", err(&output));
        assert!(err(&output).contains(said), "{line}: {}", err(&output));
    }
    world.finish().await;
}

#[tokio::test]
async fn an_operation_that_nobody_knows_is_no_reason_to_wait() {
    let mut world = World::new().await;
    for action in [&["cancel"][..], &["approve"], &["defer", "--until", "2100-01-01T00:00:00Z"]] {
        let output = world.ctl(&[action, &["--operation-id", "nobody", "--wait"]].concat()).await;
        assert_eq!(output.status.code(), Some(1), "{action:?}");
        assert!(err(&output).contains("nobody"), "{action:?}: {}", err(&output));
    }
    let release = world.release("2.0.0");
    let last = world.install(&release).await;
    assert_eq!(last["result"], "committed", "{last}");
    let started = std::time::Instant::now();
    let output = cloud(&mut world, &["watch", DEVICE, "--operation-id", "nobody", "--json"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(started.elapsed().as_secs() < 60, "it waited");
    let error: Value = serde_json::from_str(&err(&output)).unwrap();
    assert_eq!(error["error"]["code"], "NotFound");
    assert!(error["error"]["message"].as_str().unwrap().contains("nobody"), "{error}");
    world.finish().await;
}

#[tokio::test]
async fn nothing_from_outside_drives_the_terminal() {
    let mut world = World::new().await;
    let desired = json!({"fwupdate": {"fwPackageUri": world.hub.files_url("no.fwb"), "version": EVIL}});
    world.hub.patch_desired(DEVICE, desired).unwrap();
    world.reported(|reported| reported["fwupdate"]["desired"]["code"] == "NotFound").await;
    let mut printed = Vec::new();
    for json in [&[][..], &["--json"]] {
        for line in [&["status"][..], &["history"], &["slots"], &["doctor"], &["install", EVIL]] {
            printed.push(world.ctl(&[line, json].concat()).await);
        }
        for line in [&["twin", DEVICE][..], &["twin", EVIL], &["watch", DEVICE], &["config", "show", EVIL]] {
            printed.push(cloud(&mut world, &[line, json].concat()).await);
        }
    }
    for output in &printed {
        let told = out(output) + &err(output);
        assert!(!told.is_empty());
        assert_eq!(told, plain::lines(&told));
        assert!(!told.lines().any(|line| line.starts_with("forged")), "a line was forged:\n{told}");
    }
    let log = world.gateway.log();
    assert_eq!(log, plain::lines(&log));
    world.finish().await;
}

/// Runs the agent on settings that it cannot use.
fn refuses_to_start(world: &World, log: Option<&str>) -> String {
    let file = world.scratch().join("bad.toml");
    fs::write(&file, "compatible = 7\n").unwrap();
    let mut agent = Command::new(AGENT);
    agent.arg("--config").arg(&file).env_remove("FWUPDATE_LOG").env_remove("JOURNAL_STREAM");
    let output = agent.envs(log.map(|value| ("FWUPDATE_LOG", value))).output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", err(&output));
    err(&output)
}

#[tokio::test]
async fn no_log_level_hides_why_the_agent_does_not_start() {
    let world = World::with(Setup { on: false, ..Setup::default() }).await;
    for log in [None, Some(""), Some("loud"), Some("off"), Some("fwupdate::hub=debug"), Some("info,=x")] {
        let told = refuses_to_start(&world, log);
        assert_eq!(told.matches("settings are missing").count(), 1, "{log:?}: {told}");
        let complains = told.contains("FWUPDATE_LOG");
        assert_eq!(complains, matches!(log, Some("loud" | "info,=x")), "{log:?}: {told}");
    }
    world.finish().await;
}

/// Whatever systemd starts hands JOURNAL_STREAM on to its children, whose stderr may lead elsewhere by then.
#[tokio::test]
async fn a_variable_left_by_another_unit_sends_no_word_astray() {
    let world = World::with(Setup { on: false, ..Setup::default() }).await;
    let file = world.scratch().join("bad.toml");
    fs::write(&file, "compatible = 7\n").unwrap();
    let mut agent = Command::new(AGENT);
    let output = agent.arg("--config").arg(&file).env("JOURNAL_STREAM", "9:12345").output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", err(&output));
    assert!(err(&output).contains("settings are missing"), "{}", err(&output));
    world.finish().await;
}

/// The generator runs early in boot, where its words stand in the kernel's log.
#[test]
fn the_generator_s_errors_read_like_all_others() {
    let dir = tempfile::tempdir().unwrap();
    let [units, rules, bad] = ["units", "rules", "bad.toml"].map(|name| dir.path().join(name));
    fs::write(&bad, "compatible = \"\u{1b}[2J\"\n").unwrap();
    let absent = dir.path().join("absent.toml");
    let generate = |config: &Path, rules: &Path, json: &[&str]| {
        let mut command = Command::new(AGENT);
        command.arg("--generate").arg(&units).arg(rules).arg("--config").arg(config).args(json);
        command.output().unwrap()
    };
    let nowhere = dir.path().join("bad.toml/rules");
    for (config, rules, code, said) in [
        (&bad, &rules, "NotReady", "bad.toml"),
        (&absent, &rules, "NotReady", "absent.toml cannot be read"),
        (&bad, &nowhere, "Internal", "bad.toml"),
    ] {
        let plain = generate(config, rules, &[]);
        let told = err(&plain);
        assert!(told.starts_with("fwupdated: ") && told.contains(said), "{told}");
        assert_eq!((told.lines().count(), plain.status.code()), (1, Some(1)), "{told}");
        assert_eq!(told, plain::lines(&told));
        let error: Value = serde_json::from_str(&err(&generate(config, rules, &["--json"]))).unwrap();
        assert_eq!(error["error"]["code"], code, "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(said), "{error}");
    }
}

#[test]
fn no_program_ends_badly_when_its_output_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fwupdate.toml");
    let text = "compatible = \"x\"\nslots.a.device = \"/dev/a\"\nslots.b.device = \"/dev/b\"\nbootloader.kind = \"grub\"\nbootloader.grubenv = \"/b/grubenv\"\n";
    fs::write(&file, text).unwrap();
    let run = |what: &str, out: std::process::Stdio| {
        let mut command = Command::new(AGENT);
        command.args([what, "--config"]).arg(&file).stdout(out).output().unwrap()
    };
    for what in ["--check-config", "--doctor"] {
        let full = run(what, fs::File::create("/dev/full").unwrap().into());
        assert_eq!(full.status.code(), Some(1), "{what}: {}", err(&full));
        assert!(
            err(&full).starts_with("fwupdated: the output cannot be written: No space"),
            "{}",
            err(&full)
        );
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let gone = run(what, writer.into());
        assert!(
            !err(&gone).contains("cannot be written") && !err(&gone).contains("panicked"),
            "{}",
            err(&gone)
        );
    }
}

#[tokio::test]
async fn every_program_takes_json_for_what_it_reads() {
    let world = World::with(Setup { on: false, ..Setup::default() }).await;
    let good = world.gateway.dir().join("fwupdate.toml");
    let bad = world.scratch().join("bad.toml");
    fs::write(&bad, "compatible = 7\n").unwrap();
    let check = |file: &Path| {
        Command::new(AGENT).args(["--check-config", "--json", "--config"]).arg(file).output().unwrap()
    };
    let checked: Value = serde_json::from_str(&out(&check(&good))).unwrap();
    assert_eq!(checked["settings"]["bootloader"]["kind"], "uboot", "{checked}");
    let refused = check(&bad);
    assert!(!refused.status.success() && refused.stdout.is_empty());
    assert_eq!(serde_json::from_str::<Value>(&err(&refused)).unwrap()["error"]["code"], "NotReady");
    for program in [AGENT, CLOUD, env!("CARGO_BIN_EXE_fwupdatectl"), env!("CARGO_BIN_EXE_fwupdate-bundle")] {
        let refused = Command::new(program).args(["--json", "--no-such-option"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{program}");
        let error: Value = serde_json::from_str(&err(&refused)).unwrap();
        assert_eq!(error["error"]["code"], "MalformedRequest", "{program}: {error}");
    }
    world.finish().await;
}
