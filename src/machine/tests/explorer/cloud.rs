//! What goes to and fro between the gateway and its hub: commands, the desired section, outcomes.

use serde_json::json;

use time::OffsetDateTime;

use super::world::{Agent, Content, World, newest, operation, plan_of};
use crate::desired::{Action, RunningImage, Section, decide};
use crate::failure::{Code, Failure};
use crate::machine::*;

/// The operation of the section's change number 0; `operation` and rollbacks count below it.
const WISH: u8 = 20;

impl World {
    /// Nothing to do: commands come in, reports go out.
    pub(super) fn wait(&self, record: &Record) -> Vec<World> {
        let mut worlds: Vec<World> = self.follow_desired(record).into_iter().collect();
        if record.unreported > 0 {
            let delivered = self.deliver(record);
            worlds.push(delivered.feed(record, Event::Acknowledged));
            // The hub has it, its answer is lost; or the report itself is.
            worlds.extend(delivered.fault(|b| &mut b.silences));
        }
        if record.phase.is_idle() {
            let number = self.asked + 1;
            worlds.extend(self.fault(|b| &mut b.requests).map(|world| {
                let world = world.then(|world| world.asked = number);
                world.feed(record, Event::Requested(Box::new(operation(number))))
            }));
            worlds.extend(self.fault(|b| &mut b.rollbacks).map(|world| {
                let plan = plan_of(operation(9), world.booted, false);
                world.feed(record, Event::RollbackRequested(Box::new(plan)))
            }));
        }
        worlds
    }

    /// What the desired section asks for now; nothing while its answer would only be "not ready".
    fn asked_by_desired(&self, record: &Record) -> Option<Action> {
        newest(&self.env)?;
        let content = self.wish.map(|change| json!({"fwPackageUri": format!("https://host/{change}")}));
        let section = Section::of(&json!({"fwupdate": content}));
        let action = decide(record, section.as_ref(), RunningImage::default(), OffsetDateTime::UNIX_EPOCH);
        assert!(action != Action::Wait || !record.phase.is_idle(), "the section waits for nothing");
        (!matches!(action, Action::Settled | Action::Wait)).then_some(action)
    }

    /// Whether the section still asks for something, although nothing runs.
    pub(super) fn wishes_more(&self, record: &Record) -> bool {
        record.phase.is_idle() && self.asked_by_desired(record).is_some()
    }

    /// What the driver does about the section while nothing runs.
    fn follow_desired(&self, record: &Record) -> Option<World> {
        match self.asked_by_desired(record).filter(|_| record.phase.is_idle())? {
            Action::Note { desired, .. } => {
                Some(self.feed(record, Event::Desired { desired, operation: None }))
            }
            Action::Start { mut operation, desired, .. } => {
                operation.id = (WISH + self.wish?).to_string();
                let twice = self.accepted.contains(&operation.id);
                assert!(!twice || self.record_losses > 1 || self.amnesia, "the section acted twice");
                let (desired, operation) = (Some(desired), Some(operation));
                Some(self.feed(record, Event::Desired { desired, operation }))
            }
            other => panic!("nothing runs, and yet {other:?}"),
        }
    }

    /// The section changed while its own operation is not armed yet: that one ends.
    pub(super) fn make_way(&self, record: &Record) -> Option<World> {
        let action = self.asked_by_desired(record)?;
        if !matches!(action, Action::Note { cancel: true, .. } | Action::Start { cancel: true, .. }) {
            return None;
        }
        let own = record.phase.operation().is_some_and(|operation| operation.source == Origin::Desired);
        assert!(own, "a section cut another command's operation short: {action:?}");
        Some(self.feed(record, Event::Abandoned(Failure::new(Code::Cancelled, "the section changed"))))
    }

    /// Somebody changes the section, or takes it away.
    pub(super) fn wishes(&self) -> Vec<World> {
        if !matches!(self.agent, Some(Agent::Waiting { .. } | Agent::Acting { done: 0, .. })) {
            return Vec::new();
        }
        let change = |world: World, wish| {
            world.then(|w| {
                w.wished += 1;
                w.wish = wish;
            })
        };
        let new = self.fault(|b| &mut b.wishes).map(|world| change(world, Some(self.wished)));
        let none = self.fault(|b| &mut b.wishes).filter(|_| self.wish.is_some());
        new.into_iter().chain(none.map(|world| change(world, None))).collect()
    }

    /// At rest the section's code is final, and tells no success that was none.
    pub(super) fn desired_is_told(&self, record: &Record) {
        let Some(desired) = record.desired.as_ref().filter(|_| self.record_losses < 2) else { return };
        assert_ne!(desired.code, ACCEPTED, "the section is told to run, and nothing runs");
        let committed = desired.operation.as_ref().is_some_and(|id| self.commits.contains(id));
        assert!(desired.code != COMMITTED || committed, "the section is told committed without a commit");
    }

    /// The hub sees the newest outcome, and remembers what it saw before.
    pub(super) fn deliver(&self, record: &Record) -> World {
        let last = record.told().expect("an outcome is unreported");
        let durable = self.record.iter().flatten().any(|copy| copy.history.contains(last));
        assert!(durable || self.budget.losses == 0 || self.amnesia, "reported before it was saved");
        let truth = self.commits.contains(&last.id);
        match last.result {
            Outcome::Committed => assert!(truth, "success reported without a commit: {last:?}"),
            Outcome::Cancelled => assert!(!truth, "cancelled although committed"),
            Outcome::Failed | Outcome::RolledBack => {
                let there = Content::New(last.id.parse().unwrap_or(0)) == self.slot(self.booted);
                let degraded = last.error.as_ref().is_some_and(|e| e.message.contains("did not return"));
                // Told late, after something else happened, it is still the truth about its operation.
                let late = record.unreported > 1;
                assert!(!there || degraded || late, "failure reported from the new slot: {last:?}");
            }
            Outcome::Unknown => {}
        }
        let entry = (last.id.clone(), last.result);
        for (id, result) in &self.seen {
            let nameless = id.is_empty();
            assert!(nameless || *id != entry.0 || *result == entry.1, "{entry:?} contradicts {result:?}");
        }
        self.then(|world| {
            if !world.seen.contains(&entry) {
                world.seen.push(entry);
            }
        })
    }
}
