//! The record that outlives power cuts: everything the agent remembers, and how an operation ends in it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::desired::Desired;
use super::operation::{Extra, ImageInfo, Operation, Origin, Phase, Plan};
use crate::failure::Failure;
use crate::manifest::Digest;
use crate::slot::Slot;

/// The version of the record that this agent writes; readers of any version read what they know of it.
pub const RECORD_VERSION: u32 = 1;

/// How many ended operations `history` keeps.
pub(super) const HISTORY: usize = 16;

/// The check of a trial by which the hub's refusal of an image leads back: doctor's question `hub`.
pub(super) const HUB_CHECK: &str = "next-update: hub";

/// How many digests the quarantine keeps; the oldest goes first.
pub(super) const QUARANTINE: usize = 16;

/// Everything the agent remembers. Additive: a field that is missing has a default, one that is unknown is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// What a synchronised clock said last, Unix seconds: one that is not synchronised never falls below it. Early
    /// agents saved whatever the clock said, as `wallClock`.
    pub synchronised_time: i64,
    /// Bytes that the running operation has received, over all its runs.
    pub downloaded: u64,
    /// How far its staging has come, so that no restart takes back what was reported.
    pub progress: SavedProgress,
    /// systemd units that had failed before the last update was armed; `None`: not known.
    pub failed_units: Option<BTreeSet<String>>,
    /// What the slot could do that armed the last trial; `None`: not known.
    pub abilities: Option<Abilities>,
    /// It began in a folder that held no record.
    pub fresh: bool,
    /// The last desired section that was acted upon.
    pub desired: Option<Desired>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// What the slot that arms a trial can do: an image that can do less could never be replaced by another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Abilities {
    /// The questions that were asked, and whether all was well.
    pub answers: BTreeMap<String, bool>,
    /// The board's name.
    pub compatible: String,
    /// Who the gateway is at its hub.
    pub hub: Option<String>,
    /// Ids of the keys that may sign.
    pub keys: BTreeSet<String>,
    /// What the running system calls itself.
    pub version: Option<String>,
}

/// How far staging has come, as it was last told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedProgress {
    pub percent: u64,
    /// What `downloaded` will be at the end, bytes.
    pub expected: u64,
    /// Bytes of the image that needed no download.
    pub reused: u64,
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
    /// What its system called itself when it was left: all that is known of an image from the factory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
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
    pub(super) fn finish(&mut self, end: End<'_>, now: OffsetDateTime) {
        let mut operation = end.operation.clone();
        operation.uri = operation.uri.without_query().into();
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
        self.unreported = self.unreported.saturating_add(1).min(HISTORY);
        self.phase = Phase::Idle;
    }

    /// The hub refuses the old slot too. If it was the hub's word that led back here, and there was no session since, the
    /// device itself is refused: that says nothing of the image.
    pub(super) fn absolve(&mut self) {
        let by_hub = |failure: &Failure| {
            failure.evidence.as_ref().is_some_and(|evidence| evidence.check.as_deref() == Some(HUB_CHECK))
        };
        let untold = self.unreported > 0 && self.phase.is_idle();
        let Some(last) = self.history.first_mut().filter(|_| untold) else { return };
        let Some(error) = last.error.as_mut().filter(|error| by_hub(error)) else { return };
        let newest = self.quarantine.first();
        if !newest
            .is_some_and(|entry| by_hub(&entry.failure) && last.to_version.as_ref() == Some(&entry.version))
        {
            return;
        }
        self.quarantine.remove(0);
        error.message = format!(
            "the hub refuses this device itself, also in the old slot: see that it exists there and is enabled, then \
             install the image again; on its trial {}",
            error.message
        );
    }

    /// Remembers that `plan`'s image failed. `refused` false only marks it.
    pub(super) fn quarantine(&mut self, plan: &Plan, failure: &Failure, refused: bool) {
        let Some(image) = &plan.image else { return };
        self.quarantine.retain(|entry| entry.sha256 != image.sha256);
        let (sha256, version) = (image.sha256, image.version.clone());
        self.quarantine.insert(0, Quarantined { sha256, version, failure: failure.clone(), refused });
        self.quarantine.truncate(QUARANTINE);
    }
}

/// How and why an operation ends; `plan` is there once there was one.
pub(super) struct End<'a> {
    pub operation: &'a Operation,
    pub plan: Option<&'a Plan>,
    pub result: Outcome,
    pub failure: Option<Failure>,
}
