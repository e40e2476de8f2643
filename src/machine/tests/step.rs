//! What an event leads to where it fits, and that it leads to nothing where it does not.

use super::*;
use crate::slot::Armed;

fn failure(code: Code) -> Failure {
    Failure::new(code, "no")
}

/// The step of a record in this phase.
fn after(phase: Phase, boot: &Boot, event: Event) -> (Record, Option<Effect>) {
    step(&Record { phase, ..record() }, boot, event)
}

fn rolling_back(rebooted: Option<BootId>) -> Phase {
    Phase::RollingBack { plan: plan(), failure: failure(Code::HealthCheckFailed), tried: true, rebooted }
}

fn opening() -> Phase {
    Phase::Opening { operation: plan().operation }
}

fn staging() -> Phase {
    Phase::Staging { plan: plan() }
}

fn arming() -> Phase {
    Phase::Arming { plan: plan(), boot_id: BootId("b1".into()) }
}

fn outcome(record: &Record) -> Option<Outcome> {
    let last = record.last().filter(|last| last.id == plan().operation.id)?;
    record.phase.is_idle().then_some(last.result)
}

/// The new slot runs, and its trial is the boot script's word.
fn on_trial(env: Option<BootEnv>) -> Boot {
    Boot { env, trial: Some(Slot::B), ..boot(Slot::B, plan().env_armed()) }
}

#[test]
fn the_way_back_is_written_or_left_to_the_count_of_boots() {
    let failed = |boot: &Boot| {
        let (next, effect) = after(record().phase, boot, Event::Failed(failure(Code::HealthCheckFailed)));
        let Phase::RollingBack { rebooted, .. } = next.phase else { panic!("{next:?}") };
        assert_eq!(rebooted.is_some(), effect == Some(Effect::Reboot));
        effect == Some(Effect::Revert(plan()))
    };
    let armed = plan().env_armed();
    assert!(failed(&boot(Slot::B, armed)));
    assert!(failed(&on_trial(Some(armed))));
    assert!(failed(&Boot { booted: None, ..on_trial(Some(armed)) }), "two of three witnesses");
    let other = BootEnv { trial: Some(Armed { slot: Slot::A, tries: 1 }), ..armed };
    for env in [None, Some(BootEnv::only(Slot::A)), Some(BootEnv { primary: Slot::B, ..armed }), Some(other)]
    {
        assert!(!failed(&on_trial(env)), "{env:?}");
    }
}

#[test]
fn a_way_back_that_cannot_be_written_is_found_by_a_reboot_or_tried_again() {
    let failed = |phase, boot: &Boot| after(phase, boot, Event::Failed(failure(Code::BootloaderFailed)));
    let lost = Boot { env: None, ..boot(Slot::B, BootEnv::only(Slot::B)) };
    for boot in [&lost, &on_trial(Some(plan().env_armed()))] {
        let (next, effect) = failed(rolling_back(None), boot);
        assert_eq!(effect, Some(Effect::Reboot));
        assert!(matches!(next.phase, Phase::RollingBack { rebooted: Some(_), .. }));
    }
    let (next, effect) = failed(rolling_back(None), &Boot { booted: Some(Slot::A), ..lost.clone() });
    assert_eq!((outcome(&next), effect), (Some(Outcome::RolledBack), None));
    for boot in
        [boot(Slot::A, plan().env_armed()), boot(Slot::B, plan().env_armed()), Boot { booted: None, ..lost }]
    {
        assert_eq!(failed(rolling_back(None), &boot).1, Some(Effect::Revert(plan())));
    }
    let ordered = rolling_back(Some(BootId("b1".into())));
    assert_eq!(failed(ordered, &on_trial(None)).1, Some(Effect::Reboot));
}

#[test]
fn once_the_way_back_is_written_the_new_slot_is_left() {
    let reverted = |boot: &Boot| after(rolling_back(None), boot, Event::Reverted);
    for boot in [
        boot(Slot::B, BootEnv::only(Slot::A)),
        Boot { booted: None, ..on_trial(Some(BootEnv::only(Slot::A))) },
    ] {
        let (next, effect) = reverted(&boot);
        assert_eq!(effect, Some(Effect::Reboot));
        assert!(matches!(next.phase, Phase::RollingBack { rebooted: Some(_), tried: true, .. }));
    }
    let (next, effect) = reverted(&boot(Slot::A, BootEnv::only(Slot::A)));
    assert_eq!((outcome(&next), effect), (Some(Outcome::RolledBack), None));
}

#[test]
fn a_plan_is_for_the_operation_that_was_opened_and_for_the_spare_slot() {
    let old = boot(Slot::A, BootEnv::only(Slot::A));
    let opened = |phase, boot: &Boot, plan| after(phase, boot, Event::Opened(Box::new(plan)));
    let (next, effect) = opened(opening(), &old, plan());
    assert_eq!(effect, Some(Effect::Prepare(plan())));
    assert_eq!(
        (next.phase.name(), next.slots.b),
        ("preparing", SlotInfo { state: SlotState::Writing, ..SlotInfo::default() })
    );
    let mut stranger = plan();
    stranger.operation.id = "op-9".into();
    for (phase, plan) in [(opening(), stranger), (staging(), plan())] {
        let before = Record { phase: phase.clone(), ..record() };
        assert_eq!(opened(phase, &old, plan), (before, None));
    }
    for boot in [boot(Slot::B, BootEnv::only(Slot::B)), Boot { booted: None, ..old }] {
        let (next, effect) = opened(opening(), &boot, plan());
        assert_eq!((outcome(&next), effect), (Some(Outcome::Failed), None));
    }
}

#[test]
fn an_operation_begins_when_none_runs() {
    let old = boot(Slot::A, BootEnv::only(Slot::A));
    let times = Times { last_firmware_update: Some(OffsetDateTime::UNIX_EPOCH), ..Times::default() };
    let idle = Record {
        phase: Phase::Idle,
        downloaded: 7,
        times: Times { download_complete: Some(old.now), ..times.clone() },
        ..record()
    };
    let busy = Record { phase: staging(), ..record() };
    let operation = plan().operation;
    let desired = Desired::new(crate::manifest::Digest([5; 32]), None, ACCEPTED, "");
    let asked = Event::Requested(Box::new(operation.clone()));
    let wished =
        Event::Desired { desired: Some(desired.clone()), operation: Some(Box::new(operation.clone())) };
    for event in [asked, wished] {
        let (next, effect) = step(&idle, &old, event.clone());
        assert_eq!((next.phase, effect), (opening(), Some(Effect::Open(operation.clone()))));
        assert_eq!((next.downloaded, &next.times), (0, &times));
        let remembered = matches!(event, Event::Desired { .. }).then(|| operation.id.clone());
        assert_eq!(next.desired.and_then(|desired| desired.operation), remembered);
        assert_eq!(step(&busy, &old, event), (busy.clone(), None));
    }
    let noted = Event::Desired { desired: Some(desired.clone()), operation: None };
    let (next, effect) = step(&busy, &old, noted);
    assert_eq!((next, effect), (Record { desired: Some(desired), ..busy.clone() }, None));
    // A slot is gone back to if it is proven, and not the one that runs.
    let back = Event::RollbackRequested(Box::new(Plan { rewrite: false, ..plan() }));
    let mut proven = idle.clone();
    proven.slots.b.state = SlotState::Proven;
    assert!(matches!(step(&proven, &old, back.clone()).1, Some(Effect::Arm { verify: true, .. })));
    assert_eq!(step(&idle, &old, back.clone()).1, None);
    assert_eq!(step(&proven, &boot(Slot::B, BootEnv::only(Slot::B)), back.clone()).1, None);
    let busy = Record { phase: staging(), ..proven };
    assert_eq!(step(&busy, &old, back).1, None);
}

#[test]
fn what_is_not_armed_can_be_given_up_and_what_is_must_be_undone() {
    let old = boot(Slot::A, BootEnv::only(Slot::A));
    let holding = Phase::Holding { plan: plan(), hold: Hold::default() };
    for phase in [opening(), Phase::Preparing { plan: plan() }, staging(), holding] {
        let written = phase.plan().is_some();
        for (code, result) in [(Code::Cancelled, Outcome::Cancelled), (Code::DeadlinePassed, Outcome::Failed)]
        {
            let (next, effect) = after(phase.clone(), &old, Event::Abandoned(failure(code)));
            assert_eq!((outcome(&next), effect), (Some(result), None));
            assert_eq!(next.slots.b.state == SlotState::Failed, written);
        }
        let (next, _) = after(phase.clone(), &old, Event::Failed(failure(Code::Internal)));
        assert_eq!(outcome(&next), Some(Outcome::Failed));
        let (next, _) = after(phase, &old, Event::SaveFailed(failure(Code::StateUnavailable)));
        assert_eq!(outcome(&next), Some(Outcome::Failed));
    }
    let rebooting = Phase::Rebooting { plan: plan(), boot_id: BootId("b1".into()), connected: true };
    for phase in [arming(), rebooting] {
        let before = Record { phase: phase.clone(), ..record() };
        let cancelled = Event::Abandoned(failure(Code::Cancelled));
        assert_eq!(step(&before, &old, cancelled), (before, None));
        let (_, effect) = after(phase, &old, Event::SaveFailed(failure(Code::StateUnavailable)));
        assert_eq!(effect, Some(Effect::Revert(plan())));
    }
    // A trial is decided from the environment, and nothing is in need of a way back at rest.
    let new = boot(Slot::B, plan().env_armed());
    for phase in [record().phase, Phase::Idle] {
        let before = Record { phase, ..record() };
        assert_eq!(step(&before, &new, Event::SaveFailed(failure(Code::StateUnavailable))), (before, None));
    }
    let idle = Record { phase: Phase::Idle, ..record() };
    assert_eq!(step(&idle, &old, Event::Failed(failure(Code::Internal))), (idle, None));
}

#[test]
fn an_effect_that_succeeded_leads_to_the_next() {
    let old = boot(Slot::A, BootEnv::only(Slot::A));
    let preparing = Phase::Preparing { plan: plan() };
    assert_eq!(after(preparing.clone(), &old, Event::Prepared).1, Some(Effect::Stage(plan())));
    let (next, effect) = after(staging(), &old, Event::Staged { hold: None });
    assert_eq!(effect, Some(Effect::Arm { plan: plan(), verify: false }), "it was read back just now");
    assert_eq!((next.times.download_complete, next.slots.b.image), (Some(old.now), plan().image));
    let hold = Hold { approved: true, until: None };
    let waits = Some(Effect::Hold(plan(), hold.clone()));
    assert_eq!(after(staging(), &old, Event::Staged { hold: Some(hold.clone()) }).1, waits);
    let holding = Phase::Holding { plan: plan(), hold: Hold::default() };
    let (next, effect) = after(holding, &old, Event::HoldChanged(hold.clone()));
    assert_eq!((next.phase, effect), (Phase::Holding { plan: plan(), hold: hold.clone() }, waits));
    let abilities = Abilities { version: Some("1.4.0".into()), ..Abilities::default() };
    let armed = Event::Armed { connected: true, failed_units: None, abilities: Some(abilities.clone()) };
    let (next, effect) = after(arming(), &old, armed);
    assert_eq!((effect, &next.abilities), (Some(Effect::Reboot), &Some(abilities)));
    assert_eq!(next.slots.a.version.as_deref(), Some("1.4.0"));
    assert!(matches!(next.phase, Phase::Rebooting { connected: true, .. }));
    let (next, effect) = after(record().phase, &boot(Slot::B, plan().env_armed()), Event::ChecksPassed);
    assert_eq!((next.phase.name(), effect), ("committing", Some(Effect::Commit(plan()))));
    // What does not fit the phase changes nothing.
    for event in
        [Event::Committed, Event::Released, Event::Reverted, Event::ChecksPassed, Event::HoldChanged(hold)]
    {
        let before = Record { phase: preparing.clone(), ..record() };
        assert_eq!(step(&before, &old, event), (before, None));
    }
    let told = Record { unreported: 2, ..record() };
    assert_eq!(step(&told, &old, Event::Acknowledged).0.unreported, 1);
}
