//! Bad input of every kind, end to end: each has its error code in the answer or in the twin, nothing is lost, and
//! the gateway takes a good update afterwards.

/// Payloads, records and times without measure.
mod bounds;
/// Bundles that are damaged, foreign, or not for this gateway.
mod bundles;
/// Slots and boot environments that are not as they should be.
mod device;
/// Payloads of direct methods.
mod requests;
/// Servers that answer badly or lead astray.
mod server;
/// Settings and the durable record.
mod state;

pub use state::forget_in_record;

use std::fs;

use fwupdate_hub::firmware::Slot;
use fwupdate_hub::gateway::Gateway;
use serde_json::{Value, json};

use crate::harness::{DEVICE, Release, World};

/// What every URL here ends with, and what nobody may ever read again.
const TOKEN: &str = "?sig=hush-hush";

/// The bytes that a refused update must leave alone.
#[derive(PartialEq)]
struct Bytes {
    slots: [Vec<u8>; 2],
    environment: Vec<u8>,
}

impl Bytes {
    fn of(gateway: &Gateway) -> Bytes {
        let slots = [Slot::A, Slot::B].map(|slot| fs::read(gateway.slot(slot)).unwrap_or_default());
        let environment = fs::read(gateway.dir().join("uboot.env")).unwrap();
        Bytes { slots, environment }
    }

    /// Panics, blaming `case`, if anything changed.
    fn same(&self, world: &World, case: &str) {
        assert!(*self == Bytes::of(&world.gateway), "{case}: bytes changed though nothing may be written");
    }
}

/// Calls an update that is accepted and then fails; returns its error.
async fn failed(world: &mut World, payload: Value) -> Value {
    let id = world.update(payload).await;
    let last = world.outcome(&id).await;
    assert_eq!(last["result"], "failed", "{last}");
    last["error"].clone()
}

/// The payload for a bundle below `/files/`.
fn fetch(world: &World, name: &str) -> Value {
    json!({ "fwPackageUri": format!("{}{TOKEN}", world.hub.files_url(name)) })
}

/// The case failed as it should: with this code, and a message that names what is wrong.
fn expect(case: &str, error: &Value, code: &str, word: &str) {
    assert_eq!(error["code"], code, "{case}: {error}");
    assert!(error["message"].as_str().unwrap().contains(word), "{case}: {word:?} is not in {error}");
}

/// Whatever came before: a good update is installed, every report was true, and no secret was told.
async fn goes_on(mut world: World) {
    let good = world.release("9.0.0");
    take(&mut world, &good).await;
    no_secrets(&world);
    world.finish_disturbed().await;
}

async fn take(world: &mut World, release: &Release) {
    let id = world.update(fetch(world, &release.name)).await;
    let last = world.outcome(&id).await;
    assert_eq!(last["result"], "committed", "{last}\n{}", world.gateway.log());
    assert!(world.holds(world.booted(), release));
}

fn no_secrets(world: &World) {
    let connection = fs::read_to_string(world.gateway.dir().join("state/connection")).unwrap();
    let key = connection.split_once("SharedAccessKey=").unwrap().1.trim();
    let log = fs::read_to_string(world.gateway.log_path()).unwrap();
    let told: Vec<Value> = world.hub.history(DEVICE).into_iter().map(|report| report.patch).collect();
    for (place, text) in [("log", log), ("twin", json!(told).to_string())] {
        assert!(!text.is_empty(), "there is no {place}");
        for secret in ["hush-hush", key] {
            assert!(!text.contains(secret), "{secret} is in the {place}");
        }
    }
}
