//! Twins from the device's side, and the MQTT faults.

use mqttbytes::v4::ConnectReturnCode;
use serde_json::{Value, json};

use crate::client::{Client, DESIRED, Site, TWIN_ANSWERS};

const PATCH: &str = "$iothub/twin/PATCH/properties/reported/?$rid=";

type Device = Client<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>;

async fn device(site: &Site) -> Device {
    let mut client = site.connect("d").await;
    client.subscribe(TWIN_ANSWERS).await;
    client
}

async fn patch(client: &mut Device, request: &str, body: Value) -> (String, Value) {
    client.publish(&format!("{PATCH}{request}"), body.to_string()).await;
    client.message().await
}

#[tokio::test]
async fn get_then_patch_then_get() {
    let site = Site::new().await;
    let mut client = device(&site).await;
    client.publish("$iothub/twin/GET/?$rid=a%2Fb", " ").await;
    let (topic, twin) = client.message().await;
    assert_eq!(topic, "$iothub/twin/res/200/?$rid=a%2Fb");
    assert_eq!(twin, json!({"desired": {"$version": 1}, "reported": {"$version": 1}}));

    let (topic, body) =
        patch(&mut client, "2", json!({"firmwareStatus": "downloading", "x": {"y": 1}})).await;
    assert_eq!((topic.as_str(), body), ("$iothub/twin/res/204/?$rid=2&$version=2", Value::Null));
    patch(&mut client, "3", json!({"x": null})).await;

    client.publish("$iothub/twin/GET/?$rid=4", "").await;
    let (_, twin) = client.message().await;
    assert_eq!(twin["reported"], json!({"firmwareStatus": "downloading", "$version": 3}));
    let story = site.hub.history("d");
    assert_eq!(story.len(), 2);
    assert_eq!((story[1].version, &story[1].patch), (3, &json!({"x": null})));
}

#[tokio::test]
async fn bad_patches_are_400_and_change_nothing() {
    let site = Site::new().await;
    let mut client = device(&site).await;
    for body in ["{", "[]", "1", "", r#"{"a.b":1}"#, r#"{"a":9007199254740993}"#] {
        client.publish(&format!("{PATCH}1"), body).await;
        let (topic, error) = client.message().await;
        assert_eq!(topic, "$iothub/twin/res/400/?$rid=1", "{body}");
        assert_eq!(error["errorCode"], 400_004);
    }
    assert!(site.hub.history("d").is_empty());
    assert_eq!(site.hub.twin("d").unwrap()["properties"]["reported"]["$version"], 1);
}

#[tokio::test]
async fn without_a_subscription_there_is_no_answer() {
    let site = Site::new().await;
    let mut client = site.connect("d").await;
    client.publish("$iothub/twin/GET/?$rid=1", "").await;
    site.hub.patch_desired("d", json!({"a": 1})).unwrap();
    client.expect_silence().await;
}

#[tokio::test]
async fn desired_changes_arrive_in_order_and_are_never_queued() {
    let site = Site::new().await;
    site.hub.patch_desired("d", json!({"missed": true})).unwrap();
    let mut client = device(&site).await;
    client.subscribe(DESIRED).await;
    client.expect_silence().await;
    for number in 0..20 {
        site.hub.patch_desired("d", json!({"n": number, "gone": null})).unwrap();
    }
    for number in 0..20 {
        let version = number + 3;
        let (topic, body) = client.message().await;
        assert_eq!(topic, format!("{}?$version={version}", DESIRED.trim_end_matches('#')));
        assert_eq!(body, json!({"n": number, "gone": null, "$version": version}));
    }
}

#[tokio::test]
async fn twins_survive_a_restart() {
    let site = Site::new().await;
    let mut client = device(&site).await;
    patch(&mut client, "1", json!({"kept": true})).await;
    let before = site.hub.twin("d").unwrap();
    let site = site.restart().await;
    let mut after = site.hub.twin("d").unwrap();
    after["connectionState"] = json!("Connected");
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_throttled_patch_is_429_and_not_applied() {
    let site = Site::new().await;
    let mut client = device(&site).await;
    site.hub.faults().mqtt(|faults| faults.throttle_patches = 2);
    for _ in 0..2 {
        assert_eq!(patch(&mut client, "1", json!({"a": 1})).await.0, "$iothub/twin/res/429/?$rid=1");
    }
    assert_eq!(patch(&mut client, "1", json!({"a": 1})).await.0, "$iothub/twin/res/204/?$rid=1&$version=2");
    assert_eq!(site.hub.history("d").len(), 1);
}

#[tokio::test]
async fn lost_answers() {
    let site = Site::new().await;
    let mut client = device(&site).await;
    site.hub.faults().mqtt(|faults| (faults.lose_pubacks, faults.lose_patch_answers) = (1, 1));
    client.publish_safely(&format!("{PATCH}1"), r#"{"a":1}"#, 5).await;
    client.expect_silence().await;
    assert_eq!(site.hub.history("d").len(), 1);
    client.publish_safely(&format!("{PATCH}2"), r#"{"a":2}"#, 6).await;
    client.expect_puback(6).await;
    assert_eq!(client.message().await.0, "$iothub/twin/res/204/?$rid=2&$version=3");
}

#[tokio::test]
async fn a_patch_of_the_largest_size_passes() {
    let site = Site::new().await;
    let mut client = device(&site).await;
    let text = "x".repeat(4092);
    let big: serde_json::Map<String, Value> = (0..8).map(|n| (format!("key{n}"), json!(text))).collect();
    assert_eq!(
        patch(&mut client, "1", Value::Object(big)).await.0,
        "$iothub/twin/res/204/?$rid=1&$version=2"
    );
    assert_eq!(patch(&mut client, "2", json!({"a": true})).await.0, "$iothub/twin/res/400/?$rid=2");
    client.publish("$iothub/twin/GET/?$rid=3", "").await;
    assert_eq!(client.message().await.1["reported"]["key7"], json!(text));
}

#[tokio::test]
async fn the_model_that_a_device_announces_stands_in_its_twin() {
    let site = Site::new().await;
    let connect = async |query: &str| {
        let mut connect = site.login("d");
        connect.set_login(format!("localhost/d/?{query}"), site.token("d", 60));
        site.dial().await.login(connect).await
    };
    let model = || site.hub.twin("d").unwrap()["modelId"].as_str().unwrap().to_owned();
    connect("api-version=2019-10-01&model-id=dtmi%3Aacme%3Agateway%3B1").await.unwrap();
    assert_eq!(model(), "", "older api-versions know no models");
    connect("api-version=2020-09-30&DeviceClientType=x&model-id=dtmi%3Aacme%3Agateway%3B1").await.unwrap();
    assert_eq!(model(), "dtmi:acme:gateway;1");
    for bad in ["gateway", "dtmi%3Aacme%3B0", "dtmi%3A%FF%3B1"] {
        let refused = connect(&format!("api-version=2021-04-12&model-id={bad}")).await;
        assert_eq!(refused, Err(ConnectReturnCode::NotAuthorized), "{bad}");
    }
    connect("api-version=2021-04-12").await.unwrap();
    connect("api-version=2021-04-12&model-id=dtmi:acme:gateway;2").await.unwrap();
    let query = json!({"query": "SELECT deviceId FROM devices WHERE modelId = 'dtmi:acme:gateway;2'"});
    let (_, _, rows) = site.service("POST", "/devices/query", Some(query)).await;
    assert_eq!(rows, json!([{"deviceId": "d"}]));
    assert_eq!(site.service("GET", "/twins/d", None).await.2["modelId"], "dtmi:acme:gateway;2");
}
