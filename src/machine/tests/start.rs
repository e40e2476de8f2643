//! What a start does, row by row of the table in docs/architecture.md: phase, boot and environment against the effect.

use super::*;
use crate::slot::Armed;

/// Another boot than the one that is examined.
const BEFORE: &str = "b0";
const NOW: &str = "b1";

fn id(text: &str) -> BootId {
    BootId(text.into())
}

fn arming(boot_id: &str) -> Phase {
    Phase::Arming { plan: plan(), boot_id: id(boot_id) }
}

fn rebooting(boot_id: &str) -> Phase {
    Phase::Rebooting { plan: plan(), boot_id: id(boot_id), connected: true }
}

fn rolling_back(rebooted: Option<&str>) -> Phase {
    let failure = Failure::new(Code::HealthCheckFailed, "the check failed");
    Phase::RollingBack { plan: plan(), failure, tried: true, rebooted: rebooted.map(id) }
}

fn staging() -> Phase {
    Phase::Staging { plan: plan() }
}

fn committing() -> Phase {
    Phase::Committing { plan: plan() }
}

/// Late phases of an operation whose target is the slot that was left.
fn elsewhere() -> [Phase; 2] {
    let plan = Plan { target: Slot::A, ..plan() };
    let failure = Failure::new(Code::HealthCheckFailed, "the check failed");
    let back = Phase::RollingBack { plan: plan.clone(), failure, tried: true, rebooted: None };
    [back, Phase::Committing { plan }]
}

fn trying() -> Phase {
    record().phase
}

/// What the environment says after so many boots of the trial.
fn tried(boots: u8) -> BootEnv {
    let armed = plan().env_armed();
    let trial = Armed { slot: Slot::B, tries: plan().tries - boots };
    BootEnv { trial: Some(trial), ..armed }
}

/// The record after a start in this phase, and what is to be done.
fn started(phase: Phase, boot: &Boot) -> (Record, Option<Effect>) {
    step(&Record { phase, ..record() }, boot, Event::Started)
}

fn code(record: &Record) -> Option<Code> {
    match &record.phase {
        Phase::RollingBack { failure, .. } => Some(failure.code),
        _ => record.last().and_then(|last| last.error.as_ref()).map(|error| error.code),
    }
}

fn ended(record: &Record) -> Option<(Outcome, Option<Code>)> {
    let ended = record.phase.is_idle() && record.last()?.id == plan().operation.id;
    ended.then(|| (record.last().unwrap().result, code(record)))
}

#[test]
fn a_trial_that_runs_gets_a_verdict() {
    let on_trial = boot(Slot::B, tried(1));
    for phase in [trying(), rebooting(BEFORE), arming(BEFORE), staging()] {
        let (next, effect) = started(phase, &on_trial);
        assert!(matches!(effect, Some(Effect::Check(found, _)) if found == plan()), "{next:?}");
    }
    // The boots are counted, and what the old slot could do is not forgotten.
    let seen = |phase| match started(phase, &on_trial).0.phase {
        Phase::Trying { trial, .. } => (trial.boots, trial.connected),
        other => panic!("{other:?}"),
    };
    let trial = |boot_id: &str| Trial { boot_id: id(boot_id), since: 0, boots: 2, connected: true };
    assert_eq!(seen(Phase::Trying { plan: plan(), trial: trial(NOW) }), (2, true));
    assert_eq!(seen(Phase::Trying { plan: plan(), trial: trial(BEFORE) }), (3, true));
    assert_eq!(seen(rebooting(BEFORE)), (1, true));
    assert_eq!(seen(arming(BEFORE)), (1, false));
    // Nothing of this operation can be on trial yet: it ends, and the slot is judged for itself.
    for phase in [Phase::Preparing { plan: plan() }, Phase::Idle] {
        let is_idle = phase.is_idle();
        let (next, effect) = started(phase, &on_trial);
        assert!(matches!(effect, Some(Effect::Check(found, _)) if found == Plan::unknown(Slot::B)));
        assert_eq!(next.last().unwrap().id == plan().operation.id, !is_idle);
    }
    assert!(matches!(started(rolling_back(None), &on_trial).1, Some(Effect::Revert(_))));
    // The operation was about the other slot: whatever it had come to, this one is judged for itself.
    for phase in elsewhere() {
        let (next, effect) = started(phase, &on_trial);
        assert!(matches!(effect, Some(Effect::Check(found, _)) if found == Plan::unknown(Slot::B)));
        assert_eq!(next.last().unwrap().id, plan().operation.id);
    }
}

#[test]
fn a_trial_by_the_boot_scripts_word_is_judged_unless_its_slot_is_proven() {
    let unsure = Boot { booted: None, trial: Some(Slot::B), ..boot(Slot::B, tried(1)) };
    assert!(matches!(started(trying(), &unsure).1, Some(Effect::Check(..))));
    let with = |phase, state| {
        let mut record = Record { phase, ..record() };
        record.slots.b.state = state;
        step(&record, &unsure, Event::Started).1
    };
    assert!(matches!(with(Phase::Idle, SlotState::Unknown), Some(Effect::Check(..))));
    assert_eq!(with(Phase::Idle, SlotState::Proven), None);
    assert!(
        matches!(with(trying(), SlotState::Proven), Some(Effect::Check(..))),
        "it is what has to prove itself"
    );
    assert_eq!(started(trying(), &Boot { booted: None, ..boot(Slot::B, tried(1)) }).1, None);
}

#[test]
fn an_environment_that_the_bootloader_does_not_read_is_not_believed() {
    let committed = Boot { trial: Some(Slot::B), ..boot(Slot::B, plan().env_committed()) };
    for phase in [trying(), rebooting(BEFORE), Phase::Unknown] {
        assert!(matches!(started(phase, &committed).1, Some(Effect::Check(..))));
    }
    for phase in [committing(), Phase::Idle] {
        assert_eq!(started(phase, &committed).1, None);
    }
    // A verdict stands, whatever an environment says that is not the bootloader's.
    let (next, effect) = started(rolling_back(None), &committed);
    assert_eq!(effect, Some(Effect::Reboot));
    assert!(matches!(next.phase, Phase::RollingBack { rebooted: Some(_), .. }));
    assert!(is_decided(&Record { phase: committing(), ..record() }, &committed));
    for phase in [trying(), rolling_back(None)] {
        assert!(!is_decided(&Record { phase, ..record() }, &committed));
    }
    let idle = Record { phase: Phase::Idle, ..record() };
    assert!(is_decided(&idle, &boot(Slot::A, BootEnv::only(Slot::A))));
    assert!(!is_decided(&idle, &boot(Slot::B, BootEnv::only(Slot::A))));
    let unknown = Boot { booted: None, env: None, ..committed };
    assert!(!unknown.is_proven() && !is_decided(&idle, &unknown));
}

#[test]
fn a_lost_environment_names_no_unproven_slot() {
    let rebuilt = |phase, booted, proven: [bool; 2]| {
        let mut record = Record { phase, ..record() };
        for (slot, proven) in [(Slot::A, proven[0]), (Slot::B, proven[1])] {
            record.slots.get_mut(slot).state = if proven { SlotState::Proven } else { SlotState::Unknown };
        }
        let lost = Boot { env: None, rebuild: true, ..boot(booted, BootEnv::only(booted)) };
        let (next, effect) = step(&record, &lost, Event::Started);
        assert_eq!(next, record);
        let tried = Boot { trial: Some(booted), ..lost.clone() };
        assert!(!matches!(step(&record, &tried, Event::Started).1, Some(Effect::Rebuild(_))));
        let kept = Boot { rebuild: false, ..lost };
        assert_eq!(step(&record, &kept, Event::Started).1, None);
        match effect {
            Some(Effect::Rebuild(env)) => (env.primary, env.trial.map(|trial| trial.slot)),
            other => panic!("{other:?}"),
        }
    };
    let preparing = || Phase::Preparing { plan: plan() };
    assert_eq!(rebuilt(Phase::Idle, Slot::A, [true, false]), (Slot::A, None));
    assert_eq!(rebuilt(Phase::Idle, Slot::A, [false, false]), (Slot::A, None));
    assert_eq!(rebuilt(Phase::Idle, Slot::B, [true, true]), (Slot::B, None));
    assert_eq!(rebuilt(Phase::Idle, Slot::B, [true, false]), (Slot::A, Some(Slot::B)));
    assert_eq!(rebuilt(trying(), Slot::B, [true, true]), (Slot::A, Some(Slot::B)));
    assert_eq!(rebuilt(preparing(), Slot::B, [true, true]), (Slot::B, None));
    assert_eq!(rebuilt(trying(), Slot::A, [true, false]), (Slot::A, None));
    assert_eq!(rebuilt(rolling_back(None), Slot::B, [true, true]), (Slot::A, None));
    let [other, _] = elsewhere();
    assert_eq!(rebuilt(other, Slot::B, [true, false]), (Slot::A, Some(Slot::B)));
}

#[test]
fn a_trial_that_is_not_this_boot_was_tried_or_was_not() {
    let armed = boot(Slot::A, tried(0));
    assert_eq!(started(arming(NOW), &armed).1, Some(Effect::Arm { plan: plan(), verify: true }));
    assert_eq!(started(rebooting(NOW), &armed).1, Some(Effect::Reboot));
    for phase in [arming(BEFORE), rebooting(BEFORE)] {
        let (next, effect) = started(phase, &armed);
        assert_eq!((code(&next), effect), (Some(Code::BootloaderFailed), Some(Effect::Revert(plan()))));
        assert_eq!(next.quarantine, []);
    }
    let tried = boot(Slot::A, tried(1));
    for phase in [arming(NOW), rebooting(NOW), committing(), trying()] {
        let (next, effect) = started(phase, &tried);
        assert_eq!((code(&next), effect), (Some(Code::BootloaderFellBack), Some(Effect::Revert(plan()))));
    }
    let (next, effect) = started(rolling_back(None), &tried);
    assert_eq!((code(&next), effect), (Some(Code::HealthCheckFailed), Some(Effect::Revert(plan()))));
    for phase in [staging(), Phase::Idle] {
        assert_eq!(started(phase, &tried).1, Some(Effect::Rebuild(plan().env_before())));
    }
    let (next, effect) = started(Phase::Unknown, &tried);
    assert_eq!(code(&next), Some(Code::BootloaderFellBack));
    assert!(matches!(effect, Some(Effect::Revert(plan)) if plan == Plan::unknown(Slot::B)));
}

#[test]
fn in_the_old_slot_what_had_begun_goes_on_or_ends() {
    let old = boot(Slot::A, BootEnv::only(Slot::A));
    let operation = plan().operation;
    let hold = Hold { approved: true, until: None };
    for (phase, effect) in [
        (Phase::Opening { operation: operation.clone() }, Effect::Open(operation)),
        (Phase::Preparing { plan: plan() }, Effect::Prepare(plan())),
        (staging(), Effect::Stage(plan())),
        (Phase::Holding { plan: plan(), hold: hold.clone() }, Effect::Hold(plan(), hold)),
        (arming(BEFORE), Effect::Arm { plan: plan(), verify: true }),
    ] {
        assert_eq!(started(phase, &old).1, Some(effect));
    }
    for (phase, outcome, code) in [
        (rebooting(BEFORE), Outcome::Failed, Code::BootloaderFailed),
        (trying(), Outcome::RolledBack, Code::BootloaderFellBack),
        (committing(), Outcome::RolledBack, Code::BootloaderFellBack),
        (rolling_back(None), Outcome::RolledBack, Code::HealthCheckFailed),
    ] {
        let (next, effect) = started(phase, &old);
        assert_eq!((ended(&next), effect), (Some((outcome, Some(code))), None));
    }
    for phase in [Phase::Idle, Phase::Unknown] {
        let mut record = Record { phase, ..record() };
        record.slots.a.state = SlotState::Unknown;
        let (next, effect) = step(&record, &old, Event::Started);
        assert_eq!((next.phase, next.slots.a.state, effect), (Phase::Idle, SlotState::Proven, None));
    }
}

#[test]
fn a_target_that_is_the_primary_was_committed_if_it_was_armed() {
    let new = boot(Slot::B, plan().env_committed());
    for phase in [trying(), committing(), rebooting(BEFORE)] {
        assert_eq!(ended(&started(phase, &new).0), Some((Outcome::Committed, None)));
    }
    let (next, _) = started(staging(), &new);
    assert_eq!(ended(&next), Some((Outcome::Failed, Some(Code::SlotBusy))));
    assert_eq!(next.slots.b.state, SlotState::Proven);
}

#[test]
fn a_slot_that_is_neither_primary_nor_on_trial_is_left_or_told_of() {
    let astray = boot(Slot::B, BootEnv::only(Slot::A));
    for phase in [rolling_back(None), rolling_back(Some(NOW)), trying()] {
        let (next, effect) = started(phase, &astray);
        assert_eq!(effect, Some(Effect::Reboot));
        assert!(
            matches!(next.phase, Phase::RollingBack { rebooted: Some(at), tried: true, .. } if at == id(NOW))
        );
    }
    let (next, effect) = started(rolling_back(Some(BEFORE)), &astray);
    assert_eq!((ended(&next), effect), (Some((Outcome::Failed, Some(Code::HealthCheckFailed))), None));
    assert!(next.last().unwrap().error.as_ref().unwrap().message.contains("did not return to slot A"));
    let operation = plan().operation;
    let opening = Phase::Opening { operation: operation.clone() };
    assert_eq!(started(opening, &astray).1, Some(Effect::Open(operation)));
    for phase in [Phase::Idle, Phase::Unknown] {
        let (next, effect) = started(phase, &astray);
        assert_eq!((next.phase, effect), (Phase::Idle, None));
    }
    for phase in elsewhere() {
        let (next, effect) = started(phase, &astray);
        assert_eq!(
            (ended(&next), effect),
            (Some((Outcome::RolledBack, Some(Code::BootloaderFellBack))), None)
        );
    }
    // The other slot runs, and the target is the primary: written again only if nothing was armed.
    let fell_back = boot(Slot::A, BootEnv::only(Slot::B));
    assert_eq!(started(staging(), &fell_back).1, Some(Effect::Prepare(plan())));
    let kept = Plan { rewrite: false, ..plan() };
    for phase in [trying(), Phase::Arming { plan: kept, boot_id: id(NOW) }] {
        let (next, effect) = started(phase, &fell_back);
        assert_eq!(
            (ended(&next), effect),
            (Some((Outcome::RolledBack, Some(Code::BootloaderFellBack))), None)
        );
    }
}
