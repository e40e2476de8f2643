//! The state folder and what it remembers.

use nix::unistd::{self, AccessFlags};

use super::subject::{Answer, Subject};
use crate::config;
use crate::device;
use crate::machine::SlotState;
use crate::slot::Slot;

pub(super) fn outside(subject: &Subject) -> Option<Answer> {
    let dir = &subject.gateway.settings.state.dir;
    Some(Answer::of("outside both slots", config::outside_slots(dir).map_or(Ok(()), Err)))
}

/// A state folder in memory forgets what a trial was about.
pub(super) fn lasting(subject: &Subject) -> Option<Answer> {
    let dir = &subject.gateway.settings.state.dir;
    let why = device::volatile(dir, &subject.gateway.kernel).map(|found| {
        format!(
            "{} lies in memory, on {found}, and is empty after each reboot: no trial would be remembered; mount a \
             partition of its own there",
            dir.display()
        )
    });
    Some(Answer::of("on a medium that lasts", why.map_or(Ok(()), Err)))
}

fn access_of(subject: &Subject) -> Result<(), String> {
    let dir = &subject.gateway.settings.state.dir;
    unistd::access(dir, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|errno| {
        format!(
            "{} cannot be written ({}): no update can start; mount it writable",
            dir.display(),
            errno.desc()
        )
    })
}

pub(super) fn access(subject: &Subject) -> Option<Answer> {
    Some(Answer::of("it can be written", access_of(subject)))
}

/// The slot that armed a trial left a record of it. A folder that never held one is another folder.
pub(super) fn same_folder(subject: &Subject) -> Option<Answer> {
    let on_trial = subject.on_trial.as_ref()?;
    let record = &subject.record;
    let proven = |slot| record.slots.get(slot).state == SlotState::Proven;
    let empty = record.fresh && on_trial.plan.operation.id.is_empty() && !proven(Slot::A) && !proven(Slot::B);
    let why = format!(
        "{} was empty when this image started, so the old slot keeps its state elsewhere: mount the same \
         partition there, and give state.dir the same path in every image",
        subject.gateway.settings.state.dir.display()
    );
    Some(Answer::of("the old slot's record is there", (!empty).then_some(()).ok_or(why)))
}

pub(super) fn saved(subject: &Subject) -> Option<Answer> {
    let live = subject.live.as_ref()?;
    Some(Answer::of("saved in both copies", live.unsaved.clone().map_or(Ok(()), Err)))
}

pub(super) fn quarantine(subject: &Subject) -> Option<Answer> {
    let entries: Vec<String> = subject
        .record
        .quarantine
        .iter()
        .map(|entry| format!("{} ({})", entry.version, entry.failure.code))
        .collect();
    Some(Answer::doubt("empty", (!entries.is_empty()).then(|| entries.join(", "))))
}
