//! One MQTT session: its client, the calls that wait for answers, and its deadlines.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Outgoing, Packet, PubAck,
    QoS, Request,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::error::{Contact, HubError};
use super::method::MethodReply;
use super::topics;
use crate::clock;
use crate::config::Seat;

/// For TCP, TLS and CONNACK together, and again for the subscriptions.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(30);
/// For the answer to a ping, or half the keep-alive if that is shorter.
const PONG_WITHIN: Duration = Duration::from_secs(30);
/// For the last report, and again for the DISCONNECT, when a session is ended by us.
pub(super) const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// Requests to the MQTT client that may wait; ours are few, so more means that the hub stopped acknowledging.
const QUEUE: usize = 64;

/// What the event loop yields.
pub(super) trait Packets: Stream<Item = Result<Event, ConnectionError>> {}
impl<S: Stream<Item = Result<Event, ConnectionError>>> Packets for S {}

pub(super) struct Session {
    pub client: AsyncClient,
    /// Each call that waits for its answer holds a copy.
    pub calls: mpsc::UnboundedSender<MethodReply>,
    pub answers: mpsc::UnboundedReceiver<MethodReply>,
    /// The hub accepted the connection.
    pub accepted: bool,
    /// Subscriptions that the hub confirmed.
    pub subscribed: usize,
    /// When the twin had been read.
    pub ready_at: Option<Instant>,
    /// Set when the agent stops: the last moment for what is still to be sent.
    pub closing: Option<Instant>,
    /// At which hub, and as whom.
    pub seat: Seat,
    pub contact: Contact,
    /// Whether each publish that has not left yet is telemetry.
    queued: VecDeque<bool>,
    /// The packet id of the telemetry under way.
    telemetry: Option<u16>,
    started: Instant,
    pong_within: Duration,
    /// When the answer to a ping is overdue.
    pong_by: Option<Instant>,
    /// An application's old subscription was ended.
    left_to_application: bool,
    /// The token's life, if there is a token.
    token: Option<Duration>,
}

impl Session {
    /// Nothing is connected before the event loop is polled.
    pub fn new(
        options: MqttOptions,
        seat: Seat,
        contact: Contact,
        token: Option<Duration>,
    ) -> (Session, EventLoop) {
        let pong_within = PONG_WITHIN.min(options.keep_alive().div_f64(2.0));
        let (client, eventloop) = new_client(options);
        let (calls, answers) = mpsc::unbounded_channel();
        let session = Session {
            client,
            calls,
            answers,
            accepted: false,
            subscribed: 0,
            ready_at: None,
            closing: None,
            seat,
            contact,
            queued: VecDeque::new(),
            telemetry: None,
            started: Instant::now(),
            pong_within,
            pong_by: None,
            left_to_application: false,
            token,
        };
        (session, eventloop)
    }

    pub fn is_subscribed(&self) -> bool {
        self.subscribed >= topics::SUBSCRIPTIONS.len()
    }

    /// No call waits for its answer. An answer is queued before its call is dropped, so calls are counted
    /// first.
    pub fn is_idle(&self) -> bool {
        self.calls.strong_count() == 1 && self.answers.is_empty()
    }

    /// Connecting and subscribing have the same time each.
    pub fn handshake_by(&self) -> Instant {
        clock::after(self.started, HANDSHAKE_WITHIN.saturating_mul(2))
    }

    /// Something of ours left.
    pub fn sent(&mut self, what: &Outgoing) {
        match what {
            Outgoing::Publish(packet) => self.left(*packet),
            // The client itself would give up no sooner than when the next ping is due.
            Outgoing::PingReq => self.pong_by = Some(clock::after(Instant::now(), self.pong_within)),
            _ => {}
        }
    }

    /// The hub is there: something came from it.
    pub fn heard(&mut self) {
        self.pong_by = None;
    }

    /// The hub left a ping, or the handshake, without an answer.
    pub fn is_silent(&self, now: Instant) -> bool {
        let handshake = (!self.is_subscribed()).then(|| self.handshake_by());
        [handshake, self.pong_by].into_iter().flatten().any(|by| now >= by)
    }

    /// When the token should be renewed if nothing is under way, and when it must be.
    fn renewal(&self) -> Option<(Instant, Instant)> {
        let part = |life: Duration, part| clock::after(self.started, life.mul_f64(part));
        self.token.map(|life| (part(life, 0.85), part(life, 0.95)))
    }

    /// Requests pile up: a hub that is well acknowledges them.
    pub fn stuck(&self) -> HubError {
        let address = self.contact.address.clone();
        HubError::Broken { address, cause: "the hub stopped acknowledging".into() }
    }

    /// `quiet`: no request and no call would be cut off.
    pub fn must_renew(&self, now: Instant, quiet: bool) -> bool {
        self.renewal().is_some_and(|(at, by)| now >= by || quiet && now >= at)
    }

    /// The next moment at which something may be due; `twin` is when the twin's next request is.
    pub fn wake_at(&self, now: Instant, twin: Option<Instant>) -> Instant {
        let handshake = (!self.is_subscribed()).then(|| self.handshake_by());
        let renewal = self.renewal().map(|(at, by)| if now < at { at } else { by });
        let times = [twin, handshake, renewal, self.closing, self.pong_by];
        times.into_iter().flatten().min().unwrap_or_else(|| clock::after(now, Duration::from_secs(3600)))
    }

    /// Queues a message; `false`: the hub stopped acknowledging.
    pub fn publish(&mut self, topic: String, body: Vec<u8>, telemetry: bool) -> bool {
        let queued = self.client.try_publish(topic, QoS::AtLeastOnce, false, body).is_ok();
        if queued {
            self.queued.push_back(telemetry);
        }
        queued
    }

    /// An application that had this identity subscribed to this once, and the hub remembers it. Without the
    /// subscription its messages wait in the hub until it is there again.
    pub fn leave_to_application(&mut self, topic: &str) -> Result<(), HubError> {
        if !std::mem::replace(&mut self.left_to_application, true) {
            tracing::warn!("left to the application that has this identity: a message on {topic:.100}");
            let queued = self.client.try_unsubscribe(topics::of_application(&self.seat));
            queued.map_err(|_| self.stuck())?;
        }
        Ok(())
    }

    /// A message left with this packet id: messages leave in the order in which they were queued.
    fn left(&mut self, packet: u16) {
        if self.queued.pop_front() == Some(true) {
            self.telemetry = Some(packet);
        }
    }

    /// Whether this acknowledgement is that of the telemetry under way.
    pub fn acknowledges_telemetry(&mut self, packet: u16) -> bool {
        self.telemetry.take_if(|under_way| *under_way == packet).is_some()
    }

    pub fn reply(&mut self, reply: MethodReply) {
        let topic = topics::method_response(reply.status, &reply.rid);
        if !self.publish(topic, reply.body, false) {
            tracing::warn!("the answer to a method call could not be sent");
        }
    }
}

/// Connects when it is first polled.
pub(super) fn new_client(options: MqttOptions) -> (AsyncClient, EventLoop) {
    let (client, mut eventloop) = AsyncClient::new(options, QUEUE);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(HANDSHAKE_WITHIN.as_secs());
    eventloop.set_network_options(network);
    (client, eventloop)
}

/// Sends DISCONNECT, so that the other side does not take the end for a failure.
pub(super) async fn say_goodbye(client: &AsyncClient, packets: &mut (impl Packets + Unpin)) {
    if client.try_disconnect().is_err() {
        return;
    }
    let flushed = async {
        while let Some(Ok(event)) = packets.next().await {
            if event == Event::Outgoing(Outgoing::Disconnect) {
                return;
            }
        }
    };
    if timeout(CLOSE_WITHIN, flushed).await.is_err() {
        tracing::debug!("the connection was dropped without a DISCONNECT");
    }
}

/// The event loop as a stream: the poll that is under way survives when `next` is cancelled.
pub(super) fn packets(eventloop: EventLoop) -> impl Packets {
    stream::unfold(eventloop, |mut eventloop| async move {
        let result = acknowledged(&mut eventloop).await;
        Some((result, eventloop))
    })
}

/// The next event. A message for us is acknowledged; one for an application is not, or the hub would take it for
/// delivered: the client, which makes no difference, leaves it to us.
async fn acknowledged(eventloop: &mut EventLoop) -> Result<Event, ConnectionError> {
    let event = eventloop.poll().await?;
    let Event::Incoming(Packet::Publish(message)) = &event else { return Ok(event) };
    if message.qos == QoS::AtLeastOnce && !topics::is_for_application(&message.topic) {
        let answer = Request::PubAck(PubAck::new(message.pkid));
        let answer = eventloop.state.handle_outgoing_packet(answer)?;
        if let (Some(answer), Some(network)) = (answer, &mut eventloop.network) {
            let sent = async {
                network.write(answer).await?;
                network.flush().await
            };
            timeout(HANDSHAKE_WITHIN, sent).await.map_err(|_| ConnectionError::FlushTimeout)??;
        }
    }
    Ok(event)
}

#[cfg(test)]
mod tests;
