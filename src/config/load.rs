//! Third stage and the way through all three: layers in, validated [`Settings`] out.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{ConfigError, Warning};
use super::fragments::{self, Environment, Fragment, Layer, Options};
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
    let own = own_layer(&state.join("conf.d"), &mut warnings);
    sources.extend(own.iter().map(|fragment| PathBuf::from(&fragment.origin)));
    let settings = with_own_layer(&fragments, own, &options.environment, &mut warnings)?;
    let awaited = warnings.iter().filter_map(Warning::awaited).collect();
    Ok(Loaded { settings: Settings { awaited, ..settings }, warnings, sources })
}

/// The files of the device's own layer that can be read. A program writes them, and a cut of power tears them: none of
/// them may keep the agent from running.
fn own_layer(dir: &Path, warnings: &mut Vec<Warning>) -> Vec<Fragment> {
    let over = |path: &Path, error: ConfigError| passed_over(&path.display().to_string(), &error);
    let paths = fragments::files_in(dir).unwrap_or_else(|error| {
        warnings.push(over(dir, error));
        Vec::new()
    });
    let mut found = Vec::new();
    for path in paths {
        match Fragment::read(&path, Layer::Device, warnings) {
            Ok(fragment) => found.extend(fragment),
            Err(error) => warnings.push(over(&path, error)),
        }
    }
    found
}

/// Settings, and what is to be said about them.
type Attempt = (Settings, Vec<Warning>);

/// The settings with as much of the device's own layer as makes sense: all of it, else all but one file, else each file
/// that makes sense beside those before it. The layers below it must make sense by themselves then.
fn with_own_layer(
    below: &[Fragment],
    own: Vec<Fragment>,
    environment: &Environment,
    warnings: &mut Vec<Warning>,
) -> Result<Settings, ConfigError> {
    let attempt = |own: &[&Fragment]| -> Result<Attempt, ConfigError> {
        let mut said = warnings.clone();
        let all: Vec<Fragment> = below.iter().chain(own.iter().copied()).cloned().collect();
        settings(&Inputs::merge(&all)?, environment, &mut said).map(|settings| (settings, said))
    };
    let all: Vec<&Fragment> = own.iter().collect();
    let (found, over) = match attempt(&all) {
        Ok(found) => (found, Vec::new()),
        Err(error) => match all_but_one(attempt, &all, &error).or_else(|| one_by_one(attempt, &all)) {
            Some(found) => found,
            None => return Err(error),
        },
    };
    *warnings = found.1;
    warnings.extend(over);
    Ok(found.0)
}

fn all_but_one(
    attempt: impl Fn(&[&Fragment]) -> Result<Attempt, ConfigError>,
    all: &[&Fragment],
    error: &ConfigError,
) -> Option<(Attempt, Vec<Warning>)> {
    all.iter().enumerate().rev().find_map(|(left, fragment)| {
        let others = all.iter().enumerate().filter(|(index, _)| *index != left).map(|(_, other)| *other);
        let found = attempt(&others.collect::<Vec<_>>()).ok()?;
        Some((found, vec![passed_over(&fragment.origin, error)]))
    })
}

fn one_by_one(
    attempt: impl Fn(&[&Fragment]) -> Result<Attempt, ConfigError>,
    all: &[&Fragment],
) -> Option<(Attempt, Vec<Warning>)> {
    let (mut best, mut kept, mut over) = (attempt(&[]).ok()?, Vec::new(), Vec::new());
    for fragment in all {
        kept.push(*fragment);
        match attempt(&kept) {
            Ok(found) => best = found,
            Err(error) => {
                kept.pop();
                over.push(passed_over(&fragment.origin, &error));
            }
        }
    }
    Some((best, over))
}

fn passed_over(file: &str, error: &ConfigError) -> Warning {
    Warning::PassedOver { file: file.to_owned(), why: error.to_string() }
}

/// The part of the settings that the service's sandbox depends on, and what root does for the agent.
#[derive(Debug)]
pub struct Board {
    pub slots: Slots,
    pub bootloader: Bootloader,
    pub state: State,
    pub health: Health,
    pub reboot_command: Vec<String>,
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
    Ok(Board {
        slots: slots(&inputs)?,
        bootloader: bootloader(&inputs)?,
        state,
        health: health(&inputs)?,
        reboot_command: policy(&inputs)?.reboot_command,
    })
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

fn settings(
    inputs: &Inputs,
    environment: &Environment,
    warnings: &mut Vec<Warning>,
) -> Result<Settings, ConfigError> {
    require(inputs, warnings)?;
    let proxy = cloud::proxy(inputs, environment, warnings)?;
    let cloud = cloud::cloud(inputs, &proxy, warnings).or_else(|error| match error {
        ConfigError::Awaited { .. } => {
            warnings.push(Warning::Awaited { why: error.to_string() });
            Ok(None)
        }
        other => Err(other),
    })?;
    Ok(Settings {
        compatible: needed(inputs.text("compatible")?, inputs, "compatible")?,
        cloud,
        slots: slots(inputs)?,
        bootloader: bootloader(inputs)?,
        trust: trust(inputs)?,
        download: download(inputs, proxy)?,
        health: health(inputs)?,
        policy: policy(inputs)?,
        report: Report {
            interval: inputs.span("report.interval", SECOND, HOUR)?,
            telemetry: inputs.flag("report.telemetry")?,
        },
        state: State { dir: inputs.need_path("state.dir")? },
        system: System {
            proc: inputs.need_path("system.proc")?,
            sys: inputs.need_path("system.sys")?,
            run: inputs.need_path("system.run")?,
            os_release: inputs.need_path("system.os_release")?,
            clock: inputs.path("system.clock")?,
        },
        awaited: Vec::new(),
    })
}

const TICK: Duration = Duration::from_millis(10);
pub(super) const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

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

pub(super) fn needed<T>(value: Option<T>, inputs: &Inputs, path: &str) -> Result<T, ConfigError> {
    value.ok_or_else(|| inputs.wrong(path, "set"))
}

const OF_PARTITION: &str = "PARTUUID=ID or PARTLABEL=NAME, which are the partition's (`blkid` shows them), for UUID \
                            and LABEL are the file system's and go with each update";

/// A name that an image brings along: both slots may have it, and the next update has another.
fn of_file_system(device: &str) -> bool {
    let device = device.to_ascii_lowercase();
    let names = ["uuid=", "label=", "/dev/disk/by-uuid/", "/dev/disk/by-label/"];
    names.iter().any(|name| device.starts_with(name))
}

fn slots(inputs: &Inputs) -> Result<Slots, ConfigError> {
    let slot = |path: &str| -> Result<String, ConfigError> {
        let device = needed(inputs.text(path)?, inputs, path)?;
        if of_file_system(&device) {
            return Err(inputs.wrong(path, OF_PARTITION));
        }
        let label = ["PARTLABEL=", "PARTUUID="].iter().find_map(|prefix| device.strip_prefix(prefix));
        if label.map_or(device.starts_with('/'), |name| !name.is_empty() && !name.contains('/')) {
            return Ok(device);
        }
        Err(inputs.wrong(path, "an absolute path, PARTLABEL=NAME or PARTUUID=ID"))
    };
    let span_disks = inputs.flag("slots.span_disks")?;
    let slots = Slots { a: slot("slots.a.device")?, b: slot("slots.b.device")?, span_disks };
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
        let expected = "a list of \"host\", \"host:port\", \"*.suffix\" or \"address/bits\"";
        return Err(inputs.wrong("trust.allowed_hosts", expected));
    }
    Ok(Trust {
        keys: inputs.need_path("trust.keys")?,
        required_signatures: usize::from(inputs.number("trust.required_signatures", 1, 16)?),
        allowed_hosts,
        roots: cloud::roots(inputs)?,
    })
}

fn is_host_pattern(pattern: &str) -> bool {
    if pattern.contains('/') {
        return pattern.parse::<ipnet::IpNet>().is_ok();
    }
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

fn download(inputs: &Inputs, proxy: Proxy) -> Result<Download, ConfigError> {
    Ok(Download {
        proxy,
        patience: inputs.span("download.patience", SECOND, DAY.saturating_mul(30))?,
        stall_timeout: inputs.span("download.stall_timeout", SECOND, HOUR)?,
        min_rate: needed(inputs.bytes("download.min_rate")?, inputs, "download.min_rate")?,
        final_after: inputs.span("download.final_after", TICK, DAY)?,
        rate_limit: inputs.bytes("download.rate_limit")?,
        max_bytes: inputs.bytes("download.max_bytes")?,
        windows: inputs.windows("download.windows")?,
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
        cloud: Allowed {
            downgrade: inputs.flag("policy.cloud.downgrade")?,
            force: inputs.flag("policy.cloud.force")?,
            budget: inputs.flag("policy.cloud.budget")?,
            deadline: inputs.flag("policy.cloud.deadline")?,
            approve: inputs.flag("policy.cloud.approve")?,
            rollback: inputs.flag("policy.cloud.rollback")?,
            reboot: inputs.flag("policy.cloud.reboot")?,
        },
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
