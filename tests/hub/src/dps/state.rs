//! How a registration ends: what is assigned, and the certificate that comes with it.

use serde_json::{Value, json};

use super::{Applicant, Operation, Registration};
use crate::core::Core;
use crate::error::{HubError, Kind};
use crate::registry::{Credentials, Entry, Identity};
use crate::{clock, credentials, lock};

/// What became of it.
struct Verdict {
    status: &'static str,
    /// Of `registrationState`, beside what each has.
    more: Value,
}

/// The state of a registration: the answer's status and body.
pub fn state(core: &Core, registration_id: &str, operation_id: &str) -> Result<(u16, Value), HubError> {
    let mut operations = lock(&core.dps.operations);
    let known = operations.get_mut(operation_id).filter(|o| o.applicant.registration_id == registration_id);
    let Some(operation) = known else {
        return Err(HubError::new(Kind::NotFound, format!("there is no operation {operation_id}")));
    };
    if operation.polls_left > 0 {
        operation.polls_left -= 1;
        return Ok((202, json!({"operationId": operation_id, "status": "assigning"})));
    }
    let end = match &operation.end {
        Some(end) => end.clone(),
        None => operation.end.insert(end(core, operation_id, operation)?).clone(),
    };
    Ok((200, end))
}

fn end(core: &Core, operation_id: &str, operation: &Operation) -> Result<Value, HubError> {
    let Operation { applicant, request, created, .. } = operation;
    let Verdict { status, more } = decide(core, applicant, request.csr.as_deref())?;
    let registration_id = &applicant.registration_id;
    let text = |name: &str| more.get(name).and_then(Value::as_str).map(str::to_owned);
    let now = clock::now();
    let registration = Registration {
        registration_id: registration_id.clone(),
        enrollment: applicant.enrollment.id.clone(),
        payload: request.payload.clone(),
        status,
        assigned_hub: text("assignedHub"),
        device_id: text("deviceId"),
        time: now.clone(),
    };
    lock(&core.dps.registrations).push(registration);
    core.live.changed();
    let mut state = json!({
        "registrationId": registration_id, "createdDateTimeUtc": created, "lastUpdatedDateTimeUtc": now,
        "status": status, "etag": data_encoding::BASE64.encode(&clock::random::<8>()),
    });
    if let (Some(state), Value::Object(more)) = (state.as_object_mut(), more) {
        state.extend(more.into_iter().filter(|(_, value)| !value.is_null()));
    }
    Ok(json!({"operationId": operation_id, "status": status, "registrationState": state}))
}

fn decide(core: &Core, applicant: &Applicant, csr: Option<&[u8]>) -> Result<Verdict, HubError> {
    let enrollment = &applicant.enrollment;
    if enrollment.disabled {
        return Ok(Verdict { status: "disabled", more: json!({}) });
    }
    let failed = |code: u32, message: &str| Verdict {
        status: "failed",
        more: json!({"errorCode": code, "errorMessage": message}),
    };
    if let Some(message) = &enrollment.failure {
        return Ok(failed(400_207, message));
    }
    let device_id = enrollment.device_id.as_ref().unwrap_or(&applicant.registration_id);
    let hub = enrollment.assign_to.as_ref().unwrap_or(&core.dps.host);
    let lifetime = enrollment.issues.filter(|_| csr.is_some());
    let chain = match (csr, lifetime) {
        (Some(csr), Some(lifetime)) => {
            let name = &applicant.registration_id;
            match credentials::certify(core, csr, name, device_id, lifetime, None) {
                Ok(chain) => Some(chain),
                Err(problem) => return Ok(failed(400_040, &problem)),
            }
        }
        _ => None,
    };
    let substatus = match *hub == core.dps.host {
        true => admit(core, device_id, &applicant.credentials, lifetime)?,
        false => "initialAssignment",
    };
    let more = json!({"assignedHub": hub, "deviceId": device_id, "substatus": substatus,
                      "payload": enrollment.returns, "issuedCertificateChain": chain});
    Ok(Verdict { status: "assigned", more })
}

/// Makes the device known to the hub by these credentials, or by the certificates that it is issued, which last
/// `lifetime` seconds; one that is known keeps its twin.
fn admit(
    core: &Core,
    device_id: &str,
    credentials: &Credentials,
    lifetime: Option<u64>,
) -> Result<&'static str, HubError> {
    let identity = Identity::device(device_id);
    let credentials = lifetime.map_or_else(|| credentials.clone(), |_| Credentials::CertificateAuthority);
    let mut registry = lock(&core.registry);
    let known = registry.get(&identity).is_ok();
    if !known {
        registry.create(Entry::new(identity.clone(), credentials.clone()))?;
    }
    registry.update(&identity, |entry| {
        entry.credentials = credentials;
        entry.issues = lifetime;
        entry.enabled = true;
        if known {
            entry.revision = entry.revision.wrapping_add(1);
        }
        Ok(())
    })?;
    Ok(if known { "deviceDataMigrated" } else { "initialAssignment" })
}
