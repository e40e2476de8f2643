//! Keeps the record within the file that holds it. Whatever led to it (a caller, a server, a check's output, an
//! older agent, a crafted file), a record that was fitted can be saved: one that could not be would end updating
//! for ever.

use std::collections::BTreeSet;

use time::OffsetDateTime;
use time::macros::datetime;

use super::desired::Desired;
use super::operation::{Extra, ImageInfo, Operation, Phase, Plan};
use super::record::{Abilities, HISTORY, Last, QUARANTINE, Quarantined, Record};
use crate::bounds::{self, cut, cut_front};
use crate::failure::Failure;

/// Most bytes of a record as it is saved; the files hold 64 KiB, header included.
pub const RECORD_LIMIT: usize = 60 * 1024;

/// Unknown fields of one object, encoded bytes.
const EXTRA: usize = 2048;
/// The names of units that had failed, encoded bytes.
const UNITS: usize = 8192;
/// Answers and keys that are kept of the slot that arms a trial.
const ANSWERS: usize = 32;
const KEYS: usize = 16;
/// What JSON puts around a value on its line.
const FRAME: usize = 16;
/// A quarantined image's failure only explains a refusal.
const QUARANTINED: usize = 256;
/// So many outcomes stay before anything else than history goes.
const FEWEST: usize = 4;

impl Record {
    /// Brings every text, list, number and time within its bound, and the whole below [`RECORD_LIMIT`]: of what is
    /// too much the oldest history goes first, the hub's unacknowledged outcomes last.
    pub fn fit(&mut self) {
        fit_phase(&mut self.phase);
        self.history.truncate(HISTORY);
        self.history.iter_mut().for_each(fit_last);
        self.quarantine.truncate(QUARANTINE);
        self.quarantine.iter_mut().for_each(fit_quarantined);
        for slot in [&mut self.slots.a, &mut self.slots.b] {
            slot.image.iter_mut().for_each(fit_image);
            slot.version.iter_mut().for_each(|version| cut(version, bounds::VERSION));
        }
        self.desired.iter_mut().for_each(fit_desired);
        let times = &mut self.times;
        for time in
            [&mut times.download_complete, &mut times.started_applying_image, &mut times.last_firmware_update]
        {
            time.iter_mut().for_each(fit_time);
        }
        self.failed_units = self.failed_units.take().filter(known);
        self.abilities.iter_mut().for_each(fit_abilities);
        fit_extra(&mut self.extra);
        while self.size() > RECORD_LIMIT && self.shed() {}
        self.unreported = self.unreported.min(self.history.len());
    }

    /// Bytes of the record as it is saved.
    fn size(&self) -> usize {
        serde_json::to_vec_pretty(self).map_or(usize::MAX, |body| body.len())
    }

    /// Gives up what can best be spared; false when there is nothing left.
    fn shed(&mut self) -> bool {
        let length = self.history.len();
        if length > self.unreported.max(FEWEST) {
            return self.history.pop().is_some();
        }
        if !self.extra.is_empty() {
            self.extra.clear();
            return true;
        }
        if length > FEWEST {
            return self.history.pop().is_some();
        }
        // What must not be tried again matters more than what was told.
        self.failed_units.take().is_some() || self.history.pop().is_some() || self.quarantine.pop().is_some()
    }
}

/// Names that were cut would be other names: rather none.
fn fit_abilities(abilities: &mut Abilities) {
    abilities.answers.retain(|name, _| name.len() <= bounds::WORD);
    abilities.keys.retain(|id| id.len() <= bounds::WORD);
    while abilities.answers.len() > ANSWERS && abilities.answers.pop_last().is_some() {}
    while abilities.keys.len() > KEYS && abilities.keys.pop_last().is_some() {}
    cut(&mut abilities.compatible, bounds::ID);
    abilities.hub.iter_mut().for_each(|hub| cut(hub, bounds::ID));
    abilities.version.iter_mut().for_each(|version| cut(version, bounds::VERSION));
}

fn fit_phase(phase: &mut Phase) {
    if let Some(plan) = phase.plan_mut() {
        fit_plan(plan);
    } else if let Some(operation) = phase.operation_mut() {
        fit_operation(operation);
    }
    match phase {
        Phase::Arming { boot_id, .. } | Phase::Rebooting { boot_id, .. } => cut(&mut boot_id.0, bounds::WORD),
        Phase::Trying { trial, .. } => cut(&mut trial.boot_id.0, bounds::WORD),
        Phase::RollingBack { failure, rebooted, .. } => {
            fit_failure(failure, bounds::MESSAGE, bounds::EXCERPT);
            rebooted.iter_mut().for_each(|id| cut(&mut id.0, bounds::WORD));
        }
        Phase::Holding { hold, .. } => hold.until.iter_mut().for_each(fit_time),
        _ => {}
    }
}

fn fit_plan(plan: &mut Plan) {
    fit_operation(&mut plan.operation);
    plan.image.iter_mut().for_each(fit_image);
    plan.from_version.iter_mut().for_each(|version| cut(version, bounds::VERSION));
    // One digit in the boot environment.
    plan.tries = plan.tries.clamp(1, 9);
    fit_extra(&mut plan.extra);
}

fn fit_operation(operation: &mut Operation) {
    cut(&mut operation.id, bounds::ID);
    operation.uri.cut(bounds::URI);
    operation.version.iter_mut().for_each(|version| cut(version, bounds::VERSION));
    for time in [&mut operation.not_before, &mut operation.deadline, &mut operation.started_at] {
        time.iter_mut().for_each(fit_time);
    }
    fit_extra(&mut operation.extra);
}

fn fit_image(image: &mut ImageInfo) {
    cut(&mut image.version, bounds::VERSION);
    fit_time(&mut image.created);
}

fn fit_last(last: &mut Last) {
    cut(&mut last.id, bounds::ID);
    for version in [&mut last.from_version, &mut last.to_version] {
        version.iter_mut().for_each(|version| cut(version, bounds::VERSION));
    }
    fit_time(&mut last.finished_at);
    last.error.iter_mut().for_each(|error| fit_failure(error, bounds::MESSAGE, bounds::EXCERPT));
    fit_operation(&mut last.operation);
    last.operation.uri.cut(bounds::TOLD_URI);
    last.operation.extra.clear();
}

fn fit_quarantined(entry: &mut Quarantined) {
    cut(&mut entry.version, bounds::VERSION);
    fit_failure(&mut entry.failure, QUARANTINED, QUARANTINED);
}

fn fit_desired(desired: &mut Desired) {
    desired.version.iter_mut().for_each(|version| cut(version, bounds::VERSION));
    cut(&mut desired.code, bounds::WORD);
    cut(&mut desired.message, bounds::MESSAGE);
    desired.operation.iter_mut().for_each(|id| cut(id, bounds::ID));
}

fn fit_failure(failure: &mut Failure, message: usize, excerpt: usize) {
    cut(&mut failure.message, message);
    if let Some(evidence) = &mut failure.evidence {
        evidence.check.iter_mut().for_each(|check| cut(check, bounds::CHECK));
        evidence.excerpt.iter_mut().for_each(|text| cut_front(text, excerpt));
    }
}

/// A time that cannot be written would make the record one that cannot be saved.
fn fit_time(time: &mut OffsetDateTime) {
    // What is too early by its offset alone has the first year's number.
    let nearest = if time.year() <= *bounds::YEARS.start() { OffsetDateTime::UNIX_EPOCH } else { LATEST };
    *time = bounds::utc(*time).unwrap_or(nearest);
}

const LATEST: OffsetDateTime = datetime!(9999-12-31 23:59:59 UTC);

/// Half a list would make old failures look new: what is too long counts as not known.
fn known(units: &BTreeSet<String>) -> bool {
    let bytes = units.iter().map(|unit| bounds::encoded(unit).saturating_add(FRAME));
    bytes.fold(0, usize::saturating_add) <= UNITS
}

/// Of a newer agent's fields those stay that fit, in their order.
fn fit_extra(extra: &mut Extra) {
    let mut room = EXTRA;
    extra.retain(|key, value| {
        let size = serde_json::to_string_pretty(value).map_or(usize::MAX, |text| text.len());
        let left = room.checked_sub(size.saturating_add(bounds::encoded(key)).saturating_add(FRAME));
        room = left.unwrap_or(room);
        left.is_some()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(n: u8) -> Last {
        let record = include_str!("../../tests/records/0.1.0-trying.json");
        let record: Record = serde_json::from_str(record).unwrap();
        Last { id: n.to_string(), ..record.history[0].clone() }
    }

    /// What `shed` gives up, one after the other.
    fn order(unreported: usize) -> Vec<&'static str> {
        let quarantined = Quarantined {
            sha256: crate::manifest::Digest([1; 32]),
            version: "1".into(),
            failure: Failure::new(crate::failure::Code::Internal, "no"),
            refused: true,
        };
        let mut record = Record {
            history: (0..6).map(last).collect(),
            unreported,
            quarantine: vec![quarantined],
            failed_units: Some(BTreeSet::new()),
            extra: Extra::from([("newer".into(), 1.into())]),
            ..Record::default()
        };
        let mut shed = Vec::new();
        loop {
            let before = record.clone();
            if !record.shed() {
                assert_eq!(record, before);
                return shed;
            }
            let changed = [
                (record.history.len() + 1 == before.history.len(), "history"),
                (record.extra != before.extra, "extra"),
                (record.failed_units != before.failed_units, "units"),
                (record.quarantine != before.quarantine, "quarantine"),
            ];
            shed.extend(changed.into_iter().filter(|(gone, _)| *gone).map(|(_, what)| what));
        }
    }

    #[test]
    fn what_can_best_be_spared_goes_first() {
        let rest = ["units", "history", "history", "history", "history", "quarantine"];
        assert_eq!(order(5), [&["history", "extra", "history"], &rest[..]].concat());
        assert_eq!(order(0), [&["history", "history", "extra"], &rest[..]].concat());
    }

    #[test]
    fn answers_and_keys_are_as_many_and_as_long_as_may_be() {
        let long = |length| "n".repeat(length);
        let names = |count: usize| (0..count).map(|n| n.to_string()).chain([long(bounds::WORD + 1)]);
        let mut abilities = Abilities {
            answers: names(ANSWERS + 1).map(|name| (name, true)).collect(),
            keys: names(KEYS + 1).collect(),
            ..Abilities::default()
        };
        fit_abilities(&mut abilities);
        assert_eq!((abilities.answers.len(), abilities.keys.len()), (32, 16));
        let mut fits = Abilities {
            answers: [(long(bounds::WORD), true)].into(),
            keys: [long(bounds::WORD)].into(),
            ..Abilities::default()
        };
        fit_abilities(&mut fits);
        assert_eq!((fits.answers.len(), fits.keys.len()), (1, 1));
    }

    #[test]
    fn a_time_beyond_the_bounds_becomes_the_nearest_within() {
        for (time, nearest) in [
            (datetime!(0000-01-01 00:00:00 +23:59), OffsetDateTime::UNIX_EPOCH),
            (datetime!(1970-01-01 00:00:00 +01:00), OffsetDateTime::UNIX_EPOCH),
            (datetime!(9999-12-31 23:59:59 -01:00), LATEST),
            (datetime!(2026-01-01 01:00:00 +01:00), datetime!(2026-01-01 00:00:00 UTC)),
        ] {
            let mut fitted = time;
            fit_time(&mut fitted);
            assert_eq!(fitted, nearest, "{time}");
            let mut plan = Plan::unknown(crate::slot::Slot::B);
            plan.operation.deadline = Some(time);
            let mut phase =
                Phase::Holding { plan, hold: super::super::Hold { approved: false, until: Some(time) } };
            fit_phase(&mut phase);
            let Phase::Holding { plan, hold } = phase else { panic!("{phase:?}") };
            assert_eq!((plan.operation.deadline, hold.until), (Some(nearest), Some(nearest)));
        }
    }
}
