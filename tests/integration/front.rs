//! Azure's own front: TLS by OpenSSL before the hub (`front.py`), with the suites that IoT Hub kept, and a client's
//! certificate asked for as there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fwupdate_hub::dps::{Attestation, Enrollment};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use crate::harness::{DEVICE, LIMIT, Setup, World, run};

/// Debian's own, for Debian's OpenSSL.
const PYTHON: &str = "/usr/bin/python3";
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/front.py");
/// Where IoT Hub and the provisioning service look for devices with a key.
const WITH_A_KEY: &str = "/$iothub/websocket?iothub-no-client-cert=true";

/// Keys and what `openssl` needs to make them.
const RSA: &[&str] = &["-newkey", "rsa:2048"];
const P256: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
const P384: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"];
/// The curve of a client's own certificate must be among them, for OpenSSL as for IoT Hub.
const GROUPS: &str = "P-256:P-384";

struct Front {
    port: u16,
    lines: Lines<BufReader<ChildStdout>>,
    _program: Child,
}

impl Front {
    /// In front of `port`, with a certificate of this `kind` of key; OpenSSL offers no more than `configuration` says.
    async fn start(dir: &Path, port: u16, by: &str, kind: &[&str], configuration: &str) -> Front {
        let [certificate, key] = pair(dir, "front", kind);
        let file = dir.join("openssl.cnf");
        let sections = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = tls\n[tls]\n";
        fs::write(&file, format!("{sections}{configuration}\n")).unwrap();
        let mut program = tokio::process::Command::new(PYTHON);
        program
            .arg(PROGRAM)
            .arg(port.to_string())
            .args([&certificate, &key])
            .arg(by)
            .env("OPENSSL_CONF", file);
        let mut program = program.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
        let port =
            lines.next_line().await.unwrap().expect("the front does not start: install python3-openssl");
        Front { port: port.parse().unwrap(), lines, _program: program }
    }

    /// What it says of the next connection.
    async fn seen(&mut self) -> Value {
        let line = timeout(LIMIT, self.lines.next_line()).await.expect("no connection came").unwrap();
        serde_json::from_str(&line.unwrap()).unwrap()
    }
}

/// A certificate for localhost that vouches for itself, and its key.
fn pair(dir: &Path, name: &str, kind: &[&str]) -> [PathBuf; 2] {
    let [certificate, key] = ["pem", "key"].map(|end| dir.join(format!("{name}.{end}")));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-nodes", "-days", "30", "-subj", &format!("/CN={name}")]).args(kind);
    openssl.args([
        "-addext",
        "subjectAltName=DNS:localhost",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]);
    run(openssl.arg("-out").arg(&certificate).arg("-keyout").arg(&key));
    [certificate, key]
}

/// The hub is reached through the front, and both are trusted.
fn lead_through(world: &World, front: &Front, cloud: &str) {
    let trusted = world.scratch().join("trusted.pem");
    let front_s = fs::read_to_string(world.scratch().join("front.pem")).unwrap();
    fs::write(&trusted, front_s + world.hub.ca_pem()).unwrap();
    let settings = format!("[cloud]\nport = {}\nca_file = {trusted:?}\n{cloud}", front.port);
    world.gateway.configure("60-way", &settings).unwrap();
}

#[tokio::test]
async fn a_key_is_all_that_azure_s_front_wants_over_websocket_at_the_service_and_at_the_hub() {
    let mut world = World::with(Setup { registered: false, on: false, ..Setup::default() }).await;
    let attestation = Attestation::new_keys();
    let Attestation::SymmetricKey { primary_key, .. } = &attestation else { panic!("no key") };
    let dps = format!(
        "[cloud.dps]\nendpoint = \"localhost\"\nid_scope = {:?}\nregistration_id = {DEVICE:?}\n\
         symmetric_key = {primary_key:?}\n",
        world.hub.id_scope()
    );
    world.hub.enroll(&Enrollment::individual(DEVICE, attestation)).unwrap();
    let port = world.hub.https_addr().port();
    let mut front = Front::start(world.scratch(), port, "https", RSA, "").await;
    lead_through(&world, &front, &format!("transport = \"websocket\"\n{dps}port = {}", front.port));
    world.gateway.power_on().unwrap();
    for server in ["service", "hub"] {
        let seen = front.seen().await;
        assert_eq!((&seen["target"], &seen["error"]), (&WITH_A_KEY.into(), &Value::Null), "{server}: {seen}");
        assert_eq!(seen["version"], "TLSv1.2", "{seen}");
    }
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    world.finish().await;
}

#[tokio::test]
async fn the_front_asks_for_a_certificate_by_a_renegotiation_unless_the_query_is_there() {
    let world = World::with(Setup { on: false, ..Setup::default() }).await;
    let port = world.hub.https_addr().port();
    let mut front = Front::start(world.scratch(), port, "https", RSA, "").await;
    let [certificate, key] = pair(world.scratch(), "client", P256);
    let address = format!("localhost:{}", front.port);
    for (target, more, certificate_seen, renegotiated) in [
        ("/$iothub/websocket", "-renegotiation", "client".into(), Value::Bool(true)),
        ("/$iothub/websocket", "-no_renegotiation", Value::Null, Value::Bool(false)),
        (WITH_A_KEY, "-no_renegotiation", Value::Null, Value::Null),
    ] {
        let mut client = Command::new("openssl");
        client
            .args(["s_client", "-quiet", "-connect", &address, "-cert"])
            .arg(&certificate)
            .arg("-key")
            .arg(&key);
        let mut client = client
            .args([more].iter().filter(|option| **option != "-renegotiation"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut request = client.stdin.take().unwrap();
        std::io::Write::write_all(&mut request, format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        let seen = front.seen().await;
        assert_eq!(seen["renegotiated"], renegotiated, "{seen}");
        assert_eq!(seen["certificate"], certificate_seen, "{seen}");
        assert_eq!(seen["error"].is_string(), renegotiated == Value::Bool(false), "{seen}");
        client.kill().unwrap();
        client.wait().unwrap();
    }
    world.finish().await;
}

/// It leaves the query out, with a key too, and the OpenSSL below it renegotiates.
#[tokio::test]
async fn the_sdk_for_node_gets_through_azure_s_front_by_a_renegotiation() {
    let world = World::with(Setup { on: false, ..Setup::default() }).await;
    let port = world.hub.https_addr().port();
    let mut front = Front::start(world.scratch(), port, "https", RSA, "").await;
    let own = pair(world.scratch(), "client", P256);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    run(&mut Command::new(root.join("tests/interop/node.sh")));
    let mut client = Command::new("node");
    client.arg(root.join("tests/interop/node/front.js")).arg(world.hub.add_device("node").unwrap());
    client.arg(front.port.to_string()).args(own);
    client.env("NODE_PATH", root.join("target/node/node_modules"));
    client.env("NODE_EXTRA_CA_CERTS", world.scratch().join("front.pem"));
    let told = tokio::process::Command::from(client).kill_on_drop(true).output().await.unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stdout));
    for certificate in [Value::Null, "client".into()] {
        let seen = front.seen().await;
        assert_eq!((&seen["target"], &seen["renegotiated"]), (&"/$iothub/websocket".into(), &true.into()));
        assert_eq!((&seen["certificate"], &seen["error"]), (&certificate, &Value::Null), "{seen}");
    }
    assert_eq!(world.hub.telemetry("node").len(), 1);
    world.finish().await;
}

/// What IoT Hub speaks since 2025-08-31 and rustls does too: OpenSSL's names, the server's key, and the groups.
const SUITES: [(&str, &str, &[&str], &str); 8] = [
    ("TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256", RSA, "P-256"),
    ("TLSv1.2", "ECDHE-RSA-AES256-GCM-SHA384", RSA, "P-384"),
    ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", P256, "P-256"),
    ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384", P384, "P-384"),
    ("TLSv1.3", "TLS_AES_128_GCM_SHA256", RSA, "P-256"),
    ("TLSv1.3", "TLS_AES_256_GCM_SHA384", RSA, "P-384"),
    ("TLSv1.3", "TLS_AES_256_GCM_SHA384", P256, "X25519"),
    ("TLSv1.3", "TLS_CHACHA20_POLY1305_SHA256", RSA, "P-256"),
];

fn only(version: &str, suite: &str, groups: &str) -> String {
    let list = if version == "TLSv1.3" { "Ciphersuites" } else { "CipherString" };
    format!("MinProtocol = {version}\nMaxProtocol = {version}\n{list} = {suite}\nGroups = {groups}")
}

#[tokio::test]
async fn each_suite_that_iot_hub_kept_leads_to_a_session_named_by_sni_and_without_alpn() {
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let port = world.hub.mqtt_addr().port();
    for (count, (version, suite, kind, group)) in SUITES.into_iter().enumerate() {
        let mut front = Front::start(world.scratch(), port, "mqtt", kind, &only(version, suite, group)).await;
        lead_through(&world, &front, "");
        world.gateway.power_on().unwrap();
        let seen = front.seen().await;
        assert_eq!((&seen["version"], &seen["suite"]), (&version.into(), &suite.into()), "{seen}");
        assert_eq!(seen["name"], "localhost", "{seen}");
        assert_eq!((&seen["alpn"], &seen["certificate"]), (&Value::Null, &Value::Null), "{seen}");
        assert!(world.hub.wait_accepted(DEVICE, count + 1, LIMIT).await, "{}", world.gateway.log());
        world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
        world.gateway.shut_down().await.unwrap();
    }
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_server_with_no_tls_in_common_is_told_from_one_that_is_away() {
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let port = world.hub.mqtt_addr().port();
    let old = "MinProtocol = TLSv1.1\nMaxProtocol = TLSv1.1\nCipherString = DEFAULT@SECLEVEL=0".to_owned();
    let (version, suite) = (SUITES[0].0, SUITES[0].1);
    for offered in [only(version, "ECDHE-RSA-AES128-SHA256", "P-256"), only(version, suite, "P-521"), old] {
        let mut front = Front::start(world.scratch(), port, "mqtt", RSA, &offered).await;
        lead_through(&world, &front, "");
        world.gateway.power_on().unwrap();
        assert!(front.seen().await["error"].is_string(), "{offered}");
        world.doctor_says_of_the_hub("speaks no TLS that this agent speaks").await;
        world.gateway.shut_down().await.unwrap();
    }
    world.finish_without_twin().await;
}

#[tokio::test]
async fn a_device_s_certificate_is_shown_in_the_first_handshake_by_either_version() {
    let mut world = World::with(Setup { registered: false, on: false, ..Setup::default() }).await;
    let port = world.hub.mqtt_addr().port();
    let suites = [SUITES[0], SUITES[4]];
    for ((version, suite, ..), kind) in
        suites.into_iter().flat_map(|suite| [RSA, P256, P384].map(|k| (suite, k)))
    {
        let mut front = Front::start(world.scratch(), port, "mqtt", RSA, &only(version, suite, GROUPS)).await;
        let [certificate, key] = pair(world.scratch(), DEVICE, kind);
        let x509 = format!("connection_string = \"HostName=localhost;DeviceId={DEVICE};x509=true\"");
        lead_through(
            &world,
            &front,
            &format!("{x509}\ncertificate_file = {certificate:?}\nkey_file = {key:?}"),
        );
        world.gateway.power_on().unwrap();
        let seen = front.seen().await;
        assert_eq!(
            (&seen["version"], &seen["certificate"]),
            (&version.into(), &DEVICE.into()),
            "{kind:?}: {seen}"
        );
        world.gateway.shut_down().await.unwrap();
    }
    world.finish_without_twin().await;
}

#[tokio::test]
async fn what_is_wrong_with_the_device_s_own_pair_is_said_before_it_is_needed_and_by_doctor() {
    let mut world = World::with(Setup { registered: false, on: false, ..Setup::default() }).await;
    let p521 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"];
    let [certificate, key] = pair(world.scratch(), DEVICE, &p521);
    let x509 = format!(
        "[cloud]\nconnection_string = \"HostName=localhost;DeviceId={DEVICE};x509=true\"\n\
         certificate_file = {certificate:?}\nkey_file = {key:?}\n"
    );
    let check = |settings: &str| {
        world.gateway.configure("60-way", settings).unwrap();
        let mut agent = Command::new(env!("CARGO_BIN_EXE_fwupdated"));
        let checked = agent.arg("--check-config").arg("--config").arg(world.gateway.settings_file()).output();
        let checked = checked.unwrap();
        assert!(!checked.status.success());
        String::from_utf8(checked.stderr).unwrap()
    };
    let said = check(&format!("{x509}transport = \"websocket\""));
    assert!(said.contains("cloud.transport") && said.contains("renegotiation"), "{said}");
    let said = check(&x509);
    assert!(said.contains("holds a certificate for a key on the curve P-521"), "{said}");
    world.gateway.power_on().unwrap();
    world.doctor_says("hub settings", "on the curve P-521").await;
    world.doctor_says_of_the_hub("on the curve P-521").await;
    world.finish_without_twin().await;
}
