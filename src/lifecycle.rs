//! What happened to an operation between two records, as events that a fleet's back end can route. Pure.
//!
//! An event's name is the phase that was entered or the result that ended the operation, in the words of
//! docs/interface.md; `accepted` stands before them all.

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::bounds::moment;
use crate::failure::{Code, Failure};
use crate::machine::{Last, Operation, Phase, Record};

/// The name and version of the body's shape.
pub const SCHEMA: &str = "fwupdate.lifecycle.v1";
const ACCEPTED: &str = "accepted";

/// One lifecycle event.
#[derive(Debug, Clone, PartialEq)]
pub struct LifecycleEvent {
    pub name: String,
    pub operation: String,
    /// Boot attempt of a trial, else 1: the same phase of an operation may be entered again.
    pub attempt: u8,
    /// Why, if the operation did not end well or is on its way back.
    pub code: Option<Code>,
    pub body: Value,
}

/// The events that lead from `before` to `after`, in their order. `now` dates the phases; outcomes carry their time.
pub fn between(before: &Record, after: &Record, now: OffsetDateTime) -> Vec<LifecycleEvent> {
    // The reason of the newest may have become clearer meanwhile.
    let known = before.last().map(|last| (&last.id, last.finished_at));
    let fresh = after.history.iter().take_while(|last| Some((&last.id, last.finished_at)) != known);
    let mut events: Vec<LifecycleEvent> = fresh.map(ended).collect();
    events.reverse();
    let Some(operation) = after.phase.operation() else { return events };
    let known = before.phase.operation().is_some_and(|before| before.id == operation.id);
    // A trial that no record explains was accepted by nobody.
    let began = !known && !matches!(after.phase, Phase::Opening { .. } | Phase::Trying { .. });
    events.extend(began.then(|| entered(ACCEPTED, operation, after, now)));
    if !known || stage(before) != stage(after) {
        events.push(entered(stage(after).0, operation, after, now));
    }
    events
}

/// What tells one step from the next: the phase's name, and the boot attempt.
fn stage(record: &Record) -> (&'static str, u8) {
    match &record.phase {
        Phase::Opening { .. } => (ACCEPTED, 1),
        Phase::Trying { trial, .. } => (record.phase.name(), trial.boots),
        phase => (phase.name(), 1),
    }
}

/// The event that tells how an operation ended.
fn ended(last: &Last) -> LifecycleEvent {
    let name = json!(last.result).as_str().unwrap_or("unknown").to_owned();
    let body = json!({
        "event": name,
        "operationId": last.id,
        "source": last.source,
        "time": moment(Some(last.finished_at)),
        "fromVersion": last.from_version,
        "toVersion": last.to_version,
    });
    event(name, last.id.clone(), 1, last.error.as_ref(), body)
}

/// The event that tells of a phase, or before them all that the operation was accepted.
fn entered(name: &str, operation: &Operation, record: &Record, now: OffsetDateTime) -> LifecycleEvent {
    let plan = record.phase.plan();
    let image = plan.and_then(|plan| plan.image.as_ref()).map(|image| image.version.clone());
    let failure = match &record.phase {
        Phase::RollingBack { failure, .. } => Some(failure),
        _ => None,
    };
    let (_, attempt) = stage(record);
    let body = json!({
        "event": name,
        "operationId": operation.id,
        "source": operation.source,
        "time": moment(Some(now)),
        "slot": plan.map(|plan| plan.target.to_string()),
        "fromVersion": plan.and_then(|plan| plan.from_version.clone()),
        "toVersion": image.or_else(|| operation.version.clone()),
        "attempt": matches!(record.phase, Phase::Trying { .. }).then_some(attempt),
    });
    event(name.to_owned(), operation.id.clone(), attempt, failure, body)
}

/// Adds to `body` what every event tells, and leaves out what is null.
fn event(
    name: String,
    operation: String,
    attempt: u8,
    failure: Option<&Failure>,
    mut body: Value,
) -> LifecycleEvent {
    if let Some(fields) = body.as_object_mut() {
        fields.insert("schema".into(), SCHEMA.into());
        fields.extend(failure.map(|why| ("error".into(), json!({"code": why.code, "message": why.message}))));
        fields.retain(|_, value| !value.is_null());
    }
    LifecycleEvent { name, operation, attempt, code: failure.map(|failure| failure.code), body }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{BootId, Origin, Outcome, Plan, Trial};
    use crate::slot::Slot;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn operation(id: &str) -> Operation {
        Operation { id: id.into(), version: Some("2".into()), ..Operation::default() }
    }

    fn plan(id: &str) -> Plan {
        Plan { operation: operation(id), from_version: Some("1".into()), ..Plan::unknown(Slot::B) }
    }

    fn at(phase: Phase) -> Record {
        Record { phase, ..Record::default() }
    }

    fn on_trial(boots: u8) -> Phase {
        let trial = Trial { boot_id: BootId::default(), since: 0, boots, connected: true };
        Phase::Trying { plan: plan("a"), trial }
    }

    fn ended_as(id: &str, result: Outcome, history: Vec<Last>) -> Record {
        let error = (result != Outcome::Committed).then(|| Failure::new(Code::HealthCheckFailed, "no"));
        let last = Last {
            id: id.into(),
            source: Origin::Method,
            result,
            from_version: Some("1".into()),
            to_version: Some("2".into()),
            finished_at: NOW,
            error,
            operation: operation(id),
        };
        Record { history: [vec![last], history].concat(), ..Record::default() }
    }

    fn names(before: &Record, after: &Record) -> Vec<String> {
        between(before, after, NOW).into_iter().map(|event| event.name).collect()
    }

    #[test]
    fn each_step_of_an_update_is_one_event() {
        let trying = |boots| at(on_trial(boots));
        let failure = Failure::new(Code::HealthCheckFailed, "no");
        let back = Phase::RollingBack { plan: plan("a"), failure, tried: true, rebooted: None };
        let steps = [
            (Record::default(), vec![]),
            (at(Phase::Opening { operation: operation("a") }), vec!["accepted"]),
            (at(Phase::Preparing { plan: plan("a") }), vec!["preparing"]),
            (at(Phase::Staging { plan: plan("a") }), vec!["staging"]),
            (Record { downloaded: 5, ..at(Phase::Staging { plan: plan("a") }) }, vec![]),
            (trying(1), vec!["trying"]),
            (trying(2), vec!["trying"]),
            (at(back), vec!["rollingBack"]),
            (ended_as("a", Outcome::RolledBack, vec![]), vec!["rolledBack"]),
        ];
        for pair in steps.windows(2) {
            assert_eq!(names(&pair[0].0, &pair[1].0), pair[1].1, "{:?}", pair[1].0.phase.name());
        }
    }

    #[test]
    fn an_operation_that_makes_way_is_told_before_the_next() {
        let before = at(Phase::Staging { plan: plan("a") });
        let cancelled = ended_as("a", Outcome::Cancelled, vec![]);
        let after = Record { phase: Phase::Opening { operation: operation("b") }, ..cancelled };
        assert_eq!(names(&before, &after), ["cancelled", "accepted"]);
    }

    #[test]
    fn a_body_tells_what_where_and_why() {
        let before = at(on_trial(1));
        let event = &between(&before, &ended_as("a", Outcome::RolledBack, vec![]), NOW)[0];
        assert_eq!(event.code, Some(Code::HealthCheckFailed));
        let expected = json!({
            "schema": "fwupdate.lifecycle.v1", "event": "rolledBack", "operationId": "a", "source": "method",
            "time": "1970-01-01T00:00:00Z", "fromVersion": "1", "toVersion": "2",
            "error": {"code": "HealthCheckFailed", "message": "no"},
        });
        assert_eq!(event.body, expected);
        let trial = &between(&Record::default(), &before, NOW)[0];
        assert_eq!((&trial.body["slot"], &trial.body["attempt"]), (&json!("B"), &json!(1)));
        assert_eq!(trial.name, "trying", "nobody accepted a trial that is found at the start");
    }
}
