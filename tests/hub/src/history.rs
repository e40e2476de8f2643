//! What devices said, got and when they came, in order: every session, reported patch, telemetry message and issued
//! certificate, for tests and for the curious.
//!
//! In memory only: it is the story of one run, the hub's restarts within it included.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use crate::authority::Issued;
use crate::registry::Identity;
use crate::{clock, lock};

/// Entries kept per identity and kind; the oldest go first.
const KEPT: usize = 10_000;

/// One reported patch that the hub accepted.
#[derive(Debug, Clone, Serialize)]
pub struct ReportedPatch {
    pub time: String,
    /// `$version` of the reported properties after it.
    pub version: u64,
    pub patch: Value,
    /// Bytes of the payload as sent.
    pub size: usize,
    /// What the device's witness saw when the patch came in, if it has one.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub seen: Value,
    /// Not the device's word: the twin was made anew or went back to an older copy, and `patch` is all it holds.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replaced: bool,
}

/// One CONNECT, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit {
    /// Rises from connection to connection.
    pub number: u64,
    pub began: Instant,
    /// The device was let in.
    pub accepted: bool,
    pub ended: Option<Instant>,
    /// The device said DISCONNECT.
    pub orderly: bool,
}

/// Looks at the world beside the hub, at the moment of a patch.
#[derive(Clone)]
pub struct Witness(Arc<dyn Fn() -> Value + Send + Sync>);

impl Witness {
    pub fn new(look: impl Fn() -> Value + Send + Sync + 'static) -> Witness {
        Witness(Arc::new(look))
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Witness")
    }
}

/// One device-to-cloud message.
#[derive(Debug, Clone, Serialize)]
pub struct Telemetry {
    pub time: String,
    /// The topic's property bag, as sent.
    pub properties: String,
    /// Text, or base64 where it is not UTF-8.
    pub body: String,
}

#[derive(Debug, Default)]
struct Story {
    patches: VecDeque<ReportedPatch>,
    telemetry: VecDeque<Telemetry>,
    visits: VecDeque<Visit>,
    issued: VecDeque<Issued>,
    witness: Option<Witness>,
}

/// The stories of all identities.
#[derive(Debug, Default)]
pub struct History(Mutex<HashMap<Identity, Story>>);

impl History {
    pub fn patched(&self, identity: &Identity, version: u64, patch: Value, size: usize) {
        let mut stories = lock(&self.0);
        let story = stories.entry(identity.clone()).or_default();
        let seen = story.witness.as_ref().map_or(Value::Null, |witness| (witness.0)());
        let time = clock::now();
        push(&mut story.patches, ReportedPatch { time, version, patch, size, seen, replaced: false });
    }

    /// The reported properties are `whole` from now on, without a word of the device.
    pub fn replaced(&self, identity: &Identity, version: u64, whole: Value) {
        let mut stories = lock(&self.0);
        let (time, seen) = (clock::now(), Value::Null);
        let entry = ReportedPatch { time, version, patch: whole, size: 0, seen, replaced: true };
        push(&mut stories.entry(identity.clone()).or_default().patches, entry);
    }

    /// A device said CONNECT.
    pub fn came(&self, identity: &Identity, number: u64, accepted: bool) {
        let visit = Visit { number, began: Instant::now(), accepted, ended: None, orderly: false };
        push(&mut lock(&self.0).entry(identity.clone()).or_default().visits, visit);
    }

    /// That connection is over.
    pub fn left(&self, identity: &Identity, number: u64, orderly: bool) {
        let mut stories = lock(&self.0);
        let visits = stories.get_mut(identity).map(|story| story.visits.iter_mut().rev());
        if let Some(visit) = visits.into_iter().flatten().find(|visit| visit.number == number) {
            (visit.ended, visit.orderly) = (Some(Instant::now()), orderly);
        }
    }

    pub fn visits(&self, identity: &Identity) -> Vec<Visit> {
        lock(&self.0).get(identity).map(|story| story.visits.iter().copied().collect()).unwrap_or_default()
    }

    pub fn said(&self, identity: &Identity, properties: &str, body: &[u8]) {
        let text = std::str::from_utf8(body).map(str::to_owned);
        let body = text.unwrap_or_else(|_| data_encoding::BASE64.encode(body));
        let entry = Telemetry { time: clock::now(), properties: properties.to_owned(), body };
        push(&mut lock(&self.0).entry(identity.clone()).or_default().telemetry, entry);
    }

    /// A certificate was issued for the device.
    pub fn issued(&self, identity: &Identity, issued: Issued) {
        push(&mut lock(&self.0).entry(identity.clone()).or_default().issued, issued);
    }

    pub fn certificates(&self, identity: &Identity) -> Vec<Issued> {
        lock(&self.0).get(identity).map(|story| story.issued.iter().cloned().collect()).unwrap_or_default()
    }

    /// From now on `witness` is asked at each of the device's patches.
    pub fn watch(&self, identity: &Identity, witness: Witness) {
        lock(&self.0).entry(identity.clone()).or_default().witness = Some(witness);
    }

    pub fn patches(&self, identity: &Identity) -> Vec<ReportedPatch> {
        lock(&self.0).get(identity).map(|story| story.patches.iter().cloned().collect()).unwrap_or_default()
    }

    pub fn telemetry(&self, identity: &Identity) -> Vec<Telemetry> {
        lock(&self.0).get(identity).map(|story| story.telemetry.iter().cloned().collect()).unwrap_or_default()
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == KEPT {
        queue.pop_front();
    }
    queue.push_back(item);
}
