//! The rules of the transition function, one by one; the explorer tests their interplay.

use serde_json::Value;
use time::OffsetDateTime;

use super::record::HUB_CHECK;
use super::*;
use crate::failure::{Code, Evidence, Failure};
use crate::slot::{BootEnv, Slot};

mod explorer;
mod start;
mod step;

/// What release 0.1.0 wrote: every later agent must be able to read it.
const RELEASE_0_1: &str = include_str!("../../tests/records/0.1.0-trying.json");

fn boot(booted: Slot, env: BootEnv) -> Boot {
    let boot_id = BootId("b1".into());
    let (now, uptime) = (OffsetDateTime::UNIX_EPOCH, 9);
    Boot { booted: Some(booted), env: Some(env), rebuild: false, trial: None, boot_id, now, uptime }
}

fn record() -> Record {
    serde_json::from_str(RELEASE_0_1).unwrap()
}

fn plan() -> Plan {
    record().phase.plan().unwrap().clone()
}

fn roll_back(code: Code, boots: u8, record: &Record) -> Record {
    let trial = Trial { boot_id: BootId("b1".into()), since: 0, boots, connected: true };
    let record = Record { phase: Phase::Trying { plan: plan(), trial }, ..record.clone() };
    let on_trial = boot(Slot::B, plan().env_armed());
    step(&record, &on_trial, Event::Failed(Failure::new(code, "no"))).0
}

#[test]
fn the_previous_releases_record_is_read() {
    let record = record();
    assert_eq!(record.phase.name(), "trying");
    assert_eq!(record.slots.a.state, SlotState::Proven);
    assert_eq!(plan().image.unwrap().version, "1.5.0");
    assert_eq!(record.history.len(), 1);
}

#[test]
fn the_previous_releases_phases_are_read_and_written_as_they_were() {
    let trying: Value = serde_json::from_str(RELEASE_0_1).unwrap();
    let plan = &trying["phase"]["plan"];
    let phases: Vec<Value> =
        serde_json::from_str(include_str!("../../tests/records/0.1.0-phases.json")).unwrap();
    assert_eq!(phases.len(), 10);
    for mut written in phases {
        for (field, whole) in [("plan", plan), ("operation", &plan["operation"])] {
            written.as_object_mut().unwrap().entry(field).and_modify(|empty| *empty = whole.clone());
        }
        let mut read: Phase = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(read.name() == "idle", read.is_idle());
        assert_eq!(serde_json::to_value(&read).unwrap(), written);
        assert_eq!(read.plan().is_some(), written.get("plan").is_some());
        assert_eq!(read.plan_mut().is_some(), written.get("plan").is_some());
        let name = written["name"].as_str().unwrap();
        assert_eq!(read.name(), if name == "opening" { "preparing" } else { name });
        assert_eq!(read.operation().is_some(), name != "idle");
        assert_eq!(read.operation_mut().is_some(), name != "idle");
        let unarmed = ["opening", "preparing", "staging", "holding"].contains(&name);
        assert_eq!(read.can_cancel(), unarmed);
        assert_eq!(read.must_be_saved(), unarmed || ["arming", "rebooting"].contains(&name));
    }
}

#[test]
fn what_a_newer_agent_wrote_is_kept() {
    let mut newer: Value = serde_json::from_str(RELEASE_0_1).unwrap();
    newer["version"] = 7.into();
    newer["shiny"] = serde_json::json!({"a": [1]});
    newer["phase"]["plan"]["polish"] = true.into();
    newer["phase"]["plan"]["operation"]["colour"] = "red".into();
    let read: Record = serde_json::from_value(newer.clone()).unwrap();
    let written = serde_json::to_value(&read).unwrap();
    assert_eq!(written["version"], 7);
    assert_eq!(written["shiny"], newer["shiny"]);
    assert_eq!(written["phase"]["plan"]["polish"], true);
    assert_eq!(written["phase"]["plan"]["operation"]["colour"], "red");
}

#[test]
fn an_unknown_phase_means_ask_the_environment() {
    let mut newer: Value = serde_json::from_str(RELEASE_0_1).unwrap();
    newer["phase"]["name"] = "polishing".into();
    let read: Record = serde_json::from_value(newer).unwrap();
    assert_eq!(read.phase, Phase::Unknown);
    let env = BootEnv { primary: Slot::A, ..plan().env_armed() };
    let (next, effect) = step(&read, &boot(Slot::B, env), Event::Started);
    assert!(matches!(next.phase, Phase::Trying { .. }), "{:?}", next.phase);
    assert!(matches!(effect, Some(Effect::Check(..))));
    let (next, effect) = step(&read, &boot(Slot::A, BootEnv::only(Slot::A)), Event::Started);
    assert_eq!((next.phase, effect), (Phase::Idle, None));
}

#[test]
fn a_failed_check_is_quarantined_at_once() {
    let next = roll_back(Code::HealthCheckFailed, 1, &record());
    assert!(next.refusal(&plan().image.unwrap().sha256).is_some());
}

#[test]
fn a_hub_out_of_reach_never_quarantines() {
    let next = roll_back(Code::CloudUnreachable, 1, &record());
    assert_eq!(next.quarantine, []);
}

#[test]
fn tries_used_up_by_power_cuts_are_offered_once_more() {
    let used_up = boot(Slot::A, BootEnv { primary: Slot::A, ..plan().env_armed() });
    let trial = crate::slot::Armed { slot: Slot::B, tries: 0 };
    let used_up = Boot { env: Some(BootEnv { trial: Some(trial), ..BootEnv::only(Slot::A) }), ..used_up };
    let sha256 = plan().image.unwrap().sha256;
    let (once, _) = step(&record(), &used_up, Event::Started);
    assert_eq!((once.quarantine.len(), once.refusal(&sha256)), (1, None));
    assert!(once.quarantine[0].failure.message.contains("used up its boot attempts"), "{once:?}");
    let again = Record { phase: record().phase, ..once };
    let (twice, _) = step(&again, &used_up, Event::Started);
    assert!(twice.refusal(&sha256).is_some());
}

#[test]
fn an_image_in_which_the_agent_never_starts_is_quarantined() {
    let trial = crate::slot::Armed { slot: Slot::B, tries: 0 };
    let env = BootEnv { trial: Some(trial), ..BootEnv::only(Slot::A) };
    let phase = Phase::Rebooting { plan: plan(), boot_id: BootId("b0".into()), connected: true };
    let record = Record { phase, ..record() };
    let (next, effect) = step(&record, &boot(Slot::A, plan().env_armed()), Event::Started);
    assert!(matches!(effect, Some(Effect::Revert(_))));
    assert!(matches!(next.phase, Phase::RollingBack { tried: false, .. }), "the bootloader did not try it");
    let (next, effect) = step(&record, &boot(Slot::A, env), Event::Started);
    assert!(matches!(effect, Some(Effect::Revert(_))));
    assert!(matches!(next.phase, Phase::RollingBack { tried: true, .. }), "{:?}", next.phase);
    let entry = next.refusal(&plan().image.unwrap().sha256).unwrap();
    assert_eq!(entry.failure.code, Code::BootloaderFellBack);
    assert!(entry.failure.message.contains("the agent started in none of its boots"), "{entry:?}");
    assert_eq!(entry.failure.evidence.as_ref().unwrap().boot_attempts, Some(3));
}

#[test]
fn a_commit_raises_the_floor_and_a_rollback_does_not_lower_it() {
    let mut record = Record { phase: Phase::Committing { plan: plan() }, ..record() };
    let failure = Failure::new(Code::BootloaderFellBack, "no");
    let image = ImageInfo { sha256: crate::manifest::Digest([7; 32]), ..plan().image.unwrap() };
    record.quarantine(&plan(), &failure, false);
    record.quarantine(&Plan { image: Some(image.clone()), ..plan() }, &failure, true);
    record.quarantine(&plan(), &failure, true);
    assert_eq!(record.quarantine.len(), 2, "each image once");
    let (next, _) = step(&record, &boot(Slot::B, plan().env_committed()), Event::Committed);
    assert_eq!(next.quarantine.iter().map(|entry| entry.sha256).collect::<Vec<_>>(), [image.sha256]);
    assert_eq!(plan().env_committed().fallback, Some(Slot::A), "what was left is as proven as before");
    assert_eq!(next.floor, 4);
    assert_eq!(next.last().unwrap().result, Outcome::Committed);
    assert_eq!(next.slots.b.state, SlotState::Proven);
    assert_eq!(next.unreported, 1);
}

#[test]
fn nothing_is_touched_when_the_witnesses_disagree() {
    let unsure = Boot { booted: None, ..boot(Slot::B, plan().env_armed()) };
    assert_eq!(step(&record(), &unsure, Event::Started), (record(), None));
}

#[test]
fn the_ended_operation_keeps_no_token() {
    let next = roll_back(Code::HealthCheckFailed, 1, &record());
    let (ended, _) = step(&next, &boot(Slot::A, BootEnv::only(Slot::A)), Event::Reverted);
    let last = ended.last().unwrap();
    assert_eq!(last.result, Outcome::RolledBack);
    assert_eq!(last.operation.uri, "https://host/fw.fwb".into());
    assert!(!serde_json::to_string(&ended).unwrap().contains("sig=secret"));
}

#[test]
fn a_forged_record_arms_nothing_that_was_not_read_back() {
    let env = BootEnv::only(Slot::A);
    for image in [None, plan().image] {
        for rewrite in [false, true] {
            let plan = Plan { image: image.clone(), rewrite, ..plan() };
            let boot_id = BootId("b1".into());
            let arming = Phase::Arming { plan: plan.clone(), boot_id };
            let (_, effect) =
                step(&Record { phase: arming, ..record() }, &boot(Slot::A, env), Event::Started);
            assert_eq!(effect, Some(Effect::Arm { plan: plan.clone(), verify: true }));
            let holding = Phase::Holding { plan: plan.clone(), hold: Hold::default() };
            let (_, effect) =
                step(&Record { phase: holding, ..record() }, &boot(Slot::A, env), Event::Released);
            assert_eq!(effect, Some(Effect::Arm { plan, verify: true }));
        }
    }
    let mut forged = Record { phase: Phase::Idle, ..record() };
    forged.slots.b.state = SlotState::Proven;
    let back = Plan { rewrite: false, ..plan() };
    let asked = Event::RollbackRequested(Box::new(back.clone()));
    let (_, effect) = step(&forged, &boot(Slot::A, env), asked.clone());
    assert_eq!(effect, Some(Effect::Arm { plan: back.clone(), verify: true }));
    // A slot that ran changed: there the environment is the witness.
    let proven = BootEnv { fallback: Some(Slot::B), ..env };
    let (next, effect) = step(&forged, &boot(Slot::A, proven), asked);
    assert_eq!(effect, Some(Effect::Arm { plan: back.clone(), verify: false }));
    let (_, effect) = step(&next, &boot(Slot::A, back.env_armed()), Event::Started);
    assert_eq!(effect, Some(Effect::Arm { plan: back, verify: false }));
}

#[test]
fn a_forged_way_back_leads_away_from_no_slot_that_was_committed() {
    let failure = Failure::new(Code::HealthCheckFailed, "forged");
    let phase = Phase::RollingBack { plan: plan(), failure, tried: true, rebooted: None };
    let record = Record { phase, ..record() };
    let (_, effect) = step(&record, &boot(Slot::B, BootEnv::only(Slot::B)), Event::Started);
    assert_eq!(effect, None);
    let (_, effect) = step(&record, &boot(Slot::B, plan().env_committed()), Event::Started);
    assert_eq!(effect, None, "the old slot may lie below the security floor");
}

#[test]
fn an_image_is_applied_since_it_was_armed_for_the_first_time() {
    let (then, now) = (OffsetDateTime::UNIX_EPOCH, OffsetDateTime::UNIX_EPOCH + time::Duration::DAY);
    let boot = Boot { now, ..boot(Slot::A, plan().env_before()) };
    let arming = Phase::Arming { plan: plan(), boot_id: BootId("b1".into()) };
    let holding = Phase::Holding { plan: plan(), hold: Hold::default() };
    for (phase, before, event, since) in [
        (holding, Some(then), Event::Released, now),
        (arming.clone(), Some(then), Event::Started, then),
        (arming, None, Event::Started, now),
    ] {
        let times = Times { started_applying_image: before, ..Times::default() };
        let (next, _) = step(&Record { phase, times, ..record() }, &boot, event);
        assert_eq!(next.times.started_applying_image, Some(since));
    }
}

#[test]
fn a_slot_that_was_neither_written_nor_tried_is_as_good_as_before() {
    for (rewrite, tried, state) in [
        (false, false, SlotState::Proven),
        (true, false, SlotState::Failed),
        (false, true, SlotState::Failed),
    ] {
        let failure = Failure::new(Code::BootloaderFailed, "no");
        let plan = Plan { rewrite, ..plan() };
        let phase = Phase::RollingBack { plan, failure, tried, rebooted: None };
        let mut record = Record { phase, ..record() };
        record.slots.b.state = SlotState::Proven;
        let (next, _) = step(&record, &boot(Slot::A, BootEnv::only(Slot::A)), Event::Reverted);
        assert_eq!(next.slots.b.state, state, "{rewrite} {tried}");
        let result = if tried { Outcome::RolledBack } else { Outcome::Failed };
        assert_eq!(next.last().unwrap().result, result);
    }
}

#[test]
fn what_a_record_says_of_passed_checks_is_asked_again() {
    let record = Record { phase: Phase::Committing { plan: plan() }, ..record() };
    let on_trial = boot(Slot::B, plan().env_armed());
    let (next, effect) = step(&record, &on_trial, Event::Started);
    assert!(matches!(effect, Some(Effect::Check(..))), "{effect:?}");
    assert_eq!(next.phase, record.phase, "nothing that was reported is taken back");
    let (next, effect) = step(&next, &on_trial, Event::ChecksPassed);
    assert_eq!(effect, Some(Effect::Commit(plan())));
    let (back, effect) = step(&next, &on_trial, Event::Failed(Failure::new(Code::HealthCheckFailed, "no")));
    assert!(matches!(effect, Some(Effect::Revert(_))), "{effect:?}");
    assert!(matches!(back.phase, Phase::RollingBack { tried: true, .. }), "{:?}", back.phase);
    let mut proven = Record { phase: Phase::Idle, ..record.clone() };
    proven.slots.b.state = SlotState::Proven;
    let (_, effect) = step(&proven, &on_trial, Event::Started);
    assert!(matches!(effect, Some(Effect::Check(..))), "{effect:?}");
    let lost = Boot { env: None, rebuild: true, ..on_trial };
    let (_, effect) = step(&record, &lost, Event::Started);
    assert!(matches!(effect, Some(Effect::Rebuild(env)) if env.primary == Slot::A), "{effect:?}");
}

#[test]
fn a_trial_cannot_have_begun_in_the_time_to_come() {
    let trial = Trial { boot_id: BootId("b1".into()), since: u64::MAX, boots: 1, connected: true };
    let record = Record { phase: Phase::Trying { plan: plan(), trial }, ..record() };
    let (_, effect) = step(&record, &boot(Slot::B, plan().env_armed()), Event::Started);
    assert!(matches!(effect, Some(Effect::Check(_, Trial { since: 9, .. }))), "{effect:?}");
}

/// The image was rolled back by the hub's word, and the old slot runs.
fn refused_by_the_hub() -> Record {
    let evidence = Evidence { check: Some(HUB_CHECK.into()), ..Evidence::default() };
    let failure = Failure::new(Code::HealthCheckFailed, "the hub refused it").with(evidence);
    let trial = Trial { boot_id: BootId("b1".into()), since: 0, boots: 1, connected: true };
    let trying = Record { phase: Phase::Trying { plan: plan(), trial }, ..record() };
    let (back, _) = step(&trying, &boot(Slot::B, plan().env_armed()), Event::Failed(failure));
    let (ended, _) = step(&back, &boot(Slot::A, plan().env_before()), Event::Started);
    assert!(ended.phase.is_idle() && ended.quarantine.len() == 1 && ended.unreported == 1, "{ended:?}");
    ended
}

#[test]
fn a_hub_that_refuses_the_old_slot_too_has_nothing_against_the_image() {
    let ended = refused_by_the_hub();
    let in_old_slot = boot(Slot::A, plan().env_before());
    let (absolved, effect) = step(&ended, &in_old_slot, Event::Denied);
    assert!(absolved.quarantine.is_empty() && effect.is_none());
    let told = |record: &Record| record.told().unwrap().error.clone().unwrap();
    assert!(told(&absolved).message.contains("refuses this device itself"), "{:?}", told(&absolved));
    assert!(told(&absolved).message.contains("the hub refused it"));
    assert_eq!(told(&absolved).code, Code::HealthCheckFailed, "it is told so to the section already");
    assert_eq!(step(&absolved, &in_old_slot, Event::Denied).0, absolved, "once");

    // The hub knew the outcome, so there was a session; or another check failed; or something runs.
    let acknowledged = Record { unreported: 0, ..ended.clone() };
    let mut other = ended.clone();
    other.history[0].error.as_mut().unwrap().evidence.as_mut().unwrap().check = Some("app".into());
    let operation = Operation::default();
    let busy = Record { phase: Phase::Opening { operation }, ..ended.clone() };
    // The image in quarantine is another one, or is there for another reason.
    let (mut another, mut unwell) = (ended.clone(), ended.clone());
    another.quarantine[0].version = "9".into();
    unwell.quarantine[0].failure.evidence = None;
    for kept in [acknowledged, other, busy, another, unwell] {
        assert_eq!(step(&kept, &in_old_slot, Event::Denied).0, kept);
    }
}
