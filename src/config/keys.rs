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

/// The known key that `path` most likely meant, if one is near.
pub fn nearest(path: &str) -> Option<&'static str> {
    let names = KEYS.iter().map(|k| k.path).chain(sections());
    let (distance, name) = names.map(|name| (likeness(path, name), name)).min()?;
    (distance <= 3).then_some(name)
}

/// The sections, for "did you mean".
fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(|k| k.path.rsplit_once('.').map(|(section, _)| section))
}

/// How far apart two key paths are; a key that only stands in the wrong section counts as near.
fn likeness(path: &str, name: &'static str) -> usize {
    fn last(path: &str) -> &str {
        path.rsplit('.').next().unwrap_or(path)
    }
    let whole = edit_distance(path, name);
    if last(path) == last(name) { whole.min(3) } else { whole }
}

/// Levenshtein distance in characters, with one row of memory.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(128).enumerate() {
        let mut next = vec![i.saturating_add(1)];
        for (pair, cb) in row.windows(2).zip(&b) {
            let &[diagonal, above] = pair else { continue };
            let left = next.last().copied().unwrap_or(0);
            let changed = diagonal.saturating_add(usize::from(ca != *cb));
            next.push(changed.min(above.min(left).saturating_add(1)));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
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
    fn edit_distance_counts_insertions_deletions_and_changes() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", ""), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
    }

    #[test]
    fn the_nearest_key_is_a_typo_away_or_the_same_word_elsewhere() {
        assert_eq!(nearest("compatable"), Some("compatible"));
        assert_eq!(nearest("bootloader.trys"), Some("bootloader.tries"));
        assert_eq!(nearest("tries"), Some("bootloader.tries"));
        assert_eq!(nearest("helth"), Some("health"));
        assert_eq!(nearest("something.else.entirely"), None);
    }

    #[test]
    fn sections_and_keys_are_told_apart() {
        assert!(is_section("slots") && is_section("slots.a") && !is_section("slots.a.device"));
        assert!(is_known("slots.a.device") && !is_known("slots.a"));
        assert!(!is_section("slot"));
    }
}
