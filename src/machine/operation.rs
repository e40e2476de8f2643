//! What was asked for, what will be done about it, and the phases in which that is done.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::failure::Failure;
use crate::manifest::Digest;
use crate::slot::{Armed, BootEnv, Slot};
use crate::uri::PackageUri;

/// Fields of a newer agent's record, kept as they are.
pub type Extra = BTreeMap<String, Value>;

/// An image as its manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageInfo {
    pub version: String,
    pub security_version: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// Digest of the manifest and of the image; bytes of the image.
    pub manifest: Digest,
    pub sha256: Digest,
    pub size: u64,
}

/// Where an operation came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    Method,
    Desired,
    #[default]
    #[serde(other)]
    Local,
}

/// What was asked for. `uri` may carry a SAS token: it is kept in the record alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    pub id: String,
    pub source: Origin,
    pub uri: PackageUri,
    pub version: Option<String>,
    pub manifest_sha256: Option<Digest>,
    pub max_download_bytes: Option<u64>,
    pub allow_downgrade: bool,
    pub force: bool,
    #[serde(with = "time::serde::rfc3339::option")]
    pub not_before: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub deadline: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// What will be done: an image for a slot, or (without `rewrite`) a trial of what the slot already holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub operation: Operation,
    pub target: Slot,
    /// `None`: a trial found at start-up of which no record tells.
    pub image: Option<ImageInfo>,
    pub from_version: Option<String>,
    /// Boot attempts to arm, 1 to 9.
    pub tries: u8,
    /// False for a rollback: the target is tried as it stands.
    pub rewrite: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Plan {
    /// The plan of a trial that the environment shows and no record explains.
    pub fn unknown(target: Slot) -> Plan {
        Plan {
            operation: Operation::default(),
            target,
            image: None,
            from_version: None,
            tries: 1,
            rewrite: false,
            extra: Extra::new(),
        }
    }

    /// The environment that `Prepare` and `Revert` write: the old slot alone.
    pub fn env_before(&self) -> BootEnv {
        BootEnv::only(!self.target)
    }

    /// The environment that `Arm` writes.
    pub fn env_armed(&self) -> BootEnv {
        let trial = Armed { slot: self.target, tries: self.tries };
        BootEnv { primary: !self.target, trial: Some(trial), fallback: None }
    }

    /// The environment that `Commit` writes.
    pub fn env_committed(&self) -> BootEnv {
        BootEnv { primary: self.target, trial: None, fallback: Some(!self.target) }
    }
}

/// The kernel's id of one boot (`/proc/sys/kernel/random/boot_id`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

/// What the reboot waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hold {
    pub approved: bool,
    /// Set by `firmwareDefer`.
    #[serde(with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
}

/// A trial as seen from the slot on trial.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    pub boot_id: BootId,
    /// When this boot's first agent took the trial up, seconds of CLOCK_BOOTTIME: the deadline counts from
    /// here, however often the agent is restarted.
    #[serde(default)]
    pub since: u64,
    /// Boots of the target in which the agent started.
    pub boots: u8,
    /// The old slot had a hub session before the reboot, so the new one must get one.
    pub connected: bool,
}

/// Where an operation stands. Each phase has one effect, which `Started` issues again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "camelCase")]
pub enum Phase {
    Idle,
    /// Accepted; the manifest is being read. Nothing on the device has changed.
    Opening {
        operation: Operation,
    },
    Preparing {
        plan: Plan,
    },
    Staging {
        plan: Plan,
    },
    Holding {
        plan: Plan,
        hold: Hold,
    },
    Arming {
        plan: Plan,
        boot_id: BootId,
    },
    Rebooting {
        plan: Plan,
        boot_id: BootId,
        connected: bool,
    },
    Trying {
        plan: Plan,
        trial: Trial,
    },
    Committing {
        plan: Plan,
    },
    RollingBack {
        plan: Plan,
        failure: Failure,
        /// The target was really tried: only then was anything rolled back.
        #[serde(default)]
        tried: bool,
        /// The boot under which the way back was ordered.
        rebooted: Option<BootId>,
    },
    /// No record, or a newer agent's phase: what to do follows from the boot environment.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The plan of the phases that have one, to read or to change.
macro_rules! planned {
    ($phase:expr) => {
        match $phase {
            Phase::Idle | Phase::Opening { .. } | Phase::Unknown => None,
            Phase::Preparing { plan } | Phase::Staging { plan } | Phase::Committing { plan } => Some(plan),
            Phase::Holding { plan, .. } | Phase::Arming { plan, .. } | Phase::Rebooting { plan, .. } => {
                Some(plan)
            }
            Phase::Trying { plan, .. } | Phase::RollingBack { plan, .. } => Some(plan),
        }
    };
}

impl Phase {
    /// No operation runs.
    pub fn is_idle(&self) -> bool {
        matches!(self, Phase::Idle | Phase::Unknown)
    }

    pub fn plan(&self) -> Option<&Plan> {
        planned!(self)
    }

    pub fn operation(&self) -> Option<&Operation> {
        match self {
            Phase::Opening { operation } => Some(operation),
            other => other.plan().map(|plan| &plan.operation),
        }
    }

    pub fn operation_mut(&mut self) -> Option<&mut Operation> {
        match self {
            Phase::Opening { operation } => Some(operation),
            other => other.plan_mut().map(|plan| &mut plan.operation),
        }
    }

    pub(super) fn plan_mut(&mut self) -> Option<&mut Plan> {
        planned!(self)
    }

    /// The contract's name of this phase. Opening changes nothing yet and shows as `preparing`.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Idle | Phase::Unknown => "idle",
            Phase::Opening { .. } | Phase::Preparing { .. } => "preparing",
            Phase::Staging { .. } => "staging",
            Phase::Holding { .. } => "holding",
            Phase::Arming { .. } => "arming",
            Phase::Rebooting { .. } => "rebooting",
            Phase::Trying { .. } => "trying",
            Phase::Committing { .. } => "committing",
            Phase::RollingBack { .. } => "rollingBack",
        }
    }

    /// Cancelling is possible: nothing is armed yet.
    pub fn can_cancel(&self) -> bool {
        matches!(
            self,
            Phase::Opening { .. } | Phase::Preparing { .. } | Phase::Staging { .. } | Phase::Holding { .. }
        )
    }

    /// This phase's effect must not happen unless the record of it was saved. From the trial on the
    /// environment alone can tell the rest.
    pub fn must_be_saved(&self) -> bool {
        self.can_cancel() || matches!(self, Phase::Arming { .. } | Phase::Rebooting { .. })
    }
}
