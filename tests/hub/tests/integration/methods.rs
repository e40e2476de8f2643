//! Direct methods and their time limits.

use std::time::Duration;

use fwupdate_hub::error::Kind;
use fwupdate_hub::methods::{Answer, Call};
use serde_json::{Value, json};

use crate::client::{METHODS, PATIENCE, Site};

fn request_id(topic: &str) -> &str {
    topic.split_once("$rid=").unwrap().1
}

#[tokio::test]
async fn a_call_and_its_answer() {
    let site = Site::new().await;
    let mut client = site.connect("d").await;
    client.subscribe(METHODS).await;
    let call = Call::new("firmwareUpdate", Some(json!({"fwPackageUri": "https://x/y"})));
    let device = async {
        let (topic, body) = client.message().await;
        assert!(topic.starts_with("$iothub/methods/POST/firmwareUpdate/?$rid="), "{topic}");
        assert_eq!(body, json!({"fwPackageUri": "https://x/y"}));
        let answer = format!("$iothub/methods/res/409/?$rid={}", request_id(&topic));
        client.publish(&answer, r#"{"error":{"code":"Busy"}}"#).await;
    };
    let (answer, ()) = tokio::join!(site.hub.invoke("d", call), device);
    assert_eq!(answer.unwrap(), Answer { status: 409, payload: json!({"error": {"code": "Busy"}}) });
}

#[tokio::test]
async fn an_empty_answer_is_null_and_no_payload_is_an_empty_message() {
    let site = Site::new().await;
    let mut client = site.connect("d").await;
    client.subscribe(METHODS).await;
    let device = async {
        let (topic, body) = client.message().await;
        assert_eq!(body, Value::Null);
        client.publish(&format!("$iothub/methods/res/200/?$rid={}", request_id(&topic)), "").await;
    };
    let (answer, ()) = tokio::join!(site.hub.invoke("d", Call::new("a b/ä", None)), device);
    assert_eq!(answer.unwrap(), Answer { status: 200, payload: Value::Null });
}

#[tokio::test]
async fn offline_or_deaf_is_404103() {
    let site = Site::new().await;
    assert_eq!(site.hub.invoke("d", Call::new("x", None)).await.unwrap_err().kind, Kind::DeviceNotOnline);
    let _deaf = site.connect("d").await;
    assert_eq!(site.hub.invoke("d", Call::new("x", None)).await.unwrap_err().kind, Kind::DeviceNotOnline);
    assert_eq!(site.hub.invoke("x", Call::new("x", None)).await.unwrap_err().kind, Kind::DeviceNotFound);
}

#[tokio::test]
async fn a_call_waits_for_the_device_to_come() {
    let site = Site::new().await;
    let call = Call { connect_timeout: PATIENCE, ..Call::new("x", None) };
    let device = async {
        let mut client = site.connect("d").await;
        client.subscribe(METHODS).await;
        let (topic, _) = client.message().await;
        client.publish(&format!("$iothub/methods/res/200/?$rid={}", request_id(&topic)), "1").await;
        client
    };
    let (answer, _client) = tokio::join!(site.hub.invoke("d", call), device);
    assert_eq!(answer.unwrap().payload, json!(1));
}

#[tokio::test]
async fn no_answer_in_time_is_504101_and_a_late_one_is_dropped() {
    let site = Site::new().await;
    let mut client = site.connect("d").await;
    client.subscribe(METHODS).await;
    let call = Call { response_timeout: Duration::from_millis(50), ..Call::new("x", None) };
    assert_eq!(site.hub.invoke("d", call).await.unwrap_err().kind, Kind::DeviceTimeout);
    let (topic, _) = client.message().await;
    client.publish(&format!("$iothub/methods/res/200/?$rid={}", request_id(&topic)), "1").await;
    client.expect_silence().await;
}

#[tokio::test]
async fn another_device_cannot_answer() {
    let site = Site::new().await;
    let mut client = site.connect("d").await;
    client.subscribe(METHODS).await;
    let mut stranger = site.connect("e").await;
    let device = async {
        let (topic, _) = client.message().await;
        let answer = format!("$iothub/methods/res/200/?$rid={}", request_id(&topic));
        stranger.publish(&answer, r#""stranger""#).await;
        stranger.expect_silence().await;
        client.publish(&answer, r#""device""#).await;
    };
    let (answer, ()) = tokio::join!(site.hub.invoke("d", Call::new("x", None)), device);
    assert_eq!(answer.unwrap().payload, json!("device"));
}

#[tokio::test]
async fn rest_nests_the_error_and_names_it_in_a_header() {
    let site = Site::new().await;
    let call = json!({"methodName": "x", "payload": null});
    let (status, headers, body) = site.service("POST", "/twins/d/methods", Some(call)).await;
    assert_eq!((status, headers["iothub-errorcode"].to_str().unwrap()), (404, "DeviceNotOnline"));
    let inner: Value = serde_json::from_str(body["Message"].as_str().unwrap()).unwrap();
    assert_eq!(inner["errorCode"], 404_103);
    assert_eq!(inner["message"], "Timed out waiting for device to connect.");
}

#[tokio::test]
async fn calls_that_make_no_sense_are_refused() {
    let site = Site::new().await;
    for body in [
        json!({}),
        json!({"methodName": ""}),
        json!({"methodName": "x", "responseTimeoutInSeconds": 4}),
        json!({"methodName": "x", "responseTimeoutInSeconds": 301}),
        json!({"methodName": "x", "responseTimeoutInSeconds": "4"}),
        json!({"methodName": "x", "responseTimeoutInSeconds": "nine"}),
        json!({"methodName": "x", "connectTimeoutInSeconds": 301}),
        json!({"methodName": "x", "connectTimeoutInSeconds": -1}),
    ] {
        assert_eq!(site.service("POST", "/twins/d/methods", Some(body.clone())).await.0, 400, "{body}");
    }
    // As the Azure CLI sends what it has by default.
    let by_cli = json!({"methodName": "x", "responseTimeoutInSeconds": "30", "connectTimeoutInSeconds": "0"});
    assert_eq!(site.service("POST", "/twins/d/methods", Some(by_cli)).await.0, 404);
    let big = json!({"methodName": "x", "payload": "x".repeat(128 * 1024)});
    assert_eq!(site.service("POST", "/twins/d/methods", Some(big)).await.0, 413);
}
