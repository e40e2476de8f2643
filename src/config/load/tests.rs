//! Settings files as people write them: what each layer may say, and what is said of mistakes.

use super::*;
use crate::config::*;

use std::time::Duration;

mod cloud;
mod files;
mod layers;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

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
