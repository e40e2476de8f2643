//! What one update is made of: the record that outlives power cuts, the phases, the events that move it on and
//! the effects it asks for. Values only; the rules are in `step` and `start`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::failure::{Code, Evidence, Failure};
use crate::manifest::Digest;
use crate::slot::{BootEnv, Slot};

#[cfg(test)]
mod explorer;
mod start;
mod step;

pub use step::step;

/// The version of the record that this agent writes; readers of any version read what they know of it.
pub const RECORD_VERSION: u32 = 1;

/// How many ended operations `history` keeps.
const HISTORY: usize = 16;

/// How many digests the quarantine keeps; the oldest goes first.
const QUARANTINE: usize = 16;

/// Fields of a newer agent's record, kept as they are.
pub type Extra = BTreeMap<String, Value>;

/// Everything the agent remembers. Additive: a field that is missing has a default, one that is unknown is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    pub version: u32,
    pub phase: Phase,
    /// Ended operations, the newest first.
    pub history: Vec<Last>,
    /// How many of the newest outcomes the hub has not acknowledged yet; they are told one by one, the
    /// oldest first.
    pub unreported: usize,
    pub slots: Slots,
    /// Images that must not be tried again unless forced.
    pub quarantine: Vec<Quarantined>,
    /// The highest security version ever committed.
    pub floor: u64,
    /// The tutorial's time stamps.
    pub times: Times,
    /// The newest wall clock that was seen, Unix seconds: the clock never falls below it.
    pub wall_clock: i64,
    /// Bytes that the running operation has received, over all its runs.
    pub downloaded: u64,
    /// How far its staging has come, so that no restart takes back what was reported.
    pub progress: Progress,
    /// systemd units that had failed before the last update was armed; `None`: not known.
    pub failed_units: Option<BTreeSet<String>>,
    /// The last desired section that was acted upon.
    pub desired: Option<Desired>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for Record {
    fn default() -> Record {
        Record {
            version: RECORD_VERSION,
            phase: Phase::Unknown,
            history: Vec::new(),
            unreported: 0,
            slots: Slots::default(),
            quarantine: Vec::new(),
            floor: 0,
            times: Times::default(),
            wall_clock: 0,
            downloaded: 0,
            progress: Progress::default(),
            failed_units: None,
            desired: None,
            extra: Extra::new(),
        }
    }
}

/// How far staging has come, as it was last told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    pub percent: u64,
    /// What `downloaded` will be at the end, bytes.
    pub expected: u64,
    /// Bytes of the image that needed no download.
    pub reused: u64,
}

/// The desired section as it was last acted upon, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Desired {
    /// Digest of the section without query strings.
    pub digest: Digest,
    pub version: Option<String>,
    /// `Accepted`, `Committed`, `Superseded`, or an error code.
    pub code: String,
    pub message: String,
    /// The operation that it led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Times {
    #[serde(with = "time::serde::rfc3339::option")]
    pub download_complete: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_applying_image: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_firmware_update: Option<OffsetDateTime>,
}

/// What is known of the two slots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Slots {
    pub a: SlotInfo,
    pub b: SlotInfo,
}

impl Slots {
    pub fn get(&self, slot: Slot) -> &SlotInfo {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }

    pub fn get_mut(&mut self, slot: Slot) -> &mut SlotInfo {
        match slot {
            Slot::A => &mut self.a,
            Slot::B => &mut self.b,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotInfo {
    pub state: SlotState,
    pub image: Option<ImageInfo>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SlotState {
    /// It booted, passed its checks and was committed, or was the primary when this agent first ran.
    Proven,
    /// It is being written, or holds an image that was never tried.
    Writing,
    /// Its image was tried and failed, or its writing ended early.
    Failed,
    #[default]
    #[serde(other)]
    Unknown,
}

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
    pub uri: String,
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
        let trial = crate::slot::Armed { slot: self.target, tries: self.tries };
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
    /// Boots of the target that reached user space.
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

impl Phase {
    /// No operation runs.
    pub fn is_idle(&self) -> bool {
        matches!(self, Phase::Idle | Phase::Unknown)
    }

    pub fn plan(&self) -> Option<&Plan> {
        match self {
            Phase::Preparing { plan }
            | Phase::Staging { plan }
            | Phase::Holding { plan, .. }
            | Phase::Arming { plan, .. }
            | Phase::Rebooting { plan, .. }
            | Phase::Trying { plan, .. }
            | Phase::Committing { plan }
            | Phase::RollingBack { plan, .. } => Some(plan),
            Phase::Idle | Phase::Opening { .. } | Phase::Unknown => None,
        }
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
            Phase::Preparing { plan }
            | Phase::Staging { plan }
            | Phase::Holding { plan, .. }
            | Phase::Arming { plan, .. }
            | Phase::Rebooting { plan, .. }
            | Phase::Trying { plan, .. }
            | Phase::Committing { plan }
            | Phase::RollingBack { plan, .. } => Some(&mut plan.operation),
            Phase::Idle | Phase::Unknown => None,
        }
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

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Committed,
    Failed,
    RolledBack,
    Cancelled,
    #[serde(other)]
    Unknown,
}

/// An ended operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Last {
    pub id: String,
    pub source: Origin,
    pub result: Outcome,
    pub from_version: Option<String>,
    pub to_version: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub finished_at: OffsetDateTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// What the operation asked for, without its query: a repeated call is recognised by it.
    #[serde(default)]
    pub operation: Operation,
}

/// An image that failed, with its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quarantined {
    pub sha256: Digest,
    pub version: String,
    pub failure: Failure,
    /// False: its tries were used up by power cuts once, and it is offered once more.
    pub refused: bool,
}

impl Record {
    /// The newest outcome.
    pub fn last(&self) -> Option<&Last> {
        self.history.first()
    }

    /// The outcome to report: the oldest that the hub has not acknowledged, else the newest.
    pub fn told(&self) -> Option<&Last> {
        self.history.get(self.unreported.saturating_sub(1)).or(self.last())
    }

    /// The entry that refuses this image, if one does.
    pub fn refusal(&self, sha256: &Digest) -> Option<&Quarantined> {
        self.quarantine.iter().find(|entry| entry.refused && entry.sha256 == *sha256)
    }

    /// Ends `operation`: the phase is idle again and the outcome waits to be reported.
    fn finish(&mut self, end: End<'_>, now: OffsetDateTime) {
        let mut operation = end.operation.clone();
        operation.uri = without_query(&operation.uri).to_owned();
        if let Some(desired) = &mut self.desired {
            desired.ended(&operation.id, end.failure.as_ref());
        }
        self.history.insert(
            0,
            Last {
                id: operation.id.clone(),
                source: operation.source,
                result: end.result,
                from_version: end.plan.and_then(|plan| plan.from_version.clone()),
                to_version: end
                    .plan
                    .and_then(|plan| plan.image.as_ref())
                    .map(|image| image.version.clone())
                    .or_else(|| operation.version.clone()),
                finished_at: now,
                error: end.failure,
                operation,
            },
        );
        self.history.truncate(HISTORY);
        self.unreported = (self.unreported + 1).min(HISTORY);
        self.phase = Phase::Idle;
    }

    /// A command other than the desired section starts something.
    fn supersede_desired(&mut self) {
        if let Some(desired) = &mut self.desired {
            desired.superseded();
        }
    }

    /// Remembers that `plan`'s image failed. `refused` false only marks it.
    fn quarantine(&mut self, plan: &Plan, failure: &Failure, refused: bool) {
        let Some(image) = &plan.image else { return };
        self.quarantine.retain(|entry| entry.sha256 != image.sha256);
        let (sha256, version) = (image.sha256, image.version.clone());
        self.quarantine.insert(0, Quarantined { sha256, version, failure: failure.clone(), refused });
        self.quarantine.truncate(QUARANTINE);
    }
}

/// How and why an operation ends; `plan` is there once there was one.
struct End<'a> {
    operation: &'a Operation,
    plan: Option<&'a Plan>,
    result: Outcome,
    failure: Option<Failure>,
}

/// A URI up to its query: SAS tokens live behind it.
pub fn without_query(uri: &str) -> &str {
    uri.split(['?', '#']).next().unwrap_or(uri)
}

/// What is really booted, what the boot environment says, and what time it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Boot {
    /// `None`: the witnesses disagree, nothing may be touched.
    pub booted: Option<Slot>,
    /// `None`: no copy of the environment is valid.
    pub env: Option<BootEnv>,
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
    /// `connected`: there is a hub session; `failed_units`: what had failed before the update, if known.
    Armed {
        connected: bool,
        failed_units: Option<BTreeSet<String>>,
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
}

/// Something to do; idempotent, and performed only after the record was saved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Read and verify the manifest, and plan: reads only.
    Open(Operation),
    /// Write `env_before`, then durably zero the target's first MiB.
    Prepare(Plan),
    /// Bring the image into the target and read it back.
    Stage(Plan),
    /// Wait for the window, the time or the approval.
    Hold(Plan, Hold),
    /// With `verify`, read the target back once more; then write `env_armed`.
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

/// The failure of a trial that ended in the old slot.
fn fell_back(plan: &Plan, boots: u8, tries_left: u8) -> Failure {
    let attempts = plan.tries.saturating_sub(tries_left);
    let message = if boots == 0 {
        "the bootloader gave up on the new slot: no attempt reached user space; see the serial console for why"
    } else {
        "the new slot used up its boot attempts without reaching a verdict, and the old slot is back"
    };
    Failure::new(Code::BootloaderFellBack, message)
        .with(Evidence { boot_attempts: Some(attempts), ..Evidence::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What release 0.1.0 wrote: every later agent must be able to read it.
    const RELEASE_0_1: &str = include_str!("../tests/records/0.1.0-trying.json");

    fn boot(booted: Slot, env: BootEnv) -> Boot {
        let boot_id = BootId("b1".into());
        Boot { booted: Some(booted), env: Some(env), boot_id, now: OffsetDateTime::UNIX_EPOCH, uptime: 9 }
    }

    fn record() -> Record {
        serde_json::from_str(RELEASE_0_1).unwrap()
    }

    fn plan() -> Plan {
        record().phase.plan().unwrap().clone()
    }

    fn roll_back(code: Code, boots: u8, record: &Record) -> Record {
        let trial = Trial { boot_id: BootId("b1".into()), since: 0, boots, connected: true };
        let record = Record { phase: Phase::Trying { plan: plan(), trial }, ..record.clone() };
        let on_trial = boot(Slot::B, plan().env_armed());
        step(&record, &on_trial, Event::Failed(Failure::new(code, "no"))).0
    }

    #[test]
    fn the_previous_releases_record_is_read() {
        let record = record();
        assert_eq!(record.phase.name(), "trying");
        assert_eq!(record.slots.a.state, SlotState::Proven);
        assert_eq!(plan().image.unwrap().version, "1.5.0");
        assert_eq!(record.history.len(), 1);
    }

    #[test]
    fn what_a_newer_agent_wrote_is_kept() {
        let mut newer: Value = serde_json::from_str(RELEASE_0_1).unwrap();
        newer["version"] = 7.into();
        newer["shiny"] = serde_json::json!({"a": [1]});
        newer["phase"]["plan"]["polish"] = true.into();
        newer["phase"]["plan"]["operation"]["colour"] = "red".into();
        let read: Record = serde_json::from_value(newer.clone()).unwrap();
        let written = serde_json::to_value(&read).unwrap();
        assert_eq!(written["version"], 7);
        assert_eq!(written["shiny"], newer["shiny"]);
        assert_eq!(written["phase"]["plan"]["polish"], true);
        assert_eq!(written["phase"]["plan"]["operation"]["colour"], "red");
    }

    #[test]
    fn an_unknown_phase_means_ask_the_environment() {
        let mut newer: Value = serde_json::from_str(RELEASE_0_1).unwrap();
        newer["phase"]["name"] = "polishing".into();
        let read: Record = serde_json::from_value(newer).unwrap();
        assert_eq!(read.phase, Phase::Unknown);
        let env = BootEnv { primary: Slot::A, ..plan().env_armed() };
        let (next, effect) = step(&read, &boot(Slot::B, env), Event::Started);
        assert!(matches!(next.phase, Phase::Trying { .. }), "{:?}", next.phase);
        assert!(matches!(effect, Some(Effect::Check(..))));
        let (next, effect) = step(&read, &boot(Slot::A, BootEnv::only(Slot::A)), Event::Started);
        assert_eq!((next.phase, effect), (Phase::Idle, None));
    }

    #[test]
    fn a_failed_check_is_quarantined_at_once() {
        let next = roll_back(Code::HealthCheckFailed, 1, &record());
        assert!(next.refusal(&plan().image.unwrap().sha256).is_some());
    }

    #[test]
    fn a_hub_out_of_reach_never_quarantines() {
        let next = roll_back(Code::CloudUnreachable, 1, &record());
        assert_eq!(next.quarantine, []);
    }

    #[test]
    fn tries_used_up_by_power_cuts_are_offered_once_more() {
        let used_up = boot(Slot::A, BootEnv { primary: Slot::A, ..plan().env_armed() });
        let trial = crate::slot::Armed { slot: Slot::B, tries: 0 };
        let used_up = Boot { env: Some(BootEnv { trial: Some(trial), ..BootEnv::only(Slot::A) }), ..used_up };
        let sha256 = plan().image.unwrap().sha256;
        let (once, _) = step(&record(), &used_up, Event::Started);
        assert_eq!((once.quarantine.len(), once.refusal(&sha256)), (1, None));
        let again = Record { phase: record().phase, ..once };
        let (twice, _) = step(&again, &used_up, Event::Started);
        assert!(twice.refusal(&sha256).is_some());
    }

    #[test]
    fn an_image_that_never_reached_user_space_is_quarantined() {
        let trial = crate::slot::Armed { slot: Slot::B, tries: 0 };
        let env = BootEnv { trial: Some(trial), ..BootEnv::only(Slot::A) };
        let phase = Phase::Rebooting { plan: plan(), boot_id: BootId("b0".into()), connected: true };
        let (next, effect) = step(&Record { phase, ..record() }, &boot(Slot::A, env), Event::Started);
        assert!(matches!(effect, Some(Effect::Revert(_))));
        let entry = next.refusal(&plan().image.unwrap().sha256).unwrap();
        assert_eq!(entry.failure.code, Code::BootloaderFellBack);
        assert_eq!(entry.failure.evidence.as_ref().unwrap().boot_attempts, Some(3));
    }

    #[test]
    fn a_commit_raises_the_floor_and_a_rollback_does_not_lower_it() {
        let record = Record { phase: Phase::Committing { plan: plan() }, ..record() };
        let (next, _) = step(&record, &boot(Slot::B, plan().env_committed()), Event::Committed);
        assert_eq!(next.floor, 4);
        assert_eq!(next.last().unwrap().result, Outcome::Committed);
        assert_eq!(next.slots.b.state, SlotState::Proven);
        assert_eq!(next.unreported, 1);
    }

    #[test]
    fn nothing_is_touched_when_the_witnesses_disagree() {
        let unsure = Boot { booted: None, ..boot(Slot::B, plan().env_armed()) };
        assert_eq!(step(&record(), &unsure, Event::Started), (record(), None));
    }

    #[test]
    fn the_ended_operation_keeps_no_token() {
        let next = roll_back(Code::HealthCheckFailed, 1, &record());
        let (ended, _) = step(&next, &boot(Slot::A, BootEnv::only(Slot::A)), Event::Reverted);
        let last = ended.last().unwrap();
        assert_eq!(last.result, Outcome::RolledBack);
        assert_eq!(last.operation.uri, "https://host/fw.fwb");
        assert!(!serde_json::to_string(&ended).unwrap().contains("sig=secret"));
    }
}
