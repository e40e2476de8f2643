//! The agent as its users meet it: the real programs, a real hub over TLS, a simulated gateway. One binary.

// Clippy exempts only functions marked as tests; the helpers beside them are tests no less.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

/// Bad input: each with its error code, and nothing lost.
mod bad;
/// A bundle in Azure's blob storage, as Azurite plays it.
mod blobs;
/// What every test ends with: was each report that the hub ever got true?
mod checker;
/// Clocks that are wrong, and clocks that are set.
mod clocks;
/// `fwupdate-cloud`, and all that may stand in its way.
mod cloud;
/// Commands: repeated, in each other's way, withdrawn; from the cloud and on the spot.
mod commands;
/// Kill -9 at two hundred random instants.
mod crash;
/// A real root file system on real block devices.
mod debian;
/// What the desired properties ask for.
mod desired;
/// Loop devices under the gateway's slots.
mod devices;
/// What `fwupdatectl doctor` finds.
mod doctor;
/// The boot environment that the agent reads, and the one that the bootloader reads.
mod environment;
/// Each fault of the way to the hub, in each phase of an update.
mod faults;
/// Azure's own front: OpenSSL, the suites that IoT Hub kept, and a certificate asked for by renegotiation.
mod front;
/// A hub, a gateway and releases for one test. Start reading here.
mod harness;
/// The rules of the house: imports, opening words, documented codes.
mod house;
/// Signing keys are rotated, and a stolen one is shut out.
mod keys;
/// Holds up the agent's next write to a file.
mod lease;
/// What the cloud may not ask for.
mod limits;
/// A folder on a medium that can be held up.
mod medium;
/// Rollback and reboot, and every method called twice.
mod methods;
/// Images that could take no further update.
mod next_update;
/// An image that is there already.
mod nothing;
/// A panic in one task of the agent.
mod panics;
/// The provisioning service assigns the hub, and another one later.
mod provision;
/// The page for Azure is a script.
mod quickstart;
/// An address that leads to another one.
mod relay;
/// Updates that must not stay.
mod rollback;
/// A back end on Azure's SDK for services runs a fleet.
mod sdk;
/// Media that do not answer for a while.
mod slow;
/// One agent for a long time: nothing grows.
mod soak;
/// Local control, and the other users of the gateway.
mod socket;
/// A hundred thousand gateways against IoT Hub's limits.
mod spread;
/// An update that stands still in each of its phases.
mod stops;
/// Many agents' connections, and a hub in trouble.
mod storm;
/// Pairs of troubles over whole updates.
mod sweep;
/// Lifecycle events as device-to-cloud messages.
mod telemetry;
/// What an update costs in messages.
mod thrift;
/// Keys in hardware.
mod token;
/// The ways to the hub: WebSocket, proxies, module identity, renewed certificates.
mod transport;
/// A trial proves the device's key.
mod trial_keys;
/// The tutorial's service app, unmodified, sees an update through.
mod tutorial;
/// A good update, there and back.
mod update;
/// What is not there yet is waited for.
mod waits;
/// Hours in which nothing may be fetched.
mod windows;
/// What people read.
mod words;
