//! What reaches many devices: queries, jobs and automatic configurations.

use serde_json::{Value, json};

use crate::client::{DESIRED, METHODS, Site};

/// Registers devices, each with the tag `ring`.
async fn rings(site: &Site, devices: &[(&str, &str)]) {
    for (id, ring) in devices {
        site.hub.add_device(id).unwrap();
        tag(site, id, ring).await;
    }
}

async fn tag(site: &Site, id: &str, ring: &str) {
    let tags = json!({"tags": {"ring": ring}});
    assert_eq!(site.service("PATCH", &format!("/twins/{id}"), Some(tags)).await.0, 200);
}

fn wanted(site: &Site, id: &str) -> Value {
    let mut desired = site.hub.twin(id).unwrap()["properties"]["desired"].take();
    desired.as_object_mut().unwrap().retain(|key, _| !key.starts_with('$'));
    desired
}

fn configuration(condition: &str, priority: i64, firmware: Value) -> Value {
    json!({
        "content": {"deviceContent": {"properties.desired.fwupdate": firmware}},
        "targetCondition": condition, "priority": priority, "labels": {"by": "test"},
    })
}

async fn put(site: &Site, id: &str, body: Value) -> Value {
    let (status, _, shown) = site.service("PUT", &format!("/configurations/{id}"), Some(body)).await;
    assert_eq!(status, 201, "{shown}");
    shown
}

/// Asks until the job has ended.
async fn completed(site: &Site, id: &str) -> Value {
    loop {
        let job = site.service("GET", &format!("/jobs/v2/{id}"), None).await.2;
        if job["status"] == "completed" {
            return job;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_job_serves_the_devices_that_its_condition_selects() {
    let site = Site::new().await;
    rings(&site, &[("one", "canary"), ("two", "canary"), ("three", "rest")]).await;
    let order = json!({
        "jobId": "j", "type": "scheduleUpdateTwin", "queryCondition": "tags.ring = 'canary'",
        "updateTwin": {"etag": "*", "properties": {"desired": {"x": 1}}}, "maxExecutionTimeInSeconds": 60,
    });
    assert_eq!(site.service("PUT", "/jobs/v2/j", Some(order.clone())).await.0, 200);
    assert_eq!(site.service("PUT", "/jobs/v2/j", Some(order)).await.0, 409);
    let call = json!({
        "type": "scheduleDeviceMethod", "queryCondition": "deviceId IN ['one']",
        "cloudToDeviceMethod": {"methodName": "m", "payload": {}},
    });
    assert_eq!(site.service("PUT", "/jobs/v2/offline", Some(call)).await.0, 200);
    let mut ended = Vec::new();
    for id in ["j", "offline"] {
        ended.push(completed(&site, id).await["deviceJobStatistics"].clone());
    }
    assert_eq!((&ended[0]["deviceCount"], &ended[0]["succeededCount"]), (&json!(2), &json!(2)));
    assert_eq!((&ended[1]["deviceCount"], &ended[1]["failedCount"]), (&json!(1), &json!(1)));
    assert_eq!((wanted(&site, "one"), wanted(&site, "three")), (json!({"x": 1}), json!({})));

    let query = json!({"query": "SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'offline'"});
    let (status, headers, rows) = site.service("POST", "/devices/query", Some(query)).await;
    assert_eq!((status, headers["x-ms-item-type"].to_str().unwrap()), (200, "DeviceJob"));
    assert_eq!(
        (rows[0]["status"].as_str(), rows[0]["error"]["code"].as_str()),
        (Some("failed"), Some("404103"))
    );
    let (_, headers, all) = site.service("GET", "/jobs/v2/query?jobType=scheduleUpdateTwin", None).await;
    assert_eq!((all.as_array().unwrap().len(), &all[0]["jobId"]), (1, &json!("j")));
    assert_eq!(headers["x-ms-item-type"], "JobResponse");
    assert!(!headers.contains_key("x-ms-continuation"));
}

#[tokio::test]
async fn a_job_waits_for_its_time_and_can_be_cancelled() {
    let site = Site::new().await;
    let order = json!({
        "type": "scheduleUpdateTwin", "queryCondition": "*", "startTime": "2999-01-01T00:00:00Z",
        "updateTwin": {"properties": {"desired": {"x": 1}}},
    });
    let (_, _, job) = site.service("PUT", "/jobs/v2/later", Some(order)).await;
    assert_eq!((&job["status"], &job["startTime"]), (&json!("scheduled"), &json!("2999-01-01T00:00:00Z")));
    let (status, _, job) = site.service("POST", "/jobs/v2/later/cancel", None).await;
    assert_eq!((status, &job["status"]), (200, &json!("cancelled")));
    assert_eq!(site.service("GET", "/jobs/v2/none", None).await.0, 404);
    for nonsense in [
        json!({"type": "export"}),
        json!({"type": "scheduleUpdateTwin", "queryCondition": "tags."}),
        json!({"type": "scheduleUpdateTwin", "startTime": "soon"}),
        json!({"type": "scheduleUpdateTwin", "maxExecutionTimeInSeconds": 0}),
        json!({"type": "scheduleDeviceMethod", "cloudToDeviceMethod": {}}),
    ] {
        assert_eq!(site.service("PUT", "/jobs/v2/n", Some(nonsense.clone())).await.0, 400, "{nonsense}");
    }
}

#[tokio::test]
async fn jobs_outlive_a_restart() {
    let site = Site::new().await;
    let twin = |ring: &str, start: &str| {
        json!({"type": "scheduleUpdateTwin", "queryCondition": format!("tags.ring = '{ring}'"), "startTime": start,
            "updateTwin": {"properties": {"desired": {"x": 1}}}})
    };
    rings(&site, &[("one", "canary")]).await;
    assert_eq!(site.service("PUT", "/jobs/v2/done", Some(twin("canary", ""))).await.0, 200);
    let done = completed(&site, "done").await;
    assert_eq!(
        site.service("PUT", "/jobs/v2/later", Some(twin("canary", "2999-01-01T00:00:00Z"))).await.0,
        200
    );
    // `d` is called and has not answered when the hub goes down; `e` has not had its turn.
    let mut d = site.connect("d").await;
    d.subscribe(METHODS).await;
    let call = json!({
        "type": "scheduleDeviceMethod", "queryCondition": "deviceId IN ['d', 'e']",
        "cloudToDeviceMethod": {"methodName": "m", "payload": {}, "connectTimeoutInSeconds": 60},
    });
    assert_eq!(site.service("PUT", "/jobs/v2/cut", Some(call)).await.0, 200);
    assert!(d.message().await.0.starts_with("$iothub/methods/POST/m/"));

    let site = site.restart().await;
    assert_eq!(site.service("GET", "/jobs/v2/done", None).await.2, done);
    let later = site.service("POST", "/jobs/v2/later/cancel", None).await.2;
    assert_eq!(later["status"], "cancelled");
    for (id, known) in [("d", true), ("e", false)] {
        let mut client = site.dial().await;
        assert_eq!(client.login(site.login(id)).await, Ok(known), "{id}");
        if !known {
            client.subscribe(METHODS).await;
        }
        let (topic, _) = client.message().await;
        let request = topic.split_once("?$rid=").unwrap().1;
        client.publish(&format!("$iothub/methods/res/200/?$rid={request}"), "{}").await;
        client.expect_silence().await;
    }
    let cut = completed(&site, "cut").await;
    assert_eq!(cut["deviceJobStatistics"]["succeededCount"], 2, "{cut}");
    let site = site.restart().await;
    assert_eq!(site.service("GET", "/jobs/v2/later", None).await.2["status"], "cancelled");
}

#[tokio::test]
async fn the_highest_priority_wins_and_the_next_one_follows() {
    let site = Site::new().await;
    rings(&site, &[("one", "canary"), ("two", "rest")]).await;
    put(&site, "all", configuration("*", 1, json!({"version": "1", "old": true}))).await;
    put(&site, "canary", configuration("tags.ring = 'canary'", 10, json!({"version": "2"}))).await;
    let one = json!({"fwupdate": {"version": "2"}});
    let two = json!({"fwupdate": {"version": "1", "old": true}});
    assert_eq!(
        (wanted(&site, "one"), wanted(&site, "two")),
        (one, two.clone()),
        "a section is replaced whole"
    );
    let standing = |id: &str| site.hub.twin(id).unwrap()["configurations"].clone();
    assert_eq!(standing("one"), json!({"all": {"status": "Targeted"}, "canary": {"status": "Applied"}}));

    let shown = site.service("GET", "/configurations/all", None).await.2;
    assert_eq!(shown["systemMetrics"]["results"], json!({"targetedCount": 4, "appliedCount": 3}));
    let query = &shown["systemMetrics"]["queries"]["appliedCount"];
    let rows = site.service("POST", "/devices/query", Some(json!({"query": query}))).await.2;
    assert_eq!(rows, json!([{"deviceId": "d"}, {"deviceId": "e"}, {"deviceId": "two"}]));

    assert_eq!(site.service("DELETE", "/configurations/canary", None).await.0, 204);
    assert_eq!(wanted(&site, "one"), two, "the next one takes its place");
    assert_eq!(site.service("DELETE", "/configurations/all", None).await.0, 204);
    assert_eq!((wanted(&site, "one"), standing("one")), (two, json!({})), "what was written stays");
    assert_eq!(site.service("GET", "/configurations", None).await.2, json!([]));
}

#[tokio::test]
async fn from_a_device_that_no_longer_fits_it_is_taken_back() {
    let site = Site::new().await;
    let mut d = site.connect("d").await;
    d.subscribe(DESIRED).await;
    tag(&site, "d", "canary").await;
    put(&site, "low", configuration("tags.ring != 'none'", 1, json!({"version": "1"}))).await;
    assert_eq!(d.message().await.1["fwupdate"], json!({"version": "1"}));
    put(&site, "high", configuration("tags.ring = 'canary'", 9, json!({"version": "2"}))).await;
    assert_eq!(d.message().await.1["fwupdate"], json!({"version": "2"}));
    tag(&site, "d", "rest").await;
    assert_eq!(d.message().await.1["fwupdate"], json!({"version": "1"}), "the next one holds");
    tag(&site, "d", "none").await;
    assert_eq!(d.message().await.1["fwupdate"], Value::Null);
    assert_eq!(wanted(&site, "d"), json!({}));
    let narrowed = configuration("deviceId = 'nobody'", 9, json!({"version": "2"}));
    tag(&site, "d", "canary").await;
    assert_eq!(d.message().await.1["fwupdate"], json!({"version": "2"}));
    site.hub.patch_desired("d", json!({"other": 1})).unwrap();
    assert_eq!(d.message().await.1["other"], 1);
    let (status, _, shown) = site.service_if("PUT", "/configurations/high", Some(narrowed), Some("*")).await;
    assert_eq!((status, &shown["systemMetrics"]["results"]["targetedCount"]), (200, &json!(0)));
    assert_eq!(d.message().await.1["fwupdate"], json!({"version": "1"}));
    assert_eq!(wanted(&site, "d"), json!({"fwupdate": {"version": "1"}, "other": 1}));
}

#[tokio::test]
async fn devices_that_come_to_fit_are_told_and_what_a_service_writes_stays() {
    let site = Site::new().await;
    let mut d = site.connect("d").await;
    d.subscribe(DESIRED).await;
    put(&site, "fw", configuration("tags.ring = 'canary'", 1, json!({"version": "2"}))).await;
    d.expect_silence().await;
    tag(&site, "d", "canary").await;
    assert_eq!(d.message().await.1, json!({"fwupdate": {"version": "2"}, "$version": 2}));
    // Halting one gateway: the configuration is not written again until another one had the path.
    site.hub.patch_desired("d", json!({"fwupdate": null})).unwrap();
    assert_eq!(d.message().await.1, json!({"fwupdate": null, "$version": 3}));
    put(&site, "other", configuration("deviceId = 'nobody'", 9, json!({"version": "3"}))).await;
    d.expect_silence().await;
    // By what a device itself reports.
    put(&site, "reported", configuration("properties.reported.ready = true", 5, json!({"version": "4"})))
        .await;
    d.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", r#"{"ready": true}"#).await;
    assert_eq!(d.message().await.1, json!({"fwupdate": {"version": "4"}, "$version": 4}));
    // A device that is registered later is a target too.
    put(&site, "everyone", configuration("*", 0, json!({"version": "0"}))).await;
    rings(&site, &[("late", "canary")]).await;
    let told = |twin: &Value| twin["properties"]["desired"]["fwupdate"]["version"] == "2";
    while !told(&site.hub.twin("late").unwrap()) {
        tokio::task::yield_now().await;
    }
    let site = site.restart().await;
    let shown = site.service("GET", "/configurations/fw", None).await.2;
    assert_eq!(shown["systemMetrics"]["results"], json!({"targetedCount": 2, "appliedCount": 1}), "{shown}");
}

#[tokio::test]
async fn a_configuration_is_changed_by_its_etag_and_never_in_its_content() {
    let site = Site::new().await;
    let first = configuration("*", 1, json!({"version": "1"}));
    let made = put(&site, "fw", first.clone()).await;
    assert_eq!(
        (&made["id"], &made["priority"], &made["labels"]),
        (&json!("fw"), &json!(1), &json!({"by": "test"}))
    );
    assert_eq!(site.service("PUT", "/configurations/fw", Some(first.clone())).await.0, 409);
    let etag = made["etag"].as_str().unwrap();
    let metrics = json!({"queries": {"failed": "SELECT deviceId FROM devices WHERE properties.reported.firmwareStatus = 'failed'"}});
    let mut change = made.clone();
    (change["priority"], change["metrics"]) = (json!(7), metrics);
    let (status, _, changed) =
        site.service_if("PUT", "/configurations/fw", Some(change.clone()), Some(etag)).await;
    assert_eq!(
        (status, &changed["priority"], &changed["createdTimeUtc"]),
        (200, &json!(7), &made["createdTimeUtc"])
    );
    assert_eq!(changed["metrics"]["results"], json!({"failed": 0}));
    assert_eq!(site.service_if("PUT", "/configurations/fw", Some(change.clone()), Some(etag)).await.0, 412);
    change["content"]["deviceContent"]["properties.desired.fwupdate"]["version"] = json!("2");
    let (status, _, refused) = site.service_if("PUT", "/configurations/fw", Some(change), Some("*")).await;
    assert!(status == 400 && refused["Message"].as_str().unwrap().contains("content"), "{refused}");
    assert_eq!(site.service_if("DELETE", "/configurations/fw", None, Some(etag)).await.0, 412);
    assert_eq!(site.service_if("DELETE", "/configurations/fw", None, Some("*")).await.0, 204);
    let (status, headers, _) = site.service("GET", "/configurations/fw", None).await;
    assert_eq!((status, headers["iothub-errorcode"].to_str().unwrap()), (404, "ConfigurationNotFound"));
}

#[tokio::test]
async fn configurations_that_make_no_sense_are_refused() {
    let site = Site::new().await;
    let good = || configuration("*", 1, json!({}));
    let with = |field: &str, value: Value| {
        let mut body = good();
        body[field] = value;
        body
    };
    for (id, status, body) in [
        ("Upper", 400, good()),
        ("x", 400, with("priority", json!(-1))),
        ("x", 400, with("targetCondition", json!("tags.x ="))),
        ("x", 501, with("targetCondition", json!("FROM devices.modules WHERE moduleId = 'm'"))),
        ("x", 400, with("metrics", json!({"queries": {"m": "DELETE"}}))),
        ("x", 400, with("content", json!({}))),
        ("x", 400, with("content", json!({"deviceContent": {"tags.x": 1}}))),
        ("x", 501, with("content", json!({"modulesContent": {"$edgeAgent": {}}}))),
    ] {
        let (told, _, answer) =
            site.service("PUT", &format!("/configurations/{id}"), Some(body.clone())).await;
        assert_eq!(told, status, "{body} {answer}");
    }
    assert_eq!(site.service("GET", "/configurations", None).await.2, json!([]));
}

#[tokio::test]
async fn counts_and_columns_are_raw_rows() {
    let site = Site::new().await;
    rings(&site, &[("one", "canary"), ("two", "canary"), ("three", "rest")]).await;
    let ask = async |query: &str| {
        let (status, headers, rows) =
            site.service("POST", "/devices/query", Some(json!({"query": query}))).await;
        assert_eq!(status, 200, "{rows}");
        (headers["x-ms-item-type"].to_str().unwrap().to_owned(), rows)
    };
    let grouped =
        "SELECT tags.ring AS ring, COUNT() AS n FROM devices WHERE is_defined(tags.ring) GROUP BY tags.ring";
    let (kind, rows) = ask(grouped).await;
    assert_eq!((kind.as_str(), rows), ("Raw", json!([{"ring": "canary", "n": 2}, {"ring": "rest", "n": 1}])));
    assert_eq!(
        ask("SELECT deviceId FROM devices WHERE tags.ring = 'rest'").await.1,
        json!([{"deviceId": "three"}])
    );
    site.service("PUT", "/devices/d/modules/m", Some(json!({}))).await;
    let (kind, rows) = ask("SELECT * FROM devices.modules").await;
    assert_eq!((kind.as_str(), &rows[0]["moduleId"]), ("Twin", &json!("m")));
    let statistics = site.service("GET", "/statistics/devices", None).await.2;
    assert_eq!(statistics, json!({"totalDeviceCount": 5, "enabledDeviceCount": 5, "disabledDeviceCount": 0}));
    let _d = site.connect("d").await;
    assert_eq!(site.service("GET", "/statistics/service", None).await.2, json!({"connectedDeviceCount": 1}));
}
