//! Effects: what each does to the device, and how it fails.

use super::world::{Agent, Content, Quality, World, index, newest, plan_of, tear, write};
use crate::failure::{Code, Failure};
use crate::machine::*;
use crate::slot::BootEnv;

impl World {
    pub(super) fn act(&self, record: &Record, effect: &Effect, done: u8) -> Vec<World> {
        // Only an environment that the bootloader calls lost too is made anew.
        let writable = newest(&self.env).is_some() || matches!(effect, Effect::Rebuild(_));
        if env_of(effect).is_some() && !writable {
            return vec![self.feed(record, Event::Failed(Failure::new(Code::BootloaderFailed, "lost")))];
        }
        let mut worlds = vec![self.effect(record, effect, done)];
        let failure = |code| Event::Failed(Failure::new(code, "broken"));
        if !matches!(effect, Effect::Check(..) | Effect::Rebuild(_)) {
            let code = if writes_env(effect) { Code::BootloaderFailed } else { Code::SlotWriteFailed };
            worlds.extend(self.fault(|b| &mut b.failures).map(|world| world.feed(record, failure(code))));
        }
        if let Some(env) = env_of(effect).filter(|_| done == 0) {
            // The write lands and is reported as failed; or power tears it.
            worlds.extend(self.fault(|b| &mut b.failures).map(|mut world| {
                write(&mut world.env, env);
                world.note_commit(effect);
                match effect {
                    Effect::Rebuild(_) => world.feed(record, Event::Rebuilt),
                    _ => world.feed(record, failure(Code::BootloaderFailed)),
                }
            }));
            worlds.extend(self.fault(|b| &mut b.cuts).map(|mut world| {
                tear(&mut world.env);
                world.agent = None;
                world
            }));
        }
        worlds.extend(self.make_way(record));
        if record.phase.operation().is_some() {
            let cancelled = Failure::new(Code::Cancelled, "cancelled");
            let cancel = |world: World| world.feed(record, Event::Abandoned(cancelled));
            // Once armed it changes nothing, and the effect under way is not disturbed.
            let disturbed = step(record, &self.boot(), Event::Abandoned(Failure::new(Code::Cancelled, "")));
            assert!(record.phase.can_cancel() || disturbed == (record.clone(), None), "cancelled when armed");
            let possible = record.phase.can_cancel();
            worlds.extend(self.fault(|b| &mut b.cancels).filter(|_| possible).map(cancel));
        }
        worlds
    }

    /// One step of an effect that works.
    pub(super) fn effect(&self, record: &Record, effect: &Effect, done: u8) -> World {
        let mut world = self.clone();
        let more = |done| Some(Agent::Acting { record: record.clone(), effect: effect.clone(), done });
        match effect {
            Effect::Open(operation) => {
                let plan = plan_of(operation.clone(), self.booted, true);
                world.feed(record, Event::Opened(Box::new(plan)))
            }
            Effect::Prepare(plan) => {
                world.write_env(plan.env_before());
                world.feed(record, Event::Prepared)
            }
            Effect::Stage(plan) => match done {
                0 => {
                    world.touch(plan, Content::Broken);
                    world.agent = more(1);
                    world
                }
                _ => {
                    world.touch(plan, Content::New(plan.operation.id.parse().unwrap()));
                    world.feed(record, Event::Staged { hold: Some(Hold::default()) })
                }
            },
            Effect::Hold(..) => world.feed(record, Event::Released),
            Effect::Arm { plan, .. } => {
                assert_ne!(world.slot(plan.target), Content::Broken, "armed a slot that is not whole");
                world.write_env(plan.env_armed());
                world.feed(record, Event::Armed { connected: true, failed_units: None, abilities: None })
            }
            Effect::Reboot => world.then(|w| w.agent = None),
            Effect::Check(plan, trial) => world.check(record, plan, trial),
            Effect::Commit(plan) => {
                assert!(world.checked, "committed without checks in this boot");
                world.note_commit(effect);
                world.write_env(plan.env_committed());
                world.feed(record, Event::Committed)
            }
            Effect::Revert(plan) => {
                world.write_env(plan.env_before());
                world.feed(record, Event::Reverted)
            }
            Effect::Rebuild(env) => {
                assert!(!world.said_trial || newest(&world.env).is_some(), "made anew during a trial");
                let commits = env.primary == world.booted && world.boot().shows_trial(world.booted);
                assert!(!commits || world.checked, "committed without checks in this boot");
                world.write_env(*env);
                world.feed(record, Event::Rebuilt)
            }
        }
    }

    fn note_commit(&mut self, effect: &Effect) {
        if let Effect::Commit(plan) = effect {
            self.commits.push(plan.operation.id.clone());
        }
    }

    /// The writer's own refusal is part of what is checked: it must never be needed.
    pub(super) fn touch(&mut self, plan: &Plan, content: Content) {
        assert_ne!(plan.target, self.booted, "the running slot would be written");
        // An environment that lost its newest copy after Preparing may name the old primary again.
        let primary = newest(&self.env).map(|env| env.primary);
        if self.budget_untouched_env() {
            assert_ne!(Some(plan.target), primary, "the primary slot would be written");
            let env = newest(&self.env);
            let named = env.is_some_and(|env| env.trial.is_some() || env.fallback == Some(plan.target));
            assert!(!named, "a slot that the environment names would be written");
        }
        self.slots[index(plan.target)] = content;
        self.proven[index(plan.target)] = false;
    }

    pub(super) fn budget_untouched_env(&self) -> bool {
        !self.lost_env && self.env.iter().all(Option::is_some)
    }

    pub(super) fn check(&self, record: &Record, plan: &Plan, trial: &Trial) -> World {
        let new = matches!(self.slot(plan.target), Content::New(_));
        let verdict = match self.quality {
            // The first question of all: would a verdict reach the bootloader?
            _ if self.said_trial && !self.boot().shows_trial(plan.target) => Some(Code::HealthCheckFailed),
            Quality::Unhealthy if new => Some(Code::HealthCheckFailed),
            Quality::NoCloud if new && trial.connected => Some(Code::CloudUnreachable),
            _ => None,
        };
        match verdict {
            Some(code) => self.feed(record, Event::Failed(Failure::new(code, "check"))),
            None => {
                let passed = self.then(|world| {
                    world.proven[index(plan.target)] = true;
                    world.checked = true;
                });
                passed.feed(record, Event::ChecksPassed)
            }
        }
    }
}

fn env_of(effect: &Effect) -> Option<BootEnv> {
    match effect {
        Effect::Prepare(plan) | Effect::Revert(plan) => Some(plan.env_before()),
        Effect::Arm { plan, .. } => Some(plan.env_armed()),
        Effect::Commit(plan) => Some(plan.env_committed()),
        Effect::Rebuild(env) => Some(*env),
        _ => None,
    }
}

fn writes_env(effect: &Effect) -> bool {
    matches!(effect, Effect::Arm { .. } | Effect::Commit(_) | Effect::Revert(_))
}
