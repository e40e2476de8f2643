//! One registration at the Device Provisioning Service: connect, ask until there is a result, leave.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use rumqttc::{AsyncClient, Event, Packet, QoS, SubscribeReasonCode};
use tokio::time::{Instant, sleep_until, timeout};

use super::dial::{self, Connect};
use super::dps::{ANSWERS, DpsAnswer, DpsRequest, Next};
use super::error::{Contact, HubError};
use super::identity;
use super::sas;
use super::session::{Packets, new_client, packets, say_goodbye};
use crate::clock::{self, Clock};
use crate::config::{Cloud, Dps, Seat};
use crate::reach::Memory;

/// For everything: a custom allocation policy may take its time.
const REGISTERED_WITHIN: Duration = Duration::from_secs(300);
/// For the subscription and for each answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// The policy name that the service wants in a device's token.
const POLICY: &str = "registration";

/// Asks the service for a place. `clock` dates the token and judges certificates.
pub(super) async fn register(
    cloud: &Cloud,
    dps: &Dps,
    clock: &Clock,
    memory: &Memory,
) -> Result<Seat, HubError> {
    let token = dial::token(cloud, &identity::dps_resource(dps), clock)?;
    let connect = Connect {
        host: &dps.endpoint,
        port: dps.port,
        client_id: dps.registration_id.clone(),
        user_name: identity::dps_user_name(dps),
        password: token.map(|token| sas::with_policy(&token, POLICY).expose().to_owned()).unwrap_or_default(),
    };
    let (mut options, contact, _relay) = dial::dial(cloud, connect, clock, memory).await?;
    // The service keeps no sessions.
    options.set_clean_session(true);
    let (client, eventloop) = new_client(options);
    let mut packets = pin!(packets(eventloop));
    let mut registration =
        Registration { dps, clock, contact, client, accepted: false, asked: 0, pending: None };
    let silent = HubError::Silent { address: registration.contact.address.clone() };
    let result = timeout(REGISTERED_WITHIN, registration.converse(&mut packets)).await.unwrap_or(Err(silent));
    memory.judge(registration.contact.remote, registration.accepted);
    if registration.accepted {
        say_goodbye(&registration.client, &mut packets).await;
    }
    result
}

struct Registration<'a> {
    dps: &'a Dps,
    clock: &'a Clock,
    contact: Contact,
    client: AsyncClient,
    /// The service accepted the connection.
    accepted: bool,
    /// Requests so far; the newest one's id.
    asked: u32,
    pending: Option<Pending>,
}

/// A request that waits for its time, or for its answer.
struct Pending {
    request: DpsRequest,
    sent: bool,
    /// When it is sent, or overdue.
    at: Instant,
}

impl Registration<'_> {
    async fn converse(&mut self, packets: &mut (impl Packets + Unpin)) -> Result<Seat, HubError> {
        let mut overdue = clock::after(Instant::now(), ANSWERED_WITHIN);
        loop {
            if let Some(pending) = &self.pending {
                overdue = pending.at;
            }
            tokio::select! {
                packet = packets.next() => match packet {
                    Some(Ok(Event::Incoming(packet))) => {
                        if let Some(seat) = self.packet(packet)? {
                            return Ok(seat);
                        }
                    }
                    Some(Ok(Event::Outgoing(_))) => {}
                    Some(Err(error)) => return Err(HubError::of_service(error, &self.contact, self.accepted, self.clock)),
                    None => return Err(self.silent()),
                },
                () = sleep_until(overdue) => self.due()?,
            }
        }
    }

    fn packet(&mut self, packet: Packet) -> Result<Option<Seat>, HubError> {
        match packet {
            Packet::ConnAck(_) => {
                self.accepted = true;
                self.client.try_subscribe(ANSWERS, QoS::AtLeastOnce).map_err(|_| self.silent())?;
            }
            Packet::SubAck(answer) if answer.return_codes.contains(&SubscribeReasonCode::Failure) => {
                return Err(HubError::Subscription { identity: self.contact.identity.clone() });
            }
            Packet::SubAck(_) => self.ask(DpsRequest::Register, Duration::ZERO),
            Packet::Publish(message) => {
                let answer =
                    DpsAnswer::parse(&message.topic).filter(|answer| answer.rid == self.asked.to_string());
                let waiting = self.pending.as_ref().filter(|pending| pending.sent);
                let (Some(answer), Some(waiting)) = (answer, waiting) else { return Ok(None) };
                match answer.judge(&waiting.request, &message.payload, self.dps)? {
                    Next::Seat(seat) => return Ok(Some(seat)),
                    Next::Ask(request, wait) => self.ask(request, wait),
                }
            }
            _ => {}
        }
        Ok(None)
    }

    fn ask(&mut self, request: DpsRequest, wait: Duration) {
        self.pending = Some(Pending { request, sent: false, at: clock::after(Instant::now(), wait) });
    }

    /// The time of the pending request has come, or that of its answer has passed.
    fn due(&mut self) -> Result<(), HubError> {
        let silent = self.silent();
        let Some(pending) = self.pending.as_mut().filter(|pending| !pending.sent) else { return Err(silent) };
        self.asked = self.asked.wrapping_add(1);
        let (topic, body) = (pending.request.topic(&self.asked.to_string()), pending.request.body(self.dps));
        pending.sent = true;
        pending.at = clock::after(Instant::now(), ANSWERED_WITHIN);
        self.client.try_publish(topic, QoS::AtLeastOnce, false, body).map_err(|_| silent)
    }

    fn silent(&self) -> HubError {
        HubError::Silent { address: self.contact.address.clone() }
    }
}
