//! Real scripts and a `systemctl` that reads its answers from files; deadlines are futures that the test ends.

use std::collections::BTreeSet;
use std::fs;
use std::future::pending;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::PATH;
use super::failed::EXCERPT_LIMIT;
use super::*;
use crate::root::Verb;
use crate::slot::Slot;

mod root;

/// A gateway's checks folder and its systemd.
struct Gateway {
    root: tempfile::TempDir,
    settings: Health,
    context: Context,
    cloud: watch::Sender<bool>,
}

/// Prints the file `failed` for list-units, and the file named as the unit for is-active.
const SYSTEMCTL: &str = r#"#!/bin/sh
here=$(dirname "$0")
case "$1" in
list-units) cat "$here/failed" ;;
is-active) state=$(cat "$here/$3"); echo "$state"; [ "$state" = active ] ;;
status) echo "journal of $6" ;;
start) echo "$3" >> "$here/started" ;;
esac
"#;

impl Gateway {
    fn new() -> Gateway {
        let root = tempfile::tempdir().unwrap();
        let systemctl = root.path().join("systemctl");
        write_script(&systemctl, SYSTEMCTL);
        fs::write(root.path().join("failed"), "").unwrap();
        let settings = Health {
            deadline: Duration::from_secs(600),
            units: Vec::new(),
            no_new_failed_units: false,
            checks_dir: root.path().join("checks"),
            check_timeout: Duration::from_secs(60),
            retry_interval: Duration::from_millis(1),
            require_cloud: false,
        };
        let context = Context {
            next_update: None,
            slot: Slot::B,
            version: "1.5.0".into(),
            operation: "op-1".into(),
            baseline: Some(BTreeSet::new()),
            systemd: Systemd { systemctl, root: None, booted: root.path().to_owned() },
        };
        Gateway { root, settings, context, cloud: watch::channel(false).0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn check(&self, name: &str, script: &str) {
        let path = self.settings.checks_dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_script(&path, &format!("#!/bin/sh\n{script}\n"));
    }

    /// Runs without a deadline: it ends only when all passes.
    async fn passes(&self) -> Vec<CheckProgress> {
        let mut seen = Vec::new();
        let all = run(&self.settings, &self.context, self.cloud.subscribe(), pending(), |p| seen.push(p));
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("never passed").unwrap();
        seen
    }

    /// Runs until the first failing check was seen `times` times, then lets the deadline fall.
    async fn fails(&self, times: usize) -> (Failure, Vec<CheckProgress>) {
        let (mut seen, count) = (Vec::new(), watch::channel(0).0);
        let mut counted = count.subscribe();
        let deadline = async { drop(counted.wait_for(|n| *n >= times).await.unwrap()) };
        let all = run(&self.settings, &self.context, self.cloud.subscribe(), deadline, |p| {
            count.send_modify(|n| *n += usize::from(matches!(p, CheckProgress::Failing { .. })));
            seen.push(p);
        });
        let result = tokio::time::timeout(Duration::from_secs(60), all).await.expect("never failed");
        (result.unwrap_err(), seen)
    }
}

/// Written by another process: a test beside this one that forks while we hold a script open for writing
/// would make it "text file busy".
fn write_script(path: &Path, text: &str) {
    let draft = path.with_extension("draft~");
    fs::write(&draft, text).unwrap();
    let done = std::process::Command::new("install").args(["-m", "755"]).args([&draft, path]).status();
    assert!(done.unwrap().success());
    fs::remove_file(draft).unwrap();
}

fn evidence(failure: &Failure) -> (&str, &str) {
    let evidence = failure.evidence.as_ref().unwrap();
    (evidence.check.as_deref().unwrap(), evidence.excerpt.as_deref().unwrap_or(""))
}

#[tokio::test]
async fn no_checks_at_all_pass() {
    assert_eq!(Gateway::new().passes().await, []);
}

#[tokio::test]
async fn required_checks_run_in_name_order_with_a_clean_environment() {
    let gateway = Gateway::new();
    let log = gateway.path("log").display().to_string();
    gateway.check("required.d/20-b", &format!("env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= | sort >> {log}"));
    gateway.check("required.d/10-a", &format!("echo first >> {log}; pwd >> {log}"));
    gateway.check("required.d/.hidden", "exit 1");
    gateway.check("required.d/old~", "exit 1");
    let seen = gateway.passes().await;
    assert_eq!(
        seen,
        ["required.d/10-a", "required.d/20-b"].map(|name| CheckProgress::Checking(name.to_owned()))
    );
    let lines = fs::read_to_string(log).unwrap();
    let expected =
        format!("first\n/\nFWUPDATE_OPERATION=op-1\nFWUPDATE_SLOT=B\nFWUPDATE_VERSION=1.5.0\nPATH={PATH}\n");
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn a_check_that_fails_at_first_is_asked_again() {
    let gateway = Gateway::new();
    let count = gateway.path("count").display().to_string();
    gateway.check("required.d/10", &format!("echo x >> {count}; [ $(wc -l < {count}) -ge 3 ]"));
    let seen = gateway.passes().await;
    assert_eq!(seen.iter().filter(|p| matches!(p, CheckProgress::Failing { .. })).count(), 2);
}

#[tokio::test]
async fn the_deadline_brings_the_evidence_of_the_failing_check() {
    let gateway = Gateway::new();
    gateway.check("required.d/10-net", "echo no route; printf 'bad \\377\\033[m' >&2; exit 7");
    let (failure, seen) = gateway.fails(2).await;
    assert_eq!(failure.code, Code::HealthCheckFailed);
    assert!(failure.message.contains("exit status: 7"), "{}", failure.message);
    assert_eq!(evidence(&failure), ("required.d/10-net", "no route\nbad \u{fffd}\u{fffd}[m"));
    assert!(seen.len() >= 4, "asked twice at least: {seen:?}");
}

#[tokio::test]
async fn the_excerpt_is_the_last_kilobyte() {
    let gateway = Gateway::new();
    gateway.check("required.d/10", "head -c 3000 /dev/zero | tr '\\0' '\\377'; echo end; exit 1");
    let (failure, _) = gateway.fails(1).await;
    let (_, excerpt) = evidence(&failure);
    assert!(
        excerpt.len() <= EXCERPT_LIMIT && excerpt.len() > EXCERPT_LIMIT - 4 && excerpt.ends_with("end\n")
    );
}

#[tokio::test]
async fn a_hanging_check_is_killed_and_named() {
    let mut gateway = Gateway::new();
    gateway.settings.check_timeout = Duration::from_millis(100);
    gateway.check("required.d/10", "sleep 1000");
    let (failure, _) = gateway.fails(1).await;
    assert!(failure.message.contains("took longer than 0.1 s"), "{}", failure.message);
}

#[tokio::test]
async fn a_deadline_during_the_first_check_names_it() {
    let gateway = Gateway::new();
    let started = gateway.path("started");
    gateway.check("required.d/10-slow", &format!("touch {}; sleep 1000", started.display()));
    let deadline = async {
        while !started.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let result = run(&gateway.settings, &gateway.context, gateway.cloud.subscribe(), deadline, |_| ()).await;
    let failure = result.unwrap_err();
    assert_eq!(evidence(&failure).0, "required.d/10-slow");
    assert!(failure.message.contains("still running"));
}

#[tokio::test]
async fn a_file_that_is_not_executable_fails() {
    let gateway = Gateway::new();
    gateway.check("required.d/10", "exit 0");
    let path = gateway.settings.checks_dir.join("required.d/10");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let (failure, _) = gateway.fails(1).await;
    assert!(failure.message.contains("not an executable file"), "{}", failure.message);
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/no/such/target", &path).unwrap();
    assert!(gateway.fails(1).await.0.message.contains("not an executable file"));
}

#[tokio::test]
async fn a_script_without_interpreter_fails_clearly() {
    let gateway = Gateway::new();
    gateway.check("required.d/10", "");
    write_script(&gateway.settings.checks_dir.join("required.d/10"), "#!/no/such/interpreter\n");
    assert!(gateway.fails(1).await.0.message.contains("cannot be started"));
}

#[tokio::test]
async fn a_wanted_check_that_fails_is_a_note() {
    let gateway = Gateway::new();
    gateway.check("wanted.d/10", "exit 1");
    let seen = gateway.passes().await;
    assert!(
        matches!(&seen[..], [_, CheckProgress::Note { check, .. }] if check == "wanted.d/10"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_wanted_check_that_hangs_at_the_deadline_does_not_undo_what_passed() {
    let gateway = Gateway::new();
    gateway.check("required.d/10", "exit 0");
    gateway.check("wanted.d/10", "sleep 1000");
    let started = watch::channel(false).0;
    let mut hanging = started.subscribe();
    let deadline = async { drop(hanging.wait_for(|hangs| *hangs).await.unwrap()) };
    run(&gateway.settings, &gateway.context, gateway.cloud.subscribe(), deadline, |p| {
        started.send_replace(p == CheckProgress::Checking("wanted.d/10".to_owned()));
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_unit_must_be_active() {
    let mut gateway = Gateway::new();
    gateway.settings.units = vec!["app.service".into()];
    fs::write(gateway.path("app.service"), "activating").unwrap();
    let (failure, _) = gateway.fails(1).await;
    assert_eq!(evidence(&failure), ("app.service", "journal of app.service\n"));
    assert!(failure.message.contains("it is activating"));
    fs::write(gateway.path("app.service"), "active").unwrap();
    gateway.passes().await;
}

#[tokio::test]
async fn units_that_had_failed_before_do_not_count_and_new_ones_do() {
    let mut gateway = Gateway::new();
    gateway.settings.no_new_failed_units = true;
    fs::write(gateway.path("failed"), "old.service loaded failed failed An old one\n").unwrap();
    gateway.context.baseline = Some(gateway.context.systemd.failed_units().await.unwrap());
    gateway.passes().await;
    fs::write(gateway.path("failed"), "old.service loaded failed\nnew.service loaded failed\n").unwrap();
    let (failure, _) = gateway.fails(1).await;
    assert!(failure.message.contains("update: new.service"), "{}", failure.message);
    gateway.context.baseline = None;
    let seen = gateway.passes().await;
    assert!(seen.iter().any(|p| matches!(p, CheckProgress::Note { why, .. } if why.contains("not judged"))));
}

#[tokio::test]
async fn a_machine_without_systemd_says_so() {
    let mut gateway = Gateway::new();
    gateway.settings.no_new_failed_units = true;
    gateway.context.systemd.booted = gateway.path("absent");
    assert!(matches!(gateway.context.systemd.failed_units().await, Err(HealthError::NoSystemd)));
    assert!(gateway.fails(1).await.0.message.contains("systemd does not run"));
}

#[tokio::test]
async fn a_systemctl_that_fails_does_not_pass_for_no_failures() {
    let mut gateway = Gateway::new();
    gateway.settings.no_new_failed_units = true;
    fs::remove_file(gateway.path("failed")).unwrap();
    assert!(gateway.fails(1).await.0.message.contains("gave no answer"));
}

#[tokio::test]
async fn the_cloud_alone_missing_is_its_own_code() {
    let mut gateway = Gateway::new();
    gateway.settings.require_cloud = true;
    gateway.check("required.d/10", "exit 0");
    let (failure, _) = gateway.fails(2).await;
    assert_eq!((failure.code, evidence(&failure).0), (Code::CloudUnreachable, "cloud"));
    gateway.check("required.d/10", "exit 1");
    assert_eq!(gateway.fails(1).await.0.code, Code::HealthCheckFailed);
}

#[tokio::test]
async fn a_session_that_comes_ends_the_wait_at_once() {
    let mut gateway = Gateway::new();
    gateway.settings.require_cloud = true;
    gateway.settings.retry_interval = Duration::from_secs(3600);
    let mut result = Vec::new();
    let all = run(&gateway.settings, &gateway.context, gateway.cloud.subscribe(), pending(), |p| {
        result.push(p);
        gateway.cloud.send_replace(true);
    });
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("waited for the pause").unwrap();
    assert!(matches!(&result[..], [CheckProgress::Failing { check, .. }] if check == "cloud"));
}
