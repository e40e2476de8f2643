//! A gateway whose key is in a TPM: a session by it, an update, a session by it from the other slot. And of the devices the
//! sandbox opens exactly the one that the settings name.

use anyhow::{Result, ensure};

use crate::images::{Spec, Workshop};
use crate::sandbox;
use crate::site::{Site, text};

/// As docs/keys-in-hardware.md has it.
const FIRST: Spec = Spec {
    version: "1.0.0",
    kernel: 1,
    change: "\
mkdir -p $1/etc/fwupdate.d $1/etc/systemd/system/fwupdate.service.d
module=/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so
cat > $1/etc/fwupdate.d/60-key.toml <<TOML
[cloud]
certificate_file = \"/var/lib/fwupdate/device.pem\"
key_file = \"pkcs11:token=gateway;object=device?module-path=$module&pin-source=/var/lib/fwupdate/pin\"
key_device = \"/dev/tpmrm0\"
TOML
cat > $1/etc/systemd/system/fwupdate.service.d/key.conf <<UNIT
[Service]
Environment=TPM2_PKCS11_STORE=/var/lib/fwupdate/tpm2
UNIT
",
};
const SECOND: Spec = Spec { version: "1.1.0", kernel: 2, ..FIRST };
const OPENED: &str = "ask the TPM for a random number";

pub async fn run(workshop: &Workshop) -> Result<()> {
    let release = workshop.release(SECOND)?;
    let mut site = Site::with_chip(workshop, "token", FIRST).await?;
    site.machine.power_on().await?;
    site.connected().await?;
    let doctor = site.machine.shell("fwupdatectl doctor || true").await?;
    ensure!(doctor.contains("its key is in the token pkcs11:token=gateway"), "{doctor}");
    println!("{}", sandbox::tries(&site, &[OPENED]).await?.trim());
    // The same gateway without the setting.
    site.machine.shell("mount -t tmpfs none /etc/fwupdate.d && systemctl daemon-reload").await?;
    sandbox::tries(&site, &[]).await?;
    println!("refused {OPENED}: it is not named");
    site.machine.shell("umount /etc/fwupdate.d && systemctl daemon-reload").await?;

    site.start_update(&release, "token").await?;
    let last = site.outcome("token").await?;
    ensure!(text(&last, "/result") == "committed", "{last}");
    ensure!(site.running().await? == ("B".to_owned(), SECOND.version.to_owned()));
    println!("slot A and slot B log in by the TPM's key");
    site.power_off().await
}
