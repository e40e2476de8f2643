//! The section `[cloud.dps]`: how the Device Provisioning Service is asked where the gateway belongs.
//!
//! A group's key never leaves this file: the device's own key is derived from it here, as Microsoft's "Symmetric key
//! attestation" describes, and is all that the agent keeps in memory.

use data_encoding::BASE64;
use ring::hmac;

use super::error::{ConfigError, Warning};
use super::inputs::Inputs;
use super::load::needed;
use super::{Auth, Dps, Place, Secret, Transport, cloud, connection};

/// In the state folder: what the service assigned.
const CACHE: &str = "assigned.json";
/// Longest registration id, in bytes.
const ID_LIMIT: usize = 128;
/// Largest payload that the service takes.
const PAYLOAD_LIMIT: usize = 64 * 1024;

/// The keys that call for the service when they are set.
const KEYS: [&str; 8] = [
    "cloud.dps.id_scope",
    "cloud.dps.registration_id",
    "cloud.dps.registration_id_file",
    "cloud.dps.symmetric_key",
    "cloud.dps.symmetric_key_file",
    "cloud.dps.group_key",
    "cloud.dps.group_key_file",
    "cloud.dps.payload",
];

/// The first key that calls for the service.
pub fn is_set(inputs: &Inputs) -> Option<&'static str> {
    KEYS.into_iter().find(|key| inputs.has(key))
}

/// The service, and the proof of identity to it.
pub fn dps(
    inputs: &Inputs,
    transport: Transport,
    warnings: &mut Vec<Warning>,
) -> Result<(Place, Auth), ConfigError> {
    let id_scope = needed(inputs.text("cloud.dps.id_scope")?, inputs, "cloud.dps.id_scope")?;
    if !id_scope.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(inputs.wrong("cloud.dps.id_scope", "an ID scope such as \"0ne0012ABCD\""));
    }
    let endpoint = needed(inputs.text("cloud.dps.endpoint")?, inputs, "cloud.dps.endpoint")?;
    if !connection::is_host(&endpoint) {
        return Err(inputs.wrong("cloud.dps.endpoint", "a host name without scheme and port"));
    }
    let registration_id = registration_id(inputs)?;
    let auth = auth(inputs, &registration_id, warnings)?;
    let dps = Dps {
        endpoint,
        port: cloud::port(inputs, "cloud.dps.port", transport)?,
        id_scope,
        registration_id,
        payload: payload(inputs)?,
        cache: inputs.need_path("state.dir")?.join(CACHE),
    };
    Ok((Place::Assigned(dps), auth))
}

fn registration_id(inputs: &Inputs) -> Result<String, ConfigError> {
    let (key, file_key) = ("cloud.dps.registration_id", "cloud.dps.registration_id_file");
    let (id, named, file) = match (inputs.text(key)?, inputs.path(file_key)?) {
        (Some(id), None) => (id, key, None),
        (None, Some(file)) => {
            let text = cloud::content(&file, file_key)?;
            // The kernel ends the texts of a device tree with a zero byte.
            let id = text.lines().next().unwrap_or_default().trim_matches(['\0', ' ']).to_owned();
            (id, file_key, Some(file))
        }
        (None, None) => return Err(inputs.wrong(key, "set, or cloud.dps.registration_id_file")),
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
            Err(ConfigError::Awaited { file, key: named.to_owned(), problem })
        }
        None => Err(inputs.wrong(named, expected)),
    }
}

fn auth(inputs: &Inputs, id: &str, warnings: &mut Vec<Warning>) -> Result<Auth, ConfigError> {
    let own = secret(inputs, "cloud.dps.symmetric_key", warnings)?;
    let group = secret(inputs, "cloud.dps.group_key", warnings)?;
    match (own, group, cloud::certificate(inputs)?) {
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
    path: &str,
    warnings: &mut Vec<Warning>,
) -> Result<Option<(Vec<u8>, String)>, ConfigError> {
    let Some(secret) = cloud::secret(inputs, path, |_| true, warnings)? else { return Ok(None) };
    let text = secret.text.trim().to_owned();
    match BASE64.decode(text.as_bytes()) {
        Ok(bytes) => Ok(Some((bytes, text))),
        Err(_) => {
            let file = secret.file.display();
            let message = format!("{path} in {file} is not base64; copy it whole");
            Err(secret.blamed(ConfigError::Conflict(message)))
        }
    }
}

/// The key of the member `id` of a group.
fn derive(group_key: &[u8], id: &str) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, group_key);
    Secret::new(BASE64.encode(hmac::sign(&key, id.as_bytes()).as_ref()))
}

fn payload(inputs: &Inputs) -> Result<Option<serde_json::Value>, ConfigError> {
    let path = "cloud.dps.payload";
    let Some(text) = inputs.text(path)? else { return Ok(None) };
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(value) if value.is_object() && text.len() <= PAYLOAD_LIMIT => Ok(Some(value)),
        _ => Err(inputs.wrong(path, "a text that is a JSON object of at most 64 KiB")),
    }
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
