//! A connection to the provisioning service: two requests and their answers, nothing else.

use std::sync::Arc;

use bytes::Bytes;
use mqttbytes::QoS;
use mqttbytes::v4::{Packet, PubAck, Publish, SubAck, SubscribeReasonCode, UnsubAck};
use serde_json::{Value, json};

use super::session::Next;
use crate::clock;
use crate::core::Core;
use crate::credentials;
use crate::dps::{self, Applicant};
use crate::error::{HubError, Kind};

/// The one filter.
const ANSWERS: &str = "$dps/registrations/res/#";
/// Seconds that a client is asked to wait before it asks again.
const RETRY_AFTER: u32 = 1;

/// The service's side of an accepted connection.
#[derive(Debug)]
pub struct Registrar {
    core: Arc<Core>,
    applicant: Applicant,
    subscribed: bool,
}

impl Registrar {
    pub fn new(core: Arc<Core>, applicant: Applicant) -> Registrar {
        Registrar { core, applicant, subscribed: false }
    }

    pub fn on_packet(&mut self, packet: Packet) -> Next {
        match packet {
            Packet::Subscribe(subscribe) if subscribe.filters.iter().all(|filter| filter.path == ANSWERS) => {
                self.subscribed = true;
                let codes = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce); subscribe.filters.len()];
                Next::Send(vec![Packet::SubAck(SubAck::new(subscribe.pkid, codes))])
            }
            Packet::Unsubscribe(unsubscribe) => {
                self.subscribed &= unsubscribe.topics.iter().all(|topic| topic != ANSWERS);
                Next::Send(vec![Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid))])
            }
            Packet::Publish(publish) if publish.qos != QoS::ExactlyOnce => self.on_publish(&publish),
            Packet::PingReq => Next::Send(vec![Packet::PingResp]),
            Packet::PubAck(_) => Next::Send(Vec::new()),
            Packet::Disconnect => Next::End,
            other => Next::Close(format!("the provisioning service takes no such packet: {other:?}")),
        }
    }

    fn on_publish(&self, publish: &Publish) -> Next {
        let Some(request) = Request::parse(&publish.topic) else {
            return Next::Close(format!("there is no topic {:?}", publish.topic));
        };
        let throttled = self.core.faults.take(|faults| &mut faults.throttle_registrations);
        let answer = if throttled {
            Ok((429, json!({"errorCode": 429_001, "message": "ThrottlingBacklogTimeout"})))
        } else {
            self.answer(&request, &publish.payload)
        };
        let (status, body) = answer.unwrap_or_else(|error| refusal(&error));
        let wait =
            if matches!(status, 202 | 429) { format!("&retry-after={RETRY_AFTER}") } else { String::new() };
        let topic = format!("$dps/registrations/res/{status}/?$rid={}{wait}", request.rid);
        let answer = Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body.to_string()));
        let acknowledgement = Packet::PubAck(PubAck::new(publish.pkid));
        let acknowledged = (publish.qos == QoS::AtLeastOnce).then_some(acknowledgement);
        Next::Send(acknowledged.into_iter().chain(self.subscribed.then_some(answer)).collect())
    }

    fn answer(&self, request: &Request<'_>, body: &Bytes) -> Result<(u16, Value), HubError> {
        if let Some(operation) = &request.operation {
            return dps::state(&self.core, &self.applicant.registration_id, operation);
        }
        let invalid = |message: String| HubError::new(Kind::ArgumentInvalid, message);
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| invalid(format!("the body is not JSON: {error}")))?;
        if body.get("registrationId").and_then(Value::as_str) != Some(&self.applicant.registration_id) {
            return Err(invalid("the body's registrationId is not the user name's".to_owned()));
        }
        let payload = body.get("payload").filter(|payload| !payload.is_null()).cloned();
        // As any other unknown field an older api-version overlooks it.
        let csr = body.get("csr").filter(|csr| self.applicant.may_ask && !csr.is_null());
        let csr = csr.map(|csr| credentials::decode(Some(csr))).transpose().map_err(invalid)?;
        Ok((202, self.core.dps.register(&self.applicant, dps::Request { payload, csr })))
    }
}

fn refusal(error: &HubError) -> (u16, Value) {
    let (status, code, _) = error.kind.parts();
    let body = json!({"errorCode": code, "trackingId": clock::unique(), "message": error.message,
                      "timestampUtc": clock::now()});
    (status, body)
}

/// What an applicant publishes.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    rid: &'a str,
    /// Whose state is asked for; `None`: a registration.
    operation: Option<String>,
}

impl Request<'_> {
    fn parse(topic: &str) -> Option<Request<'_>> {
        let (path, query) = topic.split_once("/?")?;
        let field = |name: &str| {
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| *key == name)
                .map(|(_, v)| v)
        };
        let rid = field("$rid")?;
        match path {
            "$dps/registrations/PUT/iotdps-register" => Some(Request { rid, operation: None }),
            "$dps/registrations/GET/iotdps-get-operationstatus" => {
                let operation =
                    percent_encoding::percent_decode_str(field("operationId")?).decode_utf8().ok()?;
                Some(Request { rid, operation: Some(operation.into_owned()) })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_requests_and_no_others() {
        let register = Request::parse("$dps/registrations/PUT/iotdps-register/?$rid=a%20b");
        assert_eq!(register, Some(Request { rid: "a%20b", operation: None }));
        let state =
            Request::parse("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1&operationId=4.a%26b");
        assert_eq!(state, Some(Request { rid: "1", operation: Some("4.a&b".into()) }));
        for topic in [
            "$dps/registrations/PUT/iotdps-register",
            "$dps/registrations/PUT/iotdps-register/?rid=1",
            "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1",
            "$iothub/twin/GET/?$rid=1",
        ] {
            assert_eq!(Request::parse(topic), None, "{topic}");
        }
    }
}
