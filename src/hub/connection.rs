//! The driver: one MQTT session after the other, until it is told to stop.
//!
//! Each attempt gets a client and an event loop of its own, so that nothing unacknowledged of an older session
//! is ever sent again after something newer. All waiting happens in one `select!`; the event loop is polled
//! through a stream, because a poll that is dropped half-way may lose a packet.

mod ask;
mod attempt;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rumqttc::{EventLoop, Packet, Publish, QoS, SubAck, SubscribeReasonCode};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::error::HubError;
use super::event::{Document, HubEvent};
use super::identity;
use super::method::MethodCall;
use super::outbox::Outbox;
use super::placement::Placement;
use super::session::{CLOSE_WITHIN, Packets, Session, packets, say_goodbye};
use super::telemetry::{Message, Telemetry};
use super::topics::{self, TopicMessage};
use super::twin::{Twin, TwinAction};
use crate::backoff::Backoff;
use crate::clock::{self, Clock, TimeOrigin};
use crate::config::Cloud;
use crate::fault;
use crate::reach::Memory;

/// Least and longest pause before a request that the hub put off is sent again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(100));

/// Least and longest pause before a server is asked for the time again.
const TIME_PAUSES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// By then a time service, if there is one, has set the clock.
const SETTLED: Duration = Duration::from_secs(60);
/// So many refusals in a row are no passing trouble of the hub's.
const FINAL: u32 = 2;
/// Reasons that are logged before there is a session again.
const REASONS: usize = 32;

/// What a connection works for, and with.
#[derive(Debug)]
pub struct Parts {
    pub cloud: Cloud,
    /// The least time between two reports of one milestone.
    pub interval: Duration,
    /// Dates the tokens and judges the certificates.
    pub clock: Clock,
    /// The newest is what the twin shall say.
    pub documents: watch::Receiver<Arc<Document>>,
    pub events: mpsc::Sender<HubEvent>,
    /// Sent message by message.
    pub telemetry: mpsc::Receiver<Message>,
    pub shutdown: CancellationToken,
}

/// Keeps a session with the hub until `shutdown`, or until the receiver of `events` is gone. Either way the
/// newest document is sent before it returns, if there is a session and the hub answers within two seconds. Never
/// returns for an error: those are reported and retried, with pauses of a second to `cloud.reconnect.longest`.
pub async fn run(parts: Parts) {
    Connection::new(parts).run().await;
}

/// Why a session is over.
enum SessionEnd {
    /// Told to stop, or nobody listens any more.
    Stopped,
    /// The token is about to expire.
    Renew,
    Lost(HubError),
}

/// What outlives a session.
pub(super) struct Connection {
    cloud: Cloud,
    placement: Placement,
    memory: Memory,
    clock: Clock,
    /// What was believed of the clock at the last attempt.
    origin: TimeOrigin,
    documents: watch::Receiver<Arc<Document>>,
    documents_end: bool,
    events: mpsc::Sender<HubEvent>,
    shutdown: CancellationToken,
    twin: Twin,
    outbox: Outbox,
    telemetry: Telemetry,
    backoff: Backoff,
    /// The agent was told that it is connected.
    online: bool,
    /// The reason that was told last, and all that were logged since the last session.
    reason: Option<String>,
    logged: BTreeSet<String>,
    /// How often the credentials were refused in a row.
    denials: u32,
    /// When a server may be asked for the time again.
    time_due: Instant,
    time_pauses: Backoff,
    /// How long a session stands before a server is asked for the time.
    settled: Duration,
    /// Who does that.
    later: JoinSet<()>,
}

impl Connection {
    pub fn new(parts: Parts) -> Connection {
        let Parts { cloud, interval, clock, documents, events, telemetry, shutdown } = parts;
        let document = documents.borrow().clone();
        Connection {
            placement: Placement::new(&cloud.place),
            backoff: Backoff::of_sessions(cloud.reconnect.first, cloud.reconnect.longest),
            cloud,
            memory: Memory::default(),
            origin: clock.origin().0,
            clock,
            documents,
            documents_end: false,
            events,
            shutdown,
            twin: Twin::new(fastrand::u64(..), interval, Backoff::new(RETRY.0, RETRY.1), document),
            outbox: Outbox::default(),
            telemetry: Telemetry::new(telemetry),
            online: false,
            reason: None,
            logged: BTreeSet::new(),
            denials: 0,
            time_due: Instant::now(),
            time_pauses: Backoff::new(TIME_PAUSES.0, TIME_PAUSES.1),
            settled: SETTLED,
            later: JoinSet::new(),
        }
    }

    pub async fn run(mut self) {
        while let Err(failure) = fault::caught(self.sessions()).await {
            self.lost(&HubError::Fault(failure.message));
            let pause = self.backoff.next(fastrand::f64());
            if !self.pause(pause).await {
                break;
            }
        }
        self.outbox.deliver_now(&self.events);
    }

    /// One session after another, until told to stop.
    async fn sessions(&mut self) {
        loop {
            self.twin.disconnected();
            self.telemetry.disconnected();
            match self.session().await {
                SessionEnd::Stopped => break,
                SessionEnd::Renew => continue,
                SessionEnd::Lost(error) => {
                    self.lost(&error);
                    if error.may_be_the_clock() && !self.ask_the_time().await {
                        break;
                    }
                }
            }
            let pause = self.backoff.next(fastrand::f64()).max(self.placement.patience());
            if !self.pause(pause).await {
                break;
            }
        }
    }

    /// Says why there is no session: once for each reason, also when several take turns.
    fn lost(&mut self, error: &HubError) {
        self.placement.failed(error);
        let reason = error.reason();
        if self.logged.len() < REASONS && self.logged.insert(reason.clone()) {
            tracing::warn!("no session with the hub: {error}");
        }
        self.denials = if error.is_denial() { self.denials.saturating_add(1) } else { 0 };
        let denied = self.denials >= FINAL;
        if self.online || self.reason.as_ref() != Some(&reason) || self.denials == FINAL {
            self.outbox.push(HubEvent::Disconnected { reason: error.to_string(), denied });
        }
        self.online = false;
        self.reason = Some(reason);
    }

    /// False: it is time to stop.
    async fn pause(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = self.shutdown.cancelled() => false,
            () = self.outbox.deliver(&self.events) => false,
        }
    }

    async fn converse(&mut self, mut session: Session, eventloop: EventLoop) -> SessionEnd {
        let mut packets = pin!(packets(eventloop));
        self.adopt_document();
        loop {
            let end = match self.proceed(&mut session) {
                Ok(None) => self.wait(&mut session, &mut packets).await,
                Ok(Some(end)) => {
                    say_goodbye(&session.client, &mut packets).await;
                    return self.ended(&session, end);
                }
                Err(error) => Err(SessionEnd::Lost(error)),
            };
            if let Err(end) = end {
                return self.ended(&session, end);
            }
        }
    }

    /// A session that held for a while shows that the way is free; one that ends at once, for example because
    /// a second device has our identity, does not.
    fn ended(&mut self, session: &Session, end: SessionEnd) -> SessionEnd {
        self.memory.judge(session.contact.remote, session.accepted);
        if session.ready_at.is_some_and(|at| at.elapsed() >= self.backoff.longest()) {
            self.backoff.reset();
            self.placement.held();
        }
        end
    }

    /// Does what is due; says whether the session should be closed in an orderly way.
    fn proceed(&mut self, session: &mut Session) -> Result<Option<SessionEnd>, HubError> {
        let now = Instant::now();
        for action in self.twin.poll(now) {
            self.perform(session, action)?;
        }
        if session.ready_at.is_some() {
            self.send_telemetry(session)?;
        }
        if let Some(by) = session.closing {
            // Before the twin was read there is nothing to report, but a call may wait for its answer.
            let told = session.ready_at.is_none() || self.twin.is_settled() && self.telemetry.is_empty();
            let done = session.is_idle() && told;
            return Ok((done || now >= by).then_some(SessionEnd::Stopped));
        }
        if session.is_silent(now) {
            return Err(HubError::Silent { address: session.contact.address.clone() });
        }
        let quiet = session.is_idle() && !self.twin.is_busy();
        Ok(session.must_renew(now, quiet).then_some(SessionEnd::Renew))
    }

    /// Waits for the next thing to happen and takes it in.
    async fn wait(
        &mut self,
        session: &mut Session,
        packets: &mut (impl Packets + Unpin),
    ) -> Result<(), SessionEnd> {
        let now = Instant::now();
        let wake = session.wake_at(now, self.twin.wake_at(now));
        tokio::select! {
            packet = packets.next() => match packet {
                Some(Ok(rumqttc::Event::Incoming(packet))) => {
                    session.heard();
                    self.packet(session, packet).map_err(SessionEnd::Lost)?;
                }
                Some(Ok(rumqttc::Event::Outgoing(what))) => session.sent(&what),
                Some(Err(error)) => return Err(SessionEnd::Lost(HubError::of(error, &session.contact, session.accepted, &self.clock))),
                None => return Err(SessionEnd::Stopped),
            },
            Some(reply) = session.answers.recv() => session.reply(reply),
            changed = self.documents.changed(), if !self.documents_end => {
                self.documents_end = changed.is_err();
                self.adopt_document();
            }
            () = self.telemetry.filled() => {}
            () = sleep_until(wake) => {}
            () = self.shutdown.cancelled(), if session.closing.is_none() => {
                return self.finish(session);
            }
            () = self.outbox.deliver(&self.events), if session.closing.is_none() => return self.finish(session),
        }
        Ok(())
    }

    /// Starts the end: what the hub still lacks gets a short time to leave.
    fn finish(&mut self, session: &mut Session) -> Result<(), SessionEnd> {
        if !session.accepted {
            return Err(SessionEnd::Stopped);
        }
        self.adopt_document();
        self.twin.hurry();
        session.closing = Some(clock::after(Instant::now(), CLOSE_WITHIN));
        Ok(())
    }

    fn adopt_document(&mut self) {
        let newest = self.documents.borrow_and_update().clone();
        self.twin.document(newest);
    }

    fn packet(&mut self, session: &mut Session, packet: Packet) -> Result<(), HubError> {
        match packet {
            Packet::ConnAck(_) => {
                session.accepted = true;
                for topic in topics::SUBSCRIPTIONS {
                    let queued = session.client.try_subscribe(topic, QoS::AtLeastOnce);
                    queued.map_err(|_| session.stuck())?;
                }
            }
            Packet::SubAck(answer) => self.subscribed(session, &answer)?,
            Packet::Publish(message) => self.message(session, &message)?,
            Packet::PubAck(answer) if session.acknowledges_telemetry(answer.pkid) => {
                self.telemetry.acknowledged()
            }
            _ => {}
        }
        Ok(())
    }

    fn subscribed(&mut self, session: &mut Session, answer: &SubAck) -> Result<(), HubError> {
        if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
            return Err(HubError::Subscription { identity: session.contact.identity.clone() });
        }
        session.subscribed = session.subscribed.saturating_add(1);
        if session.subscribed == topics::SUBSCRIPTIONS.len() {
            self.twin.connected();
        }
        Ok(())
    }

    fn message(&mut self, session: &mut Session, message: &Publish) -> Result<(), HubError> {
        match topics::parse(&message.topic) {
            Some(TopicMessage::Method { name, rid }) => {
                let call = MethodCall::new(name, rid, &message.payload, session.calls.clone());
                if let Err(call) = self.outbox.push_call(call) {
                    let error =
                        json!({"code": "NotReady", "message": "too many calls wait; call again later"});
                    call.respond(503, json!({ "error": error }));
                }
            }
            Some(TopicMessage::Response { status, rid }) => {
                let random = fastrand::f64();
                let actions = self.twin.answered(Instant::now(), random, rid, status, &message.payload);
                for action in actions {
                    self.perform(session, action)?;
                }
            }
            Some(TopicMessage::Desired { version }) => self.twin.announced(version),
            None if topics::is_for_application(&message.topic) => {
                session.leave_to_application(&message.topic)?
            }
            None => tracing::warn!("ignored a message on a topic that is not known: {:.100}", message.topic),
        }
        Ok(())
    }

    fn perform(&mut self, session: &mut Session, action: TwinAction) -> Result<(), HubError> {
        match action {
            TwinAction::Publish { topic, payload } => {
                if !session.publish(topic, payload, false) {
                    return Err(session.stuck());
                }
            }
            TwinAction::Ready => self.ready(session),
            TwinAction::Desired(desired) => self.outbox.push(HubEvent::Desired(desired)),
            TwinAction::Acknowledged(generation) => self.outbox.push(HubEvent::Acknowledged { generation }),
            TwinAction::Lost(error) => return Err(error),
        }
        Ok(())
    }

    fn send_telemetry(&mut self, session: &mut Session) -> Result<(), HubError> {
        let Some(message) = self.telemetry.take() else { return Ok(()) };
        let topic = message.topic(&identity::messages(&session.seat));
        let queued = session.publish(topic, message.body.to_string().into_bytes(), true);
        if queued { Ok(()) } else { Err(session.stuck()) }
    }

    fn ready(&mut self, session: &mut Session) {
        session.ready_at = Some(Instant::now());
        self.clock.prove();
        self.placement.reached();
        (self.reason, self.denials) = (None, 0);
        self.logged.clear();
        self.ask_the_time_later();
        if !self.online {
            self.online = true;
            tracing::info!("connected to {} as {}", session.seat.host, session.contact.identity);
            self.outbox.push(HubEvent::Connected);
        }
    }
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
