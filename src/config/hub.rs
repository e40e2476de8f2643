//! How the hub is reached, and as whom; and whose word is believed on the way.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::proxy::Proxy;
use super::secret::Secret;
use super::{connection, files};
use crate::pkcs11::KeyUri;

/// Where HTTPS is spoken.
const HTTPS: u16 = 443;

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
    /// The device of the token that holds the key.
    pub key_device: Option<PathBuf>,
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
        self.secrets.iter().filter(|path| files::others_can_read(path)).collect()
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

impl FromStr for TimeServer {
    type Err = ();

    fn from_str(text: &str) -> Result<TimeServer, ()> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0).ok_or(())?),
            None => (text, HTTPS),
        };
        match host {
            "auto" if port == HTTPS => Ok(TimeServer::Own),
            "none" if port == HTTPS => Ok(TimeServer::Nobody),
            host if connection::is_host(host) && !matches!(host, "auto" | "none") => {
                Ok(TimeServer::Other { host: host.to_owned(), port })
            }
            _ => Err(()),
        }
    }
}

impl fmt::Display for TimeServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TimeServer::Own => f.write_str("auto"),
            TimeServer::Nobody => f.write_str("none"),
            TimeServer::Other { host, port } => write!(f, "{host}:{port}"),
        }
    }
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
    /// A PEM file and a key; read again at each connect.
    X509 { certificate: PathBuf, key: KeyPlace },
}

/// Where the private key of a certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// A PEM file.
    File(PathBuf),
    /// A token, which never gives it away.
    Token(Arc<KeyUri>),
}

impl KeyPlace {
    /// The file that must be kept secret: the key's own, or that of the token's PIN.
    pub fn secret(&self) -> Option<&Path> {
        match self {
            KeyPlace::File(file) => Some(file),
            KeyPlace::Token(uri) => uri.pin_file(),
        }
    }
}

impl fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyPlace::File(file) => file.display().fmt(f),
            KeyPlace::Token(uri) => uri.fmt(f),
        }
    }
}
