//! Why there is no session with the hub, in words for the person who has to restore it.

use std::net::SocketAddr;

use rumqttc::{ConnectReturnCode, ConnectionError, StateError};
use rustls::AlertDescription::{HandshakeFailure, InsufficientSecurity, ProtocolVersion};

use crate::cause;
use crate::clock::Clock;
use crate::failure::{Code, Failure};
use crate::tls::{self, TlsError, Verdict};

/// Characters of a library's message that are passed on.
const CAUSE_LIMIT: usize = 200;

/// Who is called, by whom, and through what: kept beside each connection, so that every error can name both.
#[derive(Debug, Clone)]
pub(super) struct Contact {
    /// `host:port`
    pub address: String,
    /// The MQTT client id.
    pub identity: String,
    /// What the connection leads to: the hub, or the proxy on the way to it.
    pub remote: Option<SocketAddr>,
}

/// What ended a session or kept it from starting. No variant carries a secret.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("the device key is not base64: copy the connection string of the device again")]
    Key,
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(
        "the proxy {proxy} cannot be reached ({cause}): check cloud.proxy or HTTPS_PROXY, and the network"
    )]
    ProxyUnreachable { proxy: String, cause: String },
    #[error("the proxy {proxy} wants a user and password that it knows (407): set them in cloud.proxy")]
    ProxyLogin { proxy: String },
    #[error("the proxy {proxy} does not connect to {address} ({cause}): have it allow this host and port")]
    ProxyRefused { proxy: String, address: String, cause: String },
    #[error("{address} cannot be reached ({cause}): check network, name resolution and port")]
    Unreachable { address: String, cause: String },
    #[error("{address} did not answer in time: check network, firewall and port")]
    Silent { address: String },
    #[error("the certificate of {address} {verdict}")]
    Untrusted { address: String, verdict: Verdict },
    #[error(
        "{address} speaks no TLS that this agent speaks ({cause}): it needs TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM; \
         check the host, and whether something on the way (a proxy that opens TLS) answers in its place"
    )]
    NoCommonTls { address: String, cause: String },
    #[error("{address} told no time ({cause}): the clock stays as it is until a time service sets it")]
    NoTime { address: String, cause: String },
    #[error("{address} refused this gateway's own certificate as {why}")]
    OwnCertificate { address: String, why: &'static str },
    #[error(
        "the hub refused the credentials of {identity}: check its key or certificate, that it is enabled, and the clock"
    )]
    Refused { identity: String },
    #[error(
        "the provisioning service refused the credentials of {registration}: check ID scope, registration id, key or \
         certificate, that the enrollment exists and is enabled, and the clock"
    )]
    DpsRefused { registration: String },
    #[error("the provisioning service assigned no hub to {registration} ({reason}): check its enrollment")]
    NotAssigned { registration: String, reason: String },
    #[error("the provisioning service's answer cannot be read ({cause}); asking again")]
    DpsMalformed { cause: String },
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
    #[error("{0}; connecting again")]
    Fault(String),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Failure {
        match error {
            HubError::Tls(error) => error.into(),
            HubError::Key => Failure::new(Code::NotReady, error.to_string()),
            HubError::Fault(why) => Failure::new(Code::Internal, why),
            _ => Failure::new(Code::CloudUnreachable, error.to_string()),
        }
    }
}

impl HubError {
    /// What the MQTT client says, by what a person can do about it. `connected`: a session existed before.
    pub(super) fn of(error: ConnectionError, contact: &Contact, connected: bool, clock: &Clock) -> HubError {
        let Contact { address, identity, .. } = contact.clone();
        match error {
            ConnectionError::ConnectionRefused(
                ConnectReturnCode::NotAuthorized | ConnectReturnCode::BadUserNamePassword,
            ) => HubError::Refused { identity },
            ConnectionError::ConnectionRefused(code) => {
                HubError::Unavailable { identity, code: format!("{code:?}") }
            }
            ConnectionError::NetworkTimeout
            | ConnectionError::FlushTimeout
            | ConnectionError::MqttState(StateError::AwaitPingResp) => HubError::Silent { address },
            other => {
                // A packet that was not expected is shown whole, and may be large.
                let cause = bounded(&other.to_string());
                match cause::find(&other) {
                    Some(rustls::Error::InvalidCertificate(fault)) => {
                        HubError::Untrusted { address, verdict: Verdict::new(fault, clock) }
                    }
                    Some(rustls::Error::AlertReceived(alert)) if tls::own_certificate(*alert).is_some() => {
                        let why = tls::own_certificate(*alert).unwrap_or_default();
                        HubError::OwnCertificate { address, why }
                    }
                    Some(
                        rustls::Error::PeerIncompatible(_)
                        | rustls::Error::AlertReceived(
                            HandshakeFailure | ProtocolVersion | InsufficientSecurity,
                        ),
                    ) => HubError::NoCommonTls { address, cause },
                    _ if connected => HubError::Broken { address, cause },
                    _ => HubError::Unreachable { address, cause },
                }
            }
        }
    }

    /// The same for the provisioning service.
    pub(super) fn of_service(
        error: ConnectionError,
        contact: &Contact,
        connected: bool,
        clock: &Clock,
    ) -> HubError {
        match HubError::of(error, contact, connected, clock) {
            HubError::Refused { identity } => HubError::DpsRefused { registration: identity },
            other => other,
        }
    }

    /// The same for every attempt that fails for the same reason, while its sentence tells the time.
    pub(super) fn reason(&self) -> String {
        match self {
            HubError::Untrusted { address, verdict } => format!("{address} {}", verdict.reason()),
            HubError::NoTime { address, .. } => format!("no time from {address}"),
            other => other.to_string(),
        }
    }

    /// A wrong clock may be the cause.
    pub(super) fn may_be_the_clock(&self) -> bool {
        match self {
            HubError::Untrusted { verdict, .. } => verdict.is_of_time(),
            HubError::Refused { .. } | HubError::DpsRefused { .. } => true,
            _ => false,
        }
    }

    /// This gateway's credentials were refused.
    pub(super) fn is_denial(&self) -> bool {
        matches!(
            self,
            HubError::Refused { .. } | HubError::DpsRefused { .. } | HubError::OwnCertificate { .. }
        )
    }

    /// The other side said no, as opposed to not being there.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            HubError::Refused { .. } | HubError::DpsRefused { .. } | HubError::NotAssigned { .. } => true,
            HubError::TwinRefused { status } => matches!(status, 401 | 403 | 404),
            _ => false,
        }
    }
}

/// A library's words, as many as are passed on.
pub(super) fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(CAUSE_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn of(error: ConnectionError) -> HubError {
        let contact = Contact { address: "hub:8883".into(), identity: "dev-1".into(), remote: None };
        HubError::of(error, &contact, false, &Clock::default())
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
