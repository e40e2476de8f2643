//! The crash explorer: an exhaustive search over `step` with a model of the device around it.
//!
//! The model has two copies of the record and two of the environment, slots whose content is known, a
//! bootloader and a hub. From every state every next thing happens: the step itself, a power cut (also one
//! that tears the write under way), a restart of the agent, a failed save or effect, a copy lost, a cancel, a
//! report delivered with or without its acknowledgement; faults come out of a budget. What docs/architecture.md promises
//! is asserted in every state that is reached, and from every state the gateway must find back to idle when
//! nothing more goes wrong.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use time::OffsetDateTime;

use super::*;
use crate::slot::Armed;

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Content {
    /// A whole image that was here before the story began.
    Old,
    /// Its first MiB is zero: no bootloader loads it.
    Broken,
    /// The whole image of this operation.
    New(u8),
}

/// What becomes of a new image when it is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Quality {
    Good,
    NoKernel,
    Panics,
    Unhealthy,
    NoCloud,
}

/// Faults that may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Budget {
    cuts: u8,
    restarts: u8,
    losses: u8,
    failures: u8,
    cancels: u8,
    /// Lost acknowledgements.
    silences: u8,
    requests: u8,
    rollbacks: u8,
}

/// Two copies of something durable, the newest first; `None` is a damaged copy.
type Copies<T> = [Option<T>; 2];

fn newest<T: Clone>(copies: &Copies<T>) -> Option<T> {
    copies.iter().flatten().next().cloned()
}

/// Overwrites the older copy, or the damaged one.
fn write<T: Clone>(copies: &mut Copies<T>, value: T) {
    let survivor = newest(copies);
    *copies = [Some(value), survivor];
}

/// A write that power cut short: the copy under the pen is lost.
fn tear<T: Clone>(copies: &mut Copies<T>) {
    let survivor = newest(copies);
    *copies = [survivor, None];
}

/// Where the agent's driver stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Agent {
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
struct World {
    record: Copies<Record>,
    env: Copies<BootEnv>,
    slots: [Content; 2],
    quality: Quality,
    /// `None`: the power is off, or firmware runs.
    agent: Option<Agent>,
    booted: Slot,
    boots: u8,
    budget: Budget,
    /// Slots that passed their checks, or were there from the start.
    proven: [bool; 2],
    /// Every copy of the record was lost once: the agent may know less than the world.
    amnesia: bool,
    /// Copies of the record that were lost, torn ones included.
    record_losses: u8,
    /// A copy of the environment was lost once; every copy was.
    lost: bool,
    lost_env: bool,
    /// Operations that were asked for, and those whose record was saved before their caller was answered.
    asked: u8,
    accepted: Vec<String>,
    /// What the hub has seen: operation, outcome.
    seen: Vec<(String, Outcome)>,
    /// Commits that really happened.
    commits: Vec<String>,
}

fn index(slot: Slot) -> usize {
    match slot {
        Slot::A => 0,
        Slot::B => 1,
    }
}

fn operation(number: u8) -> Operation {
    Operation { id: number.to_string(), uri: "https://host/fw".into(), ..Operation::default() }
}

fn plan_of(operation: Operation, booted: Slot, rewrite: bool) -> Plan {
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
    fn new(quality: Quality, budget: Budget) -> World {
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
            boots: 0,
            budget,
            proven: [true, true],
            amnesia: false,
            record_losses: 0,
            lost: false,
            lost_env: false,
            asked: 0,
            accepted: Vec::new(),
            seen: Vec::new(),
            commits: Vec::new(),
        }
    }

    fn boot(&self) -> Boot {
        Boot {
            booted: Some(self.booted),
            env: newest(&self.env),
            boot_id: BootId(self.boots.to_string()),
            now: OffsetDateTime::UNIX_EPOCH,
            uptime: 0,
        }
    }

    fn slot(&self, slot: Slot) -> Content {
        self.slots[index(slot)]
    }

    /// A bootloader finds a kernel there.
    fn loadable(&self, slot: Slot) -> bool {
        match self.slot(slot) {
            Content::Old => true,
            Content::Broken => false,
            Content::New(_) => self.quality != Quality::NoKernel,
        }
    }

    fn then(&self, change: impl FnOnce(&mut World)) -> World {
        let mut world = self.clone();
        change(&mut world);
        world
    }

    /// Feeds an event to the machine; the agent saves what it says, then acts.
    fn feed(&self, record: &Record, event: Event) -> World {
        let begins = matches!(event, Event::Requested(_) | Event::RollbackRequested(_));
        let (next, effect) = step(record, &self.boot(), event);
        // What is durable already is not saved again.
        let saved = self.record.iter().all(|copy| copy.as_ref() == Some(&next));
        self.then(|world| {
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

    fn write_env(&mut self, env: BootEnv) {
        let knows = !self.amnesia && !self.lost_env;
        assert!(!knows || self.proven[index(env.primary)], "an unproven slot became primary: {env:?}");
        write(&mut self.env, env);
    }

    /// Power on: what the boot script does.
    fn firmware(&self) -> Vec<World> {
        let Some(env) = newest(&self.env) else {
            let slot = [Slot::A, Slot::B].into_iter().find(|slot| self.loadable(*slot));
            return vec![self.start(slot.expect("nothing can be booted any more"))];
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

    fn try_slot(&self, slot: Slot) -> Vec<World> {
        let panics = self.quality == Quality::Panics && matches!(self.slot(slot), Content::New(_));
        let mut next = vec![if panics { self.clone() } else { self.start(slot) }];
        // The first boot is interrupted before user space.
        next.extend(self.fault(|b| &mut b.cuts));
        next
    }

    fn start_proven(&self, env: &BootEnv) -> World {
        let slot = [Some(env.primary), env.fallback].into_iter().flatten().find(|slot| self.loadable(*slot));
        self.start(slot.expect("neither primary nor fallback can be loaded"))
    }

    fn start(&self, slot: Slot) -> World {
        assert_ne!(self.slot(slot), Content::Broken, "a slot that is not whole was booted");
        self.then(|world| {
            world.booted = slot;
            world.boots += 1;
            world.agent = Some(Agent::Starting);
        })
    }

    /// This world with one fault less to come, if there is one left.
    fn fault(&self, budget: impl FnOnce(&mut Budget) -> &mut u8) -> Option<World> {
        let mut world = self.clone();
        let left = budget(&mut world.budget);
        *left = left.checked_sub(1)?;
        Some(world)
    }

    /// Everything that can happen next. The first one is what happens when nothing goes wrong.
    fn next(&self) -> Vec<World> {
        let mut next = match &self.agent {
            None => self.firmware(),
            Some(Agent::Starting) => vec![self.load()],
            Some(Agent::Saving { before, next, effect, copies }) => self.save(before, next, effect, *copies),
            Some(Agent::Acting { record, effect, done }) => self.act(record, effect, *done),
            Some(Agent::Waiting { record }) => self.wait(record),
        };
        next.extend(self.copy_lost());
        if self.agent.is_some() {
            next.extend(self.fault(|b| &mut b.cuts).map(|world| world.then(|w| w.agent = None)));
            let restart = |w: &mut World| w.agent = Some(Agent::Starting);
            next.extend(self.fault(|b| &mut b.restarts).map(|world| world.then(restart)));
        }
        next
    }

    fn load(&self) -> World {
        let found = newest(&self.record);
        let mut world = self.clone();
        world.amnesia |= found.is_none();
        let record = found.unwrap_or_default();
        world.feed(&record, Event::Started)
    }

    fn save(
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
    fn unsaved(&self, next: &Record, effect: &Option<Effect>) -> World {
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

    fn act(&self, record: &Record, effect: &Effect, done: u8) -> Vec<World> {
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
                if let Effect::Commit(plan) = effect {
                    world.commits.push(plan.operation.id.clone());
                }
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
    fn effect(&self, record: &Record, effect: &Effect, done: u8) -> World {
        let mut world = self.clone();
        let more = |done| Some(Agent::Acting { record: record.clone(), effect: effect.clone(), done });
        match effect {
            Effect::Open(operation) => {
                let plan = plan_of(operation.clone(), self.booted, true);
                world.feed(record, Event::Opened(Box::new(plan)))
            }
            Effect::Prepare(plan) => match done {
                0 => {
                    world.write_env(plan.env_before());
                    world.agent = more(1);
                    world
                }
                _ => {
                    world.touch(plan, Content::Broken);
                    world.feed(record, Event::Prepared)
                }
            },
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
                world.feed(record, Event::Armed { connected: true, failed_units: None })
            }
            Effect::Reboot => world.then(|w| w.agent = None),
            Effect::Check(plan, trial) => world.check(record, plan, trial),
            Effect::Commit(plan) => {
                assert!(world.proven[index(plan.target)] || world.amnesia, "committed without checks");
                world.commits.push(plan.operation.id.clone());
                world.write_env(plan.env_committed());
                world.feed(record, Event::Committed)
            }
            Effect::Revert(plan) => {
                world.write_env(plan.env_before());
                world.feed(record, Event::Reverted)
            }
            Effect::Rebuild(env) => {
                world.write_env(*env);
                world.feed(record, Event::Rebuilt)
            }
        }
    }

    /// The writer's own refusal is part of what is checked: it must never be needed.
    fn touch(&mut self, plan: &Plan, content: Content) {
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

    fn budget_untouched_env(&self) -> bool {
        !self.lost_env && self.env.iter().all(Option::is_some)
    }

    fn check(&self, record: &Record, plan: &Plan, trial: &Trial) -> World {
        let new = matches!(self.slot(plan.target), Content::New(_));
        let verdict = match self.quality {
            Quality::Unhealthy if new => Some(Code::HealthCheckFailed),
            Quality::NoCloud if new && trial.connected => Some(Code::CloudUnreachable),
            _ => None,
        };
        match verdict {
            Some(code) => self.feed(record, Event::Failed(Failure::new(code, "check"))),
            None => {
                let passed = self.then(|world| world.proven[index(plan.target)] = true);
                passed.feed(record, Event::ChecksPassed)
            }
        }
    }

    /// Nothing to do: commands come in, reports go out.
    fn wait(&self, record: &Record) -> Vec<World> {
        let mut worlds = Vec::new();
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

    /// The hub sees the newest outcome, and remembers what it saw before.
    fn deliver(&self, record: &Record) -> World {
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

    fn copy_lost(&self) -> Vec<World> {
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
    fn settled(&self) -> bool {
        match &self.agent {
            Some(Agent::Waiting { record }) => record.phase.is_idle() && record.unreported == 0,
            _ => false,
        }
    }

    fn key(&self) -> u128 {
        let mut low = DefaultHasher::new();
        self.hash(&mut low);
        let mut high = DefaultHasher::new();
        0x9e37_79b9_u32.hash(&mut high);
        self.hash(&mut high);
        u128::from(low.finish()) | u128::from(high.finish()) << 64
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

/// The way to a state, told when an assertion fails in it.
struct Trail {
    world: World,
    before: Option<Rc<Trail>>,
}

impl Trail {
    fn tell(&self) {
        if let Some(before) = &self.before {
            before.tell();
        }
        let doing = match &self.world.agent {
            None => "power on".to_owned(),
            Some(Agent::Starting) => "the agent starts".to_owned(),
            Some(Agent::Saving { next, copies, .. }) => format!("save {} ({copies})", next.phase.name()),
            Some(Agent::Acting { record, done, .. }) => format!("act in {} ({done})", record.phase.name()),
            Some(Agent::Waiting { .. }) => "wait".to_owned(),
        };
        let world = &self.world;
        println!(
            "boot {} of {}: {doing}; env {:?}; slots {:?}",
            world.boots, world.booted, world.env, world.slots
        );
    }
}

/// Tells the trail when a panic unwinds through it.
struct Witness(Rc<Trail>);

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.tell();
        }
    }
}

/// Visits every state that the budget allows and returns how many there were.
fn explore(quality: Quality, budget: Budget) -> usize {
    let mut visited = HashSet::new();
    let mut safe = HashSet::new();
    let mut stack = vec![Rc::new(Trail { world: World::new(quality, budget), before: None })];
    while let Some(trail) = stack.pop() {
        if !visited.insert(trail.world.key()) {
            continue;
        }
        let witness = Witness(Rc::clone(&trail));
        comes_to_rest(&trail.world, &mut safe);
        for world in trail.world.next() {
            if !visited.contains(&world.key()) {
                stack.push(Rc::new(Trail { world, before: Some(Rc::clone(&trail)) }));
            }
        }
        drop(witness);
    }
    visited.len()
}

/// When nothing more goes wrong, the gateway is idle again after a bounded number of steps, on a slot that is
/// whole and named by its environment.
fn comes_to_rest(world: &World, safe: &mut HashSet<u128>) {
    let mut path = Vec::new();
    let mut world = world.clone();
    for _ in 0..300 {
        let key = world.key();
        if safe.contains(&key) {
            safe.extend(path);
            return;
        }
        path.push(key);
        if world.settled() && newest(&world.env).is_none_or(|env| env.trial.is_some()) {
            // A copy of the environment died while nothing looked at it: the next boot finds out.
            assert!(world.lost, "a trial is left behind");
            world.agent = None;
            continue;
        }
        if world.settled() {
            let told = |id: &String| world.seen.iter().any(|(seen, _)| seen == id);
            let all = world.accepted.iter().all(told);
            // One lost copy loses no operation; two may, although not at the same time.
            assert!(all || world.record_losses > 1, "no outcome was reported of one of {:?}", world.accepted);
            assert_ne!(world.slot(world.booted), Content::Broken);
            safe.extend(path);
            return;
        }
        world = world.next().swap_remove(0);
    }
    panic!("never comes to rest: {world:#?}");
}

const NONE: Budget = Budget {
    cuts: 0,
    restarts: 0,
    losses: 0,
    failures: 0,
    cancels: 0,
    silences: 0,
    requests: 1,
    rollbacks: 0,
};

const QUALITIES: [Quality; 5] =
    [Quality::Good, Quality::NoKernel, Quality::Panics, Quality::Unhealthy, Quality::NoCloud];

/// `long` explores with one more of each fault that the budget has (`make explore`).
fn explore_all(name: &str, mut budget: Budget) {
    if std::env::var_os("FWUPDATE_EXPLORE_LONG").is_some() {
        for fault in [&mut budget.cuts, &mut budget.restarts, &mut budget.losses, &mut budget.failures] {
            *fault += u8::from(*fault > 0);
        }
    }
    let states: usize = QUALITIES.iter().map(|quality| explore(*quality, budget)).sum();
    println!("crash explorer: {name}: {states} states");
    assert!(states > 100, "the search did not search");
}

#[test]
fn one_update_with_cuts_and_restarts() {
    explore_all("cuts and restarts", Budget { cuts: 2, restarts: 1, silences: 1, ..NONE });
}

#[test]
fn one_update_with_failures() {
    explore_all("failures and cuts", Budget { failures: 2, cuts: 1, ..NONE });
    explore_all("failures and restarts", Budget { failures: 2, restarts: 1, ..NONE });
}

#[test]
fn one_update_with_losses() {
    explore_all("losses", Budget { losses: 2, cuts: 1, ..NONE });
}

#[test]
fn one_update_cancelled_at_every_phase() {
    explore_all("cancels", Budget { cancels: 1, cuts: 1, restarts: 1, silences: 1, ..NONE });
}

#[test]
fn two_updates_in_a_row() {
    explore_all("two updates", Budget { requests: 2, cuts: 1, failures: 1, ..NONE });
}

#[test]
fn rollbacks_on_request() {
    explore_all("rollback", Budget { rollbacks: 1, cuts: 1, failures: 1, ..NONE });
}
