//! One turn of the machine: what it is told of the gateway, what happened, and what it asks for.

use std::collections::BTreeSet;

use time::OffsetDateTime;

use super::desired::Desired;
use super::operation::{BootId, Hold, Operation, Plan, Trial};
use super::record::Abilities;
use crate::failure::Failure;
use crate::slot::{BootEnv, Slot};

/// What is really booted, what the boot environment says, and what time it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Boot {
    /// `None`: the witnesses disagree, nothing may be touched.
    pub booted: Option<Slot>,
    /// `None`: no environment can be used.
    pub env: Option<BootEnv>,
    /// There is none to be found, and the bootloader of this boot says the same: it may be made anew.
    pub rebuild: bool,
    /// The slot that this boot tries, by the boot script's word. Such a boot was counted, so that a reboot leads
    /// back in the end; and its environment is never made anew.
    pub trial: Option<Slot>,
    pub boot_id: BootId,
    pub now: OffsetDateTime,
    /// Seconds of CLOCK_BOOTTIME.
    pub uptime: u64,
}

impl Boot {
    /// Whether the running slot is the one that boots from now on.
    pub fn is_proven(&self) -> bool {
        self.booted.is_some() && self.booted == self.env.map(|env| env.primary)
    }

    /// Whether the environment may be told to go back from `target`: the running slot is known; or, in a trial of
    /// it, two of three witnesses, the boot script and the environment, say so.
    pub(super) fn may_revert(&self, target: Slot) -> bool {
        if self.trial == Some(target) { self.shows_trial(target) } else { self.booted.is_some() }
    }

    /// Whether the environment has `slot` on trial and the other one to go back to.
    pub fn shows_trial(&self, slot: Slot) -> bool {
        let on_trial = |env: &BootEnv| env.trial.is_some_and(|trial| trial.slot == slot);
        self.env.is_some_and(|env| env.primary == !slot && on_trial(&env))
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// The agent came up.
    Started,
    /// A lost or stale environment was written anew.
    Rebuilt,
    /// A command was accepted by policy.
    Requested(Box<Operation>),
    /// Try what the other slot already holds.
    RollbackRequested(Box<Plan>),
    /// The desired section was acted upon: `operation` starts, if there is one and nothing runs.
    Desired {
        desired: Option<Desired>,
        operation: Option<Box<Operation>>,
    },
    /// The manifest is trusted and the plan allowed.
    Opened(Box<Plan>),
    Prepared,
    /// The slot holds the image, read back. `hold`: the reboot has to wait.
    Staged {
        hold: Option<Hold>,
    },
    /// Approval or deferral changed what the reboot waits for.
    HoldChanged(Hold),
    /// Nothing more to wait for.
    Released,
    /// `connected`: there is a hub session; `failed_units`: what had failed before the update, if known;
    /// `abilities`: what this slot can do.
    Armed {
        connected: bool,
        failed_units: Option<BTreeSet<String>>,
        abilities: Option<Abilities>,
    },
    ChecksPassed,
    Committed,
    Reverted,
    /// The effect of the current phase failed.
    Failed(Failure),
    /// Cancelled, superseded or past its deadline; has no effect once armed.
    Abandoned(Failure),
    /// The new record could not be saved. Not for one that a command asked for: the driver then goes back to
    /// the record before it, and the caller is refused.
    SaveFailed(Failure),
    /// The hub holds the outcome that `Record::told` gave.
    Acknowledged,
    /// The hub refuses the credentials of the slot that runs, by a clock that is right.
    Denied,
}

/// Something to do; idempotent, and performed only after the record was saved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Read and verify the manifest, and plan: reads only.
    Open(Operation),
    /// Take the target, and write `env_before`.
    Prepare(Plan),
    /// Zero the target's first MiB durably, bring the image into the target and read it back.
    Stage(Plan),
    /// Wait for the window, the time or the approval.
    Hold(Plan, Hold),
    /// With `verify`, read the target back against the plan's image, and fail without one; then write `env_armed`.
    Arm {
        plan: Plan,
        verify: bool,
    },
    Reboot,
    /// Run the health checks until they pass or the deadline falls.
    Check(Plan, Trial),
    /// Write `env_committed`.
    Commit(Plan),
    /// Write `env_before`.
    Revert(Plan),
    /// Write this environment in the place of a lost or stale one, then `Rebuilt`.
    Rebuild(BootEnv),
}
