//! The search: every state once, and from each the way to rest.

use std::collections::HashSet;
use std::rc::Rc;

use super::world::{Agent, Content, World, newest};

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

/// Visits every state that the budget allows and returns how many there were. More than `most` means that a rule is
/// broken by which the gateway goes round and round, each time in a new state.
pub(super) fn explore(start: World, most: usize) -> usize {
    let mut visited = HashSet::new();
    let mut safe = HashSet::new();
    let mut stack = vec![Rc::new(Trail { world: start, before: None })];
    while let Some(trail) = stack.pop() {
        if !visited.insert(trail.world.key()) {
            continue;
        }
        let witness = Witness(Rc::clone(&trail));
        assert!(visited.len() <= most, "more than {most} states: something goes on for ever");
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
        if matches!(world.agent, Some(Agent::Waiting { .. })) && newest(&world.env).is_none() {
            // Nothing is touched until the bootloader, too, says that there is no environment.
            assert!(world.lost_env, "there is an environment");
            world.agent = None;
            continue;
        }
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
            if let Some(Agent::Waiting { record }) = &world.agent {
                world.desired_is_told(record);
            }
            safe.extend(path);
            return;
        }
        world = world.next().swap_remove(0);
    }
    panic!("never comes to rest: {world:#?}");
}
