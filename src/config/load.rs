//! Third stage and the way through all three: layers in, validated [`Settings`] out.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::connection::{self, ConnectionString};
use super::error::{ConfigError, Warning};
use super::fragments::{self, Fragment, Layer, Options};
use super::inputs::Inputs;
use super::*;

/// Settings, and what is to be said about them.
#[derive(Debug)]
pub struct Loaded {
    pub settings: Settings,
    /// Logged by the daemon; some of them fail `--check-config`.
    pub warnings: Vec<Warning>,
    /// The files that were read, lowest layer first.
    pub sources: Vec<PathBuf>,
}

/// Reads all layers of `options` and validates the result.
pub fn load(options: &Options) -> Result<Loaded, ConfigError> {
    let mut warnings = Vec::new();
    let mut fragments = vec![Fragment::defaults()?];
    let mut sources = Vec::new();
    for (path, layer) in system_layers(options)? {
        match Fragment::read(&path, layer, &mut warnings)? {
            Some(fragment) => fragments.push(fragment),
            None if path == options.main && options.main_required => return Err(absent(path)),
            None => continue,
        }
        sources.push(path);
    }
    // The device's own layer lies where the layers below it say.
    let state = Inputs::merge(&fragments)?.need_path("state.dir")?;
    for path in fragments::files_in(&state.join("conf.d"))? {
        fragments.extend(Fragment::read(&path, Layer::Device, &mut warnings)?);
        sources.push(path);
    }
    let settings = settings(&Inputs::merge(&fragments)?, &mut warnings)?;
    Ok(Loaded { settings, warnings, sources })
}

/// The part of the settings that the service's sandbox depends on.
#[derive(Debug)]
pub struct Board {
    pub slots: Slots,
    pub bootloader: Bootloader,
    pub state: State,
}

/// Reads the board from the system layers alone: early in boot nothing else is mounted, so that neither
/// `<state>/conf.d` nor files that other settings name count.
pub fn load_board(options: &Options) -> Result<Board, ConfigError> {
    let mut warnings = Vec::new();
    let mut fragments = vec![Fragment::defaults()?];
    for (path, layer) in system_layers(options)? {
        fragments.extend(Fragment::read(&path, layer, &mut warnings)?);
    }
    let inputs = Inputs::merge(&fragments)?;
    require(&inputs, &warnings)?;
    let state = State { dir: inputs.need_path("state.dir")? };
    Ok(Board { slots: slots(&inputs)?, bootloader: bootloader(&inputs)?, state })
}

fn system_layers(options: &Options) -> Result<Vec<(PathBuf, Layer)>, ConfigError> {
    let mut paths: Vec<(PathBuf, Layer)> = Vec::new();
    paths.extend(options.vendor.clone().map(|p| (p, Layer::Trusted)));
    paths.push((options.main.clone(), Layer::Trusted));
    if let Some(dir) = &options.drop_ins {
        paths.extend(fragments::files_in(dir)?.into_iter().map(|p| (p, Layer::DropIn)));
    }
    Ok(paths)
}

fn absent(path: PathBuf) -> ConfigError {
    ConfigError::Read { path, source: std::io::ErrorKind::NotFound.into() }
}

fn settings(inputs: &Inputs, warnings: &mut Vec<Warning>) -> Result<Settings, ConfigError> {
    require(inputs, warnings)?;
    Ok(Settings {
        compatible: needed(inputs.text("compatible")?, inputs, "compatible")?,
        cloud: cloud(inputs, warnings)?,
        slots: slots(inputs)?,
        bootloader: bootloader(inputs)?,
        trust: trust(inputs)?,
        download: download(inputs)?,
        health: health(inputs)?,
        policy: policy(inputs)?,
        report: Report { interval: inputs.span("report.interval", SECOND, HOUR)? },
        state: State { dir: inputs.need_path("state.dir")? },
        system: System {
            proc: inputs.need_path("system.proc")?,
            sys: inputs.need_path("system.sys")?,
            run: inputs.need_path("system.run")?,
            os_release: inputs.need_path("system.os_release")?,
        },
    })
}

const TICK: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// IoT Hub waits 1.5 times the keep-alive, but no longer than 1767 s.
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(1177);

/// What no default can guess, each with what to write.
const REQUIRED: &[(&str, &str)] = &[
    ("compatible", "`compatible` (the board's name, as in the bundles: compatible = \"my-board\")"),
    ("slots.a.device", "`slots.a.device` (the first slot: device = \"PARTLABEL=rootfs-a\" below [slots.a])"),
    ("slots.b.device", "`slots.b.device` (the second slot: device = \"PARTLABEL=rootfs-b\" below [slots.b])"),
    ("bootloader.kind", "`bootloader.kind` (kind = \"uboot\" or kind = \"grub\" below [bootloader])"),
];

/// Names everything that is missing at once.
fn require(inputs: &Inputs, warnings: &[Warning]) -> Result<(), ConfigError> {
    let missing: Vec<&str> =
        REQUIRED.iter().filter(|(path, _)| !inputs.has(path)).map(|(_, sentence)| *sentence).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(ConfigError::Missing { missing, warnings: warnings.to_vec() })
}

fn needed<T>(value: Option<T>, inputs: &Inputs, path: &str) -> Result<T, ConfigError> {
    value.ok_or_else(|| inputs.wrong(path, "set"))
}

fn cloud(inputs: &Inputs, warnings: &mut Vec<Warning>) -> Result<Option<Cloud>, ConfigError> {
    refuse_unsupported(inputs)?;
    let Some((file, text)) = connection_text(inputs, warnings)? else {
        return no_connection(inputs);
    };
    let parsed =
        connection::parse(&text).map_err(|problem| ConfigError::ConnectionString { file, problem })?;
    let auth = auth(inputs, &parsed)?;
    Ok(Some(Cloud {
        host: parsed.host,
        gateway: parsed.gateway,
        port: inputs.number("cloud.port", 1, u16::MAX)?,
        device_id: parsed.device_id,
        module_id: parsed.module_id,
        auth,
        ca_file: inputs.path("cloud.ca_file")?,
        keep_alive: inputs.span("cloud.keep_alive", 5 * SECOND, KEEP_ALIVE_LIMIT)?,
        token_ttl: inputs.span("cloud.token_ttl", 3 * SECOND, 365 * DAY)?,
        reconnect: reconnect(inputs)?,
    }))
}

fn reconnect(inputs: &Inputs) -> Result<Reconnect, ConfigError> {
    let first = inputs.span("cloud.reconnect_first", SECOND, DAY)?;
    Ok(Reconnect { first, longest: inputs.span("cloud.reconnect_longest", first, DAY)? })
}

/// Without a connection string, the credentials beside it are a mistake and not "no cloud".
fn no_connection(inputs: &Inputs) -> Result<Option<Cloud>, ConfigError> {
    for path in ["cloud.certificate_file", "cloud.key_file"] {
        if inputs.has(path) {
            return Err(ConfigError::Conflict(format!(
                "{path} in {} has no connection string beside it; add cloud.connection_string",
                inputs.file(path)
            )));
        }
    }
    Ok(None)
}

fn refuse_unsupported(inputs: &Inputs) -> Result<(), ConfigError> {
    let unsupported = |key: &str, instead| ConfigError::Unsupported {
        key: key.to_owned(),
        file: inputs.file(key),
        instead,
    };
    for (key, instead) in [
        ("cloud.proxy", "give the gateway a direct way to the hub"),
        ("cloud.dps", "use cloud.connection_string of a registered device"),
    ] {
        if inputs.has(key) {
            return Err(unsupported(key, instead));
        }
    }
    match inputs.text("cloud.transport")?.as_deref() {
        Some("mqtt") => Ok(()),
        Some("websocket") => {
            Err(unsupported("cloud.transport", "let the gateway reach the hub's port 8883 (MQTT over TLS)"))
        }
        _ => Err(inputs.wrong("cloud.transport", "\"mqtt\"")),
    }
}

/// The connection string and the file it stands in.
fn connection_text(
    inputs: &Inputs,
    warnings: &mut Vec<Warning>,
) -> Result<Option<(String, String)>, ConfigError> {
    let inline = inputs.text("cloud.connection_string")?;
    let file = inputs.path("cloud.connection_string_file")?;
    let (path, text) = match (inline, file) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(ConfigError::Conflict(format!(
                "cloud.connection_string in {} and cloud.connection_string_file in {} are both set; keep one",
                inputs.file("cloud.connection_string"),
                inputs.file("cloud.connection_string_file")
            )));
        }
        (Some(text), None) => (PathBuf::from(inputs.file("cloud.connection_string")), text),
        (None, Some(path)) => match fragments::read_text(&path, 8192)? {
            Some(text) => (path, text),
            None => return Err(absent(path)),
        },
    };
    let name = path.display().to_string();
    if text.contains("SharedAccessKey=") && others_can_read(&path) {
        warnings.push(Warning::Exposed { file: name.clone() });
    }
    Ok(Some((name, text)))
}

fn others_can_read(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

fn auth(inputs: &Inputs, parsed: &ConnectionString) -> Result<Auth, ConfigError> {
    let (certificate, key) = (inputs.path("cloud.certificate_file")?, inputs.path("cloud.key_file")?);
    match (&parsed.key, certificate, key) {
        (Some(secret), None, None) => Ok(Auth::SharedKey(secret.clone())),
        (None, Some(certificate), Some(key)) => Ok(Auth::X509 { certificate, key }),
        (Some(_), ..) => Err(ConfigError::Conflict(
            "the connection string has a SharedAccessKey, but cloud.certificate_file or cloud.key_file is set; \
             keep one way to log in (x509=true in the connection string means certificates)"
                .to_owned(),
        )),
        (None, ..) => Err(ConfigError::Conflict(
            "the connection string says x509=true; set both cloud.certificate_file and cloud.key_file".to_owned(),
        )),
    }
}

fn slots(inputs: &Inputs) -> Result<Slots, ConfigError> {
    let slot = |path: &str| -> Result<String, ConfigError> {
        let device = needed(inputs.text(path)?, inputs, path)?;
        let label = ["PARTLABEL=", "PARTUUID="].iter().find_map(|prefix| device.strip_prefix(prefix));
        if label.map_or(device.starts_with('/'), |name| !name.is_empty() && !name.contains('/')) {
            return Ok(device);
        }
        Err(inputs.wrong(path, "an absolute path, PARTLABEL=NAME or PARTUUID=ID"))
    };
    let slots = Slots { a: slot("slots.a.device")?, b: slot("slots.b.device")? };
    if slots.a == slots.b {
        return Err(inputs.wrong("slots.b.device", "another device than slots.a.device"));
    }
    Ok(slots)
}

fn bootloader(inputs: &Inputs) -> Result<Bootloader, ConfigError> {
    let kind = match inputs.text("bootloader.kind")?.as_deref() {
        Some("uboot") => BootloaderKind::Uboot { config: inputs.need_path("bootloader.config")? },
        Some("grub") => BootloaderKind::Grub {
            grubenv: inputs.path("bootloader.grubenv")?.ok_or(ConfigError::Missing {
                missing: vec![
                    "`bootloader.grubenv` (where GRUB reads it: grubenv = \"/boot/efi/fwupdate/grubenv\")",
                ],
                warnings: Vec::new(),
            })?,
        },
        _ => return Err(inputs.wrong("bootloader.kind", "\"uboot\" or \"grub\"")),
    };
    let tries = u8::try_from(inputs.number("bootloader.tries", 1, 9)?);
    let tries = tries.map_err(|_| inputs.wrong("bootloader.tries", "an integer from 1 to 9"))?;
    Ok(Bootloader { kind, tries })
}

fn trust(inputs: &Inputs) -> Result<Trust, ConfigError> {
    let allowed_hosts = inputs.texts("trust.allowed_hosts")?;
    if !allowed_hosts.iter().all(|pattern| is_host_pattern(pattern)) {
        let expected = "a list of \"host\", \"host:port\" or \"*.suffix\"";
        return Err(inputs.wrong("trust.allowed_hosts", expected));
    }
    Ok(Trust {
        keys: inputs.need_path("trust.keys")?,
        required_signatures: usize::from(inputs.number("trust.required_signatures", 1, 16)?),
        allowed_hosts,
    })
}

fn is_host_pattern(pattern: &str) -> bool {
    let pattern = pattern.strip_prefix("*.").unwrap_or(pattern);
    let (host, port) = match pattern.strip_prefix('[') {
        // An IPv6 address stands in brackets, as in a URL.
        Some(rest) => match rest.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, port.strip_prefix(':').or(Some(""))),
            None => return false,
        },
        None => match pattern.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (pattern, None),
        },
    };
    let host_ok = !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'));
    host_ok && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|p| p > 0))
}

fn download(inputs: &Inputs) -> Result<Download, ConfigError> {
    Ok(Download {
        patience: inputs.span("download.patience", SECOND, 30 * DAY)?,
        stall_timeout: inputs.span("download.stall_timeout", SECOND, HOUR)?,
        rate_limit: inputs.bytes("download.rate_limit")?,
        max_bytes: inputs.bytes("download.max_bytes")?,
    })
}

fn health(inputs: &Inputs) -> Result<Health, ConfigError> {
    Ok(Health {
        deadline: inputs.span("health.deadline", SECOND, DAY)?,
        units: inputs.texts("health.units")?,
        no_new_failed_units: inputs.flag("health.no_new_failed_units")?,
        checks_dir: inputs.need_path("health.checks_dir")?,
        check_timeout: inputs.span("health.check_timeout", SECOND, DAY)?,
        retry_interval: inputs.span("health.retry_interval", TICK, HOUR)?,
        require_cloud: inputs.flag("health.require_cloud")?,
    })
}

fn policy(inputs: &Inputs) -> Result<Policy, ConfigError> {
    let reboot_command = inputs.texts("policy.reboot_command")?;
    if reboot_command.is_empty() {
        return Err(inputs.wrong("policy.reboot_command", "a program and its arguments"));
    }
    Ok(Policy {
        windows: inputs.windows("policy.windows")?,
        approval: inputs.flag("policy.approval")?,
        reboot_command,
    })
}

/// A sentence when `dir` lies on the root file system, and so inside a slot that an update replaces.
pub fn outside_slots(dir: &Path) -> Option<String> {
    let root = fs::metadata("/").ok()?;
    let existing = dir.ancestors().find_map(|dir| fs::metadata(dir).ok())?;
    (existing.dev() == root.dev()).then(|| {
        format!(
            "{} lies on the root file system, which an update replaces; mount a partition of its own there",
            dir.display()
        )
    })
}

#[cfg(test)]
mod tests;
