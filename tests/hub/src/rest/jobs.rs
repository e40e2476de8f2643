//! `/jobs/v2`: jobs over REST.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::json_object;
use crate::core::Core;
use crate::error::HubError;
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

/// One page with everything. The Python SDK reads an object here; .NET a bare array, which is not imitated.
pub async fn query(State(core): State<Arc<Core>>, Query(filter): Query<Filter>) -> Json<Value> {
    let items = core.jobs.list(filter.job_type.as_deref(), filter.job_status.as_deref());
    Json(json!({"type": "jobResponse", "items": items, "continuationToken": null}))
}
