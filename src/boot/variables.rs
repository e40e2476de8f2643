//! `BootEnv` as variables and back, the same for every bootloader.
//!
//! Strict on the way in: a value that we do not know may be a newer agent's or a person's, and guessing at it
//! could boot the wrong slot.

use super::bootloader::BootError;
use crate::slot::{Armed, BootEnv, Slot};

/// What all names of ours begin with.
pub const PREFIX: &str = "fwupdate_";
pub const PRIMARY: &str = "fwupdate_primary";
pub const TRIAL: &str = "fwupdate_trial";
pub const TRIES: &str = "fwupdate_tries";
pub const FALLBACK: &str = "fwupdate_fallback";

/// Every variable that is ours, in the order in which it is written.
pub const NAMES: [&str; 4] = [PRIMARY, TRIAL, TRIES, FALLBACK];

/// No environment takes more bytes.
pub const LONGEST: BootEnv =
    BootEnv { primary: Slot::A, trial: Some(Armed { slot: Slot::B, tries: 9 }), fallback: Some(Slot::B) };

/// The values of [`NAMES`]; an empty one means "not set".
pub fn values(env: &BootEnv) -> [String; 4] {
    let slot = |slot: Option<Slot>| slot.map(|slot| slot.to_string()).unwrap_or_default();
    let tries = env.trial.map(|armed| armed.tries.min(9).to_string()).unwrap_or_default();
    [env.primary.to_string(), slot(env.trial.map(|armed| armed.slot)), tries, slot(env.fallback)]
}

/// Reads the environment from a lookup that gives an empty string for a variable that is not set. `place` is
/// for messages.
pub fn parse(place: &str, lookup: impl Fn(&str) -> String) -> Result<BootEnv, BootError> {
    let slot = |name| parse_slot(place, name, lookup(name));
    let primary = slot(PRIMARY)?.ok_or_else(|| BootError::Uninitialised(place.to_owned()))?;
    let trial = match (slot(TRIAL)?, lookup(TRIES).as_str()) {
        (None, "") => None,
        (Some(slot), text) => Some(Armed { slot, tries: parse_tries(place, text)? }),
        (None, text) => return Err(malformed(place, TRIES, text, "nothing while no slot is on trial")),
    };
    Ok(BootEnv { primary, trial, fallback: slot(FALLBACK)? })
}

fn parse_slot(place: &str, name: &'static str, value: String) -> Result<Option<Slot>, BootError> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|()| malformed(place, name, &value, "A, B or nothing"))
}

fn parse_tries(place: &str, text: &str) -> Result<u8, BootError> {
    let digit = Some(text).filter(|text| text.len() == 1).and_then(|text| text.parse().ok());
    digit.ok_or_else(|| malformed(place, TRIES, text, "one digit while a slot is on trial"))
}

fn malformed(place: &str, name: &'static str, value: &str, expected: &'static str) -> BootError {
    BootError::Malformed { place: place.to_owned(), name, value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(values: [&str; 4]) -> Result<BootEnv, BootError> {
        parse("here", |name| values[NAMES.iter().position(|n| *n == name).unwrap()].to_owned())
    }

    #[test]
    fn every_environment_survives_the_round_trip() {
        let slots = [None, Some(Slot::A), Some(Slot::B)];
        for primary in [Slot::A, Slot::B] {
            for fallback in slots {
                for trial in slots {
                    for tries in 0..=9 {
                        let trial = trial.map(|slot| Armed { slot, tries });
                        let env = BootEnv { primary, trial, fallback };
                        assert_eq!(from(values(&env).each_ref().map(String::as_str)).unwrap(), env);
                    }
                }
            }
        }
    }

    #[test]
    fn no_primary_is_a_board_that_was_never_set_up() {
        assert!(matches!(from(["", "", "", ""]), Err(BootError::Uninitialised(_))));
        assert!(matches!(from(["", "B", "3", "A"]), Err(BootError::Uninitialised(_))));
    }

    #[test]
    fn values_that_we_do_not_know_are_named() {
        for (values, name) in [
            (["C", "", "", ""], PRIMARY),
            (["a", "", "", ""], PRIMARY),
            (["A ", "", "", ""], PRIMARY),
            (["A", "X", "1", ""], TRIAL),
            (["A", "B", "", ""], TRIES),
            (["A", "B", "10", ""], TRIES),
            (["A", "B", "+1", ""], TRIES),
            (["A", "B", "+", ""], TRIES),
            (["A", "B", "-1", ""], TRIES),
            (["A", "", "1", ""], TRIES),
            (["A", "", "", "AB"], FALLBACK),
        ] {
            match from(values) {
                Err(BootError::Malformed { name: found, .. }) => assert_eq!(found, name, "{values:?}"),
                other => panic!("{values:?}: {other:?}"),
            }
        }
    }
}
