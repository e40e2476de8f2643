//! The driver: one MQTT session after the other, until it is told to stop.
//!
//! Each attempt gets a client and an event loop of its own, so that nothing unacknowledged of an older session
//! is ever sent again after something newer. All waiting happens in one `select!`; the event loop is polled
//! through a stream, because a poll that is dropped half-way may lose a packet.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rumqttc::{
    ConnectionError, MqttOptions, Packet, Publish, QoS, SubAck, SubscribeReasonCode, TlsConfiguration,
    Transport,
};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::error::HubError;
use super::method::MethodCall;
use super::outbox::Outbox;
use super::session::{CLOSE_WITHIN, Packets, Session, packets};
use super::topics::{self, Incoming};
use super::twin::{Action, Twin};
use super::{Document, Event, identity, sas};
use crate::config::{Auth, Cloud};
use crate::tls;

/// The hub drops a silent client after 1.5 times its keep-alive, and no later than after 1767 s.
const KEEP_ALIVE_SECONDS: std::ops::RangeInclusive<u64> = 1..=1177;
/// Least and longest pause before a request that the hub put off is sent again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(100));
/// A twin of 32 KB desired and 32 KB reported properties may be far longer as JSON text; methods carry 128 KB.
const PACKET_LIMIT: usize = 512 * 1024;

/// Keeps a session with the hub until `shutdown`, or until the receiver of `events` is gone. Either way the
/// newest document is sent before it returns, if there is a session and the hub answers within two seconds.
///
/// `interval` is the least time between two reports of one milestone. `clock_floor` is a time that is known to
/// have passed: tokens and certificates are dated by the later of it and the system's clock. The newest of
/// `documents` is what the twin shall say. Never returns for an error: those are reported and retried, with
/// pauses of a second to `cloud.reconnect.longest`.
pub async fn run(
    cloud: Cloud,
    interval: Duration,
    clock_floor: OffsetDateTime,
    documents: watch::Receiver<Arc<Document>>,
    events: mpsc::Sender<Event>,
    shutdown: CancellationToken,
) {
    let backoff = Backoff::of_sessions(cloud.reconnect.first, cloud.reconnect.longest);
    Connection::new(cloud, interval, clock_floor, documents, events, shutdown, backoff).run().await;
}

/// Why a session is over.
enum End {
    /// Told to stop, or nobody listens any more.
    Stopped,
    /// The token is about to expire.
    Renew,
    Lost(HubError),
}

/// What outlives a session.
pub(super) struct Connection {
    cloud: Cloud,
    clock_floor: OffsetDateTime,
    /// When the time was `clock_floor` or later.
    floor_at: Instant,
    documents: watch::Receiver<Arc<Document>>,
    documents_end: bool,
    events: mpsc::Sender<Event>,
    shutdown: CancellationToken,
    twin: Twin,
    outbox: Outbox,
    backoff: Backoff,
    /// The agent was told that it is connected.
    online: bool,
    /// The reason that was told last.
    reason: Option<String>,
}

impl Connection {
    pub fn new(
        cloud: Cloud,
        interval: Duration,
        clock_floor: OffsetDateTime,
        documents: watch::Receiver<Arc<Document>>,
        events: mpsc::Sender<Event>,
        shutdown: CancellationToken,
        backoff: Backoff,
    ) -> Connection {
        let document = documents.borrow().clone();
        Connection {
            cloud,
            clock_floor,
            floor_at: Instant::now(),
            documents,
            documents_end: false,
            events,
            shutdown,
            twin: Twin::new(fastrand::u64(..), interval, Backoff::new(RETRY.0, RETRY.1), document),
            outbox: Outbox::default(),
            backoff,
            online: false,
            reason: None,
        }
    }

    pub async fn run(mut self) {
        loop {
            let end = self.session().await;
            self.twin.disconnected();
            match end {
                End::Stopped => break,
                End::Renew => continue,
                End::Lost(error) => self.lost(&error),
            }
            let pause = self.backoff.next(fastrand::f64());
            if !self.pause(pause).await {
                break;
            }
        }
        self.outbox.deliver_now(&self.events);
    }

    /// Says once why there is no session.
    fn lost(&mut self, error: &HubError) {
        let reason = error.to_string();
        let changed = self.reason.as_ref() != Some(&reason);
        if changed {
            tracing::warn!("no session with the hub: {reason}");
        }
        if changed || self.online {
            self.outbox.push(Event::Disconnected { reason: reason.clone() });
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

    async fn session(&mut self) -> End {
        let options = match self.options().await {
            Ok(options) => options,
            Err(error) => return End::Lost(error),
        };
        let (mut session, eventloop) = Session::new(options, self.token_life());
        let mut packets = pin!(packets(eventloop));
        self.adopt_document();
        loop {
            let end = match self.proceed(&mut session) {
                Ok(None) => self.wait(&mut session, &mut packets).await,
                Ok(Some(end)) => {
                    session.close(&mut packets).await;
                    return end;
                }
                Err(error) => Err(End::Lost(error)),
            };
            if let Err(end) = end {
                return self.ended(&session, end);
            }
        }
    }

    /// A session that held for a while shows that the way is free; one that ends at once, for example because
    /// a second device has our identity, does not.
    fn ended(&mut self, session: &Session, end: End) -> End {
        if session.ready_at.is_some_and(|at| at.elapsed() >= self.backoff.longest()) {
            self.backoff.reset();
        }
        end
    }

    /// Does what is due; says whether the session should be closed in an orderly way.
    fn proceed(&mut self, session: &mut Session) -> Result<Option<End>, HubError> {
        let now = Instant::now();
        for action in self.twin.poll(now) {
            self.perform(session, action)?;
        }
        if let Some(by) = session.closing {
            // Before the twin was read there is nothing to report, but a call may wait for its answer.
            let told = session.ready_at.is_none() || self.twin.is_settled();
            let done = session.is_idle() && told;
            return Ok((done || now >= by).then_some(End::Stopped));
        }
        if !session.is_subscribed() && now >= session.handshake_by() {
            return Err(HubError::Silent { address: self.address() });
        }
        let quiet = session.is_idle() && !self.twin.is_busy();
        Ok(session.must_renew(now, quiet).then_some(End::Renew))
    }

    /// Waits for the next thing to happen and takes it in.
    async fn wait(&mut self, session: &mut Session, packets: &mut (impl Packets + Unpin)) -> Result<(), End> {
        let now = Instant::now();
        let wake = session.wake_at(now, self.twin.wake_at(now));
        tokio::select! {
            packet = packets.next() => match packet {
                Some(Ok(rumqttc::Event::Incoming(packet))) => self.packet(session, packet).map_err(End::Lost)?,
                Some(Ok(rumqttc::Event::Outgoing(_))) => {}
                Some(Err(error)) => return Err(End::Lost(self.broken(session, error))),
                None => return Err(End::Stopped),
            },
            Some(reply) = session.answers.recv() => session.reply(reply),
            changed = self.documents.changed(), if !self.documents_end => {
                self.documents_end = changed.is_err();
                self.adopt_document();
            }
            () = sleep_until(wake) => {}
            () = self.shutdown.cancelled(), if session.closing.is_none() => {
                return self.finish(session);
            }
            () = self.outbox.deliver(&self.events), if session.closing.is_none() => return self.finish(session),
        }
        Ok(())
    }

    /// Starts the end: what the hub still lacks gets a short time to leave.
    fn finish(&mut self, session: &mut Session) -> Result<(), End> {
        if !session.accepted {
            return Err(End::Stopped);
        }
        self.adopt_document();
        self.twin.hurry();
        session.closing = Some(Instant::now() + CLOSE_WITHIN);
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
                    queued.map_err(|_| self.stuck())?;
                }
            }
            Packet::SubAck(answer) => self.subscribed(session, &answer)?,
            Packet::Publish(message) => self.message(session, &message)?,
            _ => {}
        }
        Ok(())
    }

    fn subscribed(&mut self, session: &mut Session, answer: &SubAck) -> Result<(), HubError> {
        if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
            return Err(HubError::Subscription { identity: identity::client_id(&self.cloud) });
        }
        session.subscribed += 1;
        if session.subscribed == topics::SUBSCRIPTIONS.len() {
            self.twin.connected();
        }
        Ok(())
    }

    fn message(&mut self, session: &mut Session, message: &Publish) -> Result<(), HubError> {
        match topics::parse(&message.topic) {
            Some(Incoming::Method { name, rid }) => {
                let call = MethodCall::new(name, rid, &message.payload, session.calls.clone());
                if let Err(call) = self.outbox.push_call(call) {
                    let error =
                        json!({"code": "NotReady", "message": "too many calls wait; call again later"});
                    call.respond(503, json!({ "error": error }));
                }
            }
            Some(Incoming::Response { status, rid }) => {
                let random = fastrand::f64();
                let actions = self.twin.answered(Instant::now(), random, rid, status, &message.payload);
                for action in actions {
                    self.perform(session, action)?;
                }
            }
            Some(Incoming::Desired { version }) => self.twin.announced(version),
            None => tracing::warn!("ignored a message on a topic that is not known: {:.100}", message.topic),
        }
        Ok(())
    }

    fn perform(&mut self, session: &mut Session, action: Action) -> Result<(), HubError> {
        match action {
            Action::Publish { topic, payload } => session
                .client
                .try_publish(topic, QoS::AtLeastOnce, false, payload)
                .map_err(|_| self.stuck())?,
            Action::Ready => self.ready(session),
            Action::Desired(desired) => self.outbox.push(Event::Desired(desired)),
            Action::Acknowledged(generation) => self.outbox.push(Event::Acknowledged { generation }),
            Action::Lost(error) => return Err(error),
        }
        Ok(())
    }

    fn ready(&mut self, session: &mut Session) {
        session.ready_at = Some(Instant::now());
        self.reason = None;
        if !self.online {
            self.online = true;
            tracing::info!("connected to {} as {}", self.cloud.host, identity::client_id(&self.cloud));
            self.outbox.push(Event::Connected);
        }
    }

    fn address(&self) -> String {
        format!("{}:{}", identity::address(&self.cloud), self.cloud.port)
    }

    fn broken(&self, session: &Session, error: ConnectionError) -> HubError {
        let identity = identity::client_id(&self.cloud);
        HubError::of(error, &self.address(), &identity, session.accepted)
    }

    fn stuck(&self) -> HubError {
        HubError::Broken { address: self.address(), cause: "the hub stopped acknowledging".into() }
    }

    fn token_life(&self) -> Option<Duration> {
        match self.cloud.auth {
            Auth::SharedKey(_) => Some(self.cloud.token_ttl.max(Duration::from_secs(1))),
            Auth::X509 { .. } => None,
        }
    }

    fn now(&self) -> OffsetDateTime {
        later_of(OffsetDateTime::now_utc(), self.clock_floor, self.floor_at.elapsed())
    }

    /// Everything that the next attempt needs, made anew: token, certificates, roots.
    async fn options(&self) -> Result<MqttOptions, HubError> {
        let id = identity::client_id(&self.cloud);
        if self.cloud.device_id.is_empty() {
            return Err(HubError::NoIdentity);
        }
        let mut options = MqttOptions::new(id, identity::address(&self.cloud), self.cloud.port);
        options.set_credentials(identity::user_name(&self.cloud), self.password()?);
        options.set_clean_session(false);
        options.set_max_packet_size(PACKET_LIMIT, PACKET_LIMIT);
        let (least, most) = KEEP_ALIVE_SECONDS.into_inner();
        let keep_alive = self.cloud.keep_alive.as_secs().clamp(least, most);
        options.set_keep_alive(Duration::from_secs(keep_alive));
        let config = Arc::new(self.tls_config().await?);
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
        Ok(options)
    }

    /// Empty with a certificate: the user name then travels alone.
    fn password(&self) -> Result<String, HubError> {
        let (Auth::SharedKey(key), Some(life)) = (&self.cloud.auth, self.token_life()) else {
            return Ok(String::new());
        };
        let life = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        // Whole seconds: begun ones count, or the token would end before its time.
        let now = self.now().unix_timestamp().saturating_add(1);
        let token = sas::token(&identity::resource(&self.cloud), key, now.saturating_add(life))?;
        Ok(token.expose().to_owned())
    }

    async fn tls_config(&self) -> Result<rustls::ClientConfig, HubError> {
        let (cloud, floor) = (self.cloud.clone(), self.now());
        let made = tokio::task::spawn_blocking(move || {
            let pair = match &cloud.auth {
                Auth::X509 { certificate, key } => Some((certificate.as_path(), key.as_path())),
                Auth::SharedKey(_) => None,
            };
            tls::client_config(cloud.ca_file.as_deref(), pair, floor)
        });
        match made.await {
            Ok(config) => Ok(config?),
            Err(error) => Err(HubError::Unreachable { address: self.address(), cause: error.to_string() }),
        }
    }
}

/// The time that is believed: the floor rises with the time that passed since it was known, or a clock that
/// stands far below it would date every renewed token alike until the hub refuses them.
fn later_of(system: OffsetDateTime, floor: OffsetDateTime, since: Duration) -> OffsetDateTime {
    let since = time::Duration::try_from(since).unwrap_or(time::Duration::ZERO);
    system.max(floor.checked_add(since).unwrap_or(floor))
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
