//! Record and this run's facts -> reported properties, in the shapes of docs/interface.md. Pure: the same record and
//! facts give the same report.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::bounds::{self, NUMBER, VERSION, cut, cut_front, moment, short};
use crate::machine::{self, Last, Outcome, Phase, Record, SlotState};
use crate::slot::Slot;

/// Progress patches come at these steps, so that a whole update costs few of them.
const PERCENT_STEP: u64 = 10;

/// Most bytes of a report: a patch that has to delete something beside it still stays below 4 KB.
pub const REPORT_LIMIT: usize = 3840;
/// How long the texts of a report may be; the first of these with which all of it fits.
const TEXTS: [usize; 4] = [bounds::EXCERPT, 512, 256, 128];

/// What the record does not hold: this run's facts.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub booted: Option<Slot>,
    /// What the running system calls itself.
    pub booted_version: Option<String>,
    /// Why no update can start, if so.
    pub degraded: Option<String>,
    /// What is set and does not count yet, and why.
    pub awaits: Option<String>,
    /// Which server told the time that counts, while nothing sets the clock.
    pub clock: Option<String>,
    /// Between two steps of ten percent, for local watchers; `None`: the record's.
    pub progress: Option<ReportedProgress>,
    /// What the running operation waits for, while only a person can provide it.
    pub waiting: Option<String>,
    /// When what is reported changed last.
    pub log_time: Option<OffsetDateTime>,
}

/// How far the running operation has come; bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReportedProgress {
    pub staged: machine::SavedProgress,
    pub downloaded: u64,
    pub eta_seconds: Option<u64>,
}

impl ReportedProgress {
    /// What the record remembers of it.
    pub fn of(record: &Record) -> ReportedProgress {
        ReportedProgress { staged: record.progress, downloaded: record.downloaded, eta_seconds: None }
    }
}

/// Whether going from `told` to `now` is worth a patch: a step of ten percent, or the size of the download.
pub fn is_step(told: machine::SavedProgress, now: machine::SavedProgress) -> bool {
    now.percent / PERCENT_STEP != told.percent / PERCENT_STEP || told.expected == 0 && now.expected > 0
}

/// The whole report: root keys as the tutorial's service app reads them, and `fwupdate`.
pub fn document(record: &Record, view: &View) -> Map<String, Value> {
    let mut root = Map::new();
    root.insert("firmwareStatus".into(), status(record).into());
    root.insert("logTime".into(), moment(view.log_time));
    root.insert("downloadComplete".into(), moment(record.times.download_complete));
    root.insert("startedApplyingImage".into(), moment(record.times.started_applying_image));
    root.insert("lastFirmwareUpdate".into(), moment(record.times.last_firmware_update));
    let mut ours = json!({
        "agent": agent(view),
        "slots": slots(record, view),
        "operation": operation(record, view),
        "desired": desired(record),
        "last": record.told().map_or(Value::Null, last),
    });
    drop_nulls(&mut ours);
    root.insert("fwupdate".into(), ours);
    within_bounds(root)
}

/// Shortens the texts that tell most until all of it fits; what identifies something is never cut.
fn within_bounds(mut root: Map<String, Value>) -> Map<String, Value> {
    for limit in TEXTS {
        if let Some(ours) = root.get_mut("fwupdate") {
            shorten(ours, limit);
        }
        if serde_json::to_string(&root).is_ok_and(|text| text.len() <= REPORT_LIMIT) {
            break;
        }
    }
    root
}

fn shorten(value: &mut Value, limit: usize) {
    let Value::Object(fields) = value else { return };
    for (key, value) in fields {
        match (key.as_str(), value) {
            ("excerpt", Value::String(text)) => cut_front(text, limit),
            (
                "uri" | "message" | "check" | "degraded" | "awaits" | "clock" | "waiting",
                Value::String(text),
            ) => cut(text, limit),
            (_, value) => shorten(value, limit),
        }
    }
}

/// The tutorial's word for where things stand.
pub fn status(record: &Record) -> &'static str {
    match &record.phase {
        phase if is_nobodys(phase) => match record.told().map(|last| last.result) {
            None | Some(Outcome::Unknown) => "standBy",
            Some(Outcome::Committed) => "completed",
            Some(Outcome::Failed) => "failed",
            Some(Outcome::RolledBack) => "rolledBack",
            Some(Outcome::Cancelled) => "cancelled",
        },
        phase if phase.can_cancel() => "downloading",
        _ => "applying",
    }
}

/// Nothing runs that anybody asked for: at rest, or on a trial that no record explains.
fn is_nobodys(phase: &Phase) -> bool {
    let unexplained = phase.plan().is_some_and(|plan| plan.operation.id.is_empty());
    unexplained || phase.operation().is_none()
}

fn agent(view: &View) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "bootedSlot": view.booted.map(|slot| slot.to_string()),
        "degraded": view.degraded,
        "awaits": view.awaits,
        "clock": view.clock.as_deref().map(|host| short(host, bounds::ID)),
    })
}

/// `{"A": {"version", "state"}, "B": ...}`.
pub fn slots(record: &Record, view: &View) -> Value {
    let one = |slot: Slot| {
        let info = record.slots.get(slot);
        let version = info.image.as_ref().map(|image| image.version.clone());
        let version = version.or_else(|| info.version.clone().filter(|_| view.booted != Some(slot)));
        let booted = view.booted_version.as_ref().filter(|_| view.booted == Some(slot));
        let running = booted.map(|version| short(version, VERSION));
        json!({ "version": version.or(running), "state": slot_state(record, view, slot) })
    };
    json!({ "A": one(Slot::A), "B": one(Slot::B) })
}

fn slot_state(record: &Record, view: &View, slot: Slot) -> &'static str {
    let tried = matches!(record.phase, Phase::Trying { .. } | Phase::Committing { .. });
    let on_trial = tried && record.phase.plan().is_some_and(|plan| plan.target == slot);
    match record.slots.get(slot).state {
        _ if view.booted == Some(slot) && on_trial => "trial",
        _ if view.booted == Some(slot) => "booted",
        SlotState::Proven => "proven",
        SlotState::Writing => "writing",
        SlotState::Failed => "failed",
        SlotState::Unknown => "unknown",
    }
}

fn operation(record: &Record, view: &View) -> Value {
    // A trial that no record explains is nobody's operation.
    let asked = record.phase.operation().filter(|operation| !operation.id.is_empty());
    let Some(operation) = asked else { return Value::Null };
    let plan = record.phase.plan();
    let version = plan.and_then(|plan| plan.image.as_ref()).map(|image| image.version.clone());
    let progress = view.progress.unwrap_or_else(|| ReportedProgress::of(record));
    let attempt = match &record.phase {
        Phase::Trying { trial, .. } => trial.boots,
        _ => 1,
    };
    json!({
        "id": operation.id,
        "source": operation.source,
        "uri": short(&operation.uri.shown(), bounds::TOLD_URI),
        "version": version.or_else(|| operation.version.clone()),
        "phase": record.phase.name(),
        "percent": percent(record, progress),
        "downloadedBytes": progress.downloaded.min(NUMBER),
        "expectedDownloadBytes": progress.staged.expected.min(NUMBER),
        "reusedBytes": progress.staged.reused.min(NUMBER),
        "etaSeconds": progress.eta_seconds.map(|eta| eta.min(NUMBER)).filter(|_| matches!(record.phase, Phase::Staging { .. })),
        "attempt": attempt,
        "waiting": view.waiting,
        "startedAt": moment(operation.started_at),
    })
}

/// How much of the image is staged: after staging, all of it.
fn percent(record: &Record, progress: ReportedProgress) -> u64 {
    match record.phase {
        Phase::Opening { .. } | Phase::Preparing { .. } => 0,
        Phase::Staging { .. } => progress.staged.percent.min(100),
        _ => 100,
    }
}

fn desired(record: &Record) -> Value {
    record.desired.as_ref().map_or(
        Value::Null,
        |desired| json!({ "version": desired.version, "code": desired.code, "message": desired.message }),
    )
}

/// An ended operation as `fwupdate.last` and `history` show it.
pub fn last(last: &Last) -> Value {
    json!({
        "id": last.id,
        "source": last.source,
        "result": last.result,
        "fromVersion": last.from_version,
        "toVersion": last.to_version,
        "finishedAt": moment(Some(last.finished_at)),
        "error": last.error,
    })
}

/// Leaves out, within `fwupdate`, the fields that say nothing.
fn drop_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(drop_nulls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Code, Evidence, Failure};
    use crate::machine::{ImageInfo, Operation, Plan};
    use crate::manifest::Digest;

    fn plan() -> Plan {
        let image = ImageInfo {
            version: "1.5.0".into(),
            security_version: 1,
            created: OffsetDateTime::UNIX_EPOCH,
            manifest: Digest([1; 32]),
            sha256: Digest([2; 32]),
            size: 4096,
        };
        let uri = "https://user:pw@host/fw.fwb?sig=secret#x".into();
        let operation = Operation { id: "op".into(), uri, ..Operation::default() };
        Plan { operation, image: Some(image), ..Plan::unknown(Slot::B) }
    }

    fn report(record: &Record) -> Value {
        let view = View { booted: Some(Slot::A), booted_version: Some("1.4.0".into()), ..View::default() };
        Value::Object(document(record, &view))
    }

    #[test]
    fn a_new_gateway_stands_by() {
        let report = report(&Record::default());
        assert_eq!(report["firmwareStatus"], "standBy");
        assert_eq!(report["fwupdate"]["agent"]["bootedSlot"], "A");
        assert_eq!(report["fwupdate"]["slots"]["A"], json!({"version": "1.4.0", "state": "booted"}));
        assert!(report["fwupdate"].get("operation").is_none());
        assert_eq!(report["downloadComplete"], Value::Null);
    }

    #[test]
    fn a_running_operation_shows_no_secret() {
        let record = Record { phase: Phase::Staging { plan: plan() }, ..Record::default() };
        let report = report(&record);
        assert_eq!(report["firmwareStatus"], "downloading");
        assert_eq!(report["fwupdate"]["operation"]["uri"], "https://host/fw.fwb");
        assert_eq!(report["fwupdate"]["operation"]["version"], "1.5.0");
        assert!(!report.to_string().contains("secret") && !report.to_string().contains("pw"));
    }

    #[test]
    fn each_phase_has_the_tutorials_word() {
        let hold = crate::machine::Hold::default();
        let failure = Failure::new(Code::HealthCheckFailed, "no");
        let boot_id = crate::machine::BootId::default();
        for (phase, word) in [
            (Phase::Opening { operation: Operation::default() }, "downloading"),
            (Phase::Preparing { plan: plan() }, "downloading"),
            (Phase::Holding { plan: plan(), hold }, "downloading"),
            (Phase::Arming { plan: plan(), boot_id: boot_id.clone() }, "applying"),
            (Phase::Rebooting { plan: plan(), boot_id, connected: true }, "applying"),
            (Phase::Committing { plan: plan() }, "applying"),
            (Phase::RollingBack { plan: plan(), failure, tried: true, rebooted: None }, "applying"),
        ] {
            let record = Record { phase, ..Record::default() };
            assert_eq!(status(&record), word, "{:?}", record.phase.name());
        }
    }

    #[test]
    fn an_outcome_carries_its_evidence() {
        let evidence = Evidence { check: Some("10-app".into()), ..Evidence::default() };
        let ended = Last {
            id: "op".into(),
            source: crate::machine::Origin::Method,
            result: Outcome::RolledBack,
            from_version: Some("1".into()),
            to_version: Some("2".into()),
            finished_at: OffsetDateTime::UNIX_EPOCH,
            error: Some(Failure::new(Code::HealthCheckFailed, "it failed").with(evidence)),
            operation: Operation::default(),
        };
        let record = Record { phase: Phase::Idle, history: vec![ended], ..Record::default() };
        let report = report(&record);
        assert_eq!(report["firmwareStatus"], "rolledBack");
        let last = &report["fwupdate"]["last"];
        assert_eq!(last["result"], "rolledBack");
        assert_eq!(last["finishedAt"], "1970-01-01T00:00:00Z");
        assert_eq!(last["error"]["code"], "HealthCheckFailed");
        assert_eq!(last["error"]["evidence"], json!({"check": "10-app"}));
    }
}
