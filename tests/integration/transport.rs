//! The ways to the hub: WebSocket, HTTP proxies, a module's identity, certificates that are renewed on disk, links that
//! are dead, and subscriptions that somebody else made.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fwupdate_hub::auth;
use fwupdate_hub::proxy::ConnectProxy;
use fwupdate_hub::registry::Credentials;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use crate::harness::{DEVICE, LIMIT, Setup, World};

/// A gateway that is off.
async fn world() -> World {
    World::with(Setup { on: false, ..Setup::default() }).await
}

fn configure(world: &World, cloud: &str) {
    world.gateway.configure("60-way", &format!("[cloud]\n{cloud}")).unwrap();
}

/// `localhost:port` of MQTT, and of HTTPS.
fn targets(world: &World) -> [String; 2] {
    [world.hub.mqtt_addr(), world.hub.https_addr()].map(|at| format!("localhost:{}", at.port()))
}

#[tokio::test]
async fn an_update_over_websocket_through_a_proxy_that_wants_a_login() {
    let mut world = world().await;
    let proxy = ConnectProxy::start(Some(("gate", "p@ss word"))).await.unwrap();
    let [mqtt, https] = targets(&world);
    let url = format!("http://gate:p%40ss%20word@{}", proxy.address());
    let port = world.hub.https_addr().port();
    configure(&world, &format!("transport = \"websocket\"\nport = {port}\nproxy = {url:?}"));
    world.switch_on().await;
    assert_eq!((proxy.opened(&https), proxy.opened(&mqtt)), (1, 0));
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    // One session before and one after the reboot; what is beyond that are downloads.
    assert!(proxy.opened(&https) > 2, "{:?}", proxy.tunnels());
    assert!(proxy.tunnels().iter().all(|tunnel| tunnel.status == 200), "{:?}", proxy.tunnels());
    assert!(!world.gateway.log().contains("p@ss") && !world.gateway.log().contains("p%40ss"));
    world.finish().await;
}

#[tokio::test]
async fn an_update_through_the_environment_s_proxy_and_then_without_it() {
    let mut world = world().await;
    let proxy = ConnectProxy::start(None).await.unwrap();
    let [mqtt, https] = targets(&world);
    world.gateway.set_variable("HTTPS_PROXY", &proxy.url());
    world.switch_on().await;
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    assert_eq!(proxy.opened(&mqtt), 2, "before and after the reboot: {:?}", proxy.tunnels());
    assert!(proxy.opened(&https) >= 1, "{:?}", proxy.tunnels());

    let before = proxy.tunnels().len();
    world.gateway.set_variable("NO_PROXY", "other.example, localhost");
    world.crash().await;
    let release = world.release("3.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    assert_eq!(proxy.tunnels().len(), before);
    world.finish_disturbed().await;
}

#[tokio::test]
async fn doctor_says_what_a_proxy_has_against_the_connection() {
    let mut world = world().await;
    let proxy = ConnectProxy::start(Some(("gate", "secret"))).await.unwrap();
    configure(&world, &format!("proxy = {:?}", format!("http://gate:wrong@{}", proxy.address())));
    world.gateway.power_on().unwrap();
    world.doctor_says_of_the_hub("wants a user and password").await;
    world.gateway.shut_down().await.unwrap();

    configure(&world, &format!("proxy = {:?}", format!("http://gate:secret@{}", proxy.address())));
    proxy.refuse(Some(403));
    world.gateway.power_on().unwrap();
    let [mqtt, _] = targets(&world);
    world.doctor_says_of_the_hub(&format!("does not connect to {mqtt} (status 403)")).await;
    assert_eq!(proxy.opened(&mqtt), 0);
    assert!(!world.hub.is_connected(DEVICE), "nothing goes past the proxy");
    proxy.refuse(None);
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    world.gateway.shut_down().await.unwrap();

    let log = fs::read_to_string(world.gateway.log_path()).unwrap();
    assert!(!log.contains("wrong") && !log.contains("gate:"), "{log}");
    let gone = { proxy.url() };
    drop(proxy);
    configure(&world, &format!("proxy = {gone:?}"));
    world.gateway.power_on().unwrap();
    world
        .doctor_says_of_the_hub(&format!(
            "the proxy {} cannot be reached",
            gone.trim_start_matches("http://")
        ))
        .await;
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_download_that_the_proxy_refuses_fails_and_names_the_proxy() {
    let mut world = world().await;
    let proxy = ConnectProxy::start(None).await.unwrap();
    // The hub is reached past the proxy, so that the outcome can be told.
    let [mqtt, _] = targets(&world);
    let settings =
        format!("[cloud]\nproxy = {:?}\nno_proxy = [{mqtt:?}]\n[download]\npatience = \"1s\"\n", proxy.url());
    world.gateway.configure("60-way", &settings).unwrap();
    proxy.refuse(Some(403));
    world.switch_on().await;
    let release = world.release("2.0.0");
    let id = world.update(json!({"fwPackageUri": release.url})).await;
    let last = world.outcome(&id).await;
    assert_eq!(
        (&last["result"], &last["error"]["code"]),
        (&"failed".into(), &"DownloadFailed".into()),
        "{last}"
    );
    let message = last["error"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("through the proxy {}", proxy.address())), "{message}");
    assert!(message.contains("refuses with status 403"), "{message}");
    world.finish().await;
}

#[tokio::test]
async fn a_module_s_identity_leaves_the_device_s_to_the_application() {
    let mut world = World::with(Setup { device: "gw/updater", ..Setup::default() }).await;
    let release = world.release("2.0.0");
    world
        .hub
        .patch_desired("gw/updater", json!({"fwupdate": {"fwPackageUri": release.url, "version": "2.0.0"}}))
        .unwrap();
    let reported = world.reported(|reported| reported["fwupdate"]["last"]["toVersion"] == "2.0.0").await;
    assert_eq!(reported["fwupdate"]["last"]["result"], "committed");
    let status = world.call("firmwareStatus", json!({})).await;
    assert_eq!((status.status, &status.payload["firmwareStatus"]), (200, &"completed".into()));
    assert!(!world.hub.is_connected("gw"), "the device's own connection is free");
    assert_eq!(world.hub.history("gw").len(), 0);
    world.finish().await;
}

/// A self-signed certificate for so many days, where the gateway looks for it; returns its thumbprint.
fn install_certificate(world: &World, days: i64) -> String {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days);
    params.distinguished_name.push(rcgen::DnType::CommonName, DEVICE);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    fs::write(world.gateway.dir().join("state/device.pem"), certificate.pem()).unwrap();
    fs::write(world.gateway.dir().join("state/device.key"), key.serialize_pem()).unwrap();
    let [_, sha256] = auth::thumbprints(certificate.der());
    sha256
}

#[tokio::test]
async fn a_renewed_certificate_counts_from_the_next_connection_without_a_restart() {
    let mut world = World::with(Setup { registered: false, on: false, ..Setup::default() }).await;
    let first = install_certificate(&world, 13);
    let at = |name: &str| world.gateway.dir().join("state").join(name).display().to_string();
    let cloud = format!(
        "connection_string = \"HostName=localhost;DeviceId={DEVICE};x509=true\"\n\
         certificate_file = {:?}\nkey_file = {:?}",
        at("device.pem"),
        at("device.key")
    );
    configure(&world, &cloud);
    world.hub.add_device_x509(DEVICE, &first).unwrap();
    world.switch_on().await;
    world.doctor_says("certificate", "renew it").await;

    let second = install_certificate(&world, 90);
    assert_ne!(first, second);
    // From now on only the new one is let in.
    world.hub.remove_device(DEVICE).unwrap();
    world.hub.add_device_with(DEVICE, Credentials::self_signed(&second).unwrap()).unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    assert!(world.hub.is_connected(DEVICE));
    world.doctor_says("certificate", "its key is in the file").await;
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_link_that_swallows_everything_is_left_at_the_first_ping_that_nobody_answers() {
    let settings = "[cloud]\nkeep_alive = \"20s\"\nreconnect_first = \"1s\"\n".to_owned();
    let mut world = World::with(Setup { relay: true, settings, ..Setup::default() }).await;
    let since = Instant::now();
    world.relay.as_ref().unwrap().mute();
    assert!(world.hub.wait_accepted(DEVICE, 2, LIMIT).await, "{}", world.gateway.log());
    // The second ping would be due 40 s after the connection.
    assert!(since.elapsed() < Duration::from_secs(36), "{:?}", since.elapsed());
    assert!(world.gateway.log().contains("did not answer in time"), "{}", world.gateway.log());
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    world.finish_disturbed().await;
}

const DEVICEBOUND: &str = "devices/gw/messages/devicebound/#";

/// The application that uses the gateway's identity when the agent does not.
fn application(world: &World) -> (AsyncClient, EventLoop) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(world.hub.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = Arc::new(tls.with_root_certificates(roots).with_no_client_auth());
    let known = world.hub.device_connection_string(DEVICE).unwrap();
    let key = known.split_once("SharedAccessKey=").unwrap().1;
    let expiry = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3600;
    let token = auth::sign(&format!("localhost/devices/{DEVICE}"), key, expiry, None).unwrap();
    let mut options = MqttOptions::new(DEVICE, "localhost", world.hub.mqtt_addr().port());
    options.set_credentials(format!("localhost/{DEVICE}/?api-version=2021-04-12"), token);
    options.set_clean_session(false).set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
    let (client, events) = AsyncClient::new(options, 8);
    client.try_subscribe(DEVICEBOUND, QoS::AtLeastOnce).unwrap();
    (client, events)
}

async fn heard(events: &mut EventLoop, wanted: impl Fn(&Packet) -> bool) -> Packet {
    let hear = async {
        loop {
            match events.poll().await.unwrap() {
                Event::Incoming(packet) if wanted(&packet) => return packet,
                _ => {}
            }
        }
    };
    timeout(LIMIT, hear).await.expect("it did not come")
}

#[tokio::test]
async fn cloud_to_device_messages_wait_for_the_application_whose_subscription_brings_them_to_the_agent() {
    let mut world = world().await;
    let (client, mut events) = application(&world);
    heard(&mut events, |packet| matches!(packet, Packet::SubAck(_))).await;
    drop((client, events));
    assert!(world.hub.wait_connected(DEVICE, false, LIMIT).await);
    world.hub.send_to_device(DEVICE, "one");
    world.switch_on().await;
    world.hub.send_to_device(DEVICE, "two");
    // What is acknowledged, is acknowledged in order: before the answer to a later call.
    assert_eq!(world.call("firmwareStatus", json!({})).await.status, 200);
    assert_eq!(world.hub.waiting_for_device(DEVICE), 2, "neither is taken for delivered");
    let left =
        format!("left to the application that has this identity: a message on devices/{DEVICE}/messages/");
    assert_eq!(world.gateway.log().matches(&left).count(), 1, "{}", world.gateway.log());
    world.gateway.shut_down().await.unwrap();

    let (_client, mut events) = application(&world);
    for text in ["one", "two"] {
        let message = heard(&mut events, |packet| matches!(packet, Packet::Publish(_))).await;
        assert!(matches!(message, Packet::Publish(message) if message.payload == text.as_bytes()), "{text}");
    }
    let (polled, emptied) = (
        heard(&mut events, |_| false),
        world.hub.wait_until(LIMIT, || world.hub.waiting_for_device(DEVICE) == 0),
    );
    tokio::select! {
        _ = polled => unreachable!(),
        emptied = emptied => assert!(emptied),
    }
    world.finish_disturbed().await;
}
