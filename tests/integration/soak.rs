//! One agent for a long time: cancels, refusals, lost links and renewed tokens, and among them updates and rollbacks.
//! At the end it holds no more descriptors, threads or memory than at its beginning. `make soak` lives an hour.

use std::fmt;
use std::fs;
use std::time::Duration;

use fwupdate_hub::faults::{FileEffect, FileRule};
use fwupdate_hub::methods::Call;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{DEVICE, LIMIT, Release, Setup, Spec, World};

/// How long, unless `FWUPDATE_SOAK` names other seconds.
const SHORT: u64 = 120;
/// Laps of one agent before the next update: a reboot ends its process.
const LAPS_SHORT: usize = 12;
const LAPS_LONG: usize = 120;
/// A token ends after 10 s, so that renewals come by themselves. No session lasts for long, and many are cut: with the
/// longest pause of a fleet the agent would rightly wait for minutes.
const SETTINGS: &str = "[cloud]\ntoken_ttl = \"10s\"\nreconnect_first = \"1s\"\nreconnect_longest = \"5s\"\n\
                        [download]\nstall_timeout = \"1h\"\n";
/// What may differ at rest: a session that is being renewed has two sockets and their buffers.
const SLACK: Held = Held { descriptors: 3, threads: 2, anonymous: 1024 };

/// What a process holds on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    descriptors: u64,
    threads: u64,
    /// KiB that no file backs.
    anonymous: u64,
}

impl Held {
    fn by(process: u32) -> Held {
        let count = |folder: &str| {
            u64::try_from(fs::read_dir(format!("/proc/{process}/{folder}")).unwrap().count()).unwrap()
        };
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let anonymous = line.trim().trim_end_matches(" kB").parse().unwrap();
        Held { descriptors: count("fd"), threads: count("task"), anonymous }
    }

    fn fold(samples: &[Held], choose: impl Fn(u64, u64) -> u64) -> Held {
        samples
            .iter()
            .copied()
            .reduce(|a, b| Held {
                descriptors: choose(a.descriptors, b.descriptors),
                threads: choose(a.threads, b.threads),
                anonymous: choose(a.anonymous, b.anonymous),
            })
            .unwrap()
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Held { descriptors, threads, anonymous } = self;
        write!(f, "{descriptors} descriptors, {threads} threads, {anonymous} KiB")
    }
}

/// A leak grows with every lap: the least of the last third must not be above the most of the first third.
fn flat(samples: &[Held]) {
    let third = samples.len() / 3;
    assert!(third >= 2, "only {} laps: too few to tell a leak from noise", samples.len());
    let before = Held::fold(&samples[..third], u64::max);
    let after = Held::fold(&samples[samples.len() - third..], u64::min);
    println!("{} laps; first third at most: {before}; last third at least: {after}", samples.len());
    for (what, before, after, slack) in [
        ("descriptors", before.descriptors, after.descriptors, SLACK.descriptors),
        ("threads", before.threads, after.threads, SLACK.threads),
        ("KiB of memory", before.anonymous, after.anonymous, SLACK.anonymous),
    ] {
        assert!(after <= before + slack, "{what} grow from {before} to {after}: {samples:?}");
    }
}

#[test]
#[should_panic(expected = "descriptors grow")]
fn one_descriptor_a_lap_is_noticed() {
    let lap = |number: u64| Held { descriptors: 14 + number, threads: 3, anonymous: 3000 };
    flat(&(0..12).map(lap).collect::<Vec<_>>());
}

#[tokio::test]
async fn nothing_grows_while_one_agent_lives_on() {
    let seconds = std::env::var("FWUPDATE_SOAK").ok().map_or(SHORT, |text| text.parse().unwrap());
    let (end, laps) = match seconds {
        ..=600 => (Instant::now() + Duration::from_secs(seconds), LAPS_SHORT),
        _ => (Instant::now() + Duration::from_secs(seconds), LAPS_LONG),
    };
    let mut soak = Soak::new().await;
    let mut samples = 0;
    while Instant::now() < end {
        let mut own = Vec::new();
        let process = soak.world.gateway.agent_id().unwrap();
        for lap in 0..laps {
            soak.lap(lap).await;
            assert_eq!(
                soak.world.gateway.agent_id(),
                Some(process),
                "the agent ended: {}",
                soak.world.gateway.log()
            );
            own.push(Held::by(process));
        }
        flat(&own);
        samples += own.len();
        soak.update().await;
    }
    println!("{samples} laps, {} updates in {seconds} s", soak.updates);
    soak.world.finish_disturbed().await;
}

struct Soak {
    world: World,
    good: [Release; 2],
    bad: Release,
    updates: usize,
    laps: usize,
}

impl Soak {
    async fn new() -> Soak {
        let mut world = World::with(Setup { settings: SETTINGS.into(), ..Setup::default() }).await;
        let good = ["2.0.0", "3.0.0"].map(|version| world.release(version));
        let bad = world.make(Spec { version: "9.0.0", health: "bad", ..Spec::default() });
        fs::write(world.www().join("garbage.fwb"), [b'g'; 4096]).unwrap();
        Soak { world, good, bad, updates: 0, laps: 0 }
    }

    /// A cancelled download, a refused one, a lost link, and somebody who asks.
    async fn lap(&mut self, lap: usize) {
        self.laps += 1;
        let id = |what: &str| format!("{what}-{}", self.laps);
        let (cancelled, refused) = (id("cancelled"), id("refused"));
        let name = self.good[(self.updates + 1) % 2].name.clone();
        let url = self.world.hub.files_url(&name);
        self.world.hub.faults().file(FileRule::always(&name, FileEffect::Stall { after: 50_000 }));
        self.start(&url, &cancelled).await;
        self.world.hub.faults().answered(|served| served.path == name && served.length > 50_000).await;
        self.insist("firmwareCancel", json!({"operationId": cancelled})).await;
        assert_eq!(self.world.outcome(&cancelled).await["result"], "cancelled");
        self.world.hub.faults().clear();
        self.start(&self.world.hub.files_url("garbage.fwb"), &refused).await;
        assert_eq!(self.world.outcome(&refused).await["result"], "failed");
        if lap % 2 == 0 {
            let before = self.world.hub.visits(DEVICE).iter().filter(|visit| visit.accepted).count();
            self.world.hub.drop_connections(None);
            assert!(self.world.hub.wait_accepted(DEVICE, before + 1, LIMIT).await);
        }
        self.world.until_shown(&["status"], |status| status["fwupdate"]["operation"].is_null()).await;
        assert!(self.world.hub.wait_connected(DEVICE, true, LIMIT).await);
    }

    async fn start(&self, url: &str, id: &str) {
        let payload = json!({"fwPackageUri": url, "operationId": id, "force": true, "allowDowngrade": true});
        self.insist("firmwareUpdate", payload).await;
    }

    /// Calls until it is answered: a call that meets a session's end times out, and may be made again.
    async fn insist(&self, method: &str, payload: Value) {
        for _ in 0..5 {
            let call = Call { connect_timeout: LIMIT, ..Call::new(method, Some(payload.clone())) };
            match self.world.hub.invoke(DEVICE, call).await {
                Ok(answer) => return assert_eq!(answer.status, 200, "{}", answer.payload),
                Err(error) => println!("lap {}: {method}: {error}", self.laps),
            }
        }
        panic!("{method} is never answered\n{}", self.world.gateway.log());
    }

    /// One that stays, then one that does not.
    async fn update(&mut self) {
        for (release, result) in
            [(self.good[self.updates % 2].clone(), "committed"), (self.bad.clone(), "rolledBack")]
        {
            let id = format!("update-{}-{result}", self.updates);
            self.start(&release.url, &id).await;
            let last: Value = self.world.outcome(&id).await;
            assert_eq!(last["result"], result, "{last}\n{}", self.world.gateway.log());
        }
        self.updates += 1;
    }
}
