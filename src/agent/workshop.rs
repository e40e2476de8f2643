//! The effect under way: started, ended by itself, or stopped because something else came up; and what an operation
//! holds on to between its effects.
//!
//! Effects have a thread of their own with a runtime of its own: whatever in them waits for a medium, the hub's
//! session, local control and the watchdog go on. A medium may hold on to an effect for long. Whoever stops it waits a
//! moment for it; what shall follow then happens when it lets go, and never beside it.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::effects::{Held, Work};
use super::gateway::Gateway;
use crate::backoff;
use crate::failure::{Code, Failure};
use crate::fault;
use crate::machine::{Effect, Event, Phase, Record, SavedProgress};
use crate::stage::{self, Meter, Step};

/// Half of the first pause before an effect that has to work is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Longest pause before an effect that has to work is tried again.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The effects' thread, which ends when this is dropped, and what they leave for one another.
pub struct Workshop {
    handle: Handle,
    _end: oneshot::Sender<()>,
    gateway: Arc<Gateway>,
    running: Option<Running>,
    held: Held,
    meter: Arc<Meter>,
    /// Failures in a row of an effect that has to work.
    failures: u32,
    /// Why a lost environment could not be rebuilt.
    not_rebuilt: Option<String>,
}

struct Running {
    task: JoinHandle<(Event, Held)>,
    cancel: CancellationToken,
    /// It has the spare slot, or is about to.
    holds_slot: bool,
    /// Nobody asked for it: it makes a lost environment anew.
    rebuilds: bool,
    /// It was told to stop: what follows in place of what it leads to.
    then: Option<Event>,
}

/// What an effect that ended leads to.
pub struct Done {
    pub event: Event,
    /// It was stopped, and nothing of it counts.
    pub stopped: bool,
}

impl Workshop {
    /// `spent`: bytes that the operation received in earlier runs.
    pub fn open(gateway: Arc<Gateway>, spent: u64) -> Result<Workshop, Failure> {
        let failed = |error: std::io::Error| Failure::new(Code::Internal, format!("no thread: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        let serve = move || drop(runtime.block_on(ended));
        thread::Builder::new().name("effects".to_owned()).spawn(serve).map_err(failed)?;
        let meter = Arc::new(Meter::new(spent, None, None));
        let (running, held, failures, not_rebuilt) = Default::default();
        Ok(Workshop { handle, _end: end, gateway, running, held, meter, failures, not_rebuilt })
    }

    /// Starts the effect that the saved `record` calls for; one that failed before waits a little.
    pub fn start(&mut self, effect: Effect, record: &Record) {
        match &effect {
            Effect::Open(operation) => self.meter = self.gateway.meter(operation, record.downloaded),
            Effect::Stage(plan) => {
                self.gateway.progress.send_replace(stage::Progress::default());
                // A bundle that is open goes on counting in the meter that it was opened with.
                if self.held.bundle.is_none() {
                    self.meter = self.gateway.meter(&plan.operation, record.downloaded);
                }
            }
            _ => {}
        }
        let cancel = CancellationToken::new();
        let holds_slot = record.phase.can_cancel() || matches!(effect, Effect::Arm { .. });
        let work = Work {
            gateway: self.gateway.clone(),
            record: record.clone(),
            meter: self.meter.clone(),
            cancel: cancel.clone(),
            held: std::mem::take(&mut self.held),
        };
        let pause = self.pause(&record.phase);
        let task = self.handle.spawn(async move {
            tokio::time::sleep(pause).await;
            work.perform(effect).await
        });
        let rebuilds = record.phase.is_idle();
        self.running = Some(Running { task, cancel, holds_slot, rebuilds, then: None });
    }

    /// Only the way back is repeated after a failure; it doubles its pause.
    fn pause(&self, phase: &Phase) -> Duration {
        match (phase, self.failures) {
            (Phase::RollingBack { .. }, 1..) => backoff::ceiling(FIRST_RETRY, self.failures, LONGEST_RETRY),
            _ => Duration::ZERO,
        }
    }

    /// Ends when the running effect does; never, when none runs. A panic is a failure, and whatever it held is free.
    pub async fn ended(&mut self) -> Done {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let (event, held) = (&mut running.task).await.unwrap_or_else(|panic| {
            running.cancel.cancel();
            (Event::Failed(fault::of_task(panic)), Held::default())
        });
        self.held = held;
        if let Some(then) = running.then.take() {
            self.running = None;
            return self.stopped(then);
        }
        self.failures = self.failures.saturating_add(1);
        match &event {
            Event::Failed(failure) => {
                tracing::debug!(%failure, "the effect failed");
                self.not_rebuilt = running.rebuilds.then(|| failure.message.clone());
            }
            _ => self.failures = 0,
        }
        self.running = None;
        Done { event, stopped: false }
    }

    /// A bundle that was open may be another one now.
    fn stopped(&mut self, event: Event) -> Done {
        self.held.bundle = None;
        Done { event, stopped: true }
    }

    /// Tells the running effect to stop, after which `event` follows; at once when none runs.
    pub fn stop(&mut self, event: Event) -> Option<Done> {
        let Some(running) = &mut self.running else { return Some(self.stopped(event)) };
        running.cancel.cancel();
        running.then = Some(event);
        None
    }

    /// Tells the running effect to stop; what was to follow then follows all the same.
    pub fn cancel(&self) {
        if let Some(running) = &self.running {
            running.cancel.cancel();
        }
    }

    /// Nothing runs: the slot and the bundle are free again.
    pub fn let_go(&mut self) {
        self.held = Held::default();
        self.failures = 0;
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// An effect was told to stop and has not let go yet.
    pub fn is_stopping(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.then.is_some())
    }

    pub fn holds_slot(&self) -> bool {
        self.held.target.is_some() || self.running.as_ref().is_some_and(|running| running.holds_slot)
    }

    pub fn not_rebuilt(&self) -> Option<&str> {
        self.not_rebuilt.as_deref()
    }

    /// Bytes that the running operation received, earlier runs included.
    pub fn spent(&self) -> u64 {
        self.meter.spent()
    }

    /// What the running effect waits for.
    pub fn waiting(&self) -> Option<String> {
        self.running.as_ref().and_then(|_| self.meter.waiting())
    }

    /// How far staging has come; `None`: nothing is staged. Surveying is a twentieth of the work, reading back a tenth,
    /// as far as anyone watching cares. Never goes back, though a survey may be repeated.
    pub fn staged(&self, record: &Record) -> Option<SavedProgress> {
        if !matches!(record.phase, Phase::Staging { .. }) {
            return None;
        }
        let (staged, told) = (*self.gateway.progress.borrow(), record.progress);
        let (from, share) = match staged.step {
            Step::Surveying => (0, 5),
            Step::Writing => (5, 85),
            Step::ReadingBack => (90, 10),
        };
        let done = staged.done.saturating_mul(share).checked_div(staged.total).unwrap_or(0);
        Some(SavedProgress {
            percent: done.saturating_add(from).min(100).max(told.percent),
            expected: staged.expected_download.max(told.expected),
            reused: staged.reused.max(told.reused),
        })
    }
}
