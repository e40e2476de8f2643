//! Shared access signatures: a short-lived proof that we hold the device's key, without sending it.
//!
//! Format: Microsoft's "Control access to IoT Hub by using shared access signatures". The resource is signed
//! exactly as it stands in the token, percent-encoded.

use data_encoding::BASE64;
use percent_encoding::utf8_percent_encode;
use ring::hmac;

use super::error::HubError;
use super::identity::ENCODED;
use crate::config::Secret;

/// The token for `resource`, valid until `expires` (Unix seconds). `key` is the device's key in base64.
pub(super) fn token(resource: &str, key: &Secret, expires: i64) -> Result<Secret, HubError> {
    let key = BASE64.decode(key.expose().trim().as_bytes()).map_err(|_| HubError::Key)?;
    let resource = utf8_percent_encode(resource, ENCODED);
    let signed = format!("{resource}\n{expires}");
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), signed.as_bytes());
    let signature = BASE64.encode(signature.as_ref());
    let signature = utf8_percent_encode(&signature, ENCODED);
    Ok(Secret::new(format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires}")))
}

/// The token of a service policy, for the hub's REST. `host` is the connection string's `HostName`, with its
/// port if it has one; the policy's name goes along, since the hub needs it to find the key.
pub fn service_token(host: &str, policy: &str, key: &Secret, expires: i64) -> Result<Secret, HubError> {
    Ok(with_policy(&token(host, key, expires)?, policy))
}

/// The token, with the name of the policy whose key signed it.
pub(super) fn with_policy(token: &Secret, policy: &str) -> Secret {
    let policy = utf8_percent_encode(policy, ENCODED);
    Secret::new(format!("{}&skn={policy}", token.expose()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_vector_is_reproduced() {
        let key = Secret::new("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
        let token = token("myhub.azure-devices.net/devices/dev-1", &key, 1_700_000_000).unwrap();
        assert_eq!(
            token.expose(),
            "SharedAccessSignature sr=myhub.azure-devices.net%2Fdevices%2Fdev-1\
             &sig=l7%2Fu96NiMH3c2q8ND0vSv7AgtbSZO7bj2kWfUIF7ugw%3D&se=1700000000"
        );
    }

    #[test]
    fn a_service_token_names_its_policy_and_signs_the_port() {
        let key = Secret::new("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
        let made = service_token("localhost:8443", "iothubowner", &key, 1_700_000_000).unwrap();
        assert!(made.expose().starts_with("SharedAccessSignature sr=localhost%3A8443&sig="));
        assert!(made.expose().ends_with("&se=1700000000&skn=iothubowner"));
    }

    #[test]
    fn a_key_that_is_not_base64_is_an_error_that_does_not_show_it() {
        let error = token("h/devices/d", &Secret::new("se cret!"), 1).unwrap_err();
        assert!(matches!(error, HubError::Key));
        assert!(!error.to_string().contains("cret!"));
    }
}
