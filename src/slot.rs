//! The two slots, and what the boot environment says of them: the vocabulary that the machine, the boot
//! edges and the writer share, so that none of them needs to know another.

use std::fmt;
use std::ops::Not;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of the two slots. "The other slot" is `!slot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Slot {
    A,
    B,
}

impl Not for Slot {
    type Output = Slot;

    fn not(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for Slot {
    type Err = ();

    /// Parses exactly `A` or `B`, the spelling used in the boot environment and on the kernel command line.
    fn from_str(text: &str) -> Result<Slot, ()> {
        match text {
            "A" => Ok(Slot::A),
            "B" => Ok(Slot::B),
            _ => Err(()),
        }
    }
}

/// A slot on trial and the boot attempts it has left (0 to 9; armed with 1 to 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Armed {
    pub slot: Slot,
    pub tries: u8,
}

/// The boot environment: `fwupdate_primary`, `fwupdate_trial` with `fwupdate_tries`, `fwupdate_fallback`.
///
/// One value of this type is one atomic write on every bootloader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BootEnv {
    /// The slot to boot: always a proven one.
    pub primary: Slot,
    pub trial: Option<Armed>,
    /// The other slot, while it too is proven.
    pub fallback: Option<Slot>,
}

impl BootEnv {
    /// The environment of a gateway on which only `slot` is known to be good.
    pub fn only(slot: Slot) -> BootEnv {
        BootEnv { primary: slot, trial: None, fallback: None }
    }
}
