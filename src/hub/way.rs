//! The way to a server of the hub: one TCP connection, through a proxy if there is one, over whichever of the
//! addresses answers first.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::HubError;
use crate::config::{Cloud, Via};
use crate::reach::{self, Memory};
use crate::tunnel::{self, TunnelError};

/// For name resolution, TCP, and the proxy's answer, each.
const REACHED_WITHIN: Duration = Duration::from_secs(30);

/// A connection to `host`, and the address that it leads to: the proxy's, if there is one.
pub(super) async fn connect(
    cloud: &Cloud,
    host: &str,
    port: u16,
    memory: &Memory,
) -> Result<(TcpStream, Option<SocketAddr>), HubError> {
    let address = format!("{host}:{port}");
    let stream = match cloud.proxy.to(host, port) {
        None => reach::connect(host, port, REACHED_WITHIN, memory)
            .await
            .map_err(|why| HubError::Unreachable { address, cause: why.to_string() })?,
        Some(via) => through(via, host, port, memory).await?,
    };
    let remote = stream.peer_addr().ok();
    Ok((stream, remote))
}

async fn through(via: &Via, host: &str, port: u16, memory: &Memory) -> Result<TcpStream, HubError> {
    let proxy = via.address();
    let reached = reach::connect(&via.host, via.port, REACHED_WITHIN, memory).await;
    let mut stream =
        reached.map_err(|why| HubError::ProxyUnreachable { proxy: proxy.clone(), cause: why.to_string() })?;
    let address = format!("{host}:{port}");
    match timeout(REACHED_WITHIN, tunnel::open(&mut stream, via, host, port)).await {
        Ok(Ok(())) => Ok(stream),
        Ok(Err(TunnelError::Login)) => Err(HubError::ProxyLogin { proxy }),
        Ok(Err(TunnelError::Broken(why))) => {
            Err(HubError::ProxyUnreachable { proxy, cause: why.to_string() })
        }
        Ok(Err(TunnelError::Refused(status))) => {
            Err(HubError::ProxyRefused { proxy, address, cause: format!("status {status}") })
        }
        Ok(Err(TunnelError::NoHttp)) => {
            Err(HubError::ProxyRefused { proxy, address, cause: "it speaks no HTTP".to_owned() })
        }
        Err(_) => Err(HubError::ProxyUnreachable { proxy, cause: "it does not answer".to_owned() }),
    }
}
