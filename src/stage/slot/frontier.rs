//! How far the target holds the image, told while it is written, so that reading back can follow close behind.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::stage::error::StageError;

/// How far the target holds the image, told while it is written. An empty one holds nobody up.
#[derive(Debug, Default)]
pub struct Frontier {
    pending: Mutex<Unfinished>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Unfinished {
    /// Offsets of the groups that are not in place yet.
    groups: BTreeSet<u64>,
    /// No more of them will be.
    ended: bool,
}

impl Frontier {
    pub fn new(groups: BTreeSet<u64>) -> Frontier {
        Frontier { pending: Mutex::new(Unfinished { groups, ended: false }), moved: Condvar::new() }
    }

    /// The group at this offset is in place.
    pub fn done(&self, group_offset: u64) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).groups.remove(&group_offset);
        self.moved.notify_all();
    }

    /// All groups but these are in place.
    pub fn keep(&self, groups: &BTreeSet<u64>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.groups.retain(|group| groups.contains(group));
        self.moved.notify_all();
    }

    /// Whoever still waits does so in vain.
    pub fn end(&self) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.moved.notify_all();
    }

    /// Waits until everything before `offset` is in place; an error if that will not come about.
    pub fn wait(&self, offset: u64) -> Result<(), StageError> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        while pending.groups.first().is_some_and(|group| *group < offset) {
            if pending.ended {
                return Err(StageError::Cancelled);
            }
            pending = self.moved.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn reading_waits_for_the_group_and_not_for_later_ones() {
        let frontier = Frontier::new([4096, 8192].into());
        frontier.wait(4096).unwrap();
        let (told, tells) = mpsc::channel();
        std::thread::scope(|scope| {
            let frontier = &frontier;
            scope.spawn(move || told.send(frontier.wait(8192).is_ok()));
            assert!(tells.recv_timeout(Duration::from_millis(20)).is_err());
            frontier.done(4096);
            assert!(tells.recv().unwrap());
        });
        frontier.end();
        frontier.wait(8192).unwrap();
        assert!(matches!(frontier.wait(8193), Err(StageError::Cancelled)));
        frontier.keep(&[4096].into());
        frontier.wait(8193).unwrap();
    }
}
