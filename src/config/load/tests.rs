//! Settings files as people write them: what each layer may say, and what is said of mistakes.

use super::*;

use std::os::unix::fs::PermissionsExt;

mod cloud;

/// The least that makes settings.
const LEAST: &str = r#"
compatible = "board"
[slots.a]
device = "PARTLABEL=rootfs-a"
[slots.b]
device = "/dev/mmcblk0p3"
[bootloader]
kind = "uboot"
"#;

/// A machine's settings folders in a folder of their own.
struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        Machine { root: tempfile::tempdir().unwrap() }
    }

    fn with(main: &str) -> Machine {
        let machine = Machine::new();
        let state = machine.path("state").display().to_string();
        machine.write("etc/fwupdate.toml", &format!("state.dir = {state:?}\n{main}"));
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn options(&self) -> Options {
        Options {
            vendor: Some(self.path("usr/fwupdate.toml")),
            main: self.path("etc/fwupdate.toml"),
            main_required: false,
            drop_ins: Some(self.path("etc/fwupdate.d")),
            environment: Environment::default(),
        }
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        load(&self.options())
    }

    /// What does not count as it is, of settings that are good otherwise.
    fn awaited(&self) -> String {
        let loaded = self.load().unwrap();
        let [awaited] = &loaded.settings.awaited[..] else { panic!("{:?}", loaded.warnings) };
        assert!(loaded.settings.cloud.is_none());
        assert!(loaded.warnings.iter().any(Warning::fails_check));
        awaited.clone()
    }

    fn error(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

/// `LEAST` with `extra` sections behind it.
fn with(extra: &str) -> Machine {
    Machine::with(&format!("{LEAST}\n{extra}"))
}

#[test]
fn defaults_fill_what_the_least_file_leaves_open() {
    let loaded = with("").load().unwrap();
    let s = loaded.settings;
    assert_eq!(s.bootloader.tries, 3);
    assert!(
        matches!(s.bootloader.kind, BootloaderKind::Uboot { config } if config == Path::new("/etc/fw_env.config"))
    );
    assert_eq!((s.trust.keys.to_str(), s.trust.required_signatures), (Some("/etc/fwupdate/keys"), 1));
    assert!(s.cloud.is_none() && s.health.require_cloud && s.policy.windows.is_empty());
    assert_eq!(s.system.run, Path::new("/run/fwupdate"));
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.sources.len(), 1);
}

#[test]
fn later_layers_win_and_merge_key_by_key() {
    let machine = with("[health]\nunits = [\"a.service\"]\ndeadline = \"1h\"\n[report]\ninterval = 7");
    machine.write("usr/fwupdate.toml", "compatible = \"vendor\"\n[download]\npatience = \"2d\"");
    machine.write("etc/fwupdate.d/20.toml", "[health]\ndeadline = \"2h\"");
    machine.write("etc/fwupdate.d/10.toml", "[health]\ndeadline = \"3h\"\nunits = [\"b.service\"]");
    machine.write("etc/fwupdate.d/30.toml.bak", "not toml at all");
    machine.write("state/conf.d/site.toml", "[policy]\nwindows = [\"22:00-04:00\"]\n[cloud]\nport = 443");
    let Loaded { settings, warnings, sources } = machine.load().unwrap();
    assert_eq!(settings.compatible, "board", "the integrator's file over the vendor's");
    assert_eq!(settings.download.patience, 2 * DAY, "the vendor's over the default");
    assert_eq!(settings.health.deadline, 2 * HOUR, "drop-ins in name order");
    assert_eq!(settings.health.units, ["b.service"], "a list is replaced, not appended to");
    assert_eq!(settings.policy.windows, [Window { start: 1320, end: 240 }]);
    assert_eq!(settings.report.interval, 7 * SECOND);
    assert_eq!((warnings.len(), sources.len()), (0, 5));
}

#[test]
fn trust_is_taken_from_the_trusted_layers_only() {
    let machine = with("[trust]\nrequired_signatures = 2");
    machine.write("usr/fwupdate.toml", "[trust]\nkeys = \"/usr/keys\"");
    machine.write("etc/fwupdate.d/10.toml", "[trust]\nrequired_signatures = 1");
    machine.write("state/conf.d/evil.toml", "trust.keys = \"/tmp/keys\"\nstate.dir = \"/tmp\"");
    let Loaded { settings, warnings, .. } = machine.load().unwrap();
    assert_eq!(settings.trust.keys, Path::new("/usr/keys"));
    assert_eq!(settings.trust.required_signatures, 2);
    assert_eq!(settings.state.dir, machine.path("state"));
    let places: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(places.len(), 3, "{places:?}");
    assert!(places[0].starts_with("trust in ") && places[0].contains("10.toml"));
    assert!(warnings.iter().all(Warning::fails_check));
}

/// What a process that was taken over could write there would outlive both slots.
#[test]
fn the_devices_own_layer_sets_identity_network_and_windows_and_nothing_else() {
    for key in keys::KEYS {
        let machine = with("");
        // No key takes this value, so that one which may be set is an error, or is read with a hub alone.
        let file = machine.write("state/conf.d/own.toml", &format!("{} = -1", key.path));
        let own =
            ["cloud.", "download.windows", "download.rate_limit", "download.max_bytes", "policy.windows"];
        let may = own.iter().any(|own| key.path.starts_with(own)) && key.path != "cloud.ca_file";
        match machine.load() {
            Err(error) => panic!("{}: {error}", key.path),
            Ok(loaded) if may && loaded.warnings.is_empty() => assert!(key.path.starts_with("cloud.")),
            Ok(loaded) => {
                let [warning] = &loaded.warnings[..] else { panic!("{}: {:?}", key.path, loaded.warnings) };
                let text = warning.to_string();
                assert_eq!(matches!(warning, Warning::PassedOver { .. }), may, "{text}");
                assert!(text.contains(&file.display().to_string()) && warning.fails_check(), "{text}");
            }
        }
    }
}

#[test]
fn neither_floor_nor_reboot_nor_checks_come_from_the_devices_own_layer() {
    let machine = with("");
    machine.write(
        "state/conf.d/evil.toml",
        "compatible = \"other\"\nslots = 3\n[system]\nos_release = \"/tmp/o\"\n[policy]\nreboot_command = [\"/tmp/x\"]\n\
         windows = [\"01:00-02:00\"]\n[health]\nchecks_dir = \"/tmp/c\"\n[bootloader]\ntries = 9\n",
    );
    let Loaded { settings, warnings, .. } = machine.load().unwrap();
    assert_eq!(settings.compatible, "board");
    assert_eq!(settings.system.os_release, Path::new("/etc/os-release"));
    assert_eq!(settings.policy.reboot_command, ["systemctl", "reboot"]);
    assert_eq!(settings.policy.windows, [Window { start: 60, end: 120 }], "this it may");
    assert_eq!(
        (settings.health.checks_dir.to_str(), settings.bootloader.tries),
        (Some("/etc/fwupdate/checks"), 3)
    );
    let named: Vec<_> =
        warnings.iter().map(|w| w.to_string().split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(named, ["bootloader", "compatible", "health", "policy.reboot_command", "slots", "system"]);
}

#[test]
fn a_quoted_dotted_name_does_not_get_past_the_layers() {
    let machine = with("");
    machine.write("etc/fwupdate.d/10.toml", "\"trust.keys\" = \"/tmp/keys\"\n\"report.interval\" = 9");
    let Loaded { settings, warnings, .. } = machine.load().unwrap();
    assert_eq!(settings.trust.keys, Path::new("/etc/fwupdate/keys"));
    assert_eq!((settings.report.interval, warnings.len()), (5 * SECOND, 2));
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_the_nearest_known_one() {
    let machine = with("[helth]\ndeadline = 1\n[download]\npatiance = \"1h\"");
    let warnings = machine.load().unwrap().warnings;
    let file = machine.path("etc/fwupdate.toml").display().to_string();
    let texts: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert!(texts.contains(&format!("unknown key helth in {file}; did you mean health?")), "{texts:?}");
    assert!(
        texts.contains(&format!("unknown key download.patiance in {file}; did you mean download.patience?")),
        "{texts:?}"
    );
    assert!(warnings.iter().all(Warning::fails_check));
}

#[test]
fn everything_missing_is_named_at_once_with_the_typo_that_explains_it() {
    let error = Machine::with("compatable = \"x\"").error();
    for word in ["`compatible`", "`slots.a.device`", "`slots.b.device`", "`bootloader.kind`", "compatable"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(with("").load().is_ok());
    let error = Machine::with(&LEAST.replace("uboot", "grub")).error();
    assert!(error.contains("`bootloader.grubenv`"), "{error}");
}

#[test]
fn wrong_values_name_key_file_and_expectation() {
    for (extra, words) in [
        ("tries = 0", ["bootloader.tries", "from 1 to 9", "0"]),
        ("tries = \"3\"", ["bootloader.tries", "integer", "\"3\""]),
        ("tries = 99999999999", ["bootloader.tries", "integer", "99999999999"]),
        ("config = \"fw_env.config\"", ["bootloader.config", "absolute path", "fw_env.config"]),
        ("[trust]\nrequired_signatures = 0", ["trust.required_signatures", "from 1", "0"]),
        ("[trust]\nallowed_hosts = [\"https://x\"]", ["trust.allowed_hosts", "*.suffix", "https://x"]),
        ("[trust]\nallowed_hosts = \"x\"", ["trust.allowed_hosts", "list", "x"]),
        ("[health]\ndeadline = \"5 minutes\"", ["health.deadline", "5min", "5 minutes"]),
        ("[health]\nrequire_cloud = \"yes\"", ["health.require_cloud", "true or false", "yes"]),
        ("[health]\nunits = [1]", ["health.units", "list of texts", "[1]"]),
        ("[policy]\nwindows = [\"25:00-01:00\"]", ["policy.windows", "22:00-04:00", "25:00"]),
        ("[download]\nwindows = [\"22:00\"]", ["download.windows", "22:00-04:00", "[\"22:00\"]"]),
        (
            "[download]\nwindows = \"22:00-06:00\"",
            ["download.windows", "list of daily UTC windows", "22:00-06:00"],
        ),
        ("[policy]\nreboot_command = []", ["policy.reboot_command", "program", "[]"]),
        ("[download]\nrate_limit = 0", ["download.rate_limit", "above zero", "0"]),
        ("[cloud]\ntransport = \"amqp\"", ["cloud.transport", "\"mqtt\"", "amqp"]),
        ("[state]\ndir = {}", ["state", "TOML", "line"]),
    ] {
        let machine = with(extra);
        let error = machine.error();
        let file = machine.path("etc/fwupdate.toml").display().to_string();
        for word in words.into_iter().chain([file.as_str()]) {
            assert!(error.contains(word), "{extra}: {word} not in {error}");
        }
    }
}

#[test]
fn a_section_that_is_no_table_is_an_error() {
    let error = Machine::with("slots = 3").error();
    assert!(error.contains("slots") && error.contains("a section ([slots])"), "{error}");
}

#[test]
fn slots_must_differ_and_be_devices() {
    let error = Machine::with(&LEAST.replace("/dev/mmcblk0p3", "PARTLABEL=rootfs-a")).error();
    assert!(error.contains("another device"), "{error}");
    for bad in ["sda1", "PARTLABEL=", "PARTUUID=../x", "LABEL=x"] {
        let error = Machine::with(&LEAST.replace("/dev/mmcblk0p3", bad)).error();
        assert!(error.contains("slots.b.device") && error.contains("PARTLABEL=NAME"), "{bad}: {error}");
    }
}

#[test]
fn bad_toml_names_file_and_line_but_not_the_secret_in_it() {
    let machine = with("[cloud]\nconnection_string = \"HostName=h;SharedAccessKey=c2VjcmV0\" x");
    let error = machine.error();
    assert!(error.contains("fwupdate.toml is not valid TOML (line 12)"), "{error}");
    assert!(!error.contains("c2VjcmV0"), "{error}");
}

const CONNECTION: &str = "HostName=h.azure-devices.net;DeviceId=gw;SharedAccessKey=c2VjcmV0";

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
fn a_damaged_file_of_the_devices_own_layer_is_passed_over_and_its_siblings_count() {
    let damaged: [&[u8]; 7] = [
        b"[policy\nwindows",
        &[0; 4096],
        b"\xff\xfe",
        b"[policy]\nwindows = [\"25:00-26:00\"]",
        b"policy = 3",
        b"[cloud]\nconnection_string = \"HostName=h;Dev\"",
        b"[cloud.dps]\nid_scope = \"0ne1\"",
    ];
    for damaged in damaged {
        let machine = with("");
        machine.write("state/conf.d/10.toml", "[download]\nrate_limit = 8");
        let file = machine.write("state/conf.d/20.toml", "");
        fs::write(&file, damaged).unwrap();
        machine.write("state/conf.d/30.toml", "[download]\nmax_bytes = 9");
        let loaded = machine.load().unwrap();
        let download = &loaded.settings.download;
        assert_eq!((download.rate_limit, download.max_bytes), (Some(8), Some(9)));
        let [warning @ Warning::PassedOver { .. }] = &loaded.warnings[..] else {
            panic!("{:?}", loaded.warnings)
        };
        assert!(warning.to_string().contains("20.toml") && warning.fails_check(), "{warning}");
        assert_eq!(loaded.settings.awaited, [warning.to_string()]);
    }
}

#[test]
fn what_makes_sense_of_several_damaged_files_counts() {
    let machine = with("");
    machine.write("state/conf.d/10.toml", "[download]\nrate_limit = -1");
    machine.write("state/conf.d/20.toml", "[download]\nmax_bytes = 9");
    machine.write("state/conf.d/30.toml", "[policy]\nwindows = 5");
    machine.write("state/conf.d/40.toml", "torn");
    let loaded = machine.load().unwrap();
    assert_eq!((loaded.settings.download.max_bytes, loaded.settings.download.rate_limit), (Some(9), None));
    assert_eq!(loaded.settings.awaited.len(), 3, "{:?}", loaded.warnings);
    fs::remove_dir_all(machine.path("state/conf.d")).unwrap();
    machine.write("state/conf.d", "no folder");
    assert_eq!(machine.load().unwrap().settings.awaited.len(), 1);
}

/// Only a person mends these.
#[test]
fn mistakes_in_the_integrators_settings_stay_errors_whatever_the_device_says() {
    for (text, word) in [("[policy\n", "not valid TOML"), ("[policy]\nwindows = 3", "policy.windows")] {
        let machine = with(text);
        machine.write("state/conf.d/10.toml", "torn");
        let error = machine.load().unwrap_err();
        assert!(error.to_string().contains(word) && !error.may_pass(), "{error}");
    }
    let error = with("[cloud]\nproxy = \"https://p\"").load().unwrap_err();
    assert!(!error.may_pass(), "{error}");
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

#[test]
fn config_on_the_command_line_replaces_the_system_layers() {
    let machine = with("");
    let state = machine.path("state").display().to_string();
    let file = machine.write("my.toml", &format!("state.dir = {state:?}\n{LEAST}"));
    machine.write("state/conf.d/1.toml", "[download]\nrate_limit = 8");
    let drop_in = machine.write("my.d/1.toml", "[report]\ninterval = 8");
    let loaded = load(&Options::file(&file)).unwrap();
    assert_eq!((loaded.settings.report.interval, loaded.settings.download.rate_limit), (8 * SECOND, Some(8)));
    assert_eq!(loaded.sources, [file, drop_in, machine.path("state/conf.d/1.toml")]);
    let error = load(&Options::file(machine.path("absent.toml"))).unwrap_err().to_string();
    assert!(error.contains("absent.toml cannot be read"), "{error}");
}

#[test]
fn a_misspelt_section_is_told_by_its_whole_name() {
    let machine = with("[slot.a]\ndevice = \"/dev/x\"\n[cloud.dsp]\nid_scope = \"x\"");
    let texts: Vec<_> = machine.load().unwrap().warnings.iter().map(ToString::to_string).collect();
    for (written, meant) in [("slot.a", "slots.a"), ("cloud.dsp", "cloud.dps")] {
        let told = |text: &String| {
            text.starts_with(&format!("unknown key {written} in"))
                && text.ends_with(&format!("did you mean {meant}?"))
        };
        assert!(texts.iter().any(told), "{texts:?}");
    }
}

#[test]
fn a_slot_is_named_by_its_partition_and_not_by_what_an_image_brings_along() {
    for device in
        ["UUID=1234-ABCD", "LABEL=root", "uuid=1", "/dev/disk/by-uuid/1234", "/dev/disk/by-label/root"]
    {
        let machine = with("");
        machine.write("etc/fwupdate.d/10.toml", &format!("slots.a.device = {device:?}"));
        let error = machine.error();
        assert!(error.contains("PARTUUID=") && error.contains("slots.a.device"), "{device}: {error}");
    }
}

#[test]
fn files_of_other_systems_editors_are_read_or_named() {
    let text = "[download]\r\npatience = \"2h\"\r\n";
    let machine = with("");
    let file = "etc/fwupdate.d/10.toml";
    machine.write(file, &format!("\u{feff}{text}"));
    assert_eq!(machine.load().unwrap().settings.download.patience, 7200 * SECOND);
    let wide = |order: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
    for (content, found) in [
        ([vec![0xff, 0xfe], wide(u16::to_le_bytes)].concat(), "UTF-16"),
        ([vec![0xfe, 0xff], wide(u16::to_be_bytes)].concat(), "UTF-16"),
        (wide(u16::to_le_bytes), "UTF-16"),
        (b"# caf\xe9\n".to_vec(), "Latin-1 or Windows-1252 (line 1)"),
    ] {
        fs::write(machine.path(file), content).unwrap();
        let error = machine.error();
        assert!(error.contains(found) && error.contains("10.toml") && error.contains("UTF-8"), "{error}");
    }
}

#[test]
fn files_that_are_no_settings_are_refused() {
    let machine = with("");
    machine.write("etc/fwupdate.d/10.toml", &"#".repeat(2 << 20));
    assert!(machine.error().contains("larger than"));
    fs::write(machine.path("etc/fwupdate.d/10.toml"), [0xff, 0xfe]).unwrap();
    assert!(machine.error().contains("cannot be read"));
}

#[test]
fn the_rendered_settings_load_again_to_the_same() {
    let extra = "[cloud]\nconnection_string = \"HostName=h;DeviceId=gw;ModuleId=m;GatewayHostName=g;x509=true\"\n\
                 certificate_file = \"/c\"\nkey_file = \"/k\"\nca_file = \"/ca\"\n\
                 [download]\nrate_limit = \"500kB/s\"\nmax_bytes = \"2GiB\"\n\
                 windows = [\"22:00-06:00\", \"12:00-13:00\"]\n[policy]\nwindows = [\"01:00-02:30\"]";
    let settings = with(extra).load().unwrap().settings;
    let machine = Machine::new();
    let file = machine.write("again.toml", &render(&settings));
    let again = load(&Options::file(file)).unwrap();
    assert_eq!(format!("{:?}", again.settings), format!("{settings:?}"));
    assert_eq!(again.warnings, []);
}

#[test]
fn a_folder_on_the_root_file_system_is_said_to_be_inside_a_slot() {
    assert!(outside_slots(Path::new("/")).is_some());
    assert!(outside_slots(Path::new("/no/such/folder/yet")).is_some());
    assert_eq!(outside_slots(Path::new("/proc")), None, "another file system");
}

#[test]
fn host_patterns() {
    for good in [
        "h",
        "h.example",
        "*.example.com",
        "localhost:8443",
        "127.0.0.1",
        "[::1]:8443",
        "[fe80::1]",
        "10.0.0.0/8",
        "fd00::/8",
    ] {
        assert!(is_host_pattern(good), "{good}");
    }
    for bad in ["", "*.", "a b", "h:", "h:0", "h:99999", "h/x", "*", "[::1", "[::1]8"] {
        assert!(!is_host_pattern(bad), "{bad}");
    }
}

/// The line of `text` that sets `path`, commented out or not, with its value.
fn shipped(text: &str) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(|l| l.trim_start_matches('#').trim()) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, value)) = line.split_once(" = ").filter(|(k, _)| !k.contains(' ')) {
            found.push((format!("{section}{key}"), value.to_owned()));
        }
    }
    found
}

#[test]
fn the_shipped_file_is_valid_says_what_to_fill_in_and_shows_every_key_with_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/fwupdate.toml");
    let error = load(&Options::file(&path)).unwrap_err();
    assert!(
        matches!(&error, ConfigError::Missing { missing, warnings } if missing.len() == 4 && warnings.is_empty())
    );
    let shown = shipped(&fs::read_to_string(&path).unwrap());
    for key in keys::KEYS {
        let value = shown.iter().find(|(path, _)| path == key.path).map(|(_, v)| v.as_str());
        assert!(value.is_some(), "{} is not in the shipped file", key.path);
        assert!(key.default.is_none() || value == key.default, "{}: {value:?}", key.path);
    }
}

#[test]
fn the_shipped_file_with_every_key_uncommented_loads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/fwupdate.toml");
    let machine = Machine::new();
    let mut text = String::new();
    for (key, value) in shipped(&fs::read_to_string(path).unwrap()) {
        // One connection string, one kind of credentials, and who has it asks no provisioning service.
        let other = ["cloud.connection_string_file", "cloud.certificate_file", "cloud.key_file"];
        let asks = key.starts_with("cloud.dps.") && key != "cloud.dps.endpoint" && key != "cloud.dps.port";
        if !other.contains(&key.as_str()) && !asks {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    let file = machine.write("all.toml", &text);
    let loaded = load(&Options::file(file)).unwrap();
    assert!(loaded.warnings.iter().all(|w| !w.fails_check()), "{:?}", loaded.warnings);
}

#[test]
fn the_reference_page_names_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = fs::read_to_string(path).unwrap();
    for name in keys::KEYS.iter().map(|k| k.path) {
        assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/configuration.md");
    }
    for key in keys::KEYS {
        let row = page.lines().find(|l| l.starts_with(&format!("| `{}` |", key.path)));
        let default = key.default.map_or_else(|| "none".to_owned(), |d| format!("`{d}`"));
        assert!(row.is_some_and(|r| r.contains(&default)), "{}: default {default} not in its row", key.path);
    }
}
