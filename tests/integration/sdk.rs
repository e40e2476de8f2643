//! A fleet's back end on Azure's own SDK for services, against the hub and the agent: methods, twins, queries, jobs
//! and automatic configurations.

use std::path::Path;

use fwupdate_hub::firmware::Slot;
use tokio::process::Command;

use crate::harness::World;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[tokio::test]
async fn a_back_end_on_the_sdk_runs_a_fleet() {
    let mut world = World::new().await;
    let (two, three) = (world.release("2.0.0"), world.release("3.0.0"));
    let venv = Command::new(Path::new(ROOT).join("tests/interop/venv.sh")).status().await.unwrap();
    assert!(venv.success(), "tests/interop/venv.sh makes no venv");
    let mut command = Command::new(Path::new(ROOT).join("target/venv/bin/python"));
    command.args(["-B", "-W", "ignore", "tests/interop/fleet.py", &two.url, &three.url]).current_dir(ROOT);
    command.env("IOTHUB_CONNECTION_STRING", world.hub.service_connection_string());
    command.env("REQUESTS_CA_BUNDLE", world.hub.ca_path());
    let output = world.beside(command).await;
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{told}\n{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        world.gateway.log()
    );
    assert_eq!(world.booted(), Slot::A);
    world.finish().await;
}
