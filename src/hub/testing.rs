//! A hub with no will of its own: a TLS server on loopback that speaks MQTT as each test scripts it.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::Error as MqttError;
use rumqttc::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, QoS, SubAck, SubscribeReasonCode,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{Auth, Cloud, Place, Proxy, Seat, Secret, TimeServer, Transport};

/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it did not happen in time")
}

/// A self-signed certificate for `name`, and its key.
pub struct Pair {
    pub certificate: rcgen::Certificate,
    pub key: rcgen::KeyPair,
}

impl Pair {
    /// Valid from the start of the given year on.
    pub fn new(name: &str, from_year: i32) -> Pair {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from_year, 1, 1);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Pair { certificate, key }
    }
}

pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    pub dir: tempfile::TempDir,
}

impl Server {
    pub async fn start() -> Server {
        Server::with(&Pair::new("localhost", 2020), &[]).await
    }

    /// A server that asks for a certificate if `clients` names any, and then speaks TLS 1.2 alone, so that the
    /// tests see both versions.
    pub async fn with(pair: &Pair, clients: &[&Pair]) -> Server {
        Server::at("127.0.0.1:0", pair, clients).await
    }

    pub async fn at(address: &str, pair: &Pair, clients: &[&Pair]) -> Server {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let version = if clients.is_empty() { &rustls::version::TLS13 } else { &rustls::version::TLS12 };
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[version]).unwrap();
        let builder = if clients.is_empty() {
            builder.with_no_client_auth()
        } else {
            let mut roots = rustls::RootCertStore::empty();
            clients.iter().for_each(|client| roots.add(client.certificate.der().clone()).unwrap());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.key.serialize_der()));
        let config = builder.with_single_cert(vec![pair.certificate.der().clone()], key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), pair.certificate.pem()).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        Server { listener, acceptor: TlsAcceptor::from(Arc::new(config)), dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// Device `dev-1` of hub `myhub.azure-devices.net`, which is reached here.
    pub fn cloud(&self) -> Cloud {
        Cloud {
            secrets: Vec::new(),
            key_device: None,
            place: Place::Known(Seat {
                host: "myhub.azure-devices.net".into(),
                gateway: Some("localhost".into()),
                device_id: "dev-1".into(),
                module_id: None,
            }),
            transport: Transport::Mqtt,
            port: self.port(),
            proxy: Proxy::default(),
            auth: Auth::SharedKey(Secret::new("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")),
            roots: crate::config::Roots::with(Some(self.path("ca.pem"))),
            keep_alive: Duration::from_secs(60),
            token_ttl: Duration::from_secs(3600),
            reconnect: crate::config::Reconnect {
                first: Duration::from_secs(1),
                longest: Duration::from_secs(1),
            },
            time_server: TimeServer::Nobody,
        }
    }

    /// From now on nobody listens; what it made on disk stays.
    pub fn close(self) -> tempfile::TempDir {
        self.dir
    }

    pub async fn accept(&self) -> Peer {
        soon(self.try_accept()).await.expect("the handshake failed")
    }

    pub async fn try_accept(&self) -> std::io::Result<Peer> {
        let (stream, _) = self.listener.accept().await?;
        let stream = self.acceptor.accept(stream).await?;
        Ok(Peer { stream, buffer: BytesMut::new() })
    }
}

/// The server's end of one connection.
pub struct Peer {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
}

/// What the device published.
#[derive(Debug)]
pub struct Published {
    pub topic: String,
    pub body: Value,
}

impl Published {
    pub fn rid(&self) -> &str {
        self.topic.split_once("$rid=").unwrap().1
    }
}

impl Peer {
    /// The device's certificate.
    pub fn certificate(&self) -> &[u8] {
        &self.stream.get_ref().1.peer_certificates().unwrap()[0]
    }

    /// `None`: the device closed the connection.
    pub async fn read(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.buffer, 1 << 20) {
                Ok(packet) => return Some(packet),
                Err(MqttError::InsufficientBytes(_)) => {}
                Err(error) => panic!("the device sent nonsense: {error}"),
            }
            match soon(self.stream.read_buf(&mut self.buffer)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Reads a request's head as HTTP has it, answers with these bytes, and closes.
    pub async fn answer_request(mut self, answer: &[u8]) {
        while !self.buffer.ends_with(b"\r\n\r\n") {
            assert_ne!(soon(self.stream.read_buf(&mut self.buffer)).await.unwrap(), 0);
        }
        // Whoever has heard enough does not listen to the end.
        let sent = self.stream.write_all(answer).await.is_ok() && self.stream.shutdown().await.is_ok();
        tracing::debug!(sent, "answered");
    }

    pub async fn write(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, 1 << 20).unwrap();
        soon(self.stream.write_all(&bytes)).await.unwrap();
        soon(self.stream.flush()).await.unwrap();
    }

    pub async fn connack(&mut self, code: ConnectReturnCode, session_present: bool) -> Connect {
        let Some(Packet::Connect(connect)) = self.read().await else { panic!("no CONNECT") };
        self.write(Packet::ConnAck(ConnAck { session_present, code })).await;
        connect
    }

    /// Grants (or refuses) three subscriptions, and returns their filters.
    pub async fn suback(&mut self, code: SubscribeReasonCode) -> Vec<String> {
        let mut filters = Vec::new();
        while filters.len() < 3 {
            let Some(Packet::Subscribe(packet)) = self.read().await else { panic!("no SUBSCRIBE") };
            filters.extend(packet.filters.into_iter().map(|filter| filter.path));
            self.write(Packet::SubAck(SubAck { pkid: packet.pkid, return_codes: vec![code] })).await;
        }
        filters
    }

    /// The next publish, acknowledged on the MQTT level.
    pub async fn published(&mut self) -> Published {
        let Some(Packet::Publish(packet)) = self.read().await else { panic!("no PUBLISH") };
        assert_eq!(packet.qos, QoS::AtLeastOnce);
        self.write(Packet::PubAck(PubAck { pkid: packet.pkid })).await;
        let body = if packet.payload.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&packet.payload).unwrap()
        };
        Published { topic: packet.topic, body }
    }

    pub async fn publish(&mut self, topic: &str, body: &[u8]) {
        self.write(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body))).await;
    }

    /// Expects a request for the twin and answers it.
    pub async fn show_twin(&mut self, twin: &Value) {
        let request = self.published().await;
        assert!(request.topic.starts_with("$iothub/twin/GET/?$rid="), "{}", request.topic);
        let answer = format!("$iothub/twin/res/200/?$rid={}", request.rid());
        self.publish(&answer, twin.to_string().as_bytes()).await;
    }

    /// Expects a patch of the reported properties; does not answer it.
    pub async fn patch(&mut self) -> Published {
        let patch = self.published().await;
        assert!(patch.topic.starts_with("$iothub/twin/PATCH/properties/reported/?$rid="), "{}", patch.topic);
        patch
    }

    pub async fn answer(&mut self, request: &Published, status: u16) {
        let topic = format!("$iothub/twin/res/{status}/?$rid={}&$version=2", request.rid());
        self.publish(&topic, b"").await;
    }

    /// Everything up to the answer to the request for the twin.
    pub async fn welcome(&mut self, twin: &Value) -> Connect {
        let connect = self.connack(ConnectReturnCode::Success, true).await;
        self.suback(SubscribeReasonCode::Success(QoS::AtLeastOnce)).await;
        self.show_twin(twin).await;
        connect
    }
}
