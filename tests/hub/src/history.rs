//! What devices said, in order: every reported patch and every telemetry message, for tests and for the curious.
//!
//! In memory only: it is the story of one run.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use serde::Serialize;
use serde_json::Value;

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
}

/// The stories of all identities.
#[derive(Debug, Default)]
pub struct History(Mutex<HashMap<Identity, Story>>);

impl History {
    pub fn patched(&self, identity: &Identity, version: u64, patch: Value, size: usize) {
        let entry = ReportedPatch { time: clock::now(), version, patch, size };
        push(&mut lock(&self.0).entry(identity.clone()).or_default().patches, entry);
    }

    pub fn said(&self, identity: &Identity, properties: &str, body: &[u8]) {
        let text = std::str::from_utf8(body).map(str::to_owned);
        let body = text.unwrap_or_else(|_| data_encoding::BASE64.encode(body));
        let entry = Telemetry { time: clock::now(), properties: properties.to_owned(), body };
        push(&mut lock(&self.0).entry(identity.clone()).or_default().telemetry, entry);
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
