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
    let nearest = if time.year() < *bounds::YEARS.start() { OffsetDateTime::UNIX_EPOCH } else { LATEST };
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
