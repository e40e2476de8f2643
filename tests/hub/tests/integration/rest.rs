//! The service REST and its refusals.

use fwupdate_hub::{SERVICE_POLICY, auth};
use serde_json::{Value, json};

use crate::client::{Site, now};

#[tokio::test]
async fn only_the_service_policy_is_let_in() {
    let site = Site::new().await;
    let service = site.hub.service_connection_string();
    let key = service.split_once("SharedAccessKey=").unwrap().1.to_owned();
    let sign = |resource: &str, key: &str, expiry, policy| auth::sign(resource, key, expiry, policy).unwrap();
    let host = format!("localhost:{}", site.hub.https_addr().port());
    let cases = [
        ("with the port", 200, sign(&host, &key, now() + 60, Some(SERVICE_POLICY))),
        ("for this path", 200, sign("hub/twins/d", &key, now() + 60, Some(SERVICE_POLICY))),
        ("for another path", 401, sign("hub/twins/e", &key, now() + 60, Some(SERVICE_POLICY))),
        ("another policy", 401, sign(&host, &key, now() + 60, Some("service"))),
        ("no policy", 401, sign(&host, &key, now() + 60, None)),
        ("expired", 401, sign(&host, &key, now() - 1, Some(SERVICE_POLICY))),
        ("a device's key", 401, sign(&host, &site.key("d"), now() + 60, Some(SERVICE_POLICY))),
        ("garbage", 401, "Bearer x".to_owned()),
    ];
    for (name, status, token) in cases {
        let response = site
            .web()
            .get(site.url("/twins/d?api-version=2021-04-12"))
            .header("authorization", token)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status().as_u16(), status, "{name}");
        if status == 401 {
            assert_eq!(response.headers()["iothub-errorcode"], "IotHubUnauthorizedAccess");
        }
    }
    assert_eq!(site.web().get(site.url("/twins/d")).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn the_life_of_a_device() {
    let site = Site::new().await;
    let (status, _, made) = site.service("PUT", "/devices/n", Some(json!({"deviceId": "n"}))).await;
    assert_eq!((status, &made["status"]), (200, &json!("enabled")));
    let key = made["authentication"]["symmetricKey"]["primaryKey"].clone();
    assert_eq!(site.service("PUT", "/devices/n", Some(json!({"deviceId": "n"}))).await.0, 409);

    let etag = format!("\"{}\"", made["etag"].as_str().unwrap());
    let change = json!({"deviceId": "n", "status": "disabled"});
    let (status, _, changed) = site.service_if("PUT", "/devices/n", Some(change.clone()), Some(&etag)).await;
    assert_eq!((status, &changed["status"]), (200, &json!("disabled")));
    assert_eq!(changed["authentication"]["symmetricKey"]["primaryKey"], key);
    assert_eq!(site.service_if("PUT", "/devices/n", Some(change), Some(&etag)).await.0, 412);
    assert_eq!(site.service_if("DELETE", "/devices/n", None, Some(&etag)).await.0, 412);
    assert_eq!(site.service_if("DELETE", "/devices/n", None, Some("*")).await.0, 204);
    let (status, headers, body) = site.service("GET", "/devices/n", None).await;
    assert_eq!((status, headers["iothub-errorcode"].to_str().unwrap()), (404, "DeviceNotFound"));
    assert!(body["Message"].as_str().unwrap().starts_with("ErrorCode:DeviceNotFound;"));
}

#[tokio::test]
async fn devices_that_make_no_sense_are_refused() {
    let site = Site::new().await;
    let thumb =
        json!({"authentication": {"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": "12"}}});
    for (path, body, status) in [
        ("/devices/a%20b", json!({}), 400),
        ("/devices/x", json!({"status": "sleepy"}), 400),
        ("/devices/x", json!({"authentication": {"symmetricKey": {"primaryKey": "%"}}}), 400),
        ("/devices/x", thumb, 400),
        ("/devices/x", json!({"authentication": {"type": "certificateAuthority"}}), 501),
        ("/devices/x", json!({"capabilities": {"iotEdge": true}}), 501),
        ("/devices/x", json!([]), 400),
        ("/devices/x/modules/m", json!({}), 404),
    ] {
        assert_eq!(site.service("PUT", path, Some(body.clone())).await.0, status, "{path} {body}");
    }
}

#[tokio::test]
async fn a_version_of_the_interface_must_be_named() {
    let site = Site::new().await;
    for (query, status) in [
        ("", 400),
        ("?api-version=", 400),
        ("?api-version=2000-01-01", 400),
        ("?api-version=2021-04-12&api-version=x", 200),
        ("?x=1&api-version=2024-03-31", 200),
    ] {
        let request = site.web().get(site.url(&format!("/twins/d{query}")));
        let answer = request.header("authorization", site.hub.service_token().unwrap()).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{query}");
        if status == 400 {
            assert_eq!(answer.headers()["iothub-errorcode"], "InvalidProtocolVersion");
        }
    }
}

#[tokio::test]
async fn what_has_an_etag_says_so_in_a_header_too() {
    let site = Site::new().await;
    let content = json!({"content": {"deviceContent": {"properties.desired.x": 1}}});
    assert_eq!(site.service("PUT", "/configurations/c", Some(content)).await.0, 201);
    for (method, path, body) in [
        ("GET", "/devices/d", None),
        ("GET", "/twins/d", None),
        ("PATCH", "/twins/d", Some(json!({"tags": {"a": 1}}))),
        ("GET", "/configurations/c", None),
    ] {
        let (_, headers, document) = site.service(method, path, body).await;
        assert_eq!(headers["etag"].to_str().unwrap(), format!("{}", document["etag"]), "{method} {path}");
    }
}

#[tokio::test]
async fn twins_are_merged_replaced_and_guarded_by_etags() {
    let site = Site::new().await;
    let first = json!({"tags": {"a": 1}, "properties": {"desired": {"x": {"y": 1, "z": 2}}}});
    let (status, _, twin) = site.service("PATCH", "/twins/d", Some(first)).await;
    assert_eq!(
        (status, &twin["tags"], &twin["properties"]["desired"]["$version"]),
        (200, &json!({"a": 1}), &json!(2))
    );
    let etag = format!("\"{}\"", twin["etag"].as_str().unwrap());
    let delete = json!({"tags": null, "properties": {"desired": {"x": {"y": null}}}});
    let (_, _, twin) = site.service_if("PATCH", "/twins/d", Some(delete.clone()), Some(&etag)).await;
    assert_eq!((&twin["tags"], &twin["properties"]["desired"]["x"]), (&json!({"a": 1}), &json!({"z": 2})));
    assert_eq!(site.service_if("PATCH", "/twins/d", Some(delete), Some(&etag)).await.0, 412);
    let whole = json!({"tags": {}, "properties": {"desired": {"w": 1}}});
    let (_, _, twin) = site.service_if("PUT", "/twins/d", Some(whole), Some("*")).await;
    assert_eq!(twin["tags"], json!({}));
    assert_eq!(
        twin["properties"]["desired"].as_object().unwrap().keys().collect::<Vec<_>>(),
        ["$metadata", "$version", "w"]
    );
    let (status, _, body) = site.service("PATCH", "/twins/d", Some(json!({"tags": {"a$": 1}}))).await;
    assert_eq!(status, 400, "{body}");
}

#[tokio::test]
async fn queries_come_in_pages() {
    let site = Site::new().await;
    for number in 0..5 {
        site.hub.add_device(&format!("p{number}")).unwrap();
    }
    let ask = async |most: &str, token: Option<String>| {
        let mut request = site
            .web()
            .post(site.url("/devices/query?api-version=2021-04-12"))
            .header("x-ms-max-item-count", most);
        request = request.header("authorization", site.hub.service_token().unwrap());
        if let Some(token) = token {
            request = request.header("x-ms-continuation", token);
        }
        let query =
            json!({"query": "SELECT * FROM devices WHERE startswith(deviceId, 'p') AND deviceId != 'p1'"});
        let response = request.json(&query).send().await.unwrap();
        assert_eq!(response.headers()["x-ms-item-type"], "Twin");
        let more =
            response.headers().get("x-ms-continuation").map(|value| value.to_str().unwrap().to_owned());
        let twins: Vec<Value> = response.json().await.unwrap();
        (twins.iter().map(|twin| twin["deviceId"].as_str().unwrap().to_owned()).collect::<Vec<_>>(), more)
    };
    let (first, more) = ask("3", None).await;
    assert_eq!(first, ["p0", "p2", "p3"]);
    site.hub.add_device("p2b").unwrap();
    assert_eq!(ask("3", more).await, (vec!["p4".to_owned()], None));
    assert_eq!(ask("5", None).await.1, None);
}

#[tokio::test]
async fn what_is_not_imitated_says_so() {
    let site = Site::new().await;
    for (method, path) in [("POST", "/devices/d/applyConfigurationContent"), ("POST", "/jobs/create")] {
        let (status, _, body) = site.service(method, path, Some(json!({}))).await;
        assert_eq!(status, 501, "{method} {path}");
        assert!(body["Message"].as_str().unwrap().contains("does not imitate"), "{body}");
    }
    assert_eq!(site.service("GET", "/nothing", None).await.0, 404);
}

#[tokio::test]
async fn a_device_added_from_outside_is_known_at_once() {
    let site = Site::new().await;
    let program = env!("CARGO_BIN_EXE_fwupdate-hub");
    let run = |arguments: &[&str]| {
        let folder = site.hub.dir().to_str().unwrap();
        std::process::Command::new(program).args(arguments).args(["--dir", folder]).output().unwrap()
    };
    let made = run(&["device", "add", "late"]);
    let text = String::from_utf8(made.stdout).unwrap();
    assert_eq!(text.trim_end(), site.hub.device_connection_string("late").unwrap());
    let twice = run(&["device", "add", "late"]);
    assert_eq!(twice.status.code(), Some(1));
    assert_eq!(String::from_utf8(twice.stderr).unwrap(), "fwupdate-hub: late is registered already\n");
    assert!(String::from_utf8(run(&["device", "list"]).stdout).unwrap().contains("DeviceId=late;"));
    for words in [&["device", "list", "--json"][..], &["--json", "device", "list"]] {
        let list: Value = serde_json::from_slice(&run(words).stdout).unwrap();
        assert!(list.as_array().unwrap().iter().any(|one| one["DeviceId"] == "late"), "{list}");
    }
    // A reader that went away has seen enough.
    let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(reader);
    let mut unread = std::process::Command::new(program);
    unread.args(["device", "list", "--dir"]).arg(site.hub.dir()).stdout(std::os::fd::OwnedFd::from(writer));
    let unread = unread.output().unwrap();
    assert_eq!((unread.status.code(), &*unread.stderr), (Some(0), &b""[..]));
    let again = run(&["device", "add", "late", "--json"]);
    assert!(again.stdout.is_empty());
    let error: Value = serde_json::from_slice(&again.stderr).unwrap();
    assert_eq!(error["error"]["message"], "late is registered already");
    assert!(run(&["device", "remove", "late"]).status.success());
    assert!(site.hub.twin("late").is_err());
    let nowhere = std::process::Command::new(program)
        .args(["device", "list", "--dir", "/nonexistent"])
        .output()
        .unwrap();
    assert!(String::from_utf8(nowhere.stderr).unwrap().contains("fwupdate-hub serve --dir /nonexistent"));
}

#[tokio::test]
async fn faults_are_switched_over_rest() {
    let site = Site::new().await;
    let faults = json!({"files": [{"path": "*", "do": "status", "status": 503, "times": 1}], "mqtt": {"throttlePatches": 3}});
    let put = site.web().put(site.url("/admin/faults")).json(&faults).send().await.unwrap();
    assert_eq!(put.status(), 200);
    assert_eq!(site.hub.faults().get().mqtt.throttle_patches, 3);
    assert_eq!(site.web().get(site.url("/files/a")).send().await.unwrap().status(), 503);
    let counters: Value =
        site.web().get(site.url("/admin/counters")).send().await.unwrap().json().await.unwrap();
    assert_eq!(counters["paths"]["a"]["requests"], 1);
    let bad = site.web().put(site.url("/admin/faults")).body("{\"fils\":[]}").send().await.unwrap();
    assert_eq!(bad.status(), 400);
    site.web().delete(site.url("/admin/faults")).send().await.unwrap();
    assert_eq!(site.hub.faults().get(), Default::default());
}
