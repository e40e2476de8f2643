//! A bundle in blob storage: put there by Azure's own SDK, and fetched by a link that expires. The store is Azurite,
//! Microsoft's emulator of it, over https with a certificate of the tests' authority, for the agent takes no other.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use fwupdate_hub::firmware::Slot;
use fwupdate_hub::gateway::Bootloader;
use serde_json::json;

use crate::harness::{LIMIT, Release, Setup, World, run};
use crate::lease::Lease;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const NAME: &str = "fw.fwb";
const ACCOUNT: &str = "devstoreaccount1";

/// An Azurite of its own, until it is dropped.
pub struct Blobs {
    process: Child,
    dir: PathBuf,
    ca: PathBuf,
    url: String,
}

impl Blobs {
    pub async fn start(world: &World) -> Blobs {
        run(&mut Command::new(Path::new(ROOT).join("tests/interop/node.sh")));
        let dir = world.scratch().join("blobs");
        fs::create_dir(&dir).unwrap();
        let [cert, key] = certificate(&dir, world.hub.dir());
        let said = File::create(dir.join("said")).unwrap();
        let mut command = Command::new("node");
        command.arg(modules().join("azurite/dist/src/blob/main.js"));
        command.args([
            "--blobPort",
            "0",
            "--disableTelemetry",
            "--disableProductStyleUrl",
            "--skipApiVersionCheck",
        ]);
        command.arg("--cert").arg(cert).arg("--key").arg(key).arg("--location").arg(&dir);
        let process = command.stderr(said.try_clone().unwrap()).stdout(said).spawn().unwrap();
        let mut blobs = Blobs { process, dir, ca: world.hub.ca_path(), url: String::new() };
        blobs.url = blobs.listening().await;
        blobs
    }

    async fn listening(&mut self) -> String {
        let ready = async {
            loop {
                let said = self.said();
                if let Some((_, port)) = said.trim_end().rsplit_once("listens on https://127.0.0.1:") {
                    // By number: a name might be looked up as ::1 first, where Azurite does not listen.
                    return format!("https://127.0.0.1:{port}");
                }
                assert!(self.process.try_wait().unwrap().is_none(), "Azurite ended: {said}");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, ready).await.expect("Azurite did not start")
    }

    /// Name and port.
    pub fn host(&self) -> &str {
        self.url.strip_prefix("https://").unwrap()
    }

    /// With the account's published key.
    pub fn connection_string(&self) -> String {
        let key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
        let url = &self.url;
        format!(
            "DefaultEndpointsProtocol=https;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={url}/{ACCOUNT};"
        )
    }

    fn said(&self) -> String {
        fs::read_to_string(self.dir.join("said")).unwrap()
    }

    /// Runs `blobs.js`; what it prints.
    fn client(&self, what: &str, words: &[&str]) -> String {
        let mut command = Command::new("node");
        command.arg("tests/interop/node/blobs.js").args([what, &self.url]).args(words).current_dir(ROOT);
        command.env("NODE_PATH", modules()).env("NODE_EXTRA_CA_CERTS", &self.ca);
        String::from_utf8(run(&mut command).stdout).unwrap().trim().to_owned()
    }

    fn put(&self, release: &Release) {
        self.client("put", &[release.bundle.to_str().unwrap(), NAME]);
    }

    fn link(&self, seconds: i64) -> String {
        self.client("link", &[NAME, &seconds.to_string()])
    }

    /// The statuses with which the bundle was handed out, or was not.
    fn statuses(&self) -> Vec<u16> {
        let said = self.said();
        let gets = said.lines().filter(|line| line.contains("\"GET "));
        gets.map(|line| line.rsplit("HTTP/1.1\" ").next().unwrap()[..3].parse().unwrap()).collect()
    }
}

impl Drop for Blobs {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn modules() -> PathBuf {
    Path::new(ROOT).join("target/node/node_modules")
}

/// For localhost, signed by the hub's authority.
fn certificate(dir: &Path, hub: &Path) -> [PathBuf; 2] {
    let [cert, key, request, names] = ["cert.pem", "key.pem", "csr.pem", "names"].map(|name| dir.join(name));
    fs::write(&names, "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    let mut ask = Command::new("openssl");
    ask.args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=blobs"]);
    run(ask.arg("-keyout").arg(&key).arg("-out").arg(&request));
    let mut sign = Command::new("openssl");
    sign.args(["x509", "-req", "-days", "2", "-in"]).arg(request).arg("-extfile").arg(names);
    sign.arg("-CA").arg(hub.join("ca.pem")).arg("-CAkey").arg(hub.join("ca.key.pem"));
    run(sign.arg("-out").arg(&cert));
    [cert, key]
}

/// A gateway that may fetch from the store.
async fn beside_a_store() -> (World, Blobs) {
    let setup = Setup { on: false, bootloader: Bootloader::Grub, ..Setup::default() };
    let mut world = World::with(setup).await;
    let blobs = Blobs::start(&world).await;
    let host = blobs.host();
    // Trust is the integrator's own file's alone.
    let file = world.gateway.settings_file();
    let settings = fs::read_to_string(&file).unwrap();
    fs::write(file, settings.replace("allowed_hosts = [", &format!("allowed_hosts = [{host:?}, "))).unwrap();
    world.switch_on().await;
    (world, blobs)
}

#[tokio::test]
async fn an_update_comes_from_blob_storage() {
    let (mut world, blobs) = beside_a_store().await;
    let release = world.release("2.0.0");
    println!("{}", blobs.client("check", &[release.bundle.to_str().unwrap()]));
    blobs.put(&release);
    let before = blobs.statuses().len();

    let id = world.update(json!({"fwPackageUri": blobs.link(-60), "version": "2.0.0"})).await;
    let twin = world.reported(|twin| !twin["fwupdate"]["operation"]["waiting"].is_null()).await;
    let waiting = twin["fwupdate"]["operation"]["waiting"].as_str().unwrap();
    assert!(waiting.contains("expired at ") && !waiting.contains("sig="), "{waiting}");

    let fresh = json!({"fwPackageUri": blobs.link(600), "version": "2.0.0", "operationId": id});
    assert_eq!(world.call("firmwareUpdate", fresh).await.status, 200);
    assert_eq!(world.outcome(&id).await["result"], "committed", "{}", world.gateway.log());
    assert!(world.booted() == Slot::B && world.holds(Slot::B, &release));
    // Ranges alone, and refusals before there was a link that was good.
    let statuses = blobs.statuses().split_off(before);
    let (refused, served) = statuses.split_at(statuses.iter().position(|status| *status == 206).unwrap());
    assert!(!refused.is_empty() && refused.iter().all(|status| *status == 403), "{statuses:?}");
    assert!(served.iter().all(|status| *status == 206), "{statuses:?}");
    assert!(!world.gateway.log().contains("sig="), "{}", world.gateway.log());
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_blob_that_is_replaced_on_the_way_is_noticed_by_its_etag() {
    let (mut world, blobs) = beside_a_store().await;
    let (one, other) = (world.release("2.0.0"), world.release("3.0.0"));
    blobs.put(&one);
    // Held where the manifest is read and no chunk is.
    let lease = Lease::on(&world.gateway.dir().join("grubenv")).await;
    let id = world.update(json!({"fwPackageUri": blobs.link(600)})).await;
    world.reported(|twin| twin["fwupdate"]["operation"]["version"] == "2.0.0").await;
    blobs.put(&other);
    drop(lease);
    let last = world.outcome(&id).await;
    assert_eq!(last["error"]["code"], "DownloadFailed", "{last}");
    assert!(blobs.statuses().contains(&412), "{}", blobs.said());
    assert_eq!(world.booted(), Slot::A);
    world.finish_disturbed().await;
}
