//! Who may set what: the trusted files, the drop-ins, and the device's own layer, which may be damaged.

use super::*;

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
    for key in crate::config::settings::rows() {
        let machine = with("");
        // No key takes this value, so that one which may be set is an error, or is read with a hub alone.
        let file = machine.write("state/conf.d/own.toml", &format!("{} = -1", key.path));
        let own =
            ["cloud.", "download.windows", "download.rate_limit", "download.max_bytes", "policy.windows"];
        let may = own.iter().any(|own| key.path.starts_with(own))
            && !["cloud.ca_file", "cloud.key_device"].contains(&key.path);
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
