//! Every key of the settings files with its built-in default: the one list that layering, the unknown-key
//! check, the shipped file and the reference page are held to.

/// One key: its path and its default as a TOML literal (`None`: no default).
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub path: &'static str,
    pub default: Option<&'static str>,
}

const fn key(path: &'static str, default: &'static str) -> Key {
    Key { path, default: Some(default) }
}

const fn open(path: &'static str) -> Key {
    Key { path, default: None }
}

/// All keys that this version reads.
pub const KEYS: &[Key] = &[
    open("compatible"),
    open("cloud.connection_string"),
    open("cloud.connection_string_file"),
    open("cloud.certificate_file"),
    open("cloud.key_file"),
    open("cloud.port"),
    open("cloud.ca_file"),
    key("cloud.keep_alive", "\"4min\""),
    key("cloud.token_ttl", "\"1h\""),
    key("cloud.reconnect_first", "\"10s\""),
    key("cloud.reconnect_longest", "\"5min\""),
    key("cloud.time_server", "\"auto\""),
    key("cloud.transport", "\"mqtt\""),
    open("cloud.proxy"),
    key("cloud.no_proxy", "[]"),
    open("cloud.dps.id_scope"),
    open("cloud.dps.registration_id"),
    open("cloud.dps.registration_id_file"),
    open("cloud.dps.symmetric_key"),
    open("cloud.dps.symmetric_key_file"),
    open("cloud.dps.group_key"),
    open("cloud.dps.group_key_file"),
    open("cloud.dps.payload"),
    key("cloud.dps.endpoint", "\"global.azure-devices-provisioning.net\""),
    open("cloud.dps.port"),
    open("slots.a.device"),
    open("slots.b.device"),
    key("slots.span_disks", "false"),
    open("bootloader.kind"),
    key("bootloader.config", "\"/etc/fw_env.config\""),
    open("bootloader.grubenv"),
    key("bootloader.tries", "3"),
    key("trust.keys", "\"/etc/fwupdate/keys\""),
    key("trust.required_signatures", "1"),
    key("trust.allowed_hosts", "[]"),
    key("trust.system_roots", "true"),
    key("download.patience", "\"1h\""),
    key("download.stall_timeout", "\"30s\""),
    key("download.min_rate", "100"),
    key("download.final_after", "\"3min\""),
    open("download.rate_limit"),
    open("download.max_bytes"),
    key("download.windows", "[]"),
    key("health.deadline", "\"10min\""),
    key("health.units", "[]"),
    key("health.no_new_failed_units", "true"),
    key("health.checks_dir", "\"/etc/fwupdate/checks\""),
    key("health.check_timeout", "\"1min\""),
    key("health.retry_interval", "\"5s\""),
    key("health.require_cloud", "true"),
    key("policy.windows", "[]"),
    key("policy.approval", "false"),
    key("policy.cloud.downgrade", "true"),
    key("policy.cloud.force", "true"),
    key("policy.cloud.budget", "true"),
    key("policy.cloud.deadline", "true"),
    key("policy.cloud.approve", "true"),
    key("policy.cloud.rollback", "true"),
    key("policy.cloud.reboot", "true"),
    key("policy.reboot_command", "[\"systemctl\", \"reboot\"]"),
    key("report.interval", "\"5s\""),
    key("report.telemetry", "true"),
    key("state.dir", "\"/var/lib/fwupdate\""),
    key("system.proc", "\"/proc\""),
    key("system.sys", "\"/sys\""),
    key("system.run", "\"/run/fwupdate\""),
    key("system.os_release", "\"/etc/os-release\""),
    open("system.clock"),
];

/// Keys whose values no message may show.
pub const SECRET: &[&str] =
    &["cloud.connection_string", "cloud.proxy", "cloud.dps.symmetric_key", "cloud.dps.group_key"];

/// What `<state>/conf.d` may set: who this device is, its network, and when it may be disturbed. That folder outlives
/// both slots and the agent can write it: whatever else stood there would outlive a process that was taken over.
const DEVICE: &[&str] = &[
    "cloud.connection_string",
    "cloud.connection_string_file",
    "cloud.certificate_file",
    "cloud.key_file",
    "cloud.port",
    "cloud.keep_alive",
    "cloud.token_ttl",
    "cloud.reconnect_first",
    "cloud.reconnect_longest",
    "cloud.time_server",
    "cloud.transport",
    "cloud.proxy",
    "cloud.no_proxy",
    "cloud.dps.id_scope",
    "cloud.dps.registration_id",
    "cloud.dps.registration_id_file",
    "cloud.dps.symmetric_key",
    "cloud.dps.symmetric_key_file",
    "cloud.dps.group_key",
    "cloud.dps.group_key_file",
    "cloud.dps.payload",
    "cloud.dps.endpoint",
    "cloud.dps.port",
    "download.rate_limit",
    "download.max_bytes",
    "download.windows",
    "policy.windows",
];

/// Whether `path` is a key that the device's own layer may set, or a section with such a key in it.
pub fn is_devices_own(path: &str) -> bool {
    DEVICE
        .iter()
        .any(|key| key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Whether `path` is a key, or a section that holds keys.
pub fn is_known(path: &str) -> bool {
    KEYS.iter().any(|k| k.path == path)
}

/// Whether `path` is a section: something below it is a key.
pub fn is_section(path: &str) -> bool {
    KEYS.iter().any(|k| k.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// What `path` most likely meant, if anything is near: a section for a table, else a key.
pub fn nearest(path: &str, is_table: bool) -> Option<&'static str> {
    let path = normal(path);
    let names: Vec<&str> = match is_table {
        true => sections().collect(),
        false => KEYS.iter().map(|key| key.path).chain(sections()).collect(),
    };
    let (distance, name) = names.into_iter().map(|name| (unlikeness(&path, name), name)).min()?;
    (distance <= (path.len() / 2).clamp(2, 3)).then_some(name)
}

/// As people and other programs write names.
fn normal(path: &str) -> String {
    path.chars().take(128).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// Every section, the outer ones, too.
fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().flat_map(|key| key.path.match_indices('.').filter_map(|(end, _)| key.path.get(..end)))
}

/// How far apart two paths are, in signs to change; a right name in a wrong section counts as near.
fn unlikeness(path: &str, name: &'static str) -> usize {
    fn last(path: &str) -> &str {
        path.rsplit('.').next().unwrap_or(path)
    }
    let whole = strsim::damerau_levenshtein(path, name);
    match strsim::damerau_levenshtein(last(path), last(name)) {
        // One sign is no name to go by: the slots are called a and b.
        0 if last(path).len() > 1 => whole.min(2),
        1 if last(path).len() > 4 => whole.min(3),
        _ => whole,
    }
}

/// The defaults as a settings file, the lowest layer.
pub fn defaults_toml() -> String {
    KEYS.iter().filter_map(|k| Some(format!("{} = {}\n", k.path, k.default?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_toml_that_sets_every_key_with_a_default() {
        let table: toml::Table = defaults_toml().parse().unwrap();
        assert_eq!(table["bootloader"]["tries"].as_integer(), Some(3));
        assert_eq!(table["trust"]["keys"].as_str(), Some("/etc/fwupdate/keys"));
    }

    #[test]
    fn the_nearest_key_is_a_typo_away_or_the_same_word_elsewhere() {
        for (written, meant) in [
            ("compatable", "compatible"),
            ("Compatible", "compatible"),
            ("bootloader.trys", "bootloader.tries"),
            ("bootloader.tires", "bootloader.tries"),
            ("tries", "bootloader.tries"),
            ("health.tries", "bootloader.tries"),
            ("cloud.keep-alive", "cloud.keep_alive"),
            ("cloud.conection_string_file", "cloud.connection_string_file"),
            ("slot.a.device", "slots.a.device"),
            ("slots.b.devise", "slots.b.device"),
            ("policy.aproval", "policy.approval"),
        ] {
            assert_eq!(nearest(written, false), Some(meant), "{written}");
        }
        assert_eq!(nearest("something.else.entirely", false), None);
        assert_eq!(nearest("x", false), None);
    }

    #[test]
    fn the_nearest_section_is_a_section() {
        for (written, meant) in [
            ("helth", "health"),
            ("slot", "slots"),
            ("slot.a", "slots.a"),
            ("slots_b", "slots.b"),
            ("slots.A", "slots.a"),
            ("dps", "cloud.dps"),
            ("cloud.dsp", "cloud.dps"),
            ("Bootloader", "bootloader"),
            ("boot_loader", "bootloader"),
            ("downloads", "download"),
        ] {
            assert_eq!(nearest(written, true), Some(meant), "{written}");
        }
        assert_eq!(nearest("slots.c", true), Some("slots.a"), "as near as b");
        assert_eq!(nearest("webserver", true), None);
    }

    #[test]
    fn sections_and_keys_are_told_apart() {
        assert!(is_section("slots") && is_section("slots.a") && !is_section("slots.a.device"));
        assert!(is_known("slots.a.device") && !is_known("slots.a"));
        assert!(!is_section("slot"));
    }
}
