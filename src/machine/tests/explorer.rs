//! The crash explorer: an exhaustive search over `step` with a model of the device around it.
//!
//! The model has two copies of the record and two of the environment, slots whose content is known, a
//! bootloader and a hub. From every state every next thing happens: the step itself, a power cut (also one
//! that tears the write under way), a restart of the agent, a failed save or effect, a copy lost, a cancel, a
//! report delivered with or without its acknowledgement, a change of the desired section; faults come out of a budget. What docs/architecture.md promises
//! is asserted in every state that is reached, and from every state the gateway must find back to idle when
//! nothing more goes wrong.

mod cloud;
mod device;
mod driver;
mod search;
mod world;

use self::search::explore;
use self::world::{Budget, Quality, World};

const NONE: Budget = Budget {
    cuts: 0,
    restarts: 0,
    losses: 0,
    failures: 0,
    cancels: 0,
    silences: 0,
    requests: 1,
    rollbacks: 0,
    wishes: 0,
};

/// The most states of one search, several times what the largest has.
const STATES: usize = 200_000;

const QUALITIES: [Quality; 5] =
    [Quality::Good, Quality::NoKernel, Quality::Panics, Quality::Unhealthy, Quality::NoCloud];

#[test]
#[should_panic(expected = "something goes on for ever")]
fn a_search_without_end_fails_at_its_bound() {
    explore(World::new(Quality::Good, Budget { cuts: 1, ..NONE }), 50);
}

/// `long` explores with one more of each fault that the budget has (`make explore`).
fn explore_all(name: &str, budget: Budget) {
    explore_with(World::new, &QUALITIES, name, budget);
}

fn explore_with(start: fn(Quality, Budget) -> World, qualities: &[Quality], name: &str, mut budget: Budget) {
    let mut most = STATES;
    if std::env::var_os("FWUPDATE_EXPLORE_LONG").is_some() {
        most *= 20;
        for fault in [&mut budget.cuts, &mut budget.restarts, &mut budget.losses, &mut budget.failures] {
            *fault += u8::from(*fault > 0);
        }
    }
    let states: usize = qualities.iter().map(|quality| explore(start(*quality, budget), most)).sum();
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
fn an_update_of_the_slot_that_runs_without_an_environment() {
    explore_with(
        World::in_b,
        &QUALITIES,
        "losses, from the other slot",
        Budget { losses: 2, cuts: 1, ..NONE },
    );
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

#[test]
fn one_update_with_a_lost_copy_and_a_full_disk() {
    explore_all("losses, failures and restarts", Budget { losses: 1, failures: 1, restarts: 1, ..NONE });
}

/// What an image may be when what matters is how its operation ends: well or badly.
const ENDS: [Quality; 2] = [Quality::Good, Quality::Unhealthy];

#[test]
fn the_desired_section_changes() {
    let wishes = Budget { requests: 0, wishes: 2, ..NONE };
    explore_with(World::new, &ENDS, "desired and cuts", Budget { cuts: 1, ..wishes });
    explore_with(
        World::new,
        &ENDS,
        "desired, restarts and silences",
        Budget { restarts: 1, silences: 1, ..wishes },
    );
    explore_with(World::new, &ENDS, "desired and failures", Budget { failures: 1, ..wishes });
}

#[test]
fn the_desired_section_and_a_lost_copy() {
    let wish = Budget { requests: 0, wishes: 1, ..NONE };
    explore_with(World::new, &ENDS, "desired and losses", Budget { losses: 1, cuts: 1, ..wish });
}

#[test]
fn the_desired_section_among_commands() {
    explore_with(World::new, &ENDS, "desired and a method", Budget { wishes: 2, ..NONE });
    explore_with(World::new, &ENDS, "desired, a method and cuts", Budget { wishes: 1, cuts: 1, ..NONE });
    explore_with(
        World::new,
        &ENDS,
        "desired and cancels",
        Budget { wishes: 1, cancels: 1, restarts: 1, ..NONE },
    );
    explore_with(
        World::new,
        &ENDS,
        "desired and a rollback",
        Budget { requests: 0, rollbacks: 1, wishes: 1, ..NONE },
    );
}
