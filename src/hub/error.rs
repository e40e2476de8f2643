//! Why there is no session with the hub, in words for the person who has to restore it.

use std::io;

use rumqttc::{ConnectReturnCode, ConnectionError, StateError};

use crate::failure::{Code, Failure};
use crate::tls::TlsError;

/// Characters of a library's message that are passed on.
const CAUSE_LIMIT: usize = 200;

/// What ended a session or kept it from starting. No variant carries a secret.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("the device key is not base64: copy the connection string of the device again")]
    Key,
    #[error("no device id is set: copy the connection string of the device again")]
    NoIdentity,
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{address} cannot be reached ({cause}): check network, name resolution and port")]
    Unreachable { address: String, cause: String },
    #[error("{address} did not answer in time: check network, firewall and port")]
    Silent { address: String },
    #[error("the certificate of {address} is not trusted ({cause}): check the clock and cloud.ca_file")]
    Untrusted { address: String, cause: String },
    #[error(
        "the hub refused the credentials of {identity}: check its key or certificate, that it is enabled, and the clock"
    )]
    Refused { identity: String },
    #[error("the hub refused the connection of {identity} ({code}): it may be busy; trying again")]
    Unavailable { identity: String, code: String },
    #[error("the hub refused a subscription of {identity}: check that it is allowed to connect as a device")]
    Subscription { identity: String },
    #[error("the connection to {address} broke ({cause}); connecting again")]
    Broken { address: String, cause: String },
    #[error(
        "the hub refused to show the twin (status {status}): check that the identity exists and is enabled"
    )]
    TwinRefused { status: u16 },
    #[error("the hub sent a twin that cannot be read ({cause}); asking again")]
    TwinMalformed { cause: String },
    #[error("the hub left a request for the twin unanswered; connecting again")]
    TwinSilent,
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Failure {
        match error {
            HubError::Tls(error) => error.into(),
            HubError::Key | HubError::NoIdentity => Failure::new(Code::NotReady, error.to_string()),
            _ => Failure::new(Code::CloudUnreachable, error.to_string()),
        }
    }
}

impl HubError {
    /// What the MQTT client says, by what a person can do about it. `connected`: a session existed before.
    pub(super) fn of(error: ConnectionError, address: &str, identity: &str, connected: bool) -> HubError {
        let address = address.to_owned();
        let identity = identity.to_owned();
        match error {
            ConnectionError::ConnectionRefused(
                ConnectReturnCode::NotAuthorized | ConnectReturnCode::BadUserNamePassword,
            ) => HubError::Refused { identity },
            ConnectionError::ConnectionRefused(code) => {
                HubError::Unavailable { identity, code: format!("{code:?}") }
            }
            ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => HubError::Silent { address },
            ConnectionError::MqttState(StateError::AwaitPingResp) => HubError::Silent { address },
            other => {
                // A packet that was not expected is shown whole, and may be large.
                let cause = other.to_string().chars().take(CAUSE_LIMIT).collect();
                match certificate_error(other) {
                    Some(cause) => HubError::Untrusted { address, cause },
                    None if connected => HubError::Broken { address, cause },
                    None => HubError::Unreachable { address, cause },
                }
            }
        }
    }
}

/// The verdict on the server's certificate, if that is what the I/O error wraps.
fn certificate_error(error: ConnectionError) -> Option<String> {
    let io: io::Error = match error {
        ConnectionError::Io(io) | ConnectionError::Tls(rumqttc::TlsError::Io(io)) => io,
        _ => return None,
    };
    let inner = io.get_ref()?.downcast_ref::<rustls::Error>()?;
    matches!(inner, rustls::Error::InvalidCertificate(_)).then(|| inner.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: ConnectionError) -> HubError {
        HubError::of(error, "hub:8883", "dev-1", false)
    }

    #[test]
    fn refusals_and_silence_are_told_apart() {
        let refused = ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized);
        assert!(matches!(of(refused), HubError::Refused { .. }));
        let busy = ConnectionError::ConnectionRefused(ConnectReturnCode::ServiceUnavailable);
        assert!(matches!(of(busy), HubError::Unavailable { .. }));
        assert!(matches!(of(ConnectionError::NetworkTimeout), HubError::Silent { .. }));
        let refused = ConnectionError::Io(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert!(matches!(of(refused), HubError::Unreachable { .. }));
    }

    #[test]
    fn a_bad_certificate_is_named_and_maps_to_an_unreachable_cloud() {
        let verdict = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let error = of(ConnectionError::Io(io::Error::new(io::ErrorKind::InvalidData, verdict)));
        assert!(matches!(error, HubError::Untrusted { .. }), "{error}");
        assert_eq!(Failure::from(error).code, Code::CloudUnreachable);
    }
}
