//! A client library that others wrote, the one on which the agent is built.

use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, Packet, QoS,
    TlsConfiguration, Transport,
};
use serde_json::{Value, json};

use crate::client::{DESIRED, PATIENCE, Site, TWIN_ANSWERS, tls};

const USER: &str = "localhost/d/?api-version=2021-04-12";

fn client(site: &Site, password: &str) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new("d", "localhost", site.hub.mqtt_addr().port());
    options.set_credentials(USER, password).set_clean_session(false).set_keep_alive(Duration::from_secs(30));
    // Its default of 10 KiB is less than a twin.
    options.set_max_packet_size(512 * 1024, 512 * 1024);
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls(site.hub.ca_pem(), None))));
    AsyncClient::new(options, 10)
}

async fn next(events: &mut EventLoop, wanted: impl Fn(&Packet) -> bool) -> Packet {
    let wait = async {
        loop {
            match events.poll().await.unwrap() {
                Event::Incoming(packet) if wanted(&packet) => return packet,
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the packet did not come")
}

async fn message(events: &mut EventLoop) -> (String, Value) {
    match next(events, |packet| matches!(packet, Packet::Publish(_))).await {
        Packet::Publish(publish) => {
            (publish.topic, serde_json::from_slice(&publish.payload).unwrap_or_default())
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_whole_conversation() {
    let site = Site::new().await;
    let (client, mut events) = client(&site, &site.token("d", 3600));
    let connected = next(&mut events, |packet| matches!(packet, Packet::ConnAck(_))).await;
    assert!(matches!(connected, Packet::ConnAck(answer) if !answer.session_present));
    client.subscribe(TWIN_ANSWERS, QoS::AtLeastOnce).await.unwrap();
    client.subscribe(DESIRED, QoS::AtLeastOnce).await.unwrap();

    let big: serde_json::Map<String, Value> =
        (0..7).map(|n| (format!("key{n}"), json!("x".repeat(4096)))).collect();
    let patch = Value::Object(big).to_string();
    client
        .publish("$iothub/twin/PATCH/properties/reported/?$rid=1", QoS::AtLeastOnce, false, patch)
        .await
        .unwrap();
    assert_eq!(message(&mut events).await.0, "$iothub/twin/res/204/?$rid=1&$version=2");
    client.publish("$iothub/twin/GET/?$rid=2", QoS::AtLeastOnce, false, "").await.unwrap();
    let (topic, twin) = message(&mut events).await;
    assert_eq!(
        (topic.as_str(), twin["reported"]["key6"].as_str().unwrap().len()),
        ("$iothub/twin/res/200/?$rid=2", 4096)
    );

    site.hub.patch_desired("d", json!({"a": 1})).unwrap();
    assert_eq!(message(&mut events).await.1, json!({"a": 1, "$version": 2}));

    site.hub.drop_connections(Some("d"));
    while events.poll().await.is_ok() {}
    let again = next(&mut events, |packet| matches!(packet, Packet::ConnAck(_))).await;
    assert!(matches!(again, Packet::ConnAck(answer) if answer.session_present));
}

#[tokio::test]
async fn a_refusal_is_understood() {
    let site = Site::new().await;
    let (_client, mut events) = client(&site, "wrong");
    let error = events.poll().await.unwrap_err();
    assert!(
        matches!(error, ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized)),
        "{error:?}"
    );
}
