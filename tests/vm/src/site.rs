//! One run's world: a hub of its own in this process, a gateway that is registered with it, and the bundles that
//! it serves. The guest reaches the hub as 10.0.2.2 through QEMU's user network.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fwupdate_hub::methods::Call;
use fwupdate_hub::{Hub, Options, auth};
use serde_json::{Value, json};

use crate::chip::Chip;
use crate::examine::{SLOT_A, SLOT_B};
use crate::images::{Release, Spec, Workshop, digest};
use crate::machine::Machine;

/// The gateway's name at the hub.
pub const DEVICE: &str = "gateway-1";
/// Emulated processors on a busy host are slow; a condition ends the wait, this only a run that hangs.
pub const PATIENCE: Duration = Duration::from_secs(900);

#[derive(Debug)]
pub struct Site {
    pub hub: Hub,
    pub machine: Machine,
    /// Keeps other runs out of this run's folder.
    _lock: fs::File,
}

impl Site {
    /// A gateway that runs `spec` from slot A, off; and its hub.
    pub async fn new(workshop: &Workshop, name: &str, spec: Spec) -> Result<Site> {
        Site::build(workshop, name, spec, false).await
    }

    /// One whose key is in a TPM.
    pub async fn with_chip(workshop: &Workshop, name: &str, spec: Spec) -> Result<Site> {
        Site::build(workshop, name, spec, true).await
    }

    async fn build(workshop: &Workshop, name: &str, spec: Spec, has_chip: bool) -> Result<Site> {
        let dir = workshop.dir.join("run").join(format!("{}-{name}", workshop.bootloader.name()));
        fs::create_dir_all(&dir)?;
        let lock = fs::File::create(dir.with_extension("lock"))?;
        lock.try_lock().with_context(|| format!("another run uses {}", dir.display()))?;
        fs::remove_dir_all(&dir)?;
        fs::create_dir_all(dir.join("www"))?;
        let hub = Hub::start(Options {
            dir: dir.join("hub"),
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            names: vec!["10.0.2.2".to_owned()],
            mqtt_port: 0,
            https_port: 0,
            www: Some(dir.join("www")),
        })
        .await?;
        let data = dir.join("data");
        fs::create_dir_all(data.join("conf.d"))?;
        let (chip, connection) = match has_chip {
            true => {
                let (chip, certificate) = Chip::new(dir.join("chip"), DEVICE, &data).await?;
                let [_, thumbprint] = auth::thumbprints(&certificate);
                (Some(chip), hub.add_device_x509(DEVICE, &thumbprint)?)
            }
            false => (None, hub.add_device(DEVICE)?),
        };
        write_secret(&data.join("connection-string"), &connection)?;
        fs::write(data.join("ca.pem"), hub.ca_pem())?;
        fs::write(data.join("conf.d/hub.toml"), format!("cloud.port = {}\n", hub.mqtt_addr().port()))?;
        let disk = dir.join("disk.img");
        workshop.disk(&workshop.image(spec)?, &data, &disk)?;
        let mut machine = Machine::new(workshop.bootloader, disk, dir)?;
        machine.chip = chip;
        Ok(Site { hub, machine, _lock: lock })
    }

    /// Serves `release` and calls `firmwareUpdate`; the operation's id.
    pub async fn start_update(&self, release: &Release, id: &str) -> Result<()> {
        let file = format!("{}-{id}.fwb", release.version);
        fs::hard_link(&release.bundle, self.machine.dir().join("www").join(&file))?;
        let payload = json!({
            "fwPackageUri": self.hub.files_url(&file),
            "version": release.version,
            "operationId": id,
            // Campaigns go back and forth, and try again what was rolled back.
            "allowDowngrade": true,
            "force": true,
        });
        let call = Call {
            response_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(120),
            ..Call::new("firmwareUpdate", Some(payload))
        };
        let answer = self.hub.invoke(DEVICE, call).await?;
        ensure!(answer.status == 200, "firmwareUpdate: {} {}", answer.status, answer.payload);
        Ok(())
    }

    pub async fn connected(&self) -> Result<()> {
        ensure!(
            self.hub.wait_connected(DEVICE, true, PATIENCE).await,
            "the gateway did not connect; its console is in {}",
            self.machine.dir().display()
        );
        Ok(())
    }

    pub fn reported(&self) -> Value {
        let twin = self.hub.twin(DEVICE).unwrap_or_default();
        twin.pointer("/properties/reported").cloned().unwrap_or_default()
    }

    /// Waits until the twin tells the outcome of the operation `id`: `fwupdate.last`.
    pub async fn outcome(&self, id: &str) -> Result<Value> {
        let done = |reported: &Value| reported.pointer("/fwupdate/last/id") == Some(&json!(id));
        match self.hub.wait_reported(DEVICE, PATIENCE, done).await {
            Some(reported) => Ok(reported.pointer("/fwupdate/last").cloned().unwrap_or_default()),
            None => bail!("no outcome of {id}; the twin says {}", self.reported()),
        }
    }

    /// Waits until no operation runs; the reported properties then.
    pub async fn at_rest(&self) -> Result<Value> {
        let rests = |reported: &Value| {
            reported.pointer("/fwupdate").is_some() && reported.pointer("/fwupdate/operation").is_none()
        };
        self.hub.wait_reported(DEVICE, PATIENCE, rests).await.context("it never comes to rest")
    }

    /// Switches the gateway off in good order, which loses nothing.
    pub async fn power_off(&mut self) -> Result<()> {
        self.machine.shell("nohup systemctl poweroff > /dev/null 2>&1 &").await?;
        self.machine.off(PATIENCE).await
    }

    /// The values that `firmwareStatus` has had, in order, without repeats.
    pub fn statuses(&self) -> Vec<String> {
        let history = self.hub.history(DEVICE);
        let mut seen: Vec<String> = history
            .iter()
            .filter_map(|patch| patch.patch.get("firmwareStatus")?.as_str().map(str::to_owned))
            .collect();
        seen.dedup();
        seen
    }

    /// The slot and version that run, by the running system's own word: command line and os-release.
    pub async fn running(&self) -> Result<(String, String)> {
        let line = "sed -E 's/.*fwupdate.slot=(.).*/\\1/' /proc/cmdline; sed -n s/^IMAGE_VERSION=//p /etc/os-release";
        let answer = self.machine.shell(line).await?;
        let mut lines = answer.lines().map(str::to_owned);
        Ok((lines.next().context("no slot")?, lines.next().context("no version")?))
    }

    /// Whether `slot` of the disk, which is off, holds exactly `image`.
    pub fn holds(&self, slot: &str, image: &Path) -> Result<bool> {
        let offset = if slot == "A" { SLOT_A.0 } else { SLOT_B.0 } as u64;
        let length = fs::metadata(image)?.len();
        Ok(digest(&self.machine.disk, offset, length)? == digest(image, 0, length)?)
    }
}

/// The text at `pointer`, or "".
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Only root may read it.
fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(std::io::Write::write_all(&mut file, text.as_bytes())?)
}
