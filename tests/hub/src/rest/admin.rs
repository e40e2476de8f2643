//! `/admin`: faults, counters and the recorded story, for tests in other languages and for curl.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::authority::Issued;
use crate::core::Core;
use crate::dps::Registration;
use crate::error::{HubError, Kind};
use crate::faults::FaultSet;
use crate::history::{ReportedPatch, Telemetry};
use crate::registry::Identity;
use crate::trace::Frame;

pub async fn faults(State(core): State<Arc<Core>>) -> Json<FaultSet> {
    Json(core.faults.get())
}

pub async fn put_faults(State(core): State<Arc<Core>>, body: Bytes) -> Result<Json<FaultSet>, HubError> {
    let set = serde_json::from_slice(&body).map_err(|error| {
        HubError::new(Kind::ArgumentInvalid, format!("the faults cannot be read: {error}"))
    })?;
    core.faults.put(set);
    Ok(Json(core.faults.get()))
}

pub async fn clear_faults(State(core): State<Arc<Core>>) -> StatusCode {
    core.faults.clear();
    StatusCode::NO_CONTENT
}

pub async fn counters(State(core): State<Arc<Core>>) -> Json<Value> {
    Json(json!({"paths": core.faults.counts(), "log": core.faults.log()}))
}

pub async fn reset_counters(State(core): State<Arc<Core>>) -> StatusCode {
    core.faults.reset_counts();
    StatusCode::NO_CONTENT
}

pub async fn drop_connections(State(core): State<Arc<Core>>) -> StatusCode {
    core.live.close(None);
    StatusCode::NO_CONTENT
}

pub async fn registrations(State(core): State<Arc<Core>>) -> Json<Vec<Registration>> {
    Json(core.dps.registrations())
}

/// `{device}` or `{device}%2F{module}`.
pub async fn history(State(core): State<Arc<Core>>, Path(device): Path<String>) -> Json<Vec<ReportedPatch>> {
    Json(core.history.patches(&Identity::from(&*device)))
}

pub async fn certificates(State(core): State<Arc<Core>>, Path(device): Path<String>) -> Json<Vec<Issued>> {
    Json(core.history.certificates(&Identity::from(&*device)))
}

/// What was recorded of the wire.
pub async fn trace(State(core): State<Arc<Core>>) -> Json<Vec<Frame>> {
    Json(core.trace.frames())
}

/// Records from now on, from nothing.
pub async fn start_trace(State(core): State<Arc<Core>>) -> StatusCode {
    core.trace.start();
    StatusCode::NO_CONTENT
}

/// Sends a cloud-to-device message, which services send over AMQP alone.
pub async fn send(
    State(core): State<Arc<Core>>,
    Path(device): Path<String>,
    body: Bytes,
) -> Result<StatusCode, HubError> {
    let letter = serde_json::from_slice(&body).map_err(|error| {
        HubError::new(Kind::ArgumentInvalid, format!("the message cannot be read: {error}"))
    })?;
    let identity = Identity::from(&*device);
    core.require_enabled(&identity)?;
    core.devicebound.push(&identity, letter);
    Ok(StatusCode::NO_CONTENT)
}

pub async fn telemetry(State(core): State<Arc<Core>>, Path(device): Path<String>) -> Json<Vec<Telemetry>> {
    Json(core.history.telemetry(&Identity::from(&*device)))
}
