//! The transition function: what an event makes of the record, and what is to be done next. Total and pure:
//! an event that does not fit the phase changes nothing.

use super::desired::Desired;
use super::moves::{Step, arm, back_in_old_slot, committed, ended_before_arming, enter, roll_back, with};
use super::operation::{Hold, Operation, Phase, Plan};
use super::record::{Record, SavedProgress, SlotInfo, SlotState, Times};
use super::start::start;
use super::turn::{Boot, Effect, Event};
use crate::failure::{Code, Failure};

/// Computes the next record and its effect. The caller saves the record, then performs the effect, then
/// comes back with the event that it led to.
pub fn step(record: &Record, boot: &Boot, event: Event) -> Step {
    match event {
        Event::Started | Event::Rebuilt => start(record, boot),
        Event::Requested(operation) => requested(record, *operation),
        Event::RollbackRequested(plan) => rollback_requested(record, boot, *plan),
        Event::Desired { desired, operation } => desired_section(record, desired, operation),
        Event::Opened(plan) => opened(record, boot, *plan),
        Event::Failed(failure) => failed(record, boot, failure),
        Event::Abandoned(failure) if record.phase.can_cancel() => ended_before_arming(record, boot, failure),
        Event::SaveFailed(failure) => save_failed(record, boot, failure),
        Event::Acknowledged => with(record, |next| next.unreported = next.unreported.saturating_sub(1)),
        Event::Denied => with(record, Record::absolve),
        event => advanced(record, boot, event),
    }
}

/// An effect succeeded: the phase that issued it moves on.
fn advanced(record: &Record, boot: &Boot, event: Event) -> Step {
    match (record.phase.clone(), event) {
        (Phase::Preparing { plan }, Event::Prepared) => {
            enter(record, Phase::Staging { plan: plan.clone() }, Effect::Stage(plan))
        }
        (Phase::Staging { plan }, Event::Staged { hold }) => staged(record, boot, plan, hold),
        (Phase::Holding { plan, .. }, Event::HoldChanged(hold)) => {
            let phase = Phase::Holding { plan: plan.clone(), hold: hold.clone() };
            enter(record, phase, Effect::Hold(plan, hold))
        }
        // A slot that waited may have been touched since it was read back.
        (Phase::Holding { plan, .. }, Event::Released) => arm(record, boot, plan, true),
        (Phase::Arming { plan, .. }, Event::Armed { connected, failed_units, abilities }) => {
            let left = !plan.target;
            let phase = Phase::Rebooting { plan, boot_id: boot.boot_id.clone(), connected };
            let (mut next, effect) = enter(record, phase, Effect::Reboot);
            next.failed_units = failed_units;
            next.slots.get_mut(left).version = abilities.as_ref().and_then(|known| known.version.clone());
            next.abilities = abilities;
            (next, effect)
        }
        (Phase::Trying { plan, .. }, Event::ChecksPassed) => {
            enter(record, Phase::Committing { plan: plan.clone() }, Effect::Commit(plan))
        }
        // They were asked again, after a restart.
        (Phase::Committing { plan }, Event::ChecksPassed) => (record.clone(), Some(Effect::Commit(plan))),
        (Phase::Committing { plan }, Event::Committed) => committed(record, boot, &plan),
        (Phase::RollingBack { plan, failure, tried, .. }, Event::Reverted) => {
            reverted(record, boot, plan, failure, tried)
        }
        _ => (record.clone(), None),
    }
}

/// What the record tells of an operation that only begins.
fn begun(record: &Record) -> Record {
    let mut next = record.clone();
    next.desired.iter_mut().for_each(Desired::superseded);
    next.downloaded = 0;
    next.progress = SavedProgress::default();
    next.times = Times { last_firmware_update: record.times.last_firmware_update, ..Times::default() };
    next
}

fn requested(record: &Record, operation: Operation) -> Step {
    if !record.phase.is_idle() {
        return (record.clone(), None);
    }
    enter(&begun(record), Phase::Opening { operation: operation.clone() }, Effect::Open(operation))
}

/// Section and operation are remembered at once, so that no power cut makes the section act twice.
fn desired_section(record: &Record, desired: Option<Desired>, operation: Option<Box<Operation>>) -> Step {
    let Some(operation) = operation else { return with(record, |next| next.desired = desired) };
    if !record.phase.is_idle() {
        return (record.clone(), None);
    }
    let desired = desired.map(|desired| Desired { operation: Some(operation.id.clone()), ..desired });
    let (mut next, effect) = requested(record, *operation);
    next.desired = desired;
    (next, effect)
}

fn rollback_requested(record: &Record, boot: &Boot, plan: Plan) -> Step {
    let proven = record.slots.get(plan.target).state == SlotState::Proven;
    if !record.phase.is_idle() || boot.booted != Some(!plan.target) || !proven {
        return (record.clone(), None);
    }
    arm(&begun(record), boot, plan, true)
}

fn opened(record: &Record, boot: &Boot, plan: Plan) -> Step {
    match &record.phase {
        Phase::Opening { operation } if operation.id == plan.operation.id => {}
        _ => return (record.clone(), None),
    }
    if boot.booted != Some(!plan.target) {
        let failure =
            Failure::new(Code::NotReady, "the running slot is not known for sure: nothing was changed");
        return failed(record, boot, failure);
    }
    let (mut next, effect) =
        enter(record, Phase::Preparing { plan: plan.clone() }, Effect::Prepare(plan.clone()));
    *next.slots.get_mut(plan.target) = SlotInfo { state: SlotState::Writing, ..SlotInfo::default() };
    (next, effect)
}

fn staged(record: &Record, boot: &Boot, plan: Plan, hold: Option<Hold>) -> Step {
    let image = plan.image.clone();
    let target = plan.target;
    let (mut next, effect) = match hold {
        Some(hold) => {
            let phase = Phase::Holding { plan: plan.clone(), hold: hold.clone() };
            enter(record, phase, Effect::Hold(plan, hold))
        }
        None => arm(record, boot, plan, false),
    };
    next.times.download_complete = Some(boot.now);
    next.slots.get_mut(target).image = image;
    (next, effect)
}

/// The environment names the old slot again: go there, or, when already there, say so.
fn reverted(record: &Record, boot: &Boot, plan: Plan, failure: Failure, tried: bool) -> Step {
    if boot.booted.or(boot.trial) == Some(plan.target) {
        let rebooted = Some(boot.boot_id.clone());
        return enter(record, Phase::RollingBack { plan, failure, tried, rebooted }, Effect::Reboot);
    }
    back_in_old_slot(record, boot, &plan, failure, tried)
}

fn failed(record: &Record, boot: &Boot, failure: Failure) -> Step {
    match record.phase.clone() {
        phase if phase.can_cancel() => ended_before_arming(record, boot, failure),
        Phase::RollingBack { plan, rebooted: None, failure, tried } => {
            not_reverted(record, boot, plan, failure, tried)
        }
        Phase::RollingBack { rebooted: Some(_), .. } => (record.clone(), Some(Effect::Reboot)),
        // What was to be written may have been written all the same: only a second write makes sure.
        phase => match phase.plan() {
            Some(plan) => roll_back(record, boot, plan.clone(), failure),
            None => (record.clone(), None),
        },
    }
}

/// The way back could not be written.
fn not_reverted(record: &Record, boot: &Boot, plan: Plan, failure: Failure, tried: bool) -> Step {
    // Each boot of a trial is counted: the last of them leads back. And whether an environment is lost for the
    // bootloader too, it says at the next boot.
    let lost = boot.env.is_none() && boot.booted == Some(plan.target);
    if lost || boot.trial == Some(plan.target) {
        let rebooted = Some(boot.boot_id.clone());
        return enter(record, Phase::RollingBack { plan, failure, tried, rebooted }, Effect::Reboot);
    }
    // Without an environment nothing is armed.
    if boot.env.is_none() && boot.booted == Some(!plan.target) {
        return back_in_old_slot(record, boot, &plan, failure, tried);
    }
    // There is no other way out than the way back: the caller waits a little, then tries again.
    (record.clone(), Some(Effect::Revert(plan)))
}

/// `record` is the one that could not be saved, and its effect was not performed. The environment may be armed already:
/// a reboot now would go where no record tells why.
fn save_failed(record: &Record, boot: &Boot, failure: Failure) -> Step {
    if record.phase.must_be_saved() { failed(record, boot, failure) } else { (record.clone(), None) }
}
