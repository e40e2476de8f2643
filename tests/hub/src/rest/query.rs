//! `/devices/query` and `/statistics`: questions about all devices; and how every list is handed out in pages.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use super::json_object;
use crate::core::Core;
use crate::error::{HubError, Kind};
use crate::lock;
use crate::query::Query;

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
    page(&headers, core.rows(&query)?, query.item_type())
}

/// The page that the headers ask for, of rows in the order of their places. Pages are cut by places (device ids), so
/// that devices that come and go between two pages shift nothing.
pub fn page(
    headers: &HeaderMap,
    mut rows: Vec<(String, Value)>,
    kind: &'static str,
) -> Result<Response, HubError> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let most = page_size(header("x-ms-max-item-count"))?;
    let after = continuation(header("x-ms-continuation"))?;
    rows.retain(|(place, _)| after.as_ref().is_none_or(|after| place > after));
    let more = rows.len() > most;
    rows.truncate(most);
    let last = rows.last().filter(|_| more).map(|(place, _)| data_encoding::BASE64.encode(place.as_bytes()));
    let rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
    let mut response = ([("x-ms-item-type", kind)], Json(rows)).into_response();
    if let Some(token) = last.and_then(|token| token.parse().ok()) {
        response.headers_mut().insert("x-ms-continuation", token);
    }
    Ok(response)
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

pub async fn device_statistics(State(core): State<Arc<Core>>) -> Result<Json<Value>, HubError> {
    let mut registry = lock(&core.registry);
    let (mut enabled, mut disabled) = (0, 0);
    for identity in registry.list()?.iter().filter(|identity| identity.module.is_none()) {
        *(if registry.get(identity)?.enabled { &mut enabled } else { &mut disabled }) += 1;
    }
    let all = enabled + disabled;
    Ok(Json(json!({"totalDeviceCount": all, "enabledDeviceCount": enabled, "disabledDeviceCount": disabled})))
}

pub async fn service_statistics(State(core): State<Arc<Core>>) -> Result<Json<Value>, HubError> {
    let devices = lock(&core.registry).list()?;
    let connected =
        devices.iter().filter(|identity| identity.module.is_none() && core.live.is_connected(identity));
    Ok(Json(json!({"connectedDeviceCount": connected.count()})))
}
