//! A TPM for the virtual gateway (swtpm), with a key in it that was made there, by the module that the gateway uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::{Child, Command};

use crate::images::call;

/// The PIN of the token.
const PIN: &str = "1234";
const MODULE: &str = "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so";

/// A TPM that keeps its state in a folder.
#[derive(Debug, Clone)]
pub struct Chip {
    dir: PathBuf,
}

impl Chip {
    /// A new one with a key on P-256. Of the key `data` gets all that the gateway keeps: the module's list of keys, the
    /// PIN, and a certificate. Returns the certificate as DER.
    pub async fn new(dir: PathBuf, device: &str, data: &Path) -> Result<(Chip, Vec<u8>)> {
        fs::create_dir_all(dir.join("state"))?;
        fs::create_dir_all(data.join("tpm2"))?;
        fs::write(data.join("pin"), format!("{PIN}\n"))?;
        let chip = Chip { dir };
        let mut power = chip.start(&["--server", &chip.socket("chip"), "--flags", "startup-clear"]).await?;
        let made = chip.make_key(data).and_then(|key| chip.certify(&key, device, &data.join("device.pem")));
        power.kill().await?;
        Ok((chip, made?))
    }

    /// The arguments of a QEMU that has this TPM.
    pub fn arguments(&self) -> [String; 6] {
        let chip = format!("socket,id=chip,path={}", self.dir.join("chip.ctrl").display());
        ["-chardev", &chip, "-tpmdev", "emulator,id=tpm,chardev=chip", "-device", "tpm-crb,tpmdev=tpm"]
            .map(str::to_owned)
    }

    /// Powers it on for one QEMU, with which it ends.
    pub async fn power_on(&self) -> Result<Child> {
        self.start(&["--terminate"]).await
    }

    async fn start(&self, more: &[&str]) -> Result<Child> {
        let control = self.dir.join("chip.ctrl");
        if control.exists() {
            fs::remove_file(&control)?;
        }
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--ctrl", &self.socket("chip.ctrl")]).args(more);
        command.arg("--tpmstate").arg(format!("dir={}", self.dir.join("state").display()));
        let errors = fs::File::create(self.dir.join("swtpm.log"))?;
        let mut chip = command.stdout(Stdio::null()).stderr(errors).kill_on_drop(true).spawn()?;
        while !control.exists() {
            ensure!(chip.try_wait()?.is_none(), "swtpm ended; see swtpm.log");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(chip)
    }

    fn socket(&self, name: &str) -> String {
        format!("type=unixio,path={}", self.dir.join(name).display())
    }

    /// Makes token and key as docs/keys-in-hardware.md says; the public key's file.
    fn make_key(&self, data: &Path) -> Result<PathBuf> {
        let key = self.dir.join("public.der");
        let log_in = ["--token-label", "gateway", "--login"];
        let (so, user) = (["--so-pin", "12345678"], ["--pin", PIN]);
        let steps: [&[&[&str]]; 4] = [
            &[&["--init-token", "--slot-index", "0", "--label", "gateway"], &so],
            &[&["--init-pin", "--login-type", "so"], &log_in, &so, &user],
            &[
                &log_in,
                &user,
                &["--keypairgen", "--key-type", "EC:prime256v1", "--id", "01", "--label", "device"],
            ],
            &[
                &["--token-label", "gateway", "--read-object", "--type", "pubkey", "--id", "01", "-o"],
                &[key.to_str().context("not UTF-8")?],
            ],
        ];
        for step in steps {
            let mut tool = std::process::Command::new("pkcs11-tool");
            tool.args(["--module", MODULE]).args(step.concat()).stdout(Stdio::null());
            tool.env("TPM2_PKCS11_TCTI", format!("swtpm:path={}", self.dir.join("chip").display()));
            call(tool.env("TPM2_PKCS11_STORE", data.join("tpm2")).env("TSS2_LOG", "all+NONE"))?;
        }
        Ok(key)
    }

    /// Has an authority issue a certificate for `key` to `device`, into the file `out`; as DER.
    fn certify(&self, key: &Path, device: &str, out: &Path) -> Result<Vec<u8>> {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let openssl = |line: &[&str]| call(std::process::Command::new("openssl").args(line));
        let (key, out) = (key.to_str().context("not UTF-8")?, out.to_str().context("not UTF-8")?);
        let (authority, secret, public) = (at("authority.pem"), at("authority.key"), at("public.pem"));
        fs::write(at("leaf"), "basicConstraints=CA:FALSE\n")?;
        openssl(&["pkey", "-pubin", "-inform", "DER", "-in", key, "-out", &public])?;
        let new =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch"];
        openssl(&[&new[..], &["-keyout", &secret, "-out", &authority, "-subj", "/CN=authority"]].concat())?;
        let subject = format!("/CN={device}");
        let leaf = ["x509", "-new", "-force_pubkey", &public, "-subj", &subject, "-days", "3650"];
        let by = ["-CA", &authority, "-CAkey", &secret, "-extfile", &at("leaf"), "-out", out];
        openssl(&[&leaf[..], &by].concat())?;
        openssl(&["x509", "-in", out, "-outform", "DER", "-out", &at("leaf.der")])?;
        Ok(fs::read(at("leaf.der"))?)
    }
}
