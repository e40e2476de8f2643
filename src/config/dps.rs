//! The section `[cloud.dps]`: how the Device Provisioning Service is asked where the gateway belongs.
//!
//! A group's key never leaves this file: the device's own key is derived from it here, as Microsoft's "Symmetric key
//! attestation" describes, and is all that the agent keeps in memory.

use data_encoding::BASE64;
use ring::hmac;

use super::credentials::{self, certificate, content};
use super::error::{ConfigError, Warning};
use super::hub::{Auth, Dps, Place, Transport};
use super::inputs::Inputs;
use super::kinds::{Absolute, Hidden};
use super::row::Setting;
use super::secret::Secret;
use super::settings::{DpsRows as row, State};

/// In the state folder: what the service assigned.
const CACHE: &str = "assigned.json";
/// Longest registration id, in bytes.
const ID_LIMIT: usize = 128;

/// The first key that calls for the service: one that only its users set.
pub fn is_set(inputs: &Inputs) -> Option<&'static str> {
    let calls = row::ROWS.iter().filter(|row| row.default.is_none() && row.path != row::port.path);
    calls.map(|row| row.path).find(|path| inputs.has(path))
}

/// The service, and the proof of identity to it.
pub fn dps(
    inputs: &Inputs,
    transport: Transport,
    warnings: &mut Vec<Warning>,
) -> Result<(Place, Auth), ConfigError> {
    let (id_scope, endpoint) = (inputs.get(&row::id_scope)?, inputs.get(&row::endpoint)?);
    let registration_id = registration_id(inputs)?;
    let auth = auth(inputs, &registration_id, warnings)?;
    let dps = Dps {
        endpoint,
        port: inputs.get(&row::port)?.unwrap_or(transport.port()),
        id_scope,
        registration_id,
        payload: inputs.get(&row::payload)?,
        cache: inputs.get(&State::dir)?.join(CACHE),
    };
    Ok((Place::Assigned(dps), auth))
}

fn registration_id(inputs: &Inputs) -> Result<String, ConfigError> {
    let (key, file_key) = (row::registration_id.path, row::registration_id_file.path);
    let (id, file) = match (inputs.get(&row::registration_id)?, inputs.get(&row::registration_id_file)?) {
        (Some(id), None) => (id, None),
        (None, Some(file)) => {
            let text = content(&file, file_key)?;
            // The kernel ends the texts of a device tree with a zero byte.
            let id = text.lines().next().unwrap_or_default().trim_matches(['\0', ' ']).to_owned();
            (id, Some(file))
        }
        (None, None) => {
            return Err(inputs.wrong(&row::registration_id, "set, or cloud.dps.registration_id_file"));
        }
        (Some(_), Some(_)) => {
            return Err(ConfigError::Conflict(format!("{key} and {file_key} are both set; keep one")));
        }
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    let ends_well = id.bytes().last().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if id.len() <= ID_LIMIT && id.bytes().all(allowed) && ends_well {
        return Ok(id);
    }
    let expected = "an id of at most 128 letters, digits and -._: that ends in a letter, a digit or -";
    match file {
        Some(file) => {
            let problem = format!("is no good yet: it must hold {expected}");
            Err(ConfigError::Awaited { file, key: file_key.to_owned(), problem })
        }
        None => Err(inputs.wrong(&row::registration_id, expected)),
    }
}

fn auth(inputs: &Inputs, id: &str, warnings: &mut Vec<Warning>) -> Result<Auth, ConfigError> {
    let own = secret(inputs, &row::symmetric_key, &row::symmetric_key_file, warnings)?;
    let group = secret(inputs, &row::group_key, &row::group_key_file, warnings)?;
    match (own, group, certificate(inputs)?) {
        (Some((_, text)), None, (None, None)) => Ok(Auth::SharedKey(Secret::new(text))),
        (None, Some((bytes, _)), (None, None)) => Ok(Auth::SharedKey(derive(&bytes, id))),
        (None, None, (Some(certificate), Some(key))) => Ok(Auth::X509 { certificate, key }),
        _ => Err(ConfigError::Conflict(
            "[cloud.dps] needs exactly one way to log in: cloud.dps.symmetric_key, cloud.dps.group_key, or both \
             cloud.certificate_file and cloud.key_file"
                .to_owned(),
        )),
    }
}

/// A key, decoded and as text.
fn secret(
    inputs: &Inputs,
    key: &Setting<Option<Hidden>>,
    named: &Setting<Option<Absolute>>,
    warnings: &mut Vec<Warning>,
) -> Result<Option<(Vec<u8>, String)>, ConfigError> {
    let Some(secret) = credentials::secret(inputs, key, named, |_| true, warnings)? else { return Ok(None) };
    let text = secret.text.trim().to_owned();
    match BASE64.decode(text.as_bytes()) {
        Ok(bytes) => Ok(Some((bytes, text))),
        Err(_) => {
            let message = format!("{} in {} is not base64; copy it whole", key.path, secret.file.display());
            Err(secret.blamed(ConfigError::Conflict(message)))
        }
    }
}

/// The key of the member `id` of a group.
fn derive(group_key: &[u8], id: &str) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, group_key);
    Secret::new(BASE64.encode(hmac::sign(&key, id.as_bytes()).as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Key, id and result as in Microsoft's "How to use symmetric key attestation with enrollment groups".
    #[test]
    fn a_member_s_key_is_derived_as_microsoft_s_example_shows() {
        let group =
            "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";
        let key = BASE64.decode(group.as_bytes()).unwrap();
        let derived = derive(&key, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6");
        assert_eq!(derived.expose(), "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=");
    }
}
