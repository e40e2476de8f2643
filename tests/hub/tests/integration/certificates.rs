//! Certificates of devices' own keys: asked for at registration and at the hub.

mod asking;
mod issuing;
mod waiting;

use data_encoding::BASE64;
use fwupdate_hub::auth;
use fwupdate_hub::dps::{Attestation, Enrollment};
use mqttbytes::QoS;
use mqttbytes::v4::{Connect, ConnectReturnCode, Packet, PubAck, Publish, Subscribe};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::{Client, Site, now};

const ANSWERS: &str = "$iothub/credentials/res/#";
const ISSUING: &str = "2025-07-01-preview";
const RENEWING: &str = "2025-08-01-preview";

type Link = Client<TlsStream<TcpStream>>;

/// A key, and what the hub knows of it.
struct Pair {
    key: KeyPair,
    /// PEM.
    chain: String,
}

impl Pair {
    /// From an answer's array of base64, the leaf first.
    fn new(key: KeyPair, certificates: &Value) -> Pair {
        let pem = |one: &Value| {
            let body = one.as_str().unwrap();
            BASE64.decode(body.as_bytes()).unwrap();
            format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
        };
        Pair { key, chain: certificates.as_array().unwrap().iter().map(pem).collect() }
    }

    /// The same without what follows the leaf.
    fn alone(self) -> Pair {
        let end = self.chain.find("-----END CERTIFICATE-----\n").unwrap();
        Pair { chain: format!("{}-----END CERTIFICATE-----\n", &self.chain[..end]), ..self }
    }
}

fn request(name: &str) -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let request = params.serialize_request(&key).unwrap().der().to_vec();
    (key, request)
}

/// A group whose members are issued certificates of so many seconds.
fn issuing(seconds: u64) -> Enrollment {
    let attestation =
        Attestation::SymmetricKey { primary_key: BASE64.encode(&[7; 32]), secondary_key: String::new() };
    Enrollment { issues: Some(seconds), polls: 0, ..Enrollment::group("fleet", attestation) }
}

/// Registers by the group's key; topic and body of the first answer, and the last answer's body.
async fn register(site: &Site, id: &str, version: &str, more: Value) -> (String, Value) {
    let scope = site.hub.id_scope();
    let resource = format!("{scope}/registrations/{id}");
    let key = fwupdate_hub::dps::derive(&BASE64.encode(&[7; 32]), id).unwrap();
    let token = auth::sign(&resource, &key, now() + 60, Some("registration")).unwrap();
    let mut connect = Connect::new(id);
    connect.set_login(format!("{resource}/api-version={version}&ClientVersion=x"), token);
    let mut client = site.dial().await;
    assert_eq!(client.login(connect).await, Ok(false));
    client.subscribe("$dps/registrations/res/#").await;
    let mut body = json!({"registrationId": id});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.publish("$dps/registrations/PUT/iotdps-register/?$rid=1", body.to_string()).await;
    let (topic, answer) = client.message().await;
    if !topic.starts_with("$dps/registrations/res/202/") {
        return (topic, answer);
    }
    let operation = answer["operationId"].as_str().unwrap();
    let topic = format!("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId={operation}");
    client.publish(&topic, "").await;
    let end = client.message().await;
    client.publish(&topic, "").await;
    assert_eq!(client.message().await, end, "what was decided stays");
    end
}

/// A device that was issued a certificate by the enrollment.
async fn enrolled(site: &Site, id: &str, seconds: u64) -> Pair {
    site.hub.enroll(&issuing(seconds)).unwrap();
    let (key, csr) = request(id);
    let (_, answer) = register(site, id, ISSUING, json!({"csr": BASE64.encode(&csr)})).await;
    Pair::new(key, &answer["registrationState"]["issuedCertificateChain"])
}

async fn log_in(site: &Site, id: &str, version: &str, pair: &Pair) -> Result<Link, ConnectReturnCode> {
    come_back(site, id, version, pair, true).await.map(|(client, _)| client)
}

/// The flag is "session present".
async fn come_back(
    site: &Site,
    id: &str,
    version: &str,
    pair: &Pair,
    clean: bool,
) -> Result<(Link, bool), ConnectReturnCode> {
    let mut client = site.dial_as(Some((&pair.chain, &pair.key.serialize_pem()))).await;
    let mut connect = Connect::new(id);
    connect.clean_session = clean;
    connect.set_login(format!("localhost/{id}/?api-version={version}"), String::new());
    client.login(connect).await.map(|present| (client, present))
}

/// A device that is connected, and subscribed to answers.
async fn asking(site: &Site, id: &str) -> (Link, Pair) {
    let pair = enrolled(site, id, 3600).await;
    let mut client = log_in(site, id, RENEWING, &pair).await.unwrap();
    client.subscribe(ANSWERS).await;
    (client, pair)
}

fn body(id: &str, csr: &[u8]) -> Value {
    json!({"id": id, "csr": BASE64.encode(csr)})
}

async fn ask(client: &mut Link, rid: &str, body: &Value) {
    let topic = format!("$iothub/credentials/POST/issueCertificate/?$rid={rid}");
    client.publish(&topic, if body.is_null() { String::new() } else { body.to_string() }).await;
}

/// The next answer, to this request: status and body.
async fn answer(client: &mut Link, rid: &str) -> (u16, Value) {
    let (topic, body) = client.message().await;
    let rest = topic.strip_prefix("$iothub/credentials/res/").unwrap();
    let (status, query) = rest.split_once('/').unwrap();
    assert_eq!(query, format!("?$rid={rid}"));
    (status.parse().unwrap(), body)
}

/// An answer that is a refusal with this code: the whole body.
async fn refused(client: &mut Link, rid: &str, code: u64) -> Value {
    let (status, body) = answer(client, rid).await;
    assert_eq!((u64::from(status), &body["errorCode"]), (code / 1000, &json!(code)), "{body}");
    for field in ["message", "trackingId", "timestampUtc"] {
        assert!(!body[field].as_str().unwrap().is_empty(), "{body}");
    }
    assert!(body.get("info").is_some());
    body
}

/// 202 and 200.
async fn certificates(client: &mut Link, rid: &str) -> Value {
    let (status, accepted) = answer(client, rid).await;
    assert_eq!(status, 202, "{accepted}");
    issued(client, rid).await
}

/// 200.
async fn issued(client: &mut Link, rid: &str) -> Value {
    let (status, body) = answer(client, rid).await;
    assert_eq!(status, 200, "{body}");
    body["certificates"].clone()
}

/// Subscribes with quality of service 1.
async fn subscribe_safely(client: &mut Link) {
    let mut packet = Subscribe::new(ANSWERS, QoS::AtLeastOnce);
    packet.pkid = 9;
    client.send(Packet::Subscribe(packet)).await;
    assert!(matches!(client.receive().await, Some(Packet::SubAck(_))));
}

async fn publish(client: &mut Link) -> Publish {
    match client.receive().await {
        Some(Packet::Publish(publish)) => publish,
        other => panic!("{other:?} instead of a message"),
    }
}

async fn acknowledge(client: &mut Link, pkid: u16) {
    client.send(Packet::PubAck(PubAck::new(pkid))).await;
    client.expect_silence().await;
}
