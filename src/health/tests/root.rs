//! Stories of a service whose checks root runs.

use super::*;
use crate::root::RootError;

/// The agent as a service with a user of its own, and root, whom it asks.
fn service() -> Gateway {
    let mut gateway = Gateway::new();
    fs::write(gateway.path("boot-complete.target"), "active").unwrap();
    let socket = gateway.path("root");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let (settings, systemd) = (gateway.settings.clone(), gateway.context.systemd.clone());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (settings, systemd) = (settings.clone(), systemd.clone());
            tokio::spawn(crate::root::serve(stream, |verb| async move {
                perform(verb, &settings, &systemd).await.map_err(|error| error.to_string())
            }));
        }
    });
    gateway.context.systemd.root = Some(socket);
    gateway
}

#[tokio::test]
async fn a_service_has_its_checks_run_by_root() {
    let gateway = service();
    let log = gateway.path("log").display().to_string();
    gateway.check(
        "required.d/10-a",
        &format!("env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= | sort > {log}; pwd >> {log}"),
    );
    gateway.passes().await;
    let seen = fs::read_to_string(log).unwrap();
    let expected =
        format!("FWUPDATE_OPERATION=op-1\nFWUPDATE_SLOT=B\nFWUPDATE_VERSION=1.5.0\nPATH={PATH}\n/\n");
    assert_eq!(seen, expected);
    gateway.check("required.d/10-a", "echo no modem; exit 4");
    let (failure, _) = gateway.fails(1).await;
    assert!(failure.message.contains("exit status: 4"), "{}", failure.message);
    assert_eq!(evidence(&failure), ("required.d/10-a", "no modem\n"));
}

#[tokio::test]
async fn roots_check_ends_with_the_agent_that_asked() {
    let gateway = service();
    let (started, lives) = (gateway.path("hangs"), gateway.path("lives"));
    assert!(std::process::Command::new("mkfifo").arg(&lives).status().unwrap().success());
    gateway.check(
        "required.d/10",
        &format!("exec 3> {}; touch {}; sleep 1000", lives.display(), started.display()),
    );
    // Its other end is closed when the check is gone.
    let mut end = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&lives).unwrap();
    let deadline = async {
        while !started.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let result = run(&gateway.settings, &gateway.context, gateway.cloud.subscribe(), deadline, |_| ()).await;
    let failure = result.unwrap_err();
    assert_eq!(evidence(&failure).0, "required.d/10", "{}", failure.message);
    let mut byte = [0];
    let gone = tokio::io::AsyncReadExt::read(&mut end, &mut byte);
    assert_eq!(tokio::time::timeout(Duration::from_secs(60), gone).await.expect("it lives on").unwrap(), 0);
}

/// What the agent could ask for if it were taken over.
#[tokio::test]
async fn root_runs_the_integrators_checks_and_nothing_else() {
    let gateway = service();
    let socket = gateway.context.systemd.root.clone().unwrap();
    let ask = async |verb| crate::root::ask(&socket, &verb, Duration::from_secs(60)).await;
    let check = |name: &str, version: &str| {
        let (name, version) = (name.to_owned(), version.to_owned());
        Verb::Check(crate::root::RootCheck { name, slot: Slot::A, version, operation: "op".into() })
    };
    gateway.check("required.d/10", "echo fine");
    gateway.check("required.d/sub/10", "exit 0");
    gateway.check("other.d/10", "exit 0");
    gateway.check("required.d/20-writable", "exit 0");
    let writable = gateway.settings.checks_dir.join("required.d/20-writable");
    fs::set_permissions(&writable, fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::symlink(gateway.path("absent"), gateway.settings.checks_dir.join("required.d/30"))
        .unwrap();
    assert_eq!(ask(check("required.d/10", "1")).await.unwrap().output, b"fine\n");
    for name in [
        "",
        "10",
        "/bin/sh",
        "required.d/",
        "required.d/..",
        "required.d/../other.d/10",
        "other.d/10",
        "required.d/sub/10",
        "required.d/.hidden",
        "required.d/absent",
        "required.d/20-writable",
        "required.d/30",
        "required.d//10",
        "../required.d/10",
    ] {
        let refused = ask(check(name, "1")).await;
        assert!(matches!(refused, Err(RootError::Refused(_))), "{name}: {refused:?}");
    }
    for version in ["1\nLD_PRELOAD=/x", "\u{1b}[m", &"9".repeat(600)] {
        let refused = ask(check("required.d/10", version)).await;
        assert!(matches!(refused, Err(RootError::Refused(_))), "{version:?}: {refused:?}");
    }
    fs::write(gateway.path("failed"), "modem.service loaded failed failed A modem\n").unwrap();
    assert_eq!(
        ask(Verb::UnitStatus("modem.service".into())).await.unwrap().output,
        b"journal of modem.service\n"
    );
    for unit in ["ssh.service", "--all", "*", "", "a b", "../x"] {
        let refused = ask(Verb::UnitStatus(unit.into())).await;
        assert!(matches!(refused, Err(RootError::Refused(_))), "{unit}: {refused:?}");
    }
    assert!(matches!(ask(Verb::UnitState("-H".into())).await, Err(RootError::Refused(_))));
    assert!(matches!(ask(Verb::Reboot).await, Err(RootError::Refused(_))), "not health's business");
}

#[tokio::test]
async fn without_root_the_failure_says_whom_to_look_at() {
    let mut gateway = Gateway::new();
    gateway.context.systemd.root = Some(gateway.path("nowhere"));
    let (failure, _) = gateway.fails(1).await;
    assert!(failure.message.contains("systemctl status fwupdate-root.socket"), "{}", failure.message);
}

#[tokio::test]
async fn what_stands_before_boot_complete_is_a_check() {
    let gateway = service();
    fs::write(gateway.path("boot-complete.target"), "inactive").unwrap();
    let (failure, _) = gateway.fails(2).await;
    assert_eq!(evidence(&failure).0, "boot-complete.target");
    fs::write(gateway.path("failed"), "modem.service loaded failed failed A modem\n").unwrap();
    let (failure, _) = gateway.fails(1).await;
    assert!(failure.message.contains("it is inactive; failed units: modem.service"), "{}", failure.message);
    assert_eq!(evidence(&failure).1, "journal of modem.service\n");
    fs::write(gateway.path("boot-complete.target"), "active").unwrap();
    gateway.passes().await;
    let started = fs::read_to_string(gateway.path("started")).unwrap();
    assert!(started.lines().count() >= 4 && started.lines().all(|line| line == "boot-complete.target"));
}
