//! `/twins` and `/devices/query`: twins, direct methods and queries over REST.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{if_match, json_object};
use crate::core::{Core, Write};
use crate::error::{HubError, Kind};
use crate::lock;
use crate::methods::{self, Call};
use crate::query::{Query, Source};
use crate::registry::Identity;

type Answer = Result<Json<Value>, HubError>;
type TwoIds = Path<(String, String)>;

pub async fn get(State(core): State<Arc<Core>>, Path(device): Path<String>) -> Answer {
    read(&core, &Identity::device(device))
}

pub async fn get_module(State(core): State<Arc<Core>>, Path((device, module)): TwoIds) -> Answer {
    read(&core, &Identity::module(device, module))
}

fn read(core: &Core, identity: &Identity) -> Answer {
    Ok(Json(core.twin_document(&core.entry(identity)?)))
}

pub async fn patch(
    State(core): State<Arc<Core>>,
    Path(device): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    write(&core, &Identity::device(device), Write::Patch, &headers, &body)
}

pub async fn put(
    State(core): State<Arc<Core>>,
    Path(device): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    write(&core, &Identity::device(device), Write::Replace, &headers, &body)
}

pub async fn patch_module(
    State(core): State<Arc<Core>>,
    Path((device, module)): TwoIds,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    write(&core, &Identity::module(device, module), Write::Patch, &headers, &body)
}

pub async fn put_module(
    State(core): State<Arc<Core>>,
    Path((device, module)): TwoIds,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    write(&core, &Identity::module(device, module), Write::Replace, &headers, &body)
}

fn write(core: &Core, identity: &Identity, how: Write, headers: &HeaderMap, body: &[u8]) -> Answer {
    let mut body = json_object(body)?;
    // SDKs send every field of their model; an explicit null of a part means that it is not given.
    if let Some(map) = body.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    core.write_twin(identity, &body, how, if_match(headers)).map(Json)
}

pub async fn invoke(State(core): State<Arc<Core>>, Path(device): Path<String>, body: Bytes) -> Answer {
    call(&core, &Identity::device(device), &body).await
}

pub async fn invoke_module(
    State(core): State<Arc<Core>>,
    Path((device, module)): TwoIds,
    body: Bytes,
) -> Answer {
    call(&core, &Identity::module(device, module), &body).await
}

async fn call(core: &Core, identity: &Identity, body: &[u8]) -> Answer {
    let call = read_call(&json_object(body)?).map_err(HubError::for_method)?;
    let answer = methods::invoke(core, identity, call).await.map_err(HubError::for_method)?;
    Ok(Json(json!({"status": answer.status, "payload": answer.payload})))
}

pub(super) fn read_call(body: &Value) -> Result<Call, HubError> {
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

fn seconds(body: &Value, field: &str) -> Result<Option<u64>, HubError> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| {
            HubError::new(
                Kind::ArgumentInvalid,
                format!("{field} must be a whole number of seconds, not {value}"),
            )
        }),
    }
}

/// Pages are cut by device id, so that devices that come and go between two pages shift nothing.
pub async fn query(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, HubError> {
    let body = json_object(&body)?;
    let text = body.get("query").and_then(Value::as_str);
    let text =
        text.ok_or_else(|| HubError::new(Kind::ArgumentInvalid, "the body has no string \"query\""))?;
    let query =
        Query::parse(text).map_err(|error| HubError::new(Kind::ArgumentInvalid, error.to_string()))?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let most = page_size(header("x-ms-max-item-count"))?;
    let after = continuation(header("x-ms-continuation"))?;
    let (kind, mut found) = match query.source() {
        Source::Devices => ("Twin", matching(&core, &query, after.as_deref(), most + 1)?),
        Source::Jobs => ("DeviceJob", job_rows(&core, &query, after.as_deref(), most + 1)),
    };
    let more = found.len() > most;
    found.truncate(most);
    let last = found.last().map(|row| place(query.source(), row));
    let mut response = ([("x-ms-item-type", kind)], Json(found)).into_response();
    if let Some(token) =
        last.filter(|_| more).and_then(|id| data_encoding::BASE64.encode(id.as_bytes()).parse().ok())
    {
        response.headers_mut().insert("x-ms-continuation", token);
    }
    Ok(response)
}

fn matching(core: &Core, query: &Query, after: Option<&str>, most: usize) -> Result<Vec<Value>, HubError> {
    let mut registry = lock(&core.registry);
    let mut found = Vec::new();
    for identity in registry.list()? {
        let later = after.is_none_or(|after| identity.device.as_str() > after);
        if identity.module.is_some() || !later {
            continue;
        }
        let twin = core.twin_document(registry.get(&identity)?);
        if query.matches(&twin) {
            found.push(twin);
        }
        if found.len() == most {
            break;
        }
    }
    Ok(found)
}

fn job_rows(core: &Core, query: &Query, after: Option<&str>, most: usize) -> Vec<Value> {
    let mut rows = core.jobs.rows();
    rows.retain(|row| query.matches(row) && after.is_none_or(|after| *place(Source::Jobs, row) > *after));
    rows.truncate(most);
    rows
}

/// What rows are ordered by: a page ends after it, the next begins.
fn place(source: Source, row: &Value) -> String {
    let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default();
    match source {
        Source::Devices => text("deviceId").to_owned(),
        Source::Jobs => format!("{}/{}", text("jobId"), text("deviceId")),
    }
}

fn page_size(header: Option<&str>) -> Result<usize, HubError> {
    let Some(text) = header.filter(|text| !text.is_empty()) else { return Ok(100) };
    let size = text.parse().ok().filter(|size| (1..=1000).contains(size));
    size.ok_or_else(|| HubError::new(Kind::ArgumentInvalid, "x-ms-max-item-count must be within [1; 1000]"))
}

fn continuation(header: Option<&str>) -> Result<Option<String>, HubError> {
    let Some(token) = header.filter(|token| !token.is_empty()) else { return Ok(None) };
    let id =
        data_encoding::BASE64.decode(token.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    id.map(Some).ok_or_else(|| {
        HubError::new(Kind::ArgumentInvalid, "x-ms-continuation is not one of this hub's tokens")
    })
}
