//! The agent's documents as a tired person reads them. Pure: documents in, text out.

use serde_json::Value;

use super::amount::{duration, size};
use super::plain::plain;

/// A text of the document at a JSON pointer, without what could drive the terminal.
fn text(document: &Value, pointer: &str) -> Option<String> {
    let found = match document.pointer(pointer)? {
        Value::String(text) => text.clone(),
        Value::Null => return None,
        other => other.to_string(),
    };
    Some(plain(&found))
}

fn number(document: &Value, pointer: &str) -> Option<u64> {
    document.pointer(pointer)?.as_u64()
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// One line with its label in the left column.
fn line(out: &mut String, label: &str, text: &str) {
    out.push_str(&format!("{label:<10}{text}\n"));
}

/// The status document: `firmwareStatus` and so on, and `fwupdate`.
pub fn status(document: &Value) -> String {
    headed_status("", document)
}

/// The same with a line of the caller's, below what needs a person.
pub fn headed_status(head: &str, document: &Value) -> String {
    let mut out = String::new();
    let fwupdate = document.get("fwupdate").unwrap_or(&Value::Null);
    for (label, why) in trouble(document) {
        line(&mut out, label, &why);
    }
    out.push_str(head);
    line(&mut out, "Status", &or_dash(text(document, "/firmwareStatus")));
    slot_lines(&mut out, fwupdate);
    if let Some(operation) = fwupdate.get("operation").filter(|o| !o.is_null()) {
        operation_lines(&mut out, operation);
    }
    if let Some(code) = text(fwupdate, "/desired/code") {
        let message = text(fwupdate, "/desired/message").unwrap_or_default();
        let version = or_dash(text(fwupdate, "/desired/version"));
        line(&mut out, "Desired", &format!("{version} ({code}) {message}"));
    }
    if let Some(last) = fwupdate.get("last").filter(|l| !l.is_null()) {
        outcome_lines(&mut out, "Last", last);
    }
    line(&mut out, "Agent", &or_dash(text(fwupdate, "/agent/version")));
    out
}

/// What a person has to do something about, the first thing to read: why no update can start, what the running one
/// waits for, and what of the settings does not count yet.
pub fn trouble(document: &Value) -> Vec<(&'static str, String)> {
    let found = [
        ("DEGRADED", text(document, "/fwupdate/agent/degraded")),
        ("WAITING", text(document, "/fwupdate/operation/waiting")),
        ("AWAITS", text(document, "/fwupdate/agent/awaits")),
    ];
    found.into_iter().filter_map(|(label, why)| Some((label, why?))).collect()
}

/// The document of `slots`.
pub fn slots(document: &Value) -> String {
    let mut out = String::new();
    slot_lines(&mut out, document);
    out
}

fn slot_lines(out: &mut String, document: &Value) {
    for name in ["A", "B"] {
        let version = or_dash(text(document, &format!("/slots/{name}/version")));
        let state = text(document, &format!("/slots/{name}/state")).unwrap_or_else(|| "unknown".to_owned());
        line(out, &format!("Slot {name}"), &format!("{version:<12} {state}"));
    }
}

fn operation_lines(out: &mut String, operation: &Value) {
    let phase = or_dash(text(operation, "/phase"));
    let target = text(operation, "/version").unwrap_or_else(|| "a bundle".to_owned());
    line(out, "Update", &format!("to {target}: {phase}{}", hint(&phase)));
    if phase == "staging" {
        line(out, "", &progress(operation, None));
    }
    let source = or_dash(text(operation, "/source"));
    let id = or_dash(text(operation, "/id"));
    line(out, "", &format!("from {}", or_dash(text(operation, "/uri"))));
    let started = or_dash(text(operation, "/startedAt"));
    line(out, "", &format!("operation {id}, asked for by {source}, started {started}"));
}

/// What a phase means for the one who waits.
fn hint(phase: &str) -> &'static str {
    match phase {
        "holding" => ", ready; waits for approval or its window (`fwupdatectl approve`)",
        "rebooting" => ", about to restart the gateway",
        "trying" => ", the new image runs its health checks",
        "rollingBack" => ", going back to the old image",
        _ => "",
    }
}

/// One outcome: `fwupdate.last`, or an entry of the history.
fn outcome_lines(out: &mut String, label: &str, last: &Value) {
    line(out, label, &ending(last));
    if let Some(code) = text(last, "/error/code") {
        line(out, "", &format!("{code}: {}", text(last, "/error/message").unwrap_or_default()));
    }
    evidence_lines(out, last);
}

/// What it came to, between which versions as far as they are known, and when.
fn ending(last: &Value) -> String {
    let result = or_dash(text(last, "/result"));
    let versions = match (text(last, "/fromVersion"), text(last, "/toVersion")) {
        (Some(from), Some(to)) => format!(": {from} -> {to}"),
        (Some(from), None) => format!(": {from} stays"),
        (None, Some(to)) => format!(": to {to}"),
        // The bundle was never read.
        (None, None) => String::new(),
    };
    let finished = text(last, "/finishedAt").map(|at| format!(", {at}")).unwrap_or_default();
    format!("{result}{versions}{finished}")
}

fn evidence_lines(out: &mut String, last: &Value) {
    if let Some(check) = text(last, "/error/evidence/check") {
        line(out, "", &format!("check {check}"));
    }
    if let Some(Value::String(excerpt)) = last.pointer("/error/evidence/excerpt") {
        for said in excerpt.lines() {
            line(out, "", &format!("| {}", plain(said)));
        }
    }
}

/// The document of `history`, newest first.
pub fn history(document: &Value) -> String {
    let mut out = String::new();
    let entries = document.get("history").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if entries.is_empty() {
        return "No update yet.\n".to_owned();
    }
    for (index, entry) in entries.iter().enumerate() {
        outcome_lines(&mut out, &format!("{}.", index.saturating_add(1)), entry);
    }
    out
}

/// The document of `doctor`.
pub fn doctor(document: &Value) -> String {
    let findings = document.get("findings").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut out = String::new();
    for finding in findings {
        let mark = or_dash(text(finding, "/status"));
        let check = or_dash(text(finding, "/check"));
        line(&mut out, &mark, &format!("{check}: {}", text(finding, "/message").unwrap_or_default()));
    }
    out
}

/// Whether a `doctor` document holds no failed finding.
pub fn is_well(document: &Value) -> bool {
    let findings = document.get("findings").and_then(Value::as_array);
    findings.is_some_and(|all| all.iter().all(|f| f.get("status").is_none_or(|s| s != "failed")))
}

/// What a finished operation came to, and the evidence. Its error is not repeated: who waited is told it as the error
/// of the command.
pub fn outcome(last: &Value) -> String {
    let mut out = String::new();
    line(&mut out, "Result", &ending(last));
    evidence_lines(&mut out, last);
    out
}

/// How far a download is: bar, percent, bytes, `speed` in bytes a second, time left.
pub fn progress(operation: &Value, speed: Option<u64>) -> String {
    const WIDTH: u64 = 24;
    let percent = number(operation, "/percent").unwrap_or(0).min(100);
    let full = usize::try_from(percent.min(100).saturating_mul(WIDTH) / 100).unwrap_or(0);
    let mut out = format!("[{:<24}] {percent:3}%", "#".repeat(full));
    let done = number(operation, "/downloadedBytes").unwrap_or(0);
    match number(operation, "/expectedDownloadBytes") {
        Some(expected) if expected > 0 => out += &format!("  {} of {}", size(done), size(expected)),
        _ => out += &format!("  {}", size(done)),
    }
    if let Some(reused) = number(operation, "/reusedBytes").filter(|n| *n > 0) {
        out += &format!(", {} reused", size(reused));
    }
    if let Some(speed) = speed {
        out += &format!(", {}/s", size(speed));
    }
    if let Some(seconds) = number(operation, "/etaSeconds") {
        out += &format!(", {} left", duration(seconds));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_in_the_middle_of_an_update() {
        let document = json!({
            "firmwareStatus": "downloading",
            "fwupdate": {
                "agent": {"version": "0.1.0", "bootedSlot": "A"},
                "slots": {"A": {"version": "1.4.0", "state": "booted"}, "B": {"version": null, "state": "writing"}},
                "operation": {"id": "op-7", "source": "method", "uri": "https://h/x", "version": "1.5.0",
                    "phase": "staging", "percent": 42, "downloadedBytes": 44_040_192, "expectedDownloadBytes": 104_857_600,
                    "reusedBytes": 1536, "etaSeconds": 75, "attempt": 1, "startedAt": "2030-01-01T00:00:00Z"},
                "desired": {"version": "1.6.0", "code": "Quarantined", "message": "It failed before."},
                "last": {"id": "op-6", "result": "rolledBack", "fromVersion": "1.4.0", "toVersion": "1.4.9",
                    "finishedAt": "2029-12-31T00:00:00Z",
                    "error": {"code": "HealthCheckFailed", "message": "The check net did not pass.",
                        "evidence": {"check": "net", "excerpt": "no route\n\u{1b}[2Jgone"}}}
            }
        });
        let expected = "\
Status    downloading
Slot A    1.4.0        booted
Slot B    -            writing
Update    to 1.5.0: staging
          [##########              ]  42%  42.0 MiB of 100.0 MiB, 1.5 KiB reused, 1min 15s left
          from https://h/x
          operation op-7, asked for by method, started 2030-01-01T00:00:00Z
Desired   1.6.0 (Quarantined) It failed before.
Last      rolledBack: 1.4.0 -> 1.4.9, 2029-12-31T00:00:00Z
          HealthCheckFailed: The check net did not pass.
          check net
          | no route
          |  [2Jgone
Agent     0.1.0
";
        assert_eq!(status(&document), expected);
    }

    #[test]
    fn what_needs_a_person_is_read_first() {
        let document = json!({"firmwareStatus": "downloading", "fwupdate": {
            "agent": {"version": "1", "degraded": "the record\u{1b}cannot be saved"},
            "operation": {"phase": "staging", "waiting": "a fresh link"}}});
        let told = status(&document);
        let first: Vec<&str> = told.lines().take(3).collect();
        let expected =
            ["DEGRADED  the record cannot be saved", "WAITING   a fresh link", "Status    downloading"];
        assert_eq!(first, expected);
    }

    #[test]
    fn a_document_of_another_shape_is_shown_as_far_as_it_goes() {
        for document in
            [json!(null), json!([]), json!({"fwupdate": 3}), json!({"fwupdate": {"operation": "x"}})]
        {
            assert!(status(&document).starts_with("Status    -\n"), "{document}");
        }
        assert_eq!(history(&json!({"history": 3})), "No update yet.\n");
        assert!(!is_well(&json!({})), "no findings are no clean bill of health");
    }

    #[test]
    fn a_doctor_with_a_failed_finding() {
        let document = json!({"findings": [
            {"check": "state", "status": "ok", "message": "outside both slots"},
            {"check": "environment", "status": "failed", "message": "a single copy"}]});
        let (text, well) = (doctor(&document), is_well(&document));
        assert_eq!(text, "ok        state: outside both slots\nfailed    environment: a single copy\n");
        assert!(!well);
    }

    #[test]
    fn an_outcome_says_what_is_known() {
        let told = |last: Value| history(&json!({ "history": [last] }));
        let known = json!({"result": "failed", "fromVersion": "1", "toVersion": "2", "finishedAt": "T"});
        assert_eq!(told(known), "1.        failed: 1 -> 2, T\n");
        assert_eq!(told(json!({"result": "failed", "toVersion": "2"})), "1.        failed: to 2\n");
        assert_eq!(told(json!({"result": "failed", "fromVersion": "1"})), "1.        failed: 1 stays\n");
        let unread =
            json!({"result": "failed", "finishedAt": "T", "error": {"code": "NotFound", "message": "no"}});
        assert_eq!(told(unread.clone()), "1.        failed, T\n          NotFound: no\n");
        assert_eq!(outcome(&unread), "Result    failed, T\n", "the error is the command's own");
    }

    #[test]
    fn no_document_drives_the_terminal() {
        let evil = "x\u{1b}[2J\u{9b}1m\u{7f}\u{202e}\u{2028}\r\ny";
        let last = json!({"result": evil, "fromVersion": evil, "toVersion": evil, "finishedAt": evil,
            "error": {"code": evil, "message": evil, "evidence": {"check": evil, "excerpt": evil}}});
        let operation = json!({"id": evil, "source": evil, "uri": evil, "version": evil, "phase": evil,
            "startedAt": evil});
        let document = json!({"firmwareStatus": evil, "fwupdate": {"agent": {"version": evil, "degraded": evil},
            "slots": {"A": {"version": evil, "state": evil}}, "operation": operation, "last": last,
            "desired": {"version": evil, "code": evil, "message": evil}}});
        let findings = json!({"findings": [{"check": evil, "status": evil, "message": evil}]});
        let shown = [
            status(&document),
            history(&json!({ "history": [last] })),
            outcome(&last),
            slots(&json!({"slots": {"B": {"version": evil, "state": evil}}})),
            doctor(&findings),
        ];
        for text in shown {
            assert_eq!(text, crate::cli::plain::lines(&text));
            assert!(text.lines().all(|line| !line.starts_with('y')), "a value forged a line: {text}");
        }
    }

    #[test]
    fn a_bar_is_never_longer_than_full() {
        assert!(progress(&json!({"percent": 999}), Some(5)).starts_with("[########################] 100%"));
    }
}
