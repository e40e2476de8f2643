//! CONNECT: reads the user name, and lets in who proves to be that device.
//!
//! User name: `{hub}/{device}[/{module}]/?api-version=..`, or the older form without `?`. The hub answers every
//! refusal with code 5; the reason is only in its log.

use mqttbytes::v4::Connect;

use crate::auth::{SasToken, normal_thumbprint};
use crate::clock;
use crate::core::Core;
use crate::registry::{Credentials, Entry, Identity};

/// A device that was let in.
#[derive(Debug)]
pub struct Accepted {
    pub identity: Identity,
    /// Unix seconds; the connection ends with its token. `None` for certificates.
    pub expiry: Option<u64>,
}

/// Checks identity and proof. `thumbprints` are those of the client certificate. The error is for the log.
pub fn authorise(core: &Core, connect: &Connect, thumbprints: &[String]) -> Result<Accepted, String> {
    let login = connect.login.as_ref().ok_or("the CONNECT has no user name")?;
    let (host, identity) =
        read_user_name(&login.username).ok_or("the user name is not {hub}/{device}/?api-version=..")?;
    if connect.client_id != identity.to_string() {
        return Err(format!("the client id {:?} is not {identity}", connect.client_id));
    }
    core.require_enabled(&identity).map_err(|error| error.to_string())?;
    let entry = core.entry(&identity).map_err(|error| error.to_string())?;
    let expiry = if login.password.is_empty() {
        check_certificate(&entry, thumbprints)?;
        None
    } else {
        Some(check_token(core, host, &entry, &login.password)?)
    };
    Ok(Accepted { identity, expiry })
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
        (None, Credentials::SelfSigned { .. }) => {
            return Err(format!("{} is registered with a certificate, not with a key", entry.identity));
        }
    };
    checked.map_err(|error| error.to_string())?;
    if entry.expired.is_some_and(|expired| token.expiry <= expired) {
        return Err("the token expired".to_owned());
    }
    Ok(token.expiry)
}

fn check_certificate(entry: &Entry, thumbprints: &[String]) -> Result<(), String> {
    let Credentials::SelfSigned { primary_thumbprint, secondary_thumbprint } = &entry.credentials else {
        return Err(format!("{} is registered with a key, but sent no token", entry.identity));
    };
    if thumbprints.is_empty() {
        return Err("neither a password nor a client certificate was sent".to_owned());
    }
    let known = [Some(primary_thumbprint), secondary_thumbprint.as_ref()];
    let fits = known
        .into_iter()
        .flatten()
        .filter_map(|text| normal_thumbprint(text))
        .any(|t| thumbprints.contains(&t));
    if fits {
        Ok(())
    } else {
        Err(format!("the client certificate has none of {}'s thumbprints", entry.identity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
