//! The model: what is on the device, where its agent stands, and what a cut or a loss makes of it.

use std::hash::{DefaultHasher, Hash, Hasher};

use time::OffsetDateTime;

use crate::machine::*;
use crate::manifest::Digest;
use crate::slot::{Armed, BootEnv, Slot};

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Content {
    /// A whole image that was here before the story began.
    Old,
    /// Its first MiB is zero: no bootloader loads it.
    Broken,
    /// The whole image of this operation.
    New(u8),
}

/// What becomes of a new image when it is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Quality {
    Good,
    NoKernel,
    Panics,
    Unhealthy,
    NoCloud,
}

/// Faults that may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub(super) cuts: u8,
    pub(super) restarts: u8,
    pub(super) losses: u8,
    pub(super) failures: u8,
    pub(super) cancels: u8,
    /// Lost acknowledgements.
    pub(super) silences: u8,
    pub(super) requests: u8,
    pub(super) rollbacks: u8,
    /// Changes of the desired section.
    pub(super) wishes: u8,
}

/// Two copies of something durable, the newest first; `None` is a damaged copy.
pub(super) type Copies<T> = [Option<T>; 2];

pub(super) fn newest<T: Clone>(copies: &Copies<T>) -> Option<T> {
    copies.iter().flatten().next().cloned()
}

/// Overwrites the older copy, or the damaged one.
pub(super) fn write<T: Clone>(copies: &mut Copies<T>, value: T) {
    let survivor = newest(copies);
    *copies = [Some(value), survivor];
}

/// A write that power cut short: the copy under the pen is lost.
pub(super) fn tear<T: Clone>(copies: &mut Copies<T>) {
    let survivor = newest(copies);
    *copies = [survivor, None];
}

/// Where the agent's driver stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Agent {
    Starting,
    /// `copies` of `next` are still to be written before the effect; `before` is what the agent goes back to
    /// when a command's record cannot be saved.
    Saving {
        before: Option<Box<Record>>,
        next: Record,
        effect: Option<Effect>,
        copies: u8,
    },
    Acting {
        record: Record,
        effect: Effect,
        /// Steps of the effect that are done.
        done: u8,
    },
    Waiting {
        record: Record,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) record: Copies<Record>,
    pub(super) env: Copies<BootEnv>,
    pub(super) slots: [Content; 2],
    pub(super) quality: Quality,
    /// `None`: the power is off, or firmware runs.
    pub(super) agent: Option<Agent>,
    pub(super) booted: Slot,
    /// What the boot script said of this boot: no environment, or a trial without the mark of a verdict.
    pub(super) said_lost: bool,
    pub(super) said_trial: bool,
    pub(super) boots: u8,
    pub(super) budget: Budget,
    /// Slots that passed their checks, or were there from the start.
    pub(super) proven: [bool; 2],
    /// Checks passed in this boot.
    pub(super) checked: bool,
    /// Every copy of the record was lost once: the agent may know less than the world.
    pub(super) amnesia: bool,
    /// Copies of the record that were lost, torn ones included.
    pub(super) record_losses: u8,
    /// A copy of the environment was lost once; every copy was.
    pub(super) lost: bool,
    pub(super) lost_env: bool,
    /// Operations that were asked for, and those whose record was saved before their caller was answered.
    pub(super) asked: u8,
    /// The desired section, by the number of the change that made it, and how often it changed.
    pub(super) wish: Option<u8>,
    pub(super) wished: u8,
    pub(super) accepted: Vec<String>,
    /// What the hub has seen: operation, outcome.
    pub(super) seen: Vec<(String, Outcome)>,
    /// Commits that really happened.
    pub(super) commits: Vec<String>,
}

pub(super) fn index(slot: Slot) -> usize {
    match slot {
        Slot::A => 0,
        Slot::B => 1,
    }
}

pub(super) fn operation(number: u8) -> Operation {
    Operation { id: number.to_string(), uri: "https://host/fw".into(), ..Operation::default() }
}

pub(super) fn plan_of(operation: Operation, booted: Slot, rewrite: bool) -> Plan {
    let number: u8 = operation.id.parse().unwrap();
    let image = ImageInfo {
        version: operation.id.clone(),
        security_version: 0,
        created: OffsetDateTime::UNIX_EPOCH,
        manifest: Digest([number; 32]),
        sha256: Digest([number; 32]),
        size: 4096,
    };
    let (target, from_version, extra) = (!booted, None, Extra::new());
    Plan { operation, target, image: Some(image), from_version, tries: 2, rewrite, extra }
}

impl World {
    pub(super) fn new(quality: Quality, budget: Budget) -> World {
        let mut record = Record { phase: Phase::Idle, ..Record::default() };
        record.slots.a.state = SlotState::Proven;
        record.slots.b.state = SlotState::Proven;
        let env = BootEnv { primary: Slot::A, trial: None, fallback: Some(Slot::B) };
        World {
            record: [Some(record.clone()), Some(record)],
            env: [Some(env), Some(env)],
            slots: [Content::Old, Content::Old],
            quality,
            agent: None,
            booted: Slot::A,
            said_lost: false,
            said_trial: false,
            boots: 0,
            budget,
            proven: [true, true],
            checked: false,
            amnesia: false,
            record_losses: 0,
            lost: false,
            lost_env: false,
            asked: 0,
            wish: None,
            wished: 0,
            accepted: Vec::new(),
            seen: Vec::new(),
            commits: Vec::new(),
        }
    }

    /// A gateway that runs slot B: without an environment a bootloader starts the other one.
    pub(super) fn in_b(quality: Quality, budget: Budget) -> World {
        let env = BootEnv { primary: Slot::B, trial: None, fallback: Some(Slot::A) };
        World { booted: Slot::B, env: [Some(env), Some(env)], ..World::new(quality, budget) }
    }

    pub(super) fn boot(&self) -> Boot {
        Boot {
            booted: Some(self.booted),
            env: newest(&self.env),
            rebuild: self.said_lost && newest(&self.env).is_none(),
            trial: self.said_trial.then_some(self.booted),
            boot_id: BootId(self.boots.to_string()),
            now: OffsetDateTime::UNIX_EPOCH,
            uptime: 0,
        }
    }

    pub(super) fn slot(&self, slot: Slot) -> Content {
        self.slots[index(slot)]
    }

    /// A bootloader finds a kernel there.
    pub(super) fn loadable(&self, slot: Slot) -> bool {
        match self.slot(slot) {
            Content::Old => true,
            Content::Broken => false,
            Content::New(_) => self.quality != Quality::NoKernel,
        }
    }

    pub(super) fn then(&self, change: impl FnOnce(&mut World)) -> World {
        let mut world = self.clone();
        change(&mut world);
        world
    }

    pub(super) fn write_env(&mut self, env: BootEnv) {
        let knows = !self.amnesia && !self.lost_env;
        assert!(!knows || self.proven[index(env.primary)], "an unproven slot became primary: {env:?}");
        write(&mut self.env, env);
    }

    /// Power on: what the boot script does.
    pub(super) fn firmware(&self) -> Vec<World> {
        let Some(env) = newest(&self.env) else {
            let slot = [Slot::A, Slot::B].into_iter().find(|slot| self.loadable(*slot));
            let started = self.start(slot.expect("nothing can be booted any more"));
            return vec![started.then(|world| world.said_lost = true)];
        };
        if let Some(Armed { slot, tries }) = env.trial.filter(|trial| trial.tries > 0) {
            let trial = Some(Armed { slot, tries: tries - 1 });
            let counted = self.then(|world| write(&mut world.env, BootEnv { trial, ..env }));
            let mut next = Vec::new();
            if counted.loadable(slot) {
                next.extend(counted.try_slot(slot));
            } else {
                next.push(counted.start_proven(&env));
            }
            // The bootloader cannot save: it starts no trial.
            next.extend(self.fault(|b| &mut b.failures).map(|world| world.start_proven(&env)));
            // The cut comes while it saves.
            next.extend(self.fault(|b| &mut b.cuts).map(|world| world.then(|w| tear(&mut w.env))));
            return next;
        }
        vec![self.start_proven(&env)]
    }

    pub(super) fn try_slot(&self, slot: Slot) -> Vec<World> {
        let panics = self.quality == Quality::Panics && matches!(self.slot(slot), Content::New(_));
        let mut next = vec![match panics {
            true => self.clone(),
            false => self.start(slot).then(|world| world.said_trial = true),
        }];
        // The first boot is interrupted before user space.
        next.extend(self.fault(|b| &mut b.cuts));
        next
    }

    pub(super) fn start_proven(&self, env: &BootEnv) -> World {
        let slot = [Some(env.primary), env.fallback].into_iter().flatten().find(|slot| self.loadable(*slot));
        self.start(slot.expect("neither primary nor fallback can be loaded"))
    }

    pub(super) fn start(&self, slot: Slot) -> World {
        assert_ne!(self.slot(slot), Content::Broken, "a slot that is not whole was booted");
        self.then(|world| {
            world.booted = slot;
            (world.said_lost, world.said_trial, world.checked) = (false, false, false);
            world.boots += 1;
            world.agent = Some(Agent::Starting);
        })
    }

    /// This world with one fault less to come, if there is one left.
    pub(super) fn fault(&self, budget: impl FnOnce(&mut Budget) -> &mut u8) -> Option<World> {
        let mut world = self.clone();
        let left = budget(&mut world.budget);
        *left = left.checked_sub(1)?;
        Some(world)
    }

    /// Everything that can happen next. The first one is what happens when nothing goes wrong.
    pub(super) fn next(&self) -> Vec<World> {
        let mut next = match &self.agent {
            None => self.firmware(),
            Some(Agent::Starting) => vec![self.load()],
            Some(Agent::Saving { before, next, effect, copies }) => self.save(before, next, effect, *copies),
            Some(Agent::Acting { record, effect, done }) => self.act(record, effect, *done),
            Some(Agent::Waiting { record }) => self.wait(record),
        };
        next.extend(self.copy_lost());
        next.extend(self.wishes());
        if self.agent.is_some() {
            next.extend(self.fault(|b| &mut b.cuts).map(|world| world.then(|w| w.agent = None)));
            let restart = |w: &mut World| w.agent = Some(Agent::Starting);
            next.extend(self.fault(|b| &mut b.restarts).map(|world| world.then(restart)));
        }
        next
    }

    pub(super) fn copy_lost(&self) -> Vec<World> {
        let mut worlds = Vec::new();
        for copy in 0..2 {
            if self.record[copy].is_some() {
                worlds.extend(self.fault(|b| &mut b.losses).map(|world| {
                    world.then(|w| {
                        w.record[copy] = None;
                        w.record_losses += 1;
                    })
                }));
            }
            if self.env[copy].is_some() {
                worlds.extend(self.fault(|b| &mut b.losses).map(|world| {
                    world.then(|w| {
                        w.env[copy] = None;
                        w.lost = true;
                        w.lost_env |= w.env.iter().all(Option::is_none);
                    })
                }));
            }
        }
        worlds
    }

    /// Nothing is under way, and nothing waits to be told.
    pub(super) fn settled(&self) -> bool {
        match &self.agent {
            Some(Agent::Waiting { record }) => {
                record.phase.is_idle() && record.unreported == 0 && !self.wishes_more(record)
            }
            _ => false,
        }
    }

    pub(super) fn key(&self) -> u128 {
        let mut low = DefaultHasher::new();
        self.hash(&mut low);
        let mut high = DefaultHasher::new();
        0x9e37_79b9_u32.hash(&mut high);
        self.hash(&mut high);
        u128::from(low.finish()) | u128::from(high.finish()) << 64
    }
}
