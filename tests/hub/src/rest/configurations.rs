//! `/configurations`: automatic device configurations over REST.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use serde_json::Value;

use super::devices::Page;
use super::{Tagged, if_match, json_object};
use crate::configurations;
use crate::core::Core;
use crate::error::HubError;

type Answer = Result<Json<Value>, HubError>;

pub async fn list(State(core): State<Arc<Core>>, Query(page): Query<Page>) -> Answer {
    configurations::list(&core, page.top.unwrap_or(usize::MAX)).map(|all| Json(Value::Array(all)))
}

pub async fn get(State(core): State<Arc<Core>>, Path(id): Path<String>) -> Result<Tagged, HubError> {
    configurations::show(&core, &id).map(Tagged)
}

pub async fn put(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Tagged), HubError> {
    let (new, shown) = configurations::put(&core, &id, &json_object(&body)?, if_match(&headers))?;
    Ok((if new { StatusCode::CREATED } else { StatusCode::OK }, Tagged(shown)))
}

pub async fn delete(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, HubError> {
    configurations::delete(&core, &id, if_match(&headers)).map(|()| StatusCode::NO_CONTENT)
}

pub async fn test_queries(body: Bytes) -> Answer {
    Ok(Json(configurations::test_queries(&json_object(&body)?)))
}
