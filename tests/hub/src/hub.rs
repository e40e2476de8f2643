//! The running hub: the handle by which a program or a test drives it.

mod options;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::time::timeout;

pub use self::options::Options;
use crate::authority::{Authority, Issued};
use crate::configurations::{self, Configurations};
use crate::core::{Core, Tasks, Write};
use crate::credentials::{self, Renewals};
use crate::devicebound::{Devicebound, Letter};
use crate::dps::{Dps, Enrollment, Registration};
use crate::error::HubError;
use crate::faults::Faults;
use crate::history::{History, ReportedPatch, Telemetry, Visit, Witness};
use crate::jobs::{self, Jobs};
use crate::live::Live;
use crate::methods::{self, Answer, Call, Calls};
use crate::registry::{Credentials, Entry, Identity, Registry};
use crate::setup::{self, Setup, device_connection_string};
use crate::trace::Trace;
use crate::{auth, certs, clock, disk, lock, mqtt, rest, server};

/// A running hub. Ids are `device` or `device/module`. Dropping it without [`Hub::stop`] closes its sockets too, but does not wait for it.
#[derive(Debug)]
pub struct Hub {
    core: Arc<Core>,
    options: Options,
    setup: Setup,
    ca_pem: String,
    mqtt: SocketAddr,
    https: SocketAddr,
    /// Keeps both ports for a restart.
    ports: Arc<[TcpSocket; 2]>,
    /// Released when the hub is gone.
    lock: Arc<File>,
}

/// What a restart within one process keeps beside the folder.
#[derive(Debug, Clone, Default)]
struct Memory {
    faults: Arc<Faults>,
    history: Arc<History>,
    trace: Arc<Trace>,
    renewals: Arc<Renewals>,
}

impl Hub {
    /// Binds both ports, writes `ca.pem` and `service.txt`, and serves until it is stopped or dropped.
    pub async fn start(options: Options) -> Result<Hub> {
        let lock = Arc::new(setup::claim(&options.dir)?);
        let ports = Arc::new([
            server::reserve(options.bind, options.mqtt_port, "--mqtt-port")?,
            server::reserve(options.bind, options.https_port, "--https-port")?,
        ]);
        Hub::serve(options, ports, lock, Memory::default()).await
    }

    async fn serve(
        options: Options,
        ports: Arc<[TcpSocket; 2]>,
        lock: Arc<File>,
        memory: Memory,
    ) -> Result<Hub> {
        let host = options.host_name();
        let setup = Setup::prepare(&options.dir, &host)?;
        let certificates = certs::prepare(&options.dir, options.bind, &options.names)?;
        let [mqtt, https] = &*ports;
        let (mqtt, https) = (mqtt.local_addr()?, https.local_addr()?);
        let mqtt_listener = server::listen(mqtt, "--mqtt-port").await?;
        let https_listener = server::listen(https, "--https-port").await?;
        let service = setup.service_connection_string(https.port());
        disk::replace(&options.dir.join("service.txt"), format!("{service}\n").as_bytes(), true)?;
        let core = Arc::new(Core {
            registry: Mutex::new(Registry::open(&options.dir)?),
            live: Live::new(),
            calls: Calls::default(),
            devicebound: Devicebound::default(),
            faults: memory.faults,
            history: memory.history,
            trace: memory.trace,
            dps: Dps::open(&options.dir, &host, &setup.service_key)?,
            authority: Authority::open(&options.dir)?,
            renewals: memory.renewals,
            jobs: Jobs::open(&options.dir)?,
            configurations: Configurations::open(&options.dir)?,
            service_key: setup.service_key.clone(),
            www: options.www.clone(),
            tasks: Tasks::default(),
        });
        jobs::resume(&core);
        credentials::resume(&core);
        core.tasks.spawn(configurations::keep_applied(core.clone()));
        let devices = core.clone();
        server::accept(&core, mqtt_listener, certificates.mqtt, move |stream, peer| {
            let core = devices.clone();
            async move { mqtt::serve(core, stream, peer.chain).await }
        });
        let router = rest::router(core.clone());
        server::accept(&core, https_listener, certificates.https, move |stream, peer| {
            server::serve_http(router.clone(), stream, peer)
        });
        Ok(Hub { core, options, setup, ca_pem: certificates.ca_pem, mqtt, https, ports, lock })
    }

    /// Goes down and comes up again on the same ports: connections and open calls are lost, and the twins are read
    /// from disk. Faults, the recorded story and the trace go on.
    pub async fn restart(&mut self) -> Result<()> {
        self.core.tasks.stop().await;
        self.come_up().await
    }

    /// The same on another address, as after a failover to another region: for device and service alike, `devices`
    /// are as they were when these copies were made.
    pub async fn fail_over(&mut self, devices: Vec<Entry>) -> Result<()> {
        self.core.tasks.stop().await;
        let [_, https] = &*self.ports;
        let https = https.local_addr()?.port();
        self.ports = Arc::new([
            server::reserve(self.options.bind, 0, "--mqtt-port")?,
            server::reserve_again(self.options.bind, https, "--https-port").await?,
        ]);
        for older in devices {
            let identity = older.identity.clone();
            let (version, reported) = (older.twin.reported.version, older.twin.reported.properties.clone());
            lock(&self.core.registry).update(&identity, |entry| {
                entry.twin = older.twin;
                Ok(())
            })?;
            self.core.history.replaced(&identity, version, Value::Object(reported));
        }
        self.come_up().await
    }

    async fn come_up(&mut self) -> Result<()> {
        let core = &self.core;
        let memory = Memory {
            faults: core.faults.clone(),
            history: core.history.clone(),
            trace: core.trace.clone(),
            renewals: core.renewals.clone(),
        };
        *self = Hub::serve(self.options.clone(), self.ports.clone(), self.lock.clone(), memory).await?;
        Ok(())
    }

    /// A device as it is now, for [`Hub::fail_over`].
    pub fn copy(&self, id: &str) -> Result<Entry, HubError> {
        self.core.entry(&Identity::device(id))
    }

    /// The token by which the device came in last expires now.
    pub fn expire_token(&self, id: &str) -> Result<(), HubError> {
        self.core.expire_token(&Identity::device(id))
    }

    /// Every CONNECT of the device, in order.
    pub fn visits(&self, id: &str) -> Vec<Visit> {
        self.core.history.visits(&Identity::device(id))
    }

    /// Waits for the device's `count`th CONNECT that was accepted; `false` if that takes longer than `patience`.
    pub async fn wait_accepted(&self, id: &str, count: usize, patience: Duration) -> bool {
        let accepted = || self.visits(id).iter().filter(|visit| visit.accepted).count();
        self.wait_until(patience, || accepted() >= count).await
    }

    /// Records the bytes of MQTT, once started.
    pub fn trace(&self) -> &Trace {
        &self.core.trace
    }

    /// Closes both ports and every connection, and waits until that is done.
    pub async fn stop(self) {
        self.core.tasks.stop().await;
    }

    pub fn mqtt_addr(&self) -> SocketAddr {
        self.mqtt
    }

    pub fn https_addr(&self) -> SocketAddr {
        self.https
    }

    /// The host name in connection strings; the server's certificate carries it.
    pub fn host(&self) -> &str {
        &self.setup.host
    }

    /// What clients must trust.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub fn ca_path(&self) -> PathBuf {
        self.options.dir.join("ca.pem")
    }

    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    pub fn service_connection_string(&self) -> String {
        self.setup.service_connection_string(self.https.port())
    }

    /// An `Authorization` header for the service REST, good for an hour.
    pub fn service_token(&self) -> Result<String> {
        let expiry = clock::unix() + 3600;
        Ok(auth::sign(self.host(), &self.setup.service_key, expiry, Some(crate::SERVICE_POLICY))?)
    }

    /// `https://host:port/files/{path}`.
    pub fn files_url(&self, path: &str) -> String {
        format!("https://{}:{}/files/{path}", self.setup.host, self.https.port())
    }

    /// Registers a device with new keys and returns its connection string.
    pub fn add_device(&self, id: &str) -> Result<String, HubError> {
        self.add(Entry::new(Identity::device(id), Credentials::new_keys()))
    }

    /// Registers a device by its certificate's SHA-1 or SHA-256 thumbprint.
    pub fn add_device_x509(&self, id: &str, thumbprint: &str) -> Result<String, HubError> {
        let credentials = Credentials::self_signed(thumbprint)?;
        self.add(Entry::new(Identity::device(id), credentials))
    }

    /// Registers a device with these credentials.
    pub fn add_device_with(&self, id: &str, credentials: Credentials) -> Result<String, HubError> {
        self.add(Entry::new(Identity::device(id), credentials))
    }

    /// Registers a module of a device with new keys and returns its connection string.
    pub fn add_module(&self, device: &str, module: &str) -> Result<String, HubError> {
        self.add(Entry::new(Identity::module(device, module), Credentials::new_keys()))
    }

    /// The provisioning service's ID scope.
    pub fn id_scope(&self) -> &str {
        &self.core.dps.id_scope
    }

    /// Adds an enrollment to the provisioning service, or replaces it.
    pub fn enroll(&self, enrollment: &Enrollment) -> Result<()> {
        self.core.dps.enroll(enrollment)
    }

    /// Every registration that the provisioning service brought to an end, in order.
    pub fn registrations(&self) -> Vec<Registration> {
        self.core.dps.registrations()
    }

    /// Every certificate that was issued for the device, in order.
    pub fn issued(&self, id: &str) -> Vec<Issued> {
        self.core.history.certificates(&Identity::device(id))
    }

    fn add(&self, entry: Entry) -> Result<String, HubError> {
        let text = device_connection_string(&self.setup.host, &entry);
        lock(&self.core.registry).create(entry)?;
        self.core.live.changed();
        Ok(text)
    }

    /// Deletes a device.
    pub fn remove_device(&self, id: &str) -> Result<(), HubError> {
        self.core.remove(&Identity::from(id), None)
    }

    /// Deletes a device and registers it again with the same keys: its twin is empty then.
    pub fn remake_device(&self, id: &str) -> Result<(), HubError> {
        let identity = Identity::from(id);
        let credentials = self.core.entry(&identity)?.credentials;
        self.core.remove(&identity, None)?;
        self.core.history.replaced(&identity, 1, json!({}));
        lock(&self.core.registry).create(Entry::new(identity, credentials))?;
        Ok(())
    }

    pub fn device_connection_string(&self, id: &str) -> Result<String, HubError> {
        Ok(device_connection_string(&self.setup.host, &self.core.entry(&Identity::from(id))?))
    }

    /// The twin as REST shows it.
    pub fn twin(&self, id: &str) -> Result<Value, HubError> {
        Ok(self.core.twin_document(&self.core.entry(&Identity::from(id))?))
    }

    /// Merges into the desired properties, as a service would.
    pub fn patch_desired(&self, id: &str, patch: Value) -> Result<Value, HubError> {
        let body = json!({"properties": {"desired": patch}});
        self.core.write_twin(&Identity::from(id), &body, Write::Patch, None)
    }

    /// Invokes a direct method, as a service would.
    pub async fn invoke(&self, id: &str, call: Call) -> Result<Answer, HubError> {
        methods::invoke(&self.core, &Identity::from(id), call).await
    }

    /// A cloud-to-device message: it waits until the device has subscribed to such, and acknowledged it.
    pub fn send_to_device(&self, id: &str, body: &str) {
        let letter = Letter { body: body.to_owned(), properties: BTreeMap::new() };
        self.core.devicebound.push(&Identity::from(id), letter);
    }

    /// Cloud-to-device messages that the device has not acknowledged.
    pub fn waiting_for_device(&self, id: &str) -> usize {
        self.core.devicebound.waiting(&Identity::from(id))
    }

    pub fn is_connected(&self, id: &str) -> bool {
        self.core.live.is_connected(&Identity::from(id))
    }

    /// Waits until the device is connected (or is not); `false` if that takes longer than `patience`.
    pub async fn wait_connected(&self, id: &str, connected: bool, patience: Duration) -> bool {
        self.wait_until(patience, || self.is_connected(id) == connected).await
    }

    /// Waits until the device's reported properties are as `wanted` says; returns them.
    pub async fn wait_reported(
        &self,
        id: &str,
        patience: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Option<Value> {
        let reported = || self.twin(id).ok().and_then(|twin| twin.pointer("/properties/reported").cloned());
        self.wait_until(patience, || reported().is_some_and(|value| wanted(&value)))
            .await
            .then(reported)
            .flatten()
    }

    /// Waits until the device's messages are as `wanted` says; `false` if that takes longer than `patience`.
    pub async fn wait_telemetry(
        &self,
        id: &str,
        patience: Duration,
        wanted: impl Fn(&[Telemetry]) -> bool,
    ) -> bool {
        self.wait_until(patience, || wanted(&self.telemetry(id))).await
    }

    /// Waits until something holds that connections, twins or registrations decide.
    pub async fn wait_until(&self, patience: Duration, holds: impl Fn() -> bool) -> bool {
        let mut changes = self.core.live.watch();
        let waiting = async {
            while !holds() {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout(patience, waiting).await.is_ok()
    }

    /// Closes every device's connection, or one's.
    pub fn drop_connections(&self, id: Option<&str>) {
        self.core.live.close(id.map(Identity::from).as_ref());
    }

    /// Faults to switch and counters to read, at any time.
    pub fn faults(&self) -> &Faults {
        &self.core.faults
    }

    /// Every reported patch that the hub accepted, in order.
    pub fn history(&self, id: &str) -> Vec<ReportedPatch> {
        self.core.history.patches(&Identity::from(id))
    }

    /// Has `witness` look at the world at each reported patch; [`ReportedPatch::seen`] keeps what it saw.
    pub fn watch_reports(&self, id: &str, witness: Witness) {
        self.core.history.watch(&Identity::from(id), witness);
    }

    pub fn telemetry(&self, id: &str) -> Vec<Telemetry> {
        self.core.history.telemetry(&Identity::from(id))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.core.tasks.cancel();
    }
}
