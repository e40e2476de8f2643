//! The effective settings as a settings file, secrets masked: what `--check-config` prints.

use toml::{Table, Value};

use super::units::{show_duration, show_window};
use super::{Auth, BootloaderKind, Cloud, Dps, Place, Seat, Settings, Slots, TimeServer, Transport, Window};

/// `settings` as TOML that `load` would read, but for the device key, which shows as `***`.
pub fn render(settings: &Settings) -> String {
    let mut root = Table::new();
    root.insert("compatible".into(), settings.compatible.clone().into());
    // The proxy and the roots serve the downloads too, and so may stand without a hub.
    let mut cloud = settings.cloud.as_ref().map(cloud_table).unwrap_or_default();
    cloud.extend(settings.trust.roots.ca_file.as_ref().map(|file| ("ca_file".to_owned(), path(file))));
    if let Some((url, except)) = settings.download.proxy.shown() {
        cloud.extend(table([("proxy", url.into()), ("no_proxy", except.into())]));
    }
    if !cloud.is_empty() {
        root.insert("cloud".into(), cloud.into());
    }
    root.insert("slots".into(), slots(settings).into());
    root.insert("bootloader".into(), bootloader(settings).into());
    root.insert("trust".into(), trust(settings).into());
    root.insert("download".into(), download(settings).into());
    root.insert("health".into(), health(settings).into());
    root.insert("policy".into(), policy(settings).into());
    let interval = show_duration(settings.report.interval).into();
    root.insert(
        "report".into(),
        table([("interval", interval), ("telemetry", settings.report.telemetry.into())]).into(),
    );
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
    let mut out = table([
        ("transport", transport(cloud.transport).into()),
        ("port", i64::from(cloud.port).into()),
        ("keep_alive", show_duration(cloud.keep_alive).into()),
        ("token_ttl", show_duration(cloud.token_ttl).into()),
        ("reconnect_first", show_duration(cloud.reconnect.first).into()),
        ("reconnect_longest", show_duration(cloud.reconnect.longest).into()),
        ("time_server", time_server(&cloud.time_server).into()),
    ]);
    match &cloud.place {
        Place::Known(seat) => {
            out.extend(table([("connection_string", connection_string(seat, &cloud.auth).into())]))
        }
        Place::Assigned(dps) => out.extend(table([("dps", dps_table(dps, &cloud.auth).into())])),
    }
    if let Auth::X509 { certificate, key } = &cloud.auth {
        out.extend(table([("certificate_file", path(certificate)), ("key_file", path(key))]));
    }
    out
}

fn time_server(server: &TimeServer) -> String {
    match server {
        TimeServer::Own => "auto".to_owned(),
        TimeServer::Nobody => "none".to_owned(),
        TimeServer::Other { host, port } => format!("{host}:{port}"),
    }
}

fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Mqtt => "mqtt",
        Transport::WebSocket => "websocket",
    }
}

fn connection_string(seat: &Seat, auth: &Auth) -> String {
    let mut text = format!("HostName={};DeviceId={}", seat.host, seat.device_id);
    let parts = [("ModuleId", &seat.module_id), ("GatewayHostName", &seat.gateway)];
    for (name, value) in parts.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
        text.push_str(&format!(";{name}={value}"));
    }
    text.push_str(match auth {
        Auth::SharedKey(_) => ";SharedAccessKey=***",
        Auth::X509 { .. } => ";x509=true",
    });
    text
}

/// A group's key was turned into the device's own, which is what is in effect.
fn dps_table(dps: &Dps, auth: &Auth) -> Table {
    let mut out = table([
        ("endpoint", dps.endpoint.clone().into()),
        ("port", i64::from(dps.port).into()),
        ("id_scope", dps.id_scope.clone().into()),
        ("registration_id", dps.registration_id.clone().into()),
    ]);
    if let Auth::SharedKey(_) = auth {
        out.extend(table([("symmetric_key", "***".into())]));
    }
    out.extend(dps.payload.as_ref().map(|payload| ("payload".to_owned(), payload.to_string().into())));
    out
}

fn slots(settings: &Settings) -> Table {
    let slot = |device: &str| Value::from(table([("device", device.into())]));
    let Slots { a, b, span_disks } = &settings.slots;
    table([("a", slot(a)), ("b", slot(b)), ("span_disks", (*span_disks).into())])
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
        ("system_roots", trust.roots.system.into()),
    ])
}

fn download(settings: &Settings) -> Table {
    let download = &settings.download;
    let mut out = table([
        ("patience", show_duration(download.patience).into()),
        ("stall_timeout", show_duration(download.stall_timeout).into()),
        ("min_rate", bytes(download.min_rate)),
        ("final_after", show_duration(download.final_after).into()),
    ]);
    out.extend(download.rate_limit.map(|n| ("rate_limit".to_owned(), bytes(n))));
    out.extend(download.max_bytes.map(|n| ("max_bytes".to_owned(), bytes(n))));
    out.insert("windows".into(), windows(&download.windows));
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
    let cloud = table([
        ("downgrade", policy.cloud.downgrade.into()),
        ("force", policy.cloud.force.into()),
        ("budget", policy.cloud.budget.into()),
        ("deadline", policy.cloud.deadline.into()),
        ("approve", policy.cloud.approve.into()),
        ("rollback", policy.cloud.rollback.into()),
        ("reboot", policy.cloud.reboot.into()),
    ]);
    table([
        ("windows", windows(&policy.windows)),
        ("approval", policy.approval.into()),
        ("cloud", cloud.into()),
        ("reboot_command", policy.reboot_command.clone().into()),
    ])
}

fn windows(windows: &[Window]) -> Value {
    windows.iter().map(|window| show_window(*window)).collect::<Vec<_>>().into()
}

fn system(settings: &Settings) -> Table {
    let system = &settings.system;
    let mut out = table([
        ("proc", path(&system.proc)),
        ("sys", path(&system.sys)),
        ("run", path(&system.run)),
        ("os_release", path(&system.os_release)),
    ]);
    out.extend(system.clock.as_ref().map(|file| ("clock".to_owned(), path(file))));
    out
}
