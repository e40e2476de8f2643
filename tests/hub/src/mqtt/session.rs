//! One connected device's packets and their answers, without I/O: the caller sends what is returned.

use std::sync::Arc;

use bytes::Bytes;
use mqttbytes::QoS;
use mqttbytes::v4::{Packet, PubAck, Publish, SubAck, Subscribe, SubscribeReasonCode, UnsubAck, Unsubscribe};
use serde_json::{Value, json};

use super::connect::Accepted;
use super::topics::{self, Incoming};
use crate::core::Core;
use crate::credentials;
use crate::devicebound::Letter;
use crate::error::{HubError, Kind};
use crate::lock;
use crate::methods::{Answer, PAYLOAD_LIMIT};
use crate::registry::Identity;

/// The packet that carries a certificate; other messages are numbered from 1.
const CERTIFICATE: u16 = u16::MAX;

/// What to do after a packet.
#[derive(Debug, PartialEq)]
pub enum Next {
    Send(Vec<Packet>),
    /// The device said goodbye.
    End,
    /// The device broke a rule: the hub closes the connection.
    Close(String),
}

/// The hub's side of an accepted connection.
#[derive(Debug)]
pub struct Session {
    core: Arc<Core>,
    identity: Identity,
    /// Filters with the granted quality of service; the registry has the same.
    subscriptions: Vec<(String, u8)>,
    /// The api-version has requests for certificates.
    credentials: bool,
}

impl Session {
    /// Resumes what the registry remembers, or starts clean; the flag is CONNACK's "session present".
    pub fn open(core: Arc<Core>, accepted: &Accepted, clean: bool) -> Result<(Session, bool), HubError> {
        let identity = accepted.identity.clone();
        let subscriptions = lock(&core.registry).update(&identity, |entry| {
            entry.last_activity = crate::clock::now();
            entry.token = accepted.expiry;
            if let Some(model) = &accepted.model_id {
                entry.model_id.clone_from(model);
            }
            if clean {
                entry.subscriptions.clear();
            }
            Ok(entry.subscriptions.clone())
        })?;
        core.devicebound.release(&identity);
        core.renewals.release(&identity);
        let present = !subscriptions.is_empty();
        let credentials = accepted.api_version == topics::CREDENTIALS_VERSION;
        Ok((Session { core, identity, subscriptions, credentials }, present))
    }

    pub fn on_packet(&mut self, packet: Packet) -> Next {
        match packet {
            Packet::Publish(publish) => self.on_publish(publish),
            Packet::Subscribe(subscribe) => self.on_subscribe(subscribe),
            Packet::Unsubscribe(unsubscribe) => self.on_unsubscribe(unsubscribe),
            Packet::PingReq => Next::Send(vec![Packet::PingResp]),
            Packet::PubAck(answer) if answer.pkid == CERTIFICATE => {
                self.core.renewals.complete(&self.identity);
                Next::Send(Vec::new())
            }
            Packet::PubAck(_) if self.core.faults.take(|faults| &mut faults.cut_messages) => {
                Next::Close("a fault cuts the connection before a message is acknowledged".to_owned())
            }
            Packet::PubAck(answer) => {
                self.core.devicebound.complete(&self.identity, answer.pkid);
                self.core.live.changed();
                Next::Send(Vec::new())
            }
            Packet::Disconnect => Next::End,
            other => Next::Close(format!("unexpected packet {other:?}")),
        }
    }

    /// Cloud-to-device messages that are to be sent now.
    pub fn devicebound(&self) -> Vec<Packet> {
        let own = self.identity.resource();
        if !self.subscriptions.iter().any(|(filter, _)| *filter == format!("{own}/messages/devicebound/#")) {
            return Vec::new();
        }
        let packet = |(pkid, letter): (_, Letter)| {
            let topic = format!("{own}/messages/devicebound/{}", letter.bag(&own));
            Packet::Publish(Publish { pkid, ..Publish::new(topic, QoS::AtLeastOnce, letter.body) })
        };
        self.core.devicebound.due(&self.identity).into_iter().map(packet).collect()
    }

    /// The second answer to a request for a certificate, if it is to be sent now: with the subscription's quality of
    /// service, and with 1 until it is acknowledged.
    pub fn certificate(&self) -> Option<Packet> {
        let reliable = self.granted(topics::CREDENTIALS)? == QoS::AtLeastOnce as u8;
        let (request, (status, body)) = self.core.renewals.due(&self.identity, reliable)?;
        let mut publish = credentials_answer(status, &request, &body);
        if reliable {
            (publish.qos, publish.pkid) = (QoS::AtLeastOnce, CERTIFICATE);
        }
        Some(Packet::Publish(publish))
    }

    /// A subscription's quality of service.
    fn granted(&self, wanted: &str) -> Option<u8> {
        let found = self.subscriptions.iter().find(|(filter, _)| filter == wanted);
        found.map(|(_, qos)| *qos).filter(|_| self.knows(wanted))
    }

    fn knows(&self, topic: &str) -> bool {
        self.credentials || !topics::is_credentials(topic)
    }

    /// The last will, delivered as telemetry that says so.
    pub fn on_will(&self, topic: &str, message: &Bytes) {
        if let Some(Incoming::Telemetry { properties }) = topics::parse(&self.identity, topic) {
            let separator = if properties.is_empty() { "" } else { "&" };
            let properties = format!("{properties}{separator}iothub-MessageType=Will");
            self.core.history.said(&self.identity, &properties, message);
        }
    }

    fn on_publish(&mut self, publish: Publish) -> Next {
        if publish.qos == QoS::ExactlyOnce {
            return Next::Close("quality of service 2 is not offered".to_owned());
        }
        let known = topics::parse(&self.identity, &publish.topic).filter(|_| self.knows(&publish.topic));
        let Some(incoming) = known else {
            return Next::Close(format!("there is no topic {:?}", publish.topic));
        };
        let answer = match incoming {
            Incoming::TwinGet { request } => self.twin_get(request),
            Incoming::ReportedPatch { request } => self.reported_patch(request, &publish.payload),
            Incoming::MethodAnswer { status, request } => {
                if let Err(problem) = self.method_answer(status, request, &publish.payload) {
                    return Next::Close(problem);
                }
                None
            }
            Incoming::Telemetry { properties } => {
                self.core.history.said(&self.identity, properties, &publish.payload);
                self.core.live.changed();
                None
            }
            Incoming::IssueCertificate { request } => self.issue_certificate(request, &publish.payload),
        };
        let acknowledged =
            publish.qos == QoS::AtLeastOnce && !self.core.faults.take(|faults| &mut faults.lose_pubacks);
        let acknowledgement = acknowledged.then(|| Packet::PubAck(PubAck::new(publish.pkid)));
        let patched = answer.is_some() && matches!(incoming, Incoming::ReportedPatch { .. });
        let again = patched && self.core.faults.take(|faults| &mut faults.repeat_patch_answers);
        let repeated = answer.clone().filter(|_| again);
        Next::Send(acknowledgement.into_iter().chain(answer).chain(repeated).collect())
    }

    fn twin_get(&self, request: &str) -> Option<Packet> {
        match self.core.entry(&self.identity) {
            Ok(entry) => self.twin_answer(200, request, "", entry.twin.for_device().to_string()),
            Err(error) => self.twin_error(request, &error),
        }
    }

    fn reported_patch(&self, request: &str, payload: &Bytes) -> Option<Packet> {
        if self.core.faults.take(|faults| &mut faults.throttle_patches) {
            let body = json!({"errorCode": 429_001, "message": "ThrottlingException"}).to_string();
            return self.twin_answer(429, request, "", body);
        }
        let outcome = serde_json::from_slice::<Value>(payload)
            .map_err(|error| HubError::new(Kind::ArgumentInvalid, format!("the patch is not JSON: {error}")))
            .and_then(|patch| self.core.patch_reported(&self.identity, &patch, payload.len()));
        match outcome {
            Ok(_) if self.core.faults.take(|faults| &mut faults.lose_patch_answers) => None,
            Ok(_) if self.core.faults.take(|faults| &mut faults.cut_patch_answers) => {
                self.core.live.close(Some(&self.identity));
                None
            }
            Ok(version) => self.twin_answer(204, request, &format!("&$version={version}"), String::new()),
            Err(error) => self.twin_error(request, &error),
        }
    }

    fn issue_certificate(&self, request: &str, payload: &Bytes) -> Option<Packet> {
        let (status, body) = credentials::ask(&self.core, &self.identity, request, payload);
        if status == 202 && self.core.faults.take(|faults| &mut faults.cut_certificates) {
            self.core.live.close(Some(&self.identity));
        }
        self.granted(topics::CREDENTIALS)?;
        Some(Packet::Publish(credentials_answer(status, request, &body)))
    }

    fn twin_error(&self, request: &str, error: &HubError) -> Option<Packet> {
        let (status, code, _) = error.kind.parts();
        self.twin_answer(
            status,
            request,
            "",
            json!({"errorCode": code, "message": error.message}).to_string(),
        )
    }

    /// Only who subscribed to answers gets them.
    fn twin_answer(&self, status: u16, request: &str, more: &str, body: String) -> Option<Packet> {
        let subscribed = self.subscriptions.iter().any(|(filter, _)| filter == topics::TWIN_ANSWERS);
        let topic = format!("$iothub/twin/res/{status}/?$rid={request}{more}");
        subscribed.then(|| Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body)))
    }

    fn method_answer(&self, status: i64, request: &str, payload: &Bytes) -> Result<(), String> {
        if payload.len() > PAYLOAD_LIMIT {
            return Err(format!(
                "a method's answer takes {} bytes; the limit is {PAYLOAD_LIMIT}",
                payload.len()
            ));
        }
        let payload = if payload.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(payload)
                .map_err(|error| format!("a method's answer is not JSON: {error}"))?
        };
        self.core.calls.answered(&self.identity, request, Answer { status, payload });
        Ok(())
    }

    fn on_subscribe(&mut self, subscribe: Subscribe) -> Next {
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        for filter in subscribe.filters {
            if !topics::may_subscribe(&self.identity, &filter.path) || !self.knows(&filter.path) {
                return Next::Close(format!("there is no topic {:?} to subscribe to", filter.path));
            }
            codes.push(self.grant(filter.path, filter.qos));
        }
        match self.remember() {
            Ok(()) => Next::Send(vec![Packet::SubAck(SubAck::new(subscribe.pkid, codes))]),
            Err(problem) => Next::Close(problem),
        }
    }

    /// Quality of service 2 is granted as 1. Azure's limit of five subscriptions needs no count: there are not more
    /// filters than that for one identity.
    fn grant(&mut self, filter: String, wanted: QoS) -> SubscribeReasonCode {
        let granted = if wanted == QoS::AtMostOnce { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        self.subscriptions.retain(|(have, _)| *have != filter);
        self.subscriptions.push((filter, granted as u8));
        SubscribeReasonCode::Success(granted)
    }

    fn on_unsubscribe(&mut self, unsubscribe: Unsubscribe) -> Next {
        self.subscriptions.retain(|(filter, _)| !unsubscribe.topics.contains(filter));
        match self.remember() {
            Ok(()) => Next::Send(vec![Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid))]),
            Err(problem) => Next::Close(problem),
        }
    }

    fn remember(&self) -> Result<(), String> {
        let subscriptions = self.subscriptions.clone();
        let saved = lock(&self.core.registry).update(&self.identity, |entry| {
            entry.subscriptions = subscriptions;
            Ok(())
        });
        self.core.live.changed();
        saved.map_err(|error| error.to_string())
    }
}

fn credentials_answer(status: u16, request: &str, body: &Value) -> Publish {
    Publish::new(
        format!("$iothub/credentials/res/{status}/?$rid={request}"),
        QoS::AtMostOnce,
        body.to_string(),
    )
}
