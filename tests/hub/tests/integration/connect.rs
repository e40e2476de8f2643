//! Who is let in, who is thrown out, and what survives.

use std::time::{Duration, Instant};

use fwupdate_hub::{Hub, Options, SERVICE_POLICY, auth};
use mqttbytes::v4::{ConnectReturnCode, LastWill, Packet, Publish, SubscribeReasonCode};
use mqttbytes::{Protocol, QoS};

use crate::client::{DESIRED, METHODS, PATIENCE, Site, TWIN_ANSWERS, now, tls};

const EVENTS: &str = "devices/d/messages/events/";

#[tokio::test]
async fn a_right_token_opens_the_door() {
    let site = Site::new().await;
    site.connect("d").await.expect_silence().await;
    assert!(site.hub.is_connected("d"));
    let mut legacy = site.login("e");
    legacy.set_login("localhost/e/api-version=2016-11-14", &site.token("e", 60));
    assert_eq!(site.dial().await.login(legacy).await, Ok(false));
}

#[tokio::test]
async fn wrong_credentials_are_all_refused_with_code_5() {
    let site = Site::new().await;
    let user = "localhost/d/?api-version=2021-04-12";
    let signed = |resource: &str, key: &str, expiry| auth::sign(resource, key, expiry, None).unwrap();
    let good = site.key("d");
    let cases = [
        ("another's key", "d", user, signed("localhost/devices/d", &site.key("e"), now() + 60)),
        ("another's resource", "d", user, signed("localhost/devices/e", &good, now() + 60)),
        ("a host that is not the user name's", "d", user, signed("other/devices/d", &good, now() + 60)),
        ("a prefix is for policies only", "d", user, signed("localhost", &good, now() + 60)),
        ("expired", "d", user, signed("localhost/devices/d", &good, now() - 1)),
        ("no token", "d", user, "secret".to_owned()),
        ("an empty password and no certificate", "d", user, String::new()),
        ("another client id", "D", user, site.token("d", 60)),
        ("unknown device", "x", "localhost/x/?api-version=2021-04-12", site.token("d", 60)),
        ("no user name to speak of", "d", "d", site.token("d", 60)),
    ];
    for (name, id, user, password) in cases {
        let mut connect = site.login("d");
        connect.client_id = id.to_owned();
        connect.set_login(user, &password);
        let mut client = site.dial().await;
        assert_eq!(client.login(connect).await, Err(ConnectReturnCode::NotAuthorized), "{name}");
        client.expect_closed().await;
    }
}

#[tokio::test]
async fn the_service_policy_may_connect_any_device() {
    let site = Site::new().await;
    let service = site.hub.service_connection_string();
    let key = service.split_once("SharedAccessKey=").unwrap().1;
    let token = |resource| auth::sign(resource, key, now() + 60, Some(SERVICE_POLICY)).unwrap();
    for (resource, outcome) in [
        ("localhost", Ok(false)),
        ("localhost/devices", Ok(false)),
        ("localhost/dev", Err(ConnectReturnCode::NotAuthorized)),
    ] {
        let mut connect = site.login("d");
        connect.set_login("localhost/d/?api-version=2021-04-12", &token(resource));
        assert_eq!(site.dial().await.login(connect).await, outcome, "{resource}");
    }
}

#[tokio::test]
async fn a_certificate_is_matched_by_thumbprint() {
    let site = Site::new().await;
    let make = || {
        let key = rcgen::KeyPair::generate().unwrap();
        (rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap(), key.serialize_pem())
    };
    let ((ours, our_key), (other, other_key)) = (make(), make());
    let [sha1, sha256] = auth::thumbprints(ours.der());
    site.hub.add_device_x509("one", &sha1.to_lowercase()).unwrap();
    let text = site.hub.add_device_x509("two", &sha256).unwrap();
    assert_eq!(text, "HostName=localhost;DeviceId=two;x509=true");
    for id in ["one", "two"] {
        let mut connect = site.login("d");
        connect.client_id = id.to_owned();
        connect.set_login(format!("localhost/{id}/?api-version=2021-04-12"), String::new());
        let mut ours = site.dial_as(Some((&ours.pem(), &our_key))).await;
        assert_eq!(ours.login(connect.clone()).await, Ok(false));
        let mut other = site.dial_as(Some((&other.pem(), &other_key))).await;
        assert_eq!(other.login(connect.clone()).await, Err(ConnectReturnCode::NotAuthorized));
        assert_eq!(site.dial().await.login(connect).await, Err(ConnectReturnCode::NotAuthorized));
    }
}

#[tokio::test]
async fn a_second_connection_drops_the_first() {
    let site = Site::new().await;
    let mut first = site.connect("d").await;
    let mut second = site.connect("d").await;
    first.expect_closed().await;
    second.expect_silence().await;
    assert!(site.hub.is_connected("d"));
}

#[tokio::test]
async fn breaking_the_rules_ends_the_connection() {
    let site = Site::new().await;
    let publish = |topic: &str, qos| {
        let mut publish = Publish::new(topic, qos, "{}");
        publish.pkid = 1;
        Packet::Publish(publish)
    };
    let subscribe = |filter: &str| Packet::Subscribe(mqttbytes::v4::Subscribe::new(filter, QoS::AtMostOnce));
    let cases = [
        ("quality of service 2", publish(EVENTS, QoS::ExactlyOnce)),
        ("unknown topic", publish("anything/else", QoS::AtMostOnce)),
        ("another's topic", publish("devices/e/messages/events/", QoS::AtMostOnce)),
        ("unknown filter", subscribe("#")),
        ("another's filter", subscribe("devices/e/messages/devicebound/#")),
        ("a second CONNECT", Packet::Connect(site.login("d"))),
        ("a method's answer that is no JSON", {
            Packet::Publish(Publish::new("$iothub/methods/res/200/?$rid=1", QoS::AtMostOnce, "{"))
        }),
    ];
    for (name, packet) in cases {
        let mut client = site.connect("d").await;
        client.send(packet).await;
        println!("{name}");
        client.expect_closed().await;
    }
}

#[tokio::test]
async fn broken_bytes_end_the_connection_and_nothing_else() {
    let site = Site::new().await;
    // As MQTT this says 69 more bytes, so it must have them to be refused at once.
    let http = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(60));
    for bytes in
        [http.as_bytes(), &[0xff; 64], &[0x10, 0xff, 0xff, 0xff, 0x7f], &[0x10, 0x02, 0, 9], &[0x30, 0]]
    {
        let mut client = site.dial().await;
        client.send_raw(bytes).await;
        client.expect_closed().await;
    }
    site.connect("d").await.expect_silence().await;
}

#[tokio::test]
async fn a_message_over_256_kb_ends_the_connection() {
    let site = Site::new().await;
    let mut client = site.connect("d").await;
    client.publish_safely(EVENTS, vec![b'x'; 256 * 1024], 1).await;
    client.expect_puback(1).await;
    client.send_raw(&[0x30, 0x80, 0x80, 0x20]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn only_mqtt_3_1_1_is_spoken() {
    let site = Site::new().await;
    let mut connect = site.login("d");
    connect.protocol = Protocol::V5;
    assert_eq!(site.dial().await.login(connect).await, Err(ConnectReturnCode::RefusedProtocolVersion));
}

#[tokio::test]
async fn quality_of_service_1_is_acknowledged() {
    let site = Site::new().await;
    let mut client = site.connect("d").await;
    client.publish_safely("devices/d/messages/events/$.mid=1&a=b", "one", 41).await;
    client.expect_puback(41).await;
    client.publish_safely("$iothub/twin/GET/?$rid=1", " ", 42).await;
    client.expect_puback(42).await;
    client.expect_silence().await;
    let heard = site.hub.telemetry("d");
    assert_eq!((heard[0].properties.as_str(), heard[0].body.as_str()), ("$.mid=1&a=b", "one"));
}

#[tokio::test]
async fn every_documented_filter_is_granted_and_quality_2_as_1() {
    let site = Site::new().await;
    let mut client = site.connect("d").await;
    for filter in [TWIN_ANSWERS, METHODS, DESIRED, "devices/d/messages/devicebound/#", METHODS] {
        let granted = client.subscribe(filter).await;
        assert_eq!(granted.return_codes, [SubscribeReasonCode::Success(QoS::AtMostOnce)]);
    }
    let mut twice = mqttbytes::v4::Subscribe::new(METHODS, QoS::ExactlyOnce);
    twice.pkid = 9;
    client.send(Packet::Subscribe(twice)).await;
    let answer = client.receive().await;
    let granted = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce)];
    assert_eq!(answer, Some(Packet::SubAck(mqttbytes::v4::SubAck::new(9, granted))));
}

#[tokio::test]
async fn subscriptions_survive_a_restart_of_the_hub_and_clean_sessions_forget_them() {
    let site = Site::new().await;
    let mut client = site.connect("d").await;
    client.subscribe(DESIRED).await;
    client.subscribe(TWIN_ANSWERS).await;
    client.unsubscribe(TWIN_ANSWERS).await;
    let site = site.restart().await;
    client.expect_closed().await;

    let mut client = site.dial().await;
    assert_eq!(client.login(site.login("d")).await, Ok(true));
    client.publish("$iothub/twin/GET/?$rid=1", "").await;
    site.hub.patch_desired("d", serde_json::json!({"a": 1})).unwrap();
    let (topic, body) = client.message().await;
    assert_eq!(topic, "$iothub/twin/PATCH/properties/desired/?$version=2");
    assert_eq!(body, serde_json::json!({"a": 1, "$version": 2}));

    let mut clean = site.login("d");
    clean.clean_session = true;
    assert_eq!(site.dial().await.login(clean).await, Ok(false));
    assert_eq!(site.dial().await.login(site.login("d")).await, Ok(false));
}

#[tokio::test]
async fn silence_is_borne_for_one_and_a_half_keep_alives() {
    let site = Site::new().await;
    let mut connect = site.login("d");
    connect.keep_alive = 1;
    connect.last_will = Some(LastWill::new(EVENTS, "gone", QoS::AtMostOnce, false));
    let mut client = site.dial().await;
    client.login(connect).await.unwrap();
    let start = Instant::now();
    client.expect_closed().await;
    assert!(start.elapsed() >= Duration::from_millis(1400), "{:?}", start.elapsed());
    let heard = site.hub.telemetry("d");
    assert_eq!((heard[0].properties.as_str(), heard[0].body.as_str()), ("iothub-MessageType=Will", "gone"));
}

#[tokio::test]
async fn a_goodbye_leaves_no_will() {
    let site = Site::new().await;
    let mut connect = site.login("d");
    connect.last_will = Some(LastWill::new(EVENTS, "gone", QoS::AtMostOnce, false));
    let mut client = site.dial().await;
    client.login(connect).await.unwrap();
    client.send(Packet::Disconnect).await;
    client.expect_closed().await;
    assert!(site.hub.wait_connected("d", false, PATIENCE).await);
    assert!(site.hub.telemetry("d").is_empty());
}

#[tokio::test]
async fn the_connection_ends_with_its_token() {
    let site = Site::new().await;
    let mut connect = site.login("d");
    connect.set_login("localhost/d/?api-version=2021-04-12", &site.token("d", 2));
    let mut client = site.dial().await;
    client.login(connect).await.unwrap();
    client.expect_silence().await;
    client.expect_closed().await;
}

#[tokio::test]
async fn a_device_that_is_disabled_or_removed_is_thrown_out() {
    let site = Site::new().await;
    let mut client = site.connect("d").await;
    let disable = serde_json::json!({"deviceId": "d", "status": "disabled"});
    assert_eq!(site.service_if("PUT", "/devices/d", Some(disable), Some("*")).await.0, 200);
    client.expect_closed().await;
    assert_eq!(site.dial().await.login(site.login("d")).await, Err(ConnectReturnCode::NotAuthorized));
    let mut client = site.connect("e").await;
    assert_eq!(site.service("DELETE", "/devices/e", None).await.0, 204);
    client.expect_closed().await;
}

#[tokio::test]
async fn faults_at_the_door() {
    let site = Site::new().await;
    site.hub.faults().mqtt(|faults| (faults.refuse_connects, faults.drop_connects) = (1, 1));
    let mut dropped = site.dial().await;
    dropped.expect_closed().await;
    assert_eq!(site.dial().await.login(site.login("d")).await, Err(ConnectReturnCode::NotAuthorized));
    let mut client = site.connect("d").await;
    site.hub.drop_connections(None);
    client.expect_closed().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let site = Site::new().await;
    let folder = tempfile::tempdir().unwrap();
    let port = site.hub.https_addr().port();
    let error =
        Hub::start(Options { https_port: port, ..Options::ephemeral(folder.path()) }).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(&format!("127.0.0.1:{port}")) && text.contains("--https-port"), "{text}");
}

#[tokio::test]
async fn a_folder_serves_one_hub_at_a_time() {
    let site = Site::new().await;
    let error = Hub::start(Options::ephemeral(site.hub.dir())).await.unwrap_err();
    assert!(format!("{error:#}").contains("another hub serves"), "{error:#}");
    site.restart().await.connect("d").await.expect_silence().await;
}

#[tokio::test]
async fn further_names_stand_in_the_certificate_and_in_connection_strings() {
    let folder = tempfile::tempdir().unwrap();
    let names = vec!["hub.test".to_owned(), "10.0.2.2".to_owned()];
    let hub = Hub::start(Options { names, ..Options::ephemeral(folder.path()) }).await.unwrap();
    assert!(hub.add_device("d").unwrap().starts_with("HostName=hub.test;DeviceId=d;"));
    for (name, trusted) in
        [("hub.test", true), ("10.0.2.2", true), ("localhost", true), ("other.test", false)]
    {
        let connector = tokio_rustls::TlsConnector::from(tls(hub.ca_pem(), None));
        let stream = tokio::net::TcpStream::connect(hub.mqtt_addr()).await.unwrap();
        let outcome = connector.connect(name.to_owned().try_into().unwrap(), stream).await;
        assert_eq!(outcome.is_ok(), trusted, "{name}");
    }
}
