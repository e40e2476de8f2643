//! Who may use the service REST, and what is said to a request that nothing here answers.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Peer;
use crate::auth::{AuthError, SasToken};
use crate::clock;
use crate::core::Core;
use crate::error::{HubError, Kind};

/// Lets through what carries a valid token of the service policy.
pub async fn authorise(State(core): State<Arc<Core>>, request: Request, next: Next) -> Response {
    match check(&core, request.headers(), request.uri()) {
        Ok(()) => next.run(request).await,
        Err(error) => HubError::new(Kind::Unauthorized, format!("Unauthorized: {error}")).into_response(),
    }
}

/// The versions of the service API that Microsoft's documentation and SDKs name.
const VERSIONS: [&str; 16] = [
    "2016-02-03",
    "2016-11-14",
    "2017-06-30",
    "2017-11-08-preview",
    "2018-04-01",
    "2018-06-30",
    "2018-08-30-preview",
    "2019-03-30",
    "2019-07-01-preview",
    "2019-10-01",
    "2020-03-01",
    "2020-03-13",
    "2020-05-31-preview",
    "2020-09-30",
    "2021-04-12",
    "2024-03-31",
];

/// Refuses a request that says no `api-version`, or one that the hub never had.
pub async fn check_version(request: Request, next: Next) -> Response {
    let pairs = request.uri().query().unwrap_or_default().split('&');
    let version = pairs.filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == "api-version");
    if version.is_some_and(|(_, version)| VERSIONS.contains(&version)) {
        return next.run(request).await;
    }
    let asked = version.map_or("none", |(_, version)| version);
    let message = format!("BadRequest: the api-version must be known, as {} is, not {asked}", "2021-04-12");
    HubError::new(Kind::InvalidProtocolVersion, message).into_response()
}

/// The administration is open to this machine, and to the service policy from elsewhere.
pub async fn authorise_admin(
    State(core): State<Arc<Core>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if peer.address.is_loopback() {
        next.run(request).await
    } else {
        authorise(State(core), request, next).await
    }
}

fn check(core: &Core, headers: &HeaderMap, uri: &Uri) -> Result<(), AuthError> {
    let header = headers.get("authorization").ok_or(AuthError::Missing)?;
    let text = header.to_str().map_err(|_| AuthError::Malformed)?;
    let token = SasToken::parse(text)?;
    match token.policy.as_deref() {
        Some(crate::SERVICE_POLICY) => {}
        other => return Err(AuthError::UnknownPolicy(other.unwrap_or_default().to_owned())),
    }
    token.verify([core.service_key.as_str()], clock::unix())?;
    // Any host is taken: SDKs put the port there or leave it out, and a tunnel may change both.
    let resource = token.resource()?;
    let host = resource.split('/').next().unwrap_or_default();
    token.covers(&format!("{host}{}", uri.path()), true)
}

/// Answers for parts of IoT Hub that the stand-in leaves out.
pub async fn not_imitated(method: Method, uri: Uri) -> HubError {
    let message = format!("{method} {} is a part of IoT Hub that fwupdate-hub does not imitate", uri.path());
    HubError::new(Kind::NotImitated, message)
}

pub async fn unknown_path(method: Method, uri: Uri) -> HubError {
    HubError::new(Kind::NotFound, format!("there is nothing at {method} {}", uri.path()))
}
