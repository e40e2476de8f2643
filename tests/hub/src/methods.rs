//! Direct methods: calls that wait for a device to connect, and then for its answer.
//!
//! Rules and texts: Azure's "Understand and invoke direct methods".

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::core::Core;
use crate::error::{HubError, Kind};
use crate::live::Message;
use crate::lock;
use crate::mqtt::topics;
use crate::registry::Identity;

/// Request and answer may each take this many bytes.
pub const PAYLOAD_LIMIT: usize = 128 * 1024;

/// One call, as the REST body has it.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: String,
    /// `None` sends an empty message.
    pub payload: Option<Value>,
    pub response_timeout: Duration,
    pub connect_timeout: Duration,
}

impl Call {
    /// A call with Azure's defaults: the device must be online, and has 30 s to answer.
    pub fn new(name: impl Into<String>, payload: Option<Value>) -> Call {
        let (response_timeout, connect_timeout) = (Duration::from_secs(30), Duration::ZERO);
        Call { name: name.into(), payload, response_timeout, connect_timeout }
    }

    /// The body of `POST /twins/{id}/methods`, and `cloudToDeviceMethod` of a job.
    pub fn read(body: &Value) -> Result<Call, HubError> {
        let invalid = |message: &str| HubError::new(Kind::ArgumentInvalid, message);
        let name = body.get("methodName").and_then(Value::as_str).filter(|name| !name.is_empty());
        let mut call =
            Call::new(name.ok_or_else(|| invalid("methodName is missing"))?, body.get("payload").cloned());
        let response = seconds(body, "responseTimeoutInSeconds")?;
        if response.is_some_and(|seconds| !(5..=300).contains(&seconds)) {
            return Err(invalid("responseTimeoutInSeconds must be within [5; 300]."));
        }
        let connect = seconds(body, "connectTimeoutInSeconds")?;
        if connect.is_some_and(|seconds| seconds > 300) {
            return Err(invalid("connectTimeoutInSeconds must be within [0; 300]."));
        }
        call.response_timeout = response.map_or(call.response_timeout, Duration::from_secs);
        call.connect_timeout = connect.map_or(call.connect_timeout, Duration::from_secs);
        Ok(call)
    }
}

fn seconds(body: &Value, field: &str) -> Result<Option<u64>, HubError> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        // A number in a string is one too: the Azure CLI sends its default so.
        Some(value) => value.as_u64().or_else(|| value.as_str()?.parse().ok()).map(Some).ok_or_else(|| {
            HubError::new(
                Kind::ArgumentInvalid,
                format!("{field} must be a whole number of seconds, not {value}"),
            )
        }),
    }
}

/// What the device answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: i64,
    pub payload: Value,
}

#[derive(Debug)]
struct Pending {
    identity: Identity,
    answer: oneshot::Sender<Answer>,
}

/// Calls that no device has answered yet, by request id.
#[derive(Debug, Default)]
pub struct Calls {
    pending: Mutex<HashMap<String, Pending>>,
    next: AtomicU64,
}

impl Calls {
    fn open(&self, identity: &Identity) -> (String, oneshot::Receiver<Answer>) {
        let request = format!("{:x}", self.next.fetch_add(1, Ordering::Relaxed) + 1);
        let (answer, wait) = oneshot::channel();
        lock(&self.pending).insert(request.clone(), Pending { identity: identity.clone(), answer });
        (request, wait)
    }

    fn close(&self, request: &str) {
        lock(&self.pending).remove(request);
    }

    /// Takes a device's answer; one to a call that is over, or another device's, is dropped, as by the hub.
    pub fn answered(&self, identity: &Identity, request: &str, answer: Answer) {
        let mut pending = lock(&self.pending);
        if pending.get(request).is_none_or(|call| call.identity != *identity) {
            tracing::info!(%identity, request, "an answer to no open call");
            return;
        }
        if let Some(call) = pending.remove(request) {
            // The caller may have hung up meanwhile; then nobody wants the answer.
            drop(call.answer.send(answer));
        }
    }
}

/// Invokes a method, as `POST /twins/{id}/methods` does.
pub async fn invoke(core: &Core, identity: &Identity, call: Call) -> Result<Answer, HubError> {
    core.require_enabled(identity)?;
    let payload = call.payload.as_ref().map(Value::to_string).unwrap_or_default();
    if payload.len() > PAYLOAD_LIMIT {
        let message = format!("the payload takes {} bytes; the limit is {PAYLOAD_LIMIT}", payload.len());
        return Err(HubError::new(Kind::TooLarge, message));
    }
    wait_for_listener(core, identity, call.connect_timeout).await?;
    let deadline = Instant::now() + call.response_timeout;
    let (request, wait) = core.calls.open(identity);
    let name = utf8_percent_encode(&call.name, NON_ALPHANUMERIC_BUT_WORDS);
    let topic = format!("$iothub/methods/POST/{name}/?$rid={request}");
    let message = Message { topic, payload: Bytes::from(payload) };
    if core.faults.take(|faults| &mut faults.repeat_methods) {
        core.live.send(identity, message.clone());
    }
    if !core.live.send(identity, message) {
        core.calls.close(&request);
        return Err(not_online(call.connect_timeout));
    }
    let answer = timeout_at(deadline, wait).await;
    core.calls.close(&request);
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        _ => Err(HubError::new(Kind::DeviceTimeout, "Timed out waiting for the response from device.")
            .after(call.response_timeout)),
    }
}

/// The star parts a component's name from its command's, and clients do not decode it.
const NON_ALPHANUMERIC_BUT_WORDS: &percent_encoding::AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'*');

/// Online means connected and subscribed to methods.
async fn wait_for_listener(core: &Core, identity: &Identity, patience: Duration) -> Result<(), HubError> {
    let deadline = Instant::now() + patience;
    let mut changes = core.live.watch();
    while !(core.live.is_connected(identity) && core.is_subscribed(identity, topics::METHODS)) {
        if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            return Err(not_online(patience));
        }
    }
    Ok(())
}

fn not_online(patience: Duration) -> HubError {
    HubError::new(Kind::DeviceNotOnline, "Timed out waiting for device to connect.").after(patience)
}
