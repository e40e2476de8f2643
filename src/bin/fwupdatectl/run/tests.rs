//! Whole commands against the real server side with scripted answers.

use std::path::PathBuf;

use clap::Parser;
use fwupdate::control::{self, Call, Method};
use tokio::sync::mpsc;

use serde_json::json;

use super::*;

/// What the scripted agent answers to a call, one answer a line.
type Script = fn(Method, usize) -> Vec<Result<Value, Failure>>;

/// Runs `line` against an agent that follows `script`; the exit code, stdout and the error.
fn ctl(line: &str, script: Script) -> (u8, String, Option<Error>) {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().to_owned();
    let (ready, bound) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let agent = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let agent = agent(run, script, ready);
            tokio::select! { () = agent => {}, _ = stopped => {} }
        });
    });
    bound.recv().unwrap();
    let socket = dir.path().join(control::SOCKET);
    let line = format!("fwupdatectl {line} --socket {}", socket.display());
    let args = Args::try_parse_from(line.split(' ')).unwrap();
    let mut out = Vec::new();
    let result = super::run(&args, &mut out);
    stop.send(()).unwrap();
    agent.join().unwrap();
    let out = String::from_utf8(out).unwrap();
    match result {
        Ok(code) => (code, out, None),
        Err(error) => (error.exit(), out, Some(error)),
    }
}

async fn agent(run: PathBuf, script: Script, ready: std::sync::mpsc::Sender<()>) {
    let listener = control::bind(&run).unwrap();
    ready.send(()).unwrap();
    let (calls, mut queue) = mpsc::channel::<Call>(4);
    let answering = async {
        let mut count = 0;
        while let Some(call) = queue.recv().await {
            for answer in script(call.request.method, count) {
                call.reply.send(answer).await;
            }
            count += 1;
        }
    };
    tokio::join!(control::serve(&listener, calls), answering);
}

fn refuse(code: Code) -> Vec<Result<Value, Failure>> {
    vec![Err(Failure::new(code, "Because."))]
}

#[test]
fn status_for_people_and_for_programs() {
    let script: Script = |_, _| vec![Ok(json!({"firmwareStatus": "standBy"}))];
    let (code, out, _) = ctl("status", script);
    assert!(code == 0 && out.starts_with("Status    standBy\n"), "{out}");
    let (code, out, _) = ctl("status --json", script);
    assert_eq!(
        (code, serde_json::from_str::<Value>(&out).unwrap()),
        (0, json!({"firmwareStatus": "standBy"}))
    );
}

#[test]
fn a_doctor_that_finds_a_fault_fails() {
    let script: Script =
        |_, _| vec![Ok(json!({"findings": [{"check": "x", "status": "failed", "message": "y"}]}))];
    assert_eq!(ctl("doctor", script).0, 1);
    assert_eq!(ctl("doctor --json", script).0, 1);
    assert_eq!(ctl("doctor", |_, _| vec![Ok(json!({"findings": []}))]).0, 0);
}

#[test]
fn exit_codes_tell_refusals_from_failures() {
    let cases: [(Script, u8); 4] = [
        (|_, _| refuse(Code::MalformedRequest), 2),
        (|_, _| refuse(Code::Quarantined), 3),
        (|_, _| refuse(Code::Busy), 1),
        (|_, _| refuse(Code::NotPermitted), 3),
    ];
    for (script, expected) in cases {
        let (code, _, error) = ctl("install https://h/x", script);
        assert_eq!(code, expected);
        let json: Value = serde_json::from_str(&error.unwrap().json()).unwrap();
        assert_eq!(json["error"]["message"], "Because.");
    }
}

#[test]
fn an_agent_that_is_not_there_is_4() {
    let args = Args::try_parse_from(["fwupdatectl", "status", "--socket", "/no/such"]).unwrap();
    let error = super::run(&args, &mut Vec::new()).unwrap_err();
    assert_eq!(error.exit(), 4);
    assert!(error.sentence().contains("fwupdate.service") && error.json().contains("NotReady"));
}

#[test]
fn an_action_without_wait_is_done_when_it_is_accepted() {
    let script: Script = |_, _| vec![Ok(json!({"operationId": "op-1"}))];
    assert_eq!(ctl("install https://h/x", script).1, "Accepted (operation op-1).\n");
}

fn operation(phase: &str, percent: u8) -> Result<Value, Failure> {
    Ok(json!({"fwupdate": {
        "operation": {"id": "op-1", "phase": phase, "percent": percent},
        "last": {"id": "op-0", "result": "committed"}
    }}))
}

fn done(result: &str) -> Result<Value, Failure> {
    let error = json!({"code": "HealthCheckFailed", "message": "The check net did not pass."});
    let mut last = json!({"id": "op-1", "result": result, "fromVersion": "1", "toVersion": "2"});
    if result == "rolledBack" {
        last["error"] = error;
    }
    Ok(json!({"fwupdate": {"last": last}}))
}

#[test]
fn wait_shows_each_phase_until_the_outcome() {
    let (code, out, error) = ctl("install https://h/x --wait", |method, _| match method {
        Method::Install => vec![Ok(json!({"operationId": "op-1"}))],
        _ => {
            vec![operation("staging", 1), operation("staging", 2), operation("trying", 0), done("committed")]
        }
    });
    assert!(error.is_none() && code == 0, "{error:?}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("staging    [") && lines[1] == "trying", "{out}");
    assert!(lines[2].starts_with("Result    committed: 1 -> 2") && lines.len() == 3, "{out}");
}

#[test]
fn wait_gives_the_outcomes_own_error() {
    let script: Script = |method, _| match method {
        Method::Install => vec![Ok(json!({"operationId": "op-1"}))],
        _ => vec![operation("trying", 0), done("rolledBack")],
    };
    let (code, _, error) = ctl("install https://h/x --wait", script);
    assert_eq!(
        (code, error.unwrap().sentence()),
        (1, "fwupdatectl: HealthCheckFailed: The check net did not pass.".to_owned())
    );
}

#[test]
fn wait_goes_on_when_the_agent_restarts() {
    let (code, out, _) = ctl("rollback --wait", |method, count| match (method, count) {
        (Method::Rollback, _) => vec![Ok(json!({"operationId": "op-1"}))],
        (_, 1) => vec![operation("rebooting", 0)],
        _ => vec![operation("trying", 0), done("committed")],
    });
    assert_eq!(code, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..3], ["rebooting", "the agent restarts", "trying"]);
}

#[test]
fn an_agent_that_does_not_come_back_is_not_waited_for_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let client = Client::connect(&socket).unwrap();
    drop(listener);
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let patience = std::time::Duration::from_millis(300);
        let watch = wait::OperationWatch { socket: &socket, id: "op-1", style: Style::Lines, patience };
        ended.send(watch.until_done(client, &mut Vec::new()).unwrap_err().exit())
    });
    assert_eq!(end.recv_timeout(std::time::Duration::from_secs(60)), Ok(4));
}

#[test]
fn wait_does_not_hang_on_an_operation_that_another_one_followed() {
    let (code, _, error) = ctl("install https://h/x --wait", |method, _| match method {
        Method::Install => vec![Ok(json!({"operationId": "op-1"}))],
        _ => vec![
            operation("staging", 0),
            Ok(json!({"fwupdate": {"last": {"id": "op-2", "result": "committed"}}})),
        ],
    });
    assert!(code == 1 && matches!(error, Some(Error::LostTrack(id)) if id == "op-1"));
}

#[test]
fn wait_finds_its_outcome_behind_a_later_one() {
    let (code, out, error) = ctl("install https://h/x --wait", |method, _| match method {
        Method::Install => vec![Ok(json!({"operationId": "op-1"}))],
        Method::History => vec![Ok(json!({"history": [
            {"id": "op-2", "result": "failed"}, {"id": "op-1", "result": "committed", "toVersion": "2"}]}))],
        _ => vec![Ok(json!({"fwupdate": {"last": {"id": "op-2", "result": "failed"}}}))],
    });
    assert_eq!((code, out.as_str()), (0, "Result    committed: to 2\n"), "{error:?}");
}

#[test]
fn an_operation_that_ended_before_the_call_is_not_waited_for() {
    let script: Script = |method, _| match method {
        Method::Install | Method::Cancel => vec![Ok(json!({
            "operationId": "op-0", "last": {"id": "op-0", "result": "cancelled", "toVersion": "2"}}))],
        _ => vec![operation("staging", 0)],
    };
    let (code, out, error) = ctl("install https://h/x --operation-id op-0 --wait", script);
    assert_eq!((code, out.as_str()), (1, "Result    cancelled: to 2\n"), "{error:?}");
    assert_eq!(ctl("cancel --operation-id op-0 --wait", script).0, 0);
    let (code, out, error) = ctl("install https://h/x --operation-id op-0", script);
    assert_eq!((code, out.as_str()), (1, "Result    cancelled: to 2\n"), "nothing was accepted: {error:?}");
}

#[test]
fn an_operation_that_nobody_knows_is_an_error_at_once() {
    let (code, out, error) = ctl("approve --operation-id op-9 --wait", |method, _| match method {
        Method::Approve => vec![Ok(json!({"operationId": "op-9"}))],
        Method::History => vec![Ok(json!({"history": []}))],
        _ => vec![operation("staging", 5)],
    });
    assert!(code == 1 && out.is_empty(), "{out}");
    assert!(error.unwrap().sentence().contains("does not know operation op-9"));
}

#[test]
fn a_failure_is_told_once() {
    let (_, out, error) = ctl("install https://h/x --wait", |method, _| match method {
        Method::Install => vec![Ok(json!({"operationId": "op-1"}))],
        _ => vec![done("rolledBack")],
    });
    let told = out + &error.unwrap().sentence();
    assert_eq!(told.matches("The check net did not pass.").count(), 1, "{told}");
    assert!(told.starts_with("Result    rolledBack: 1 -> 2\n"), "{told}");
}

#[test]
fn no_answer_drives_the_terminal() {
    const EVIL: &str = "x\u{1b}[2J\u{9b}1m\u{202e}\u{2028}\r\ny";
    let scripts: [(&str, Script); 4] = [
        ("status", |_, _| vec![Ok(json!({"firmwareStatus": EVIL, "fwupdate": {"desired": {"code": EVIL}}}))]),
        ("install https://h/x", |_, _| vec![Ok(json!({"operationId": EVIL}))]),
        ("history", |_, _| vec![Ok(json!({"history": [{"result": EVIL}]}))]),
        ("doctor", |_, _| vec![Err(Failure::new(Code::Internal, EVIL))]),
    ];
    for (line, script) in scripts {
        for json in ["", " --json"] {
            let (_, out, error) = ctl(&format!("{line}{json}"), script);
            let told = out
                + &error.map(|e| if json.is_empty() { e.sentence() } else { e.json() }).unwrap_or_default();
            assert_eq!(told, plain::lines(&told), "{line}{json}");
            assert!(!told.contains("\ny"), "{line}{json}: {told}");
        }
    }
}

#[test]
fn waiting_for_a_cancel_wants_the_cancellation() {
    let script: Script = |method, _| match method {
        Method::Cancel => vec![Ok(json!({"operationId": "op-1"}))],
        _ => vec![done("cancelled")],
    };
    assert_eq!(ctl("cancel --wait", script).0, 0);
    let install: Script = |method, _| match method {
        Method::Install => vec![Ok(json!({"operationId": "op-1"}))],
        _ => vec![done("cancelled")],
    };
    assert_eq!(ctl("install https://h/x --wait", install).0, 1);
    assert_eq!(ctl("approve --wait", |_, _| vec![Ok(json!({}))]).0, 1, "nothing runs");
}

#[test]
fn wait_as_json_is_one_document_a_line() {
    let (_, out, _) = ctl("install https://h/x --wait --json", |method, _| match method {
        Method::Install => vec![Ok(json!({"operationId": "op-1"}))],
        _ => vec![operation("staging", 1), done("committed")],
    });
    let documents: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((documents.len(), &documents[1]["result"]), (2, &json!("committed")));
}
