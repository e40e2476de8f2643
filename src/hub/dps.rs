//! The Device Provisioning Service's topics and answers, without I/O.
//!
//! Shapes as in Microsoft's "Communicate with DPS using the MQTT protocol": a registration is asked for, then its
//! state, as often as the service says, until a hub is assigned or it will not be.

use std::time::Duration;

use percent_encoding::utf8_percent_encode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::HubError;
use super::identity::ENCODED;
use crate::config::{Dps, Seat};

/// The one subscription.
pub(super) const ANSWERS: &str = "$dps/registrations/res/#";
/// When the service does not say how long to wait; the SDKs' value.
const DEFAULT_WAIT: u64 = 2;
/// No wait is shorter or longer, whatever the service says.
const WAIT: std::ops::RangeInclusive<u64> = 1..=120;
/// Characters of the service's message that are passed on.
const MESSAGE_LIMIT: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DpsRequest {
    Register,
    State { operation: String },
}

impl DpsRequest {
    pub fn topic(&self, rid: &str) -> String {
        match self {
            DpsRequest::Register => format!("$dps/registrations/PUT/iotdps-register/?$rid={rid}"),
            DpsRequest::State { operation } => {
                let operation = utf8_percent_encode(operation, ENCODED);
                let path = "$dps/registrations/GET/iotdps-get-operationstatus/";
                format!("{path}?$rid={rid}&operationId={operation}")
            }
        }
    }

    pub fn body(&self, dps: &Dps) -> Vec<u8> {
        match self {
            DpsRequest::State { .. } => Vec::new(),
            DpsRequest::Register => {
                let mut body = json!({"registrationId": dps.registration_id});
                if let (Some(body), Some(payload)) = (body.as_object_mut(), &dps.payload) {
                    body.insert("payload".into(), payload.clone());
                }
                body.to_string().into_bytes()
            }
        }
    }
}

/// What to do after an answer.
#[derive(Debug)]
pub enum Next {
    /// Ask this, no sooner than after so long.
    Ask(DpsRequest, Duration),
    Seat(Seat),
}

/// An answer's topic.
#[derive(Debug, PartialEq, Eq)]
pub struct DpsAnswer<'a> {
    pub rid: &'a str,
    status: u16,
    /// Seconds.
    retry_after: Option<u64>,
}

impl DpsAnswer<'_> {
    /// `None`: no answer of the service.
    pub fn parse(topic: &str) -> Option<DpsAnswer<'_>> {
        let (status, query) = topic.strip_prefix("$dps/registrations/res/")?.split_once("/?")?;
        let field =
            |key: &str| query.split('&').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key);
        Some(DpsAnswer {
            rid: field("$rid")?.1,
            status: status.parse().ok()?,
            retry_after: field("retry-after").and_then(|(_, seconds)| seconds.parse().ok()),
        })
    }

    /// What the answer to `request` leads to.
    pub fn judge(&self, request: &DpsRequest, body: &[u8], dps: &Dps) -> Result<Next, HubError> {
        if self.status == 408 || self.status == 429 || self.status >= 500 {
            return Ok(Next::Ask(request.clone(), self.wait()));
        }
        if !(200..300).contains(&self.status) {
            let said: DpsRefusal = serde_json::from_slice(body).unwrap_or_default();
            let reason = format!("status {}{}", self.status, said.shown());
            return Err(HubError::NotAssigned { registration: dps.registration_id.clone(), reason });
        }
        let malformed = |cause: String| HubError::DpsMalformed { cause };
        let state: DpsOperation =
            serde_json::from_slice(body).map_err(|error| malformed(error.to_string()))?;
        match state.status.as_str() {
            "assigned" => {
                state.seat().map(Next::Seat).ok_or_else(|| malformed("it names no hub and device".into()))
            }
            "assigning" | "unassigned" => match state.operation_id.filter(|id| !id.is_empty()) {
                Some(operation) => Ok(Next::Ask(DpsRequest::State { operation }, self.wait())),
                None => Err(malformed("it names no operation".into())),
            },
            status => {
                let said = state.registration_state.unwrap_or_default().refusal.shown();
                let status: String = status.chars().take(20).collect();
                let reason = format!("{status}{said}");
                Err(HubError::NotAssigned { registration: dps.registration_id.clone(), reason })
            }
        }
    }

    fn wait(&self) -> Duration {
        let (least, most) = WAIT.into_inner();
        Duration::from_secs(self.retry_after.unwrap_or(DEFAULT_WAIT).clamp(least, most))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DpsOperation {
    operation_id: Option<String>,
    status: String,
    registration_state: Option<DpsRegistration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DpsRegistration {
    assigned_hub: Option<String>,
    device_id: Option<String>,
    #[serde(flatten)]
    refusal: DpsRefusal,
}

impl DpsOperation {
    fn seat(self) -> Option<Seat> {
        let state = self.registration_state?;
        let (host, device_id) = (state.assigned_hub?, state.device_id?);
        let seat = Seat { host, gateway: None, device_id, module_id: None };
        seat.is_plausible().then_some(seat)
    }
}

/// Why not, in the service's words.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DpsRefusal {
    #[serde(default)]
    error_code: Value,
    #[serde(default, alias = "errorMessage")]
    message: Value,
}

impl DpsRefusal {
    fn shown(&self) -> String {
        let code =
            if self.error_code.is_null() { String::new() } else { format!(", code {}", self.error_code) };
        let message = self.message.as_str().map(|text| format!(": {text}")).unwrap_or_default();
        format!("{code}{message}").chars().filter(|c| !c.is_control()).take(MESSAGE_LIMIT).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dps(payload: Option<Value>) -> Dps {
        Dps {
            endpoint: "dps".into(),
            port: 8883,
            id_scope: "0ne1".into(),
            registration_id: "gw-1".into(),
            payload,
            cache: "/nowhere".into(),
        }
    }

    fn judge(topic: &str, body: Value) -> Result<Next, HubError> {
        let answer = DpsAnswer::parse(topic).unwrap();
        answer.judge(&DpsRequest::Register, body.to_string().as_bytes(), &dps(None))
    }

    #[test]
    fn requests_carry_what_they_are_about() {
        assert_eq!(DpsRequest::Register.topic("7"), "$dps/registrations/PUT/iotdps-register/?$rid=7");
        let state = DpsRequest::State { operation: "4.a&b".into() };
        assert_eq!(
            state.topic("8"),
            "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=8&operationId=4.a%26b"
        );
        let body: Value =
            serde_json::from_slice(&DpsRequest::Register.body(&dps(Some(json!({"a": 1}))))).unwrap();
        assert_eq!(body, json!({"registrationId": "gw-1", "payload": {"a": 1}}));
        assert_eq!(DpsRequest::Register.body(&dps(None)), br#"{"registrationId":"gw-1"}"#);
    }

    #[test]
    fn an_assignment_is_waited_for_as_long_as_the_service_says() {
        let body = json!({"operationId": "4.x", "status": "assigning"});
        for (query, seconds) in
            [("", 2), ("&retry-after=3", 3), ("&retry-after=0", 1), ("&retry-after=9999", 120)]
        {
            let topic = format!("$dps/registrations/res/202/?$rid=1{query}");
            let Ok(Next::Ask(request, wait)) = judge(&topic, body.clone()) else { panic!("{topic}") };
            assert_eq!(request, DpsRequest::State { operation: "4.x".into() });
            assert_eq!(wait.as_secs(), seconds);
        }
    }

    #[test]
    fn a_busy_service_is_asked_the_same_again() {
        let Ok(Next::Ask(request, wait)) =
            judge("$dps/registrations/res/429/?$rid=1&retry-after=9", json!({}))
        else {
            panic!("not asked again");
        };
        assert_eq!((request, wait.as_secs()), (DpsRequest::Register, 9));
    }

    #[test]
    fn an_assigned_hub_is_taken_if_it_can_be_one() {
        let state = |hub: &str, device: &str| {
            json!({"operationId": "4.x", "status": "assigned",
                   "registrationState": {"registrationId": "gw-1", "assignedHub": hub, "deviceId": device}})
        };
        let topic = "$dps/registrations/res/200/?$rid=1";
        let Ok(Next::Seat(seat)) = judge(topic, state("h.azure-devices.net", "gw")) else {
            panic!("no seat")
        };
        assert_eq!((seat.host.as_str(), seat.device_id.as_str()), ("h.azure-devices.net", "gw"));
        for (hub, device) in [("h/../x", "gw"), ("", "gw"), ("h", "a/b"), ("h", "")] {
            assert!(
                matches!(judge(topic, state(hub, device)), Err(HubError::DpsMalformed { .. })),
                "{hub} {device}"
            );
        }
    }

    #[test]
    fn refusals_say_why_in_the_service_s_words() {
        let failed = json!({"operationId": "4.x", "status": "failed",
                            "registrationState": {"errorCode": 400207, "errorMessage": "no hub\n fits"}});
        let error = judge("$dps/registrations/res/200/?$rid=1", failed).unwrap_err().to_string();
        assert!(error.contains("gw-1") && error.contains("failed, code 400207: no hub fits"), "{error}");
        let disabled = json!({"operationId": "4.x", "status": "disabled"});
        assert!(
            judge("$dps/registrations/res/200/?$rid=1", disabled)
                .unwrap_err()
                .to_string()
                .contains("disabled")
        );
        let unauthorised = json!({"errorCode": 401002, "message": "CertificateDeviceNotFound"});
        let error = judge("$dps/registrations/res/401/?$rid=1", unauthorised).unwrap_err().to_string();
        assert!(error.contains("status 401, code 401002: CertificateDeviceNotFound"), "{error}");
        assert!(judge("$dps/registrations/res/404/?$rid=1", json!("x")).is_err());
        assert!(judge("$dps/registrations/res/200/?$rid=1", json!([])).is_err());
    }

    #[test]
    fn other_topics_are_no_answers() {
        for topic in [
            "",
            "$dps/registrations/res/200/",
            "$dps/registrations/res/x/?$rid=1",
            "$iothub/twin/res/200/?$rid=1",
        ] {
            assert_eq!(DpsAnswer::parse(topic), None, "{topic}");
        }
    }
}
