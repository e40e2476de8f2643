//! An update that stands still in each of its phases until it is told to go on. Every stop is made by what the agent
//! waits for anyway (a body, a lock on a file, an approval, a check), never by time.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use fwupdate_hub::error::Kind;
use fwupdate_hub::faults::{FileEffect, FileRule};
use fwupdate_hub::firmware::Environment;
use fwupdate_hub::gateway::Bootloader;
use fwupdate_hub::methods::{Answer, Call};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::harness::{DEVICE, LIMIT, Release, Setup, Spec, World};
use crate::lease::Lease;

/// The operation's id.
pub const ID: &str = "op";

const SETTINGS: &str = "[download]\nstall_timeout = \"1h\"\n[policy]\napproval = true\n\
    [cloud]\nreconnect_longest = \"2s\"\n";

/// Where the update can stand still, in the order of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// The manifest is on its way.
    Opening,
    /// The boot environment is about to be written.
    Preparing,
    /// The server refuses the payload, and the download waits.
    Paused,
    /// The payload is on its way.
    Staging,
    /// The reboot waits for approval.
    Holding,
    /// The boot environment is about to be written.
    Arming,
    /// The reboot was ordered; no agent runs.
    Rebooting,
    /// A health check has not passed yet.
    Trying,
    /// The boot environment is about to be written.
    Committing,
    /// The check failed, and the boot environment is about to be written.
    RollingBack,
    /// The outcome is told.
    Ended,
}

impl Stop {
    pub const ALL: [Stop; 11] = [
        Stop::Opening,
        Stop::Preparing,
        Stop::Paused,
        Stop::Staging,
        Stop::Holding,
        Stop::Arming,
        Stop::Rebooting,
        Stop::Trying,
        Stop::Committing,
        Stop::RollingBack,
        Stop::Ended,
    ];

    /// The agent runs and has, or may get, a session.
    pub fn is_awake(self) -> bool {
        self != Stop::Rebooting
    }

    /// The phase as the twin tells it.
    fn phase(self) -> Option<&'static str> {
        match self {
            Stop::Opening | Stop::Preparing => Some("preparing"),
            Stop::Paused | Stop::Staging => Some("staging"),
            Stop::Holding => Some("holding"),
            Stop::Arming => Some("arming"),
            Stop::Trying => Some("trying"),
            Stop::Committing => Some("committing"),
            Stop::RollingBack => Some("rollingBack"),
            Stop::Rebooting | Stop::Ended => None,
        }
    }
}

/// One update on its way.
pub struct Walk {
    pub world: World,
    pub release: Release,
    good: bool,
    lease: Option<Lease>,
    go: PathBuf,
}

impl Walk {
    /// A gateway that has not been asked for anything. `good`: the release passes its health check; `cloud`: further
    /// settings of that section.
    pub async fn new(good: bool, relay: bool, cloud: &str) -> Walk {
        // Time for every disturbance; or a verdict against the image soon after it may fall.
        let deadline = if good { "90s" } else { "2s" };
        let settings = format!("{SETTINGS}{cloud}[health]\ndeadline = \"{deadline}\"\n");
        let bootloader = Bootloader::Grub;
        let mut world = World::with(Setup { bootloader, settings, relay, ..Setup::default() }).await;
        let health = if good { "good" } else { "bad" };
        let release = world.make(Spec { health, ..Spec::default() });
        let go = world.scratch().join("go");
        if good {
            world.gateway.add_check("90-wait", &format!("#!/bin/sh\n[ -e '{}' ]\n", go.display())).unwrap();
        }
        Walk { world, release, good, lease: None, go }
    }

    /// The stops of this update, in order.
    pub fn stops(&self) -> Vec<Stop> {
        let passed = [Stop::Trying, Stop::Committing];
        let skipped =
            |stop: &Stop| if self.good { *stop == Stop::RollingBack } else { passed.contains(stop) };
        Stop::ALL.into_iter().filter(|stop| !skipped(stop)).collect()
    }

    /// Goes on from the stop before this one, and returns when this one is reached and told.
    pub async fn enter(&mut self, stop: Stop) {
        match stop {
            Stop::Opening => {
                self.hold(0);
                let asked = json!({"fwPackageUri": self.release.url, "operationId": ID});
                assert_eq!(self.ask("firmwareUpdate", asked).await.status, 200);
                self.holding().await;
            }
            Stop::Preparing => {
                self.lock().await;
                self.world.hub.faults().clear_files();
            }
            Stop::Paused => {
                let refuse = FileEffect::Status { status: 503 };
                self.world.hub.faults().file(FileRule::always(&self.release.name, refuse));
                self.lease = None;
                let refused = self.world.hub.faults().answered(|served| served.status == 503);
                timeout(LIMIT, refused).await.unwrap();
            }
            Stop::Staging => {
                self.world.hub.faults().clear_files();
                self.hold(100_000);
                self.holding().await;
            }
            Stop::Holding => self.world.hub.faults().clear_files(),
            Stop::Arming => {
                self.lock().await;
                let answer = self.ask("firmwareApprove", json!({"operationId": ID})).await;
                assert_eq!(answer.status, 200, "{}", answer.payload);
            }
            Stop::Rebooting => {
                self.lease = None;
                self.world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
            }
            Stop::Trying => {
                self.world.gateway.reboot().await.unwrap();
            }
            Stop::Committing => {
                self.lock().await;
                fs::write(&self.go, "").unwrap();
            }
            Stop::RollingBack => {
                self.world.gateway.reboot().await.unwrap();
                self.lock().await;
            }
            Stop::Ended => self.lease = None,
        }
        self.told(stop).await;
    }

    /// Waits until the twin tells this stop.
    pub async fn told(&mut self, stop: Stop) {
        if stop == Stop::Ended {
            self.world.outcome(ID).await;
        }
        // From the manifest on the version is known.
        let opened = stop > Stop::Opening;
        if let Some(phase) = stop.phase() {
            let there = |twin: &Value| {
                let operation = &twin["fwupdate"]["operation"];
                operation["phase"] == phase && operation["version"].is_null() != opened
            };
            self.world.reported(there).await;
        }
    }

    /// Calls a method again and again until it is answered: whatever happens to the way there, this must be safe.
    pub async fn ask(&self, method: &str, payload: Value) -> Answer {
        let by = Instant::now() + LIMIT;
        loop {
            let call = Call {
                connect_timeout: LIMIT,
                response_timeout: Duration::from_secs(5),
                ..Call::new(method, Some(payload.clone()))
            };
            match self.world.hub.invoke(DEVICE, call).await {
                Ok(answer) => return answer,
                Err(error) if error.kind == Kind::DeviceTimeout && Instant::now() < by => {}
                Err(error) => panic!("{method}: {error}\n{}", self.world.gateway.log()),
            }
        }
    }

    /// The outcome as the twin tells it at the end.
    pub fn result(&self) -> &'static str {
        if self.good { "committed" } else { "rolledBack" }
    }

    fn hold(&self, after: u64) {
        self.world.hub.faults().file(FileRule::always(&self.release.name, FileEffect::Hold { after }));
    }

    async fn holding(&self) {
        timeout(LIMIT, self.world.hub.faults().holding()).await.unwrap();
    }

    /// What is locked may be written.
    pub fn unlock(&mut self) {
        self.lease = None;
    }

    async fn lock(&mut self) {
        let Environment::Grub { grubenv } = &self.world.gateway.machine().environment else {
            panic!("the stops are made for grubenv");
        };
        self.lease = Some(Lease::on(grubenv).await);
    }
}
