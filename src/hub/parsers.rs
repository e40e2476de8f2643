//! What reads the hub's and the provisioning service's bytes, for the fuzzer (tests/fuzz): whether they were understood.

use std::time::Duration;

use serde_json::{Map, Value};

use super::dps::{DpsAnswer, DpsRequest, Next};
use super::{merge, topics};
use crate::config::Dps;

/// The topic of a message from the hub.
pub fn topic(topic: &str) -> bool {
    topics::parse(topic).is_some()
}

/// The body of a twin, patched until it says what a report says; its desired properties.
pub fn twin(body: &[u8]) -> Option<Value> {
    let mut sections: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let Some(Value::Object(mut reported)) = sections.remove("reported") else { return None };
    let Some(Value::Object(report)) = sections.get("desired") else { return None };
    let patch = merge::difference(report, &reported);
    merge::merge(&mut reported, &patch);
    assert!(merge::difference(report, &reported).is_empty(), "a patch leaves a difference");
    sections.remove("desired")
}

/// The topic and the body of an answer to a registration.
pub fn dps(topic: &str, body: &[u8]) -> bool {
    let dps = Dps {
        endpoint: "dps".into(),
        port: 8883,
        id_scope: "0ne1".into(),
        registration_id: "gw-1".into(),
        payload: None,
        cache: "/nonexistent".into(),
    };
    let Some(answer) = DpsAnswer::parse(topic) else { return false };
    match answer.judge(&DpsRequest::Register, body, &dps) {
        Ok(Next::Ask(_, wait)) => {
            assert!((Duration::from_secs(1)..=Duration::from_secs(120)).contains(&wait));
            true
        }
        Ok(Next::Seat(seat)) => {
            assert!(seat.is_plausible());
            true
        }
        Err(error) => {
            assert!(error.to_string().len() < 1024);
            false
        }
    }
}
