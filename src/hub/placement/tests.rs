//! Where the gateway belongs, against a scripted provisioning service over real TLS.

use std::fs;

use super::*;
use crate::hub::connection::testing::Agent;
use crate::hub::dps::ANSWERS;
use crate::hub::testing::{Pair, Peer, Server, soon};
use crate::reach::testing::with_two_addresses;
use rumqttc::{ConnectReturnCode, Packet, QoS, SubAck, SubscribeReasonCode};
use serde_json::json;
use std::sync::LazyLock;

fn cloud(server: &Server) -> (Cloud, Dps) {
    let dps = Dps {
        endpoint: "localhost".into(),
        port: server.port(),
        id_scope: "0ne1".into(),
        registration_id: "gw-1".into(),
        payload: Some(json!({"site": 7})),
        cache: server.path("assigned.json"),
    };
    (Cloud { place: Place::Assigned(dps.clone()), ..server.cloud() }, dps)
}

fn clock() -> &'static Clock {
    static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::default);
    &CLOCK
}

async fn subscribed(service: &mut Peer) {
    let Some(Packet::Subscribe(packet)) = service.read().await else { panic!("no SUBSCRIBE") };
    assert_eq!(packet.filters.iter().map(|filter| filter.path.as_str()).collect::<Vec<_>>(), [ANSWERS]);
    let return_codes = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce)];
    service.write(Packet::SubAck(SubAck { pkid: packet.pkid, return_codes })).await;
}

/// Answers with "assigning" once, and then with this hub.
async fn assign(server: &Server, hub: &str) {
    let mut service = server.accept().await;
    let connect = service.connack(ConnectReturnCode::Success, false).await;
    assert_eq!((connect.client_id.as_str(), connect.clean_session), ("gw-1", true));
    let login = connect.login.unwrap();
    assert!(
        login
            .username
            .starts_with("0ne1/registrations/gw-1/api-version=2019-03-31&ClientVersion=fwupdate%2F")
    );
    assert!(login.password.starts_with("SharedAccessSignature sr=0ne1%2Fregistrations%2Fgw-1&sig="));
    assert!(login.password.ends_with("&skn=registration"));
    subscribed(&mut service).await;
    let request = service.published().await;
    assert_eq!(request.topic, format!("$dps/registrations/PUT/iotdps-register/?$rid={}", request.rid()));
    assert_eq!(request.body, json!({"registrationId": "gw-1", "payload": {"site": 7}}));
    let assigning = json!({"operationId": "4.op", "status": "assigning"}).to_string();
    // What belongs to another request counts for nothing.
    service.publish("$dps/registrations/res/200/?$rid=other", b"{}").await;
    let topic = format!("$dps/registrations/res/202/?$rid={}&retry-after=1", request.rid());
    service.publish(&topic, assigning.as_bytes()).await;
    let request = service.published().await;
    let (topic, operation) = request.topic.split_once("&operationId=").unwrap();
    assert!(topic.starts_with("$dps/registrations/GET/iotdps-get-operationstatus/?$rid="), "{topic}");
    assert_eq!(operation, "4.op");
    let rid = topic.rsplit_once('=').unwrap().1;
    let state = json!({"assignedHub": hub, "deviceId": "gw-1"});
    let assigned =
        json!({"operationId": "4.op", "status": "assigned", "registrationState": state}).to_string();
    service.publish(&format!("$dps/registrations/res/200/?$rid={rid}"), assigned.as_bytes()).await;
    assert_eq!(service.read().await, Some(Packet::Disconnect));
}

/// What the hub says when it refuses.
fn refused() -> HubError {
    HubError::Refused { identity: "gw-1".into() }
}

#[tokio::test]
async fn what_was_assigned_is_remembered_for_this_registration_alone() {
    let server = Server::start().await;
    let (cloud, dps) = cloud(&server);
    let mut placement = Placement::new(&cloud.place);
    let (seat, ()) = tokio::join!(placement.find(&cloud, clock()), assign(&server, "one.azure-devices.net"));
    assert_eq!(seat.unwrap().host, "one.azure-devices.net");
    // Nobody is asked again: there is no one to answer.
    assert_eq!(soon(placement.find(&cloud, clock())).await.unwrap().device_id, "gw-1");
    let seat = soon(Placement::new(&cloud.place).find(&cloud, clock())).await.unwrap();
    assert_eq!(seat.host, "one.azure-devices.net");

    let text = fs::read_to_string(&dps.cache).unwrap();
    for other in [
        Dps { registration_id: "gw-2".into(), ..dps.clone() },
        Dps { id_scope: "0ne2".into(), ..dps.clone() },
        Dps { endpoint: "elsewhere".into(), ..dps.clone() },
    ] {
        assert_eq!(recall(&other), None);
    }
    for damaged in ["", "{", &text[..text.len() / 2], &text.replace("one.azure", "one/azure")] {
        fs::write(&dps.cache, damaged).unwrap();
        assert_eq!(recall(&dps), None, "{damaged}");
    }
}

#[test]
fn a_hub_that_is_assigned_by_its_name_for_tls_1_3_is_followed() {
    const NAME: &str = "myhub.device.azure-devices.net";
    with_two_addresses(NAME, || async {
        // No other name leads anywhere here.
        let service = Server::at("127.0.0.1:0", &Pair::new("127.0.0.1", 2020), &[]).await;
        // Speaks nothing but TLS 1.3.
        let server = Server::at("127.0.0.2:0", &Pair::new(NAME, 2020), &[]).await;
        let both = [&service, &server].map(|server| fs::read(server.path("ca.pem")).unwrap()).concat();
        fs::write(service.path("ca.pem"), both).unwrap();
        let (cloud, dps) = cloud(&service);
        let place = Place::Assigned(Dps { endpoint: "127.0.0.1".into(), ..dps });
        let mut agent = Agent::start(Cloud { place, port: server.port(), ..cloud }, json!({}));
        assign(&service, NAME).await;
        let mut hub = server.accept().await;
        let connect = hub.welcome(&json!({"desired": {}, "reported": {}})).await;
        let login = connect.login.unwrap();
        assert!(login.username.starts_with(&format!("{NAME}/gw-1/?api-version=")), "{}", login.username);
        let resource = format!("SharedAccessSignature sr={NAME}%2Fdevices%2Fgw-1&");
        assert!(login.password.starts_with(&resource), "{}", login.password);
        agent.connected().await;
    });
}

#[tokio::test]
async fn a_refusal_makes_it_ask_again_at_once_and_then_only_after_a_pause() {
    let server = Server::start().await;
    let (cloud, dps) = cloud(&server);
    let seat =
        |host: &str| Seat { host: host.into(), gateway: None, device_id: "gw-1".into(), module_id: None };
    remember(&dps, &seat("old"));
    let mut placement = Placement::new(&cloud.place);
    placement.failed(&HubError::Silent { address: "old:8883".into() });
    assert_eq!(soon(placement.find(&cloud, clock())).await.unwrap().host, "old", "no reason to doubt it yet");
    placement.failed(&refused());
    let (found, ()) = tokio::join!(placement.find(&cloud, clock()), assign(&server, "new"));
    assert_eq!((found.unwrap().host.as_str(), recall(&dps).unwrap().host.as_str()), ("new", "new"));

    for _ in 0..50 {
        placement.failed(&refused());
        assert_eq!(
            soon(placement.find(&cloud, clock())).await.unwrap().host,
            "new",
            "a storm on the service"
        );
    }
    let Placement::Assigned(assigned) = &placement else { panic!("known") };
    assert!(assigned.wait_left() > PAUSES.0 - Duration::from_secs(20), "{:?}", assigned.wait_left());
    placement.reached();
    placement.failed(&refused());
    assert_eq!(
        soon(placement.find(&cloud, clock())).await.unwrap().host,
        "new",
        "a short session proves little"
    );
    placement.held();
    let (found, ()) = tokio::join!(placement.find(&cloud, clock()), assign(&server, "third"));
    assert_eq!(found.unwrap().host, "third");
}

#[tokio::test]
async fn a_hub_that_cannot_be_reached_for_long_may_have_been_replaced() {
    let server = Server::start().await;
    let (cloud, dps) = cloud(&server);
    remember(&dps, &Seat { host: "gone".into(), gateway: None, device_id: "gw-1".into(), module_id: None });
    let mut placement = Placement::new(&cloud.place);
    for _ in 0..FAILURES {
        assert_eq!(soon(placement.find(&cloud, clock())).await.unwrap().host, "gone");
        placement.failed(&HubError::Silent { address: "gone:8883".into() });
    }
    // The service has nothing better: the old place is tried on.
    let refuse = async {
        server.accept().await.connack(ConnectReturnCode::NotAuthorized, false).await;
    };
    let (found, ()) = tokio::join!(placement.find(&cloud, clock()), refuse);
    assert_eq!(found.unwrap().host, "gone");
}

#[tokio::test]
async fn without_a_place_a_refusal_is_told_and_followed_by_a_long_pause() {
    let server = Server::start().await;
    let (cloud, _) = cloud(&server);
    let mut placement = Placement::new(&cloud.place);
    let refuse = async {
        server.accept().await.connack(ConnectReturnCode::NotAuthorized, false).await;
    };
    let (found, ()) = tokio::join!(placement.find(&cloud, clock()), refuse);
    let error = found.unwrap_err();
    assert!(matches!(error, HubError::DpsRefused { .. }), "{error}");
    assert!(placement.patience() > PAUSES.0 - Duration::from_secs(20), "{:?}", placement.patience());

    // A service that hangs up is no refusal: the network may be down, and nobody is burdened.
    let mut placement = Placement::new(&cloud.place);
    let hang_up = async { drop(server.accept().await) };
    let (found, ()) = tokio::join!(placement.find(&cloud, clock()), hang_up);
    assert!(!found.unwrap_err().is_refusal());
    assert_eq!(placement.patience(), Duration::ZERO);
}
