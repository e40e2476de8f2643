//! docs/keys.md as it is lived: a second key, then it alone; the first one stolen, and what shuts it out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fwupdate_hub::firmware::Slot;
use serde_json::{Value, json};

use crate::harness::{Release, Spec, World, run};

/// A fleet whose images bring their own trusted keys along, as docs/keys.md advises.
struct Fleet {
    world: World,
    settings: String,
    old: PathBuf,
    new: PathBuf,
}

impl Fleet {
    async fn new() -> Fleet {
        let world = World::new().await;
        let own = fs::read_to_string(world.gateway.dir().join("fwupdate.toml")).unwrap();
        let trusted = own.lines().find(|line| line.starts_with("keys = ")).unwrap();
        let folder = world.gateway.root().join("etc/keys").display().to_string();
        let settings = own.replace(trusted, &format!("keys = {folder:?}"));
        let (old, new) = (world.scratch().join("keys"), world.scratch().join("next"));
        let mut keygen = Command::new(env!("CARGO_BIN_EXE_fwupdate-bundle"));
        run(keygen.arg("keygen").arg("--out").arg(&new));
        Fleet { world, settings, old, new }
    }

    /// A release that is signed by one key and trusts these.
    fn release(&mut self, version: &str, signer: &Path, trusts: &[&PathBuf], security: &str) -> Release {
        let public: Vec<String> =
            trusts.iter().map(|key| fs::read_to_string(key.join("release.pub.pem")).unwrap()).collect();
        let names: Vec<String> = (0..public.len()).map(|number| format!("keys/{number}.pem")).collect();
        let mut etc = vec![("fwupdate.toml", self.settings.as_str())];
        etc.extend(names.iter().map(String::as_str).zip(public.iter().map(String::as_str)));
        let key = signer.join("release.key.pem").display().to_string();
        let create = ["--key", key.as_str(), "--security-version", security];
        self.world.make(Spec { version, etc: &etc, create: &create, ..Spec::default() })
    }

    async fn commits(&mut self, release: &Release) {
        let last = self.world.install(release).await;
        assert_eq!(last["result"], "committed", "{}: {last}\n{}", release.version, self.world.gateway.log());
    }

    /// The release of somebody who stole the old key, and makes it as new as can be.
    async fn forged(&mut self, version: &str) -> Value {
        let (old, new) = (self.old.clone(), self.new.clone());
        let forged = self.release(version, &old, &[&old, &new], "99");
        self.world.install(&forged).await
    }

    /// From the old key to the new one by two releases; the second has this security version.
    async fn rotate(&mut self, second: &str) {
        let (old, new) = (self.old.clone(), self.new.clone());
        let both = self.release("2.0.0", &old, &[&old, &new], "1");
        self.commits(&both).await;
        let alone = self.release("3.0.0", &new, &[&new], second);
        self.commits(&alone).await;
        assert_eq!(self.world.booted(), Slot::A);
    }
}

#[tokio::test]
async fn a_key_is_rotated_and_the_stolen_one_shut_out_for_good() {
    let mut fleet = Fleet::new().await;
    fleet.rotate("2").await;
    let last = fleet.forged("9.0.0").await;
    assert_eq!(last["error"]["code"], "UntrustedSignature", "{last}");
    // The other slot still trusts the stolen key: the security version keeps the gateway from going back to it.
    let answer = fleet.world.call("firmwareRollback", json!({})).await;
    assert_eq!(
        (answer.status, &answer.payload["error"]["code"]),
        (412, &"Downgrade".into()),
        "{}",
        answer.payload
    );
    // The new key goes on.
    let new = fleet.new.clone();
    let next = fleet.release("4.0.0", &new, &[&new], "2");
    fleet.commits(&next).await;
    // By now both slots trust the new key alone.
    let answer = fleet.world.call("firmwareRollback", json!({"operationId": "back"})).await;
    assert_eq!(answer.status, 200, "{}", answer.payload);
    assert_eq!(fleet.world.outcome("back").await["result"], "committed");
    let last = fleet.forged("9.0.1").await;
    assert_eq!(last["error"]["code"], "UntrustedSignature", "{last}");
    fleet.world.finish().await;
}

#[tokio::test]
async fn without_a_higher_security_version_a_rollback_brings_the_old_key_back() {
    let mut fleet = Fleet::new().await;
    fleet.rotate("1").await;
    let last = fleet.forged("9.0.0").await;
    assert_eq!(last["error"]["code"], "UntrustedSignature", "{last}");
    let answer = fleet.world.call("firmwareRollback", json!({"operationId": "back"})).await;
    assert_eq!(answer.status, 200, "{}", answer.payload);
    assert_eq!(fleet.world.outcome("back").await["result"], "committed");
    let last = fleet.forged("9.0.1").await;
    assert_eq!(last["result"], "committed", "what docs/keys.md warns of: {last}");
    fleet.world.finish().await;
}
