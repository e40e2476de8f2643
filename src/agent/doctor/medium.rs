//! What no update has tripped over yet: media that can't be written or don't last, and slots that differ.
//! `--check-config` asks these too.

use super::subject::{Answer, Subject};
use crate::boot;
use crate::device::{self, Identity};
use crate::slot::Slot;

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
