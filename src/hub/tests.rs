//! Hubs, provisioning services and proxies with several addresses, some of which lead nowhere: real sockets, and a
//! name that leads to them by an `/etc/hosts` of the test's own, which needs root. Without it, the tests say so and
//! pass over.

use std::net::SocketAddr;

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::connection::testing::{Agent, twin};
use super::testing::{Pair, Server, soon};
use crate::clock::Clock;
use crate::config::{Cloud, Dps, Place, Proxy, Seat, Transport};
use crate::reach::testing::{Swallower, with_two_addresses};

const NAME: &str = "hub.test";

async fn server() -> Server {
    Server::at("127.0.0.2:0", &Pair::new(NAME, 2020), &[]).await
}

/// The server, by the name with two addresses.
fn cloud(server: &Server) -> Cloud {
    let mut cloud = server.cloud();
    if let Place::Known(Seat { gateway, .. }) = &mut cloud.place {
        *gateway = Some(NAME.into());
    }
    cloud
}

/// The address that is tried first.
fn first(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn a_hub_whose_first_address_swallows_packets_is_reached_by_mqtt_and_by_websocket() {
    with_two_addresses(NAME, || async {
        for transport in [Transport::Mqtt, Transport::WebSocket] {
            let server = server().await;
            let _swallower = Swallower::at(first(server.port())).await;
            let mut agent = Agent::start(Cloud { transport, ..cloud(&server) }, json!({}));
            let mut hub = server.accept().await;
            if transport == Transport::Mqtt {
                hub.welcome(&twin(json!({}), json!({}))).await;
                agent.connected().await;
            }
        }
    });
}

#[test]
fn a_provisioning_service_and_a_proxy_whose_first_addresses_swallow_packets_are_reached() {
    with_two_addresses(NAME, || async {
        let server = server().await;
        let _swallower = Swallower::at(first(server.port())).await;
        let dps = Dps {
            endpoint: NAME.into(),
            port: server.port(),
            id_scope: "0ne1".into(),
            registration_id: "gw-1".into(),
            payload: None,
            cache: server.path("assigned.json"),
        };
        let _agent = Agent::start(Cloud { place: Place::Assigned(dps), ..cloud(&server) }, json!({}));
        server.accept().await;

        let proxy = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let port = proxy.local_addr().unwrap().port();
        let _swallower = Swallower::at(first(port)).await;
        let way = Proxy::new(&format!("http://{NAME}:{port}"), [String::new()]).unwrap();
        let _agent = Agent::start(Cloud { proxy: way, ..cloud(&server) }, json!({}));
        let (mut asked, _) = soon(proxy.accept()).await.unwrap();
        let mut request = [0; 8];
        soon(asked.read_exact(&mut request)).await.unwrap();
        assert_eq!(&request, b"CONNECT ");
    });
}

#[test]
fn an_address_that_takes_connections_and_is_of_no_use_comes_last_the_next_time() {
    with_two_addresses(NAME, || async {
        let server = server().await;
        let broken = TcpListener::bind(first(server.port())).await.unwrap();
        let mut agent = Agent::start(cloud(&server), json!({}));
        drop(soon(broken.accept()).await.unwrap());
        let mut hub = server.accept().await;
        hub.welcome(&twin(json!({}), json!({}))).await;
        assert!(agent.disconnected().await.contains("cannot be reached"));
        agent.connected().await;
    });
}

#[test]
fn the_message_names_every_address_and_what_it_did() {
    with_two_addresses(NAME, || async {
        let server = server().await;
        let cloud = cloud(&server);
        let port = server.port();
        let _files = server.close();
        let mut agent = Agent::at(cloud, json!({}), Clock::default(), 16);
        let reason = agent.disconnected().await;
        assert!(reason.contains(&format!("{NAME}:{port} cannot be reached")), "{reason}");
        for address in ["127.0.0.1: Connection refused", "127.0.0.2: Connection refused"] {
            assert!(reason.contains(address), "{reason}");
        }
    });
}
