//! A hub for one test, and a bare MQTT client that can also break the rules.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use fwupdate_hub::{Hub, Options, auth};
use mqttbytes::v4::{
    self, Connect, ConnectReturnCode, Disconnect, Packet, PingReq, PubAck, Publish, SubAck, Subscribe,
    Unsubscribe,
};
use mqttbytes::{Error, QoS};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

pub const PATIENCE: Duration = Duration::from_secs(10);
pub const TWIN_ANSWERS: &str = "$iothub/twin/res/#";
pub const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
pub const METHODS: &str = "$iothub/methods/POST/#";

/// A hub in a folder of its own, with the devices `d` and `e`.
pub struct Site {
    pub hub: Hub,
    pub folder: TempDir,
}

impl Site {
    pub async fn new() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let hub = Site::start(&folder).await;
        hub.add_device("d").unwrap();
        hub.add_device("e").unwrap();
        Site { hub, folder }
    }

    async fn start(folder: &TempDir) -> Hub {
        let www = folder.path().join("www");
        std::fs::create_dir_all(&www).unwrap();
        let options = Options { www: Some(www), ..Options::ephemeral(folder.path().join("hub")) };
        Hub::start(options).await.unwrap()
    }

    pub async fn restart(self) -> Site {
        self.hub.stop().await;
        Site { hub: Site::start(&self.folder).await, folder: self.folder }
    }

    pub fn key(&self, id: &str) -> String {
        let text = self.hub.device_connection_string(id).unwrap();
        text.split_once("SharedAccessKey=").unwrap().1.to_owned()
    }

    pub fn token(&self, id: &str, lifetime: u64) -> String {
        auth::sign(&format!("localhost/devices/{id}"), &self.key(id), now() + lifetime, None).unwrap()
    }

    /// A CONNECT that is right for `id`, to be spoilt by a test.
    pub fn login(&self, id: &str) -> Connect {
        let mut connect = Connect::new(id);
        connect.clean_session = false;
        connect.keep_alive = 60;
        connect.set_login(format!("localhost/{id}/?api-version=2021-04-12"), self.token(id, 3600));
        connect
    }

    pub async fn dial(&self) -> Client<tokio_rustls::client::TlsStream<TcpStream>> {
        self.dial_as(None).await
    }

    /// With a client certificate (PEM of its chain and key).
    pub async fn dial_as(
        &self,
        identity: Option<(&str, &str)>,
    ) -> Client<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.hub.mqtt_addr()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(tls(self.hub.ca_pem(), identity));
        Client::new(connector.connect(name, stream).await.unwrap())
    }

    pub async fn connect(&self, id: &str) -> Client<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut client = self.dial().await;
        assert_eq!(client.login(self.login(id)).await, Ok(false));
        client
    }

    pub fn web(&self) -> reqwest::Client {
        use_ring();
        let root = reqwest::Certificate::from_pem(self.hub.ca_pem().as_bytes()).unwrap();
        let builder = reqwest::Client::builder().add_root_certificate(root).timeout(PATIENCE);
        builder.redirect(reqwest::redirect::Policy::none()).build().unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.hub.https_addr().port())
    }

    /// A service call; status, headers and JSON body.
    pub async fn service(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, reqwest::header::HeaderMap, Value) {
        self.service_if(method, path, body, None).await
    }

    pub async fn service_if(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        if_match: Option<&str>,
    ) -> (u16, reqwest::header::HeaderMap, Value) {
        let request = self.web().request(method.parse().unwrap(), self.url(path));
        let mut request = request.query(&[("api-version", "2021-04-12")]);
        request = request.header("authorization", self.hub.service_token().unwrap());
        if let Some(etag) = if_match {
            request = request.header("if-match", etag);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        (status, headers, response.json().await.unwrap_or(Value::Null))
    }
}

pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn use_ring() {
    // Another test of this process may have done it.
    drop(rustls::crypto::ring::default_provider().install_default());
}

pub fn tls(ca: &str, identity: Option<(&str, &str)>) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                .unwrap()
        }
    })
}

/// Sends and receives single packets.
pub struct Client<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn new(stream: S) -> Client<S> {
        Client { stream, buffer: BytesMut::new() }
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        match packet {
            Packet::Connect(packet) => packet.write(&mut bytes),
            Packet::Publish(packet) => packet.write(&mut bytes),
            Packet::PubAck(packet) => packet.write(&mut bytes),
            Packet::Subscribe(packet) => packet.write(&mut bytes),
            Packet::Unsubscribe(packet) => packet.write(&mut bytes),
            Packet::PingReq => PingReq.write(&mut bytes),
            Packet::Disconnect => Disconnect.write(&mut bytes),
            other => panic!("a client does not send {other:?}"),
        }
        .unwrap();
        self.send_raw(&bytes).await;
    }

    /// The next packet; `None` when the hub closed the connection.
    pub async fn receive(&mut self) -> Option<Packet> {
        timeout(PATIENCE, self.receive_slowly()).await.expect("the hub neither answers nor closes")
    }

    async fn receive_slowly(&mut self) -> Option<Packet> {
        loop {
            match v4::read(&mut self.buffer, 1024 * 1024) {
                Ok(packet) => return Some(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("the hub sent a broken packet: {error:?}"),
            }
            if !matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..)) {
                return None;
            }
        }
    }

    pub async fn expect_closed(&mut self) {
        assert_eq!(self.receive().await, None, "the hub should have closed the connection");
    }

    /// "Session present", or the code of the refusal.
    pub async fn login(&mut self, connect: Connect) -> Result<bool, ConnectReturnCode> {
        self.send(Packet::Connect(connect)).await;
        match self.receive().await {
            Some(Packet::ConnAck(answer)) if answer.code == ConnectReturnCode::Success => {
                Ok(answer.session_present)
            }
            Some(Packet::ConnAck(answer)) => Err(answer.code),
            other => panic!("{other:?} instead of CONNACK"),
        }
    }

    pub async fn subscribe(&mut self, filter: &str) -> SubAck {
        let mut packet = Subscribe::new(filter, QoS::AtMostOnce);
        packet.pkid = 7;
        self.send(Packet::Subscribe(packet)).await;
        match self.receive().await {
            Some(Packet::SubAck(answer)) => answer,
            other => panic!("{other:?} instead of SUBACK"),
        }
    }

    pub async fn unsubscribe(&mut self, filter: &str) {
        let mut packet = Unsubscribe::new(filter);
        packet.pkid = 8;
        self.send(Packet::Unsubscribe(packet)).await;
        assert!(matches!(self.receive().await, Some(Packet::UnsubAck(answer)) if answer.pkid == 8));
    }

    pub async fn publish(&mut self, topic: &str, body: impl Into<Vec<u8>>) {
        self.send(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body))).await;
    }

    /// With quality of service 1.
    pub async fn publish_safely(&mut self, topic: &str, body: impl Into<Vec<u8>>, pkid: u16) {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, body);
        publish.pkid = pkid;
        self.send(Packet::Publish(publish)).await;
    }

    pub async fn expect_puback(&mut self, pkid: u16) {
        assert_eq!(self.receive().await, Some(Packet::PubAck(PubAck::new(pkid))));
    }

    /// The next message: topic and JSON body (null if empty).
    pub async fn message(&mut self) -> (String, Value) {
        match self.receive().await {
            Some(Packet::Publish(publish)) if publish.payload.is_empty() => (publish.topic, Value::Null),
            Some(Packet::Publish(publish)) => {
                (publish.topic, serde_json::from_slice(&publish.payload).unwrap())
            }
            other => panic!("{other:?} instead of a message"),
        }
    }

    /// Proves that nothing was waiting: the answer to a ping is the next packet.
    pub async fn expect_silence(&mut self) {
        self.send(Packet::PingReq).await;
        assert_eq!(self.receive().await, Some(Packet::PingResp));
    }
}
