//! `[cloud]` as people write it: ways to log in, transports, the provisioning service, proxies.

use std::os::unix::fs::PermissionsExt;

use super::*;

const CONNECTION: &str = "HostName=h.azure-devices.net;DeviceId=gw;SharedAccessKey=c2VjcmV0";
const DPS: &str = "[cloud.dps]\nid_scope = \"0ne0012ABCD\"\nregistration_id = \"gw-1\"";

fn cloud(extra: &str) -> Cloud {
    with(extra).load().unwrap().settings.cloud.unwrap()
}

#[test]
fn the_port_follows_the_transport_unless_it_is_set() {
    let extra = |lines: &str| format!("[cloud]\nconnection_string = \"{CONNECTION}\"\n{lines}");
    let read = |lines: &str| {
        let cloud = cloud(&extra(lines));
        (cloud.transport, cloud.port)
    };
    assert_eq!(read(""), (Transport::Mqtt, 8883));
    assert_eq!(read("transport = \"websocket\""), (Transport::WebSocket, 443));
    assert_eq!(read("transport = \"websocket\"\nport = 8443"), (Transport::WebSocket, 8443));
    assert!(with(&extra("port = 0")).error().contains("from 1 to 65535"));
}

#[test]
fn a_keep_alive_beyond_the_hub_s_patience_is_refused() {
    let extra =
        |text: &str| format!("[cloud]\nconnection_string = \"{CONNECTION}\"\nkeep_alive = \"{text}\"");
    assert_eq!(cloud(&extra("1177s")).keep_alive, Duration::from_secs(1177));
    // The hub waits 1.5 times as long, but no longer than 1767 s.
    assert!(Duration::from_secs(1177) * 3 / 2 < Duration::from_secs(1767));
    for text in ["1178s", "4s", "0s", "1h"] {
        assert!(with(&extra(text)).error().contains("from 5s to 1177s"), "{text}");
    }
}

#[test]
fn a_place_is_assigned_by_the_provisioning_service_with_each_kind_of_proof() {
    let key = cloud(&format!("{DPS}\nsymmetric_key = \"c2VjcmV0\""));
    let Place::Assigned(dps) = &key.place else { panic!("{:?}", key.place) };
    assert_eq!(dps.endpoint, "global.azure-devices-provisioning.net");
    assert_eq!(
        (dps.port, dps.id_scope.as_str(), dps.registration_id.as_str()),
        (8883, "0ne0012ABCD", "gw-1")
    );
    assert!(dps.cache.ends_with("state/assigned.json") && dps.payload.is_none());
    assert!(matches!(&key.auth, Auth::SharedKey(key) if key.expose() == "c2VjcmV0"));

    let group = cloud(&format!("{DPS}\ngroup_key = \"Z3JvdXA=\""));
    // echo -n gw-1 | openssl dgst -sha256 -mac HMAC -macopt key:group -binary | base64
    let derived = "P4yD1adlb/skpShoR3oqOHhOqP16AazHzZOycGLCitk=";
    assert!(matches!(&group.auth, Auth::SharedKey(key) if key.expose() == derived));

    let files = "[cloud]\ncertificate_file = \"/c\"\nkey_file = \"/k\"";
    let x509 = cloud(&format!("{files}\n{DPS}\nport = 9443\npayload = '{{\"site\": \"Berlin\"}}'"));
    assert!(matches!(&x509.auth, Auth::X509 { .. }));
    let Place::Assigned(dps) = &x509.place else { panic!("{:?}", x509.place) };
    assert_eq!((dps.port, x509.port), (9443, 8883));
    assert_eq!(dps.payload, Some(serde_json::json!({"site": "Berlin"})));
}

#[test]
fn keys_and_ids_for_the_provisioning_service_may_stand_in_files() {
    let machine = Machine::new();
    let key = machine.write("key", "c2VjcmV0\n");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let id = machine.write("serial-number", "SN:00-17\0");
    let dps = format!(
        "[cloud.dps]\nid_scope = \"0ne1\"\nsymmetric_key_file = {:?}\nregistration_id_file = {:?}",
        key.display().to_string(),
        id.display().to_string()
    );
    machine.write("etc/fwupdate.toml", &format!("{LEAST}\n{dps}"));
    let loaded = machine.load().unwrap();
    let cloud = loaded.settings.cloud.unwrap();
    assert!(matches!(&cloud.place, Place::Assigned(dps) if dps.registration_id == "SN:00-17"));
    assert!(matches!(&cloud.auth, Auth::SharedKey(key) if key.expose() == "c2VjcmV0"));
    assert_eq!(loaded.warnings, []);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(machine.load().unwrap().warnings[..], [Warning::Exposed { .. }]));
    fs::write(&id, "\0").unwrap();
    assert!(machine.awaited().contains("cloud.dps.registration_id_file"));
}

#[test]
fn what_is_wrong_with_the_provisioning_service_s_settings_is_said_without_secrets() {
    for (extra, word) in [
        (DPS.to_owned(), "exactly one way to log in"),
        (format!("{DPS}\nsymmetric_key = \"c2VjcmV0\"\ngroup_key = \"c2VjcmV0\""), "exactly one way"),
        (format!("[cloud]\ncertificate_file = \"/c\"\n{DPS}"), "exactly one way"),
        (format!("{DPS}\nsymmetric_key = \"c2VjcmV0!\""), "cloud.dps.symmetric_key"),
        (format!("{DPS}\nsymmetric_key = 5"), "cloud.dps.symmetric_key"),
        (format!("{DPS}\ngroup_key = [\"c2VjcmV0\"]"), "cloud.dps.group_key"),
        (DPS.replace("gw-1", "gw."), "cloud.dps.registration_id"),
        (DPS.replace("gw-1", "gw/1"), "cloud.dps.registration_id"),
        (DPS.replace("0ne0012ABCD", "0ne/x"), "cloud.dps.id_scope"),
        (format!("{DPS}\nendpoint = \"https://x\""), "cloud.dps.endpoint"),
        (format!("{DPS}\nsymmetric_key = \"c2VjcmV0\"\npayload = \"[1]\""), "JSON object"),
        ("[cloud.dps]\nid_scope = \"0ne1\"".to_owned(), "cloud.dps.registration_id"),
        ("[cloud.dps]\nregistration_id = \"gw\"".to_owned(), "cloud.dps.id_scope"),
        (format!("[cloud]\nconnection_string = \"{CONNECTION}\"\n{DPS}"), "keep one of them"),
    ] {
        let error = with(&extra).error();
        assert!(error.contains(word) && !error.contains("c2VjcmV0"), "{extra}: {error}");
    }
}

/// The proxy that a connection to `host` takes.
fn via(proxy: &Proxy, host: &str) -> Option<String> {
    proxy.to(host, 443).map(Via::address)
}

fn with_environment(
    extra: &str,
    https_proxy: Option<&str>,
    no_proxy: Option<&str>,
) -> Result<Loaded, ConfigError> {
    let machine = with(extra);
    let (https_proxy, no_proxy) = (https_proxy.map(str::to_owned), no_proxy.map(str::to_owned));
    load(&Options { environment: Environment { https_proxy, no_proxy }, ..machine.options() })
}

#[test]
fn the_configured_proxy_outranks_the_environment_s() {
    let proxy = |extra: &str| {
        let loaded = with_environment(extra, Some("http://env:1"), Some("intern, .local")).unwrap();
        loaded.settings.download.proxy
    };
    let environment = proxy("");
    assert_eq!(via(&environment, "hub"), Some("env:1".into()));
    assert_eq!((via(&environment, "a.local"), via(&environment, "x.intern")), (None, None));
    let configured = proxy("[cloud]\nproxy = \"http://mine:2\"\nno_proxy = [\"files\"]");
    assert_eq!(via(&configured, "hub"), Some("mine:2".into()));
    assert_eq!((via(&configured, "files"), via(&configured, "intern")), (None, Some("mine:2".into())));
    assert_eq!(via(&proxy("[cloud]\nproxy = \"none\""), "hub"), None);
    let alone = with_environment("[cloud]\nno_proxy = [\"files\"]", Some("http://env:1"), None).unwrap_err();
    assert!(alone.to_string().contains("set NO_PROXY"), "{alone}");
    let hub = format!("[cloud]\nconnection_string = \"{CONNECTION}\"\nproxy = \"http://mine:2\"");
    assert_eq!(via(&cloud(&hub).proxy, "hub"), Some("mine:2".into()));
}

#[test]
fn a_proxy_s_login_is_kept_out_of_messages() {
    let extra = "[cloud]\nproxy = \"http://me:c2VjcmV0@proxy:3128\"\nno_proxy = [\"10.0.0.0/8\"]";
    let loaded = with(extra).load().unwrap();
    let shown = format!("{}{:?}", render(&loaded.settings), loaded.settings);
    assert!(shown.contains("***:***@proxy:3128") && shown.contains("10.0.0.0/8"), "{shown}");
    assert!(!shown.contains("c2VjcmV0"), "{shown}");
    assert!(matches!(&loaded.warnings[..], [w @ Warning::Exposed { .. }] if !w.fails_check()));
    for bad in ["socks5://me:c2VjcmV0@p", "http://me:c2VjcmV0@p/x"] {
        let error = with(&format!("[cloud]\nproxy = {bad:?}")).error();
        assert!(error.contains("cloud.proxy") && !error.contains("c2VjcmV0"), "{error}");
        let Loaded { settings, warnings, .. } = with_environment("", Some(bad), None).unwrap();
        let [warning @ Warning::Variable { .. }] = &warnings[..] else { panic!("{warnings:?}") };
        let text = warning.to_string();
        assert!(text.contains("HTTPS_PROXY") && !text.contains("c2VjcmV0"), "{text}");
        assert_eq!((settings.awaited, settings.download.proxy), (vec![text], Proxy::default()));
    }
    let error = with("[cloud]\nproxy = [\"c2VjcmV0\"]").error();
    assert!(error.contains("cloud.proxy") && !error.contains("c2VjcmV0"), "{error}");
}

#[test]
fn rendered_settings_of_a_provisioned_gateway_load_again_to_the_same() {
    let files = "[cloud]\ncertificate_file = \"/c\"\nkey_file = \"/k\"\n\
                 proxy = \"http://proxy:3128\"\nno_proxy = [\"a.b:1\", \"*\"]";
    let settings = with(&format!("{files}\n{DPS}\npayload = '{{\"a\": 1}}'")).load().unwrap().settings;
    let machine = Machine::new();
    let file = machine.write("again.toml", &render(&settings));
    let again = load(&Options::file(file)).unwrap();
    assert_eq!(format!("{:?}", again.settings), format!("{settings:?}"));
}

#[test]
fn the_hub_by_connection_string() {
    let machine =
        with(&format!("[cloud]\nconnection_string = \"{CONNECTION}\"\nca_file = \"/ca.pem\"\nport = 443"));
    let loaded = machine.load().unwrap();
    let cloud = loaded.settings.cloud.as_ref().unwrap();
    let Place::Known(seat) = &cloud.place else { panic!("{:?}", cloud.place) };
    assert_eq!((seat.host.as_str(), cloud.port), ("h.azure-devices.net", 443));
    assert!(matches!(&cloud.auth, Auth::SharedKey(key) if key.expose() == "c2VjcmV0"));
    assert_eq!(cloud.keep_alive, 240 * SECOND);
    assert!(matches!(&loaded.warnings[..], [w @ Warning::Exposed { .. }] if !w.fails_check()));
    let shown = format!("{}{:?}", render(&loaded.settings), loaded.settings);
    assert!(!shown.contains("c2VjcmV0") && shown.contains("SharedAccessKey=***"), "{shown}");
}

#[test]
fn a_ca_file_counts_without_a_hub_and_may_stand_alone() {
    let load = |text: &str| with(text).load().unwrap().settings;
    let alone = load("[cloud]\nca_file = \"/ca.pem\"\n[trust]\nsystem_roots = false");
    assert!(alone.cloud.is_none());
    assert_eq!(alone.trust.roots, Roots { system: false, ca_file: Some("/ca.pem".into()) });
    assert!(render(&alone).contains("ca_file = \"/ca.pem\""), "{}", render(&alone));
    let beside = load(&format!("[cloud]\nconnection_string = \"{CONNECTION}\"\nca_file = \"/ca.pem\""));
    assert_eq!(beside.trust.roots, Roots::with(Some("/ca.pem".into())));
    assert_eq!(beside.cloud.unwrap().roots, beside.trust.roots);
    let error = with("[trust]\nsystem_roots = false").error();
    assert!(error.contains("trust.system_roots") && error.contains("cloud.ca_file"), "{error}");
}

#[test]
fn the_hub_by_a_file_that_holds_the_connection_string() {
    let machine = Machine::new();
    let secret = machine.write("secret", &format!("{CONNECTION}\n"));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!("{LEAST}\n[cloud]\nconnection_string_file = {:?}", secret.display().to_string());
    machine.write("etc/fwupdate.toml", &text);
    let loaded = machine.load().unwrap();
    assert!(matches!(loaded.settings.cloud.unwrap().place, Place::Known(seat) if seat.device_id == "gw"));
    assert_eq!(loaded.warnings, []);
    fs::write(&secret, "HostName=h;c2VjcmV0").unwrap();
    let awaited = machine.awaited();
    assert!(awaited.contains(&secret.display().to_string()) && !awaited.contains("c2VjcmV0"), "{awaited}");
}

/// Each of these files may be written, or written whole, a moment later.
#[test]
fn a_credential_that_is_not_there_or_torn_is_waited_for() {
    let machine = Machine::new();
    let (file, folder) = (machine.path("given"), machine.path("folder"));
    fs::create_dir(&folder).unwrap();
    let dps = "[cloud.dps]\nid_scope = \"0ne1\"\n";
    for settings in [
        format!("[cloud]\nconnection_string_file = {file:?}"),
        format!("{dps}registration_id = \"gw\"\nsymmetric_key_file = {file:?}"),
        format!("{dps}registration_id = \"gw\"\ngroup_key_file = {file:?}"),
        format!("{dps}registration_id_file = {file:?}\nsymmetric_key = \"c2VjcmV0\""),
    ] {
        machine.write("etc/fwupdate.toml", &format!("{LEAST}\n{settings}"));
        fs::remove_file(&file).ok();
        assert!(machine.awaited().contains("is not there yet"), "{settings}");
        for torn in ["", "\n", "\0\0\0\0\0\0\0\0"] {
            fs::write(&file, torn).unwrap();
            assert!(machine.awaited().contains("empty or all zeros"), "{settings}");
        }
        for torn in [&b"\xff\xfe\xff"[..], b"HostName=h;Dev", b"!\0\0\0\0", &[b'!'; 9000]] {
            fs::write(&file, torn).unwrap();
            let awaited = machine.awaited();
            assert!(awaited.contains(&file.display().to_string()) && awaited.contains("_file"), "{awaited}");
        }
        let at_a_folder = settings.replace(&format!("{file:?}"), &format!("{folder:?}"));
        machine.write("etc/fwupdate.toml", &format!("{LEAST}\n{at_a_folder}"));
        assert!(machine.awaited().contains("cannot be read"), "{at_a_folder}");
    }
}

#[test]
fn the_hub_by_certificate() {
    let x509 = "connection_string = \"HostName=h;DeviceId=gw;x509=true\"";
    let files = "certificate_file = \"/c.pem\"\nkey_file = \"/k.pem\"";
    let loaded = with(&format!("[cloud]\n{x509}\n{files}")).load().unwrap();
    assert!(matches!(loaded.settings.cloud.unwrap().auth, Auth::X509 { .. }));
    assert!(with(&format!("[cloud]\n{x509}")).error().contains("cloud.certificate_file"));
    assert!(with(&format!("[cloud]\n{files}")).error().contains("cloud.connection_string"));
    let both = with(&format!("[cloud]\nconnection_string = \"{CONNECTION}\"\n{files}"));
    assert!(both.error().contains("one way to log in"));
    let twice = format!("[cloud]\nconnection_string = \"{CONNECTION}\"\nconnection_string_file = \"/x\"");
    assert!(with(&twice).error().contains("keep one"));
    assert!(with("[cloud]\nconnection_string = 5").error().contains("cloud.connection_string"));
}

#[test]
fn certificates_over_websocket_are_refused_with_the_reason_at_the_hub_and_at_the_service() {
    let x509 = "connection_string = \"HostName=h;DeviceId=gw;x509=true\"";
    let files = "certificate_file = \"/c.pem\"\nkey_file = \"/k.pem\"\ntransport = \"websocket\"";
    for way in [format!("[cloud]\n{files}\n{x509}"), format!("[cloud]\n{files}\n{DPS}")] {
        let error = with(&way).error();
        for word in ["cloud.transport", "fwupdate.toml", "renegotiation", "\"mqtt\"", "key"] {
            assert!(error.contains(word), "{error}");
        }
    }
    let key = with(&format!("[cloud]\nconnection_string = \"{CONNECTION}\"\ntransport = \"websocket\""));
    assert_eq!(key.load().unwrap().settings.cloud.unwrap().port, 443);
}

#[test]
fn who_is_asked_for_the_time() {
    let cloud = |line: &str| with(&format!("[cloud]\nconnection_string = \"{CONNECTION}\"\n{line}"));
    let set = |line: &str| cloud(line).load().unwrap().settings.cloud.unwrap().time_server;
    assert_eq!(set(""), TimeServer::Own);
    assert_eq!(set("time_server = \"none\""), TimeServer::Nobody);
    let other = |port| TimeServer::Other { host: "time.example".into(), port };
    assert_eq!(set("time_server = \"time.example\""), other(443));
    assert_eq!(set("time_server = \"time.example:8443\""), other(8443));
    for wrong in ["none:1", "time.example:0", "time.example:x", "https://time.example", "a b"] {
        let error = cloud(&format!("time_server = {wrong:?}")).error();
        assert!(error.contains("cloud.time_server") && error.contains("host:port"), "{wrong}: {error}");
    }
}
