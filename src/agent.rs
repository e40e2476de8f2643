//! The agent: the edges around the driver, and what it deals with in turn. It alone sees all edges.

mod announce;
mod commands;
mod confine;
mod desired;
mod doctor;
mod driver;
mod effects;
mod environment;
mod gateway;
mod inbox;
mod ledger;
mod privileged;
mod publish;
mod refusal;
mod systemd;
#[cfg(test)]
mod tests;
mod workshop;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::net::UnixListener;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

pub use self::confine::{Confinement, confine};
pub use self::doctor::{config_doubts, examine_offline, note_end};
use self::driver::Agent;
use self::environment::Sight;
use self::gateway::Gateway;
use self::inbox::{Inbox, Incoming};
use self::ledger::Ledger;
pub use self::privileged::{order_reboot, serve_root};
use self::publish::Publisher;
pub use self::systemd::{stopping, while_alive};
use self::workshop::Workshop;
use crate::config::{Auth, KeyPlace, Settings};
use crate::control;
use crate::desired::Section;
use crate::failure::Failure;
use crate::fault::{blocking, caught};
use crate::hub;
use crate::machine::Event;

/// Lifecycle events that may wait for the hub: those of several updates.
const EVENTS: usize = 64;
/// How often it is looked whether the clock was set.
const CLOCK_LOOK: Duration = Duration::from_secs(30);
/// Pause before local control that broke down serves again.
const CONTROL_PAUSE: Duration = Duration::from_millis(500);

/// Why `run` returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Stopped,
    /// The record and the boot environment are saved: reboot now.
    Reboot,
}

/// Runs the agent until `shutdown` or until a reboot is due. Errors only when another agent holds the state.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> Result<Exit, Failure> {
    let gateway = Arc::new(Gateway::new(settings));
    let found = gateway.clone();
    let (ledger, sight, workshop, listener) = blocking(move || open(found)).await?;
    let (calls_in, calls) = mpsc::channel(16);
    let (events_in, events) = mpsc::channel(64);
    let control = tokio::spawn(serve_control(listener, calls_in));
    let (mut publisher, documents) = Publisher::new(gateway.clock.clone(), &gateway.settings.awaited);
    let (telemetry_in, telemetry) = mpsc::channel(EVENTS);
    if gateway.settings.cloud.is_some() && gateway.settings.report.telemetry {
        publisher.tell_events(ledger.record(), telemetry_in);
    }
    let edges = CancellationToken::new();
    let hub = connect(&gateway, documents, events_in, telemetry, edges.clone());
    let inbox = Inbox::new(events, calls);
    let (section, no_session, reboot) = Default::default();
    let mut agent = Agent { gateway, inbox, ledger, workshop, publisher, sight, section, no_session, reboot };
    let survived = caught(agent.apply(Event::Started)).await;
    agent.recover(survived).await.ok();
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
fn open(gateway: Arc<Gateway>) -> Result<(Ledger, Sight, Workshop, Option<UnixListener>), Failure> {
    let ledger = Ledger::open(&gateway.settings.state.dir, gateway.clock.clone())?;
    let sight = gateway.look(ledger.record());
    let listener = control::bind(&gateway.settings.system.run);
    let listener = listener.inspect_err(|error| tracing::error!("no local control: {error}")).ok();
    let workshop = Workshop::open(gateway, ledger.record().downloaded)?;
    Ok((ledger, sight, workshop, listener))
}

async fn serve_control(listener: Option<UnixListener>, calls: mpsc::Sender<control::Call>) {
    let Some(listener) = listener else { return };
    while caught(control::serve(&listener, calls.clone())).await.is_err() {
        tokio::time::sleep(CONTROL_PAUSE).await;
    }
}

fn connect(
    gateway: &Gateway,
    documents: watch::Receiver<Arc<hub::Document>>,
    events: mpsc::Sender<hub::HubEvent>,
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
    let in_token = matches!(&cloud.auth, Auth::X509 { key: KeyPlace::Token(_), .. });
    let parts = hub::Parts { cloud, interval, clock, documents, events, telemetry, shutdown };
    Some(if in_token { alone(parts) } else { tokio::spawn(hub::run(parts)) })
}

/// The connection on a thread of its own: its handshake waits for a token, which may take its time.
fn alone(parts: hub::Parts) -> JoinHandle<()> {
    tokio::task::spawn_blocking(|| match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(hub::run(parts)),
        Err(error) => tracing::error!("no connection to the hub: {error}"),
    })
}

impl Agent {
    /// Answers, works and reports until there is a reason to leave.
    async fn serve(&mut self, shutdown: &CancellationToken) -> Exit {
        let mut ticked = Instant::now();
        let mut clock = interval(CLOCK_LOOK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.reboot {
            let tick = self.pace().map(|pace| sleep_until(crate::clock::after(ticked, pace)));
            let tick = OptionFuture::from(tick);
            // What panics in a turn ends nothing but the operation that it leaves alone.
            let survived = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Exit::Stopped,
                done = self.workshop.ended() => caught(self.done(done)).await,
                incoming = self.inbox.next() => caught(self.take(incoming)).await,
                Some(()) = tick => {
                    ticked = Instant::now();
                    caught(self.tick()).await
                }
                _ = clock.tick() => caught(self.follow_clock()).await,
            };
            self.recover(survived).await.ok();
            self.follow_desired().await;
        }
        Exit::Reboot
    }

    async fn take(&mut self, incoming: Incoming) {
        match self.publisher.answer(incoming, self.ledger.saved()) {
            Some(Incoming::Hub(event)) => self.hub_event(event).await,
            Some(Incoming::Control(call)) => self.control_call(call).await,
            None => {}
        }
    }

    async fn hub_event(&mut self, event: hub::HubEvent) {
        match event {
            hub::HubEvent::Connected => {
                tracing::info!("connected to the hub");
                self.no_session = None;
                self.gateway.denied.send_replace(None);
                self.gateway.cloud.send_replace(true);
            }
            hub::HubEvent::ClockChanged => {
                self.follow_clock().await;
                self.note_denial().await;
            }
            hub::HubEvent::Disconnected { reason, denied } => {
                self.gateway.denied.send_replace(denied.then(|| reason.clone()));
                self.no_session = Some(reason);
                self.gateway.cloud.send_replace(false);
                self.note_denial().await;
            }
            hub::HubEvent::Method(call) => self.method(call).await,
            hub::HubEvent::Desired(properties) => self.section = Some(Section::of(&properties)),
            hub::HubEvent::Acknowledged { generation } => {
                if self.ledger.record().unreported > 0 && self.publisher.told_outcome(generation) {
                    self.apply(Event::Acknowledged).await;
                }
            }
        }
    }

    /// The hub refuses this slot: that may tell what it had against the image before.
    async fn note_denial(&mut self) {
        if self.gateway.denial().is_some() && self.ledger.record().unreported > 0 {
            self.apply(Event::Denied).await;
        }
    }
}
