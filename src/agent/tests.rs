//! The largest record and the largest report that can exist: every field of every object as long as the outside
//! can make it. The record is saved by the real store, the report is counted as the hub counts it.

use serde_json::Value;
use time::OffsetDateTime;
use time::macros::datetime;

use crate::bounds;
use crate::failure::{Code, Evidence, Failure};
use crate::machine::{
    Abilities, BootId, Desired, Extra, Hold, ImageInfo, Last, Operation, Origin, Outcome, Phase, Plan,
    Quarantined, Record, SavedProgress, SlotInfo, SlotState, Slots, Times, Trial,
};
use crate::manifest::Digest;
use crate::report::{self, REPORT_LIMIT, View};
use crate::slot::Slot;
use crate::store::Store;

/// What a caller, a server or a check could give: a character that costs six bytes, thousands of it.
fn flood() -> String {
    "\u{1}".repeat(8192)
}

fn extra() -> Extra {
    (0..12)
        .map(|n| (format!("{n}{}", "k".repeat(500)), serde_json::json!([[[flood()], {"a": [n]}]])))
        .collect()
}

/// Beyond what RFC 3339 can say in UTC.
const LATE: OffsetDateTime = datetime!(9999-12-31 23:59:59 -23:59);
const EARLY: OffsetDateTime = datetime!(0000-01-01 00:00:00 +23:59);

fn failure() -> Failure {
    let evidence = Evidence { check: Some(flood()), boot_attempts: Some(255), excerpt: Some(flood()) };
    Failure { code: Code::DataBudgetExceeded, message: flood(), evidence: Some(evidence) }
}

fn operation(id: &str) -> Operation {
    Operation {
        id: format!("{id}{}", flood()),
        source: Origin::Desired,
        uri: format!("https://{}", "%00".repeat(4096)).into(),
        version: Some(flood()),
        manifest_sha256: Some(Digest([0xff; 32])),
        max_download_bytes: Some(u64::MAX),
        allow_downgrade: false,
        force: false,
        not_before: Some(LATE),
        deadline: Some(EARLY),
        started_at: Some(LATE),
        extra: extra(),
    }
}

fn image() -> ImageInfo {
    ImageInfo {
        version: flood(),
        security_version: u64::MAX,
        created: EARLY,
        manifest: Digest([0xff; 32]),
        sha256: Digest([0xff; 32]),
        size: u64::MAX,
    }
}

fn plan() -> Plan {
    Plan {
        operation: operation("running"),
        target: Slot::B,
        image: Some(image()),
        from_version: Some(flood()),
        tries: 255,
        rewrite: false,
        extra: extra(),
    }
}

fn last(n: usize) -> Last {
    Last {
        id: format!("{n} {}", flood()),
        source: Origin::Desired,
        result: Outcome::RolledBack,
        from_version: Some(flood()),
        to_version: Some(flood()),
        finished_at: LATE,
        error: Some(failure()),
        operation: operation("ended"),
    }
}

/// Every phase, at its largest.
fn phases() -> Vec<Phase> {
    let boot_id = || BootId(flood());
    let trial = Trial { boot_id: boot_id(), since: u64::MAX, boots: 255, connected: false };
    vec![
        Phase::Idle,
        Phase::Opening { operation: operation("running") },
        Phase::Preparing { plan: plan() },
        Phase::Staging { plan: plan() },
        Phase::Holding { plan: plan(), hold: Hold { approved: false, until: Some(LATE) } },
        Phase::Arming { plan: plan(), boot_id: boot_id() },
        Phase::Rebooting { plan: plan(), boot_id: boot_id(), connected: false },
        Phase::Trying { plan: plan(), trial },
        Phase::Committing { plan: plan() },
        Phase::RollingBack { plan: plan(), failure: failure(), tried: false, rebooted: Some(boot_id()) },
    ]
}

fn largest(phase: Phase) -> Record {
    let quarantined =
        |n: u8| Quarantined { sha256: Digest([n; 32]), version: flood(), failure: failure(), refused: false };
    let slot = || SlotInfo { state: SlotState::Unknown, image: Some(image()), version: Some(flood()) };
    Record {
        version: u32::MAX,
        phase,
        history: (0..20).map(last).collect(),
        unreported: usize::MAX,
        slots: Slots { a: slot(), b: slot() },
        quarantine: (0..20).map(quarantined).collect(),
        floor: u64::MAX,
        times: Times {
            download_complete: Some(LATE),
            started_applying_image: Some(EARLY),
            last_firmware_update: Some(LATE),
        },
        synchronised_time: i64::MIN,
        downloaded: u64::MAX,
        progress: SavedProgress { percent: u64::MAX, expected: u64::MAX, reused: u64::MAX },
        // As long as a list may be that is kept.
        failed_units: Some((0..30).map(|n| format!("{n:0>230}.service")).collect()),
        abilities: Some(Abilities {
            answers: (0..99).map(|n| (format!("{n:0>60}"), false)).collect(),
            compatible: flood(),
            hub: Some(flood()),
            keys: (0..99).map(|n| format!("{n:0>60}")).collect(),
            version: Some(flood()),
        }),
        fresh: false,
        desired: Some(Desired {
            digest: Digest([0xff; 32]),
            version: Some(flood()),
            code: flood(),
            message: flood(),
            operation: Some(flood()),
        }),
        extra: extra(),
    }
}

fn fitted(phase: Phase) -> Record {
    let mut record = largest(phase);
    record.fit();
    record
}

#[test]
fn the_largest_record_is_saved_and_read_again_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    for phase in phases() {
        let record = fitted(phase);
        store.save(&record).unwrap_or_else(|error| panic!("{}: {error}", record.phase.name()));
        assert_eq!(store.load::<Record>().unwrap().as_ref(), Some(&record));
        assert!(record.history.len() >= 4, "only {} outcomes are kept", record.history.len());
        assert_eq!(record.quarantine.len(), 16);
        assert!(record.failed_units.is_some());
        let mut again = record.clone();
        again.fit();
        assert_eq!(again, record, "what was fitted stays as it is");
    }
}

#[test]
fn an_ordinary_record_stays_as_it_is() {
    let text = include_str!("../../tests/records/0.1.0-trying.json");
    let record: Record = serde_json::from_str(text).unwrap();
    let mut fitted = record.clone();
    fitted.fit();
    assert_eq!(fitted, record);
}

#[test]
fn the_oldest_history_goes_first() {
    let record = fitted(Phase::Idle);
    let numbers: Vec<String> = record
        .history
        .iter()
        .map(|last| last.id.chars().take_while(char::is_ascii_digit).collect())
        .collect();
    let newest: Vec<String> = (0..record.history.len()).map(|n| n.to_string()).collect();
    assert_eq!(numbers, newest);
    assert!(record.unreported <= record.history.len());
}

#[test]
fn a_list_of_units_that_is_too_long_is_not_known() {
    let mut record = Record {
        failed_units: Some((0..700).map(|n| format!("{n}.service")).collect()),
        ..Record::default()
    };
    record.fit();
    assert_eq!(record.failed_units, None);
}

/// Twin limits: a string 4 KB, reported 32 KB, a depth of 10, whole numbers of 52 bits; ours: a patch below 4 KB.
fn within_the_twins_limits(value: &Value, depth: usize) {
    match value {
        Value::String(text) => assert!(text.len() <= 4096),
        Value::Number(number) => assert!(number.as_u64().unwrap() <= bounds::NUMBER, "{number}"),
        Value::Object(fields) => {
            assert!(depth < 10);
            for (key, value) in fields {
                assert!(key.len() <= 1024);
                within_the_twins_limits(value, depth + 1);
            }
        }
        _ => {}
    }
}

#[test]
fn the_largest_report_is_one_small_patch() {
    let progress = report::ReportedProgress {
        eta_seconds: Some(u64::MAX),
        ..report::ReportedProgress::of(&largest(Phase::Idle))
    };
    let view = View {
        booted: Some(Slot::A),
        booted_version: Some(flood()),
        degraded: Some(flood()),
        awaits: Some(flood()),
        clock: Some(flood()),
        progress: Some(progress),
        waiting: Some(flood()),
        log_time: Some(LATE),
    };
    for phase in phases() {
        let mut record = fitted(phase);
        // A slot without an image shows the running system's own version.
        record.slots.a.image = None;
        let document = Value::Object(report::document(&record, &view));
        within_the_twins_limits(&document, 0);
        assert!(
            document.to_string().len() <= REPORT_LIMIT,
            "{}: {}",
            record.phase.name(),
            document.to_string().len()
        );
        assert_eq!(document["fwupdate"]["last"]["id"], Value::from(record.told().unwrap().id.clone()));
    }
}
