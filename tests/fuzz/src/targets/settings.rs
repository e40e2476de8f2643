//! What people and other programs write into settings and keys.

use std::fs;

use fwupdate::config::{self, Options};
use fwupdate::manifest::TrustedKeys;

use super::{PUBLIC, scratch};

/// The integrator's file: settings, or one sentence that says what is wrong.
#[allow(clippy::module_inception, reason = "the target's name")]
pub mod settings {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        let file = scratch("fwupdate.toml");
        fs::write(&file, bytes).unwrap();
        let options =
            Options { vendor: None, main: file, main_required: true, drop_ins: None, ..Options::system() };
        match config::load(&options) {
            Ok(loaded) => {
                assert!(!config::render(&loaded.settings).is_empty());
                loaded.warnings.iter().for_each(|warning| assert!(!warning.to_string().is_empty()));
                true
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                false
            }
        }
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
        let text = format!(
            r#"compatible = "board"
[slots.a]
device = "PARTLABEL=rootfs-a"
[slots.b]
device = "/dev/mmcblk0p9"
[bootloader]
kind = "uboot"
config = "/etc/fw_env.config"
tries = 3
[cloud]
connection_string = "HostName=hub.azure-devices.net;DeviceId=gw-1;SharedAccessKey={key}"
keep_alive = "4min"
proxy = "http://user:password@proxy:3128"
no_proxy = ["10.0.0.0/8", ".local"]
[trust]
allowed_hosts = ["*.blob.core.windows.net", "10.0.0.1"]
required_signatures = 1
[download]
rate_limit = "1MiB"
windows = ["22:00-04:00"]
[health]
deadline = "5min"
units = ["app.service"]
[policy]
windows = ["01:00-05:00"]
approval = true
"#
        );
        vec![text.into()]
    }
}

/// A key file.
pub mod keys {
    use super::*;

    pub fn run(bytes: &[u8]) -> bool {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let mut keys = TrustedKeys::default();
        if keys.add_pem(text).is_err() {
            return false;
        }
        assert!(!keys.is_empty());
        true
    }

    pub fn seeds() -> Vec<Vec<u8>> {
        let encoded = data_encoding::BASE64.encode(PUBLIC.spki());
        vec![format!("-----BEGIN PUBLIC KEY-----\n{encoded}\n-----END PUBLIC KEY-----\n").into()]
    }
}
