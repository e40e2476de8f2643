//! The hub itself: registry, links, calls, faults and history, and the operations that touch more than one of them.
//!
//! MQTT and REST are two doors to it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authority::Authority;
use crate::configurations::{Configurations, Standing};
use crate::credentials::Renewals;
use crate::devicebound::Devicebound;
use crate::dps::Dps;
use crate::error::{HubError, Kind};
use crate::faults::Faults;
use crate::history::History;
use crate::jobs::Jobs;
use crate::live::{Live, Message};
use crate::methods::Calls;
use crate::mqtt::topics;
use crate::query::{Query, Source};
use crate::registry::{Entry, Identity, Registry};
use crate::trace::Trace;
use crate::{clock, lock};

/// Merge into a twin, or replace it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Patch,
    Replace,
}

/// Shared by every connection.
#[derive(Debug)]
pub struct Core {
    pub registry: Mutex<Registry>,
    pub live: Live,
    pub calls: Calls,
    pub devicebound: Devicebound,
    pub faults: Arc<Faults>,
    pub history: Arc<History>,
    pub trace: Arc<Trace>,
    pub jobs: Jobs,
    pub dps: Dps,
    pub authority: Authority,
    pub renewals: Arc<Renewals>,
    pub configurations: Configurations,
    /// The service policy `iothubowner`'s key, base64.
    pub service_key: String,
    /// The folder under `/files/`.
    pub www: Option<PathBuf>,
    pub tasks: Tasks,
}

/// The tasks of all connections, and the wish to end them.
#[derive(Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Runs `task` until it ends or the hub does.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(self.stop.clone().run_until_cancelled_owned(task));
    }

    /// Ends all tasks at their next pause.
    pub fn cancel(&self) {
        self.stop.cancel();
    }

    /// Ends all tasks and waits for that.
    pub async fn stop(&self) {
        self.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Core {
    /// A copy of the entry.
    pub fn entry(&self, identity: &Identity) -> Result<Entry, HubError> {
        lock(&self.registry).get(identity).cloned()
    }

    /// As the service sees it: an unknown device and a disabled one are alike.
    pub fn require_enabled(&self, identity: &Identity) -> Result<(), HubError> {
        let device = Identity::device(&identity.device);
        let mut registry = lock(&self.registry);
        let enabled = registry.get(identity)?.enabled && registry.get(&device)?.enabled;
        if enabled {
            Ok(())
        } else {
            Err(HubError::new(Kind::DeviceNotFound, format!("{identity} is disabled")))
        }
    }

    pub fn is_subscribed(&self, identity: &Identity, filter: &str) -> bool {
        let mut registry = lock(&self.registry);
        registry.get(identity).is_ok_and(|entry| entry.subscriptions.iter().any(|(have, _)| have == filter))
    }

    /// A device's own patch; returns the new `$version`.
    pub fn patch_reported(&self, identity: &Identity, patch: &Value, size: usize) -> Result<u64, HubError> {
        let mut registry = lock(&self.registry);
        let version = registry.update(identity, |entry| {
            entry.last_activity = clock::now();
            Ok(entry.twin.patch_reported(patch, &clock::now())?)
        })?;
        // Within the lock, so that the story is in the order of the versions.
        self.history.patched(identity, version, patch.clone(), size);
        drop(registry);
        self.live.changed();
        Ok(version)
    }

    /// The service's write of tags and desired properties; a subscribed device is told.
    pub fn write_twin(
        &self,
        identity: &Identity,
        body: &Value,
        how: Write,
        if_match: Option<&str>,
    ) -> Result<Value, HubError> {
        let mut registry = lock(&self.registry);
        let notice = registry.update(identity, |entry| {
            match_etag(if_match, &entry.twin.etag())?;
            let now = clock::now();
            Ok(match how {
                Write::Patch => entry.twin.patch(body, &now)?,
                Write::Replace => entry.twin.replace(body, &now)?,
            })
        })?;
        let entry = registry.get(identity)?;
        // Within the lock, so that a device hears the versions in order.
        self.tell(entry, notice);
        let document = self.twin_document(entry);
        drop(registry);
        self.live.changed();
        Ok(document)
    }

    /// Tells a subscribed device what changed in its desired properties.
    pub fn tell(&self, entry: &Entry, notice: Option<Value>) {
        if let Some(notice) =
            notice.filter(|_| entry.subscriptions.iter().any(|(have, _)| have == topics::DESIRED))
        {
            let topic = format!("{}?$version={}", topics::DESIRED_PREFIX, entry.twin.desired.version);
            self.live.send(&entry.identity, Message { topic, payload: Bytes::from(notice.to_string()) });
        }
    }

    /// The twin as REST shows it.
    pub fn twin_document(&self, entry: &Entry) -> Value {
        let (kind, thumbprints) = entry.credentials.shown();
        let shown = |(id, standing): (&String, &Standing)| (id.clone(), standing.shown());
        let mut document = json!({
            "deviceId": entry.identity.device,
            "etag": entry.twin.etag(),
            "deviceEtag": entry.etag(),
            "status": if entry.enabled { "enabled" } else { "disabled" },
            "statusUpdateTime": entry.status_updated,
            "connectionState": self.connection_state(&entry.identity),
            "lastActivityTime": entry.last_activity,
            "cloudToDeviceMessageCount": self.devicebound.waiting(&entry.identity),
            "authenticationType": kind,
            "x509Thumbprint": thumbprints,
            "modelId": entry.model_id,
            "version": entry.twin.version,
            "tags": entry.twin.tags,
            "properties": entry.twin.properties(),
            "configurations": entry.configurations.iter().map(shown).collect::<Map<_, _>>(),
            "capabilities": {"iotEdge": false},
        });
        if let (Some(map), Some(module)) = (document.as_object_mut(), &entry.identity.module) {
            map.insert("moduleId".into(), json!(module));
        }
        document
    }

    /// The rows that a query is answered with, each with the place by which pages are cut.
    pub fn rows(&self, query: &Query) -> Result<Vec<(String, Value)>, HubError> {
        let mut rows = match query.source() {
            Source::Jobs => self.jobs.rows(),
            source => self.twins(source == Source::Modules)?,
        };
        rows.retain(|(_, row)| query.matches(row));
        Ok(query.answer(rows))
    }

    fn twins(&self, modules: bool) -> Result<Vec<(String, Value)>, HubError> {
        let mut registry = lock(&self.registry);
        let found = registry.list()?.into_iter().filter(|identity| identity.module.is_some() == modules);
        found
            .map(|identity| Ok((identity.to_string(), self.twin_document(registry.get(&identity)?))))
            .collect()
    }

    pub fn connection_state(&self, identity: &Identity) -> &'static str {
        if self.live.is_connected(identity) { "Connected" } else { "Disconnected" }
    }

    /// The token by which the identity came in last ends now: so does its connection, and it opens no other.
    pub fn expire_token(&self, identity: &Identity) -> Result<(), HubError> {
        lock(&self.registry).update(identity, |entry| {
            entry.expired = entry.token;
            Ok(())
        })?;
        tracing::info!(%identity, "401003 IoTHubUnauthorized: the token expired");
        self.live.close(Some(identity));
        Ok(())
    }

    /// Forgets an identity and closes its connections.
    pub fn remove(&self, identity: &Identity, if_match: Option<&str>) -> Result<(), HubError> {
        let mut registry = lock(&self.registry);
        match_etag(if_match, &registry.get(identity)?.etag())?;
        let gone = registry.remove(identity)?;
        drop(registry);
        for identity in &gone {
            self.renewals.forget(identity);
            self.live.close(Some(identity));
        }
        Ok(())
    }
}

/// `If-Match`: absent or `*` is always right; quoted or bare, since SDKs send both.
pub fn match_etag(if_match: Option<&str>, etag: &str) -> Result<(), HubError> {
    match if_match.map(|value| value.trim().trim_matches('"')) {
        None | Some("*") => Ok(()),
        Some(value) if value == etag => Ok(()),
        Some(value) => {
            let message = format!("the etag is {etag:?}, not {value:?}: read again and repeat");
            Err(HubError::new(Kind::PreconditionFailed, message))
        }
    }
}
