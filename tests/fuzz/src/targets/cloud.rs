//! What hubs, callers and web servers say.

use fwupdate::command;
use fwupdate::config::Window;
use fwupdate::desired::{self, Section};
use fwupdate::machine::{Event, Hold, Operation, Origin, Phase, Record, step};
use fwupdate::plan::{self, Now};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::now;

/// The payload of any direct method; what it asks for is recorded.
pub mod method {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        let Ok(payload) = serde_json::from_slice::<Value>(bytes) else { return false };
        let named = command::operation(&payload).is_ok();
        let deferred = command::defer(&payload).is_ok();
        match command::update(&payload, Origin::Method, now()) {
            Ok(operation) => {
                accepted(operation);
                true
            }
            Err(failure) => {
                assert!(!failure.message.is_empty() && failure.message.len() < 4096);
                named || deferred
            }
        }
    }

    /// An operation that was accepted can be remembered, and the next agent reads the same.
    fn accepted(operation: Operation) {
        assert!(command::same_request(&operation, &operation));
        let record = Record { phase: Phase::Opening { operation }, ..Record::default() };
        let bytes = serde_json::to_vec(&record).unwrap();
        assert!(bytes.len() < 60_000, "one call fills the record: {} bytes", bytes.len());
        assert_eq!(serde_json::from_slice::<Record>(&bytes).unwrap(), record);
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let all = json!({
            "fwPackageUri": "https://host/fw.fwb?sig=secret", "manifestSha256": "ab".repeat(32),
            "version": "1.5.0", "operationId": "op-1", "maxDownloadBytes": 1000, "allowDowngrade": true,
            "force": true, "notBefore": "2026-01-01T02:00:00+02:00", "deadline": "2026-01-02T00:00:00Z",
        });
        let defer = json!({"operationId": "op-1", "until": "2026-01-02T00:00:00Z"});
        [all, defer, json!({"operationId": "op-1"})].map(|value| value.to_string().into()).to_vec()
    }
}

/// A whole twin: read, compared, patched, and its section acted upon.
pub mod twin {
    use fwupdate::hub::parsers::{difference, merge};
    use serde_json::{Map, Value};

    use super::*;

    /// The body of a twin, patched until it says what a report says; its desired properties.
    fn read(body: &[u8]) -> Option<Value> {
        let mut sections: Map<String, Value> = serde_json::from_slice(body).ok()?;
        let Some(Value::Object(mut reported)) = sections.remove("reported") else { return None };
        let Some(Value::Object(report)) = sections.get("desired") else { return None };
        let patch = difference(report, &reported);
        merge(&mut reported, &patch);
        assert!(difference(report, &reported).is_empty(), "a patch leaves a difference");
        sections.remove("desired")
    }

    pub fn run(bytes: &[u8]) -> bool {
        let Some(desired) = read(bytes) else { return false };
        let Some(section) = Section::of(&desired) else { return true };
        let running = desired::RunningImage { version: Some("1.0.0"), manifest: None };
        let mut record = Record { phase: Phase::Idle, ..Record::default() };
        for _ in 0..2 {
            let action = desired::decide(&record, Some(&section), running, now());
            let (noted, operation) = match action {
                desired::Action::Start { operation, desired, .. } => (Some(desired), Some(operation)),
                desired::Action::Note { desired, .. } => (desired, None),
                _ => break,
            };
            let boot = fwupdate::machine::Boot {
                rebuild: false,
                trial: None,
                booted: Some(fwupdate::slot::Slot::A),
                env: Some(fwupdate::slot::BootEnv::only(fwupdate::slot::Slot::A)),
                boot_id: Default::default(),
                now: now(),
                uptime: 1,
            };
            record = step(&record, &boot, Event::Desired { desired: noted, operation }).0;
            let bytes = serde_json::to_vec(&record).unwrap();
            assert!(bytes.len() < 60_000, "one section fills the record: {} bytes", bytes.len());
        }
        true
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let section =
            json!({"fwPackageUri": "https://host/fw.fwb", "version": "2.0.0", "operationId": "ring-1"});
        let reported = json!({"firmwareStatus": "standBy", "fwupdate": {"slots": {"A": {"version": "1"}}}, "$version": 9});
        let twin = json!({"desired": {"fwupdate": section, "$version": 7}, "reported": reported});
        vec![twin.to_string().into()]
    }
}

/// A topic of the provisioning service on the first line, the answer's body behind it.
pub mod dps_answer {
    use std::time::Duration;

    use fwupdate::config::Dps;
    use fwupdate::hub::parsers::{DpsAnswer, DpsRequest, Next};

    /// The topic and the body of an answer to a registration: whether they were understood.
    fn judge(topic: &str, body: &[u8]) -> bool {
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

    pub fn run(bytes: &[u8]) -> bool {
        let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let (topic, body) = bytes.split_at(at);
        let body = body.strip_prefix(b"\n").unwrap_or(body);
        std::str::from_utf8(topic).is_ok_and(|topic| judge(topic, body))
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let assigned = r#"{"operationId":"4.a","status":"assigned","registrationState":{"registrationId":"gw-1","assignedHub":"hub.azure-devices.net","deviceId":"gw-1","status":"assigned"}}"#;
        [
            "$dps/registrations/res/202/?$rid=1&retry-after=3\n{\"operationId\":\"4.a\",\"status\":\"assigning\"}".to_owned(),
            format!("$dps/registrations/res/200/?$rid=1\n{assigned}"),
            "$dps/registrations/res/429/?$rid=1&retry-after=99999999999999999999\n".to_owned(),
        ]
        .map(String::into_bytes)
        .to_vec()
    }
}

/// A topic of the hub on the first line; then what a web server's headers say, one a line.
pub mod http_headers {
    pub fn run(bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes);
        let (topic, headers) = text.split_once('\n').unwrap_or((&text, ""));
        let topic = fwupdate::hub::parsers::topic(topic).is_some();
        fwupdate::stage::parsers::headers(headers) || topic
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let topic = "$iothub/methods/POST/firmwareUpdate/?$rid=1a";
        let headers = "Date: Wed, 21 Oct 2026 07:28:00 GMT\nRetry-After: Wed, 21 Oct 2026 07:29:00 GMT\n\
                       Content-Range: bytes 0-99/1000\nETag: \"a\"\n";
        let seconds = "Retry-After: 120\nContent-Range: bytes 5-9/*\n";
        [headers, seconds].map(|headers| format!("{topic}\n{headers}").into()).to_vec()
    }
}

/// Times of a call, and the windows of the settings: what the reboot waits for is a moment, or nothing.
pub mod times {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        let Some((minutes, text)) = bytes.split_first_chunk::<4>() else { return false };
        let Ok(text) = std::str::from_utf8(text) else { return false };
        let mut parts = text.split(' ');
        let mut call = json!({"fwPackageUri": "https://host/fw"});
        for field in ["notBefore", "deadline"] {
            if let Some(part) = parts.next().filter(|part| !part.is_empty()) {
                call[field] = part.into();
            }
        }
        let until = parts.next().unwrap_or_default();
        let deferred = command::defer(&json!({ "until": until })).ok().map(|(_, until)| until);
        let Ok(operation) = command::update(&call, Origin::Method, now()) else { return false };
        let minute = |low: u8, high: u8| u16::from_le_bytes([low, high]) % (24 * 60);
        let window = Window { start: minute(minutes[0], minutes[1]), end: minute(minutes[2], minutes[3]) };
        let hold = Hold { approved: true, until: deferred };
        for time in [now(), OffsetDateTime::UNIX_EPOCH, time::macros::datetime!(9999-12-31 23:59:59 UTC)] {
            for windows in [&[window][..], &[]] {
                let clock = Now { time, synchronised: true };
                plan::wait(&operation, &hold, windows, false, clock);
                plan::download_wait(windows, clock);
            }
        }
        true
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let texts = [
            "2026-01-01T02:00:00+02:00 2026-01-02T00:00:00Z 2026-01-01T12:00:00Z",
            "9999-12-31T22:59:59Z  9999-12-31T23:59:59Z",
        ];
        texts.map(|text| [&[0x28, 5, 0xf0, 0][..], text.as_bytes()].concat()).to_vec()
    }
}
