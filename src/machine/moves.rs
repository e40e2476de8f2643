//! The moves that start-up and events share: into a phase, to the commit, back to the old slot, to an end.

use super::operation::{Phase, Plan};
use super::record::{End, Outcome, Record, SlotInfo, SlotState};
use super::turn::{Boot, Effect};
use crate::failure::{Code, Evidence, Failure};
use crate::slot::Slot;

/// The next record, and what is to be done once it is saved.
pub(super) type Step = (Record, Option<Effect>);

/// `verify` is false only when this very run of the agent has read the target back. A record can be forged: what it
/// says of a slot is checked, unless the boot environment says the same.
pub(super) fn arm(record: &Record, boot: &Boot, plan: Plan, verify: bool) -> Step {
    let verify = verify && (plan.rewrite || !vouched_for(boot, plan.target));
    let phase = Phase::Arming { plan: plan.clone(), boot_id: boot.boot_id.clone() };
    let (mut next, effect) = enter(record, phase, Effect::Arm { plan, verify });
    if next.times.started_applying_image.is_none() || !matches!(record.phase, Phase::Arming { .. }) {
        next.times.started_applying_image = Some(boot.now);
    }
    (next, effect)
}

/// The environment names `slot` as it stands: as the proven fallback, or on trial already.
fn vouched_for(boot: &Boot, slot: Slot) -> bool {
    boot.env
        .is_some_and(|env| env.fallback == Some(slot) || env.trial.is_some_and(|trial| trial.slot == slot))
}

/// The new slot is the primary now: it is proven, and the floor rises to it.
pub(super) fn committed(record: &Record, boot: &Boot, plan: &Plan) -> Step {
    let mut next = record.clone();
    let image = plan.image.clone().or_else(|| record.slots.get(plan.target).image.clone());
    next.floor = next.floor.max(image.as_ref().map_or(0, |image| image.security_version));
    next.quarantine.retain(|entry| Some(entry.sha256) != image.as_ref().map(|image| image.sha256));
    let version = record.slots.get(plan.target).version.clone();
    *next.slots.get_mut(plan.target) = SlotInfo { state: SlotState::Proven, image, version };
    next.times.last_firmware_update = Some(boot.now);
    // A trial that no record explains is committed all the same, but nobody asked for it by name.
    let known = !plan.operation.id.is_empty();
    let result = if known { Outcome::Committed } else { Outcome::Unknown };
    next.finish(End { operation: &plan.operation, plan: Some(plan), result, failure: None }, boot.now);
    (next, None)
}

/// Ends an operation that went as far as arming, in the old slot. One that was never tried failed; nothing
/// rolled back.
pub(super) fn back_in_old_slot(
    record: &Record,
    boot: &Boot,
    plan: &Plan,
    failure: Failure,
    tried: bool,
) -> Step {
    let result = if tried { Outcome::RolledBack } else { Outcome::Failed };
    let mut next = record.clone();
    // A rollback whose trial never started leaves a slot that is as proven as it was before.
    if plan.rewrite || tried {
        next.slots.get_mut(plan.target).state = SlotState::Failed;
    }
    next.finish(
        End { operation: &plan.operation, plan: Some(plan), result, failure: Some(failure) },
        boot.now,
    );
    (next, None)
}

/// The failure of a trial that ended in the old slot.
pub(super) fn fell_back(plan: &Plan, boots: u8, tries_left: u8) -> Failure {
    let attempts = plan.tries.saturating_sub(tries_left);
    let message = if boots == 0 {
        "the bootloader gave up on the new slot: the agent started in none of its boots; their serial console or journal \
         tells why"
    } else {
        "the new slot used up its boot attempts without reaching a verdict, and the old slot is back"
    };
    Failure::new(Code::BootloaderFellBack, message)
        .with(Evidence { boot_attempts: Some(attempts), ..Evidence::default() })
}

/// Goes to RollingBack and writes the environment; what the failure says of the image is remembered here,
/// together with the phase, so that no power cut can separate the two.
pub(super) fn roll_back(record: &Record, boot: &Boot, plan: Plan, failure: Failure) -> Step {
    let boots = match &record.phase {
        Phase::Trying { trial, .. } => trial.boots,
        Phase::Committing { .. } => 1,
        _ => 0,
    };
    let tried = boots > 0 || failure.code == Code::BootloaderFellBack;
    let (mut next, effect) = way_back(record, boot, plan.clone(), failure.clone(), tried);
    let image = plan.image.as_ref().map(|image| image.sha256);
    let marked = record.quarantine.iter().any(|entry| Some(entry.sha256) == image);
    match failure.code {
        Code::HealthCheckFailed => next.quarantine(&plan, &failure, true),
        Code::BootloaderFellBack => next.quarantine(&plan, &failure, boots == 0 || marked),
        _ => {}
    }
    (next, effect)
}

/// Goes to RollingBack by the environment or, in a trial without one that can be told, by the count of its boots.
pub(super) fn way_back(record: &Record, boot: &Boot, plan: Plan, failure: Failure, tried: bool) -> Step {
    if boot.trial == Some(plan.target) && !boot.may_revert(plan.target) {
        let rebooted = Some(boot.boot_id.clone());
        return enter(record, Phase::RollingBack { plan, failure, tried, rebooted }, Effect::Reboot);
    }
    let phase = Phase::RollingBack { plan: plan.clone(), failure, tried, rebooted: None };
    enter(record, phase, Effect::Revert(plan))
}

/// Ends an operation of which nothing is armed yet.
pub(super) fn ended_before_arming(record: &Record, boot: &Boot, failure: Failure) -> Step {
    let mut next = record.clone();
    let Some(operation) = record.phase.operation() else { return (next, None) };
    let plan = record.phase.plan();
    if let Some(plan) = plan.filter(|plan| plan.rewrite) {
        next.slots.get_mut(plan.target).state = SlotState::Failed;
    }
    let result = if failure.code == Code::Cancelled { Outcome::Cancelled } else { Outcome::Failed };
    next.finish(End { operation, plan, result, failure: Some(failure) }, boot.now);
    (next, None)
}

/// Enters a phase and issues its effect.
pub(super) fn enter(record: &Record, phase: Phase, effect: Effect) -> Step {
    (with(record, |next| next.phase = phase).0, Some(effect))
}

/// Changes the record, and asks for nothing.
pub(super) fn with(record: &Record, change: impl FnOnce(&mut Record)) -> Step {
    let mut next = record.clone();
    change(&mut next);
    (next, None)
}
