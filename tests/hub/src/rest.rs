//! The other door: the service REST, the files, the WebSocket, and the administration of faults.

mod admin;
mod bulk;
mod configurations;
mod cut;
pub mod devices;
mod files;
mod jobs;
mod query;
mod service;
mod twins;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::core::Core;
use crate::error::{HubError, Kind};
use crate::mqtt::websocket;

pub use cut::Scissors;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: IpAddr,
    /// Of the client certificate, the leaf first; empty without one.
    pub chain: Vec<CertificateDer<'static>>,
    /// Ends this connection, for a fault.
    pub scissors: Scissors,
}

/// Every path of the HTTPS port.
pub fn router(core: Arc<Core>) -> Router {
    let service = Router::new()
        .route("/devices", get(devices::list).post(bulk::serve))
        // As the SDK for Node asks for the list.
        .route("/devices/", get(devices::list))
        .route("/devices/query", post(query::query))
        .route("/devices/{device}", get(devices::get).put(devices::put).delete(devices::delete))
        .route("/devices/{device}/modules", get(devices::modules))
        .route(
            "/devices/{device}/modules/{module}",
            get(devices::get_module).put(devices::put_module).delete(devices::delete_module),
        )
        .route("/twins/{device}", get(twins::get).patch(twins::patch).put(twins::put))
        .route("/twins/{device}/methods", post(twins::invoke))
        .route(
            "/twins/{device}/modules/{module}",
            get(twins::get_module).patch(twins::patch_module).put(twins::put_module),
        )
        .route("/twins/{device}/modules/{module}/methods", post(twins::invoke_module))
        .route("/statistics/devices", get(query::device_statistics))
        .route("/statistics/service", get(query::service_statistics))
        .route("/jobs", get(jobs::no_transfers))
        .route("/jobs/create", post(service::not_imitated))
        .route("/jobs/{id}", any(jobs::no_transfer))
        .route("/jobs/v2/query", get(jobs::query))
        .route("/jobs/v2/{id}", get(jobs::get).put(jobs::put))
        .route("/jobs/v2/{id}/cancel", post(jobs::cancel))
        .route("/configurations", get(configurations::list))
        .route("/configurations/testQueries", post(configurations::test_queries))
        .route(
            "/configurations/{id}",
            get(configurations::get).put(configurations::put).delete(configurations::delete),
        )
        .route("/devices/{device}/applyConfigurationContent", post(service::not_imitated))
        .route("/messages/{*rest}", any(service::not_imitated))
        .route("/digitaltwins/{*rest}", any(service::not_imitated))
        .layer(from_fn(service::check_version))
        .layer(from_fn_with_state(core.clone(), service::authorise));
    let admin = Router::new()
        .route("/admin/faults", get(admin::faults).put(admin::put_faults).delete(admin::clear_faults))
        .route("/admin/counters", get(admin::counters).delete(admin::reset_counters))
        .route("/admin/connections", axum::routing::delete(admin::drop_connections))
        .route("/admin/trace", get(admin::trace).put(admin::start_trace))
        .route("/admin/registrations", get(admin::registrations))
        .route("/admin/history/{device}", get(admin::history))
        .route("/admin/telemetry/{device}", get(admin::telemetry))
        .route("/admin/certificates/{device}", get(admin::certificates))
        .route("/admin/messages/{device}", post(admin::send))
        .layer(from_fn_with_state(core.clone(), service::authorise_admin));
    Router::new()
        .merge(service)
        .merge(admin)
        .route("/files/{*path}", get(files::serve))
        .route("/$iothub/websocket", get(websocket::upgrade))
        // What devices may use over HTTPS, with tokens of their own.
        .route("/devices/{device}/files", post(service::not_imitated))
        .route("/devices/{device}/files/notifications/{*rest}", any(service::not_imitated))
        .route("/devices/{device}/files/notifications", any(service::not_imitated))
        .route("/devices/{device}/messages/{*rest}", any(service::not_imitated))
        .fallback(service::unknown_path)
        .layer(DefaultBodyLimit::max(512 * 1024))
        .with_state(core)
}

/// A body that must be a JSON object; an empty one counts as `{}`.
fn json_object(body: &[u8]) -> Result<Value, HubError> {
    let body = if body.is_empty() { b"{}" } else { body };
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| HubError::new(Kind::ArgumentInvalid, format!("the body is not JSON: {error}")))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(HubError::new(Kind::ArgumentInvalid, "the body is no JSON object"))
    }
}

/// A document whose `etag` stands in the header too: there with quotes, in the body without.
pub struct Tagged(Value);

impl IntoResponse for Tagged {
    fn into_response(self) -> Response {
        let tag = self.0.get("etag").and_then(Value::as_str);
        let tag = tag.and_then(|tag| HeaderValue::from_str(&format!("\"{tag}\"")).ok());
        let mut response = Json(self.0).into_response();
        response.headers_mut().extend(tag.map(|tag| (header::ETAG, tag)));
        response
    }
}

fn if_match(headers: &HeaderMap) -> Option<&str> {
    headers.get("if-match").and_then(|value| value.to_str().ok())
}
