//! What a gateway is made of, and the files with which it leaves the factory.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result};
use tokio::net::unix::pipe;

use crate::Hub;
use crate::firmware::{self, Environment};

/// Bytes of one copy of U-Boot's environment.
const ENVIRONMENT: usize = 0x1000;

/// What a gateway is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The gateway's folder; made if need be.
    pub dir: PathBuf,
    /// The program `fwupdated`.
    pub agent: PathBuf,
    /// The image that slot A holds and that is proven; slot B is empty.
    pub image: PathBuf,
    /// Bytes of each slot.
    pub slot_size: u64,
    pub bootloader: Bootloader,
    /// Public keys that may sign bundles.
    pub keys: PathBuf,
    /// Absent: only local control works.
    pub cloud: Option<Cloud>,
    /// Settings beyond the gateway's own; later wins, as a drop-in beside its settings file.
    pub settings: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bootloader {
    Uboot,
    Grub,
}

/// The hub that the gateway talks to.
#[derive(Debug, Clone)]
pub struct Cloud {
    /// `device` or `device/module`
    pub device: String,
    /// `None`: other settings say how the gateway gets its place.
    pub connection_string: Option<String>,
    pub mqtt_port: u16,
    /// Host and port of the server from which it may fetch.
    pub files: String,
    pub ca_file: PathBuf,
}

impl Cloud {
    /// Registers `device` at a running hub.
    pub fn register(hub: &Hub, device: &str) -> Result<Cloud> {
        Ok(Cloud { connection_string: Some(hub.add_device(device)?), ..Cloud::unregistered(hub, device) })
    }

    /// A gateway that is going to be `device` at this hub.
    pub fn unregistered(hub: &Hub, device: &str) -> Cloud {
        Cloud {
            device: device.to_owned(),
            connection_string: None,
            mqtt_port: hub.mqtt_addr().port(),
            files: format!("{}:{}", hub.host(), hub.https_addr().port()),
            ca_file: hub.ca_path(),
        }
    }
}

/// The board's name in its settings and in the bundles made for it.
pub const COMPATIBLE: &str = "sim-gateway";

/// Two valid copies that name slot A, or a grubenv that does.
pub fn factory_environment(dir: &Path, bootloader: Bootloader) -> Result<Environment> {
    let variables = ["fwupdate_primary=A"];
    match bootloader {
        Bootloader::Uboot => {
            let (env, config) = (dir.join("uboot.env"), dir.join("fw_env.config"));
            let copies = [0, 1].map(|flags| firmware::uboot_copy(&variables, flags, ENVIRONMENT));
            fs::write(&env, copies.concat())?;
            let line = |offset| format!("{} {offset:#x} {ENVIRONMENT:#x}\n", env.display());
            fs::write(&config, [0, ENVIRONMENT].map(line).concat())?;
            Ok(Environment::Uboot { config })
        }
        Bootloader::Grub => {
            let grubenv = dir.join("grubenv");
            fs::write(&grubenv, firmware::grub_block(&variables))?;
            Ok(Environment::Grub { grubenv })
        }
    }
}

pub fn set_clock(dir: &Path, offset: i64, synchronised: bool) -> Result<()> {
    let word = if synchronised { "synchronised" } else { "unsynchronised" };
    crate::disk::replace(&dir.join("clock"), format!("{offset} {word}\n").as_bytes(), false)
}

/// A FIFO held open at both ends, so that no reader ever sees its end.
pub fn make_fifo(path: &Path) -> Result<pipe::Receiver> {
    match nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)) {
        Ok(()) | Err(nix::Error::EEXIST) => {}
        Err(error) => return Err(io::Error::from(error)).context("cannot make the power FIFO"),
    }
    Ok(pipe::OpenOptions::new().read_write(true).open_receiver(path)?)
}

/// The settings file of the integrator.
pub fn settings(dir: &Path, parts: &Parts) -> String {
    let at = |name: &str| format!("{:?}", dir.join(name).display().to_string());
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let mut text = format!("compatible = {COMPATIBLE:?}\n");
    let mut section = |name: &str, lines: &[(&str, String)]| {
        text.push_str(&format!("\n[{name}]\n"));
        for (key, value) in lines {
            text.push_str(&format!("{key} = {value}\n"));
        }
    };
    if let Some(cloud) = &parts.cloud {
        let mut lines = vec![("port", cloud.mqtt_port.to_string()), ("ca_file", quoted(&cloud.ca_file))];
        // One gateway needs no spreading, and its user waits.
        lines.push(("reconnect_first", "\"2s\"".into()));
        lines.extend(
            cloud.connection_string.as_ref().map(|_| ("connection_string_file", at("state/connection"))),
        );
        section("cloud", &lines);
    }
    let hosts = parts.cloud.as_ref().map(|cloud| format!("{:?}", cloud.files));
    section("slots.a", &[("device", at("slot-a"))]);
    section("slots.b", &[("device", at("slot-b"))]);
    match parts.bootloader {
        Bootloader::Uboot => {
            section("bootloader", &[("kind", "\"uboot\"".into()), ("config", at("fw_env.config"))])
        }
        Bootloader::Grub => {
            section("bootloader", &[("kind", "\"grub\"".into()), ("grubenv", at("grubenv"))]);
        }
    }
    section(
        "trust",
        &[("keys", quoted(&parts.keys)), ("allowed_hosts", format!("[{}]", hosts.unwrap_or_default()))],
    );
    section(
        "health",
        &[
            ("deadline", "\"20s\"".into()),
            ("checks_dir", at("checks")),
            ("retry_interval", "\"100ms\"".into()),
            // There is no systemd in here whose units could be asked for.
            ("no_new_failed_units", "false".into()),
        ],
    );
    let reboot = format!("[\"/bin/sh\", \"-c\", 'printf r > \"$0\"', {}]", at("power"));
    section("policy", &[("reboot_command", reboot)]);
    // Nobody here waits for another node of a pool.
    section("download", &[("final_after", "\"200ms\"".into())]);
    section("report", &[("interval", "\"1s\"".into())]);
    section("state", &[("dir", at("state"))]);
    section(
        "system",
        &[
            ("proc", at("proc")),
            ("sys", at("sys")),
            ("run", at("run")),
            ("os_release", at("root/etc/os-release")),
            ("clock", at("clock")),
        ],
    );
    text
}
