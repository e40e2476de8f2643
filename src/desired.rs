//! What the section `fwupdate` of the desired properties asks for now, given what was done about it before. Pure.
//!
//! The hub hands the section over on every connect, so that a gateway that was offline converges; acting is
//! therefore tied to a change of content. Query strings do not count: a renewed SAS token is no other firmware.

use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::bounds::{VERSION, short};
use crate::command;
use crate::failure::{Code, Failure};
use crate::machine::{ACCEPTED, Desired, Operation, Origin, Record};
use crate::manifest::Digest;
use crate::uri::PackageUri;

/// Key in the desired properties.
const SECTION: &str = "fwupdate";

/// The section as the hub handed it over last.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    content: Value,
    digest: Digest,
    version: Option<String>,
}

/// What runs in the booted slot.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunningImage<'a> {
    pub version: Option<&'a str>,
    /// Digest of its manifest, if its bundle was installed by this agent.
    pub manifest: Option<Digest>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Nothing: the content was acted upon before.
    Settled,
    /// Nothing before the running operation has its outcome.
    Wait,
    /// The running operation goes on with a fresh token. `desired`, when the content changed.
    Continue { uri: PackageUri, desired: Option<Desired> },
    /// Remember `desired`, after the section's own operation was cancelled if `cancel`.
    Note { cancel: bool, desired: Option<Desired> },
    /// Start `operation` (its id may be empty), after the section's own was cancelled if `cancel`.
    Start { cancel: bool, operation: Box<Operation>, desired: Desired },
}

impl Section {
    /// The section within the whole desired properties; `None`: there is none.
    pub fn of(properties: &Value) -> Option<Section> {
        let content = properties.get(SECTION).filter(|content| !content.is_null())?;
        let version = content.get("version").and_then(Value::as_str).map(|version| short(version, VERSION));
        Some(Section { content: content.clone(), digest: digest(content), version })
    }

    /// What is remembered of this section.
    pub fn noted(&self, code: impl ToString, message: &str) -> Desired {
        Desired::new(self.digest, self.version.clone(), code, message)
    }

    /// What is remembered of this section after it was refused.
    pub fn refused(&self, failure: &Failure) -> Desired {
        self.noted(failure.code, &failure.message)
    }
}

/// Decides what `section` asks for.
pub fn decide(
    record: &Record,
    section: Option<&Section>,
    running: RunningImage<'_>,
    now: OffsetDateTime,
) -> Action {
    let own = own_operation(record);
    let cancel = own.is_some() && record.phase.can_cancel();
    let Some(section) = section else {
        return match (&record.desired, own) {
            (None, _) => Action::Settled,
            (Some(_), Some(_)) if !cancel => Action::Wait,
            (Some(_), _) => Action::Note { cancel, desired: None },
        };
    };
    let asked = command::update(&section.content, Origin::Desired, now);
    if record.desired.as_ref().is_some_and(|desired| desired.digest == section.digest && !may_retry(desired))
    {
        return unchanged(own.filter(|_| cancel), asked);
    }
    let asked = match asked {
        Err(_) if own.is_some() && !cancel => return Action::Wait,
        Err(failure) => return Action::Note { cancel, desired: Some(section.refused(&failure)) },
        Ok(asked) => asked,
    };
    match record.phase.operation() {
        Some(current) if is_same(current, &asked) => {
            let desired = Desired { operation: Some(current.id.clone()), ..section.noted(ACCEPTED, "") };
            Action::Continue { uri: asked.uri, desired: Some(desired) }
        }
        Some(_) if !cancel => Action::Wait,
        _ => begin(record, section, asked, running, cancel),
    }
}

/// The operation that the section led to, while it runs.
fn own_operation(record: &Record) -> Option<&Operation> {
    let own = record.desired.as_ref()?.operation.as_ref()?;
    record.phase.operation().filter(|operation| operation.id == *own)
}

/// A gateway that was not ready is asked again at the next connect, for then it may be.
fn may_retry(desired: &Desired) -> bool {
    let transient = [Code::NotReady, Code::StateUnavailable, Code::BootloaderFailed];
    desired.operation.is_none() && transient.iter().any(|code| code.to_string() == desired.code)
}

fn unchanged(own: Option<&Operation>, asked: Result<Operation, Failure>) -> Action {
    match (own, asked) {
        (Some(own), Ok(asked)) if own.uri != asked.uri => Action::Continue { uri: asked.uri, desired: None },
        _ => Action::Settled,
    }
}

fn is_same(current: &Operation, asked: &Operation) -> bool {
    if asked.id.is_empty() { command::same_request(current, asked) } else { current.id == asked.id }
}

fn begin(
    record: &Record,
    section: &Section,
    asked: Operation,
    running: RunningImage<'_>,
    cancel: bool,
) -> Action {
    let ended = record.history.iter().find(|last| !asked.id.is_empty() && last.id == asked.id);
    if let Some(last) = ended {
        let mut desired = Desired { operation: Some(last.id.clone()), ..section.noted(ACCEPTED, "") };
        desired.ended(&last.id, last.error.as_ref());
        return Action::Note { cancel, desired: Some(desired) };
    }
    if is_installed(&asked, running) {
        let desired = section.noted(Code::AlreadyInstalled, "this version runs already");
        return Action::Note { cancel, desired: Some(desired) };
    }
    Action::Start { cancel, operation: Box::new(asked), desired: section.noted(ACCEPTED, "") }
}

/// A fleet's section reaches gateways that already run the version: there nothing is to be done, nor to fail.
fn is_installed(asked: &Operation, running: RunningImage<'_>) -> bool {
    let pinned = asked.manifest_sha256;
    let same_version = asked.version.is_some() && asked.version.as_deref() == running.version;
    let same = if pinned.is_some() { pinned == running.manifest } else { same_version };
    same && !asked.force
}

/// SHA-256 of the section with its keys in order and its URL without query.
fn digest(content: &Value) -> Digest {
    let mut content = canonical(content);
    if let Some(Value::String(uri)) = content.get_mut("fwPackageUri") {
        *uri = PackageUri::from(uri.as_str()).without_query().to_owned();
    }
    Digest::of(content.to_string().as_bytes())
}

/// Keys in order, and no nulls: they mean an absent field.
fn canonical(value: &Value) -> Value {
    let Value::Object(fields) = value else { return value.clone() };
    let mut fields: Vec<_> = fields.iter().filter(|(_, value)| !value.is_null()).collect();
    fields.sort_by_key(|(key, _)| *key);
    let ordered: Map<_, _> = fields.into_iter().map(|(key, value)| (key.clone(), canonical(value))).collect();
    Value::Object(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Boot, BootId, COMMITTED, Event, Last, Outcome, Phase, Plan, SUPERSEDED, step};
    use crate::slot::{BootEnv, Slot};
    use serde_json::json;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn section(content: Value) -> Section {
        Section::of(&json!({"fwupdate": content, "$version": 3})).unwrap()
    }

    fn asks(uri: &str) -> Section {
        section(json!({"fwPackageUri": uri, "version": "2"}))
    }

    fn idle() -> Record {
        Record { phase: Phase::Idle, ..Record::default() }
    }

    fn decided(record: &Record, section: Option<&Section>) -> Action {
        decide(record, section, RunningImage::default(), NOW)
    }

    fn boot() -> Boot {
        let env = Some(BootEnv::only(Slot::A));
        let (booted, boot_id) = (Some(Slot::A), BootId::default());
        Boot { booted, env, rebuild: false, trial: None, boot_id, now: NOW, uptime: 1 }
    }

    /// The record after `section` was acted upon: its operation, named `own`, runs.
    fn acting(section: &Section) -> Record {
        let Action::Start { operation, desired, .. } = decided(&idle(), Some(section)) else {
            panic!("it does not start")
        };
        let operation = Box::new(Operation { id: "own".into(), ..*operation });
        step(&idle(), &boot(), Event::Desired { desired: Some(desired), operation: Some(operation) }).0
    }

    fn trying(record: &Record) -> Record {
        let plan = Plan { operation: record.phase.operation().unwrap().clone(), ..Plan::unknown(Slot::B) };
        Record { phase: Phase::Committing { plan }, ..record.clone() }
    }

    fn code(action: &Action) -> &str {
        match action {
            Action::Note { desired: Some(desired), .. } => &desired.code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_section_starts_and_the_same_again_does_not() {
        let first = asks("https://h/2.fwb");
        let record = acting(&first);
        assert_eq!(record.phase.operation().unwrap().source, Origin::Desired);
        assert_eq!(record.desired.as_ref().unwrap().operation.as_deref(), Some("own"));
        assert_eq!(decided(&record, Some(&first)), Action::Settled);
        let ended = step(&record, &boot(), Event::Failed(Failure::new(Code::NotFound, "gone"))).0;
        assert_eq!(ended.desired.as_ref().unwrap().code, "NotFound");
        assert_eq!(decided(&ended, Some(&first)), Action::Settled, "edge-triggered");
        assert_eq!(decided(&idle(), None), Action::Settled);
    }

    #[test]
    fn neither_key_order_nor_nulls_nor_tokens_are_a_change() {
        let one = section(json!({"fwPackageUri": "https://h/2.fwb?sig=1", "version": "2", "force": null}));
        let two = section(json!({"version": "2", "fwPackageUri": "https://h/2.fwb?sig=2"}));
        assert_eq!(one.digest, two.digest);
        let record = acting(&one);
        let fresh = Action::Continue { uri: "https://h/2.fwb?sig=2".into(), desired: None };
        assert_eq!(decided(&record, Some(&two)), fresh);
        assert_eq!(decided(&trying(&record), Some(&two)), Action::Settled, "nothing is fetched any more");
        assert_ne!(one.digest, asks("https://h/3.fwb").digest);
    }

    #[test]
    fn a_change_replaces_and_null_cancels_until_armed() {
        let record = acting(&asks("https://h/2.fwb"));
        let changed = asks("https://h/3.fwb");
        let action = decided(&record, Some(&changed));
        assert!(matches!(action, Action::Start { cancel: true, .. }), "{action:?}");
        assert_eq!(decided(&record, None), Action::Note { cancel: true, desired: None });
        assert_eq!(decided(&trying(&record), Some(&changed)), Action::Wait);
        assert_eq!(decided(&trying(&record), None), Action::Wait);
        let nonsense = section(json!({"fwPackageUri": 7}));
        assert_eq!(decided(&trying(&record), Some(&nonsense)), Action::Wait);
        assert!(matches!(decided(&record, Some(&nonsense)), Action::Note { cancel: true, .. }));
    }

    #[test]
    fn anothers_operation_is_left_to_its_end() {
        let operation =
            Operation { id: "method".into(), uri: "https://h/9.fwb".into(), ..Operation::default() };
        let record = Record { phase: Phase::Opening { operation }, ..idle() };
        assert_eq!(decided(&record, Some(&asks("https://h/2.fwb"))), Action::Wait);
        assert_eq!(decided(&record, None), Action::Settled);
        let same = section(json!({"fwPackageUri": "https://h/9.fwb?sig=1"}));
        let action = decided(&record, Some(&same));
        assert!(
            matches!(&action, Action::Continue { desired: Some(desired), .. }
                if desired.operation.as_deref() == Some("method")),
            "{action:?}"
        );
    }

    #[test]
    fn a_later_command_supersedes_it() {
        let first = asks("https://h/2.fwb");
        let record = acting(&first);
        let failed = step(&record, &boot(), Event::Failed(Failure::new(Code::NotFound, "gone"))).0;
        let operation = Box::new(Operation { id: "method".into(), ..Operation::default() });
        let record = step(&failed, &boot(), Event::Requested(operation)).0;
        assert_eq!(record.desired.as_ref().unwrap().code, SUPERSEDED);
        assert_eq!(decided(&record, Some(&first)), Action::Settled);
    }

    #[test]
    fn refusals_are_noted_and_only_unreadiness_is_asked_again() {
        let nonsense = section(json!({"fwPackageUri": "https://h/2.fwb", "colour": "red"}));
        let action = decided(&idle(), Some(&nonsense));
        assert_eq!(code(&action), "MalformedRequest");
        let Action::Note { desired, .. } = action else { unreachable!() };
        assert!(desired.as_ref().unwrap().message.contains("colour"));
        assert_eq!(decided(&Record { desired, ..idle() }, Some(&nonsense)), Action::Settled);

        let first = asks("https://h/2.fwb");
        let unready = first.refused(&Failure::new(Code::NotReady, "no environment"));
        let record = Record { desired: Some(unready), ..idle() };
        assert!(matches!(decided(&record, Some(&first)), Action::Start { cancel: false, .. }));
    }

    #[test]
    fn what_runs_already_is_no_failure() {
        let first = asks("https://h/2.fwb");
        let two = RunningImage { version: Some("2"), manifest: None };
        assert_eq!(code(&decide(&idle(), Some(&first), two, NOW)), "AlreadyInstalled");
        for other in [
            json!({"fwPackageUri": "https://h/2.fwb", "version": "2", "force": true}),
            json!({"fwPackageUri": "https://h/2.fwb", "version": "2", "manifestSha256": "ab".repeat(32)}),
            json!({"fwPackageUri": "https://h/2.fwb"}),
        ] {
            let action = decide(&idle(), Some(&section(other)), two, NOW);
            assert!(matches!(action, Action::Start { .. }), "{action:?}");
        }
    }

    #[test]
    fn an_operation_id_that_ended_is_not_begun_again() {
        let last = Last {
            id: "mine".into(),
            source: Origin::Method,
            result: Outcome::Committed,
            from_version: None,
            to_version: None,
            finished_at: NOW,
            error: None,
            operation: Operation::default(),
        };
        let record = Record { history: vec![last], ..idle() };
        let again = section(json!({"fwPackageUri": "https://h/2.fwb", "operationId": "mine"}));
        assert_eq!(code(&decided(&record, Some(&again))), COMMITTED);
    }

    #[test]
    fn a_section_that_went_and_came_again_acts_again() {
        let first = asks("https://h/2.fwb");
        let failed = step(&acting(&first), &boot(), Event::Failed(Failure::new(Code::NotFound, "gone"))).0;
        assert_eq!(decided(&failed, None), Action::Note { cancel: false, desired: None });
        let gone = step(&failed, &boot(), Event::Desired { desired: None, operation: None }).0;
        assert!(matches!(decided(&gone, Some(&first)), Action::Start { .. }));
    }
}
