//! What one connection needs, made anew for each: address, way, proxy, certificates, roots, token.
//!
//! Files are read here and nowhere else, so that whatever was renewed on disk counts from the next connection on.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::{MqttOptions, TlsConfiguration};

use super::error::{Contact, HubError};
use super::relay::{self, Relay};
use super::{sas, way};
use crate::clock::Clock;
use crate::config::{Auth, Cloud, Secret, Transport};
use crate::reach::Memory;
use crate::tls;

/// A twin of 32 KB desired and 32 KB reported properties may be far longer as JSON text; methods carry 128 KB.
const PACKET_LIMIT: usize = 512 * 1024;
/// Where IoT Hub and the provisioning service speak MQTT over WebSocket. Without this query they ask for a certificate
/// by a renegotiation of TLS 1.2, which rustls does not do; the settings admit no certificates on this way.
const WEBSOCKET_PATH: &str = "/$iothub/websocket?iothub-no-client-cert=true";

/// What the CONNECT of a session carries, and where it goes.
pub(super) struct Connect<'a> {
    pub host: &'a str,
    pub port: u16,
    pub client_id: String,
    pub user_name: String,
    /// Empty with a certificate: the user name then travels alone.
    pub password: String,
}

/// Connects, and makes the MQTT client's options; certificates are judged by `clock`. The client keeps its session;
/// whoever does not want that changes it.
pub(super) async fn dial(
    cloud: &Cloud,
    connect: Connect<'_>,
    clock: &Clock,
    memory: &Memory,
) -> Result<(MqttOptions, Contact, Relay), HubError> {
    let address = format!("{}:{}", connect.host, connect.port);
    let tls = TlsConfiguration::Rustls(Arc::new(tls_config(cloud, &address, clock).await?));
    let (stream, remote) = way::connect(cloud, connect.host, connect.port, memory).await?;
    let (proxy, relay) = relay::offer(stream)
        .await
        .map_err(|why| HubError::Unreachable { address: address.clone(), cause: why.to_string() })?;
    let contact = Contact { address, identity: connect.client_id.clone(), remote };
    let (host, transport) = match cloud.transport {
        Transport::Mqtt => (connect.host.to_owned(), rumqttc::Transport::tls_with_config(tls)),
        Transport::WebSocket => {
            let url = format!("wss://{}{WEBSOCKET_PATH}", contact.address);
            (url, rumqttc::Transport::wss_with_config(tls))
        }
    };
    let mut options = MqttOptions::new(connect.client_id, host, connect.port);
    options.set_transport(transport);
    options.set_credentials(connect.user_name, connect.password);
    options.set_clean_session(false);
    options.set_max_packet_size(PACKET_LIMIT, PACKET_LIMIT);
    options.set_keep_alive(cloud.keep_alive);
    options.set_manual_acks(true);
    options.set_proxy(proxy);
    Ok((options, contact, relay))
}

/// The token for `resource`; `None` with a certificate.
pub(super) fn token(cloud: &Cloud, resource: &str, clock: &Clock) -> Result<Option<Secret>, HubError> {
    let (Auth::SharedKey(key), Some(life)) = (&cloud.auth, token_life(cloud)) else { return Ok(None) };
    let life = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
    // Whole seconds: begun ones count, or the token would end before its time.
    sas::token(resource, key, clock.now().unix_timestamp().saturating_add(1).saturating_add(life)).map(Some)
}

/// `None`: there is no token.
pub(super) fn token_life(cloud: &Cloud) -> Option<Duration> {
    match cloud.auth {
        Auth::SharedKey(_) => Some(cloud.token_ttl.max(Duration::from_secs(1))),
        Auth::X509 { .. } => None,
    }
}

async fn tls_config(cloud: &Cloud, address: &str, clock: &Clock) -> Result<rustls::ClientConfig, HubError> {
    let (roots, auth, clock) = (cloud.roots.clone(), cloud.auth.clone(), clock.clone());
    let made = tokio::task::spawn_blocking(move || {
        let pair = match &auth {
            Auth::X509 { certificate, key } => Some((certificate.as_path(), key)),
            Auth::SharedKey(_) => None,
        };
        tls::client_config(&roots, pair, &clock)
    });
    match made.await {
        Ok(config) => Ok(config?),
        Err(error) => Err(HubError::Unreachable { address: address.to_owned(), cause: error.to_string() }),
    }
}
