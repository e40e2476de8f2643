//! A fleet's back end on Azure's own SDKs for services, against the hub and the agent: methods, twins, queries, jobs
//! and automatic configurations.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;

use fwupdate_hub::faults::{FileEffect, FileRule};
use fwupdate_hub::firmware::Slot;
use tokio::process::Command;

use crate::harness::{Setup, World, run};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs a back end to its end beside the gateway; it must be content.
async fn serve(world: &mut World, mut command: Command) {
    command.current_dir(ROOT);
    let output = world.beside(command).await;
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{errors}\n{}", world.gateway.log());
}

#[tokio::test]
async fn a_back_end_on_the_sdk_runs_a_fleet() {
    let mut world = World::new().await;
    let (two, three) = (world.release("2.0.0"), world.release("3.0.0"));
    run(&mut std::process::Command::new(Path::new(ROOT).join("tests/interop/venv.sh")));
    let mut command = Command::new(Path::new(ROOT).join("target/venv/bin/python"));
    command.args(["-B", "-W", "ignore", "tests/interop/fleet.py", &two.url, &three.url]);
    command.env("IOTHUB_CONNECTION_STRING", world.hub.service_connection_string());
    command.env("REQUESTS_CA_BUNDLE", world.hub.ca_path());
    serve(&mut world, command).await;
    assert_eq!(world.booted(), Slot::A);
    world.finish().await;
}

/// An address at which nobody has port 443 yet; `None` for who may not listen there.
fn address() -> Option<IpAddr> {
    let random =
        || IpAddr::from(Ipv4Addr::new(127, fastrand::u8(1..255), fastrand::u8(..), fastrand::u8(1..255)));
    (0..20).map(|_| random()).find(|address| TcpListener::bind((*address, 443)).is_ok())
}

#[tokio::test]
async fn a_back_end_on_the_sdk_for_node_runs_a_fleet() {
    let Some(address) = address() else {
        eprintln!("not root: the SDK for Node dials port 443; left out");
        return;
    };
    let mut world = World::with(Setup { address: Some(address), ..Setup::default() }).await;
    let (two, three) = (world.release("2.0.0"), world.release("3.0.0"));
    // The second one is held on the way, so that there is time to cancel it.
    world.hub.faults().file(FileRule::always(&three.name, FileEffect::Hold { after: 100_000 }));
    run(&mut std::process::Command::new(Path::new(ROOT).join("tests/interop/node.sh")));
    let mut command = Command::new("node");
    command.args(["tests/interop/node/fleet.js", &two.url, &three.url]);
    command.env("IOTHUB_CONNECTION_STRING", world.hub.service_connection_string());
    command.env("NODE_PATH", Path::new(ROOT).join("target/node/node_modules"));
    command.env("NODE_EXTRA_CA_CERTS", world.hub.ca_path());
    serve(&mut world, command).await;
    world.hub.faults().clear();
    assert_eq!(world.booted(), Slot::B);
    world.finish().await;
}
