//! Keys that never leave a token: whole updates of gateways whose key is in SoftHSM, or in a TPM (swtpm), reached by the
//! modules that Debian ships for them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use fwupdate_hub::auth;
use fwupdate_hub::registry::Credentials;
use rcgen::{Certificate, CertificateParams, DnType, KeyPair, PublicKeyData, SignatureAlgorithm};
use tempfile::TempDir;

use crate::harness::{DEVICE, Setup, World, run};

pub const PIN: &str = "1234";
pub const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
const TPM2: &str = "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so";

/// A token with a label, a PIN and one key.
pub struct Token {
    dir: TempDir,
    module: &'static str,
    /// What its module is told of where it is.
    variables: Vec<(&'static str, String)>,
    chip: Option<Child>,
}

impl Token {
    pub fn softhsm(key: &str) -> Token {
        let dir = tempfile::tempdir().unwrap();
        let (config, store) = (dir.path().join("softhsm2.conf"), dir.path().join("store"));
        fs::create_dir(&store).unwrap();
        fs::write(&config, format!("directories.tokendir = {}\n", store.display())).unwrap();
        let variables = vec![("SOFTHSM2_CONF", config.display().to_string())];
        Token { dir, module: SOFTHSM, variables, chip: None }.with(key)
    }

    fn tpm(key: &str) -> Token {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        ["store", "state"].iter().for_each(|name| fs::create_dir(at(name)).unwrap());
        let variables = vec![
            ("TPM2_PKCS11_TCTI", format!("swtpm:path={}", at("chip"))),
            ("TPM2_PKCS11_STORE", at("store")),
            ("TSS2_LOG", "all+NONE".to_owned()),
        ];
        let mut token = Token { dir, module: TPM2, variables, chip: None };
        token.plug_in();
        token.with(key)
    }

    /// Starts the TPM, which keeps what it held; SoftHSM's store comes back to its place.
    pub fn plug_in(&mut self) {
        let at = |name: &str| self.dir.path().join(name);
        if self.module == SOFTHSM {
            return fs::rename(at("away"), at("store")).unwrap();
        }
        let socket = |name: &str| format!("type=unixio,path={}", at(name).display());
        let mut chip = Command::new("swtpm");
        chip.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        chip.args(["socket", "--tpm2", "--flags", "startup-clear", "--tpmstate"])
            .arg(format!("dir={}", at("state").display()))
            .args(["--server", &socket("chip"), "--ctrl", &socket("chip.ctrl")]);
        let chip = self.chip.insert(chip.spawn().unwrap());
        while !at("chip.ctrl").exists() || !at("chip").exists() {
            assert_eq!(chip.try_wait().unwrap(), None, "swtpm ended");
            std::thread::yield_now();
        }
    }

    pub fn unplug(&mut self) {
        match &mut self.chip {
            None => fs::rename(self.dir.path().join("store"), self.dir.path().join("away")).unwrap(),
            Some(chip) => {
                chip.kill().unwrap();
                chip.wait().unwrap();
                ["chip", "chip.ctrl"].iter().for_each(|name| {
                    fs::remove_file(self.dir.path().join(name)).ok();
                });
            }
        }
    }

    fn with(self, key: &str) -> Token {
        let so = ["--so-pin", "12345678"];
        self.tool(&[&["--init-token", "--slot-index", "0", "--label", "gateway"][..], &so].concat());
        let pin = ["--init-pin", "--token-label", "gateway", "--login", "--login-type", "so", "--pin", PIN];
        self.tool(&[&pin[..], &so].concat());
        let log_in = ["--token-label", "gateway", "--login", "--pin", PIN];
        let make = ["--keypairgen", "--key-type", key, "--id", "01", "--label", "device"];
        self.tool(&[&log_in[..], &make].concat());
        self
    }

    fn tool(&self, args: &[&str]) -> Vec<u8> {
        let mut tool = Command::new("pkcs11-tool");
        tool.args(["--module", self.module]).args(args).envs(self.variables.iter().cloned());
        run(&mut tool).stdout
    }

    /// A file with the public key.
    pub fn public_der(&self) -> PathBuf {
        let file = self.dir.path().join("public.der");
        let read = ["--token-label", "gateway", "--read-object", "--type", "pubkey", "--id", "01", "-o"];
        self.tool(&[&read[..], &[file.to_str().unwrap()]].concat());
        file
    }

    /// Issues a certificate for the key and puts it where the gateway looks for it; returns its thumbprint.
    fn certify(&self, world: &World) -> String {
        let certificate = issue(&Public::of(&fs::read(self.public_der()).unwrap()));
        fs::write(state(world, "device.pem"), certificate.pem()).unwrap();
        let [_, sha256] = auth::thumbprints(certificate.der());
        sha256
    }

    /// The gateway's settings, and what its module needs.
    fn configure(&self, world: &mut World, pin: &str) {
        for (name, value) in &self.variables {
            world.gateway.set_variable(name, value);
        }
        write_pin(world, pin);
        let module = format!("module-path={}", self.module);
        let key = format!(
            "pkcs11:token=gateway;object=device?{module}&pin-source={}",
            state(world, "pin").display()
        );
        let cloud = format!(
            "[cloud]\nconnection_string = \"HostName=localhost;DeviceId={DEVICE};x509=true\"\n\
             certificate_file = {:?}\nkey_file = {key:?}\n",
            state(world, "device.pem")
        );
        world.gateway.configure("60-token", &cloud).unwrap();
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if let Some(chip) = &mut self.chip {
            chip.kill().ok();
            chip.wait().ok();
        }
    }
}

pub fn state(world: &World, name: &str) -> PathBuf {
    world.gateway.dir().join("state").join(name)
}

pub fn write_pin(world: &World, pin: &str) {
    let file = state(world, "pin");
    fs::write(&file, format!("{pin}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A public key of which nobody here has the private one.
pub struct Public {
    bits: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl Public {
    /// From its `SubjectPublicKeyInfo`: of a P-256 key, or an RSA key of 2048 bits.
    pub fn of(der: &[u8]) -> Public {
        match der.len() {
            91 => Public { bits: der[26..].to_vec(), algorithm: &rcgen::PKCS_ECDSA_P256_SHA256 },
            294 => Public { bits: der[24..].to_vec(), algorithm: &rcgen::PKCS_RSA_SHA256 },
            other => panic!("a public key of {other} bytes"),
        }
    }
}

impl PublicKeyData for Public {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &SignatureAlgorithm {
        self.algorithm
    }
}

pub fn issue(public: &Public) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let authority = CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, DEVICE);
    params.signed_by(public, &authority, &key).unwrap()
}

/// A gateway whose key is in the token, at a hub that knows its certificate.
pub async fn world(token: &Token, pin: &str) -> World {
    let mut world = World::with(Setup { registered: false, on: false, ..Setup::default() }).await;
    let thumbprint = token.certify(&world);
    world.hub.add_device_x509(DEVICE, &thumbprint).unwrap();
    token.configure(&mut world, pin);
    world
}

/// Connects, renews, loses its token and gets it back, and updates.
async fn live(mut token: Token) {
    let mut world = world(&token, PIN).await;
    world.switch_on().await;
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;

    world.doctor_says("certificate", "its key is in the token pkcs11:token=gateway").await;

    let renewed = token.certify(&world);
    world.hub.remove_device(DEVICE).unwrap();
    world.hub.add_device_with(DEVICE, Credentials::self_signed(&renewed).unwrap()).unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;

    token.unplug();
    world.hub.drop_connections(None);
    world.doctor_says_of_the_hub("token").await;
    token.plug_in();
    world.reported(|_| true).await;

    let release = world.release("2.0.0");
    let last = world.install(&release).await;
    assert_eq!(last["result"], "committed", "{last}");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_gateway_lives_with_its_key_in_softhsm() {
    live(Token::softhsm("EC:prime256v1")).await;
    live(Token::softhsm("rsa:2048")).await;
}

#[tokio::test]
async fn a_gateway_lives_with_its_key_in_a_tpm() {
    live(Token::tpm("EC:prime256v1")).await;
    live(Token::tpm("rsa:2048")).await;
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once_and_again_when_its_file_has_changed() {
    let token = Token::tpm("EC:prime256v1");
    let mut world = world(&token, "9999").await;
    world.gateway.power_on().unwrap();
    world.doctor_says_of_the_hub("refuses the PIN").await;
    // The token would take it now: who tried it again would have a session.
    let change = ["--change-pin", "--token-label", "gateway", "--login", "--pin", PIN, "--new-pin", "9999"];
    token.tool(&change);
    world.gateway.restart_agent().await.unwrap();
    world.doctor_says_of_the_hub("refuses the PIN").await;
    write_pin(&world, "9999");
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    world.finish_disturbed().await;
}

/// Runs `fwupdate-bundle`; its errors' text when it fails.
fn bundle(token: &Token, args: &[&str]) -> Result<(), String> {
    let mut tool = Command::new(env!("CARGO_BIN_EXE_fwupdate-bundle"));
    let output = tool.args(args).envs(token.variables.iter().cloned()).output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

impl Token {
    fn key(&self) -> String {
        let pin = self.dir.path().join("pin");
        fs::write(&pin, PIN).unwrap();
        format!("pkcs11:token=gateway;id=%01?module-path={}&pin-source={}", self.module, pin.display())
    }

    /// Its public key, as devices trust it.
    fn public_key(&self) -> PathBuf {
        let (der, pem) = (self.public_der(), self.dir.path().join("release.pub.pem"));
        let mut convert = Command::new("openssl");
        run(convert.args(["pkey", "-pubin", "-inform", "DER", "-in"]).arg(der).arg("-out").arg(&pem));
        pem
    }
}

#[test]
fn a_release_is_signed_by_a_key_in_a_token_or_by_what_a_key_vault_returns() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    run(Command::new("mkfs.ext4").args(["-q", &at("image"), "4M"]));
    let (image, out) = (at("image"), at("out.fwb"));
    let create =
        ["create", "--image", &image, "--compatible", "b", "--version", "1", "--security-version", "1"];
    for token in [Token::softhsm("EC:prime256v1"), Token::tpm("EC:prime256v1")] {
        let (key, public) = (token.key(), token.public_key());
        let public = public.to_str().unwrap();
        bundle(&token, &[&create[..], &["--key", &key, "-o", &out]].concat()).unwrap();
        bundle(&token, &["verify", &out, "--keys", public]).unwrap();

        bundle(&token, &[&create[..], &["--unsigned", "-o", &out]].concat()).unwrap();
        bundle(&token, &["verify", &out, "--keys", public]).unwrap_err();
        bundle(&token, &["sign", &out, "--key", &key]).unwrap();
        bundle(&token, &["verify", &out, "--keys", public]).unwrap();

        // A vault is given the digest, and returns r and s.
        bundle(&token, &[&create[..], &["--unsigned", "-o", &out]].concat()).unwrap();
        bundle(&token, &["digest", &out, "--manifest", &at("manifest")]).unwrap();
        run(Command::new("openssl").args([
            "dgst",
            "-sha256",
            "-binary",
            "-out",
            &at("digest"),
            &at("manifest"),
        ]));
        let log_in = ["--token-label", "gateway", "--login", "--pin", PIN, "--sign", "--mechanism", "ECDSA"];
        let (digest, raw) = (at("digest"), at("raw"));
        token.tool(&[&log_in[..], &["--id", "01", "--input-file", &digest, "--output-file", &raw]].concat());
        assert_eq!(fs::read(&raw).unwrap().len(), 64);
        bundle(&token, &["sign", &out, "--signature", &raw, "--public-key", public]).unwrap();
        bundle(&token, &["verify", &out, "--keys", public]).unwrap();
    }
}

#[test]
fn a_key_that_cannot_sign_a_release_is_named_as_what_it_is() {
    let work = tempfile::tempdir().unwrap();
    let (image, out) = (work.path().join("image"), work.path().join("out.fwb"));
    run(Command::new("mkfs.ext4").arg("-q").arg(&image).arg("4M"));
    let token = Token::softhsm("rsa:2048");
    let said = |key: &str| {
        let [image, out] = [&image, &out].map(|path| path.to_str().unwrap());
        let create =
            ["create", "--image", image, "--compatible", "b", "--version", "1", "--security-version", "1"];
        bundle(&token, &[&create[..], &["--key", key, "-o", out]].concat()).unwrap_err()
    };
    let key = token.key();
    for (key, why) in [
        (key.clone(), "an RSA key signs no bundle"),
        (key.replace("id=%01", "id=%02"), "has no private key"),
        (key.replace("token=gateway", "token=other"), "no token is there"),
        (key.replace(SOFTHSM, "/nowhere.so"), "cannot be used"),
        ("pkcs11:token=gateway".to_owned(), "names no key"),
    ] {
        let said = said(&key);
        assert!(said.contains(why), "{key}: {said}");
        assert!(!out.exists());
    }
}
