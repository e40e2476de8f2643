//! Third stage and the way through all three: layers in, validated [`Settings`] out.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::cloud;
use super::error::{ConfigError, Warning};
use super::files::files_in;
use super::fragments::{self, Environment, Options};
use super::inputs::{Fragment, Inputs};
use super::row::Layer;
use super::settings::{
    Allowed, BootloaderKind, BootloaderRows as row, BootloaderSettings, CloudRows, Download, Health, Policy,
    Report, Settings, SlotA, SlotB, SlotSettings, State, System, Top, Trust,
};

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
    let fragments = system_layers(options, &mut warnings)?;
    // The device's own layer lies where the layers below it say.
    let state = Inputs::merge(&fragments)?.get(&State::dir)?;
    let own = own_layer(&state.join("conf.d"), &mut warnings);
    let read = fragments.iter().skip(1).chain(&own);
    let sources = read.map(|fragment| PathBuf::from(&fragment.origin)).collect();
    let settings = with_own_layer(&fragments, own, &options.environment, &mut warnings)?;
    let awaited = warnings.iter().filter_map(Warning::awaited).collect();
    Ok(Loaded { settings: Settings { awaited, ..settings }, warnings, sources })
}

/// The files of the device's own layer that can be read. A program writes them, and a cut of power tears them: none of
/// them may keep the agent from running.
fn own_layer(dir: &Path, warnings: &mut Vec<Warning>) -> Vec<Fragment> {
    let over = |path: &Path, error: ConfigError| Warning::PassedOver {
        file: path.display().to_string(),
        why: error.to_string(),
    };
    let paths = files_in(dir).unwrap_or_else(|error| {
        warnings.push(over(dir, error));
        Vec::new()
    });
    let mut found = Vec::new();
    for path in paths {
        match fragments::read(&path, Layer::Device, warnings) {
            Ok(fragment) => found.extend(fragment),
            Err(error) => warnings.push(over(&path, error)),
        }
    }
    found
}

/// The settings with as much of the device's own layer as makes sense: all of it, else all but one file, else each file
/// that makes sense beside those before it. The layers below it must make sense by themselves then.
fn with_own_layer(
    below: &[Fragment],
    own: Vec<Fragment>,
    environment: &Environment,
    warnings: &mut Vec<Warning>,
) -> Result<Settings, ConfigError> {
    let attempt = |own: &[&Fragment]| -> Result<(Settings, Vec<Warning>), ConfigError> {
        let mut said = warnings.clone();
        let inputs = Inputs::merge(below.iter().chain(own.iter().copied()))?;
        settings(&inputs, environment, &mut said).map(|settings| (settings, said))
    };
    let mut kept: Vec<&Fragment> = own.iter().collect();
    let mut over = Vec::new();
    if let Err(error) = attempt(&kept) {
        let is_alone = |left: &usize| {
            let others = own.iter().enumerate().filter(|(index, _)| index != left);
            attempt(&others.map(|(_, fragment)| fragment).collect::<Vec<_>>()).is_ok()
        };
        let alone = (0..own.len()).rev().find(is_alone);
        kept.clear();
        for (index, fragment) in own.iter().enumerate() {
            kept.push(fragment);
            let wrong = match alone {
                Some(left) => (left == index).then(|| error.to_string()),
                None => attempt(&kept).err().map(|error| error.to_string()),
            };
            if let Some(why) = wrong {
                kept.pop();
                over.push(Warning::PassedOver { file: fragment.origin.clone(), why });
            }
        }
    }
    let (settings, said) = attempt(&kept)?;
    *warnings = [said, over].concat();
    Ok(settings)
}

/// The part of the settings that the service's sandbox depends on, and what root does for the agent.
#[derive(Debug)]
pub struct RootSettings {
    pub slots: SlotSettings,
    pub bootloader: BootloaderSettings,
    pub state: State,
    pub health: Health,
    pub reboot_command: Vec<String>,
    /// The device of the token that holds this device's key.
    pub key_device: Option<PathBuf>,
}

/// Reads the board from the system layers alone: early in boot nothing else is mounted, so that neither
/// `<state>/conf.d` nor files that other settings name count.
pub fn load_board(options: &Options) -> Result<RootSettings, ConfigError> {
    let mut warnings = Vec::new();
    let inputs = Inputs::merge(&system_layers(options, &mut warnings)?)?;
    require(&inputs, &warnings)?;
    Ok(RootSettings {
        slots: slots(&inputs)?,
        bootloader: bootloader(&inputs)?,
        state: State::read(&inputs)?,
        health: Health::read(&inputs)?,
        reboot_command: policy(&inputs)?.reboot_command,
        key_device: inputs.get(&CloudRows::key_device)?,
    })
}

/// The defaults, and on them what the files of the system layers say.
fn system_layers(options: &Options, warnings: &mut Vec<Warning>) -> Result<Vec<Fragment>, ConfigError> {
    let mut paths: Vec<(PathBuf, Layer)> = Vec::new();
    paths.extend(options.vendor.clone().map(|p| (p, Layer::Trusted)));
    paths.push((options.main.clone(), Layer::Trusted));
    if let Some(dir) = &options.drop_ins {
        paths.extend(files_in(dir)?.into_iter().map(|p| (p, Layer::DropIn)));
    }
    let mut found = vec![fragments::defaults()?];
    for (path, layer) in paths {
        match fragments::read(&path, layer, warnings)? {
            None if path == options.main && options.main_required => {
                return Err(ConfigError::Read { path, source: std::io::ErrorKind::NotFound.into() });
            }
            fragment => found.extend(fragment),
        }
    }
    Ok(found)
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
        compatible: inputs.get(&Top::compatible)?,
        cloud,
        slots: slots(inputs)?,
        bootloader: bootloader(inputs)?,
        trust: Trust::read(inputs, cloud::roots(inputs)?)?,
        download: Download::read(inputs, proxy)?,
        health: Health::read(inputs)?,
        policy: policy(inputs)?,
        report: Report::read(inputs)?,
        state: State::read(inputs)?,
        system: System::read(inputs)?,
        awaited: Vec::new(),
    })
}

/// What no default can guess, each with what to write.
const REQUIRED: [(&str, &str); 4] = [
    (Top::compatible.path, "`compatible` (the board's name, as in the bundles: compatible = \"my-board\")"),
    (
        SlotA::device.path,
        "`slots.a.device` (the first slot: device = \"PARTLABEL=rootfs-a\" below [slots.a])",
    ),
    (
        SlotB::device.path,
        "`slots.b.device` (the second slot: device = \"PARTLABEL=rootfs-b\" below [slots.b])",
    ),
    (row::kind.path, "`bootloader.kind` (kind = \"uboot\" or kind = \"grub\" below [bootloader])"),
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

fn slots(inputs: &Inputs) -> Result<SlotSettings, ConfigError> {
    let slots = SlotSettings::read(inputs, inputs.get(&SlotA::device)?, inputs.get(&SlotB::device)?)?;
    if slots.a == slots.b {
        return Err(inputs.wrong(&SlotB::device, "another device than slots.a.device"));
    }
    Ok(slots)
}

/// The other kind's file is nobody's business.
fn bootloader(inputs: &Inputs) -> Result<BootloaderSettings, ConfigError> {
    let kind = match inputs.get(&row::kind)?.as_str() {
        "uboot" => BootloaderKind::Uboot { config: inputs.get(&row::config)? },
        "grub" => BootloaderKind::Grub {
            grubenv: inputs.get(&row::grubenv)?.ok_or(ConfigError::Missing {
                missing: vec![
                    "`bootloader.grubenv` (where GRUB reads it: grubenv = \"/boot/efi/fwupdate/grubenv\")",
                ],
                warnings: Vec::new(),
            })?,
        },
        _ => return Err(inputs.wrong(&row::kind, "\"uboot\" or \"grub\"")),
    };
    Ok(BootloaderSettings { kind, tries: inputs.get(&row::tries)? })
}

fn policy(inputs: &Inputs) -> Result<Policy, ConfigError> {
    Policy::read(inputs, Allowed::read(inputs)?)
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
