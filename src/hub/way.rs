//! The way to a server of the hub: one TCP connection, through a proxy if there is one, over whichever of the
//! addresses answers first.

use std::net::SocketAddr;
use std::time::Duration;

use async_http_proxy::{HttpError, http_connect_tokio, http_connect_tokio_with_basic_auth};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::HubError;
use crate::config::{Cloud, Via};
use crate::reach::{self, Memory};

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
    let asked = async {
        match &via.login {
            None => http_connect_tokio(&mut stream, host, port).await,
            Some((user, password)) => {
                let (user, password) = (user.expose(), password.expose());
                http_connect_tokio_with_basic_auth(&mut stream, host, port, user, password).await
            }
        }
    };
    match timeout(REACHED_WITHIN, asked).await {
        Ok(Ok(())) => Ok(stream),
        Ok(Err(error)) => Err(refused(&error, proxy, format!("{host}:{port}"))),
        Err(_) => Err(HubError::ProxyUnreachable { proxy, cause: "it does not answer".to_owned() }),
    }
}

fn refused(error: &HttpError, proxy: String, address: String) -> HubError {
    match error {
        HttpError::HttpCode200(407) => HubError::ProxyLogin { proxy },
        HttpError::HttpCode200(status) => {
            HubError::ProxyRefused { proxy, address, cause: format!("status {status}") }
        }
        HttpError::IoError(error) => HubError::ProxyUnreachable { proxy, cause: error.to_string() },
        other => HubError::ProxyRefused { proxy, address, cause: super::error::bounded(&other.to_string()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_is_away_is_told_from_one_that_refuses() {
        let of = |error| refused(&error, "proxy:3128".into(), "hub:8883".into());
        let login = of(HttpError::HttpCode200(407));
        assert!(matches!(&login, HubError::ProxyLogin { proxy } if proxy == "proxy:3128"), "{login}");
        let refused = of(HttpError::HttpCode200(403));
        assert!(
            refused.to_string().contains("proxy:3128 does not connect to hub:8883 (status 403)"),
            "{refused}"
        );
        let away = of(HttpError::IoError(std::io::ErrorKind::ConnectionReset.into()));
        assert!(matches!(away, HubError::ProxyUnreachable { .. }), "{away}");
        assert!(!login.is_refusal() && !refused.is_refusal(), "the hub did not say it");
    }
}
