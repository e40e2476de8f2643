//! The agent's driver: it loads the record, feeds events to the machine, and saves before it acts.

use super::world::{Agent, World, newest, tear, write};
use crate::failure::{Code, Failure};
use crate::machine::*;

impl World {
    /// Feeds an event to the machine; the agent saves what it says, then acts.
    pub(super) fn feed(&self, record: &Record, event: Event) -> World {
        let begins =
            matches!(event, Event::Requested(_) | Event::RollbackRequested(_) | Event::Desired { .. });
        let (next, effect) = step(record, &self.boot(), event);
        // What is durable already is not saved again.
        let saved = self.record.iter().all(|copy| copy.as_ref() == Some(&next));
        self.then(|world| {
            // The driver marks a slot that became the primary.
            world.said_trial &= !is_decided(record, &self.boot());
            world.agent = Some(match effect {
                Some(effect) if saved => Agent::Acting { record: next, effect, done: 0 },
                None if saved => Agent::Waiting { record: next },
                effect => Agent::Saving {
                    before: begins.then(|| Box::new(record.clone())),
                    next,
                    effect,
                    copies: 2,
                },
            });
        })
    }

    pub(super) fn load(&self) -> World {
        let found = newest(&self.record);
        let mut world = self.clone();
        world.amnesia |= found.is_none();
        let record = found.unwrap_or_default();
        world.feed(&record, Event::Started)
    }

    pub(super) fn save(
        &self,
        before: &Option<Box<Record>>,
        next: &Record,
        effect: &Option<Effect>,
        copies: u8,
    ) -> Vec<World> {
        let saved = self.then(|world| {
            write(&mut world.record, next.clone());
            if let (1, Phase::Opening { operation }) = (copies, &next.phase) {
                world.accepted.push(operation.id.clone());
                world.accepted.dedup();
            }
            world.agent = Some(match (copies, effect) {
                (2, _) => Agent::Saving {
                    before: before.clone(),
                    next: next.clone(),
                    effect: effect.clone(),
                    copies: 1,
                },
                (_, Some(effect)) => Agent::Acting { record: next.clone(), effect: effect.clone(), done: 0 },
                (_, None) => Agent::Waiting { record: next.clone() },
            });
        });
        let mut worlds = vec![saved];
        let torn = |world: &mut World| {
            tear(&mut world.record);
            world.record_losses += 1;
            world.agent = None;
        };
        worlds.extend(self.fault(|b| &mut b.cuts).map(|world| world.then(torn)));
        worlds.extend(self.fault(|b| &mut b.failures).map(|world| match before {
            Some(before) => world.then(|w| w.agent = Some(Agent::Waiting { record: (**before).clone() })),
            None => world.unsaved(next, effect),
        }));
        worlds
    }

    /// The disk refuses the record.
    pub(super) fn unsaved(&self, next: &Record, effect: &Option<Effect>) -> World {
        if next.phase.must_be_saved() {
            let failure = Failure::new(Code::StateUnavailable, "full");
            return self.feed(next, Event::SaveFailed(failure));
        }
        self.then(|world| {
            world.agent = Some(match effect {
                Some(effect) => Agent::Acting { record: next.clone(), effect: effect.clone(), done: 0 },
                // The driver goes on trying to save, and reports nothing until it could.
                None => Agent::Saving { before: None, next: next.clone(), effect: None, copies: 2 },
            });
        })
    }
}
