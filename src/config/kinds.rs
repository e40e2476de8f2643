//! The kinds of values that settings have: how each is read from a file, and shown in the effective settings.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use config::ValueKind;
use ipnet::IpNet;
use serde_json::Value as Json;
use toml::Value;

use super::connection::is_host;
use super::hub::{KeyPlace, TimeServer, Transport};
use super::units::{self, Window};
use crate::pkcs11::{KeyUri, SCHEME};

/// A kind of value.
pub trait Kind {
    /// What it is read as.
    type Value;

    /// No message may show what was found.
    const IS_SECRET: bool = false;

    /// `None`: it is something else than [`Kind::expected`].
    fn read(found: &ValueKind) -> Option<Self::Value>;

    /// What should stand in the place of `found`.
    fn expected(found: &ValueKind) -> String;

    /// As it is read again; `None`: it is not set.
    fn show(value: &Self::Value) -> Option<Value>;

    /// What counts where nothing is set; `None`: something must be.
    fn absent() -> Option<Self::Value> {
        None
    }
}

/// Each kind is `name: what it is read as, what is expected, how it is read, how it is shown;`.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident$([$is_secret:literal])?: $value:ty, $expected:expr, $read:expr, $show:expr;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug)]
        pub struct $name;

        impl Kind for $name {
            type Value = $value;

            $(const IS_SECRET: bool = $is_secret;)?

            fn read(found: &ValueKind) -> Option<$value> {
                let read: fn(&ValueKind) -> Option<$value> = $read;
                read(found)
            }

            fn expected(_: &ValueKind) -> String {
                $expected.to_owned()
            }

            fn show(value: &$value) -> Option<Value> {
                let show: fn(&$value) -> Value = $show;
                Some(show(value))
            }
        }
    )*};
}

kinds! {
    Text: String, "a text that is not empty", text, |text| text.clone().into();
    /// No message may show it.
    Hidden[true]: String, "a text that is not empty", text, |_| "***".into();
    Absolute: PathBuf, "an absolute path",
        |found| text(found).map(PathBuf::from).filter(|path| path.is_absolute()), |path| path.display().to_string().into();
    Flag: bool, "true or false", flag, |flag| (*flag).into();
    /// A number of bytes; a rate may end in `/s`.
    Bytes: u64, "bytes above zero: an integer, or a text such as \"512KiB\"", bytes, |bytes| integer(*bytes);
    Texts: Vec<String>, "a list of texts that are not empty", |found| items(found, text), |texts| texts.clone().into();
    /// Daily, in UTC.
    Windows: Vec<Window>, "a list of daily UTC windows such as \"22:00-04:00\"",
        |found| items(found, |item| units::window(&text(item)?)),
        |windows| windows.iter().map(|window| units::show_window(*window)).collect::<Vec<_>>().into();
    Command: Vec<String>, "a program and its arguments",
        |found| items(found, text).filter(|words| !words.is_empty()), |words| words.clone().into();
    Hosts: Vec<String>, "a list of \"host\", \"host:port\", \"*.suffix\" or \"address/bits\"",
        |found| items(found, |item| text(item).filter(|pattern| is_host_pattern(pattern))), |hosts| hosts.clone().into();
    HostName: String, "a host name without scheme and port",
        |found| text(found).filter(|host| is_host(host)), |host| host.clone().into();
    /// Of an instance of the provisioning service.
    IdScope: String, "an ID scope such as \"0ne0012ABCD\"",
        |found| text(found).filter(|scope| scope.bytes().all(|byte| byte.is_ascii_alphanumeric())),
        |scope| scope.clone().into();
    /// Written as a text.
    JsonObject: Json, "a text that is a JSON object of at most 64 KiB", json_object, |object| object.to_string().into();
    TransportName: Transport, "\"mqtt\" or \"websocket\"", transport,
        |way| if *way == Transport::Mqtt { "mqtt" } else { "websocket" }.into();
    TimeServerName: TimeServer, "\"auto\", \"none\", \"host\" or \"host:port\"",
        |found| text(found)?.parse().ok(), |server| server.to_string().into();
}

/// What may be left open.
impl<K: Kind> Kind for Option<K> {
    type Value = Option<K::Value>;

    const IS_SECRET: bool = K::IS_SECRET;

    fn read(found: &ValueKind) -> Option<Self::Value> {
        K::read(found).map(Some)
    }

    fn expected(found: &ValueKind) -> String {
        K::expected(found)
    }

    fn show(value: &Self::Value) -> Option<Value> {
        value.as_ref().and_then(K::show)
    }

    fn absent() -> Option<Self::Value> {
        Some(None)
    }
}

/// An integer from `MIN` to `MAX`.
#[derive(Debug)]
pub struct Number<T, const MIN: u16, const MAX: u16>(T);

impl<T: Copy + TryFrom<u16> + TryInto<u64>, const MIN: u16, const MAX: u16> Kind for Number<T, MIN, MAX> {
    type Value = T;

    fn read(found: &ValueKind) -> Option<T> {
        let number = u16::try_from(whole(found)?).ok().filter(|number| (MIN..=MAX).contains(number))?;
        T::try_from(number).ok()
    }

    fn expected(_: &ValueKind) -> String {
        format!("an integer from {MIN} to {MAX}")
    }

    fn show(number: &T) -> Option<Value> {
        (*number).try_into().ok().map(integer)
    }
}

/// Milliseconds, as bounds of a [`Span`].
pub const TICK: u64 = 10;
pub const SECOND: u64 = 1000;
pub const HOUR: u64 = 3_600_000;
pub const DAY: u64 = 86_400_000;

/// A duration from `MIN` to `MAX` milliseconds.
#[derive(Debug)]
pub struct Span<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> Kind for Span<MIN, MAX> {
    type Value = Duration;

    fn read(found: &ValueKind) -> Option<Duration> {
        let span = match found {
            ValueKind::I64(seconds) => Duration::from_secs(u64::try_from(*seconds).ok()?),
            found => units::duration(string(found)?)?,
        };
        (Duration::from_millis(MIN)..=Duration::from_millis(MAX)).contains(&span).then_some(span)
    }

    fn expected(_: &ValueKind) -> String {
        expected_span(Duration::from_millis(MIN), Duration::from_millis(MAX))
    }

    fn show(span: &Duration) -> Option<Value> {
        Some(units::show_duration(*span).into())
    }
}

pub fn expected_span(min: Duration, max: Duration) -> String {
    let (low, high) = (units::show_duration(min), units::show_duration(max));
    format!("a duration such as \"30s\", \"5min\" or \"2d\", from {low} to {high}")
}

/// Where a slot is.
#[derive(Debug)]
pub struct SlotDevice;

impl Kind for SlotDevice {
    type Value = String;

    fn read(found: &ValueKind) -> Option<String> {
        let device = text(found).filter(|device| !is_of_file_system(device))?;
        let label = ["PARTLABEL=", "PARTUUID="].iter().find_map(|prefix| device.strip_prefix(prefix));
        let is_one = label.map_or(device.starts_with('/'), |name| !name.is_empty() && !name.contains('/'));
        is_one.then_some(device)
    }

    fn expected(found: &ValueKind) -> String {
        match string(found) {
            Some(device) if is_of_file_system(device) => {
                "PARTUUID=ID or PARTLABEL=NAME, which are the partition's (`blkid` shows them), for UUID and LABEL are the \
                 file system's and go with each update"
            }
            _ => "an absolute path, PARTLABEL=NAME or PARTUUID=ID",
        }
        .to_owned()
    }

    fn show(device: &String) -> Option<Value> {
        Text::show(device)
    }
}

/// Where a private key is.
#[derive(Debug)]
pub struct KeyName;

impl Kind for KeyName {
    type Value = KeyPlace;

    fn read(found: &ValueKind) -> Option<KeyPlace> {
        match string(found).filter(|name| name.starts_with(SCHEME)) {
            Some(uri) => uri.parse().ok().map(|uri| KeyPlace::Token(Arc::new(uri))),
            None => Absolute::read(found).map(KeyPlace::File),
        }
    }

    fn expected(found: &ValueKind) -> String {
        let uri = string(found).filter(|name| name.starts_with(SCHEME));
        match uri.map(str::parse::<KeyUri>) {
            Some(Err(problem)) => format!("a PKCS#11 URI that can be used ({problem})"),
            _ => {
                "an absolute path, or a PKCS#11 URI such as \"pkcs11:token=gateway;object=device\"".to_owned()
            }
        }
    }

    fn show(place: &KeyPlace) -> Option<Value> {
        Some(place.to_string().into())
    }
}

/// A name that an image brings along: both slots may have it, and the next update has another.
fn is_of_file_system(device: &str) -> bool {
    let device = device.to_ascii_lowercase();
    let names = ["uuid=", "label=", "/dev/disk/by-uuid/", "/dev/disk/by-label/"];
    names.iter().any(|name| device.starts_with(name))
}

fn string(found: &ValueKind) -> Option<&str> {
    match found {
        ValueKind::String(text) => Some(text),
        _ => None,
    }
}

fn text(found: &ValueKind) -> Option<String> {
    string(found).filter(|text| !text.trim().is_empty()).map(str::to_owned)
}

fn flag(found: &ValueKind) -> Option<bool> {
    match found {
        ValueKind::Boolean(flag) => Some(*flag),
        _ => None,
    }
}

fn whole(found: &ValueKind) -> Option<i64> {
    match found {
        ValueKind::I64(number) => Some(*number),
        _ => None,
    }
}

fn items<T>(found: &ValueKind, read: impl Fn(&ValueKind) -> Option<T>) -> Option<Vec<T>> {
    match found {
        ValueKind::Array(items) => items.iter().map(|item| read(&item.kind)).collect(),
        _ => None,
    }
}

fn bytes(found: &ValueKind) -> Option<u64> {
    let bytes = match found {
        ValueKind::I64(number) => u64::try_from(*number).ok(),
        found => string(found).and_then(|text| units::size(text.strip_suffix("/s").unwrap_or(text))),
    };
    bytes.filter(|bytes| *bytes > 0)
}

/// TOML's integers are signed; a larger one can't have been read.
fn integer(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}

/// The provisioning service takes no larger one.
fn json_object(found: &ValueKind) -> Option<Json> {
    let text = text(found).filter(|text| text.len() <= 64 * 1024)?;
    serde_json::from_str(&text).ok().filter(Json::is_object)
}

fn transport(found: &ValueKind) -> Option<Transport> {
    match string(found)? {
        "mqtt" => Some(Transport::Mqtt),
        "websocket" => Some(Transport::WebSocket),
        _ => None,
    }
}

fn is_host_pattern(pattern: &str) -> bool {
    if pattern.contains('/') {
        return pattern.parse::<IpNet>().is_ok();
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
