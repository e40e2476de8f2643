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
mod environment;
mod gateway;
mod inbox;
#[cfg(test)]
mod largest;
mod privileged;
mod publish;
mod systemd;
mod work;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::confine::{Confinement, confine};
pub use self::doctor::{config_doubts, examine_offline, note_end};
use self::gateway::{Gateway, OsRelease, Sight};
use self::inbox::{Inbox, Incoming};
pub use self::privileged::{order_reboot, serve_root};
use self::publish::Publisher;
use self::systemd::Watchdog;
pub use self::systemd::{stopping, while_alive};
use self::work::{Running, Workshop, finished};
use crate::config::Settings;
use crate::control;
use crate::desired::Section;
use crate::failure::{Code, Failure};
use crate::fault::{self, blocking};
use crate::hub;
use crate::machine::{Boot, BootId, Event, Phase, Record, is_decided, step};
use crate::stage::Meter;
use crate::store::Store;

/// How often an update that is being fetched is looked at, and how often while it waits for somebody or something.
/// At rest nothing is looked at: everything that happens comes by itself.
const TICK: Duration = Duration::from_millis(250);
const WAITING_TICK: Duration = Duration::from_secs(5);
/// Shortest and longest pause before a record that could not be saved is tried again.
const SAVE_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Received bytes that may go uncounted when the power is cut.
const SPENT_STEP: u64 = 4 << 20;
/// Lifecycle events that may wait for the hub: those of several updates.
const EVENTS: usize = 64;
/// How often it is looked whether the clock was set.
const CLOCK_LOOK: Duration = Duration::from_secs(30);

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
    let gateway = Arc::new(Gateway::new(settings));
    let found = gateway.clone();
    let mut opened = blocking(move || Opened::open(&found)).await?;
    let (calls_in, calls) = mpsc::channel(16);
    let (events_in, events) = mpsc::channel(64);
    let control = tokio::spawn(serve_control(opened.listener.take(), calls_in));
    let inbox = Inbox::new(events, calls);
    let (mut agent, hub_documents) = Agent::new(gateway.clone(), opened, inbox);
    let awaited = &gateway.settings.awaited;
    agent.publisher.view.awaits = (!awaited.is_empty()).then(|| awaited.join("; "));
    let (telemetry_in, telemetry) = mpsc::channel(EVENTS);
    if gateway.settings.cloud.is_some() && gateway.settings.report.telemetry {
        agent.publisher.tell_events(&agent.record, telemetry_in);
    }
    let edges = CancellationToken::new();
    let hub = connect(&gateway, hub_documents, events_in, telemetry, edges.clone());
    agent.survive(Turn::Start).await;
    systemd::ready();
    let exit = agent.serve(&shutdown).await;
    agent.rest().await;
    // The hub edge sends the newest report before it leaves.
    edges.cancel();
    if let Some(hub) = hub {
        while_alive(hub).await.unwrap_or_else(|error| tracing::error!("the hub task ended badly: {error}"));
    }
    control.abort();
    // Its socket is free only when it is gone.
    let _ended = control.await;
    Ok(exit)
}

/// What the agent starts from, read from media that may be slow.
struct Opened {
    store: Store,
    record: Record,
    sight: Sight,
    workshop: Workshop,
    listener: Option<UnixListener>,
}

impl Opened {
    fn open(gateway: &Gateway) -> Result<Opened, Failure> {
        let store = Store::open(&gateway.settings.state.dir)?;
        let record = load(&store);
        gateway.clock.remember(record.synchronised_time);
        let sight = gateway.look();
        let listener = control::bind(&gateway.settings.system.run);
        let listener = listener.inspect_err(|error| tracing::error!("no local control: {error}")).ok();
        Ok(Opened { store, record, sight, workshop: Workshop::open()?, listener })
    }
}

/// What cannot be read is as good as no record: the boot environment decides.
fn load(store: &Store) -> Record {
    match store.load::<Record>() {
        Ok(found) => {
            let mut record = found.unwrap_or_else(|| Record { fresh: true, ..Record::default() });
            record.fit();
            record
        }
        Err(error) => {
            tracing::error!("starting from the boot environment alone: {error}");
            Record::default()
        }
    }
}

async fn serve_control(listener: Option<UnixListener>, calls: mpsc::Sender<control::Call>) {
    let Some(listener) = listener else { return };
    while fault::caught(control::serve(&listener, calls.clone())).await.is_err() {
        tokio::time::sleep(SAVE_RETRY.0).await;
    }
}

fn connect(
    gateway: &Gateway,
    documents: tokio::sync::watch::Receiver<Arc<hub::Document>>,
    events: mpsc::Sender<hub::Event>,
    telemetry: mpsc::Receiver<hub::Message>,
    shutdown: CancellationToken,
) -> Option<JoinHandle<()>> {
    let Some(cloud) = gateway.settings.cloud.clone() else {
        match gateway.settings.awaited.is_empty() {
            true => tracing::warn!("no [cloud] is configured: only fwupdatectl can start an update"),
            false => tracing::warn!(
                "no hub yet: until what the settings wait for is there, only fwupdatectl counts"
            ),
        }
        return None;
    };
    let (interval, clock) = (gateway.settings.report.interval, gateway.clock.clone());
    Some(tokio::spawn(hub::run(cloud, interval, clock, documents, events, telemetry, shutdown)))
}

/// What the agent deals with in one go.
enum Turn {
    Start,
    /// The effect led to this.
    Done(Event),
    Incoming(Incoming),
    Watchdog,
    Tick,
    Clock,
}

/// The agent's own state: what is remembered, what is durable, and what is under way.
struct Agent {
    gateway: Arc<Gateway>,
    store: Arc<Mutex<Store>>,
    inbox: Inbox,
    watchdog: Watchdog,
    record: Record,
    /// The record as the medium holds it: what is reported.
    saved: Record,
    /// Why the record could not be saved, while it cannot.
    unsaved: Option<Failure>,
    /// How long to wait before it is tried again, and since when.
    retry: (Duration, Instant),
    boot: Boot,
    /// What the running system says of itself.
    os: OsRelease,
    workshop: Workshop,
    /// The effect under way.
    work: Option<Running>,
    /// Why a lost environment could not be rebuilt.
    not_rebuilt: Option<String>,
    /// Failures in a row of an effect that has to work.
    failures: u32,
    /// The boot in which the dead-man was told of a verdict.
    marked: Option<BootId>,
    meter: Arc<Meter>,
    publisher: Publisher,
    /// The desired section that is not dealt with yet; within, `None` says that the twin holds none.
    section: Option<Option<Section>>,
    reboot: bool,
    /// When things were looked at last.
    ticked: Instant,
    /// Why there is no session with the hub, while there is none.
    no_session: Option<String>,
    /// When it is looked again whether the clock was set.
    clock_look: Instant,
}

impl Agent {
    fn new(
        gateway: Arc<Gateway>,
        opened: Opened,
        inbox: Inbox,
    ) -> (Agent, tokio::sync::watch::Receiver<Arc<hub::Document>>) {
        let Opened { store, record, workshop, sight: Sight { boot, degraded, os }, .. } = opened;
        let (publisher, documents) = Publisher::new(gateway.clock.clone(), os.version.clone(), degraded);
        let agent = Agent {
            saved: record.clone(),
            meter: Arc::new(Meter::new(record.downloaded, None, None)),
            record,
            store: Arc::new(Mutex::new(store)),
            inbox,
            watchdog: Watchdog::new(),
            gateway,
            unsaved: None,
            retry: (SAVE_RETRY.0, Instant::now()),
            boot,
            os,
            workshop,
            work: None,
            not_rebuilt: None,
            failures: 0,
            marked: None,
            publisher,
            section: None,
            reboot: false,
            ticked: Instant::now(),
            no_session: None,
            clock_look: Instant::now(),
        };
        (agent, documents)
    }

    /// Answers, works and reports until there is a reason to leave.
    async fn serve(&mut self, shutdown: &CancellationToken) -> Exit {
        loop {
            if self.reboot {
                return Exit::Reboot;
            }
            let tick = self.pace().map(|pace| crate::clock::after(self.ticked, pace));
            let turn = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Exit::Stopped,
                event = finished(&mut self.work) => Turn::Done(event),
                () = self.watchdog.due() => Turn::Watchdog,
                incoming = self.inbox.next() => Turn::Incoming(incoming),
                () = at(tick) => Turn::Tick,
                () = tokio::time::sleep_until(self.clock_look) => Turn::Clock,
            };
            self.survive(turn).await;
            self.follow_desired().await;
        }
    }

    /// Takes a turn. What panics in it ends the operation that nobody is left to work on, and nothing else.
    async fn survive(&mut self, turn: Turn) {
        if let Err(failure) = fault::caught(self.take(turn)).await {
            self.recover(failure).await;
        }
    }

    async fn recover(&mut self, failure: Failure) {
        if self.work.is_none() && !self.reboot && !self.record.phase.is_idle() {
            self.apply(Event::Failed(failure)).await;
        }
    }

    async fn take(&mut self, turn: Turn) {
        match turn {
            Turn::Start => self.apply(Event::Started).await,
            Turn::Done(event) => self.done(event).await,
            Turn::Watchdog => self.watchdog.feed(),
            Turn::Incoming(Incoming::Hub(event)) => self.hub_event(event).await,
            Turn::Incoming(Incoming::Control(call)) => self.control_call(call).await,
            Turn::Tick => self.tick().await,
            Turn::Clock => self.follow_clock().await,
        }
    }

    /// How soon things have to be looked at again; `None`: not before something happens.
    fn pace(&self) -> Option<Duration> {
        let fetching = self.record.phase.can_cancel() && !matches!(self.record.phase, Phase::Holding { .. });
        let waits = self.publisher.view.waiting.is_some();
        let work = self.work.as_ref().filter(|_| fetching).map(|_| if waits { WAITING_TICK } else { TICK });
        let retry = self.unsaved.as_ref().map(|_| self.retry.0);
        work.into_iter().chain(retry).min()
    }

    /// One turn: decide, save, tell, act.
    async fn apply(&mut self, event: Event) {
        self.look().await;
        let mut event = event;
        loop {
            let begins =
                matches!(event, Event::Requested(_) | Event::RollbackRequested(_) | Event::Desired { .. });
            let (next, effect) = step(&self.record, &self.boot, event);
            let before = std::mem::replace(&mut self.record, next);
            match self.save().await {
                Err(failure) if begins => {
                    tracing::error!("refused: the record cannot be saved: {failure}");
                    self.record = before;
                    return self.publish();
                }
                Err(failure) if effect.is_some() && self.record.phase.must_be_saved() => {
                    event = Event::SaveFailed(failure);
                    continue;
                }
                Err(failure) => tracing::error!("going on without a record: {failure}"),
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
    async fn look(&mut self) {
        let gateway = self.gateway.clone();
        let degraded = match self.aside(move || Ok(gateway.look())).await {
            Ok(Sight { boot, degraded, os }) => {
                (self.boot, self.os) = (boot, os);
                degraded
            }
            Err(failure) => {
                self.boot.booted = None;
                Some(failure.message)
            }
        };
        self.mark().await;
        self.publisher.view.booted = self.boot.booted;
        self.publisher.view.booted_version = self.os.version.clone();
        let unsaved = || self.unsaved.as_ref().map(|failure| failure.message.clone());
        self.publisher.view.degraded =
            degraded.or_else(|| self.astray()).or_else(|| self.lost()).or_else(unsaved);
    }

    /// Once a verdict stands, the dead-man is told.
    async fn mark(&mut self) {
        let boot_id = self.boot.boot_id.clone();
        if self.marked.as_ref() == Some(&boot_id) || !is_decided(&self.record, &self.boot) {
            return;
        }
        let (gateway, mark) = (self.gateway.clone(), boot_id.clone());
        let marked = self.aside(move || Ok(gateway.mark_proven(&mark))).await;
        self.marked = marked.is_ok_and(|marked| marked).then_some(boot_id);
    }

    /// There is no environment, and why it was not rebuilt.
    fn lost(&self) -> Option<String> {
        let why = self.not_rebuilt.clone();
        let lost =
            || "the boot environment is lost, for the bootloader too; the agent rebuilds it".to_owned();
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
    async fn save(&mut self) -> Result<(), Failure> {
        self.record.synchronised_time = self.gateway.clock.worth_saving(self.record.synchronised_time);
        self.record.version = self.record.version.max(crate::machine::RECORD_VERSION);
        self.record.fit();
        let same =
            Record { synchronised_time: self.saved.synchronised_time, ..self.record.clone() } == self.saved;
        if same && !self.gateway.clock.must_save(self.saved.synchronised_time) && self.unsaved.is_none() {
            return Ok(());
        }
        let (store, record) = (self.store.clone(), self.record.clone());
        let saved = self.aside(move || save_twice(&store, &record)).await;
        match &saved {
            Ok(()) => {
                self.saved = self.record.clone();
                self.gateway.clock.remember(self.saved.synchronised_time);
                self.retry.0 = SAVE_RETRY.0;
            }
            Err(failure) => {
                self.publisher.view.degraded = Some(failure.message.clone());
                self.retry = (self.retry.0.saturating_mul(2).min(SAVE_RETRY.1), Instant::now());
            }
        }
        self.unsaved = saved.as_ref().err().cloned();
        saved
    }

    /// Before leaving: whatever was going on stops at a place from which it can go on.
    async fn rest(&mut self) {
        self.end_work().await;
        if let Err(failure) = self.save().await {
            tracing::warn!("leaving without saving the record: {failure}");
        }
    }

    async fn tick(&mut self) {
        self.ticked = Instant::now();
        self.save_bytes().await;
        if self.unsaved.is_some() && self.retry.1.elapsed() >= self.retry.0 {
            self.save_again().await;
        }
        self.publish_waiting();
        self.publish_progress().await;
        self.end_at_deadline().await;
    }

    /// Tries again what could not be saved.
    async fn save_again(&mut self) {
        if self.unsaved.is_some() && self.save().await.is_ok() {
            tracing::info!("the record can be saved again");
            self.look().await;
            self.publish();
        }
    }

    /// A clock that was set: the saved time follows it at once, so that no power cut brings an absurd one back, and a
    /// report that carries a time of the future is told anew.
    async fn follow_clock(&mut self) {
        self.clock_look = crate::clock::after(Instant::now(), CLOCK_LOOK);
        let must_save = self.unsaved.is_none() && self.gateway.clock.must_save(self.saved.synchronised_time);
        if must_save {
            let saved = self.save().await;
            saved.unwrap_or_else(|failure| tracing::warn!("the time is not saved: {failure}"));
        }
        if self.publisher.is_postdated() || self.publisher.view.clock != self.gateway.clock.learned_from() {
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
    async fn save_bytes(&mut self) {
        let before = self.record.downloaded;
        if self.record.phase.is_idle() || self.meter.spent() <= before.saturating_add(SPENT_STEP) {
            return;
        }
        self.take_bytes();
        if let Err(failure) = self.save().await {
            tracing::warn!("the received bytes are not saved: {failure}");
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
            let message = "the update was not staged at its deadline; call again with a later one";
            self.stop_work(Event::Abandoned(Failure::new(Code::DeadlinePassed, message))).await;
        }
    }

    async fn hub_event(&mut self, event: hub::Event) {
        match event {
            hub::Event::Connected => {
                tracing::info!("connected to the hub");
                self.no_session = None;
                self.gateway.denied.send_replace(None);
                self.gateway.cloud.send_replace(true);
            }
            hub::Event::ClockChanged => self.follow_clock().await,
            hub::Event::Disconnected { reason, denied } => {
                self.gateway.denied.send_replace(denied.then(|| reason.clone()));
                self.no_session = Some(reason);
                self.gateway.cloud.send_replace(false);
            }
            hub::Event::Method(call) => self.method(call).await,
            hub::Event::Desired(properties) => self.section = Some(Section::of(&properties)),
            hub::Event::Acknowledged { generation } => {
                if self.record.unreported > 0 && self.publisher.told_outcome(generation) {
                    self.apply(Event::Acknowledged).await;
                }
            }
        }
    }
}

/// Ends at that time; never, without one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Both copies, one after the other.
fn save_twice(store: &Mutex<Store>, record: &Record) -> Result<(), Failure> {
    let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
    (0..2).try_for_each(|_| store.save(record)).map_err(Failure::from)
}
