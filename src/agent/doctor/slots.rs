//! The slots and the boot environment: could a bundle be written, and a trial be armed?

use super::subject::{Answer, Subject};
use crate::boot;
use crate::device::{self, Identity};
use crate::failure::Code;
use crate::slot::Slot;

pub(super) fn running(subject: &Subject) -> Option<Answer> {
    let unknown = || subject.degraded.clone().unwrap_or_else(|| "the running slot is not known".to_owned());
    Some(Answer::of("both witnesses agree", subject.boot.booted.map(drop).ok_or_else(unknown)))
}

/// Whether a verdict is still to come, and which check stands in its way.
pub(super) fn trial(subject: &Subject) -> Option<Answer> {
    let slot = subject.boot.booted.filter(|_| subject.booted_on_trial())?;
    let failing = subject.gateway.failing.borrow().clone();
    let state = failing.map_or_else(
        || "its health checks decide whether it stays".to_owned(),
        |(check, why)| format!("the health check {check} fails: {why}"),
    );
    Some(Answer::Doubt(format!("slot {slot} is on trial: {state}")))
}

pub(super) fn environment(subject: &Subject) -> Option<Answer> {
    Some(Answer::of("valid, and a trial can be armed", subject.gateway.env_ready()))
}

/// There, writable, and large enough for an image like the running one.
pub(super) fn spare(subject: &Subject) -> Option<Answer> {
    let Some(booted) = subject.boot.booted else {
        let why = "the running slot is not known, so neither is the spare one";
        return Some(Answer::Fault(why.to_owned()));
    };
    if subject.held {
        return Some(Answer::Well("present, and held by the update that runs".to_owned()));
    }
    let needed = running_size(subject);
    Some(match subject.gateway.capacity(!booted) {
        Ok(room) if room < needed => Answer::Fault(format!(
            "slot {} holds {room} bytes and the running image has {needed}: it can't be replaced by one like \
             it; make the slots equal",
            !booted
        )),
        Ok(_) => Answer::Well("present, and not in use".to_owned()),
        // Whoever mounted it may let go again; that is no fault of the image.
        Err(failure) if failure.code == Code::SlotBusy && subject.on_trial.is_some() => {
            Answer::Doubt(failure.message)
        }
        Err(failure) => Answer::Fault(failure.message),
    })
}

/// Bytes of the running image, as far as they are known.
fn running_size(subject: &Subject) -> u64 {
    let tried = subject.on_trial.as_ref().and_then(|on_trial| on_trial.plan.image.as_ref());
    let booted = subject.boot.booted.map(|slot| subject.record.slots.get(slot));
    tried.or(booted.and_then(|info| info.image.as_ref())).map_or(0, |image| image.size)
}

pub(super) fn fallback(subject: &Subject) -> Option<Answer> {
    let env = subject.boot.env?;
    if let Some(trial) = env.trial {
        let primary = env.primary;
        let way = format!("slot {primary} is proven: what fails in slot {} leads back to it", trial.slot);
        return Some(Answer::Well(way));
    }
    let doubt = "the other slot is not proven: if this one breaks, there is nothing to go back to";
    Some(Answer::doubt("both slots are proven", env.fallback.is_none().then(|| doubt.to_owned())))
}

/// Devices that the kernel does not let anybody write: slots and the boot environment.
pub(super) fn read_only(subject: &Subject) -> Option<Answer> {
    let gateway = &subject.gateway;
    let mut places = vec![gateway.device(Slot::A), gateway.device(Slot::B)];
    places.extend(boot::places(&gateway.settings.bootloader.kind).unwrap_or_default());
    places.retain(|place| Identity::of(place).is_ok_and(|device| gateway.kernel.is_read_only(device)));
    let blocked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let why = format!("{} {}", blocked.join(", "), device::READ_ONLY);
    Some(Answer::of("slots and boot environment can be written", blocked.is_empty().then_some(()).ok_or(why)))
}

/// A smaller slot takes fewer images than the other: that shows when one no longer fits.
pub(super) fn sizes(subject: &Subject) -> Option<Answer> {
    let size = |slot: Slot| device::size(&subject.gateway.device(slot)).ok();
    let (a, b) = (size(Slot::A)?, size(Slot::B)?);
    let doubt =
        format!("slot A has {a} bytes and slot B {b}: images must fit the smaller one; make them equal");
    Some(Answer::doubt("of one size", (a != b).then_some(doubt)))
}
