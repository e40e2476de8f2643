//! Fragments -> inputs -> validated `Settings`; only `Settings` travel.
//!
//! `fragments` reads each layer's files and checks their keys, `inputs` merges them and reads typed values,
//! `load` validates; this file is what the rest of the agent sees.

mod cloud;
mod connection;
mod dps;
mod error;
mod fragments;
mod inputs;
mod keys;
mod load;
mod proxy;
mod render;
mod units;

use std::path::PathBuf;
use std::time::Duration;

pub use error::{ConfigError, Warning};
pub use fragments::{Environment, Options};
pub use load::{Board, Loaded, load, load_board, outside_slots};
pub use proxy::{Proxy, Via};
pub use render::render;
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
        self.secrets.iter().filter(|path| cloud::others_can_read(path)).collect()
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

/// Where the two slots are: a block device, `PARTLABEL=`, `PARTUUID=`, or a regular file.
#[derive(Debug, Clone)]
pub struct Slots {
    pub a: String,
    pub b: String,
    /// Slots and boot environment may be on several disks.
    pub span_disks: bool,
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

#[derive(Debug, Clone)]
pub struct Trust {
    /// Folder of PEM public keys (`*.pem`).
    pub keys: PathBuf,
    /// Valid signatures from different keys that a manifest needs, at least 1.
    pub required_signatures: usize,
    /// Host patterns a download may use (`host`, `host:port`, `*.suffix` or `address/bits`); empty: any public host.
    pub allowed_hosts: Vec<String>,
    /// Trusted for the hub and for downloads, also without a hub.
    pub roots: Roots,
}

#[derive(Debug, Clone)]
pub struct Download {
    pub proxy: Proxy,
    /// How long transient errors are retried.
    pub patience: Duration,
    /// A transfer that brings nothing for so long is broken off and retried.
    pub stall_timeout: Duration,
    /// Bytes a second: what brings less counts as nothing.
    pub min_rate: u64,
    /// How long a server's refusal is asked about again, over other connections, before it is final.
    pub final_after: Duration,
    /// Bytes per second; `None`: unlimited.
    pub rate_limit: Option<u64>,
    /// Byte budget of one operation unless the call brings its own.
    pub max_bytes: Option<u64>,
    /// Daily windows in UTC in which index and payload may be fetched; empty: any time.
    pub windows: Vec<Window>,
}

#[derive(Debug, Clone)]
pub struct Health {
    /// Time from the agent's start on a trial until the verdict, on CLOCK_BOOTTIME.
    pub deadline: Duration,
    /// systemd units that must be active.
    pub units: Vec<String>,
    /// Whether units that failed since the update count (needs systemd).
    pub no_new_failed_units: bool,
    /// Folder with `required.d` and `wanted.d`.
    pub checks_dir: PathBuf,
    /// Time limit of one check.
    pub check_timeout: Duration,
    /// Pause between rounds of checks that did not pass.
    pub retry_interval: Duration,
    /// A fresh authenticated hub session is required.
    pub require_cloud: bool,
}

#[derive(Debug, Clone)]
pub struct Policy {
    /// Daily windows in UTC in which the reboot may happen; empty: any time.
    pub windows: Vec<Window>,
    /// The reboot waits for `firmwareApprove`.
    pub approval: bool,
    /// What the cloud may do beyond an ordinary update; local control always may.
    pub cloud: Allowed,
    /// The command that reboots the gateway.
    pub reboot_command: Vec<String>,
}

/// The operator's limits for whoever commands from afar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// `allowDowngrade`.
    pub downgrade: bool,
    /// `force`.
    pub force: bool,
    /// A `maxDownloadBytes` above `download.max_bytes`.
    pub budget: bool,
    /// A `deadline`, at which `policy.windows` no longer count.
    pub deadline: bool,
    /// `firmwareApprove`.
    pub approve: bool,
    /// `firmwareRollback`.
    pub rollback: bool,
    /// `reboot`.
    pub reboot: bool,
}

/// Minutes after midnight UTC; a window may wrap around midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub start: u16,
    pub end: u16,
}

#[derive(Debug, Clone)]
pub struct Report {
    /// Least time between two progress patches within one phase.
    pub interval: Duration,
    /// Whether lifecycle events are sent as device-to-cloud messages.
    pub telemetry: bool,
}

#[derive(Debug, Clone)]
pub struct State {
    pub dir: PathBuf,
}

/// Where the kernel speaks: changed only to run the agent beside a simulated machine.
#[derive(Debug, Clone)]
pub struct System {
    pub proc: PathBuf,
    pub sys: PathBuf,
    /// Runtime folder of the control socket.
    pub run: PathBuf,
    /// os-release(5) of the running system.
    pub os_release: PathBuf,
    /// Seconds to add to the system's clock, and whether it counts as synchronised; `None`: the kernel is asked.
    pub clock: Option<PathBuf>,
}
