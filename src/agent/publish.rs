//! Tells the hub and the local watchers where things stand. Only what is saved is told.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::inbox::Incoming;
use super::systemd;
use crate::clock::Clock;
use crate::control::{Method, Reply};
use crate::hub::{self, Document, Message};
use crate::lifecycle;
use crate::machine::{self, Last, Phase, Record};
use crate::manifest::Digest;
use crate::report::{self, ReportedProgress, View};
use crate::slot::Slot;

/// The newest report, for the hub and for those who watch.
pub struct Publisher {
    view: View,
    clock: Clock,
    documents: watch::Sender<Arc<Document>>,
    watchers: Vec<Reply>,
    /// The outcome that waits for its acknowledgement, and the first generation that told it.
    outcome: Option<(Last, u64)>,
    milestone: (String, u64),
    /// When this run's staging began, and the percent it began from.
    staging_since: Option<(Instant, u64)>,
    /// Why no update can start, as it was last logged.
    logged: Option<String>,
    /// Where lifecycle events go, and the record up to which they were told; `None`: switched off.
    telemetry: Option<(mpsc::Sender<Message>, Record)>,
}

impl Publisher {
    /// `awaited`: what is set and does not count yet, and why.
    pub fn new(clock: Clock, awaited: &[String]) -> (Publisher, watch::Receiver<Arc<Document>>) {
        let awaits = (!awaited.is_empty()).then(|| awaited.join("; "));
        let (documents, receiver) = watch::channel(Arc::new(Document::default()));
        let publisher = Publisher {
            view: View { awaits, ..View::default() },
            clock,
            documents,
            watchers: Vec::new(),
            outcome: None,
            milestone: (String::new(), 0),
            staging_since: None,
            logged: None,
            telemetry: None,
        };
        (publisher, receiver)
    }

    /// What runs, and why no update can start, if so.
    pub fn see(&mut self, booted: Option<Slot>, version: Option<String>, degraded: Option<String>) {
        (self.view.booted, self.view.booted_version, self.view.degraded) = (booted, version, degraded);
    }

    pub fn degrade(&mut self, why: &str) {
        self.view.degraded = Some(why.to_owned());
    }

    /// What the effect under way waits for; true when that is news.
    pub fn wait_for(&mut self, waiting: Option<String>) -> bool {
        let news = waiting != self.view.waiting;
        if let Some(why) = waiting.as_ref().filter(|_| news) {
            tracing::warn!("the update waits: {why}");
        }
        self.view.waiting = waiting;
        news
    }

    /// From now on what happens to `record` is told, and so are its outcomes that the hub may not know.
    pub fn tell_events(&mut self, record: &Record, telemetry: mpsc::Sender<Message>) {
        let history = record.history.get(record.unreported..).unwrap_or_default().to_vec();
        self.telemetry = Some((telemetry, Record { history, ..record.clone() }));
    }

    /// Hands what happened to the hub edge, which sends it when it can; never waits.
    fn events(&mut self, record: &Record, now: time::OffsetDateTime) {
        let Some((telemetry, told)) = &mut self.telemetry else { return };
        for event in lifecycle::between(told, record, now) {
            if telemetry.try_send(message(&event)).is_err() {
                tracing::warn!(
                    event = event.name.as_str(),
                    "too many lifecycle events wait: this one is not sent"
                );
            }
        }
        *told = record.clone();
    }

    /// The document of this generation told the outcome that waits for its acknowledgement.
    pub fn told_outcome(&self, generation: u64) -> bool {
        self.outcome.as_ref().is_some_and(|(_, first)| generation >= *first)
    }

    /// The report of `record` as it stands.
    fn body(&self, record: &Record) -> Map<String, Value> {
        report::document(record, &self.view)
    }

    /// The report for local eyes: the newest outcome, also while the hub still lacks an older one.
    fn local(&self, record: &Record) -> Value {
        let newest = Record { unreported: 0, ..record.clone() };
        Value::Object(self.body(&newest))
    }

    /// Says in the journal when the gateway can no longer be updated, and when it can again.
    fn log_degraded(&mut self) {
        if self.view.degraded == self.logged {
            return;
        }
        match &self.view.degraded {
            Some(why) => tracing::error!("degraded: no update can start: {why}"),
            None => tracing::info!("no longer degraded: updates can start again"),
        }
        self.logged.clone_from(&self.view.degraded);
    }

    pub fn publish(&mut self, saved: &Record) {
        let staging = matches!(saved.phase, Phase::Staging { .. });
        if !staging {
            self.staging_since = None;
        }
        self.view.clock = self.clock.learned_from();
        self.view.progress = staging.then(|| ReportedProgress {
            eta_seconds: self.eta(saved.progress.percent),
            ..ReportedProgress::of(saved)
        });
        self.events(saved, self.clock.now());
        self.report(saved);
    }

    fn report(&mut self, record: &Record) {
        self.log_degraded();
        let newest = self.documents.borrow().clone();
        let mut body = self.body(record);
        if without_time(&body) == without_time(&newest.body) && !self.is_postdated() {
            self.note_outcome(record, newest.generation);
            return;
        }
        self.view.log_time = Some(self.clock.now());
        body.insert("logTime".into(), crate::bounds::moment(self.view.log_time));
        let generation = newest.generation.saturating_add(1);
        self.note_outcome(record, generation);
        let milestone = self.milestone(record);
        systemd::status(&summary(record, &self.view));
        self.tell_watchers(record);
        self.documents.send_replace(Arc::new(Document { body, generation, milestone }));
    }

    /// The last report carries a time that has not come yet, for the clock was set back.
    fn is_postdated(&self) -> bool {
        let latest = self.clock.now().saturating_add(time::Duration::minutes(1));
        self.view.log_time.is_some_and(|told| told > latest)
    }

    /// What the clock says is not what was reported last.
    pub fn is_outdated(&self) -> bool {
        self.is_postdated() || self.view.clock != self.clock.learned_from()
    }

    /// Tells the watchers how far staging has come, when that is news.
    pub fn tell_progress(&mut self, staged: machine::SavedProgress, downloaded: u64, saved: &Record) {
        let progress = ReportedProgress { staged, downloaded, eta_seconds: self.eta(staged.percent) };
        if self.view.progress != Some(progress) {
            self.view.progress = Some(progress);
            self.tell_watchers(saved);
        }
    }

    fn tell_watchers(&mut self, record: &Record) {
        if !self.watchers.is_empty() {
            let body = self.local(record);
            self.watchers.retain(|watcher| watcher.offer(Ok(body.clone())));
        }
    }

    fn note_outcome(&mut self, record: &Record, generation: u64) {
        let waiting = record.told().filter(|_| record.unreported > 0);
        if waiting != self.outcome.as_ref().map(|(last, _)| last) {
            self.outcome = waiting.map(|last| (last.clone(), generation));
        }
    }

    /// Rises when the phase, what it waits for, the outcome or the fitness for updates changed.
    fn milestone(&mut self, record: &Record) -> u64 {
        let last = record.told().map(|last| (&last.id, last.result, last.finished_at));
        let desired = record.desired.as_ref().map(|desired| desired.digest);
        let view = (&self.view.degraded, &self.view.waiting);
        let key = format!("{} {last:?} {desired:?} {view:?}", record.phase.name());
        if key != self.milestone.0 {
            self.milestone = (key, self.milestone.1.saturating_add(1));
        }
        self.milestone.1
    }

    /// Seconds to the end of staging at this run's pace.
    fn eta(&mut self, percent: u64) -> Option<u64> {
        let (since, from) = *self.staging_since.get_or_insert_with(|| (Instant::now(), percent));
        let done = percent.checked_sub(from).filter(|done| *done > 0)?;
        let seconds = since.elapsed().as_secs_f64() / done as f64 * 100u64.saturating_sub(percent) as f64;
        Some(seconds.ceil() as u64)
    }

    /// Answers whoever only asks, from what is saved; returns what needs more than that.
    pub fn answer(&mut self, incoming: Incoming, saved: &Record) -> Option<Incoming> {
        match incoming {
            Incoming::Hub(hub::HubEvent::Method(call))
                if call.name == "firmwareStatus" && call.payload.is_ok() =>
            {
                tracing::info!(method = "firmwareStatus", status = 200, "direct method");
                call.respond(200, Value::Object(self.body(saved)));
            }
            Incoming::Control(call) if call.request.method == Method::Watch => self.watch(call.reply, saved),
            Incoming::Control(call) => match self.told(call.request.method, saved) {
                Some(answer) => drop(call.reply.offer(Ok(answer))),
                None => return Some(Incoming::Control(call)),
            },
            other => return Some(other),
        }
        None
    }

    fn told(&self, method: Method, saved: &Record) -> Option<Value> {
        match method {
            Method::Status => Some(self.local(saved)),
            Method::History => {
                Some(json!({ "history": saved.history.iter().map(report::last).collect::<Vec<_>>() }))
            }
            Method::Slots => Some(json!({
                "bootedSlot": self.view.booted.map(|slot| slot.to_string()),
                "slots": report::slots(saved, &self.view),
            })),
            _ => None,
        }
    }

    /// Sends the whole report to `watcher` now, and again with each change.
    fn watch(&mut self, watcher: Reply, saved: &Record) {
        // Those that left while nothing happened are forgotten here.
        self.watchers.retain(|watcher| !watcher.is_closed());
        if watcher.offer(Ok(self.local(saved))) {
            self.watchers.push(watcher);
        }
    }
}

/// A copy of an event has the same id, also one that another run of the agent sends.
fn message(event: &lifecycle::LifecycleEvent) -> Message {
    let named = format!("{}\n{}\n{}", event.operation, event.name, event.attempt);
    let id = Digest::of(named.as_bytes()).to_string().chars().take(32).collect();
    let mut properties = vec![("schema", lifecycle::SCHEMA.to_owned()), ("event", event.name.clone())];
    properties.extend(event.code.map(|code| ("code", code.to_string())));
    Message { id, correlation: event.operation.clone(), properties, body: event.body.clone() }
}

/// What is news: times and the time left alone are none.
fn without_time(body: &Map<String, Value>) -> Map<String, Value> {
    let mut body = body.clone();
    body.remove("logTime");
    let operation = body.get_mut("fwupdate").and_then(|ours| ours.get_mut("operation"));
    if let Some(operation) = operation.and_then(Value::as_object_mut) {
        operation.remove("etaSeconds");
    }
    body
}

fn summary(record: &Record, view: &View) -> String {
    if let Some(degraded) = &view.degraded {
        return format!("degraded: {degraded}");
    }
    let status = report::status(record);
    match record.phase.operation() {
        Some(operation) => format!("{status}, {}, operation {}", record.phase.name(), operation.id),
        None => status.to_owned(),
    }
}
