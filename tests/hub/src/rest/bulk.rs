//! `POST /devices`: up to a hundred identities at once, each by its own import mode. What can be done is done; what
//! cannot is listed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::devices;
use crate::core::{Core, Write};
use crate::error::{HubError, Kind};
use crate::registry::Identity;

/// Azure's limit for one request.
const MOST: usize = 100;

pub async fn serve(State(core): State<Arc<Core>>, body: Bytes) -> Result<Response, HubError> {
    let orders: Vec<Value> =
        serde_json::from_slice(&body).map_err(|error| invalid(format!("the body is no list: {error}")))?;
    if orders.is_empty() || orders.len() > MOST {
        return Err(invalid(format!("a request has 1 to {MOST} devices, not {}", orders.len())));
    }
    let errors: Vec<Value> = orders.iter().filter_map(|order| perform(&core, order).err()).collect();
    let status = if errors.is_empty() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    let told = json!({"isSuccessful": errors.is_empty(), "errors": errors, "warnings": []});
    Ok((status, Json(told)).into_response())
}

/// Carries one order out, or says in Azure's form why not.
fn perform(core: &Core, order: &Value) -> Result<(), Value> {
    let text = |field: &str| order.get(field).and_then(Value::as_str);
    let device = text("id").unwrap_or_default();
    let identity = match text("moduleId") {
        Some(module) => Identity::module(device, module),
        None => Identity::device(device),
    };
    // The SDK for Node hands its own spelling on.
    let etag = text("eTag").or_else(|| text("etag"));
    let outcome = order_of(core, identity, text("importMode").unwrap_or_default(), etag, order);
    outcome.map_err(|error| {
        let (_, _, name) = error.kind.parts();
        json!({"deviceId": device, "moduleId": text("moduleId"), "errorCode": name, "errorStatus": error.message})
    })
}

fn order_of(
    core: &Core,
    identity: Identity,
    mode: &str,
    etag: Option<&str>,
    order: &Value,
) -> Result<(), HubError> {
    let mode = mode.to_ascii_lowercase();
    let unguarded = mode.strip_suffix("ifmatchetag");
    let etag = if unguarded.is_some() { etag.or(Some("")) } else { Some("*") };
    match unguarded.unwrap_or(&mode) {
        "create" => devices::write(core, identity, None, order).map(drop),
        "update" => devices::write(core, identity, etag, order).map(drop),
        "delete" => core.remove(&identity, etag),
        "updatetwin" => {
            core.write_twin(&identity, &twin_of(order), Write::Patch, twin_etag(order, etag)).map(drop)
        }
        _ => Err(invalid(format!("there is no importMode {mode:?}"))),
    }
}

fn twin_of(order: &Value) -> Value {
    let parts = ["tags", "properties"].into_iter();
    parts.filter_map(|part| Some((part.to_owned(), order.get(part)?.clone()))).collect::<Map<_, _>>().into()
}

/// A twin has an etag of its own.
fn twin_etag<'a>(order: &'a Value, etag: Option<&'a str>) -> Option<&'a str> {
    if etag == Some("*") { etag } else { order.get("twinETag").and_then(Value::as_str).or(Some("")) }
}

fn invalid(message: impl Into<String>) -> HubError {
    HubError::new(Kind::ArgumentInvalid, message)
}
