//! The provisioning service assigns the hub: by a key, by a group's key, by a certificate; and another one later.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use fwupdate_hub::dps::{Attestation, Enrollment, derive};
use fwupdate_hub::registry::Credentials;
use fwupdate_hub::{Hub, Options};
use serde_json::{Value, json};

use crate::harness::{DEVICE, LIMIT, Setup, World};

/// A gateway that is off, knows no hub, and asks this one's provisioning service with these settings.
async fn world(enrollment: &Enrollment, settings: &str) -> World {
    let world = World::with(Setup { registered: false, on: false, ..Setup::default() }).await;
    world.hub.enroll(enrollment).unwrap();
    configure(&world, settings);
    world
}

fn configure(world: &World, settings: &str) {
    let port = world.hub.mqtt_addr().port();
    let scope = world.hub.id_scope();
    let dps = format!(
        "[cloud.dps]\nendpoint = \"localhost\"\nport = {port}\nid_scope = {scope:?}\n\
         registration_id = {DEVICE:?}\n{settings}\n"
    );
    world.gateway.configure("60-dps", &dps).unwrap();
}

fn keys() -> (Attestation, String) {
    let attestation = Attestation::new_keys();
    let Attestation::SymmetricKey { primary_key, .. } = &attestation else { panic!("no key") };
    let key = primary_key.clone();
    (attestation, key)
}

fn cache(world: &World) -> Value {
    let text = fs::read(world.gateway.dir().join("state/assigned.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[tokio::test]
async fn a_key_of_its_own_and_an_update_that_asks_nobody_again() {
    let (attestation, key) = keys();
    let enrollment = Enrollment { polls: 2, ..Enrollment::individual(DEVICE, attestation) };
    let settings = format!("symmetric_key = {key:?}\npayload = '{{\"site\": \"Berlin\"}}'");
    let mut world = world(&enrollment, &settings).await;
    world.hub.faults().mqtt(|faults| faults.throttle_registrations = 1);
    world.switch_on().await;
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");

    let registrations = world.hub.registrations();
    assert_eq!(registrations.len(), 1, "what was assigned outlives the reboot: {registrations:?}");
    assert_eq!(registrations[0].payload, Some(json!({"site": "Berlin"})));
    let cache = cache(&world);
    assert_eq!((&cache["assignedHub"], &cache["deviceId"]), (&"localhost".into(), &DEVICE.into()));
    assert!(!cache.to_string().contains(&key));
    assert!(!world.gateway.log().contains(&key));
    world.finish().await;
}

#[tokio::test]
async fn a_group_s_key_derived_on_the_gateway_or_beforehand_and_over_websocket() {
    let (attestation, key) = keys();
    let enrollment = Enrollment::group("fleet", attestation);
    let mut world = world(&enrollment, &format!("group_key = {key:?}")).await;
    world.switch_on().await;
    assert_eq!(world.hub.registrations()[0].enrollment, "fleet");

    world.gateway.stop_agent().await.unwrap();
    fs::remove_file(world.gateway.dir().join("state/assigned.json")).unwrap();
    let derived = derive(&key, DEVICE).unwrap();
    configure(&world, &format!("symmetric_key = {derived:?}"));
    // And by the other way, for the service as for the hub.
    let port = world.hub.https_addr().port();
    let way = format!("[cloud]\ntransport = \"websocket\"\nport = {port}\n[cloud.dps]\nport = {port}\n");
    world.gateway.configure("70-way", &way).unwrap();
    world.gateway.start_agent().unwrap();
    let again = || world.hub.registrations().len() == 2 && world.hub.is_connected(DEVICE);
    assert!(world.hub.wait_until(LIMIT, again).await, "{}", world.gateway.log());
    world.finish_disturbed().await;
}

/// An authority, and the certificates that it signs.
struct Authority {
    certificate: rcgen::Certificate,
    key: rcgen::KeyPair,
}

impl Authority {
    fn new() -> Authority {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "fleet");
        let key = rcgen::KeyPair::generate().unwrap();
        Authority { certificate: params.self_signed(&key).unwrap(), key }
    }

    /// Puts a new certificate and its key where the gateway looks for them.
    fn issue(&self, name: &str, world: &World) {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.certificate, &self.key).unwrap();
        fs::write(world.gateway.dir().join("state/device.pem"), leaf.pem()).unwrap();
        fs::write(world.gateway.dir().join("state/device.key"), key.serialize_pem()).unwrap();
    }
}

#[tokio::test]
async fn a_certificate_of_a_group_and_its_successor_without_a_restart() {
    let authority = Authority::new();
    let attestation = Attestation::X509 { certificate: authority.certificate.pem() };
    let mut world = world(&Enrollment::group("fleet", attestation), "").await;
    let at = |name: &str| world.gateway.dir().join("state").join(name).display().to_string();
    let files =
        format!("[cloud]\ncertificate_file = {:?}\nkey_file = {:?}\n", at("device.pem"), at("device.key"));
    world.gateway.configure("70-files", &files).unwrap();
    authority.issue(DEVICE, &world);
    world.switch_on().await;
    let known = || world.hub.twin(DEVICE).unwrap()["x509Thumbprint"]["primaryThumbprint"].clone();
    let first = known();

    // The hub knows the old certificate alone, and refuses the new one; the service knows its authority.
    authority.issue(DEVICE, &world);
    world.hub.drop_connections(Some(DEVICE));
    let renewed = || known() != first && world.hub.is_connected(DEVICE);
    assert!(world.hub.wait_until(LIMIT, renewed).await, "{}", world.gateway.log());
    assert_eq!(world.hub.registrations().len(), 2);
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_gateway_that_its_hub_no_longer_knows_is_led_to_another() {
    let (attestation, key) = keys();
    let enrollment = Enrollment::individual(DEVICE, attestation);
    let mut world = world(&enrollment, &format!("symmetric_key = {key:?}")).await;
    world.switch_on().await;

    // Hubs differ by name and not by port, so the other one has an address of its own.
    let bind = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    let options = Options::ephemeral(world.scratch().join("other"));
    let mqtt_port = world.hub.mqtt_addr().port();
    let other = Hub::start(Options { bind, mqtt_port, ..options }).await.unwrap();
    let keys = Credentials::Sas { primary_key: key.clone(), secondary_key: key };
    other.add_device_with("moved", keys).unwrap();
    let both = [world.hub.ca_path(), other.ca_path()].map(|path| fs::read_to_string(path).unwrap());
    fs::write(world.hub.ca_path(), both.concat()).unwrap();

    let (assign_to, device_id) = (Some("127.0.0.2".to_owned()), Some("moved".to_owned()));
    world.hub.enroll(&Enrollment { assign_to, device_id, ..enrollment }).unwrap();
    world.hub.remove_device(DEVICE).unwrap();
    let there = other.wait_reported("moved", LIMIT, |reported| reported["firmwareStatus"] == "standBy").await;
    assert!(there.is_some(), "{}", world.gateway.log());
    assert_eq!(
        (&cache(&world)["assignedHub"], &cache(&world)["deviceId"]),
        (&"127.0.0.2".into(), &"moved".into())
    );
    world.gateway.shut_down().await.unwrap();
    other.stop().await;
    world.finish_without_twin().await;
}

#[tokio::test]
async fn doctor_says_why_no_hub_is_assigned() {
    let (attestation, key) = keys();
    let refused = Enrollment::individual(DEVICE, attestation.clone());
    let cases = [
        (
            Enrollment { failure: Some("no hub fits".into()), ..refused.clone() },
            "failed, code 400207: no hub fits",
        ),
        (Enrollment { disabled: true, ..refused.clone() }, "(disabled)"),
        (
            Enrollment { attestation: Attestation::new_keys(), ..refused.clone() },
            "refused the credentials of gw",
        ),
    ];
    let mut world = world(&refused, &format!("symmetric_key = {key:?}")).await;
    for (enrollment, word) in cases {
        world.hub.enroll(&enrollment).unwrap();
        world.gateway.power_on().unwrap();
        world.doctor_says_of_the_hub(word).await;
        world.gateway.shut_down().await.unwrap();
    }
    assert!(!world.gateway.log().contains(&key));
    world.finish_without_twin().await;
}
