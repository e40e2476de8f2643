//! `fwupdate-cloud` at an operator's desk: against the hub, and through it the gateway.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use fwupdate_hub::faults::{FileEffect, FileRule};
use serde_json::{Value, json};

use crate::harness::{DEVICE, Setup, Spec, World};

const CLOUD: &str = env!("CARGO_BIN_EXE_fwupdate-cloud");

/// Runs the program with this connection string file, while the gateway lives on.
async fn run(world: &mut World, file: PathBuf, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(CLOUD);
    command.arg("--connection-string-file").arg(file).arg("--ca").arg(world.hub.ca_path()).args(args);
    world.beside(command).await
}

async fn cloud(world: &mut World, args: &[&str]) -> Output {
    let file = world.hub.dir().join("service.txt");
    run(world, file, args).await
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn an_update_is_invoked_watched_and_shown() {
    let settings = "[health]\ndeadline = \"3s\"\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let two = world.release("2.0.0");
    let done =
        cloud(&mut world, &["invoke", DEVICE, "--uri", &two.url, "--version", "2.0.0", "--watch"]).await;
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    assert!(out(&done).contains("committed: 1.0.0 -> 2.0.0"), "{}", out(&done));
    let twin = cloud(&mut world, &["twin", DEVICE]).await;
    assert!(out(&twin).contains("gw, connected") && out(&twin).contains("completed"), "{}", out(&twin));
    let twin = cloud(&mut world, &["twin", DEVICE, "--json"]).await;
    let twin: Value = serde_json::from_str(&out(&twin)).unwrap();
    assert_eq!(twin["properties"]["reported"]["fwupdate"]["slots"]["B"]["version"], "2.0.0");

    let bad = world.make(Spec { version: "3.0.0", health: "bad", ..Spec::default() });
    let args = ["invoke", DEVICE, "--uri", &bad.url, "--operation-id", "mine", "--watch", "--json"];
    let failed = cloud(&mut world, &args).await;
    assert_eq!(failed.status.code(), Some(1), "{}", err(&failed));
    let told: Value = serde_json::from_str(&err(&failed)).unwrap();
    assert_eq!(told["error"]["code"], "HealthCheckFailed");
    for line in out(&failed).lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
    // Calling again starts nothing, and says so.
    let again = ["invoke", DEVICE, "--uri", &bad.url, "--operation-id", "mine"];
    let again = cloud(&mut world, &again).await;
    assert_eq!(again.status.code(), Some(1), "{}", out(&again));
    assert!(out(&again).contains("rolledBack"), "{}", out(&again));
    // Watching afterwards tells the same outcome.
    let watched = cloud(&mut world, &["watch", DEVICE, "--operation-id", "mine"]).await;
    assert_eq!(watched.status.code(), Some(1));
    assert!(err(&watched).contains("rolledBack"), "{}", err(&watched));
    world.finish().await;
}

#[tokio::test]
async fn the_gateways_refusals_are_told_apart() {
    let settings = "[policy]\napproval = true\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let release = world.release("2.0.0");
    let never = cloud(&mut world, &["watch", DEVICE]).await;
    assert_eq!(never.status.code(), Some(1));
    assert!(err(&never).contains("never reported an update"), "{}", err(&never));
    let accepted = cloud(&mut world, &["invoke", DEVICE, "--uri", &release.url]).await;
    assert_eq!(accepted.status.code(), Some(0), "{}", err(&accepted));
    assert!(out(&accepted).starts_with("Accepted (operation "), "{}", out(&accepted));
    world.phase("holding").await;
    let busy =
        cloud(&mut world, &["invoke", DEVICE, "--uri", "https://x/other.fwb", "--no-pin", "--json"]).await;
    assert_eq!(busy.status.code(), Some(3));
    assert_eq!(serde_json::from_str::<Value>(&err(&busy)).unwrap()["error"]["code"], "Busy");
    let malformed = cloud(&mut world, &["invoke", DEVICE, "--uri", "http://x/plain.fwb", "--no-pin"]).await;
    assert_eq!(malformed.status.code(), Some(2), "{}", err(&malformed));
    let answer = world.call("firmwareCancel", json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.payload);
    world.reported(|twin| twin["firmwareStatus"] == "cancelled").await;
    world.finish().await;
}

#[tokio::test]
async fn what_keeps_the_hub_from_helping_is_told_apart() {
    let mut world = World::new().await;
    world.hub.add_device("spare").unwrap();
    let invoke = ["invoke", "spare", "--uri", "https://x/2.fwb", "--no-pin"];
    let offline = cloud(&mut world, &invoke).await;
    assert_eq!(offline.status.code(), Some(4), "{}", err(&offline));
    assert!(err(&offline).contains("not connected") && err(&offline).lines().count() == 1);
    let unknown = cloud(&mut world, &["twin", "nobody"]).await;
    assert_eq!(unknown.status.code(), Some(1), "{}", err(&unknown));

    let good = world.hub.service_connection_string();
    let key = good.split("SharedAccessKey=").nth(1).unwrap();
    let with = |world: &World, text: String| {
        let file = world.scratch().join("other.txt");
        fs::write(&file, text).unwrap();
        file
    };
    let wrong_key = good.replace(key, "d3JvbmcgIGtleQ==");
    let nowhere = good.replace(&format!(":{}", world.hub.https_addr().port()), ":1");
    for (text, exit, said) in [
        (wrong_key, 3, "refuses the connection string"),
        (nowhere, 4, "cannot be reached"),
        ("HostName=x;DeviceId=gw;SharedAccessKey=a2V5".to_owned(), 2, "device's connection string"),
    ] {
        let file = with(&world, text);
        let output = run(&mut world, file, &["twin", DEVICE]).await;
        assert_eq!(output.status.code(), Some(exit), "{}", err(&output));
        assert!(err(&output).contains(said), "{}", err(&output));
        assert!(!err(&output).contains(key), "the key is shown");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_rollout_calls_all_that_the_query_selects_and_tells_what_became_of_them() {
    let mut world = World::new().await;
    let two = world.release("2.0.0");
    let rollout = |query: &'static str, id: &'static str| {
        ["rollout", "--query", query, "--uri", &two.url, "--operation-id", id, "--watch", "--json"]
    };
    let done = cloud(&mut world, &rollout("deviceId = 'gw'", "ring-one")).await;
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    let told: Vec<Value> = out(&done).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = told.last().unwrap();
    assert_eq!(*last, json!({"job": "completed", "gateways": 1, "counts": {"committed": 1}}));
    assert_eq!(world.outcome("ring-one").await["toVersion"], "2.0.0");

    let shown = cloud(&mut world, &["job", "ring-one", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&out(&shown)).unwrap(), *last);
    let later = [
        "rollout",
        "--query",
        "*",
        "--uri",
        &two.url,
        "--operation-id",
        "later",
        "--start",
        "2999-01-01T00:00:00Z",
    ];
    assert_eq!(cloud(&mut world, &later).await.status.code(), Some(0));
    let cancelled = cloud(&mut world, &["job", "later", "--cancel"]).await;
    assert!(
        out(&cancelled).starts_with("job cancelled, 0 gateways"),
        "{}{}",
        out(&cancelled),
        err(&cancelled)
    );
    assert_eq!(cloud(&mut world, &["job", "later", "--watch"]).await.status.code(), Some(1));
    assert_eq!(cloud(&mut world, &["job", "none"]).await.status.code(), Some(1));

    // One is not connected, the other has this version: neither commits.
    world.hub.add_device("spare").unwrap();
    let failed = cloud(&mut world, &rollout("*", "ring-two")).await;
    assert_eq!(failed.status.code(), Some(1), "{}", err(&failed));
    let told: Value = serde_json::from_str(&err(&failed)).unwrap();
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.contains("2 of 2") && message.contains("404103, AlreadyInstalled"), "{message}");
    let twice = cloud(&mut world, &rollout("*", "ring-two")).await;
    assert_eq!(twice.status.code(), Some(3), "a job's id is used once: {}", err(&twice));
    let nobody = cloud(&mut world, &rollout("tags.ring = 'none'", "ring-three")).await;
    assert_eq!(nobody.status.code(), Some(1), "{}", err(&nobody));
    assert!(err(&nobody).contains("no gateway"), "{}", err(&nobody));
    world.finish().await;
}

#[tokio::test]
async fn a_configuration_updates_a_fleet_and_is_withdrawn() {
    let settings = "[health]\ndeadline = \"3s\"\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let two = world.release("2.0.0");
    let three = world.make(Spec { version: "3.0.0", health: "bad", ..Spec::default() });
    let apply = |id: &str, uri: &str, version: &str, more: &[&str]| {
        let head =
            ["config", "apply", "--id", id, "--query", "deviceId = 'gw'", "--version", version, "--uri", uri];
        head.iter().chain(more).map(ToString::to_string).collect::<Vec<_>>()
    };
    let more = ["--priority", "1", "--label", "ring=canary", "--watch", "--json"];
    let first = apply("fw-2", &two.url, "2.0.0", &more);
    let done = cloud(&mut world, &words(&first)).await;
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    let last: Value = serde_json::from_str(out(&done).lines().last().unwrap()).unwrap();
    assert_eq!(
        last,
        json!({"configuration": "fw-2", "gateways": 1, "waiting": 0, "codes": {"Committed": 1}})
    );
    let shown = out(&cloud(&mut world, &["config", "show", "fw-2"]).await);
    for told in [
        "Priority    1",
        "Applied     1",
        "Version     2.0.0",
        "ring = canary",
        "committed = 1",
        "failed = 0",
    ] {
        assert!(shown.contains(told), "{told} is not in\n{shown}");
    }

    let again = apply("fw-2", &two.url, "2.0.0", &["--priority", "2"]);
    let again = cloud(&mut world, &words(&again)).await;
    assert!(
        again.status.success() && out(&again).contains("fw-2 is changed"),
        "{}{}",
        out(&again),
        err(&again)
    );
    let other = apply("fw-2", &three.url, "3.0.0", &[]);
    let other = cloud(&mut world, &words(&other)).await;
    assert_eq!(other.status.code(), Some(3), "{}", err(&other));

    let bad = apply("fw-3", &three.url, "3.0.0", &["--priority", "9", "--watch"]);
    let bad = cloud(&mut world, &words(&bad)).await;
    assert_eq!(bad.status.code(), Some(1), "{}", err(&bad));
    assert!(err(&bad).contains("1 HealthCheckFailed"), "{}", err(&bad));
    let shown = cloud(&mut world, &["config", "show", "fw-3", "--json"]).await;
    let shown: Value = serde_json::from_str(&out(&shown)).unwrap();
    let counted = json!({"committed": 0, "failed": 1, "rolledBack": 1, "running": 0});
    assert_eq!(shown["metrics"]["results"], counted);
    let list = out(&cloud(&mut world, &["config", "list"]).await);
    assert!(list.lines().count() == 2 && list.contains("fw-3") && list.contains("1 of 1 told"), "{list}");

    // The next priority holds again, and the gateway runs it already.
    let gone = cloud(&mut world, &["config", "delete", "fw-3"]).await;
    assert_eq!(gone.status.code(), Some(0), "{}", err(&gone));
    world.reported(|twin| twin["fwupdate"]["desired"]["code"] == "AlreadyInstalled").await;
    let gone = cloud(&mut world, &["config", "delete", "fw-2", "--cancel"]).await;
    assert!(
        gone.status.success() && out(&gone).contains("takes the update back"),
        "{}{}",
        out(&gone),
        err(&gone)
    );
    world.reported(|twin| twin["fwupdate"].get("desired").is_none()).await;

    for (args, exit, said) in [
        (vec!["config", "show", "fw-2"], 1, "no configuration fw-2"),
        (vec!["config", "delete", "fw-2"], 1, "no configuration fw-2"),
        (
            vec![
                "config",
                "apply",
                "--id",
                "x",
                "--query",
                "tags.",
                "--uri",
                "https://h/x",
                "--version",
                "1",
            ],
            2,
            "condition",
        ),
        (
            vec![
                "config",
                "apply",
                "--id",
                "Upper",
                "--query",
                "*",
                "--uri",
                "https://h/x",
                "--version",
                "1",
            ],
            2,
            "id",
        ),
    ] {
        let output = cloud(&mut world, &args).await;
        assert_eq!(output.status.code(), Some(exit), "{}", err(&output));
        assert!(err(&output).contains(said), "{}", err(&output));
    }
    world.finish().await;
}

/// What `fwupdate-bundle digest` says.
fn digest(bundle: &Path) -> String {
    let tool = env!("CARGO_BIN_EXE_fwupdate-bundle");
    let output = std::process::Command::new(tool).arg("digest").arg(bundle).output().unwrap();
    assert!(output.status.success());
    out(&output).trim().to_owned()
}

#[tokio::test]
async fn what_is_ordered_is_pinned_to_the_bundle_that_is_there_now() {
    let settings = "[policy]\napproval = true\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let two = world.release("2.0.0");
    let sha256 = digest(&two.bundle);
    // A configuration and a job name the manifest.
    let apply = ["config", "apply", "--id", "fw-2", "--query", "deviceId = 'none'", "--version", "2.0.0"];
    let made = cloud(&mut world, &[&apply[..], &["--uri", &two.url]].concat()).await;
    assert!(made.status.success(), "{}", err(&made));
    assert_eq!(err(&made), format!("fwupdate-cloud: pinned to manifest {sha256} (version 2.0.0)\n"));
    let shown = cloud(&mut world, &["config", "show", "fw-2", "--json"]).await;
    let shown: Value = serde_json::from_str(&out(&shown)).unwrap();
    let section = &shown["content"]["deviceContent"]["properties.desired.fwupdate"];
    assert_eq!(section["manifestSha256"], sha256.as_str(), "{shown}");
    let again = cloud(&mut world, &[&apply[..], &["--uri", &two.url, "--priority", "3"]].concat()).await;
    assert!(again.status.success(), "the same content: {}", err(&again));

    // Another bundle takes its place between the order and the download: properly signed, and not what was meant.
    let wrong =
        cloud(&mut world, &["invoke", DEVICE, "--uri", &two.url, "--version", "2.0.1", "--json"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{}", err(&wrong));
    assert!(err(&wrong).contains("has version 2.0.0, not 2.0.1"), "{}", err(&wrong));
    let copy = world.scratch().join("copy.fwb");
    fs::copy(&two.bundle, &copy).unwrap();
    let three = world.release("3.0.0");
    fs::copy(&three.bundle, &two.bundle).unwrap();
    let local =
        ["invoke", DEVICE, "--uri", &two.url, "--bundle", copy.to_str().unwrap(), "--watch", "--json"];
    let refused = cloud(&mut world, &local).await;
    assert_eq!(refused.status.code(), Some(1), "{}", err(&refused));
    let error: Value = serde_json::from_str(&err(&refused)).unwrap();
    assert_eq!(error["error"]["code"], "DigestMismatch", "{error}");

    // What cannot be read from here is ordered without a pin, and people are told in one line.
    let faults = world.hub.faults();
    faults.file(FileRule::next(1, &three.name, FileEffect::Status { status: 503 }));
    let later = ["rollout", "--query", "*", "--operation-id", "later", "--start", "2999-01-01T00:00:00Z"];
    let unread =
        cloud(&mut world, &[&later[..], &["--uri", &format!("{}?sig=hush", three.url)]].concat()).await;
    assert!(unread.status.success(), "{}", err(&unread));
    let told = err(&unread);
    assert!(told.contains("not pinned") && told.contains("--bundle") && told.lines().count() == 1, "{told}");
    assert!(!told.contains("hush"), "{told}");
    for line in [["--bundle", "/nonexistent"], ["--bundle", "/dev/zero"]] {
        let wrong = cloud(&mut world, &[&["invoke", DEVICE, "--uri", &three.url], &line[..]].concat()).await;
        assert_eq!(wrong.status.code(), Some(2), "{}", err(&wrong));
    }
    let quiet = cloud(&mut world, &["invoke", DEVICE, "--uri", &three.url, "--no-pin"]).await;
    assert!(quiet.status.success() && err(&quiet).is_empty(), "{}", err(&quiet));
    world.phase("holding").await;
    let done = cloud(&mut world, &["watch", DEVICE, "--operation-id", "nobody"]).await;
    assert_eq!(done.status.code(), Some(1), "{}", err(&done));
    assert_eq!(world.call("firmwareCancel", json!({})).await.status, 200);
    world.reported(|twin| twin["firmwareStatus"] == "cancelled").await;
    world.finish().await;
}

#[tokio::test]
async fn no_fleet_is_ordered_to_do_what_every_gateway_refuses() {
    let mut world = World::new().await;
    let file = world.scratch().join("config.json");
    let section = json!({"fwPackageUri": "https://x/2.fwb", "version": "2.0.0"});
    let document = json!({"id": "fw", "targetCondition": "*", "priority": 1,
        "content": {"deviceContent": {"properties.desired.fwupdate": section}}});
    fs::write(&file, format!("\u{feff}{document}\r\n")).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let rollout = ["rollout", "--no-pin", "--operation-id", "job"];
    let apply = ["config", "apply", "--no-pin", "--id", "fw"];
    for (more, said) in [
        (&["--query", "*", "--version", "2", "--uri", "x.fwb"][..], "no URL"),
        (&["--query", "*", "--version", "2", "--uri", "http://x/2.fwb"], "https"),
        (&["--query", "*", "--version", "", "--uri", "https://x/2.fwb"], "version"),
        (&["--query", "*", "--version", "2", "--uri", "https://x/2.fwb", "--deadline", "soon"], "deadline"),
        (&["--query", "", "--version", "2", "--uri", "https://x/2.fwb"], "--query"),
    ] {
        for head in [&rollout[..], &apply] {
            let refused = cloud(&mut world, &[head, more].concat()).await;
            assert_eq!(refused.status.code(), Some(2), "{head:?} {more:?}: {}", err(&refused));
            assert!(err(&refused).contains(said), "{more:?}: {}", err(&refused));
        }
    }
    let odd = world.scratch().join("odd.json");
    fs::write(&odd, document.to_string().replace(&section.to_string(), "5")).unwrap();
    let refused = cloud(&mut world, &["config", "apply", odd.to_str().unwrap()]).await;
    assert_eq!(refused.status.code(), Some(2), "{}", out(&refused));
    assert!(err(&refused).contains("properties.desired.fwupdate must be an object"), "{}", err(&refused));
    fs::write(&odd, document.to_string().replace(r#","version":"2.0.0""#, "")).unwrap();
    let unseen = cloud(&mut world, &["config", "apply", odd.to_str().unwrap(), "--no-pin", "--watch"]).await;
    assert_eq!(unseen.status.code(), Some(2), "{}", out(&unseen));
    let mixed = cloud(&mut world, &["config", "apply", &file, "--force", "--no-pin"]).await;
    assert_eq!(mixed.status.code(), Some(2), "what stands in the file alone counts: {}", out(&mixed));
    assert_eq!(out(&cloud(&mut world, &["config", "list"]).await), "No configuration.\n");
    assert_eq!(cloud(&mut world, &["job", "job"]).await.status.code(), Some(1), "no job was ordered");
    assert!(world.twin()["fwupdate"].get("desired").is_none());

    // A file from another system's editor is read.
    let text = format!("\u{feff}{}\r\n", world.hub.service_connection_string());
    let service = world.scratch().join("marked.txt");
    fs::write(&service, text).unwrap();
    let made = run(&mut world, service, &["config", "apply", &file, "--no-pin"]).await;
    assert_eq!(made.status.code(), Some(0), "{}", err(&made));
    world.reported(|twin| twin["fwupdate"]["desired"]["version"] == "2.0.0").await;
    world.finish().await;
}

#[tokio::test]
async fn no_password_and_no_token_of_a_package_url_is_printed() {
    let mut world = World::new().await;
    let uri = "https://me:hush@localhost:1/x.fwb?sig=hush";
    let section = json!({"fwupdate": {"fwPackageUri": uri, "version": "2.0.0"}});
    world.hub.patch_desired(DEVICE, section).unwrap();
    let apply =
        ["config", "apply", "--id", "fw", "--query", "deviceId = 'none'", "--version", "2", "--uri", uri];
    for line in [
        &apply[..],
        &["config", "show", "fw"],
        &["config", "list"],
        &["twin", DEVICE],
        &["rollout", "--query", "*", "--uri", uri, "--start", "2999-01-01T00:00:00Z"],
        &["invoke", "nobody", "--uri", uri],
    ] {
        for json in [&[][..], &["--json"]] {
            let output = cloud(&mut world, &[line, json].concat()).await;
            let told = out(&output) + &err(&output);
            assert!(!told.is_empty() && !told.contains("hush"), "{line:?} {json:?}: {told}");
        }
    }
    let whole = cloud(&mut world, &["config", "show", "fw", "--json", "--secrets"]).await;
    assert!(out(&whole).contains(uri), "who asks for it gets it: {}", out(&whole));
    world.finish().await;
}

fn words(line: &[String]) -> Vec<&str> {
    line.iter().map(String::as_str).collect()
}
