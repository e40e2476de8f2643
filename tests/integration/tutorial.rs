//! The service app of the tutorial, on Azure's own SDK, against the hub and the agent.

use std::path::Path;

use fwupdate_hub::firmware::Slot;
use tokio::process::Command;

use crate::harness::{Setup, Spec, World};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs the app to its end while the gateway lives; its exit status and what it printed.
async fn app(world: &mut World, url: &str) -> (Option<i32>, String) {
    let venv = Command::new(Path::new(ROOT).join("tests/interop/venv.sh")).status().await.unwrap();
    assert!(venv.success(), "tests/interop/venv.sh makes no venv");
    let mut command = Command::new(Path::new(ROOT).join("target/venv/bin/python"));
    command.args([
        "-B",
        "-W",
        "ignore",
        "docs/examples/firmware_update_service.py",
        "gw",
        url,
        "--timeout",
        "60",
    ]);
    command.env("IOTHUB_CONNECTION_STRING", world.hub.service_connection_string());
    command.env("REQUESTS_CA_BUNDLE", world.hub.ca_path()).current_dir(ROOT);
    let output = world.beside(command).await;
    let told = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(told).unwrap())
}

#[tokio::test]
async fn the_service_app_sees_an_update_through() {
    let settings = "[health]\ndeadline = \"3s\"\n".into();
    let mut world = World::with(Setup { settings, ..Setup::default() }).await;
    let good = world.release("2.0.0");
    let (status, told) = app(&mut world, &good.url).await;
    assert_eq!(status, Some(0), "{told}");
    assert!(told.contains("answered 200") && told.contains("firmwareStatus=completed"), "{told}");
    assert_eq!(world.booted(), Slot::B);

    let bad = world.make(Spec { version: "3.0.0", health: "bad", ..Spec::default() });
    let (status, told) = app(&mut world, &bad.url).await;
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("firmwareStatus=rolledBack") && told.contains("HealthCheckFailed"), "{told}");
    world.finish().await;
}
