//! `/jobs/v2`: jobs over REST.

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is absent")]

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{json_object, twins};
use crate::core::Core;
use crate::error::{HubError, Kind};
use crate::jobs::{self, Work};

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
    let work = match order.get("type").and_then(Value::as_str) {
        Some("scheduleDeviceMethod") => {
            Work::Method(twins::read_call(order.get("cloudToDeviceMethod").unwrap_or(&Value::Null))?)
        }
        Some("scheduleUpdateTwin") => {
            Work::Twin(twin_update(order.get("updateTwin").unwrap_or(&Value::Null)))
        }
        _ => {
            let message = "type must be scheduleDeviceMethod or scheduleUpdateTwin";
            return Err(HubError::new(Kind::ArgumentInvalid, message));
        }
    };
    jobs::create(&core, &id, order, work).map(Json)
}

/// Tags and desired properties of a whole twin document; the rest of it is not a service's to write.
fn twin_update(twin: &Value) -> Value {
    let parts = ["tags", "properties"].into_iter();
    let given =
        parts.filter_map(|part| twin.get(part).filter(|value| !value.is_null()).map(|value| (part, value)));
    given.map(|(part, value)| (part.to_owned(), value.clone())).collect::<Map<_, _>>().into()
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
