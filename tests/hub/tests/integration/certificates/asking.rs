//! The request at the hub: its form, its refusals, one at a time, and the faults that can be switched.

use data_encoding::BASE64;
use fwupdate_hub::auth;
use mqttbytes::QoS;
use mqttbytes::v4::{Packet, Publish, Subscribe};
use serde_json::{Value, json};

use super::{
    ANSWERS, Pair, RENEWING, answer, ask, asking, body, certificates, issued, log_in, refused, request,
};
use crate::client::{Site, TWIN_ANSWERS};

#[tokio::test]
async fn a_certificate_is_renewed_and_both_open_the_hub() {
    let site = Site::new().await;
    let (mut client, old) = asking(&site, "gw").await;
    let (key, csr) = request("gw");
    let topic = "$iothub/credentials/POST/issueCertificate/?$rid=renew-1";
    client.publish_safely(topic, body("gw", &csr).to_string(), 3).await;
    client.expect_puback(3).await;
    let (status, accepted) = answer(&mut client, "renew-1").await;
    assert_eq!(status, 202);
    assert!(accepted["operationExpires"].is_string());
    let (status, answered) = answer(&mut client, "renew-1").await;
    assert_eq!((status, &answered["correlationId"]), (200, &accepted["correlationId"]));
    let new = Pair::new(key, &answered["certificates"]);
    for pair in [&old, &new] {
        log_in(&site, "gw", RENEWING, pair).await.unwrap();
    }
    let told = site.hub.issued("gw");
    assert_eq!(told.iter().map(|one| one.request_id.as_deref()).collect::<Vec<_>>(), [None, Some("renew-1")]);
}

#[tokio::test]
async fn a_device_that_is_known_by_a_thumbprint_may_ask_and_one_with_a_key_may_not() {
    let site = Site::new().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
    let [_, thumbprint] = auth::thumbprints(own.der());
    site.hub.add_device_x509("x", &thumbprint).unwrap();
    let own = Pair::new(key, &json!([BASE64.encode(own.der())]));
    let mut client = log_in(&site, "x", RENEWING, &own).await.unwrap();
    client.subscribe(ANSWERS).await;
    let (key, csr) = request("x");
    ask(&mut client, "1234", &body("x", &csr)).await;
    let new = Pair::new(key, &certificates(&mut client, "1234").await);
    log_in(&site, "x", RENEWING, &new).await.unwrap();
    log_in(&site, "x", RENEWING, &own).await.unwrap();

    let mut connect = site.login("d");
    connect.set_login(format!("localhost/d/?api-version={RENEWING}"), site.token("d", 60));
    let mut client = site.dial().await;
    client.login(connect).await.unwrap();
    client.subscribe(ANSWERS).await;
    ask(&mut client, "1234", &body("d", &request("d").1)).await;
    refused(&mut client, "1234", 412_005).await;
}

#[tokio::test]
async fn older_api_versions_do_not_know_the_topics() {
    let site = Site::new().await;
    let (client, pair) = asking(&site, "gw").await;
    drop(client);
    let topic = "$iothub/credentials/POST/issueCertificate/";
    let message = |topic: &str| Packet::Publish(Publish::new(topic, QoS::AtMostOnce, "{}"));
    for (version, packet) in [
        ("2021-04-12", Packet::Subscribe(Subscribe::new(ANSWERS, QoS::AtMostOnce))),
        ("2021-04-12", message(&format!("{topic}?$rid=1234"))),
        (RENEWING, message(topic)),
        (RENEWING, message("$iothub/credentials/POST/other/?$rid=1234")),
    ] {
        let mut client = log_in(&site, "gw", version, &pair).await.unwrap();
        client.send(packet).await;
        client.expect_closed().await;
    }
    let mut client = log_in(&site, "gw", RENEWING, &pair).await.unwrap();
    client.subscribe(TWIN_ANSWERS).await;
    client.publish("$iothub/twin/GET/?$rid=1", "").await;
    assert_eq!(client.message().await.0, "$iothub/twin/res/200/?$rid=1");
}

#[tokio::test]
async fn a_request_that_breaks_the_rules_is_refused_at_once() {
    let site = Site::new().await;
    let (mut client, _) = asking(&site, "gw").await;
    let csr = BASE64.encode(&request("gw").1);
    let with = |name: &str, value: Value| {
        let mut body = json!({"id": "gw", "csr": csr});
        body[name] = value;
        body
    };
    let cases = [
        (Value::Null, "not JSON"),
        (json!([]), "no JSON object"),
        (json!({"id": "gw"}), "'csr' must be a string"),
        (json!({"csr": csr}), "'id' must be"),
        (with("id", json!("d")), "'id' must be the device that is connected, gw"),
        (with("csr", json!("")), "'csr' must be a string"),
        (with("csr", json!("not-valid-base64!!")), "not base64"),
        (with("csr", json!(BASE64.encode(&[0; 8 * 1024]))), "the limit is 8192"),
        (with("keyType", json!("rsa")), "\"keyType\" is unknown"),
        (with("replace", json!("123")), "4 to 36"),
        (with("replace", json!(null)), "4 to 36"),
    ];
    for (body, problem) in cases {
        ask(&mut client, "1234", &body).await;
        let answer = refused(&mut client, "1234", 400_040).await;
        assert!(answer["message"].as_str().unwrap().contains(problem), "{answer}");
        assert_eq!(answer.get("retryAfter"), None);
    }
    for rid in ["123", "-1234", "12_34"] {
        ask(&mut client, rid, &with("id", json!("gw"))).await;
        refused(&mut client, rid, 400_040).await;
    }
    assert_eq!(site.hub.issued("gw").len(), 1);
}

#[tokio::test]
async fn what_the_authority_refuses_is_refused_after_the_202() {
    let site = Site::new().await;
    let (mut client, _) = asking(&site, "gw").await;
    let mut forged = request("gw").1;
    *forged.last_mut().unwrap() ^= 1;
    for csr in [b"no request".to_vec(), forged, request("gx").1] {
        ask(&mut client, "1234", &body("gw", &csr)).await;
        assert_eq!(answer(&mut client, "1234").await.0, 202);
        let answer = refused(&mut client, "1234", 400_040).await;
        assert_eq!(answer["info"]["credentialMessage"], answer["message"]);
    }
    assert_eq!(site.hub.issued("gw").len(), 1);
}

#[tokio::test]
async fn one_request_at_a_time_unless_the_new_one_replaces_it() {
    let site = Site::new().await;
    let (mut client, _) = asking(&site, "gw").await;
    site.hub.faults().mqtt(|faults| faults.hold_certificates = true);
    let replacing = |id: &str| {
        let (key, csr) = request("gw");
        let mut body = body("gw", &csr);
        body["replace"] = json!(id);
        (key, body)
    };
    ask(&mut client, "none", &replacing("gone").1).await;
    assert_eq!(refused(&mut client, "none", 412_001).await["info"]["requestId"], "gone");

    ask(&mut client, "first", &replacing("*").1).await;
    let (status, accepted) = answer(&mut client, "first").await;
    assert_eq!(status, 202, "there was nothing to replace, and any was meant");
    for (rid, body) in [
        ("second", body("gw", &request("gw").1)),
        ("first", body("gw", &request("gw").1)),
        ("third", replacing("second").1),
    ] {
        ask(&mut client, rid, &body).await;
        let busy = refused(&mut client, rid, 409_005).await;
        assert_eq!(busy["info"]["requestId"], "first");
        assert_eq!(busy["info"]["operationExpires"], accepted["operationExpires"]);
    }
    ask(&mut client, "fourth", &replacing("first").1).await;
    assert_eq!(answer(&mut client, "fourth").await.0, 202);
    let (key, body) = replacing("*");
    ask(&mut client, "fifth", &body).await;
    assert_eq!(answer(&mut client, "fifth").await.0, 202);
    site.hub.faults().mqtt(|faults| faults.hold_certificates = false);
    let new = Pair::new(key, &issued(&mut client, "fifth").await);
    client.expect_silence().await;
    log_in(&site, "gw", RENEWING, &new).await.unwrap();
    assert_eq!(site.hub.issued("gw").len(), 2, "what was replaced is not issued");
}

#[tokio::test]
async fn faults_are_used_up_one_by_one() {
    let site = Site::new().await;
    let (mut client, _) = asking(&site, "gw").await;
    let body = body("gw", &request("gw").1);
    site.hub.faults().mqtt(|faults| {
        faults.throttle_certificates = 1;
        faults.unavailable_certificates = 1;
        faults.fail_certificates = 2;
    });
    for (code, wait) in [(429_002, 1), (503_001, 5)] {
        ask(&mut client, "1234", &body).await;
        assert_eq!(refused(&mut client, "1234", code).await["retryAfter"], wait);
    }
    for (usual, wait) in [(None, 300), (Some(2), 2)] {
        site.hub.faults().mqtt(|faults| faults.retry_certificates_after = usual);
        ask(&mut client, "1234", &body).await;
        assert_eq!(answer(&mut client, "1234").await.0, 202);
        assert_eq!(refused(&mut client, "1234", 500_001).await["retryAfter"], wait);
    }
    let faults = json!({"mqtt": {"loseCertificates": 1, "delayCertificatesMs": 1}});
    assert_eq!(site.service("PUT", "/admin/faults", Some(faults)).await.0, 200);
    ask(&mut client, "lost", &body).await;
    assert_eq!(answer(&mut client, "lost").await.0, 202);
    let issued = || site.hub.issued("gw").len() == 2;
    assert!(site.hub.wait_until(crate::client::PATIENCE, issued).await, "it was issued");
    ask(&mut client, "again", &body).await;
    certificates(&mut client, "again").await;
    assert_eq!(site.hub.issued("gw").len(), 3);
}
