//! The driver against a scripted hub over real TLS.

use super::testing::{Agent, document, twin};
use super::*;
use crate::config::{Auth, KeyPlace, Secret, TimeServer};
use crate::hub::testing::{Pair, Server, soon};
use rumqttc::ConnectReturnCode;
use serde_json::json;
use time::OffsetDateTime;

#[tokio::test]
async fn it_subscribes_reads_the_twin_and_reports_what_differs() {
    let server = Server::start().await;
    let mut agent = Agent::start(server.cloud(), json!({"firmwareStatus": "standBy", "fwupdate": {"a": 1}}));

    let mut hub = server.accept().await;
    let connect = hub.connack(ConnectReturnCode::Success, false).await;
    assert_eq!(connect.client_id, "dev-1");
    assert!(!connect.clean_session);
    let login = connect.login.unwrap();
    assert!(login.username.starts_with("myhub.azure-devices.net/dev-1/?api-version="));
    assert!(
        login.password.starts_with("SharedAccessSignature sr=myhub.azure-devices.net%2Fdevices%2Fdev-1&sig=")
    );
    let filters = hub.suback(SubscribeReasonCode::Success(QoS::AtLeastOnce)).await;
    assert_eq!(filters, topics::SUBSCRIPTIONS);
    hub.show_twin(&twin(json!({"x": 1, "$version": 3}), json!({"other": 9, "fwupdate": {"a": 1, "b": 2}})))
        .await;
    let patch = hub.patch().await;
    assert_eq!(patch.body, json!({"firmwareStatus": "standBy", "fwupdate": {"b": null}}));
    hub.answer(&patch, 204).await;

    agent.connected().await;
    assert_eq!(agent.desired().await, json!({"x": 1, "$version": 3}));
    assert_eq!(agent.acknowledged().await, 1);
    agent.stop(hub).await;
}

#[tokio::test]
async fn after_a_break_during_a_patch_only_the_newest_document_is_sent() {
    let server = Server::start().await;
    let mut agent = Agent::start(server.cloud(), json!({"n": 1}));
    let empty = twin(json!({"$version": 1}), json!({}));

    let mut hub = server.accept().await;
    hub.welcome(&empty).await;
    agent.connected().await;
    agent.desired().await;
    // Not even acknowledged by MQTT: a client that keeps its session would send it again.
    let Some(Packet::Publish(patch)) = hub.read().await else { panic!("no patch") };
    assert_eq!(&patch.payload[..], br#"{"n":1}"#);
    agent.documents.send_replace(document(2, json!({"n": 2})));
    drop(hub);
    assert!(agent.disconnected().await.contains("broke"));

    let mut hub = server.accept().await;
    hub.welcome(&empty).await;
    let patch = hub.patch().await;
    assert_eq!(patch.body, json!({"n": 2}));
    hub.answer(&patch, 204).await;
    agent.connected().await;
    agent.desired().await;
    assert_eq!(agent.acknowledged().await, 2);
    agent.stop(hub).await;
}

#[tokio::test]
async fn a_token_is_renewed_by_a_reconnect_that_is_no_outage() {
    let server = Server::start().await;
    let mut cloud = server.cloud();
    cloud.token_ttl = Duration::from_secs(2);
    let mut agent = Agent::start(cloud, json!({}));

    let mut hub = server.accept().await;
    let first = hub.welcome(&twin(json!({"$version": 1}), json!({}))).await;
    agent.connected().await;
    agent.desired().await;
    agent.acknowledged().await;
    assert_eq!(hub.read().await, Some(Packet::Disconnect));

    let mut hub = server.accept().await;
    let second = hub.welcome(&twin(json!({"$version": 2}), json!({}))).await;
    assert_ne!(first.login.unwrap().password, second.login.unwrap().password);
    // Neither a disconnection nor a second connection is told.
    assert_eq!(agent.desired().await, json!({"$version": 2}));
    hub.publish("$iothub/methods/POST/m/?$rid=1", b"").await;
    agent.call().await.respond(200, json!({}));
    assert_eq!(hub.published().await.topic, "$iothub/methods/res/200/?$rid=1");
}

#[tokio::test]
async fn a_renewal_that_fails_is_an_outage() {
    let server = Server::start().await;
    let mut cloud = server.cloud();
    cloud.token_ttl = Duration::from_secs(2);
    let mut agent = Agent::start(cloud, json!({}));
    let mut hub = server.accept().await;
    hub.welcome(&twin(json!({"$version": 1}), json!({}))).await;
    agent.connected().await;
    agent.desired().await;
    agent.acknowledged().await;
    assert_eq!(hub.read().await, Some(Packet::Disconnect));
    server.accept().await.connack(ConnectReturnCode::ServiceUnavailable, false).await;
    assert!(agent.disconnected().await.contains("refused the connection of dev-1"));
}

#[tokio::test]
async fn refused_credentials_are_told_once_and_again_as_final_and_are_tried_again() {
    let server = Server::start().await;
    let mut agent = Agent::start(server.cloud(), json!({}));
    for told in [Some(false), Some(true), None] {
        let connect = server.accept().await.connack(ConnectReturnCode::NotAuthorized, false).await;
        assert_eq!(connect.client_id, "dev-1");
        if let Some(expected) = told {
            let event = agent.event().await;
            let HubEvent::Disconnected { reason, denied } = event else { panic!("{event:?}") };
            assert!(reason.contains("refused the credentials of dev-1"));
            assert_eq!(denied, expected, "one refusal may be the hub's own trouble");
        }
    }
    let mut hub = server.accept().await;
    hub.welcome(&twin(json!({}), json!({}))).await;
    agent.connected().await;
    agent.desired().await;
    agent.acknowledged().await;
    agent.stop(hub).await;
}

#[tokio::test]
async fn a_refused_subscription_is_an_outage() {
    let server = Server::start().await;
    let mut agent = Agent::start(server.cloud(), json!({}));
    let mut hub = server.accept().await;
    hub.connack(ConnectReturnCode::Success, false).await;
    hub.suback(SubscribeReasonCode::Failure).await;
    assert!(agent.disconnected().await.contains("refused a subscription"));
}

#[tokio::test]
async fn calls_are_answered_even_before_the_twin_was_read() {
    let server = Server::start().await;
    let mut agent = Agent::start(server.cloud(), json!({}));
    let mut hub = server.accept().await;
    hub.connack(ConnectReturnCode::Success, false).await;
    hub.suback(SubscribeReasonCode::Success(QoS::AtLeastOnce)).await;
    let read = hub.published().await;

    hub.publish("$iothub/methods/POST/firmwareUpdate/?$rid=a1", br#"{"fwPackageUri":"u"}"#).await;
    hub.publish("$iothub/methods/POST/firmwareUpdate/?$rid=a2", b"{not json").await;
    hub.publish("$iothub/nonsense", b"x").await;
    hub.publish("$iothub/twin/res/200/?$rid=unknown", b"x").await;
    let call = agent.call().await;
    assert_eq!((call.name.as_str(), &call.payload), ("firmwareUpdate", &Ok(json!({"fwPackageUri": "u"}))));
    call.respond(200, json!({"Response": "ok"}));
    let answer = hub.published().await;
    assert_eq!(answer.topic, "$iothub/methods/res/200/?$rid=a1");
    assert_eq!(answer.body, json!({"Response": "ok"}));
    let call = agent.call().await;
    assert!(call.payload.is_err());
    call.respond(400, json!({}));
    assert_eq!(hub.published().await.topic, "$iothub/methods/res/400/?$rid=a2");

    let answer = format!("$iothub/twin/res/200/?$rid={}", read.rid());
    hub.publish(&answer, br#"{"desired":{"$version":1},"reported":{}}"#).await;
    agent.connected().await;
    agent.desired().await;
    agent.acknowledged().await;
    agent.stop(hub).await;
}

#[tokio::test]
async fn an_announced_change_of_desired_properties_is_read_whole() {
    let server = Server::start().await;
    let mut agent = Agent::start(server.cloud(), json!({}));
    let mut hub = server.accept().await;
    hub.welcome(&twin(json!({"fwupdate": {"force": true}, "$version": 1}), json!({}))).await;
    agent.connected().await;
    agent.desired().await;
    agent.acknowledged().await;
    hub.publish("$iothub/twin/PATCH/properties/desired/?$version=1", b"{}").await;
    hub.publish("$iothub/twin/PATCH/properties/desired/?$version=2", br#"{"fwupdate":{"version":"2"}}"#)
        .await;
    hub.show_twin(&twin(json!({"fwupdate": {"version": "2"}, "$version": 2}), json!({}))).await;
    assert_eq!(agent.desired().await, json!({"fwupdate": {"version": "2"}, "$version": 2}));
    agent.stop(hub).await;
}

#[tokio::test]
async fn the_last_report_leaves_before_the_agent_stops() {
    let server = Server::start().await;
    let mut agent = Agent::start(server.cloud(), json!({"n": 1}));
    let mut hub = server.accept().await;
    hub.welcome(&twin(json!({}), json!({"n": 1}))).await;
    agent.connected().await;
    agent.desired().await;
    assert_eq!(agent.acknowledged().await, 1);

    agent.documents.send_replace(document(2, json!({"n": 2})));
    agent.shutdown.cancel();
    let patch = hub.patch().await;
    assert_eq!(patch.body, json!({"n": 2}));
    hub.answer(&patch, 204).await;
    assert_eq!(hub.read().await, Some(Packet::Disconnect));
    assert_eq!(agent.acknowledged().await, 2);
    soon(agent.task).await.unwrap();
}

#[tokio::test]
async fn an_answer_leaves_before_the_agent_stops_even_if_the_twin_was_never_read() {
    let server = Server::start().await;
    let mut agent = Agent::start(server.cloud(), json!({}));
    let mut hub = server.accept().await;
    hub.connack(ConnectReturnCode::Success, false).await;
    hub.suback(SubscribeReasonCode::Success(QoS::AtLeastOnce)).await;
    hub.published().await;
    hub.publish("$iothub/methods/POST/firmwareApprove/?$rid=a1", b"{}").await;
    agent.call().await.respond(200, json!({}));
    agent.shutdown.cancel();
    assert_eq!(hub.published().await.topic, "$iothub/methods/res/200/?$rid=a1");
    assert_eq!(hub.read().await, Some(Packet::Disconnect));
    soon(agent.task).await.unwrap();
}

#[tokio::test]
async fn a_busy_agent_does_not_hold_up_the_session() {
    let server = Server::start().await;
    let mut agent = Agent::at(server.cloud(), json!({"n": 1}), Clock::default(), 1);
    let mut hub = server.accept().await;
    hub.welcome(&twin(json!({"$version": 1}), json!({}))).await;
    // Nobody takes events, yet patches and answers go on.
    for n in 1..=20 {
        let patch = hub.patch().await;
        assert_eq!(patch.body, json!({"n": n}));
        agent.documents.send_replace(document(n + 1, json!({"n": n + 1})));
        hub.answer(&patch, 204).await;
    }
    agent.connected().await;
    agent.desired().await;
    while agent.acknowledged().await < 20 {}
}

#[tokio::test]
async fn a_clock_that_lost_its_time_does_not_end_the_connection() {
    let year = OffsetDateTime::now_utc().year() + 10;
    let server = Server::with(&Pair::new("localhost", year), &[]).await;

    let mut lost = Agent::start(server.cloud(), json!({}));
    assert!(soon(server.try_accept()).await.is_err());
    let reason = lost.disconnected().await;
    assert!(reason.contains("is valid from") && reason.contains("clock"), "{reason}");
    lost.task.abort();
    assert!(soon(lost.task).await.unwrap_err().is_cancelled());

    let floor = OffsetDateTime::now_utc() + Duration::from_secs(11 * 366 * 24 * 3600);
    // Nobody keeps the clock of this machine right, as far as the agent is told.
    let clock = Clock::new(Some(server.path("clock")));
    clock.remember(floor.unix_timestamp());
    let mut agent = Agent::at(server.cloud(), json!({}), clock, 16);
    let mut hub = loop {
        // Attempts of the first agent may still stand in the queue.
        if let Ok(peer) = soon(server.try_accept()).await {
            break peer;
        }
    };
    let connect = hub.welcome(&twin(json!({}), json!({}))).await;
    agent.connected().await;
    let password = connect.login.unwrap().password;
    let expires: i64 = password.rsplit_once("&se=").unwrap().1.parse().unwrap();
    assert!(expires >= floor.unix_timestamp() + 3600);
}

#[tokio::test]
async fn a_certificate_is_read_again_for_each_connection() {
    let (first, second) = (Pair::new("dev-1", 2020), Pair::new("dev-1", 2020));
    let server = Server::with(&Pair::new("localhost", 2020), &[&first, &second]).await;
    let (certificate, key) = (server.path("device.pem"), server.path("device.key"));
    let install = |pair: &Pair| {
        std::fs::write(&certificate, pair.certificate.pem()).unwrap();
        std::fs::write(&key, pair.key.serialize_pem()).unwrap();
    };
    let mut cloud = server.cloud();
    cloud.auth = Auth::X509 { certificate: certificate.clone(), key: KeyPlace::File(key.clone()) };

    install(&first);
    let mut agent = Agent::start(cloud, json!({}));
    let mut hub = server.accept().await;
    let connect = hub.welcome(&twin(json!({}), json!({}))).await;
    assert_eq!(connect.login.unwrap().password, "");
    assert_eq!(hub.certificate(), first.certificate.der().as_ref());
    agent.connected().await;
    install(&second);
    drop(hub);
    let mut hub = server.accept().await;
    assert_eq!(hub.certificate(), second.certificate.der().as_ref());
    hub.welcome(&twin(json!({}), json!({}))).await;
    while !matches!(agent.event().await, HubEvent::Disconnected { .. }) {}
    agent.connected().await;
    agent.stop(hub).await;
}

#[tokio::test]
async fn a_key_that_cannot_be_used_is_told_without_showing_it() {
    let server = Server::start().await;
    let mut cloud = server.cloud();
    cloud.auth = Auth::SharedKey(Secret::new("top secret"));
    let mut agent = Agent::start(cloud, json!({}));
    let reason = agent.disconnected().await;
    assert!(reason.contains("not base64") && !reason.contains("secret"), "{reason}");
    agent.shutdown.cancel();
    soon(agent.task).await.unwrap();
}

#[tokio::test]
async fn when_nobody_listens_any_more_it_sends_the_last_report_and_ends() {
    let server = Server::start().await;
    let mut agent = Agent::start(server.cloud(), json!({"n": 1}));
    let mut hub = server.accept().await;
    hub.welcome(&twin(json!({}), json!({}))).await;
    agent.connected().await;
    let patch = hub.patch().await;
    drop(agent.events);
    hub.answer(&patch, 204).await;
    assert_eq!(hub.read().await, Some(Packet::Disconnect));
    soon(agent.task).await.unwrap();
}

#[tokio::test]
async fn a_session_that_stands_while_nobody_keeps_the_clock_right_asks_for_the_time() {
    let (server, time) = (Server::start().await, Server::start().await);
    let clock = Clock::new(Some(server.path("clock")));
    let mut cloud = server.cloud();
    cloud.time_server = TimeServer::Other { host: "localhost".into(), port: time.port() };
    // Both servers are vouched for.
    let both = ["ca.pem"].map(|name| std::fs::read_to_string(server.path(name)).unwrap()).concat();
    let both = both + &std::fs::read_to_string(time.path("ca.pem")).unwrap();
    std::fs::write(server.path("ca.pem"), both).unwrap();
    let mut agent = Agent::at(cloud, json!({}), clock.clone(), 16);
    let mut hub = server.accept().await;
    hub.welcome(&twin(json!({}), json!({}))).await;
    agent.connected().await;
    let answer = "HTTP/1.1 200 OK\r\nDate: Tue, 01 Jan 2030 00:00:00 GMT\r\n\r\n";
    time.accept().await.answer_request(answer.as_bytes()).await;
    while clock.wants_time() {
        tokio::task::yield_now().await;
    }
    assert_eq!(clock.now().year(), 2030);
}
