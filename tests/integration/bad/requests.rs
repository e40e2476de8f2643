//! Every malformed payload is refused at once, names the field, and starts nothing.

use serde_json::{Value, json};

use super::{Bytes, TOKEN, goes_on};
use crate::harness::World;

/// Payloads of `firmwareUpdate`, and what the answer must name.
fn updates() -> Vec<(Value, &'static str)> {
    let good = format!("https://localhost/fw.fwb{TOKEN}");
    let with = |field: &str, value: Value| {
        let mut payload = json!({ "fwPackageUri": good });
        payload[field] = value;
        payload
    };
    vec![
        (json!(null), "object"),
        (json!([]), "object"),
        (json!("https://localhost/fw"), "object"),
        (json!(7), "object"),
        (json!({}), "fwPackageUri"),
        (json!({"fwPackageUri": null}), "fwPackageUri"),
        (json!({"fwPackageUri": ["https://localhost/fw"]}), "fwPackageUri"),
        (json!({"fwPackageUri": ""}), "fwPackageUri"),
        (json!({"fwPackageUri": "no url"}), "fwPackageUri"),
        (json!({"fwPackageUri": "http://localhost/fw?sig=hush-hush"}), "fwPackageUri"),
        (json!({"fwPackageUri": "file:///etc/passwd"}), "fwPackageUri"),
        (json!({"fwPackageUri": format!("https://localhost/{}", "a".repeat(5000))}), "fwPackageUri"),
        (json!({"fwpackageuri": good}), "fwpackageuri"),
        (with("reboot", json!(true)), "reboot"),
        (with("manifestSha256", json!("abc")), "manifestSha256"),
        (with("manifestSha256", json!("g".repeat(64))), "manifestSha256"),
        (with("manifestSha256", json!(1)), "manifestSha256"),
        (with("version", json!(1.5)), "version"),
        (with("operationId", json!("")), "operationId"),
        (with("operationId", json!(1)), "operationId"),
        (with("operationId", json!("x".repeat(129))), "operationId"),
        (with("operationId", json!("a\u{1b}[2J")), "operationId"),
        (with("maxDownloadBytes", json!(-1)), "maxDownloadBytes"),
        (with("maxDownloadBytes", json!(0.5)), "maxDownloadBytes"),
        (with("maxDownloadBytes", json!("1 MB")), "maxDownloadBytes"),
        (with("maxDownloadBytes", json!(1e30)), "maxDownloadBytes"),
        (with("allowDowngrade", json!("yes")), "allowDowngrade"),
        (with("force", json!(1)), "force"),
        (with("notBefore", json!("tomorrow")), "notBefore"),
        (with("notBefore", json!("2026-02-30T00:00:00Z")), "notBefore"),
        (with("deadline", json!(1_700_000_000)), "deadline"),
        (
            json!({"fwPackageUri": good, "notBefore": "2100-01-02T00:00:00Z", "deadline": "2100-01-01T00:00:00Z"}),
            "deadline",
        ),
    ]
}

/// The same of the other methods.
fn others() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("firmwareCancel", json!([]), "object"),
        ("firmwareCancel", json!({"id": "1"}), "id"),
        ("firmwareCancel", json!({"operationId": 1}), "operationId"),
        ("firmwareApprove", json!({"operation": "1"}), "operation"),
        ("firmwareApprove", json!({"operationId": ""}), "operationId"),
        ("firmwareDefer", json!({}), "until"),
        ("firmwareDefer", json!({"until": "later"}), "until"),
        ("firmwareDefer", json!({"until": "2100-01-01T00:00:00Z", "why": ""}), "why"),
        ("firmwareRollback", json!({"slot": "A"}), "slot"),
        ("firmwareRollback", json!({"operationId": {}}), "operationId"),
    ]
}

#[tokio::test]
async fn malformed_payloads_name_their_field_and_start_nothing() {
    let world = World::new().await;
    let before = Bytes::of(&world.gateway);
    let updates = updates().into_iter().map(|(payload, named)| ("firmwareUpdate", payload, named));
    for (method, payload, named) in updates.chain(others()) {
        let answer = world.call(method, payload.clone()).await;
        assert_eq!(answer.status, 400, "{method} {payload}: {}", answer.payload);
        super::expect(&format!("{method} {payload}"), &answer.payload["error"], "MalformedRequest", named);
        assert!(!answer.payload.to_string().contains("hush-hush"), "{}", answer.payload);
    }
    before.same(&world, "malformed payloads");
    let ours = &world.twin()["fwupdate"];
    assert!(ours["operation"].is_null() && ours["last"].is_null(), "{ours}");
    assert_eq!(world.hub.faults().log(), []);
    goes_on(world).await;
}

#[tokio::test]
async fn what_makes_no_sense_now_is_refused_with_its_own_code() {
    let world = World::new().await;
    let before = Bytes::of(&world.gateway);
    for (method, payload, status, code) in [
        ("firmwareUpgrade", json!({}), 404, "NotFound"),
        ("FirmwareUpdate", json!({}), 404, "NotFound"),
        ("firmwareCancel", json!(null), 503, "NotReady"),
        ("firmwareApprove", json!({"operationId": "1"}), 503, "NotReady"),
        ("firmwareDefer", json!({"until": "2100-01-01T00:00:00Z"}), 503, "NotReady"),
        ("firmwareRollback", json!({}), 412, "NotPermitted"),
    ] {
        let answer = world.call(method, payload).await;
        assert_eq!((answer.status, &answer.payload["error"]["code"]), (status, &code.into()), "{method}");
    }
    before.same(&world, "methods out of place");
    goes_on(world).await;
}
