//! The device connection string of Azure IoT Hub: `HostName=...;DeviceId=...;SharedAccessKey=...`.
//!
//! Format: "Control access to IoT Hub", device identities; `x509=true` and `GatewayHostName` are the Azure
//! SDKs' own extensions. No error shows a value: one of them is the device's key.

use data_encoding::BASE64;

use super::secret::Secret;

/// A parsed connection string.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ConnectionString {
    pub host: String,
    pub gateway: Option<String>,
    pub device_id: String,
    pub module_id: Option<String>,
    /// Base64; `None` with `x509=true`.
    pub key: Option<Secret>,
}

/// Longest device or module id that the hub accepts.
const ID_LIMIT: usize = 128;

/// Parses `text`; the error completes "the connection string in FILE ...".
pub fn parse(text: &str) -> Result<ConnectionString, String> {
    let segments = segments(text)?;
    let get = |name: &str| segments.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    let need = |name: &str| get(name).ok_or_else(|| format!("lacks {name}; copy it whole from the portal"));
    let parsed = ConnectionString {
        host: need("HostName")?,
        gateway: get("GatewayHostName"),
        device_id: need("DeviceId")?,
        module_id: get("ModuleId"),
        key: get("SharedAccessKey").map(Secret::new),
    };
    check_auth(&parsed, get("x509").as_deref())?;
    check_names(&parsed)?;
    Ok(parsed)
}

fn segments(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for segment in text.trim().split(';').filter(|s| !s.is_empty()) {
        let (name, value) = segment.split_once('=').ok_or("has a part without `=`; quote it as one text")?;
        match name {
            "HostName" | "GatewayHostName" | "DeviceId" | "ModuleId" | "SharedAccessKey" | "x509" => {}
            "SharedAccessKeyName" => return Err("is a service's; use the one of the device".to_owned()),
            _ => return Err("has a part that no device connection string has; check its spelling".to_owned()),
        }
        if value.is_empty() || found.iter().any(|(n, _)| *n == name) {
            return Err(format!("has {name} empty or twice; copy it whole from the portal"));
        }
        found.push((name, value));
    }
    Ok(found)
}

fn check_auth(parsed: &ConnectionString, x509: Option<&str>) -> Result<(), String> {
    let x509 = match x509 {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err("has an x509 that is neither true nor false".to_owned()),
    };
    match (&parsed.key, x509) {
        (None, true) => Ok(()),
        (Some(_), true) => Err("has both SharedAccessKey and x509=true; keep one of them".to_owned()),
        (None, false) => {
            Err("has neither SharedAccessKey nor x509=true; add the one that is used".to_owned())
        }
        (Some(key), false) => match BASE64.decode(key.expose().as_bytes()) {
            Ok(_) => Ok(()),
            Err(_) => Err("has a SharedAccessKey that is not base64; copy it whole".to_owned()),
        },
    }
}

fn check_names(parsed: &ConnectionString) -> Result<(), String> {
    let hosts = [("HostName", Some(&parsed.host)), ("GatewayHostName", parsed.gateway.as_ref())];
    for (name, host) in hosts {
        if host.is_some_and(|h| !is_host(h)) {
            return Err(format!("has a {name} that is no host name; leave out scheme and port"));
        }
    }
    let ids = [("DeviceId", Some(&parsed.device_id)), ("ModuleId", parsed.module_id.as_ref())];
    for (name, id) in ids {
        if id.is_some_and(|id| !is_id(id)) {
            return Err(format!("has a {name} that no hub accepts; check it against the portal"));
        }
    }
    Ok(())
}

/// Whether `text` can be a device's or a module's id. `/` would change the MQTT topics that it becomes a part of.
pub fn is_id(text: &str) -> bool {
    (1..=ID_LIMIT).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

/// Whether `text` can be a host's name.
pub fn is_host(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=253).contains(&text.len()) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_with_a_key() {
        let parsed = parse("HostName=h.azure-devices.net;DeviceId=gw=1;SharedAccessKey=c2VjcmV0==\n");
        assert!(parsed.is_err(), "padding in excess is no base64");
        let parsed =
            parse("HostName=h.azure-devices.net;DeviceId=gw=1;SharedAccessKey=c2VjcmV0MQ==\n").unwrap();
        assert_eq!(parsed.device_id, "gw=1", "a value may hold `=`");
        assert_eq!(parsed.key.unwrap().expose(), "c2VjcmV0MQ==");
    }

    #[test]
    fn a_module_behind_a_gateway_with_a_certificate() {
        let parsed = parse("HostName=h;DeviceId=d;ModuleId=m;x509=true;GatewayHostName=edge.local").unwrap();
        assert_eq!(parsed.module_id.as_deref(), Some("m"));
        assert_eq!(parsed.gateway.as_deref(), Some("edge.local"));
        assert_eq!(parsed.key, None);
    }

    #[test]
    fn bad_ones_say_why_and_never_show_the_key() {
        for (text, word) in [
            ("", "HostName"),
            ("HostName=h;SharedAccessKey=c2VjcmV0", "DeviceId"),
            ("HostName=h;DeviceId=d", "SharedAccessKey"),
            ("HostName=h;DeviceId=d;SharedAccessKey=c2VjcmV0;x509=true", "both"),
            ("HostName=h;DeviceId=d;SharedAccessKey=c2VjcmV0!", "base64"),
            ("HostName=h;SharedAccessKeyName=owner;SharedAccessKey=c2VjcmV0", "service"),
            ("HostName=h;DeviceId=d;DeviceId=e;SharedAccessKey=c2VjcmV0", "twice"),
            ("HostName=https://h;DeviceId=d;SharedAccessKey=c2VjcmV0", "scheme"),
            ("HostName=h;DeviceId=a/b;SharedAccessKey=c2VjcmV0", "DeviceId"),
            ("HostName=h;DeviceId=d;c2VjcmV0=c2VjcmV0", "spelling"),
            ("HostName=h;DeviceId=d;SharedAccessKey", "`=`"),
            ("HostName=h;DeviceId=d;x509=maybe", "x509"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(word), "{text}: {problem}");
            assert!(!problem.contains("c2VjcmV0"), "{problem}");
        }
    }
}
