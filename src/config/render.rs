//! The effective settings as a settings file, secrets masked: what `--check-config` prints.

use toml::{Table, Value};

use super::units::{show_duration, show_window};
use super::{Auth, BootloaderKind, Cloud, Settings};

/// `settings` as TOML that `load` would read, but for the device key, which shows as `***`.
pub fn render(settings: &Settings) -> String {
    let mut root = Table::new();
    root.insert("compatible".into(), settings.compatible.clone().into());
    if let Some(cloud) = &settings.cloud {
        root.insert("cloud".into(), cloud_table(cloud).into());
    }
    root.insert("slots".into(), slots(settings).into());
    root.insert("bootloader".into(), bootloader(settings).into());
    root.insert("trust".into(), trust(settings).into());
    root.insert("download".into(), download(settings).into());
    root.insert("health".into(), health(settings).into());
    root.insert("policy".into(), policy(settings).into());
    let interval = show_duration(settings.report.interval).into();
    root.insert("report".into(), table([("interval", interval)]).into());
    root.insert("state".into(), table([("dir", path(&settings.state.dir))]).into());
    root.insert("system".into(), system(settings).into());
    root.to_string()
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Table {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn path(path: &std::path::Path) -> Value {
    path.display().to_string().into()
}

/// A size as integer; TOML's are signed, and larger ones than it holds can't have been read.
fn bytes(value: u64) -> Value {
    i64::try_from(value).unwrap_or(i64::MAX).into()
}

fn cloud_table(cloud: &Cloud) -> Table {
    let mut text = format!("HostName={};DeviceId={}", cloud.host, cloud.device_id);
    let parts = [("ModuleId", &cloud.module_id), ("GatewayHostName", &cloud.gateway)];
    for (name, value) in parts.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
        text.push_str(&format!(";{name}={value}"));
    }
    let mut out = table([
        ("transport", "mqtt".into()),
        ("port", i64::from(cloud.port).into()),
        ("keep_alive", show_duration(cloud.keep_alive).into()),
        ("token_ttl", show_duration(cloud.token_ttl).into()),
        ("reconnect_first", show_duration(cloud.reconnect.first).into()),
        ("reconnect_longest", show_duration(cloud.reconnect.longest).into()),
    ]);
    match &cloud.auth {
        Auth::SharedKey(_) => text.push_str(";SharedAccessKey=***"),
        Auth::X509 { certificate, key } => {
            text.push_str(";x509=true");
            out.extend(table([("certificate_file", path(certificate)), ("key_file", path(key))]));
        }
    }
    out.insert("connection_string".into(), text.into());
    if let Some(file) = &cloud.ca_file {
        out.insert("ca_file".into(), path(file));
    }
    out
}

fn slots(settings: &Settings) -> Table {
    let slot = |device: &str| Value::from(table([("device", device.into())]));
    table([("a", slot(&settings.slots.a)), ("b", slot(&settings.slots.b))])
}

fn bootloader(settings: &Settings) -> Table {
    let mut out = match &settings.bootloader.kind {
        BootloaderKind::Uboot { config } => table([("kind", "uboot".into()), ("config", path(config))]),
        BootloaderKind::Grub { grubenv } => table([("kind", "grub".into()), ("grubenv", path(grubenv))]),
    };
    out.insert("tries".into(), i64::from(settings.bootloader.tries).into());
    out
}

fn trust(settings: &Settings) -> Table {
    let trust = &settings.trust;
    table([
        ("keys", path(&trust.keys)),
        ("required_signatures", i64::try_from(trust.required_signatures).unwrap_or(i64::MAX).into()),
        ("allowed_hosts", trust.allowed_hosts.clone().into()),
    ])
}

fn download(settings: &Settings) -> Table {
    let download = &settings.download;
    let mut out = table([
        ("patience", show_duration(download.patience).into()),
        ("stall_timeout", show_duration(download.stall_timeout).into()),
    ]);
    out.extend(download.rate_limit.map(|n| ("rate_limit".to_owned(), bytes(n))));
    out.extend(download.max_bytes.map(|n| ("max_bytes".to_owned(), bytes(n))));
    out
}

fn health(settings: &Settings) -> Table {
    let health = &settings.health;
    table([
        ("deadline", show_duration(health.deadline).into()),
        ("units", health.units.clone().into()),
        ("no_new_failed_units", health.no_new_failed_units.into()),
        ("checks_dir", path(&health.checks_dir)),
        ("check_timeout", show_duration(health.check_timeout).into()),
        ("retry_interval", show_duration(health.retry_interval).into()),
        ("require_cloud", health.require_cloud.into()),
    ])
}

fn policy(settings: &Settings) -> Table {
    let policy = &settings.policy;
    let windows: Vec<String> = policy.windows.iter().map(|w| show_window(*w)).collect();
    table([
        ("windows", windows.into()),
        ("approval", policy.approval.into()),
        ("reboot_command", policy.reboot_command.clone().into()),
    ])
}

fn system(settings: &Settings) -> Table {
    let system = &settings.system;
    table([
        ("proc", path(&system.proc)),
        ("sys", path(&system.sys)),
        ("run", path(&system.run)),
        ("os_release", path(&system.os_release)),
    ])
}
