//! The effect under way: started, ended by itself, or stopped because something else came up.
//!
//! Effects have a thread of their own with a runtime of its own: whatever in them waits for a medium, the hub's
//! session, local control and the watchdog go on. A medium may hold on to an effect for long. Whoever stops it waits a moment for it; what shall follow then happens
//! when it lets go, and never beside it.

use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Agent;
use super::effects::Work;
use super::gateway::Held;
use crate::failure::{Code, Failure};
use crate::fault;
use crate::machine::{Effect, Event, Phase};
use crate::stage;

/// How long an effect that was told to stop is waited for.
const LET_GO: Duration = Duration::from_secs(2);
/// Longest pause before an effect that has to work is tried again.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The thread of the effects; it ends when this is dropped.
pub struct Workshop {
    handle: Handle,
    _end: oneshot::Sender<()>,
}

impl Workshop {
    pub fn open() -> Result<Workshop, Failure> {
        let failed = |error: std::io::Error| Failure::new(Code::Internal, format!("no thread: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        let serve = move || drop(runtime.block_on(ended));
        thread::Builder::new().name("effects".to_owned()).spawn(serve).map_err(failed)?;
        Ok(Workshop { handle, _end: end })
    }
}

pub struct Running {
    task: JoinHandle<Event>,
    cancel: CancellationToken,
    /// It was told to stop: what follows in place of what it leads to.
    then: Option<Event>,
}

/// Ends with what the running effect led to; never, when none runs.
pub async fn finished(work: &mut Option<Running>) -> Event {
    match work {
        Some(running) => {
            let event =
                (&mut running.task).await.unwrap_or_else(|error| Event::Failed(fault::of_task(error)));
            // What a panic left behind on other threads ends, too.
            running.cancel.cancel();
            event
        }
        None => std::future::pending().await,
    }
}

impl Agent {
    /// The effect ended.
    pub(super) async fn done(&mut self, event: Event) {
        let then = self.work.take().and_then(|running| running.then);
        self.take_bytes();
        if let Some(event) = then {
            return self.follow(event).await;
        }
        self.note_progress();
        match &event {
            Event::Failed(failure) => {
                // The only effect without an operation is the rebuilding of the environment.
                self.not_rebuilt = self.record.phase.is_idle().then(|| failure.message.clone());
                self.failures = self.failures.saturating_add(1);
                tracing::debug!(%failure, phase = self.record.phase.name(), "the effect failed");
            }
            _ => self.failures = 0,
        }
        self.apply(event).await;
        self.publish_waiting();
    }

    /// What comes after an effect that was stopped. A bundle that was open may be another one now.
    async fn follow(&mut self, event: Event) {
        if let Ok(mut held) = self.gateway.held.try_lock() {
            held.bundle = None;
        }
        self.apply(event).await;
        self.publish_waiting();
    }

    /// Starts the effect's task; one that failed before waits a little.
    pub(super) fn start(&mut self, effect: Effect) {
        if effect == Effect::Reboot {
            self.reboot = true;
            return;
        }
        match &effect {
            Effect::Open(operation) => self.meter = self.gateway.meter(operation, self.record.downloaded),
            Effect::Stage(plan) => {
                self.gateway.progress.send_replace(stage::Progress::default());
                // A bundle that is open goes on counting in the meter that it was opened with.
                if !self.gateway.holds_bundle() {
                    self.meter = self.gateway.meter(&plan.operation, self.record.downloaded);
                }
            }
            _ => {}
        }
        let cancel = CancellationToken::new();
        let work = Work {
            gateway: self.gateway.clone(),
            record: self.record.clone(),
            meter: self.meter.clone(),
            cancel: cancel.clone(),
        };
        let pause = self.pause();
        let task = self.workshop.handle.spawn(async move {
            tokio::time::sleep(pause).await;
            work.perform(effect).await
        });
        self.work = Some(Running { task, cancel, then: None });
    }

    /// Only the way back is repeated after a failure; it doubles its pause.
    fn pause(&self) -> Duration {
        match (&self.record.phase, self.failures) {
            (Phase::RollingBack { .. }, 1..) => {
                Duration::from_millis(500).saturating_mul(1 << self.failures.min(10)).min(LONGEST_RETRY)
            }
            _ => Duration::ZERO,
        }
    }

    /// Nothing runs: the slot and the bundle are free again.
    pub(super) fn let_go(&mut self) {
        if let Ok(mut held) = self.gateway.held.try_lock() {
            *held = Held::default();
        }
        self.failures = 0;
    }

    /// An effect was told to stop and has not let go yet.
    pub(super) fn is_stopping(&self) -> bool {
        self.work.as_ref().is_some_and(|running| running.then.is_some())
    }

    /// Stops the effect under way, of which nothing counts any more; then `event` happens. `false`: the effect
    /// has not let go yet, and it happens when it does.
    pub(super) async fn stop_work(&mut self, event: Event) -> bool {
        let Some(mut running) = self.work.take() else {
            self.follow(event).await;
            return true;
        };
        running.cancel.cancel();
        if running.then.is_none() && self.meanwhile(timeout(LET_GO, &mut running.task)).await.is_ok() {
            self.take_bytes();
            self.follow(event).await;
            return true;
        }
        if running.then.replace(event).is_none() {
            tracing::warn!("the medium holds on to what is to be stopped; it ends as soon as that lets go");
        }
        self.work = Some(running);
        false
    }

    /// Stops the effect under way and waits until it has let go; what it led to no longer counts.
    pub(super) async fn end_work(&mut self) {
        while let Some(Running { task, cancel, then }) = self.work.take() {
            cancel.cancel();
            if let Err(error) = self.meanwhile(task).await {
                tracing::error!("{}", fault::of_task(error).message);
            }
            self.take_bytes();
            if let Some(event) = then {
                self.follow(event).await;
            }
        }
    }
}
