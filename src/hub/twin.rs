//! The conversation about the twin: what is asked and sent next, given what the hub answered so far.
//!
//! Pure: it is told what happened and what time it is, and returns what to do, so that it is tested without a
//! socket. One request is in flight at a time. On every connection the twin is read first and the document is
//! compared with what the twin itself holds, for nothing else is certain after an interruption. When the hub
//! announces a change of the desired properties the twin is read again, since a patch and a replacement of the
//! whole section look the same on the wire.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::error::HubError;
use super::event::Document;
use super::merge::{difference, merge};
use super::topics;
use crate::backoff::Backoff;
use crate::clock;

/// A request that is not answered for so long is given up.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The hub bills one message for each 4 KB of a patch.
const PATCH_ADVICE: usize = 4096;
/// How often a twin that is older than what the hub announced is read again.
const STALE_READS: u32 = 5;

/// What the driver has to do.
#[derive(Debug)]
pub(super) enum TwinAction {
    Publish {
        topic: String,
        payload: Vec<u8>,
    },
    /// The twin was read for the first time on this connection.
    Ready,
    Desired(Value),
    Acknowledged(u64),
    /// This connection is of no use any more.
    Lost(HubError),
}

#[derive(Debug)]
enum RequestKind {
    Read,
    Patch { patch: Map<String, Value>, document: Arc<Document> },
}

#[derive(Debug)]
struct TwinRequest {
    rid: String,
    deadline: Instant,
    kind: RequestKind,
}

/// The twin as the hub sends it: the two sections without a wrapper.
#[derive(Deserialize)]
struct Sections {
    #[serde(default)]
    desired: Map<String, Value>,
    #[serde(default)]
    reported: Map<String, Value>,
}

#[derive(Debug)]
pub(super) struct Twin {
    /// Distinguishes our requests from those of an earlier run whose answers the hub may still deliver.
    prefix: u64,
    requests: u64,
    interval: Duration,
    backoff: Backoff,
    document: Arc<Document>,
    reported: Map<String, Value>,
    link: Link,
    acknowledged: Option<u64>,
    hurried: bool,
}

/// What is known on this connection alone.
#[derive(Debug, Default)]
struct Link {
    /// It stands, and its subscriptions are confirmed.
    connected: bool,
    /// The twin was read, and `reported` is what it holds.
    ready: bool,
    /// The twin has to be read (again) before anything else.
    stale: bool,
    stale_reads: u32,
    /// Newest desired version that the hub announced.
    announced: u64,
    /// Desired version handed out last.
    delivered: Option<u64>,
    request: Option<TwinRequest>,
    /// No request before this, after the hub asked for patience.
    not_before: Option<Instant>,
    /// When the last patch was sent, and the milestone that it carried.
    sent: Option<(Instant, u64)>,
    /// The document that the hub rejected: not sent again.
    rejected: Option<Arc<Document>>,
}

impl Twin {
    /// `prefix` should be random; `interval` is the least time between two patches of one milestone.
    pub fn new(prefix: u64, interval: Duration, backoff: Backoff, document: Arc<Document>) -> Twin {
        Twin {
            prefix,
            requests: 0,
            interval,
            backoff,
            document,
            reported: Map::new(),
            link: Link::default(),
            acknowledged: None,
            hurried: false,
        }
    }

    /// A connection stands and its subscriptions are confirmed.
    pub fn connected(&mut self) {
        self.disconnected();
        self.link.connected = true;
        self.link.stale = true;
    }

    /// What was in flight is forgotten: only reading the twin tells whether it arrived.
    pub fn disconnected(&mut self) {
        self.link = Link::default();
        self.backoff.reset();
    }

    /// A newer document takes the place of one that waits.
    pub fn document(&mut self, document: Arc<Document>) {
        self.document = document;
    }

    /// From now on the interval between patches is ignored: the agent is about to stop.
    pub fn hurry(&mut self) {
        self.hurried = true;
    }

    pub fn is_busy(&self) -> bool {
        self.link.request.is_some()
    }

    /// Nothing is left to send: the hub holds the newest document, or rejected it.
    pub fn is_settled(&self) -> bool {
        self.link.ready && !self.link.stale && self.link.request.is_none() && self.due_patch().is_none()
    }

    /// The hub announced a version of the desired properties.
    pub fn announced(&mut self, version: u64) {
        if version > self.link.announced.max(self.link.delivered.unwrap_or(0)) {
            self.link.announced = version;
            self.link.stale = true;
            self.link.stale_reads = 0;
        }
    }

    /// What is to be done now; call it after everything that changed, and at `wake_at`.
    pub fn poll(&mut self, now: Instant) -> Vec<TwinAction> {
        let mut actions = Vec::new();
        if !self.link.connected || self.expire(now, &mut actions) || self.link.request.is_some() {
            return actions;
        }
        let patch = self.due_patch();
        if self.link.ready && !self.link.stale && patch.is_none() {
            self.acknowledge_unsent(&mut actions);
        } else if self.send_at(now) <= now {
            match patch {
                Some(patch) if !self.link.stale => actions.extend(self.send_patch(now, patch)),
                _ => actions.push(self.send_read(now)),
            }
        }
        actions
    }

    /// When `poll` has something to do although nothing happened.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        if !self.link.connected || self.is_settled() {
            return None;
        }
        Some(self.link.request.as_ref().map_or_else(|| self.send_at(now), |request| request.deadline))
    }

    /// An answer of the hub. `random` (0..1) spreads the retries.
    pub fn answered(
        &mut self,
        now: Instant,
        random: f64,
        rid: &str,
        status: u16,
        body: &[u8],
    ) -> Vec<TwinAction> {
        let Some(request) = self.link.request.take_if(|request| request.rid == rid) else {
            tracing::debug!("an answer to a request that was given up: status {status}");
            return Vec::new();
        };
        if matches!(status, 408 | 429 | 500..) {
            tracing::warn!("the hub put off a request for the twin (status {status}); trying again");
            self.postpone(now, random);
            // An error of the server leaves open whether the patch was applied.
            self.link.stale |= status != 429;
            return Vec::new();
        }
        match request.kind {
            RequestKind::Read if status == 200 => self.was_read(now, random, body),
            RequestKind::Read => vec![TwinAction::Lost(HubError::TwinRefused { status })],
            RequestKind::Patch { patch, document } if (200..300).contains(&status) => {
                merge(&mut self.reported, &patch);
                self.backoff.reset();
                self.acknowledged = Some(document.generation);
                vec![TwinAction::Acknowledged(document.generation)]
            }
            RequestKind::Patch { document, .. } => {
                let why = String::from_utf8_lossy(body.get(..body.len().min(200)).unwrap_or_default());
                tracing::error!(
                    "the hub rejected report {} (status {status}): {why}; it is not sent again until it changes",
                    document.generation
                );
                self.link.rejected = Some(document);
                Vec::new()
            }
        }
    }

    fn was_read(&mut self, now: Instant, random: f64, body: &[u8]) -> Vec<TwinAction> {
        let Sections { desired, reported } = match serde_json::from_slice(body) {
            Ok(sections) => sections,
            Err(error) => {
                return vec![TwinAction::Lost(HubError::TwinMalformed { cause: error.to_string() })];
            }
        };
        let version = desired.get("$version").and_then(Value::as_u64).unwrap_or(0);
        self.reported = reported;
        self.link.stale = version < self.link.announced && self.link.stale_reads < STALE_READS;
        if self.link.stale {
            self.link.stale_reads = self.link.stale_reads.saturating_add(1);
            self.postpone(now, random);
        } else if self.due_patch().is_none() {
            // While a patch waits, only its own success shows that the hub has recovered.
            self.backoff.reset();
        }
        let mut actions = Vec::new();
        if !self.link.ready {
            self.link.ready = true;
            actions.push(TwinAction::Ready);
        }
        if self.link.delivered.is_none_or(|delivered| version > delivered) {
            self.link.delivered = Some(version);
            actions.push(TwinAction::Desired(Value::Object(desired)));
        }
        actions
    }

    fn postpone(&mut self, now: Instant, random: f64) {
        self.link.not_before = Some(clock::after(now, self.backoff.next(random)));
        self.link.sent = None;
    }

    /// Gives up a request whose answer is overdue. True: the connection is lost.
    fn expire(&mut self, now: Instant, actions: &mut Vec<TwinAction>) -> bool {
        match self.link.request.take_if(|request| request.deadline <= now) {
            None => false,
            Some(TwinRequest { kind: RequestKind::Patch { .. }, .. }) => {
                // The patch may have arrived: only the twin itself knows.
                tracing::warn!("the hub left a report unanswered; reading the twin");
                self.link.stale = true;
                self.link.sent = None;
                false
            }
            Some(TwinRequest { kind: RequestKind::Read, .. }) => {
                actions.push(TwinAction::Lost(HubError::TwinSilent));
                true
            }
        }
    }

    /// The earliest moment at which the next request may leave.
    fn send_at(&self, now: Instant) -> Instant {
        let patient = self.link.not_before.unwrap_or(now);
        match self.link.sent {
            Some((at, milestone))
                if !self.link.stale && !self.hurried && milestone == self.document.milestone =>
            {
                patient.max(clock::after(at, self.interval))
            }
            _ => patient,
        }
    }

    /// What the twin lacks; `None` also while the hub rejects this very document.
    fn due_patch(&self) -> Option<Map<String, Value>> {
        if self.is_rejected() {
            return None;
        }
        let patch = difference(&self.document.body, &self.reported);
        (!patch.is_empty()).then_some(patch)
    }

    fn is_rejected(&self) -> bool {
        self.link.rejected.as_ref().is_some_and(|rejected| rejected.body == self.document.body)
    }

    /// The twin already holds the document, so no patch will be answered for it.
    fn acknowledge_unsent(&mut self, actions: &mut Vec<TwinAction>) {
        let generation = self.document.generation;
        if !self.is_rejected() && self.acknowledged != Some(generation) {
            self.acknowledged = Some(generation);
            actions.push(TwinAction::Acknowledged(generation));
        }
    }

    fn send_read(&mut self, now: Instant) -> TwinAction {
        let rid = self.request(now, RequestKind::Read);
        TwinAction::Publish { topic: topics::twin_get(&rid), payload: Vec::new() }
    }

    fn send_patch(&mut self, now: Instant, patch: Map<String, Value>) -> Option<TwinAction> {
        let payload = serde_json::to_vec(&patch).ok()?;
        if payload.len() > PATCH_ADVICE {
            tracing::warn!("a report of {} bytes is billed as more than one message", payload.len());
        }
        self.link.rejected = None;
        self.link.sent = Some((now, self.document.milestone));
        let document = self.document.clone();
        let rid = self.request(now, RequestKind::Patch { patch, document });
        Some(TwinAction::Publish { topic: topics::twin_patch(&rid), payload })
    }

    fn request(&mut self, now: Instant, kind: RequestKind) -> String {
        self.requests = self.requests.wrapping_add(1);
        let rid = format!("{:x}-{:x}", self.prefix, self.requests);
        self.link.not_before = None;
        self.link.request =
            Some(TwinRequest { rid: rid.clone(), deadline: clock::after(now, ANSWER_WITHIN), kind });
        rid
    }
}

#[cfg(test)]
mod tests;
