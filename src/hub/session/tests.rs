//! A session's deadlines and what it counts; and, against a scripted hub over real TLS, what it answers and what not.

use super::*;
use crate::hub::connection::testing::{Agent, twin};
use crate::hub::event::HubEvent;
use crate::hub::method::MethodCall;
use crate::hub::testing::Server;
use rumqttc::{ConnectReturnCode, Publish};
use serde_json::json;

fn session(life: Option<Duration>) -> Session {
    connected(life).0
}

fn connected(life: Option<Duration>) -> (Session, EventLoop) {
    let (host, device_id) = ("hub".to_owned(), "dev-1".to_owned());
    let seat = Seat { host, gateway: None, device_id, module_id: None };
    let contact = Contact { address: "localhost:1".into(), identity: "dev-1".into(), remote: None };
    Session::new(MqttOptions::new("dev-1", "localhost", 1), seat, contact, life)
}

#[test]
fn a_renewal_waits_for_a_quiet_moment_but_not_until_the_token_ends() {
    let hour = session(Some(Duration::from_secs(3600)));
    let after = |seconds| hour.started + Duration::from_secs(seconds);
    assert!(!hour.must_renew(after(3000), true));
    assert!(hour.must_renew(after(3061), true));
    assert!(!hour.must_renew(after(3061), false));
    assert!(hour.must_renew(after(3421), false));
    assert!(!session(None).must_renew(after(1_000_000), true));
}

#[test]
fn it_wakes_for_the_nearest_deadline_and_never_in_the_past() {
    let mut session = session(Some(Duration::from_secs(3600)));
    let start = session.started;
    assert_eq!(session.wake_at(start, None), session.handshake_by());
    session.subscribed = topics::SUBSCRIPTIONS.len();
    let (at, by) = session.renewal().unwrap();
    assert_eq!(session.wake_at(start, None), at);
    assert_eq!(session.wake_at(at, None), by);
    let soon = start + Duration::from_secs(1);
    assert_eq!(session.wake_at(start, Some(soon)), soon);
}

#[test]
fn only_the_acknowledgement_of_telemetry_counts_as_one() {
    // Its event loop is there, or nothing could be queued.
    let (mut session, _events) = connected(None);
    for telemetry in [false, true, false] {
        assert!(session.publish("t".into(), Vec::new(), telemetry));
    }
    (1..4).for_each(|packet| session.left(packet));
    assert!(!session.acknowledges_telemetry(1) && !session.acknowledges_telemetry(3));
    assert!(session.acknowledges_telemetry(2) && !session.acknowledges_telemetry(2));
}

#[test]
fn it_is_idle_when_every_call_was_answered_and_every_answer_sent() {
    let mut session = session(None);
    assert!(session.is_idle());
    let call = MethodCall::new("m".into(), "1", b"", session.calls.clone());
    assert!(!session.is_idle());
    call.respond(200, json!({}));
    assert!(!session.is_idle());
    let reply = session.answers.try_recv().unwrap();
    assert!(session.is_idle());
    session.reply(reply);
}

#[test]
fn the_first_ping_without_an_answer_ends_it_and_whatever_comes_is_an_answer() {
    let mut session = session(None);
    session.subscribed = topics::SUBSCRIPTIONS.len();
    session.sent(&Outgoing::PingReq);
    let by = session.pong_by.unwrap();
    assert!(by.duration_since(session.started) < Duration::from_secs(60), "long before the next ping");
    assert_eq!(session.wake_at(session.started, None), by);
    assert!(session.is_silent(by) && !session.is_silent(by - Duration::from_millis(1)));
    session.heard();
    assert!(!session.is_silent(by));
}

#[tokio::test]
async fn a_hub_that_answers_a_ping_and_not_the_next_is_left_before_one_more_is_due() {
    let server = Server::start().await;
    let mut cloud = server.cloud();
    cloud.keep_alive = Duration::from_secs(8);
    let life = cloud.keep_alive;
    let mut agent = Agent::start(cloud, json!({}));
    let mut hub = server.accept().await;
    hub.welcome(&twin(json!({}), json!({}))).await;
    agent.connected().await;
    assert_eq!(hub.read().await, Some(Packet::PingReq));
    hub.write(Packet::PingResp).await;
    assert_eq!(hub.read().await, Some(Packet::PingReq));
    let asked = Instant::now();
    assert_eq!(hub.read().await, None);
    assert!(asked.elapsed() < life, "the client itself notices that much later: {:?}", asked.elapsed());
    while !matches!(agent.event().await, HubEvent::Disconnected { reason, .. } if reason.contains("did not answer"))
    {
    }
}

#[tokio::test]
async fn messages_for_an_application_are_left_to_it_and_all_others_are_acknowledged() {
    let server = Server::start().await;
    let mut agent = Agent::start(server.cloud(), json!({}));
    let mut hub = server.accept().await;
    hub.connack(ConnectReturnCode::Success, true).await;
    let at_least_once = |topic: &str, pkid| {
        let mut message = Publish::new(topic, QoS::AtLeastOnce, "{}");
        message.pkid = pkid;
        Packet::Publish(message)
    };
    // An application of this identity subscribed to them once.
    for pkid in [7, 8] {
        hub.write(at_least_once("devices/dev-1/messages/devicebound/%24.to=x", pkid)).await;
    }
    hub.write(at_least_once("$iothub/methods/POST/m/?$rid=1", 9)).await;
    let mut said = Vec::new();
    while said.len() < 5 {
        said.push(hub.read().await.unwrap());
    }
    let acknowledged: Vec<_> = said
        .iter()
        .filter_map(|packet| if let Packet::PubAck(ack) = packet { Some(ack.pkid) } else { None })
        .collect();
    assert_eq!(acknowledged, [9]);
    let ended: Vec<_> = said
        .iter()
        .filter_map(
            |packet| if let Packet::Unsubscribe(end) = packet { Some(end.topics.clone()) } else { None },
        )
        .collect();
    assert_eq!(ended, [["devices/dev-1/messages/devicebound/#"]]);
    agent.call().await.respond(200, json!({}));
    assert_eq!(hub.published().await.topic, "$iothub/methods/res/200/?$rid=1");
}
