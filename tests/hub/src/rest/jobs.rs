//! `/jobs/v2`: jobs over REST; and `/jobs`, which has none.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::json_object;
use super::query::page;
use crate::core::Core;
use crate::error::{HubError, Kind};
use crate::jobs;

type Answer = Result<Json<Value>, HubError>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    job_type: Option<String>,
    job_status: Option<String>,
}

pub async fn put(State(core): State<Arc<Core>>, Path(id): Path<String>, body: Bytes) -> Answer {
    // SDKs send every field of their model; an explicit null means that it is not given.
    let mut order = json_object(&body)?;
    if let Some(fields) = order.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    jobs::create(&core, &id, order).map(Json)
}

pub async fn get(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Answer {
    core.jobs.get(&id).map(Json)
}

pub async fn cancel(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Answer {
    core.jobs.cancel(&id).map(Json)
}

/// An array, as the SDKs for Node and .NET and the Azure CLI read it. That for Python waits for an object with `items`.
pub async fn query(
    State(core): State<Arc<Core>>,
    Query(filter): Query<Filter>,
    headers: HeaderMap,
) -> Result<Response, HubError> {
    let jobs = core.jobs.list(filter.job_type.as_deref(), filter.job_status.as_deref());
    page(&headers, jobs, "JobResponse")
}

/// Imports and exports of devices: there never are any.
pub async fn no_transfers() -> Json<Value> {
    Json(json!([]))
}

pub async fn no_transfer(Path(id): Path<String>) -> HubError {
    HubError::new(Kind::JobNotFound, format!("there is no import or export {id}"))
}
