//! The driver: step -> save -> act -> event, and nothing else. It alone sees all edges.
//!
//! What happened becomes an event, `machine::step` decides, the record is saved (both copies, one after the
//! other, so that the loss of either loses nothing), then the effect is performed by a task of its own while
//! commands are still answered.

mod announce;
mod commands;
mod confine;
mod desired;
mod doctor;
mod effects;
mod gateway;
mod publish;
mod systemd;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::confine::drop_in;
use self::effects::Work;
use self::gateway::Gateway;
use self::publish::Publisher;
pub use self::systemd::while_alive;
use crate::config::Settings;
use crate::control;
use crate::desired::Section;
use crate::failure::{Code, Failure};
use crate::hub;
use crate::machine::{Boot, Effect, Event, Phase, Record, step};
use crate::stage::{self, Meter};
use crate::store::Store;

/// How often progress is looked at, the watchdog is fed, and an unsaved record is tried again.
const TICK: Duration = Duration::from_millis(250);
/// Received bytes that may go uncounted when the power is cut.
const SPENT_STEP: u64 = 4 << 20;
/// Lifecycle events that may wait for the hub: those of several updates.
const EVENTS: usize = 64;
/// How often it is looked whether the clock was set.
const CLOCK_LOOK: Duration = Duration::from_secs(10);
/// Longest pause before an effect that has to work is tried again.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Why `run` returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Told to stop.
    Stopped,
    /// The record and the boot environment are saved: reboot now.
    Reboot,
}

/// Runs the agent until `shutdown` or until a reboot is due. Errors only when another agent holds the state.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> Result<Exit, Failure> {
    let store = Store::open(&settings.state.dir)?;
    let record = load(&store);
    let gateway = Arc::new(Gateway::new(settings));
    gateway.clock.remember(record.wall_clock);
    let (mut agent, hub_documents) = Agent::new(gateway.clone(), store, record);
    let (telemetry_in, telemetry) = mpsc::channel(EVENTS);
    if gateway.settings.cloud.is_some() && gateway.settings.report.telemetry {
        agent.publisher.tell_events(&agent.record, telemetry_in);
    }
    let (calls_in, mut calls) = mpsc::channel(16);
    let (events_in, mut events) = mpsc::channel(64);
    let edges = CancellationToken::new();
    let control = serve_control(&gateway, calls_in);
    let hub = connect(&gateway, hub_documents, events_in, telemetry, edges.clone());
    agent.apply(Event::Started);
    systemd::ready();
    let exit = agent.serve(&mut events, &mut calls, &shutdown).await;
    agent.rest().await;
    if exit == Exit::Stopped {
        // Not before a reboot: systemd would then expect the process to end, and not signal it when it stops it.
        systemd::stopping();
    }
    // The hub edge sends the newest report before it leaves.
    edges.cancel();
    if let Some(hub) = hub {
        hub.await.unwrap_or_else(|error| tracing::error!(%error, "the hub task ended badly"));
    }
    control.abort();
    Ok(exit)
}

/// What cannot be read is as good as no record: the boot environment decides.
fn load(store: &Store) -> Record {
    match store.load::<Record>() {
        Ok(found) => found.unwrap_or_default(),
        Err(error) => {
            tracing::error!(%error, "starting from the boot environment alone");
            Record::default()
        }
    }
}

fn serve_control(gateway: &Gateway, calls: mpsc::Sender<control::Call>) -> JoinHandle<()> {
    let listener = control::bind(&gateway.settings.system.run);
    tokio::spawn(async move {
        match listener {
            Ok(listener) => control::serve(listener, calls).await,
            Err(error) => tracing::error!(%error, "no local control"),
        }
    })
}

fn connect(
    gateway: &Gateway,
    documents: tokio::sync::watch::Receiver<Arc<hub::Document>>,
    events: mpsc::Sender<hub::Event>,
    telemetry: mpsc::Receiver<hub::Message>,
    shutdown: CancellationToken,
) -> Option<JoinHandle<()>> {
    let Some(cloud) = gateway.settings.cloud.clone() else {
        tracing::warn!("no [cloud] is configured: only fwupdatectl can start an update");
        return None;
    };
    let (interval, clock) = (gateway.settings.report.interval, gateway.clock.clone());
    Some(tokio::spawn(hub::run(cloud, interval, clock, documents, events, telemetry, shutdown)))
}

/// The agent's own state: what is remembered, what is durable, and what is under way.
struct Agent {
    gateway: Arc<Gateway>,
    store: Store,
    record: Record,
    /// The record as the medium holds it: what is reported.
    saved: Record,
    /// Why the record could not be saved, while it cannot.
    unsaved: Option<Failure>,
    boot: Boot,
    /// The effect under way.
    work: Option<Running>,
    /// Why a lost environment could not be rebuilt.
    not_rebuilt: Option<String>,
    /// Failures in a row of an effect that has to work.
    failures: u32,
    meter: Arc<Meter>,
    publisher: Publisher,
    /// The desired section that is not dealt with yet; within, `None` says that the twin holds none.
    section: Option<Option<Section>>,
    reboot: bool,
    /// Why there is no session with the hub, while there is none.
    no_session: Option<String>,
    /// When it is looked again whether the clock was set.
    clock_look: Instant,
}

struct Running {
    task: JoinHandle<Event>,
    cancel: CancellationToken,
}

impl Agent {
    fn new(
        gateway: Arc<Gateway>,
        store: Store,
        record: Record,
    ) -> (Agent, tokio::sync::watch::Receiver<Arc<hub::Document>>) {
        let (boot, degraded) = gateway.boot();
        let (publisher, documents) = Publisher::new(&gateway, degraded);
        let meter = Arc::new(Meter::new(record.downloaded, None, None));
        let agent = Agent {
            saved: record.clone(),
            record,
            store,
            gateway,
            unsaved: None,
            boot,
            work: None,
            not_rebuilt: None,
            failures: 0,
            meter,
            publisher,
            section: None,
            reboot: false,
            no_session: None,
            clock_look: Instant::now(),
        };
        (agent, documents)
    }

    /// Answers, works and reports until there is a reason to leave.
    async fn serve(
        &mut self,
        events: &mut mpsc::Receiver<hub::Event>,
        calls: &mut mpsc::Receiver<control::Call>,
        shutdown: &CancellationToken,
    ) -> Exit {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if self.reboot {
                return Exit::Reboot;
            }
            // A channel that is closed (no hub, no socket) only takes its branch out.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Exit::Stopped,
                event = finished(&mut self.work) => self.done(event),
                Some(event) = events.recv() => self.hub_event(event).await,
                Some(call) = calls.recv() => self.control_call(call).await,
                _ = tick.tick() => self.tick().await,
            }
            self.follow_desired().await;
        }
    }

    /// The effect ended.
    fn done(&mut self, event: Event) {
        self.work = None;
        self.take_bytes();
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
        self.apply(event);
    }

    /// One turn: decide, save, tell, act.
    fn apply(&mut self, event: Event) {
        self.look();
        let mut event = event;
        loop {
            let begins =
                matches!(event, Event::Requested(_) | Event::RollbackRequested(_) | Event::Desired { .. });
            let (next, effect) = step(&self.record, &self.boot, event);
            let before = std::mem::replace(&mut self.record, next);
            match self.save() {
                Err(failure) if begins => {
                    tracing::error!(%failure, "refused: the record cannot be saved");
                    self.record = before;
                    return self.publish();
                }
                Err(failure) if effect.is_some() && self.record.phase.must_be_saved() => {
                    event = Event::SaveFailed(failure);
                    continue;
                }
                Err(failure) => tracing::error!(%failure, "going on without a record"),
                Ok(()) => {}
            }
            announce::change(&before, &self.record);
            self.publish();
            if let Some(effect) = effect {
                self.start(effect);
            } else if self.record.phase.is_idle() {
                self.let_go();
            }
            return;
        }
    }

    /// Looks up what is booted and what the environment says now.
    fn look(&mut self) {
        let (boot, degraded) = self.gateway.boot();
        self.boot = boot;
        if self.boot.is_proven() {
            self.gateway.mark_proven();
        }
        self.publisher.view.booted = self.boot.booted;
        self.publisher.view.degraded = degraded.or_else(|| self.astray()).or_else(|| self.lost());
    }

    /// There is no environment, and why it was not rebuilt.
    fn lost(&self) -> Option<String> {
        let why = self.not_rebuilt.clone();
        let lost = || "the boot environment is lost; the agent rebuilds it when it starts".to_owned();
        self.boot.env.is_none().then(|| why.unwrap_or_else(lost))
    }

    /// The running slot is neither the primary nor on trial.
    fn astray(&self) -> Option<String> {
        let (booted, env) = (self.boot.booted?, self.boot.env?);
        let named = env.primary == booted || env.trial.is_some_and(|trial| trial.slot == booted);
        (!named && self.record.phase.is_idle()).then(|| {
            format!(
                "slot {booted} runs although {} is the primary: the bootloader could not load it; install an \
                 update to repair it",
                env.primary
            )
        })
    }

    /// Makes the record durable in both copies, one after the other.
    fn save(&mut self) -> Result<(), Failure> {
        self.record.wall_clock = self.gateway.clock.worth_saving(self.record.wall_clock);
        self.record.version = self.record.version.max(crate::machine::RECORD_VERSION);
        let same = Record { wall_clock: self.saved.wall_clock, ..self.record.clone() } == self.saved;
        if same && !self.gateway.clock.must_save(self.saved.wall_clock) && self.unsaved.is_none() {
            return Ok(());
        }
        let saved = (0..2).try_for_each(|_| self.store.save(&self.record)).map_err(Failure::from);
        match &saved {
            Ok(()) => {
                self.saved = self.record.clone();
                self.gateway.clock.remember(self.saved.wall_clock);
            }
            Err(failure) => {
                self.publisher.view.degraded = Some(failure.message.clone());
            }
        }
        self.unsaved = saved.as_ref().err().cloned();
        saved
    }

    /// Starts the effect's task; one that failed before waits a little.
    fn start(&mut self, effect: Effect) {
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
        let task = tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            work.perform(effect).await
        });
        self.work = Some(Running { task, cancel });
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
    fn let_go(&mut self) {
        if let Ok(mut held) = self.gateway.held.try_lock() {
            *held = gateway::Held::default();
        }
        self.failures = 0;
    }

    /// Stops the effect under way and waits until it has let go; what it led to no longer counts.
    async fn stop_work(&mut self) {
        if let Some(Running { task, cancel }) = self.work.take() {
            cancel.cancel();
            if let Err(error) = task.await {
                tracing::error!(%error, "an effect ended badly");
            }
            self.take_bytes();
        }
    }

    /// Before leaving: whatever was going on stops at a place from which it can go on.
    async fn rest(&mut self) {
        self.stop_work().await;
        if let Err(failure) = self.save() {
            tracing::warn!(%failure, "leaving without saving the record");
        }
    }

    async fn tick(&mut self) {
        systemd::feed_watchdog();
        self.save_bytes();
        if self.unsaved.is_some() && self.save().is_ok() {
            tracing::info!("the record can be saved again");
            self.look();
            self.publish();
        }
        if Instant::now() >= self.clock_look {
            self.follow_clock();
        }
        self.publish_waiting();
        self.publish_progress();
        self.end_at_deadline().await;
    }

    /// A clock that was set: the saved time follows it at once, so that no power cut brings an absurd one back, and a
    /// report that carries a time of the future is told anew.
    fn follow_clock(&mut self) {
        self.clock_look = Instant::now() + CLOCK_LOOK;
        let must_save = self.unsaved.is_none() && self.gateway.clock.must_save(self.saved.wall_clock);
        if must_save {
            self.save().unwrap_or_else(|failure| tracing::warn!(%failure, "the time is not saved"));
        }
        if self.publisher.is_postdated() {
            self.publish();
        }
    }

    /// Takes what was received into the record; the step that follows saves it.
    fn take_bytes(&mut self) {
        if !self.record.phase.is_idle() {
            self.record.downloaded = self.meter.spent().max(self.record.downloaded);
        }
    }

    /// While an effect runs, what it receives is saved at every few MiB.
    fn save_bytes(&mut self) {
        let before = self.record.downloaded;
        if self.record.phase.is_idle() || self.meter.spent() <= before.saturating_add(SPENT_STEP) {
            return;
        }
        self.take_bytes();
        if let Err(failure) = self.save() {
            tracing::warn!(%failure, "the received bytes are not saved");
        }
    }

    /// An update that is not staged at its deadline ends.
    async fn end_at_deadline(&mut self) {
        let staging = self.record.phase.can_cancel() && !matches!(self.record.phase, Phase::Holding { .. });
        let deadline = self.record.phase.operation().and_then(|operation| operation.deadline);
        let Some(deadline) = deadline.filter(|_| staging && self.gateway.clock.synchronised()) else {
            return;
        };
        if self.gateway.clock.now() >= deadline {
            self.stop_work().await;
            let message = "the update was not staged at its deadline; call again with a later one";
            self.apply(Event::Abandoned(Failure::new(Code::DeadlinePassed, message)));
        }
    }

    async fn hub_event(&mut self, event: hub::Event) {
        match event {
            hub::Event::Connected => {
                tracing::info!("connected to the hub");
                self.no_session = None;
                self.gateway.cloud.send_replace(true);
            }
            hub::Event::ClockChanged => self.follow_clock(),
            hub::Event::Disconnected { reason } => {
                self.no_session = Some(reason);
                self.gateway.cloud.send_replace(false);
            }
            hub::Event::Method(call) => self.method(call).await,
            hub::Event::Desired(properties) => self.section = Some(Section::of(&properties)),
            hub::Event::Acknowledged { generation } => {
                if self.record.unreported > 0 && self.publisher.told_outcome(generation) {
                    self.apply(Event::Acknowledged);
                }
            }
        }
    }
}

/// Ends with the event of the running effect; never, when none runs.
async fn finished(work: &mut Option<Running>) -> Event {
    match work {
        Some(running) => (&mut running.task).await.unwrap_or_else(|error| {
            Event::Failed(Failure::new(Code::Internal, format!("an effect ended badly: {error}")))
        }),
        None => std::future::pending().await,
    }
}
