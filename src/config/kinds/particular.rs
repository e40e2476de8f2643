//! Kinds of one or two settings each: what they ask for beyond a text or a list.

use toml::Value;

use super::{Kind, Text, Texts};
use crate::config::connection::is_host;
use crate::config::{TimeServer, Transport};

/// Largest payload that the provisioning service takes.
const PAYLOAD_LIMIT: usize = 64 * 1024;
/// Where HTTPS is spoken.
const HTTPS: u16 = 443;
const OF_PARTITION: &str = "PARTUUID=ID or PARTLABEL=NAME, which are the partition's (`blkid` shows them), for UUID \
                            and LABEL are the file system's and go with each update";

/// A text for which `is_good` holds.
fn text(found: &Value, is_good: impl Fn(&str) -> bool, expected: &str) -> Result<String, String> {
    Text::read(found).and_then(|text| if is_good(&text) { Ok(text) } else { Err(expected.to_owned()) })
}

/// Where a slot is.
#[derive(Debug)]
pub struct SlotDevice;

impl Kind for SlotDevice {
    type Value = String;

    fn read(found: &Value) -> Result<String, String> {
        let device = text(found, |device| !is_of_file_system(device), OF_PARTITION)?;
        let label = ["PARTLABEL=", "PARTUUID="].iter().find_map(|prefix| device.strip_prefix(prefix));
        match label.map_or(device.starts_with('/'), |name| !name.is_empty() && !name.contains('/')) {
            true => Ok(device),
            false => Err("an absolute path, PARTLABEL=NAME or PARTUUID=ID".to_owned()),
        }
    }

    fn show(device: &String) -> Option<Value> {
        Text::show(device)
    }
}

/// A name that an image brings along: both slots may have it, and the next update has another.
fn is_of_file_system(device: &str) -> bool {
    let device = device.to_ascii_lowercase();
    let names = ["uuid=", "label=", "/dev/disk/by-uuid/", "/dev/disk/by-label/"];
    names.iter().any(|name| device.starts_with(name))
}

/// Patterns of hosts.
#[derive(Debug)]
pub struct Hosts;

impl Kind for Hosts {
    type Value = Vec<String>;

    fn read(found: &Value) -> Result<Vec<String>, String> {
        let hosts = Texts::read(found)?;
        match hosts.iter().all(|pattern| is_host_pattern(pattern)) {
            true => Ok(hosts),
            false => Err("a list of \"host\", \"host:port\", \"*.suffix\" or \"address/bits\"".to_owned()),
        }
    }

    fn show(hosts: &Vec<String>) -> Option<Value> {
        Texts::show(hosts)
    }
}

fn is_host_pattern(pattern: &str) -> bool {
    if pattern.contains('/') {
        return pattern.parse::<ipnet::IpNet>().is_ok();
    }
    let pattern = pattern.strip_prefix("*.").unwrap_or(pattern);
    let (host, port) = match pattern.strip_prefix('[') {
        // An IPv6 address stands in brackets, as in a URL.
        Some(rest) => match rest.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, port.strip_prefix(':').or(Some(""))),
            None => return false,
        },
        None => match pattern.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (pattern, None),
        },
    };
    let host_ok = !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'));
    host_ok && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|p| p > 0))
}

/// A program and its arguments.
#[derive(Debug)]
pub struct Command;

impl Kind for Command {
    type Value = Vec<String>;

    fn read(found: &Value) -> Result<Vec<String>, String> {
        let words = Texts::read(found)?;
        if words.is_empty() { Err("a program and its arguments".to_owned()) } else { Ok(words) }
    }

    fn show(words: &Vec<String>) -> Option<Value> {
        Texts::show(words)
    }
}

/// The name of a host.
#[derive(Debug)]
pub struct HostName;

impl Kind for HostName {
    type Value = String;

    fn read(found: &Value) -> Result<String, String> {
        text(found, is_host, "a host name without scheme and port")
    }

    fn show(host: &String) -> Option<Value> {
        Text::show(host)
    }
}

/// The ID scope of an instance of the provisioning service.
#[derive(Debug)]
pub struct IdScope;

impl Kind for IdScope {
    type Value = String;

    fn read(found: &Value) -> Result<String, String> {
        let is_good = |scope: &str| scope.bytes().all(|byte| byte.is_ascii_alphanumeric());
        text(found, is_good, "an ID scope such as \"0ne0012ABCD\"")
    }

    fn show(scope: &String) -> Option<Value> {
        Text::show(scope)
    }
}

/// A JSON object, written as a text.
#[derive(Debug)]
pub struct JsonObject;

impl Kind for JsonObject {
    type Value = serde_json::Value;

    fn read(found: &Value) -> Result<serde_json::Value, String> {
        let text = Text::read(found)?;
        match serde_json::from_str::<serde_json::Value>(&text) {
            Ok(value) if value.is_object() && text.len() <= PAYLOAD_LIMIT => Ok(value),
            _ => Err("a text that is a JSON object of at most 64 KiB".to_owned()),
        }
    }

    fn show(object: &serde_json::Value) -> Option<Value> {
        Some(object.to_string().into())
    }
}

impl Kind for Transport {
    type Value = Transport;

    fn read(found: &Value) -> Result<Transport, String> {
        match Text::read(found)?.as_str() {
            "mqtt" => Ok(Transport::Mqtt),
            "websocket" => Ok(Transport::WebSocket),
            _ => Err("\"mqtt\" or \"websocket\"".to_owned()),
        }
    }

    fn show(transport: &Transport) -> Option<Value> {
        Some(if *transport == Transport::Mqtt { "mqtt" } else { "websocket" }.into())
    }
}

impl Kind for TimeServer {
    type Value = TimeServer;

    fn read(found: &Value) -> Result<TimeServer, String> {
        let wrong = || "\"auto\", \"none\", \"host\" or \"host:port\"".to_owned();
        let text = Text::read(found)?;
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?),
            None => (text.as_str(), HTTPS),
        };
        match host {
            "auto" if port == HTTPS => Ok(TimeServer::Own),
            "none" if port == HTTPS => Ok(TimeServer::Nobody),
            host if is_host(host) && !matches!(host, "auto" | "none") => {
                Ok(TimeServer::Other { host: host.to_owned(), port })
            }
            _ => Err(wrong()),
        }
    }

    fn show(server: &TimeServer) -> Option<Value> {
        let text = match server {
            TimeServer::Own => "auto".to_owned(),
            TimeServer::Nobody => "none".to_owned(),
            TimeServer::Other { host, port } => format!("{host}:{port}"),
        };
        Some(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_patterns() {
        for good in [
            "h",
            "h.example",
            "*.example.com",
            "localhost:8443",
            "127.0.0.1",
            "[::1]:8443",
            "[fe80::1]",
            "10.0.0.0/8",
            "fd00::/8",
        ] {
            assert!(is_host_pattern(good), "{good}");
        }
        for bad in ["", "*.", "a b", "h:", "h:0", "h:99999", "h/x", "*", "[::1", "[::1]8"] {
            assert!(!is_host_pattern(bad), "{bad}");
        }
    }
}
