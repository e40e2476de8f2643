//! CONNECT: reads the user name, and lets in who proves to be that device.
//!
//! User name: `{hub}/{device}[/{module}]/?api-version=..`, or the older form without `?`. The hub answers every
//! refusal with code 5; the reason is only in its log.

use mqttbytes::v4::Connect;
use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;

use crate::auth::{SasToken, normal_thumbprint, thumbprints};
use crate::clock;
use crate::core::Core;
use crate::registry::{Credentials, Entry, Identity};

/// A device that was let in.
#[derive(Debug)]
pub struct Accepted {
    pub identity: Identity,
    /// Unix seconds; the connection ends with its token. `None` for certificates.
    pub expiry: Option<u64>,
    /// As the user name says; empty if it says nothing.
    pub api_version: String,
    /// The model that the device says it implements.
    pub model_id: Option<String>,
}

/// The first api-version that knows models.
const MODELS: &str = "2020-09-30";

/// Checks identity and proof. `chain` is that of the client certificate. The error is for the log.
pub fn authorise(core: &Core, connect: &Connect, chain: &[CertificateDer<'_>]) -> Result<Accepted, String> {
    let login = connect.login.as_ref().ok_or("the CONNECT has no user name")?;
    let (host, identity) =
        read_user_name(&login.username).ok_or("the user name is not {hub}/{device}/?api-version=..")?;
    if connect.client_id != identity.to_string() {
        return Err(format!("the client id {:?} is not {identity}", connect.client_id));
    }
    core.require_enabled(&identity).map_err(|error| error.to_string())?;
    let entry = core.entry(&identity).map_err(|error| error.to_string())?;
    let expiry = if login.password.is_empty() {
        check_certificate(core, &entry, chain)?;
        None
    } else {
        Some(check_token(core, host, &entry, &login.password)?)
    };
    let api_version = query(&login.username, "api-version").to_owned();
    let model_id = if *api_version < *MODELS { None } else { model_id(&login.username)? };
    Ok(Accepted { identity, expiry, api_version, model_id })
}

fn model_id(user_name: &str) -> Result<Option<String>, String> {
    let text = query(user_name, "model-id");
    let id = percent_decode_str(text).decode_utf8_lossy().into_owned();
    match text.is_empty() {
        true => Ok(None),
        false if is_model_id(&id) => Ok(Some(id)),
        false => Err(format!("the model-id {id:?} is not of the form dtmi:<path>;<version>")),
    }
}

/// A digital twin's model identifier: `dtmi:segment[:segment..];version`, by the DTDL's grammar.
fn is_model_id(text: &str) -> bool {
    let Some((path, version)) = text.strip_prefix("dtmi:").and_then(|rest| rest.split_once(';')) else {
        return false;
    };
    let segment = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let numbered = version.bytes().all(|b| b.is_ascii_digit()) && !version.starts_with('0');
    path.split(':').all(segment) && numbered && (1..=9).contains(&version.len())
}

/// A value of the user name's query; empty if there is none.
fn query<'a>(user_name: &'a str, name: &str) -> &'a str {
    let query = user_name.rsplit('/').next().unwrap_or_default();
    let mut pairs = query.trim_start_matches('?').split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map_or("", |(_, value)| value)
}

fn read_user_name(name: &str) -> Option<(&str, Identity)> {
    let mut parts = name.split('/');
    let host = parts.next().filter(|host| !host.is_empty())?;
    let device = parts.next().filter(|device| !device.is_empty())?;
    let module = parts
        .next()
        .filter(|part| !(part.is_empty() || part.starts_with('?') || part.starts_with("api-version=")));
    let identity = match module {
        None => Identity::device(device),
        Some(module) => Identity::module(device, module),
    };
    Some((host, identity))
}

fn check_token(core: &Core, host: &str, entry: &Entry, password: &str) -> Result<u64, String> {
    let token = SasToken::parse(password).map_err(|error| error.to_string())?;
    let wanted = format!("{host}/{}", entry.identity.resource());
    let checked = match (&token.policy, &entry.credentials) {
        (Some(policy), _) if policy == crate::SERVICE_POLICY => token
            .covers(&wanted, true)
            .and_then(|()| token.verify([core.service_key.as_str()], clock::unix())),
        (Some(policy), _) => return Err(format!("there is no policy {policy:?}")),
        (None, Credentials::Sas { primary_key, secondary_key }) => token
            .covers(&wanted, false)
            .and_then(|()| token.verify([primary_key.as_str(), secondary_key.as_str()], clock::unix())),
        (None, Credentials::SelfSigned { .. } | Credentials::CertificateAuthority) => {
            return Err(format!("{} is registered with a certificate, not with a key", entry.identity));
        }
    };
    checked.map_err(|error| error.to_string())?;
    if entry.expired.is_some_and(|expired| token.expiry <= expired) {
        return Err("the token expired".to_owned());
    }
    Ok(token.expiry)
}

/// By thumbprint, or by the authority: what it issued for a device that is known by a thumbprint is good too.
fn check_certificate(core: &Core, entry: &Entry, chain: &[CertificateDer<'_>]) -> Result<(), String> {
    let known = match &entry.credentials {
        Credentials::Sas { .. } => {
            return Err(format!("{} is registered with a key, but sent no token", entry.identity));
        }
        Credentials::SelfSigned { primary_thumbprint, secondary_thumbprint } => {
            vec![Some(primary_thumbprint), secondary_thumbprint.as_ref()]
        }
        Credentials::CertificateAuthority => Vec::new(),
    };
    let leaf = chain.first().ok_or("neither a password nor a client certificate was sent")?;
    let sent = thumbprints(leaf);
    if known.iter().flatten().filter_map(|text| normal_thumbprint(text)).any(|known| sent.contains(&known)) {
        return Ok(());
    }
    core.authority.vouches(chain, &entry.identity.to_string()).map_err(|problem| {
        let by_thumbprint = if known.is_empty() { "" } else { "it has none of the device's thumbprints; " };
        format!("the client certificate does not open {}: {by_thumbprint}{problem}", entry.identity)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions() {
        assert_eq!(
            query("hub/d/?api-version=2021-04-12&DeviceClientType=x%2Fy", "api-version"),
            "2021-04-12"
        );
        assert_eq!(query("hub/d/api-version=2016-11-14", "api-version"), "2016-11-14");
        assert_eq!(query("hub/d", "api-version"), "");
    }

    #[test]
    fn model_ids() {
        for id in ["dtmi:a;1", "dtmi:azure:iot:deviceUpdateModel;3", "dtmi:com:ex_1:Sensor;999999999"] {
            assert!(is_model_id(id), "{id}");
        }
        for id in [
            "",
            "dtmi:;1",
            "dtmi:a",
            "dtmi:a;",
            "dtmi:a;0",
            "dtmi:a;1.2",
            "dtmi:a:;1",
            "dtmi:1a;1",
            "dtmi:_a;1",
            "dtmi:a_;1",
            "dtmi:a-b;1",
            "urn:a;1",
        ] {
            assert!(!is_model_id(id), "{id}");
        }
    }

    #[test]
    fn user_names() {
        let device = Some(("hub", Identity::device("d")));
        assert_eq!(read_user_name("hub/d/?api-version=2021-04-12&DeviceClientType=x%2Fy"), device);
        assert_eq!(read_user_name("hub/d/api-version=2016-11-14"), device);
        assert_eq!(read_user_name("hub/d"), device);
        assert_eq!(read_user_name("hub/d/m/?api-version=1"), Some(("hub", Identity::module("d", "m"))));
        assert_eq!(read_user_name("hub"), None);
        assert_eq!(read_user_name("/d/"), None);
    }
}
