//! Registration with a signing request, and what its certificate opens.

use std::process::Command;
use std::time::Duration;

use data_encoding::{BASE64, BASE64_MIME};
use fwupdate_hub::dps::Enrollment;
use mqttbytes::v4::{Connect, ConnectReturnCode};
use serde_json::{Value, json};

use super::{ISSUING, Pair, RENEWING, enrolled, issuing, log_in, register, request};
use crate::client::Site;

const REFUSED: Option<ConnectReturnCode> = Some(ConnectReturnCode::NotAuthorized);

#[tokio::test]
async fn a_registration_brings_a_certificate_that_opens_the_hub() {
    let site = Site::new().await;
    for version in ["2025-07-01-preview", "2026-11-02-preview"] {
        site.hub.enroll(&issuing(3600)).unwrap();
        let (key, csr) = request("gw");
        let (topic, answer) = register(&site, "gw", version, json!({"csr": BASE64.encode(&csr)})).await;
        assert_eq!(topic, "$dps/registrations/res/200/?$rid=2");
        let state = &answer["registrationState"];
        assert_eq!((&state["status"], &state["deviceId"]), (&json!("assigned"), &json!("gw")));
        let pair = Pair::new(key, &state["issuedCertificateChain"]);
        assert_eq!(state["issuedCertificateChain"].as_array().unwrap().len(), 3);
        log_in(&site, "gw", "2021-04-12", &pair).await.unwrap();
    }
    let twin = site.hub.twin("gw").unwrap();
    assert_eq!(twin["authenticationType"], "certificateAuthority");
    assert_eq!(twin["x509Thumbprint"], json!({"primaryThumbprint": null, "secondaryThumbprint": null}));
    let issued = site.hub.issued("gw");
    assert_eq!((issued.len(), &issued[0].request_id), (2, &None));
    assert_ne!(issued[0].serial, issued[1].serial);
}

#[tokio::test]
async fn the_onboarding_key_opens_the_hub_no_more() {
    let site = Site::new().await;
    enrolled(&site, "gw", 3600).await;
    let key = fwupdate_hub::dps::derive(&BASE64.encode(&[7; 32]), "gw").unwrap();
    let token = fwupdate_hub::auth::sign("localhost/devices/gw", &key, u64::MAX, None).unwrap();
    let mut connect = Connect::new("gw");
    connect.set_login("localhost/gw/?api-version=2021-04-12", &token);
    assert_eq!(site.dial().await.login(connect.clone()).await.err(), REFUSED);

    let (_, answer) = register(&site, "gw", ISSUING, json!({})).await;
    assert_eq!(answer["registrationState"].get("issuedCertificateChain"), None);
    assert!(site.dial().await.login(connect).await.is_ok(), "registered by its key again");
}

#[tokio::test]
async fn a_signing_request_is_overlooked_where_nobody_issues() {
    let site = Site::new().await;
    let csr = json!({"csr": BASE64.encode(&request("gw").1)});
    let cases = [
        ("2019-03-31", Some(60), csr.clone()),
        (ISSUING, None, csr),
        ("2019-03-31", Some(60), json!({"csr": 1})),
    ];
    for (version, issues, csr) in cases {
        site.hub.enroll(&Enrollment { issues, ..issuing(60) }).unwrap();
        let (_, answer) = register(&site, "gw", version, csr).await;
        let state = &answer["registrationState"];
        assert_eq!((&state["status"], state.get("issuedCertificateChain")), (&json!("assigned"), None));
    }
    assert!(site.hub.issued("gw").is_empty());
}

#[tokio::test]
async fn a_registration_with_a_bad_signing_request_fails() {
    let site = Site::new().await;
    site.hub.enroll(&issuing(60)).unwrap();
    let csr = request("gw").1;
    let mime = BASE64_MIME.encode(&csr);
    let large = BASE64.encode(&[0; 8 * 1024]);
    for (csr, problem) in [
        (json!(17), "must be a string"),
        (json!(""), "must be a string"),
        (json!("-----BEGIN CERTIFICATE REQUEST-----"), "not base64"),
        (json!(mime), "not base64"),
        (json!(large), "the limit is 8192"),
    ] {
        let (topic, answer) = register(&site, "gw", ISSUING, json!({"csr": csr})).await;
        assert_eq!(topic, "$dps/registrations/res/400/?$rid=1");
        assert_eq!(answer["errorCode"], 400_004);
        assert!(answer["message"].as_str().unwrap().contains(problem), "{answer}");
    }
    let mut forged = csr.clone();
    *forged.last_mut().unwrap() ^= 1;
    for (csr, problem) in [
        (b"no request".to_vec(), "no PKCS #10 request"),
        (forged, "no PKCS #10 request that its key signed"),
        (request("gx").1, "is \"gx\", not \"gw\""),
    ] {
        let (_, answer) = register(&site, "gw", ISSUING, json!({"csr": BASE64.encode(&csr)})).await;
        let state = &answer["registrationState"];
        assert_eq!((&state["status"], &state["errorCode"]), (&json!("failed"), &json!(400_040)));
        assert!(state["errorMessage"].as_str().unwrap().contains(problem), "{state}");
    }
    assert!(site.hub.issued("gw").is_empty());
    assert!(site.hub.twin("gw").is_err());
}

#[tokio::test]
async fn another_device_id_stands_in_the_certificate() {
    let site = Site::new().await;
    site.hub.enroll(&Enrollment { device_id: Some("other".into()), ..issuing(60) }).unwrap();
    let (key, csr) = request("gw");
    let (_, answer) = register(&site, "gw", ISSUING, json!({"csr": BASE64.encode(&csr)})).await;
    let pair = Pair::new(key, &answer["registrationState"]["issuedCertificateChain"]);
    log_in(&site, "other", RENEWING, &pair).await.unwrap();
    assert_eq!((site.hub.issued("other").len(), site.hub.issued("gw").len()), (1, 0));
}

#[tokio::test]
async fn only_the_device_s_own_certificate_of_this_authority_opens_it() {
    let (site, strange) = (Site::new().await, Site::new().await);
    let ours = enrolled(&site, "gw", 3600).await;
    let another = enrolled(&site, "gx", 3600).await;
    let foreign = enrolled(&strange, "gw", 3600).await;
    for pair in [&another, &foreign] {
        assert_eq!(log_in(&site, "gw", RENEWING, pair).await.err(), REFUSED);
    }
    assert_eq!(log_in(&site, "d", RENEWING, &ours).await.err(), REFUSED, "d has a key");
    let ours = ours.alone();
    log_in(&site, "gw", RENEWING, &ours).await.expect("the hub knows what is above the leaf");
    let site = site.restart().await;
    log_in(&site, "gw", RENEWING, &ours).await.expect("the authority outlives a restart");
}

#[tokio::test]
async fn a_certificate_ends_with_its_time_and_with_its_device() {
    let site = Site::new().await;
    let brief = enrolled(&site, "brief", 1).await;
    let waiting = async {
        while log_in(&site, "brief", RENEWING, &brief).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it expires");

    let pair = enrolled(&site, "gw", 3600).await;
    let mut client = log_in(&site, "gw", RENEWING, &pair).await.unwrap();
    let (_, _, mut device) = site.service("GET", "/devices/gw", None).await;
    assert_eq!(device["authentication"]["type"], "certificateAuthority");
    for (status, outcome) in [("disabled", REFUSED), ("enabled", None)] {
        device["status"] = json!(status);
        let (answer, _, text) = site.service_if("PUT", "/devices/gw", Some(device.clone()), Some("*")).await;
        assert_eq!(answer, 200, "{text}");
        assert_eq!(log_in(&site, "gw", RENEWING, &pair).await.err(), outcome);
    }
    client.expect_closed().await;
    site.hub.remove_device("gw").unwrap();
    assert_eq!(log_in(&site, "gw", RENEWING, &pair).await.err(), REFUSED);
}

#[tokio::test]
async fn what_openssl_asks_for_is_issued_as_openssl_expects() {
    let site = Site::new().await;
    site.hub.enroll(&issuing(86_400)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let openssl = |arguments: &str| {
        let output =
            Command::new("openssl").args(arguments.split(' ')).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for kind in [
        "rsa:2048",
        "ec -pkeyopt ec_paramgen_curve:P-256",
        "ec -sha384 -pkeyopt ec_paramgen_curve:P-384",
        "ed25519",
    ] {
        openssl(&format!(
            "req -new -newkey {kind} -nodes -keyout key.pem -subj /O=Acme/CN=gw -outform DER -out csr"
        ));
        let csr = BASE64.encode(&std::fs::read(folder.path().join("csr")).unwrap());
        let (_, answer) = register(&site, "gw", ISSUING, json!({"csr": csr})).await;
        let chain = &answer["registrationState"]["issuedCertificateChain"];
        for (name, one) in ["leaf", "between", "root"].iter().zip(chain.as_array().expect(kind)) {
            let der = BASE64.decode(one.as_str().unwrap().as_bytes()).unwrap();
            std::fs::write(folder.path().join(name), der).unwrap();
            openssl(&format!("x509 -inform DER -in {name} -out {name}.pem"));
        }
        let verdict = openssl("verify -purpose sslclient -CAfile root.pem -untrusted between.pem leaf.pem");
        assert_eq!(verdict, "leaf.pem: OK\n");
        assert_eq!(openssl("x509 -in leaf.pem -noout -subject"), "subject=CN = gw\n");
        assert_eq!(openssl("x509 -in leaf.pem -noout -pubkey"), openssl("pkey -in key.pem -pubout"));
        let serial = openssl("x509 -in leaf.pem -noout -serial").trim().to_lowercase();
        assert_eq!(serial, format!("serial={}", site.hub.issued("gw").last().unwrap().serial));
        openssl("x509 -in leaf.pem -noout -checkend 86000");
    }
    let (_, _, told) = site.service("GET", "/admin/certificates/gw", None).await;
    assert_eq!(told.as_array().unwrap().len(), 4);
    for field in ["device", "serial", "notBefore", "notAfter"] {
        assert!(told[0][field].is_string(), "{told}");
    }
    assert_eq!(told[0]["requestId"], Value::Null);
}
