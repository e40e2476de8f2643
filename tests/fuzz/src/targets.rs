//! The table of targets, and what they share.

mod boot;
mod bundle;
mod cloud;
mod settings;
mod state;

use std::path::PathBuf;
use std::sync::LazyLock;

use fwupdate::manifest::{Algorithm, PublicKey, Signature, SignatureList, TrustedKeys};
use ring::signature::{Ed25519KeyPair, KeyPair};
use time::OffsetDateTime;

use crate::Target;

macro_rules! table {
    ($($module:ident :: $name:ident),* $(,)?) => {
        /// All targets; their names are the corpus folders'.
        pub static TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            run: $module::$name::run,
            seeds: $module::$name::seeds,
        }),*];
    };
}

table![
    bundle::manifest,
    bundle::signatures,
    bundle::tar,
    bundle::chunk_index,
    bundle::patch_index,
    bundle::zstd_blocks,
    bundle::zstd_patch,
    boot::uboot_env,
    boot::fw_env_config,
    boot::grubenv,
    state::record,
    state::chunk_map,
    cloud::method,
    cloud::twin,
    cloud::dps_answer,
    cloud::http_headers,
    cloud::times,
    settings::settings,
    settings::keys,
];

/// The key that signs what a target has to sign.
static KEY: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap());

static PUBLIC: LazyLock<PublicKey> =
    LazyLock::new(|| PublicKey::from_point(Algorithm::Ed25519, KEY.public_key().as_ref()).unwrap());

static TRUST: LazyLock<TrustedKeys> = LazyLock::new(|| {
    let mut keys = TrustedKeys::default();
    keys.add(PUBLIC.clone()).unwrap();
    keys
});

/// A `manifest.sig` over these bytes by the trusted key.
fn sign(manifest: &[u8]) -> Vec<u8> {
    let signature = Signature::by(&PUBLIC, KEY.sign(manifest).as_ref().to_vec());
    SignatureList { signatures: vec![signature] }.to_bytes().unwrap()
}

/// A moment between the build and the end of the world.
fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

/// A folder in memory for parsers that read files; one a thread, for as long as the process lives.
fn scratch(name: &str) -> PathBuf {
    thread_local! {
        static FOLDER: tempfile::TempDir = {
            let memory = std::path::Path::new("/dev/shm");
            let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
            tempfile::tempdir_in(place).unwrap()
        };
    }
    FOLDER.with(|folder| folder.path().join(name))
}
