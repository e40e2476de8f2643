//! What start-up does, whatever the record says: what is really booted and what the boot environment says
//! outrank it. One function a row of the table in docs/architecture.md.

use super::moves::{
    Step, arm, back_in_old_slot, committed, ended_before_arming, enter, fell_back, roll_back, way_back, with,
};
use super::operation::{Phase, Plan, Trial};
use super::record::{End, Outcome, Record, SlotState};
use super::turn::{Boot, Effect};
use crate::failure::{Code, Failure};
use crate::slot::{Armed, BootEnv, Slot};

/// Reconciles the record with the world and issues the phase's effect again.
pub(super) fn start(record: &Record, boot: &Boot) -> Step {
    let Some(booted) = boot.booted else { return unsure(record, boot) };
    match boot.env {
        None if boot.rebuild && boot.trial.is_none() => environment_lost(record, booted),
        None => unsure(record, boot),
        Some(BootEnv { trial: Some(trial), .. }) if trial.slot == booted => on_trial(record, boot, booted),
        Some(env) if env.primary == booted && belied(record, boot, booted) => unsure(record, boot),
        Some(_) if boot.trial == Some(booted) && is_given_up(record, booted) => unsure(record, boot),
        Some(BootEnv { trial: Some(trial), .. }) => trial_elsewhere(record, boot, trial),
        Some(env) if env.primary == booted => on_primary(record, boot, booted),
        Some(env) => astray(record, boot, booted, &env),
    }
}

/// The witnesses disagree, or there is no environment: touch nothing. A trial that the boot script began gets a
/// verdict all the same: its checks find what is wrong, and each of its boots was counted.
fn unsure(record: &Record, boot: &Boot) -> Step {
    match boot.trial {
        Some(slot) if !known_good(record, &record.phase, slot) => on_trial(record, boot, slot),
        _ => (record.clone(), None),
    }
}

/// `slot` has proven itself before, and it is not what runs now that has to.
fn known_good(record: &Record, phase: &Phase, slot: Slot) -> bool {
    let mine = phase.plan().is_some_and(|plan| plan.target == slot);
    !mine && record.slots.get(slot).state == SlotState::Proven
}

/// Whether a verdict stands: the running slot boots from now on, by an environment that can be believed.
pub fn is_decided(record: &Record, boot: &Boot) -> bool {
    let stands = |booted| !belied(record, boot, booted) && !is_given_up(record, booted);
    boot.is_proven() && boot.booted.is_some_and(stands)
}

/// The verdict against `slot` was reached, and the way back from it is under way.
fn is_given_up(record: &Record, slot: Slot) -> bool {
    matches!(&record.phase, Phase::RollingBack { plan, .. } if plan.target == slot)
}

/// The environment has the booted slot for committed, the boot script tries it, and nothing here committed it:
/// this is not the environment that the bootloader reads.
fn belied(record: &Record, boot: &Boot, booted: Slot) -> bool {
    let undecided = match &record.phase {
        Phase::Committing { .. } | Phase::RollingBack { .. } | Phase::Idle => false,
        Phase::Unknown => true,
        phase => phase.plan().is_some_and(|plan| plan.target == booted),
    };
    boot.trial == Some(booted) && undecided
}

/// The booted slot is the one on trial: never arm again, reach a verdict.
fn on_trial(record: &Record, boot: &Boot, booted: Slot) -> Step {
    match record.phase.clone() {
        Phase::RollingBack { plan, failure, tried, .. } if plan.target == booted => {
            way_back(record, boot, plan, failure, tried)
        }
        // A record can be forged: whoever says that the checks passed shows it in this boot.
        Phase::Committing { plan } if plan.target == booted => {
            (record.clone(), Some(Effect::Check(plan, first_of_boot(boot, 0, false))))
        }
        phase => match phase.plan() {
            Some(plan) if plan.target == booted && !matches!(phase, Phase::Preparing { .. }) => {
                trying(record, boot, plan.clone())
            }
            // Also a slot that the record calls proven has to show it, where an older environment came back.
            _ => trying(&overtaken(record, boot), boot, Plan::unknown(booted)),
        },
    }
}

/// An older environment came back and started a trial that is not this operation's: the operation ends.
fn overtaken(record: &Record, boot: &Boot) -> Record {
    let failure = Failure::new(
        Code::BootloaderFailed,
        "an older boot environment came back and started the other slot; start the update again",
    );
    let mut next = record.clone();
    if let Some(operation) = record.phase.operation() {
        let (plan, result) = (record.phase.plan(), Outcome::Failed);
        next.finish(End { operation, plan, result, failure: Some(failure) }, boot.now);
    }
    next
}

fn trying(record: &Record, boot: &Boot, plan: Plan) -> Step {
    let trial = match &record.phase {
        // The agent was restarted: the boot is the same.
        Phase::Trying { trial, .. } if trial.boot_id == boot.boot_id => {
            // A time still to come would put the verdict off for as long as the record says.
            Trial { since: trial.since.min(boot.uptime), ..trial.clone() }
        }
        Phase::Trying { trial, .. } => first_of_boot(boot, trial.boots, trial.connected),
        Phase::Rebooting { connected, .. } => first_of_boot(boot, 0, *connected),
        _ => first_of_boot(boot, 0, false),
    };
    let phase = Phase::Trying { plan: plan.clone(), trial: trial.clone() };
    enter(record, phase, Effect::Check(plan, trial))
}

fn first_of_boot(boot: &Boot, boots_before: u8, connected: bool) -> Trial {
    let boots = boots_before.saturating_add(1);
    Trial { boot_id: boot.boot_id.clone(), since: boot.uptime, boots, connected }
}

/// The other slot is on trial and this one runs: the reboot is still to come, or it led back here.
fn trial_elsewhere(record: &Record, boot: &Boot, trial: Armed) -> Step {
    let mine = record.phase.plan().filter(|plan| plan.target == trial.slot).cloned();
    let Some(plan) = mine else { return unexplained_trial(record, boot, trial) };
    let as_armed = trial.tries >= plan.tries;
    match record.phase.clone() {
        Phase::Arming { boot_id, .. } if as_armed && boot_id == boot.boot_id => arm(record, boot, plan, true),
        Phase::Rebooting { boot_id, .. } if as_armed && boot_id == boot.boot_id => {
            (record.clone(), Some(Effect::Reboot))
        }
        Phase::Arming { .. } | Phase::Rebooting { .. } if as_armed => {
            roll_back(record, boot, plan, never_tried())
        }
        Phase::Arming { .. } | Phase::Rebooting { .. } | Phase::Committing { .. } => {
            let failure = fell_back(&plan, 0, trial.tries);
            roll_back(record, boot, plan, failure)
        }
        Phase::Trying { trial: seen, .. } => {
            let failure = fell_back(&plan, seen.boots, trial.tries);
            roll_back(record, boot, plan, failure)
        }
        Phase::RollingBack { .. } => (record.clone(), Some(Effect::Revert(plan))),
        // Nothing was armed by this operation: an older environment came back.
        _ => (record.clone(), Some(Effect::Rebuild(plan.env_before()))),
    }
}

/// A trial that this record's operation did not arm.
fn unexplained_trial(record: &Record, boot: &Boot, trial: Armed) -> Step {
    let plan = Plan::unknown(trial.slot);
    if matches!(record.phase, Phase::Unknown) {
        let failure = fell_back(&plan, 0, trial.tries);
        return roll_back(record, boot, plan, failure);
    }
    (record.clone(), Some(Effect::Rebuild(plan.env_before())))
}

/// The booted slot is the primary and nothing is on trial.
fn on_primary(record: &Record, boot: &Boot, booted: Slot) -> Step {
    match record.phase.clone() {
        Phase::Idle | Phase::Unknown => settled(record, booted),
        Phase::Opening { operation } => (record.clone(), Some(Effect::Open(operation))),
        phase => match phase.plan() {
            Some(plan) if plan.target == booted => on_committed(record, boot, plan),
            Some(plan) => go_on(record, boot, plan.clone(), phase.clone()),
            None => settled(record, booted),
        },
    }
}

/// Nothing to do; a primary is always a proven slot, so an agent that is new here learns that.
fn settled(record: &Record, booted: Slot) -> Step {
    with(record, |next| {
        next.phase = Phase::Idle;
        next.slots.get_mut(booted).state = SlotState::Proven;
    })
}

/// The target runs and is the primary: it was committed, whatever was saved of it.
fn on_committed(record: &Record, boot: &Boot, plan: &Plan) -> Step {
    if !record.phase.can_cancel() {
        return committed(record, boot, plan);
    }
    // Nothing of this operation can have booted: something else made its target the running slot.
    let message = "the target became the running slot before it was tried; start the update again";
    let failure = Failure::new(Code::SlotBusy, message);
    let (mut next, effect) = ended_before_arming(record, boot, failure);
    next.slots.get_mut(plan.target).state = SlotState::Proven;
    (next, effect)
}

/// The old slot runs, proven, and the environment knows of no trial.
fn go_on(record: &Record, boot: &Boot, plan: Plan, phase: Phase) -> Step {
    match phase {
        Phase::Preparing { .. } => (record.clone(), Some(Effect::Prepare(plan))),
        Phase::Staging { .. } => (record.clone(), Some(Effect::Stage(plan))),
        Phase::Holding { hold, .. } => (record.clone(), Some(Effect::Hold(plan, hold))),
        Phase::Arming { .. } => arm(record, boot, plan, true),
        Phase::RollingBack { failure, tried, .. } => back_in_old_slot(record, boot, &plan, failure, tried),
        Phase::Trying { trial, .. } => {
            let failure = fell_back(&plan, trial.boots, 0);
            let (marked, _) = roll_back(record, boot, plan.clone(), failure.clone());
            back_in_old_slot(&marked, boot, &plan, failure, true)
        }
        Phase::Committing { .. } => {
            let failure = fell_back(&plan, 1, 0);
            back_in_old_slot(record, boot, &plan, failure, true)
        }
        _ => back_in_old_slot(record, boot, &plan, trial_vanished(), false),
    }
}

/// The booted slot is neither the primary nor on trial: degraded.
fn astray(record: &Record, boot: &Boot, booted: Slot, env: &BootEnv) -> Step {
    match record.phase.clone() {
        Phase::RollingBack { plan, failure, tried, rebooted } if plan.target == booted => {
            // Ordered once already under another boot: ordering it again would go round for ever.
            if rebooted.as_ref().is_some_and(|id| *id != boot.boot_id) {
                return no_way_back(record, boot, &plan, failure);
            }
            let rebooted = Some(boot.boot_id.clone());
            enter(record, Phase::RollingBack { plan, failure, tried, rebooted }, Effect::Reboot)
        }
        Phase::Opening { operation } => (record.clone(), Some(Effect::Open(operation))),
        Phase::Idle | Phase::Unknown => idle(record),
        phase => match phase.plan() {
            // The trial was given up already, and the record of that could not be saved: go on to the old slot.
            Some(plan) if plan.target == booted => {
                let (plan, failure, rebooted) = (plan.clone(), trial_vanished(), Some(boot.boot_id.clone()));
                enter(record, Phase::RollingBack { plan, failure, tried: true, rebooted }, Effect::Reboot)
            }
            Some(plan) if phase.must_be_saved() && plan.rewrite && plan.target == env.primary => {
                enter(record, Phase::Preparing { plan: plan.clone() }, Effect::Prepare(plan.clone()))
            }
            // The target was made the primary and the bootloader could not load it.
            Some(plan) => back_in_old_slot(record, boot, plan, fell_back(plan, 1, 0), true),
            None => idle(record),
        },
    }
}

fn idle(record: &Record) -> Step {
    with(record, |next| next.phase = Phase::Idle)
}

fn no_way_back(record: &Record, boot: &Boot, plan: &Plan, failure: Failure) -> Step {
    let message = format!(
        "{}; the bootloader then did not return to slot {}, so the gateway still runs the failed slot {}",
        failure.message, !plan.target, plan.target
    );
    let failure = Failure { message, ..failure };
    back_in_old_slot(record, boot, plan, failure, false)
}

/// No copy of the environment is valid, and the bootloader says so too: write what is booted, without ever naming
/// an unproven slot primary.
fn environment_lost(record: &Record, booted: Slot) -> Step {
    match record.phase.clone() {
        Phase::RollingBack { plan, .. } if plan.target == booted => {
            (record.clone(), Some(Effect::Rebuild(plan.env_before())))
        }
        phase => {
            let mine = phase.plan().is_some_and(|plan| plan.target == booted);
            let begun = !matches!(phase, Phase::Preparing { .. });
            let proven = |slot| record.slots.get(slot).state == SlotState::Proven;
            let on_trial = mine && begun || !proven(booted) && proven(!booted);
            let env = if on_trial { Plan::unknown(booted).env_armed() } else { BootEnv::only(booted) };
            (record.clone(), Some(Effect::Rebuild(env)))
        }
    }
}

fn never_tried() -> Failure {
    Failure::new(
        Code::BootloaderFailed,
        "the bootloader started the old slot without trying the new one; check that it runs the fwupdate boot \
         script, and that it can read and write the environment named in [bootloader]",
    )
}

fn trial_vanished() -> Failure {
    Failure::new(
        Code::BootloaderFailed,
        "the trial is gone from the boot environment and no verdict was recorded here: either the new image could not \
         write this state folder or has another one (check its state.dir, and how it mounts that partition), or \
         somebody edited the environment, or [bootloader] in the settings leads to another environment than the \
         bootloader reads",
    )
}
