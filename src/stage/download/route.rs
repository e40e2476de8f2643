//! Which way leads to a server. A gateway that moves from one network to another keeps its connections, which then
//! are dead without knowing it: the address that they speak from is gone, or their packets leave by a way that no
//! longer leads there. So whoever waits on a silent connection looks whether a new one would speak from another
//! address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The server, and the address that this side speaks from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub remote: SocketAddr,
    source: IpAddr,
}

impl Route {
    /// The way that a connection to `remote` would take now; `None` if none leads there. Sends nothing: a UDP socket
    /// that is connected only asks the routing table.
    pub fn to(remote: SocketAddr) -> Option<Route> {
        let any: IpAddr = match remote {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(remote).ok()?;
        Some(Route { remote, source: socket.local_addr().ok()?.ip() })
    }

    /// Whether another way leads there now. A network that is only away may come back: that is no other way.
    pub fn moved(&self) -> bool {
        Route::to(self.remote).is_some_and(|now| now != *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_another_when_its_source_is() {
        let here = Route::to("127.0.0.1:9".parse().unwrap()).unwrap();
        assert_eq!(here.source, Ipv4Addr::LOCALHOST);
        assert!(!here.moved());
        assert!(Route { source: Ipv4Addr::new(192, 0, 2, 7).into(), ..here }.moved());
    }
}
