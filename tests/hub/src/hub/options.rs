//! How a hub is started, and by which name its clients know it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// How to start a hub.
#[derive(Debug, Clone)]
pub struct Options {
    /// The hub's folder; made if need be.
    pub dir: PathBuf,
    pub bind: IpAddr,
    /// Further names or addresses by which clients reach the hub; the first stands in connection strings.
    pub names: Vec<String>,
    /// 0 takes a free port.
    pub mqtt_port: u16,
    /// 0 takes a free port.
    pub https_port: u16,
    /// The folder under `/files/`.
    pub www: Option<PathBuf>,
}

impl Options {
    /// On loopback and free ports, as tests want it.
    pub fn ephemeral(dir: impl Into<PathBuf>) -> Options {
        let bind = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Options { dir: dir.into(), bind, names: Vec::new(), mqtt_port: 0, https_port: 0, www: None }
    }

    /// The name that stands in URLs and connection strings.
    pub fn host_name(&self) -> String {
        match (self.names.first(), self.bind) {
            (Some(name), _) if name.parse::<Ipv6Addr>().is_ok() => format!("[{name}]"),
            (Some(name), _) => name.clone(),
            (None, bind) if bind == Ipv4Addr::LOCALHOST || bind.is_unspecified() => "localhost".to_owned(),
            (None, IpAddr::V4(address)) => address.to_string(),
            (None, IpAddr::V6(address)) => format!("[{address}]"),
        }
    }
}
