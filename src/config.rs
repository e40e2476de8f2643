//! Fragments -> inputs -> validated `Settings`; only `Settings` travel.
//!
//! `settings` has a row for each of them. `fragments` reads each layer's files and checks their keys, `inputs` merges them
//! and reads typed values, `load` validates; this file is what the rest of the agent sees.

mod cloud;
mod connection;
mod dps;
mod error;
mod fragments;
mod inputs;
mod kinds;
mod load;
mod names;
mod proxy;
mod render;
mod row;
mod secrets;
mod settings;
mod units;

use std::path::PathBuf;
use std::time::Duration;

pub use error::{ConfigError, Warning};
pub use fragments::{Environment, Options};
pub use load::{Board, Loaded, load, load_board, outside_slots};
pub use proxy::{Proxy, Via};
pub use render::render;
pub use settings::{Allowed, Download, Health, Policy, Report, Slots, State, System, Trust};
pub use units::duration;

/// Everything that an integrator can decide, validated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The board's name; a bundle's manifest must carry the same one.
    pub compatible: String,
    /// `None`: no hub is configured; only local control works.
    pub cloud: Option<Cloud>,
    pub slots: Slots,
    pub bootloader: Bootloader,
    pub trust: Trust,
    pub download: Download,
    pub health: Health,
    pub policy: Policy,
    pub report: Report,
    pub state: State,
    pub system: System,
    /// What is set and does not count now, a sentence each: the agent goes on without it and looks again.
    pub awaited: Vec<String>,
}

/// Whose certificates are believed, by the hub's connection and by downloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// The system's own roots.
    pub system: bool,
    /// A PEM bundle: beside the system's, or alone.
    pub ca_file: Option<PathBuf>,
}

impl Roots {
    /// The system's, and those of a file if there is one.
    pub fn with(ca_file: Option<PathBuf>) -> Roots {
        Roots { system: true, ca_file }
    }
}

/// How the hub is reached, and as whom.
#[derive(Debug, Clone)]
pub struct Cloud {
    pub place: Place,
    pub auth: Auth,
    pub transport: Transport,
    /// TCP port of the hub, for this transport.
    pub port: u16,
    pub proxy: Proxy,
    pub roots: Roots,
    /// MQTT keep-alive; at most 1177 s.
    pub keep_alive: Duration,
    /// Life of a SAS token; renewed before it ends.
    pub token_ttl: Duration,
    pub reconnect: Reconnect,
    pub time_server: TimeServer,
    /// Files that hold a secret: everybody could read them when the settings were read, or a private key.
    pub secrets: Vec<PathBuf>,
}

impl Cloud {
    /// The files with a secret that everybody can read now.
    pub fn exposed(&self) -> Vec<&PathBuf> {
        self.secrets.iter().filter(|path| secrets::others_can_read(path)).collect()
    }
}

/// Who is asked for the time by HTTPS while nothing sets the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeServer {
    /// The hub, or the provisioning service before there is one.
    Own,
    Other {
        host: String,
        port: u16,
    },
    Nobody,
}

/// How long to wait before a new session with the hub: at random, and longer with each attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconnect {
    /// The longest first pause.
    pub first: Duration,
    /// The longest of all.
    pub longest: Duration,
}

/// Who knows where the gateway belongs.
#[derive(Debug, Clone)]
pub enum Place {
    /// The connection string says it.
    Known(Seat),
    /// The Device Provisioning Service is asked.
    Assigned(Dps),
}

/// A place at a hub: which hub, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Hub host name as in user name and SAS (`myhub.azure-devices.net`).
    pub host: String,
    /// Host to connect to instead (`GatewayHostName`), for TCP and TLS.
    pub gateway: Option<String>,
    pub device_id: String,
    pub module_id: Option<String>,
}

impl Seat {
    /// Whether these can be the names of a hub, a device and a module.
    pub fn is_plausible(&self) -> bool {
        let hosts = [Some(&self.host), self.gateway.as_ref()];
        let ids = [Some(&self.device_id), self.module_id.as_ref()];
        hosts.into_iter().flatten().all(|host| connection::is_host(host))
            && ids.into_iter().flatten().all(|id| connection::is_id(id))
    }
}

/// What is packed into what on the way to the hub and to the provisioning service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// MQTT in TLS.
    Mqtt,
    /// MQTT in WebSocket in TLS.
    WebSocket,
}

impl Transport {
    /// The port that Azure listens on.
    pub fn port(self) -> u16 {
        match self {
            Transport::Mqtt => 8883,
            Transport::WebSocket => 443,
        }
    }
}

/// How the Device Provisioning Service is asked. [`Cloud::auth`] is the proof of identity to it and to the hub
/// that it assigns.
#[derive(Debug, Clone)]
pub struct Dps {
    /// Host name of the service.
    pub endpoint: String,
    pub port: u16,
    pub id_scope: String,
    pub registration_id: String,
    /// A JSON object for a custom allocation policy, as it stands in the request.
    pub payload: Option<serde_json::Value>,
    /// The file that remembers what was assigned.
    pub cache: PathBuf,
}

/// Proof of identity towards the hub.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Base64 key of the device; a group's key was turned into the device's own when the settings were read.
    SharedKey(Secret),
    /// PEM files; read again at each connect.
    X509 { certificate: PathBuf, key: PathBuf },
}

/// A string that no log or report may show: `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself; call this only where it is used.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Which boot environment is used, and how many boots a trial gets.
#[derive(Debug, Clone)]
pub struct Bootloader {
    pub kind: BootloaderKind,
    /// Boot attempts of a trial, 1 to 9.
    pub tries: u8,
}

#[derive(Debug, Clone)]
pub enum BootloaderKind {
    /// `fw_env.config` in libubootenv's format.
    Uboot { config: PathBuf },
    /// A preallocated grubenv of 1024 bytes.
    Grub { grubenv: PathBuf },
}

/// Minutes after midnight UTC; a window may wrap around midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub start: u16,
    pub end: u16,
}
