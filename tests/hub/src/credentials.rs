//! `$iothub/credentials`: a device asks for a certificate of a key that it made, one request at a time.
//!
//! A request is answered with 202 at once, and later with 200 or an error, which waits for as long as the device is
//! not subscribed to answers, over reconnects and restarts. Rules: Azure's "Certificate renewal" (preview).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;

use crate::authority::{LIFETIME, REQUEST_LIMIT, Request};
use crate::core::Core;
use crate::registry::{Credentials, Identity};
use crate::{clock, lock};

/// How long a request may be under way.
const PATIENCE: Duration = Duration::hours(12);

/// An answer: status and body.
type Answer = (u16, Value);

/// One device's request under way.
#[derive(Debug)]
struct Operation {
    request: String,
    csr: Vec<u8>,
    correlation: String,
    expires: String,
    /// What the device has not got yet.
    answer: Option<Answer>,
    /// The answer is on its way, and not acknowledged.
    sent: bool,
}

/// All requests under way.
#[derive(Debug)]
pub struct Renewals {
    operations: Mutex<HashMap<Identity, Operation>>,
    answers: watch::Sender<()>,
}

impl Default for Renewals {
    fn default() -> Renewals {
        Renewals { operations: Mutex::default(), answers: watch::Sender::new(()) }
    }
}

impl Renewals {
    /// Wakes at every answer from now on.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.answers.subscribe()
    }

    /// The answer that waits for the device, with its request id. A `reliable` one is kept until it is acknowledged.
    pub fn due(&self, identity: &Identity, reliable: bool) -> Option<(String, Answer)> {
        let mut operations = lock(&self.operations);
        let operation = operations.get_mut(identity).filter(|operation| !operation.sent)?;
        let due = (operation.request.clone(), operation.answer.clone()?);
        operation.sent = true;
        if !reliable {
            operations.remove(identity);
        }
        Some(due)
    }

    /// The device has its answer.
    pub fn complete(&self, identity: &Identity) {
        lock(&self.operations).retain(|owner, operation| owner != identity || !operation.sent);
    }

    /// What was sent and not acknowledged is sent again.
    pub fn release(&self, identity: &Identity) {
        if let Some(operation) = lock(&self.operations).get_mut(identity) {
            operation.sent = false;
        }
    }

    /// The device is gone.
    pub fn forget(&self, identity: &Identity) {
        lock(&self.operations).remove(identity);
    }

    /// Takes the only place, or says why not.
    fn begin(&self, identity: &Identity, wanted: Wanted, request: &str) -> Result<(String, String), Refusal> {
        let mut operations = lock(&self.operations);
        let may_replace = |have: &str| wanted.replace.as_deref().is_some_and(|id| id == "*" || id == have);
        match operations.get(identity) {
            Some(busy) if !may_replace(&busy.request) => return Err(Refusal::busy(busy)),
            None if wanted.replace.as_deref().is_some_and(|id| id != "*") => {
                return Err(Refusal::nothing_to_replace(&wanted.replace));
            }
            _ => {}
        }
        let (correlation, expires) = (clock::unique(), clock::shown(OffsetDateTime::now_utc() + PATIENCE));
        let operation = Operation {
            request: request.to_owned(),
            csr: wanted.csr,
            correlation: correlation.clone(),
            expires: expires.clone(),
            answer: None,
            sent: false,
        };
        operations.insert(identity.clone(), operation);
        Ok((correlation, expires))
    }

    /// The request and what is to be signed, unless another took its place meanwhile.
    fn work(&self, identity: &Identity, correlation: &str) -> Option<(String, Vec<u8>)> {
        let operations = lock(&self.operations);
        let operation = operations.get(identity).filter(|operation| operation.correlation == correlation)?;
        Some((operation.request.clone(), operation.csr.clone()))
    }

    fn answer(&self, identity: &Identity, correlation: &str, answer: Option<Answer>) {
        let mut operations = lock(&self.operations);
        match (operations.get_mut(identity).filter(|op| op.correlation == correlation), answer) {
            (Some(operation), Some(answer)) => operation.answer = Some(answer),
            (Some(_), None) => drop(operations.remove(identity)),
            (None, _) => {}
        }
        drop(operations);
        self.answers.send_replace(());
    }
}

/// A request that came to the topic: the first answer.
pub fn ask(core: &Arc<Core>, identity: &Identity, request: &str, payload: &[u8]) -> Answer {
    match accept(core, identity, request, payload) {
        Ok((correlation, expires)) => {
            work(core, identity.clone(), correlation.clone());
            (202, json!({"correlationId": correlation, "operationExpires": expires}))
        }
        Err(refusal) => refusal.answer(core),
    }
}

/// Goes on with what a restart of the hub cut off.
pub fn resume(core: &Arc<Core>) {
    let operations = lock(&core.renewals.operations);
    let unanswered = operations.iter().filter(|(_, operation)| operation.answer.is_none());
    unanswered.for_each(|(identity, operation)| work(core, identity.clone(), operation.correlation.clone()));
}

fn accept(
    core: &Core,
    identity: &Identity,
    request: &str,
    payload: &[u8],
) -> Result<(String, String), Refusal> {
    if !is_request_id(request) {
        return Err(Refusal::bad(format!("the $rid {request:?} {REQUEST_ID_RULE}")));
    }
    let wanted = Wanted::read(identity, payload).map_err(Refusal::bad)?;
    let entry = core.entry(identity).map_err(|error| Refusal::new(404_001, error.to_string()))?;
    if matches!(entry.credentials, Credentials::Sas { .. }) {
        return Err(Refusal::new(412_005, format!("{identity} logs in by a key; certificates are renewed")));
    }
    if core.faults.take(|faults| &mut faults.throttle_certificates) {
        return Err(Refusal::new(429_002, "ThrottleBacklogLimitExceeded"));
    }
    if core.faults.take(|faults| &mut faults.unavailable_certificates) {
        return Err(Refusal::new(503_001, "ServiceUnavailable"));
    }
    core.renewals.begin(identity, wanted, request)
}

/// Issues it in a while; the second answer.
fn work(owner: &Arc<Core>, identity: Identity, correlation: String) {
    let core = owner.clone();
    owner.tasks.spawn(async move {
        core.faults.before_certificate().await;
        let Some((request, csr)) = core.renewals.work(&identity, &correlation) else { return };
        let answer = match issue(&core, &identity, &request, &csr) {
            Ok(certificates) => (200, json!({"correlationId": correlation, "certificates": certificates})),
            Err(refusal) => refusal.answer(&core),
        };
        let lost = answer.0 == 200 && core.faults.take(|faults| &mut faults.lose_certificates);
        core.renewals.answer(&identity, &correlation, (!lost).then_some(answer));
        core.live.changed();
    });
}

fn issue(core: &Core, identity: &Identity, request: &str, csr: &[u8]) -> Result<Vec<String>, Refusal> {
    let internal = |message: String| Refusal::new(500_001, message);
    if core.faults.take(|faults| &mut faults.fail_certificates) {
        return Err(internal("ServerError".to_owned()));
    }
    let entry = core.entry(identity).map_err(|error| Refusal::new(404_001, error.to_string()))?;
    certify(core, csr, &identity.device, &identity.device, entry.issues.unwrap_or(LIFETIME), Some(request))
        .map_err(|problem| Refusal::bad(problem).by_authority())
}

/// Checks a signing request in DER for `name`, and issues a certificate for `device`: base64, the leaf first.
pub fn certify(
    core: &Core,
    csr: &[u8],
    name: &str,
    device: &str,
    lifetime: u64,
    request: Option<&str>,
) -> Result<Vec<String>, String> {
    let asked = Request::read(csr)?;
    if asked.common_name != name {
        return Err(format!("the CSR's common name is {:?}, not {name:?}", asked.common_name));
    }
    let issued = core.authority.issue(&asked, device, lifetime, request);
    let (chain, issued) = issued.map_err(|error| format!("the certificate cannot be made: {error:#}"))?;
    core.history.issued(&Identity::device(device), issued);
    Ok(chain.iter().map(|certificate| data_encoding::BASE64.encode(certificate)).collect())
}

/// The DER form of a `csr` field.
pub fn decode(csr: Option<&Value>) -> Result<Vec<u8>, String> {
    let text = csr.and_then(Value::as_str).filter(|text| !text.is_empty());
    let text =
        text.ok_or("'csr' must be a string: the base64 of a PKCS #10 request in DER, without PEM lines")?;
    if text.len() > REQUEST_LIMIT {
        return Err(format!("'csr' takes {} bytes; the limit is {REQUEST_LIMIT}", text.len()));
    }
    data_encoding::BASE64.decode(text.as_bytes()).map_err(|error| format!("'csr' is not base64: {error}"))
}

/// What a device asks for.
#[derive(Debug)]
struct Wanted {
    csr: Vec<u8>,
    replace: Option<String>,
}

impl Wanted {
    fn read(identity: &Identity, payload: &[u8]) -> Result<Wanted, String> {
        let body: Value =
            serde_json::from_slice(payload).map_err(|error| format!("the body is not JSON: {error}"))?;
        let body = body.as_object().ok_or("the body is no JSON object")?;
        if let Some(unknown) = body.keys().find(|key| !["id", "csr", "replace"].contains(&key.as_str())) {
            return Err(format!("the field {unknown:?} is unknown; there are 'id', 'csr' and 'replace'"));
        }
        if body.get("id").and_then(Value::as_str) != Some(&identity.device) {
            return Err(format!("'id' must be the device that is connected, {identity}"));
        }
        let replace = match body.get("replace") {
            None => None,
            Some(Value::String(id)) if id == "*" || is_request_id(id) => Some(id.clone()),
            Some(other) => return Err(format!("'replace' {other} {REQUEST_ID_RULE}, or is \"*\"")),
        };
        Ok(Wanted { csr: decode(body.get("csr"))?, replace })
    }
}

const REQUEST_ID_RULE: &str = "has 4 to 36 letters, digits and, inside, hyphens";

fn is_request_id(text: &str) -> bool {
    let good = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    good && (4..=36).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-')
}

/// Why there is no certificate.
#[derive(Debug)]
struct Refusal {
    code: u32,
    message: String,
    info: Value,
}

impl Refusal {
    fn new(code: u32, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), info: Value::Null }
    }

    fn bad(message: String) -> Refusal {
        Refusal::new(400_040, message)
    }

    /// The hub took the request, and the authority did not.
    fn by_authority(self) -> Refusal {
        let info = json!({"credentialError": "400000", "credentialMessage": self.message});
        Refusal { info, ..self }
    }

    fn busy(operation: &Operation) -> Refusal {
        let Operation { request, correlation, expires, .. } = operation;
        let message = "a credential operation is active: wait for its answer, or send 'replace'";
        let info = json!({"requestId": request, "correlationId": correlation, "operationExpires": expires});
        Refusal { info, ..Refusal::new(409_005, message) }
    }

    fn nothing_to_replace(wanted: &Option<String>) -> Refusal {
        let info = json!({"requestId": wanted});
        Refusal { info, ..Refusal::new(412_001, "there is no active request to replace") }
    }

    /// When a client may ask again, in seconds, unless a fault says otherwise.
    fn retry_after(&self) -> Option<u64> {
        match self.code {
            429_002 => Some(1),
            503_001 => Some(5),
            500_001 => Some(300),
            _ => None,
        }
    }

    fn answer(self, core: &Core) -> Answer {
        let wait = self.retry_after().map(|usual| core.faults.retry_certificates_after().unwrap_or(usual));
        let mut body = json!({
            "errorCode": self.code, "message": self.message, "trackingId": clock::unique(),
            "timestampUtc": clock::now(), "info": self.info,
        });
        if let (Some(body), Some(wait)) = (body.as_object_mut(), wait) {
            body.insert("retryAfter".into(), wait.into());
        }
        (u16::try_from(self.code / 1000).unwrap_or(500), body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids() {
        for id in ["1234", "a-b4", &"x".repeat(36), "db8c0f73-ac73-4b90-bba4-8a26ae2fcb27"] {
            assert!(is_request_id(id), "{id}");
        }
        for id in ["", "123", "-123", "123-", "12_4", "12.4", "äöü4", &"x".repeat(37)] {
            assert!(!is_request_id(id), "{id}");
        }
    }
}
