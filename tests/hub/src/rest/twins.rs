//! `/twins`: twins and direct methods over REST.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Tagged, if_match, json_object};
use crate::core::{Core, Write};
use crate::error::HubError;
use crate::methods::{self, Call};
use crate::registry::Identity;

type Answer = Result<Tagged, HubError>;
type Called = Result<Json<Value>, HubError>;
type TwoIds = Path<(String, String)>;

pub async fn get(State(core): State<Arc<Core>>, Path(device): Path<String>) -> Answer {
    read(&core, &Identity::device(device))
}

pub async fn get_module(State(core): State<Arc<Core>>, Path((device, module)): TwoIds) -> Answer {
    read(&core, &Identity::module(device, module))
}

fn read(core: &Core, identity: &Identity) -> Answer {
    Ok(Tagged(core.twin_document(&core.entry(identity)?)))
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
    core.write_twin(identity, &body, how, if_match(headers)).map(Tagged)
}

pub async fn invoke(State(core): State<Arc<Core>>, Path(device): Path<String>, body: Bytes) -> Called {
    call(&core, &Identity::device(device), &body).await
}

pub async fn invoke_module(
    State(core): State<Arc<Core>>,
    Path((device, module)): TwoIds,
    body: Bytes,
) -> Called {
    call(&core, &Identity::module(device, module), &body).await
}

async fn call(core: &Core, identity: &Identity, body: &[u8]) -> Called {
    let call = Call::read(&json_object(body)?).map_err(HubError::for_method)?;
    let answer = methods::invoke(core, identity, call).await.map_err(HubError::for_method)?;
    Ok(Json(json!({"status": answer.status, "payload": answer.payload})))
}
