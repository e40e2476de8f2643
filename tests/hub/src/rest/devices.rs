//! `/devices`: the identity registry over REST.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Tagged, if_match, json_object};
use crate::auth::normal_thumbprint;
use crate::core::{Core, match_etag};
use crate::error::{HubError, Kind};
use crate::registry::{Credentials, Entry, Identity};
use crate::{clock, lock};

type Answer = Result<Tagged, HubError>;
type Listing = Result<Json<Value>, HubError>;

#[derive(Debug, Deserialize)]
pub struct Page {
    pub top: Option<usize>,
}

pub async fn list(State(core): State<Arc<Core>>, Query(page): Query<Page>) -> Listing {
    let top = page.top.unwrap_or(1000).min(1000);
    documents(&core, |identity| identity.module.is_none(), top)
}

pub async fn modules(State(core): State<Arc<Core>>, Path(device): Path<String>) -> Listing {
    core.entry(&Identity::device(&device))?;
    documents(&core, |identity| identity.module.is_some() && identity.device == device, usize::MAX)
}

pub async fn get(State(core): State<Arc<Core>>, Path(device): Path<String>) -> Answer {
    read(&core, &Identity::device(device))
}

pub async fn get_module(
    State(core): State<Arc<Core>>,
    Path((device, module)): Path<(String, String)>,
) -> Answer {
    read(&core, &Identity::module(device, module))
}

pub async fn put(
    State(core): State<Arc<Core>>,
    Path(device): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    write(&core, Identity::device(device), if_match(&headers), &json_object(&body)?).map(Tagged)
}

pub async fn put_module(
    State(core): State<Arc<Core>>,
    Path((device, module)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    write(&core, Identity::module(device, module), if_match(&headers), &json_object(&body)?).map(Tagged)
}

pub async fn delete(
    State(core): State<Arc<Core>>,
    Path(device): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, HubError> {
    core.remove(&Identity::device(device), if_match(&headers)).map(|()| StatusCode::NO_CONTENT)
}

pub async fn delete_module(
    State(core): State<Arc<Core>>,
    Path((device, module)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, HubError> {
    core.remove(&Identity::module(device, module), if_match(&headers)).map(|()| StatusCode::NO_CONTENT)
}

fn documents(core: &Core, wanted: impl Fn(&Identity) -> bool, top: usize) -> Listing {
    let mut registry = lock(&core.registry);
    let found = registry.list()?.into_iter().filter(wanted).take(top);
    let documents = found.map(|identity| Ok(document(core, registry.get(&identity)?)));
    documents.collect::<Result<Vec<Value>, HubError>>().map(|all| Json(Value::Array(all)))
}

fn read(core: &Core, identity: &Identity) -> Answer {
    Ok(Tagged(document(core, &core.entry(identity)?)))
}

/// Without If-Match it creates, with one it updates, as the SDKs rely on.
pub fn write(core: &Core, identity: Identity, etag: Option<&str>, body: &Value) -> Result<Value, HubError> {
    let enabled = wanted_status(body)?;
    if body.pointer("/capabilities/iotEdge") == Some(&Value::Bool(true)) {
        return Err(HubError::new(
            Kind::NotImitated,
            "fwupdate-hub knows no devices with IoT Edge: leave iotEdge out",
        ));
    }
    let text = |field: &str| body.get(field).and_then(Value::as_str).map(str::to_owned);
    let (reason, managed_by) = (text("statusReason"), text("managedBy"));
    let mut registry = lock(&core.registry);
    match etag {
        None => {
            let mut entry = Entry::new(identity.clone(), wanted_credentials(body, None)?);
            entry.enabled = enabled.unwrap_or(true);
            (entry.status_reason, entry.managed_by) = (reason, managed_by);
            registry.create(entry)?;
        }
        Some(etag) => registry.update(&identity, |entry| {
            match_etag(Some(etag), &entry.etag())?;
            entry.credentials = wanted_credentials(body, Some(&entry.credentials))?;
            let enabled = enabled.unwrap_or(entry.enabled);
            if enabled != entry.enabled {
                entry.status_updated = clock::now();
            }
            entry.enabled = enabled;
            (entry.status_reason, entry.managed_by) = (reason, managed_by);
            entry.revision = entry.revision.wrapping_add(1);
            Ok(())
        })?,
    }
    core.live.changed();
    let entry = registry.get(&identity)?;
    if !entry.enabled {
        core.live.close(Some(&identity));
    }
    Ok(document(core, entry))
}

fn wanted_status(body: &Value) -> Result<Option<bool>, HubError> {
    match body.get("status").and_then(Value::as_str).map(str::to_ascii_lowercase).as_deref() {
        None => Ok(None),
        Some("enabled") => Ok(Some(true)),
        Some("disabled") => Ok(Some(false)),
        Some(other) => Err(HubError::new(
            Kind::ArgumentInvalid,
            format!("status must be enabled or disabled, not {other:?}"),
        )),
    }
}

/// Keys that are not given are kept, or made.
fn wanted_credentials(body: &Value, kept: Option<&Credentials>) -> Result<Credentials, HubError> {
    let text = |path: &str| {
        body.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let kind = text("/authentication/type").unwrap_or_default();
    let invalid = |message: &str| HubError::new(Kind::ArgumentInvalid, message);
    match kind.to_ascii_lowercase().as_str() {
        "certificateauthority" if kept == Some(&Credentials::CertificateAuthority) => {
            Ok(Credentials::CertificateAuthority)
        }
        "certificateauthority" | "none" => Err(HubError::new(
            Kind::NotImitated,
            "fwupdate-hub makes devices with SAS keys and certificate thumbprints; those with an authority's \
             certificates come from an enrollment that issues them",
        )),
        "selfsigned" => {
            let read = |path: &str| match text(path) {
                None => Ok(None),
                Some(hex) => normal_thumbprint(&hex)
                    .map(Some)
                    .ok_or_else(|| invalid("a thumbprint has 40 (SHA-1) or 64 (SHA-256) hex digits")),
            };
            let primary = read("/authentication/x509Thumbprint/primaryThumbprint")?;
            let secondary = read("/authentication/x509Thumbprint/secondaryThumbprint")?;
            let primary_thumbprint = primary.ok_or_else(|| invalid("primaryThumbprint is missing"))?;
            Ok(Credentials::SelfSigned { primary_thumbprint, secondary_thumbprint: secondary })
        }
        _ => {
            let (old_primary, old_secondary) = match kept {
                Some(Credentials::Sas { primary_key, secondary_key }) => {
                    (Some(primary_key.clone()), Some(secondary_key.clone()))
                }
                _ => (None, None),
            };
            let key = |path: &str, old: Option<String>| match text(path) {
                None => Ok(old.unwrap_or_else(clock::new_key)),
                Some(key) if good_key(&key) => Ok(key),
                Some(_) => Err(invalid("a symmetric key is base64 of 16 to 64 bytes")),
            };
            Ok(Credentials::Sas {
                primary_key: key("/authentication/symmetricKey/primaryKey", old_primary)?,
                secondary_key: key("/authentication/symmetricKey/secondaryKey", old_secondary)?,
            })
        }
    }
}

fn good_key(key: &str) -> bool {
    data_encoding::BASE64.decode(key.as_bytes()).is_ok_and(|bytes| (16..=64).contains(&bytes.len()))
}

fn document(core: &Core, entry: &Entry) -> Value {
    let (kind, thumbprints) = entry.credentials.shown();
    let keys = match &entry.credentials {
        Credentials::Sas { primary_key, secondary_key } => {
            json!({"primaryKey": primary_key, "secondaryKey": secondary_key})
        }
        Credentials::SelfSigned { .. } | Credentials::CertificateAuthority => {
            json!({"primaryKey": null, "secondaryKey": null})
        }
    };
    let authentication = json!({"symmetricKey": keys, "x509Thumbprint": thumbprints, "type": kind});
    let mut document = json!({
        "deviceId": entry.identity.device,
        "generationId": entry.generation_id,
        "etag": entry.etag(),
        "connectionState": core.connection_state(&entry.identity),
        "connectionStateUpdatedTime": clock::NEVER,
        "lastActivityTime": entry.last_activity,
        "cloudToDeviceMessageCount": core.devicebound.waiting(&entry.identity),
        "authentication": authentication,
    });
    let Some(map) = document.as_object_mut() else { return document };
    match &entry.identity.module {
        Some(module) => {
            map.insert("moduleId".into(), json!(module));
            map.insert("managedBy".into(), json!(entry.managed_by));
        }
        None => {
            map.insert("status".into(), json!(if entry.enabled { "enabled" } else { "disabled" }));
            map.insert("statusReason".into(), json!(entry.status_reason));
            map.insert("statusUpdatedTime".into(), json!(entry.status_updated));
            map.insert("capabilities".into(), json!({"iotEdge": false}));
        }
    }
    document
}
